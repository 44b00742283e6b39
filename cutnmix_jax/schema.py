"""What each field of a configuration may be: the one schema of types and ranges.

Types are known to ml_collections from the defaults in `configs/common.py`; ranges stand here, relations between fields
in `config.check`. What a range lets in makes terms and gradients that are finite in float32 in the first step; that it
learns well is not said.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from cutnmix_jax import augment, batches, data, methods, peers
from cutnmix_jax.errors import nearest

MOST_PEERS = 64
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


def number(low: float, high: float = math.inf, *, or_zero: bool = False) -> Check:
    """A finite number from `low` to `high`, or also 0."""
    bound = ("0, or " if or_zero else "") + f"at least {low:g}" + (f", at most {high:g}" if high < math.inf else "")

    def check(value: Any) -> str:
        known = isinstance(value, int | float) and math.isfinite(value)
        if known and (low <= value <= high or (or_zero and value == 0)):
            return ""
        return f"must be a finite number, {bound}"

    return check


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
        type(epoch) is int and 1 <= epoch < 2**31 for epoch in value
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
    "num_peers": whole(1, MOST_PEERS),
    "mapping": one_of(peers.MAPPINGS),
    "precision": one_of(PRECISIONS),
    "loss.name": lambda value: one_of(methods.names())(value),
    # Below, softmax is an argmax and the term's gradient, tau (p - q), is nothing; above, tau^2 KL is what it tends to,
    # half the variance of the difference of the logits.
    "loss.temperature": number(1e-3, 1e6),
    "loss.target": lambda value: one_of(methods.find("kdcl").TARGETS)(value),
    "loss.last_share": number(0, 1),
    "loss.correct": number(0, 1),  # and no less than 1 / K, in `config.check`
    "loss.rampup_epochs": whole(1),
    "teacher": text,
    "share_trunk": of_type(bool, "true or false"),
    "views": one_of(batches.VIEWS),
    "mix.kind": one_of(augment.MIX_KINDS),
    "mix.prob": number(0, 1),
    # At 1e-3 lambda is 0 or 1 to a pixel in 99 of 100 batches, at 1e6 it is 1/2 to a pixel: beyond, nothing changes.
    "mix.alpha": number(1e-3, 1e6),
    "mix.box": one_of(augment.BOX_READINGS),
    "epochs": whole(1),  # and no more than steps can be counted, in `config.check`
    "batch_size": whole(2),  # BatchNorm has no deviation over one image
    # Less than 1e-12 changes no digit of a float32 weight; with more than 1e6 they overflow in a few steps.
    "optimizer.learning_rate": number(1e-12, 1e6),
    "optimizer.milestones": increasing_epochs,
    "optimizer.decay": number(1e-6, 1),  # less ends the training, which `epochs` is for
    "optimizer.momentum": number(0, 0.9999),  # gradients count 1 / (1 - momentum) times: 10,000 at most
    "optimizer.weight_decay": number(1e-12, 1, or_zero=True),  # at 1 a weight counts as much as its gradient
    "eval_batch_size": whole(1, 10_000),  # the largest test set; more images at once would only take memory
    "steps_per_call": whole(0),
    "checkpoint.every_epochs": whole(1),
    "checkpoint.every_steps": whole(0),
    "checkpoint.every_minutes": number(0),
    "checkpoint.keep": whole(1),
}
# Of each loss term: what float32 cannot tell from 0 would learn nothing, and what is larger overflows.
WEIGHT = number(1e-12, 1e6, or_zero=True)
OPTIONAL = ("temperature", "target", "last_share", "correct", "rampup_epochs")  # of loss, where the method has it
