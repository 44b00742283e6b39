"""What a user can get wrong on the command line: one line that helps, an exit code, and nothing compiled."""

import dataclasses
import itertools
import json
import math
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cutnmix_jax import backbones, continued, data, digests, fields, library, main, methods, training
from cutnmix_jax.errors import CheckpointError, UsageError
from cutnmix_jax.paper.cells import ABLATIONS
from cutnmix_jax.settings import check, command_line, listing, recipe, tree, unused
from cutnmix_jax.student.load import load_student
from tests.runs import TEN_EPOCHS

QUICK = "--config=configs/quickstart.py"


def row(name):
    return f"--config=configs/quickstart.py:digits,{name}"


WRONG = [
    (["--workdir=x"], "--config=NAME says what to train: quickstart, imagenet_resnet18"),
    (["--config=configs/resnet11.py"], "did you mean 'configs/resnet110.py'"),
    (["--config=nowhere/at_all.py"], "no file nowhere/at_all.py"),
    (["--config="], "no configuration ''; there are: densenet40_12, "),
    (["--config=configs/resnet32.py:cifar1000"], "did you mean 'cifar10"),
    (["--config=configs/resnet32.py:cifar100,cutmixx"], "did you mean 'cutmix'"),
    (["--config=configs/resnet32.py:cifar100,dml,3"], "dataset,method"),
    (["--config=configs/resnet32.py:dml"], "NAME:cifar100,dml"),
    ([QUICK, "--config.optimizer.lr=1"], "no field 'lr'; did you mean 'optimizer.learning_rate'?"),
    ([QUICK, "--config.backbone.name=resnet8x"], "did you mean 'resnet8'"),
    ([QUICK, "--config.peers=resnet8,resnet9"], "config.peers: no backbone 'resnet9'"),
    ([QUICK, "--config.backbone.name=tests.nowhere:make"], "tests.nowhere"),
    ([QUICK, "--config.backbone.name=tests.tiny:nothing"], "nothing"),
    ([QUICK, "--config.sed=96"], "did you mean 'seed'"),
    ([QUICK, "--config.optimizer.momentun=0.9"], "did you mean 'optimizer.momentum'"),
    ([QUICK, "--config.zzz=1"], "no field 'zzz'"),
    ([QUICK, "--confg.seed=96"], "did you mean --config"),
    ([QUICK, "--wrkdir=x"], "unknown flag --wrkdir"),
    ([QUICK, "stray"], "cannot read 'stray'"),
    ([QUICK, "--config.method=dml"], "NAME:dataset,method"),
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
    ([QUICK, "--config.train_examples=-1"], "at least 1, or none"),
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
    (["--config=configs/quickstart.py:digits,dml", "--config.num_peers=1"], "needs at least 2 networks, not 1"),
    (
        ["--config=configs/quickstart.py:digits,dml", "--config.peers=resnet8"],
        "config.num_peers or config.peers: dml needs at least 2 networks, not 1",
    ),
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
    ([row("dml"), "--config.validation_examples=1499"], "config.validation_examples=1499 leaves no batch"),
    (
        [row("dml"), "--config.peers=resnet8,resnet32", "--config.backbone.name=resnet11"],
        "config.backbone.name: no backb",
    ),
    ([row("dml"), "--config.peers=resnet8,resnet11"], "config.peers: no backbone 'resnet11'"),
    ([row("dml"), "--config.loss.name=cutnmix"], "config.loss.name follows from the argument"),
    ([row("dml"), "--config.peers="], "must be text, or none"),
    ([row("dml"), "--config.eval_every_epochs=0"], "must be a whole number at least 1"),
    ([row("kd")], "--config.teacher=DIR"),
    ([row("kd"), "--config.teacher=nowhere"], "no finished run"),
    ([row("dml"), "--config.teacher=nowhere"], "no trained teacher"),
    ([QUICK, "--config.teacher_which=best"], "config.teacher_which=best: there is no teacher; leave it out"),
    ([row("kdcl"), "--config.loss.target=minlogits"], "did you mean 'minlogit'"),
    ([row("kdcl"), "--config.loss.target=general"], "config.held_out_examples=none: kdcl looks at such images"),
    ([row("kdcl"), "--config.held_out_examples=100"], "kdcl does not use them"),
    (
        [row("kdcl"), "--config.loss.target=general", "--config.held_out_examples=1499"],
        "config.held_out_examples=1499 leaves no batch of the training images",
    ),
    ([row("one"), "--config.ramp_up.epochs=0"], "at least 1"),
    ([row("one"), "--config.ramp_up.terms=('kdd',)"], "did you mean 'kd'"),
    ([row("ps_kd"), "--config.loss.last_share=1.5"], "at most 1"),
    (
        [row("okddip"), "--config.share_trunk=false", "--config.peers=resnet8,wrn20_8,resnet8"],
        "of one size, not 64, 256",
    ),
    ([row("pcl"), "--config.backbone.name=tests.tiny:TinyNNX"], "has no trunk"),
    ([QUICK, "--config.peers=resnet8,wrn20_8"], "config.weights.mmd=0.3: peers with features of 64, 256"),
    ([QUICK, "--config.steps_per_call=0"], "at least 1, or none"),
    ([QUICK, "--config.checkpoint.keep=0"], "at least 1"),
    ([QUICK, "--workdir="], "argument --workdir: is empty"),
    ([QUICK, "--config.FIELD=3"], "any field of --list=fields"),
    (["--config=README.md"], "no configuration 'README.md'"),
    ([QUICK, "--config.backbone=foo"], "field by field"),
    ([QUICK, "--config.backbone.name=../x:y"], "no backbone '../x:y'"),
    ([QUICK, "--config.backbone.name=a..b:c"], "no backbone 'a..b:c'"),
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

    monkeypatch.setattr(training, "Checkpoints", refuse)  # what is made next after all checks


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
    command = [sys.executable, "-m", "cutnmix_jax.main", QUICK, *TEN_EPOCHS, "--config.epochs=1"]
    command += ["--config.optimizer.milestones=()", f"--workdir={tmp_path / name}"]
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


def typed(value):
    """A value as a person types it."""
    return "none" if value is None else tuple(value) if isinstance(value, list) else value


def read(file, *flags):
    return tree.of_settings(command_line.from_flags(file, flags))


@pytest.mark.parametrize("file", ["resnet110", "quickstart"])
def test_every_field_can_be_given_on_the_command_line(file):
    plain = read(f"configs/{file}.py")
    flags = [f"--config.{name}={typed(value)}" for name, value in leaves(plain) if name not in ("method", "loss.name")]
    assert read(f"configs/{file}.py", *flags) == plain


def test_the_papers_recipe():
    config = command_line.from_flags("configs/resnet110.py", [])
    assert (config.dataset, config.method, config.backbone.name) == ("cifar100", "cutnmix", "resnet110")
    assert (config.epochs, config.batch_size, config.seed, config.num_peers) == (240, 64, 95, 2)
    assert (config.optimizer.learning_rate, config.optimizer.milestones) == (0.05, (150, 180, 210))
    assert (config.optimizer.momentum, config.optimizer.weight_decay, config.optimizer.nesterov) == (0.9, 5e-4, True)
    assert (config.loss.temperature, config.mix.prob, config.mix.alpha, config.mix.box) == (3.0, 1.0, 1.0, "cutmix")
    weights = config.weights
    assert weights == {"ce": 1.0, "dml": 0.6, "mmd": 0.3, "pt": 0.1, "peer_teacher_ce": 1.0}


def test_the_recipe_for_imagenet():
    for name, backbone in recipe.IMAGENET.items():
        config = command_line.from_flags(f"{name}:digits", [])
        assert (config.dataset, config.method, config.backbone.name) == ("digits", "cutnmix", backbone)
        assert (config.epochs, config.batch_size, config.num_peers, config.views) == (90, 256, 2, "per_peer")
        assert (config.image_size, config.eval_batch_size) == (224, 250)
        optimizer = config.optimizer
        assert (optimizer.learning_rate, optimizer.milestones, optimizer.decay) == (0.1, (30, 60, 80), 0.1)
        assert (optimizer.momentum, optimizer.weight_decay, optimizer.warm_up_epochs) == (0.9, 1e-4, 0)
        assert command_line.from_flags(f"{name}:digits,one", []).ramp_up.epochs == 30
        for argument in ("", ":", ":,dml"):
            with pytest.raises(UsageError, match="has no data set of its own; name one, NAME:DATASET,METHOD"):
                command_line.from_flags(f"{name}{argument}", [])


def test_the_recipe_for_a_first_look():
    config = command_line.from_flags("quickstart", [])
    assert (config.dataset, config.method, config.backbone.name) == ("digits", "cutnmix", "resnet8")
    assert config.batch_size == 32
    assert (config.epochs, config.optimizer.milestones, config.optimizer.learning_rate) == (20, (13, 17), 0.05)


def test_all_devices_are_taken_where_nobody_says_another_number(tmp_path):
    """A file's number was replaced without a word, the command line's was refused."""
    file = tmp_path / "theirs.py"
    for line, given, wanted in (
        ("", [], 0),
        ("", ["--config.devices=2"], 2),
        ("config.devices = 2", [], 2),
        ("config.devices = 2", ["--config.devices=0"], 0),
    ):
        file.write_text(
            "from cutnmix_jax.settings import recipe\ndef get_config(argument=None):\n"
            f"    config = recipe.quickstart(argument)\n    {line}\n    return config\n"
        )
        assert command_line.from_flags(str(file), given, all_devices=True).devices == wanted
        assert command_line.from_flags(str(file), given).devices == (wanted if line or given else 1)
    local = ["--config.bn=local"]
    assert command_line.from_flags("quickstart", local, all_devices=True).devices == 0


@pytest.mark.parametrize("row", sorted(methods.rows_by_name()))
def test_every_row_is_valid(row):
    teacher = ["--config.teacher=somewhere"] if row in ("kd", "tf_kd_self") else []
    config = command_line.from_flags(f"configs/resnet32.py:cifar10,{row}", teacher)
    assert (config.dataset, config.method) == ("cifar10", row)


@pytest.mark.parametrize(
    ("made_as", "filed_as"), [("dml", "dml_cutmix"), ("cutnmix", "cutnmix_pt"), ("cutnmix_mmd", "cutnmix_pt")]
)
def test_a_run_that_is_filed_under_another_row_is_found(made_as, filed_as):
    """With other options and another number of peers, too; what fits no row is a run of its own."""
    settings = dataclasses.replace(recipe.of_row("resnet8", "digits", made_as), num_peers=4, batch_size=32)
    assert recipe.other_row(settings) == ""
    assert recipe.other_row(dataclasses.replace(settings, method=filed_as)) == made_as
    assert recipe.other_row(dataclasses.replace(settings, weights={**settings.weights, "ce": 0.5})) == ""
    filed = dataclasses.replace(settings, method=filed_as, weights={**settings.weights, "ce": 0.5})
    assert recipe.other_row(filed) == ""  # whose weights are no row's


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_is_not_taken_for_another_row(name):
    row, changes = ABLATIONS[name]
    fields = [f"--config.{field}={value}" for field, value in changes.items()]
    assert recipe.other_row(command_line.from_flags(f"resnet8:digits,{row}", fields)) == ""


def test_quickstart_has_its_ramp_up_in_proportion():
    """With the paper's 80 epochs a weight would have a twentieth of its size after the last of 20."""
    assert [command_line.from_flags(f"{name}:digits,one", []).ramp_up.epochs for name in ("quickstart", "resnet8")] == [
        6,
        80,
    ]
    assert command_line.from_flags("quickstart:digits,dml", []).ramp_up.epochs == 80  # nothing rises


def test_argument_parts_may_be_left_out():
    names = {arg: command_line.from_flags(f"configs/resnet32.py:{arg}", []) for arg in ("cifar10", ",dml", "cifar10,")}
    assert {arg: (c.dataset, c.method) for arg, c in names.items()} == {
        "cifar10": ("cifar10", "cutnmix"),
        ",dml": ("cifar100", "dml"),
        "cifar10,": ("cifar10", "cutnmix"),
    }


def test_default_folders():
    settings = command_line.from_flags("configs/resnet110.py:cifar10,dml", ["--config.seed=96"])
    assert str(settings.default_workdir) == "runs/cifar10/resnet110/dml/seed96"
    settings = command_line.from_flags("configs/resnet110.py", ["--config.peers=resnet32, wrn20_8"])
    assert (settings.backbone_name, settings.num_peers) == ("resnet32+wrn20_8", 2)
    settings = command_line.from_flags("configs/resnet110.py", ["--config.backbone.name=my.nets:make"])
    assert settings.backbone_name == "my.nets.make"


def test_digest_is_of_the_fields_alone():
    one = digests.of_json(read("configs/resnet32.py", "--config.seed=96"))
    same = read("configs/resnet110.py", "--config.seed=96", "--config.backbone.name=resnet32")
    assert one == digests.of_json(same) != digests.of_json(read("configs/resnet32.py"))


def test_a_difference_names_the_field():
    old, new = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4, "d": 3}, "e": 5}
    assert list(map(str, tree.differences(old, new))) == ["config.b.c: 2 -> 4", "config.e: None -> 5"]


