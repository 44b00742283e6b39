"""The paper's tables: their cells, the launching of runs, and what is written of them."""

import csv
import dataclasses
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cutnmix_jax import finished, lock, methods, metrics, pool, settings
from cutnmix_jax.errors import StoppedError, UsageError, UserError
from cutnmix_jax.methods.dml import DML
from cutnmix_jax.paper import figures, grids, here, launch, options, ran, report, reproduce
from cutnmix_jax.paper.cells import ABLATIONS, TABLES, Cell, Choice, cells_of, headline, no_reproduction, paper_number
from cutnmix_jax.paper.published import SIX, TABLE1, TABLE2
from cutnmix_jax.settings import command_line, tree
from tests.runs import few, write_finished
from tests.test_run import TINY, wait_for

ROOT = Path(__file__).parent.parent


def run(cells, jobs, **how):
    """Trains cells as processes of this machine."""
    with here.opened() as place:
        launch.run(cells, jobs, place, **how)


def config_of(cell):
    flags = [argument for argument in cell.arguments[1:] if not argument.startswith("--workdir")]
    return command_line.from_flags(cell.arguments[0].removeprefix("--config="), flags)


def test_how_many_cells_there_are():
    counts = {table: len(cells_of(Choice(table))) for table in TABLES}
    assert counts == {"table1": 9 * 6 * 2 * 3, "table2": 4 * 3, "fig1": 2 * 3, "ablations": len(ABLATIONS) * 3}
    assert len(cells_of(Choice("table1", variants=("all",), mini=True))) == len(methods.rows_by_name()) * 3


@pytest.mark.parametrize("mini", [False, True])
@pytest.mark.parametrize("table", TABLES)
def test_every_cell_is_a_valid_run_in_a_folder_of_its_own(table, mini):
    cells = cells_of(Choice(table, mini=mini, seeds=(96,)))
    assert len({cell.workdir for cell in cells}) == len(cells)
    for cell in cells:
        config = config_of(cell)
        names = (config.dataset, config.method, config.seed, config.backbone_name)
        assert names == (cell.dataset, cell.row, 96, cell.backbone)
        assert (config.epochs, tuple(config.optimizer.milestones)) == (
            (8, (5, 6, 7)) if mini else (240, (150, 180, 210))
        )
        if config.ramp_up.terms:
            assert config.ramp_up.epochs == (2 if mini else 80)


def test_ablations_change_what_they_say():
    cells = {cell.variant: config_of(cell) for cell in cells_of(Choice("ablations", seeds=(95,)))}
    plain = command_line.from_flags("configs/resnet32.py:cifar100,cutnmix", [])
    assert cells["cutnmix"] == plain
    assert (cells["J = 3"].num_peers, cells["tau = 1"].loss.temperature, cells["beta = 1"].weights["mmd"]) == (
        3,
        1.0,
        1.0,
    )
    for row, probs in {"cutnmix": (0.5,), "cutmix": (0.5, 1), "dml_cutmix": (0.5, 1)}.items():
        of_row = command_line.from_flags(f"configs/resnet32.py:cifar100,{row}", [])
        for prob in probs:
            mix = dataclasses.replace(of_row.mix, prob=float(prob))
            assert cells[f"{row} prob {prob:g}"] == dataclasses.replace(of_row, mix=mix), (row, prob)
    weights = {"ce": 1.0, "dml": 0.6, "mmd": 0.3, "pt": 0.1, "peer_teacher_ce": 1.0}
    for variant, changed in {
        "MMD alone": {"dml": 0.0, "pt": 0.0}, "PT alone": {"dml": 0.0, "mmd": 0.0},
        "no distillation": {"dml": 0.0, "mmd": 0.0, "pt": 0.0},
        "alpha = 0.3": {"dml": 0.3}, "alpha = 1": {"dml": 1.0}, "beta = 0.1": {"mmd": 0.1}, "beta = 1": {"mmd": 1.0},
        "gamma = 0.05": {"pt": 0.05}, "gamma = 0.3": {"pt": 0.3}, "gamma = 1": {"pt": 1.0},
    }.items():  # fmt: skip
        assert dataclasses.replace(cells[variant], weights=weights) == plain, variant
        assert cells[variant].weights == weights | changed, variant
    for box in ("uniform", "inside", "wrap", "raw", "own"):
        assert cells[f"box {box}"].mix == dataclasses.replace(plain.mix, box=box)
    for tau in (1, 2, 4, 6):
        assert cells[f"tau = {tau}"] == dataclasses.replace(
            plain, loss=dataclasses.replace(plain.loss, temperature=tau)
        )
    assert cells["J = 4"] == dataclasses.replace(plain, num_peers=4)


def test_teachers_come_first():
    cells = cells_of(Choice("table1", variants=("tf_kd_self", "dml"), mini=True, seeds=(95,)))
    assert [cell.row for cell in cells] == ["baseline", "dml", "tf_kd_self"]
    assert cells[2].teacher == cells[0]
    assert f"--config.teacher={cells[0].workdir}" in cells[2].arguments


def test_a_network_is_taught_by_the_one_of_its_own_seed():
    cells = cells_of(Choice("table1", variants=("kd", "tf_kd_self"), mini=True, seeds=(95, 96)))
    taught = [cell for cell in cells if cell.teacher]
    assert sorted((cell.row, cell.seed) for cell in taught) == [(r, s) for r in ("kd", "tf_kd_self") for s in (95, 96)]
    for cell in taught:
        assert (cell.teacher.row, cell.teacher.seed) == ("baseline", cell.seed)
        assert cell.teacher.workdir.name == f"seed{cell.seed}" and cell.teacher in cells
        assert f"--config.teacher={cell.teacher.workdir}" in cell.arguments


