"""Figures of the records, drawn by matplotlib as SVG: the same records and the same matplotlib give the same bytes.

Every file carries a digest of the numbers that it shows, so that a figure drawn by another version of matplotlib, whose
bytes differ, can still be checked against the records (``agrees``).
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from . import cells
from .published import Catalogue
from .store import RecordStore
from .tables import Built, build, load

INK, FAINT, GRID, FIRST, SECOND = "#1f2933", "#5b6773", "#e3e7eb", "#1666b0", "#8794a1"
REFERENCES = ("pixels", "random", "supervised")
LAPTOP = ("digits", "fashion_mnist")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "selfzoo",  # element ids are otherwise random
    "svg.fonttype": "none",  # text stays text: selectable, searchable, small
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "axes.grid": True,
    "grid.color": GRID,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}
_DIGEST = re.compile(r"numbers ([0-9a-f]{16}), Matplotlib ([\w.+-]+)")


@dataclass(frozen=True)
class Point:
    """A measured value with its spread, and the published one where there is one (all in percent)."""

    label: str
    value: float
    sd: float | None
    published: float | None = None


def draw_all(store: RecordStore, catalogue: Catalogue) -> dict[str, str]:
    """File name -> SVG text of every figure."""
    tables = [build(table, store, catalogue) for table in load()]
    panels = [(t.table.title.split(": ")[-1].split(",")[0], linear(t)) for t in tables if t.table.id in LAPTOP]
    both = [p for t in tables for p in pairs(t)]
    with matplotlib.rc_context(STYLE):
        return {
            "laptop.svg": svg(whiskers(panels), panels),
            "published_vs_measured.svg": svg(diagonal(both), both),
        }


def agrees(have: str, wanted: str) -> bool:
    """Whether a file shows the numbers of ``wanted``: equal bytes, or equal numbers drawn by another matplotlib."""
    old, new = _DIGEST.search(have), _DIGEST.search(wanted)
    return have == wanted or bool(old and new and old[1] == new[1] and old[2] != new[2])


def linear(built: Built) -> list[Point]:
    """The first measured column of a laptop-scale table."""
    first = next(i for i, c in enumerate(built.table.columns) if c.kind == "measured")
    suffix = f"_{built.table.id}"
    return [
        Point(name.removesuffix(suffix), cell.summary.value, cell.summary.sd)
        for name, row in built.rows
        if (cell := row[first]).summary
    ]


def pairs(built: Built) -> list[Point]:
    """Rows of a table with a published and a measured cell of the same metric, both under the same protocol."""
    found = []
    for name, row in built.rows:
        for column, cell in zip(built.table.columns, row, strict=True):
            for other, twin in zip(built.table.columns, row, strict=True):
                same = (column.protocol, column.metric) == (other.protocol, other.metric)
                if not (cell.fact and twin.summary and same and column.by is None):
                    continue
                if cell.fact.published.protocol == twin.summary.protocol:
                    found.append(Point(name, twin.summary.value, twin.summary.sd, cell.fact.published.value))
    return found


def whiskers(panels: Sequence[tuple[str, Sequence[Point]]]) -> Figure:
    """One panel per data set: a dot per row with a whisker of one standard deviation to each side, reference rows grey,
    a broken line at random initialisation. Dots, not bars: the axis need not begin at zero to be read correctly."""
    panels = [(title, points) for title, points in panels if points]
    if not panels:
        return empty("No laptop-scale record yet: run make demo.")
    rows = max(len(points) for _, points in panels)
    figure = Figure(figsize=(5.2 * len(panels), 0.27 * rows + 1.2), layout="constrained")
    for axes, (title, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.set_title(title)
        for y, point in enumerate(points):
            colour = SECOND if point.label in REFERENCES else FIRST
            axes.errorbar(point.value, y, xerr=point.sd or None, fmt="o", color=colour, markersize=6, linewidth=2)
            digits = cells.decimals(point.sd) if point.sd else 1
            axes.annotate(
                f"{point.value:.{digits}f}",
                (point.value + (point.sd or 0), y),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                color=FAINT,
            )
            if point.label == "random":
                axes.axvline(point.value, color=SECOND, linestyle="--", linewidth=1)
        axes.set_yticks(range(len(points)), [point.label for point in points], color=INK)
        axes.set_ylim(len(points) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.14)
        axes.set_xlabel("linear probe, test accuracy in percent")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
    figure.supxlabel(
        "whiskers: one standard deviation over pre-training seeds; grey: reference rows", size=8, color=FAINT
    )
    return figure


def diagonal(points: Sequence[Point]) -> Figure:
    """Published against measured; a model that reaches its published number lies on the line."""
    if not points:
        return empty("No model with a published number has been measured here yet.")
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title("Published against measured, percent")
    for point in sorted(points, key=lambda p: p.label):
        axes.errorbar(point.published or 0, point.value, yerr=point.sd or None, fmt="o", color=FIRST, markersize=5)
        axes.annotate(
            point.label, (point.published, point.value), xytext=(7, 0), textcoords="offset points", va="center"
        )
    ends = [v for p in points for v in (p.published, p.value - (p.sd or 0), p.value + (p.sd or 0)) if v is not None]
    limits = (min(ends) - 0.5, max(ends) + 0.5)
    axes.plot(limits, limits, color=SECOND, linewidth=1.2, zorder=0)
    axes.set(xlim=limits, ylim=limits, xlabel="published", ylabel="measured", aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def empty(sentence: str) -> Figure:
    figure = Figure(figsize=(6, 0.7))
    figure.text(0.03, 0.5, sentence, color=FAINT, va="center")
    return figure


def svg(figure: Figure, shown: object) -> str:
    """The figure as SVG text, with a digest of ``shown`` (what it was drawn from) in its description."""
    numbers = hashlib.sha256(repr(shown).encode()).hexdigest()[:16]
    said = {"Date": None, "Creator": None, "Description": f"numbers {numbers}, Matplotlib {matplotlib.__version__}"}
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer := io.StringIO(), format="svg", metadata=said)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
