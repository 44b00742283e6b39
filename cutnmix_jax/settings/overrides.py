"""The overrides of a command line, `--config.field=value`: which of them counts, and what is wrong with one."""

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import fields

from absl import flags

from cutnmix_jax import methods
from cutnmix_jax.errors import UsageError, one_line


def alike(arguments: Sequence[str]) -> list[str]:
    """Each field as `--config.field=value`; absl takes one dash, too, and a value that is an argument of its own."""
    found: list[str] = []
    for text in arguments:
        text = f"-{text}" if text.startswith("-config.") else text
        if found and _wants_value(found[-1]) and not text.startswith("--"):
            found[-1] += f"={text}"
        else:
            found.append(text)
    given = {text.partition("=")[0] for text in found if "=" in text}
    return [f"{text}=true" if text in given else text for text in found]  # a bare one is of a field that is true


def _wants_value(text: str) -> bool:
    return text.startswith("--config.") and "=" not in text


def last_of_each(overrides: Sequence[str]) -> list[str]:
    """A field that is given twice has its last value; ml_collections would join two tuples."""
    last = {text.partition("=")[0]: text for text in overrides if text.startswith("--config.") and "=" in text}
    return [text for text in overrides if last.get(text.partition("=")[0], text) == text]


def unset(arguments: Sequence[str], optional: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes out what sets an optional field to `none`, which ml_collections knows no value for.

    Args:
      arguments: of the command line.
      optional: the paths of the fields that may be None.

    Returns:
      The paths of fields that are set to none in the end, and the other arguments.
    """
    paths = {f"--config.{path}": path for path in optional}
    pairs = [(text, *text.partition("=")[::2]) for text in arguments]
    last = {flag: value for _, flag, value in pairs}
    none = [path for flag, path in paths.items() if last.get(flag, "").lower() == "none"]
    return none, [text for text, flag, value in pairs if not (flag in paths and value.lower() == "none")]


def field_like(name: str, paths: Collection[str]) -> str:
    """The field that somebody may have meant: by its last part, by what others call it, or by its letters."""
    last = name.rpartition(".")[2]
    same = [path for path in paths if path.rpartition(".")[2] == last]
    if same or _CALLED.get(last) in paths:
        return same[0] if same else _CALLED[last]
    lasts = [path.rpartition(".")[2] for path in paths]
    close = difflib.get_close_matches(name, paths, n=1, cutoff=0.75)
    close = close or [path for found in difflib.get_close_matches(last, lasts, n=1, cutoff=0.75)
                      for path in paths if path.rpartition(".")[2] == found]  # fmt: skip
    return close[0] if close else ""


def check_name(flag: str, paths: Collection[str]) -> None:
    """Raises UsageError where a flag is no name of a field at all, or one of absl's own, which reads others from files.

    Args:
      flag: without its value.
      paths: of all fields.
    """
    name = flag.lstrip("-").removeprefix("config.")
    if flag.startswith("--config.") and not all(map(str.isidentifier, name.split("."))):
        meant = field_like(re.sub(r"[^\w.]", "_", name), paths)
        raise UsageError(f"unknown flag {flag}; " + (f"did you mean --config.{meant}?" if meant else _SEE))
    if flag.startswith("-") and name in ("flagfile", "undefok"):
        raise UsageError(f"unknown flag {flag}; fields that stay are a file of configs, see docs/train.md")


def rows_with(name: str) -> list[str]:
    """The rows of the tables that have a loss term, or whose method has an option, of that name."""
    rows = methods.rows_by_name().items()
    return [row for row, it in rows if name in it.weights or name in {field.name for field in fields(it.method)}]


def explain(error: Exception, file: str, paths: Collection[str]) -> str:
    """One line for what ml_collections and absl raise, which is mostly right but long.

    Args:
      error: what they raised.
      file: what was given to `--config`.
      paths: of all fields of that configuration.
    """
    text = one_line(error).replace("\\n", " ").replace("\\'", "'")
    if isinstance(error, flags.UnrecognizedFlagError):
        name = error.flagname
        if name in _ELSEWHERE:
            return f"unknown flag --{name}; {_ELSEWHERE[name]}"
        if field := field_like(name.removeprefix("config."), paths):
            return f"unknown flag --{name}; did you mean --config.{field}?"
        guess = difflib.get_close_matches(name.partition(".")[0], _FLAGS, n=1)
        return f"unknown flag --{name}; " + (f"did you mean --{guess[0]}?" if guess else _SEE)
    if isinstance(error, AttributeError | KeyError):
        quoted = re.search(r"'([\w.]+)'", text)
        name = quoted.group(1) if quoted else ""
        if rows := rows_with(name):
            return f"--config: this row has no {name!r}; those that have it: {', '.join(rows)}"
        meant = field_like(name, paths)
        return f"--config: no field {name!r}; " + (f"did you mean {meant!r}?" if meant else _SEE)
    for raised, meant in _PARSERS.items():
        if raised in text:
            return f"{text.partition(': ')[0].removeprefix('flag ')}: must be {meant}"
    if isinstance(error, flags.Error):
        return text.removeprefix("flag ")[:300]
    return f"--config={file}: {type(error).__name__}: {text[:300]}"


_SEE = "--list shows all fields"
_FLAGS = ("config", "workdir", "seeds", "force", "extend", "list", "help")
# What other programs call a field.
_CALLED = {
    "lr": "optimizer.learning_rate", "wd": "optimizer.weight_decay", "bs": "batch_size", "batch": "batch_size",
    "max_epochs": "epochs", "num_epochs": "epochs", "n_epochs": "epochs", "tau": "loss.temperature",
    "beta": "weights.mmd", "gamma": "weights.pt", "arch": "backbone.name", "model": "backbone.name",
    "backbone": "backbone.name", "network": "backbone.name", "J": "num_peers", "amp": "precision", "fp16": "precision",
    "dtype": "precision", "optim": "optimizer.name", "nesterov_momentum": "optimizer.nesterov", "ema": "average",
}  # fmt: skip
# What other programs have a flag for, and this one does otherwise.
_ELSEWHERE = dict.fromkeys(("dataset", "data", "method"), "both stand in --config=NAME:DATASET,METHOD")
_ELSEWHERE |= dict.fromkeys(("output", "out", "output_dir", "logdir", "save_dir", "save"), "did you mean --workdir?")
_ELSEWHERE |= dict.fromkeys(("resume", "restore", "continue"), "the same command again goes on with a run")
_ELSEWHERE |= dict.fromkeys(("gpu", "gpus", "device", "devices"), "CUDA_VISIBLE_DEVICES chooses the GPUs")

# What the parsers of int, float and bool say, and what it means to someone who typed a flag.
_PARSERS = {
    "literal for int": "a whole number",
    "string to float": "a number",
    "Non-boolean": "true or false",
    "as a ConfigDict": "set field by field, as --config.group.field=value",
}
