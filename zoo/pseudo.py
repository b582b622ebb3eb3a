"""Released cluster assignments: inside a weight file, as a table, or as lists of (image, cluster) pickled by Python 2."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import fetch
from .errors import UserError
from .heads import Labels
from .reading import read, unpickled


def load(entry: Any) -> Labels:
    """The assignments of an entry that has ``pseudolabels``, checked against the heads and clusters it states."""
    spec = entry.pseudolabels
    if spec.sources:
        file = fetch.path(f"{entry.id}/labels")
        found = {"tensor": tensor, "csv": table, "clusters": clusters}[spec.format](file, spec)
    else:
        found = tensor(fetch.path(entry.id), spec)
    heads, images = found.labels.shape
    if heads != spec.heads or not images:
        raise UserError(
            f"{entry.id}: pseudo-labels of {heads} heads x {images} images; {spec.heads} heads are expected"
        )
    low, high = int(found.labels.min()), int(found.labels.max())
    if low < 0 or (spec.clusters is not None and high >= spec.clusters):
        raise UserError(f"{entry.id}: pseudo-labels from {low} to {high}; 0 to {(spec.clusters or 1) - 1} is expected")
    return found


def tensor(file: Path, spec: Any) -> Labels:
    """(heads, images) under the first of ``spec.keys`` that the file has."""
    tree = read(file)
    key = next((key for key in spec.keys if key in tree), None)
    if key is None:
        raise UserError(f"{file}: no pseudo-labels under {' or '.join(spec.keys)} (it has {', '.join(map(str, tree))})")
    value = tree[key]
    if not isinstance(value, Tensor) or value.is_floating_point() or value.ndim not in (1, 2):
        raise UserError(f"{file}: {key} is not a table of whole numbers")
    return Labels(value.reshape(-1, value.shape[-1]).long())


def table(file: Path, spec: Any) -> Labels:
    """One row per image: a column per head, perhaps a name or a number first, perhaps a header."""
    with file.open(newline="", encoding="utf-8", errors="replace") as stream:
        try:
            dialect: Any = csv.Sniffer().sniff(stream.read(8192), ",;\t ")
        except csv.Error:
            dialect = csv.excel
        stream.seek(0)
        rows = csv.reader(stream, dialect)
        values, names = _rows(rows, file, spec.heads)
    return Labels(torch.tensor(values, dtype=torch.int64).reshape(-1, spec.heads).T.contiguous(), names)


def _rows(rows: Any, file: Path, heads: int) -> tuple[list[int], list[str] | None]:
    values: list[int] = []
    names: list[str] = []
    for number, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and cells[-heads:] == [str(i) for i in range(heads)]):
            continue  # an empty line, or the column numbers that pandas writes
        try:
            numbers = [int(float(cell)) for cell in cells[-heads:]]
        except (ValueError, OverflowError):
            if number == 1:
                continue  # a header
            raise UserError(f"{file}:{number}: {','.join(cells)[:60]!r} is not {heads} whole numbers") from None
        if len(cells) not in (heads, heads + 1):
            raise UserError(
                f"{file}:{number}: {len(cells)} columns; {heads} labels, after a name at most, are expected"
            )
        values += numbers
        names += cells[:-heads]
    if names and len(names) * heads != len(values):
        raise UserError(f"{file}: some rows begin with a name, others do not")
    numbered = all(name == str(i) for i, name in enumerate(names))
    return values, None if numbered else names


def clusters(file: Path, spec: Any) -> Labels:
    """A list of (image path, cluster), in any order, pickled by Python 2 or 3; images in sorted order of their names."""
    try:
        with file.open("rb") as stream:
            content, _ = unpickled(stream, file)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  broken pickles fail with any exception there is
        raise UserError(f"{file}: truncated, damaged or not a pickle ({type(error).__name__})") from None
    pairs = list(content.items()) if isinstance(content, Mapping) else content
    try:
        found = {str(name): int(cluster) for name, cluster in pairs}
    except (TypeError, ValueError):
        raise UserError(f"{file}: not a list of (image, cluster)") from None
    names = sorted(found)
    return Labels(torch.tensor([[found[name] for name in names]], dtype=torch.int64), names)
