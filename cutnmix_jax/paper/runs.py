"""Runs in any folders, finished or not, and the groups of them that differ in nothing but the seed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cutnmix_jax import environment, files, finished, layout, methods, metrics
from cutnmix_jax.errors import CheckpointError, UserError, one_line
from cutnmix_jax.paper import origins
from cutnmix_jax.paper.grids import best
from cutnmix_jax.settings import tree, unused

_MARKS = (layout.CONFIG, layout.RESULTS, layout.ROWS)  # a folder with one of these is a run's
_NO_RUNS = (layout.CHECKPOINTS, layout.DAMAGED, layout.EVENTS)


class Run(NamedTuple):
    """A run and what it has come to so far; accuracies are fractions.

    Attributes:
      folder: of the run, as it was asked for.
      seed: of the run.
      fields: a path -> its value, of all fields but the seed that decide about the numbers; of a trained teacher what
        it is.
      unused: paths of fields that have no effect in it, and so are not among these.
      epochs: how many it is to have.
      head: the accuracy that its row of the tables shows.
      rows: its epochs so far.
      results: of `results.json`; None where it is not finished.
    """

    folder: Path
    seed: int
    fields: dict[str, Any]
    unused: frozenset[str]
    epochs: int
    head: str
    rows: list[metrics.EpochRow]
    results: dict[str, Any] | None

    @property
    def last(self) -> float | None:
        """Of the last epoch; None where it is not finished."""
        return self.results["last"][self.head] if self.results else None

    @property
    def best(self) -> float | None:
        """Of the best epoch; likewise."""
        return best(self.results, self.rows, self.head) if self.results else None

    @property
    def ensemble(self) -> float | None:
        """Of the peers together, after the last epoch; None also where it is not known."""
        return self.results["last"].get("accuracy_ensemble") if self.results else None


class Group(NamedTuple):
    """Runs that differ in nothing but the seed.

    Attributes:
      fields: that they share, as `Run.fields`.
      unused: likewise.
      epochs: how many they have.
      head: the accuracy that is shown.
      finished: those that are, by their seeds.
      unfinished: the others.
    """

    fields: dict[str, Any]
    unused: frozenset[str]
    epochs: int
    head: str
    finished: list[Run]
    unfinished: list[Run]

    @property
    def last(self) -> list[float]:
        """Accuracies of the last epoch in %, of the finished runs; likewise the next two."""
        return _percent([run.last for run in self.finished])

    @property
    def best(self) -> list[float]:
        """Of the best epoch of each."""
        return _percent([run.best for run in self.finished])

    @property
    def ensemble(self) -> list[float]:
        """Of the peers together; none where a run does not know it."""
        return _percent([run.ensemble for run in self.finished])


def _percent(fractions: Sequence[float | None]) -> list[float]:
    known = [100 * fraction for fraction in fractions if fraction is not None]
    return known if len(known) == len(fractions) else []


class Gathered(NamedTuple):
    """What was found.

    Attributes:
      groups: in the order in which they were met.
      left_out: a folder -> why it is not compared.
    """

    groups: list[Group]
    left_out: dict[Path, str]


def gather(folders: Sequence[Path]) -> Gathered:
    """Reads all runs that are in folders, or below them, each of them once."""
    left_out: dict[Path, str] = {}
    runs: dict[Path, Run] = {}
    for folder in folders:
        below = _below(folder, left_out)
        if not below and folder not in left_out:
            left_out[folder] = f"there is no run in it: no {layout.CONFIG}"
        for place in below:
            if place.resolve() in runs or place in left_out:
                continue
            try:
                runs[place.resolve()] = _read(place)
            except _UnusableError as error:
                left_out[place] = one_line(error)
    return Gathered(_grouped(list(runs.values()), left_out), left_out)


def _below(folder: Path, left_out: dict[Path, str]) -> list[Path]:
    """The folders of runs in a folder, itself maybe, by name; links are followed, and no folder is entered twice."""
    found, seen, waiting = [], set(), [folder]
    while waiting:
        place = waiting.pop()
        try:
            if (real := place.resolve()) in seen:
                continue
            seen.add(real)
            entries = sorted(place.iterdir(), reverse=True)
            waiting += [at for at in entries if at.name not in _NO_RUNS and at.name[0] != "." and at.is_dir()]
        except (OSError, RuntimeError) as error:  # the latter of links in a circle
            left_out[place] = getattr(error, "strerror", None) or one_line(error)
            continue
        if any(at.name in _MARKS for at in entries):
            found.append(place)
    return found


class _UnusableError(Exception):
    """A run that cannot be compared; its message says why."""


def _read(folder: Path) -> Run:
    """A run, of which no number is wrong.

    Raises:
      _UnusableError: it is damaged, was forced to go on with other fields, or is of another version.
    """
    results, why_not = finished.look(folder)
    if why_not:
        raise _UnusableError(why_not)
    try:
        config = files.read_fields(folder / layout.CONFIG)
        if files.kind(folder / layout.FORCED):
            raise _UnusableError("its fields were changed by --force")
        settings = tree.to_settings(config)
        head, rows = methods.row(settings.method).headline, metrics.read_rows(folder / layout.ROWS)
    except OSError as error:
        raise _UnusableError(f"{error.strerror}: {error.filename or folder}") from error
    except (ValueError, CheckpointError) as error:
        raise _UnusableError(f"its {layout.CONFIG} cannot be read: {one_line(error)}") from error
    except (UserError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise _UnusableError(f"its {layout.CONFIG} is of no run of this version: {one_line(error)}") from error
    if not finished.are_sound(rows) or len(rows) > settings.epochs:
        raise _UnusableError(f"{layout.ROWS} does not have the rows of {settings.epochs} epochs")
    if results and head not in results["last"]:
        raise _UnusableError(f"it has no {head}")
    # As the file has them, so that a field that it lacks is not taken for one with today's default.
    fields = {path: value for path, value in tree.deciding(config).items() if path != "seed"}
    without_effect = frozenset(unused.unused(settings))
    for path in without_effect:  # no difference makes two runs
        fields.pop(path, None)
    if fields.get("peers"):  # which are its networks, and so are shown as them
        del fields["peers"]
        fields["backbone.name"] = ",".join(settings.backbones)
    for field, digest in (("teacher", "teacher_sha256"), ("init_from", "init_sha256")):
        if trained := origins.trained(getattr(settings, field), (results or {}).get(digest)):
            fields[field] = trained
            fields |= origins.recipe(field, getattr(settings, field))
    if settings.teacher and settings.teacher_which != "last":
        fields["teacher_which"] = settings.teacher_which
    made_with = environment.read(folder)
    if seen := origins.seen(made_with):
        fields["data"] = seen
    if code := origins.code(made_with, settings.own_backbones):
        fields["code"] = code
    return Run(folder, settings.seed, fields, without_effect, settings.epochs, head, rows, results)


def _grouped(runs: Sequence[Run], left_out: dict[Path, str]) -> list[Group]:
    """Groups; of runs that are alike in their seed, too, the first one counts, or the first that is finished."""
    groups: dict[Any, Group] = {}
    seeds: dict[Any, Run] = {}
    for run in sorted(runs, key=lambda run: not run.results):
        same = frozenset(run.fields.items())
        if other := seeds.get((same, run.seed)):
            teachers = {(one.results or {}).get("teacher_sha256") for one in (run, other)}
            another = "taught by another run than " if len(teachers - {None}) > 1 else ""
            left_out[run.folder] = f"{another}{other.folder}, with the same fields and the same seed"
            continue
        seeds[same, run.seed] = run
        group = groups.setdefault(same, Group(run.fields, run.unused, run.epochs, run.head, [], []))
        (group.finished if run.results else group.unfinished).append(run)
    met = {id(run): number for number, run in enumerate(runs)}
    for group in groups.values():
        for some in (group.finished, group.unfinished):
            some.sort(key=lambda run: run.seed)
    return sorted(groups.values(), key=lambda group: min(met[id(run)] for run in group.finished + group.unfinished))
