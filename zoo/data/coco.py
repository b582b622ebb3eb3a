"""COCO: annotations/instances_<part>.json beside the images of <part>/.

Categories are numbered 0..C-1 in the order of their ids.  Crowd regions keep their flag.  Boxes that make no sense are an
error, or are left out up to the number that datasets.yaml allows for this set (``bad_boxes``: COCO itself has a few).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from . import parts, rle
from .annotations import DetectionSource, Objects, checked_box
from .folders import subfolders
from .locate import PartMissing
from .paths import inside
from .source import FolderStore, Names
from .specs import DatasetSpec

PIXELS = 2**28  # of one image; masks of more are not made


def read(spec: DatasetSpec, root: Path, part: str) -> CocoSource:
    """The images of ``part`` in the order of their ids, those without objects too."""
    files = {p.stem.removeprefix("instances_") for p in (root / "annotations").glob("instances_*.json")}
    path = root / "annotations" / f"instances_{parts.spelled(part, files, root / 'annotations') or part}.json"
    images = ((f, parts.spelled(part, subfolders(f), f)) for f in (root, root / "images") if f.is_dir())
    folder = next((f / name for f, name in images if name), None)
    if not path.is_file() or folder is None:
        raise PartMissing(f"{root}: needs annotations/{path.name} and the folder {part}/ of its images; {spec.prepare}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        line = getattr(error, "lineno", 1)
        raise UserError(f"{path}:{line}: not JSON: {getattr(error, 'msg', error)}") from None
    if not isinstance(content, dict) or not all(
        isinstance(content.get(k), list) for k in ("images", "annotations", "categories")
    ):
        raise UserError(f"{path}: expected lists of images, annotations and categories")
    return _build(spec, path, folder, content)


def _build(spec: DatasetSpec, path: Path, folder: Path, content: dict[str, Any]) -> CocoSource:
    fields: Any = None
    try:
        images = sorted(content["images"], key=lambda e: e["id"])
        categories = sorted(content["categories"], key=lambda e: e["id"])
        for fields in images:
            inside(str(fields["file_name"]), f"{path}: image {fields['id']}")
            if not 0 < int(fields["width"]) * int(fields["height"]) <= PIXELS:
                raise UserError(f"{path}: image {fields['id']}: {fields['width']} x {fields['height']} pixels")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: an image or category lacks {error} (near {str(fields)[:80]})") from None
    row = {entry["id"]: i for i, entry in enumerate(images)}
    if len(row) != len(images):
        raise UserError(f"{path}: two images have the same id")
    number = {entry["id"]: k for k, entry in enumerate(categories)}
    table, shapes, dropped = [], [], []
    for entry in content["annotations"]:
        try:
            where, kind = row.get(entry["image_id"]), number.get(entry["category_id"])
            x, y, width, height = map(float, entry["bbox"])
            crowd, area, ident = int(entry.get("iscrowd", 0)), float(entry["area"]), int(entry["id"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}:{_line(path, entry)}: annotation without {error}: {str(entry)[:80]}") from None
        if where is None or kind is None:
            what = f"image {entry['image_id']}" if where is None else f"category {entry['category_id']}"
            raise UserError(f"{path}:{_line(path, entry)}: annotation {ident}: unknown {what}")
        place = f"{path}:{ident}"
        try:
            box = checked_box((x, y, x + width, y + height), images[where]["width"], images[where]["height"], place)
        except UserError as error:
            dropped.append((entry, str(error).removeprefix(place)))
            continue
        table.append((where, kind, crowd, ident, *box, area))
        shapes.append(entry.get("segmentation"))
    allowed = int(spec.options.get("bad_boxes", 0))
    if dropped:
        entry, why = dropped[0]
        message = f"{path}:{_line(path, entry)}: annotation {entry['id']}{why}"
        if len(dropped) > allowed:
            raise UserError(f"{message} ({len(dropped)} such, bad_boxes of {spec.name} allows {allowed})")
        print(f"{message}; {len(dropped)} such boxes left out (bad_boxes: {allowed})", file=sys.stderr, flush=True)
    return _source(folder, path, images, categories, np.array(table, dtype=TABLE), shapes)


TABLE = np.dtype(
    [("image", "<i8"), ("category", "<i8"), ("crowd", "?"), ("id", "<i8")]
    + [(corner, "<f8") for corner in ("x0", "y0", "x1", "y1", "area")]
)


def _source(
    folder: Path, path: Path, images: list[Any], categories: list[Any], table: np.ndarray, shapes: list[Any]
) -> CocoSource:
    order = np.argsort(table["image"], kind="stable")
    table = table[order]
    ends = np.searchsorted(table["image"], np.arange(len(images)), side="right")
    names = Names(entry["file_name"] for entry in images)
    sizes = np.empty(len(images), dtype=np.int64)
    for i, entry in enumerate(images):
        try:
            sizes[i] = (folder / entry["file_name"]).stat().st_size
        except OSError as error:
            raise UserError(f"{folder / entry['file_name']}: listed in {path.name}, but {error.strerror}") from None
    # Shapes as text: a million small lists would be copied into every worker.
    texts = Names(json.dumps(shapes[int(i)]) for i in order)
    image_ids = np.array([entry["id"] for entry in images], dtype=np.int64)
    extent = np.array([(entry["height"], entry["width"]) for entry in images], dtype=np.int64).reshape(-1, 2)
    category_ids = np.array([entry["id"] for entry in categories], dtype=np.int64)
    classes = [str(entry["name"]) for entry in categories]
    return CocoSource(
        path, names, sizes, classes, FolderStore(folder, names), (image_ids, extent, category_ids, table, ends, texts)
    )


def _line(path: Path, entry: Any) -> int:
    """The line of an annotation, found by its id once something is wrong with it."""
    text = path.read_text(encoding="utf-8")
    start = max(text.find('"annotations"'), 0)
    ident = entry.get("id") if isinstance(entry, dict) else None
    found = re.compile(rf'"id":\s*{ident}\b').search(text, start)
    return text.count("\n", 0, found.start() if found else start) + 1


class CocoSource(DetectionSource):
    """``image_ids`` and ``category_ids`` are those of the file: results are written with them (-1: not in this part's file).

    size(i) gives (height, width) without decoding the image.
    """

    def __init__(
        self, path: Path, names: Any, sizes: np.ndarray, classes: Any, store: Any, content: tuple[Any, ...]
    ) -> None:
        self.path = path
        self.image_ids, self._extent, self.category_ids, self._table, self._ends, self._shapes = content
        self._rows = np.arange(len(self.image_ids))
        targets = np.zeros((len(names), len(classes)), dtype=np.uint8)
        table = self._table[~self._table["crowd"]]
        targets[table["image"], table["category"]] = 1
        super().__init__(names, sizes, classes, store, targets)

    def size(self, i: int) -> tuple[int, int]:
        """(height, width) as the annotation file states them."""
        height, width = self._extent[self._rows[self._at(i)]].tolist()
        return height, width

    def objects(self, i: int) -> Objects:
        found = self._table[self._span(i)]
        corners = [found[corner] for corner in ("x0", "y0", "x1", "y1")]
        return Objects(
            boxes=np.stack(corners, axis=1),
            classes=found["category"].copy(),
            difficult=np.zeros(len(found), dtype=bool),
            crowd=found["crowd"].copy(),
            area=found["area"].copy(),
            ids=found["id"].copy(),
        )

    def masks(self, i: int) -> np.ndarray:
        height, width = self.size(i)
        span = self._span(i)
        masks = np.zeros((span.stop - span.start, height, width), dtype=bool)
        for k, at in enumerate(range(span.start, span.stop)):
            shape = json.loads(self._shapes[at])
            try:
                masks[k] = rle.decode(shape, height, width)
            except (ValueError, KeyError, TypeError) as error:
                ident = int(self._table["id"][at])
                line = _line(self.path, {"id": ident})
                raise UserError(f"{self.path}:{line}: annotation {ident}: bad segmentation: {error}") from None
        return masks

    def segmentation(self, i: int) -> np.ndarray:
        """uint8 (H, W) from the masks: smaller objects lie on top, crowd regions are 255."""
        objects, masks = self.objects(i), self.masks(i)
        picture = np.zeros(self.size(i), dtype=np.uint8)
        for k in sorted(range(len(objects)), key=lambda k: (not objects.crowd[k], -objects.area[k])):
            picture[masks[k]] = 255 if objects.crowd[k] else objects.classes[k] + 1
        return picture

    @property
    def shown(self) -> np.ndarray:
        kinds = [self._table["category"][self._span(i)] for i in range(len(self))]
        return np.bincount(np.concatenate([*kinds, np.zeros(0, np.int64)]), minlength=len(self.classes)) > 0

    def renumbered(self, classes: Sequence[str], numbers: np.ndarray) -> CocoSource:
        part = super().renumbered(classes, numbers)
        assert isinstance(part, CocoSource)
        part._table = self._table.copy()
        part._table["category"] = numbers[self._table["category"]]
        part.category_ids = np.full(len(classes), -1, dtype=np.int64)
        part.category_ids[numbers[numbers >= 0]] = self.category_ids[numbers >= 0]
        return part

    def _span(self, i: int) -> slice:
        row = int(self._rows[self._at(i)])
        return slice(int(self._ends[row - 1]) if row else 0, int(self._ends[row]))

    def _digest(self, digest: Any) -> None:
        super()._digest(digest)
        for i in range(len(self)):
            digest.update(self._table[["category", "crowd", "x0", "y0", "x1", "y1"]][self._span(i)].tobytes())

    def _take(self, indices: np.ndarray) -> CocoSource:
        part = CocoSource.__new__(CocoSource)
        part.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("fingerprint", "identity")})
        part.names, part.store = self.names.take(indices), self.store.take(indices)
        part.sizes, part.targets = self.sizes[indices], self.targets[indices]
        part.image_ids = np.asarray(self.image_ids)[indices]
        part._rows, part._length = self._rows[indices], len(indices)
        return part