def test_a_mini_table_says_what_it_has():
    small = Choice("table1", mini=True, datasets=("cifar10",), backbones=("resnet32", "vgg16"), epochs=3, seeds=(95,))
    said = {choice: no_reproduction(cells_of(choice)) for choice in (small, Choice("fig1", mini=True))}
    first, second = said.values()
    assert first == "no reproduction of the paper: cifar10, resnet32 and vgg16, 3 epochs, to see the machinery"
    assert second == "no reproduction of the paper: digits, resnet8, 8 epochs, to see the machinery"
    notes = grids.notes(small, grids.gather(small))
    assert notes[0].startswith("**No reproduction of the paper**: cifar10, resnet32 and vgg16, 3 epochs")


def test_the_papers_numbers():
    """Some cells of Table 1 and Table 2, read off the paper by hand."""
    assert TABLE1["cifar100"]["cutnmix"]["resnet110"] == (79.32, 0.35) == TABLE2["cutnmix"]
    assert TABLE1["cifar10"]["cutnmix"]["wrn20_8"] == (95.90, 0.01)
    assert TABLE1["cifar100"]["one"]["resnet32"] == (73.71, 0.93)
    assert TABLE1["cifar10"]["okddip"]["densenet40_12"] == (92.28, 0.06)
    assert TABLE1["cifar100"]["kdcl"]["vgg19"] == (72.19, 0.07)
    assert "densenet40_12" not in TABLE1["cifar100"]["baseline"]  # missing in the paper
    assert sum(len(row) for rows in TABLE1.values() for row in rows.values()) == 2 * 9 * 6 - 1
    assert all(list(rows) == list(TABLES["table1"].variants) for rows in TABLE1.values())


# Of each row of Table 1: its numbers times the number of their column, summed, and its deviations likewise; from the
# paper's text, read by a script of its own.
SUMS = {
    "cifar10": {
        "baseline": (1971.29, 3.79), "dml": (1977.82, 4.25), "cutmix": (1981.72, 2.77), "cs_kd": (1963.96, 3.79),
        "ddgsd": (1981.53, 2.49), "kdcl": (1972.21, 2.51), "one": (1974.43, 4.40), "okddip": (1967.75, 3.03),
        "cutnmix": (1991.56, 1.82),
    },
    "cifar100": {
        "baseline": (1128.18, 3.46), "dml": (1585.26, 0.87), "cutmix": (1584.09, 4.25), "cs_kd": (1556.37, 7.05),
        "ddgsd": (1586.90, 3.75), "kdcl": (1578.09, 5.49), "one": (1576.08, 4.94), "okddip": (1567.51, 2.23),
        "cutnmix": (1603.01, 3.90),
    },
}  # fmt: skip


@pytest.mark.parametrize("dataset", SUMS)
def test_no_number_of_the_paper_was_mistyped(dataset):
    for row, sums in SUMS[dataset].items():
        columns = np.array([TABLE1[dataset][row][name] for name in SIX if name in TABLE1[dataset][row]])
        np.testing.assert_allclose(np.arange(1, len(columns) + 1) @ columns, sums, atol=0.005, err_msg=row)
    # Table 2, from the top to the bottom; its last row is that of Table 1.
    of_second = [TABLE2[row] for row in ("cutnmix_dml", "cutnmix_mmd", "cutnmix_pt", "cutnmix")]
    np.testing.assert_allclose(np.arange(1, 5) @ of_second, (78.38 + 2 * 78.74 + 3 * 78.65 + 4 * 79.32, 2.15))


def test_each_table_is_beside_its_own_numbers_of_the_paper():
    """In Table 2 CutnMix with DML alone has a number, and CutMix none; in Table 1 it is the other way round."""
    first, second = (
        {
            cell.variant: paper_number(choice, cell)
            for cell in cells_of(choice)
            if (cell.dataset, cell.backbone) == ("cifar100", "resnet110")
        }
        for choice in (Choice("table1"), Choice("table2", variants=("cutnmix_dml", "cutnmix", "cutmix")))
    )
    assert second == {"cutnmix_dml": (78.38, 0.25), "cutnmix": (79.32, 0.35), "cutmix": None}
    assert first["cutmix"] == (78.58, 0.08) and first["cutnmix"] == (79.32, 0.35)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"variants": ("cutmixx",)}, "did you mean 'cutmix'"),
        ({"backbones": ("resnet33",)}, "did you mean 'resnet32'"),
        ({"backbones": ("__init__",)}, "--backbones: no '__init__'; "),  # files in configs/ that are no backbone
        ({"backbones": ("quickstart",)}, "--backbones: no 'quickstart'; "),
        ({"datasets": ("cifar11",)}, "--datasets: no 'cifar11'; did you mean 'cifar1"),
    ],
)
def test_wrong_names(options, said):
    with pytest.raises(UsageError, match=said):
        cells_of(Choice("table1", **options))


def test_a_name_given_twice_is_one():
    choice = Choice("table1", ("cifar10", "cifar10"), ("resnet32", "resnet8", "resnet32"), ("dml", "dml"))
    assert [cell.name for cell in cells_of(choice)] == [
        f"cifar10 {backbone} dml seed {seed}" for seed in (95, 96, 97) for backbone in ("resnet32", "resnet8")
    ]
    every = Choice("table1", variants=("all", "all"), mini=True, seeds=(95,))
    assert len(cells_of(every)) == len(methods.rows_by_name())


