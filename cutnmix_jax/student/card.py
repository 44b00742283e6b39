"""The model card of an export, in the form that Hugging Face reads: facts in front, then text for people."""

from collections.abc import Sequence

import yaml

from cutnmix_jax import data
from cutnmix_jax.student.description import Description

WEIGHTS, DESCRIPTION, PROGRAM, SUMS, CARD = (
    "model.safetensors",
    "student.json",
    "program.jax_export",
    "SHA256SUMS",
    "README.md",
)

# Files that an export may have besides, see `formats`.
OTHERS = {
    "torch.safetensors": "a state dict for PyTorch; its metadata says how images are normalised",
    "model.onnx": "the network for ONNX runtimes: `images` uint8 [n, H, W, C] to `logits` [n, K]",
}

_TEXT = """---
{facts}---

# {title}

{what}

| | |
|---|---|
| classes | {classes} |
| images | {H} x {W} pixels, {C} channels, uint8 from 0 to 255; normalising is part of the network |
| weights | of the {which}, epoch {epoch} of {epochs} (step {step}) |
{figures}

## Use

With `cutnmix-jax`:

```python
import cutnmix_jax
student = cutnmix_jax.load_student("{folder}")
student.predict(images).names  # images: uint8 [n, {H}, {W}, {C}]
```

With `pip install jax flatbuffers safetensors` alone (JAX {jax} or newer), on a CPU or an NVIDIA GPU:

```python
import jax.export, safetensors.numpy
program = jax.export.deserialize(bytearray(open("{folder}/{program}", "rb").read()))
logits = program.call(safetensors.numpy.load_file("{folder}/{weights}"), images)  # [n, {K}]
```

From a shell, for pictures of any size: `cutnmix predict {folder} PICTURE...`

## Files

| file | what it is |
|---|---|
| `{weights}` | the weights |
| `{description}` | what the network is and was trained with, and the names of its classes |
| `{program}` | the network as a program of StableHLO, made with `jax.export`: `call(weights, images)` gives logits |
{others}| `{sums}` | SHA-256 of each of these; `sha256sum -c {sums}` compares them |

Before you publish it, add a line `license:` above. `hf upload OWNER/NAME {folder}` puts it on the hub of
Hugging Face.
"""


def text(description: Description, folder: str = ".", others: Sequence[str] = ()) -> str:
    """The card of a student.

    Args:
      description: of it.
      folder: how its examples call the folder that it is in.
      others: names of the files for other programs, of `OTHERS`.
    """
    H, W, C = description.image_shape
    return _TEXT.format(
        facts=yaml.safe_dump(facts(description), sort_keys=False, allow_unicode=True),
        title=description.title,
        what=_what(description),
        classes=_classes(description),
        which={"average": "average of the weights"}.get(description.which, f"{description.which} epoch"),
        figures="\n".join(f"| {name} | {value} |" for name, value in _figures(description)),
        jax=description.run["versions"].get("jax", "of this run"),
        others="".join(f"| `{name}` | {OTHERS[name]} |\n" for name in others),
        folder=folder, H=H, W=W, C=C, K=description.num_classes, epoch=description.epoch, epochs=description.epochs,
        step=description.step, weights=WEIGHTS, description=DESCRIPTION, program=PROGRAM, sums=SUMS,
    )  # fmt: skip


def facts(description: Description) -> dict:
    """What stands in front of the card: https://huggingface.co/docs/hub/model-cards."""
    found = {
        "library_name": "cutnmix-jax",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "jax", "knowledge-distillation", description.method],
        "datasets": [data.title(description.dataset)],
        "metrics": ["accuracy"],
    }
    if description.accuracy is None:
        return found
    called = data.title(description.dataset)
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": called, "type": called, "split": "test"},
        "metrics": [{"type": "accuracy", "value": description.accuracy}],
    }
    return {**found, "model-index": [{"name": description.title, "results": [result]}]}


def _what(description: Description) -> str:
    count = len(description.run["last"]["accuracy_per_peer"])
    if len(description.peers) > 1:
        what = f"The ensemble of the {count} networks of a run: the mean of their probabilities."
    elif count > 1:
        what = f"One of {count} peers that were trained together: peer {description.peers[0]}."
    else:
        what = "A network that was trained alone."
    if description.chosen_by:
        what += f" It was chosen as the best of them on the {description.chosen_by} images"
        what += ", so its own accuracy on them flatters it." if description.chosen_by == "test" else "."
    return f"{what} Trained with [cutnmix-jax], an implementation of online distillation with CutnMix in JAX and Flax."


def _classes(description: Description) -> str:
    names, shown = description.class_names, 20
    more = f" and {len(names) - shown} more, all in `{DESCRIPTION}`" if len(names) > shown else ""
    listed = ", ".join(name.replace("|", "\\|").replace("\n", " ") for name in names[:shown])
    return f"{len(names)}: {listed}{more}"


def _figures(description: Description) -> list[tuple[str, str]]:
    run, name = description.run, data.title(description.dataset)
    found = [
        (
            "trained on",
            f"{run['train_examples']:,} images of {name}, in {run['seconds']:.0f} s on {run['device']}",
        )
    ]
    on = f"{run['test_examples']:,} test images"
    if description.accuracy is not None:
        found.append(("accuracy", f"{100 * description.accuracy:.2f} % of {on}"))
    for which in ("last", "best"):
        epoch = run[which]
        each = ", ".join(f"{100 * value:.2f}" for value in epoch["accuracy_per_peer"])
        chosen = f" (chosen by {run['best_by']} accuracy)" if which == "best" else ""
        found.append(
            (f"the run, {which} epoch", f"epoch {epoch['epoch']}{chosen}: peers {each} %, mean "
             f"{100 * epoch['accuracy']:.2f} %, ensemble {100 * epoch['accuracy_ensemble']:.2f} %")
        )  # fmt: skip
    return found
