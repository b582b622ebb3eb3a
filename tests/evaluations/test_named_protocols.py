"""Every protocol of the papers runs end to end, from a tree in the real layout of its data set to its record.

Images are few and tiny, networks narrow; resizing, crops, layers, pooling, selection and metrics are the protocol's own.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import zoo
from evaluations import measure, protocol
from results import record as records
from zoo import backbones, yamlfile
from zoo.backbones import vgg
from zoo.backbones.base import Backbone
from zoo.backbones.sobel import Stem
from zoo.data import specs

SETS = ("imagenet", "places205", "inaturalist2018", "voc2007", "cifar10", "cifar100", "svhn")
DETECTORS = ("rcnn", "detr", "segmentation")  # tests/detection
NAMES = [n for n in protocol.names() if protocol.load(n).dataset in SETS and protocol.load(n).kind not in DETECTORS]
CARD = {
    "resize": 256,
    "crop": 224,
    "channels": 3,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "pad": 0,
}
CLASSES, EACH, TESTED = 3, 4, 2  # classes, training and test images of each
VOC = specs.load(specs.FILE)["voc2007"].classes


class Narrow(vgg.Vgg16):
    """VGG-16 with as many layers and maps as large, of two channels."""

    def __init__(self, stem: str = "deepercluster_sobel", last_relu: bool = False):
        Backbone.__init__(self)
        self.stem, self.last_relu = Stem("rgb" if stem == "merged" else stem), last_relu
        channels, blocks = self.stem.channels, []
        for i, width in enumerate(vgg.WIDTHS):
            if not width:
                blocks.append(nn.MaxPool2d(2, 2))
                continue
            kernel, padding = (5, 3) if stem == "merged" and i == 0 else (3, 1)
            blocks += [nn.Conv2d(channels, 2, kernel, padding=padding), nn.BatchNorm2d(2), nn.ReLU(inplace=True)]
            channels = 2
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(nn.Linear(98, 8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 8))
        self.dims = {f"conv{i}": 2 for i in range(1, 14)} | {"pool5": 2, "fc6": 8, "fc7": 8}
        self.layers, self.dim = tuple(self.dims), 8

    def stages(self, x):
        x, number = self.stem(x), 0
        for block in self.features:
            x = block(x)
            if isinstance(block, nn.ReLU):
                number += 1
                yield f"conv{number}", x
        yield "pool5", x
        yield from vgg.fully_connected(x, self.classifier, (2, 7, 7), self.last_relu)


class Alex(Backbone):
    """AlexNet's five maps (55, 27 and three of 13 pixels) with eight channels."""

    def __init__(self):
        super().__init__()
        shapes = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
        self.convs = nn.ModuleList(nn.Conv2d(8 if i else 3, 8, *shape) for i, shape in enumerate(shapes))
        self.layers = tuple(f"conv{i}" for i in range(1, 6))
        self.dims, self.dim = dict.fromkeys(self.layers, 8), 8

    def stages(self, x):
        for i, conv in enumerate(self.convs):
            x = conv(x if i not in (1, 2) else nn.functional.max_pool2d(x, 3, 2)).relu()
            yield self.layers[i], x


NETWORKS = {
    "narrow_vgg": {"name": "narrow_vgg"},
    "narrow_alexnet": {"name": "narrow_alexnet"},
    "nin": {"name": "nin"},
    "resnet": {"name": "tiny_resnet", "width": 16, "blocks": [1, 1], "stem_stride": 2, "in_channels": 3},
}


def picture(path: Path, kind: int, seed: int) -> None:
    """A tiny JPEG whose colour tells its class."""
    pixels = np.random.default_rng(seed).integers(0, 60, (20, 26, 3))
    pixels[..., kind % 3] += 120 + 20 * (kind // 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def images(part: str) -> list[tuple[int, int]]:
    """(class, number) of every image of a part."""
    return [(k, i) for k in range(CLASSES) for i in range(EACH if part == "train" else TESTED)]


def imagenet(root: Path) -> None:
    for p, part in enumerate(("train", "val")):
        for k, i in images(part):
            picture(root / part / f"n0000{k}" / f"n0000{k}_{i}.JPEG", k, 100 * p + 10 * k + i)
    for share in (1, 10):
        (root / f"{share}percent.txt").write_text("".join(f"n0000{k}_{i}.JPEG\n" for k, i in images("train") if i < 3))


def places205(root: Path) -> None:
    for p, part in enumerate(("train", "val")):
        lines = []
        for k, i in images(part):
            name = f"{'abc'[k]}/{'abc'[k]}bbey/gsun_{part}{i}.jpg"
            picture(root / "data/vision/torralba/deeplearning/images256" / name, k, 100 * p + 10 * k + i)
            lines.append(f"{name} {k}\n")
        (root / "trainvalsplit_places205").mkdir(exist_ok=True)
        (root / f"trainvalsplit_places205/{part}_places205.csv").write_text("".join(lines))


def inaturalist2018(root: Path) -> None:
    for p, part in enumerate(("train", "val")):
        content = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 7, "name": "a plant", "supercategory": "Plantae"}],
        }
        for number, (k, i) in enumerate(images(part)):
            name = f"train_val2018/Plantae/{k}/{part}{i}.jpg"
            picture(root / name, k, 100 * p + 10 * k + i)
            content["images"].append({"id": number, "file_name": name})
            content["annotations"].append({"id": number, "image_id": number, "category_id": k})
        (root / f"{part}2018.json").write_text(json.dumps(content))


