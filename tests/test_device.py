"""Compiled programs that are kept from start to start, and devices that are not used."""

import os
import subprocess
import sys

import jax
import pytest

from cutnmix_jax import summary
from cutnmix_jax.settings import command_line, recipe, unused
from tests.runs import Made
from tests.test_run import ONE_STEP, ROOT, TINY

CODE = """
import jax, jax.numpy as jnp
from cutnmix_jax import console, device
from cutnmix_jax.precision import CHOICES
exact = CHOICES["float32"]
with device.set_up_jax(exact): print(float(jax.jit(lambda x: jnp.sin(x @ x).sum())(jnp.arange(9.0).reshape(3, 3))))
"""


def start(folder):
    settings = {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | settings)
    return done.stdout, done.stderr


@pytest.mark.parametrize("damage", ["emptied", "half", "a byte less", "a flipped bit"])
def test_a_damaged_program_is_removed_and_kept_again(damage, tmp_path):
    """A kill while it is written leaves it cut; JAX itself would complain of it at every start."""
    said, errors = start(tmp_path)
    programs = {path: path.read_bytes() for path in tmp_path.glob("*-cache")}
    assert programs and not errors
    for path, content in programs.items():
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 8
        path.write_bytes(
            {"emptied": b"", "half": content[: len(content) // 2], "a byte less": content[:-1]}.get(damage, flipped)
        )
    again, errors = start(tmp_path)
    assert again == said
    names = sorted(path.name.rpartition("-")[0].rpartition("-")[0] for path in programs)
    assert sorted(errors.splitlines()) == [
        f"warning: trouble with reading the compiled program {name} in {tmp_path}; it is compiled again"
        for name in names
    ]
    assert {path: path.read_bytes() for path in tmp_path.glob("*-cache")}.keys() == programs.keys()
    assert start(tmp_path) == (said, "")


def test_what_cannot_be_read_or_removed_ends_nothing(tmp_path):
    said, _ = start(tmp_path)
    for path in tmp_path.glob("*-cache"):
        path.unlink()
        path.mkdir()  # not even by root
    again, errors = start(tmp_path)
    assert again == said and errors.count("\n") == errors.count("warning: trouble with ") > 0


def test_what_autotuning_finds_is_kept_with_the_programs():
    """On a GPU, and by JAX itself; this fails with a JAX that has to be asked for it."""
    assert "xla_gpu_per_fusion_autotune_cache_dir" in jax.config.values["jax_persistent_cache_enable_xla_caches"]


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, "1 step per call"),
        pytest.param(
            4, "1 step per call; 3 further devices stay idle (config.devices=0 trains on all)", marks=pytest.mark.slow
        ),
    ],
)
def test_devices_that_stay_idle_are_told(count, said, tmp_path):
    command = [sys.executable, "-m", "cutnmix_jax.main", f"{TINY[0]}:digits,baseline", *TINY[1:], *ONE_STEP]
    command += ["--config.optimizer.milestones=()", f"--workdir={tmp_path / 'run'}"]
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | flags, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"device    cpu, float32, {said}\n" in done.stdout


@pytest.mark.parametrize(
    ("row", "said"),
    [("cs_kd", "kd: its own logits of another image of the class"), ("dml", "dml: the other peers' logits")],
)
def test_the_terms_are_those_of_the_method(row, said, capsys):
    engine = Made(row).engine
    summary.show(engine, "somewhere")
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("schedule", "warns"), [("stepwise", True), ("cosine", False)])
def test_a_rate_that_never_decays_is_told(schedule, warns, capsys):
    rate = [f"--config.optimizer.schedule={schedule}", "--config.optimizer.milestones=(20,)"]
    engine = Made("dml", *rate).engine
    summary.show(engine, "somewhere")
    assert ("the learning rate never decays" in capsys.readouterr().err) == warns


