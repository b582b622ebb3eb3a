"""ImageNet-Zip, the layout of PIC's code: <part>.zip and <part>_map.txt, one ``relative/path<TAB>label`` a line.

The order of the map is the order of the source: PIC's and InstDisc's rows are tied to it.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np

from ..errors import UserError, writing
from .classes import titled_by_folder
from .images import is_image_name
from .namelist import Names
from .packs import PackStore, zip_members
from .paths import component
from .source import FileSource
from .specs import DatasetSpec


def present(root: Path, part: str) -> bool:
    return (root / f"{part}.zip").is_file()


def read(spec: DatasetSpec, root: Path, part: str) -> FileSource:
    """The images of ``part`` in the map's order.  Raises UserError naming the line of the map that is wrong."""
    archive, listing = root / f"{part}.zip", root / f"{part}_map.txt"
    if not listing.is_file():
        raise UserError(f"{archive}: its map {listing.name} is missing; `python -m zoo data pack` writes both")
    names, labels = read_map(listing, spec.class_count)
    inside, rows = zip_members(archive)
    at = {inside[i]: i for i in range(len(inside))}
    for number, name in enumerate(names):
        if name not in at:
            raise UserError(f"{listing}:{number + 1}: {name} is not in {archive.name}")
    chosen = np.array([at[n] for n in names], dtype=np.int64)
    kept = Names(names)
    store = PackStore([str(archive)], rows[chosen], kept)
    classes, named = _classes(spec, names, labels)
    source = FileSource(kept, store.rows["size"].astype(np.int64), labels, classes, store, spec.channels)
    source.named = named
    return source


def read_map(path: Path, classes: int | None) -> tuple[list[str], np.ndarray]:
    """(names, labels) of a map file.  ``classes`` bounds the labels when it is known."""
    names, labels, wrong = scan_map(path, classes)
    if wrong:
        raise UserError(wrong[0] + (f" ({len(wrong)} such lines)" if len(wrong) > 1 else ""))
    if not names:
        raise UserError(f"{path}: no images listed")
    return names, labels


def scan_map(path: Path, classes: int | None) -> tuple[list[str], np.ndarray, list[str]]:
    """(names, labels, a complaint for each line that is wrong)."""
    first: dict[str, int] = {}
    labels: list[int] = []
    wrong = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        name, tab, label = line.rpartition("\t")
        if not tab or not label.strip().isdigit():
            wrong.append(f"{path}:{number}: expected path<TAB>label, found {line[:80]!r}")
        elif not is_image_name(name):
            wrong.append(f"{path}:{number}: {name!r} does not have the extension of an image")
        elif name in first:
            wrong.append(f"{path}:{number}: {name} is listed already in line {first[name]}")
        elif classes is not None and int(label) >= classes:
            wrong.append(f"{path}:{number}: label {int(label)} is out of range 0..{classes - 1}")
        else:
            first[name] = number
            labels.append(int(label))
    return list(first), np.array(labels, dtype=np.int64), wrong


def _classes(spec: DatasetSpec, names: list[str], labels: np.ndarray) -> tuple[list[str], bool]:
    """Class names, and whether they are more than numbers: the folders in the zip when each label has one of its own, else
    the data set's."""
    found, named = titled_by_folder(names, labels, max(spec.class_count or 0, int(labels.max()) + 1))
    return (list(spec.classes), True) if not named and isinstance(spec.classes, list) else (found, named)


def check_names(source: FileSource, line: str) -> None:
    """Raise UserError, before anything is written, for a name that one ``line`` of text cannot hold."""
    for i in range(len(source)):
        name = source.name(i)
        if any(c in name for c in "\t\n\r") or not name.isprintable():
            raise UserError(f"{source.where(i)}: {line} cannot hold this name; rename the file")


def pack(source: FileSource, folder: Path, part: str) -> tuple[Path, Path]:
    """Write ``source`` as <part>.zip and <part>_map.txt; the same bytes every time.  Nothing half-written is left."""
    from tqdm import tqdm

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    check_names(source, "a map line")
    archive, listing = folder / f"{component(part, str(folder))}.zip", folder / f"{part}_map.txt"
    partial = [p.with_name(f".{p.name}.{os.getpid()}") for p in (archive, listing)]
    try:
        with (
            zipfile.ZipFile(partial[0], "w", zipfile.ZIP_STORED) as zipped,
            partial[1].open("w", encoding="utf-8", newline="\n") as mapped,
        ):
            for i in tqdm(range(len(source)), desc=f"packing {archive.name}", unit="img", disable=None, leave=False):
                name = source.name(i)
                info = zipfile.ZipInfo(name)
                info.external_attr = 0o644 << 16
                zipped.writestr(info, source.raw(i))
                mapped.write(f"{name}\t{source.label(i)}\n")
        for before, after in zip(partial, (archive, listing), strict=True):
            os.replace(before, after)
    finally:
        for path in partial:
            path.unlink(missing_ok=True)
    return archive, listing
