"""Test for transductive evaluation: did pre-training read test images, without labels? Images are compared, never names of splits.

Splits of one data set are compared by rule and by position: ``val`` lies inside ``train``, ``first2k`` shares its images with
``train``, ``trainval`` holds ``val``. Images of a user's own, and two data sets that may hold the same files (VOC07 inside 07+12),
are compared on disk: the same file, or a file of the same bytes. What pre-training read must be on this machine for that; a
run folder knows the fingerprint of it, so another folder is not taken for it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import zoo
from zoo import data
from zoo.data.source import OWN
from zoo.data.specs import is_path
from zoo.errors import UserError

MOST = 1_000  # images of a split that are hashed to be looked for in another one, evenly spaced
CANDIDATES = 5_000  # images of the same size that are hashed in the other one
_COMMON: dict[tuple[str, str], bool] = {}


def saw(model: Any, test: Any, dataset: str, split: str, root: str | None) -> bool:
    """True when ``model`` (evaluations.inputs.models.Model) or the weights that it started from were trained on an image of ``test``.

    test  the opened source that is judged on: ``split`` of ``dataset``, found below ``root`` where that was said
    """
    return any(_shares(place, recipe, test, dataset, split, root) for place, recipe in _lineage(model))


def _lineage(model: Any) -> Iterator[tuple[Path, Any]]:
    """(run folder or nothing of the kind, recipe) of the model, of the weights that its recipe starts from, and so on."""
    place, recipe = Path(model.place), model.recipe
    for _ in range(8):
        yield (place if place.is_dir() else place.parent), recipe
        begun = getattr(recipe, "init", None)
        if begun is None:
            return
        place = Path(begun)
        noted = (place if place.is_dir() else place.parent) / "recipe.yaml"
        if noted.is_file():
            recipe = zoo.load_recipe(noted)
        elif begun in zoo.models() and zoo.entry(begun).recipe is not None:
            recipe = zoo.entry(begun).recipe
        else:
            return


def _shares(place: Path, recipe: Any, test: Any, dataset: str, split: str, root: str | None) -> bool:
    trained, part = getattr(recipe, "dataset", None), getattr(recipe, "split", None)
    if trained is None or part is None or getattr(recipe.schedule, "images", None) == 0:
        return False  # nobody released the recipe, or nothing was trained
    named = trained in data.names() and trained not in OWN
    if named and trained == dataset:
        spec = data.describe(dataset)
        ours, theirs = part.partition("@")[0], split.partition("@")[0]
        if spec.part(ours) != spec.part(theirs):
            return bool(spec.covers(ours) & spec.covers(theirs))
    for folder in _folders(trained, named, dataset, root):
        try:
            seen = data.open_source(trained, part, folder, max_bad=getattr(recipe, "max_bad", None), fetch=False)
        except UserError:
            continue
        if named and trained == dataset:  # two splits of one part, within which names are unique
            return not {seen.name(i) for i in range(len(seen))}.isdisjoint(test.name(i) for i in range(len(test)))
        if named or _fingerprint(place) in (None, seen.fingerprint):
            return common(seen, test)
    return False


def _folders(trained: str, named: bool, dataset: str, root: str | None) -> list[str | None]:
    """Where the images of ``trained`` may be: where those that are judged on are, or where they are looked for by name."""
    if is_path(trained) or named and trained != dataset:
        return [None]
    here = root if root is not None else dataset if is_path(dataset) else None
    return list(dict.fromkeys([here, None]))


def _fingerprint(run: Path) -> str | None:
    """Of the images that a run was trained on, as its folder says."""
    try:
        return str(json.loads((run / "provenance.json").read_text())["data"]["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def common(one: data.Source, two: data.Source) -> bool:
    """``overlap`` of two sources, looked for once: a suite asks for each of its protocols."""
    key = one.identity, two.identity
    if key not in _COMMON:
        _COMMON[key] = overlap(one, two)
    return _COMMON[key]


def overlap(one: data.Source, two: data.Source) -> bool:
    """True when an image is in both: the same file, or the same bytes. Of large sets ``MOST`` images are looked for.

    Sets held in memory are compared by their pixels. A file and an array are not compared: their bytes always differ.
    """
    if not _files(one).isdisjoint(_files(two)):
        return True
    if isinstance(one, data.FileSource) and isinstance(two, data.FileSource):
        small, large = sorted((one, two), key=len)
        wanted = np.unique(np.linspace(0, len(small) - 1, min(len(small), MOST)).astype(np.int64))
        alike = np.flatnonzero(np.isin(large.sizes, small.sizes[wanted]) & (large.sizes >= 0))[:CANDIDATES]
        wanted = wanted[np.isin(small.sizes[wanted], large.sizes[alike])]
        return not _hashes(small, wanted).isdisjoint(_hashes(large, alike))
    if isinstance(one, data.FileSource) or isinstance(two, data.FileSource) or one.channels != two.channels:
        return False
    return not _hashes(one, np.arange(len(one))).isdisjoint(_hashes(two, np.arange(len(two))))


def _files(source: Any) -> set[str]:
    """The places of the images on this machine; empty for a set held in memory."""
    where = getattr(source, "where", None)
    return set() if where is None else {os.path.abspath(where(i)) for i in range(len(source))}


def _hashes(source: data.Source, chosen: np.ndarray) -> set[bytes]:
    def content(i: int) -> bytes:
        if isinstance(source, data.FileSource):
            return source.raw(i)
        pixels = source.pixels(i)
        return str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()

    return {hashlib.blake2b(content(int(i)), digest_size=12).digest() for i in chosen}
