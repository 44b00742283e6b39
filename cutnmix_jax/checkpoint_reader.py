"""Reading saved states: whole ones only, by a SHA-256 of each array; see `checkpoint.py` for how they are saved."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cutnmix_jax import console, digests, files, stack, storage
from cutnmix_jax.errors import CheckpointError, UsageError, excused
from cutnmix_jax.streams import handlers_kept
from cutnmix_jax.types import EpochRow, Tree

with handlers_kept():  # it logs while it is imported; here alone, for `checkpoint.py` too
    import orbax.checkpoint as ocp


class Restored(NamedTuple):
    """A state, the rows of the epochs up to it, and the fields of the configuration that it was trained with."""

    state: Tree
    rows: list[EpochRow]
    config: dict[str, Any]


class Reader:
    """The checkpoints of one run, newest last; `restore` moves damaged ones away, nothing else is changed."""

    def __init__(self, folder: Path, preserve: storage.NewestAndBest | None = None):
        """Opens `folder`.

        Args:
          folder: of the checkpoints, in that of the run.
          preserve: which ones are kept, for who saves some; the folder is made then.
        """
        self._folder, self._preserve = folder.absolute(), preserve
        # What is being written when the run's folder is moved goes with it, and not under the old name.
        self._place = storage.Place(self._folder.parent)
        try:
            self._open()
        except BaseException:
            self._place.close()
            raise

    def _open(self) -> None:
        writes = self._preserve is not None
        # Each of several processes reads for itself, and the first one alone saves; by default they would wait for all.
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"own{me}"
        )
        several = {"multiprocessing_options": alone} if jax.process_count() > 1 else {}
        options = ocp.CheckpointManagerOptions(
            **several,
            preservation_policy=self._preserve,
            create=writes and not several,  # which Orbax has not; the folder of a run has it by now
            read_only=not writes,
            cleanup_tmp_directories=writes,  # what a kill or a full disk left unfinished
        )
        # Named, so that it can tell what a checkpoint holds before it reads it.
        handlers = {
            "state": ocp.StandardCheckpointHandler(**several),
            "digests": ocp.JsonCheckpointHandler(**several),
        }
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

    def restore(self, like: Tree) -> Restored | None:
        """Reads the newest state that is whole, and its rows.

        Newer ones that are not are moved to `checkpoints-damaged` beside the folder, with a warning.

        Args:
          like: a state of the same structure, shapes and types.

        Returns:
          The state and the rows, or None where nothing was saved yet.

        Raises:
          CheckpointError: something was saved and none of it is whole, or it cannot be read, or it is the state of
            other fields or of another version; nothing was moved.
          UsageError: it cannot be read for want of memory, or of a library, or goes on with other random numbers;
            nothing was moved.
        """
        damaged: dict[int, str] = {}
        apart = jax.eval_shape(stack.apart, like)
        for step in reversed(digests.steps_in(self._folder)):
            try:
                if step not in self.steps():  # a kill while it was being removed
                    raise ValueError("it is not complete")
                flat, record = self._read_flat(step, digests.flat(apart))
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
            state = jax.tree.unflatten(jax.tree.structure(apart), [flat[name] for name in digests.flat(apart)])
            return Restored(stack.together(state, like), record["rows"], record["config"])
        if damaged:
            newest, reason = next(iter(damaged.items()))
            raise CheckpointError(
                f"none of the {len(damaged)} checkpoints in {self._folder} is whole (step {newest}: {reason}); "
                "restore one from a copy, or start in another --workdir"
            )
        return None

    def read_network(self, shapes: dict[str, Tree], step: int | None = None) -> dict[str, Tree]:
        """Reads peer 0 of a state, whatever else that holds.

        Args:
          shapes: of the network, {'params': tree, 'batch_stats': tree}, or of a part of it.
          step: of the state; the newest one where nothing is said.

        Raises:
          CheckpointError: nothing was saved, or it cannot be read, or the network is not in it.
        """
        flat = self.arrays(step)
        with self._blamed(self._newest() if step is None else step):
            return {name: digests.part_of(flat, f"{digests.PEERS[name]}.0", like) for name, like in shapes.items()}

    def arrays(self, step: int | None = None) -> dict[str, jax.Array]:
        """All arrays of a state by their names, as `digests.flat` gives them.

        Args:
          step: of the state; the newest one where nothing is said.

        Raises:
          CheckpointError: it is not there, or cannot be read.
        """
        step = self._newest() if step is None else step
        if step not in self.steps():
            raise CheckpointError(f"the checkpoint of step {step} in {self._folder} is gone; restore it")
        with self._blamed(step):
            return self._read_flat(step, None)[0]

    def _newest(self) -> int:
        if not self.steps():
            raise CheckpointError(f"{self._folder} holds no checkpoint")
        return self.steps()[-1]

    @contextlib.contextmanager
    def _blamed(self, step: int) -> Iterator[None]:
        """While entered, whatever is raised says that the checkpoint of a step cannot be read."""
        try:
            yield
        except Exception as error:
            raise excused(error) or CheckpointError(
                f"the checkpoint of step {step} in {self._folder} cannot be read: {storage.reason(error)}"
            ) from error

    def _read_flat(self, step: int, wanted: Mapping[str, Any] | None) -> tuple[dict[str, jax.Array], digests.Digests]:
        """Reads a state, all of it where `wanted` names no arrays, and compares every array with its digest."""
        record = digests.read(self._folder, step)
        files.survey(self._folder / str(step), digests.most_bytes(record))  # or Orbax would read whatever is there
        if wanted is None:
            wanted = self._manager.item_metadata(step)["state"]
        else:
            digests.check_stream(record, self._folder)
            digests.check_shapes(record, wanted, self._folder)
        # Without a sharding Orbax takes the saved one, and a state from a GPU could not be read on a CPU.
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here) for name, leaf in wanted.items()}
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        flat = jax.device_get(self._manager.restore(step, args=args)["state"])
        digests.compare(record, digests.of(step, flat))
        # By way of the host: Orbax ties arrays to a device, and with such ones the step would be compiled twice.
        return {name: jnp.asarray(array) for name, array in flat.items()}, record

    def close(self) -> None:
        """Lets go of the folder."""
        self._manager.close()
        self._place.close()
