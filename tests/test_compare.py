"""Comparing runs: which ones count, what they differ in, what is printed and written of them."""

import csv
import json
import os
import pty
import re
import shutil
import statistics
import subprocess
import sys
import types
from pathlib import Path

import pytest

from cutnmix_jax import finished, training
from cutnmix_jax.errors import printable
from cutnmix_jax.methods import rows_by_name
from cutnmix_jax.paper import compare, figures, labels, options, origins, progress, ran, report, reproduce, runs
from cutnmix_jax.paper.cells import Choice, cells_of
from cutnmix_jax.settings import command_line, tree, unused
from tests.runs import write_finished
from tests.test_run import TINY

ROOT = Path(__file__).parent.parent


def fields_of(row="dml", **changes):
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in changes.items()]
    return tree.of_settings(command_line.from_flags(f"quickstart:digits,{row}", ["--config.epochs=4", *flags]))


def rows_of(last, count=4, best=None, **heads):
    """Rows whose accuracy rises to `last`; that of the epoch before is `best`, where it is given."""
    values = [last * e / count for e in range(1, count + 1)]
    values[-2:-1] = [best or values[-2]] if count > 1 else []
    return [
        {"epoch": e, "step": 46 * e, "test/accuracy": a, "test/accuracy_peer_0": a, "test/accuracy_peer_1": a,
         "test/accuracy_ensemble": a / 2, "seconds": 2.0, **{f"test/accuracy_{k}": v[e - 1] for k, v in heads.items()}}
        for e, a in enumerate(values, 1)
    ]  # fmt: skip


def save(folder, last, row="dml", told=None, best=None, heads=None, **changes):
    """A finished run."""
    fields = fields_of(row, **changes)
    write_finished(folder, fields, rows_of(last, fields["epochs"], best, **(heads or {})), **(told or {}))
    assert finished.look(folder).why_not == ""
    return folder


def going_on(folder, count, last=0.5, **changes):
    """A run that has so many epochs."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(fields_of(**changes)))
    if count:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(last, count)))
    return folder


def called(monkeypatch, *arguments, columns=200):
    """The exit code of the command."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    return options.exit_code_of(report.main)


