"""Saved states: a thin wrapper around Orbax, which writes in the background and commits by a rename.

A state is saved as a flat dictionary from path to array, so what lies on disk does not depend on the Python types of
the state's nodes. Beside it are the SHA-256 of each array, because Orbax alone gives back a flipped bit without a word;
the rows up to it, so that they are as safe as it is; and a fingerprint of the random numbers that it goes on with.
"""

import contextlib
import errno
import gc
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from cutnmix_jax import console, digests, storage
from cutnmix_jax.checkpoint_reader import Reader, ocp
from cutnmix_jax.errors import CheckpointError, DivergedError
from cutnmix_jax.metrics import PATIENCE, ranked
from cutnmix_jax.types import EpochRow, Tree

# Orbax numbers the saves of a process, and while one begins it waits for what has the newest number: of two that begin
# at once, one would wait for ever.
_beginning = threading.Lock()


class Checkpoints(Reader):
    """The checkpoints of one run, to be written and read."""

    def __init__(
        self,
        folder: Path,
        keep: int,
        check: Callable[[], None] = lambda: None,
        config: Mapping[str, Any] | None = None,
    ):
        """Opens or makes `folder`, to keep the newest `keep` and the best in it.

        Args:
          folder: of the checkpoints, in that of the run.
          keep: how many.
          check: raises CheckpointError where the run's folder was moved, removed or replaced.
          config: the fields of the run, which are saved with each state.
        """
        self._check, self._config, self._warned = check, config, ""
        super().__init__(folder, storage.NewestAndBest(keep))

    def save(self, step: int, state: Tree, rows: Sequence[EpochRow] = ()) -> None:
        """Begins to save a state under its step number; returns once it is copied to the host.

        The first one of a run is on disk when this returns. Where a later one fails, a warning tells of it and training
        can go on: there is one to fall back on.

        Args:
          step: of the state; one that is saved already is left alone.
          state: any tree of arrays.
          rows: of the epochs up to the step. Of them the best one that is saved is kept although it is old.

        Raises:
          CheckpointError: it cannot be written, and no other is there.
          DivergedError: the state is not finite.
        """
        failed = None
        self._check()
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # of the save before, which went on in the background
            failed = error
            self._reopen()
        left = self._left()
        try:
            if self.steps():
                self._begin(step, state, rows)
        except DivergedError:
            raise
        except Exception as error:
            failed = failed or error
            self._reopen()
        self._check()  # or a disk would be blamed
        if not self.steps():  # the first one, or somebody has removed them
            self.finish(step, state, rows)
            return
        warning = f"({storage.reason(failed)}); training goes on, {left}" if failed else ""
        if warning and warning != self._warned:  # once for as long as it lasts
            console.warn(f"cannot save in {self._folder} {warning}")
        self._warned = warning

    def finish(self, step: int, state: Tree, rows: Sequence[EpochRow] = ()) -> None:
        """Like `save`, but tries more than once and returns when the state is on disk.

        Raises:
          CheckpointError: it cannot be written; says which checkpoint is left.
          DivergedError: the state is not finite.
        """
        reasons = []
        for seconds in PATIENCE:
            time.sleep(seconds)
            self._check()
            try:
                self._manager.wait_until_finished()
                self._begin(step, state, rows)
                self._manager.wait_until_finished()
                if step not in self.steps():  # Orbax takes none that is older than its newest
                    raise ValueError(f"it holds {self.steps()}")
                return
            except DivergedError:
                raise
            except Exception as error:
                reasons.append(storage.reason(error))
                self._reopen()
        self._check()
        raise CheckpointError(
            f"cannot save step {step} in {self._folder} ({reasons[0]}); {self._left()}; "
            "make room or let it be written, and give the same command again"
        )

    def _begin(self, step: int, state: Tree, rows: Sequence[EpochRow]) -> None:
        flat = digests.flat(state)
        record = digests.of(step, flat, rows, self._config)
        free = shutil.disk_usage(self._folder).free
        if free < record["bytes"]:  # so that a save that cannot succeed does not fill what is left
            raise OSError(errno.ENOSPC, f"{record['bytes']:,} bytes are needed and {free:,} are free")
        assert self._preserve
        self._preserve.ranking = [row["step"] for row in ranked(rows)]
        # Orbax takes no array of one process where there are several.
        arrays = jax.device_get(flat) if jax.process_count() > 1 else flat
        saved = ocp.args.Composite(state=ocp.args.StandardSave(arrays), digests=ocp.args.JsonSave(record))
        with _beginning:
            self._manager.save(step, args=saved)

    def _reopen(self) -> None:
        """Forgets a save that failed and frees the room that it took."""
        with contextlib.suppress(Exception):  # the failure that is being dealt with
            self._manager.close()
        gc.collect()  # what was being written ends now, and not in tracebacks when Python ends
        with contextlib.suppress(Exception):  # then the next save fails too, and says why
            self._open()

    def _left(self) -> str:
        steps = self.steps()
        return f"the newest checkpoint is that of step {steps[-1]}" if steps else "no checkpoint is there"

    def close(self) -> None:
        """Waits for what is being written and lets go of the folder; a failure then is a warning."""
        try:
            self._manager.close()
        except Exception as error:
            with contextlib.suppress(CheckpointError):  # of a folder that was moved it is said already
                self._check()
                console.warn(f"cannot save in {self._folder} ({storage.reason(error)})")
        self._place.close()
