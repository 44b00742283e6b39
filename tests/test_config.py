"""What a user can get wrong on the command line: one line that helps, an exit code, and nothing compiled."""

import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from configs import common
from cutnmix_jax import config as configuration
from cutnmix_jax import main, metrics, schema, train
from tests.runs import TEN_EPOCHS

QUICK = "--config=configs/quickstart.py"


def row(name):
    return f"--config=configs/quickstart.py:digits,{name}"


WRONG = [
    ([], "--config"),
    (["--config=configs/resnet11.py"], "did you mean 'configs/resnet110.py'"),
    (["--config=nowhere/at_all.py"], "no file nowhere/at_all.py"),
    (["--config="], "no file"),
    (["--config=configs/resnet32.py:cifar1000"], "did you mean 'cifar10"),
    (["--config=configs/resnet32.py:cifar100,cutmixx"], "did you mean 'cutmix'"),
    (["--config=configs/resnet32.py:cifar100,dml,3"], "dataset,method"),
    (["--config=configs/resnet32.py:dml"], "FILE:cifar100,dml"),
    ([QUICK, "--config.optimizer.lr=1"], "configs/common.py"),
    ([QUICK, "--config.backbone.name=resnet8x"], "did you mean 'resnet8'"),
    ([QUICK, "--config.peers=resnet8,resnet9"], "config.peers: no backbone 'resnet9'"),
    ([QUICK, "--config.backbone.name=tests.nowhere:make"], "tests.nowhere"),
    ([QUICK, "--config.backbone.name=tests.tiny:nothing"], "nothing"),
    ([QUICK, "--config.sed=96"], "did you mean 'seed'"),
    ([QUICK, "--config.optimizer.momentun=0.9"], "did you mean 'momentum'"),
    ([QUICK, "--config.zzz=1"], "no field 'zzz'"),
    ([QUICK, "--confg.seed=96"], "did you mean --config"),
    ([QUICK, "--wrkdir=x"], "unknown flag --wrkdir"),
    ([QUICK, "stray"], "cannot read 'stray'"),
    ([QUICK, "--config.method=dml"], "FILE:dataset,method"),
    ([QUICK, "--config.loss.name=dmll"], "config.loss.name"),
    ([QUICK, "--config.loss.temperature=0"], "at least 0.001, at most 1e+06"),
    ([QUICK, "--config.loss.temperature=1e20"], "at least 0.001, at most 1e+06"),
    ([QUICK, "--config.loss.temperature=nan"], "finite"),
    ([QUICK, "--config.epochs=abc"], "config.epochs=abc: must be a whole number"),
    ([QUICK, "--config.epochs=1.5"], "whole number"),
    ([QUICK, "--config.epochs=0"], "at least 1"),
    ([QUICK, "--config.epochs=-3"], "at least 1"),
    ([QUICK, "--config.epochs="], "whole number"),
    ([QUICK, "--config.seed=-1"], "from 0"),
    ([QUICK, "--config.batch_size=1"], "at least 2"),
    ([QUICK, "--config.batch_size=1501"], "more than the 1500 images"),
    ([QUICK, "--config.train_examples=20"], "more than the 20 images"),
    ([QUICK, "--config.train_examples=-1"], "at least 0"),
    ([QUICK, "--config.train_examples=1501"], "1500"),
    ([QUICK, "--config.test_examples=298"], "297"),
    ([QUICK, "--config.optimizer.learning_rate=nan"], "finite"),
    ([QUICK, "--config.optimizer.learning_rate=inf"], "finite"),
    ([QUICK, "--config.optimizer.learning_rate=0"], "at least 1e-12"),
    ([QUICK, "--config.optimizer.learning_rate=fast"], "must be a number"),
    ([QUICK, "--config.optimizer.weight_decay=-1e-4"], "0, or at least 1e-12, at most 1"),
    ([QUICK, "--config.optimizer.momentum=1.5"], "at most 0.9999"),
    ([QUICK, "--config.optimizer.nesterov=maybe"], "true or false"),
    ([QUICK, "--config.optimizer.milestones=(180,150)"], "increasing"),
    ([QUICK, "--config.optimizer.milestones=(150,150)"], "increasing"),
    ([QUICK, "--config.optimizer.milestones=(1.5,2)"], "increasing"),
    ([QUICK, "--config.optimizer.milestones=(0,2)"], "increasing"),
    ([QUICK, "--config.optimizer.milestones=soon"], "increasing"),
    ([QUICK, "--config.optimizer.milestones=(1000000000000000000000,)"], "increasing"),
    ([QUICK, "--config.optimizer.decay=0"], "at least 1e-06"),
    ([QUICK, "--config.mix.prob=1.2"], "at most 1"),
    ([QUICK, "--config.mix.alpha=0"], "at least 0.001"),
    ([QUICK, "--config.mix.alpha=1e-38"], "at least 0.001"),
    ([QUICK, "--config.mix.kind=cutnmx"], "did you mean 'cutnmix'"),
    ([QUICK, "--config.mix.box=insid"], "did you mean 'inside'"),
    ([QUICK, "--config.mix=3"], "config.mix"),
    ([QUICK, "--config.views=each"], "per_peer, shared"),
    ([QUICK, "--config.mapping=pmap"], "did you mean 'vmap'"),
    ([QUICK, "--config.precision=float16"], "did you mean 'bfloat16'"),
    ([QUICK, "--config.weights.dml=-1"], "0, or at least 1e-12, at most 1e+06"),
    ([QUICK, "--config.weights.dml=1e30"], "0, or at least 1e-12, at most 1e+06"),
    ([QUICK, "--config.weights.dml=nan"], "finite"),
    ([QUICK, "--config.num_peers=0"], "from 1 to 64"),
    ([QUICK, "--config.num_peers=1"], "config.weights.dml=0.6: a single peer has no such loss term"),
    (["--config=configs/quickstart.py:digits,dml", "--config.num_peers=1"], "needs at least 2 networks"),
    ([QUICK, "--config.peers=resnet8,resnet32", "--config.mapping=vmap"], "one architecture"),
    ([row("okddip"), "--config.num_peers=2"], "needs at least 3 networks (the last one is its leader)"),
    ([row("one"), "--config.num_peers=1"], "needs at least 2 networks"),
    ([row("one"), "--config.views=per_peer"], "same images"),
    ([row("one"), "--config.mix.kind=cutnmix"], "same images"),
    ([row("one"), "--config.share_trunk=false"], "one trunk"),
    ([row("one"), "--config.peers=resnet8,resnet32"], "one architecture"),
    ([row("pcl"), "--config.mapping=vmap"], "unroll"),
    ([row("cs_kd"), "--config.mix.kind=cutmix"], "unmixed"),
    ([row("ps_kd"), "--config.mix.kind=mixup"], "unmixed"),
    ([row("kd")], "--config.teacher=DIR"),
    ([row("kd"), "--config.teacher=nowhere"], "no finished run"),
    ([row("dml"), "--config.teacher=nowhere"], "no trained teacher"),
    ([row("kdcl"), "--config.loss.target=minlogits"], "did you mean 'minlogit'"),
    ([row("kdcl"), "--config.loss.target=general"], "needs --config.held_out_examples"),
    ([row("kdcl"), "--config.held_out_examples=100"], "only kdcl's target 'general'"),
    (
        [row("kdcl"), "--config.loss.target=general", "--config.held_out_examples=1499"],
        "leaves no batch of the 1500 training images",
    ),
    ([row("one"), "--config.loss.rampup_epochs=0"], "at least 1"),
    ([row("ps_kd"), "--config.loss.last_share=1.5"], "at most 1"),
    (
        [row("okddip"), "--config.share_trunk=false", "--config.peers=resnet8,wrn20_8,resnet8"],
        "of one size, not 64, 256",
    ),
    ([row("pcl"), "--config.backbone.name=tests.tiny:TinyNNX"], "has no trunk"),
    ([QUICK, "--config.peers=resnet8,wrn20_8"], "config.weights.mmd=0.3: peers with features of 64, 256"),
    ([QUICK, "--config.steps_per_call=-1"], "at least 0"),
    ([QUICK, "--config.checkpoint.keep=0"], "at least 1"),
    ([QUICK, "--workdir="], "--workdir is empty"),
    ([QUICK, "--config.FIELD=3"], "any field of configs/common.py"),
    (["--config=README.md"], "no file README.md"),
    ([QUICK, "--config.backbone=foo"], "field by field"),
    ([QUICK, "--config.backbone.name=../x:y"], "no backbone '../x:y'"),
    ([QUICK, "--config.epochs=10000000000"], "at most 2147483647"),
    ([QUICK, "--config.epochs=2147483647"], "more steps than an int32 can count"),
    ([QUICK, "--config.eval_batch_size=2147483647"], "of at most 10000"),
    ([row("tf_kd_reg"), "--config.loss.correct=0.09"], "give 0.1 to 1"),
    ([QUICK, "--config.optimizer.learning_rate=1e39"], "at most 1e+06"),
    ([QUICK, "--config.optimizer.momentum=1"], "at most 0.9999"),
    (["--config=configs/quickstart.py:digits,baseline", "--config.weights.ce=0"], "nothing would be learned"),
    ([QUICK, "--workdir=/proc/nowhere"], "another --workdir"),
    ([QUICK, "--workdir=README.md/x"], "another --workdir"),
    ([QUICK, "--workdir=runs/\udcff"], "is not UTF-8"),
    ([row("kd"), "--config.teacher=/etc/passwd"], "no finished run there (it is no folder)"),
    ([row("kd"), f"--config.teacher={'x' * 300}"], "no finished run there (File name too long: "),
    (["--config=configs/resnet32.py:cifar10", "--config.data_dir=~nosuchuser/x"], "config.data_dir=~nosuchuser/x: "),
]