@pytest.mark.parametrize("backbone", ["resnet8", "resnet32"])
def test_every_backbone_has_the_recipe_of_its_cell(backbone):
    """The tiny one as well; the smaller batches of the quickstart are those of all in a mini table."""
    for cell in cells_of(Choice("fig1", backbones=(backbone,), mini=True, seeds=(95,))):
        assert (config_of(cell).batch_size, config_of(cell).backbone_name) == (32, backbone)
    for cell in cells_of(Choice("table1", ("digits",), (backbone,), ("baseline", "one"), (95,))):
        config = config_of(cell)
        assert config == command_line.from_flags(f"{backbone}:digits,{cell.row}", ["--config.seed=95"])
        assert (config.epochs, tuple(config.optimizer.milestones)) == (
            cell.epochs,
            (150, 180, 210),
        ) and cell.epochs == 240
        assert config.ramp_up.epochs == 80


@pytest.mark.parametrize("seeds", ["95,95", "²", "95,,96"])
def test_wrong_seeds(seeds, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce", "table1", "--dry-run", f"--seeds={seeds}"])
    with pytest.raises(UsageError, match="different whole numbers"):
        reproduce.main()


def save(cell, last, best=None, epochs=8, leaders=(), told=None, **fields):
    """What a finished run leaves behind, made up.

    Args:
      cell: whose run it is.
      last: its accuracy after the last epoch.
      best: that of the epoch before, where it was better.
      epochs: how many there are.
      leaders: the accuracy of its leader after each.
      told: what its results say besides, or otherwise.
      fields: other ones than the cell's.
    """
    accuracies = [last * e / epochs for e in range(1, epochs + 1)]
    accuracies[-2:-1] = [best or accuracies[-2]]
    rows = [
        {"epoch": e, "step": 48 * e, "test/accuracy": a, "test/accuracy_peer_0": a, "test/accuracy_ensemble": a,
         "seconds": 2.0} for e, a in enumerate(accuracies, 1)
    ]  # fmt: skip
    for row, leader in zip(rows, leaders, strict=False):
        row["test/accuracy_leader"] = leader
    write_finished(cell.workdir, tree.of_settings(config_of(cell)) | fields, rows, **(told or {}))
    assert finished.look(cell.workdir).why_not == ""


def test_a_table_from_runs(tmp_path):
    choice = Choice("table1", ("cifar100",), ("resnet32", "densenet40_12"), ("baseline", "dml", "okddip", "cutnmix"),
                    epochs=8, runs=tmp_path)  # fmt: skip
    made = {("baseline", "resnet32"): (0.70, 0.71, 0.72), ("dml", "resnet32"): (0.73, 0.75),
            ("okddip", "resnet32"): (0.60,), ("baseline", "densenet40_12"): (0.5, 0.5, 0.5)}  # fmt: skip
    for cell in cells_of(choice):
        values = made.get((cell.variant, cell.backbone), ())
        if cell.seed - 95 < len(values):
            leaders = (0.3, 0.5, 0.6, 0.64, 0.61, 0.6, 0.6, 0.62) if cell.row == "okddip" else ()
            save(cell, values[cell.seed - 95], best=0.8, leaders=leaders)
    report.write(choice, tmp_path / "out")
    text = (tmp_path / "out" / "table1.md").read_text()
    last = text.split("## CIFAR-100, best epoch")[0]
    # means and n - 1 deviations by hand: 70, 71, 72 -> 71 +- 1; 73, 75 -> 74 +- sqrt 2
    assert "| Baseline | _71.00 ± 1.00_<br>paper 71.71 ± 0.24, -0.71 | 50.00 ± 0.00 |" in last
    assert "| DML | **74.00 ± 1.41** (n = 2)<br>paper 72.66 ± 0.03, +1.34 | —<br>paper 72.36 ± 0.05 |" in last
    assert "; mean of the peers, of OKDDip the leader. " in text
    assert "| OKDDip | 62.00 (n = 1)<br>paper 72.34 ± 0.06, -10.34 |" in last  # its leader, of one seed
    assert "| CutnMix, full | —<br>paper 73.84 ± 0.25 |" in last
    assert "n = 1 or 2 or 3" in last and "4 of 8 cells have no finished run" in last and "epochs 8" in last
    assert "| Baseline | 80.00 ± 0.00 | 80.00 ± 0.00 |" in text
    assert "| OKDDip | 64.00 (n = 1) | — |" in text  # its leader's own best epoch, not the peers'
    with (tmp_path / "out" / "table1.csv").open() as file:
        lines = {(row["method"], row["backbone"]): row for row in csv.DictReader(file)}
    dml = lines["dml", "resnet32"]
    assert (dml["n"], dml["seeds"], dml["last_mean"], dml["last_std"]) == ("2", "95 96", "74.0", "1.4142")
    baseline = lines["baseline", "resnet32"]
    assert [baseline[name] for name in ("last_mean", "last_std", "best_mean", "best_std")] == [
        "71.0",
        "1.0",
        "80.0",
        "0.0",
    ]
    assert lines["okddip", "resnet32"]["best_mean"] == "64.0"
    assert (dml["paper_mean"], dml["difference"], dml["seconds_mean"]) == ("72.66", "1.34", "10.0")
    assert lines["cutnmix", "resnet32"]["last_mean"] == ""
    tex = (tmp_path / "out" / "table1.tex").read_text()
    assert r"Baseline & $\underline{71.00 \pm 1.00}$ & $50.00 \pm 0.00$ \\" in tex
    assert r"DML & $\mathbf{74.00 \pm 1.41}$ ($n$ = 2) & --- \\" in tex
    assert len(set(re.findall(r"&", tex.splitlines()[-4]))) == 1
    assert (tmp_path / "out" / "table1.png").stat().st_size > 10_000


def tables_of(folder, values, **choice):
    """Markdown, LaTeX and pictures of a column with these accuracies of each row's seeds."""
    choice = Choice("table1", ("cifar100",), ("resnet32",), tuple(values), epochs=8, runs=folder, **choice)
    for cell in cells_of(choice):
        if cell.seed - 95 < len(values[cell.variant]):
            save(cell, values[cell.variant][cell.seed - 95])
    report.write(choice, folder / "out")
    return (folder / "out" / "table1.md").read_text(), (folder / "out" / "table1.tex").read_text()


def test_a_single_seed_is_never_marked_best(tmp_path):
    text, tex = tables_of(tmp_path, {"baseline": (0.70,), "dml": (0.75,), "cutmix": (0.72,)})
    assert "| DML | 75.00<br>" in text and "| CutMix | 72.00<br>" in text
    assert "No best one is marked: there are no two to compare of two seeds or more." in text
    assert "No best one is marked" in tex
    for mark in ("**", "_7", "mathbf", "underline", "_second"):
        assert mark not in text + tex


def test_only_cells_of_two_seeds_or_more_are_compared(tmp_path):
    """The best number is one of a single seed, and another such one is as good as the second best."""
    values = {
        "baseline": (0.70, 0.71),
        "dml": (0.75,),
        "cutmix": (0.73, 0.74, 0.72),
        "cs_kd": (0.71,),
        "ddgsd": (0.705,),
    }
    text, tex = tables_of(tmp_path, values)
    assert "| Baseline | _70.50 ± 0.71_ (n = 2)<br>" in text and "| CutMix | **73.00 ± 1.00**<br>" in text
    assert "| DML | 75.00 (n = 1)<br>" in text and "| DDGSD | 70.50 (n = 1)<br>" in text
    assert "**Best** and _second best_ of a column among the cells of two seeds or more are marked." in text
    assert "Best and second best of a column among the cells of two seeds or more are marked." in tex
    assert text.count("**") == 4 and tex.count("mathbf") == tex.count("underline") == 1
    assert r"DML & $75.00$ ($n$ = 1) \\" in tex and r"$\mathbf{73.00 \pm 1.00}$ \\" in tex


def test_one_cell_with_seeds_is_compared_with_none(tmp_path):
    text, tex = tables_of(tmp_path, {"baseline": (0.70, 0.71), "dml": (0.75,)})
    assert "| Baseline | 70.50 ± 0.71<br>" in text and "No best one is marked" in text and "**" not in text + tex


def test_a_picture_of_a_single_seed_has_no_bars(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    tables_of(tmp_path, {"baseline": (0.70, 0.72, 0.71), "dml": (0.75,)})
    bars = [container[2][0].get_segments() for container in drawn[0].axes[0].containers]
    assert [[end[1] for end in segment] for segment in bars[0]] == [pytest.approx([70, 72])]
    assert not any(len(segment) and np.isfinite(segment).all() for segment in bars[1])
    said = "mean over 1 to 3 seeds, bars of one standard deviation; no bar: a single seed"
    assert drawn[0].get_suptitle().endswith(said)
    for several, said in (
        ((95,), "a single seed, no deviation"),
        ((95, 96), "mean over 2 seeds, one standard deviation shaded"),
    ):
        choice = Choice("fig1", mini=True, seeds=several, runs=tmp_path / str(len(several)))
        for cell in cells_of(choice):
            save(cell, 0.9)
        report.write(choice, tmp_path / "fig")
        assert drawn[-2].get_suptitle().endswith(said)


def test_points_are_within_the_group_of_their_network(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    networks, rows = ("resnet32", "vgg16"), ("baseline", "dml", "cutmix")
    choice = Choice("table1", ("cifar100",), networks, rows, (95,), epochs=8, runs=tmp_path)
    for cell in cells_of(choice):
        save(cell, 0.5)
    report.write(choice, tmp_path / "out")
    axes = drawn[0].axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    at = {labels[int(tick)]: tick for tick in axes.get_xticks()}
    for network in ("ResNet-32", "VGG-16"):
        places = sorted(
            x for container in axes.containers for x in container[0].get_xdata() if abs(x - at[network]) < 0.5
        )
        assert len(places) == 3 and sum(places) / 3 == pytest.approx(at[network])
        np.testing.assert_allclose(np.diff(places), 0.8 / 3)


def test_mini_says_that_it_is_no_reproduction(tmp_path):
    choice = Choice("fig1", mini=True, runs=tmp_path)
    for cell in cells_of(choice):
        save(cell, 0.9 + cell.seed / 10_000)
    report.write(choice, tmp_path)
    assert "No reproduction of the paper" in (tmp_path / "fig1_mini.md").read_text()
    assert "No reproduction of the paper" in (tmp_path / "fig1_mini.tex").read_text()
    assert "paper 9" not in (tmp_path / "fig1_mini.md").read_text()
    assert (tmp_path / "fig1_mini.png").exists() and (tmp_path / "fig1_mini_accuracy.png").exists()


def test_a_shorter_run_does_not_count(tmp_path):
    choice = Choice("table2", variants=("cutnmix",), seeds=(95,), runs=tmp_path)
    short = choice._replace(epochs=2)
    [cell], [short_cell] = cells_of(choice), cells_of(short)
    save(short_cell, 0.9, epochs=2)
    assert (ran.epochs_done(cell), cell.epochs) == (2, 240)
    report.write(choice, tmp_path)
    assert "1 of 1 cells have no finished run" in (tmp_path / "table2.md").read_text()
    assert (ran.epochs_done(short_cell), short_cell.epochs) == (2, 2)


def test_a_run_with_other_fields_does_not_count(tmp_path, capsys):
    choice = Choice("fig1", mini=True, seeds=(95, 96), runs=tmp_path)
    first, second, third, fourth = cells_of(choice)
    save(first, 0.9, num_peers=4)
    save(second, 0.9, eval_batch_size=7)  # changes no number
    save(third, 0.9, batch_size=16, precision="float32")
    save(fourth, 0.9)
    (fourth.workdir / "config.json").unlink()
    assert ran.other_fields(fourth) == [f"No such file or directory: {fourth.workdir / 'config.json'}"]
    assert [bool(ran.results_of(cell)) for cell in cells_of(choice)] == [False, True, False, False]
    line = f"left out: results of 3 other runs, the first in {first.workdir} (config.num_peers: 4 -> 2)"
    reproduce.show(cells_of(choice), jobs=1)
    assert capsys.readouterr().out.splitlines()[4:-1] == [line]
    report.write(choice, tmp_path)
    assert capsys.readouterr().out.splitlines()[:-1] == [line, "1 of 2 cells have no finished run"]
    assert "1 of 2 cells have no finished run" in (tmp_path / "fig1_mini.md").read_text()


def test_all_devices_are_however_many_there_were(tmp_path):
    """With local batch norm a run notes their number, which only the machine that trains knows."""
    more = ("--config.bn=local", "--config.devices=0")
    choice = Choice("table2", mini=True, variants=("cutnmix",), seeds=(95,), runs=tmp_path)
    [cell] = cells_of(choice)
    cell = cell._replace(arguments=(*cell.arguments, *more))
    save(cell, 0.9, devices=4)
    assert ran.other_fields(cell) == []
    save(cell, 0.9, devices=4, bn="global")
    assert ran.other_fields(cell) == ["config.bn: 'global' -> 'local'"]


def test_a_best_epoch_of_fewer_does_not_count(tmp_path):
    [cell] = cells_of(Choice("table2", mini=True, variants=("cutnmix",), seeds=(95,), runs=tmp_path))
    save(cell, 0.9, eval_every_epochs=4)
    assert ran.other_fields(cell) == ["config.eval_every_epochs: 4 -> 1"]


def test_a_method_says_itself_that_it_is_taught_and_what_tables_show(monkeypatch):
    monkeypatch.setattr(DML, "teachers", ("frozen",))
    cells = cells_of(Choice("fig1", mini=True, variants=("dml",), seeds=(95,)))
    assert [cell.row for cell in cells] == ["baseline", "dml"] and cells[1].teacher == cells[0]
    assert (headline("okddip"), headline("cutnmix")) == ("accuracy_leader", "accuracy")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda at: (at / "metrics.jsonl").unlink(), "metrics.jsonl does not have the rows of 8 epochs"),
        (lambda at: write_row(at, -1, "test/accuracy", 0.99), "results.json has other accuracies than metrics.jsonl"),
        (lambda at: write_row(at, 3, "test/accuracy", 7), "metrics.jsonl does not have the rows of 8 epochs"),
        (lambda at: write_row(at, 3, "epoch", 9), "metrics.jsonl does not have the rows of 8 epochs"),
        (lambda at: write_result(at, "device", None), "results.json has no device"),
        (lambda at: write_result(at, "versions", {"jax": None}), "results.json has no versions"),
        (
            lambda at: write_result(at, "config_sha256", "x"),
            "results.json is of another configuration than config.json",
        ),
        (lambda at: (at / "results.json").write_text("{"), "Expecting property name"),
    ],
)
def test_results_that_do_not_belong_to_what_lies_beside_them_do_not_count(change, why, tmp_path, capsys):
    choice = Choice("fig1", mini=True, seeds=(95,), variants=("dml",), runs=tmp_path)
    [cell] = cells_of(choice)
    save(cell, 0.9)
    assert ran.results_of(cell) and ran.left_out([cell]) == ""
    change(cell.workdir)
    assert ran.results_of(cell) is None
    report.write(choice, tmp_path / "out")
    [line, missing, _] = capsys.readouterr().out.splitlines()
    assert missing == "1 of 1 cells have no finished run"
    assert line.startswith(f"left out: results of another run in {cell.workdir} ({why}")
    assert "1 of 1 cells have no finished run" in (tmp_path / "out" / "fig1_mini.md").read_text()


