"""Does a ranking of a plain folder agree with the committed table? Fashion-MNIST as image files, and the laptop models.

    python -m benchmarks.rank_fashion_mnist [--folder FOLDER] [--out runs] [--report FILE]

Fashion-MNIST is written as a folder of PNG files with class folders (unless FOLDER is there), and `python -m evaluations rank`
ranks every finished run of its models below ``--out`` on it. Each model's score stands beside the mean of its committed records:
rank correlation, and all pairs of models that both sides tell apart, with those that they order differently. Two models are told
apart where their intervals of 95 % do not overlap: for the ranking over test images; for the table over test images and over
pre-training seeds together (the root of the sum of squares of half the interval for images and 1.96 standard deviations).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluations import protocol
from evaluations.rank import rank
from results.store import RecordStore
from zoo import data
from zoo.errors import UserError, guard

from .quality_study import correlation

COMPARED = {"knn_folder": "knn_fashion_mnist", "ridge_folder": "linear_fashion_mnist"}
TITLES = {"knn_folder": "Nearest neighbours", "ridge_folder": "Ridge regression, beside the table's linear probe"}


@dataclass(frozen=True)
class Pairing:
    """A model's top1 in percent: on the folder and in the committed table, each with the ends of its interval of 95 %."""

    model: str
    rank: int
    folder: float
    ends: tuple[float, float]
    table: float
    table_ends: tuple[float, float]
    seeds: int


def write_folder(folder: Path) -> None:
    """Fashion-MNIST below ``folder`` as <part>/<class>/<number>.png; nothing where the folder exists."""
    if folder.is_dir():
        return
    for part in ("train", "test"):
        source: Any = data.open_source("fashion_mnist", part)
        for i, label in enumerate(source.labels):
            place = folder / part / source.classes[int(label)].replace("/", "-")
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(source.array[i])).save(place / f"{i:05}.png", compress_level=1)


def pairings(ranked: Mapping[str, Any], store: RecordStore, kind: str) -> list[Pairing]:
    """Every model of the ranking (rank.json) with its committed records, in the order of the ranking. UserError when one has none."""
    found = []
    for row in ranked["models"]:
        model = Path(row["model"]).parent.name
        name = COMPARED[kind]
        summary = store.summary(model, name, protocol.load(name).version, "top1")
        if summary is None:
            raise UserError(f"{model}: no committed record of {name}; python -m results fill fashion_mnist")
        here = row["measured"][kind]["top1"]
        half = math.hypot(summary.images or 0, 1.96 * (summary.sd or 0))
        low, high = here["interval"]
        ends = (summary.value - half, summary.value + half)
        found.append(Pairing(model, row["rank"], here["value"], (low, high), summary.value, ends, summary.seeds))
    return found


def apart(one: tuple[float, float], two: tuple[float, float]) -> int:
    """1 or -1 where interval ``one`` lies above or below ``two``; 0 where they overlap."""
    return (one[0] > two[1]) - (one[1] < two[0])


def orders(rows: Sequence[Pairing]) -> tuple[int, int, int, list[tuple[Pairing, Pairing]]]:
    """Pairs that the folder tells apart, that the table does, that both do, and those of these in opposite orders."""
    each = [(apart(a.ends, b.ends), apart(a.table_ends, b.table_ends), (a, b)) for a, b in combinations(rows, 2)]
    opposite = [pair for here, there, pair in each if here * there < 0]
    return (
        sum(h != 0 for h, _, _ in each),
        sum(t != 0 for _, t, _ in each),
        sum(h * t != 0 for h, t, _ in each),
        opposite,
    )


def section(rows: Sequence[Pairing], kind: str) -> list[str]:
    value, low, high = correlation(np.array([r.folder for r in rows]), np.array([r.table for r in rows]))
    here, there, both, opposite = orders(rows)
    lines = [
        f"## {TITLES[kind]}",
        "",
        f"- {kind} against {COMPARED[kind]}: Spearman's rank correlation of {len(rows)} models {value:+.2f} [{low:+.2f}, {high:+.2f}] "
        "(bootstrap over the models).",
        f"- Pairs of models: {math.comb(len(rows), 2)}; told apart on the folder {here}, by the table {there}, by both {both}; "
        f"of these in opposite orders: {len(opposite)}.",
        *[
            f"- opposite: {a.model} {a.folder:.1f} and {b.model} {b.folder:.1f} on the folder, {a.table:.1f} and {b.table:.1f} in the table"
            for a, b in opposite
        ],
        "",
        "| model | folder, % | 95 % | table, % | 95 %, images and seeds | seeds of the table |",
        "|:--|--:|:-:|--:|:-:|--:|",
    ]
    for r in sorted(rows, key=lambda r: -r.folder):
        ends = "{:.1f} to {:.1f} | {:.1f} | {:.1f} to {:.1f}".format(*r.ends, r.table, *r.table_ends)
        lines.append(f"| {r.model} | {r.folder:.1f} | {ends} | {r.seeds} |")
    return lines


def report(ranked: Mapping[str, Any], store: RecordStore) -> str:
    """The page as markdown."""
    ranks = ", ".join(f"{row['rank']} {Path(row['model']).parent.name}" for row in ranked["models"])
    lines = [
        "# A ranking of a plain folder against the committed table: Fashion-MNIST",
        "",
        "`python -m benchmarks.rank_fashion_mnist`",
        "",
        f"{len(ranked['models'])} models, one run each (seed 0, the committed recipes), trained anew and ranked on Fashion-MNIST as 70,000 PNG files by "
        "`python -m evaluations rank FOLDER models='*_fashion_mnist'`. The table's numbers are means over pre-training seeds from the committed "
        "records, in which seed 0 is one of them; the test images are the same. Two models are told apart where their intervals do not overlap.",
        "",
        f"Ranks (ties share one): {ranks}.",
        "",
    ]
    for kind in COMPARED:
        lines += [*section(pairings(ranked, store, kind), kind), ""]
    lines += [f"Left out: {place}: {reason}" for place, reason in ranked["left_out"].items()]
    return "\n".join(lines).rstrip() + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rank_fashion_mnist",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", default="fashion_mnist_images", help="of the image files (default %(default)s)")
    parser.add_argument("--out", default="runs", help="where the runs are, and the records go (default %(default)s)")
    parser.add_argument("--report", metavar="FILE", help="write what is printed there as well")
    args = parser.parse_args(argv)
    write_folder(Path(args.folder))
    told = rank(args.folder, {"models": "*_fashion_mnist", "out": args.out})
    page = re.search(r"^page: (.+)$", told, re.MULTILINE)
    assert page is not None, told
    ranked = json.loads((Path(page[1]).parent / "rank.json").read_text(encoding="utf-8"))
    text = report(ranked, RecordStore())
    print(text, end="")
    if args.report:
        Path(args.report).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(guard(main, kept={"": "the folder of images and finished records are"}))  # after Ctrl-C
