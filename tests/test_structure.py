"""What no linter sees to: that the code can be read in small pieces. Linters are set up in pyproject.toml."""

import ast
from pathlib import Path

import pytest

from cutnmix_jax import layout

ROOT = Path(__file__).parent.parent
FILES = sorted(path for folder in ("cutnmix_jax", "configs", "scripts") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert text.count("\n") <= 250
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, f"{path}: {node.name}"


def test_the_names_of_a_runs_files_stand_in_one_place():
    names = {value for name, value in vars(layout).items() if name.isupper()} - {layout.STUDENT}  # a word as well
    for path in FILES:
        found = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert path.name == "layout.py" or not names & found, path
