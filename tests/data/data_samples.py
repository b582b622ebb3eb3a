"""A tiny set in every layout that is read, and the functions that worker processes call (no torch in here)."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.data import arrays, open_source, specs
from zoo.data.archive_sets import pack_zip, write_shards
from zoo.data.source import Source

VOC = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
]
VOC += ["sheep", "sofa", "train", "tvmonitor"]


def picture(path: Path, seed: int, size: tuple[int, int] = (20, 16), mode: str = "RGB") -> Path:
    """Smooth noise as an image file of the kind that its extension says."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR).convert(mode).save(path)
    return path


def folders(root: Path, parts=("train", "val"), classes=("ant", "bee", "cat"), each: int = 4) -> Path:
    for p, part in enumerate(parts):
        for c, name in enumerate(classes):
            for i in range(each):
                picture(root / part / name / f"{name}_{i}.{'JPEG' if i % 2 else 'jpg'}", 100 * p + 10 * c + i)
    return root


def build_folder(root):
    folders(root)


def build_images(root):
    for i in range(6):
        picture(root / "train" / f"holiday {i % 2}" / f"ü{i}.png", i)


def build_zip(root):
    source = open_source("folder", "train", folders(root.with_name(f"{root.name}_folder")))
    pack_zip(source, root, "train")


def build_shards(root):
    source = open_source("folder", "train", folders(root.with_name(f"{root.name}_folder")))
    write_shards(source, root, "train", per_shard=5)


def build_foreign_shards(root):
    build_shards(root)
    (root / "train.index.tsv").unlink()


def build_idx(root):
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    for part in ("train", "test"):
        images, labels = arrays.FILES[part]
        arrays.write(root / f"{images}.gz", rng.integers(0, 256, (12, 28, 28), dtype=np.uint8))
        arrays.write(root / labels, np.arange(12, dtype=np.uint8) % 10)


def build_cifar(root, classes=10):
    rng = np.random.default_rng(0)
    base = root / ("cifar-10-batches-py" if classes == 10 else "cifar-100-python")
    base.mkdir(parents=True)
    files = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"] if classes == 10 else ["train", "test"]
    for name in files:
        labels = "labels" if classes == 10 else "fine_labels"
        data = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        (base / name).write_bytes(pickle.dumps({"data": data, labels: [0, 1, 2, classes - 1]}))
    meta, key = ("batches.meta", "label_names") if classes == 10 else ("meta", "fine_label_names")
    (base / meta).write_bytes(pickle.dumps({key: [f"class {k}" for k in range(classes)]}))


def build_cifar100(root):
    build_cifar(root, 100)


def build_svhn(root):
    from scipy.io import savemat

    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    savemat(root / "train_32x32.mat", {"X": pixels, "y": np.array([[10], [1], [2], [3], [9]], dtype=np.uint8)})


def build_stl(root):
    base = root / "stl10_binary"
    base.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 3), ("test", 2), ("unlabeled", 4)):
        rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8).tofile(base / f"{part}_X.bin")
        np.arange(1, count + 1, dtype=np.uint8).tofile(base / f"{part}_y.bin")


def build_places(root):
    lines = []
    for k, name in enumerate(("a/abbey", "z/zoo/outdoor", "b/bar")):
        picture(root / "data/vision/torralba/deeplearning/images256" / name / f"gsun_{k}.jpg", k)
        lines.append(f"{name}/gsun_{k}.jpg {(0, 204, 7)[k]}\n")
    folder = root / "trainvalsplit_places205"
    folder.mkdir()
    (folder / "train_places205.csv").write_text("".join(lines))


