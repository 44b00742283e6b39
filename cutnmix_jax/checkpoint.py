"""Saved states: a thin wrapper around Orbax, which writes in the background and commits by a rename.

A state is saved as a flat dictionary from path to array, so what lies on disk does not depend on the Python types of
the state's nodes.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from cutnmix_jax import console
from cutnmix_jax.errors import CheckpointError, one_line
from cutnmix_jax.types import Tree

# Orbax tells of every save at the level of a warning, and of a failed one with tracebacks besides the exception.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
    """The checkpoints of one run, newest last."""

    def __init__(self, folder: Path, keep: int | None):
        """Opens or makes `folder` and keeps the newest `keep` checkpoints in it; with None only reads what is there."""
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=keep is not None, read_only=keep is None)
        # Named, so that it can tell what a checkpoint holds before it reads it.
        handler = ocp.StandardCheckpointHandler()
        self._manager = ocp.CheckpointManager(folder.absolute(), item_handlers=handler, options=options)

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
        """Reads the newest state that can be read.

        One that cannot is moved to `checkpoints-damaged` beside the folder, with a warning, and an older one is tried.

        Args:
          like: a state of the same structure, shapes and types.

        Returns:
          The state, or None where nothing was saved yet.

        Raises:
          CheckpointError: something was saved and none of it can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return self._read(step, like)
            except Exception as error:  # what a damaged file makes Orbax raise has no common base
                reason = f"{type(error).__name__}: {one_line(error)[:120]}"
            damaged = self._put_aside(step)
            console.warn(f"the checkpoint of step {step} cannot be read ({reason}) and was moved to {damaged}")
        if steps:
            raise CheckpointError(f"no checkpoint in {self._manager.directory} can be read; start in another --workdir")
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
        step = self._manager.latest_step()
        if step is None:
            raise CheckpointError(f"{self._manager.directory} holds no checkpoint")
        try:
            flat = self._read_flat(step, self._manager.item_metadata(step))
            return {name: _unflat(flat, prefix, like) for name, (prefix, like) in parts.items()}
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint of step {step} in {self._manager.directory} cannot be read: {one_line(error)[:200]}"
            ) from error

    def _read(self, step: int, like: Tree) -> Tree:
        flat = self._read_flat(step, _flat(like))
        return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in _flat(like)])

    def _read_flat(self, step: int, shapes: Mapping[str, Any]) -> dict[str, jax.Array]:
        # Without a sharding Orbax takes the saved one, and a state from a GPU could not be read on a CPU.
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here) for name, leaf in shapes.items()}
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def _put_aside(self, step: int) -> Path:
        folder = Path(self._manager.directory)
        target = folder.with_name(f"{folder.name}-damaged") / f"{step}-{time.strftime('%Y%m%d-%H%M%S')}"
        target.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(target)
        self._manager.reload()
        return target

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


def _unflat(flat: dict[str, jax.Array], prefix: str, like: Tree) -> Tree:
    found = []
    for name, leaf in _flat(like).items():
        found.append(flat[f"{prefix}.{name}"])
        if found[-1].shape != leaf.shape:
            raise ValueError(f"{name} is {found[-1].shape}, not {leaf.shape}")
    return jax.tree.unflatten(jax.tree.structure(like), found)


def _flat(tree: Tree) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
