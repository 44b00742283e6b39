"""Runs whose folder or environment somebody has changed: inputs that broke something once, and a fuzzer of others."""

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cutnmix_jax import digests, files, finished, lock, main, metrics
from cutnmix_jax.errors import CheckpointError
from cutnmix_jax.paper import options, reproduce
from cutnmix_jax.paper import report as paper
from cutnmix_jax.paper.cells import Choice, cells_of
from cutnmix_jax.settings import command_line, recipe
from tests import hostile, test_paper
from tests.hostile import BASES, FILES, FOLDERS, KINDS, ROOT, TARGETS, TEXTS, VARIABLES, Case
from tests.runs import few

pytestmark = pytest.mark.usefixtures("programs_kept")

as_root = pytest.mark.skipif(os.getuid() != 0, reason="other users' rights can be tried by root alone")


@functools.cache
def server():
    """One for all tests of a process."""
    return hostile.Server()


def judged(text):
    """A case that is as promised; returns how it ended."""
    found, ended = hostile.judge(Case.of(text), server().start)
    assert not found, f"python -m tests.hostile '{text}': {found}; stderr: {ended.err[-500:]}"
    return ended


# What broke something once.


BROKE = [
    ("half; root; dangle checkpoints/16; dangle checkpoints/20", 4, "is a link to"),
    ("half; root; link checkpoints/20", 4, "is a link to"),
    ("half; root; link checkpoints", 4, "is a link to"),
    ("half; root; file checkpoints/20", 4, "is a file, where a run has a folder"),
    ("half; root; rename checkpoints/20 checkpoints/020", 4, "has the name of no step"),
    ("half; other; mode checkpoints/20/digests 600", 4, "Permission denied"),
    ("half; other; mode checkpoints/20/state 600", 4, "Permission denied"),
    ("half; other; mode checkpoints/20 444", 4, "Permission denied"),
    ("half; other; mode checkpoints 000", 4, "Permission denied"),
    ("half; other; mode config.json 200", 4, "Permission denied"),
    ("half; other; mode metrics.jsonl 000", 4, "Permission denied"),
    ("half; other; mode environment.json 000", 4, "Permission denied"),
    ("new; other; mode . 300", 4, "Permission denied"),
    ("half; root; env JAX_DEFAULT_PRNG_IMPL=rbg", 2, "begun with other random numbers"),
    ("half; root; env JAX_RANDOM_SEED_OFFSET=7", 2, "begun with other random numbers"),
    ("half; root; env JAX_THREEFRY_PARTITIONABLE=0", 2, "begun with other random numbers"),
    ("half; root; limit nofile 24", 2, "only 24 files open"),
    ("half; root; env JAX_PLATFORMS=cuda", 2, "JAX finds no device"),
    ("half; root; env JAX_NUMPY_RANK_PROMOTION=raise", 2, "leave JAX_NUMPY_RANK_PROMOTION out"),
    ("half; root; env JAX_TRANSFER_GUARD=disallow", 2, "leave JAX_TRANSFER_GUARD out"),
    ("half; root; env JAX_DEFAULT_MATMUL_PRECISION=strange", 2, "a setting of JAX has no meaning"),
    ("half; root; env XLA_FLAGS=--xla_no_such_flag=1", 2, "XLA refuses its flags (Unknown flag"),
    ("half; root; env XLA_FLAGS=/nowhere", 2, "XLA refuses its flags (Could not open file"),
    (
        "finished; root; text results.json newer",
        0,
        "are not those of this run (results.json has no dataset); now in results-before-",
    ),
    ("half; root; huge checkpoints/20/state/_METADATA", 0, "step 20 is damaged"),
    ("half; root; pipe checkpoints/20/digests/metadata", 0, "step 20 is damaged"),
    ("half; root; empty metrics.jsonl", 0, ""),
    ("finished; root; remove checkpoints", 0, ""),
    ("half; root; folder results.json.tmp", 4, "is a folder, where a run has a file"),
    ("finished; other; mode results.json 000", 4, "Permission denied"),
    ("half; other; mode forced.json 000", 0, ""),
    ("half; root; hardlink metrics.jsonl", 0, ""),
    ("half; root; text metrics.jsonl rows", 0, "had other rows than the run"),
]
ALIKE = {  # others of their kind
    "half; other; mode config.json 200",
    "half; other; mode environment.json 000",
    "half; other; mode metrics.jsonl 000",
    "half; root; env JAX_RANDOM_SEED_OFFSET=7",
    "half; root; env JAX_THREEFRY_PARTITIONABLE=0",
    "half; root; env JAX_TRANSFER_GUARD=disallow",
    "half; root; env XLA_FLAGS=/nowhere",
    "half; root; pipe checkpoints/20/digests/metadata",
}