def test_what_may_change_within_a_run_stands_beside_the_field():
    wanted = {"seed": "NEVER", "backbone.name": "NEVER", "optimizer.learning_rate": "FORCED", "weights.ce": "FORCED",
              "loss.name": "NEVER", "loss.temperature": "FORCED", "epochs": "EXTENDED", "checkpoint.keep": "FREE",
              "teacher": "FREE", "nothing": "FORCED"}  # fmt: skip
    assert {path: tree.change_of(path).name for path in wanted} == wanted
    for bn, change in (("global", "FREE"), ("local", "FORCED")):
        before, after = ({"bn": bn, "devices": count} for count in (2, 4))
        assert [one.change.name for one in tree.differences(before, after)] == [change]
        before, after = (read("quickstart", f"--config.bn={bn}", f"--config.devices={count}") for count in (2, 4))
        assert (
            (tree.deciding(before) == tree.deciding(after)) == (tree.changes(before, after) == []) == (bn == "global")
        )
    before, after = ({"bn": "local", "devices": count} for count in (0, 4))  # as earlier versions kept `all`
    assert [one.change.name for one in tree.differences(before, after)] == ["FREE"]
    assert tree.change_of("loss.target", "kdcl").name == "NEVER"  # with `general` a checkpoint holds weights of peers
    assert tree.change_of("loss.temperature", "kdcl").name == "FORCED"
    one, other = ({"loss": {"name": "kdcl", "target": target}} for target in ("mean", "general"))
    assert [difference.change.name for difference in tree.differences(one, other)] == ["NEVER"]
    rows = [read(f"resnet32:cifar100,{row}") for row in ("dml", "dml_cutmix", "cutnmix")]  # the last has a peer teacher
    fixed = [[one.path for one in tree.changes(rows[0], row) if one.change.name == "NEVER"] for row in rows]
    assert fixed == [[], [], ["loss.name"]]
    before = read("configs/resnet32.py")
    after = read("configs/resnet32.py", "--config.seed=96", "--config.checkpoint.keep=9", "--config.data_dir=x")
    assert list(map(str, tree.changes(before, after))) == ["config.seed: 95 -> 96"]


