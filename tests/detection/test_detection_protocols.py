"""Every named protocol of detection and segmentation runs end to end, from a tree in the real layout of its data to its record.

Images are few and small, networks narrow; everything else is the protocol's own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detection_fakes import COLOURS, coco, run_folder
from PIL import Image
from scipy.io import savemat
from test_detectors import Vgg

from evaluations import measure, protocol
from results import record as records
from zoo import backbones
from zoo.data import specs
from zoo.errors import UserError

NAMES = [n for n in protocol.names() if protocol.load(n).kind in ("rcnn", "detr", "segmentation")]
VOC = specs.load(specs.FILE)["voc2007"].classes


def voc(root: Path, year: int, parts, seed=0) -> None:
    """One rectangle of a class and one difficult of another in each image, with maps of classes and objects."""
    rng, base = np.random.default_rng(seed), root / "VOCdevkit" / f"VOC{year}"
    for folder in (
        "ImageSets/Main",
        "ImageSets/Segmentation",
        "Annotations",
        "JPEGImages",
        "SegmentationClass",
        "SegmentationObject",
    ):
        (base / folder).mkdir(parents=True)
    stems: dict[str, list[str]] = {}
    regions = {}
    for part, count in parts.items():
        stems[part] = [f"{year}_{part}{i:03d}" for i in range(count)]
        for i, stem in enumerate(stems[part]):
            pixels, picture = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8), np.zeros((48, 64), np.uint8)
            objects = ""
            for k, (x, y) in enumerate(((2, 4), (34, 10))):
                kind = (i + k) % 20
                pixels[y : y + 24, x : x + 26] = list(COLOURS.values())[kind % 3]
                picture[y : y + 24, x : x + 26] = kind + 1
                objects += (
                    f"<object><name>{VOC[kind]}</name><difficult>{k}</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
                    f"<xmax>{x + 26}</xmax><ymax>{y + 24}</ymax></bndbox></object>"
                )
            picture[0] = 255
            Image.fromarray(pixels).save(base / "JPEGImages" / f"{stem}.jpg")
            for folder in ("SegmentationClass", "SegmentationObject"):
                Image.fromarray(picture, mode="P").save(base / folder / f"{stem}.png")
            size = "<size><width>64</width><height>48</height></size>"
            (base / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
            regions[stem] = np.array([[5, 3, 28, 28], [11, 35, 34, 60], [1, 1, 48, 64]])  # y0, x0, y1, x1 from 1
    lists = {**stems, **({"trainval": stems["train"] + stems["val"]} if "train" in stems else {})}
    for part, names in lists.items():
        for task in ("Main", "Segmentation"):
            (base / "ImageSets" / task / f"{part}.txt").write_text("".join(f"{s}\n" for s in names))
        for c, name in enumerate(VOC):
            marks = [1 if int(s[-3:]) % 20 == c else -1 for s in names]
            text = "".join(f"{s} {m:2d}\n" for s, m in zip(names, marks, strict=True))
            (base / "ImageSets" / "Main" / f"{name}_{part}.txt").write_text(text)
    if year == 2007:
        (root / "selective_search_data").mkdir()
        for part, names in lists.items():
            cells = {"boxes": np.empty(len(names), object), "images": np.empty(len(names), object)}
            for i, stem in enumerate(names):
                cells["boxes"][i], cells["images"][i] = regions[stem].astype(float), stem
            savemat(root / "selective_search_data" / f"voc_2007_{part}.mat", cells)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(data, models by kind of network)."""
    home, patch = tmp_path_factory.mktemp("protocols"), pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    everything = {"train": 20, "val": 4, "test": 6}
    for name in ("voc2007", "voc0712", "voc2012_segmentation"):
        (home / name).mkdir()
    voc(home / "voc2007", 2007, everything)
    voc(home / "voc0712", 2007, everything)
    voc(home / "voc0712", 2012, {"train": 20, "val": 4}, seed=1)
    voc(home / "voc2012_segmentation", 2012, {"train": 8, "val": 4})
    coco(home / "coco2017", (("train2017", 12), ("val2017", 5)))
    for name in ("scenes_fashion_coco", "scenes_fashion_voc_segmentation"):
        (home / name).mkdir()
    coco(home / "scenes", (("train", 12), ("val", 4), ("test", 5)))
    table = {}
    for name, spec in specs.load(specs.FILE).items():
        splits = {s: rule.model_copy(update={"count": None}) for s, rule in spec.splits.items()}
        table[name] = spec.model_copy(update={"splits": splits, "classes": None if "coco" in name else spec.classes})
    patch.setattr(specs, "load", lambda *_: table)
    patch.setitem(backbones.BUILDERS, "vgg16", Vgg)
    resnet = run_folder(home / "resnet", "resnet18", width=16)
    tiny = run_folder(home / "tiny", width=16, blocks=[1, 1, 1, 1], stem_stride=2, in_channels=3)
    yield home, {"resnet": resnet, "tiny": tiny, "vgg": run_folder(home / "vgg", "vgg16")}
    patch.undo()


