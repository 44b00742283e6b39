"""Several seeds in one program: a thread for each run does all that a run does alone, but for its steps.

On a GPU that waits for launches, three seeds cost little more than one; on a CPU nothing is won.
"""

import contextlib
import threading
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

from cutnmix_jax import command, seeds, training
from cutnmix_jax.continued import Allowed
from cutnmix_jax.device import blamed
from cutnmix_jax.engine import assemble
from cutnmix_jax.engine.engine import Engine
from cutnmix_jax.engine.joint import Joint
from cutnmix_jax.engine.placement import OnHost
from cutnmix_jax.errors import UsageError
from cutnmix_jax.parts import Parts, assembled, load
from cutnmix_jax.settings import DEVICE, Settings
from cutnmix_jax.settings.check import checked
from cutnmix_jax.signals import Stop, StopRequest
from cutnmix_jax.streams import labelled
from cutnmix_jax.types import Dataset


def run(
    settings: Mapping[int, Settings],
    workdirs: Mapping[int, Path],
    stop: StopRequest,
    force: bool,
    extend: bool,
    start: float,
) -> None:
    """Trains all seeds in one program and prints what each says, and in the end their mean and deviation.

    What a run promises alone holds for each of them: its folder, its rows, its checkpoints, its results, within
    rounding. What ends one of them leaves the others.

    Args:
      settings: a seed -> those of its run; they differ in the seed alone.
      workdirs: a seed -> the folder of its run.
      stop: says when to stop; all stop after the same step.
      force: as of `training.train`.
      extend: likewise.
      start: `time.monotonic()` when the command was given.

    Raises:
      UserError: a run failed, with its exit code; the others were trained to their end.
      StoppedError: they were stopped; the same command continues them.
    """
    first = check(next(iter(settings.values())))
    allowed = Allowed.of(force=force, extend=extend)
    runs, codes = _Runs(len(settings), stop), dict.fromkeys(settings, 1)

    def train(number: int, seed: int) -> None:
        with runs.parts(number) as parts, blamed(first.own_backbones):
            training.run(checked(settings[seed]), workdirs[seed], runs, allowed, start, made=parts)

    def trained(number: int, seed: int) -> None:
        with label(f"seed {seed} | "):
            try:
                codes[seed] = command.exit_code_of_part(lambda: train(number, seed))
            except Exception:  # a fault of ours, which leaves the others
                traceback.print_exc()

    with labelled() as label:
        threads = [threading.Thread(target=trained, args=one, daemon=True) for one in enumerate(settings)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    seeds.end(codes, stop.requested, workdirs)


def check(settings: Settings, flag: str = "--together") -> Settings:
    """Checks that seeds of these settings can be trained in one program.

    Args:
      settings: of one of the seeds.
      flag: what asks for that.

    Returns:
      The settings as the program trains them.

    Raises:
      UsageError: they cannot; says why.
    """
    found = checked(settings)
    if found.held_out_examples or found.validation_examples:
        raise UsageError(f"{flag}: seeds that each hold out images of their own make no one program; leave it out")
    if found.devices != 1:
        raise UsageError(f"{flag}: one program of several seeds trains on one device; leave it out, or config.devices")
    if found.images_in not in (None, DEVICE):
        raise elsewhere(flag)
    return found


def elsewhere(flag: str = "--together") -> UsageError:
    """What is raised where the images turn out not to be on the device."""
    what = "each seed reads other images where they are not on the device"
    return UsageError(f"{flag}: {what}; leave it out, or set config.images_in=device if they fit")


class _Runs:
    """What the runs share: data, program, and the request to stop, which all of them see after the same call."""

    def __init__(self, count: int, stop: Stop) -> None:
        self.requested = False
        self._stop = stop
        self._joint = Joint(count, self._look)
        self._loading = threading.Lock()
        self._dataset: Dataset | None = None

    def _look(self) -> None:
        self.requested = self._stop.requested

    def defer(self) -> None:
        """As of `StopRequest`."""
        self._stop.defer()

    @contextlib.contextmanager
    def parts(self, number: int) -> Iterator[Parts]:
        """The parts of a run, while it goes on."""

        def engine(settings: Settings, dataset: Dataset, networks: assemble.Networks) -> Engine:
            found = self._joint.engine(number, settings, lambda: assembled(settings, dataset, networks))
            if isinstance(found.train_data, OnHost):
                raise elsewhere()
            return found

        try:
            yield Parts(self._load, engine)
        finally:
            self._joint.leave()

    def _load(self, settings: Settings, networks: assemble.Networks) -> Dataset:
        with self._loading:
            self._dataset = self._dataset or load(settings, networks)
            return self._dataset