@pytest.mark.parametrize(
    ("row", "both", "one", "other"),
    [
        ("cutnmix_dml", "peers=resnet8,resnet32", "backbone.name=vgg16", "backbone.name=resnet110"),
        ("cutnmix", "mix.prob=0", "mix.alpha=0.5", "mix.alpha=2"),
        ("cutnmix", "mix.prob=0", "mix.box=own", "mix.box=wrap"),
        ("cutmix", "mix.prob=0.1", "mix.box=own", "mix.box=wrap"),
        ("dml", "optimizer.milestones=()", "optimizer.decay=0.5", "optimizer.decay=0.2"),
        ("dml", "optimizer.schedule=cosine", "optimizer.milestones=(1,)", "optimizer.milestones=()"),
        ("dml", "optimizer.name=adamw", "optimizer.momentum=0.5", "optimizer.momentum=0.2"),
    ],
)
def test_what_has_no_effect_in_either_is_no_change(row, both, one, other, tmp_path):
    """Neither within a run nor between two; where it has one in either, it is."""
    made = [command_line.from_flags(f"quickstart:digits,{row}", [f"--config.{both}", f"--config.{each}"])
            for each in (one, other)]  # fmt: skip
    trees = list(map(tree.of_settings, made))
    assert unused.changes(*trees) == []
    assert len(tree.changes(*trees)) == 1
    (tmp_path / "config.json").write_text(json.dumps(trees[0]))
    assert not continued.check_file(tmp_path, made[1], begun=True, allowed=continued.Allowed.NONE)
    assert unused.changes({**trees[0], "new": 1}, trees[1]) == tree.changes({**trees[0], "new": 1}, trees[1])
    looked_at = read("quickstart:digits," + row, f"--config.{one}")
    path = one.partition("=")[0]
    if path != "mix.box" or row == "cutnmix":
        assert path in [change.path for change in unused.changes(looked_at, trees[1])]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("c.epohcs = 3", "no field 'epohcs'; did you mean 'epochs'"),
        ("c.optimizer.lr = 0.5", "no field 'optimizer.lr'"),
        ("c.optimizer.learning_rate = -1.0", "config.optimizer.learning_rate=-1.0: must be a finite number"),
        ("c.optimizer = 3", "config.optimizer=3: must be a group of fields"),
        ("c.loss.temprature = 3", "no field 'loss.temprature'; did you mean 'temperature'"),
        ("c.weights.dmml = 3.0", "config.weights.dmml=3: this method has no such loss term"),
        ("c.weights.mdd = 0.0", "config.weights.mdd: cutnmix has no such loss term; did you mean 'mmd'"),
        ("c.weights.dml = -3.0", "config.weights.dml=-3.0: must be a finite number"),
        ("c.train_examples = 0", "config.train_examples=0: must be a whole number at least 1, or none"),
        ("c.teacher = 3", "config.teacher=3: must be text, or none"),
        ("del c.loss.name", "config.loss.name is missing"),
        ("c.mix.box = 7", "config.mix.box=7: not known"),
        ("c.method = 'baseline'", "config.method='baseline' is a row of supervised, and config.loss.name is cutnmix"),
        ("c.method = 'dlm'", "config.method: no method 'dlm'; did you mean 'dml'"),
        ("c.method = '../../x'", "config.method: no method '../../x'"),
    ],
)
def test_a_file_is_held_to_the_fields_as_a_command_line_is(line, says, tmp_path, capsys, nothing_is_compiled):
    file = tmp_path / "mine.py"
    file.write_text(
        "from cutnmix_jax.settings import recipe\ndef get_config(arg=None):\n"
        f"  c = recipe.make('resnet8', arg, 'digits')\n  with c.ignore_type(), c.unlocked():\n    {line}\n  return c\n"
    )
    code, errors = run([f"--config={file}"], tmp_path, capsys)
    assert (code, len(errors)) == (2, 1), errors
    assert says in errors[0]


