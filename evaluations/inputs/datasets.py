"""The data of a protocol: a named set, any folder of images, or any torchvision data set, with a test part of its own.

    dataset=digits                 as zoo/datasets.yaml has it
    dataset=/data/flowers          train/, test/ (or val/, or other usual names: zoo/data/parts.py) below it, each with a folder per
                                   class; or just a folder per class
    dataset=torchvision:FakeData   a class of torchvision.datasets, found below ``data=`` (or downloaded with download=true)

A set without a test part gets one: a fifth of each class, those images whose names hash lowest, the same on every machine.

Every split is opened with the class numbers of the training split: classes are joined by name (zoo/data/classes.py), a class
that only another split has is an error, and one that only the training split has is told once.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine import dist
from zoo import data
from zoo.data import parts
from zoo.data.classes import Classes
from zoo.data.classes import numbers as match
from zoo.data.images import decode, to_mode
from zoo.data.locate import PartMissing, find
from zoo.data.paths import user_cache
from zoo.data.source import held_out
from zoo.data.specs import is_path
from zoo.errors import UserError, suggest

from ..protocol import Protocol, kind_of

TORCHVISION = "torchvision:"
HELD_OUT, REST = "train-held-out", "train-rest"


class TorchvisionSource(data.Source):
    """A torchvision data set whose items are (image, class)."""

    def __init__(self, items: Any, prefix: str, positions: np.ndarray | None = None) -> None:
        self._items, self._prefix = items, prefix
        self._positions = np.arange(len(items)) if positions is None else positions
        labels = _labels(items, prefix)
        classes, self.named = _class_names(items, int(labels.max()) + 1)
        super().__init__(labels[self._positions], classes, channels=3)

    def image(self, i: int) -> Image.Image:
        found = self._items[int(self._positions[self._at(i)])][0]
        if not isinstance(found, Image.Image):
            raise UserError(f"{self._prefix}: item {i} is no image but {type(found).__name__}")
        try:
            return to_mode(found, "RGB")
        except ValueError as error:
            raise data.ImageError(f"{self.where(i)}: cannot be read: {error}") from None

    def name(self, i: int) -> str:
        return f"{self._prefix}-{self._positions[i]:08d}"

    def where(self, i: int) -> str:
        """The file of an image where torchvision's class lists its files, else its name."""
        samples = getattr(self._items, "samples", None)
        return str(samples[int(self._positions[i])][0]) if samples else self.name(i)

    def _digest(self, digest: Any) -> None:
        digest.update(f"{self._prefix} {len(self._items)}".encode())
        digest.update(self._positions.astype("<i8").tobytes())
        for i in range(0, len(self), max(1, len(self) // 16)):  # pixels of a few items stand for all
            digest.update(np.asarray(self.image(i)).tobytes())

    def _take(self, indices: np.ndarray) -> TorchvisionSource:
        part = copy.copy(self)
        for derived in ("fingerprint", "identity"):
            part.__dict__.pop(derived, None)
        part._positions, part._labels, part._length = self._positions[indices], self.labels[indices], len(indices)
        return part


def open_for(
    protocol: Protocol, root: str | None, download: bool = False, fetch: bool = True, max_bad: int | None = None
) -> tuple[Protocol, Callable[[str], Any]]:
    """The protocol with the splits that its data really have, and a function that opens them (and respects seals), each with
    the class numbers of the training split.

    download   a torchvision set may be downloaded (it was asked for); fetch: False: nothing may be, for plans.
    max_bad    how many unreadable images of each split may be left out; None: SELFZOO_MAX_BAD, else none
    """
    found, opened = _open_for(protocol, root, download, fetch, max_bad)
    return found, joined(found, opened)


def joined(protocol: Protocol, opened: Callable[[str], Any]) -> Callable[[str], Any]:
    """``opened`` with the classes of every split in the training split's numbers. What it opens raises UserError when its
    classes are not those of the training split, or when that has one class only."""
    if not kind_of(protocol).labelled:
        return lambda split: opened(split).unlabelled()
    train = protocol.splits.train
    known: list[Classes] = []

    def reference(source: Any = None) -> Classes:
        if not known:
            found = Classes.of(opened(train) if source is None else source)
            if found.names and found.single and found.shown.sum() < 2:
                alone = ", ".join(n for n, seen in zip(found.names, found.shown, strict=True) if seen)
                raise UserError(
                    f"{protocol.dataset}/{train}: its images have one class only ({alone}), and {protocol.id} tells classes "
                    "apart; put each class into a folder of its own; without labels: python -m evaluations cluster MODEL FOLDER"
                )
            known.append(found)
        return known[0]

    def open_joined(split: str) -> Any:
        source = opened(split)
        if split == train:
            reference(source)
            return source
        classes = reference()
        own = Classes.of(source)
        if not classes.names or not own.names:
            return source
        try:
            numbers, notes = match(classes, own, (train, split))
        except UserError as error:
            raise UserError(f"{protocol.dataset}: {error}; python -m zoo data check compares the parts") from None
        for note in notes:
            _say(f"{protocol.dataset}: {note}")
        same = own.names == classes.names
        return source if same else source.renumbered(classes.names, numbers)

    return open_joined


@lru_cache(maxsize=256)
def _say(line: str) -> None:
    """One line on stderr, once."""
    if dist.is_main():
        print(line, file=sys.stderr, flush=True)


def _open_for(
    protocol: Protocol, root: str | None, download: bool, fetch: bool, max_bad: int | None
) -> tuple[Protocol, Callable[[str], Any]]:
    name = protocol.dataset
    if name.startswith(TORCHVISION):
        return _with_test(protocol, name, root, lambda part: _torchvision(name, part, root, download and fetch))
    if name in ("folder", "images") or name not in data.names():
        return _with_test(protocol, name, root, lambda part: _folder(name, part, root, max_bad))
    find(data.describe(name), root, fetch)  # what is not here is told before anything else is read or downloaded
    return protocol, lambda split: data.open_source(name, split, root=root, fetch=fetch, max_bad=max_bad)


def _with_test(
    protocol: Protocol, name: str, root: str | None, part: Callable[[str], Any]
) -> tuple[Protocol, Callable[[str], Any]]:
    wanted = protocol.splits.test
    for test in dict.fromkeys((wanted, "test", "val")):
        try:
            part(test)
        except PartMissing:
            continue
        changed = protocol.splits.model_copy(update={"test": test})
        return protocol.model_copy(update={"splits": changed}), lambda split: _checked(name, split, part)
    whole = part(protocol.splits.train)
    if not whole.labelled:
        raise UserError(
            f"{name}: its images have no labels and no test part, which {protocol.id} needs; without labels: "
            "python -m evaluations cluster MODEL FOLDER"
        )
    place = Path(root or (name if is_path(name) else "")).expanduser()
    if place != Path() and place.is_dir() and (others := parts.undeclared(place, whole.classes or ())):
        raise UserError(
            f"{place}: {others[0]} holds folders of the classes of {protocol.splits.train} under no usual name of a part; rename it to "
            "test (or val) to be judged on it, or move it elsewhere"
        )
    apart = held_out(whole)
    _say(
        f"{root or name}: no part for testing in it (test/, val/ or another usual name of one): {int(apart.sum()):,} of its "
        f"{len(whole):,} images, a fifth of each class, are held out of {protocol.splits.train} and judged on"
    )
    cut = {HELD_OUT: whole.subset(np.flatnonzero(apart)), REST: whole.subset(np.flatnonzero(~apart))}
    changed = protocol.splits.model_copy(update={"train": REST, "test": HELD_OUT})
    return protocol.model_copy(update={"splits": changed}), lambda split: _checked(name, split, cut.__getitem__)


def _checked(name: str, split: str, part: Callable[[str], Any]) -> Any:
    data.permit(name, split)
    return part(split)


def forget() -> None:
    """Own folders are looked at anew: for each measurement, since their images may have been edited after the last one."""
    _folder.cache_clear()


@lru_cache(maxsize=8)
def _folder(name: str, part: str, root: str | None, max_bad: int | None) -> Any:
    return data.open_source(name, part, root=root, max_bad=max_bad)


@lru_cache(maxsize=8)
def _torchvision(name: str, part: str, root: str | None, download: bool) -> Any:
    from torchvision import datasets

    kind = name.removeprefix(TORCHVISION)
    if kind not in datasets.__all__:
        raise UserError(f"{name}: torchvision has no such data set{suggest(kind, datasets.__all__)}")
    make = getattr(datasets, kind)
    parameters = inspect.signature(make).parameters
    given: dict[str, Any] = {}
    if "train" in parameters:
        given["train"] = part == "train"
    elif "split" in parameters:
        given["split"] = part
    elif part != "train":
        raise PartMissing(f"{name}: has no parts")
    if part not in ("train", "test", "val") or part == "val" and "train" in given:
        raise PartMissing(f"{name}: has no part {part!r}")
    if "root" in parameters:
        given["root"] = root or str(user_cache() / "data" / kind)
    if "download" in parameters:
        given["download"] = download
    try:
        items = make(**given)
    except ValueError as error:  # an unknown split
        raise PartMissing(f"{name}: {error}") from None
    except (RuntimeError, OSError, ModuleNotFoundError, TypeError) as error:
        told = " ".join(str(error).split())[:300]
        raise UserError(f"{name}: {told}; say where it is with data=FOLDER, or download=true") from None
    if getattr(items, "loader", None) is datasets.folder.default_loader:
        items.loader = _decoded  # torchvision's own turns 16-bit images white
    return TorchvisionSource(items, f"{kind}-{part}")


def _decoded(path: str) -> Image.Image:
    with open(path, "rb") as file:
        return decode(file.read(), 3, lambda: path)


def _class_names(items: Any, count: int) -> tuple[list[str], bool]:
    """(names of at least ``count`` classes, True) as torchvision's class has them; without any, (numbers as text, False)."""
    for attribute in ("classes", "categories", "class_to_idx"):
        found = getattr(items, attribute, None)
        if isinstance(found, dict):
            found = sorted(found, key=found.__getitem__) if sorted(found.values()) == list(range(len(found))) else None
        if isinstance(found, list | tuple) and len(found) >= count:
            return [", ".join(map(str, n)) if isinstance(n, list | tuple) else str(n) for n in found], True
    return [str(k) for k in range(count)], False


def _labels(items: Any, prefix: str) -> np.ndarray:
    """The class of every item, from whichever attribute torchvision's class has, else by asking each item."""
    for attribute in ("targets", "labels", "_labels"):
        found = getattr(items, attribute, None)
        if found is not None and len(found) == len(items):
            break
    else:
        found = [items[i][1] for i in range(len(items))]
    labels = np.asarray(found)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"{prefix}: its items have no single class each")
    return labels.astype(np.int64)
