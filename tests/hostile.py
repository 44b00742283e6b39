"""Runs in a folder and an environment that somebody has changed, and what may come of it.

A case is a line that a person can paste: where the run stands, who goes on with it, and what was changed.

  python -m tests.hostile 'half; root; dangle checkpoints/16; dangle checkpoints/24'

The run is a real one of six epochs. A case is applied to a copy of it, the same command is given in a process of its
own that is watched, and what comes out is compared with the run that nobody disturbed.
"""

import contextlib
import functools
import hashlib
import importlib
import json
import os
import re
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # as the command itself sets it
COMMAND = [
    "--config=configs/quickstart.py:digits,baseline",
    "--config.backbone.name=tests.tiny:Tiny",
    "--config.train_examples=64",
    "--config.test_examples=30",
    "--config.eval_batch_size=16",
    "--config.batch_size=16",
    "--config.epochs=6",
    "--config.optimizer.milestones=(4,)",
]
OTHER = 12345  # a user who is nobody else
SECONDS = 60.0  # that a start of this run may take, whose work is a fifth of it
AFTER = 2.0  # seconds that a process may live after its last line

BASES = ("new", "half", "stopped", "finished")
FILES = (
    "config.json", "environment.json", "results.json", "metrics.jsonl", "forced.json", "extended.json", "samples.png",
    "curves.png", ".lock", ".owner.json", "config.json.tmp", "environment.json.tmp", "results.json.tmp",
    "metrics.jsonl.tmp",
)  # fmt: skip
FOLDERS = (
    "checkpoints",
    "checkpoints-damaged",
    "tensorboard",
    "student",
    "checkpoints/24",
    "checkpoints/20",
    "checkpoints/16",
)
INSIDE = (
    "digests", "digests/metadata", "digests/commit_success.txt", "state", "state/d", "state/manifest.ocdbt",
    "state/_METADATA", "state/_sharding", "state/ocdbt.process_0", "state/ocdbt.process_0/d",
    "state/ocdbt.process_0/manifest.ocdbt", "state/array_metadatas/process_0", "_CHECKPOINT_METADATA",
    "commit_success.txt",
)  # fmt: skip
TARGETS = (*FILES, *FOLDERS, *(f"checkpoints/{step}/{name}" for step in (24, 20, 16) for name in INSIDE))
TEXTS = {
    "list": "[]", "null": "null", "open": "{", "deep": '{"a":' * 3000 + "1" + "}" * 3000, "nan": '{"epoch": NaN}',
    "long": '{"a": "' + "x" * 3_000_000 + '"}', "digits": '{"epoch": ' + "9" * 5000 + "}", "binary": "\x00\xff\x00",
    "newer": '{"format": 99, "last": 0, "best": 0, "epochs": "6", "versions": [], "earlier": 3, "changes": 4}',
    "latex": '{"device": "\\\\input{/etc/passwd} & %\\n|x", "epochs": 6}', "rows": '{"epoch": 1}\n{"epoch": 2}\n',
    "pid": '{"pid": 99999999999999999999, "host": 3, "since": []}',
}  # fmt: skip
VARIABLES = (
    "JAX_DEFAULT_PRNG_IMPL=rbg", "JAX_RANDOM_SEED_OFFSET=7", "JAX_THREEFRY_PARTITIONABLE=0", "JAX_PLATFORMS=cuda",
    "JAX_PLATFORMS=nothing", "JAX_NUMPY_RANK_PROMOTION=raise", "JAX_TRANSFER_GUARD=disallow", "JAX_ENABLE_X64=1",
    "JAX_DEFAULT_MATMUL_PRECISION=strange", "XLA_FLAGS=--xla_no_such_flag=1", "JAX_DEBUG_NANS=1",
    "JAX_ENABLE_CHECKS=1", "HOME=/dev/null/home", "TMPDIR=/dev/null/tmp", "LC_ALL=C", "PYTHONIOENCODING=ascii",
    "COLUMNS=1", "TERM=dumb", "JAX_COMPILATION_CACHE_DIR=/dev/null", "MPLCONFIGDIR=/dev/null", "PYTHONUTF8=0",
    "TZ=nowhere", "JAX_LOG_COMPILES=1", "PYTHONWARNINGS=error", "MPLBACKEND=nothing",
    "XLA_PYTHON_CLIENT_MEM_FRACTION=x",
)  # fmt: skip

