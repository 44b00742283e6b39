"""What is shown of the runs of a table while they go on, and the GPUs that they are spread over."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboardX.proto import event_pb2

from cutnmix_jax import console, loop, metrics, pool
from cutnmix_jax.paper import devices, launch, options, progress, reproduce
from cutnmix_jax.paper.cells import Choice, cells_of
from cutnmix_jax.paper.progress import Started
from tests.runs import Made, few, with_train_steps
from tests.test_run import wait_for
from tests.test_scripts import executable

ROOT = Path(__file__).parent.parent


def cell_in(folder, **choice):
    return cells_of(Choice("fig1", mini=True, seeds=(95,), runs=Path(folder), **choice))[0]


def rows_of(count, **more):
    return [
        {"epoch": e, "test/accuracy": 0.1 * e, "seconds": 30.0 if e == 1 else 10.0, **more} for e in range(1, count + 1)
    ]


def write(cell, rows=(), log=""):
    cell.workdir.mkdir(parents=True, exist_ok=True)
    (cell.workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (cell.workdir / "log.txt").write_text(log)


def step_line(capsys, epoch, step):
    """What a run prints between its epochs where there is no terminal."""
    shown = console.Display(total_steps=384, done_steps=0, images_per_step=32)
    shown.measure(0)
    shown._started -= 100.0  # so long ago
    capsys.readouterr()
    shown.update(epoch, 8, step, {"loss": 1.25})
    return capsys.readouterr().out


def test_where_a_run_stands(tmp_path, capsys):
    cell = cell_in(tmp_path)
    run = Started(cell, 0.0, 0)
    assert progress.standing(run) == "starting"
    write(cell, log="data  digits\ncompiling; what is compiled is kept for the next start\n\n")
    assert progress.standing(run).startswith("compiling; what")
    # 40 of 384 steps in 100 s leave 860 s for the others.
    write(cell, log="compiling\n" + step_line(capsys, epoch=0, step=40))
    assert progress.standing(run) == "epoch 1 of 8, step 40/384; about 0:14:20 left"
    # Three epochs are done, five are left of 10 s each; the first one compiled.
    write(cell, rows_of(3), log=step_line(capsys, epoch=2, step=100) + "epoch 3/8  test accuracy 30.00 %\n    train\n")
    assert progress.standing(run) == "3 of 8 epochs; test accuracy 30.00 % after epoch 3; about 0:00:50 left"
    write(cell, rows_of(3), log=step_line(capsys, epoch=3, step=192))
    line = "epoch 4 of 8, step 192/384; test accuracy 30.00 % after epoch 3; about 0:01:40 left"
    assert progress.standing(run) == line
    # What an earlier start has printed says nothing of this one; what it has trained does.
    before = (cell.workdir / "log.txt").stat().st_size
    assert progress.standing(run._replace(logged=before)).startswith("3 of 8 epochs; test accuracy 30.00 % ")
    write(cell, rows_of(1), log="x" * 100_000 + "\n" + step_line(capsys, epoch=1, step=96))
    assert progress.standing(run).startswith("epoch 2 of 8, step 96/384; test accuracy 10.00 % after epoch 1; ")


def test_a_run_whose_files_tell_nothing(tmp_path):
    """The run itself will say what is wrong with them; who watches must not fail for it."""
    cell = cell_in(tmp_path)
    write(cell, [{"epoch": 1}], log="\x00\xff")
    assert progress.standing(Started(cell, 0.0, 0)) == "1 of 8 epochs; time left not known"
    (cell.workdir / "log.txt").unlink()
    (cell.workdir / "log.txt").mkdir()
    assert progress.standing(Started(cell, 0.0, 0)) == "1 of 8 epochs; time left not known"


def test_the_headline_of_a_row_is_shown(tmp_path):
    cell = cell_in(tmp_path, variants=("okddip",))
    write(cell, rows_of(2, **{"test/accuracy_leader": 0.75}))
    assert "test accuracy 75.00 % after epoch 2" in progress.standing(Started(cell, 0.0, 0))


# A table of two cells, each of which takes four seconds in which it moves by an epoch.
TABLE = """
import json, subprocess, sys
from pathlib import Path
from cutnmix_jax import pool
from cutnmix_jax.command import exit_code_of
from cutnmix_jax.paper import progress
from cutnmix_jax.paper.cells import Choice, cells_of
from tests import test_paper, test_progress
progress.PLAIN_SECONDS = progress.REFRESH_SECONDS = 0.2