@as_root
@pytest.mark.parametrize(
    ("case", "code", "says"), [pytest.param(*case, marks=[pytest.mark.slow] * (case[0] in ALIKE)) for case in BROKE]
)
def test_what_broke_something_once(case, code, says):
    if "; other; " in case and not hostile.others_may_read():
        pytest.skip("another user cannot read this clone")
    ended = judged(case)
    assert (ended.code, says in ended.err) == (code, True), ended.err


OUTSIDE = [f"{name}.json.tmp" for name in ("environment", "results", "config")] + [
    "metrics.jsonl.tmp", ".owner.json", ".lock", "samples.png", "curves.png", "tensorboard", "checkpoints-damaged",
]  # fmt: skip


@as_root
@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_is_written_through_a_link(name):
    ended = judged(f"half; root; link {name}")
    assert ended.code == (0 if name.endswith(".tmp") else 4)


@as_root
@pytest.mark.parametrize("kind", few(KINDS, ("link", "pipe", "device")))
def test_every_name_with_every_kind(kind, request):
    """What is refused is refused at once, so that all can be tried."""
    names = (*FILES, *FOLDERS) if request.config.getoption("--all") else FILES[:4]
    for name in names:
        judged(f"half; root; {kind} {name}")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run that each test may copy."""
    return hostile.runs() / "finished"


def copied(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def test_results_of_another_run_do_not_end_one(run, tmp_path, capsys):
    """Those of seed 96 in an unfinished run of seed 95."""
    folder = copied(run, tmp_path)
    results = json.loads((folder / "results.json").read_text())
    config = json.loads((folder / "config.json").read_text()) | {"seed": 96}
    other = results | {"seed": 96, "config_sha256": digests.of_json(config)}
    (folder / "results.json").write_text(json.dumps(other))
    shutil.rmtree(folder / "checkpoints" / "24")
    assert main.main([*hostile.COMMAND, f"--workdir={folder}"]) == 0
    assert "results.json is of another configuration" in capsys.readouterr().err
    assert hostile.came_to(folder) == hostile.came_to(run)
    [aside] = folder.glob("results-before-*.json")
    assert json.loads(aside.read_text()) == other


EDITS = {
    "accuracy": (lambda it: it["last"].update(accuracy=7.5), "has other accuracies than metrics.jsonl"),
    "best": (lambda it: it["best"].update(accuracy=0.99), "has other accuracies than metrics.jsonl"),
    "epochs": (lambda it: it.update(epochs=5), "is of another configuration"),
    "weights": (lambda it: it.update(weights_sha256="0" * 64), "is of other weights than the newest checkpoint"),
    "configuration": (lambda it: it.update(config_sha256="0" * 64), "is of another configuration"),
    "a device that is none": (lambda it: it.update(device=7), "has no device"),
    "versions": (lambda it: it.update(versions={"jax": 3}), "has no versions"),
    "another seed": (lambda it: it.update(seed=96), "is of another configuration"),
    "seconds without end": (lambda it: it.update(seconds=10**400), "too large"),
    "no seconds": (lambda it: it.update(wall_seconds=float("nan")), "has no seconds"),
    "epochs without end": (lambda it: it.update(epochs=10**400), "is of another configuration"),
    "a seed that is none": (lambda it: it.update(seed=True), "has no seed"),
}


@pytest.mark.parametrize("name", EDITS)
def test_edited_results_are_not_used(name, run, tmp_path):
    folder = copied(run, tmp_path)
    assert finished.look(folder).results
    edit, why = EDITS[name]
    results = json.loads((folder / "results.json").read_text())
    edit(results)
    (folder / "results.json").write_text(json.dumps(results))
    looked = finished.look(folder)
    assert looked.results is None and why in looked.why_not


@pytest.mark.parametrize("value", [7.5, -0.1, float("nan"), "0.5", True, None])
def test_rows_and_results_that_were_edited_together(value, run, tmp_path):
    """Also where there are no weights any more that could tell."""
    folder = copied(run, tmp_path)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((folder / "results.json").read_text())
    rows[-1]["test/accuracy"] = results["last"]["accuracy"] = value
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "results.json").write_text(json.dumps(results))
    assert finished.look(folder).results is None
    shutil.rmtree(folder / "checkpoints")
    assert finished.look(folder).results is None


def test_results_without_weights_count(run, tmp_path):
    """Somebody has removed the checkpoints to save room."""
    folder = copied(run, tmp_path)
    shutil.rmtree(folder / "checkpoints")
    assert finished.read(folder)


def test_a_teacher_whose_newest_checkpoint_is_gone(run, tmp_path, capsys):
    folder = copied(run, tmp_path)
    shutil.rmtree(folder / "checkpoints" / "24")
    command = ["--config=configs/quickstart.py:digits,kd", *hostile.COMMAND[1:], f"--config.teacher={folder}"]
    assert main.main([*command, f"--workdir={tmp_path / 'student'}"]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert "is of other weights than the newest checkpoint, that of step 20" in error
    assert not (tmp_path / "student").exists()


def test_a_teacher_whose_checkpoints_are_gone(run, tmp_path, capsys):
    """It teaches nobody any more; who has learnt from it is told as ever."""
    folder = copied(run, tmp_path)
    command = ["--config=configs/quickstart.py:digits,kd", *hostile.COMMAND[1:], f"--config.teacher={folder}"]
    assert main.main([*command, f"--workdir={tmp_path / 'student'}"]) == 0
    shutil.rmtree(folder / "checkpoints")
    assert main.main([*command, f"--workdir={tmp_path / 'student'}"]) == 0
    capsys.readouterr()
    assert main.main([*command, f"--workdir={tmp_path / 'another'}"]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert "its checkpoints are gone" in error and not (tmp_path / "another").exists()


def test_a_checkpoint_of_another_version(run, tmp_path, capsys):
    folder = copied(run, tmp_path)
    (folder / "results.json").unlink()
    for step in hostile.came_from(folder):
        file = folder / "checkpoints" / str(step) / "digests" / "metadata"
        told = json.loads(file.read_text())
        del told["format"]
        file.write_text(json.dumps(told))
    before = hostile.snapshot(folder)
    assert main.main([*hostile.COMMAND, f"--workdir={folder}"]) == 4
    [error] = capsys.readouterr().err.splitlines()
    assert "was written by another version" in error and "damaged" not in error
    assert {name: told for name, told in hostile.snapshot(folder).items() if name != ".lock"} == {
        name: told for name, told in before.items() if name != ".lock"
    }


def test_a_log_is_not_written_into_a_copy(tmp_path):
    (tmp_path / "copy").write_text("before\n")
    os.link(tmp_path / "copy", tmp_path / "log.txt")
    with files.append(tmp_path / "log.txt") as log:
        log.write("after\n")
    assert (tmp_path / "copy").read_text() == "before\n"
    assert (tmp_path / "log.txt").read_text() == "before\nafter\n"


def test_a_report_says_whose_results_it_leaves_out(tmp_path, capsys):
    choice = Choice("fig1", mini=True, seeds=(95,), runs=tmp_path)
    first, second = cells_of(choice)
    for cell in (first, second):
        test_paper.save(cell, 0.9)
    results = json.loads((first.workdir / "results.json").read_text())
    results["last"]["accuracy"] = 7.5
    (first.workdir / "results.json").write_text(json.dumps(results))
    paper.write(choice, tmp_path)
    assert "results.json has other accuracies than metrics.jsonl" in capsys.readouterr().out
    assert "750" not in (tmp_path / "fig1_mini.md").read_text()


def test_a_folder_that_is_moved_while_it_trains(tmp_path):
    """What is written under the old name would be half a run."""
    for number in range(3):
        folder, moved = tmp_path / f"run{number}", tmp_path / f"moved{number}"
        process = endless(folder)
        wait_for(lambda folder=folder: list(folder.glob("checkpoints/[0-9]*")), process)
        time.sleep(number / 10)
        folder.rename(moved)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 4, errors
        assert [line.partition(":")[0] for line in errors.splitlines()] == ["error"]
        assert "was moved, removed or replaced" in errors
        assert not folder.exists()  # what was being saved went with it
        rows, steps = metrics.read_rows(moved / "metrics.jsonl"), hostile.came_from(moved)
        assert len(rows) >= steps[-1] // 4 if steps else len(rows) < 2  # it can go on there, or begin again


def test_rows_that_are_emptied_while_it_trains(tmp_path):
    folder = tmp_path / "run"
    process = endless(folder)
    wait_for(lambda: len(metrics.read_rows(folder / "metrics.jsonl")) > 3, process)
    os.truncate(folder / "metrics.jsonl", 0)
    wait_for(lambda: len(metrics.read_rows(folder / "metrics.jsonl")) > 3, process)
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 75, errors
    rows = metrics.read_rows(folder / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))


def endless(folder):
    command = [sys.executable, "-m", "cutnmix_jax.main", *hostile.COMMAND, "--config.epochs=1000000"]
    return subprocess.Popen(
        [*command, f"--workdir={folder}"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["results.json", "environment.json", "samples.png", "curves.png", "metrics.jsonl"])
def test_a_folder_of_somebody_s_own_files(name, tmp_path, capsys):
    (tmp_path / name).write_text("mine\n")
    assert main.main([*hostile.COMMAND, f"--workdir={tmp_path}"]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert f"{tmp_path} holds {name}" in error and "choose another --workdir" in error
    assert (tmp_path / name).read_text() == "mine\n" and not (tmp_path / "config.json").exists()


def test_a_folder_with_other_things_in_it(tmp_path):
    (tmp_path / "notes.txt").write_text("mine\n")
    assert main.main([*hostile.COMMAND, "--config.epochs=1", f"--workdir={tmp_path}"]) == 0
    assert (tmp_path / "notes.txt").read_text() == "mine\n"


def test_a_home_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cutnmix_jax.training.train", lambda config, workdir, *_, **__: print(workdir))
    settings = recipe.of_row("resnet8", "digits", "baseline")
    monkeypatch.setattr(command_line, "from_flags", lambda *_: settings)
    assert main.main(["--config=x", "--workdir=~/x"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/x\n"
    assert main.main(["--config=x", "--workdir=~nobody-at-all/x"]) == 2
    monkeypatch.setattr(sys, "argv", ["report", "table2", "--runs=~/runs", "--out=~/out"])
    assert options.exit_code_of(paper.main) == 0
    assert (tmp_path / "out" / "table2.md").exists() and not (tmp_path / "~").exists()


def test_a_file_system_that_knows_no_locks(tmp_path, monkeypatch, capsys, recwarn):
    def refuses(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuses)
    assert main.main([*hostile.COMMAND, f"--workdir={tmp_path / 'run'}"]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert "cannot lock" in error and "Function not implemented" in error
    assert not [warning for warning in recwarn if "flock" in str(warning.message)]


def test_a_process_ends_whatever_a_library_left_behind():
    script = (
        "import threading, time; from cutnmix_jax import signals\n"
        "threading.Thread(target=time.sleep, args=(300,)).start()\n"
        "signals.end(4)"
    )
    started = time.monotonic()
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60).returncode == 4
    assert time.monotonic() - started < 60  # and not 300


def test_the_folder_stands_under_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    with lock.held(folder) as check:
        check()
        folder.rename(tmp_path / "moved")
        with pytest.raises(CheckpointError, match="was moved, removed or replaced"):
            check()
        folder.mkdir()
        with pytest.raises(CheckpointError, match="was moved, removed or replaced"):
            check()
        folder.rmdir()
        (tmp_path / "moved").rename(folder)
        check()
        shutil.copytree(folder, tmp_path / "copy")  # whose numbers are others, as some network file systems' change
        folder.rename(tmp_path / "moved")
        (tmp_path / "copy").rename(folder)
        check()
        monkeypatch.setattr(lock, "_identity", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        check()  # which says nothing of where the folder is


# The fuzzer.


def changes(user):
    """What somebody may have done to a run's folder, or to what surrounds it."""
    target = st.sampled_from(TARGETS)
    entry = st.one_of(
        st.builds("{} {}".format, st.sampled_from(("remove", "empty", "cut", "flip", *KINDS)), target),
        st.builds("mode {} {}".format, target, st.sampled_from(("000", "444", "600", "500", "200", "111"))),
        st.builds("text {} {}".format, st.sampled_from(FILES), st.sampled_from(sorted(TEXTS))),
        st.builds("text checkpoints/{}/digests/metadata {}".format, st.sampled_from((24, 20, 16)),
                  st.sampled_from(sorted(TEXTS))),
        st.builds("{} {}".format, st.sampled_from(("hardlink", "old", "future", "owner")), target),
        st.builds("{} {} {}".format, st.sampled_from(("copy", "rename")), target,
                  st.sampled_from((*FILES, *FOLDERS, "checkpoints/024", "checkpoints/25", "checkpoints/9999999999999",
                                   "checkpoints/24.orbax-checkpoint-tmp", "checkpoints/x", "notes.txt"))),
    )  # fmt: skip
    moment = st.floats(0, 4).map("{:.2f}".format)
    around = st.one_of(
        st.builds("limit nofile {}".format, st.sampled_from((24, 64, 128, 256))),
        st.builds("limit fsize {}".format, st.sampled_from((4000, 20000))),
        st.builds("signal {} {}".format, st.sampled_from(("TERM", "INT", "USR1", "HUP")), moment),
        st.builds("at {} {}".format, moment, entry),
    )
    variable = st.sampled_from(VARIABLES).map("env {}".format)
    return st.one_of(entry, entry, entry, around, *[variable] * (user == "root"))


