"""Where the cells of a table run: what such a place is asked, and what it answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from cutnmix_jax.errors import UserError
from cutnmix_jax.paper.cells import Cell


class Ended(NamedTuple):
    """How a cell has ended.

    Attributes:
      code: its exit code.
      error: why there was no run of it at all, where that is so.
      lost: what took its machine away; it then goes on elsewhere, as long as it moves on. Empty where nothing did.
    """

    code: int
    error: UserError | None = None
    lost: str = ""


class Status(NamedTuple):
    """Where the cells of a place stand.

    Attributes:
      running: the cells that are there and have not ended.
      queued: those among them that wait for a machine.
      ended: those that have ended since it was called last.
      stopping: whether a signal has come; nothing more is begun then.
    """

    running: frozenset[Cell]
    queued: frozenset[Cell]
    ended: Mapping[Cell, Ended]
    stopping: bool


# Begins cells and returns at once. Called again and again, also without any, as long as cells run.
Place = Callable[[Sequence[Cell]], Status]
