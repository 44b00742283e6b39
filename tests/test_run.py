"""Whole runs through the command: files, resume, signals, divergence."""

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from matplotlib.image import imread

from cutnmix_jax import backbones, console, data, environment, files, loop, main, methods, pictures, training
from cutnmix_jax.checkpoint import Checkpoints
from cutnmix_jax.engine import assemble
from cutnmix_jax.errors import StoppedError
from cutnmix_jax.settings import command_line
from tests.hostile import snapshot
from tests.runs import Stop, few, wait_for, wrapped

pytestmark = pytest.mark.usefixtures("programs_kept")

ROOT = Path(__file__).parent.parent
TINY = [
    "--config=configs/quickstart.py",
    "--config.backbone.name=tests.tiny:Tiny",
    "--config.train_examples=64",
    "--config.test_examples=30",
    "--config.eval_batch_size=16",
    "--config.batch_size=16",
    "--config.epochs=3",
    "--config.optimizer.milestones=(2,)",
]
ONE_STEP = [
    "--config.train_examples=8",
    "--config.test_examples=5",
    "--config.batch_size=8",
    "--config.eval_batch_size=5",
    "--config.epochs=1",
]


def rows_of(workdir, *, timings=True):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    if not timings:
        for row in rows:
            del row["seconds"], row["images_per_second"]
    return rows


@functools.cache
def shapes_of(arguments):
    """Of what a run with these arguments saves."""
    settings = command_line.from_flags(arguments[0].removeprefix("--config="), arguments[1:])
    dataset = data.load(settings.dataset, settings.data_dir, settings.train_examples, settings.test_examples)
    return assemble.engine(settings, dataset, training.plan(settings)).shapes


def saved_in(workdir, arguments):
    """The newest checkpoint of a run, read back as the program reads it."""
    like = shapes_of(tuple(arguments))
    checkpoints = Checkpoints(workdir / "checkpoints", 3)
    saved = checkpoints.restore(like).state
    checkpoints.close()
    return saved._replace(seconds=0, wall_seconds=0)


