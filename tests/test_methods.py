"""Every method: its terms against float64 numpy, where its gradients go, and its contract."""

import contextlib
import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import continued, evaluate, methods, objective
from cutnmix_jax.engine import assemble
from cutnmix_jax.errors import UsageError
from cutnmix_jax.method import Method
from cutnmix_jax.methods import cutnmix
from cutnmix_jax.methods.cutnmix import CutnMix
from cutnmix_jax.methods.ps_kd import PSKD
from cutnmix_jax.names import check_weights, head_names, term_names
from cutnmix_jax.settings import check, command_line, recipe, tree
from cutnmix_jax.types import Outputs, Spec
from tests.oracles import (
    CLOCK,
    K,
    N,
    batch_of,
    ce64,
    kl64,
    made,
    method_of,
    mmd64,
    others_of,
    outputs_of,
    seen_by,
    setup_of,
    spec_of,
)
from tests.test_student import trained_in

ROWS = methods.rows_by_name()


def expected_terms(row, params, outputs, batch, temperature=3):
    """Eq. 4, 8, 9 and 10 written out peer by peer."""
    peers, [targets] = range(len(outputs)), batch.targets
    terms = {"ce": [ce64(outputs[j].logits, targets[j]) for j in peers]}

    def over_others(pair):
        return [sum(pair(outputs[j], outputs[k]) for k in peers if k != j) / (len(outputs) - 1) for j in peers]

    if row.startswith("dml") or (row.startswith("cutnmix") and len(outputs) > 1):
        terms["dml"] = over_others(lambda mine, theirs: kl64(mine.logits, theirs.logits, temperature))
    if row.startswith("cutnmix"):
        if len(outputs) > 1:
            terms["mmd"] = over_others(lambda mine, theirs: mmd64(mine.features, theirs.features))
        joined = np.concatenate([np.asarray(out.features, np.float64) for out in outputs], axis=1)
        teacher = joined @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"], np.float64)
        terms["pt"] = [kl64(out.logits, teacher, temperature) for out in outputs]
        terms["peer_teacher_ce"] = np.mean([ce64(teacher, targets[j]) for j in peers])  # of which CE is linear
    return terms


FRAMEWORK = ("cutnmix_dml", "cutnmix_mmd", "cutnmix_pt", "cutnmix")
PAPER = ("baseline", "mixup", "cutmix", "dml", "dml_cutmix", *FRAMEWORK)