@pytest.mark.parametrize(
    ("row", "fields", "warns"),
    [
        ("okddip", ("ramp_up.epochs=10",), True),
        ("okddip", ("ramp_up.epochs=9",), False),
        ("okddip", ("ramp_up.epochs=10", "weights.kd=0"), False),
        ("dml", (), False),
    ],
)
def test_a_weight_that_never_has_its_full_size_is_told(row, fields, warns, capsys):
    engine = Made(row, *(f"--config.{field}" for field in fields)).engine
    summary.show(engine, "somewhere")
    warned = " ".join(capsys.readouterr().err.split())
    assert ("weight of kd never has its full size: it rises for config.ramp_up.epochs=10, of 10" in warned) == warns


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ((), ""),
        (("name=adamw", "momentum=0.5"), "config.optimizer.momentum: adamw with a stepwise schedule does not look"),
        (("name=adamw", "momentum=0.9"), ""),  # as it is by default
        (("schedule=cosine", "decay=0.5", "trust=0.1"), "config.optimizer.decay, config.optimizer.trust: sgd with a"),
        (("name=lars", "momentum=0.5", "trust=0.1"), ""),
    ],
)
def test_a_field_of_the_optimizer_that_nothing_looks_at_is_told(fields, said, capsys):
    assert said in (warned := warned_of("dml", [f"optimizer.{field}" for field in fields], capsys))
    assert bool(warned) == bool(said)


@pytest.mark.parametrize(
    ("row", "fields", "said"),
    [
        ("dml", ("mix.prob=0.3", "mix.alpha=7", "mix.box=own"), "mix.prob, config.mix.alpha, config.mix.box: a run wi"),
        ("cutmix", ("mix.box=wrap", "mix.prob=0.3"), "config.mix.box: a run with mix.kind=cutmix does not look at"),
        ("cutnmix", ("mix.box=wrap", "mix.prob=0.3", "mix.alpha=7"), ""),
        ("dml", ("ramp_up.epochs=3",), "config.ramp_up.epochs: a run in which no weight rises does not look at that"),
        ("dml", ("ramp_up.epochs=3", "ramp_up.terms=('dml',)"), ""),
        ("okddip", ("ramp_up.terms=()",), ""),  # which is what keeps its weight from rising
        ("okddip", ("weights.kd=0", "ramp_up.epochs=7"), "config.ramp_up.epochs: a run in which no weight rises"),
        (
            "dml",
            ("peers=resnet8,resnet8", "backbone.name=tests.tiny:Tiny"),
            "config.backbone.name: a run with peers of",
        ),
        ("dml", ("peers=resnet8,resnet8", "backbone.name=vgg16"), ""),  # as a configuration has it
        (
            "dml",
            ("peers=resnet8,tests.tiny:Tiny", "backbone.name=resnet8", "num_peers=5"),
            "num_peers=5: config.peers names 2 networks, and th",
        ),
        ("dml", ("peers=resnet8,tests.tiny:Tiny,resnet8", "backbone.name=resnet8"), ""),
        (
            "dml",
            ("mix.kind=cutmix",),
            "are those of the row dml_cutmix; the run is filed as dml",
        ),
        (
            "cutnmix",
            ("weights.mmd=0.0", "loss.temperature=2.0"),
            "the row cutnmix_pt; the run is filed as cutnmix",
        ),
    ],
)
def test_a_field_that_nothing_looks_at_is_told(row, fields, said, capsys):
    assert said in (warned := warned_of(row, fields, capsys))
    assert warned.count("warning") == bool(said)


def test_what_a_recipe_has_is_set_by_nobody():
    """The milestones of the quickstart, with another schedule, were told as if somebody had set them."""
    for name in recipe.names():
        settings = command_line.from_flags(f"{name}:digits,dml", ["--config.optimizer.schedule=cosine"])
        assert unused.set_in_vain(settings) == {}
    settings = command_line.from_flags(
        "quickstart:digits,dml", ["--config.optimizer.schedule=cosine", "--config.optimizer.milestones=(3,)"]
    )
    assert unused.set_in_vain(settings) == {"sgd with a cosine schedule": ["optimizer.milestones"]}


def warned_of(row, fields, capsys):
    """What the summary warns of."""
    more = ["--config.optimizer.milestones=(150,180,210)", "--config.epochs=300"]
    engine = Made(row, *more, *(f"--config.{field}" for field in fields)).engine
    summary.show(engine, "somewhere")
    return " ".join(capsys.readouterr().err.split())