def start(arguments, workdir):
    command = [sys.executable, "-m", "cutnmix_jax.main", *arguments, f"--workdir={workdir}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def at_step(number, action):
    """Lets every run that is begun from now on do something before it takes a step; returns how to undo that."""
    steps = []

    def around(train_steps):
        def train_step(*arguments):
            steps.append(1)
            if len(steps) == number:
                action()
            return train_steps(*arguments)

        return train_step

    return wrapped(around)


def kill_before_step(number, workdir, arguments=TINY):
    """Runs `TINY` and kills this process once the checkpoint of step 8 is whole."""

    def kill():
        wait_for((Path(workdir) / "checkpoints" / "8").is_dir)
        os.kill(os.getpid(), signal.SIGKILL)

    at_step(number, kill)
    main.main([*arguments, f"--workdir={workdir}"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nobody disturbed, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    done = start(TINY, workdir)
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    return workdir, out, err


def test_a_run_leaves_the_promised_files(finished):
    workdir, out, err = finished
    assert err == ""
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        ".lock",
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "results.json",
        "checkpoints",
        "tensorboard",
        "samples.png",
        "curves.png",
        "student",
    }
    for said in (
        "digits, 64 training and 30 test images",
        "2 x tests.tiny:Tiny, 250 parameters",
        "1 ce + 0.6 dml",
        "epoch 3/3",
        "last",
    ):
        assert said in out
    for picture in ("samples.png", "curves.png"):
        assert imread(workdir / picture).std() > 0.05
    assert json.loads((workdir / "config.json").read_text())["optimizer"]["milestones"] == [2]
    assert "jax" in json.loads((workdir / "environment.json").read_text())["versions"]
    assert any((workdir / "tensorboard").iterdir())


def test_the_step_is_compiled_once_beside_the_first_weights(traced_anew, tmp_path, monkeypatch, caplog):
    order = []
    for owner, name in ((pictures, "samples"), (console.Display, "started")):
        before = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *seen, name=name, before=before: order.append(name) or before(*seen))
    with what_is_compiled():
        assert main.main([*TINY, f"--workdir={tmp_path / 'run'}"]) == 0
    assert sorted(re.findall(COMPILED, caplog.text)) == ["_fresh", "train"]
    [step] = [record for record in caplog.records if re.search(COMPILED, record.getMessage()) and "train" in record.msg]
    assert step.threadName != "MainThread"
    # It is begun before the first weights are there, with all that the first call asks for.
    said = [re.search(r"Compiling jit\((train|_fresh)\)|$", record.getMessage())[1] for record in caplog.records]
    assert [name for name in said if name] == ["train", "_fresh"]
    assert order == ["started", "samples"]
    # Nor is it compiled more than once where a run goes on, over the end of an epoch.
    caplog.clear()
    with what_is_compiled():
        assert main.main([*TINY, "--config.epochs=5", "--force", f"--workdir={tmp_path / 'run'}"]) == 0
    assert re.findall(COMPILED, caplog.text) == ["train"]


def test_a_trained_teacher_compiles_nothing_anew(traced_anew, finished, tmp_path, caplog):
    """Its arrays come from a checkpoint, which must not make the step another one."""
    row = ["--config=configs/quickstart.py:digits,kd", *TINY[1:], f"--config.teacher={finished[0]}"]
    with what_is_compiled():
        assert main.main([*row, f"--workdir={tmp_path / 'run'}"]) == 0
    assert sorted(re.findall(COMPILED, caplog.text)) == ["_fresh", "train"]


COMPILED = r"Finished XLA compilation of jit\((train|_fresh)\)"


@contextlib.contextmanager
def what_is_compiled():
    """While entered, JAX logs it, in all threads."""
    jax.config.update("jax_log_compiles", True)
    try:
        yield
    finally:
        jax.config.update("jax_log_compiles", False)


def test_metrics_have_the_promised_fields(finished):
    rows = rows_of(finished[0])
    assert [(row["epoch"], row["step"], row["learning_rate"]) for row in rows] == [
        (1, 4, 0.05),
        (2, 8, 0.05),
        (3, 12, 0.005),
    ]
    terms = {"loss", "ce", "dml", "mmd", "pt", "peer_teacher_ce", "accuracy"}
    tested = {"accuracy", "accuracy_peer_0", "accuracy_peer_1", "accuracy_ensemble", "accuracy_peer_teacher"}
    for row in rows:
        names = {f"train/{name}" for name in terms} | {f"test/{name}" for name in tested}
        assert set(row) == names | {"epoch", "step", "learning_rate", "seconds", "images_per_second"}
        weighed = {"ce": 1, "dml": 0.6, "mmd": 0.3, "pt": 0.1}
        loss = 2 * sum(weight * row[f"train/{name}"] for name, weight in weighed.items()) + row["train/peer_teacher_ce"]
        assert row["train/loss"] == pytest.approx(loss, rel=1e-5)
        assert 1.5 < row["train/ce"] < 3.5  # about the logarithm of ten classes at the start
        assert row["test/accuracy"] == pytest.approx((row["test/accuracy_peer_0"] + row["test/accuracy_peer_1"]) / 2)
        assert all((row[f"test/{name}"] * 60) == pytest.approx(round(row[f"test/{name}"] * 60)) for name in tested)


def test_results_are_those_of_the_rows(finished):
    workdir = finished[0]
    results, rows = json.loads((workdir / "results.json").read_text()), rows_of(workdir)
    best = max(rows, key=lambda row: (row["test/accuracy"], -row["epoch"]))
    for which, row in {"last": rows[-1], "best": best}.items():
        assert results[which] == {
            "epoch": row["epoch"],
            "step": row["step"],
            "accuracy": row["test/accuracy"],
            "accuracy_per_peer": [row["test/accuracy_peer_0"], row["test/accuracy_peer_1"]],
            "accuracy_ensemble": row["test/accuracy_ensemble"],
            "accuracy_peer_teacher": row["test/accuracy_peer_teacher"],
        }
    assert (results["dataset"], results["method"], results["seed"], results["epochs"]) == ("digits", "cutnmix", 95, 3)
    assert results["backbone"] == "tests.tiny.Tiny"
    assert len(results["config_sha256"]) == 64
    assert results["seconds"] == pytest.approx(sum(row["seconds"] for row in rows))
    assert results["seconds"] < results["wall_seconds"] < results["seconds"] + 100


def test_compiling_tells_its_time_where_one_call_is_an_epoch(tmp_path, capsys):
    one_call = ["--config.train_examples=16", "--config.epochs=2", "--config.optimizer.milestones=()"]
    assert main.main([*of_row("baseline"), *one_call, f"--workdir={tmp_path / 'run'}"]) == 0
    assert len(re.findall(r"compiled in [\d.]+ s; trained the first step", capsys.readouterr().out)) == 1


class AfterACall(Stop):
    """A request to stop that comes with the first call."""

    def defer(self):
        self.requested = True


@pytest.mark.slow
def test_wall_seconds_are_those_of_all_starts(tmp_path, capsys):
    """Two starts, each made to look as if it was given 1,000 seconds ago."""
    config = command_line.from_flags(TINY[0].removeprefix("--config="), TINY[1:])
    with pytest.raises(StoppedError):
        training.train(config, tmp_path, AfterACall(), start=time.monotonic() - 1000)
    assert "s after the start" in capsys.readouterr().out
    training.train(config, tmp_path, Stop(), start=time.monotonic() - 1000)
    assert 2000 < json.loads((tmp_path / "results.json").read_text())["wall_seconds"] < 2200
    told = re.search(
        r"compiled in ([\d.]+) s; trained the first step ([\d.]+) s after the start", capsys.readouterr().out
    )
    assert 0 < float(told[1]) < 1000 < float(told[2]) < 1200


def test_the_same_command_after_the_end_trains_nothing(finished, monkeypatch, capsys):
    workdir = finished[0]
    before = (workdir / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(loop, "train", None)
    assert main.main([*TINY, f"--workdir={workdir}"]) == 0
    assert "finished before" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_other_fields_are_refused_in_the_same_folder(finished, capsys):
    code = main.main([*TINY, "--config.optimizer.learning_rate=0.1", f"--workdir={finished[0]}"])
    error = capsys.readouterr().err
    assert code == 2
    assert "config.optimizer.learning_rate: 0.05 -> 0.1" in error and error.count("\n") == 1
    assert main.main([*TINY, "--config.eval_batch_size=7", f"--workdir={finished[0]}"]) == 0  # speed only


def test_other_fields_by_force(finished, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    command = [*TINY, f"--workdir={workdir}"]
    assert main.main([*command, "--config.epochs=5"]) == 2
    assert "--extend to train on to the new number of epochs" in capsys.readouterr().err
    assert main.main([*command, "--config.epochs=2"]) == 2
    assert "--force to go on with the new values" in capsys.readouterr().err
    assert main.main([*command, "--config.epochs=5", "--config.optimizer.learning_rate=0.01", "--force"]) == 0
    said = capsys.readouterr()
    assert "continued from step 12" in said.out
    assert said.err.count("\n") == 1 and "config.epochs: 3 -> 5 and 1 more" in said.err
    assert rows_of(workdir)[:3] == rows_of(finished[0]) and len(rows_of(workdir)) == 5
    assert rows_of(workdir)[4]["learning_rate"] == 0.001
    assert json.loads((workdir / "results.json").read_text())["epochs"] == 5
    [before] = workdir.glob("results-before-*.json")
    assert before.read_bytes() == (finished[0] / "results.json").read_bytes()
    changes = [{"step": 12, "changed": [difference("epochs", 3, 5), difference("optimizer.learning_rate", 0.05, 0.01)]}]
    assert json.loads((workdir / "forced.json").read_text()) == {"changes": changes}
    assert json.loads((workdir / "results.json").read_text())["forced"] == changes
    # Where nothing is left to train, there is nothing to go on with, and results must not claim other fields.
    kept = (workdir / "results.json").read_bytes()
    for field in ("epochs=4", "optimizer.learning_rate=0.02"):
        changed = [
            *command,
            "--config.epochs=5",
            "--config.optimizer.learning_rate=0.01",
            f"--config.{field}",
            "--force",
        ]
        assert main.main(changed) == 2
        assert "nothing is left to train" in capsys.readouterr().err
    assert (workdir / "results.json").read_bytes() == kept
    # The new fields are the run's now, and some can never change.
    assert main.main([*command, "--config.epochs=5", "--config.optimizer.learning_rate=0.01"]) == 0
    capsys.readouterr()
    networks = ("num_peers=3", "peers=tests.tiny:Tiny,tests.tiny:Tiny", "backbone.name=tests.tiny:wide")
    for fixed in ("batch_size=8", "seed=96", "train_examples=32", "test_examples=20", *networks):
        for force in (["--force"], []):  # what force cannot do is not offered
            assert main.main([*command, f"--config.{fixed}", *force]) == 2
            assert f"config.{fixed.partition('=')[0]} cannot change within a run" in capsys.readouterr().err
    assert not (workdir / "checkpoints-damaged").exists()
    assert json.loads((workdir / "config.json").read_text())["backbone"]["name"] == "tests.tiny:Tiny"


EDITED = "--config.optimizer.learning_rate=0.1"


def edit_config(workdir, old='"learning_rate": 0.05', new='"learning_rate": 0.1'):
    text = (workdir / "config.json").read_text()
    assert old in text
    (workdir / "config.json").write_text(text.replace(old, new))


def test_a_configuration_that_was_edited_is_refused(finished, tmp_path, capsys):
    """The state was trained with the old one, and no results may say otherwise."""
    workdir = copy_of(finished[0], tmp_path)
    edit_config(workdir)
    edited = [*TINY, EDITED, f"--workdir={workdir}"]
    before = files_in(workdir)
    for lost in ((), ("results.json",)):
        for name in lost:
            (workdir / name).unlink(missing_ok=True)
            before.pop(workdir / name, None)
        assert main.main(edited) == 4
        [error] = capsys.readouterr().err.splitlines()
        assert f"what is saved in {workdir} was trained with other fields than its config.json says" in error
        assert "(config.optimizer.learning_rate: 0.05 -> 0.1); restore config.json" in error
        assert main.main([*edited, "--force"]) == 2
        assert "nothing is left to train" in capsys.readouterr().err
        assert files_in(workdir) == before


def test_an_edited_configuration_by_force_is_kept_as_a_change(finished, tmp_path, capsys):
    workdir = copy_of(finished[0], tmp_path)
    shutil.rmtree(workdir / "checkpoints" / "12")
    edit_config(workdir)
    assert main.main([*TINY, EDITED, "--force", f"--workdir={workdir}"]) == 0
    change = {"step": 8, "changed": [difference("optimizer.learning_rate", 0.05, 0.1)]}
    assert json.loads((workdir / "results.json").read_text())["forced"] == [change]
    # One that is edited after that is noticed as it is in any run.
    edit_config(workdir, '"learning_rate": 0.1', '"learning_rate": 0.2')
    capsys.readouterr()
    assert main.main([*TINY, "--config.optimizer.learning_rate=0.2", f"--workdir={workdir}"]) == 4
    assert "config.optimizer.learning_rate: 0.1 -> 0.2" in capsys.readouterr().err


def test_an_extended_run_ends_as_one_that_had_its_epochs_from_the_start(finished, tmp_path, capsys):
    """Finished, extended, killed on the way, and continued without the flag."""
    workdir = copy_of(finished[0], tmp_path)
    longer = [*TINY, "--config.epochs=5", f"--workdir={workdir}"]
    script = f"from tests import test_run; test_run.killed({[*longer, '--extend']!r})"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == -signal.SIGKILL
    assert main.main(longer) == 0
    assert main.main([*TINY, "--config.epochs=5", f"--workdir={tmp_path / 'whole'}"]) == 0
    results, whole = (json.loads((place / "results.json").read_text()) for place in (workdir, tmp_path / "whole"))
    assert results["weights_sha256"] == whole["weights_sha256"] and results["best"] == whole["best"]
    timeless = [{name: value for name, value in row.items() if "second" not in name} for row in rows_of(workdir)]
    assert timeless == [{n: v for n, v in row.items() if "second" not in n} for row in rows_of(tmp_path / "whole")]
    assert results["extended"] == [{"step": 12, "changed": [difference("epochs", 3, 5)]}] and "forced" not in results
    # Again, and then there is nothing to do.
    capsys.readouterr()
    assert main.main([*TINY, "--config.epochs=6", f"--workdir={workdir}", "--extend"]) == 0
    assert "extended from 5 to 6 epochs" in capsys.readouterr().out
    assert main.main([*TINY, "--config.epochs=6", f"--workdir={workdir}", "--extend"]) == 0
    assert "finished before" in capsys.readouterr().out
    assert [change["step"] for change in json.loads((workdir / "results.json").read_text())["extended"]] == [12, 20]


def test_an_extended_run_whose_newest_checkpoints_are_damaged_is_extended_again(finished, tmp_path):
    """From an earlier epoch than the first time, and nobody has forced it."""
    workdir = copy_of(finished[0], tmp_path)
    shutil.rmtree(workdir / "checkpoints" / "12")
    before = {"step": 12, "changed": [difference("epochs", 3, 5)]}
    (workdir / "extended.json").write_text(json.dumps({"changes": [before]}))
    config = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps({**config, "epochs": 5}))
    assert main.main([*TINY, "--config.epochs=5", f"--workdir={workdir}"]) == 0
    results = json.loads((workdir / "results.json").read_text())
    assert results["extended"] == [before, {**before, "step": 8}] and "forced" not in results


@pytest.mark.parametrize(
    ("row", "fields", "why"),
    [
        ("cutnmix", ["epochs=2"], "it takes more epochs, not fewer"),
        ("cutnmix", ["epochs=5", "optimizer.learning_rate=0.1"], "it changes config.epochs alone"),
        ("cutnmix", ["optimizer.learning_rate=0.1"], "it changes config.epochs alone"),
        ("cutnmix", ["epochs=5", "optimizer.schedule=cosine"], "it changes config.epochs alone"),
        ("uneven", ["epochs=5"], "with eval_every_epochs=2 its last epoch would not have been evaluated"),
        ("ps_kd", ["epochs=5"], "with ps_kd the earlier epochs depend on how many there are"),
    ],
)
def test_what_cannot_be_extended_is_one_line(row, fields, why, finished, tmp_path, capsys):
    command = [f"{TINY[0]}:digits,{row}", *TINY[1:]]
    if row == "uneven":
        command = [*TINY, "--config.eval_every_epochs=2"]
    workdir = copy_of(finished[0], tmp_path) if row == "cutnmix" else tmp_path / row
    assert main.main([*command, f"--workdir={workdir}"]) == 0
    before = files_in(workdir)
    capsys.readouterr()
    flags = [f"--config.{field}" for field in fields]
    assert main.main([*command, *flags, "--extend", f"--workdir={workdir}"]) == 2
    error = capsys.readouterr().err
    assert f"--extend is refused: {why}" in error and error.count("\n") == 1 and files_in(workdir) == before


@pytest.mark.parametrize("told", [None, ["config.epochs: 3 -> 4"]], ids=["now", "as it was told before"])
def test_a_forced_run_that_was_killed_goes_on_without_force(told, finished, tmp_path):
    """Its `config.json` has the new fields, its checkpoint the old ones, and `forced.json` says why."""
    workdir = copy_of(finished[0], tmp_path)
    longer = [*TINY, "--config.epochs=4", f"--workdir={workdir}"]
    script = f"from tests import test_run; test_run.killed({[*longer, '--force']!r})"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == -signal.SIGKILL
    if told:
        (workdir / "forced.json").write_text(json.dumps({"changes": [{"step": 12, "changed": told}]}))
    assert main.main(longer) == 0
    [change] = json.loads((workdir / "results.json").read_text())["forced"]
    assert change == {"step": 12, "changed": told or [difference("epochs", 3, 4)]}


def test_a_kill_before_the_force_is_noted(finished, tmp_path, monkeypatch, capsys):
    workdir = copy_of(finished[0], tmp_path)
    write, longer = files.write_json, [*TINY, "--config.epochs=4", f"--workdir={workdir}"]

    def ends(path, value):
        if path.name == "forced.json":
            raise KeyboardInterrupt
        write(path, value)

    monkeypatch.setattr(files, "write_json", ends)
    with pytest.raises(KeyboardInterrupt):
        training.train(command_line.from_flags(longer[0].removeprefix("--config="), longer[1:-1]), workdir, force=True)
    monkeypatch.undo()
    assert main.main(longer) == 4  # nobody can tell that it was forced
    assert "or --extend to go on with the new values" in capsys.readouterr().err
    assert main.main([*longer, "--force"]) == 0
    assert len(json.loads((workdir / "results.json").read_text())["forced"]) == 1


def test_a_number_that_is_written_in_another_way_is_no_change(finished, tmp_path):
    workdir = copy_of(finished[0], tmp_path)
    shutil.rmtree(workdir / "checkpoints" / "12")
    edit_config(workdir, '"alpha": 1.0', '"alpha": 1')
    assert main.main([*TINY, "--config.mix.alpha=1", f"--workdir={workdir}"]) == 0
    assert not (workdir / "forced.json").exists()


def test_an_error_leaves_nothing_open(finished, tmp_path):
    workdir = copy_of(finished[0], tmp_path)
    edit_config(workdir)
    assert main.main([*TINY, EDITED, f"--workdir={workdir}"]) == 4
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.exists()]
    assert not [link for link in links if str(link).startswith(str(workdir))]


def test_the_number_of_peers_follows_their_names(tmp_path):
    named = command_line.from_flags("configs/quickstart.py", ["--config.peers=resnet8,resnet8,resnet8"])
    assert named.num_peers == 3


def test_a_configuration_of_another_program(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"a": 1}')
    for force in ([], ["--force"]):
        assert main.main([*TINY, *force, f"--workdir={tmp_path}"]) == 2
        [error] = capsys.readouterr().err.splitlines()
        assert "config.json is not the configuration of a run of this version (config.a is not known)" in error


def test_what_else_is_in_a_new_folder_is_told(tmp_path, capsys):
    workdir = tmp_path / "run"
    workdir.mkdir()
    for known in ("log.txt", "config.json.tmp", ".DS_Store", "nohup.out", "slurm-1.out", "results-before-1.json"):
        (workdir / known).write_text("")
    (workdir / "checkpoints").mkdir()
    (workdir / "lost+found").mkdir()
    (workdir / "checkpoints" / "lost+found").mkdir()
    (workdir / "notes.txt").write_text("somebody's own")
    (workdir / "da\nta").mkdir()
    command = [*of_row("baseline"), *ONE_STEP, f"--workdir={workdir}", "--config.optimizer.milestones=()"]
    for told in (1, 0):  # once, when the run begins
        assert main.main(command) == 0
        warning = f"warning: {workdir} holds 'da\\nta' and 1 more, which is no run's; the files of the run go beside it"
        assert capsys.readouterr().err.splitlines() == [warning] * told


@pytest.mark.slow
def test_every_change_by_force_is_kept(finished, tmp_path):
    workdir = copy_of(finished[0], tmp_path)
    longer = [*TINY, "--config.epochs=4", f"--workdir={workdir}", "--force"]
    for rate in ("0.1", "0.2", "0.3"):  # stopped each time before a step is trained
        arguments = [*longer, f"--config.optimizer.learning_rate={rate}"]
        script = f"from tests import test_run; test_run.killed({arguments!r})"
        assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == -signal.SIGKILL
    told = json.loads((workdir / "forced.json").read_text())["changes"]
    assert [change["step"] for change in told] == [12, 12, 12]
    rates = [difference("optimizer.learning_rate", 0.05, rate) for rate in (0.1, 0.2, 0.3)]
    assert [change["changed"][-1] for change in told] == rates


def difference(path, before, after):
    return {"path": path, "before": before, "after": after}


def killed(arguments):
    """Runs a command and kills this process before its first step."""
    at_step(1, lambda: os.kill(os.getpid(), signal.SIGKILL))
    main.main(arguments)


def files_in(workdir):
    """What every file of a run holds, but for who holds the folder."""
    files = [path for path in workdir.rglob("*") if path.is_file() and path.name not in (".owner.json", ".lock")]
    return {path: path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (lambda at: shutil.rmtree(at / "checkpoints"), "has rows of 3 epochs and no checkpoint; restore "),
        (lambda at: [cut_checkpoint(at, step) for step in (4, 8, 12)], "none of the 3 checkpoints in "),
    ],
    ids=["no checkpoint", "no whole checkpoint"],
)
def test_what_force_cannot_go_on_with_is_left_alone(lost, said, finished, tmp_path, capsys):
    workdir = copy_of(finished[0], tmp_path)
    shutil.copy(finished[0] / "results.json", workdir)
    lost(workdir)
    before = files_in(workdir)
    assert main.main([*TINY, "--config.epochs=5", "--force", f"--workdir={workdir}"]) == 4
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert files_in(workdir) == before


