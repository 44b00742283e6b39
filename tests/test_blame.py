"""Code that is not ours and fails: one line that says whose it is and what to do, the exit code, and no folder."""

import builtins
import os
import subprocess
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import backbones, data, environment, main, methods, training
from cutnmix_jax.command import exit_code_of
from cutnmix_jax.errors import UsageError, UserError, blaming, excused
from cutnmix_jax.settings import command_line, recipe
from tests.runs import write_finished

SMALL = [
    "--config=configs/quickstart.py:digits,dml",
    "--config.train_examples=32",
    "--config.test_examples=10",
    "--config.batch_size=16",
    "--config.eval_batch_size=5",
    "--config.epochs=1",
    "--config.optimizer.milestones=()",
]


def run(arguments, tmp_path, capsys):
    """The exit code of a command, the lines of its errors, and whether it made a folder."""
    code = main.main([*arguments, f"--workdir={tmp_path / 'run'}"])
    return code, capsys.readouterr().err.splitlines(), (tmp_path / "run").exists()


# Networks.


class Net(nn.Module):
    """A small network that does something else, too: `does(images, train, features)` returns what it returns."""

    num_classes: int
    does: object

    @nn.compact
    def __call__(self, images, train):
        features = nn.Dense(4)(images[:, ::16, ::16].reshape(images.shape[0], -1))
        returned = self.does(images, train, features)
        return (nn.Dense(self.num_classes)(features), features) if returned is None else returned


def raises(error):
    def does(*_, **__):
        raise error

    return does


def calls_back(name):
    def fails(value):
        raise ValueError("out of the callback")

    def does(images, train, features):
        if name == "debug":
            jax.debug.callback(fails, features.sum())
            return None
        kind = jax.ShapeDtypeStruct((), jnp.float32)
        told = jax.pure_callback(fails, kind, jax.lax.stop_gradient(features.sum()))
        return jnp.zeros((images.shape[0], 10)) + features.sum() + told, features

    return does


def no_gradient(images, train, features):
    told = jax.pure_callback(np.float32, jax.ShapeDtypeStruct((), jnp.float32), features.sum())
    return jnp.zeros((images.shape[0], 10)) + told, features


def only_if(wrong, message):
    def does(images, train, features):
        assert not wrong(images, train), message

    return does


def head(function):
    """Logits and features of a network that ends otherwise."""
    return lambda images, train, features: function(jnp.zeros((images.shape[0], 10)) + features.sum(), features)


def nnx_without_its_weights(num_classes, rngs):
    raise FileNotFoundError(2, "No such file or directory", "weights.npz")


NETWORKS = {
    "constructor": (raises(RuntimeError("no such\nwidth")), "RuntimeError: no such width"),
    "exits": (raises(SystemExit(0)), "SystemExit: 0"),
    "apply": (raises(ValueError("these images")), "ValueError: these images"),
    "long": (raises(ValueError("x" * 10_000)), "xxx"),
    "silent": (raises(AssertionError()), "AssertionError"),
    "in training only": (only_if(lambda x, train: train, "not in training"), "not in training"),
    "in evaluation only": (only_if(lambda x, train: not train, "not in evaluation"), "not in evaluation"),
    "batches of 16": (only_if(lambda x, train: len(x) == 16, "sixteen"), "trained on batches of 16 images"),
    "batches of 5": (only_if(lambda x, train: len(x) == 5, "five"), "evaluated on batches of 5 images"),
    "a bool of a tracer": (lambda x, train, features: bool(x.sum() > 0) and None, "TracerBool"),
    "another key": (lambda x, train, f: nn.Dropout(0.5, deterministic=False)(f, rng=None) and None, "Error"),
    "no gradient": (no_gradient, "do not support JVP"),
    "integers": (head(lambda logits, f: (logits.astype(jnp.int32), f)), "its logits are int32"),
    "complex numbers": (head(lambda logits, f: (logits, f.astype(jnp.complex64))), "its features are complex64"),
    "three things": (head(lambda logits, f: (logits, f, f)), "returns a tuple"),
    "text": (head(lambda logits, f: ("logits", "features")), "TypeError"),
    "nothing": (head(lambda logits, f: (None, f)), "Error"),
    "memory": (raises(MemoryError()), "too little memory"),
}


