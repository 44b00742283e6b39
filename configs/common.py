"""Every field of a run, with its reason or source, and the rows of the paper's tables.

A configuration file takes an argument, `--config=configs/resnet110.py:dataset,method`, and any field can be overridden
on the command line, for instance `--config.optimizer.learning_rate=0.1`.
"""

from typing import Any

from ml_collections import ConfigDict

from cutnmix_jax.errors import UsageError, nearest


def _row(
    loss: str,
    weights: dict[str, float],
    num_peers: int = 2,
    views: str = "shared",
    mix: str = "none",
    share_trunk: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """One row: which file of `methods/` with which options, the weights of its terms, and what the networks see."""
    seen = {"num_peers": num_peers, "views": views, "mix": mix, "share_trunk": share_trunk}
    return {"loss": {"name": loss, **options}, "weights": weights, **seen}


def _cutnmix_row(mmd: float, pt: float) -> dict[str, Any]:
    """A row of Table 2: the paper's framework with beta = mmd and gamma = pt. The table's first row keeps L_DML."""
    weights = {
        "ce": 1.0,
        "dml": 0.6,  # alpha, section 3.1
        "mmd": mmd,
        "pt": pt,
        "peer_teacher_ce": 1.0,  # "trained by a standard cross-entropy loss", section 2.3
    }
    return _row(
        "cutnmix",
        weights,
        views="per_peer",  # section 2.2: each network its own distortion of the raw images
        mix="cutnmix",
        temperature=3.0,  # section 3.1
        teacher_moves_peers=False,  # Algorithm 1 updates peers (line 11) and teacher (line 12) apart
    )


# The rows of Table 1, Table 2 and Fig. 1, and methods that the paper names without a row (mixup, ps_kd, tf_kd, pcl). A
# new method has its row here, and nowhere else. Section 3.2: everything but a method's own options by one recipe, two
# branches or peers.
ROWS: dict[str, dict[str, Any]] = {
    "baseline": _row("supervised", {"ce": 1.0}, num_peers=1),
    "mixup": _row("supervised", {"ce": 1.0}, num_peers=1, mix="mixup"),
    "cutmix": _row("supervised", {"ce": 1.0}, num_peers=1, mix="cutmix"),
    # alpha = 1 as the paper says of DML (section 2.1); tau = 3 as Eq. 4 has a tau and its code lineage this value
    "dml": _row("dml", {"ce": 1.0, "dml": 1.0}, temperature=3.0),
    # Fig. 1: "identically the same batch of images after mixed operation to each network" (section 2.1)
    "dml_cutmix": _row("dml", {"ce": 1.0, "dml": 1.0}, mix="cutmix", temperature=3.0),
    "cs_kd": _row("cs_kd", {"ce": 1.0, "kd": 1.0}, num_peers=1, temperature=4.0),
    "ps_kd": _row("ps_kd", {"ce": 1.0}, num_peers=1, last_share=0.8),
    # a = 0.1, the original's value for ResNet-18 on CIFAR-100
    "tf_kd_reg": _row("tf_kd_reg", {"ce": 0.9, "kd": 0.1}, num_peers=1, correct=0.99, temperature=20.0),
    # a = 0.95, tau = 6 for ResNet-18; the released KL, a mean over K = 100 classes times 50, is half of the sum. The
    # teacher is a finished run of the same backbone's baseline: --config.teacher=DIR
    "tf_kd_self": _row("kd", {"ce": 0.05, "kd": 0.475}, num_peers=1, temperature=6.0, teacher_is_like_peers=True),
    # Eq. 1 with any finished run for a teacher; 0.1, 0.9 and tau = 4 as RepDistiller has them, the paper is silent
    "kd": _row("kd", {"ce": 0.1, "kd": 0.9}, num_peers=1, temperature=4.0, teacher_is_like_peers=False),
    # lambda = 1, mu = 5e-4 as the port that says it follows the original
    "ddgsd": _row("ddgsd", {"ce": 1.0, "kd": 1.0, "mmd": 5e-4}, num_peers=1, views="per_peer", temperature=3.0),
    # a = 0.5, tau = 4 and the mean of the logits, as the port whose training loop the paper's lineage took over
    "kdcl": _row("kdcl", {"ce": 0.5, "kd": 0.5}, views="per_peer", temperature=4.0, target="mean"),
    "one": _row("one", {"ce": 1.0, "ensemble_ce": 1.0, "kd": 1.0}, share_trunk=True, temperature=3.0, rampup_epochs=80),
    # two peers and the leader, which is the last network; share_trunk=false is the original's network-based form
    "okddip": _row("okddip", {"ce": 1.0, "kd": 1.0}, num_peers=3, share_trunk=True, temperature=3.0, rampup_epochs=80),
    "pcl": _row(
        "pcl",
        {"ce": 1.0, "pt": 1.0, "mean_teacher": 1.0, "peer_teacher_ce": 1.0},
        num_peers=3,  # of the original; the paper does not compare itself with it
        views="per_peer",
        share_trunk=True,
        temperature=3.0,
        rampup_epochs=80,
    ),
    "cutnmix_dml": _cutnmix_row(mmd=0.0, pt=0.0),
    "cutnmix_mmd": _cutnmix_row(mmd=0.3, pt=0.0),
    "cutnmix_pt": _cutnmix_row(mmd=0.0, pt=0.1),
    "cutnmix": _cutnmix_row(mmd=0.3, pt=0.1),  # beta, gamma: section 3.1
}


def make(backbone: str, arg: str | None, dataset: str = "cifar100", method: str = "cutnmix") -> ConfigDict:
    """Makes the configuration of a run by the paper's recipe.

    Args:
      backbone: a name of `cutnmix_jax.backbones`, or `my_pkg.nets:make`.
      arg: what follows the colon of `--config=FILE:dataset,method`; either part, or both, may be left out.
      dataset: where the argument names none.
      method: where the argument names none; a row of `ROWS`.

    Raises:
      UsageError: the method is no row, or the argument has more than two parts.
    """
    if arg in ROWS:
        raise UsageError(f"--config=FILE:{arg}: {arg} is a method; the data set comes first, FILE:{dataset},{arg}")
    parts = (arg or "").split(",")
    if len(parts) > 2:
        raise UsageError(f"--config=FILE:{arg}: the argument is dataset,method, for instance cifar10,dml")
    dataset = parts[0] or dataset
    method = (parts[1] if len(parts) == 2 else "") or method
    if method not in ROWS:
        raise UsageError(f"--config=FILE:{arg}: no method {method!r}; {nearest(method, ROWS)}")
    row = ROWS[method]
    return ConfigDict(
        {
            "dataset": dataset,  # a file of cutnmix_jax/data
            "data_dir": "",  # where tfds keeps its data; empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets
            "train_examples": 0,  # use only the first N, for a small run on real data; 0: all
            "test_examples": 0,  # likewise
            "held_out_examples": 0,  # training images to weigh the peers by instead, for kdcl's target general alone
            "method": method,  # the row's name, chosen by the argument; names the run, and its fields follow from it
            "seed": 95,  # section 3.2; the three runs are 95, 96 and 97
            "backbone": {"name": backbone},  # of each peer
            "num_peers": row["num_peers"],  # J = 2, section 3.1; okddip counts its leader
            "peers": "",  # backbones of unlike peers, as resnet32,wrn20_8; their number then replaces num_peers
            "share_trunk": row["share_trunk"],  # one trunk, and a tail for each peer
            "teacher": "",  # the folder of a finished run, for the rows kd and tf_kd_self
            "mapping": "unroll",  # vmap: stacked peers, slower wherever it was measured; for comparison
            "precision": "tf32",  # tf32 (on a CPU float32), float32 or bfloat16; our networks' parameters are float32
            "loss": row["loss"],  # a file of methods/ and its options
            # of the loss terms; 0 leaves a term out of the objective, but not out of the metrics
            "weights": row["weights"],
            "views": row["views"],  # per_peer: each its own crop and flip; shared: one for all
            "mix": {
                "kind": row["mix"],  # none, mixup, cutmix (one box for all peers) or cutnmix (a box per peer)
                "prob": 1.0,  # Eq. 5, 6 and Algorithm 1 mix every batch (CutMix's own CIFAR scripts: 0.5)
                "alpha": 1.0,  # Beta(1, 1), section 1 and Eq. 7
                # How to read Eq. 7: cutmix (each box by CutMix's own law, section 2.2), uniform, inside, wrap, raw or
                # own; see augment.cutnmix_boxes.
                "box": "cutmix",
            },
            "epochs": 240,  # section 3.1
            "batch_size": 64,  # the paper is silent; 64 in SSKD [26], whose recipe it follows, and in its code lineage
            "optimizer": {
                "learning_rate": 0.05,  # section 3.1, as all of these
                "milestones": (150, 180, 210),  # 0-based epochs from which the rate is multiplied by decay
                "decay": 0.1,  # "by 10%" in the text; x0.1 in [26] and in the lineage
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 5e-4,  # on every parameter, as in the lineage's single parameter group
            },
            "eval_batch_size": 500,  # speed only
            "steps_per_call": 0,  # training steps per compiled call of a GPU, 0: 50; a CPU does one, its loops are slow
            "checkpoint": {
                # Saved besides after each best epoch, and when training is stopped by a signal.
                "every_epochs": 1,
                "every_steps": 0,  # 0: not by steps
                "every_minutes": 10.0,  # for long epochs; 0: not by time
                "keep": 3,  # the newest, and the best one besides
            },
        }
    )