def voc2007(root: Path) -> None:
    """Image i of a part shows class i and, difficult, class i + 1; each class is in train, in val, and in test."""
    base = root / "VOCdevkit" / "VOC2007"
    (base / "ImageSets/Main").mkdir(parents=True)
    (base / "Annotations").mkdir()
    parts = {part: [f"{p}{i:05d}" for i in range(20)] for p, part in enumerate(("train", "val", "test"))}
    for part, stems in {**parts, "trainval": parts["train"] + parts["val"]}.items():
        (base / f"ImageSets/Main/{part}.txt").write_text("".join(f"{s}\n" for s in stems))
        for c, name in enumerate(VOC):
            marks = [1 if c == n % 20 else 0 if c == (n + 1) % 20 else -1 for n in range(len(stems))]
            lines = "".join(f"{s} {m:2d}\n" for s, m in zip(stems, marks, strict=True))
            (base / f"ImageSets/Main/{name}_{part}.txt").write_text(lines)
        for n, stem in enumerate(stems):
            picture(base / f"JPEGImages/{stem}.jpg", n % 20, n)
            objects = "".join(
                f"<object><name>{VOC[(n + d) % 20]}</name><difficult>{d}</difficult><bndbox><xmin>1</xmin><ymin>1</ymin>"
                f"<xmax>20</xmax><ymax>18</ymax></bndbox></object>"
                for d in (0, 1)
            )
            size = "<size><width>26</width><height>20</height></size>"
            (base / f"Annotations/{stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")


def cifar(root: Path, classes: int = 10) -> None:
    rng, base = np.random.default_rng(0), root / ("cifar-10-batches-py" if classes == 10 else "cifar-100-python")
    base.mkdir(parents=True)
    files = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"] if classes == 10 else ["train", "test"]
    for name in files:
        pixels = rng.integers(0, 256, (6, 3072), dtype=np.uint8)
        labels = "labels" if classes == 10 else "fine_labels"
        (base / name).write_bytes(pickle.dumps({"data": pixels, labels: [0, 1, 2, 0, 1, 2]}))
    meta, key = ("batches.meta", "label_names") if classes == 10 else ("meta", "fine_label_names")
    (base / meta).write_bytes(pickle.dumps({key: [f"class {k}" for k in range(classes)]}))


