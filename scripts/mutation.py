"""Changes the science in small ways, one after the other, and says which changes no test notices.

  scripts/mutate                       every file of the list, one change at each place
  scripts/mutate losses augment        these alone
  scripts/mutate losses --most=20      20 places, drawn at random (--seed=0)

Works on a copy of the files that git knows, with cosmic-ray; the clone is left as it is. A file takes minutes to hours.
"""

import json
import random
import shlex
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cutnmix_jax.command import CommandLine, exit_code_of
from cutnmix_jax.errors import UsageError, nearest
from scripts import clone

# A file of the package, and the tests that should notice what is wrong with it.
TESTS = {
    "losses": "losses",
    "augment": "augment keys",
    "crops": "crops augment keys",
    "mixing": "augment public",
    "arguments": "public methods",
    "objective": "public methods",
    "seeds": "seeds",
    "stack": "stack peers",
    "student/measures": "measures",
    "paper/grids": "paper",
    "engine/assemble": "wiring chosen teachers",
    "engine/batches": "step passes feeding keys wiring",
    "engine/calls": "step divergence",
    "engine/engine": "step optim teachers passes",
    "engine/evaluation": "evaluate step",
    "engine/feeding": "feeding",
    "engine/fresh": "step peers keys",
    "engine/joint": "together",
    "engine/mappings": "peers step passes",
    "engine/optim": "optim step",
    "engine/passes": "teachers step passes",
    "engine/peers": "peers step",
    "engine/companions": "teachers step passes wiring",
    "engine/terms": "step methods compared divergence",
    "backbones/batch_norm": "batch_norm",
    "backbones/convolution": "backbones",
    "backbones/densenet": "backbones",
    "backbones/depthwise": "backbones",
    "backbones/layers": "backbones",
    "backbones/nnx_adapter": "foreign passes",
    "backbones/mobilenet": "backbones",
    "backbones/pooling": "backbones",
    "backbones/resnet": "backbones",
    "backbones/vgg": "backbones",
    "methods/_terms": "methods compared",
    "methods/cs_kd": "compared step",
    "methods/cutnmix": "methods",
    "methods/ddgsd": "compared step",
    "methods/dml": "methods compared",
    "methods/kd": "compared step",
    "methods/kdcl": "compared",
    "methods/okddip": "compared step",
    "methods/one": "compared step",
    "methods/pcl": "compared step",
    "methods/ps_kd": "compared",
    "methods/tf_kd_reg": "compared",
}
# Left out: a changed `|` is mostly that of an annotation, which fails at once, so that it would count for nothing.
_LEFT_OUT = "BitOr"
_SECONDS = 600  # for the tests of one change; what takes longer goes on for ever


def run(names: Sequence[str], most: int | None, seed: int) -> None:
    """Tries the changes of some files and prints what survives."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copied = Path(folder)
        clone.copy(copied)
        killed, survived = 0, 0
        for name in names:
            results = _tried(copied, name, most, seed)
            for place, diff in results:
                if diff is not None:
                    print(f"survived: {place}\n{diff}\n", flush=True)
            alive = sum(diff is not None for _, diff in results)
            killed, survived = killed + len(results) - alive, survived + alive
            print(f"{name}: {len(results) - alive} of {len(results)} changes noticed", flush=True)
        print(f"all: {killed} of {killed + survived} changes noticed, {100 * killed / (killed + survived):.1f} %")


def tests_of(name: str) -> list[str]:
    """The files of the tests that should notice what is wrong with a file."""
    return [f"tests/test_{test}.py" for test in TESTS[name].split()]


def _tried(copied: Path, name: str, most: int | None, seed: int) -> list[tuple[str, str | None]]:
    """Each change of a file: where it is, and what it is where no test notices it."""
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests_of(name)]
    if subprocess.run(tests, cwd=copied).returncode:  # each change would seem to be noticed
        raise UsageError(f"{name}: its tests fail without any change; mend them first")
    config, session = copied / "mutation.toml", copied / "mutation.sqlite"
    session.unlink(missing_ok=True)
    config.write_text(
        f'[cosmic-ray]\nmodule-path = "cutnmix_jax/{name}.py"\ntimeout = {_SECONDS}\nexcluded-modules = []\n'
        f"test-command = {json.dumps(shlex.join(tests))}\n"
        '[cosmic-ray.distributor]\nname = "local"\n'
    )
    cosmic_ray = Path(sys.executable).with_name("cosmic-ray")
    subprocess.run([cosmic_ray, "init", config.name, session.name], cwd=copied, check=True)
    with sqlite3.connect(session) as database:
        _choose(database, most, seed)
    database.close()
    subprocess.run([cosmic_ray, "exec", config.name, session.name], cwd=copied, check=True)
    with sqlite3.connect(session) as database:
        rows = database.execute(
            "select start_pos_row, operator_name, test_outcome, diff from mutation_specs natural join work_results"
        ).fetchall()
    database.close()
    return [
        (f"cutnmix_jax/{name}.py:{row} {operator}", diff if outcome == "SURVIVED" else None)
        for row, operator, outcome, diff in rows
    ]


def _choose(database: sqlite3.Connection, most: int | None, seed: int) -> None:
    """Keeps one change, drawn at random, of those that the tester would try at one place."""
    places: dict[tuple[int, int, str], list[str]] = {}
    for row, column, operator, job in database.execute(
        "select start_pos_row, start_pos_col, operator_name, job_id from mutation_specs "
        "order by start_pos_row, start_pos_col, operator_name, operator_args, occurrence"
    ):
        if _LEFT_OUT not in operator:
            places.setdefault((row, column, operator.split("_")[0]), []).append(job)
    draw = random.Random(seed)
    kept = [draw.choice(places[place]) for place in sorted(places)]
    kept = kept if most is None else draw.sample(kept, min(most, len(kept)))
    marks = ",".join("?" * len(kept))
    for table in ("work_items", "mutation_specs"):
        database.execute(f"delete from {table} where job_id not in ({marks})", kept)  # noqa: S608 - of marks alone


def main() -> None:
    """Reads the command line."""
    parser = CommandLine("scripts.mutation", "Says which small changes no test notices.", __doc__ or "")
    parser.prog = "scripts/mutate"
    parser.add_argument("names", nargs="*", metavar="FILE", help="of the package, as losses or engine/optim; all")
    parser.add_argument("--most", type=int, metavar="N", help="places in each file; all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    known = parser.parse_args()
    for name in known.names:
        if name not in TESTS:
            raise UsageError(f"no tests are named for {name!r}; {nearest(name, TESTS)}")
    if known.most is not None and known.most < 1:
        raise UsageError(f"--most={known.most}: must be at least 1")
    run(known.names or list(TESTS), known.most, known.seed)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