@pytest.fixture
def nothing_is_compiled(monkeypatch):
    def refuse(*_):
        raise AssertionError("training was reached")

    monkeypatch.setattr(train, "Checkpoints", refuse)  # what is made next after all checks


def run(arguments, tmp_path, capsys):
    if not any(argument.startswith("--workdir") for argument in arguments):
        arguments = [*arguments, f"--workdir={tmp_path / 'run'}"]
    code = main.main(arguments)
    return code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "said"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_one_line_and_exit_code_2(arguments, said, tmp_path, capsys, nothing_is_compiled):
    code, errors = run(arguments, tmp_path, capsys)
    assert (code, len(errors)) == (2, 1), errors
    assert said in errors[0]


def test_missing_data_is_exit_code_3(tmp_path, capsys, nothing_is_compiled):
    arguments = ["--config=configs/resnet32.py:cifar10", f"--config.data_dir={tmp_path}"]
    code, errors = run(arguments, tmp_path, capsys)
    assert (code, len(errors)) == (3, 1), errors
    assert "prepare --dataset=cifar10" in errors[0]


def test_links_in_a_circle(tmp_path, capsys, nothing_is_compiled):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for arguments in (
        [row("kd"), f"--config.teacher={tmp_path / 'circle'}"],
        ["--config=configs/resnet32.py:cifar10", f"--config.data_dir={tmp_path / 'circle'}"],
        [QUICK, f"--workdir={tmp_path / 'circle'}"],
    ):
        code, errors = run(arguments, tmp_path, capsys)
        assert (code, len(errors)) == (2, 1), errors


