"""The pictures of the site, drawn anew by `scripts/docs --pictures`.

Photographs: a temple and a flower by danielbuechele and vultilion (CC BY 2.0), from scikit-learn; Grace Hopper, by the
United States Navy (public domain), from Matplotlib. Colours are Okabe and Ito's, told apart by colour-blind readers.
"""

import csv
import tomllib
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image
from sklearn.datasets import load_sample_images

import cutnmix_jax
from cutnmix_jax import augment, crops
from cutnmix_jax.benchmark import report
from cutnmix_jax.paper import figures
from cutnmix_jax.paper.cells import TABLES, Choice, cells_of
from cutnmix_jax.paper.grids import Found
from cutnmix_jax.pictures import COLOURS, save

HERE = Path(__file__).parent
SEED = 73  # a draw in which each picture has another one for a partner
NAMES = ("temple", "flower", "portrait")
BLUE, ORANGE, GREEN, YELLOW = COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[7]


def photographs(size: int) -> np.ndarray:
    """Three pictures that come with what is installed: [3, size, size, 3] uint8."""
    temple, flower = map(Image.fromarray, load_sample_images().images)
    hopper = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    squares = (temple.crop((0, 20, 407, 427)), flower.crop((120, 0, 547, 427)), hopper.crop((0, 0, 512, 512)))
    return np.stack([np.asarray(one.resize((size, size), Image.Resampling.LANCZOS)) for one in squares])


class Seen(NamedTuple):
    """What J peers see of n pictures.

    Attributes:
      views: [J, n, H, W, 3], each peer's own crops.
      mixed: of them.
    """

    views: np.ndarray
    mixed: cutnmix_jax.Mixed


def seen(seed: int, num_peers: int = 2, size: int = 128, box: str = "cutmix") -> Seen:
    """Crops and mixes the photographs as a run does it."""
    images = photographs(size)
    crop_key, mix_key = jax.random.split(jax.random.key(seed))
    views = []
    for key in jax.random.split(crop_key, num_peers):
        drawn = crops.draw_crops(key, len(images), (size, size), kind="pad", flip=True, jitter=(0.0, 0.0, 0.0))
        views.append(np.asarray(crops.cropped(images, drawn)) / 255)
    one_hot = jnp.eye(len(images))
    return Seen(np.stack(views), cutnmix_jax.cutnmix(mix_key, jnp.asarray(np.stack(views)), one_hot, box=box))


def outline(axes: Axes, box: np.ndarray, **style: object) -> None:
    """Draws the edge of a box."""
    top, left, height, width = map(int, box)
    axes.add_patch(
        Rectangle((left - 0.5, top - 0.5), width, height, fill=False, **{"edgecolor": YELLOW, "linewidth": 2.5} | style)
    )


def cutnmix(path: Path) -> None:
    """Each peer's view of three pictures before and after they are mixed."""
    what = seen(SEED)
    how = what.mixed.how
    figure = Figure(figsize=(9.6, 6.6), layout="constrained")
    panels = figure.subplots(2, 3)
    share = float(how.amount[0])
    for j in range(2):
        for i in range(3):
            axes = panels[j, i]
            axes.imshow(np.clip(what.mixed.images[j, i], 0, 1))
            axes.set(xticks=[], yticks=[])
            outline(axes, np.asarray(how.boxes[j]))
            own, partner = NAMES[i], NAMES[int(how.partner[i])]
            axes.set_title(own if own == partner else f"{1 - share:.2f} {own} + {share:.2f} {partner}", fontsize=12)
        panels[j, 0].set_ylabel(f"peer {j}", fontsize=13)
    save(figure, path)


