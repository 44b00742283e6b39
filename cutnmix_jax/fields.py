"""What a field of a configuration is: its default, what it may be, the reason, and whether a run may change it.

A field is an ordinary one of a frozen dataclass, made by `field`. What a range lets in makes terms and gradients that
are finite in float32 in the first step; that it learns well is not said.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cutnmix_jax.errors import nearest

LARGEST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Check:
    """What a field may be.

    Attributes:
      wrong: says what is wrong with a value, or nothing.
      range: what it may be, in words.
    """

    wrong: Callable[[Any], str]
    range: str

    def __call__(self, value: Any) -> str:
        """What is wrong with a value, or nothing."""
        return self.wrong(value)


class Change(enum.Enum):
    """Whether a run may go on with another value of a field."""

    FREE = "changes neither the data nor the numbers"
    FORCED = "changes the numbers: only with --force"
    EXTENDED = "changes the numbers: more of it with --extend, another number only with --force"
    NEVER = "decides which images belong to a step, which ones a run is tested on, or what a checkpoint holds"


def field(
    default: Any, check: Check, reason: str, change: Change = Change.FORCED, of: Mapping[str, tuple[str, ...]] = {}
) -> Any:
    """A field of a dataclass of settings.

    Args:
      default: its value where nobody says another; dataclasses.MISSING where somebody has to.
      check: what it may be.
      reason: what it is, and why it has its default; for the list of all fields.
      change: whether it may change within a run.
      of: the name of another field of the dataclass -> its values with which this one is looked at; with any where
        nothing is said.
    """
    whose = [f"of {' and '.join(values)}" for values in of.values()]
    metadata = {"check": check, "reason": "; ".join([*whose, reason]), "change": change, "of": of}
    return dataclasses.field(default=default, metadata=metadata)


def group(range: str, reason: str, change: Change) -> Any:
    """A field that holds others, whose names a method decides: its options, or the weights of its loss terms.

    Args:
      range: what they may be, in words.
      reason: what they are.
      change: whether it may change within a run which of them there are.
    """
    return dataclasses.field(metadata={"range": range, "reason": reason, "change": change})


def whole(low: int, high: int = LARGEST) -> Check:
    """A whole number from `low` to `high`."""
    bound = f"at least {low}" if high == LARGEST else f"from {low} to {high}"

    def check(value: Any) -> str:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if is_whole and low <= value <= high:
            return ""
        return f"must be a whole number {f'of at most {high}' if is_whole and value > high else bound}"

    return Check(check, f"a whole number {bound.replace('at least', 'of at least')}")


def number(low: float, high: float = math.inf, *, or_zero: bool = False) -> Check:
    """A finite number from `low` to `high`, or also 0."""
    bound = ("0, or " if or_zero else "") + f"at least {low:g}" + (f", at most {high:g}" if high < math.inf else "")

    def check(value: Any) -> str:
        finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if finite and (low <= value <= high or (or_zero and value == 0)):
            return ""
        return f"must be a finite number, {bound}"

    return Check(check, f"a number, {bound}")


def one_of(valid: Sequence[str]) -> Check:
    """One of some names."""

    def check(value: Any) -> str:
        return "" if isinstance(value, str) and value in valid else f"not known; {nearest(str(value), valid)}"

    return Check(check, " or ".join(valid))


def _increasing_epochs(value: Any) -> str:
    whole_numbers = isinstance(value, tuple | list) and all(
        type(epoch) is int and 1 <= epoch <= LARGEST for epoch in value
    )
    if whole_numbers and list(value) == sorted(set(value)):
        return ""
    return "must be increasing whole numbers of epochs, for instance 150,180,210; '()' for none"


def _names(value: Any) -> str:
    if isinstance(value, tuple | list) and all(isinstance(name, str) for name in value):
        return ""
    return "must be names, for instance ('kd',)"


def or_none(check: Check) -> Check:
    """What `check` allows, or None, which is written `none` on the command line."""

    def either(value: Any) -> str:
        wrong = "" if value is None else check(value)
        return wrong and f"{wrong}, or none"

    return Check(either, f"{check.range}, or none")


increasing_epochs = Check(_increasing_epochs, "increasing epochs, as 150,180,210, or '()' for none")
names = Check(_names, "names, as ('kd',), or ()")
# Not empty; what uses it checks it further.
text = Check(lambda value: "" if isinstance(value, str) and value else "must be text", "text")
truth = Check(lambda value: "" if isinstance(value, bool) else "must be true or false", "true or false")

# Below, softmax is an argmax and the gradient of a term, tau (p - q), is nothing; above, tau^2 KL is what it tends to,
# half the variance of the difference of the logits.
temperature = number(1e-3, 1e6)
# What float32 cannot tell from 0 would learn nothing, and what is larger overflows.
weight = number(1e-12, 1e6, or_zero=True)