def build_inaturalist(root):
    files = [f"train_val2018/Plantae/{k}/{k:08x}.jpg" for k in (7477, 12, 8141)]
    for k, name in enumerate(files):
        picture(root / name, k)
    content = {
        "images": [{"id": 10 + k, "file_name": f} for k, f in enumerate(files)],
        "annotations": [{"id": k, "image_id": 10 + k, "category_id": c} for k, c in enumerate((7477, 12, 8141))],
        "categories": [{"id": 12, "name": "a plant", "supercategory": "Plantae"}],
    }
    (root / "train2018.json").write_text(json.dumps(content))


def voc_year(base: Path, stems: list[str], classes=VOC, part: str = "train", seed: int = 0) -> None:
    """A VOC folder in which image k shows class k and, difficult, class k + 1."""
    for k, stem in enumerate(stems):
        picture(base / "JPEGImages" / f"{stem}.jpg", seed + k, size=(40, 30))
        objects = "".join(
            f"<object>\n<name>{classes[(k + d) % len(classes)]}</name>\n<difficult>{d}</difficult>\n"
            f"<bndbox><xmin>{1 + d}</xmin><ymin>1</ymin><xmax>{10 + d}</xmax><ymax>20</ymax></bndbox>\n</object>\n"
            for d in (0, 1)
        )
        xml = f"<annotation>\n<size><width>40</width><height>30</height></size>\n{objects}</annotation>\n"
        (base / "Annotations").mkdir(exist_ok=True)
        (base / "Annotations" / f"{stem}.xml").write_text(xml)
        for folder, values in (("Class", (k % 20 + 1, (k + 1) % 20 + 1)), ("Object", (1, 2))):
            mask = np.zeros((30, 40), np.uint8)
            mask[:20, 1:11] = values[1]
            mask[:20, :5] = values[0]
            mask[20] = 255
            (base / f"Segmentation{folder}").mkdir(exist_ok=True)
            image = Image.fromarray(mask)
            image.putpalette([c for n in range(256) for c in (n, n, n)])
            image.save(base / f"Segmentation{folder}" / f"{stem}.png")
    for task in ("Main", "Segmentation"):
        (base / "ImageSets" / task).mkdir(parents=True, exist_ok=True)
        (base / "ImageSets" / task / f"{part}.txt").write_text("".join(f"{s}\n" for s in stems))
    for c, name in enumerate(classes):
        marks = [1 if c == k % 20 else 0 if c == (k + 1) % 20 else -1 for k in range(len(stems))]
        lines = "".join(f"{s} {m:2d}\n" for s, m in zip(stems, marks, strict=True))
        (base / "ImageSets" / "Main" / f"{name}_{part}.txt").write_text(lines)


def build_voc2007(root):
    voc_year(root / "VOCdevkit" / "VOC2007", [f"{k:06d}" for k in range(1, 8)])


def build_voc0712(root):
    voc_year(root / "VOC2007", [f"{k:06d}" for k in range(1, 5)], part="trainval")
    voc_year(root / "VOC2012", [f"2008_{k:06d}" for k in range(1, 4)], part="trainval", seed=50)


COCO_SHAPES = [
    {
        "bbox": [2, 3, 10, 8],
        "category_id": 18,
        "iscrowd": 0,
        "segmentation": [[2, 3, 12, 3, 12, 11, 2, 11]],
        "area": 80,
    },
    {
        "bbox": [0, 0, 4, 2],
        "category_id": 1,
        "iscrowd": 1,
        "segmentation": {"counts": [0, 2] + [14, 2] * 3 + [270], "size": [16, 20]},
        "area": 8,
    },
]


def build_coco(root, shapes=COCO_SHAPES):
    """Images 3, 7 and 9 (listed out of order); 7 has a box and a crowd, 3 a box, 9 nothing."""
    (root / "annotations").mkdir(parents=True)
    for k in (3, 7, 9):
        picture(root / "train" / f"{k:012d}.jpg", k)
    placed = [
        {**shapes[0], "id": 5, "image_id": 3},
        *({**s, "id": 11 + i, "image_id": 7} for i, s in enumerate(shapes)),
    ]
    content = {
        "images": [{"id": k, "file_name": f"{k:012d}.jpg", "width": 20, "height": 16} for k in (9, 3, 7)],
        "annotations": placed,
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
    }
    rows = ",\n".join(json.dumps(a) for a in placed)
    head = json.dumps({k: v for k, v in content.items() if k != "annotations"})[1:-1]
    (root / "annotations" / "instances_train.json").write_text(f'{{{head},\n"annotations": [\n{rows}\n]}}\n')


