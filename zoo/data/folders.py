"""Data sets in folders: class folders (or their zip and tar forms), flat folders, and folders with a list of labels.

    <root>/<part>/<class>/<image>          folders, as torchvision's ImageFolder reads them
    <root>/<part>.zip, <part>_map.txt      PIC's ImageNet-Zip
    <root>/<part>-*.tar                    tar shards
    <root>/... and a .csv or .json list    Places205, iNaturalist 2018; sorted into class folders they are read as those

<part> is any usual name of the part (zoo/data/parts.py). A flat folder of images has the labels of the file
labels.csv (or labels.npz) beside them, ``file,label`` with names or numbers of classes; without it, none.

The order is ImageFolder's (classes by name, then folders, then files), so row numbers of released assignments and class rows
keep their meaning. Refused, with the path in the message: a folder that cannot be read (``os.walk`` would skip it), a symbolic
link that leads back to a folder above it or to nothing, a class folder without images, images beside the class folders, a
folder without images. Hidden files and folders and files whose extension is not an image's are left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import UserError
from . import archive_sets, index_cache, parts
from .classes import titled
from .images import is_image_name
from .locate import PartMissing
from .paths import inside
from .source import FileSource, FolderStore, Names
from .specs import DatasetSpec


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

    def fresh(kept: index_cache.Arrays) -> bool:
        folders = Names.of(kept["folders"], kept["folders_end"])
        if not np.array_equal(index_cache.folder_stamps(root, folders), kept["stamps"]):
            return False
        names, few = Names.of(kept["blob"], kept["ends"]), index_cache.sample(len(kept["ends"]))
        return all(index_cache.stamp(f"{root}/{names[int(i)]}")[0] == kept["sizes"][i] for i in few)

    def listed() -> index_cache.Arrays:
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
            "stamps": index_cache.folder_stamps(root, followed),
        }

    kept = index_cache.remember(f"{how} {os.path.realpath(root)}", fresh, listed, lambda k: len(k["ends"]))
    classes = tuple(Names.of(kept["classes"], kept["classes_end"]))
    labels = kept["labels"] if classes else None
    return Listing(Names.of(kept["blob"], kept["ends"]), kept["sizes"], labels, classes)


def read_folders(spec: DatasetSpec, root: Path, part: str) -> FileSource:
    """The images of ``part``: as folders when there are any, else zip, else shards.

    Classes are the folders in it; where there are none, labels.csv or labels.npz beside the images (zoo/labels.py), if it is there.
    """
    found_as = parts.find(root, part)
    name = found_as or part
    if found_as and spec.classes is None:
        parts.tell_unread(root)
    folder = root / name
    if archive_sets.shards_present(root, name) and not (folder.is_dir() and subfolders(folder)):
        return archive_sets.read_shards(spec, root, name)
    if not folder.is_dir():
        if archive_sets.zip_present(root, name):
            return archive_sets.read_zip(spec, root, name)
        if parts.any_of(root) or spec.classes is not None or part != "train":
            inside = ", ".join(subfolders(root)[:8]) or "no folders"
            raise PartMissing(f"{root}: no folder {part}/, no {part}.zip and no {part}-*.tar in it (found: {inside})")
        folder = root
    if spec.options.get("labelled", True) and subfolders(folder):
        found = by_class(folder)
    elif spec.classes is not None:
        raise UserError(f"{folder}: no class folders in it; {spec.prepare}")
    else:
        found = flat(folder)
        if spec.options.get("labelled", True) and (file := label_file(folder)) is not None:
            from ..labels import classes as told_classes

            labels, classes = told_classes(file, found.names)
            found = replace(found, labels=labels, classes=classes)
    store = FolderStore(folder, found.names)
    return FileSource(found.names, found.sizes, found.labels, found.classes, store, spec.channels)


def label_file(folder: Path) -> Path | None:
    """The file of labels beside the images of a flat folder: labels.csv, as `reproduce labels` and people write it, or labels.npz."""
    return next((folder / name for name in ("labels.csv", "labels.npz") if (folder / name).is_file()), None)


def read_listed(spec: DatasetSpec, root: Path, part: str) -> FileSource:
    """The images that the list of ``part`` names, in its order."""
    if parts.find(root, part) is not None:
        return read_folders(spec, root, part)
    wanted = str(spec.options["list"]).format(part=part)
    path = next((p for p in (root / wanted, root / Path(wanted).name) if p.is_file()), None)
    if path is None:
        raise PartMissing(f"{root}: neither {wanted} nor a folder {part}/ in it; {spec.prepare}")
    names, labels, (classes, named) = _csv(spec, path) if path.suffix == ".csv" else _json(spec, path)
    below = root / str(spec.options["images"])
    below = below if below.is_dir() else root
    kept, sizes = Names(names), _sizes(path, below, names)
    source = FileSource(kept, sizes, np.array(labels), classes, FolderStore(below, kept), spec.channels)
    source.named = named
    return source


Listed = tuple[
    list[str], list[int], tuple[list[str], bool]
]  # names, labels, (classes, whether they are more than numbers)


def _csv(spec: DatasetSpec, path: Path) -> Listed:
    """Places205: ``path label`` a line; the class is named after the folder."""
    names, labels, titles = [], [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, blank, label = line.rpartition(" ")
        if not blank or not label.isdigit():
            raise UserError(f"{path}:{number}: expected `path label`, found {line[:80]!r}")
        if int(label) >= (spec.class_count or 0):
            raise UserError(f"{path}:{number}: label {label} is out of range 0..{(spec.class_count or 0) - 1}")
        names.append(inside(name, f"{path}:{number}"))
        labels.append(int(label))
        titles.append((int(label), name.rpartition("/")[0].partition("/")[2] or name.rpartition("/")[0]))
    return names, labels, titled(titles, spec.class_count or 0)


def _json(spec: DatasetSpec, path: Path) -> Listed:
    """iNaturalist: COCO's form with one category per image."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = {entry["id"]: inside(str(entry["file_name"]), str(path)) for entry in content["images"]}
        label = {entry["image_id"]: int(entry["category_id"]) for entry in content["annotations"]}
        title = {int(entry["id"]): str(entry["name"]) for entry in content.get("categories", [])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a list of images, annotations and categories: {error!r}") from None
    count = spec.class_count or 0
    for key, name in files.items():
        if key not in label:
            raise UserError(f"{path}: image {key} ({name}) has no annotation")
        if not 0 <= label[key] < count:
            raise UserError(f"{path}: image {key} ({name}): category {label[key]} is out of range 0..{count - 1}")
    labels = [label[k] for k in files]
    return list(files.values()), labels, titled(((k, title.get(k, "")) for k in (*title, *labels)), count)


def _sizes(path: Path, below: Path, names: list[str]) -> np.ndarray:
    """Bytes of every listed file; kept as an index while the list and the first folders stay as they are."""
    stamps = [index_cache.stamp(path), index_cache.stamp(below)]

    def build() -> index_cache.Arrays:
        sizes = np.empty(len(names), dtype=np.int64)
        for number, name in enumerate(names):
            try:
                sizes[number] = os.stat(f"{below}/{name}").st_size
            except OSError as error:
                at = f"{path}:{number + 1}" if path.suffix == ".csv" else str(path)
                raise UserError(f"{at}: {below}/{name}: {error.strerror}") from None
        return {"sizes": sizes, "stamps": np.array(stamps, dtype=np.int64)[:, 1]}

    def fresh(kept: index_cache.Arrays) -> bool:
        same = kept["stamps"].tolist() == [changed for _, changed in stamps] and len(kept["sizes"]) == len(names)
        few = index_cache.sample(len(names))
        return same and all(index_cache.stamp(f"{below}/{names[i]}")[0] == kept["sizes"][i] for i in few)

    return index_cache.remember(f"list {path.resolve()} {below.resolve()}", fresh, build, lambda k: len(k["sizes"]))[
        "sizes"
    ]
