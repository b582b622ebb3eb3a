"""Figures as plain SVG text: no drawing library, the same records give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from . import cells
from .published import Catalogue
from .store import Store
from .tables import Built, build, load

INK, FAINT, GRID, FIRST, SECOND = "#1f2933", "#6b7785", "#e3e7eb", "#1666b0", "#9aa5b1"
FONT = "font-family='system-ui, -apple-system, Segoe UI, sans-serif'"
REFERENCES = ("pixels", "random", "supervised")
LAPTOP = ("digits", "fashion_mnist")


@dataclass(frozen=True)
class Point:
    """A measured value with its spread, and the published one where there is one."""

    label: str
    value: float
    sd: float | None
    published: float | None = None


def draw_all(store: Store, catalogue: Catalogue) -> dict[str, str]:
    """File name -> SVG text of every figure."""
    tables = [build(table, store, catalogue) for table in load()]
    panels = [(t.table.title.split(": ")[-1].split(",")[0], linear(t)) for t in tables if t.table.id in LAPTOP]
    return {
        "laptop.svg": whiskers(panels),
        "published_vs_measured.svg": diagonal([p for t in tables for p in pairs(t)]),
    }


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
    """Rows of a table with a published and a measured cell under the same protocol and metric."""
    found = []
    for name, row in built.rows:
        for column, cell in zip(built.table.columns, row, strict=True):
            for other, twin in zip(built.table.columns, row, strict=True):
                same = (column.protocol, column.metric) == (other.protocol, other.metric)
                if cell.fact and twin.summary and same and column.by is None:
                    found.append(Point(name, twin.summary.value, twin.summary.sd, cell.fact.published.value))
    return found


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``."""
    raw = max(high - low, 1e-9) / (most - 1)
    base = 10 ** math.floor(math.log10(raw))
    step = next(base * m for m in (1, 2, 5, 10) if base * m >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    count = math.ceil(high / step - 1e-9) - first
    return [round((first + i) * step, 10) for i in range(count + 1)]


def whiskers(panels: Sequence[tuple[str, Sequence[Point]]]) -> str:
    """One panel per data set: a dot per row with a whisker of one standard deviation to each side, reference rows grey,
    a broken line at random initialisation. Dots, not bars: the axis need not begin at zero to be read rightly."""
    panels = [(title, points) for title, points in panels if points]
    if not panels:
        return _empty("No laptop-scale record yet: run make demo.")
    left, width, gap, line, top = 110, 300, 160, 24, 50
    height = top + line * max(len(points) for _, points in panels) + 50
    parts = []
    for number, (title, points) in enumerate(panels):
        x0, bottom = left + number * (width + gap), top + line * len(points)
        ends = [v for p in points for v in (p.value - (p.sd or 0), p.value + (p.sd or 0))]
        scale = ticks(min(ends) - 1, max(ends) + 1)

        def x(value: float, x0: int = x0, low: float = scale[0], high: float = scale[-1]) -> float:
            return x0 + width * (value - low) / (high - low)

        parts.append(_text(x0, 24, title, size=14, weight="600"))
        for tick in scale:
            parts.append(_line(x(tick), top - 8, x(tick), bottom, GRID))
            parts.append(_text(x(tick), bottom + 16, f"{tick:g}", anchor="middle", fill=FAINT, size=11))
        for point in points:
            if point.label == "random":
                parts.append(
                    _line(x(point.value), top - 8, x(point.value), bottom, SECOND, 1, " stroke-dasharray='3 3'")
                )
        for i, point in enumerate(points):
            y, fill = top + line * i + 9, SECOND if point.label in REFERENCES else FIRST
            parts.append(_text(x0 - 10, y + 4, point.label, anchor="end", size=12))
            if point.sd:
                parts.append(_line(x(point.value - point.sd), y, x(point.value + point.sd), y, fill, 2))
            parts.append(f"<circle cx='{x(point.value):.1f}' cy='{y}' r='4.5' fill='{fill}'/>")
            digits = cells.decimals(point.sd) if point.sd else 1
            at = max(x(point.value + (point.sd or 0)), x(point.value) + 5) + 6
            parts.append(_text(at, y + 4, f"{point.value:.{digits}f}", size=11, fill=FAINT))
    said = "linear probe, test accuracy in percent; whiskers: one standard deviation over pre-training seeds; grey: reference rows"
    parts.append(_text(left, height - 12, said, size=11, fill=FAINT))
    return _svg(
        left + len(panels) * (width + gap) - gap + 70, height, parts, "Laptop-scale models: linear probe with spread"
    )


def diagonal(points: Sequence[Point]) -> str:
    """Published against measured; a model that reaches its published number lies on the line."""
    if not points:
        return _empty("No model with a published number has been measured here yet.")
    values = [v for p in points for v in (p.published, p.value - (p.sd or 0), p.value + (p.sd or 0)) if v is not None]
    scale = ticks(min(values) - 0.5, max(values) + 0.5)
    low, high, left, top, size = scale[0], scale[-1], 70, 40, 400

    def x(value: float) -> float:
        return left + size * (value - low) / (high - low)

    def y(value: float) -> float:
        return top + size * (high - value) / (high - low)

    parts = [_text(left, 24, "Published against measured, percent", size=14, weight="600")]
    for tick in scale:
        parts += [_line(x(tick), top, x(tick), top + size, GRID), _line(left, y(tick), left + size, y(tick), GRID)]
        parts.append(_text(x(tick), top + size + 18, f"{tick:g}", anchor="middle", fill=FAINT, size=11))
        parts.append(_text(left - 8, y(tick) + 4, f"{tick:g}", anchor="end", fill=FAINT, size=11))
    parts.append(_line(x(low), y(low), x(high), y(high), SECOND, 1.5))
    for point in sorted(points, key=lambda p: p.label):
        at = x(point.published or 0)
        if point.sd:
            parts.append(_line(at, y(point.value - point.sd), at, y(point.value + point.sd), FIRST, 1.5))
        parts.append(f"<circle cx='{at:.1f}' cy='{y(point.value):.1f}' r='4' fill='{FIRST}'/>")
        parts.append(_text(at + 8, y(point.value) + 4, point.label, size=11))
    parts.append(_text(left + size / 2, top + size + 38, "published", anchor="middle", size=12))
    parts.append(
        f"<g transform='rotate(-90 20 {top + size / 2:g})'>{_text(20, top + size / 2, 'measured', anchor='middle', size=12)}</g>"
    )
    return _svg(left + size + 160, top + size + 56, parts, "Published against measured")


def _empty(said: str) -> str:
    return _svg(560, 64, [_text(20, 38, said, fill=FAINT)], said)


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:g} {height:g}' width='{width:g}' height='{height:g}' {FONT}>"
    ground = f"<rect width='{width:g}' height='{height:g}' fill='#ffffff'/>"
    return "\n".join([head, f"<title>{escape(title)}</title>", ground, *parts, "</svg>"]) + "\n"


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", fill: str = INK, size: int = 13, weight: str = "400"
) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{fill}' font-size='{size}' font-weight='{weight}'>"
        f"{escape(text)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, more: str = "") -> str:
    ends = f"x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'"
    return f"<line {ends} stroke='{colour}' stroke-width='{width:g}'{more}/>"