def write_row(folder, number, name, value):
    rows = metrics.read_rows(folder / "metrics.jsonl")
    rows[number][name] = value
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_result(folder, name, value):
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {name: value}))


def test_a_teachers_folder_is_the_same_by_any_path(tmp_path, monkeypatch):
    choice = Choice("table1", variants=("kd",), mini=True, seeds=(95,), runs=tmp_path / "runs")
    taught = cells_of(choice)[1]
    other = tmp_path / "elsewhere"
    monkeypatch.chdir(ROOT)
    near = os.path.relpath(taught.teacher.workdir)
    arguments = tuple(text.replace(str(taught.teacher.workdir), near) for text in taught.arguments)
    assert arguments != taught.arguments
    save(taught._replace(arguments=arguments), 0.9)
    assert ran.results_of(taught)
    save(taught, 0.9, teacher=str(other))
    another = f"it was taught by another run than the one in {taught.teacher.workdir}"
    assert ran.other_fields(taught) == [another]  # where its weights are not known, the folder decides
    save(taught, 0.9, told={"teacher_sha256": "of the teacher"})
    gone = f"no finished run of its teacher in {taught.teacher.workdir}"
    assert ran.other_fields(taught) == [gone]  # it need not have been another one
    save(taught, 0.9, teacher=str(other))
    save(taught.teacher, 0.9, told={"weights_sha256": "of the teacher"})
    assert ran.other_fields(taught) == [another]
    save(taught, 0.9, teacher=str(other), told={"teacher_sha256": "of the teacher"})
    assert ran.other_fields(taught) == []
    save(taught, 0.9, teacher=str(taught.teacher.workdir), told={"teacher_sha256": "before it was extended"})
    assert ran.other_fields(taught) == [another]