@pytest.fixture
def nets(monkeypatch):
    """A user's module, to be filled with networks."""
    module = types.ModuleType("their_nets")
    monkeypatch.setitem(sys.modules, "their_nets", module)
    return module


@pytest.mark.parametrize("name", NETWORKS)
def test_a_broken_network(name, nets, tmp_path, capsys):
    does, said = NETWORKS[name]
    nets.make = (
        raises(RuntimeError("no such\nwidth")) if name == "constructor" else lambda num_classes: Net(num_classes, does)
    )
    code, errors, folder = run([*SMALL, "--config.backbone.name=their_nets:make"], tmp_path, capsys)
    assert (code, len(errors), folder) == (2, 1, False), errors
    assert said in errors[0] and len(errors[0]) < 600
    assert "their_nets:make" in errors[0] or name == "memory"


def test_a_network_that_finds_no_file(nets, tmp_path, capsys):
    nets.make = nnx_without_its_weights
    code, errors, folder = run([*SMALL, "--config.backbone.name=their_nets:make"], tmp_path, capsys)
    assert (code, len(errors), folder) == (2, 1, False), errors
    assert "weights.npz" in errors[0] and "what was saved" not in errors[0]


def test_ctrl_c_in_a_network_is_ctrl_c(nets, tmp_path, capsys):
    nets.make = raises(KeyboardInterrupt())
    code, errors, folder = run([*SMALL, "--config.backbone.name=their_nets:make"], tmp_path, capsys)
    assert (code, errors, folder) == (130, ["error: stopped from the keyboard"], False)


@pytest.mark.parametrize("name", ["debug", "pure"])
def test_a_network_that_fails_while_it_is_trained(name, nets, tmp_path, capsys, caplog):
    nets.make = lambda num_classes: Net(num_classes, calls_back(name))
    code, errors, _ = run([*SMALL, "--config.backbone.name=their_nets:make"], tmp_path, capsys)
    assert (code, len(errors)) == (2, 1), errors
    assert "their_nets:make" in errors[0] and "ValueError: out of the callback" in errors[0]
    assert "callback failed" not in caplog.text  # JAX logs a traceback besides


def test_no_learning_rate_is_blamed_for_the_first_step(nets, tmp_path, capsys):
    nets.make = lambda num_classes: Net(num_classes, head(lambda logits, f: (logits + jnp.nan, f)))
    code, errors, _ = run([*SMALL, "--config.backbone.name=their_nets:make"], tmp_path, capsys)
    assert (code, len(errors)) == (5, 1), errors
    assert "step 1" in errors[0] and "learning_rate" not in errors[0]


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "raise SystemExit(0)": "SystemExit: 0",
        "import no_such_module": "no_such_module",
        "def make(:": "SyntaxError",
        "raise AttributeError('odd')": "odd",
        "make = 3": "not a function",
        "def __getattr__(name): raise RuntimeError('lazy')": "lazy",
    }.items(),
)
def test_a_module_of_networks_that_cannot_be_imported(text, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "their_file.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_file", raising=False)
    code, errors, folder = run([*SMALL, "--config.backbone.name=their_file:make"], tmp_path, capsys)
    sys.modules.pop("their_file", None)
    assert (code, len(errors), folder) == (2, 1, False), errors
    assert said in errors[0] and "their_file" in errors[0]


