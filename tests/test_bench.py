"""What the benchmark counts and prints, and that it runs."""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import backbones, methods
from cutnmix_jax.benchmark import __main__ as command
from cutnmix_jax.benchmark import flops, jax_side, kernels, reference, report, run, starts, suites, target, worker
from cutnmix_jax.errors import UsageError
from cutnmix_jax.settings import Jitter, recipe
from tests.runs import Made

ROOT = Path(__file__).parent.parent
QUICK = ["--backbone=tests.tiny:Tiny", "--windows=2", "--steps=2", "--images=200", "--classes=5"]


def bench(*arguments):
    command = [sys.executable, "-m", "cutnmix_jax.benchmark", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def test_flops_of_products_and_convolutions():
    def product(a, b):
        return jax.jit(lambda a, b: jnp.einsum("bij,bjk->bik", a, b))(a, b)

    assert flops.count(jax.make_jaxpr(product)(jnp.ones((2, 3, 4)), jnp.ones((2, 4, 5)))) == 2 * 2 * 3 * 4 * 5

    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x, w = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 7))
    forward = 2 * 2 * 4 * 4 * 9 * 3 * 7
    assert flops.count(jax.make_jaxpr(conv)(x, w)) == forward
    # The gradient of the kernel does the forward's work again; that of the image, but for its border, too.
    kernel = flops.count(jax.make_jaxpr(jax.grad(lambda w: conv(x, w).sum()))(w))
    assert kernel == 2 * forward
    image = flops.count(jax.make_jaxpr(jax.grad(lambda x: conv(x, w).sum()))(x))
    assert image == pytest.approx(2 * forward, rel=0.2)


def test_flops_of_a_loop_are_those_of_one_turn():
    def loop(a, n):
        return jax.lax.fori_loop(0, n, lambda _, b: b @ a, a)

    assert flops.count(jax.make_jaxpr(loop)(jnp.ones((4, 4)), 7)) == 2 * 4**3


def test_flops_of_several_devices_are_those_of_all():
    """What one device does was counted once, and each branch of them as if all took it."""
    auto = (jax.sharding.AxisType.Auto,) * 2  # not what JAX 0.12 makes of it
    mesh = jax.sharding.AbstractMesh((3, 2), ("peers", "data"), axis_types=auto)
    spec, ones = jax.sharding.PartitionSpec, jnp.ones((3, 4, 4))

    def traced(function, axes, of):
        spread = jax.shard_map(
            function, mesh=mesh, in_specs=spec(of), out_specs=spec(of), axis_names=axes, check_vma=False
        )
        return jax.make_jaxpr(spread)(ones)

    once = 2 * 4**3  # of one product
    assert flops.count(traced(lambda x: x @ x, {"peers"}, "peers")) == 3 * once
    every = lambda x: x[0] @ x[0]  # noqa: E731 - each of all six has all, and takes the first
    assert flops.count(traced(lambda x: x + every(x), {"peers", "data"}, None)) == 6 * once

    def either(x):
        return jax.lax.switch(jax.lax.axis_index("peers"), [lambda x: x @ x, lambda x: x, lambda x: x @ (x @ x)], x)

    assert flops.count(traced(either, {"peers"}, "peers")) == (1 + 0 + 2) * once


def test_the_peak_is_of_each_device():
    spec = run.spec_of({"backbone": "resnet8"})
    of_one, of_four = (
        run.completed({"gflop_per_step": 40.0, "devices": count}, [0.5], 10, spec, 2.0) for count in (1, 4)
    )
    assert of_one["tflops"] == of_four["tflops"] == pytest.approx(0.8)  # 40 GFLOP in 50 ms
    assert (of_one["percent_of_peak"], of_four["percent_of_peak"]) == (pytest.approx(40), pytest.approx(10))