def test_a_file_may_leave_fields_out(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(arg=None): return ConfigDict({'dataset': 'digits', 'method': 'dml', 'epochs': 3, "
        "'optimizer': {'decay': 0.5}, "
        "'loss': {'name': 'dml'}, 'weights': {'ce': 1.0, 'dml': 1.0}, 'backbone': {'name': 'resnet8'}})\n"
    )
    settings = command_line.from_flags(str(file), ["--config.epochs=4"])
    assert (settings.epochs, settings.optimizer.decay, settings.optimizer.momentum) == (4, 0.5, 0.9)
    assert settings.loss.temperature == 3.0


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ("optimizer = ConfigDict({'learning_rate': 0.02})",
         "config.optimizer has no 'name': give all fields of a group, or set those of a recipe one by one, as config"),
        ("loss = ConfigDict({'name': 'dml'})", "config.loss has no 'temperature': give all fields"),
    ],
)  # fmt: skip
def test_a_file_that_replaces_a_group_of_a_recipe_is_told_what_it_loses(group, said, tmp_path):
    """A rate of its own gave quickstart's 20 epochs the milestones of 240."""
    file = tmp_path / "mine.py"
    text = "from ml_collections import ConfigDict\nfrom cutnmix_jax.settings import recipe\n"
    file.write_text(
        f"{text}def get_config(arg=None):\n  c = recipe.quickstart('digits,dml')\n  c.{group}\n  return c\n"
    )
    with pytest.raises(UsageError, match=re.escape(said)):
        command_line.from_flags(str(file), [])