YFCC_IDS = (0, 7, 12_345, 999, 95_920_148)


def build_yfcc(root):
    from zoo.data.yfcc import place

    for k, number in enumerate(YFCC_IDS):
        archive, member = place(number)
        image = picture(root / "loose" / f"{number}.jpg", k)
        (root / archive).parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(root / archive, "a") as file:
            file.write(image, member)
            image.unlink()
    np.save(root / "flickr_unique_ids.npy", np.array(YFCC_IDS))


def build_yfcc_without_ids(root):
    build_yfcc(root)
    (root / "flickr_unique_ids.npy").unlink()


def scenes(form: str) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        from zoo.data import make_scenes

        make_scenes(root, form, items="digits", images=20)

    return build


@dataclass(frozen=True)
class Sample:
    """build writes the set below a folder; the rest is what open_source is given."""

    dataset: str
    build: Callable[[Path], None] | None
    split: str = "train"
    cache: str = "no"

    def open(self, root: Path) -> Source:
        return open_source(self.dataset, self.split, None if self.build is None else root, cache=self.cache)


SAMPLES = {
    "digits": Sample("digits", None, "val"),
    "folder": Sample("folder", build_folder),
    "images": Sample("images", build_images),
    "zip": Sample("folder", build_zip),
    "zip_part": Sample("folder", build_zip, cache="part"),
    "zip_full": Sample("folder", build_zip, cache="full"),
    "shards": Sample("folder", build_shards),
    "foreign_shards": Sample("folder", build_foreign_shards),
    "imagenet": Sample("imagenet", build_folder, "val"),
    "fashion_mnist": Sample("fashion_mnist", build_idx, "test"),
    "mnist": Sample("mnist", build_idx),
    "cifar10": Sample("cifar10", build_cifar),
    "cifar100": Sample("cifar100", build_cifar100, "test"),
    "svhn": Sample("svhn", build_svhn),
    "stl10": Sample("stl10", build_stl),
    "stl10_unlabelled": Sample("stl10", build_stl, "unlabeled"),
    "places205": Sample("places205", build_places),
    "inaturalist2018": Sample("inaturalist2018", build_inaturalist),
    "voc2007": Sample("voc2007", build_voc2007),
    "voc0712": Sample("voc0712", build_voc0712, "trainval"),
    "voc2007_segmentation": Sample("voc2007_segmentation", build_voc2007),
    "coco": Sample("coco", build_coco),
    "yfcc100m": Sample("yfcc100m", build_yfcc),
    "yfcc_without_ids": Sample("yfcc100m", build_yfcc_without_ids),
    "scenes_voc": Sample("scenes_digits_voc", scenes("voc")),
    "scenes_coco": Sample("scenes_digits_coco", scenes("coco"), "test"),
}


def loosened() -> dict[str, specs.DatasetSpec]:
    """datasets.yaml without the sizes that only the complete sets have."""
    found = {}
    for name, spec in specs.load(specs.FILE).items():
        splits = {s: rule.model_copy(update={"count": None}) for s, rule in spec.splits.items()}
        update = {"splits": splits, "classes": None if name == "imagenet" else spec.classes}
        found[name] = spec.model_copy(update=update) if name != "digits" else spec
    return found


def stream(source: Source) -> list[tuple[str, int, bytes]]:
    """Everything that a worker would hand over."""
    return [(source.name(i), source.label(i), source.pixels(i).tobytes()) for i in range(len(source))]
