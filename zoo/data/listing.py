"""Which image files lie below a folder: complete, in one order everywhere, and nothing passed over in silence.

The order is torchvision's ImageFolder's (classes by name, then folders, then files), so row numbers of released
assignments and class rows keep their meaning.

What is refused, with the path in the message: a folder that cannot be read (``os.walk`` would skip it), a symbolic link
that leads back to a folder above it or to nothing, a class folder without images, images beside the class folders, a
folder without images.  Hidden files and folders and files whose extension is not an image's are left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from . import indexes
from .images import is_image_name
from .namelist import Names


@dataclass(frozen=True)
class Listing:
    """Names relative to the folder, sizes in bytes, labels (None: unlabelled) and class names."""

    names: Names
    sizes: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]


def walk(root: str | Path, top: str = "", followed: list[str] | None = None) -> list[tuple[str, str, int]]:
    """(folder, file, bytes) of every image below ``root``/``top``; folders relative to ``root``, sorted.

    ``followed`` collects the folders that were read, for the index's own check of freshness.
    """
    found: list[tuple[str, str, int]] = []
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [(top, ())]
    while pending:
        folder, above = pending.pop()
        path = os.path.join(root, folder) if folder else str(root)
        try:
            state = os.stat(path)
            with os.scandir(path) as entries:
                listed = sorted(entries, key=lambda e: e.name)
        except OSError as error:
            raise UserError(f"{path}: folder cannot be read: {error.strerror}") from None
        here = (state.st_dev, state.st_ino)
        if here in above:
            raise UserError(f"{path}: symbolic link leads back to a folder above it; remove the link")
        if followed is not None:
            followed.append(folder)
        for entry in listed:
            if entry.name.startswith("."):
                continue
            inner = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                pending.append((inner, (*above, here)))
            elif is_image_name(entry.name):
                try:
                    found.append((folder, entry.name, entry.stat().st_size))
                except OSError as error:
                    raise UserError(f"{path}/{entry.name}: broken link or unreadable file: {error.strerror}") from None
    return sorted(found)


def subfolders(root: str | Path) -> list[str]:
    """Visible folders directly below ``root``, sorted by name: the classes of an ImageFolder."""
    try:
        with os.scandir(root) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise UserError(f"{root}: folder cannot be read: {error.strerror}") from None


def flat(root: str | Path) -> Listing:
    """Every image below ``root``, unlabelled."""
    return _remembered(root, "flat", lambda followed: _listing(root, walk(root, followed=followed), []))


def by_class(root: str | Path) -> Listing:
    """Images in one folder per class."""
    return _remembered(root, "by class", lambda followed: _by_class(root, followed))


def _by_class(root: str | Path, followed: list[str]) -> Listing:
    found = walk(root, followed=followed)
    classes = subfolders(root)
    loose = [name for folder, name, _ in found if not folder]
    if loose:
        raise UserError(
            f"{root}: {len(loose)} images lie beside the {len(classes)} class folders (first: {loose[0]}) and would have no"
            " label; move them, or open the folder as data set 'images' (unlabelled)"
        )
    seen = {folder.partition("/")[0] for folder, _, _ in found}
    empty = [c for c in classes if c not in seen]
    if found and empty:
        raise UserError(f"{root}/{empty[0]}: class folder without images ({len(empty)} such); remove or fill it")
    # ImageFolder sorts class by class: "a b" comes before "a/x" as a path, but class "a" before class "a b".
    number = {c: k for k, c in enumerate(classes)}
    found.sort(key=lambda f: (number[f[0].partition("/")[0]], f))
    return _listing(root, found, classes)


def _listing(root: str | Path, found: list[tuple[str, str, int]], classes: list[str]) -> Listing:
    if not found:
        raise UserError(f"{root}: no images found (looked for .jpg, .png and the like in it and its folders)")
    number = {c: k for k, c in enumerate(classes)}
    return Listing(
        names=Names(f"{folder}/{name}" if folder else name for folder, name, _ in found),
        sizes=np.array([size for _, _, size in found], dtype=np.int64),
        labels=np.array([number[f.partition("/")[0]] for f, _, _ in found], dtype=np.int64) if classes else None,
        classes=tuple(classes),
    )


def _remembered(root: str | Path, how: str, build: Callable[[list[str]], Listing]) -> Listing:
    """``build()``, or what it gave before when no folder below ``root`` has changed since."""

    def fresh(kept: indexes.Arrays) -> bool:
        folders = Names.of(kept["folders"], kept["folders_end"])
        if not np.array_equal(indexes.folder_stamps(root, folders), kept["stamps"]):
            return False
        names, few = Names.of(kept["blob"], kept["ends"]), indexes.sample(len(kept["ends"]))
        return all(indexes.stamp(f"{root}/{names[int(i)]}")[0] == kept["sizes"][i] for i in few)

    def listed() -> indexes.Arrays:
        followed: list[str] = []
        found = build(followed)
        folders, classes = Names(followed), Names(found.classes)
        return {
            "blob": found.names.blob,
            "ends": found.names.ends,
            "sizes": found.sizes,
            "labels": np.empty(0, np.int64) if found.labels is None else found.labels,
            "classes": classes.blob,
            "classes_end": classes.ends,
            "folders": folders.blob,
            "folders_end": folders.ends,
            "stamps": indexes.folder_stamps(root, followed),
        }

    kept = indexes.remember(f"{how} {os.path.realpath(root)}", fresh, listed, lambda k: len(k["ends"]))
    classes = tuple(Names.of(kept["classes"], kept["classes_end"]))
    labels = kept["labels"] if classes else None
    return Listing(Names.of(kept["blob"], kept["ends"]), kept["sizes"], labels, classes)