@pytest.mark.parametrize(
    ("group", "fields"),
    [
        ("mix", {"prob": 0.5}),
        ("optimizer", {"learning_rate": 0.1}),
        ("ramp_up", {"epochs": 3}),
        ("loss", {"name": "cutnmix"}),
    ],
)
def test_a_group_that_python_replaces_keeps_nothing_and_is_refused(group, fields):
    """CutnMix was trained without boxes, and one epoch with the milestones of 240."""
    settings = command_line.from_flags("quickstart:digits,cutnmix", [])
    with pytest.raises(UsageError, match=f"config.{group} has no '.*': give all fields of a group"):
        check.checked(dataclasses.replace(settings, **{group: fields}))
    whole = tree.of_settings(settings)[group]
    assert check.checked(dataclasses.replace(settings, **{group: whole})) == settings


@pytest.mark.parametrize("name", ["cutnmix", "kdcl", "kd", "nothing"])
def test_a_file_that_changes_the_name_of_the_loss_is_told_of_the_argument(name, tmp_path):
    """It was told to set it as it had set it, or of a field that the other method does not have."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from cutnmix_jax.settings import recipe\ndef get_config(arg=None):\n  c = recipe.quickstart('digits,dml')\n"
        f"  c.loss.name = {name!r}\n  return c\n"
    )
    with pytest.raises(UsageError, match=f"config.method='dml' is a row of dml, and config.loss.name is {name}; both"):
        command_line.from_flags(str(file), [])


def test_the_list_of_fields_is_up_to_date():
    listing = subprocess.run([sys.executable, "-m", "cutnmix_jax.settings"], capture_output=True, text=True, check=True)
    assert listing.stdout == Path("docs/fields.md").read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--epochs=3", "unknown flag --epochs; did you mean --config.epochs?"),
        ("--lr=0.1", "unknown flag --lr; did you mean --config.optimizer.learning_rate?"),
        ("--config.lr=0.1", "no field 'lr'; did you mean 'optimizer.learning_rate'?"),
        ("--config.momentum=0.5", "no field 'momentum'; did you mean 'optimizer.momentum'?"),
        ("--config.epohcs=3", "no field 'epohcs'; did you mean 'epochs'?"),
        (
            "--config.optimizer.learning-rate=1",
            "unknown flag --config.optimizer.learning-rate; did you mean --config.op",
        ),
        ("--config.batch-size=1", "unknown flag --config.batch-size; did you mean --config.batch_size?"),
        ("--config.epochs[0]=1", "unknown flag --config.epochs[0]; did you mean --config.epochs?"),
        ("--flagfile=fields", "unknown flag --flagfile; fields that stay are a file of configs"),
        ("--config.tau=1", "no field 'tau'; did you mean 'loss.temperature'?"),
        ("--method=dml", "unknown flag --method; both stand in --config=NAME:DATASET,METHOD"),
        ("--output_dir=x", "unknown flag --output_dir; did you mean --workdir?"),
        ("--resume", "unknown flag --resume; the same command again goes on with a run"),
        ("--gpus=2", "unknown flag --gpus; CUDA_VISIBLE_DEVICES chooses the GPUs"),
        ("--config.zzzz=3", "no field 'zzzz'; --list shows all fields"),
        ("--config.weights.ensemble_ce=1", "this row has no 'ensemble_ce'; those that have it: one"),
        ("--config.loss.last_share=1", "this row has no 'last_share'; those that have it: ps_kd"),
        ("--config.teacher=/tmp", "cutnmix has no trained teacher; leave it out, or choose kd or tf_kd_self"),
    ],
)
def test_what_somebody_may_have_meant(given, said, capsys):
    assert main.main(["--config=quickstart", given]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1, error


def test_a_configuration_by_its_name_is_that_of_its_file():
    for name in recipe.names():
        if (file := Path("configs", f"{name}.py")).exists():
            for argument in (":cifar10", ":cifar10,baseline", *([] if name in recipe.IMAGENET else ["", ":,dml"])):
                named, read = (command_line.from_flags(f"{one}{argument}", []) for one in (name, file))
                assert named == read
    assert {path.stem for path in Path("configs").glob("*.py")} <= set(recipe.names())


def test_the_list_has_all_there_is(capsys):
    assert main.main(["--list"]) == 0
    shown = capsys.readouterr().out
    named = [*recipe.names(), *backbones.names(), *data.names(), *methods.rows_by_name()]
    named += [one.path for one in listing.of_run()]
    assert [name for name in named if not re.search(rf"(?m)(^  |, ){re.escape(name)}\b", shown)] == []
    assert all(len(line) <= 118 for line in shown.splitlines())
    for one in listing.of_run():
        assert one.range and one.reason, one.path
    for part in listing.PARTS:
        assert main.main([f"--list={part}"]) == 0
        assert capsys.readouterr().out.strip() in shown
    assert main.main(["--list=nothing"]) == 2
    assert "there are configurations, networks, datasets, methods, fields" in capsys.readouterr().err


@pytest.mark.parametrize(("method", "field"), [("dml", "validation_examples"), ("kdcl", "held_out_examples")])
def test_one_batch_may_be_left(method, field):
    given = ["--config.train_examples=100", "--config.batch_size=32", "--config.optimizer.milestones=()"]
    given += ["--config.loss.target=general"] * (method == "kdcl")
    settings = command_line.from_flags(f"quickstart:digits,{method}", [*given, f"--config.{field}=68"])
    assert getattr(settings, field) == 68
    with pytest.raises(UsageError, match=f"config.{field}=69 leaves no batch"):
        command_line.from_flags(f"quickstart:digits,{method}", [*given, f"--config.{field}=69"])


def test_milestones_in_proportion():
    """150, 180 and 210 of 240 epochs, rounded down; none at 0, and none twice."""
    wanted = {
        240: (150, 180, 210),
        20: (12, 15, 17),
        100: (62, 75, 87),
        300: (187, 225, 262),
        8: (5, 6, 7),
        2: (1,),
        1: (),
    }
    assert {epochs: recipe.milestones(epochs) for epochs in wanted} == wanted


@pytest.mark.parametrize(
    ("row", "looked_at"),
    [("dml", []), ("mixup", ["alpha", "prob"]), ("cutmix", ["alpha", "prob"]), ("cutnmix", ["alpha", "box", "prob"])],
)
def test_what_mixing_looks_at_makes_another_run(row, looked_at):
    plain = tree.of_settings(command_line.from_flags(f"quickstart:digits,{row}", []))
    found = []
    for field, value in (("alpha", 0.5), ("box", "own"), ("prob", 0.5)):
        other = command_line.from_flags(f"quickstart:digits,{row}", [f"--config.mix.{field}={value}"])
        found += [change.path.removeprefix("mix.") for change in unused.changes(plain, tree.of_settings(other))]
    assert found == looked_at


def test_a_range_says_what_its_check_takes():
    """Of each field the default is in its range, and the bounds that the words name are those of the check."""
    options = [leaf for name in methods.names() for leaf in tree.leaves(methods.find(name), "loss.")]
    checked = [(path, it) for path, _, it in (*tree.leaves(), *options) if "check" in it.metadata]
    assert len(checked) > 60
    for path, it in checked:
        assert path == "method" or it.metadata["check"](it.default) == "", path
    whole, number = fields.whole(3, 9), fields.number(0.5, 1, or_zero=True)
    assert whole.range == "a whole number from 3 to 9"
    assert [bool(whole(value)) for value in (2, 3, 9, 10)] == [True, False, False, True]
    assert fields.whole(1).range == "a whole number of at least 1" and fields.whole(1)(0)
    assert number.range == "a number, 0, or at least 0.5, at most 1"
    assert [bool(number(value)) for value in (0, 0.4, 0.5, 1.0, 1.1)] == [False, True, False, False, True]
    assert fields.number(0)(math.inf) and fields.number(0)(math.nan)
    assert fields.or_none(fields.text).range == "text, or none" and not fields.or_none(fields.text)(None)
    assert fields.one_of(("a", "b")).range == "a or b" and fields.one_of(("a", "b"))("c")


def test_no_arguments_are_answered_by_examples(capsys):
    assert main.main([]) == 0
    shown = capsys.readouterr().out
    assert "--config=quickstart" in shown and "--list" in shown and len(shown.splitlines()) < 25


def test_help_is_not_an_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        main.main(["--help"])
    assert stopped.value.code == 0
    assert "--config=quickstart" in capsys.readouterr().out


SHIPPED = [
    f"{path}:digits" if path.stem in recipe.IMAGENET else str(path) for path in sorted(Path("configs").glob("*.py"))
]
WRONG_VALUES = {
    int: ("", "abc", "1.5", "nan", "-1", "1e3", "99999999999999", "0x", "(1,)"),
    float: ("", "abc", "nan", "inf", "-inf", "-0.5", "1,5"),
    bool: ("", "maybe", "2", "nan"),
    tuple: ("soon", "(2,1)", "(0,)", "(1.5,)", "(nan,)", "(-1,)"),
    str: ("no such thing",),
}
KINDS = {"every_minutes": float, "average": float, "peers": str, "teacher": str}  # of fields without a value
FREE_TEXT = ("data_dir", "init_from", "method")  # any folder can be meant; and the method is refused whatever it is


def malformed(row_name):
    """Every field of a row with values of the wrong type or out of range, and every name misspelt."""
    plain = dict(leaves(read(f"configs/quickstart.py:digits,{row_name}")))
    for name, value in plain.items():
        last = name.rpartition(".")[2]
        if name not in FREE_TEXT:
            kind = KINDS.get(last, int) if value is None else tuple if isinstance(value, list) else type(value)
            for wrong in WRONG_VALUES[kind]:
                if (last, wrong) != ("every_minutes", "inf"):
                    yield f"--config.{name}={wrong}", last
        place = len(name) * 2 // 3
        for typo in (name[:place] + name[place + 1 :], name + "s", name[:place] + "_" + name[place:]):
            if typo not in plain:
                yield f"--config.{typo}={typed(value)}", "no field"


@pytest.mark.parametrize("row_name", ["cutnmix", "ps_kd", "okddip"])
def test_malformed_fields(row_name, monkeypatch):
    """All at once: each is one line that names the field."""
    monkeypatch.setattr(training, "plan", lambda *_: pytest.fail("a network was made"))
    accepted, count = [], 0
    for flag, names in malformed(row_name):
        count += 1
        try:
            settings = command_line.from_flags(f"configs/quickstart.py:digits,{row_name}", [flag])
            accepted.append((flag, settings))
        except UsageError as error:
            text = str(error)
            assert names in text and "\n" not in text and len(text) < 500, (flag, text)
    left = [flag for flag, _ in accepted]
    assert not left
    assert count > 250


def test_peers_of_a_program_that_are_no_names():
    with pytest.raises(UsageError, match="config.peers: no backbone '8'"):
        library.configure("quickstart", {"peers": ["resnet8", 8]})


def test_folders_of_a_program_are_those_of_the_command_line(tmp_path, monkeypatch):
    """A folder called `~` was made where the program ran, and a run without a name was written there itself."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(training, "run", lambda settings, workdir, *_: {"folder": workdir})
    settings = library.configure("quickstart")
    assert training.train(settings, "~/run") == {"folder": tmp_path / "run"}
    with pytest.raises(UsageError, match="workdir is empty; name a folder"):
        training.train(settings, "")
    for read, error in ((library.results, CheckpointError), (library.history, OSError), (load_student, UsageError)):
        with pytest.raises(error, match=str(tmp_path / "none")):
            read("~/none")