@st.composite
def cases(draw):
    """A case, with one to three changes."""
    user = draw(st.sampled_from(("root", "other") if hostile.others_may_read() else ("root",)))
    return Case(draw(st.sampled_from(BASES)), user, tuple(draw(st.lists(changes(user), min_size=1, max_size=3))))


FUZZ = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}


@as_root
@pytest.mark.slow
@pytest.mark.parametrize("part", ["few", "many"])
def test_whatever_somebody_has_done(part):
    """Few are the same each time, so that no change fails for what it has not touched."""

    @settings(max_examples=30 if part == "few" else 2000, derandomize=part == "few", **FUZZ)
    @given(cases())
    def as_promised(case):
        judged(str(case))

    as_promised()


# Tables over such folders.

IN_A_CELL = (
    "config.json",
    "results.json",
    "metrics.jsonl",
    "forced.json",
    "log.txt",
    "checkpoints",
    ".lock",
    "tensorboard",
)
TEXTS_OF_RESULTS = (
    "\\input{/etc/passwd}",
    "| x |",
    "100 % & #1_a ~ ^ $x$",
    "a\nb\r\n# c",
    "\u2028é漢",
    "<script>",
    "x" * 5000,
)


def tampered():
    """What somebody may have done to the folder of a cell."""
    name = st.sampled_from(IN_A_CELL)
    return st.one_of(
        st.builds("{} {}".format, st.sampled_from(("remove", "empty", "cut", "flip", *KINDS)), name),
        st.builds("text {} {}".format, st.sampled_from(IN_A_CELL[:5]), st.sampled_from(sorted(TEXTS))),
        st.builds("copy {} {}".format, name, name),
    )


