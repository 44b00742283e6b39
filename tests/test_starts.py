"""Networks that begin as others, what a folder may not make a process do, and a student that was never written."""

import contextlib
import dataclasses
import functools
import itertools
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

from cutnmix_jax import configure, data, evaluate, export, main
from cutnmix_jax.checkpoint_reader import Reader
from cutnmix_jax.engine import assemble
from cutnmix_jax.errors import CheckpointError, UsageError
from cutnmix_jax.paper import labels, runs
from cutnmix_jax.settings import command_line
from cutnmix_jax.student import exported, load, program, start
from tests import tiny
from tests.test_student import trained_in

pytestmark = pytest.mark.usefixtures("programs_kept")

OWN = "--config.views=per_peer"
NETWORK = "--config.backbone.name=tests.tiny:Tiny"


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A finished run of two peers, to begin as."""
    return trained_in(tmp_path_factory.mktemp("before") / "run", "dml", ":Tiny", "--config.epochs=1")


def arrays_in(run):
    reader = Reader(run / "checkpoints")
    arrays = reader.arrays()
    reader.close()
    return {name: np.asarray(array) for name, array in arrays.items() if ".params.peers." in name}


def test_one_network_for_peers_that_see_the_same_images_is_refused(before, tmp_path, capsys):
    """They would learn the same in each step, and stay one network."""
    command = ["--config=quickstart:digits,dml", NETWORK, "--config.train_examples=64", "--config.test_examples=30",
               "--config.batch_size=16", "--config.epochs=1", "--config.optimizer.milestones=()",
               f"--config.init_from={before / 'student'}", f"--workdir={tmp_path / 'run'}"]  # fmt: skip
    assert main.main(command) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "is one network, and dml shows all 2 peers the same images" in error
    assert main.main([*command, OWN]) == 0
    found = arrays_in(tmp_path / "run")
    names = [name for name in found if name.startswith("state.params.peers.0.")]
    assert any((found[name] != found[name.replace("peers.0.", "peers.1.")]).any() for name in names)


def test_an_own_network_that_is_another_one_now_is_one_line(before, monkeypatch, tmp_path, capsys):
    """Its code may have changed since it was exported."""
    monkeypatch.setattr(tiny, "Tiny", tiny.TinyNNX)
    command = ["--config=quickstart:digits,dml", NETWORK, f"--config.init_from={before / 'student'}", OWN]
    assert main.main([*command, f"--workdir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "tests.tiny:Tiny is another network than the one that was saved" in error


def test_own_code_that_has_changed_since_is_told(monkeypatch, tmp_path, capsys):
    """Shapes stay, and so its weights were evaluated, exported and taught as what they are not."""
    file = tmp_path / "own_nets.py"
    file.write_text("from tests.tiny import Tiny\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    name, backbone = "own_nets:Tiny", "--config.backbone.name=own_nets:Tiny"
    run = trained_in(tmp_path / "run", "baseline", ":Tiny", backbone)
    exports = {"same": tmp_path / "same", "other": tmp_path / "other"}
    commands = [
        lambda: trained_in(run, "baseline", ":Tiny", backbone),
        lambda: evaluate.main([str(run), f"--backbone={name}", f"--out={tmp_path / 'out'}"]),
        lambda: trained_in(tmp_path / next(free), "kd", ":Tiny", backbone, f"--config.teacher={run}"),
        lambda: trained_in(tmp_path / next(free), "dml", ":Tiny", backbone, f"--config.init_from={run}", OWN),
        lambda: trained_in(tmp_path / next(free), "kd", ":Tiny", backbone, f"--config.teacher={exports['same']}"),
    ]
    free = map(str, itertools.count())
    for changed, where in ((False, "same"), (True, "other")):
        if changed:
            file.write_text("from tests.tiny import Tiny  # changed\n")
        exporting = functools.partial(export.main, [str(run), str(exports[where]), f"--backbone={name}"])
        for call in [exporting, *commands]:
            capsys.readouterr()
            call()
            told = capsys.readouterr().err.count(f"the code of {name} is not that with which ")
            assert told == changed
    load.load_student(exports["other"])  # whose program needs no code
    assert "the code of" not in capsys.readouterr().err


def test_a_leader_begins_as_the_leader(tmp_path):
    """It is one of the networks; where there are fewer, or another number, those begin that count as peers."""
    source = trained_in(tmp_path / "source", "okddip", ":Tiny", "--config.epochs=1")
    there, dataset = arrays_in(source), data.load("digits")

    def begun(row, count):
        fields = {"backbone.name": "tests.tiny:Tiny", "init_from": source, "num_peers": count}
        settings = configure(f"quickstart:digits,{row}", fields)
        return start.load(settings, dataset, assemble.networks(settings, 10).backbones)

    for found, count in ((begun("okddip", 3), 3), (begun("dml", 2), 2)):
        assert {name.split(".")[1] for name in found if name.startswith("params.")} == set(map(str, range(count)))
        saved = {name: array for name, array in there.items() if int(name.split(".")[3]) < count}
        assert len(saved) > count
        for name, array in saved.items():
            np.testing.assert_array_equal(found[name.replace("state.params.peers.", "params.")], array)
    with pytest.raises(UsageError, match="has 3 networks, and the run has 5; one, or one for each"):
        begun("okddip", 5)


def test_a_run_goes_on_wherever_the_networks_lie_that_it_began_as(before, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(before, source)
    run = trained_in(tmp_path / "run", "dml", ":Tiny", f"--config.init_from={source}", OWN)
    told = json.loads((run / "results.json").read_text())
    assert told["init_sha256"] == json.loads((before / "results.json").read_text())["weights_sha256"]
    source.rename(tmp_path / "moved")
    trained_in(run, "dml", ":Tiny", f"--config.init_from={tmp_path / 'moved'}", OWN)
    assert "finished before" in capsys.readouterr().out
    (run / "results.json").unlink()  # as if it had been killed before its results
    trained_in(run, "dml", ":Tiny", f"--config.init_from={tmp_path / 'gone'}", OWN)
    again = json.loads((run / "results.json").read_text())
    assert [again[name] for name in ("init_sha256", "weights_sha256", "last")] == [
        told[name] for name in ("init_sha256", "weights_sha256", "last")
    ]
    other = trained_in(tmp_path / "other", "dml", ":Tiny", "--config.epochs=1", "--config.seed=3")
    for is_finished in (True, False):
        if not is_finished:
            (run / "results.json").unlink()
        for more, said in (
            ([f"--config.init_from={other}"], "holds other networks than the run was begun as"),
            ([], "the run was begun as other networks, by config.init_from"),
        ):
            with pytest.raises(AssertionError):
                trained_in(run, "dml", ":Tiny", *more, OWN)
            assert said in capsys.readouterr().err
    with pytest.raises(AssertionError):
        trained_in(other, "dml", ":Tiny", "--config.epochs=1", "--config.seed=3", f"--config.init_from={before}")
    assert "the run was begun at random" in capsys.readouterr().err


def test_a_comparison_tells_runs_apart_that_began_as_others(before, tmp_path):
    trained_in(tmp_path / "runs" / "a", "dml", ":Tiny", f"--config.init_from={before}", OWN, "--config.epochs=1")
    trained_in(tmp_path / "runs" / "b", "dml", ":Tiny", OWN, "--config.epochs=1")
    groups, left_out = runs.gather([tmp_path / "runs"])
    assert left_out == {} and labels.differing(groups)[0] == ["init_from"]
    assert {group.fields.get("init_from") for group in groups} == {None, "digits/tests.tiny.Tiny/dml"}


def test_a_student_that_was_never_written_is_written_by_the_next_start(before, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(before, run)
    shutil.rmtree(run / "student")
    trained_in(run, "dml", ":Tiny", "--config.epochs=1")
    images = data.load("digits").test_images[:4]
    assert np.array_equal(
        exported.read(run / "student").logits(images), load.load(before, backbone="tests.tiny:Tiny").logits(images)
    )
    shutil.rmtree(run / "student")
    shutil.rmtree(run / "checkpoints")
    trained_in(run, "dml", ":Tiny", "--config.epochs=1")
    assert not (run / "student").exists()


def test_code_that_a_folder_names_is_run_for_nobody_who_has_not_named_it(tmp_path):
    run = trained_in(tmp_path / "run", "baseline", ":Tiny", "--config.epochs=1")
    student = exported.read(run / "student")
    with pytest.raises(UsageError, match="somebody's own; to run that code say --backbone=tests.tiny:Tiny"):
        student.networks()
    assert student.networks("tests.tiny:Tiny")[0].keys() == {"params", "batch_stats"}


def test_a_program_that_calls_more_than_arithmetic_is_not_run():
    call = jax.ffi.ffi_call("cutnmix_test_target", jax.ShapeDtypeStruct((2,), jnp.float32))
    unchecked = [jax_export.DisabledSafetyCheck.custom_call("cutnmix_test_target")]
    made = jax_export.export(jax.jit(call), disabled_checks=unchecked, platforms=("cpu",))
    content = made(jax.ShapeDtypeStruct((2,), jnp.float32)).serialize()
    with pytest.raises(CheckpointError, match="calls cutnmix_test_target, which is no arithmetic; it is not run"):
        program.read(bytes(content), "program")


def test_evaluate_tells_of_other_images_and_of_an_empty_value(before, tmp_path, monkeypatch, capsys):
    assert evaluate.main([str(before), "--backbone=tests.tiny:Tiny"]) == 0
    assert "may be others" not in capsys.readouterr().err
    assert evaluate.main([str(before), "--dataset="]) == 2
    assert "argument --dataset: is empty; give a value, or leave it out" in capsys.readouterr().err
    digits = data.load("digits")
    changed = digits._replace(train_images=digits.train_images[::-1].copy())
    monkeypatch.setattr(data, "_loaded", lambda *_: changed)
    assert evaluate.main([str(before), "--backbone=tests.tiny:Tiny"]) == 0
    assert "the images of digits may be others than those that the run was tested with" in capsys.readouterr().err


def test_a_run_that_began_at_random_is_not_said_to_have_begun_otherwise(tmp_path):
    settings = dataclasses.replace(command_line.from_flags("quickstart", []), init_from=str(tmp_path / "gone"))
    for before, told in (
        ({"source": {}}, True),
        ({"init_sha256": "1"}, False),
        ({}, False),
    ):  # {}: it could not be kept
        with pytest.raises(UsageError, match="the run was begun at random") if told else contextlib.nullcontext():
            assert start.begun_as(settings, before, is_new=False) == before.get("init_sha256")


def test_networks_that_see_the_same_and_begin_alike_are_refused(tmp_path, capsys):
    """Also where a kind of mixing is named that never happens: both peers stayed one network."""
    source = trained_in(tmp_path / "one", "baseline", ":Tiny", "--config.epochs=1")
    for more in (["--config.mix.prob=0"], ["--config.mix.kind=none"]):
        with pytest.raises(AssertionError):
            flags = ["--config.views=shared", f"--config.init_from={source}", *more]
            trained_in(tmp_path / "run", "cutnmix", ":Tiny", *flags)
        assert "they would stay one network" in capsys.readouterr().err


def test_networks_with_trunks_of_their_own_begin_no_branches(before, tmp_path, capsys):
    """The second branch was the tail of one network on the trunk of another."""
    with pytest.raises(AssertionError):
        trained_in(tmp_path / "run", "one", ":Tiny", f"--config.init_from={before}")
    assert "its networks 0 and 1 have trunks of their own" in capsys.readouterr().err
    one = trained_in(tmp_path / "one", "one", ":Tiny", "--config.epochs=1")
    trained_in(tmp_path / "again", "one", ":Tiny", "--config.epochs=1", "--config.seed=3", f"--config.init_from={one}")