def test_at_most_64_networks(tmp_path, capsys):
    networks = ",".join(["resnet8"] * 65)
    code, errors = run(["--config=configs/quickstart.py", f"--config.peers={networks}"], tmp_path, capsys)
    assert (code, errors) == (2, ["error: config.peers names 65 networks; at most 64 are trained together"])


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
    settings = command_line.from_flags(file, ["--config.optimizer.milestones=(1,2)"])
    written = json.loads(json.dumps(tree.of_settings(settings)))
    assert tree.differences(written, tree.of_settings(settings)) == []
    assert tree.to_settings(written) == settings


def other(name, value):
    """Another value than the one a field has."""
    choices = {"dataset": "cifar10", "mapping": "vmap", "precision": "float32", "views": "shared", "loss.name": "dml",
               "bn": "local", "mix.kind": "cutmix", "mix.box": "inside", "backbone.name": "my.nets:make",
               "teacher": "x", "teacher_which": "best", "init_from": "/x", "crop": "resized", "images_in": "disk",
               "peers": "a,b", "data_dir": "/x", "optimizer.milestones": (1, 2), "optimizer.name": "lars",
               "optimizer.schedule": "cosine", "average": 0.5, "ramp_up.terms": ("ce",)}  # fmt: skip
    if name in choices:
        return choices[name]
    if isinstance(value, float):
        return value / 2 or 0.5
    return not value if isinstance(value, bool) else (value or 0) + 1