def test_what_takes_one_device_is_not_compared_with_several(monkeypatch):
    devices = "--config.devices=2"
    monkeypatch.setattr(sys, "argv", ["scripts/bench", "--bare", devices])
    with pytest.raises(UsageError, match="--bare and config.devices=2: leave one of them out"):
        command.main()
    with pytest.raises(UsageError, match="config.devices=2: the PyTorch program takes one device"):
        run.torch_spec(run.spec_of({"backbone": "resnet32", "devices": 2}), "A")


def test_flops_of_a_network_are_its_multiply_adds():
    network = backbones.load("resnet32", 100)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    traced = jax.make_jaxpr(lambda v, x: network.apply(v, x, True)[0])(shapes, jnp.zeros((1, 32, 32, 3)))
    assert flops.count(traced) == pytest.approx(2 * 69.13e6, rel=1e-3)


def test_kernels_are_counted_in_the_loop():
    hlo = """HloModule m

body.1 (p: f32[4]) -> f32[4] {
  a.1 = f32[4]{0} fusion(p), kind=kLoop, calls=c
  b.1 = (f32[4]{0}, u8[9]{0}) custom-call(a.1), custom_call_target="__cudnn$convForward"
  d.1 = (f32[4]{0}, s8[9]{0}) custom-call(a.1), custom_call_target="__cublas$lt$matmul", metadata={op_name="a/Conv_1"}
  e.1 = f32[4]{0} custom-call(a.1), custom_call_target="__cublas$gemm", metadata={op_name="transpose(jvp)/Conv_1/dot"}
  t.1 = f32[4]{0} get-tuple-element(b.1), index=0
}

ENTRY main (p: f32[4]) -> f32[4] {
  f.1 = f32[4]{0} fusion(p), kind=kLoop, calls=c
  w.1 = f32[4]{0} while(f.1), condition=cond.1, body=body.1
}
"""
    found = kernels.counts(hlo)
    assert found.pop("convolution") == 2 and found.pop("convolution, gradient") == 1
    assert found.pop("batch, keys, rest") == 1 and not any(found.values())
    assert set(kernels.counts(hlo.replace("body=body.1", ""))) == set(kernels.KINDS)
    assert sum(kernels.counts(hlo.replace("body=body.1", "")).values()) == 2  # of `main`: its fusion and its `while`


def test_what_travels_is_counted_in_the_loop():
    hlo = """
body.1 (p: (f32[4])) -> (f32[4]) {
  %gathered = (f32[2,8,16]{2,0,1}, pred[64,2]{1,0}) all-gather(%a, %b), replica_groups=[1,8]<=[8]
  %one = (f32[100]{0}, f32[100]{0}) all-reduce-start(%c), channel_id=1
  %one.done = f32[100]{0} all-reduce-done(%one)
  %two = bf16[10,10]{1,0} all-reduce(%d), channel_id=2
  ROOT %sent = (f32[3]{0}, f32[3]{0}, u32[], u32[]) collective-permute-start(%e), channel_id=3
}
ENTRY %main (p: f32[4]) -> f32[4] {
  %outside = f32[9]{0} all-reduce(%p), channel_id=4
  ROOT %loop = (f32[4]) while(%p), condition=cond.1, body=body.1
}"""
    assert kernels.collectives(hlo) == {
        "all-gather": {"times": 1, "bytes": 2 * 8 * 16 * 4 + 64 * 2},
        "all-reduce": {"times": 2, "bytes": 100 * 4 + 100 * 2},
        "collective-permute": {"times": 1, "bytes": 3 * 4},
    }
    assert kernels.collectives(hlo.replace("%", "")) == kernels.collectives(hlo)  # as other versions of XLA write it


