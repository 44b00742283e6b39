"""The site: it builds without a warning, its notebooks run, and every public name is in the reference."""

import doctest
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import cutnmix_jax

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# What a notebook runs with here, in place of what its cell with the tag `parameters` says.
SMALL = {
    "cutnmix_in_pictures": 'draws, network = 50, "tests.tiny:Tiny"\ntrain_examples, epochs, milestones = 64, 1, (1,)',
    "your_own": 'train_examples, epochs, milestones, seeds, compared = 64, 1, (1,), (95,), ("consensus",)',
}


def sphinx(source, out):
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", str(source), str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    done = sphinx(ROOT / "docs", out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


class Loaded(HTMLParser):
    """What a page has a browser load by itself."""

    def __init__(self, text):
        super().__init__()
        self.names = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "link" and set(found.get("rel", "").split()) & {"stylesheet", "preload", "icon"}:
            self.names.append(found["href"])
        elif tag in ("script", "img", "iframe") and "src" in found:
            self.names.append(found["src"])


def test_the_site_needs_no_network(site):
    """What a page loads by itself lies beside it."""
    for page in site.rglob("*.html"):
        loaded = Loaded(page.read_text()).names
        assert loaded and not [name for name in loaded if name.startswith(("http", "//"))], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text()), sheet


def test_every_public_name_is_in_the_reference(site):
    anchors = set(re.findall(r'id="(cutnmix_jax\.[\w.]+)"', (site / "reference.html").read_text()))
    for name in cutnmix_jax.__all__:
        assert f"cutnmix_jax.{name}" in anchors or f"module-cutnmix_jax.{name}" in (site / "reference.html").read_text()


def public():
    """Every public name; of `errors` the kinds, of other modules what they define."""
    for name in cutnmix_jax.__all__:
        found = getattr(cutnmix_jax, name)
        if not inspect.ismodule(found):
            yield name, found
            continue
        for one, thing in vars(found).items():
            is_own = getattr(thing, "__module__", None) == found.__name__ and not one.startswith("_")
            if is_own and (inspect.isclass(thing) or name != "errors"):
                yield f"{name}.{one}", thing


def described(name, text):
    return re.search(rf"^\s+\**{name}: ", text, re.MULTILINE)


@pytest.mark.parametrize(("name", "thing"), list(public()), ids=[name for name, _ in public()])
def test_a_public_name_says_what_it_takes(name, thing):
    """Every argument of a function is described, or the text says whose arguments they are."""
    text = inspect.getdoc(thing) or ""
    assert text
    if inspect.isclass(thing):
        fields = [one for one in getattr(thing, "__annotations__", {}) if not one.startswith("_")]
        missing = [one for one in fields if "Attributes:" in text and not described(one, text)]
    else:
        taken = list(inspect.signature(thing).parameters)
        missing = [one for one in taken if "Args:" in text and not described(one, text)]
        if len(taken) > 1 and not any(word in text for word in ("Args:", "Arguments as", "As `")):
            missing = taken
    assert not missing, f"{name}: {missing}"


@pytest.mark.parametrize("name", ["losses", "mixing", "objective", "library", "backbones"])
def test_examples_in_docstrings_run(name):
    failed, tried = doctest.testmod(importlib.import_module(f"cutnmix_jax.{name}"))
    assert tried and not failed


def test_broken_links_are_errors(tmp_path):
    shutil.copy(ROOT / "docs" / "conf.py", tmp_path)
    for name in ("_ext", "_static"):
        shutil.copytree(ROOT / "docs" / name, tmp_path / name)
    broken = ("[gone](nowhere.md)", "[gone](start.md#no-such-heading)", "{py:func}`cutnmix_jax.gone`")
    (tmp_path / "start.md").write_text("# Start\n")
    (tmp_path / "index.md").write_text("\n\n".join(["# Index", *broken, "```{toctree}\nstart\n```\n"]))
    done = sphinx(tmp_path, tmp_path / "out")
    assert done.returncode
    for line in (3, 5, 7):
        assert f"index.md:{line}: WARNING" in done.stderr


OUTSIDE = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "tests/README.md", "results/README.md")
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


@pytest.mark.parametrize("name", OUTSIDE)
def test_links_outside_the_site_lead_somewhere(name):
    page = ROOT / name
    for target, anchor in LINK.findall(page.read_text()):
        there = (page.parent / target) if target else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings], anchor


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebooks_run(path, tmp_path, monkeypatch):
    """At a small size; the file keeps the output of a useful one."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code) and sum(bool(cell.outputs) for cell in code) > 5
    assert not [one for cell in code for one in cell.outputs if one.output_type == "error"]
    [parameters] = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = SMALL[path.stem]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