def start(arguments, log, environment):
    cell = next(cell for cell in cells if cell.arguments == arguments)
    test_paper.save(cell, 0.9)
    for name in ("results.json", "metrics.jsonl"):
        (cell.workdir / name).rename(cell.workdir / f"later-{name}")
    test_progress.write(cell, test_progress.rows_of(3))
    row = json.dumps(test_progress.rows_of(4)[3])
    moves = f"sleep 2; echo '{row}' >> metrics.jsonl; sleep 2; mv later-results.json results.json; "
    moves += "exec mv later-metrics.jsonl metrics.jsonl"
    return subprocess.Popen(["sh", "-c", moves], cwd=cell.workdir, start_new_session=True)

pool.start = start
cells = cells_of(Choice("fig1", mini=True, seeds=(95,), runs=Path(sys.argv[1])))
sys.exit(exit_code_of(lambda: test_paper.run(cells, 2)))
"""


def table(folder, stdout=subprocess.PIPE):
    command = [sys.executable, "-c", TABLE, str(folder)]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "200", "LINES": "40"}
    return subprocess.Popen(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment)


def test_lines_where_there_is_no_terminal(tmp_path):
    process = table(tmp_path)
    lines, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert "\x1b" not in lines
    lines = lines.splitlines()
    for name in ("digits resnet8 dml seed 95", "digits resnet8 dml_cutmix seed 95"):
        begun = [number for number, line in enumerate(lines) if line.startswith(f"started: {name}, log in {tmp_path}")]
        three = lines.index(f"{name}: 3 of 8 epochs; test accuracy 30.00 % after epoch 3; about 0:00:50 left")
        four = lines.index(f"{name}: 4 of 8 epochs; test accuracy 40.00 % after epoch 4; about 0:00:40 left")
        assert begun < [three] < [four]
        told = [line for line in lines if line.startswith(f"{name}: ")]
        assert told[:2] == [lines[three], lines[four]]  # only where it has moved
        # The rows of its end may be seen just before the process has ended.
        assert all(line.startswith(f"{name}: 8 of 8 epochs; ") for line in told[2:]) and len(told) <= 3
        assert any(line.startswith("[") and f"] {name}: 90.00 %" in line for line in lines[four:])


def test_a_live_display_in_a_terminal(tmp_path):
    ours, theirs = pty.openpty()
    process = table(tmp_path, theirs)
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # the end of a terminal
            break
    assert process.wait(60) == 0, process.stderr.read()
    os.close(ours)
    assert b"0 of 2 cells done, 2 running" in shown
    assert re.search(rb"0:00:0[2-9]  digits resnet8 dml seed 95: 4 of 8 epochs; test accuracy 40.00 %", shown)
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")  # the cursor is back
    assert b"] digits resnet8 dml seed 95: 90.00 %" in shown


def test_a_terminal_that_is_closed(tmp_path):
    ours, theirs = pty.openpty()
    process = table(tmp_path, theirs)
    os.close(theirs)
    read = b""
    while b"2 running" not in read:
        read += os.read(ours, 65536)
    os.close(ours)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("closed", few([">&-", "<&- >&- 2>&-", "> >(head -c 20)"], ("<&- >&- 2>&-",)))
def test_streams_that_are_closed(closed, tmp_path):
    command = ["bash", "-c", f'exec "$@" {closed}', "-", sys.executable, "-c", TABLE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_line_now_and_then(tmp_path, monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    cell = cell_in(tmp_path)
    shown = progress.Display()
    for seconds in range(301):
        write(cell, rows_of(seconds // 20))  # an epoch every 20 s
        now[0] = 1000.0 + seconds
        shown.update([Started(cell, 1000.0, 0)], 0, 1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and "epoch 3;" in lines[0]


CARDS = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aa00)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bb11)
  MIG 3g.20gb     Device  0: (UUID: MIG-cc22)
GPU 2: NVIDIA A100-SXM4-40GB (UUID: GPU-bb33)"""


@pytest.fixture
def cards(tmp_path, monkeypatch):
    executable(tmp_path / "nvidia-smi", f"[ $1 = -L ] || exit 1; cat <<'END'\n{CARDS}\nEND")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("visible", "text", "found"),
    [
        (None, "0,2", ("0", "2")),
        (None, " 1 ", ("1",)),
        (None, "GPU-aa00,MIG-cc22", ("GPU-aa00", "MIG-cc22")),
        ("2,1", "1", ("1",)),
        ("GPU-bb33,GPU-aa", "0,2", ("0", "2")),
        ("MIG-cc22", "MIG-cc22", ("MIG-cc22",)),
    ],
)
def test_gpus_that_are_there(visible, text, found, cards, monkeypatch):
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.chosen(text) == found