@pytest.mark.parametrize(("name", "code"), [("n\xe9", 0), ("n\udcff", 2)])
def test_names_that_the_terminal_cannot_show(name, code, tmp_path):
    command = [sys.executable, "-m", "cutnmix_jax.main", QUICK, *TEN_EPOCHS, f"--workdir={tmp_path / name}"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr.count("\n")) == (code, int(code != 0)), done.stderr


def test_a_config_file_that_breaks_is_one_line(tmp_path, capsys, nothing_is_compiled):
    for number, (text, said) in enumerate(
        {
            "x = (": "never closed",
            "def get_config(arg=None): return 1 / 0": "division",
            "def get_config(arg=None): return 1": "config",
        }.items()
    ):
        file = tmp_path / f"broken{number}.py"
        file.write_text(text)
        code, errors = run([f"--config={file}"], tmp_path, capsys)
        assert (code, len(errors)) == (2, 1), errors
        assert said in errors[0]


def leaves(fields, prefix=""):
    for name, value in fields.items():
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]


@pytest.mark.parametrize("file", ["resnet110", "quickstart"])
def test_every_field_can_be_given_on_the_command_line(file):
    plain = configuration.from_flags(f"configs/{file}.py", [])
    flags = [f"--config.{name}={value}" for name, value in leaves(plain.to_dict()) if name != "method"]
    assert configuration.from_flags(f"configs/{file}.py", flags).to_dict() == plain.to_dict()


