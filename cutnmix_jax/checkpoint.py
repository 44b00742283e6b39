"""Saved states: a thin wrapper around Orbax, which writes in the background and commits by a rename.

A state is saved as a flat dictionary from path to array, so what lies on disk does not depend on the Python types of
the state's nodes.
"""

import logging
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from cutnmix_jax.errors import CheckpointError, one_line
from cutnmix_jax.types import Tree

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every save at the level of a warning


class Checkpoints:
    """The checkpoints of one run, newest last."""

    def __init__(self, folder: Path, keep: int):
        """Opens or makes `folder` and keeps the newest `keep` checkpoints in it."""
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, state: Tree) -> None:
        """Saves a state under its step number; returns once it is copied to the host.

        Raises:
          CheckpointError: this one or the one before could not be written.
        """
        try:
            self._manager.save(step, args=ocp.args.StandardSave(_flat(state)))
        except Exception as error:
            raise CheckpointError(f"cannot save step {step}: {one_line(error)}") from error

    def restore(self, like: Tree) -> Tree | None:
        """Reads the newest state.

        Args:
          like: a state of the same structure, shapes and types.

        Returns:
          The state, or None where nothing was saved yet.

        Raises:
          CheckpointError: it cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        # Without a sharding Orbax takes the saved one, and a state from a GPU could not be read on a CPU.
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here) for name, leaf in _flat(like).items()
        }
        try:
            flat = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except Exception as error:
            raise CheckpointError(
                f"cannot read the checkpoint of step {step} in {self._manager.directory}: {one_line(error)[:200]}"
            ) from error
        return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in _flat(like)])

    def wait(self) -> None:
        """Returns when everything saved so far is on disk.

        Raises:
          CheckpointError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise CheckpointError(f"cannot write in {self._manager.directory}: {one_line(error)[:200]}") from error

    def close(self) -> None:
        """Waits and lets go of the folder."""
        self.wait()
        self._manager.close()


def _flat(tree: Tree) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