def test_rows_that_are_gone_are_no_reason_for_force_to_fail(finished, tmp_path):
    workdir = copy_of(finished[0], tmp_path)
    (workdir / "metrics.jsonl").unlink()
    assert main.main([*TINY, "--config.epochs=5", "--force", f"--workdir={workdir}"]) == 0
    assert rows_of(workdir)[:3] == rows_of(finished[0]) and len(rows_of(workdir)) == 5


def test_a_config_json_that_is_gone(finished, tmp_path, capsys):
    workdir = copy_of(finished[0], tmp_path)
    (workdir / "config.json").unlink()
    assert main.main([*TINY, "--config.optimizer.learning_rate=0.5", f"--workdir={workdir}"]) == 4
    [error] = capsys.readouterr().err.splitlines()
    assert "config.json is gone" in error


@pytest.mark.slow
def test_killed_and_continued_is_bitwise_the_same(finished, tmp_path):
    script = f"from tests import test_run; test_run.kill_before_step(10, {str(tmp_path / 'run')!r})"
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = start(TINY, tmp_path / "run")
    out, err = again.communicate(timeout=300)
    assert (again.returncode, err) == (0, "")
    assert "continued from step 8" in out
    assert rows_of(tmp_path / "run", timings=False) == rows_of(finished[0], timings=False)
    chex.assert_trees_all_equal(saved_in(tmp_path / "run", TINY), saved_in(finished[0], TINY))