OK, USAGE, CHECKPOINT, STOPPED, AT_ONCE = 0, 2, 4, 75, 130
# What a verb does to an entry -> the exit codes that it may lead to. 0 means: the same bits as undisturbed.
VERBS = {
    **dict.fromkeys(("remove", "empty", "cut", "flip", "text"), (OK, USAGE, CHECKPOINT)),
    **dict.fromkeys(
        ("link", "dangle", "circle", "pipe", "socket", "folder", "file", "device", "huge"), (OK, USAGE, CHECKPOINT)
    ),
    **dict.fromkeys(("mode", "owner"), (OK, USAGE, CHECKPOINT)),
    **dict.fromkeys(("hardlink", "old", "future"), (OK,)),
    **dict.fromkeys(("copy", "rename"), (OK, USAGE, CHECKPOINT)),
    "env": (OK, USAGE),
    "limit": (OK, USAGE, CHECKPOINT),
    "signal": (OK, STOPPED, AT_ONCE),
}
KINDS = ("link", "dangle", "circle", "pipe", "socket", "folder", "file", "device", "huge")


class Case(NamedTuple):
    """Where a run stands, who goes on with it, and what is changed before, or `at` so many seconds after the start."""

    base: str
    user: str
    changes: tuple[str, ...]

    def __str__(self):
        return "; ".join((self.base, self.user, *self.changes))

    @classmethod
    def of(cls, text):
        """Reads what `str` writes."""
        base, user, *changes = (part.strip() for part in text.split(";"))
        return cls(base, user, tuple(changes))


class Ended(NamedTuple):
    """How a process ended: its exit code, what it printed, and the seconds from its last line to its end."""

    code: int | None
    out: str
    err: str
    seconds: float
    after: float
    left: bool


def others_may_read():
    """Whether another user reaches this clone and the folder for temporary files; elsewhere root alone can be tried."""
    places = [ROOT, *ROOT.parents, *(Path(tempfile.gettempdir()).resolve() / "x").parents]
    files = (ROOT / "configs" / "quickstart.py", ROOT / "tests" / "tiny.py")
    return all(place.stat().st_mode & 1 for place in places) and all(file.stat().st_mode & 4 for file in files)


# The undisturbed run.


