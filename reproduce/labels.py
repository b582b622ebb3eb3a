"""python -m reproduce labels RUN --to FILE: the pseudo-labels that a clustering method had given when its last checkpoint was written."""
from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import zoo
from engine import checkpoint
from engine.options import RunOptions
from reproduce import launch
from zoo import data, overrides
from zoo.errors import UserError


def of_run(folder: Path, options: RunOptions) -> tuple[list[str], np.ndarray]:
    """(names, labels): the images of the run's data set and their labels (images, heads) int64, -1 where there is none."""
    if not (folder / "recipe.yaml").exists():
        raise UserError(f"{folder} is no run folder: it has no recipe.yaml; give runs/<id>/<hash>-s<seed>")
    state = checkpoint.load(folder / "checkpoint.pt")
    if state is None:
        raise UserError(f"{folder} has no checkpoint.pt: the run has not come far enough, or the file was removed")
    recipe = zoo.load_recipe(folder / "recipe.yaml")
    source = data.open_source(recipe.dataset, recipe.split, root=options.data)
    method = launch.build(recipe, source)
    method.load_extra_state(state["extra"])
    labels = getattr(method, "labels", None)
    if labels is None:
        raise UserError(f"{recipe.method} keeps no labels of its training images; clustering methods do")
    found = np.asarray(labels, dtype=np.int64).reshape(-1, len(source)).T
    return [source.name(i) for i in range(len(source))], np.where(found < 0, -1, found)


def write(path: Path, names: list[str], labels: np.ndarray) -> None:
    """FILE.csv: image, head0, head1, …   FILE.npz: names, labels (images, heads)."""
    if path.suffix == ".npz":
        np.savez_compressed(path, names=np.array(names), labels=labels)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["image", *(f"head{h}" for h in range(labels.shape[1]))])
            rows.writerows([name, *row] for name, row in zip(names, labels.tolist(), strict=True))
    else:
        raise UserError(f"--to {path}: give a file that ends in .csv or .npz")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m reproduce labels", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="FILE.csv or FILE.npz")
    parser.add_argument("settings", nargs="*", metavar="data=PATH", help="where the data set is, if it is not found")
    args = parser.parse_intermixed_args(argv)
    options, rest = RunOptions.split(overrides.parse(args.settings))
    _only_options(rest)
    if args.to.suffix not in (".csv", ".npz"):
        raise UserError(f"--to {args.to}: give a file that ends in .csv or .npz")
    names, labels = of_run(args.run, options)
    write(args.to, names, labels)
    print(f"{args.to}: {len(names):,} images, {labels.shape[1]} heads, {int((labels < 0).any(1).sum()):,} without a label")
    return 0


def _only_options(rest: Mapping[str, Any]) -> None:
    if rest:
        raise UserError(f"{next(iter(rest))}: the recipe of a run cannot be changed here; only data= may be given")