def svhn(root: Path) -> None:
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        pixels = rng.integers(0, 256, (32, 32, 3, 6), dtype=np.uint8)
        savemat(
            root / f"{part}_32x32.mat", {"X": pixels, "y": np.array([[1], [2], [3], [1], [2], [3]], dtype=np.uint8)}
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(data, models): every data set in its layout, and a run folder of every network."""
    patch, home = pytest.MonkeyPatch(), tmp_path_factory.mktemp("named")
    patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    for name in SETS:
        (home / name).mkdir()
        {"cifar10": cifar, "cifar100": lambda root: cifar(root, 100)}.get(name, globals().get(name))(home / name)
    import torchvision

    for module in ("cifar", "svhn"):
        patch.setattr(getattr(torchvision.datasets, module), "check_integrity", lambda *_: True)
    table = small_sets(home)
    patch.setattr(specs, "load", lambda *_: table)
    patch.setitem(backbones.BUILDERS, "narrow_vgg", Narrow)
    patch.setitem(backbones.BUILDERS, "narrow_alexnet", Alex)
    patch.setattr(vgg, "Vgg16", Narrow)
    models = {name: untrained(home / "models" / name, spec) for name, spec in NETWORKS.items()}
    yield home, models
    patch.undo()


def small_sets(home: Path):
    """datasets.yaml without the sizes, classes and hash sums that only the complete sets have."""
    table = {}
    for name, spec in specs.load(specs.FILE).items():
        splits = {}
        for split, rule in spec.splits.items():
            update = {"count": None}
            if rule.names:
                update["sha256"] = hashlib.sha256((home / name / rule.names).read_bytes()).hexdigest()
            splits[split] = rule.model_copy(update=update)
        table[name] = spec.model_copy(
            update={"splits": splits, "classes": None if name == "imagenet" else spec.classes}
        )
    return {**table, "digits": specs.load(specs.FILE)["digits"]}


def untrained(folder: Path, spec: dict) -> Path:
    """A run folder of an untrained network, with a linear projection as MoCo's runs have it."""
    recipe = zoo.resolve("mocov1_digits").dump()
    options = {k: v for k, v in spec.items() if k != "name"}
    small = {"resize": None, "crop": None} if spec["name"] == "nin" else {}
    recipe |= {"backbone": {"name": spec["name"], "options": options}, "input": {**recipe["input"], **CARD, **small}}
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    net = backbones.build(spec)
    head = {"fc.weight": torch.randn(5, net.dim), "fc.bias": torch.zeros(5)}
    torch.save({**net.state_dict(), **head}, folder / "weights.pth")
    (folder / "recipe.yaml").write_text(yamlfile.dumps(recipe))
    return folder


def network_of(wanted: protocol.Protocol) -> str:
    if wanted.dataset in ("cifar10", "cifar100") and not wanted.transform.resize or wanted.id.endswith("_unmix"):
        return "nin"
    if "conv13" in wanted.layers or wanted.kind == "voc" or wanted.head.get("merge_sobel"):
        return "narrow_vgg"
    return "narrow_alexnet" if "conv4" in wanted.layers else "resnet"


def cheap(wanted: protocol.Protocol) -> dict:
    """What makes a protocol short and leaves everything else as it is."""
    head, given = protocol.complete(wanted).head, {}
    for name, value in (("epochs", 2), ("snapshots", 2), ("iterations", 3), ("views", 1), ("draws", 2), ("shots", [1])):
        if name in head:
            given[f"head.{name}"] = value
    if "batch" in head:
        given["head.batch"] = 6
    if "warmup" in head.get("schedule", {}) and head["schedule"]["warmup"]:
        given["head.schedule.warmup"] = 1
    if "k" in wanted.grid:
        given["grid.k"] = [5]
    if head.get("clusters"):
        given["head.clusters"] = CLASSES
    if head.get("percent"):
        given["head.percent"] = 25
    return given | ({"seeds": 2} if wanted.seeds > 2 else {})


@pytest.mark.parametrize("name", NAMES)
def test_a_named_protocol_runs_from_files_to_record(name, world, tmp_path):
    home, models = world
    wanted = protocol.load(name)
    folder = models[network_of(wanted)]
    if wanted.head.get("assignments") == "own":
        stems = [f"n0000{k}/n0000{k}_{i}.JPEG" for k, i in images("train")]
        np.savez(folder / "labels.npz", names=np.array(stems), labels=np.array([[k] for k, _ in images("train")]))
    given = {**cheap(wanted), "data": str(home / wanted.dataset), "batch": 8}
    found = records.read(measure.evaluate(name, str(folder), given, out=str(tmp_path), quiet=True))
    few = wanted.dataset in ("imagenet", "cifar10", "svhn")  # at most ten classes here: no top5
    promised = [m for m in wanted.metrics if not (few and m == "top5") and m not in ("map_4", "map_16", "map_64")]
    assert set(promised) <= set(found.metrics), "the file promises metrics that a run does not give"
    assert all(
        np.isfinite(m.value) and 0 <= m.value <= 100 or k == "anmi" or k == "ari" for k, m in found.metrics.items()
    )
    tested = {"voc2007": 20, "cifar10": 6, "cifar100": 6, "svhn": 6}.get(wanted.dataset, CLASSES * TESTED)
    if wanted.head.get("score") == "train":
        tested = CLASSES * EACH
    assert {m.n for m in found.metrics.values()} == {tested}
    assert all(m.ci and m.ci[0] - 1e-9 <= m.value <= m.ci[1] + 1e-9 for m in found.metrics.values())
    assert found.form == wanted.form and found.test_reads == (wanted.head.get("score") != "train")
    assert (found.selection is None) == (wanted.select.on == "none")
    if wanted.kind in ("voc", "finetune"):
        assert not list((tmp_path / "probes").rglob("*.pt"))
