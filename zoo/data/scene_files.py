"""Composed scenes on disk, in VOC's and COCO's own layouts, both from the same scenes.

VOC has no crowds: a heap is one difficult object there.  COCO has no difficult objects: they are ordinary there.  A file
``scenes.json`` says which recipe made the folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from ..errors import UserError, writing
from . import rle
from .scenes import SIDE, VERSION, Scene, compose
from .source import Source

PARTS = {"train": 0.6, "val": 0.2, "test": 0.2}
NAMES = {
    "fashion_mnist": [
        "tshirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankleboot",
    ],
    "digits": [str(k) for k in range(10)],
}
Drawn = dict[str, list[Scene]]


def make(folder: Path, form: str, items: str, images: int, seed: int, opened: Callable[[str, str], Source]) -> Path:
    """See zoo.data.make_scenes.  ``opened`` gives the images of a data set's split."""
    if form not in ("voc", "coco", "both") or items not in NAMES or images < 10 or seed < 0:
        raise UserError(
            f"scenes: format {form!r}, items {items!r}, {images} images, seed {seed}: the format is voc, coco or both, the"
            f" items are {' or '.join(NAMES)}, at least 10 images, a seed of 0 or more"
        )
    targets = {f: folder / f if form == "both" else folder for f in (("voc", "coco") if form == "both" else (form,))}
    sources = {part: opened(items, split) for part, split in {"train": "fit", "val": "val", "test": "test"}.items()}
    recipe: dict[str, Any] = {"version": VERSION, "images": images, "seed": seed, "items": {}}
    recipe["items"] = {part: f"{items} {source.fingerprint}" for part, source in sources.items()}
    missing = {f: target for f, target in targets.items() if not _made(target, {**recipe, "format": f})}
    if missing:
        drawn = _draw(sources, images, seed)
        for f, target in missing.items():
            _whole(target, lambda t, f=f: WRITERS[f](t, drawn, NAMES[items]), {**recipe, "format": f})  # type: ignore[misc]
    return folder


def _made(target: Path, recipe: dict[str, Any]) -> bool:
    note = target / "scenes.json"
    if note.is_file() and json.loads(note.read_text()) == recipe:
        return True
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target}: holds something else already (no scenes.json of this recipe); name a new folder")
    return False


