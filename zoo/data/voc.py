"""PASCAL VOC as it is distributed: ImageSets, Annotations, JPEGImages, SegmentationClass, SegmentationObject.

Several years may be one set (07+12): ``years`` in datasets.yaml.  With ``task: segmentation`` the images are those of
ImageSets/Segmentation.

A class file says 1 (present), -1 (absent) or 0 (only difficult objects): targets 1, 0 and 255.  An image that a class file
does not list is 255 there.  Boxes are counted from 1 with both ends included in the files; here they are continuous, so
that xmin 1, xmax 10 becomes 0..10.
"""

from __future__ import annotations

import xml.parsers.expat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError, suggest
from . import parts
from .annotations import DetectionSource, Objects, checked_box
from .locate import PartMissing
from .paths import inside
from .source import FolderStore, Names, Store
from .specs import DatasetSpec

TARGET = {"1": 1, "-1": 0, "0": 255}


def read(spec: DatasetSpec, root: Path, part: str) -> VocSource:
    """``part`` (train, val, trainval, test) of every year in turn, in the order of its image list; ``test_years``: those
    whose test part is public, where that is not every year of the set."""
    sets = [_year(spec, root, year) for year in spec.options.get(f"{part}_years", spec.options["years"])]
    task = spec.options.get("task", "classification")
    names: list[str] = []
    targets = []
    for base, prefix in sets:
        stems, found, classes = _classification(spec, base, part)
        if task == "segmentation":
            row = {s: i for i, s in enumerate(stems)}
            lists = base / "ImageSets" / "Segmentation"
            chosen = _lines(lists / f"{parts.spelled(part, (p.stem for p in lists.glob('*.txt')), lists) or part}.txt")
            # Images that only the segmentation lists hold have no classification targets.
            blank = np.full((1, found.shape[1]), 255, np.uint8)
            found = np.concatenate([found, blank])[[row.get(s, len(stems)) for s in chosen]]
            stems = chosen
        names += [f"{prefix}JPEGImages/{stem}.jpg" for stem in stems]
        targets.append(found)
    top = sets[0][0].parent if sets[0][1] else sets[0][0]
    sizes = np.empty(len(names), dtype=np.int64)
    for i, name in enumerate(names):
        try:
            sizes[i] = (top / name).stat().st_size
        except OSError as error:
            raise UserError(f"{top / name}: listed in {part}.txt, but {error.strerror}") from None
    kept = Names(names)
    return VocSource(kept, sizes, classes, FolderStore(top, kept), np.concatenate(targets))


def _year(spec: DatasetSpec, root: Path, year: int | None) -> tuple[Path, str]:
    """(folder with ImageSets, prefix of its images' names): VOC<year> below the root, or the root itself."""
    if year is None or (root / "ImageSets").is_dir() and len(spec.options["years"]) == 1:
        base, prefix = root, ""
    else:
        base = next(
            (b for b in (root / f"VOC{year}", root / "VOCdevkit" / f"VOC{year}") if b.is_dir()), root / f"VOC{year}"
        )
        prefix = f"VOC{year}/"
    if not (base / "ImageSets" / "Main").is_dir():
        raise UserError(f"{base}: no ImageSets/Main in it; {spec.prepare}")
    return base, prefix


def _lines(path: Path) -> list[str]:
    try:
        found = path.read_text(encoding="utf-8").split()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not found:
        raise UserError(f"{path}: lists no image")
    for stem in found:
        inside(stem, str(path))
    return found


def _classification(spec: DatasetSpec, base: Path, part: str) -> tuple[list[str], np.ndarray, list[str]]:
    """(images, targets (N, C), classes) from the class files <class>_<part>.txt."""
    folder = base / "ImageSets" / "Main"
    part = parts.spelled(part, (p.stem.rpartition("_")[2] for p in folder.glob("*_*.txt")), folder) or part
    classes = sorted(p.name[: -len(f"_{part}.txt")] for p in folder.glob(f"*_{part}.txt"))
    wanted = sorted(spec.classes) if isinstance(spec.classes, list) else classes
    if not classes:
        raise PartMissing(f"{folder}: no class files <class>_{part}.txt")
    if classes != wanted:
        missing = [c for c in wanted if c not in classes] or [c for c in classes if c not in wanted]
        what = f"class file {missing[0]}_{part}.txt is missing or not of this set"
        raise UserError(f"{folder}: {what} ({len(classes)} found, {len(wanted)} wanted)")
    listing = folder / f"{part}.txt"
    stems = (
        _lines(listing)
        if listing.is_file()
        else sorted({s for c in classes for s in _lines(folder / f"{c}_{part}.txt")[::2]})
    )
    row = {stem: i for i, stem in enumerate(stems)}
    return stems, read_targets(folder, part, classes, row), classes


def read_targets(folder: Path, part: str, classes: Sequence[str], row: dict[str, int]) -> np.ndarray:
    """uint8 (N, C) of the class files; ``row`` numbers the images.  Raises UserError naming the line that is wrong."""
    targets = np.full((len(row), len(classes)), 255, dtype=np.uint8)
    for column, name in enumerate(classes):
        path = folder / f"{name}_{part}.txt"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            words = line.split()
            if not words:
                continue
            if len(words) != 2 or words[1] not in TARGET:
                raise UserError(f"{path}:{number}: expected `image 1|0|-1`, found {line[:80]!r}")
            if words[0] not in row:
                raise UserError(f"{path}:{number}: image {words[0]} is not in {part}.txt")
            targets[row[words[0]], column] = TARGET[words[1]]
    return targets