def written(folder):
    with (folder / "comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file)), (folder / "comparison.md").read_text()


def cells_in(line):
    """The cells of a line of a table, as it is printed or, in Markdown, written."""
    return [cell.strip() for cell in re.split(r"(?<!\\)[|]" if line[0] == "|" else "[│┃]", line)[1:-1]]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_numbers_by_hand(tmp_path, monkeypatch, capsys):
    lasts = {95: 0.81, 96: 0.84, 97: 0.80}
    for seed, last in lasts.items():
        save(tmp_path / "runs" / "a" / f"seed{seed}", last, seed=seed, best=0.9)
    for seed, last in ((95, 0.70), (96, 0.72)):
        save(tmp_path / "runs" / "b" / f"seed{seed}", last, seed=seed, best=0.75, weights__dml=0.5,
             told={"seconds": 20.0 * (seed - 94)})  # fmt: skip
    assert called(monkeypatch, tmp_path / "runs", f"--out={tmp_path / 'out'}") == 0
    out = capsys.readouterr().out.splitlines()
    mean, std = statistics.fmean(lasts.values()), statistics.stdev(lasts.values())
    assert f"{100 * mean:.2f} ± {100 * std:.2f}" == "81.67 ± 2.08"
    assert out[0] == "digits, resnet8, dml, 5 runs in 2 groups"
    assert cells_in(out[2]) == ["", "weights.dml", *compare.NUMBERS]
    assert cells_in(out[4]) == ["1", "1.0", "3", "81.67 ± 2.08 *", "90.00 ± 0.00", "40.83 ± 1.04", "4", "10.0"]
    assert cells_in(out[5]) == ["2", "0.5", "2", "71.00 ± 1.41", "75.00 ± 0.00", "35.50 ± 0.71", "4", "30.0"]
    assert "The best mean of the last epoch has a star (*)." in out
    assert "The best epoch is chosen on the test set, and so is too good." in out
    lines, text = written(tmp_path / "out")
    assert [line["group"] for line in lines] == ["1"] * 3 + ["2"] * 2
    assert [float(line["last_fraction"]) for line in lines] == [0.81, 0.84, 0.80, 0.70, 0.72]
    first = {"weights.dml": "1.0", "seed": "95", "finished": "yes", "epochs_done": "4", "epochs": "4",
             "seconds": "10.0", "best_fraction": "0.9", "ensemble_fraction": "0.405",
             "which_accuracy": "accuracy"}  # fmt: skip
    assert first.items() <= lines[0].items() and lines[0]["folder"] == str(tmp_path / "runs" / "a" / "seed95")
    table = [cells_in(line) for line in text.splitlines() if line.startswith("| ")]
    assert table[0] == ["", "weights.dml", "seeds", *compare.NUMBERS]
    star = r"81.67 ± 2.08 \*"
    assert table[1] == ["1", "1.0", "95 96 97", "3", star, "90.00 ± 0.00", "40.83 ± 1.04", "4", "10.0"]
    assert len({len(line) for line in table}) == 1
    assert (tmp_path / "out" / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    assert out[-1].startswith("written: ") and len(names_in(tmp_path / "out")) == 3


def test_nothing_is_written_unless_asked(tmp_path, monkeypatch, capsys):
    folder = save(tmp_path / "run", 0.8)
    before = names_in(folder)
    assert called(monkeypatch, folder) == 0
    assert names_in(folder) == before and names_in(tmp_path) == ["run"]
    assert capsys.readouterr().out.startswith("digits, resnet8, dml, 1 run\n")


def test_fields_that_change_no_number_make_no_group(tmp_path):
    save(tmp_path / "a", 0.8, seed=95)
    save(tmp_path / "b", 0.9, seed=96, eval_batch_size=7, checkpoint__keep=9, data_dir="/elsewhere")
    save(tmp_path / "c", 0.9, seed=96, precision="float32")
    groups, left_out = runs.gather([tmp_path])
    assert [[run.seed for run in group.finished] for group in groups] == [[95, 96], [96]]
    assert labels.differing(groups) == (["precision"], []) and left_out == {}


def test_groups_are_those_that_the_program_knows_changes_between(tmp_path):
    """Against `unused.changes`, which decides whether a run may go on."""
    changes = [{}, {"mapping": "vmap"}, {"checkpoint__every_steps": 5}, {"loss__temperature": 2.0}, {"epochs": 3}]
    for number, change in enumerate(changes):
        save(tmp_path / str(number), 0.8, seed=90 + number, **change)
    groups, _ = runs.gather([tmp_path])
    assert [[run.seed for run in group.finished] for group in groups] == [[90, 92], [91], [93], [94]]
    for group in groups[1:]:
        one, other = (fields_of(**changes[some.finished[0].seed - 90]) for some in (groups[0], group))
        assert {c.path for c in unused.changes(one, other)} == set(labels.differing([groups[0], group])[0])
    assert labels.differing(groups)[0] == ["epochs", "loss.temperature", "mapping"]
    rising = {"ramp_up__terms": ("dml",), "ramp_up__epochs": 1}
    save(tmp_path / "rising", 0.8, seed=95, **rising)
    rising_one = next(group for group in runs.gather([tmp_path])[0] if group.finished[0].seed == 95)
    assert [c.path for c in unused.changes(fields_of(), fields_of(**rising))] == ["ramp_up.epochs", "ramp_up.terms"]
    assert labels.differing([groups[0], rising_one])[0] == ["ramp_up.terms"]  # nothing in the other looks at the epochs
    header = compare.rows_of_csv(groups)[0]
    assert header.count("epochs") == 1 and {"loss.temperature", "mapping"} < set(header)


def test_a_field_that_nothing_looks_at_makes_no_group(tmp_path):
    save(tmp_path / "a", 0.5, seed=1)
    save(tmp_path / "b", 0.5, seed=2, mix__alpha=7, mix__box="own", ramp_up__epochs=3, optimizer__trust=0.5)
    save(tmp_path / "c", 0.5, "dml_cutmix", seed=3, mix__box="own")
    groups = runs.gather([tmp_path]).groups
    assert [[run.seed for run in group.finished] for group in groups] == [[1, 2], [3]]
    assert labels.differing(groups) == (["method"], ["mix.kind"])


def test_a_field_that_a_configuration_lacks_is_told(tmp_path):
    """It is not taken for one that has no effect, nor for one with today's default."""
    save(tmp_path / "a", 0.5, "cutnmix", seed=1, mix__box="own")
    fields = fields_of("cutnmix", seed=2)
    del fields["mix"]["box"]
    write_finished(tmp_path / "b", fields, rows_of(0.5))
    groups = runs.gather([tmp_path]).groups
    assert labels.differing(groups) == (["mix.box"], [])
    assert [labels.label(group, ["mix.box"]) for group in groups] == ["mix.box=own", "mix.box=—"]


def test_students_of_unlike_teachers_make_groups(tmp_path):
    """Also where each seed has a teacher of its own, and where one of them is not known any more."""
    for name, row, seed in (("a", "baseline", 1), ("b", "baseline", 2), ("c", "cutmix", 3)):
        save(tmp_path / name, 0.9, row, seed=seed, told={"weights_sha256": name})
        save(tmp_path / "of" / name, 0.5, "kd", seed=seed, teacher=tmp_path / name, told={"teacher_sha256": name})
    save(tmp_path / "of" / "gone", 0.5, "kd", seed=4, teacher=tmp_path / "gone")
    save(tmp_path / "of" / "replaced", 0.5, "kd", seed=5, teacher=tmp_path / "a", told={"teacher_sha256": "before"})
    groups = runs.gather([tmp_path / "of"]).groups
    assert [[run.seed for run in group.finished] for group in groups] == [[1, 2], [3], [4], [5]]
    assert labels.differing(groups) == (["teacher"], [])
    shown = [labels.value(group, "teacher") for group in groups]
    assert shown == ["digits/made up/baseline", "digits/made up/cutmix", str(tmp_path / "gone"), "before"]


def test_teachers_of_other_recipes_make_groups(tmp_path):
    """One that learned for an epoch and one that learned for six had one mean."""
    for name, epochs, seed in (("a", 1, 1), ("b", 6, 2), ("c", 6, 3)):
        save(tmp_path / name, 0.9, "baseline", seed=seed, epochs=epochs, told={"weights_sha256": name})
        for field, row in (("teacher", "kd"), ("init_from", "dml")):
            digest = {"teacher": "teacher_sha256", "init_from": "init_sha256"}[field]
            told = {field: tmp_path / name, "told": {digest: name}}
            save(tmp_path / f"by {field}" / name, 0.5, row, seed=seed, **told)
    for field in ("teacher", "init_from"):
        groups = runs.gather([tmp_path / f"by {field}"]).groups
        assert [[run.seed for run in group.finished] for group in groups] == [[1], [2, 3]]
        assert labels.differing(groups) == ([f"{field}.recipe"], [])


def test_runs_on_other_images_make_groups(tmp_path):
    """Those that were tested on others had one mean with them: of one name, in another folder or prepared anew."""
    for name, seed, images, facts in (("a", 1, "1", "1"), ("b", 2, "1", "1"), ("c", 3, "2", "1"), ("d", 4, "1", "2")):
        save(tmp_path / name, 0.5, seed=seed)
        made_with = {"data_sha256": images * 64, "facts_sha256": facts * 64}
        (tmp_path / name / "environment.json").write_text(json.dumps(made_with))
    groups = runs.gather([tmp_path]).groups
    assert [[run.seed for run in group.finished] for group in groups] == [[1, 2], [3], [4]]
    assert labels.differing(groups) == (["data"], [])
    save(tmp_path / "e", 0.5, seed=5)
    (tmp_path / "e" / "environment.json").write_text(json.dumps({"data_sha256": "2" * 64, "facts_sha256": "1" * 64}))
    groups = [group for group in runs.gather([tmp_path]).groups if len(group.finished) > 1]
    assert compare.best_ones(groups)[1] == "No best one is marked: the groups are not tested on the same images."


def test_own_networks_with_other_code_make_groups(tmp_path):
    """A narrow and a wide one of the same name had one mean, and one of the same seed was left out as a copy."""
    for name, seed, code in (("a", 1, "1"), ("b", 1, "2"), ("c", 2, "2")):
        save(tmp_path / name, 0.5, seed=seed, backbone__name="my_pkg.nets:Small")
        made_with = {"data_sha256": "1", "source": {"cutnmix_jax": name, "my_pkg.nets": code * 16}}
        (tmp_path / name / "environment.json").write_text(json.dumps(made_with))
    found = runs.gather([tmp_path])
    assert [[run.seed for run in group.finished] for group in found.groups] == [[1], [1, 2]] and not found.left_out
    assert labels.differing(found.groups) == (["code"], [])


def test_students_of_the_best_and_of_the_last_epoch_make_groups(tmp_path):
    save(tmp_path / "a", 0.9, "baseline", told={"weights_sha256": "a"})
    for seed, which in ((1, "last"), (2, "best")):
        save(tmp_path / "of" / which, 0.5, "kd", seed=seed, teacher=tmp_path / "a", teacher_which=which)
    groups = runs.gather([tmp_path / "of"]).groups
    assert len(groups) == 2 and labels.differing(groups) == (["teacher_which"], [])


def test_students_of_the_best_epoch_of_their_own_seed_s_teacher_are_a_group(tmp_path, monkeypatch):
    monkeypatch.setattr(origins, "_best_sha256", lambda folder, results: f"best of {folder.name}")
    for seed in (1, 2):
        save(tmp_path / f"a{seed}", 0.9, "baseline", seed=seed, told={"weights_sha256": f"last of a{seed}"})
        told = {"teacher_sha256": f"best of a{seed}"}
        taught = {"teacher": tmp_path / f"a{seed}", "teacher_which": "best"}
        save(tmp_path / "of" / str(seed), 0.5, "kd", seed=seed, told=told, **taught)
    [group] = runs.gather([tmp_path / "of"]).groups
    assert [run.seed for run in group.finished] == [1, 2]


def test_what_follows_from_the_methods_has_no_column(tmp_path, monkeypatch, capsys):
    save(tmp_path / "a", 0.8)
    save(tmp_path / "b", 0.8, "cutnmix", weights__mmd=0.7)
    assert called(monkeypatch, tmp_path, f"--out={tmp_path / 'out'}") == 0
    out = capsys.readouterr().out
    assert cells_in(out.splitlines()[2])[:3] == ["", "method", "weights.mmd"]
    assert cells_in(out.splitlines()[4])[:3] == ["1", "dml", "—"]
    assert "What follows from the methods differs, too: " in out and " mix.kind, " in out
    lines, text = written(tmp_path / "out")
    assert (lines[0]["mix.kind"], lines[1]["mix.kind"], lines[0]["weights.mmd"]) == ("none", "cutnmix", "")
    assert "| mix.kind |" in text


def test_the_headline_of_a_row(tmp_path):
    """Its last and its own best epoch; that of `results.json` is the peers'."""
    leaders = (0.3, 0.64, 0.61, 0.62)
    save(tmp_path / "a", 0.5, "okddip", heads={"leader": leaders})
    [group], _ = runs.gather([tmp_path])
    assert (group.last, group.best, group.ensemble) == ([62.0], [64.0], [25.0])
    said = list(compare.notes([group], [], ""))[0]
    assert said.endswith("mean of the peers, of okddip leader.")
    write_finished(tmp_path / "b", fields_of("okddip"), rows_of(0.5))
    assert runs.gather([tmp_path / "b"]).left_out == {tmp_path / "b": "it has no accuracy_leader"}


def test_runs_that_go_on_are_shown_and_in_no_mean(tmp_path, monkeypatch, capsys):
    save(tmp_path / "a" / "seed95", 0.8)
    going_on(tmp_path / "a" / "seed96", 3, 0.6, seed=96)
    going_on(tmp_path / "b" / "seed95", 2, 0.5, weights__dml=0.5)
    going_on(tmp_path / "b" / "seed96", 0, seed=96, weights__dml=0.5)
    assert called(monkeypatch, tmp_path / "a", tmp_path / "b", f"--out={tmp_path / 'out'}") == 0
    out = capsys.readouterr().out
    assert [cells_in(line)[2:4] for line in out.splitlines()[4:6]] == [["1", "80.00"], ["0", "2/4, 0/4 epochs"]]
    assert f"\n  1  {tmp_path}/a/seed96: 3 of 4 epochs; test accuracy 60.00 % after epoch 3\n" in out
    assert f"\n  2  {tmp_path}/b/seed96: 0 of 4 epochs\n" in out
    assert "No best one is marked: there are no two groups with finished runs." in out
    lines, text = written(tmp_path / "out")
    assert [(line["finished"], line["epochs_done"], line["last_fraction"]) for line in lines] == [
        ("yes", "4", "0.8"), ("no", "3", ""), ("no", "2", ""), ("no", "0", ""),
    ]  # fmt: skip
    assert "| 2/4, 0/4 epochs |" in text and "Not finished, and in no mean:\n" in text
    drawn = compare.curves(runs.gather([tmp_path / "a", tmp_path / "b"]).groups)
    assert [curve.label for curve in drawn.values()] == [
        "weights.dml=1.0 (n = 1)",
        "weights.dml=0.5 (not finished, 2/4 epochs, seed 95)",
    ]


def test_nothing_but_runs_without_an_epoch(tmp_path, monkeypatch, capsys):
    going_on(tmp_path / "a", 0)
    assert called(monkeypatch, tmp_path / "a", f"--out={tmp_path / 'out'}") == 0
    assert "a: 0 of 4 epochs" in capsys.readouterr().out
    assert names_in(tmp_path / "out") == ["comparison.csv", "comparison.md"]


def groups_of(tmp_path, values, **changes):
    for number, lasts in enumerate(values):
        for seed, last in enumerate(lasts):
            save(tmp_path / f"{number}" / f"{seed}", last, seed=seed, weights__dml=number / 10, **changes)
    return runs.gather([tmp_path]).groups


@pytest.mark.parametrize(
    ("values", "best", "said"),
    [
        ([(0.8, 0.9), (0.7, 0.7)], [0], "has a star"),
        ([(0.8, 0.8), (0.8, 0.8), (0.7, 0.7)], [0, 1], "has a star"),
        ([(0.8, 0.9), (0.95,)], [], "n = 1 in group 2, and how far"),
        ([(0.8,), (0.95,)], [], "n = 1 in group 1, 2, and how far"),
        ([(0.8, 0.9)], [], "no two groups"),
        ([(0.8, 0.8), (0.8, 0.8)], [], "all means are alike"),
    ],
)
def test_no_group_is_marked_best_by_one_seed(values, best, said, tmp_path):
    found, sentence = compare.best_ones(groups_of(tmp_path, values))
    assert found == best and said in sentence and sentence.startswith("The best" if best else "No best one is marked: ")


def test_other_test_images_are_not_compared(tmp_path):
    for number, images in enumerate((100, 200)):
        for seed in (1, 2):
            save(tmp_path / f"{number}{seed}", 0.8 + number / 10, seed=seed, test_examples=images)
    found, said = compare.best_ones(runs.gather([tmp_path]).groups)
    assert found == [] and said == "No best one is marked: the groups are not tested on the same images."


def damage_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def change_row(folder, number, **values):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows[number] |= {name.replace("__", "/"): value for name, value in values.items()}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


DAMAGED = [
    (lambda at: (at / "forced.json").write_text("{}"), "its fields were changed by --force"),
    (lambda at: (at / "config.json").unlink(), "No such file or directory: "),
    (lambda at: (at / "config.json").write_text("[" * 100_000), "nested too deeply"),
    (lambda at: (at / "results.json").write_text("{"), "Expecting property name"),
    (lambda at: (at / "results.json").write_text("[]"), "it holds no fields"),
    (lambda at: change_row(at, -1, test__accuracy=0.99), "results.json has other accuracies than metrics.jsonl"),
    (lambda at: change_row(at, 1, test__accuracy=float("nan")), "metrics.jsonl does not have the rows of 4 epochs"),
    (lambda at: damage_config(at, num_peers=4), "results.json is of another configuration than config.json"),
]
UNFINISHED = [
    (lambda at: damage_config(at, method="cutmixx"), "of this version: no method 'cutmixx'; did you mean 'cutmix'"),
    (lambda at: damage_config(at, epochs="many"), "its config.json is of no run of this version: config.epochs='many'"),
    (lambda at: damage_config(at, new_field=1), "its config.json is of no run of this version: --config: no field"),
    (lambda at: damage_config(at, loss=[]), "its config.json is of no run of this version: config.loss.name"),
    (lambda at: damage_config(at, weights={"ce": "x"}), "its config.json is of no run of this version: config.weights"),
    (lambda at: (at / "config.json").write_text("\x00"), "its config.json cannot be read: "),
    (lambda at: change_row(at, 0, test__accuracy=7), "metrics.jsonl does not have the rows of 4 epochs"),
    (lambda at: change_row(at, 0, test__accuracy=10**400), "metrics.jsonl does not have the rows of 4 epochs"),
    (lambda at: change_row(at, 0, epoch=5), "metrics.jsonl does not have the rows of 4 epochs"),
    (lambda at: damage_config(at, epochs=1), "metrics.jsonl does not have the rows of 1 epochs"),
]


@pytest.mark.parametrize(("change", "why"), [*DAMAGED, *UNFINISHED])
def test_damaged_runs_are_named_and_left_out(change, why, tmp_path, monkeypatch, capsys):
    save(tmp_path / "runs" / "whole", 0.8)
    folder = tmp_path / "runs" / "worn"
    if (change, why) in DAMAGED:
        save(folder, 0.7, seed=96)
    else:
        going_on(folder, 2, seed=96)
    change(folder)
    assert called(monkeypatch, tmp_path / "runs") == 0
    out, error = capsys.readouterr()
    assert error == "" and cells_in(out.splitlines()[4])[:3] == ["1", "1", "80.00"]
    [line] = out.partition("left out:\n")[2].splitlines()
    assert line.startswith(f"  {folder}: ") and why in line
    # Alone it is nothing to compare.
    assert called(monkeypatch, folder) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith(f"error: no run to compare: {folder}: ") and error.count("\n") == 1


def test_a_folder_without_runs_among_others(tmp_path, monkeypatch, capsys):
    save(tmp_path / "run", 0.8)
    (tmp_path / "tables").mkdir()
    assert called(monkeypatch, tmp_path / "run", tmp_path / "tables") == 0
    assert f"left out:\n  {tmp_path}/tables: there is no run in it: no config.json\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tabel1"], "there is no folder tabel1, and no table of that name; did you mean 'table1'? there are: abl"),
        (["{}/none"], "there is no folder {}/none; give folders of runs, or the name of a table"),
        (["{}/run", "{}/none"], "there is no folder {}/none; "),
        (["{}/file"], "{}/file is no folder; give the folder of a run, or one with runs below it"),
        (["{}/empty"], "no run to compare: {}/empty: there is no run in it: no config.json; give folders of runs"),
        (["{}/run", "--datasets=digits"], "--datasets chooses cells of a table, and has no meaning with folders"),
        (["{}/run", "--preset=mini"], "--preset chooses cells"),
        (["{}/run", ""], "argument TABLE|RUN: is empty; give a value, or leave it out"),
        (["{}/run", "--out="], "argument --out: is empty; give a value, or leave it out"),
        (["{}/run", "--out={}/file"], "cannot read or write {}/file: "),
        (["{}/run", "--cel=1"], "unrecognized arguments: --cel=1; see `"),
        (["table1", "{}/run"], "table1 is a table, and stands alone; a folder of that name is ./table1"),
        *[(["table1", f"--{name}="], f"argument --{name}: is empty; give a value, or leave it out")
          for name in ("datasets", "backbones", "methods", "seeds", "data_dir", "runs", "out")],
        (["table1", "--methods=,"], "argument --methods: is empty"),
        (["table1", "--epochs=0"], "--epochs=0: must be at least 1"),
        (["table1", "--epochs="], "argument --epochs: invalid int value"),
        ([], "the following arguments are required: TABLE|RUN"),
        (["~no-such-one/x"], "RUN=~no-such-one/x: "),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    save(tmp_path / "run", 0.8)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    assert called(monkeypatch, *(text.format(tmp_path) for text in arguments)) == 2
    error = capsys.readouterr().err
    assert said.format(tmp_path) in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_run_counts_once(tmp_path, monkeypatch):
    """By whatever paths it is asked for; a copy, or the same run done again, is no further seed."""
    first = save(tmp_path / "runs" / "one", 0.8)
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    groups, left_out = runs.gather([Path("runs"), Path("runs/one"), first, Path("link")])
    assert [len(group.finished) for group in groups] == [1] and left_out == {}
    shutil.copytree(first, tmp_path / "copy")
    going_on(tmp_path / "again", 2)
    groups, left_out = runs.gather([tmp_path / "again", tmp_path / "copy", first])
    assert [(len(group.finished), len(group.unfinished)) for group in groups] == [(1, 0)]
    assert left_out[tmp_path / "again"] == f"{tmp_path / 'copy'}, with the same fields and the same seed"
    assert left_out[first] == f"{tmp_path / 'copy'}, with the same fields and the same seed"