def test_the_papers_recipe():
    config = configuration.from_flags("configs/resnet110.py", [])
    assert (config.dataset, config.method, config.backbone.name) == ("cifar100", "cutnmix", "resnet110")
    assert (config.epochs, config.batch_size, config.seed, config.num_peers) == (240, 64, 95, 2)
    assert (config.optimizer.learning_rate, config.optimizer.milestones) == (0.05, (150, 180, 210))
    assert (config.optimizer.momentum, config.optimizer.weight_decay, config.optimizer.nesterov) == (0.9, 5e-4, True)
    assert (config.loss.temperature, config.mix.prob, config.mix.alpha, config.mix.box) == (3.0, 1.0, 1.0, "cutmix")
    weights = config.weights
    assert (weights.ce, weights.dml, weights.mmd, weights.pt) == (1.0, 0.6, 0.3, 0.1)


@pytest.mark.parametrize("row", common.ROWS)
def test_every_row_is_valid(row):
    teacher = ["--config.teacher=somewhere"] if row in ("kd", "tf_kd_self") else []
    config = configuration.from_flags(f"configs/resnet32.py:cifar10,{row}", teacher)
    assert (config.dataset, config.method) == ("cifar10", row)


def test_argument_parts_may_be_left_out():
    names = {arg: configuration.from_flags(f"configs/resnet32.py:{arg}", []) for arg in ("cifar10", ",dml", "cifar10,")}
    assert {arg: (c.dataset, c.method) for arg, c in names.items()} == {
        "cifar10": ("cifar10", "cutnmix"),
        ",dml": ("cifar100", "dml"),
        "cifar10,": ("cifar10", "cutnmix"),
    }


def test_default_folders():
    config = configuration.from_flags("configs/resnet110.py:cifar10,dml", ["--config.seed=96"])
    assert str(configuration.default_workdir(config)) == "runs/cifar10/resnet110/dml/seed96"
    config = configuration.from_flags("configs/resnet110.py", ["--config.peers=resnet32, wrn20_8"])
    assert configuration.backbone_name(config) == "resnet32+wrn20_8"
    config = configuration.from_flags("configs/resnet110.py", ["--config.backbone.name=my.nets:make"])
    assert configuration.backbone_name(config) == "my.nets.make"


def test_digest_is_of_the_fields_alone():
    def digest(config):
        return metrics.config_sha256(metrics.config_json(config))

    one = configuration.from_flags("configs/resnet32.py", ["--config.seed=96"])
    same = configuration.from_flags("configs/resnet110.py", ["--config.seed=96", "--config.backbone.name=resnet32"])
    other = configuration.from_flags("configs/resnet32.py", [])
    assert digest(one) == digest(same) != digest(other)
    assert json.loads(json.dumps(metrics.config_json(one))) == metrics.config_json(one)


def test_difference_names_the_field():
    old, new = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4, "d": 3}, "e": 5}
    assert configuration.difference(old, new) == ["config.b.c: 2 -> 4", "config.e: None -> 5"]


def test_help_is_not_an_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main(["--help"])
    assert stopped.value.code == 0
    assert "--config=configs/quickstart.py" in capsys.readouterr().out


def test_checks_know_their_bounds():
    assert schema.whole(0, 5)(5) == "" and schema.whole(0, 5)(6)
    assert (
        schema.number(0, 1)(1.0) == "" and schema.number(0.5, 1)(0.0) and schema.number(0.5, 1, or_zero=True)(0) == ""
    )
    assert schema.number(0)(math.inf) and schema.number(0)(math.nan)


SHIPPED = sorted(path.stem for path in Path("configs").glob("*.py") if path.stem not in ("__init__", "common"))
WRONG_VALUES = {
    int: ("", "abc", "1.5", "nan", "-1", "1e3", "99999999999999", "0x", "None", "(1,)"),
    float: ("", "abc", "nan", "inf", "-inf", "-0.5", "1,5", "None"),
    bool: ("", "maybe", "2", "nan"),
    tuple: ("soon", "(2,1)", "(0,)", "(1.5,)", "(nan,)", "(-1,)"),
    str: ("no such thing",),
}
FREE_TEXT = ("data_dir", "method")  # any folder can be meant; and the method is refused whatever it is