def of_row(row, teacher=None):
    """`TINY` with another method, and the finished run that teaches it."""
    taught = [f"--config.teacher={teacher}"] if row in ("kd", "tf_kd_self") else []
    return [f"--config=configs/quickstart.py:digits,{row}", *TINY[1:], *taught]


@pytest.mark.parametrize("row", few(["ps_kd", "kd", "one", "okddip", "pcl"], ("ps_kd",)))
def test_what_a_method_remembers_survives_a_kill(row, finished, tmp_path):
    arguments = [*of_row(row, finished[0]), *(["--config.ramp_up.epochs=2"] if row in ("one", "okddip") else [])]
    script = f"from tests import test_run; test_run.kill_before_step(10, {str(tmp_path / 'killed')!r}, {arguments!r})"
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert main.main([*arguments, f"--workdir={tmp_path / 'killed'}"]) == 0
    assert main.main([*arguments, f"--workdir={tmp_path / 'whole'}"]) == 0
    assert rows_of(tmp_path / "killed", timings=False) == rows_of(tmp_path / "whole", timings=False)
    one, other = saved_in(tmp_path / "killed", arguments), saved_in(tmp_path / "whole", arguments)
    chex.assert_trees_all_equal(one, other)
    state = one.state
    remembered = {
        "ps_kd": state.method_state, "kd": state.teachers, "pcl": state.teachers, "one": state.method_state,
        "okddip": state.params["method"],
    }[row]  # fmt: skip
    assert all(np.any(leaf) for leaf in jax.tree.leaves(remembered)) and jax.tree.leaves(remembered)