def cheap(wanted: protocol.Protocol) -> dict:
    """What makes a protocol short and leaves everything else as it is."""
    head, given = protocol.complete(wanted).head, {"head.batch": 4, "tensorboard": False, "seeds": 1}
    given |= {"head.epochs": 1} if "epochs" in head else {"head.iterations": 2}
    if head.get("group") is not None:
        given["head.group"] = 2
    if head.get("precise_norm"):
        given["head.precise_norm"] = 2
    if wanted.kind == "detr":
        given |= {
            "head.d_model": 32,
            "head.ffn": 32,
            "head.heads": 4,
            "head.encoder_layers": 1,
            "head.decoder_layers": 2,
        }
        given |= {"head.queries": 8}
    if "kept" in head:
        given |= {"head.kept": {"training": [60, 30], "testing": [60, 10]}, "head.regions": 16}
        given |= {"head.channels": 16, "head.box_features": 16, "head.score_threshold": 0.0}
    given |= {"head.views.short": [64, 80], "head.views.test_short": 64, "head.views.cap": 100}
    if head["views"]["crop"]:
        given["head.views.crop"] = {"short": [70], "size": [40, 60]}
    return given


@pytest.mark.parametrize("name", NAMES)
def test_a_named_protocol_runs_from_files_to_record(name, world, tmp_path):
    home, models = world
    wanted = protocol.load(name)
    network = "vgg" if wanted.head.get("detector") == "fast" else "tiny" if "scenes" in name else "resnet"
    given = {**cheap(wanted), "data": str(home / ("scenes" if "scenes" in name else wanted.dataset))}
    if name == "segment_scenes":
        given["dataset"] = "scenes_fashion_coco"
    found = records.read(measure.evaluate(name, str(models[network]), given, out=str(tmp_path), quiet=True))
    undefined = {"apl", "mask_apl", "apm", "aps"}  # no such object among so few
    assert set(wanted.metrics) - undefined <= set(found.metrics), "the file promises metrics that a run does not give"
    assert all(np.isfinite(m.value) and 0 <= m.value <= 100 and m.ci is not None for m in found.metrics.values())
    tested = {"voc2007": 6, "voc0712": 6, "voc2012_segmentation": 4, "coco2017": 5}.get(wanted.dataset, 5)
    assert {m.n for m in found.metrics.values()} == {tested} and found.test_reads == 1


def test_the_set_of_two_years_is_tested_on_2007(world):
    from zoo import data

    home, _ = world
    assert len(data.open_source("voc0712", "trainval", home / "voc0712")) == 48
    tested = data.open_source("voc0712", "test", home / "voc0712")
    assert len(tested) == 6 and all("VOC2007" in tested.name(i) for i in range(6))


def test_regions_of_selective_search_are_those_of_the_image(world):
    from evaluations.detection.proposals import SelectiveSearch
    from zoo import data

    home, _ = world
    source = data.open_source("voc2007", "val", home / "voc2007")
    found = SelectiveSearch(source, "val")
    assert found.boxes(1).tolist() == [[2, 4, 28, 28], [34, 10, 60, 34], [0, 0, 64, 48]]  # 0-based, x first
    with pytest.raises(UserError, match="no such file of proposals.*head.proposals=rpn"):
        SelectiveSearch(data.open_source("voc2007", "val", home / "voc0712").subset([0]), "nowhere")
    other = data.open_source("voc2007", "train", home / "voc2007")
    with pytest.raises(UserError, match="no proposals for image 2007_train000"):
        SelectiveSearch(other, "val")


def test_fast_rcnn_goes_without_selective_search(world, tmp_path):
    home, models = world
    given = {**cheap(protocol.load("voc07_detection_all")), "data": str(home / "voc2007"), "head.proposals": "rpn"}
    found = records.read(
        measure.evaluate("voc07_detection_all", str(models["vgg"]), given, out=str(tmp_path), quiet=True)
    )
    assert "map" in found.metrics
    with pytest.raises(UserError, match="head.freeze says nothing of resnet18"):
        measure.evaluate("voc07_detection_all", str(models["resnet"]), given, out=str(tmp_path), quiet=True)