@pytest.mark.parametrize(
    "which", ["branch_computations={%short.1, %long.1}", "true_computation=%short.1, false_computation=%long.1"]
)
def test_of_branches_the_largest_is_counted(which):
    """Of which a device takes one, and there are others within it; of what travels it is where most does."""
    hlo = """
%inner.1 (p: f32[4]) -> f32[4] {
  ROOT %a.1 = f32[7]{0} all-reduce(%p), channel_id=1
}
%short.1 (p: f32[4]) -> f32[4] {
  ROOT %b.1 = f32[100]{0} all-reduce(%p), channel_id=2
}
%long.1 (p: f32[4]) -> f32[4] {
  %c.1 = f32[5]{0} all-reduce(%p), channel_id=3
  ROOT %d.1 = f32[4]{0} conditional(%i, %p, %p), branch_computations={%inner.1, %inner.1}
}
ENTRY %main (p: f32[4]) -> f32[4] {
  ROOT %e.1 = f32[4]{0} conditional(%i, %p, %p), WHICH, metadata={op_name="a"}
}""".replace("WHICH", which)
    assert kernels.collectives(hlo) == {"all-reduce": {"times": 1, "bytes": 100 * 4}}
    within = hlo.replace("f32[100]", "f32[11]")
    assert kernels.collectives(within) == {"all-reduce": {"times": 2, "bytes": (5 + 7) * 4}}
    assert kernels.counts(hlo)["batch, keys, rest"] == 2


def test_what_there_is_no_description_of_is_refused(tmp_path):
    (tmp_path / "no card").write_text("what is this")
    for name, says in (("h10", "give one of h100"), ("/dev/zero", "give one of h100")):
        with pytest.raises(UsageError, match=says):
            target.described(name)
    assert target.described(str(tmp_path / "no card")) == "what is this"


CUDA_PYTHON = Path(os.environ.get("CUDA_PYTHON") or ROOT / ".venv-cuda" / "bin" / "python")


@pytest.mark.skipif(
    not CUDA_PYTHON.exists(), reason="no CUDA build of JAX: `scripts/bench --target=h100` makes .venv-cuda"
)
def test_a_step_launches_no_more_kernels_on_a_gpu_than_it_did():
    """Counted, and no card is there: 232 and 173 with JAX 0.12.0.1, some three more with others."""
    command = [sys.executable, "-m", "cutnmix_jax.benchmark", "--target=h100", "--backbone=resnet8"]
    for mapping, most in (("unroll", 235), ("vmap", 176)):
        fields = f"--config.mapping={mapping}"
        variables = os.environ | {"CUDA_PYTHON": str(CUDA_PYTHON)}
        done = subprocess.run([*command, fields], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])["found"]["resnet8"]
        assert found["kernels_per_step"] <= most, found


def test_a_single_network_has_the_terms_that_it_has():
    """Whatever the row is called."""
    for row, lacking in {"cutnmix_pt": ["dml", "mmd"], "cutmix": [], "kd": []}.items():
        given = run.spec_of({"backbone": "resnet8", "method": row, "num_peers": 1})["overrides"]
        assert given[2:] == [f"--config.weights.{name}=0" for name in lacking]
    assert len(run.spec_of({"backbone": "resnet8", "num_peers": 2})["overrides"]) == 2


@pytest.mark.parametrize("row", ["one", "pcl", "dml"])
def test_the_bare_one_has_the_networks_of_the_whole_one(row):
    """Branches on a trunk too, and images as many as they see."""
    engine = Made(row).engine
    _, (params, stats, _), rest_of, _ = jax_side.bare(engine.settings, 10)
    images, _ = rest_of(0)
    state = engine.shapes.state
    chex.assert_trees_all_equal_shapes((params, stats), (state.params["peers"], state.batch_stats))
    assert images.shape == jax.eval_shape(lambda feed: engine.batch_at(0, feed)[0].images, engine.feed_shapes).shape[1:]


