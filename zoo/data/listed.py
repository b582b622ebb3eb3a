"""Sets whose labels come in a list beside the images: Places205 (csv) and iNaturalist 2018 (json).

Either may also have been sorted into ImageNet's layout; train/ below the root is then read as folders.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from ..errors import UserError
from . import folders, indexes, parts
from .classes import titled
from .namelist import Names
from .paths import inside
from .places import PartMissing
from .source import FileSource, FolderStore
from .specs import DatasetSpec


def read(spec: DatasetSpec, root: Path, part: str) -> FileSource:
    """The images that the list of ``part`` names, in its order."""
    if parts.find(root, part) is not None:
        return folders.read(spec, root, part)
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


Listed = tuple[list[str], list[int], tuple[list[str], bool]]  # names, labels, (classes, whether they are more than numbers)


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
    stamps = [indexes.stamp(path), indexes.stamp(below)]

    def build() -> indexes.Arrays:
        sizes = np.empty(len(names), dtype=np.int64)
        for number, name in enumerate(names):
            try:
                sizes[number] = os.stat(f"{below}/{name}").st_size
            except OSError as error:
                at = f"{path}:{number + 1}" if path.suffix == ".csv" else str(path)
                raise UserError(f"{at}: {below}/{name}: {error.strerror}") from None
        return {"sizes": sizes, "stamps": np.array(stamps, dtype=np.int64)[:, 1]}

    def fresh(kept: indexes.Arrays) -> bool:
        same = kept["stamps"].tolist() == [changed for _, changed in stamps] and len(kept["sizes"]) == len(names)
        few = indexes.sample(len(names))
        return same and all(indexes.stamp(f"{below}/{names[i]}")[0] == kept["sizes"][i] for i in few)

    return indexes.remember(f"list {path.resolve()} {below.resolve()}", fresh, build, lambda k: len(k["sizes"]))[
        "sizes"
    ]
