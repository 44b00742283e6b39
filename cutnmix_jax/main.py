"""Trains a run: `python -m cutnmix_jax.main --config=configs/resnet110.py[:dataset,method]`."""

import argparse
import dataclasses
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cutnmix_jax import command, files, look_after, signals, storage
from cutnmix_jax.command import CommandLine, exit_code_of, folder_of, given
from cutnmix_jax.errors import StoppedError, UsageError
from cutnmix_jax.signals import StopRequest

if TYPE_CHECKING:
    from cutnmix_jax.settings import Settings

_DESCRIPTION = "Trains peer networks together, by a row of the paper's tables."
_EPILOG = """examples:
  {command} --config=quickstart                                   embedded digits, a minute and a half on two cores
  {command} --config=resnet110:cifar10,dml
  {command} --config=resnet32 --config.seed=96 --config.epochs=2 --workdir=runs/trial
  {command} --config=resnet32 --seeds=95,96,97
  {command} --list                                                networks, data sets, methods and fields
  {command} --list=fields

NAME is a configuration of --list, or the path of a Python file such as:
  from cutnmix_jax.settings import recipe
  def get_config(argument=None):
      config = recipe.make("resnet32", argument)
      config.epochs = 100
      config.optimizer.milestones = (62, 75, 87)
      return config

The same command again continues a run that was stopped.
Exit codes: 0 done, 2 configuration, usage, installation or device, 3 data, 4 checkpoint, 5 diverged, 75 stopped by a
signal and saved, 130 stopped at once by a second one."""


def main(arguments: Sequence[str] | None = None, own_process: bool = False) -> int:
    """Runs the command.

    Args:
      arguments: of the command line; those of this process where there are none.
      own_process: whether the process ends with the command, so that a signal may end it.

    Returns:
      the exit code.
    """
    start = time.monotonic()
    return exit_code_of(lambda: _run(sys.argv[1:] if arguments is None else arguments, own_process, start))


def _run(arguments: Sequence[str], own_process: bool, start: float) -> int:
    """Returns the exit code where another process has said why it is not 0."""
    if own_process:
        files.allow_many()
    parser = CommandLine("python -m cutnmix_jax.main", _DESCRIPTION, _EPILOG)
    parser.add_argument("--config", metavar="NAME[:DATASET,METHOD]", help="a configuration of --list, or a file")
    parser.add_argument("--config.FIELD", dest="field", metavar="VALUE", help="override any field of the configuration")
    parser.add_argument("--workdir", type=given, help="the run's folder (runs/DATASET/BACKBONE/METHOD/seedSEED)")
    parser.add_argument("--seeds", metavar="95,96,97", help="train these at once, each with the results it has alone")
    parser.add_argument(
        "--together",
        action="store_true",
        help="train the seeds in one program, for a GPU: within rounding of what each has alone",
    )
    parser.add_argument("--force", action="store_true", help="go on with a run although its fields have changed")
    parser.add_argument("--list", nargs="?", const="", metavar="PART", help="show what there is, or a part of it")
    parser.add_argument(
        "--extend",
        action="store_true",
        help="go on with a run to a larger total: its whole command, with --config.epochs=TOTAL",
    )
    of_group = parser.add_argument_group("several processes, on one machine or on many, that train one run")
    of_group.add_argument(
        "--distributed",
        choices=("off", "auto", "on"),
        default="off",
        help="auto: as Slurm, Open MPI or Kubernetes tell of them; on: by the flags below (off)",
    )
    of_group.add_argument(
        "--coordinator", type=given, metavar="HOST:PORT", help="of the first process, which listens there"
    )
    of_group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    of_group.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")
    if not arguments:
        print(f"{_DESCRIPTION}\n\n{parser.epilog}")
        return 0
    known, overrides = parser.parse_known_args(arguments)
    if known.list is not None:
        from cutnmix_jax.settings import listing

        print(listing.listed(known.list))
        return 0
    if known.force and known.extend:
        raise UsageError("--force and --extend: leave one of them out")
    if known.config is None:
        raise UsageError(f"--config=NAME says what to train: {', '.join(_names())}; see `{parser.prog} --help`")
    if known.field is not None:
        raise UsageError("--config.FIELD stands for any field of --list=fields, as --config.seed=96")
    if known.together and known.seeds is None:
        raise UsageError("--together is for --seeds=95,96,97; give them, or leave it out")
    known.workdir = known.workdir and folder_of(known.workdir, "--workdir")
    addresses = (known.coordinator, known.processes, known.process)
    if known.distributed != "on" and addresses != (None, None, None):
        raise UsageError("--coordinator, --processes and --process are of --distributed=on; give it, or leave them out")
    if known.distributed != "off":
        return _run_distributed(known, overrides, arguments, own_process, start)
    if known.seeds is None:
        with StopRequest(own_process) as stop:
            _run_one(known, overrides, stop, start)
    else:
        _run_seeds(known, overrides, own_process, start)
    return 0


# What is of several peers, or of the method that a run has; a baseline has its own.
_OF_A_METHOD = re.compile(
    r"--config\.((loss|weights|mix|ramp_up)\.|(num_peers|peers|share_trunk|views|mapping|teacher|teacher_which|init_from|"
    "held_out_examples)=)"
)


