"""What the settings and the data say reaches what it is for: functions that are tested well are called with it."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import augment, backbones, crops, device, distributed, training
from cutnmix_jax.engine import assemble
from cutnmix_jax.precision import CHOICES
from cutnmix_jax.settings import Jitter, Mixing, command_line
from cutnmix_jax.student import network, program
from tests.runs import TEN_EPOCHS, Made, write_finished
from tests.test_formats import numbered
from tests.test_step import DATASET, KEY, begun, build, built


@pytest.fixture
def asked(monkeypatch):
    """Has calls of a function noted: `note(module, name)` -> the keyword arguments of each call."""

    def note(module, name):
        calls, function = [], getattr(module, name)

        @functools.wraps(function)
        def noting(*arguments, **named):
            calls.append(named)
            return function(*arguments, **named)

        monkeypatch.setattr(module, name, noting)
        return calls

    return note


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("views", ["shared", "per_peer"])
def test_how_images_are_cropped(flip, views, asked):
    calls = asked(crops, "draw_crops")
    fields = {"crop": "resized", "jitter": Jitter(brightness=0.1, contrast=0.2, saturation=0.3), "views": views}
    engine = build("dml", dataset=DATASET._replace(flip=flip), **fields)
    engine.make_batch.draw(KEY, engine.train_data, jnp.arange(10))
    assert calls == [{"kind": "resized", "flip": flip, "jitter": (0.1, 0.2, 0.3)}]


def test_how_batches_are_mixed(asked):
    calls = asked(augment, "draw_mix")
    engine = build("cutnmix", mix=Mixing(kind="cutnmix", prob=0.3, alpha=0.7, box="wrap"))
    engine.make_batch.draw(KEY, engine.train_data, jnp.arange(10))
    assert calls == [{"kind": "cutnmix", "prob": 0.3, "alpha": 0.7, "box": "wrap"}]


@pytest.mark.parametrize("flip", [True, False])
def test_images_are_mirrored_where_the_data_set_says_so_alone(flip):
    """By the pixels: of 40 images in four epochs some are mirrored, or none is."""
    engine = build("baseline", dataset=DATASET._replace(flip=flip), crop="pad")
    plain = ((DATASET.train_images / 255.0 - DATASET.mean) / DATASET.std).astype(np.float32)
    mirrored = 0
    for number, start in enumerate((0, 10, 20, 30)):
        index = jnp.arange(start, start + 10)
        draws = engine.make_batch.draw(jax.random.fold_in(KEY, number), engine.train_data, index)
        [drawn] = draws.crops
        draws = draws._replace(crops=(drawn._replace(offsets=jnp.full_like(drawn.offsets, 4)),))  # nothing is cut off
        batch, _ = engine.make_batch.make(engine.train_data, index, draws)
        for image, row in zip(np.asarray(batch.images[0, 0]), np.asarray(index), strict=True):
            as_it_is, turned = (np.allclose(image, one, atol=1e-5) for one in (plain[row], plain[row][:, ::-1]))
            assert as_it_is or turned
            mirrored += turned
    assert (5 < mirrored < 35) if flip else mirrored == 0


@pytest.mark.parametrize(
    ("precision", "wanted"), [("tf32", jnp.float32), ("float32", jnp.float32), ("bfloat16", jnp.bfloat16)]
)
def test_activations_are_of_the_type_that_the_precision_has(precision, wanted, monkeypatch):
    made, load = [], backbones.load

    def loading(name, num_classes, dtype, shape):
        made.append(jnp.dtype(dtype))
        return load(name, num_classes, dtype, shape)

    monkeypatch.setattr(backbones, "load", loading)
    fields = ["--config.peers=resnet8,resnet32", "--config.weights.mmd=0", f"--config.precision={precision}"]
    found = assemble.networks(command_line.from_flags("quickstart", fields), 10)
    assert made == [jnp.dtype(wanted)] * 2
    with backbones.shapes_only():
        images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
        for network in found.backbones:
            program = str(jax.make_jaxpr(functools.partial(network.apply, train=True))(network.init(KEY), images))
            assert ("bf16" in program) == (wanted == jnp.bfloat16)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_a_trained_teacher_has_the_precision_of_its_student(precision, tmp_path):
    fields = {"dataset": "digits", "method": "baseline", "seed": 95, "epochs": 1}
    rows = [{"epoch": 1, "step": 4, "test/accuracy": 0.5}]
    write_finished(tmp_path, fields, rows, backbones=["resnet8"])
    given = [f"--config.teacher={tmp_path}", f"--config.precision={precision}"]
    found = training.plan(command_line.from_flags("quickstart:digits,kd", given))
    with backbones.shapes_only():
        apply = functools.partial(found.teacher.backbone.apply, train=False)
        images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
        program = str(jax.make_jaxpr(apply)(found.teacher.backbone.init(KEY), images))
    assert ("bf16" in program) == (precision == "bfloat16")


@pytest.mark.parametrize(("precision", "wanted"), [("tf32", "HIGH"), ("float32", "HIGHEST"), ("bfloat16", "DEFAULT")])
def test_products_are_made_as_the_precision_says(precision, wanted):
    """As the step asks of XLA, which a GPU obeys; a CPU has one way only."""
    engine = build("dml", precision=precision)
    state, totals, feed = begun(engine)
    jax.clear_caches()  # or a step of another precision may be at hand
    with device.set_up_jax(CHOICES[engine.settings.precision]):
        program = engine.train_steps.lower(state, totals, feed, 1).as_text()
    asked = set(re.findall(r"dot_general.*precision = \[(\w+), (\w+)\]", program)) or {("DEFAULT", "DEFAULT")}
    assert asked == {(wanted, wanted)}


@pytest.mark.parametrize("precision", CHOICES)
def test_whatever_computes_does_so_in_the_precision_of_the_run(precision, tmp_path, monkeypatch):
    """Training alone and in several processes, and a student; of evaluation see `test_evaluation`."""

    def reached(choice):
        raise InterruptedError(choice)

    for module in (training, distributed, network):
        monkeypatch.setattr(module, "set_up_jax", reached)
    settings = command_line.from_flags("quickstart:digits,dml", [*TEN_EPOCHS, f"--config.precision={precision}"])
    taken, members = numbered("tests.tiny:Tiny", precision=precision), types.SimpleNamespace(failed=lambda *_: None)
    for begins in (
        lambda: training.train(settings, tmp_path / "run"),
        lambda: distributed._follow(settings, members, None),
        lambda: taken.predict(np.zeros((1, 32, 32, 3), np.uint8)),
    ):
        with pytest.raises(InterruptedError) as caught:
            begins()
        assert caught.value.args == (CHOICES[precision],)


@pytest.mark.parametrize(("precision", "wanted"), [("tf32", "HIGH"), ("float32", "HIGHEST"), ("bfloat16", "DEFAULT")])
def test_an_exported_program_makes_products_as_the_precision_says(precision, wanted):
    jax.clear_caches()
    taken = numbered("tests.tiny:Tiny", precision=precision)
    exported = jax.export.deserialize(bytearray(program.written(taken)))
    found = set(re.findall(r"dot_general.*precision = \[(\w+), (\w+)\]", exported.mlir_module()))
    assert (found or {("DEFAULT", "DEFAULT")}) == {(wanted, wanted)}


def test_a_cosine_falls_over_all_steps_of_a_run():
    """To nothing at the end of the last epoch; over as many steps as there are epochs it did so at once."""
    fields = ["--config.optimizer.schedule=cosine", "--config.optimizer.warm_up_epochs=2", "--config.epochs=10"]
    engine = Made("dml", *fields, "--config.optimizer.learning_rate=0.4").engine
    per_epoch = engine.steps_per_epoch
    rates = np.concatenate([engine.feed(epoch).rates for epoch in range(10)])
    step, warm, total = np.arange(10 * per_epoch), 2 * per_epoch, 10 * per_epoch
    falling = 0.2 * (1 + np.cos(np.pi * (step - warm) / (total - warm)))
    np.testing.assert_allclose(rates[warm:], falling[warm:], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(rates[:warm], 0.4 * (step[:warm] + 1) / warm, rtol=1e-6)
    assert per_epoch > 1


def test_the_average_has_the_decay_of_the_field():
    fields = [*TEN_EPOCHS, "--config.average=0.9"]
    settings = command_line.from_flags("quickstart:digits,dml", fields)
    assert assemble.companions(settings, built("dml").peers, None).kinds["average"].decay == 0.9


def test_mean_teachers_are_evaluated_with_their_own_weights_and_statistics():
    """And not the peers: those of the first step are alike, so these are moved apart."""
    network = backbones.load("tests.tiny:Tiny", DATASET.num_classes)
    engine = build("pcl", backbone=network, features=6, share_trunk=False)
    state = begun(engine)[0]
    rng = np.random.default_rng(1)

    def moved(leaf):
        return leaf + jnp.asarray(rng.uniform(0, 0.5, leaf.shape), leaf.dtype)

    state = state._replace(teachers=jax.tree.map(moved, state.teachers))
    found, mean = engine.evaluate(state), state.teachers["mean"]
    images = ((DATASET.test_images / 255.0 - DATASET.mean) / DATASET.std).astype(np.float32)
    rights, others = [], []
    for j in range(3):
        for params, stats, kept in (
            (mean["params"], mean["batch_stats"], rights),
            (mean["params"], state.batch_stats, others),
            (state.params["peers"], state.batch_stats, others),
        ):
            logits = network.apply({"params": params[j], "batch_stats": stats[j]}, images, False)[0].logits
            kept.append(float((np.asarray(logits).argmax(-1) == DATASET.test_labels).mean()))
    assert [float(found.heads[f"mean_teacher_{j}"]) for j in range(3)] == pytest.approx(rights)
    assert rights != others[::2] and rights != others[1::2]  # or the test could not tell
