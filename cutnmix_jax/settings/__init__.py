"""The settings of a run: every field with its default, what it may be, and the reason.

A file of `configs/` and a command line fill in a ConfigDict of these fields; `tree.to_settings` makes `Settings` of it.
Below the command line there is no ConfigDict.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from cutnmix_jax import augment, crops, data, precision
from cutnmix_jax.backbones.foreign import is_foreign
from cutnmix_jax.fields import (
    Change,
    Check,
    field,
    group,
    names,
    number,
    one_of,
    or_none,
    text,
    truth,
    whole,
)
from cutnmix_jax.method import Method, same_images
from cutnmix_jax.settings.optimizer import Optimizer

MOST_PEERS = 64
MAPPINGS = UNROLL, VMAP, SHARD = ("unroll", "vmap", "shard")
VIEWS = ("shared", "per_peer")
PLACES = DEVICE, MEMORY, DISK = ("device", "memory", "disk")
DATASET = Check(data.problem, "a name of --list, folder:PATH, tfds:NAME[/CONFIG] or my_pkg.data:load")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The network of each peer."""

    name: str = field("resnet110", text, "a file of cutnmix_jax/backbones, or my_pkg.nets:make", Change.NEVER)


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How batches are mixed."""

    kind: str = field(
        "none",
        one_of(augment.MIX_KINDS),
        "none, mixup, cutmix (one box for all peers) or cutnmix (a box per peer); follows from the row",
    )
    prob: float = field(
        1.0, augment.PROB, "Eq. 5, 6 and Algorithm 1 mix every batch; the CIFAR scripts of CutMix itself have 0.5"
    )
    alpha: float = field(1.0, augment.ALPHA, "Beta(1, 1), section 1 and Eq. 7")
    box: str = field(
        "cutmix",
        augment.BOX,
        "how to read Eq. 7: cutmix (each box by CutMix's own law, section 2.2), uniform, inside, wrap, raw or own; see "
        "augment.cutnmix_boxes",
    )


@dataclasses.dataclass(frozen=True)
class Jitter:
    """Colours that are changed at random, image by image; see `crops.draw_colours`."""

    brightness: float = field(0.0, crops.STRENGTH, "strength s of torchvision's ColorJitter; the paper has none")
    contrast: float = field(0.0, crops.STRENGTH, "likewise")
    saturation: float = field(0.0, crops.STRENGTH, "likewise")


@dataclasses.dataclass(frozen=True)
class RampUp:
    """Weights that rise, as exp(-5 (1 - epoch / epochs)^2) (Laine and Aila 2017)."""

    terms: tuple[str, ...] = field((), names, "whose weights; from the row")
    epochs: int = field(80, whole(1), "until they have their full size; 80 of 300 in ONE, OKDDip and PCL")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When a run is saved, besides after each best epoch and when a signal stops it."""

    every_epochs: int = field(1, whole(1), "after so many epochs", Change.FREE)
    every_steps: int | None = field(None, or_none(whole(1)), "after so many steps; none: not by steps", Change.FREE)
    every_minutes: float | None = field(10.0, or_none(number(1e-9)), "for long epochs; none: not by time", Change.FREE)
    keep: int = field(3, whole(1), "the newest, and the best one besides", Change.FREE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A run; its method, with options and weights, has no default, because it follows from a row."""

    dataset: str = field("cifar100", DATASET, "a file of cutnmix_jax/data, or of your own", Change.NEVER)
    data_dir: str | None = field(
        None, or_none(text), "where tfds keeps its data; none: $TFDS_DATA_DIR, else ~/tensorflow_datasets", Change.FREE
    )
    image_size: int | None = field(
        None, or_none(whole(1, 4096)), "S, of images S x S; none: their own, or the only one prepared", Change.NEVER
    )
    train_examples: int | None = field(
        None, or_none(whole(1)), "only the first N, for a small run on real data; none: all", Change.NEVER
    )
    test_examples: int | None = field(None, or_none(whole(1)), "only the first N test images; none: all", Change.NEVER)
    held_out_examples: int | None = field(
        None,
        or_none(whole(1)),
        "training images that are kept for a method that looks at such, as kdcl with target general",
        Change.NEVER,
    )
    validation_examples: int | None = field(
        None,
        or_none(whole(1)),
        "training images that choose the best epoch instead; none: the test set chooses it, as in the paper's lineage",
        Change.NEVER,
    )
    method: str = field(
        dataclasses.MISSING, text, "the name of the row; chosen by the argument, other fields follow from it"
    )
    seed: int = field(95, whole(0, 2**32 - 1), "section 3.2; the three runs are 95, 96 and 97", Change.NEVER)
    backbone: Architecture = dataclasses.field(default_factory=Architecture)
    num_peers: int = field(2, whole(1, MOST_PEERS), "J, section 3.1; okddip counts its leader", Change.NEVER)
    peers: str | None = field(
        None,
        or_none(text),
        "backbones of unlike peers, as resnet32,wrn20_8; their number then replaces num_peers",
        Change.NEVER,
    )
    share_trunk: bool = field(False, truth, "one trunk, and a tail for each peer; from the row", Change.NEVER)
    # The data and a teacher are known by what they hold, wherever they lie.
    teacher: str | None = field(
        None, or_none(text), "the folder of a finished run or an export, for a row with a trained teacher", Change.FREE
    )
    teacher_which: str = field(
        "last", one_of(("last", "best")), "which epoch of the teacher's run; an export has one", Change.FREE
    )
    init_from: str | None = field(
        None,
        or_none(text),
        "the folder of a finished run or an export that the peers begin as; of other classes without the head",
        Change.FREE,
    )
    mapping: str = field(
        "unroll",
        one_of(MAPPINGS),
        "unroll: one peer after the other; vmap: alike peers stacked, some 13 % slower on a CPU, for a GPU; shard: "
        "peers on devices of their own, alike or not",
    )
    devices: int = field(
        1, whole(0), "how many train the run, each a part of the batch, or peers, see mapping; 0: all", Change.FREE
    )
    bn: str = field(
        "global",
        one_of(("global", "local")),
        "of several devices, what batch norm sees in training: the whole batch, or the part of a device",
    )
    precision: str = field(
        "tf32",
        one_of(tuple(precision.CHOICES)),
        "tf32 (on a CPU float32), float32 or bfloat16; the parameters of our networks are float32",
    )
    loss: Method = group("set by the argument", "a file of cutnmix_jax/methods; its options are below", Change.NEVER)
    weights: Mapping[str, float] = group(
        "a number, 0 or above", "the weight of a loss term; with 0 it is only measured", Change.FORCED
    )
    ramp_up: RampUp = dataclasses.field(default_factory=RampUp)
    views: str = field(
        "shared", one_of(VIEWS), "per_peer: each its own crop and flip; shared: one for all; from the row"
    )
    crop: str = field(
        "auto",
        crops.KIND,
        "pad: out of the image padded by an eighth of its size (4 of 32); resized: a random part made the whole; "
        "auto: pad up to 64 pixels, else resized",
    )
    jitter: Jitter = dataclasses.field(default_factory=Jitter)
    mix: Mixing = dataclasses.field(default_factory=Mixing)
    average: float | None = field(
        None,
        or_none(number(0, 0.999999)),
        "decay of running averages of the weights, say 0.999, which are evaluated, too; none: no averages",
        Change.NEVER,
    )
    epochs: int = field(240, whole(1), "section 3.1", Change.EXTENDED)
    # BatchNorm has no deviation over one image.
    batch_size: int = field(
        64, whole(2), "64 in SSKD [26], whose recipe the paper follows, and in its lineage", Change.NEVER
    )
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    # The largest test set; more images at once would only take memory.
    eval_batch_size: int = field(500, whole(1, 10_000), "speed only", Change.FREE)
    eval_every_epochs: int = field(
        1, whole(1), "evaluated after each so many epochs, and after the first and the last; the best one is of these"
    )
    images_in: str | None = field(
        None, or_none(one_of(PLACES)), "where they lie; none: on the device, else in memory, else on disk", Change.FREE
    )
    steps_per_call: int | None = field(
        None,
        or_none(whole(1)),
        "training steps per compiled call of a GPU, none: 50; a CPU does one, its loops are slow",
    )
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)

    @property
    def backbones(self) -> tuple[str, ...]:
        """The backbone of each of J peers."""
        if self.peers:
            return tuple(name.strip() for name in self.peers.split(","))
        return (self.backbone.name,) * self.num_peers

    @property
    def own_backbones(self) -> tuple[str, ...]:
        """Those of the peers' backbones that are a user's own."""
        return tuple(filter(is_foreign, self.backbones))

    @property
    def same_images(self) -> bool:
        """Whether all peers see the same images: one crop and flip, and one box, for all."""
        return same_images(self.views, self.mix.kind)

    def is_evaluated(self, epoch: int) -> bool:
        """Whether the accuracies are measured after an epoch, counted from 1; the first has to be a best one so far."""
        return epoch in (1, self.epochs) or epoch % self.eval_every_epochs == 0

    @property
    def backbone_name(self) -> str:
        """The backbone as results and folders call it; unlike peers are joined by a plus."""
        names = self.backbones
        return "+".join(names if len(set(names)) > 1 else names[:1]).replace(":", ".")

    @property
    def default_workdir(self) -> Path:
        """Where a run is kept unless `--workdir` says otherwise."""
        return Path("runs", data.slug(self.dataset), self.backbone_name, self.method, f"seed{self.seed}")