class VocSource(DetectionSource):
    """One or several years of VOC.  Annotations are read when they are asked for.

    colours  the classes in the order in which SegmentationClass numbers them, from 1 on
    """

    colours: tuple[str, ...]

    def __init__(
        self, names: Sequence[str], sizes: np.ndarray, classes: Sequence[str], store: Store, targets: np.ndarray
    ) -> None:
        super().__init__(names, sizes, classes, store, targets)
        self.colours = self.classes

    @property
    def image_ids(self) -> list[str]:  # type: ignore[override]
        """The stem of each image's file, as VOC's result files want it."""
        return [Path(self.name(i)).stem for i in range(len(self))]

    def objects(self, i: int) -> Objects:
        path = self._beside(i, "Annotations", ".xml")
        tree = parse(path)
        width, height = (tree.number("size", side) for side in ("width", "height"))
        boxes, classes, flags = [], [], []
        for node in tree.all("object"):
            name = node.text("name")
            if name not in self.classes:
                raise UserError(f"{path}:{node.line}: unknown category {name!r}{suggest(name, self.classes)}")
            corners = [node.number("bndbox", side) for side in ("xmin", "ymin", "xmax", "ymax")]
            corners[0] -= 1
            corners[1] -= 1
            boxes.append(checked_box(corners, int(width), int(height), f"{path}:{node.line}"))
            classes.append(self.classes.index(name))
            flags.append(node.text("difficult", default="0").strip() == "1")
        corner = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        return Objects(
            boxes=corner,
            classes=np.array(classes, dtype=np.int64),
            difficult=np.array(flags, dtype=bool),
            crowd=np.zeros(len(boxes), dtype=bool),
            area=np.prod(corner[:, 2:] - corner[:, :2], axis=1),
            ids=np.arange(len(boxes)),
        )

    def masks(self, i: int) -> np.ndarray:
        """bool (n, H, W) from SegmentationObject, whose k-th colour is the k-th object."""
        numbers = self._indexed(i, "SegmentationObject")
        count = len(self.objects(i))
        if numbers[numbers < 255].max(initial=0) > count:
            raise UserError(
                f"{self._beside(i, 'SegmentationObject', '.png')}: shows more objects than the annotation lists"
            )
        return numbers == np.arange(1, count + 1)[:, None, None]

    def segmentation(self, i: int) -> np.ndarray:
        found = self._indexed(i, "SegmentationClass")
        if found[found < 255].max(initial=0) > len(self.colours):
            raise UserError(
                f"{self._beside(i, 'SegmentationClass', '.png')}: has colours beyond the {len(self.colours)} classes"
            )
        if self.colours == self.classes:
            return found
        number = np.full(256, 255, dtype=np.uint8)
        number[0] = 0
        for k, name in enumerate(self.colours, 1):
            number[k] = self.classes.index(name) + 1 if name in self.classes else 255
        return number[found]

    def _indexed(self, i: int, folder: str) -> np.ndarray:
        path = self._beside(i, folder, ".png")
        try:
            with Image.open(path) as image:
                if image.mode not in ("P", "L"):
                    raise UserError(f"{path}: expected a palette image, found mode {image.mode}")
                return np.asarray(image)
        except FileNotFoundError:
            raise UserError(
                f"{path}: no segmentation of this image; open the data set with task segmentation"
            ) from None
        except (OSError, SyntaxError) as error:
            raise UserError(f"{path}: cannot be decoded: {error}") from None

    def _beside(self, i: int, folder: str, extension: str) -> Path:
        image = Path(self.where(i))
        return image.parents[1] / folder / f"{image.stem}{extension}"

    def _take(self, indices: np.ndarray) -> VocSource:
        names, store = self.names.take(indices), self.store.take(indices)
        part = VocSource(names, self.sizes[indices], self.classes, store, self.targets[indices])
        part.colours = self.colours
        return part


@dataclass
class Node:
    """An XML element with the line it starts in."""

    path: Path
    tag: str
    line: int
    content: str = ""
    children: list[Node] = field(default_factory=list)

    def all(self, tag: str) -> list[Node]:
        return [c for c in self.children if c.tag == tag]

    def one(self, *tags: str) -> Node | None:
        node: Node | None = self
        for tag in tags:
            node = next(iter(node.all(tag)), None) if node else None
        return node

    def text(self, *tags: str, default: str | None = None) -> str:
        found = self.one(*tags)
        if found is None:
            if default is not None:
                return default
            raise UserError(f"{self.path}:{self.line}: <{self.tag}> has no <{'><'.join(tags)}>")
        return found.content.strip()

    def number(self, *tags: str) -> float:
        text = self.text(*tags)
        try:
            return float(text)
        except ValueError:
            found = self.one(*tags)
            raise UserError(f"{self.path}:{found.line if found else self.line}: {text!r} is not a number") from None


def parse(path: Path) -> Node:
    """The root element of an XML file.  Raises UserError with the line where it stops being XML."""
    parser = xml.parsers.expat.ParserCreate()
    open_nodes = [Node(path, "", 0)]

    def start(tag: str, _: dict[str, str]) -> None:
        node = Node(path, tag, parser.CurrentLineNumber)
        open_nodes[-1].children.append(node)
        open_nodes.append(node)

    def text(data: str) -> None:
        open_nodes[-1].content += data

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: open_nodes.pop()
    parser.CharacterDataHandler = text
    try:
        parser.Parse(path.read_bytes(), True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except xml.parsers.expat.ExpatError as error:
        raise UserError(f"{path}:{error.lineno}: not XML: {xml.parsers.expat.errors.messages[error.code]}") from None
    return open_nodes[0].children[0]
