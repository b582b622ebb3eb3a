"""Pseudo-labels as files: read from a table, a weight file, a run or the registry; written from a run.

    python -m reproduce labels RUN --to FILE

The formats are those of zoo.labels: FILE.csv has a row per image, its name and a column per head. Labels are joined with the
training images by name; -1 stands for an image without a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zoo
from reproduce.clustering import UNSEEN
from zoo import labels as files
from zoo.data import open_source
from zoo.errors import UserError


@dataclass(frozen=True)
class Spec:
    """Where labels come from, known before they are read: `sizes` are the clusters of each head."""

    text: str
    sizes: tuple[int, ...]
    found: files.Labels | None = (
        None  # all heads of a file or run; None: to be found on the spot (kmeans:K) or fetched (an id)
    )
    columns: tuple[int, ...] | None = None

    @property
    def table(self) -> Tensor | None:
        """(H, N) the chosen heads, in the file's order of images; UNSEEN where an image has no label."""
        if self.found is None:
            return None
        table = _unseen(self.found.labels)
        return table if self.columns is None else table[list(self.columns)]


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
        found = files.read(path)
        if not found.labels.numel() or int(found.labels.max()) < 0:
            raise UserError(f"params.labels={text}: no image in it has a label")
        return _chosen(Spec(text, tuple(max(int(head.max()) + 1, 2) for head in found.labels), found), columns)
    if text not in zoo.models():
        raise UserError(
            f"params.labels={text!r}: not kmeans:K, not a file or run folder that exists, not a model of the registry"
        )
    released = zoo.entry(text).pseudolabels
    if released is None or released.clusters is None:
        raise UserError(f"params.labels={text}: no pseudo-labels were released for it")
    return _chosen(Spec(text, (released.clusters,) * released.heads), columns)


def _chosen(spec: Spec, columns: Sequence[int] | None) -> Spec:
    if columns is None:
        return spec
    if not columns or any(not 0 <= c < len(spec.sizes) for c in columns):
        raise UserError(f"params.columns={list(columns)}: {spec.text} has {len(spec.sizes)} heads, numbered from 0")
    return Spec(spec.text, tuple(spec.sizes[c] for c in columns), spec.found, tuple(columns))


def fetched(spec: Spec, columns: Sequence[int] | None, images: int, source: Any = None) -> Tensor:
    """(H, images) of a Spec that names a file, a run or an id, one column for each image of the training data.

    source  the training data, to join them by name; None: by order, where the labels have no names either
    """
    found = spec.found or zoo.pseudolabels(spec.text)
    what = f"params.labels={spec.text}"
    if source is None:
        if found.images is not None:
            raise UserError(f"{what}: its labels have names, and the training images are not known here")
        table = files.by_name(found, [""] * images, what)
    else:
        table = files.by_name(found, [source.name(i) for i in range(len(source))], what, source.fingerprint)
    table = _unseen(table)
    return table if columns is None else table[list(columns)]


def read(path: Path) -> Tensor:
    """(H, N) int64 labels of a run folder, a checkpoint, a weight file or a table; UNSEEN where there is none."""
    return _unseen(files.read(path).labels)


def _unseen(table: Tensor) -> Tensor:
    return torch.where(table < 0, UNSEEN, table)


def write(table: Tensor, path: Path, images: Sequence[str] | None = None) -> None:
    """(H, N) labels of images by name to .csv, .npz or a file of tensors (zoo.labels); whole or not at all."""
    files.write(path, table, images)


def names_of(run: Path, data: str | None) -> list[str] | None:
    """The names of the images that a run was trained on, in its order; None for a folder that does not say what they were."""
    if not (run / "recipe.yaml").is_file():
        return None
    recipe = zoo.load_recipe(run / "recipe.yaml")
    try:
        source = open_source(recipe.dataset, recipe.split, root=data, max_bad=recipe.max_bad)
    except UserError as error:
        raise UserError(
            f"{run}: the names of its images are needed, and they cannot be opened: {error}. "
            f"Say where they are: python -m reproduce labels {run} --to FILE --data FOLDER"
        ) from None
    recorded = files.read(run).fingerprint
    if recorded not in (None, source.fingerprint):
        raise UserError(
            f"{run}: it was trained on other images than those of {source.home or recipe.dataset}; --data FOLDER names the right ones"
        )
    return [source.name(i) for i in range(len(source))]


def export(run: Path, to: Path, data: str | None = None) -> str:
    """Write the labels of run folder ``run`` to file ``to``; returns what was written and the command that trains from it.

    data   folder of the run's images, for their names; None: as the run's recipe finds them
    Raises UserError: no such run, no folder for the file, a run without labels.
    """
    if not run.exists():
        raise UserError(f"{run}: no such run folder; python -m reproduce ID makes one under runs/")
    if not to.parent.is_dir():
        raise UserError(f"{to.parent}: no such folder")
    table = read(run)
    names = names_of(run, data)
    write(table, to, names)
    missing = int((table < 0).any(0).sum())
    text = (
        f"{to}: {len(table)} heads x {table.shape[1]} images"
        + (f", {missing} of them without a label" if missing else "")
        + ("" if names is not None else ", in their order: the folder has no recipe.yaml, which says what they were")
    )
    recipe = run / "recipe.yaml"
    dataset = zoo.load_recipe(recipe).dataset if recipe.exists() else "digits"
    model = (
        f"pseudolabel_{dataset}"
        if f"pseudolabel_{dataset}" in zoo.models()
        else f"pseudolabel_digits dataset={dataset}"
    )
    return text + f"\nnext: python -m reproduce {model} params.labels={to}" + (f" data={data}" if data else "")
