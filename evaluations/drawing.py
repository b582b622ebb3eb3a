"""Drawing of evaluations/pictures.py by matplotlib: what is told by colour is told by form, place or words as well.

Frames have the colour of an image's class, broken where the class is not that of the image asked, or of the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from engine import rng

from . import pictures
from .pictures import POINTS, SHOWN_CLASSES, TILES, Shown

INK, FAINT, GRID = "#1f2933", "#5b6773", "#e3e7eb"
MARKS = "osD^v<>PX*"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.facecolor": "white",  # also on a dark page
}
WRITTEN = 15  # clusters and classes up to which a cell's number is written into it


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def colour(label: int) -> Any:
    return matplotlib.colormaps["tab10"](label % 10)


def _short(text: str, length: int = 14) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _tile(axes: Any, image: Any, label: int, agrees: bool) -> None:
    image = image.convert("RGB")
    axes.imshow(np.asarray(image), interpolation="nearest", aspect="auto" if image.width != image.height else "equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(edgecolor=colour(label), linewidth=3, linestyle="-" if agrees else (0, (2, 1.6)))


def _sheet(rows: int, columns: int) -> tuple[Figure, Any]:
    figure = _figure(0.72 * columns + 1.6, 0.86 * rows + 0.7)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    return figure, grid


def neighbours(shown: Shown) -> Figure:
    """One row per image asked: the image, then the training images most like it, with their cosines."""
    asked, index, cosine = shown.neighbours()
    with matplotlib.rc_context(STYLE):
        figure, grid = _sheet(len(asked), 1 + index.shape[1])
        for row, i in enumerate(asked):
            label = int(shown.truth[i])
            axes = grid[row, 0]
            axes.axis("on")
            _tile(axes, shown.images.image(int(i)), label, True)
            axes.set_xlabel("asked", size=7, labelpad=1, weight="bold")
            axes.set_ylabel(f"class {_short(shown.classes[label])}", rotation=0, ha="right", va="center")
            for column, j in enumerate(index[row]):
                other = int(shown.keys.labels[j])
                axes = grid[row, 1 + column]
                axes.axis("on")
                _tile(axes, shown.keys.image(int(j)), other, other == label)
                axes.set_xlabel(f"{cosine[row, column]:.3f}", size=7, labelpad=1)
        figure.suptitle(f"Nearest training images: {shown.title}", x=0.01, ha="left", weight="bold")
        figure.supxlabel(
            "left: the image asked; below each other one its cosine; frame: class, broken where it is another",
            size=8,
            color=FAINT,
        )
    return figure


def montage(shown: Shown, how: str) -> Figure:
    """One row per cluster; "purity": purest first, images nearest to the centroid; "random": any clusters and images."""
    rows = shown.rows(how)
    share = pictures.purity(shown.table)
    with matplotlib.rc_context(STYLE):
        figure, grid = _sheet(len(rows), TILES)
        for row, cluster in enumerate(rows):
            most = int(shown.table[cluster].argmax())
            for column, i in enumerate(shown.members(int(cluster), typical=how == "purity")):
                label = int(shown.truth[i])
                axes = grid[row, column]
                axes.axis("on")
                _tile(axes, shown.images.image(int(i)), label, label == most)
                if column == 0:
                    name = _short(shown.classes[most])
                    said = f"class {name}\n{100 * share[cluster]:.0f} % of {shown.table[cluster].sum():,}"
                    axes.set_ylabel(said, rotation=0, ha="right", va="center")
        what = "purest first, most typical images" if how == "purity" else "in random order, any of their images"
        figure.suptitle(f"Clusters, {what}: {shown.title}", x=0.01, ha="left", weight="bold")
        said = "left: largest class, its share, images; frame: class, broken where it is not the cluster's largest"
        figure.supxlabel(said, size=8, color=FAINT)
    return figure


def confusion(shown: Shown) -> Figure:
    """Clusters by classes, as shares of each cluster; the number of images in each cell where there is room."""
    order = pictures.by_class(shown.table)
    table = shown.table[order]
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    clusters, classes = table.shape
    with matplotlib.rc_context(STYLE):
        figure = _figure(min(12, 0.45 * classes + 2.6), min(12, 0.36 * clusters + 1.6))
        axes = figure.subplots()
        picture = axes.imshow(100 * share, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        figure.colorbar(picture, ax=axes, label="percent of the cluster's images")
        if max(clusters, classes) <= WRITTEN:
            for row, column in np.argwhere(table):
                ink = "white" if share[row, column] > 0.55 else INK
                axes.text(column, row, f"{table[row, column]}", ha="center", va="center", color=ink, size=8)
        if clusters <= 40:
            axes.set_yticks(range(clusters), [str(c) for c in order])
        if classes <= 40:
            names = [_short(name) for name in shown.classes]
            axes.set_xticks(range(classes), names, rotation=90 if max(map(len, names)) > 3 else 0)
        axes.set(xlabel="class (number of images in each cell)", ylabel="cluster, by its largest class")
        axes.set_title(f"Clusters and classes:\n{shown.title}")
    return figure


def scatter(shown: Shown) -> Figure:
    """Features on their first two principal components: a colour and a mark for each class."""
    points, share = pictures.plane(shown.x)
    common = np.sort(np.argsort(-np.bincount(shown.truth, minlength=len(shown.classes)), kind="stable")[:SHOWN_CLASSES])
    chosen = rng.permutation(shown.seed, "plane", 0, len(points))[:POINTS]
    with matplotlib.rc_context(STYLE):
        figure = _figure(7.2, 5.4)
        axes = figure.subplots()
        for place, label in enumerate(common):
            own = points[chosen[shown.truth[chosen] == label]]
            name = _short(shown.classes[label])
            axes.scatter(
                own[:, 0],
                own[:, 1],
                s=20,
                color=colour(int(label)),
                marker=MARKS[place],
                label=name,
                alpha=0.75,
                linewidths=0,
            )
            if len(own):
                middle = np.median(own, axis=0)
                axes.text(middle[0], middle[1], name, weight="bold", ha="center", va="center",
                          bbox={"facecolor": "white", "edgecolor": colour(int(label)), "pad": 1.5, "alpha": 0.85})  # fmt: skip
        left_out = len(shown.classes) - len(common)
        axes.set_title(f"Features: {shown.title}" + (f"\n(the {len(common)} largest classes)" if left_out > 0 else ""))
        names = [f"principal component {n + 1} ({100 * s:.0f} % of the variance)" for n, s in enumerate(share)]
        axes.set(xlabel=names[0], ylabel=names[1])
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title="class (label: median)")
    return figure


def layers(model: str, found: Mapping[str, Sequence[tuple[str, float, float]]]) -> Figure:
    """Accuracy of a probe on each layer, one line per protocol; whiskers: one standard deviation over the records."""
    names = list(dict.fromkeys(layer for points in found.values() for layer, _, _ in points))
    at = {name: [(float(names.index(layer)), v, s) for layer, v, s in points] for name, points in found.items()}
    figure = _lines(f"Accuracy by layer: {model}", at, "layer, input to output")
    figure.axes[0].set_xticks(range(len(names)), names)
    return figure


def epochs(model: str, found: Mapping[str, Sequence[tuple[int, float, float]]], images: int | None) -> Figure:
    """Accuracy against pre-training, by the epochs whose weights were kept and measured. images: in an epoch, where known."""
    along = f"epochs (of {images:,} images)" if images else "epochs"
    figure = _lines(f"Accuracy while pre-training: {model}", found, along)
    figure.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _lines(title: str, found: Mapping[str, Sequence[tuple[float, float, float]]], along: str) -> Figure:
    """One line per protocol through its points (place, accuracy, standard deviation)."""
    with matplotlib.rc_context(STYLE):
        figure = _figure(6.4, 4)
        axes = figure.subplots()
        for number, (name, points) in enumerate(found.items()):
            at, values, spread = zip(*points, strict=True)
            axes.errorbar(at, values, yerr=spread, color=colour(number), marker=MARKS[number % 10],
                          linestyle=("-", "--", ":", "-.")[number % 4], label=name)  # fmt: skip
        axes.set(xlabel=along, ylabel="test accuracy in percent")
        axes.set_title(title)
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure
