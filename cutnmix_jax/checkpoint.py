"""Saved states: a thin wrapper around Orbax, which writes in the background and commits by a rename.

A state is saved as a flat dictionary from path to array, so what lies on disk does not depend on the Python types of
the state's nodes. Beside it are the SHA-256 of each array, because Orbax alone gives back a flipped bit without a word;
the rows up to it, so that they are as safe as it is; and a fingerprint of the random numbers that it goes on with.
"""

import contextlib
import errno
import gc
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from cutnmix_jax import console, digests, files, storage
from cutnmix_jax.errors import CheckpointError, DivergedError, UsageError, excused
from cutnmix_jax.metrics import PATIENCE, ranking
from cutnmix_jax.types import Row, Tree


class Restored(NamedTuple):
    """A state, the rows of the epochs up to it, and the fields of the configuration that it was trained with."""

    state: Tree
    rows: list[Row]
    config: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, newest last."""

    def __init__(
        self,
        folder: Path,
        keep: int | None,
        check: Callable[[], None] = lambda: None,
        config: Mapping[str, Any] | None = None,
    ):
        """Opens or makes `folder`, to keep the newest `keep` and the best in it; with None only to read.

        Args:
          folder: of the checkpoints, in that of the run.
          keep: how many.
          check: raises CheckpointError where the run's folder stands under its name no longer.
          config: the fields of the run, which are saved with each state.
        """
        self._folder, self._preserve = folder.absolute(), None if keep is None else storage.NewestAndBest(keep)
        self._check, self._config, self._warned = check, config, ""
        # What is being written when the run's folder is moved goes with it, and not under the old name.
        self._place = storage.Place(self._folder.parent)
        try:
            self._open()
        except BaseException:
            self._place.close()
            raise

    def _open(self) -> None:
        writes = self._preserve is not None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._preserve,
            create=writes,
            read_only=not writes,
            cleanup_tmp_directories=writes,  # what a kill or a full disk left unfinished
        )
        # Named, so that it can tell what a checkpoint holds before it reads it.
        handlers = {"state": ocp.StandardCheckpointHandler(), "digests": ocp.JsonCheckpointHandler()}
        folder, there = self._folder.name, digests.steps_in(self._folder)
        try:
            self._manager = ocp.CheckpointManager(self._place.path / folder, item_handlers=handlers, options=options)
        except Exception as error:  # it looks at each checkpoint, and what it cannot look at raises anything
            why = files.unreadable(self._folder, error) or storage.reason(error)
            raise excused(error) or self._cannot_read("a checkpoint", why) from error
        if others := set(self.steps()) - set(there):
            what = f"holds what can be taken for the state of step {min(others)}"
            raise CheckpointError(f"{self._folder} {what}; move it away")

    def _cannot_read(self, what: str, why: str) -> CheckpointError:
        then = "let it be read or move it away, and give the same command again"
        return CheckpointError(f"cannot read {what} in {self._folder} ({why}); {then}")

    def steps(self) -> list[int]:
        """The steps that are saved, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Tree, rows: Sequence[Row] = ()) -> None:
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
        self._check()  # or it would be told as a disk that fails
        if not self.steps():  # the first one, or somebody has removed them
            self.finish(step, state, rows)
            return
        warning = f"({storage.reason(failed)}); training goes on, {left}" if failed else ""
        if warning and warning != self._warned:  # once for as long as it lasts
            console.warn(f"cannot save in {self._folder} {warning}")
        self._warned = warning

    def finish(self, step: int, state: Tree, rows: Sequence[Row] = ()) -> None:
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

    def _begin(self, step: int, state: Tree, rows: Sequence[Row]) -> None:
        flat = digests.flat(state)
        told = digests.of(step, flat, rows, self._config)
        free = shutil.disk_usage(self._folder).free
        if free < told["bytes"]:  # so that a save that cannot succeed does not fill what is left
            raise OSError(errno.ENOSPC, f"{told['bytes']:,} bytes are needed and {free:,} are free")
        assert self._preserve
        self._preserve.ranking = ranking(rows)
        saved = ocp.args.Composite(state=ocp.args.StandardSave(flat), digests=ocp.args.JsonSave(told))
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

    def restore(self, like: Tree) -> Restored | None:
        """Reads the newest state that is whole, and its rows.

        Newer ones that are not are moved to `checkpoints-damaged` beside the folder, with a warning.

        Args:
          like: a state of the same structure, shapes and types.

        Returns:
          The state and the rows, or None where nothing was saved yet.

        Raises:
          CheckpointError: something was saved and none of it is whole, or it cannot be read, or it is the state of
            another program; nothing was moved.
          UsageError: it cannot be read for want of memory, or of a library, or goes on with other random numbers;
            nothing was moved.
        """
        damaged: dict[int, str] = {}
        for step in reversed(digests.steps_in(self._folder)):
            try:
                if step not in self.steps():  # a kill while it was being removed
                    raise ValueError("it is not complete")
                flat, told = self._read_flat(step, digests.flat(like))
            except (CheckpointError, UsageError):
                raise
            except Exception as error:  # what a damaged file makes Orbax raise has no common base
                if excuse := excused(error):
                    raise excuse from error
                if reason := files.unreadable(self._folder / str(step), error):
                    raise self._cannot_read(f"the checkpoint of step {step}", reason) from error
                damaged[step] = storage.reason(error)
                continue
            for broken, reason in damaged.items():
                moved = storage.put_damaged_aside(self._folder, broken)
                console.warn(f"the checkpoint of step {broken} is damaged ({reason}); moved to {moved}")
            self._manager.reload()
            state = jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in digests.flat(like)])
            return Restored(state, told["rows"], told["config"])
        if damaged:
            newest, reason = next(iter(damaged.items()))
            raise CheckpointError(
                f"none of the {len(damaged)} checkpoints in {self._folder} is whole (step {newest}: {reason}); "
                "restore one from a copy, or start in another --workdir"
            )
        return None

    def read_parts(self, parts: dict[str, tuple[str, Tree]]) -> dict[str, Tree]:
        """Reads parts of the newest state whatever else it holds.

        Args:
          parts: a name -> where the part stands in the state, with dots, and its shapes.

        Returns:
          The name -> the part.

        Raises:
          CheckpointError: nothing was saved, or it cannot be read, or the parts are not in it.
        """
        step = max(self.steps(), default=None)
        if step is None:
            raise CheckpointError(f"{self._folder} holds no checkpoint")
        try:
            flat, _ = self._read_flat(step, None)
            return {name: digests.part_of(flat, prefix, like) for name, (prefix, like) in parts.items()}
        except Exception as error:
            raise excused(error) or CheckpointError(
                f"the checkpoint of step {step} in {self._folder} cannot be read: {storage.reason(error)}"
            ) from error

    def _read_flat(self, step: int, wanted: Mapping[str, Any] | None) -> tuple[dict[str, jax.Array], digests.Digests]:
        """Reads a state, all of it where `wanted` names no arrays, and compares every array with its digest."""
        told = digests.read(self._folder, step)
        files.survey(self._folder / str(step), digests.most_bytes(told))  # or Orbax would read whatever is there
        if wanted is None:
            wanted = self._manager.item_metadata(step)["state"]
        else:
            digests.check_stream(told, self._folder)
            digests.check_shapes(told, wanted, self._folder)
        # Without a sharding Orbax takes the saved one, and a state from a GPU could not be read on a CPU.
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here) for name, leaf in wanted.items()}
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        flat = jax.device_get(self._manager.restore(step, args=args)["state"])
        digests.compare(told, digests.of(step, flat))
        # By way of the host: Orbax ties arrays to a device, and with such ones the step would be compiled twice.
        return {name: jnp.asarray(array) for name, array in flat.items()}, told

    def close(self) -> None:
        """Waits for what is being written and lets go of the folder; a failure then is a warning."""
        try:
            self._manager.close()
        except Exception as error:
            with contextlib.suppress(CheckpointError):  # of a folder that was moved it is said already
                self._check()
                console.warn(f"cannot save in {self._folder} ({storage.reason(error)})")
        self._place.close()