@functools.cache
def runs():
    """A folder with the run as it stands in each of BASES, made once a process."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    folder.chmod(0o755)
    command(folder / "finished")
    shutil.copytree(folder / "finished", folder / "half")
    (folder / "half" / "results.json").unlink()
    shutil.rmtree(folder / "half" / "checkpoints" / "24")
    shutil.copytree(folder / "half", folder / "stopped")
    (folder / "stopped" / "curves.png").unlink()
    rows = (folder / "stopped" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "stopped" / "metrics.jsonl").write_text("".join(rows[:5]))
    (folder / "new").mkdir()
    return folder


def command(workdir):
    """Gives the command in an ordinary process, as it is."""
    arguments = [sys.executable, "-m", "cutnmix_jax.main", *COMMAND, f"--workdir={workdir}"]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)


# Changes of a folder.


def apply(change, folder, outside, chance):
    """Changes an entry of a run's folder; what leads out of it leads to `outside`."""
    verb, name, *argument = change.split()
    path = folder / name
    if verb in KINDS:
        replace(verb, path, outside)
    elif not os.path.lexists(path):
        return
    elif verb == "remove":
        discard(path)
    elif verb in ("empty", "cut", "flip"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 30:
            content = bytearray(path.read_bytes())
            if verb == "flip" and content:
                content[chance % len(content)] ^= 1 << (chance % 8)
            path.write_bytes(content if verb == "flip" else content[: len(content) // 2 if verb == "cut" else 0])
    elif verb == "text":
        discard(path)
        path.write_text(TEXTS[argument[0]], encoding="latin-1")
    elif verb == "mode":
        if not path.is_symlink():
            path.chmod(int(argument[0], 8))
    elif verb == "owner":
        os.chown(path, OTHER + 1, OTHER + 1, follow_symlinks=False)
    elif verb in ("old", "future"):
        when = 1_000_000_000 if verb == "old" else 4_000_000_000
        os.utime(path, (when, when), follow_symlinks=False)
    elif verb == "hardlink":
        if path.is_file() and not path.is_symlink():
            copy = outside / f"copy-{len(list(outside.iterdir()))}"
            path.rename(copy)
            os.link(copy, path)
    elif verb in ("copy", "rename"):
        target = folder / argument[0]
        if os.path.lexists(target) or not target.parent.is_dir():
            return
        if verb == "rename":
            path.rename(target)
        elif path.is_dir() and not path.is_symlink():
            shutil.copytree(path, target, symlinks=True)
        elif path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 30:  # a disk has no room for it
            shutil.copy(path, target)


def replace(kind, path, outside):
    """Puts an entry of another kind under a name."""
    if not path.parent.is_dir() or path.parent.is_symlink():
        return
    was_folder = path.is_dir() and not path.is_symlink()
    moved = outside / f"moved-{len(list(outside.iterdir()))}"
    if os.path.lexists(path):
        path.rename(moved)
    if kind == "link":
        if not os.path.lexists(moved):
            moved.write_text("somebody's own\n")
        path.symlink_to(moved)
    elif kind == "dangle":
        path.symlink_to(outside / "nothing")
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
            short = Path(tempfile.mkdtemp(), "s")  # the name of a socket may have 107 characters
            listening.bind(str(short))
            short.rename(path)
            short.parent.rmdir()
    elif kind == "device":
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))  # zeros without end
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "folder" or (kind == "file" and was_folder):
        path.write_text("x") if kind == "file" else path.mkdir()
    else:
        path.write_text("x")


def discard(path):
    """Removes an entry of any kind."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


# What came of it.


def snapshot(folder):
    """Every entry of a folder: its kind, and for a file the SHA-256 of what it holds."""
    found = {}
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            what = path.lstat()
            told = f"{what.st_mode >> 12:o}"
            if path.is_symlink():
                told += f" {path.readlink()}"
            elif path.is_file() and what.st_size < 1 << 30:
                told += f" {hashlib.sha256(path.read_bytes()).hexdigest()}"
            found[str(path.relative_to(folder))] = told
    return found


def rows_of(folder):
    """The rows of a run without what differs from start to start; None where they are not to be read."""
    try:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]
    except (OSError, ValueError, AttributeError):
        return None


def came_to(folder):
    """What must be the same whenever a run has ended with 0: its results, its rows, its last state."""
    times = ("seconds", "wall_seconds")
    results = json.loads((folder / "results.json").read_text())
    told = json.loads((folder / "checkpoints" / "24" / "digests" / "metadata").read_text())
    arrays = {name: text for name, text in told["arrays"].items() if name not in times}
    return {k: v for k, v in results.items() if k not in times}, rows_of(folder), arrays


def came_from(folder):
    """The steps of the checkpoints in a run's folder."""
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


PASSING = re.compile(r"\.lock|\.owner\.json|.*\.tmp|.*orbax-checkpoint-tmp.*|tensorboard/events.*")
MADE_AGAIN = re.compile(r"environment\.json|(samples|curves)\.png")
LINE = re.compile(r"(warning|error): \S|stop(ped|ping)\b|nohup: ")


def complaints(case, folder, outside, before, ended, reference):
    """What is outside the model; empty where all is as promised."""
    found = []
    allowed = {OK}.union(*(VERBS[verb_of(change)] for change in case.changes))
    if len(case.changes) == 1 and harmless(case):
        allowed = {OK}
    lines = ended.err.splitlines()
    if ended.code is None:
        return [f"still running after {SECONDS:.0f} s"]
    sent = [change.split() for change in case.changes if verb_of(change) == "signal"]
    # Before Python has loaded anything a signal ends it as it always does.
    early = {-getattr(signal, f"SIG{name}") for _, name, seconds in sent if float(seconds) < 1}
    if ended.code not in allowed | early:
        found.append(f"exit code {ended.code}, not one of {sorted(allowed)}")
    if ended.after > AFTER and ended.code >= 0:  # what ends at once has no last line
        found.append(f"lived {ended.after:.1f} s after its last line")
    if ended.left:
        found.append("left a process behind")
    asked = "env JAX_LOG_COMPILES=1" in case.changes  # for lines of JAX's own
    if others := [line for line in lines if not (LINE.match(line) or asked and line.startswith("WARNING:jax."))]:
        found.append(f"a raw line: {others[0][:200]}")
    if "Traceback" in ended.out + ended.err:
        found.append("a traceback")
    one_line = sum(line.startswith("error: ") for line in lines) == 1
    if ended.code not in early and (ended.code in (USAGE, CHECKPOINT)) != one_line:  # it may come after the line
        found.append(f"not one line for exit code {ended.code}: {lines[:3]}")
    beside = snapshot(outside)
    if any(change.startswith("at ") for change in case.changes):  # which move entries there too
        moved = ("moved-", "copy-")
        beside = {name: told for name, told in beside.items() if name in before[1] or not name.startswith(moved)}
    if beside != before[1]:
        found.append("something outside the folder was changed")
    other_numbers = any(change.startswith("env ") for change in case.changes) and (
        case.base == "new" or "the bits need not be" in ended.err
    )
    if ended.code == OK and not other_numbers:
        try:
            for what, got, wanted in zip(("results", "rows", "state"), came_to(folder), reference, strict=True):
                if what == "results" and any("forced.json" in change for change in case.changes):
                    got.pop("forced", None)  # which tells of the file, whatever it holds
                if got != wanted:
                    found.append(f"exit code 0 with other {what}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            if "finished before" not in ended.out:  # and somebody has removed its weights
                found.append(f"exit code 0 without its files: {error!r}")
    for step in re.findall(r"the checkpoint of step (\d+) is damaged", ended.err):
        if not any(f"checkpoints/{step}" in change or " checkpoints" in change for change in case.changes):
            found.append(f"step {step} was whole, and is called damaged")
    meanwhile = tuple(change.split()[3] for change in case.changes if change.startswith("at "))
    worth = {name: told for name, told in before[0].items() if not name.startswith(meanwhile)}
    after = snapshot(folder)
    if after.get("config.json") == snapshot(runs() / "finished")["config.json"]:
        worth.pop("config.json", None)  # it says what the command says; what was in it instead was nobody's
    found += lost(worth, after, folder, reference)
    return found


def harmless(case):
    """Whether a single change may not keep a run from its end, with the bits that it would have had."""
    verb, name, *_ = case.changes[0].split()
    if verb in ("remove", "empty", "cut", "flip", "text"):
        inside = re.match(r"checkpoints/\d+/", name)  # there is an older one
        return bool(inside) or name in ("metrics.jsonl", "results.json", "environment.json", ".lock", ".owner.json")
    return case.base == "finished" and verb == "remove" and name == "checkpoints"


def lost(before, after, folder, reference):
    """Each file that was there and whose content is nowhere any more, and was worth something."""
    held = set(after.values())
    newest = max((int(name.split("/")[1]) for name in after if re.fullmatch(r"checkpoints/\d+", name)), default=0)
    found = []
    for name, told in before.items():
        if told in held or name in after and after[name].split()[0] != "10" and told.split()[0] != "10":
            continue
        if told.split()[0] != "10" or PASSING.fullmatch(name):
            continue
        if MADE_AGAIN.fullmatch(name) and name in after:
            continue
        step = re.match(r"checkpoints/(\d+)/", name)
        if step and int(step[1]) < newest and f"checkpoints/{step[1]}" not in after:
            continue  # an old one, for which a newer one is there
        if name == "metrics.jsonl" and (rows := rows_of(folder)) is not None and rows == reference[1][: len(rows)]:
            continue  # rows that are made again
        found.append(f"{name} is lost")
    return found


def verb_of(change):
    """The verb of a change, which may be one at a moment."""
    words = change.split()
    return words[2] if words[0] == "at" else words[0]


def judge(case, start, keep=None):
    """Applies a case to a copy of the run and gives the command.

    Args:
      case: what to change.
      start: gives the command, in a folder, as a user, with variables and limits, and with what is done meanwhile.
      keep: a folder in which all is left to be looked at.

    Returns:
      What is outside the model, and how the process ended.
    """
    with contextlib.ExitStack() as stack:
        place = Path(
            keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="hostile-", ignore_cleanup_errors=True))
        )
        place.chmod(0o755)
        folder, outside = place / "run", place / "outside"
        shutil.copytree(runs() / case.base, folder, symlinks=True)
        outside.mkdir()
        reference = came_to(runs() / "finished")
        owner = OTHER if case.user == "other" else os.getuid()
        for path in (folder, *folder.rglob("*")):
            os.chown(path, owner, owner, follow_symlinks=False)
        chance = int(hashlib.sha256(str(case).encode()).hexdigest(), 16)
        meanwhile, variables, limits = [], {}, {}
        for number, change in enumerate(case.changes):
            words = change.split()
            if words[0] == "env":
                name, _, value = words[1].partition("=")
                variables[name] = value
            elif words[0] == "limit":
                limits[words[1]] = int(words[2])
            elif words[0] in ("at", "signal"):
                meanwhile.append(change)
            else:
                apply(change, folder, outside, chance + number)
        if case.user == "other":
            for path in (folder, *folder.rglob("*")):
                if path.lstat().st_uid == 0:
                    os.chown(path, owner, owner, follow_symlinks=False)
        before = snapshot(folder), snapshot(outside)
        ended = start(folder, case.user, variables, limits, [(c, folder, outside, chance) for c in meanwhile])
        return complaints(case, folder, outside, before, ended, reference), ended