@pytest.mark.parametrize("file", SHIPPED)
def test_every_leaf_can_be_overridden(file, monkeypatch):
    monkeypatch.setattr(check, "check", lambda settings: None)  # many are right only together
    plain = read(file)
    for name, value in leaves(plain):
        if name in ("method", "loss.name"):  # another method has other options
            continue
        changed = read(file, f"--config.{name}={other(name, value)}")
        paths = [difference.path for difference in tree.differences(plain, changed)]
        assert name in paths and set(paths) <= {name, "num_peers"}, paths


def test_the_last_of_two_values_counts():
    twice = [f"--config.optimizer.milestones={value}" for value in ("(1,)", "(2,)")]
    assert command_line.from_flags("configs/resnet32.py", twice).optimizer.milestones == (2,)
    for given in (
        ["--config.share_trunk=false", "--config.share_trunk"],
        ["--noconfig.share_trunk", "--config.share_trunk"],
    ):
        assert command_line.from_flags("quickstart:digits,okddip", given).share_trunk
        assert not command_line.from_flags("quickstart:digits,okddip", given[::-1]).share_trunk
    for first, second in itertools.product(
        ("--config.{}={}", "-config.{}={}", "--config.{} {}", "-config.{} {}"), repeat=2
    ):
        given = [*first.format("optimizer.milestones", 1).split(), *second.format("optimizer.milestones", 2).split()]
        given += [*first.format("average", "none").split(), *second.format("average", 0.5).split()]
        given += [
            *first.format("data_dir", "x").split(),
            *second.format("data_dir", "none").split(),
            "--config.seed",
            "3",
        ]
        found = command_line.from_flags("configs/resnet32.py", given)
        assert (found.optimizer.milestones, found.average, found.data_dir, found.seed) == ((2,), 0.5, None, 3), given
    for order, wanted in ((("3", "none"), None), (("none", "3"), 3)):
        flags = [f"--config.train_examples={value}" for value in order]
        assert (
            command_line.from_flags("configs/resnet32.py", ["--config.batch_size=2", *flags]).train_examples == wanted
        )