@pytest.mark.parametrize("num_peers", [1, 2, 3])
@pytest.mark.parametrize("row", PAPER)
def test_terms_against_numpy(row, num_peers):
    if row.startswith("dml") and num_peers == 1:
        with pytest.raises(UsageError, match=f"{row} needs at least 2 networks"):
            method_of(row).check(setup_of(row, num_peers))
        return
    method_of(row).check(setup_of(row, num_peers))
    outputs, batch = outputs_of(num_peers), batch_of(num_peers)
    for options in ({}, others_of(row)):
        method, params, state = made(row, outputs, **options)
        terms, _ = method.loss(params, state, (outputs,), batch, CLOCK)
        expected = expected_terms(row, params, outputs, batch, **options)
        assert set(terms) == set(expected) and tuple(terms) == term_names(method, spec_of(outputs))
        for name, values in expected.items():
            np.testing.assert_allclose(terms[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


# OKDDip's targets are not stopped: its attention learns through them alone.
EXEMPT = {"okddip": {"kd"}}


@pytest.mark.parametrize("row", ROWS)
def test_a_peers_terms_move_no_other_peer(row):
    num_peers = 3
    views = seen_by(row, num_peers)
    batch = batch_of(num_peers, views=len(views))
    method, params, state = made(row, views[0])

    def terms(views):
        return {name: t for name, t in method.loss(params, state, views, batch, CLOCK)[0].items() if t.ndim == 1}

    jacobian = jax.jit(jax.jacrev(terms))(views)
    for name, by_view in jacobian.items():
        per_peer = list(zip(*by_view, strict=True))  # of each peer its outputs for all views
        moved = [[any(np.any(leaf[j]) for leaf in jax.tree.leaves(out)) for out in per_peer] for j in range(num_peers)]
        assert all(moved[j][j] for j in range(num_peers)), name
        others = any(moved[j][k] for j in range(num_peers) for k in range(num_peers) if j != k)
        assert others == (name in EXEMPT.get(row, ())), name


@pytest.mark.parametrize("row", ROWS)
def test_a_peers_terms_do_not_move_the_method_s_parameters(row):
    """Those learn from scalar terms of their own; OKDDip's attention has none."""
    views = seen_by(row, 3)
    batch = batch_of(3, views=len(views))
    method, params, state = made(row, views[0])
    if not params:
        pytest.skip(f"{row} has no parameters of its own")

    def terms(params):
        found, _ = method.loss(params, state, views, batch, CLOCK)
        return found, found

    jacobian, found = jax.jit(jax.jacrev(terms, has_aux=True))(params)
    moves = {name for name, tree in jacobian.items() if any(np.any(leaf) for leaf in jax.tree.leaves(tree))}
    scalars = {name for name, term in found.items() if term.ndim == 0}
    assert moves == (EXEMPT.get(row) or scalars)


def test_peer_teacher_learns_without_moving_the_peers_by_default():
    outputs, batch = outputs_of(2), batch_of(2)
    for moves in (False, True):
        method, params, state = made("cutnmix", outputs, teacher_moves_peers=moves)

        def own(params, outputs, method=method, state=state):
            return method.loss(params, state, (outputs,), batch, CLOCK)[0]["peer_teacher_ce"]

        to_teacher, to_peers = jax.jit(jax.grad(own, argnums=(0, 1)))(params, outputs)
        assert all(np.any(leaf) for leaf in jax.tree.leaves(to_teacher))
        assert all(bool(np.any(out.features)) == moves for out in to_peers)
        assert not any(np.any(out.logits) for out in to_peers)


def test_peer_teacher_starts_as_a_pytorch_linear_layer():
    params, _ = method_of("cutnmix").init(jax.random.key(0), Spec(100, (256, 256), 1))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 512 * 100 + 100
    bound = 1 / np.sqrt(512)
    for leaf in jax.tree.leaves(params):
        assert bound * 0.9 < np.abs(leaf).max() <= bound
    np.testing.assert_allclose(params["kernel"].std(), bound / np.sqrt(3), rtol=0.02)


def test_peer_teacher_head_reads_the_joined_features():
    outputs = outputs_of(2, sizes=[3, 4])
    method, params, _ = made("cutnmix", outputs)
    logits = method.heads(params, {}, outputs)["peer_teacher"]
    changed = (outputs[0], Outputs(outputs[1].logits, outputs[1].features.at[2].add(1.0)))
    rows = np.any(np.asarray(method.heads(params, {}, changed)["peer_teacher"] != logits), axis=1)
    assert rows.tolist() == [i == 2 for i in range(N)]


def test_table_2_is_a_matter_of_weights():
    full = ROWS["cutnmix"]
    for row, zero in {"cutnmix_dml": {"mmd", "pt"}, "cutnmix_mmd": {"pt"}, "cutnmix_pt": {"mmd"}}.items():
        assert {name for name, weight in ROWS[row].weights.items() if weight == 0} == zero
        assert all(ROWS[row].weights[name] == full.weights[name] for name in set(full.weights) - zero)
        assert dataclasses.replace(ROWS[row], weights=full.weights) == full
    assert full.weights == {"ce": 1.0, "dml": 0.6, "mmd": 0.3, "pt": 0.1, "peer_teacher_ce": 1.0}


def test_the_weights_of_each_row_are_those_of_its_source():
    """By hand: sections 2 and 3 of the paper for its own, DML (alpha 1) and CutMix; else the method's paper or code."""
    wanted = {
        "baseline": {"ce": 1}, "mixup": {"ce": 1}, "cutmix": {"ce": 1},
        "dml": {"ce": 1, "dml": 1}, "dml_cutmix": {"ce": 1, "dml": 1},
        "cs_kd": {"ce": 1, "kd": 1}, "ps_kd": {"ce": 1}, "tf_kd_reg": {"ce": 0.9, "kd": 0.1},
        "tf_kd_self": {"ce": 0.05, "kd": 0.95 / 2}, "kd": {"ce": 0.1, "kd": 0.9},
        "ddgsd": {"ce": 1, "kd": 1, "mmd": 5e-4}, "kdcl": {"ce": 0.5, "kd": 0.5},
        "one": {"ce": 1, "ensemble_ce": 1, "kd": 1}, "okddip": {"ce": 1, "kd": 1},
        "pcl": {"ce": 1, "pt": 1, "mean_teacher": 1, "peer_teacher_ce": 1},
    }  # fmt: skip
    assert {name: dict(ROWS[name].weights) for name in wanted} == {
        name: pytest.approx(weights) for name, weights in wanted.items()
    }
    assert set(ROWS) - set(wanted) == {"cutnmix", "cutnmix_dml", "cutnmix_mmd", "cutnmix_pt"}  # which are Table 2


def test_what_each_row_trains_is_that_of_its_source():
    """By hand: how many networks, whether each has crops of its own, how they mix, whether they share a trunk."""
    alone, apart = (1, "shared", "none", False), ("per_peer", "cutnmix", False)
    wanted = {
        "baseline": alone, "cs_kd": alone, "ps_kd": alone, "tf_kd_reg": alone, "tf_kd_self": alone, "kd": alone,
        "mixup": (1, "shared", "mixup", False), "cutmix": (1, "shared", "cutmix", False),
        "ddgsd": (1, "per_peer", "none", False), "dml": (2, "shared", "none", False),
        "dml_cutmix": (2, "shared", "cutmix", False), "kdcl": (2, "per_peer", "none", False),
        "one": (2, "shared", "none", True), "okddip": (3, "shared", "none", True), "pcl": (3, "per_peer", "none", True),
        "cutnmix": (2, *apart), "cutnmix_dml": (2, *apart), "cutnmix_mmd": (2, *apart), "cutnmix_pt": (2, *apart),
    }  # fmt: skip
    assert wanted == {name: (row.num_peers, row.views, row.mix, row.share_trunk) for name, row in ROWS.items()}


def test_weights_and_terms_must_match():
    settings = recipe.of_row("resnet8", "digits", "cutnmix")
    weights = settings.weights

    def check(weights, sizes=(4, 4)):
        spec = Spec(K, sizes, N)
        check_weights("cutnmix", weights, settings.weights, term_names(settings.loss, spec), spec)

    check(weights)
    with pytest.raises(UsageError, match="no weight for the loss term 'pt'"):
        check({name: w for name, w in weights.items() if name != "pt"})
    with pytest.raises(UsageError, match="weights.extra"):
        check(weights | {"extra": 0.5})
    with pytest.raises(UsageError, match="weights.dml"):
        check(weights, (4,))
    check(weights | {"dml": 0.0, "mmd": 0.0}, (4,))
    with pytest.raises(UsageError, match="weights.mmd=0.3: peers with features of 4, 5"):
        check(weights, (4, 5))
    check(weights | {"mmd": 0.0}, (4, 5))


@pytest.mark.parametrize("name", methods.names())
def test_every_module_is_a_method_with_a_row(name):
    method = methods.find(name)
    assert issubclass(method, Method) and method.__dataclass_params__.frozen
    assert inspect.getdoc(method) != inspect.getdoc(Method)
    assert name in {methods.name_of(row.method) for row in ROWS.values()}


@pytest.mark.parametrize("row", {type(row.method): name for name, row in ROWS.items()}.values())
def test_a_method_says_what_it_looks_at(row):
    """A run is extended, and an objective called, by what it says of an image's row and of the epochs."""
    method, outputs, views = method_of(row), outputs_of(3), seen_by(row, 3)
    params, state = method.init(jax.random.key(0), spec_of(outputs))
    batch = batch_of(3, views=len(views))
    for says, blind in (
        (method.remembers, (batch._replace(indices=object()), CLOCK)),
        (method.counts_epochs, (batch, CLOCK._replace(epoch=object(), epochs=object()))),
    ):
        with pytest.raises((TypeError, IndexError)) if says else contextlib.nullcontext():
            jax.eval_shape(lambda blind=blind: method.loss(params, state, views, *blind))


def test_epochs_alone_make_a_run_another_one(monkeypatch):
    """A method that counts epochs and remembers nothing."""
    settings = command_line.from_flags("configs/quickstart.py", [])
    longer = dataclasses.replace(settings, epochs=settings.epochs + 1)
    changed = tree.changes(tree.of_settings(settings), tree.of_settings(longer))
    assert continued._why_not_extended(changed, longer) == ""
    monkeypatch.setattr(CutnMix, "counts_epochs", True)
    assert "with cutnmix the earlier epochs depend on how many" in continued._why_not_extended(changed, longer)
    loss = objective.make("cutnmix", K, (4, 4))
    for given, says in (
        ({}, "epoch or epochs are missing: the terms of this method depend on them"),
        ({"epoch": 4, "epochs": 4}, "epoch=4 of epochs=4: the first one is 0"),  # PS-KD would have a loss below 0
        ({"epoch": -1, "epochs": 4}, "epoch=-1 of epochs=4"),
    ):
        with pytest.raises(ValueError, match=says):
            loss({}, {}, outputs_of(2), np.ones((N, K), np.float32) / K, **given)


def test_a_headline_that_is_not_measured_is_told_before_the_training(monkeypatch):
    settings = command_line.from_flags("configs/quickstart.py", [])
    found = methods.row("cutnmix")
    for headline in ("accuracy_ensemble", "accuracy_peer_teacher", "accuracy_peer_teachr"):
        monkeypatch.setitem(cutnmix.ROWS, "cutnmix", dataclasses.replace(found, headline=headline))
        if headline.endswith("teachr"):
            with pytest.raises(UsageError, match="'accuracy_peer_teachr' is not measured; did you mean"):
                assemble.networks(settings, 10)
        else:
            assemble.networks(settings, 10)


@pytest.mark.parametrize("row", ROWS)
def test_a_method_says_what_its_terms_are(row):
    assert set(ROWS[row].method.meanings) == set(ROWS[row].weights)


def test_unknown_methods_and_options_are_told(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="did you mean 'cutnmix'"):
        methods.find("cutmix")
    with pytest.raises(UsageError, match="did you mean 'cutnmix'"):
        methods.row("cutnmi")
    with monkeypatch.context() as patched:
        patched.setitem(cutnmix.ROWS, "dml", ROWS["cutnmix"])  # whose module comes first
        with pytest.raises(UsageError, match="method 'dml' is a row of cutnmix and of dml; rename one of them"):
            methods.row("dml")
    (tmp_path / "plain.py").write_text(
        "import dataclasses\nfrom cutnmix_jax.method import Method, Row\n@dataclasses.dataclass(frozen=True)\n"
        "class Plain(Method):\n    temperature: float = 3.0\nROWS = {'plain': Row(Plain(), {'ce': 1.0})}\n"
    )
    with monkeypatch.context() as patched:
        patched.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
        with pytest.raises(UsageError, match="option temperature in .*plain.py has no range; make it with `fields.fie"):
            methods.row("plain")
    with pytest.raises(UsageError, match=r"no field 'loss\.temperature'"):
        tree.to_settings({"loss": {"name": "supervised", "temperature": 1.0}})


@pytest.mark.parametrize(
    ("part", "name"),
    [("heads", name) for name in ("peer_9", "ensemble", "per_peer", "average_0", "7", "a b")]
    + [("loss", name) for name in ("loss", "accuracy")],
)
def test_a_name_that_a_row_has_for_something_else_is_refused(part, name, monkeypatch):
    """A head called `peer_9` would count in the headline, and a term called `loss` replace the loss that is shown."""
    given = getattr(CutnMix, part)

    def renamed(*arguments):
        if part == "heads":
            return {name: given(*arguments)["peer_teacher"]}
        terms, state = given(*arguments)
        return {name: terms.pop("ce"), **terms}, state

    monkeypatch.setattr(CutnMix, part, renamed)
    settings = command_line.from_flags("configs/quickstart.py", [])
    with pytest.raises(UsageError, match=f"its (head|loss term) '{name}' needs another name"):
        assemble.networks(settings, 10)


@pytest.mark.parametrize("num_peers", [1, 2, 3])
def test_a_term_that_is_not_one_value_per_peer_is_refused(num_peers, monkeypatch):
    """One value per image would have been summed over them, and its weight been as many times as large."""
    given = CutnMix.loss

    def loss(self, params, state, views, batch, clock):
        terms, state = given(self, params, state, views, batch, clock)
        return terms | {"ce": -jax.nn.log_softmax(views[0][0].logits)[:, 0]}, state

    monkeypatch.setattr(CutnMix, "loss", loss)
    with pytest.raises(
        UsageError, match=rf"'ce' has the shape \[\d\]; it must be .* one value per peer, \[{num_peers}\]"
    ):
        term_names(CutnMix(), Spec(K, (4,) * num_peers, N))
    with pytest.raises(ValueError, match="'ce' has the shape"):
        objective.make("cutnmix", K, (4,) * num_peers)


@pytest.mark.parametrize(
    ("part", "given", "said"),
    [
        ("heads", lambda self, params, state, outputs: {"both": jnp.stack([out.logits for out in outputs])},
         r"head 'both' has the shape \[2, 3, 4\] for 3 images of 4 classes; it must be \[3, 4\]"),
        ("heads", lambda self, params, state, outputs: {"of": outputs[0].features},
         r"head 'of' has the shape \[3, 5\]"),
        ("students", lambda self, outputs: outputs[1:], "its students must be the first networks"),
        ("students", lambda self, outputs: (), "its students must be the first networks"),
        ("init", lambda self, key, spec: ({}, {"seen": jnp.int32(0)}),
         r"its state\['seen'\] is int32\[\] in `init` and float32\[\] after `loss`"),
        ("loss", lambda self, params, state, views, batch, clock: ({"ce": 1.0 / clock.epochs}, state),
         "looks at how many epochs a run has, so that it needs counts_epochs = True"),
        ("loss", lambda self, params, state, views, batch, clock: ({"ce": batch.indices.sum() * 1.0}, state),
         "looks at which images a batch has, so that it needs remembers = True"),
        ("calibrates", True, r"its state\['new'\] is not there in `init` and int32\[\] after `calibrate`"),
    ],
)  # fmt: skip
def test_what_would_be_wrong_or_lost_later_is_refused_before_a_step(part, given, said, monkeypatch):
    """A head of both peers had the accuracy of four; a state of other numbers was saved and never read again."""
    supervised = methods.find("supervised")

    def loss(self, params, state, views, batch, clock):
        ce = jnp.stack([(out.logits * batch.targets[0, 0] * batch.images.mean()).sum() for out in views[0]])
        return {"ce": ce}, {name: leaf + 0.5 for name, leaf in state.items()}

    monkeypatch.setattr(supervised, "loss", loss)
    monkeypatch.setattr(supervised, "calibrate", lambda self, state, logits, labels: {"new": labels[0]})
    names = head_names if part in ("heads", "students") else term_names
    assert names(supervised(), Spec(4, (5, 5), N)) in ((), ("ce",))
    monkeypatch.setattr(supervised, part, given)
    with pytest.raises(UsageError, match=said):
        names(supervised(), Spec(4, (5, 5), N))


def test_a_run_is_evaluated_with_the_number_of_images_that_it_was_trained_on(tmp_path, monkeypatch):
    """Those that chose an epoch were taken off twice: more than half of the images, and it ended in a traceback."""
    seen, made_before = set(), PSKD.init
    folder, fields = tmp_path / "run", ["--config.validation_examples=1450", "--config.eval_batch_size=99"]
    trained_in(folder, "ps_kd", ":Tiny", "--config.train_examples=none", *fields, "--config.epochs=1")
    monkeypatch.setattr(
        PSKD, "init", lambda self, key, spec: (seen.add(spec.num_train), made_before(self, key, spec))[1]
    )
    assert evaluate.main([str(folder), "--backbone=tests.tiny:Tiny", f"--out={tmp_path / 'out'}"]) == 0
    assert seen == {50}


def test_a_method_from_elsewhere_is_no_method():
    """A run is read back by the last part of its module's name: another `dml.py` trained as ours."""
    ours = methods.row("dml").method
    mine = type("Dml", (type(ours),), {"__module__": "research.dml"})()
    with pytest.raises(UsageError, match=r"research\.dml\.Dml is no method; see docs/own_method\.md"):
        check.checked(dataclasses.replace(command_line.from_flags("quickstart:digits,dml", []), loss=mine))


def test_a_teacher_that_there_is_not(monkeypatch):
    monkeypatch.setattr(CutnMix, "teachers", ("frozne",))
    with pytest.raises(UsageError, match="cutnmix: no teacher 'frozne'; did you mean 'frozen'"):
        command_line.from_flags("configs/quickstart.py", [])


def test_a_method_is_told_the_number_of_images_before_there_are_any(monkeypatch):
    seen, made_before = [], PSKD.init

    def init(self, key, spec):
        seen.append(spec.num_train)
        return made_before(self, key, spec)

    monkeypatch.setattr(PSKD, "init", init)
    few = ["--config.train_examples=64", "--config.validation_examples=10"]
    for flags, images in ((few, 54), (["--config.batch_size=16"], 1500)):
        seen.clear()
        assemble.networks(command_line.from_flags("quickstart:digits,ps_kd", flags), 10)
        assert set(seen) == {images}