@as_root
@pytest.mark.parametrize("part", ["few", pytest.param("many", marks=pytest.mark.slow)])
def test_tables_over_whatever_lies_there(part, tmp_path, monkeypatch, capsys):
    tried = iter(range(10**6))
    monkeypatch.setattr("cutnmix_jax.paper.figures.save", lambda *_, **__: None)  # drawn, and not turned into pixels

    @settings(max_examples=40 if part == "few" else 2000, derandomize=part == "few", **FUZZ)
    @given(st.lists(tampered(), min_size=1, max_size=4), st.sampled_from(TEXTS_OF_RESULTS), st.integers(0, 999))
    def are_made(done, text, chance):
        place = tmp_path / str(next(tried))
        outside = place / "outside"
        outside.mkdir(parents=True)
        first, second = cells_of(Choice("fig1", mini=True, seeds=(95,), runs=place / "runs"))
        for cell in (first, second):
            test_paper.save(cell, 0.9)
        results = json.loads((second.workdir / "results.json").read_text())
        (second.workdir / "results.json").write_text(json.dumps(results | {"device": text, "versions": {"jax": text}}))
        for change in done:
            hostile.apply(change, first.workdir, outside, chance)
        before = hostile.snapshot(outside), hostile.snapshot(place / "runs" / "digits")
        which = ["fig1", "--preset=mini", "--seeds=95", f"--runs={place / 'runs'}"]
        for command, more in ((paper.main, []), (reproduce.main, ["--dry-run"])):
            monkeypatch.setattr(sys, "argv", ["command", *which, *more])
            code = within(20, functools.partial(options.exit_code_of, command))
            said = capsys.readouterr()
            assert (code, said.err) == (0, ""), done
        assert (hostile.snapshot(outside), hostile.snapshot(place / "runs" / "digits")) == before
        tables = place / "runs" / "tables"
        assert "90.00" in (tables / "fig1_mini.md").read_text(), done  # the cell that nobody touched
        lines = [line for line in (tables / "fig1_mini.tex").read_text().split("\n") if not line.startswith("%")]
        assert not any("input" in line for line in lines)
        assert len((tables / "fig1_mini.md").read_text().splitlines()) in (20, 21)  # no text makes lines of its own
        shutil.rmtree(place)

    are_made()