def test_no_device_is_no_fault_of_a_network(tmp_path):
    (tmp_path / "their_nnx.py").write_text("from tests.tiny import TinyNNX\n")
    command = [sys.executable, "-m", "cutnmix_jax.main", *SMALL, "--config.backbone.name=their_nnx:TinyNNX"]
    env = os.environ | {"JAX_PLATFORMS": "no_such_device", "PYTHONPATH": f"{tmp_path}{os.pathsep}."}
    done = subprocess.run([*command, f"--workdir={tmp_path / 'run'}"], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "JAX finds no device" in done.stderr and "their_nnx" not in done.stderr
    assert not (tmp_path / "run").exists()


# Teachers.


@pytest.mark.parametrize(
    ("network", "student", "said"),
    [
        ("gone_nets:make", "gone_nets:make", "cannot import 'gone_nets'"),
        ("gone_nets:make", "resnet8", "students of its kind alone"),
        ("resnet9", "resnet8", "unknown backbone 'resnet9'"),
    ],
)
def test_a_teacher_whose_network_is_not_there(network, student, said, tmp_path, capsys):
    folder = tmp_path / "teacher"
    fields = {"dataset": "digits", "peers": "", "num_peers": 1, "backbone": {"name": network}}
    fields |= {"method": "baseline", "seed": 95, "epochs": 1}
    write_finished(folder, fields, [{"epoch": 1, "step": 4, "test/accuracy": 0.5}], backbones=[network])
    row = [
        "--config=configs/quickstart.py:digits,kd",
        f"--config.teacher={folder}",
        f"--config.backbone.name={student}",
    ]
    code, errors, made = run([*SMALL[1:], *row], tmp_path, capsys)
    assert (code, len(errors), made) == (2, 1, False), errors
    assert said in errors[0] and str(folder) in errors[0]


# Configuration files.


FILES = {
    "x = (": "SyntaxError",
    "import sys; sys.exit(0)": "SystemExit: 0",
    "raise KeyError('epochs')": "KeyError: 'epochs'",
    "raise AttributeError('no field')": "AttributeError: no field",
    "raise OSError(2, 'gone', 'their.csv')": "their.csv",
    "import no_such_module": "no_such_module",
    "": "no get_config",
    "get_config = 3": "no get_config",
    "def get_config(): pass": "takes 0 positional arguments",
    "def get_config(arg=None): return {'epochs': 1}": "no get_config",
    "def get_config(arg=None): return undefined": "NameError",
    "def get_config(arg=None): return {}['seed']": "KeyError: 'seed'",
    "def get_config(arg=None): return None.seed": "'NoneType' object has no attribute 'seed'",
    "def get_config(arg=None): raise TypeError('my own')": "TypeError: my own",
    "def get_config(one, two): pass": "two",
    "def get_config(arg=None): raise SystemExit('bye')": "SystemExit: bye",
    "from ml_collections import ConfigDict as C\ndef get_config(arg=None): return C({'x': object()})": "cannot keep",
    "from ml_collections import ConfigDict as C\ndef get_config(arg=None): return C({'seed': 1})": "method is missing",
}


@pytest.mark.parametrize("text", FILES)
def test_a_broken_configuration_file(text, tmp_path, capsys):
    file = tmp_path / "their_config.py"
    file.write_text(text)
    code, errors, folder = run([f"--config={file}:digits,dml", "--config.seed=96"], tmp_path, capsys)
    assert (code, len(errors), folder) == (2, 1, False), errors
    assert FILES[text] in errors[0]
    assert str(file) in errors[0] or "missing" in errors[0]
    assert "no field '" not in errors[0] and "unknown flag" not in errors[0]


def leaves(fields, prefix=""):
    for name, value in fields.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")


def test_a_configuration_file_with_fields_of_other_types(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data, "load", raises(UserError("all checks were passed")))
    monkeypatch.setattr(training, "plan", raises(UserError("all checks were passed")))
    refused = 0
    for name in leaves(recipe.quickstart("digits,dml").to_dict()):
        *path, last = name.split(".")
        for wrong in ("None", "'x'", "-1.5", "(1, 'a')", "{'a': 1}", "object()", "lambda: 1"):
            file = tmp_path / "their_config.py"
            file.write_text(
                "from ml_collections import ConfigDict\nfrom cutnmix_jax.settings import recipe\n"
                "def get_config(arg=None):\n"
                "    fields = group = recipe.quickstart(arg).to_dict()\n"
                f"    for part in {path!r}: group = group[part]\n"
                f"    group[{last!r}] = {wrong}\n"
                "    return ConfigDict(fields)\n"
            )
            code, errors, folder = run([f"--config={file}:digits,dml"], tmp_path, capsys)
            assert len(errors) == 1 and not folder and code in (1, 2), (name, wrong, errors)
            refused += code == 2
    assert refused > 150


# Files in our own folders.


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A second folder of each of our packages that look their modules up by name."""
    for package in (data, methods, backbones):
        path = tmp_path / package.__name__.rpartition(".")[2]
        path.mkdir()
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(path)])
    yield tmp_path
    for name in [name for name in sys.modules if name.endswith(".theirs")]:
        del sys.modules[name]


BROKEN = ["def load(:", "import no_such_module", "raise SystemExit(0)", "raise KeyError('epochs')", "1 / 0"]


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_breaks_only_what_asks_for_it(text, folder, capsys):
    (folder / "data" / "theirs.py").write_text(text)
    (folder / "methods" / "theirs.py").write_text(text)
    (folder / "backbones" / "theirs.py").write_text(f"__all__ = [\n    'net_a',\n]\n{text}\n")
    assert "theirs" in data.names() and "theirs" in methods.names() and "net_a" in backbones.names()
    well = [*SMALL, "--config.backbone.name=tests.tiny:Tiny", "--config.optimizer.learning_rate=0"]
    code, errors, _ = run(well, folder, capsys)
    assert (code, len(errors)) == (2, 1) and "learning_rate" in errors[0], errors
    for asked, file in {
        "--config=configs/quickstart.py:theirs,dml": "cutnmix_jax/data/theirs.py",
        "--config=configs/quickstart.py:digits,theirs": "cutnmix_jax/methods/theirs.py",
        "--config.backbone.name=net_a": "cutnmix_jax/backbones/theirs.py",
    }.items():
        arguments = [asked, *SMALL[1:]] if asked.startswith("--config=") else [*SMALL, asked]
        code, errors, made = run(arguments, folder, capsys)
        assert (code, len(errors), made) == (2, 1, False), errors
        assert file in errors[0]


MINE = "from cutnmix_jax.method import Method, Row, View\nclass Mine(Method):\n    views = {views}\nROWS = {rows}\n"


@pytest.mark.parametrize(
    ("views", "rows", "says"),
    [
        (
            "(View(crop=False))",
            "{'xx': Row(Mine(), {'ce': 1.0})}",
            "views in .*theirs.py must be View objects in a tuple",
        ),
        ("()", "{'xx': Row(Mine(), {'ce': 1.0})}", "views in .*theirs.py must be View objects"),
        ("(View(),)", "{'xx': Mine()}", r"ROWS in .*theirs.py must be {name: Row\(...\)}"),
        ("(View(),)", "Row(Mine(), {'ce': 1.0})", r"ROWS in .*theirs.py must be {name: Row\(...\)}"),
        ("(View(),)", "{'xx': (Mine(), {'ce': 1.0})}", r"ROWS in .*theirs.py must be {name: Row\(...\)}"),
        ("(View(),)", "{'xx': Row(Mine, {'ce': 1.0})}", "a Row in .*theirs.py has no method, made by its class"),
    ],
)
def test_rows_that_are_none_break_only_themselves(views, rows, says, folder, capsys):
    """They broke every row of all methods, and the configuration was blamed."""
    (folder / "methods" / "theirs.py").write_text(MINE.format(views=views, rows=rows))
    with pytest.raises(UsageError, match=f"method 'theirs': {says}"):
        methods.row("xx")
    assert recipe.other_row(recipe.of_row("resnet8", "digits", "dml")) == ""
    code, errors, _ = run(["--list=methods"], folder, capsys)
    assert code == 2 and len(errors) == 1 and "theirs.py" in errors[0]


def test_a_network_without_a_docstring_is_listed_by_its_name(folder, capsys):
    (folder / "backbones" / "theirs.py").write_text("__all__ = ['net_a']\ndef net_a(num_classes, dtype): ...\n")
    assert main.main(["--list=networks"]) == 0
    assert "\n  net_a" in capsys.readouterr().out


TWO_METHODS = """
from cutnmix_jax.method import Method, Row
class First(Method): pass
class Second(First): pass
ROWS = {"theirs": Row(First(), {"ce": 1.0}), "theirs_too": Row(Second(), {"ce": 1.0})}
"""


def test_a_file_of_two_methods_is_refused(folder, capsys):
    """A run knows its method by the file: the second one would have been trained as the first."""
    (folder / "methods" / "theirs.py").write_text(TWO_METHODS)
    code, errors, made = run(["--config=configs/quickstart.py:digits,theirs_too", *SMALL[1:]], folder, capsys)
    assert (code, len(errors), made) == (2, 1, False), errors
    assert "the ROWS of cutnmix_jax/methods/theirs.py are of First and Second; give each class a file" in errors[0]


ONE_METHOD = """
import dataclasses
from cutnmix_jax import fields
from cutnmix_jax.method import Method, Row, View
{above}class Theirs(Method):
    {within}
    def loss(self, params, state, views, batch, clock):
        return {{"ce": views[0][0].logits.sum() * clock.learning_rate}}, state
ROWS = {{"theirs": Row(Theirs(), {{"ce": 1.0}}, num_peers=1)}}
"""
OPTION = "cap: float | None = fields.field(2.0, fields.or_none(fields.number(0, 9)), 'the most')"


@pytest.mark.parametrize(
    ("above", "within", "said"),
    [
        ("", OPTION, "cap in cutnmix_jax/methods/theirs.py is no option without @dataclass(frozen=True) above"),
        ("", "views = (View(same_class=True), View())", "its first view in cutnmix_jax/methods/theirs.py"),
    ],
)
def test_a_method_that_would_be_read_otherwise_is_refused(above, within, said, folder, capsys):
    (folder / "methods" / "theirs.py").write_text(ONE_METHOD.format(above=above, within=within))
    methods._rows_of.cache_clear()
    code, errors, made = run(["--config=configs/quickstart.py:digits,theirs", *SMALL[1:]], folder, capsys)
    assert (code, len(errors), made) == (2, 1, False), errors
    assert said in errors[0]


def test_an_option_of_a_method_may_be_none_and_its_file_is_known(folder):
    (folder / "methods" / "theirs.py").write_text(
        ONE_METHOD.format(above="@dataclasses.dataclass(frozen=True)\n", within=OPTION)
    )
    methods._rows_of.cache_clear()
    settings = command_line.from_flags("configs/quickstart.py:digits,theirs", ["--config.loss.cap=none"])
    assert settings.loss.cap is None
    assert "cutnmix_jax.methods.theirs" in environment._source(())


GOOD_SET = """
import numpy as np
from cutnmix_jax.types import Dataset
COUNTS, NUM_CLASSES = {"train": 32, "test": 10}, 10
def part(n, side=32, dtype=np.uint8):
    return np.zeros((n, side, side, 3), dtype), (np.arange(n) % 10).astype(np.int32)
def load(data_dir="", side=32, **other):
    third = np.full(3, 0.5, np.float32)
    read = Dataset("theirs", *part(32, side), *part(10, side), tuple("0123456789"), third, third, True)
    return read._replace(**other)
"""
SETS = {
    "COUNTS = 3": (2, "COUNTS"),
    "NUM_CLASSES = 'ten'": (2, "NUM_CLASSES"),
    "COUNTS = {'train': 33, 'test': 10}": (2, "32 train images where COUNTS says 33"),
    "del load": (2, "has no load"),
    "def load(data_dir): return None": (2, "NoneType"),
    "def load(data_dir): raise KeyError('label')": (2, "KeyError: 'label'"),
    "def load(data_dir): raise SystemExit(0)": (2, "SystemExit"),
    "def load(data_dir): import no_such_module": (2, "no_such_module"),
    "def load(data_dir): raise MemoryError": (2, "too little memory"),
    "def load(data_dir): open('/no/such/images.npz')": (3, "/no/such/images.npz"),
    "def load(data_dir): raise PermissionError(13, 'Permission denied', 'images.npz')": (3, "Permission denied"),
    "good = load\ndef load(data_dir): return good(train_images=part(32, dtype=np.float32)[0])": (2, "float32"),
    "good = load\ndef load(data_dir): return good(test_images=part(10, 16)[0])": (2, "[10, 16, 16, 3]"),
    "good = load\ndef load(data_dir): return good(train_labels=np.full(32, 10, np.int32))": (2, "from 10 to 10"),
    "good = load\ndef load(data_dir): return good(test_labels=np.zeros(9, np.int32))": (2, "int32[9]"),
    "good = load\ndef load(data_dir): return good(class_names=('a', 'b'))": (2, "2 class names"),
    "good = load\ndef load(data_dir): return good(class_names=tuple('0123456788'))": (2, "two classes called '8'"),
    "good = load\ndef load(data_dir): return good(std=np.zeros(3))": (2, "std"),
    "good = load\ndef load(data_dir): return good(mean=np.full(3, np.nan))": (2, "mean"),
}


@pytest.mark.parametrize("text", SETS)
def test_a_broken_data_set(text, folder, capsys):
    (folder / "data" / "theirs.py").write_text(GOOD_SET + text)
    arguments = [
        "--config=configs/quickstart.py:theirs,dml",
        "--config.batch_size=16",
        "--config.backbone.name=resnet8",
    ]
    code, errors, made = run(arguments, folder, capsys)
    assert (code, len(errors), made) == (SETS[text][0], 1, False), errors
    assert SETS[text][1] in errors[0] and "damaged" not in errors[0]
    assert "theirs" in errors[0] or "memory" in errors[0]


@pytest.mark.parametrize("shape", ["32", "(28, 28)", "(28, 28, 1)", "(28.0, 28, 3)", "(0, 28, 3)", "[28, 28, 3]"])
def test_an_image_shape_that_is_none(shape, folder, capsys):
    (folder / "data" / "theirs.py").write_text(GOOD_SET + f"IMAGE_SHAPE = {shape}")
    code, errors, made = run(["--config=configs/quickstart.py:theirs,dml", "--config.batch_size=16"], folder, capsys)
    assert (code, len(errors), made) == (2, 1, False), errors
    assert f"IMAGE_SHAPE of cutnmix_jax/data/theirs.py is {shape}, not (height, width, 3)" in errors[0]


@pytest.mark.parametrize(("size", "said"), [("", "[32, 64, 64, 3]"), ("IMAGE_SHAPE = (64, 64, 3)\n", "64x64x3")])
def test_images_of_another_size(size, said, folder, nets, capsys):
    """Than the data set's module says, and than a network takes."""

    def small_ones(images, *_):
        if images.shape[1:] != (32, 32, 3):
            raise ValueError("what is this")

    larger = size + "good = load\ndef load(data_dir): return good(side=64)"
    (folder / "data" / "theirs.py").write_text(GOOD_SET + larger)
    nets.make = lambda num_classes: Net(num_classes, small_ones)
    arguments = ["--config=configs/quickstart.py:theirs,dml", "--config.batch_size=16"]
    code, errors, made = run([*arguments, "--config.backbone.name=their_nets:make"], folder, capsys)
    assert (code, len(errors), made) == (2, 1, False), errors
    assert said in errors[0] and ("their_nets:make" in errors[0]) == bool(size)


# Libraries.


def stand_in(folder, name, text):
    """The environment of a process that finds something else in the place of a library."""
    (folder / f"{name}.py").write_text(text)
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}."}


