"""What decides about the last bits besides the configuration is recorded, compared and told; and nothing else is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from cutnmix_jax import data, environment, main
from tests.test_run import ROOT, TINY, copy_of, files_in, start

LEAST = jax.config.values["jax_disable_most_optimizations"]  # how the tests compile
TOLD = "from step 12 on the bits need not be those of a run that nobody disturbed"
# Forks for each case a process that has JAX and no device yet, binds it or not, and counts what it has then.
THREADS = """
import json, os, sys, jax
from pathlib import Path
from cutnmix_jax import environment

def counted(variables, bound):
    os.environ.update(variables)
    if bound:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    jax.numpy.ones(3).sum().block_until_ready()
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    print(environment.cores(), names.count("tf_XLAEigen"), flush=True)
    os._exit(0)

for case in json.loads(sys.argv[1]):
    if not os.fork():
        counted(*case)
    assert os.wait()[1] == 0
"""
CASES = [
    ({}, False),
    ({}, True),
    ({"PYTHON_CPU_COUNT": "1"}, False),
    ({"NPROC": "3"}, False),
    ({"NPROC": "3"}, True),
    ({"PJRT_NPROC": "4", "NPROC": "3"}, False),
    ({"NPROC": "0"}, False),
    ({"NPROC": "-2"}, False),
    ({"NPROC": "many"}, False),
    ({"NPROC": ""}, True),
]


# A Python that is bound to one core, as `taskset` binds it, and then is another one.
ON_ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
BOUND = [sys.executable, "-c", ON_ONE_CORE]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts the threads as Linux shows them")
def test_cores_are_the_threads_that_xla_has():
    command = [sys.executable, "-c", THREADS, json.dumps(CASES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(found) == len(CASES)
    for case, (told, counted) in zip(CASES, found, strict=True):
        assert told == counted > 0, case


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    done = start(TINY, workdir)
    _, err = done.communicate(timeout=300)
    assert (done.returncode, err) == (0, "")
    return workdir


def goes_on(workdir, python=(sys.executable,), **how):
    """Goes on with a run that lacks nothing but its results; returns what it was warned of."""
    (workdir / "results.json").unlink(missing_ok=True)
    done = subprocess.run(
        [*python, "-m", "cutnmix_jax.main", *TINY, f"--workdir={workdir}"],
        capture_output=True, text=True, check=True, **how,
    )  # fmt: skip
    assert "continued from step 12" in done.stdout
    return done.stderr.splitlines()


@pytest.mark.skipif(
    environment.cores() == 1 or not hasattr(os, "sched_setaffinity"), reason="wants cores to choose from"
)
def test_fewer_cores_are_told_once(finished, tmp_path):
    workdir = copy_of(finished, tmp_path)
    before = json.loads((workdir / "environment.json").read_text())
    many = len(os.sched_getaffinity(0))
    [warning] = goes_on(workdir, BOUND, cwd=ROOT)
    assert warning == f"warning: {TOLD} (environment.cores: {many} -> 1)"
    now = json.loads((workdir / "environment.json").read_text())
    assert now["cores"] == 1 and now["earlier"] == [before | {"until_step": 12}]
    assert goes_on(workdir, BOUND, cwd=ROOT) == []
    assert json.loads((workdir / "environment.json").read_text())["earlier"] == now["earlier"]


def test_what_changes_no_bit_is_not_told(finished, tmp_path):
    """The same command from another folder, with another cache, other logs and other checks."""
    workdir = copy_of(finished, tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "elsewhere" / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    variables = {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "7",
        "JAX_LOGGING_LEVEL": "ERROR",
        "JAX_TRACEBACK_FILTERING": "off",
        "JAX_CHECK_TRACER_LEAKS": "0",
        "JAX_DEBUG_NANS": "1",
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHON_CPU_COUNT": "1",
        "XLA_FLAGS": f"--xla_dump_to={tmp_path / 'dump'} --xla_dump_hlo_as_text",
    }
    assert goes_on(workdir, cwd=tmp_path / "elsewhere", env=os.environ | variables) == []
    now = json.loads((workdir / "environment.json").read_text())
    assert "earlier" not in now
    assert variables["XLA_FLAGS"] == now["environment"]["XLA_FLAGS"]  # recorded all the same


@pytest.mark.parametrize(
    ("variable", "told"),
    [
        (
            f"JAX_DISABLE_MOST_OPTIMIZATIONS={int(not LEAST)}",
            f"environment.settings.jax_disable_most_optimizations: {LEAST} -> {not LEAST}",
        ),
        ("XLA_FLAGS=--xla_cpu_enable_fast_math=true", "environment.flags: [] -> ['--xla_cpu_enable_fast_math=true']"),
    ],
)
def test_variables_that_decide_are_told(variable, told, finished, tmp_path):
    workdir = copy_of(finished, tmp_path)
    name, _, value = variable.partition("=")
    [warning] = goes_on(workdir, cwd=ROOT, env=os.environ | {name: value})
    assert warning == f"warning: {TOLD} ({told})"


@pytest.mark.slow  # `test_hostile` tries them too
@pytest.mark.parametrize(
    "variable", ["JAX_DEFAULT_PRNG_IMPL=rbg", "JAX_RANDOM_SEED_OFFSET=7", "JAX_THREEFRY_PARTITIONABLE=0"]
)
def test_a_run_goes_on_with_its_own_random_numbers_only(variable, finished, tmp_path):
    """Others would be another run's crops, boxes and order, and not other last bits alone."""
    workdir = copy_of(finished, tmp_path)
    name, _, value = variable.partition("=")
    before = files_in(workdir)
    done = subprocess.run(
        [sys.executable, "-m", "cutnmix_jax.main", *TINY, f"--workdir={workdir}"],
        cwd=ROOT, env=os.environ | {name: value}, capture_output=True, text=True,
    )  # fmt: skip
    [error] = done.stderr.splitlines()
    assert done.returncode == 2 and f"the run in {workdir} was begun with other random numbers" in error
    assert name in error and files_in(workdir) == before
    assert goes_on(workdir, cwd=ROOT) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_threefry_partitionable", False),
        ("jax_random_seed_offset", 7),
        ("jax_disable_jit", True),
        ("jax_disable_most_optimizations", not LEAST),
        ("jax_numpy_dtype_promotion", "strict"),
        ("jax_default_matmul_precision", "bfloat16"),
        ("jax_enable_x64", True),
        ("jax_explicit_x64_dtypes", "error"),
    ],
)
def test_settings_are_those_that_jax_really_holds(name, value):
    """Set in the code that uses the program, where no variable tells of it."""
    dataset = data.load("digits", "", 64, 30)
    before, was = environment.deciding(environment.of_run(dataset)), jax.config.values[name]
    jax.config.update(name, value)
    try:
        now = environment.deciding(environment.of_run(dataset))
    finally:
        jax.config.update(name, was)
    assert {key for key in now["settings"] if now["settings"][key] != before["settings"][key]} == {name}
    assert json.loads(json.dumps(now)) == now
    assert environment.deciding(environment.of_run(dataset)) == before