def test_pytorch_is_beside_the_rows_that_it_has_alone():
    """Another row's terms were left out there, and the speeds compared all the same."""
    known = {}
    for row in methods.rows_by_name():
        try:
            known[row] = reference.description(recipe.of_row("resnet8", "cifar100", row), 100)
        except UsageError as error:
            assert str(error).startswith(f"{row}: the PyTorch program has no ") and "choose another row" in str(error)
    wanted = {"baseline", "mixup", "cutmix", "dml", "dml_cutmix"}
    assert set(known) == wanted | {"cutnmix", "cutnmix_dml", "cutnmix_mmd", "cutnmix_pt"}
    assert known["dml"]["temperature"] == 3.0 and not known["cutnmix"]["teacher_moves_peers"]
    averaged = dataclasses.replace(recipe.of_row("resnet8", "cifar100", "dml"), average=0.9)
    with pytest.raises(UsageError, match="dml: the PyTorch program has no networks beside the peers"):
        reference.description(averaged, 100)
    with pytest.raises(UsageError, match="config.image_size=64: the PyTorch program has only images of 32x32"):
        reference.description(dataclasses.replace(recipe.of_row("resnet8", "cifar100", "dml"), image_size=64), 100)
    for other in ({"crop": "resized"}, {"jitter": Jitter(contrast=0.1)}):
        with pytest.raises(UsageError, match="the PyTorch program only pads by 4 and crops"):
            reference.description(dataclasses.replace(recipe.of_row("resnet8", "cifar100", "dml"), **other), 100)
    asked = SIZE
    with pytest.raises(UsageError, match="kdcl: the PyTorch program has no loss term kd"):
        suites.compared(["resnet8"], asked, {"method": "kdcl"}, ["B"])


def test_times_and_ratios():
    assert report.timing([0.2, 0.4, 0.3], 100) == pytest.approx(
        {"step_ms": 3.0, "step_ms_mean": 3.0, "step_ms_std": 1.0, "windows": 3, "steps_per_window": 100}
    )
    found = {"ours": {"window_ms": [1.0, 2.0]}, "other": {"window_ms": [3.0, 4.0]}, "failed": {"error": "no"}}
    assert report.ratios(found, "ours") == {"other": {"median": 2.5, "least": 2.0, "most": 3.0}}
    assert json.loads(report.line({"a": 1.23456789, "b": [2]})) == {"a": 1.2346, "b": [2]}


def test_the_suite_says_how_many_times_as_fast_ours_is():
    """Twice as fast takes half the time; a tier of another device, or that was not measured, is left out."""
    found = {
        "net": {"step_ms": 2.0, "device": "card"},
        "net, torch A": {"step_ms": 4.0, "device": "card"},
        "net, torch B": {"step_ms": 1.0, "device": "card"},
        "net, torch C": {"step_ms": 1.0, "device": "cpu"},
        "net, torch Cmax": {"error": "no"},
    }
    assert suites.faster(found, "net", ("A", "B", "C", "Cmax")) == {"A": 2.0, "B": 0.5}


def test_a_worker_says_why_it_failed():
    one = worker.start("one", sys.executable, "cutnmix_jax.benchmark.jax_side", run.spec_of({"backbone": "nothing"}))
    with pytest.raises(worker.Failed, match="no backbone 'nothing'"):
        one.ask()
    one.close()
    one = worker.start("two", sys.executable, "cutnmix_jax.benchmark.no_such_module", {})
    with pytest.raises(worker.Failed, match=r"ended with 1: .*no_such_module"):
        one.ask()
    one.close()


@pytest.mark.slow
def test_one_program_and_the_bare_one():
    done = bench(*QUICK, "--bare", "--config.batch_size=8")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["found"]
    for one in found.values():
        assert one["windows"] == 2 and one["steps_per_window"] == 2
        assert one["step_ms"] > 0 and one["compile_cold_s"] > 0 and one["memory_mib"] > 0
        assert one["peer_images_per_second"] == pytest.approx(2 * 8 * 1000 / one["step_ms"], rel=1e-3)
    # Two peers, forward and twice that backward, but for the gradient of the images.
    conv, dense = 8 * 8 * 9 * 3 * 6, 6 * 5
    assert found["bare"]["gflop_per_step"] * 1e9 == pytest.approx(2 * 8 * 2 * (2 * conv + 3 * dense), rel=1e-3)
    assert "ours is" in done.stdout


