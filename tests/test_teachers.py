"""Networks beside the peers that no gradient trains: the averages of their weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import backbones, teacher
from cutnmix_jax.engine import assemble
from cutnmix_jax.engine.companions import Average, Trained
from cutnmix_jax.errors import UsageError
from cutnmix_jax.method import Method
from cutnmix_jax.settings import command_line
from tests.runs import Made, rows_in, write_finished


def leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_an_average_follows_its_law():
    """By hand: decay min(.9, (1 + t) / (10 + t)) after step t, on weights and on batch statistics."""
    average = Average(None, 0.9)
    rng = np.random.default_rng(0)
    steps = [({"w": rng.normal(size=3)}, {"mean": rng.normal(size=2)}) for _ in range(200)]
    as_tuples = [tuple(({name: jnp.float32(value) for name, value in tree.items()},) for tree in one) for one in steps]
    found = average.init(*as_tuples[0])
    params, stats = (dict(tree) for tree in steps[0])
    for t, (one, new) in enumerate(zip(as_tuples[1:], steps[1:], strict=True), start=1):
        found = average.follow(found, *one, jnp.int32(t - 1))
        decay = min(0.9, (1 + t) / (10 + t))
        params["w"] = decay * params["w"] + (1 - decay) * new[0]["w"]
        stats["mean"] = decay * stats["mean"] + (1 - decay) * new[1]["mean"]
        if t in (1, 2, 199):  # the last forgets what the first ones were
            np.testing.assert_allclose(found["params"][0]["w"], params["w"], rtol=1e-5)
            np.testing.assert_allclose(found["batch_stats"][0]["mean"], stats["mean"], rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class _Taught(Method):
    teachers = ("mean", "wise")


def test_training_and_evaluation_have_the_same_ones():
    """But for a trained teacher, which evaluation does not need; one that is not known is left out of neither."""
    settings = command_line.from_flags("quickstart:digits,pcl", ["--config.average=0.9"])
    assert list(assemble.companions(settings, None, None).kinds) == ["mean", "average"]
    settings = command_line.from_flags("quickstart:digits,kd", ["--config.teacher=anywhere"])
    assert list(assemble.companions(settings, None, None).kinds) == []
    assert list(assemble.companions(settings, None, backbones.load("resnet8", 10)).kinds) == ["frozen"]
    with pytest.raises(KeyError, match="wise"):
        assemble.companions(dataclasses.replace(settings, loss=_Taught()), None, None)


def test_what_is_no_float_has_no_average():
    keys = ({"rng": jnp.array([1, 2], jnp.uint32), "mean": jnp.array([1.0], jnp.bfloat16)},)
    found = Average(None, 0.5).init((), keys)
    found = Average(None, 0.5).follow(
        found, (), ({"rng": keys[0]["rng"] + 1, "mean": keys[0]["mean"] + 1},), jnp.int32(0)
    )
    assert found["batch_stats"][0]["rng"].tolist() == [2, 3] and found["batch_stats"][0]["rng"].dtype == jnp.uint32
    assert found["batch_stats"][0]["mean"].dtype == jnp.float32


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run without averages and the same one with them."""
    folders = [tmp_path_factory.mktemp(name) for name in ("plain", "averaged")]
    short = "--config.epochs=2", "--config.optimizer.milestones=()"
    made = [Made("dml", *short), Made("dml", *short, "--config.average=0.5")]
    for one, folder in zip(made, folders, strict=True):
        one.train(folder)
    return made, folders


def test_an_average_changes_nothing_of_the_training(trained):
    (plain, averaged), folders = trained
    states = [one.saved(folder).state for one, folder in zip((plain, averaged), folders, strict=True)]
    one, other = (leaves((state.params, state.batch_stats, state.opt_state)) for state in states)
    for name, leaf in one.items():
        np.testing.assert_allclose(other[name], leaf, rtol=1e-6, atol=1e-7, err_msg=name)
    rows = [rows_in(folder) for folder in folders]
    beside = {"test/accuracy_average_0", "test/accuracy_average_1"}
    for row, more in zip(*rows, strict=True):
        assert set(more) - set(row) == beside
        assert row["test/accuracy"] == pytest.approx(more["test/accuracy"])


def test_an_average_is_evaluated_with_its_own_batch_statistics(trained):
    made, folders = trained[0][1], trained[1][1]
    state = made.saved(folders).state
    average = state.teachers["average"]
    network = backbones.load("tests.tiny:Tiny", 10)
    dataset = made.engine.dataset
    images = ((dataset.test_images / 255.0 - dataset.mean) / dataset.std).astype(np.float32)
    for j in (0, 1):
        variables = {name: average[name][j] for name in ("params", "batch_stats")}
        logits = network.apply(variables, images, False)[0].logits
        right = float((np.asarray(logits).argmax(-1) == dataset.test_labels).mean())
        assert rows_in(folders)[-1][f"test/accuracy_average_{j}"] == pytest.approx(right)


def test_a_teacher_is_the_first_network_that_its_results_name(tmp_path):
    """Whatever the fields of its version are called."""
    fields = {"dataset": "digits", "method": "dml", "seed": 95, "epochs": 1, "networks": "resnet8 and resnet32"}
    rows = [{"epoch": 1, "step": 4, "test/accuracy": 0.5}]
    write_finished(tmp_path, fields, rows, backbones=["resnet8", "resnet32"])
    settings = command_line.from_flags("quickstart:digits,kd", [f"--config.teacher={tmp_path}"])
    assert teacher.find(settings, 10).backbone.name == "resnet8"


def test_a_teacher_whose_weights_are_gone_is_known_by_its_name_alone():
    """Its best epoch, say; nothing else tells that it is not another one."""
    asked = Trained(backbones.load("resnet8", 10), dict, "runs/teacher", None, lambda: False)
    teacher.check(asked, "a digest", named_alike=True)
    with pytest.raises(UsageError, match="config.teacher=runs/teacher: its checkpoints are gone"):
        teacher.check(asked, "a digest")
    teacher.check(asked._replace(weights_sha256="a digest"), "a digest")
    with pytest.raises(UsageError, match="is another network than the one that the run was taught by so far"):
        teacher.check(asked._replace(weights_sha256="another"), "a digest", named_alike=True)
