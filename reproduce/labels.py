"""Pseudo-labels as files: read from a table, a weight file, a run or the registry; written from a run.

    python -m reproduce labels RUN --to FILE

FILE.csv has a row per image and a column per head (the layout of SeLa's released tables), FILE.pth a dictionary whose `labels`
is int64 (heads, images). -1 stands for an image without a label. Images are in the order of the data set.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import zoo
from engine import checkpoint
from reproduce.clustering import UNSEEN
from zoo.errors import UserError

KEYS = ("labels", "L")                    # names under which weight files hold them


@dataclass(frozen=True)
class Spec:
    """Where labels come from, known before they are read: `sizes` are the clusters of each head."""

    text: str
    sizes: tuple[int, ...]
    table: Tensor | None = None           # (H, N); None: to be found on the spot (kmeans:K) or fetched (an id)


def find(text: str, columns: Sequence[int] | None = None) -> Spec:
    """What `text` names: kmeans:K, a run folder, a .csv or weight file, or an id of the registry with released labels.

    columns: heads to take; null for all. Raises UserError for what is none of these.
    """
    if text.startswith("kmeans:"):
        if not text[7:].isdigit() or int(text[7:]) < 2:
            raise UserError(f"params.labels={text}: kmeans:K wants a number of clusters, at least 2")
        return _chosen(Spec(text, (int(text[7:]),)), columns)
    path = Path(text).expanduser()
    if path.exists():
        table = read(path)
        return _chosen(Spec(text, tuple(max(int(head.max()) + 1, 2) for head in table), table), columns)
    if text not in zoo.models():
        raise UserError(f"params.labels={text!r}: not kmeans:K, not a file or run folder that exists, not a model of the registry")
    released = zoo.entry(text).pseudolabels
    if released is None or released.clusters is None:
        raise UserError(f"params.labels={text}: no pseudo-labels were released for it")
    return _chosen(Spec(text, (released.clusters,) * released.heads), columns)


def _chosen(spec: Spec, columns: Sequence[int] | None) -> Spec:
    if columns is None:
        return spec
    if not columns or any(not 0 <= c < len(spec.sizes) for c in columns):
        raise UserError(f"params.columns={list(columns)}: {spec.text} has {len(spec.sizes)} heads, numbered from 0")
    table = None if spec.table is None else spec.table[list(columns)]
    return Spec(spec.text, tuple(spec.sizes[c] for c in columns), table)


def fetched(spec: Spec, columns: Sequence[int] | None, images: int) -> Tensor:
    """(H, images) of a Spec that names a file or an id, checked against the number of images."""
    table = spec.table
    if table is None:
        table = zoo.pseudolabels(spec.text).labels
        table = table if columns is None else table[list(columns)]
    if table.shape[1] != images:
        raise UserError(f"params.labels={spec.text}: labels of {table.shape[1]} images, the data set has {images}")
    return table


def read(path: Path) -> Tensor:
    """(H, N) int64 labels of a run folder, a checkpoint, a weight file or a .csv; UNSEEN where there is none."""
    if path.is_dir():
        path = path / "checkpoint.pt"
    if path.suffix == ".csv":
        table = _csv(path)
    else:
        try:
            tree: Any = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; labels are in a run's checkpoint.pt") from None
        except Exception as error:  # noqa: BLE001  zip, pickle and tensor errors come in a dozen types
            raise UserError(f"{path} cannot be read: {str(error).splitlines()[0][:120]}") from None
        tree = tree.get("extra", tree) if isinstance(tree, dict) else {}
        found = next((tree[key] for key in KEYS if key in tree), None)
        if not isinstance(found, Tensor) or found.is_floating_point():
            raise UserError(f"{path}: no labels in it; methods that cluster the data set keep some: deepcluster, deepclusterv2, "
                            "deepercluster, sela, selav2, pseudolabel")
        table = found
    table = table.reshape(-1, table.shape[-1]).long()
    return torch.where(table < 0, UNSEEN, table)


def _csv(path: Path) -> Tensor:
    """One row per image: a column per head, perhaps a header of column numbers first."""
    lines = [line.split(",") for line in path.read_text().split()]
    header = int(bool(lines) and lines[0] == [str(i) for i in range(len(lines[0]))] and len(lines) > 1 and len(lines[0]) > 1)
    try:
        table = np.array(lines[header:], dtype=np.float64)
    except ValueError:
        raise UserError(f"{path}: not a table of whole numbers with a row per image and a column per head") from None
    if table.ndim != 2 or not len(table) or (table != np.floor(table)).any():
        raise UserError(f"{path}: not a table of whole numbers with a row per image and a column per head")
    return torch.from_numpy(table.T.astype(np.int64).copy())


def write(table: Tensor, path: Path) -> None:
    """(H, N) labels to .csv or to a file of tensors; whole or not at all."""
    table = torch.where(table < 0, -1, table)
    if path.suffix == ".csv":
        checkpoint.write_text(path, "".join(",".join(map(str, row)) + "\n" for row in table.T.tolist()))
    else:
        checkpoint.write_tensors(path, {"labels": table})


def main(argv: list[str] | None = None) -> int:
    """python -m reproduce labels RUN --to FILE."""
    from zoo.cli import Parser

    parser = Parser(prog="python -m reproduce labels", description="Write the pseudo-labels that a run has come to.")
    parser.add_argument("run", type=Path, help="a run folder of a clustering method")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help=".csv: a row per image; else a file of tensors")
    args = parser.parse_args(argv)
    if not args.run.exists():
        raise UserError(f"{args.run}: no such run folder; python -m reproduce ID makes one under runs/")
    if not args.to.parent.is_dir():
        raise UserError(f"{args.to.parent}: no such folder")
    table = read(args.run)
    write(table, args.to)
    missing = int((table < 0).any(0).sum())
    print(f"{args.to}: {len(table)} heads x {table.shape[1]} images" + (f", {missing} of them without a label" if missing else ""))
    recipe = args.run / "recipe.yaml"
    dataset = zoo.load_recipe(recipe).dataset if recipe.exists() else "digits"
    model = f"pseudolabel_{dataset}" if f"pseudolabel_{dataset}" in zoo.models() else f"pseudolabel_digits dataset={dataset}"
    print(f"next: python -m reproduce {model} params.labels={args.to}")
    return 0
