"""Which runs make up a table: data set x backbone x row x seed, and the numbers that the paper has in their place."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from cutnmix_jax import backbones as networks
from cutnmix_jax import data, methods
from cutnmix_jax.errors import UsageError, nearest

CONFIGS = Path(__file__).parents[2] / "configs"  # whatever the folder a person is in
SEEDS = (95, 96, 97)  # section 3.2 has seed 95 and three runs
EPOCHS, RAMP_UP = 240, 80
SIX = ("vgg16", "vgg19", "resnet32", "resnet110", "wrn20_8", "densenet40_12")
TAUGHT = ("kd", "tf_kd_self")  # rows whose teacher is the baseline of the same backbone and seed
HEADLINE = {"okddip": "accuracy_leader"}  # as its authors report; the mean of the peers for every other row

TITLES = {
    "baseline": "Baseline", "mixup": "MixUp", "cutmix": "CutMix", "dml": "DML", "dml_cutmix": "DML + CutMix",
    "cs_kd": "CS-KD", "ps_kd": "PS-KD", "tf_kd_reg": "Tf-KD reg", "tf_kd_self": "Tf-KD self", "kd": "KD",
    "ddgsd": "DDGSD", "kdcl": "KDCL", "one": "ONE", "okddip": "OKDDip", "pcl": "PCL",
    "cutnmix_dml": "CutnMix", "cutnmix_mmd": "CutnMix + MMD", "cutnmix_pt": "CutnMix + PT", "cutnmix": "CutnMix, full",
    "vgg16": "VGG-16", "vgg19": "VGG-19", "resnet32": "ResNet-32", "resnet110": "ResNet-110", "wrn20_8": "WRN-20-8",
    "densenet40_12": "DenseNet-40-12", "resnet18": "ResNet-18", "resnet8": "ResNet-8",
    "cifar10": "CIFAR-10", "cifar100": "CIFAR-100",
}  # fmt: skip


def _numbers(text: str) -> dict[str, tuple[float, float]]:
    values = [tuple(map(float, cell.split("+-"))) for cell in text.split()]
    return {name: (mean, std) for name, (mean, std) in zip(SIX, values, strict=False)}


# Top-1 accuracy in % and deviation over three runs: Table 1. One cell, DenseNet's baseline on CIFAR-100, is missing in
# the paper; "Ours" minus the gain printed beside it would be 71.62.
TABLE1: dict[str, dict[str, dict[str, tuple[float, float]]]] = {
    "cifar10": {
        "baseline": _numbers("93.89+-.06 93.93+-.06 93.51+-.05 94.83+-.32 94.47+-.10 92.89+-.28"),
        "dml": _numbers("94.13+-.37 93.93+-.18 93.91+-.11 94.46+-.24 95.34+-.05 93.26+-.33"),
        "cutmix": _numbers("94.71+-.03 94.59+-.02 94.04+-.20 95.18+-.07 95.11+-.22 93.24+-.12"),
        "cs_kd": _numbers("93.72+-.20 93.54+-.04 93.21+-.18 93.90+-.05 95.03+-.23 92.13+-.27"),
        "ddgsd": _numbers("94.35+-.14 94.27+-.08 94.05+-.04 95.24+-.04 95.29+-.13 93.18+-.21"),
        "kdcl": _numbers("93.67+-.09 93.49+-.08 93.71+-.02 94.91+-.17 94.57+-.10 92.99+-.17"),
        "one": _numbers("93.70+-.29 93.73+-.13 94.03+-.06 95.24+-.16 94.54+-.09 92.92+-.43"),
        "okddip": _numbers("93.57+-.18 93.33+-.25 93.55+-.03 95.21+-.25 94.47+-.18 92.28+-.06"),
        "cutnmix": _numbers("94.84+-.25 94.81+-.06 94.24+-.04 95.76+-.14 95.90+-.01 93.64+-.12"),
    },
    "cifar100": {
        "baseline": _numbers("73.72+-.15 72.83+-.59 71.71+-.24 76.28+-.29 77.71+-.05"),
        "dml": _numbers("75.39+-.13 74.14+-.03 72.66+-.03 77.90+-.01 79.57+-.05 72.36+-.05"),
        "cutmix": _numbers("75.43+-.22 74.34+-.03 72.69+-.30 78.58+-.08 79.43+-.19 71.74+-.30"),
        "cs_kd": _numbers("74.53+-.30 73.59+-.70 70.85+-.33 76.79+-.24 78.39+-.20 70.50+-.40"),
        "ddgsd": _numbers("75.65+-.04 75.32+-.01 73.68+-.23 77.45+-.17 79.17+-.08 72.32+-.32"),
        "kdcl": _numbers("73.04+-.04 72.19+-.07 72.26+-.04 78.37+-.22 79.49+-.01 72.16+-.71"),
        "one": _numbers("73.33+-.03 72.09+-.02 73.71+-.93 78.91+-.19 78.62+-.24 71.45+-.02"),
        "okddip": _numbers("73.97+-.07 71.71+-.14 72.34+-.06 78.17+-.16 79.34+-.20 70.62+-.01"),
        "cutnmix": _numbers("76.56+-.28 75.68+-.20 73.84+-.25 79.32+-.35 80.09+-.07 72.64+-.12"),
    },
}
TABLE2 = {
    "cutnmix_dml": (78.38, 0.25),
    "cutnmix_mmd": (78.74, 0.13),
    "cutnmix_pt": (78.65, 0.08),
    "cutnmix": (79.32, 0.35),
}

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
    epochs: int = EPOCHS

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
      epochs: instead of the recipe's 240, with its milestones and ramp-ups in proportion; 0 keeps them.
      mini: the embedded data, a tiny network and few epochs.
      data_dir: passed on.
      runs: the folder of all runs.
    """

    table: str
    datasets: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    epochs: int = 0
    mini: bool = False
    data_dir: str = ""
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
    _check_names("backbones", backbones, [name for name in networks.names() if _file(name).is_file()])
    _check_names("methods", variants, known)
    if set(variants) & set(TAUGHT) and "baseline" not in variants:
        variants = ("baseline", *variants)
    variants = tuple(sorted(variants, key=lambda variant: variant in TAUGHT))
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
            raise UsageError(f"--{flag}: no {name!r}; {nearest(name, known)}")


