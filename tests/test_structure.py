"""What no linter holds the package to: that it can be read in small pieces. Linters are set up in pyproject.toml."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cutnmix_jax"
FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert text.count("\n") <= 250
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, f"{path}: {node.name}"
