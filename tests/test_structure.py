"""The house stays as it is drawn: imports go only downwards, and forbidden things stay outside."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cutnmix_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# A room may import the rooms on the lines above its own, and its own files.
FLOORS = [
    {"types", "streams"},
    {"errors"},
    {"console"},
    {"cache", "files", "compiler"},
    {"losses", "augment", "optim", "data", "pictures", "signals", "device", "lock", "digests", "storage"},
    {"environment"},
    {"metrics"},
    {"checkpoint", "finished"},
    {"backbones"},
    {"peers"},
    {"methods"},
    {"batches"},
    {"step"},
    {"evaluate", "schema", "flags"},
    {"config"},
    {"continued", "teacher"},
    {"program"},
    {"summary", "folder", "loop"},
    {"train"},
    {"seeds"},
    {"main"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def test_the_order_is_told_as_it_is():
    text = (ROOT / "CONTRIBUTING.md").read_text().replace("\n", " ")
    told = text.partition("holds them to it: ")[2].partition(".")[0]
    assert [set(floor.strip("` ").split(", ")) for floor in told.split(" - ")] == FLOORS


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    """Every module that a file imports, with the names taken out of packages."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_only_downwards(path):
    room = room_of(path)
    if room == "__init__":
        return
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] != "cutnmix_jax" or parts[1] in (room, "__version__"):
            continue
        assert FLOOR[parts[1]] < FLOOR[room], f"{room} imports {name}"


EVERYWHERE = [*FILES, *sorted((ROOT / "configs").glob("*.py")), *sorted((ROOT / "scripts").glob("*.py"))]


@pytest.mark.parametrize("path", EVERYWHERE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_heavy_or_unsafe_is_imported(path):
    top = {name.split(".")[0] for name in imports_of(path)}
    assert not top & {"tensorflow", "torch", "wandb", "pickle", "joblib", "cloudpickle", "dill", "shelve", "marshal"}
    if path.parent != PACKAGE / "backbones":
        assert "flax" not in top


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_gradients_are_stopped_only_in_methods(path):
    if room_of(path) != "methods":
        assert "stop_gradient" not in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_programs_are_compiled_in_one_place(path):
    """With options without which a release of JAX computes wrong numbers."""
    if room_of(path) != "compiler":
        assert "jax.jit" not in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert text.count("\n") <= 280
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, f"{path}: {node.name}"