def test_a_teacher_may_move(finished, tmp_path, capsys):
    """It is known by its weights, wherever it lies; no other one can take its place."""
    teacher, moved, workdir = tmp_path / "teacher", tmp_path / "elsewhere" / "teacher", tmp_path / "run"
    shutil.copytree(finished[0], teacher)
    undo = at_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        assert main.main([*of_row("kd", teacher), f"--workdir={workdir}"]) == 75
    finally:
        undo()
    moved.parent.mkdir()
    teacher.rename(moved)
    assert main.main([*TINY, "--config.seed=96", f"--workdir={tmp_path / 'other'}"]) == 0
    capsys.readouterr()
    assert main.main([*of_row("kd", tmp_path / "other"), f"--workdir={workdir}"]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert "other is another network than the one that the run was taught by" in error
    # Nor where it has taken the folder of the one before.
    (tmp_path / "other").rename(teacher)
    assert main.main([*of_row("kd", teacher), f"--workdir={workdir}"]) == 2
    assert main.main([*of_row("kd", moved), f"--workdir={workdir}"]) == 0
    assert main.main([*of_row("kd", teacher), f"--workdir={workdir}"]) == 2  # finished, but not with this one
    assert "is another network" in capsys.readouterr().err
    assert main.main([*of_row("kd", finished[0]), f"--workdir={workdir}"]) == 0  # a copy
    assert main.main([*of_row("kd", finished[0]), f"--workdir={tmp_path / 'whole'}"]) == 0
    chex.assert_trees_all_equal(
        saved_in(workdir, of_row("kd", moved)), saved_in(tmp_path / "whole", of_row("kd", finished[0]))
    )
    results = json.loads((workdir / "results.json").read_text())
    taught_by = json.loads((moved / "results.json").read_text())["weights_sha256"]
    assert results["teacher_sha256"] == taught_by != results["weights_sha256"]


def test_a_teacher_s_weights_are_those_of_its_last_epoch(finished, tmp_path, capsys):
    arguments = of_row("tf_kd_self", finished[0])
    assert main.main([*arguments, "--config.epochs=1", f"--workdir={tmp_path / 'run'}"]) == 0
    state = saved_in(tmp_path / "run", [*arguments, "--config.epochs=1"]).state
    teacher = saved_in(finished[0], TINY).state
    chex.assert_trees_all_equal(state.teachers["frozen"]["params"], teacher.params["peers"][:1])
    chex.assert_trees_all_equal(state.teachers["frozen"]["batch_stats"], teacher.batch_stats[:1])
    capsys.readouterr()
    others = [*arguments, "--config.backbone.name=tests.tiny:wide", f"--workdir={tmp_path / 'other'}"]
    assert main.main(others) == 2
    assert "it can teach students of its kind alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "step"),
    [(signal.SIGINT, 6), pytest.param(signal.SIGTERM, 8, marks=pytest.mark.slow), (signal.SIGTERM, 11)],
)
def test_a_signal_saves_the_step_and_exits_75(finished, tmp_path, number, step):
    # In the process itself, so that the signal comes for certain in the middle, at the end of an epoch, or in the last.
    undo = at_step(step, lambda: os.kill(os.getpid(), number))
    try:
        assert main.main([*TINY, f"--workdir={tmp_path}"]) == 75
    finally:
        undo()
    assert int(saved_in(tmp_path, TINY).state.step) == step
    assert not (tmp_path / "results.json").exists()
    assert main.main([*TINY, f"--workdir={tmp_path}"]) == 0
    assert rows_of(tmp_path, timings=False) == rows_of(finished[0], timings=False)
    chex.assert_trees_all_equal(saved_in(tmp_path, TINY), saved_in(finished[0], TINY))


@pytest.mark.slow
def test_an_nnx_network_trains_and_continues_with_the_same_dropout(tmp_path):
    nnx = [*TINY, "--config.backbone.name=tests.tiny:TinyNNX"]
    assert main.main([*nnx, f"--workdir={tmp_path / 'whole'}"]) == 0
    undo = at_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        assert main.main([*nnx, f"--workdir={tmp_path / 'stopped'}"]) == 75
    finally:
        undo()
    assert main.main([*nnx, f"--workdir={tmp_path / 'stopped'}"]) == 0
    chex.assert_trees_all_equal(saved_in(tmp_path / "whole", nnx), saved_in(tmp_path / "stopped", nnx))
    assert rows_of(tmp_path / "whole", timings=False) == rows_of(tmp_path / "stopped", timings=False)


