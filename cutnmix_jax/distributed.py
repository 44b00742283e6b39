"""A run in several processes, on one machine or on many: what each of them does."""

import contextlib
import dataclasses
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from cutnmix_jax import environment, group, storage, training
from cutnmix_jax.continued import Allowed
from cutnmix_jax.device import blamed, set_up_jax
from cutnmix_jax.engine import assemble, devices, led
from cutnmix_jax.engine.engine import Engine
from cutnmix_jax.engine.placement import OnHost
from cutnmix_jax.errors import DataError, StoppedError, UsageError, UserError, described, one_line
from cutnmix_jax.group import Group, Joining, LostError
from cutnmix_jax.parts import Parts, assembled, load
from cutnmix_jax.precision import CHOICES
from cutnmix_jax.settings import Settings, tree
from cutnmix_jax.settings.check import checked
from cutnmix_jax.signals import Stop, StopRequest
from cutnmix_jax.types import Dataset

_GONE = re.compile("gloo|nccl|connection|socket|UNAVAILABLE|heartbeat|coordination", re.IGNORECASE)


def run(
    settings: Settings, workdir: Path, joining: Joining, stop: StopRequest, force: bool, extend: bool, start: float
) -> int:
    """Trains a run together with other processes; to be called in each of them, with the same arguments.

    Args:
      settings: of the run.
      workdir: its folder, which the first process alone reads and writes.
      joining: how the processes find each other.
      stop: says when to stop; asked of any of them, all stop after the same step.
      force: as of `training.train`.
      extend: likewise.
      start: `time.monotonic()` when the command was given.

    Returns:
      The exit code of the run, where the first process has said why.

    Raises:
      UserError: of the kind that fits.
    """
    with group.joined(joining) as members:
        where = f"process {members.index} of {members.count} on {platform.node()}"
        print(f"{where}: {jax.local_device_count()} of {jax.device_count()} devices", flush=True)
        if members.index:
            return _follow(settings, members, stop)
        allowed = Allowed.of(force=force, extend=extend)
        _lead(settings, workdir, members, stop, allowed, start)
        return 0


def _lead(settings: Settings, workdir: Path, members: Group, stop: StopRequest, allowed: Allowed, start: float) -> None:
    def engine(settings: Settings, dataset: Dataset, networks: assemble.Networks) -> Engine:
        made = assembled(settings, dataset, networks)
        ours = _facts(made)
        for index, theirs in members.members():
            _compare(ours, theirs, f"process {index} on {theirs['host']}")
        return led.led(made, members.tell, members.meet)

    code, why = 1, "a fault of the program, see what process 0 says"
    try:
        with _blamed(settings.own_backbones):
            training.run(checked(settings), workdir, _Asked(stop, members), allowed, start, made=Parts(load, engine))
        code, why = 0, ""
    except UserError as error:
        code, why = error.exit_code, "" if isinstance(error, StoppedError) else one_line(error)
        raise
    finally:
        members.tell("end", code, why)


def _follow(settings: Settings, members: Group, stop: StopRequest) -> int:
    try:
        with _blamed(settings.own_backbones), storage.hush():
            settings = checked(settings)
            networks = training.plan(settings)
            settings = devices.counted(settings)
            dataset = load(settings, networks)
            with set_up_jax(CHOICES[settings.precision]):
                engine = assembled(settings, dataset, networks)
                members.introduce(_facts(engine))
                stop.defer()  # from here on the first process decides
                code, why = led.follow(engine, members.commands(stop), members.meet)
                if why:
                    print(f"error: process 0 has ended with exit code {code}: {why}", file=sys.stderr, flush=True)
                return code
    except Exception as error:
        members.failed(error.exit_code if isinstance(error, UserError) else 1, one_line(error))
        raise


@contextlib.contextmanager
def _blamed(names: Sequence[str]) -> Iterator[None]:
    """As `device.blamed`; but that a device waits for one that has gone is no fault of it."""
    try:
        with blamed(names):
            yield
    except UsageError as error:
        if isinstance(error.__cause__, jax.errors.JaxRuntimeError) and _GONE.search(str(error.__cause__)):
            raise LostError(described(error.__cause__, 120)) from error
        raise


class _Asked:
    """Whether any of the processes was told to stop."""

    def __init__(self, stop: Stop, members: Group):
        self._stop, self._members = stop, members

    @property
    def requested(self) -> bool:
        return self._stop.requested or self._members.stop_asked

    def defer(self) -> None:
        self._stop.defer()


def _facts(engine: Engine) -> dict[str, Any]:
    """What has to be the same in all processes."""
    made_with = environment.of_run(engine.dataset, engine.settings.own_backbones)
    alike = {name: made_with[name] for name in ("versions", "source", "backend", "settings", "flags")}
    # Data may lie elsewhere on each host; a host with less memory would keep them elsewhere, and run another program.
    config = tree.of_settings(dataclasses.replace(engine.settings, data_dir=None))
    where = {"steps_per_call": engine.steps_per_call, "on_host": isinstance(engine.train_data, OnHost)}
    return {**alike, **where, "config": config, "images": [made_with["data_sha256"], made_with["facts_sha256"]]}


def _compare(ours: Mapping[str, Any], theirs: Mapping[str, Any], who: str) -> None:
    """Raises UserError where another process would train something else."""
    changed = tree.differences(ours, {name: theirs[name] for name in ours})
    if not changed:
        return
    if changed[0].path == "images":
        raise DataError(f"{who} has other images; give all processes the same ones by --config.data_dir")
    one = changed[0]
    what = f"{one.path} is {one.before!r} in process 0 and {one.after!r} there"
    raise UsageError(f"{who} would train something else: {what}; make them alike")