def malformed():
    """Every field of some rows with values of the wrong type or out of range, and every name misspelt."""
    for row_name in ("cutnmix", "ps_kd", "okddip"):
        plain = configuration.from_flags(f"configs/quickstart.py:digits,{row_name}", [])
        for name, value in leaves(plain.to_dict()):
            if name in FREE_TEXT:
                continue
            for wrong in WRONG_VALUES[type(value)]:
                yield row_name, f"--config.{name}={wrong}", name.rpartition(".")[2]
            if row_name == "cutnmix":
                place = len(name) * 2 // 3
                for typo in (name[:place] + name[place + 1 :], name + "s", name[:place] + "_" + name[place:]):
                    if typo not in dict(leaves(plain.to_dict())):
                        yield row_name, f"--config.{typo}={value}", "no field"


MALFORMED = [case for case in malformed() if case[1] != "--config.checkpoint.every_minutes=inf"]


def test_at_most_64_networks(tmp_path, capsys):
    networks = ",".join(["resnet8"] * 65)
    code, errors = run(["--config=configs/quickstart.py", f"--config.peers={networks}"], tmp_path, capsys)
    assert (code, errors) == (2, ["error: config.peers names 65 networks; at most 64 are trained together"])


def test_there_are_enough_of_them():
    assert len({case[:2] for case in MALFORMED}) + len(WRONG) > 500


@pytest.mark.parametrize("case", MALFORMED, ids=" ".join)
def test_malformed(case, tmp_path, capsys, monkeypatch):
    def touched(*_):
        raise AssertionError("a device was touched")

    monkeypatch.setattr(train, "set_up_jax", touched)
    monkeypatch.setattr(train.data, "load", touched)
    code, errors = run([row(case[0]), case[1]], tmp_path, capsys)
    assert (code, len(errors)) == (2, 1), errors
    assert case[2] in errors[0] and "Traceback" not in errors[0] and len(errors[0]) < 500
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--config.sed=96"],
        ["--config.train_examples=2000"],
        ["--config.weights.dml=0", "--config.num_peers=1"],
        ["--config.peers=resnet8,wrn20_8"],
        ["--config.backbone.name=tests.nowhere:make"],
    ],
)
def test_before_a_device_is_touched_and_within_three_seconds(wrong, tmp_path):
    command = [sys.executable, "-m", "cutnmix_jax.main", QUICK, *wrong, f"--workdir={tmp_path / 'run'}"]
    # Seconds of work, not of the clock: other tests take their share of that.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "no_such_device"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "JAX" not in done.stderr, done.stderr
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    print(f"{seconds:.2f} s")
    assert seconds < 3
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("file", SHIPPED)
def test_config_json_is_the_configuration(file):
    """Each leaf reads back as it was, and a run may go on with what was read."""
    config = configuration.from_flags(f"configs/{file}.py", ["--config.optimizer.milestones=(1,2)"])
    read = json.loads(json.dumps(metrics.config_json(config)))
    assert configuration.difference(read, metrics.config_json(config)) == []
    as_tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in leaves(read)}
    assert as_tuples == dict(leaves(config.to_dict()))


def other(name, value):
    """Another value than the one a field has."""
    choices = {"dataset": "cifar10", "mapping": "vmap", "precision": "float32", "views": "shared", "loss.name": "dml",
               "mix.kind": "cutmix", "mix.box": "inside", "backbone.name": "my.nets:make", "teacher": "x",
               "peers": "a,b", "data_dir": "/x", "optimizer.milestones": (1, 2), "mix.prob": 0.25}  # fmt: skip
    if name in choices:
        return choices[name]
    return not value if isinstance(value, bool) else value + 1


@pytest.mark.parametrize("file", SHIPPED)
def test_every_leaf_can_be_overridden(file, monkeypatch):
    monkeypatch.setattr(configuration, "check", lambda config: None)  # many are right only together
    plain = configuration.from_flags(f"configs/{file}.py", [])
    for name, value in leaves(plain.to_dict()):
        if name == "method":
            continue
        changed = configuration.from_flags(f"configs/{file}.py", [f"--config.{name}={other(name, value)}"])
        [line] = configuration.difference(metrics.config_json(plain), metrics.config_json(changed))
        assert line.startswith(f"config.{name}: "), line


def test_the_last_of_two_values_counts():
    twice = [f"--config.optimizer.milestones={value}" for value in ("(1,)", "(2,)")]
    assert configuration.from_flags("configs/resnet32.py", twice).optimizer.milestones == (2,)