def test_divergence_is_named_and_keeps_what_was_saved(tmp_path, capsys):
    wild = [*TINY, "--config.optimizer.learning_rate=1e6", f"--workdir={tmp_path}"]
    assert main.main(wild) == 5
    error = capsys.readouterr().err
    # Under some releases of XLA the loss stays finite for four steps, and a variance does not.
    assert re.search(r"diverged (at step \d, in epoch 1: loss, |by step 4: state)", error) and error.count("\n") == 1
    assert not (tmp_path / "results.json").exists()


@pytest.fixture
def changed_data(monkeypatch):
    """Lets every data set that is read from now on be changed."""
    load = data.load

    def change(how):
        monkeypatch.setattr(data, "load", lambda *arguments: how(load(*arguments)))

    return change


def last_row_first(array):
    return np.concatenate([array[-1:], array[:-1]])


@pytest.mark.parametrize(
    "how",
    [
        lambda read: read._replace(train_images=read.train_images ^ (np.arange(3) == 0).astype(np.uint8)),
        lambda read: read._replace(
            train_images=last_row_first(read.train_images), train_labels=last_row_first(read.train_labels)
        ),
        lambda read: read._replace(test_labels=last_row_first(read.test_labels)),
    ],
    ids=["a bit of each pixel", "another order", "other labels of the test set"],
)
def test_a_run_goes_on_with_its_own_images_only(how, finished, tmp_path, changed_data, capsys):
    workdir = copy_of(finished[0], tmp_path)
    changed_data(how)
    before = files_in(workdir)
    for force in ([], ["--force", "--config.epochs=4"]):
        assert main.main([*TINY, *force, f"--workdir={workdir}"]) == 3
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: the images are not those that ") and str(workdir) in error
    assert files_in(workdir) == before


def test_what_a_run_was_made_with_before_stays_in_its_folder(finished, tmp_path, monkeypatch, capsys):
    workdir = copy_of(finished[0], tmp_path)
    file = workdir / "environment.json"
    began = json.loads(file.read_text())
    versions = environment.versions()
    monkeypatch.setattr(environment, "versions", lambda: versions | {"jax": "9.9"})
    for start in range(2):
        (workdir / "results.json").unlink(missing_ok=True)
        assert main.main([*TINY, f"--workdir={workdir}"]) == 0
        warnings = capsys.readouterr().err.splitlines()
        assert len(warnings) == (start == 0)  # told once, where it changed
        if warnings:
            assert "from step 12 on the bits need not be those of a run that nobody disturbed" in warnings[0]
            assert f"(environment.versions.jax: {versions['jax']!r} -> '9.9')" in warnings[0]
        now = json.loads(file.read_text())
        assert now["versions"]["jax"] == "9.9" and now["earlier"] == [began | {"until_step": 12}]
    file.write_text("{")  # done without, but not without a word
    (workdir / "results.json").unlink()
    assert main.main([*TINY, f"--workdir={workdir}"]) == 0
    assert "does not tell which images the run was begun with" in capsys.readouterr().err
    assert "earlier" not in json.loads(file.read_text())


def results_in(workdir):
    """What they say, but for the time that all starts took."""
    return json.loads((workdir / "results.json").read_text()) | {"wall_seconds": 0}


@pytest.mark.parametrize("how", ["gone", "emptied", "cut"])
def test_rows_that_were_lost_are_written_again(how, finished, tmp_path, capsys):
    workdir = copy_of(finished[0], tmp_path)
    rows = workdir / "metrics.jsonl"
    if how == "gone":
        rows.unlink()
    else:
        os.truncate(rows, rows.stat().st_size // 2 if how == "cut" else 0)
    assert main.main([*TINY, f"--workdir={workdir}"]) == 0
    assert capsys.readouterr().err == ""
    assert rows.read_bytes() == (finished[0] / "metrics.jsonl").read_bytes()
    assert results_in(workdir) == results_in(finished[0])


@pytest.mark.parametrize(
    ("old", "new"),
    [('"train/dml": ', '"train/dml": null, "was": '), ('"step": ', '"stop": '), ("train/dml", "train/dmm")],
)
def test_rows_of_something_else_are_put_aside(old, new, finished, tmp_path, capsys):
    workdir = copy_of(finished[0], tmp_path)
    first, second, third = (workdir / "metrics.jsonl").read_text().splitlines()
    other = "\n".join([first, second.replace(old, new), third, ""])
    (workdir / "metrics.jsonl").write_text(other)
    assert main.main([*TINY, f"--workdir={workdir}"]) == 0
    [warning] = capsys.readouterr().err.splitlines()
    [aside] = workdir.glob("metrics-before-*.jsonl")
    assert "had other rows than the run" in warning and aside.name in warning and aside.read_text() == other
    assert (workdir / "metrics.jsonl").read_bytes() == (finished[0] / "metrics.jsonl").read_bytes()
    assert results_in(workdir) == results_in(finished[0])


def copy_of(finished, tmp_path):
    subprocess.run(["cp", "-r", finished, tmp_path / "run"], check=True)
    (tmp_path / "run" / "results.json").unlink()
    return tmp_path / "run"


def cut_checkpoint(workdir, step):
    """Cuts every data file of a checkpoint to half its length."""
    files = [file for file in (workdir / "checkpoints" / str(step)).rglob("d/*") if file.is_file()]
    assert files
    for file in files:
        os.truncate(file, file.stat().st_size // 2)


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(finished, tmp_path, capsys):
    workdir = copy_of(finished[0], tmp_path)
    cut_checkpoint(workdir, 12)
    assert main.main([*TINY, f"--workdir={workdir}"]) == 0
    said = capsys.readouterr()
    assert "continued from step 8" in said.out
    assert said.err.count("\n") == 1 and "checkpoint of step 12 is damaged" in said.err
    assert len(list((workdir / "checkpoints-damaged").glob("12-*"))) == 1
    assert rows_of(workdir, timings=False) == rows_of(finished[0], timings=False)
    chex.assert_trees_all_equal(saved_in(workdir, TINY), saved_in(finished[0], TINY))


def test_without_a_whole_checkpoint_nothing_is_begun_again(finished, tmp_path, capsys):
    workdir = copy_of(finished[0], tmp_path)
    rows = (workdir / "metrics.jsonl").read_bytes()
    for step in (4, 8, 12):
        cut_checkpoint(workdir, step)
    assert main.main([*TINY, f"--workdir={workdir}"]) == 4
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and "none of the 3 checkpoints" in errors[0]
    assert (workdir / "metrics.jsonl").read_bytes() == rows
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"4", "8", "12"}
    shutil.rmtree(workdir / "checkpoints")
    assert main.main([*TINY, f"--workdir={workdir}"]) == 4  # as it would be if they had been moved away
    assert "rows of 3 epochs and no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[1]", "\xff", '{"a model of mine": 1}'])