def test_growth_draws_a_picture(tmp_path, monkeypatch):
    sweeps = {
        "num_peers": {4: {"step_ms": 9.0, "memory_mib": 7.0}, 1: {"step_ms": 2.0, "memory_mib": 5.0},
                      2: {"step_ms": 4.0, "memory_mib": 6.0}, 8: {"error": "no"}},
        "images": {10: {"error": "no"}},
    }  # fmt: skip
    report.growth_picture(tmp_path / "g.png", sweeps, "title")
    assert (tmp_path / "g.png").stat().st_size > 5000
    drawn = []
    monkeypatch.setattr(report.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    report.growth_picture(tmp_path / "g.png", sweeps, "title")
    times, _, memory, _ = drawn[0].axes
    lines = {axis: {line.get_label(): line.get_xydata().tolist() for line in axis.lines} for axis in (times, memory)}
    assert lines[times] == {"measured": [[1, 2], [2, 4], [4, 9]], "proportional": [[1, 2], [2, 4], [4, 8]]}
    assert lines[memory] == {"measured": [[1, 5], [2, 6], [4, 7]], "proportional": [[1, 5], [2, 10], [4, 20]]}


@pytest.mark.slow
def test_the_suite_names_what_it_could_not_measure(tmp_path):
    path = tmp_path / "suite.json"
    done = bench(
        "--suite=gpu", "--backbones=tests.tiny:Tiny", "--tiers=D", f"--json={path}", "--windows=1", "--steps=1"
    )
    assert done.returncode == 2 and "no tier 'D'" in done.stderr
    done = bench(
        "--suite=gpu", "--backbones=tests.tiny:Tiny", "--tiers=B", f"--json={path}", "--windows=1", "--steps=1"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())["found"]
    assert found["tests.tiny:Tiny"]["step_ms"] > 0
    # The PyTorch program has no such network, or there is no PyTorch.
    assert any(reason in found["tests.tiny:Tiny, torch B"]["error"] for reason in ("KeyError", "No module named"))
    assert "not measured" in done.stdout and "times tier" not in done.stdout


SIZE = argparse.Namespace(classes=100, images=100, seeds=1)


def asked(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["scripts/bench", *arguments])
    return command.arguments()[0]


def test_what_is_measured_has_its_own_name(monkeypatch, capsys):
    """A network was measured under the name of another one, and one network under the names of several."""
    with pytest.raises(UsageError, match="^--config.backbone.name=resnet8: say --backbone=resnet8"):
        asked(monkeypatch, "--config.backbone.name=resnet8")
    peers = "--config.peers=resnet8,tests.tiny:Tiny"
    for other in ("--backbone=resnet32", "--suite=start", "--sweep=num_peers=1,2", "--target=h100 --backbones=resnet8"):
        with pytest.raises(UsageError, match="^--config.peers names the networks; leave out --suite"):
            asked(monkeypatch, peers, *other.split())
    monkeypatch.setattr(run, "in_turn", lambda programs, **timing: {"ours": {"step_ms": 1.0, "device": "cpu"}})
    monkeypatch.setattr(sys, "argv", ["scripts/bench", peers])
    command.measured(*command.arguments())
    assert " ".join(capsys.readouterr().out.split()).startswith("resnet8,tests.tiny:Tiny, cutnmix")


def test_tiers_are_read_once(monkeypatch):
    """With a blank after the comma a tier passed the check and was none of those that are started."""
    assert asked(monkeypatch, "--vs-torch", "--tiers=A, Cmax").tiers == ("A", "Cmax")
    programs = suites.compared(["resnet8"], SIZE, {}, ["A", "Cmax"])
    assert [tier for _, tier in programs.values()] == ["Cmax", None, "A"]
    assert asked(monkeypatch).tiers is asked(monkeypatch).backbones is asked(monkeypatch).steps is None


def test_the_levers_of_a_gpu_are_graphs_of_two_networks_and_the_settings_of_one():
    programs = suites.changed(["resnet32", "resnet110"], SIZE, {})
    flags = {name: spec["environment"].get("XLA_FLAGS", "") for name, (spec, _) in programs.items()}
    for network in ("resnet32", "resnet110"):
        for graphs in ("graphs with convolutions", "graphs with loops", "concurrent graphs"):
            for peers in ("", ", 4 peers", ", 8 peers"):
                assert "+CONVOLUTION" in flags[f"{network}, {graphs}{peers}"]
        assert not flags[f"{network}, 8 peers"] and network not in programs  # that is measured beside PyTorch
    assert "--config.num_peers=8" in programs["resnet110, concurrent graphs, 8 peers"][0]["overrides"]
    assert "--config.mapping=vmap" in programs["resnet32, bfloat16, vmap"][0]["overrides"]
    for network in ("resnet32", "resnet110"):
        assert [programs[f"{network}, {count} seeds"][0]["seeds"] for count in (2, 3, 4)] == [2, 3, 4]
    assert programs["resnet32, vmap"][0]["seeds"] == 1
    assert not suites.changed(["vgg16"], SIZE, {})


def test_several_seeds_are_trained_by_one_program():
    engine = Made("cutnmix", "--config.num_peers=2").engine
    function, carry, rest_of, _ = jax_side.whole(engine, 2)
    after = jax.eval_shape(function, *carry, *rest_of(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, jax.eval_shape(lambda: carry))
    assert [len(part) for part in after] == [2, 2]
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(carry)]
    assert len(set(buffers)) == len(buffers)  # the program takes each over
    found = run.completed({}, [0.5], 10, run.spec_of({"backbone": "resnet8"}, seeds=3), None)
    assert found["peer_images_per_second"] == pytest.approx(3 * 2 * 64 / 0.05)


def test_images_of_the_host_are_those_of_each_call():
    """What cannot lie on the device was not measured at all; images on it are those of one epoch all the time."""
    fields = ["--config.images_in=memory", "--config.batch_size=8", "--config.train_examples=40"]
    engine = dataclasses.replace(Made("baseline", *fields).engine, steps_per_call=2)  # of five steps: two calls of two
    function, carry, rest_of, per_call = jax_side.whole(engine, 1)
    feeds = engine.feeds()
    for call, step in enumerate((0, 2, 5, 7, 10)):
        (feed, steps), wanted = rest_of(call), feeds.at(step)
        assert (per_call, int(steps), feed.rates.tolist()) == (2, 2, [np.float32(0.01)] * 2)
        chex.assert_trees_all_equal(feed.draws.images, wanted.draws.images)
        chex.assert_trees_all_equal(feed.rows, wanted.rows)
        carry = function(*carry, feed, steps)
    assert int(carry[0].step) == 10
    with pytest.raises(UsageError, match="--seeds=2: each seed reads other images"):
        jax_side.whole(engine, 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--config.images_in=disk",), "config.images_in='disk': the images are made up, in no file; say memory"),
        (("--sweep=images_in=memory,disk",), "config.images_in='disk': the images are made up"),
        (("--seeds=2", "--config.images_in=memory"), "--seeds=2: each seed reads other images"),
        (("--seeds=2", "--config.devices=0"), "--seeds=2: one program of several seeds trains on one device"),
        (("--seeds=2", "--config.validation_examples=9"), "--seeds=2: seeds that each hold out images"),
        (("--sweep=seeds=1,2", "--config.devices=0"), "--sweep=seeds=1,2: one program of several seeds"),
    ],
)
def test_images_and_seeds_that_no_program_has(arguments, said, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench", "--backbone=tests.tiny:Tiny", *arguments])
    with pytest.raises(UsageError, match=re.escape(said)):
        command.main()


def test_a_start_ends_with_its_first_step():
    def first_step(code, seconds=60.0):
        return starts._first_step([sys.executable, "-uc", code], os.environ, time.monotonic() + seconds)

    wait, begun = "; import time; time.sleep(99)", time.monotonic()
    assert first_step(f"from cutnmix_jax.console import Display; Display(9, 0, 1).started(1.25, 2.5){wait}") == 2.5
    with pytest.raises(worker.Failed, match="^error: no$"):
        first_step("import sys; sys.exit('error: no')")
    with pytest.raises(worker.Failed, match="^no time left$"):
        first_step(f"pass{wait}", 0.0)
    assert time.monotonic() < begun + 60


@pytest.mark.parametrize("other", ["--suite=gpu", "--suite=start", "--vs-torch", "--bare"])
def test_what_compares_programs_trains_one_seed(monkeypatch, other):
    with pytest.raises(UsageError, match=f"^--seeds and {other}: leave one of them out"):
        asked(monkeypatch, "--seeds=2", other)
    assert asked(monkeypatch, "--seeds=2", "--suite=growth").seeds == 2


@pytest.mark.parametrize(
    "argument",
    ["--steps=0", "--windows=0", "--classes=0", "--images=-1", "--peak=0", "--budget=nan", "--tiers=", "--backbones=,",
     "--sweep=", "--sweep=num_peers", "--sweep=num_peers=,", "--trace=", "--json=", "--tiers=A,D",
     "--seeds=0"],
)  # fmt: skip
def test_nothing_is_no_default(argument, monkeypatch):
    with pytest.raises(UsageError, match=f"{argument.partition('=')[0]}.*(must be|is empty|has no values|no tier 'D')"):
        asked(monkeypatch, argument)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--sweep=num_peers=1,2 --vs-torch", "--sweep and --vs-torch: leave one of them out"),
        ("--suite=gpu --trace=there", "--suite and --trace: leave one of them out"),
        ("--target=h100 --bare", "--target and --bare: leave one of them out"),
        ("--suite=growth --backbone=resnet8", "--backbone goes with all but --suite, which takes --backbones"),
        ("--backbones=resnet8", "--backbones goes with --suite and --target"),
        ("--bare --tiers=A", "--tiers goes with --vs-torch and --suite=gpu"),
        ("--suite=growth --budget=9", "--budget goes with --suite=gpu"),
        ("--trace=there --json=x.json", "--json goes with what is measured"),
        ("--suite=growth --backbones=resnet8,resnet32", "--backbones: --suite=growth measures one network"),
        ("--json=nowhere/x.json", "cannot write nowhere/x.json: No such file or directory"),
        ("--trace=/dev/null/x", "cannot write /dev/null/x: Not a directory"),
        ("--sweep==1", "--sweep==1: has no values"),
        ("--sweep=images=many", "--sweep=images=many: must be whole numbers"),
        ("--sweep=num_peerz=1,2", "no field 'num_peerz'"),
    ],
)
def test_what_nothing_would_look_at_is_refused(arguments, said, monkeypatch):
    """It was left out without a word, or found wrong when all else had been measured."""
    monkeypatch.setattr(sys, "argv", ["scripts/bench", *arguments.split()])
    monkeypatch.setattr(suites, "sweep", lambda *_: pytest.fail("began to measure"))
    with pytest.raises(UsageError, match=said):
        command.main()


@pytest.mark.parametrize("argument", ["--confg.seed=1", "--config.seed", "--config.mapping=sideways"])
def test_wrong_arguments_are_one_line(argument):
    done = bench(*QUICK, argument)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["dataset", "data_dir", "train_examples", "test_examples"])
def test_fields_of_images_that_are_not_read_are_refused(name, monkeypatch):
    with pytest.raises(UsageError, match=f"^--config.{name}=9: the images are made up"):
        asked(monkeypatch, f"--config.{name}=9")


def test_made_up_images_are_of_the_size_that_is_asked_for():
    dataset = jax_side.made_up(20, 7, (48, 64, 3))
    assert dataset.train_images.shape == (20, 48, 64, 3) and dataset.num_classes == 7
    assert np.ptp(dataset.train_images) > 200
    settings = dataclasses.replace(recipe.of_row("tests.tiny:Tiny", "cifar100", "baseline"), image_size=16)
    assert jax_side.bare(settings, 7)[2](0)[0].shape == (1, 64, 16, 16, 3)