def test_every_setting_that_is_left_out_says_where_or_what_is_shown_or_checked():
    """A new JAX may have a setting whose name looks harmless; it is to be looked at by a person."""
    told = environment.of_run(data.load("digits", "", 64, 30))["settings"]
    left_out = {name for name in jax.config.values if name not in told}
    decide = ("prng", "random", "threefry", "x64", "matmul", "promotion", "optimization", "disable_jit", "fast")
    assert {name for name in left_out if any(word in name for word in decide)} == {
        "jax_numpy_rank_promotion",  # may forbid; changes no number
        "jax_legacy_prng_key",  # likewise, of keys that are not used here
    }


def test_a_gpu_s_bits_do_not_come_from_the_cpu():
    made = environment.of_run(data.load("digits", "", 64, 30))
    assert {"cores", "cpu", "libc"} <= set(environment.deciding(made))
    on_gpu = environment.deciding(made | {"backend": "gpu"})
    assert not {"cores", "cpu", "libc"} & set(on_gpu)
    assert {"versions", "source", "device", "device_count", "runtime", "settings", "flags"} <= set(on_gpu)


def test_what_only_reads_and_writes_decides_nothing():
    made = environment.of_run(data.load("digits", "", 64, 30))
    assert set(environment.deciding(made)["versions"]) == {"cutnmix-jax", "jax", "jaxlib", "flax", "optax", "numpy"}
    others = {"command": ["x"], "platform": "x", "commit": "x", "local_changes": ["x"], "environment": {"JAX_X": "1"}}
    assert environment.deciding(made | others) == environment.deciding(made)
    versions = made["versions"] | {"python": "3.99", "orbax-checkpoint": "0", "nvidia-cudnn-cu12": "9"}
    changed = environment.deciding(made | {"versions": versions})["versions"]
    assert changed == environment.deciding(made)["versions"] | {"nvidia-cudnn-cu12": "9"}


