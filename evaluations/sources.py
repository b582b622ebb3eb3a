"""The data of a protocol: a named set, any folder of images, or any torchvision data set, with a test part of its own.

    dataset=digits                 as zoo/datasets.yaml has it
    dataset=/data/flowers          train/, test/ (or val/) below it, each with a folder per class; or just a folder per class
    dataset=torchvision:FakeData   a class of torchvision.datasets, found below ``data=`` (or downloaded with download=true)

A set without a test part gets one: a fifth of each class, those images whose names hash lowest, the same on every machine.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from zoo import data
from zoo.data.places import PartMissing, user_cache
from zoo.errors import UserError, suggest

from .protocol import Protocol

TORCHVISION = "torchvision:"
HELD_OUT, REST = "train-held-out", "train-rest"
SHARE = 5


class TorchvisionSource(data.Source):
    """A torchvision data set whose items are (image, class)."""

    def __init__(self, items: Any, prefix: str, positions: np.ndarray | None = None) -> None:
        self._items, self._prefix = items, prefix
        self._positions = np.arange(len(items)) if positions is None else positions
        labels = _labels(items, prefix)
        classes = list(getattr(items, "classes", None) or [str(k) for k in range(int(labels.max()) + 1)])
        super().__init__(labels[self._positions], classes, channels=3)

    def image(self, i: int) -> Image.Image:
        found = self._items[int(self._positions[self._at(i)])][0]
        if not isinstance(found, Image.Image):
            raise UserError(f"{self._prefix}: item {i} is no image but {type(found).__name__}")
        return found.convert("RGB")

    def name(self, i: int) -> str:
        return f"{self._prefix}-{self._positions[i]:08d}"

    def _digest(self, digest: Any) -> None:
        digest.update(f"{self._prefix} {len(self._items)}".encode())
        digest.update(self._positions.astype("<i8").tobytes())
        for i in range(0, len(self), max(1, len(self) // 16)):  # pixels of a few items stand for all
            digest.update(np.asarray(self.image(i)).tobytes())

    def _take(self, indices: np.ndarray) -> TorchvisionSource:
        return TorchvisionSource(self._items, self._prefix, self._positions[indices])


def arrange(
    protocol: Protocol, root: str | None, download: bool = False, fetch: bool = True
) -> tuple[Protocol, Callable[[str], Any]]:
    """The protocol with the splits that its data really have, and a function that opens them (and minds seals).

    download   a torchvision set may be downloaded (it was asked for); fetch: False: nothing may be, for plans.
    """
    name = protocol.dataset
    if name.startswith(TORCHVISION):
        return _with_test(protocol, name, lambda part: _torchvision(name, part, root, download and fetch))
    if name in ("folder", "images") or name not in data.names():
        return _with_test(protocol, name, lambda part: _folder(name, part, root))
    return protocol, lambda split: data.open_source(name, split, root=root, fetch=fetch)


def _with_test(protocol: Protocol, name: str, part: Callable[[str], Any]) -> tuple[Protocol, Callable[[str], Any]]:
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
    apart = held_out(whole)
    cut = {HELD_OUT: whole.subset(np.flatnonzero(apart)), REST: whole.subset(np.flatnonzero(~apart))}
    changed = protocol.splits.model_copy(update={"train": REST, "test": HELD_OUT})
    return protocol.model_copy(update={"splits": changed}), lambda split: _checked(name, split, cut.__getitem__)


def held_out(source: Any) -> np.ndarray:
    """bool (N,): a fifth of each class (at least one image where there are two), those whose names hash lowest."""
    order = sorted(range(len(source)), key=lambda i: hashlib.sha256(source.name(i).encode()).digest())
    labels = source.labels[order]
    chosen = np.zeros(len(source), bool)
    for label in np.unique(labels):
        members = np.asarray(order)[labels == label]
        chosen[members[: max(len(members) // SHARE, int(len(members) > 1))]] = True
    return chosen


def _checked(name: str, split: str, part: Callable[[str], Any]) -> Any:
    data.permit(name, split)
    return part(split)


@lru_cache(maxsize=8)
def _folder(name: str, part: str, root: str | None) -> Any:
    return data.open_source(name, part, root=root)


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
    return TorchvisionSource(items, f"{kind}-{part}")


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