def _file(backbone: str) -> Path:
    return CONFIGS / ("quickstart.py" if backbone == "resnet8" else f"{backbone}.py")


def _cell(choice: Choice, dataset: str, backbone: str, variant: str, seed: int) -> Cell:
    row, changes = (variant, {}) if variant in methods.rows_by_name() else ABLATIONS[variant]
    folder = choice.runs / dataset / backbone

    def workdir(name: str) -> Path:
        return folder / name.replace(" = ", "").replace(" ", "_") / f"seed{seed}"

    teacher = _cell(choice, dataset, backbone, "baseline", seed) if row in TAUGHT else None
    fields: dict[str, object] = {"seed": seed} | changes
    if choice.data_dir:
        fields["data_dir"] = choice.data_dir
    if teacher:
        fields["teacher"] = teacher.workdir
    epochs = choice.epochs or (MINI_EPOCHS if choice.mini else EPOCHS)
    # Always given, because a backbone's file may have a shorter recipe of its own.
    fields["epochs"] = epochs
    fields["optimizer.milestones"] = _milestones(epochs)
    if methods.row(row).ramp_up:
        fields["ramp_up.epochs"] = max(1, epochs * RAMP_UP // EPOCHS)
    arguments = (
        f"--config={_file(backbone)}:{dataset},{row}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
        f"--workdir={workdir(variant)}",
    )
    return Cell(dataset, backbone, row, variant, seed, workdir(variant), arguments, teacher, epochs)


def _milestones(epochs: int) -> str:
    """The recipe's milestones in proportion, as a tuple on the command line; none where they fall together."""
    scaled = sorted({milestone * epochs // EPOCHS for milestone in (150, 180, 210)} - {0})
    return "(" + "".join(f"{milestone}," for milestone in scaled) + ")"


def paper_number(choice: Choice, cell: Cell) -> tuple[float, float] | None:
    """Mean and deviation in % that the paper has for a cell; None where it has none."""
    if choice.table == "table2" and (cell.dataset, cell.backbone) == ("cifar100", "resnet110"):
        return TABLE2.get(cell.variant)
    return TABLE1.get(cell.dataset, {}).get(cell.variant, {}).get(cell.backbone)


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