NAMES = [
    "[red]x[/red]", "a,b", "a|b", "a\nb", "a\x1b[31mb", "$x$", "`x`", "_x_", "**x**", "<b>", "\\", ":smile:", "[/]",
    '"', "été 数", "$", " x ", "a\udcffb",
]  # fmt: skip


DRAWN = ("$x$", "$", "_x_", "été 数", "a\udcffb", "a\nb")  # what is text of its own to Matplotlib


@pytest.mark.parametrize(("name", "columns"), [*((name, 200) for name in NAMES), ("[red]x[/red]", 80), ("a\nb", 80)])
def test_awkward_names(name, columns, tmp_path, monkeypatch, capsys):
    """As folders, and as the name of a network."""
    base = tmp_path / name
    save(base / "a", 0.8)
    save(base / "b", 0.7, seed=96)
    damage_config(base / "b", backbone={"name": name}, peers=name)
    config = json.loads((base / "b" / "config.json").read_text())
    write_finished(base / "b", config, rows_of(0.7))
    going_on(base / "c", 1, seed=97)
    (base / "d").mkdir()
    (base / "d" / "results.json").write_text("")
    if name not in DRAWN:  # which takes longest
        monkeypatch.setattr(figures, "compared", lambda path, *_: path.write_bytes(b"x" * 10_001))
    assert called(monkeypatch, base, f"--out={tmp_path / 'out'}", columns=columns) == 0
    out, error = capsys.readouterr()
    assert error == "" and "\x1b" not in out
    shown = printable(name)
    assert out.count("\n  ") == 2 and f"  {tmp_path}/{shown}/d: " in out
    if columns == 200:
        assert cells_in(out.splitlines()[5])[1] == shown.strip()
    lines, text = written(tmp_path / "out")
    assert [line["last_fraction"] for line in lines] == ["0.8", "", "0.7"]
    assert (lines[2]["backbone.name"], lines[2]["folder"]) == (shown.strip(), f"{tmp_path}/{shown}/b")
    table = [cells_in(line) for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4 and len({len(line) for line in table}) == 1
    assert re.sub(r"\\([^A-Za-z0-9])", r"\1", table[3][1]) == shown.strip()
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 10_000


def test_no_markup_is_live_in_markdown(tmp_path):
    for text in ("**x**", "_x_", "<b>", "`x`", "[x](y)", "a|b", "~~x~~", "$x$"):
        assert not re.search(r"(?<!\\)[*`<>|\[\]~$]|(?<!\\)(?<!\w)_", compare._escaped(text))
    assert compare._escaped("num_peers") == "num_peers"


@pytest.mark.parametrize("columns", [30, 80, 200])
def test_narrow_and_wide(columns, tmp_path, monkeypatch, capsys):
    for number, row in enumerate(("baseline", "dml", "cutnmix", "okddip", "pcl")):
        heads = {"leader": [0.5] * 4} if row == "okddip" else {}
        save(tmp_path / row, 0.8, row, heads=heads, seed=number, optimizer__learning_rate=0.01 * (number + 1))
    assert called(monkeypatch, tmp_path, columns=columns) == 0
    out = capsys.readouterr().out
    table = [line for line in out.splitlines() if line[:1] in "┏┃┡│└" and line]
    assert max(map(len, table)) <= columns
    if columns == 80:
        assert "2  cutnmix, optimizer.learning_rate=0.03\n" in out
        assert [cells_in(line)[:3] for line in table if line[0] == "│"][1] == ["2", "1", "80.00"]
    if columns == 200:
        assert cells_in(table[4])[:4] == ["2", "cutnmix", "0.03", "1"]


def test_every_row_can_be_compared(tmp_path):
    for row in rows_by_name():
        teacher = {"teacher": "runs/any"} if rows_by_name()[row].method.needs_teacher else {}
        head = rows_by_name()[row].headline.removeprefix("accuracy_")
        save(tmp_path / row, 0.8, row, heads={} if head == "accuracy" else {head: [0.5] * 4}, **teacher)
    groups, left_out = runs.gather([tmp_path])
    assert left_out == {} and len(groups) == len(rows_by_name())
    assert labels.differing(groups)[0] == ["method", "teacher"]  # all else follows from the method


@pytest.mark.parametrize(("row", "head"), [("dml", "accuracy"), ("okddip", "accuracy_leader")])
def test_the_curves_of_a_table_are_means_over_its_seeds(row, head, tmp_path, monkeypatch):
    """Of what its row shows; the shade is one standard deviation."""
    drawn, values = [], {95: (10.0, 20.0), 96: (30.0, 60.0)}
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    cell = cells_of(Choice("fig1", variants=(row,), mini=True, seeds=(95,), runs=tmp_path))[0]
    for seed, each in values.items():
        folder = cell.workdir.with_name(f"seed{seed}")
        folder.mkdir(parents=True)
        rows = [{"epoch": e, "test/accuracy": 0.01, f"test/{head}": value / 100} for e, value in enumerate(each, 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    found = types.SimpleNamespace(cell=cell, seeds=(95, 96), last=[20.0, 60.0])
    figures.curves(tmp_path / "fig.png", "heading", {(cell.dataset, cell.backbone, row): found})
    [axes] = drawn[0].axes
    assert list(axes.lines[0].get_ydata()) == pytest.approx([20, 40])
    top = axes.collections[0].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(40 + statistics.stdev((20, 60)))


def test_eight_curves_are_told_apart(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    groups_of(tmp_path / "runs", [(0.5, 0.6)] * 7 + [(0.7,)])
    assert called(monkeypatch, tmp_path / "runs", f"--out={tmp_path}") == 0
    [figure] = drawn
    whole, end = figure.axes
    kinds = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in whole.lines}
    assert len(kinds) == len({colour for colour, _, _ in kinds}) == 8
    assert len(whole.collections) == 7  # no shade for a single seed
    assert list(whole.lines[0].get_ydata()) == pytest.approx([100 * 0.55 * e / 4 for e in range(1, 5)])
    top = whole.collections[0].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(55 + 100 * statistics.stdev((0.5, 0.6)))
    assert [list(line.get_xdata()) for line in end.lines] == [[4]] * 8
    heights = sorted(text.get_position()[1] for text in end.texts)
    low, high = end.get_ylim()
    assert min(b - a for a, b in zip(heights, heights[1:], strict=False)) > 0.039 * (high - low)
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown[7] == "8  weights.dml=0.7 (n = 1)"
    assert figure.get_suptitle().endswith("one standard deviation shaded; no shade: a single seed")


def test_real_runs_of_ones_own_network(tmp_path, monkeypatch, capsys):
    settings = command_line.from_flags("quickstart:digits,dml", [*TINY[1:6], "--config.epochs=1"])
    told = [training.train(settings, tmp_path / "seed95")["last"]["accuracy"], 0.25]
    config = json.loads((tmp_path / "seed95" / "config.json").read_text())
    write_finished(tmp_path / "seed96", config | {"seed": 96}, rows_of(0.25, 1))
    shutil.copy(tmp_path / "seed95" / "environment.json", tmp_path / "seed96")
    save(tmp_path / "other", 0.2)
    capsys.readouterr()
    assert called(monkeypatch, tmp_path) == 0
    out = capsys.readouterr().out.splitlines()
    lines = {cells[1]: cells for line in out if line[:1] == "│" and (cells := cells_in(line))}
    n, last = (lines["tests.tiny:Tiny"][cells_in(out[2]).index(name)] for name in ("n", "last epoch"))
    assert (n, last) == ("2", f"{100 * statistics.fmean(told):.2f} ± {100 * statistics.stdev(told):.2f}")


def test_as_a_command(tmp_path):
    """In a process of its own; a reader that ends, a terminal and a locale without the letters."""
    save(tmp_path / "run", 0.8)
    command = [sys.executable, "-m", "cutnmix_jax", "report", str(tmp_path / "run")]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    done = subprocess.run(
        ["bash", "-c", 'PYTHONIOENCODING=ascii "$@" | true; exit ${PIPESTATUS[0]}', "-", *command],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    shown = b""
    while b"jax 1.2.3" not in shown:
        shown += os.read(ours, 65536)
    assert process.wait(60) == 0 and process.stderr.read() == b"" and b"80.00" in shown
    os.close(ours)


# The tables of the paper.


def test_a_cell_that_is_trained_shows_how_far_it_is(tmp_path):
    choice = Choice("fig1", mini=True, seeds=(95, 96), runs=tmp_path)
    cells = cells_of(choice)
    for cell, count in zip(cells, (3, 8, 1, 0), strict=True):  # seeds 95, 95, 96, 96 of dml, dml_cutmix
        flags = [argument for argument in cell.arguments[1:] if not argument.startswith("--workdir")]
        config = tree.of_settings(command_line.from_flags(cell.arguments[0].removeprefix("--config="), flags))
        cell.workdir.mkdir(parents=True)
        (cell.workdir / "config.json").write_text(json.dumps(config))
        (cell.workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(0.5, count or 1)))
        if not count:
            damage_config(cell.workdir, num_peers=3)  # another run in its place
    report.write(choice, tmp_path / "out")
    text = (tmp_path / "out" / "fig1_mini.md").read_text()
    last, best = text.split("best epoch")
    assert "| DML | 3/8, 1/8 epochs |" in last and "| DML + CutMix | 7/8 epochs |" in last
    assert "| DML | — |" in best
    assert "2 of 2 cells have no finished run (—, or the epochs that its runs have so far)." in text
    assert r"DML & 3/8, 1/8 epochs \\" in (tmp_path / "out" / "fig1_mini.tex").read_text()
    with (tmp_path / "out" / "fig1_mini.csv").open() as file:
        assert [line["epochs_so_far"] for line in csv.DictReader(file)] == ["3 1", "7"]


def test_tables_of_ones_own_network(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    arguments = ["fig1", "--preset=mini", "--backbones=tests.tiny:Tiny,resnet8", "--seeds=95", f"--runs={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["reproduce", *arguments, "--dry-run"])
    assert options.exit_code_of(reproduce.main) == 0
    out = capsys.readouterr().out
    assert "digits tests.tiny:Tiny dml seed 95: 0/8 epochs, time left not known" in out
    choice = Choice("fig1", mini=True, backbones=("tests.tiny:Tiny",), seeds=(95,), epochs=2, runs=tmp_path)
    cell = cells_of(choice)[0]
    assert cell.workdir == tmp_path / "digits" / "tests.tiny.Tiny" / "dml" / "seed95"
    flags = [argument for argument in cell.arguments[1:] if not argument.startswith("--workdir")]
    config = tree.of_settings(command_line.from_flags(cell.arguments[0].removeprefix("--config="), flags))
    write_finished(cell.workdir, config, rows_of(0.875, 2))
    assert config["backbone"] == {"name": "tests.tiny:Tiny"} and ran.results_of(cell)
    assert called(monkeypatch, *arguments, "--epochs=2", f"--out={tmp_path / 'out'}") == 0
    text = (tmp_path / "out" / "fig1_mini.md").read_text()
    assert "| method | tests.tiny:Tiny | ResNet-8 |" in text
    assert "| DML | 87.50 | — |" in text and "; mean of the peers. " in text
    with (tmp_path / "out" / "fig1_mini.csv").open() as file:
        assert next(csv.DictReader(file))["backbone"] == "tests.tiny:Tiny"


@pytest.mark.parametrize("name", ["a|b:c", "../x:make", "x:", ":x", "a.b:c d", "x:y:z", "a..b:c"])
def test_names_that_no_network_has(name, tmp_path, monkeypatch, capsys):
    assert called(monkeypatch, "fig1", f"--backbones={name}", f"--runs={tmp_path}") == 2
    error = capsys.readouterr().err
    assert f"--backbones: no {name!r}; " in error and "or your own, as my_pkg.nets:make" in error
    assert error.count("\n") == 1


def test_time_that_is_not_known_is_told(tmp_path):
    cell = cells_of(Choice("fig1", mini=True, seeds=(95,), runs=tmp_path))[0]
    cell.workdir.mkdir(parents=True)
    (cell.workdir / "metrics.jsonl").write_text(json.dumps({"epoch": 1}) + "\n")
    assert progress.standing(progress.Started(cell, 0.0, 0)) == "1 of 8 epochs; time left not known"


def test_unlike_peers_are_one_run_however_they_are_written(tmp_path):
    save(tmp_path / "a", 0.5, seed=1, peers="resnet8,resnet32")
    save(tmp_path / "b", 0.5, seed=2, peers="resnet8, resnet32", backbone__name="vgg16")
    save(tmp_path / "c", 0.5, seed=3)
    groups = runs.gather([tmp_path]).groups
    assert [[run.seed for run in group.finished] for group in groups] == [[1, 2], [3]]
    assert [labels.value(group, "backbone.name") for group in groups] == ["resnet8,resnet32", "resnet8"]