def framework(path: Path) -> None:
    """The method: two views, two boxes of one size, two networks, and what they learn from."""
    what = seen(SEED)
    how = what.mixed.how
    figure = Figure(figsize=(10, 4.33))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 12.4), ylim=(0, 5.2))
    axes.axis("off")
    boxed = {"boxstyle": "round,pad=0.06", "linewidth": 1.6}

    def box(x: float, y: float, width: float, height: float, text: str, colour: str, fontsize: int = 11) -> None:
        axes.add_patch(FancyBboxPatch((x, y), width, height, facecolor="white", edgecolor=colour, **boxed))
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=fontsize)

    def arrow(start: tuple[float, float], end: tuple[float, float], colour: str = "0.3", style: str = "-|>") -> None:
        drawn = {"arrowstyle": style, "color": colour, "linewidth": 1.6, "shrinkA": 2, "shrinkB": 2}
        axes.annotate("", end, start, arrowprops=drawn)

    def picture(x: float, y: float, size: float, image: np.ndarray, edge: np.ndarray | None = None) -> None:
        inset = axes.inset_axes((x, y, size, size), transform=axes.transData)
        inset.imshow(np.clip(image, 0, 1))
        inset.set(xticks=[], yticks=[])
        if edge is not None:
            outline(inset, edge, linewidth=2)

    own, partner = 0, int(how.partner[0])
    for number, y in ((own, 3.0), (partner, 1.0)):
        picture(0.15, y, 1.25, photographs(128)[number] / 255)
    axes.text(0.78, 4.45, "$x_i$", ha="center", fontsize=13)
    axes.text(0.78, 0.72, "$x_k$", ha="center", fontsize=13)
    for j, y in enumerate((3.35, 0.55)):
        middle = y + 0.65
        arrow((1.5, 2.65), (2.1, middle))
        picture(2.2, y + 0.1, 0.95, what.views[j, own])
        picture(3.0, y - 0.15, 0.95, what.views[j, partner])
        arrow((4.05, middle), (4.55, middle))
        picture(4.65, y, 1.3, np.asarray(what.mixed.images[j, own]), np.asarray(how.boxes[j]))
        arrow((6.05, middle), (6.45, middle))
        box(6.5, middle - 0.3, 1.25, 0.6, f"network {j + 1}", BLUE)
        outer = 0.28 if j == 0 else -0.28  # logits lie outside, features inside
        arrow((7.85, middle), (8.95, middle + outer))
        arrow((7.85, middle), (8.95, middle - outer))
        box(9.0, middle + outer - 0.18, 0.95, 0.36, f"logits $z^{j + 1}$", BLUE, 10)
        box(9.0, middle - outer - 0.18, 0.95, 0.36, f"features $f^{j + 1}$", BLUE, 10)
        arrow((10.05, middle + outer), (10.85, middle + outer))
        box(10.95, middle + outer - 0.21, 1.25, 0.42, r"$L_{CE}$ with $\tilde{y}$", GREEN, 11)
    axes.text(3.05, 5.0, "a view for each peer", ha="center", fontsize=11)
    axes.text(5.3, 5.0, r"a box each, one $\lambda$", ha="center", fontsize=11)
    label = f"$\\lambda$ = {float(how.amount[0]):.2f}\n" + r"$\tilde{y} = \lambda y_k + (1-\lambda) y_i$"
    axes.text(5.3, 2.6, label, ha="center", va="center", fontsize=11)
    arrow((9.25, 3.42), (9.25, 1.72), ORANGE, "<|-|>")
    axes.text(9.15, 2.45, r"$L_{MMD}$", ha="right", va="center", fontsize=11, color=ORANGE)
    box(9.9, 2.25, 1.35, 0.4, "peer teacher $g$", ORANGE, 10)
    arrow((9.65, 3.42), (10.1, 2.74))
    arrow((9.65, 1.72), (10.1, 2.16))
    arrow((10.75, 2.74), (9.98, 4.1), ORANGE)
    arrow((10.75, 2.16), (9.98, 1.1), ORANGE)
    axes.text(10.62, 3.4, r"$L_{PT}$", fontsize=11, color=ORANGE)
    arc = {"arrowstyle": "<|-|>", "color": ORANGE, "linewidth": 1.6, "connectionstyle": "arc3,rad=0.28"}
    axes.annotate("", (8.93, 0.92), (8.93, 4.28), arrowprops=arc)
    axes.text(8.38, 2.45, r"$L_{DML}$", ha="right", va="center", fontsize=11, color=ORANGE)
    save(figure, path)


def boxes(path: Path, count: int = 4000, size: int = 32) -> None:
    """How often each pixel is the partner's by each reading of Eq. 7, and how a box lies for two peers."""
    figure = Figure(figsize=(12, 5.0), layout="constrained")
    panels = figure.subplots(2, len(augment.BOX_READINGS))
    keys = jax.random.split(jax.random.key(0), count)
    for column, reading in enumerate(augment.BOX_READINGS):
        drawn, ratio = jax.vmap(lambda key, reading=reading: augment.cutnmix_boxes(key, 2, 1.0, (size, size), reading))(
            keys
        )
        masks = jax.vmap(jax.vmap(lambda box: augment.box_mask(box, (size, size))))(drawn)
        shown = panels[0, column].imshow(masks.mean((0, 1)), vmin=0, vmax=0.75, cmap="cividis")
        panels[0, column].set_title(f"{reading}\nmean $\\lambda$ {float(ratio.mean()):.2f}", fontsize=11)
        wanted = np.array([0.2, 0.1 if reading == "own" else 0.2])  # a draw that shows what sets it apart
        example = int(np.argmin(np.abs(np.asarray(ratio) - wanted).sum(1)))
        both = masks[example]
        picture = jnp.ones((size, size, 3)) * 0.93
        for mask, colour in zip(both, (BLUE, ORANGE), strict=True):
            rgb = jnp.asarray(matplotlib.colors.to_rgb(colour))
            picture = jnp.where(mask[..., None], 0.5 * picture + 0.5 * rgb, picture)
        panels[1, column].imshow(picture)
        for axes in panels[:, column]:
            axes.set(xticks=[], yticks=[])
        shares = ratio[example]
        text = f"$\\lambda$ {float(shares[0]):.2f}" + ("" if shares[0] == shares[1] else f" and {float(shares[1]):.2f}")
        areas = augment.area(drawn[example], (size, size))
        panels[1, column].set_xlabel(f"{text}\nareas {float(areas[0]):.2f}, {float(areas[1]):.2f}", fontsize=10)
    panels[0, 0].set_ylabel("how often a pixel\nis the partner's", fontsize=11)
    panels[1, 0].set_ylabel("two peers' boxes,\none draw", fontsize=11)
    figure.colorbar(shown, ax=panels[0], shrink=0.9, pad=0.01)
    save(figure, path)