def test_the_best_epoch_of_a_leader_is_chosen_as_that_of_the_peers():
    """On the validation images where there are any; its number is of the test set all the same."""
    rows = [
        {"epoch": e, "test/accuracy": 0.5, "test/accuracy_leader": tested, "validation/accuracy_leader": chosen}
        for e, tested, chosen in ((1, 0.3, 0.1), (2, 0.9, 0.2), (3, 0.5, 0.8))
    ]
    results = {"best": {"accuracy": 0.4}}
    assert grids.best(results, rows, "accuracy_leader") == 0.5
    assert (
        grids.best(results, [{k: v for k, v in row.items() if "valid" not in k} for row in rows], "accuracy_leader")
        == 0.9
    )
    assert grids.best(results, rows, "accuracy") == 0.4


def test_nothing_found_is_an_empty_table(tmp_path):
    report.write(Choice("table2", runs=tmp_path), tmp_path)
    assert "4 of 4 cells have no finished run" in (tmp_path / "table2.md").read_text()


def test_a_dry_run_tells_what_is_done_and_left(tmp_path, capsys):
    choice = Choice("fig1", mini=True, seeds=(95, 96), runs=tmp_path)
    first, second, third, _ = cells_of(choice)
    save(first, 0.9)
    second.workdir.mkdir(parents=True)
    rows = [{"epoch": e, "seconds": 30.0 if e == 1 else 10.0} for e in (1, 2, 3)]  # the first one compiled
    (second.workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reproduce.show(cells_of(choice), jobs=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"{first.name}: done")
    assert lines[1].endswith("3/8 epochs, about 0:00:50 left")
    assert lines[2].endswith("0/8 epochs, about 0:00:16 left")
    assert lines[3].endswith("0/8 epochs, about 0:01:20 left")
    assert lines[4] == "1 of 4 cells done; about 0:02:26 left with 1 at once"
    # Several at once take as long as the longest of them at least.
    for jobs, left in ((2, "0:01:20"), (8, "0:01:20")):
        reproduce.show(cells_of(choice), jobs=jobs)
        assert capsys.readouterr().out.splitlines()[4] == f"1 of 4 cells done; about {left} left with {jobs} at once"


def test_a_dry_run_does_not_guess(tmp_path, capsys):
    choice = Choice("fig1", mini=True, seeds=(95,), runs=tmp_path)
    reproduce.show(cells_of(choice), jobs=2)
    out = capsys.readouterr().out
    assert "0:00" not in out and out.count("0/8 epochs, time left not known") == 2
    assert out.splitlines()[-1] == "0 of 2 cells done; the time left is not known: nothing like them was run yet"
    other = Choice("fig1", ("digits", "cifar10"), mini=True, seeds=(95,), variants=("dml",), runs=tmp_path)
    save(cells_of(choice)[0], 0.9)
    reproduce.show(cells_of(other), jobs=1)  # one is done, one is of other data
    out = capsys.readouterr().out.splitlines()
    assert out[1].endswith("time left not known")
    assert out[2] == "1 of 2 cells done; the time left is not known: nothing like it was run yet"
    reproduce.show(cells_of(other._replace(seeds=(95, 96))), jobs=1)
    said = "1 of 4 cells done; about 0:00:16 left with 1 at once, not counting 2 cells whose like was never run"
    assert capsys.readouterr().out.splitlines()[-1] == said
    reproduce.show(cells_of(other._replace(datasets=("digits",))), jobs=1)
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 1 cells done"


@pytest.mark.parametrize("seconds", [None, "soon"])
def test_rows_that_tell_no_time(seconds, tmp_path, capsys):
    choice = Choice("fig1", mini=True, seeds=(95,), variants=("dml",), runs=tmp_path)
    [cell] = cells_of(choice)
    cell.workdir.mkdir(parents=True)
    (cell.workdir / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "seconds": seconds}) + "\n")
    reproduce.show([cell], jobs=1)
    assert "1/8 epochs, time left not known" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["reproduce", "report"])