MISSING = "raise ModuleNotFoundError(\"No module named 'it'\", name='it')"
SHARED = "raise OSError('libit.so.1: cannot open shared object file')"


@pytest.mark.parametrize(
    ("library", "text", "code", "lines", "said"),
    [
        ("rich", MISSING, 2, 1, "the installation is incomplete"),
        ("optax", "", 2, 1, "the installation is incomplete"),
        ("ml_collections", SHARED, 2, 1, "libit.so.1"),
        ("sklearn", MISSING, 2, 1, "data set 'digits'"),
    ],
)
def test_a_library_that_is_not_there(library, text, code, lines, said, tmp_path):
    command = [sys.executable, "-m", "cutnmix_jax.main", *SMALL, "--config.backbone.name=tests.tiny:Tiny"]
    env = stand_in(tmp_path, library, text)
    done = subprocess.run([*command, f"--workdir={tmp_path / 'run'}"], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr.count("\n")) == (code, lines), done.stderr
    assert said in done.stderr
    assert (tmp_path / "run").exists() == (code == 0)


def test_pictures_and_events_are_done_without(tmp_path, capsys, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **others):
        if name.partition(".")[0] in ("matplotlib", "tensorboardX"):
            raise RuntimeError(f"{name} does not fit this numpy")
        return real(name, *rest, **others)

    monkeypatch.delitem(sys.modules, "cutnmix_jax.pictures", raising=False)
    monkeypatch.delattr("cutnmix_jax.pictures", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    code, errors, folder = run([*SMALL, "--config.backbone.name=tests.tiny:Tiny"], tmp_path, capsys)
    assert (code, len(errors), folder) == (0, 3, True), errors
    assert all(line.startswith("warning: ") and "does not fit" in line for line in errors)
    assert (tmp_path / "run" / "results.json").exists()


def test_what_comes_out_of_the_device_is_one_line(tmp_path, capsys, monkeypatch):
    for text, said in {
        "INTERNAL: an illegal memory access\nwas encountered": "JAX or the device fails",
        "RESOURCE_EXHAUSTED: out of memory": "too little memory",
    }.items():
        monkeypatch.setattr(training, "train", raises(jax.errors.JaxRuntimeError(text)))
        code, errors, _ = run(SMALL, tmp_path, capsys)
        assert (code, len(errors)) == (2, 1), errors
        assert said in errors[0]


@pytest.mark.parametrize("error", [RuntimeError("ours"), ImportError("x", name="cutnmix_jax.gone"), KeyError("ours")])
def test_a_fault_of_ours_stays_a_traceback(error, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "train", raises(error))
    with pytest.raises(type(error)):
        main.main([*SMALL, f"--workdir={tmp_path / 'run'}"])


def test_whose_an_error_is():
    def inner():
        try:
            raise ModuleNotFoundError("No module named 'it'", name="it")
        except ModuleNotFoundError as error:
            raise AttributeError("odd") from error

    with (
        pytest.raises(UsageError, match="their thing .ZeroDivisionError.*; do this"),
        blaming("their thing", "do this"),
    ):
        _ = 1 / 0
    with pytest.raises(UserError, match="as it is"), blaming("their thing", "do this"):
        raise UserError("as it is")
    with pytest.raises(AttributeError) as caught:
        inner()
    assert "No module named 'it'" in str(excused(caught.value))
    assert excused(ValueError("RESOURCE_EXHAUSTED in a file's name")) is None
    assert exit_code_of(raises(MemoryError())) == 2