def _whole(target: Path, write: Callable[[Path], None], recipe: dict[str, Any]) -> None:
    """Write into a folder beside ``target`` and rename it: what is there is complete."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with writing(target):
            partial.mkdir(parents=True)
        write(partial)
        (partial / "scenes.json").write_text(json.dumps(recipe, indent=1) + "\n")
        if target.exists():
            target.rmdir()
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _draw(sources: dict[str, Source], images: int, seed: int) -> Drawn:
    from tqdm import tqdm

    bar = tqdm(total=images, desc="composing scenes", unit="img", disable=None, leave=False)
    drawn: Drawn = {}
    number = 0
    for part, source in sources.items():
        drawn[part] = []
        for _ in range(round(PARTS[part] * images)):
            drawn[part].append(compose(source, seed, number))
            number += 1
            bar.update()
    bar.close()
    return drawn


def _write_coco(folder: Path, drawn: Drawn, names: list[str]) -> None:
    """<part>/<12 digits>.jpg and annotations/instances_<part>.json, one annotation a line."""
    (folder / "annotations").mkdir()
    image_id = ident = 0
    for part, scenes in drawn.items():
        (folder / part).mkdir()
        images, annotations = [], []
        for scene in scenes:
            image_id += 1
            name = f"{image_id:012d}.jpg"
            (folder / part / name).write_bytes(scene.jpeg)
            images.append({"id": image_id, "file_name": name, "width": SIDE, "height": SIDE})
            for item in scene.items:
                ident += 1
                x0, y0, x1, y1 = item.box
                annotations.append(
                    {
                        "id": ident,
                        "image_id": image_id,
                        "category_id": item.label + 1,
                        "iscrowd": int(item.crowd),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": int(item.mask.sum()),
                        "segmentation": rle.encode(item.mask),
                    }
                )
        categories = [{"id": k + 1, "name": n, "supercategory": "item"} for k, n in enumerate(names)]
        lists = {"images": images, "annotations": annotations, "categories": categories}
        text = ",\n".join(f'"{key}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]" for key, rows in lists.items())
        (folder / "annotations" / f"instances_{part}.json").write_text("{\n" + text + "\n}\n")


def _write_voc(folder: Path, drawn: Drawn, names: list[str]) -> None:
    """JPEGImages, Annotations, SegmentationClass, SegmentationObject and the image lists."""
    for name in (
        "JPEGImages",
        "Annotations",
        "SegmentationClass",
        "SegmentationObject",
        "ImageSets/Main",
        "ImageSets/Segmentation",
    ):
        (folder / name).mkdir(parents=True)
    order = sorted(names)
    rows: dict[str, list[tuple[str, Scene]]] = {"train": [], "val": [], "test": []}
    number = 0
    for part, scenes in drawn.items():
        for scene in scenes:
            number += 1
            stem = f"{number:06d}"
            rows[part].append((stem, scene))
            (folder / "JPEGImages" / f"{stem}.jpg").write_bytes(scene.jpeg)
            (folder / "Annotations" / f"{stem}.xml").write_text(_xml(stem, scene, names))
            numbers = [(order.index(names[item.label]) + 1, k) for k, item in enumerate(scene.items, 1)]
            for kind, values in (("Class", [n for n, _ in numbers]), ("Object", [k for _, k in numbers])):
                _png(scene, values, folder / f"Segmentation{kind}" / f"{stem}.png")
    for part, listed in {**rows, "trainval": rows["train"] + rows["val"]}.items():
        stems = "".join(f"{stem}\n" for stem, _ in listed)
        for task in ("Main", "Segmentation"):
            (folder / "ImageSets" / task / f"{part}.txt").write_text(stems)
        for label, name in enumerate(names):
            lines = "".join(f"{stem} {_present(scene, label):2d}\n" for stem, scene in listed)
            (folder / "ImageSets" / "Main" / f"{name}_{part}.txt").write_text(lines)


def _present(scene: Scene, label: int) -> int:
    """1 when the class is there, 0 when only difficult objects show it, -1 when it is absent."""
    flags = [item.difficult for item in scene.items if item.label == label]
    return -1 if not flags else 0 if all(flags) else 1


def _xml(stem: str, scene: Scene, names: list[str]) -> str:
    objects = ""
    for item in scene.items:
        x0, y0, x1, y1 = item.box
        objects += (
            f"\t<object>\n\t\t<name>{escape(names[item.label])}</name>\n\t\t<pose>Unspecified</pose>\n"
            f"\t\t<truncated>{int(item.mask.sum() < item.whole)}</truncated>\n\t\t<difficult>{int(item.difficult)}</difficult>\n"
            f"\t\t<bndbox>\n\t\t\t<xmin>{x0 + 1}</xmin>\n\t\t\t<ymin>{y0 + 1}</ymin>\n"
            f"\t\t\t<xmax>{x1}</xmax>\n\t\t\t<ymax>{y1}</ymax>\n\t\t</bndbox>\n\t</object>\n"
        )
    return (
        f"<annotation>\n\t<folder>scenes</folder>\n\t<filename>{stem}.jpg</filename>\n\t<size>\n\t\t<width>{SIDE}</width>\n"
        f"\t\t<height>{SIDE}</height>\n\t\t<depth>3</depth>\n\t</size>\n\t<segmented>1</segmented>\n{objects}</annotation>\n"
    )


def _png(scene: Scene, values: list[int], path: Path) -> None:
    """A palette image as VOC has them: the value of each item, and a line of 255 around it."""
    picture = np.zeros((SIDE, SIDE), dtype=np.uint8)
    for item, value in zip(scene.items, values, strict=True):
        picture[item.mask] = value
    edge = np.zeros((SIDE, SIDE), dtype=bool)
    for axis in (0, 1):
        change = np.diff(picture.astype(np.int16), axis=axis) != 0
        edge |= np.pad(change, [(0, 1), (0, 0)] if axis == 0 else [(0, 0), (0, 1)])
    picture[edge] = 255
    image = Image.fromarray(picture)
    image.putpalette(_palette())
    image.save(path, compress_level=1)


@lru_cache(maxsize=1)
def _palette() -> list[int]:
    """VOC's colours: the bits of a number spread over red, green and blue, high ones first."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    for number in range(256):
        for bit in range(8):
            for channel in range(3):
                colours[number, channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return [int(v) for v in colours.ravel()]


WRITERS: dict[str, Callable[[Path, Drawn, list[str]], None]] = {"voc": _write_voc, "coco": _write_coco}