def during(pid, moments):
    """Does what is to be done while a process runs, each thing at its moment."""
    begun = time.monotonic()

    def do(change, folder, outside, chance):
        words = change.split()
        seconds = float(words[2] if words[0] == "signal" else words[1])
        time.sleep(max(0.0, begun + seconds - time.monotonic()))
        with contextlib.suppress(OSError, shutil.Error):
            if words[0] == "signal":
                os.kill(pid, getattr(signal, f"SIG{words[1]}"))
            else:
                apply(" ".join(words[2:]), folder, outside, chance)

    for moment in moments:
        threading.Thread(target=do, args=moment, daemon=True).start()


class Server:
    """A process that has everything imported and forks a start for each case: a second instead of eight.

    Settings that are read while JAX is imported need an ordinary process.
    """

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile", "--serve"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout.readline() == "ready\n"

    def start(self, folder, user, variables, limits, moments):
        """Gives the command in a folder, watched."""
        if variables:
            return self._apart(folder, variables, limits, moments)
        texts = _texts(folder)
        self._process.stdin.write(json.dumps([str(folder), user, limits, *map(str, texts)]) + "\n")
        self._process.stdin.flush()
        pid, started = int(self._process.stdout.readline()), time.time()
        during(pid, moments)
        timer = threading.Timer(SECONDS, lambda: os.killpg(pid, signal.SIGKILL))
        timer.start()
        code, ended = json.loads(self._process.stdout.readline())
        timer.cancel()
        if ended - started >= SECONDS:
            code = None
        left = _kill_group(pid)
        last = max(started, *(text.stat().st_mtime for text in texts))
        out, err = (text.read_text(errors="replace") for text in texts)
        return Ended(code, out, err, ended - started, ended - last, left and code is not None)

    def _apart(self, folder, variables, limits, moments):
        texts = _texts(folder)
        with texts[0].open("w") as out, texts[1].open("w") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "cutnmix_jax.main", *COMMAND, f"--workdir={folder}"],
                cwd=ROOT, env=os.environ | variables, stdout=out, stderr=err, start_new_session=True,
                preexec_fn=lambda: limit(limits),
            )  # fmt: skip
        started = time.time()
        during(process.pid, moments)
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        ended = time.time()
        left = _kill_group(process.pid)
        process.wait()
        last = max(started, *(text.stat().st_mtime for text in texts))
        said = (text.read_text(errors="replace") for text in texts)
        return Ended(code, *said, ended - started, ended - last, left and code is not None)

    def close(self):
        """Ends it."""
        self._process.stdin.close()
        self._process.wait()