@pytest.mark.parametrize(
    ("visible", "text", "said"),
    [
        (None, "0,3", "there is no GPU '3'; there are: 0, 1, MIG-cc22, 2"),
        (None, "", "there is no GPU ''; there are"),
        (None, "0,,1", "there is no GPU ''; there are"),
        (None, "cuda:0", "there is no GPU 'cuda:0'; there are"),
        (None, "-1", "there is no GPU '-1'; there are"),
        (None, "1,0,1", "names GPU 1 twice; --jobs says how many run at once"),
        (None, "0,GPU-aa00", "names GPU GPU-aa00 twice"),
        ("1,2", "0", "there is no GPU '0' that CUDA_VISIBLE_DEVICES=1,2 shows; there are: 1, 2"),
        ("", "0", "there is no GPU '0' that CUDA_VISIBLE_DEVICES= shows; there are: none"),
        ("-1", "0", "there is no GPU '0' that CUDA_VISIBLE_DEVICES=-1 shows; there are: none"),
    ],
)
def test_gpus_that_are_not_there(visible, text, said, cards, monkeypatch, capsys):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(sys, "argv", ["reproduce", "fig1", "--dry-run", f"--devices={text}"])
    assert options.exit_code_of(reproduce.main) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith(f"error: --devices={text}") and said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        (["echo 'No devices were found'"], "no GPU is known here; leave it out (nvidia-smi: No devices were found)"),
        (
            ["echo 'NVIDIA-SMI has failed' >&2; exit 9"],
            "no GPU is known here; leave it out (nvidia-smi: NVIDIA-SMI has f",
        ),
        ([], "no GPU is known here; leave it out (nvidia-smi: it lists none)"),
        (None, "no GPU is known here; leave it out (nvidia-smi: cannot be run, No such file or directory)"),
    ],
)
def test_a_machine_without_gpus(tool, said, tmp_path, monkeypatch):
    if tool is not None:
        executable(tmp_path / "nvidia-smi", *tool)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if tool is not None else str(tmp_path))
    command = [sys.executable, "-m", "cutnmix_jax.paper.reproduce", "fig1", "--preset=mini", "--devices=0,1"]
    done = subprocess.run([*command, f"--runs={tmp_path / 'runs'}"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --devices=0,1: ") and said in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_sees_its_gpu_alone(tmp_path, cards, monkeypatch):
    """By the numbers of nvidia-smi; a job on each of the devices where nothing else is said."""
    monkeypatch.setattr(pool, "start", lambda arguments, log, environment: subprocess.Popen(
        ["sh", "-c", f'echo "$CUDA_VISIBLE_DEVICES $CUDA_DEVICE_ORDER" >> {tmp_path}/seen; sleep 1; exit 5'],
        env=os.environ | environment))  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["reproduce", "fig1", "--preset=mini", "--seeds=95", "--devices=0,2",
                                      f"--runs={tmp_path / 'runs'}"])  # fmt: skip
    assert options.exit_code_of(reproduce.main) == 5
    wait_for((tmp_path / "seen").exists)
    assert sorted((tmp_path / "seen").read_text().splitlines()) == ["0 PCI_BUS_ID", "2 PCI_BUS_ID"]


def events_in(folder):
    """The events of a file: each is its length, eight bytes, a checksum of four, the event, and another checksum."""
    [path] = folder.glob("events*")
    data, found = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return found


def test_tensorboard_has_the_rows_at_their_epochs(tmp_path):
    """And of a run that goes on first that nothing holds from its next epoch on."""
    rows = [{"epoch": e, "step": 4 * e, "train/ce": 1.5 / e, "test/accuracy": 0.25 * e} for e in (1, 2, 3)]
    for start, (first, more) in enumerate(((0, 2), (2, 1))):
        folder = tmp_path / str(start)
        (folder / "tensorboard").mkdir(parents=True)
        files = metrics.Metrics(folder, rows[:first])
        for row in rows[first : first + more]:
            files.append(row)
        files.close()
        begun, *events = [event for event in events_in(folder / "tensorboard") if not event.file_version]
        assert (begun.step, begun.session_log.status) == (first + 1, event_pb2.SessionLog.START)
        found = {(event.step, one.tag): one.simple_value for event in events for one in event.summary.value}
        assert found == {
            (row["epoch"], name): pytest.approx(value)
            for row in rows[first : first + more] for name, value in row.items() if name != "epoch"
        }  # fmt: skip


def test_images_per_second_are_of_each_epoch_by_itself(tmp_path):
    """Without the first call, which compiles; the batches of an epoch are as slow as this test makes them."""
    run, begun = Made("baseline", "--config.epochs=3", "--config.optimizer.milestones=()"), []
    trains, pauses = run.engine.train_steps, (0.05, 0.3, 0.1)  # seconds a step

    def slowly(state, totals, feed, count):
        begun.append(None)
        time.sleep(pauses[(len(begun) - 1) // run.engine.steps_per_epoch])
        return trains(state, totals, feed, count)

    run.train(tmp_path, engine=with_train_steps(run.engine, slowly))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for row, pause in zip(rows, pauses, strict=True):
        assert 0.5 * 16 / pause < row["images_per_second"] <= 16 / pause, row


def test_drawing_the_first_batch_is_no_training(tmp_path):
    """Also where the first call is all that is trained before a save."""
    run = Made("baseline", "--config.epochs=1", "--config.optimizer.milestones=()", "--config.checkpoint.every_steps=1")
    run.train(tmp_path / "compiles")
    run.train(tmp_path / "draws", began=loop.Began(time.monotonic(), 0.0, lambda: time.sleep(6)))
    [row] = [json.loads(line) for line in (tmp_path / "draws" / "metrics.jsonl").read_text().splitlines()]
    assert row["images_per_second"] > 64 / 6


LAST = {"epoch": 9, "step": 90, "accuracy": 0.5, "accuracy_per_peer": [0.4, 0.6], "accuracy_ensemble": 0.61,
        "accuracy_leader": 0.3}  # fmt: skip
BEST = {"epoch": 7, "step": 70, "accuracy": 0.7, "accuracy_per_peer": [0.65, 0.75], "accuracy_ensemble": 0.8,
        "accuracy_leader": 0.2}  # fmt: skip


def test_a_run_ends_with_the_accuracies_of_its_last_and_its_best_epoch(capsys):
    told = {"dataset": "digits", "backbone": "resnet8", "method": "okddip", "seed": 95, "last": LAST, "best": BEST}
    console.table({**told, "best_by": "validation"})
    lines = [line.replace("┃", "│").split("│") for line in capsys.readouterr().out.splitlines()]
    cells = [[cell.strip() for cell in line[1:-1]] for line in lines if len(line) > 2]
    names = ["", "epoch", "mean of peers", "peer 0", "peer 1", "ensemble", "leader"]
    assert cells == [
        names,
        ["last", "9", "50.00", "40.00", "60.00", "61.00", "30.00"],
        ["best", "7", "70.00", "65.00", "75.00", "80.00", "20.00"],
    ]


def test_an_epoch_ends_with_its_accuracies_and_losses(capsys):
    row = {"epoch": 3, "step": 12, "train/loss": 1.25, "train/ce": 0.75, "train/accuracy": 0.125, "learning_rate": 0.05,
           "validation/accuracy": 0.25, "validation/accuracy_peer_0": 0.3, "test/accuracy": 0.5,
           "test/accuracy_peer_0": 0.4, "test/accuracy_ensemble": 0.6, "images_per_second": 1234.0,
           "seconds": 7.5}  # fmt: skip
    console.Display(total_steps=384, done_steps=0, images_per_step=32).epoch_done(row, 8)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "epoch 3/8  validation accuracy 25.00 %  test accuracy 50.00 %  peer_0 40.00 ensemble 60.00",
        "    train loss 1.250 ce 0.750 accuracy 12.50 %  learning rate 0.05  1,234 images/s  7.5 s",
    ]


def test_a_cell_ends_with_what_its_row_of_the_table_shows(tmp_path, monkeypatch, capsys):
    """Of the last epoch; of okddip that of the leader."""
    monkeypatch.setattr(launch.ran, "results_of", lambda cell: {"last": LAST, "best": BEST})
    for row, shown in (("okddip", "30.00"), ("dml", "50.00")):
        cell = cell_in(tmp_path)._replace(row=row)
        launch._ended(launch._Table(1, [], 0.0), Started(cell, time.monotonic(), 0), launch.Ended(0), stopping=False)
        assert f": {shown} % in 0 s" in capsys.readouterr().out