def layers(path: Path) -> None:
    """The layers of the package as `pyproject.toml` has them, which import-linter holds the code to."""
    contracts = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rows = next(one["layers"] for one in contracts if one.get("exhaustive"))
    figure = Figure(figsize=(9, 0.36 * len(rows) + 0.3))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 9), ylim=(-len(rows), 0.4))
    axes.axis("off")
    for number, row in enumerate(rows):
        names = [name.strip() for name in row.split("|")]
        width = 7.7 / len(names)
        for place, name in enumerate(names):
            corner = (1.2 + place * width + 0.04, -number - 0.76)
            colour = BLUE if name in ("engine", "methods", "losses", "main", "training") else "0.6"
            edge = {"facecolor": "white", "edgecolor": colour, "linewidth": 1.8 if colour == BLUE else 1}
            rounded = "round,pad=0,rounding_size=0.08"
            axes.add_patch(FancyBboxPatch(corner, width - 0.1, 0.72, boxstyle=rounded, **edge))
            axes.text(corner[0] + (width - 0.1) / 2, corner[1] + 0.36, name, ha="center", va="center", fontsize=9)
    style = {"arrowstyle": "-|>", "color": "0.3", "linewidth": 1.5}
    axes.annotate("", (0.85, -len(rows) + 0.3), (0.85, 0.0), arrowprops=style)
    axes.text(0.55, -len(rows) / 2, "imports go down", rotation=90, ha="center", va="center", fontsize=10)
    save(figure, path, dpi=130)


def growth(path: Path) -> None:
    """Step time and memory over peers, batch, images and classes: the table of `performance.md`."""
    text = (HERE / "performance.md").read_text().partition("\n## Growth\n")[2].partition("\n![growth]")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    sweeps: dict[str, dict[float, dict[str, float]]] = {}
    for name, *cells in rows:
        if name in ("num_peers", "batch_size", "images", "classes"):
            values = [float(cell) for cell in cells if cell]
            sweeps[name] = found = {value: {} for value in values}
        for key, label in (("step_ms", "ms per step (std)"), ("memory_mib", "memory, MiB")):
            if name == label:
                for value, cell in zip(values, cells, strict=False):
                    found[value][key] = float(cell.partition(" ")[0])
    report.growth_picture(path, sweeps, "ResNet-8, cutnmix, 2 CPU cores, n = 3 windows of 4 steps")


def mini_table(path: Path, name: str) -> None:
    """The picture of a table of the preset mini, from the means and deviations that its CSV file has."""
    kept = list(csv.DictReader((HERE / "mini" / f"{name}_mini.csv").open()))
    assert all(line["n"] == "3" for line in kept)
    cells = {cell.variant: cell for cell in cells_of(Choice(name, mini=True))}
    grid = {}
    for line in kept:
        cell, mean, std = cells[line["method"]], float(line["last_mean"]), float(line["last_std"])
        last = (mean - std, mean, mean + std)  # three numbers that have this mean and this deviation
        grid[cell.dataset, cell.backbone, cell.variant] = Found(cell, (95, 96, 97), last, last, None, ())
    figures.accuracies(path, f"{TABLES[name].title} (mini: no reproduction)", grid)


def main() -> None:
    """Draws all of them: into `docs/pictures`, `docs` and `docs/mini`."""
    for draw in (cutnmix, framework, boxes, layers):
        draw(HERE / "pictures" / f"{draw.__name__}.png")
    growth(HERE / "growth.png")
    mini_table(HERE / "mini" / "table1_mini.png", "table1")
    mini_table(HERE / "mini" / "table2_mini.png", "table2")
    mini_table(HERE / "mini" / "fig1_mini_accuracy.png", "fig1")


if __name__ == "__main__":
    main()
