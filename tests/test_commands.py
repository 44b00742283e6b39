"""The command blocks of README.md, CONTRIBUTING.md and the site: each is run, or a comment above it says why not.

`<!-- run with: A = B, FLAG, ... -->` runs it smaller: texts are replaced, flags are added to the commands that train.
`<!-- checked: why -->` lets the program read its arguments, and stops it before it does anything.
`<!-- not run: why -->` leaves it alone.
"""

import contextlib
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from cutnmix_jax import distributed, look_after, main, methods, seeds, training
from cutnmix_jax.benchmark import __main__ as benchmark
from cutnmix_jax.data import __main__ as data_command
from cutnmix_jax.paper import cluster, here, launch, report, reproduce
from cutnmix_jax.settings import command_line
from tests.test_own_pictures import picture

pytestmark = pytest.mark.usefixtures("programs_kept")
ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "results/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
TINY = "tests.tiny:Tiny"
KINDS = ("run with", "checked", "not run")
# What a script starts: the command of `cutnmix`, and arguments before those that are given.
SCRIPTS = {"cutnmix": [], "quickstart": ["train", f"--config={ROOT}/configs/quickstart.py"]} | {
    name: [name] for name in ("reproduce", "report", "bench")
}


class Block(NamedTuple):
    page: Path
    number: int
    kind: str  # one of KINDS, or empty: it is run as it is
    told: str
    lines: tuple[str, ...]

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}-{self.number}"


def blocks_of(page, text):
    found = re.finditer(r"(?:<!-- ([\w ]+): ([^\n]*?) -->\n)?```sh\n(.*?)```", text, re.DOTALL)
    for number, (kind, told, code) in enumerate((match.groups() for match in found), start=1):
        lines = (shlex.join(shlex.split(line, comments=True)) for line in code.replace("\\\n", " ").splitlines())
        yield Block(page, number, kind or "", told or "", tuple(filter(None, lines)))


BLOCKS = [block for page in PAGES for block in blocks_of(page, page.read_text())]


def arguments_of(line):
    """What a line gives to `cutnmix`; None where it is another program's."""
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z]+=\S*", word)]
    name = words[0].removeprefix("scripts/")
    return [*SCRIPTS[name], *words[1:]] if name in SCRIPTS else None


def test_a_broken_block_is_noticed():
    """A comment that says no reason, and another program, are seen."""
    [bare] = blocks_of(ROOT / "README.md", "```sh\nscripts/quickstart \\\n  --x=1  # why\n\n```")
    assert (bare.kind, bare.lines) == ("", ("scripts/quickstart --x=1",))
    [told] = blocks_of(ROOT / "README.md", "<!-- not run: a -> reason -->\n```sh\nWORKDIR=a sbatch b\n```")
    assert (told.kind, told.told) == ("not run", "a -> reason") and arguments_of(told.lines[0]) is None