SOURCE = """
import json, jax
from cutnmix_jax import environment, data
from cutnmix_jax.backbones import load
load("nets:Tiny", 4)
made = environment.of_run(data.load("digits", "", 64, 30), ["nets:Tiny"])
print(json.dumps([made["source"], made["commit"], made["local_changes"], environment.deciding(made)["source"]]))
"""


@pytest.mark.slow
def test_a_checkout_with_local_changes(tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "cutnmix_jax", clone / "cutnmix_jax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests" / "tiny.py", clone / "nets.py")
    (clone / "README.md").write_text("read me\n")

    def git(*command):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *command], cwd=clone, check=True, capture_output=True)

    def told():
        done = subprocess.run(
            [sys.executable, "-c", SOURCE], cwd=clone, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        source, commit, changes, decides = json.loads(done.stdout)
        assert source == decides and set(source) == {"cutnmix_jax", "nets"}
        return source, commit, changes

    installed, commit, changes = told()
    assert (commit, changes) == ("", [])
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "one")
    clean, commit, changes = told()
    assert clean == installed and len(commit) == 40 and changes == []
    (clone / "README.md").write_text("read me again\n")
    git("commit", "-qam", "two")
    source, later, changes = told()
    assert source == clean and later != commit and changes == []  # another commit, the same program
    with (clone / "cutnmix_jax" / "losses.py").open("a") as file:
        file.write("# a change\n")
    (clone / "cutnmix_jax" / "methods" / "mine.py").write_text("# a new file\n")
    source, _, changes = told()
    assert source["cutnmix_jax"] != clean["cutnmix_jax"] and source["nets"] == clean["nets"]
    assert changes == [" M cutnmix_jax/losses.py", "?? cutnmix_jax/methods/mine.py"]
    git("checkout", "-q", "cutnmix_jax")
    git("clean", "-qfd")
    assert told()[0] == clean
    with (clone / "nets.py").open("a") as file:
        file.write("# a change\n")
    assert told()[0] == clean | {"nets": told()[0]["nets"]} != clean


def test_a_file_of_flags(tmp_path, monkeypatch):
    (tmp_path / "flags").write_text("--xla_cpu_enable_fast_math=true\n--xla_dump_to=/tmp/x\n")
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags"))
    assert environment._flags() == ["--xla_cpu_enable_fast_math=true"]
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "none"))
    assert environment._flags() == [str(tmp_path / "none")]


def test_in_one_process_too(finished, tmp_path, capsys, monkeypatch):
    """A change of two things is one line, and the versions, which drag others along, stand first."""
    workdir = copy_of(finished, tmp_path)
    versions = environment.versions()
    monkeypatch.setattr(environment, "versions", lambda: versions | {"jaxlib": "9.9"})
    monkeypatch.setattr(environment, "cores", lambda: 5)
    assert main.main([*TINY, f"--workdir={workdir}"]) == 0
    [warning] = capsys.readouterr().err.splitlines()
    assert warning == f"warning: {TOLD} (environment.versions.jaxlib: {versions['jaxlib']!r} -> '9.9' and 1 more)"