def test_a_config_json_that_is_not_this_runs_is_left_alone(text, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    assert main.main([*TINY, f"--workdir={tmp_path}"]) in (2, 4)
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and "choose another --workdir" in errors[0]
    assert (tmp_path / "config.json").read_bytes() == text.encode("latin-1")


OF_A_RUN = (
    "checkpoints", "checkpoints-damaged", "tensorboard", "config.json", "results.json", "forced.json", "extended.json",
    "environment.json", "metrics.jsonl", "samples.png", "curves.png", ".lock", ".owner.json",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["another", "a link", "a link to nothing", "a pipe"])
@pytest.mark.parametrize("name", OF_A_RUN)
def test_something_in_the_way_is_one_line(name, kind, finished, tmp_path, capsys):
    workdir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(finished[0], workdir)
    path, is_folder = workdir / name, name in ("checkpoints", "checkpoints-damaged", "tensorboard")
    if path.exists() and kind == "a link":
        path.rename(elsewhere)
    elif path.exists():
        shutil.rmtree(path) if is_folder else path.unlink()
    if kind == "another":
        path.write_text("in the way") if is_folder else path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    else:
        if kind == "a link" and not elsewhere.exists():
            elsewhere.mkdir() if is_folder else elsewhere.touch()
        path.symlink_to(elsewhere)
    before = snapshot(tmp_path)
    assert main.main([*TINY, f"--workdir={workdir}"]) == 4
    [error] = capsys.readouterr().err.splitlines()
    found = f"a {'file' if is_folder else 'folder'}" if kind == "another" else kind
    found = f"a link to {elsewhere}" if "link" in kind else found
    assert f"{path} is {found}, where a run has a {'folder' if is_folder else 'file'}" in error
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", ["a link", "a file", "a name of none"])
def test_a_step_that_is_none_is_one_line(kind, finished, tmp_path, capsys):
    workdir = copy_of(finished[0], tmp_path)
    if kind == "a link":
        (workdir / "checkpoints" / "16").symlink_to(workdir / "checkpoints" / "12")
    elif kind == "a file":
        (workdir / "checkpoints" / "16").write_text("")
    else:
        (workdir / "checkpoints" / "012").mkdir()
    before = snapshot(workdir)
    assert main.main([*TINY, f"--workdir={workdir}"]) == 4
    [error] = capsys.readouterr().err.splitlines()
    assert str(workdir / "checkpoints" / ("012" if kind == "a name of none" else "16")) in error
    assert snapshot(workdir) == before


@pytest.mark.parametrize("name", [name for name in OF_A_RUN if name[0] != "." and "." in name][1:])
def test_files_of_no_run_are_left_alone(name, tmp_path, capsys):
    """Whatever wrote them, it was no run: that begins with its config.json."""
    (tmp_path / name).write_text("somebody's own")
    assert main.main([*TINY, f"--workdir={tmp_path}"]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert f"{tmp_path} holds {name} and no config.json, so it is no run's; choose another --workdir" in error
    assert list(files_in(tmp_path)) == [tmp_path / name] and (tmp_path / name).read_text() == "somebody's own"


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
def test_folders_of_no_run_are_left_alone(name, tmp_path, capsys):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("somebody's own")
    before = snapshot(tmp_path)
    assert main.main([*TINY, f"--workdir={tmp_path}"]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert f"{tmp_path} holds {name} and no config.json, so it is no run's" in error
    assert {path: told for path, told in snapshot(tmp_path).items() if path[0] != "."} == before


def test_a_folder_that_is_moved_while_its_run_goes_on(finished, tmp_path, capsys):
    workdir, moved = tmp_path / "run", tmp_path / "moved"
    undo = at_step(6, lambda: workdir.rename(moved))
    try:
        assert main.main([*TINY, f"--workdir={workdir}"]) == 4
    finally:
        undo()
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"{workdir} was moved, removed or replaced while the run went on" in error
    assert not workdir.exists()
    assert main.main([*TINY, f"--workdir={moved}"]) == 0
    assert rows_of(moved, timings=False) == rows_of(finished[0], timings=False)
    chex.assert_trees_all_equal(saved_in(moved, TINY), saved_in(finished[0], TINY))


def test_pictures_that_cannot_be_drawn(tmp_path, monkeypatch, capsys):
    """Matplotlib wants a folder that it can write in, and not to be imported without one."""

    class Finder:
        @staticmethod
        def find_spec(name, *_):
            if name == "cutnmix_jax.pictures":
                raise OSError("Matplotlib requires access to a writable cache directory")

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    monkeypatch.delitem(sys.modules, "cutnmix_jax.pictures", raising=False)
    monkeypatch.delattr("cutnmix_jax.pictures", raising=False)
    assert main.main([*TINY, f"--workdir={tmp_path}"]) == 0
    told = "(Matplotlib requires access to a writable cache directory)"
    assert capsys.readouterr().err.splitlines() == [
        f"warning: cannot write {name} {told}" for name in ("samples.png", "curves.png")
    ]


@pytest.mark.slow
def test_steps_per_call_and_mapping_reach_the_same_place(finished, tmp_path, monkeypatch):
    # In one call or several, stacked or not: the same mathematics in another order of additions.
    for number, field in enumerate(
        ("--config.mapping=vmap", "--config.precision=float32", "--config.steps_per_call=3")
    ):
        if "steps_per_call" in field:  # a CPU would do one step a call whatever it says
            monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        assert main.main([*TINY, field, f"--workdir={tmp_path / str(number)}"]) == 0
        for row, expected in zip(rows_of(tmp_path / str(number)), rows_of(finished[0]), strict=True):
            assert row["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-3)


@pytest.mark.slow
def test_bfloat16_trains(tmp_path):
    assert (
        main.main(["--config=configs/quickstart.py", *ONE_STEP, "--config.precision=bfloat16", f"--workdir={tmp_path}"])
        == 0
    )
    assert np.isfinite(rows_of(tmp_path)[0]["train/loss"])


def test_seeds_differ_and_repeat(tmp_path):
    for name, seed in {"a": 96, "b": 96, "c": 97}.items():
        command = [*of_row("baseline"), "--config.epochs=1", f"--config.seed={seed}"]
        assert main.main([*command, f"--workdir={tmp_path / name}"]) == 0
    one, same, other = (rows_of(tmp_path / name, timings=False) for name in "abc")
    assert one == same != other


@pytest.mark.parametrize("row", few(sorted(methods.rows_by_name()), ("baseline", "cutnmix", "kdcl", "okddip")))
def test_every_row_trains(row, finished, tmp_path):
    assert main.main([*of_row(row, finished[0]), "--config.epochs=2", f"--workdir={tmp_path}"]) == 0
    rows = rows_of(tmp_path)
    assert set(methods.row(row).weights) <= {name.removeprefix("train/") for name in rows[0]}
    assert all(np.isfinite(value) for row in rows for value in row.values())
    peers = [name for name in rows[0] if name.startswith("test/accuracy_peer_") and name[-1].isdigit()]
    assert len(peers) == methods.row(row).num_peers - (row == "okddip")
    assert ("test/accuracy_leader" in rows[0]) == (row == "okddip")


@pytest.mark.parametrize("target", few(["naive", "linear", "minlogit"], ()))
def test_every_target_of_kdcl_trains(target, tmp_path):
    arguments = [*of_row("kdcl"), f"--config.loss.target={target}", "--config.epochs=1", f"--workdir={tmp_path}"]
    assert main.main(arguments) == 0


@pytest.mark.slow
def test_kdcl_weighs_its_peers_by_images_it_does_not_train_on(tmp_path):
    arguments = [*of_row("kdcl"), "--config.loss.target=general", "--config.held_out_examples=20"]
    assert main.main([*arguments, f"--workdir={tmp_path / 'whole'}"]) == 0
    # 44 images are left: two batches an epoch; the weights come from the other 20, a batch and a quarter of evaluation
    assert [row["step"] for row in rows_of(tmp_path / "whole")] == [2, 4, 6]
    state = saved_in(tmp_path / "whole", arguments).state
    weights = np.asarray(state.method_state["weights"])
    config = command_line.from_flags(arguments[0].removeprefix("--config="), arguments[1:])
    dataset = data.load("digits", "", 64, 30)
    rows = np.sort(np.random.default_rng(95).permutation(64)[:20])
    images = (dataset.train_images[rows] / 255.0 - dataset.mean) / dataset.std
    network = backbones.load("tests.tiny:Tiny", 10)
    errors = []
    for params, stats in zip(state.params["peers"], state.batch_stats, strict=True):
        out, _ = network.apply({"params": params, "batch_stats": stats}, images.astype(np.float32), False)
        p = np.exp(np.asarray(out.logits, np.float64))
        errors.append(p / p.sum(1, keepdims=True) - np.eye(10)[dataset.train_labels[rows]])
    c = np.array([[(a * b).sum(1).mean() for b in errors] for a in errors])
    raw = np.linalg.solve(c + 1e-4 * np.trace(c) * np.eye(2), np.ones(2))
    np.testing.assert_allclose(weights, raw / raw.sum(), rtol=1e-3)
    undo = at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        assert main.main([*arguments, f"--workdir={tmp_path / 'stopped'}"]) == 75
    finally:
        undo()
    assert main.main([*arguments, f"--workdir={tmp_path / 'stopped'}"]) == 0
    chex.assert_trees_all_equal(saved_in(tmp_path / "stopped", arguments), saved_in(tmp_path / "whole", arguments))
    assert config.held_out_examples == 20


@pytest.mark.slow
def test_branches_of_networks_and_five_of_them(tmp_path):
    for row, more in {
        "okddip": ["--config.share_trunk=false", "--config.peers=tests.tiny:Tiny,tests.tiny:Tiny,tests.tiny:wide"],
        "one": ["--config.num_peers=5"],
        "pcl": ["--config.share_trunk=false", "--config.num_peers=2"],
        "dml": ["--config.share_trunk=true"],
    }.items():
        assert main.main([*of_row(row), *more, "--config.epochs=1", f"--workdir={tmp_path / row}"]) == 0, row


@pytest.mark.slow
def test_more_peers_and_unlike_peers(tmp_path):
    assert main.main([*TINY, "--config.num_peers=3", "--config.epochs=1", f"--workdir={tmp_path / 'three'}"]) == 0
    assert "test/accuracy_peer_2" in rows_of(tmp_path / "three")[0]
    unlike = ["--config.peers=tests.tiny:Tiny,tests.tiny:wide", "--config.weights.mmd=0", "--config.epochs=1"]
    assert main.main([*TINY, *unlike, f"--workdir={tmp_path / 'unlike'}"]) == 0
    assert "train/mmd" not in rows_of(tmp_path / "unlike")[0]
    assert (
        json.loads((tmp_path / "unlike" / "results.json").read_text())["backbone"] == "tests.tiny.Tiny+tests.tiny.wide"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", backbones.names())
def test_every_backbone_takes_a_step(name, tmp_path):
    file = "quickstart" if name == "resnet8" else name
    arguments = [f"--config=configs/{file}.py:digits,cutnmix", *ONE_STEP, f"--workdir={tmp_path}"]
    assert main.main(arguments) == 0
    assert np.isfinite(rows_of(tmp_path)[0]["train/loss"])


@pytest.fixture(scope="module")
def baselines(tmp_path_factory):
    """A finished baseline of each backbone, trained when it is asked for.

    Thirty small steps: before its running statistics have settled, ResNet-110 overflows in evaluation.
    """
    folder = tmp_path_factory.mktemp("baselines")
    settled = ["--config.epochs=30", "--config.optimizer.learning_rate=1e-5", "--config.checkpoint.every_epochs=30"]

    def of(name):
        workdir = folder / name
        if not (workdir / "results.json").exists():
            assert main.main([f"--config={name}:digits,baseline", *ONE_STEP, *settled, f"--workdir={workdir}"]) == 0
        return workdir

    return of


@pytest.mark.slow
@pytest.mark.parametrize("row", sorted(methods.rows_by_name()))
@pytest.mark.parametrize("name", backbones.names())
def test_every_row_on_every_backbone(name, row, baselines, tmp_path):
    teacher = [f"--config.teacher={baselines(name)}"] if row in ("kd", "tf_kd_self") else []
    arguments = [f"--config={name}:digits,{row}", *ONE_STEP, *teacher, f"--workdir={tmp_path}"]
    assert main.main(arguments) == 0
    assert np.isfinite(rows_of(tmp_path)[0]["train/loss"])