def _next_steps(settings: "Settings", workdir: Path, arguments: Sequence[str]) -> str:
    """What is worth typing after a first run, in its own folder `runs/DATASET/BACKBONE/METHOD/seedSEED`."""
    from cutnmix_jax import data
    from cutnmix_jax.settings import overrides

    dataset, networks = settings.dataset, dict.fromkeys(settings.own_backbones)
    shared = [text for text in overrides.alike(arguments) if not _OF_A_METHOD.match(text)]
    # Whose code may be run.
    own = [f"--backbone={','.join(networks)}"] * bool(networks) + [f"--dataset={dataset}"] * data.is_own(dataset)
    alone = f"--config=quickstart:{'' if ',' in dataset else dataset},baseline"  # which is among the others then
    of_alone = dataclasses.replace(settings, method="baseline", peers=None).default_workdir
    steps = {
        "one network alone, to compare it with": ["train", alone, *shared],
        "the curves of both, and what differs": ["report", str(workdir), str(of_alone), "--out=compared"],
        "exact accuracies, calibration, what the peers agree on": ["evaluate", str(workdir), *own],
        "what its best network says of a picture": ["predict", str(workdir), "PICTURE"],
        "its best network as a folder that is enough by itself": ["export", str(workdir), "my-student"],
        "networks, data sets, methods and fields": ["train", "--list"],
    }
    commands = {what: shlex.join(step) for what, step in steps.items()}
    return "\n".join(["next", *(f"  {what}:\n    {command.program()} {rest}" for what, rest in commands.items())])


def _names() -> list[str]:
    from cutnmix_jax.settings import recipe

    return recipe.names()


def _run_one(known: argparse.Namespace, overrides: Sequence[str], stop: StopRequest, start: float) -> None:
    # After the arguments are read and signals are heard, because it takes a second.
    from cutnmix_jax.settings import command_line

    settings = command_line.from_flags(known.config, overrides)

    from cutnmix_jax import device, training
    from cutnmix_jax.settings import recipe

    workdir = known.workdir or settings.default_workdir
    with device.blamed(settings.own_backbones):
        training.train(settings, workdir, stop, known.force, start, extend=known.extend)
    is_first = Path(known.config.partition(":")[0]).stem == recipe.QUICKSTART and not known.workdir
    if is_first and settings.method != "baseline":
        print(_next_steps(settings, workdir, overrides))


def _run_distributed(
    known: argparse.Namespace, overrides: Sequence[str], arguments: Sequence[str], own_process: bool, start: float
) -> int:
    if known.seeds is not None:
        raise UsageError("--distributed trains one run; leave --seeds out")
    addresses = (known.coordinator, known.processes, known.process)
    if known.distributed == "on" and None in addresses:
        raise UsageError("--distributed=on needs --coordinator=HOST:PORT --processes=N --process=I; give all three")
    if known.distributed == "on" and not 0 <= known.process < known.processes:
        raise UsageError(f"--process={known.process}: {known.processes} processes are 0 to {known.processes - 1}")
    if not look_after.is_member():
        return look_after.look_after(arguments)
    with StopRequest(own_process) as stop:
        from cutnmix_jax.settings import command_line

        settings = command_line.from_flags(known.config, overrides, all_devices=True)

        from cutnmix_jax import distributed
        from cutnmix_jax.group import Joining

        workdir = known.workdir or settings.default_workdir
        joining = Joining(known.distributed, *addresses)
        return distributed.run(settings, workdir, joining, stop, known.force, known.extend, start)


def _run_seeds(known: argparse.Namespace, overrides: Sequence[str], own_process: bool, start: float) -> None:
    with StopRequest(own_process) as stop:  # there is nothing to save before they have started
        from cutnmix_jax import seeds
        from cutnmix_jax.settings import command_line
        from cutnmix_jax.settings import overrides as forms

        if any(override.partition("=")[0] == "--config.seed" for override in forms.alike(overrides)):
            raise UsageError("--seeds and --config.seed: leave one of them out")
        fields = {seed: [*overrides, f"--config.seed={seed}"] for seed in seeds.parse(known.seeds)}
        settings = {seed: command_line.from_flags(known.config, own) for seed, own in fields.items()}
        workdirs = {seed: one.default_workdir for seed, one in settings.items()}
        if known.workdir:
            workdirs = {seed: known.workdir / default.name for seed, default in workdirs.items()}
        if known.together:
            from cutnmix_jax import together

            together.run(settings, workdirs, stop, known.force, known.extend, start)
            return
    if stop.requested:
        raise StoppedError("stopped before anything was trained; the same command begins again")
    more = ["--force"] * known.force + ["--extend"] * known.extend
    commands = {
        seed: [f"--config={known.config}", *own, f"--workdir={workdirs[seed]}", *more] for seed, own in fields.items()
    }
    seeds.run(commands, workdirs)


if __name__ == "__main__":
    command.before_jax()
    storage.hush()  # to the end: what a failed save leaves behind is reported in threads of its own
    signals.end(main(own_process=True))
