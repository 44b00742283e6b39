"""Builds the next version, checks what was built and describes it; publishes nothing.

  scripts/release --dry-run                    the next minor version, or that which CHANGELOG.md begins with, in dist/
  scripts/release --dry-run --version=0.1.1    another one

Works on a copy of the files that git knows; the clone is left as it is. CONTRIBUTING.md has what is done by hand.
"""

import datetime
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from packaging.metadata import Metadata

from cutnmix_jax import __version__
from cutnmix_jax.command import CommandLine, exit_code_of
from cutnmix_jax.errors import UsageError, described
from scripts import clone

# Where a version stands besides the heading in CHANGELOG.md: a file, and what is before it there.
PLACES = {"cutnmix_jax/__init__.py": '__version__ = "', "CITATION.cff": "\nversion: "}


def notes(changelog: str, heading: str) -> str:
    """What CHANGELOG.md says below a heading; empty where there is none."""
    return changelog.partition(f"\n## {heading}\n")[2].partition("\n## ")[0].strip()


def set_version(copied: Path, version: str) -> str:
    """Writes the version wherever it stands, and returns what is new in it.

    Raises:
      UsageError: there is nothing new, or a place has another version than the program.
    """
    texts = {name: (copied / name).read_text() for name in (*PLACES, "CHANGELOG.md")}
    for name, before in PLACES.items():
        if before + __version__ not in texts[name]:
            raise UsageError(f"{name} does not say version {__version__}, which the program has; make them agree")
        texts[name] = texts[name].replace(before + __version__, before + version)
    done = re.search(rf"\n## ({re.escape(version)} - [\d-]+)\n", texts["CHANGELOG.md"])
    new = notes(texts["CHANGELOG.md"], done[1] if done else "Unreleased")
    if not new:
        raise UsageError(f"CHANGELOG.md has nothing under 'Unreleased', so that there is no version {version} to make")
    if not done:
        heading = f"\n## {version} - {datetime.date.today()}\n"
        texts["CHANGELOG.md"] = texts["CHANGELOG.md"].replace("\n## Unreleased\n", heading, 1)
    for name, text in texts.items():
        (copied / name).write_text(text)
    return new


def build(source: Path, out: Path) -> tuple[Path, Path]:
    """Builds the wheel and the source archive."""
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"the build failed: {done.stderr.strip().splitlines()[-1]}; {' '.join(command)} shows all")
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def check(source: Path, wheel: Path, archive: Path, version: str) -> Metadata:
    """Whether both hold what they should.

    Raises:
      UsageError: a file is missing, the metadata are not valid, or the command in the wheel does not run.
    """
    modules = {str(path.relative_to(source)) for path in (source / "cutnmix_jax").rglob("*.py")}
    with zipfile.ZipFile(wheel) as inside, tarfile.open(archive) as packed:
        names = {"wheel": set(inside.namelist()), "archive": {one.partition("/")[2] for one in packed.getnames()}}
        found = next(name for name in names["wheel"] if name.endswith(".dist-info/METADATA"))
        metadata = Metadata.from_email(inside.read(found), validate=True)
    for what, held in names.items():
        if missing := sorted(modules - held):
            raise UsageError(f"the {what} lacks {', '.join(missing[:3])}; see MANIFEST.in")
    if str(metadata.version) != version or not metadata.description:
        raise UsageError(f"{wheel.name} says version {metadata.version}, or nothing of itself; it should be {version}")
    shown = subprocess.run(
        [sys.executable, "-c", "from cutnmix_jax.__main__ import main; main()", "--version"],
        cwd=wheel.parent, env={"PYTHONPATH": str(wheel), "PATH": ""}, capture_output=True, text=True,
    )  # fmt: skip
    if version not in shown.stdout:
        raise UsageError(
            f"the command of {wheel.name} does not tell its version: {(shown.stdout + shown.stderr).strip()}"
        )
    return metadata


def describe(metadata: Metadata, files: list[Path], new: str) -> None:
    """Prints what would be released."""
    state = subprocess.run(["git", "status", "--porcelain"], cwd=clone.ROOT, capture_output=True, text=True).stdout
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone.ROOT, capture_output=True, text=True).stdout
    print(f"{metadata.name} {metadata.version}: {metadata.summary}")
    print(f"commit {commit.strip()}" + (", and changes that are not committed" if state else ""))
    print(f"Python {metadata.requires_python}, {metadata.license_expression}")
    extras = metadata.provides_extra or []
    needed = [one for one in metadata.requires_dist or [] if not one.marker or "extra" not in str(one.marker)]
    print(f"needs {', '.join(map(str, needed))}\nextras {', '.join(extras)}")
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{path}  {path.stat().st_size / 1024:.0f} KiB  sha256 {digest}")
    print(f"\nWhat is new:\n\n{new}\n\nNothing was published; CONTRIBUTING.md has what is left to do by hand.")


def following(changelog: str) -> str:
    """The version to build: the program's own where it is new in the changelog, else the next minor one."""
    if re.search(rf"\n## {re.escape(__version__)} - ", changelog) and not notes(changelog, "Unreleased"):
        return __version__
    major, minor, *_ = map(int, __version__.split("."))
    return f"{major}.{minor + 1}.0"


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def main() -> None:
    """Reads the command line."""
    parser = CommandLine("scripts.release", "Builds, checks and describes the next version.", __doc__ or "")
    parser.prog = "scripts/release"
    parser.add_argument("--dry-run", action="store_true", help="the only way there is: nothing is ever published")
    parser.add_argument("--version", metavar="X.Y.Z", help="(the next one)")
    parser.add_argument("--out", type=Path, default=clone.ROOT / "dist", metavar="DIR", help="for the files (dist)")
    known = parser.parse_args()
    if not known.dry_run:
        raise UsageError("this publishes nothing; give --dry-run, and see CONTRIBUTING.md for what is done by hand")
    version = known.version or following((clone.ROOT / "CHANGELOG.md").read_text())
    if not re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", version):
        raise UsageError(f"--version={version}: must be three numbers, as 0.2.0")
    if _number(version) < _number(__version__):
        raise UsageError(f"--version={version}: is older than {__version__}, which the program has")
    try:
        made(version, known.out)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(
            f"no release could be built ({described(error)}); it takes a clone, git and an --out"
        ) from error


def made(version: str, out: Path) -> None:
    """Builds a version and describes it; what does not pass the checks is not left behind."""
    if there := [path for path in (out.iterdir() if out.exists() else ()) if path.suffix in (".whl", ".gz")]:
        raise UsageError(f"{there[0]} is there already; remove the files of {out}, or give another --out")
    with tempfile.TemporaryDirectory(prefix="release-") as folder:
        copied, built = Path(folder, "source"), Path(folder, "built")
        clone.copy(copied)
        new = set_version(copied, version)
        wheel, archive = build(copied, built)
        metadata = check(copied, wheel, archive, version)
        out.mkdir(parents=True, exist_ok=True)
        describe(metadata, [Path(shutil.move(path, out / path.name)) for path in (archive, wheel)], new)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
