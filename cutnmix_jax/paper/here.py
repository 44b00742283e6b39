"""Cells as processes of this machine, on the GPUs that they are spread over."""

import contextlib
from collections.abc import Iterator, Sequence

from cutnmix_jax import files
from cutnmix_jax.errors import UsageError, UserError
from cutnmix_jax.paper.cells import Cell
from cutnmix_jax.paper.place import Ended, Place, Status
from cutnmix_jax.paper.progress import LOG
from cutnmix_jax.pool import Pool


@contextlib.contextmanager
def opened(devices: Sequence[str] = ()) -> Iterator[Place]:
    """The place; a signal stops all, and they save.

    Args:
      devices: GPUs, from `devices.chosen`; none: all cells see all.
    """
    slots: dict[Cell, int] = {}  # the place among those at once that a cell holds
    with Pool[Cell]() as pool:

        def place(cells: Sequence[Cell]) -> Status:
            ended = {cell: Ended(code) for cell, code in pool.ended().items()}
            for cell in ended:
                del slots[cell]
            for cell in cells:
                slot = min(set(range(len(slots) + 1)) - set(slots.values()))
                try:
                    _start(pool, cell, devices[slot % len(devices)] if devices else None)
                    slots[cell] = slot
                except UserError as error:
                    ended[cell] = Ended(error.exit_code, error)
            return Status(frozenset(slots), frozenset(), ended, pool.stopping)

        yield place


def _start(pool: Pool[Cell], cell: Cell, device: str | None) -> None:
    # The numbers are nvidia-smi's, and so by the bus; CUDA alone would count the fastest card first.
    environment = {"CUDA_VISIBLE_DEVICES": device, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if device is not None else {}
    try:
        cell.workdir.mkdir(parents=True, exist_ok=True)
        with files.append(cell.workdir / LOG) as log:
            pool.start(cell, cell.arguments, log, environment)
    except OSError as error:
        raise UsageError(f"cannot start in {cell.workdir}: {error.strerror}") from error
