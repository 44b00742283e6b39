"""What each field of a configuration may be: the one schema of types and ranges.

Types are known to ml_collections from the defaults in `configs/common.py`; ranges stand here, relations between fields
in `config.check`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cutnmix_jax import augment, batches, data, methods, peers
from cutnmix_jax.errors import nearest

PRECISIONS = ("tf32", "float32", "bfloat16")

Check = Callable[[Any], str]  # what is wrong with a value, or nothing


def whole(low: int, high: int = 2**31 - 1) -> Check:
    """A whole number from `low` to `high`."""
    bound = f"at least {low}" if high == 2**31 - 1 else f"from {low} to {high}"

    def check(value: Any) -> str:
        if isinstance(value, int) and low <= value <= high:
            return ""
        too_large = isinstance(value, int) and value > high
        return f"must be a whole number {f'of at most {high}' if too_large else bound}"

    return check


def number(low: float, high: float = math.inf, *, above: bool = False) -> Check:
    """A finite number from `low` (or, with `above`, greater than it, in float32 too) to `high`."""
    bound = (f"greater than {low:g}" if above else f"at least {low:g}") + (
        f", at most {high:g}" if high < math.inf else ""
    )
    return lambda value: (
        ""
        if isinstance(value, int | float)
        and math.isfinite(value)
        and (low < np.float32(min(value, 1e30)) if above else low <= value)
        and value <= high
        else f"must be a finite number {bound}"
    )


def of_type(kind: type, name: str) -> Check:
    """Anything of a type, `name` for people; what it may be is looked at where it is used."""
    return lambda value: "" if isinstance(value, kind) else f"must be {name}"


text = of_type(str, "text")


def one_of(valid: Sequence[str]) -> Check:
    """One of some names."""
    return lambda value: "" if isinstance(value, str) and value in valid else f"not known; {nearest(str(value), valid)}"


def increasing_epochs(value: Any) -> str:
    """Milestones: increasing whole numbers from 1 on; none at all is a constant learning rate."""
    whole_numbers = isinstance(value, tuple | list) and all(
        isinstance(epoch, int) and not isinstance(epoch, bool) and epoch >= 1 for epoch in value
    )
    if whole_numbers and list(value) == sorted(set(value)):
        return ""
    return "must be increasing whole numbers of epochs, for instance (150, 180, 210)"


RANGES: dict[str, Check] = {
    "method": text,
    "weights": of_type(ConfigDict, "a group of fields"),
    "backbone.name": text,
    "peers": text,
    "data_dir": text,
    "dataset": lambda value: one_of(data.names())(value),
    "train_examples": whole(0),
    "test_examples": whole(0),
    "held_out_examples": whole(0),
    "seed": whole(0, 2**32 - 1),
    "num_peers": whole(1, 64),
    "mapping": one_of(peers.MAPPINGS),
    "precision": one_of(PRECISIONS),
    "loss.name": lambda value: one_of(methods.names())(value),
    "loss.temperature": number(0, above=True),
    "loss.target": lambda value: one_of(methods.find("kdcl").TARGETS)(value),
    "loss.last_share": number(0, 1),
    "loss.correct": number(0, 1, above=True),
    "loss.rampup_epochs": whole(1),
    "teacher": text,
    "share_trunk": of_type(bool, "true or false"),
    "views": one_of(batches.VIEWS),
    "mix.kind": one_of(augment.MIX_KINDS),
    "mix.prob": number(0, 1),
    "mix.alpha": number(0, above=True),
    "mix.box": one_of(augment.BOX_READINGS),
    "epochs": whole(1),
    "batch_size": whole(2),  # BatchNorm has no deviation over one image
    "optimizer.learning_rate": number(0, 1e6, above=True),
    "optimizer.milestones": increasing_epochs,
    "optimizer.decay": number(0, 1, above=True),
    "optimizer.momentum": number(0, 0.9999),
    "optimizer.weight_decay": number(0),
    "eval_batch_size": whole(1),
    "steps_per_call": whole(0),
    "checkpoint.every_epochs": whole(1),
    "checkpoint.every_steps": whole(0),
    "checkpoint.every_minutes": number(0),
    "checkpoint.keep": whole(1),
}
OPTIONAL = ("temperature", "target", "last_share", "correct", "rampup_epochs")  # of loss, where the method has it