@pytest.mark.parametrize("flag", ["runs", "out"])
def test_folders_that_cannot_be_written(module, flag, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "run", lambda *_: pytest.fail("began to train"))
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        folders = {"runs": str(tmp_path / "runs"), "out": str(tmp_path / "out"), flag: str(folder)}
        monkeypatch.setattr(sys, "argv", [module, "fig1", *(f"--{name}={path}" for name, path in folders.items())])
        assert options.exit_code_of({"reproduce": reproduce, "report": report}[module].main) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: cannot read or write ") and error.count("\n") == 1
        assert str(tmp_path / "file") in error


def test_a_dry_run_over_a_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["reproduce", "fig1", "--dry-run", f"--runs={tmp_path / 'file'}"])
    assert options.exit_code_of(reproduce.main) == 2
    assert capsys.readouterr().err.count("\n") == 1


def cell_of(folder, name, *arguments, row="baseline", teacher=None):
    config = f"--config=configs/quickstart.py:digits,{row}"
    arguments = (config, *TINY[1:], *arguments, f"--workdir={folder / name}")
    epochs = int(next((a.partition("=")[2] for a in arguments[::-1] if re.match(r"--config.epochs=[1-9]", a)), 3))
    return Cell("digits", "tiny", row, name, 95, folder / name, arguments, teacher, epochs)


