"""Composed scenes: the same ones every time, the same ones in both layouts, read back as they were drawn."""

from __future__ import annotations

import hashlib
import json
import time

import numpy as np
import pytest

from zoo import data
from zoo.data import scene_files, scenes
from zoo.errors import UserError

IMAGES = 50


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return data.make_scenes(tmp_path_factory.mktemp("scenes"), "both", "digits", IMAGES)


def read(made, form, split):
    return data.open_source(form, split, made / form)


def digest(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_the_same_seed_makes_the_same_files(made, tmp_path):
    again = data.make_scenes(tmp_path / "again", "both", "digits", IMAGES)
    assert digest(again) == digest(made)
    other = data.make_scenes(tmp_path / "other", "coco", "digits", IMAGES, seed=1)
    first = "train/000000000001.jpg"
    assert digest(other)[first] != digest(made / "coco")[first]


def test_both_layouts_hold_the_same_scenes(made):
    for split, count in (("train", 30), ("val", 10), ("test", 10)):
        voc, coco = read(made, "voc", split), read(made, "coco", split)
        assert len(voc) == len(coco) == count and set(voc.classes) == set(coco.classes)
        for i in range(count):
            one, two = voc.objects(i), coco.objects(i)
            assert np.array_equal(voc.pixels(i), coco.pixels(i))
            assert np.array_equal(one.boxes, two.boxes)
            assert [voc.classes[k] for k in one.classes] == [coco.classes[k] for k in two.classes]
            assert (one.difficult >= two.crowd).all()


def test_masks_boxes_and_areas_agree(made):
    coco, voc = read(made, "coco", "train"), read(made, "voc", "train")
    for i in range(len(coco)):
        found, masks = coco.objects(i), coco.masks(i)
        assert np.array_equal(masks.sum(axis=(1, 2)), found.area)
        for box, mask in zip(found.boxes, masks, strict=True):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        # VOC draws a line of 255 around objects; inside it both agree.
        drawn, seen = voc.masks(i), voc.segmentation(i)
        assert (drawn <= masks).all() and drawn.sum() > 0.3 * masks.sum()
        for k, mask in zip(voc.objects(i).classes, drawn, strict=True):
            assert set(np.unique(seen[mask])) <= {k + 1}


def test_difficult_objects_and_crowds_occur_and_masks_are_run_lengths(made):
    voc, coco = read(made, "voc", "trainval"), read(made, "coco", "train")
    assert len(voc) == 40
    difficult = np.concatenate([voc.objects(i).difficult for i in range(len(voc))])
    assert 0.02 < difficult.mean() < 0.3
    assert (voc.targets == 255).any() and (voc.targets == 1).any(axis=0).all()
    crowd = np.concatenate([coco.objects(i).crowd for i in range(len(coco))])
    assert crowd.sum() == len(coco) // scenes.CROWD_EVERY
    kinds = {
        type(a["segmentation"])
        for a in json.loads((made / "coco/annotations/instances_train.json").read_text())["annotations"]
    }
    assert kinds == {dict}


def test_items_of_a_scene_come_from_its_own_split(made):
    recipe = json.loads((made / "voc/scenes.json").read_text())
    parts = {"train": "fit", "val": "val", "test": "test"}
    assert recipe["items"] == {p: f"digits {data.open_source('digits', s).fingerprint}" for p, s in parts.items()}


def test_a_scene_depends_on_its_number_alone():
    source = data.open_source("digits", "fit")
    late = scenes.compose(source, 3, 41)
    for number in range(3):
        scenes.compose(source, 3, number)
    assert np.array_equal(scenes.compose(source, 3, 41).pixels, late.pixels)


def test_a_folder_with_something_else_in_it_is_left_alone(made, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="holds something else already"):
        data.make_scenes(tmp_path, "coco", "digits", IMAGES)
    with pytest.raises(UserError, match="holds something else already"):
        data.make_scenes(made, "both", "digits", IMAGES, seed=9)
    before = (made / "coco/scenes.json").stat().st_mtime_ns
    assert data.make_scenes(made, "both", "digits", IMAGES) == made
    assert (made / "coco/scenes.json").stat().st_mtime_ns == before


def test_nothing_half_written_is_left_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("disk full")

    monkeypatch.setitem(scene_files.WRITERS, "voc", fail)
    with pytest.raises(RuntimeError):
        data.make_scenes(tmp_path / "x", "voc", "digits", 10)
    assert not list(tmp_path.iterdir())


def test_voc_s_palette_has_the_colours_that_its_tools_expect():
    palette = np.array(scene_files._palette()).reshape(-1, 3)
    assert palette[[0, 1, 2, 15, 20, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]


def test_scenes_make_themselves_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(scene_files, "PARTS", {"train": 0.03, "val": 0.01, "test": 0.01})
    monkeypatch.setattr("zoo.data.open.without_bad_images", lambda source, *_: source)
    assert len(data.open_source("scenes_digits_voc", "test")) == 10
    assert (tmp_path / f"selfzoo/data/scenes_digits_voc_v{scenes.VERSION}/scenes.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("items", ["digits", "fashion_mnist"])
def test_the_whole_set_is_made_in_twenty_seconds(tmp_path, items):
    try:
        data.open_source(items, "fit")
    except data.DataMissing:
        pytest.skip("Fashion-MNIST is not on this machine")
    start = time.process_time()
    data.make_scenes(tmp_path / "set", "both", items)
    assert time.process_time() - start < 20


def test_what_lies_below_loses_its_hidden_pixels_and_is_difficult_once_half_is_hidden():
    canvas, tint, items = np.zeros((96, 96, 3)), np.full(3, 200.0), []
    whole = np.ones((10, 10), bool)
    below = scenes._paste(canvas, items, whole, whole * 1.0, tint, 20, 20, label=1)
    scenes._paste(canvas, items, whole[:, :4], whole[:, :4] * 1.0, tint, 20, 20, label=2)
    assert below.mask.sum() == 60 and not below.mask[20:30, 20:24].any() and not below.difficult
    scenes._paste(canvas, items, whole[:, :2], whole[:, :2] * 1.0, tint, 20, 24, label=2)
    assert below.mask.sum() == 40 and below.difficult and [int(i.mask.sum()) for i in items] == [40, 40, 20]