def within(seconds, call):
    """Calls; fails where that takes longer."""

    def late(*_):
        raise AssertionError(f"still waiting after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        return call()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_tables_where_the_terminal_knows_ascii_alone(tmp_path):
    """The files are UTF-8 whatever the locale is."""
    for locale in ({"LC_ALL": "C", "PYTHONUTF8": "0"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}):
        done = subprocess.run(
            [sys.executable, "-m", "cutnmix_jax.paper.report", "table1", "--preset=mini", f"--runs={tmp_path / 'é'}"],
            cwd=ROOT, env=os.environ | locale | {"PYTHONCOERCECLOCALE": "0"}, capture_output=True,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")
    assert "—" in (tmp_path / "é" / "tables" / "table1_mini.md").read_text(encoding="utf-8")


TABLE = """
import sys
from pathlib import Path
from cutnmix_jax.command import exit_code_of
from tests import test_paper
cells = [test_paper.cell_of(Path(sys.argv[1]), name, "--config.epochs=40") for name in "ab"]
sys.exit(exit_code_of(lambda: test_paper.run(cells, 2)))
"""


def table(folder):
    command = [sys.executable, "-c", TABLE, str(folder)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **pipes)


@pytest.fixture(scope="module")
def whole_table(tmp_path_factory):
    """The results of its two cells, which are the same run."""
    folder = tmp_path_factory.mktemp("table")
    process = table(folder)
    assert process.communicate()[1] == "" and process.returncode == 0
    return results_in(folder / "a")


def results_in(folder):
    results = finished.read(folder) or {}
    return {name: value for name, value in results.items() if name not in ("seconds", "wall_seconds")}


def started_in(runs):
    """The processes of the cells that go on."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            if f"--workdir={runs}/" in path.read_text(errors="replace"):
                found.append(int(path.parent.name))
    return sorted(found)


ATTACKS = (
    "kill the parent",
    "tamper",
    "two parents",
    "stop the parent",
    "kill a child",
    "stop a child",
    "tamper before",
)


@as_root
@pytest.mark.slow
@pytest.mark.rounds(1, 70)
def test_a_table_that_is_attacked(number, whole_table, tmp_path):
    """The same command again makes it whole, or names the cell that somebody has to look at."""
    chance, attack = random.Random(number), ATTACKS[number % len(ATTACKS)]
    runs, outside = tmp_path / "runs", tmp_path / "outside"
    runs.mkdir(), outside.mkdir()
    names = ("config.json", "metrics.jsonl", "log.txt", "checkpoints", ".lock", "results.json", "samples.png")
    change = f"{chance.choice((*KINDS, 'remove', 'empty'))} {chance.choice(names)}"
    if attack == "tamper before":
        (runs / "a").mkdir()
        hostile.apply(change, runs / "a", outside, number)
    parents = [table(runs) for _ in range(1 + (attack == "two parents"))]
    time.sleep(chance.uniform(0, 12))
    children = started_in(runs)
    if attack in ("kill the parent", "stop the parent"):
        os.kill(parents[0].pid, signal.SIGKILL if attack.startswith("kill") else signal.SIGTERM)
    elif attack in ("kill a child", "stop a child") and children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(children[0], signal.SIGKILL if attack.startswith("kill") else signal.SIGTERM)
    elif attack == "tamper" and (runs / "a").is_dir():
        with contextlib.suppress(OSError):
            hostile.apply(change, runs / "a", outside, number)
    before = hostile.snapshot(outside)
    for parent in parents:
        _, errors = parent.communicate(timeout=120)
        assert parent.returncode in (0, 1, 2, 4, 75, -signal.SIGKILL, -signal.SIGTERM), errors
        assert all(line.startswith(("error: ", "warning: ", "stop")) for line in errors.splitlines()), errors
    again = table(runs)
    _, errors = again.communicate(timeout=120)
    assert all(line.startswith(("error: ", "warning: ")) for line in errors.splitlines()), errors
    assert results_in(runs / "b") == whole_table
    if again.returncode == 0:
        assert errors == "" and results_in(runs / "a") == whole_table
    else:
        assert attack.startswith("tamper") and again.returncode in (2, 4), (attack, change, errors)
        assert errors.count("\n") == 1 and str(runs / "a") in errors
    if not (attack == "tamper" and "log.txt" in change):  # moved there while it was open, it is still the cell's log
        assert hostile.snapshot(outside) == before
    assert not started_in(runs)
    if (log := runs / "a" / "log.txt").is_file() and log.stat().st_size < 1 << 20:
        assert "Traceback" not in log.read_text(errors="replace"), (attack, change)