def test_a_failed_cell_is_told_and_not_fatal(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    cells = [cell_of(tmp_path, "broken", "--config.epochs=none"), cell_of(tmp_path, "good", "--config.epochs=2")]
    cells.append(cell_of(tmp_path, "taught", row="kd", teacher=cells[0]))
    with pytest.raises(UserError, match=r"2 cells failed: .*broken.* \(exit code 2, see .*log.txt\); .") as failed:
        run(cells, 2)
    assert failed.value.exit_code == 2
    assert str(failed.value).count("log.txt") == 1  # who was never started has none
    out = capfd.readouterr().out
    assert "failed: digits tiny broken seed 95: exit code 2: error: --config.epochs=none: must be a whole number" in out
    assert "left out: digits tiny taught seed 95: no finished run of its teacher in " in out
    assert re.search(r"\[1/3\] digits tiny good seed 95: [\d.]+ % in", out)
    before = (tmp_path / "good" / "results.json").read_bytes()
    run(cells[1:2], 1)  # a finished one is not touched
    assert (tmp_path / "good" / "results.json").read_bytes() == before
    assert "1 of 1 cells are done" in capfd.readouterr().out


def pretend(monkeypatch, cells, *ends):
    """Starts shells in place of runs, that end so one after the other, having saved results where they end with 0."""
    started, ends = [], iter(ends)

    def start(arguments, log, environment):
        cell = next(cell for cell in cells if cell.arguments == arguments)
        started.append(cell)
        (cell.workdir / launch.LOG).write_text("its last line\n")
        end = next(ends)
        if end == "exit 0":
            cell.workdir.rename(cell.workdir.with_name("log only"))
            save(cell, 0.9, told={"teacher_sha256": "0" * 64} if cell.teacher else {})
        return subprocess.Popen(["sh", "-c", end], start_new_session=True)

    monkeypatch.setattr(pool, "start", start)
    return started


@pytest.mark.parametrize("end", ["exit 75", "kill -TERM $$"])
def test_a_cell_that_somebody_else_stops_goes_on_once(end, tmp_path, monkeypatch, capsys):
    cells = cells_of(Choice("fig1", mini=True, seeds=(95,), runs=tmp_path))[:1]
    started = pretend(monkeypatch, cells, end, "exit 0")
    run(cells, 1)
    assert started == cells * 2
    out = capsys.readouterr().out
    assert f"stopped from elsewhere, started again: {cells[0].name}" in out
    assert f"[1/1] {cells[0].name}: 90.00 %" in out
    (cells[0].workdir / "results.json").unlink()
    started = pretend(monkeypatch, cells, end, end)
    code = "75" if end == "exit 75" else "-15"
    with pytest.raises(UserError, match=f"1 cells failed: .*exit code {code}, see ") as failed:
        run(cells, 1)
    assert failed.value.exit_code == 1 and started == cells * 2
    assert f"failed: {cells[0].name}: exit code {code}: its last line" in capsys.readouterr().out


def test_only_the_teacher_that_the_table_asks_for_teaches(tmp_path, monkeypatch, capsys):
    choice = Choice("table1", variants=("kd",), mini=True, seeds=(95,), runs=tmp_path)
    short, _ = cells_of(choice._replace(epochs=2))
    teacher, taught = cells_of(choice)
    save(short, 0.5, epochs=2)
    started = pretend(monkeypatch, [taught], "exit 0")
    with pytest.raises(UserError, match="no finished run of its teacher in .*config.epochs: 2 -> 8") as failed:
        run([taught], 1)  # as --cell=K has it
    assert failed.value.exit_code == 2 and started == [] and "left out: " in capsys.readouterr().out
    for path in teacher.workdir.iterdir():
        path.unlink()
    teacher.workdir.rmdir()
    save(teacher, 0.9)
    run([taught], 1)
    assert started == [taught]


def test_a_folder_that_cannot_be_made_fails_its_cell_alone(tmp_path, monkeypatch, capsys):
    cells = cells_of(Choice("fig1", mini=True, seeds=(95,), runs=tmp_path))
    cells[0].workdir.parent.mkdir(parents=True)
    cells[0].workdir.touch()
    monkeypatch.setattr(ran, "results_of", lambda cell: None)
    monkeypatch.setattr(pool, "start", lambda *_, **__: subprocess.Popen(["sh", "-c", "exit 5"]))
    with pytest.raises(UserError, match=r"2 cells failed: .*\(cannot start in .*\); .*\(exit code 5, see ") as failed:
        run(cells, 1)
    assert failed.value.exit_code == 2


def test_a_folder_that_is_held_keeps_no_other_cell_waiting(tmp_path, monkeypatch, capsys):
    cells = cells_of(Choice("fig1", mini=True, seeds=(95,), runs=tmp_path))
    monkeypatch.setattr(ran, "results_of", lambda cell: None)
    monkeypatch.setattr(pool, "start", lambda *_, **__: subprocess.Popen(["sh", "-c", "exit 5"]))
    cells[0].workdir.mkdir(parents=True)
    with lock.held(cells[0].workdir), pytest.raises(UserError, match="2 cells failed"):
        run(cells, 1, patience=2.0)
    started = [line for line in capsys.readouterr().out.splitlines() if line.startswith("started: ")]
    assert [cell.name in line for cell, line in zip(cells[::-1], started, strict=True)] == [True, True]


def test_those_that_are_left_save_at_the_same_time(tmp_path, monkeypatch):
    """Where a table ends by an error: in turn, the last of them would train on while the others save."""
    wait = "trap 'sleep 0.7; exit 75' TERM; touch {}; while :; do sleep 0.05; done"
    monkeypatch.setattr(pool, "start", lambda arguments, *_: subprocess.Popen(["sh", "-c", wait.format(*arguments)]))
    ready = [tmp_path / name for name in "abc"]
    with pool.Pool[int]() as some:
        processes = [some.start(number, [str(path)], None) for number, path in enumerate(ready)]
        wait_for(lambda: all(path.exists() for path in ready))
        begun = time.monotonic()
    assert [process.returncode for process in processes] == [75] * 3 and time.monotonic() - begun < 1.8


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process of its parent's death")
def test_a_run_whose_parent_died_before_it_began_does_not_begin():
    for parent, code in ((os.getpid(), 0), (-1, 1)):
        before = functools.partial(pool.end_with_parent, parent)
        process = subprocess.Popen([sys.executable, "-c", "print('began')"], stdout=subprocess.PIPE, preexec_fn=before)
        assert (process.communicate(timeout=60)[0], process.returncode) == (b"" if code else b"began\n", code)


@pytest.mark.parametrize("end", [75, 2])
def test_slurm_queues_again_what_was_stopped_and_saved(end, tmp_path):
    """With a shell in place of Slurm, and one in place of the run that ends at the first signal."""
    (tmp_path / "scripts").mkdir()
    for name, lines in {
        "scripts/reproduce": f"echo x >> signals; exit {end}",
        "scontrol": 'echo "$@" > queued',
    }.items():
        path = tmp_path / name
        waits = f"trap '{lines}' TERM; echo \"$@\" > started; while :; do sleep 0.05; done"
        path.write_text(f"#!/bin/sh\n{lines if name == 'scontrol' else waits}\n")
        path.chmod(0o755)
    script = (ROOT / "scripts" / "reproduce.sbatch").read_text()
    assert "#SBATCH --signal=B:TERM@120\n" in script
    task = {"SLURM_JOB_ID": "70", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}
    environment = os.environ | task | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    shell = subprocess.Popen(["bash", "-c", script, "job", "table1", "--epochs=2"], cwd=tmp_path, env=environment)
    try:
        wait_for((tmp_path / "started").exists)
        shell.terminate()
        assert shell.wait(60) == end
    finally:
        shell.kill()
    assert (tmp_path / "started").read_text() == "table1 --epochs=2 --cell=3\n"
    assert (tmp_path / "signals").read_text() == "x\n"
    queued = tmp_path / "queued"
    assert (queued.read_text() if queued.exists() else "") == ("requeue 70_3\n" if end == 75 else "")


SCRIPT = """
import sys
from pathlib import Path
from cutnmix_jax.command import exit_code_of
from tests import test_paper
cells = [test_paper.cell_of(Path(sys.argv[1]), name, "--config.epochs=400") for name in "ab"]
sys.exit(exit_code_of(lambda: test_paper.run(cells, 2)))
"""


def checkpoints_in(folder, name):
    return [path for path in folder.glob(f"{name}/checkpoints/*") if path.name.isdigit()]


@pytest.mark.parametrize("number", few([signal.SIGTERM, signal.SIGKILL], (signal.SIGTERM,)))
def test_stopped_or_killed_cells_save(number, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE)
    logs = [tmp_path / name / "log.txt" for name in "ab"]
    try:
        wait_for(lambda: all(checkpoints_in(tmp_path, name) for name in "ab"), 200)
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == (75 if number == signal.SIGTERM else -number), errors
    # The runs of a killed parent stop and save too.
    wait_for(lambda: all("stopped and saved at step" in log.read_text() for log in logs), 60)
    assert not any((tmp_path / name / "results.json").exists() for name in "ab")


@pytest.mark.parametrize("command", ["cutnmix_jax.paper.reproduce", "cutnmix_jax.paper.report"])
def test_a_reader_that_ends(command, tmp_path):
    arguments = f"{sys.executable} -m {command} table1 --preset=mini --runs={tmp_path}"
    arguments += " --dry-run" if "reproduce" in command else ""
    shell = f"{arguments} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_two_runs_in_one_folder(tmp_path):
    cell = cell_of(tmp_path, "one", "--config.epochs=400")
    command = [sys.executable, "-m", "cutnmix_jax.main", *cell.arguments]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        wait_for((cell.workdir / ".owner.json").exists)
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert second.returncode == 2
        assert f"in use by process {first.pid} on " in second.stderr and second.stderr.count("\n") == 1
    finally:
        first.terminate()
        assert first.wait(60) in (StoppedError.exit_code, -signal.SIGTERM)
    # A dead owner's lock is free.
    third = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert any("compiling" in line for line in third.stdout)
    finally:
        third.kill()
        third.communicate()


def test_a_table_has_the_recipe_of_the_settings(monkeypatch):
    """A changed default is the one of `train` and of `reproduce`."""
    monkeypatch.setattr(settings.Settings, "epochs", 120)
    monkeypatch.setattr(settings.Optimizer, "milestones", (60, 90))
    [cell] = cells_of(Choice("fig1", variants=("dml",), seeds=(95,)))
    assert cell.epochs == 120 and "--config.optimizer.milestones=(60,90,)" in cell.arguments
