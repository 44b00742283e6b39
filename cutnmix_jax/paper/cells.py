"""Which runs make up a table: data set x backbone x row x seed, and the numbers that the paper has in their place."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from cutnmix_jax import backbones as networks
from cutnmix_jax import data, methods, own_code
from cutnmix_jax.backbones import foreign
from cutnmix_jax.errors import UsageError, nearest
from cutnmix_jax.paper.published import SIX, TABLE1, TABLE2
from cutnmix_jax.settings import Settings, recipe

SEEDS = (95, 96, 97)  # section 3.2 has seed 95 and three runs

TITLES = {
    "baseline": "Baseline", "mixup": "MixUp", "cutmix": "CutMix", "dml": "DML", "dml_cutmix": "DML + CutMix",
    "cs_kd": "CS-KD", "ps_kd": "PS-KD", "tf_kd_reg": "Tf-KD reg", "tf_kd_self": "Tf-KD self", "kd": "KD",
    "ddgsd": "DDGSD", "kdcl": "KDCL", "one": "ONE", "okddip": "OKDDip", "pcl": "PCL",
    "cutnmix_dml": "CutnMix", "cutnmix_mmd": "CutnMix + MMD", "cutnmix_pt": "CutnMix + PT", "cutnmix": "CutnMix, full",
    "vgg16": "VGG-16", "vgg19": "VGG-19", "resnet32": "ResNet-32", "resnet110": "ResNet-110", "wrn20_8": "WRN-20-8",
    "densenet40_12": "DenseNet-40-12", "resnet18": "ResNet-18", "resnet8": "ResNet-8",
    "cifar10": "CIFAR-10", "cifar100": "CIFAR-100",
}  # fmt: skip

# What the paper leaves out, as changes of one row; the row itself is the first line of its group.
ABLATIONS: dict[str, tuple[str, dict[str, object]]] = {
    "cutnmix": ("cutnmix", {}),
    **{f"{row} prob 0.5": (row, {"mix.prob": 0.5}) for row in ("cutnmix", "cutmix", "dml_cutmix")},
    **{f"{row} prob 1": (row, {}) for row in ("cutmix", "dml_cutmix")},
    **{f"box {box}": ("cutnmix", {"mix.box": box}) for box in ("uniform", "inside", "wrap", "raw", "own")},
    "MMD alone": ("cutnmix", {"weights.dml": 0.0, "weights.pt": 0.0}),
    "PT alone": ("cutnmix", {"weights.dml": 0.0, "weights.mmd": 0.0}),
    "no distillation": ("cutnmix", {"weights.dml": 0.0, "weights.mmd": 0.0, "weights.pt": 0.0}),
    **{f"J = {j}": ("cutnmix", {"num_peers": j}) for j in (3, 4)},
    **{f"tau = {tau:g}": ("cutnmix", {"loss.temperature": tau}) for tau in (1.0, 2.0, 4.0, 6.0)},
    **{f"alpha = {a:g}": ("cutnmix", {"weights.dml": a}) for a in (0.3, 1.0)},
    **{f"beta = {b:g}": ("cutnmix", {"weights.mmd": b}) for b in (0.1, 1.0)},
    **{f"gamma = {g:g}": ("cutnmix", {"weights.pt": g}) for g in (0.05, 0.3, 1.0)},
}  # fmt: skip


class Cell(NamedTuple):
    """One run.

    Attributes:
      dataset: its name.
      backbone: likewise.
      row: of `methods.rows_by_name`.
      variant: what stands in the table's first column: the row, or the name of an ablation.
      seed: of the run.
      workdir: its folder.
      arguments: of `cutnmix_jax.main`.
      teacher: the run that must end first, if any.
      epochs: how many it has.
    """

    dataset: str
    backbone: str
    row: str
    variant: str
    seed: int
    workdir: Path
    arguments: tuple[str, ...]
    teacher: "Cell | None"
    epochs: int = Settings.epochs

    @property
    def name(self) -> str:
        """How it is called in what is printed."""
        return f"{self.dataset} {self.backbone} {self.variant} seed {self.seed}"


class Table(NamedTuple):
    """What a table is made of; see `TABLES`."""

    datasets: tuple[str, ...]
    backbones: tuple[str, ...]
    variants: tuple[str, ...]
    title: str


TABLES = {
    "table1": Table(("cifar10", "cifar100"), SIX, tuple(TABLE1["cifar10"]), "Table 1: every method and backbone"),
    "table2": Table(("cifar100",), ("resnet110",), tuple(TABLE2), "Table 2: the parts of the framework"),
    # The paper does not say which network its Fig. 1 shows.
    "fig1": Table(("cifar100",), ("resnet32",), ("dml", "dml_cutmix"), "Fig. 1: DML with and without CutMix"),
    "ablations": Table(("cifar100",), ("resnet32",), tuple(ABLATIONS), "What the paper leaves out"),
}


class Choice(NamedTuple):
    """Which cells of a table, and how they are trained.

    Attributes:
      table: a name of `TABLES`.
      datasets: instead of the table's, where there are any; likewise the next three.
      backbones: names.
      variants: rows, or names of ablations; `all` for every row there is.
      seeds: numbers.
      epochs: instead of the recipe's 240, with its milestones and ramp-ups in proportion; none keeps them.
      mini: the embedded data, a tiny network and few epochs.
      data_dir: passed on.
      runs: the folder of all runs.
    """

    table: str
    datasets: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    epochs: int | None = None
    mini: bool = False
    data_dir: str | None = None
    runs: Path = Path("runs")


MINI_EPOCHS = 8


def cells_of(choice: Choice) -> list[Cell]:
    """Every run of a table, teachers first.

    Raises:
      UsageError: a name in the choice is not known.
    """
    table = TABLES[choice.table]
    datasets = choice.datasets or (("digits",) if choice.mini else table.datasets)
    backbones = choice.backbones or (("resnet8",) if choice.mini else table.backbones)
    rows = tuple(methods.rows_by_name())
    known = (*ABLATIONS, *rows) if choice.table == "ablations" else rows
    variants = rows if set(choice.variants) == {"all"} else choice.variants or table.variants
    _check_names("datasets", datasets, data.names())
    _check_names("backbones", [name for name in backbones if not own_code.is_well_named(name)], networks.names())
    _check_names("methods", variants, known)
    if any(map(is_taught, variants)) and "baseline" not in variants:
        variants = ("baseline", *variants)
    variants = tuple(sorted(variants, key=is_taught))
    return [
        _cell(choice, dataset, backbone, variant, seed)
        for seed in choice.seeds or SEEDS
        for dataset in dict.fromkeys(datasets)  # a name given twice would count twice
        for backbone in dict.fromkeys(backbones)
        for variant in dict.fromkeys(variants)
    ]


def _check_names(flag: str, names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            own = "; or your own, as my_pkg.nets:make" if flag == "backbones" else ""
            raise UsageError(f"--{flag}: no {name!r}; {nearest(name, known)}{own}")


def no_reproduction(cells: Iterable[Cell]) -> str:
    """What is said of the cells of `--preset=mini`."""
    parts = (
        sorted({data.title(cell.dataset) for cell in cells}),
        sorted({cell.backbone for cell in cells}),
        sorted({f"{cell.epochs} epochs" for cell in cells}),
    )
    return f"no reproduction of the paper: {', '.join(map(' and '.join, parts))}, to see the machinery"


def _cell(choice: Choice, dataset: str, backbone: str, variant: str, seed: int) -> Cell:
    row, changes = (variant, {}) if variant in methods.rows_by_name() else ABLATIONS[variant]
    folder = choice.runs / dataset / backbone.replace(":", ".")

    def workdir(name: str) -> Path:
        return folder / name.replace(" = ", "").replace(" ", "_") / f"seed{seed}"

    teacher = _cell(choice, dataset, backbone, "baseline", seed) if is_taught(row) else None
    fields: dict[str, object] = {"seed": seed} | changes
    config = _config(choice, backbone)
    if config != backbone:
        fields["backbone.name"] = backbone
    if choice.data_dir:
        fields["data_dir"] = choice.data_dir
    if teacher:
        fields["teacher"] = teacher.workdir
    epochs = choice.epochs or (MINI_EPOCHS if choice.mini else Settings.epochs)
    # Always given, because a backbone's file may have a shorter recipe of its own.
    fields["epochs"] = epochs
    fields["optimizer.milestones"] = "(" + "".join(f"{milestone}," for milestone in recipe.milestones(epochs)) + ")"
    if methods.row(row).ramp_up:
        fields["ramp_up.epochs"] = recipe.ramp_up_epochs(epochs)
    arguments = (
        f"--config={config}:{dataset},{row}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
        f"--workdir={workdir(variant)}",
    )
    return Cell(dataset, backbone, row, variant, seed, workdir(variant), arguments, teacher, epochs)


def _config(choice: Choice, backbone: str) -> str:
    """The configuration that a cell begins with; the recipe is the same for all networks."""
    if choice.mini:
        return recipe.QUICKSTART  # few images want its smaller batches
    return "resnet32" if foreign.is_foreign(backbone) else backbone


def paper_number(choice: Choice, cell: Cell) -> tuple[float, float] | None:
    """Mean and deviation in % that the paper has for a cell; None where it has none."""
    if choice.table == "table2" and (cell.dataset, cell.backbone) == ("cifar100", "resnet110"):
        return TABLE2.get(cell.variant)
    return TABLE1.get(cell.dataset, {}).get(cell.variant, {}).get(cell.backbone)


def headline(row: str) -> str:
    """The accuracy that a table shows of a row, as its method says."""
    return methods.row(row).headline


def is_taught(variant: str) -> bool:
    """Whether a row has a trained teacher, which is the baseline of the same backbone and seed."""
    return methods.has_row(variant) and methods.row(variant).method.needs_teacher


def title(name: str) -> str:
    """A name as tables show it."""
    return TITLES.get(name, name)


Key = tuple[str, str, str]  # data set, backbone, variant


def datasets_of(keys: Iterable[Key]) -> list[str]:
    """In their order."""
    return list(dict.fromkeys(dataset for dataset, _, _ in keys))


def columns_of(keys: Iterable[Key], dataset: str) -> list[str]:
    """The backbones of a data set, in their order."""
    return list(dict.fromkeys(backbone for other, backbone, _ in keys if other == dataset))


def rows_of(keys: Iterable[Key]) -> list[str]:
    """The variants, in their order."""
    return list(dict.fromkeys(variant for _, _, variant in keys))