def _texts(folder):
    """Files for what a start in a folder prints, made before it."""
    texts = [folder.parent / "out", folder.parent / "err"]
    for text in texts:
        text.touch()
    return texts


def _kill_group(pid):
    """Whether anything of a session is still there two seconds after its end: what it had just asked git may be."""
    deadline = time.monotonic() + AFTER
    try:
        while time.monotonic() < deadline:
            os.killpg(pid, 0)
            time.sleep(0.05)
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def limit(limits):
    """Sets limits of this process, as `ulimit` does."""
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name.upper()}"), (value, value))


def serve():
    """Imports what a run imports, then forks a start for each line."""
    with tempfile.TemporaryDirectory() as place:
        names = Path(place, "names")
        code = f"import sys; from cutnmix_jax import main; main.main({[*COMMAND, f'--workdir={place}/run']!r})\n"
        code += f"open({str(names)!r}, 'w').write(chr(10).join(sorted(sys.modules)))"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
        for name in (*names.read_text().split(), "grp"):  # etils wants it of a file that it may not read
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        folder, user, limits, out, err = json.loads(line)
        pid = os.fork()
        if not pid:
            _begin(folder, user, limits, out, err)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), time.time()]), flush=True)


def _begin(folder, user, limits, out, err):
    os.setsid()
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.closerange(3, 64)
    if user == "other":
        os.environ["HOME"] = "/nowhere"
        os.setgroups([])
        os.setgid(OTHER)
        os.setuid(OTHER)
    limit(limits)
    del sys.modules["cutnmix_jax.main"]
    sys.argv = ["main", *COMMAND, f"--workdir={folder}"]
    code = 1
    try:
        runpy.run_module("cutnmix_jax.main", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(arguments):
    """Judges the cases that are named, and says where what is left of them lies."""
    if arguments == ["--serve"]:
        serve()
        return 0
    server, wrong = Server(), 0
    for text in arguments:
        place = Path(tempfile.mkdtemp(prefix="hostile-case-"))
        found, ended = judge(Case.of(text), server.start, place)
        wrong += bool(found)
        print(f"{text}\n  in {place}: exit code {ended.code}, {ended.seconds:.1f} s")
        print("".join(f"  stderr: {line}\n" for line in ended.err.splitlines()[:12]), end="")
        print("".join(f"  WRONG: {complaint}\n" for complaint in found) or "  as promised\n", end="")
    server.close()
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