def test_every_block_says_what_becomes_of_it():
    for page in PAGES:
        assert not re.search(r"```(bash|shell|console|zsh|shell-session)", page.read_text()), f"{page}: write ```sh"
    for block in BLOCKS:
        assert block.kind in ("", *KINDS) and bool(block.kind) == bool(block.told), block
        if block.kind != "not run":
            assert all(arguments_of(line) is not None for line in block.lines), (
                f"{block}: there is another program; say why it is not run"
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_python_are_python(page):
    """What is run of them: `test_public` has the library's, `test_commands_run` the network and the data set."""
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        compile(code, str(page), "exec")


# Blocks that are run, page by page, in a folder with what a reader is assumed to have.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of a tiny network, in the folder in which the quickstart leaves its own."""
    folder = tmp_path_factory.mktemp("finished")
    small = ["train_examples=16", "test_examples=8", "epochs=1", "batch_size=8", "optimizer.milestones=(1,)"]
    fields = [f"--config.{field}" for field in (*small, f"backbone.name={TINY}")]
    workdir = "runs/digits/resnet8/cutnmix/seed95"
    with contextlib.chdir(folder):
        assert main.main(["--config=quickstart", *fields, f"--workdir={workdir}"]) == 0
    return folder / "runs"


@pytest.fixture
def place(tmp_path, finished, monkeypatch):
    """A reader's folder: pictures, packages of the pages' own examples, and a finished run."""
    for name in ("flowers/train/rose/1", "flowers/train/tulip/2", "flowers/test/rose/3", "flowers/test/tulip/4"):
        picture(tmp_path / f"{name}.png", seed=len(name))
    for number in range(3, 12):
        picture(tmp_path / f"flowers/train/rose/{number}.png", seed=number)
    for name in ("photo.jpg", "photos/1.jpg", "new-photos/2.jpg"):
        picture(tmp_path / name, seed=1)
    (tmp_path / "my_pkg").mkdir()
    for module, page in (("nets", "own_network"), ("data", "own_data")):
        code = (ROOT / "docs" / f"{page}.md").read_text().partition("```python\n")[2].partition("```")[0]
        (tmp_path / "my_pkg" / f"{module}.py").write_text(code)
    shutil.copytree(finished, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_pkg"]:
        del sys.modules[name]


def run(arguments, monkeypatch):
    """The exit code of a command, in this process."""
    if arguments[:1] == ["train"] and arguments[1:] != ["--help"]:
        return main.main(arguments[1:])
    if arguments[:1] in (["evaluate"], ["export"], ["predict"]) and arguments[1].startswith("runs/"):
        arguments = [*arguments, f"--backbone={TINY}"]  # of `finished`, whose network is nobody else's
    monkeypatch.setattr(sys, "argv", ["cutnmix", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("cutnmix_jax", run_name="__main__")
    return ended.value.code


def smaller(line, told):
    """The arguments of a line, with what its comment replaces and adds."""
    flags = []
    for change in filter(None, map(str.strip, told.split(", "))):
        before, is_text, after = change.partition(" = ")
        line, flags = (line.replace(before, after), flags) if is_text else (line, [*flags, change])
    arguments = [
        one for word in arguments_of(line) for one in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
    ]
    return [*arguments, *flags] if arguments[:1] == ["train"] and arguments[1:2] != ["--list"] else arguments


RUN = {page: [block for block in BLOCKS if block.page == page and block.kind in ("", "run with")] for page in PAGES}


@pytest.mark.parametrize("page", [page for page in PAGES if RUN[page]], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_run(page, place, monkeypatch, capsys):
    for block in RUN[page]:
        for line in block.lines:
            assert run(smaller(line, block.told), monkeypatch) == 0, f"{block}: {line}\n{capsys.readouterr().err}"


# Blocks whose arguments are looked at.


class Reached(Exception):
    """What does the work was called."""


def reached(*_, **__):
    raise Reached


@pytest.fixture
def nothing_is_done(monkeypatch):
    for module, name in (
        (training, "train"), (seeds, "run"), (look_after, "look_after"), (distributed, "run"), (launch, "run"),
        (cluster, "opened"), (here, "opened"), (data_command, "_shipped"), (data_command, "_pictures"),
        (report, "write"), (benchmark, "measured"), (benchmark.jax_side, "trace"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, reached)
    monkeypatch.setattr(cluster, "_LIBRARIES", {"ray": "json", "slurm": "json"})  # need not be installed here
    for name in benchmark.suites.SUITES:
        monkeypatch.setitem(benchmark.suites.SUITES, name, reached)


CHECKED = [(block, line) for block in BLOCKS if block.kind == "checked" for line in block.lines]


@pytest.mark.parametrize(("block", "line"), CHECKED, ids=[f"{block}-{line[:60]}" for block, line in CHECKED])
def test_arguments_are_right(block, line, place, nothing_is_done, monkeypatch):
    name, *rest = arguments_of(line)
    if name not in ("train", "data", "reproduce", "bench") or "--dry-run" in rest:  # these take a moment
        assert run([name, *rest], monkeypatch) == 0
        return
    monkeypatch.setattr(sys, "argv", [f"cutnmix {name}", *rest])
    with pytest.raises(Reached):
        if name == "train":
            main._run(rest, own_process=False, start=0.0)
        elif name == "data":
            data_command._run(rest)
        else:
            {"reproduce": reproduce, "bench": benchmark}[name].main()


def test_the_method_of_the_page_passes_its_test(tmp_path, monkeypatch):
    method, test = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own_method.md").read_text(), re.DOTALL)
    (tmp_path / "consensus.py").write_text(method)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    names = {}
    exec(compile(test, "docs/own_method.md", "exec"), names)
    names["test_consensus_by_hand"]()
    assert methods.row("consensus").method.temperature == 3.0
    methods._rows_of.cache_clear()
    sys.modules.pop("cutnmix_jax.methods.consensus")


@pytest.mark.parametrize(
    ("config", "given", "kept", "dropped"),
    [
        ("quickstart", ["epochs=2", "num_peers=3", "seed=7"], ["epochs=2", "seed=7"], "num_peers"),
        ("quickstart:digits,dml", ["loss.temperature=2", "weights.dml=0.5", "batch_size=8"], ["batch_size=8"], "loss"),
        ("quickstart", ["dataset=offered_data:load", "backbone.name=tests.tiny:Tiny"],
         ["dataset=offered_data:load", "backbone.name=tests.tiny:Tiny"], "num_peers"),
        ("quickstart", ["peers=resnet8,tests.tiny:Tiny", "weights.mmd=0"], [], "peers"),
    ],
)  # fmt: skip
def test_what_is_offered_after_a_first_run_can_be_typed(config, given, kept, dropped, monkeypatch, tmp_path):
    """Each line is read by the parser that it is for, and the network alone is one."""
    (tmp_path / "offered_data.py").write_text("from cutnmix_jax.data.digits import load\n")
    monkeypatch.syspath_prepend(tmp_path)
    overrides = [f"--config.{field}" for field in given]
    settings = command_line.from_flags(config, overrides)
    steps = main._next_steps(settings, settings.default_workdir, overrides)
    lines = [shlex.split(line) for line in steps.splitlines() if line.startswith("    ")]
    names = ("train", "report", "evaluate", "predict", "export")
    commands = {name: line[line.index(name) + 1 :] for line in lines[:-1] for name in names if name in line}
    file, *others = commands["train"]
    alone = command_line.from_flags(file.removeprefix("--config="), others)
    assert len(alone.backbones) == 1 and alone.method == "baseline"
    assert [text.removeprefix("--config.") for text in others] == kept and dropped not in " ".join(others)
    assert commands["report"][:2] == [str(settings.default_workdir), str(alone.default_workdir)]
    assert commands["report"][2:] == ["--out=compared"]
    own = [f"--backbone={','.join(dict.fromkeys(settings.own_backbones))}"] * bool(settings.own_backbones)
    own += [f"--dataset={settings.dataset}"] * (":" in settings.dataset)
    assert commands["evaluate"][1:] == own
