"""The parts of a data set by their usual names; what looks like one is taken for it or refused, never read as a class."""

from __future__ import annotations

import json
import shutil

import pytest
from data_samples import build_coco, folders, loosened, picture, voc_year

from zoo import data
from zoo.data import parts, specs
from zoo.data.archive_sets import pack_zip, write_shards
from zoo.errors import UserError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    table = loosened()
    monkeypatch.setattr(specs, "load", lambda *_: table)


USUAL = [
    ("train", "validation"),
    ("Train", "Val"),
    ("TRAIN", "VALID"),
    ("training", "dev"),
    ("Training", "Validation"),
    ("train", "valid"),
]


@pytest.mark.parametrize("names", USUAL)
@pytest.mark.parametrize("layout", ["folder", "zip", "shards"])
def test_a_part_is_found_by_any_of_its_usual_names(tmp_path, names, layout):
    root = folders(tmp_path / "set", parts=names)
    originals = {part: data.open_source("images", part, root) for part in ("train", "val")}
    if layout != "folder":
        for name in names:
            loose = data.open_source(str(root / name))
            (pack_zip if layout == "zip" else write_shards)(loose, tmp_path / layout, name)
        root = tmp_path / layout
    for part, original in originals.items():
        source = data.open_source(str(root), part)
        assert source.classes == ("ant", "bee", "cat") and len(source) == 12 and source.split == part
        assert [source.raw(i) for i in range(12)] == [original.raw(i) for i in range(12)]
    with pytest.raises(UserError, match="no folder test/"):
        data.open_source(str(root), "test")


@pytest.mark.parametrize("name", ["test", "Test", "testing", "EVAL", "Evaluation"])
def test_the_test_part_has_usual_names_too(tmp_path, name):
    assert len(data.open_source(str(folders(tmp_path, parts=("train", name))), "test")) == 12


def test_named_sets_are_found_by_usual_names_too(tmp_path):
    root = folders(tmp_path, parts=("Train", "validation"))
    assert len(data.open_source("imagenet", "train", root)) == len(data.open_source("imagenet", "val", root)) == 12


def test_coco_and_voc_find_their_parts_by_usual_names(tmp_path):
    build_coco(tmp_path / "coco")
    shutil.copytree(tmp_path / "coco/train", tmp_path / "coco/Valid")
    (tmp_path / "coco/train").rename(tmp_path / "coco/Training")
    notes = tmp_path / "coco/annotations"
    (notes / "instances_validation.json").write_text((notes / "instances_train.json").read_text())
    assert len(data.open_source("coco", "train", tmp_path / "coco")) == 3
    assert data.open_source("coco", "val", tmp_path / "coco").where(0).endswith("Valid/000000000003.jpg")
    voc_year(tmp_path / "voc", ["a", "b", "c"], classes=["ant", "bee"], part="Validation")
    assert len(data.open_source("voc", "val", tmp_path / "voc")) == 3


@pytest.mark.parametrize("two", [("val", "validation"), ("Val", "val"), ("dev", "valid")])
def test_two_names_for_one_part_are_refused(tmp_path, two):
    root = folders(tmp_path, parts=("train", *two))
    with pytest.raises(UserError, match="both look like the part 'val'"):
        data.open_source(str(root), "val")
    assert len(data.open_source(str(root), "train")) == 12


@pytest.mark.parametrize(
    "names, part, told",
    [
        (("train", "val_images"), "val", "val_images looks like the part 'val'"),
        (("train", "val2017"), "val", "val2017 looks like the part 'val'"),
        (("train", "fruit_test"), "test", "fruit_test looks like the part 'test'"),
        (("train_set", "val_set"), "train", "train_set looks like the part 'train'"),
        (("TrainSet", "TestSet"), "train", "TestSet looks like the part 'test'"),
        (("seg_train", "seg_test"), "train", "seg_test looks like the part 'test'"),
        (("fruit_train", "fruit_test"), "train", "fruit_test looks like the part 'test'"),
        (("train_old", "val"), "train", "train_old looks like the part 'train'"),
    ],
)
def test_what_looks_like_a_part_and_is_none_is_refused_by_name(tmp_path, names, part, told):
    root = folders(tmp_path, parts=names)
    with pytest.raises(UserError, match=f"{told} and is not called so; rename it to"):
        data.open_source(str(root), part)


def test_flat_parts_are_no_classes(tmp_path):
    for name in ("train_images", "test_images"):
        picture(tmp_path / name / "0.png", 0)
    with pytest.raises(UserError, match="test_images looks like the part 'test'"):
        data.open_source(str(tmp_path))


def test_a_class_may_have_the_name_of_a_part_in_it(tmp_path):
    root = folders(tmp_path, parts=("",), classes=("bullet train", "test tube", "valley", "car"))
    assert data.open_source(str(root)).classes == ("bullet train", "car", "test tube", "valley")


def test_usual_names_mean_one_part_each():
    assert [parts.known(n) for n in ("Validation", "EVAL", "Training", "trainval", "train2017")] == [
        "val",
        "test",
        "train",
        None,
        None,
    ]
    assert parts.spelled("train2017", ["train", "train2017"], ".") == "train2017"


def test_the_map_of_another_spelling_is_checked(tmp_path, capsys):
    from zoo.__main__ import main

    root = folders(tmp_path / "set", parts=("train",))
    pack_zip(data.open_source(str(root)), tmp_path / "zip", "Train")
    path = tmp_path / "zip/Train_map.txt"
    path.write_text(path.read_text() + "ghost.jpg\t0\nspook.jpg\t1\n")
    assert main(["data", "check", "folder", str(tmp_path / "zip")]) == 1
    told = capsys.readouterr().out
    assert "Train_map.txt:13: ghost.jpg is not in Train.zip" in told and "Train_map.txt:14: spook.jpg" in told
    assert json.dumps(told).count("ghost.jpg") == 1


def test_folders_beside_the_parts_are_told(tmp_path, capsys):
    root = folders(tmp_path, parts=("train", "beach"))
    for _ in range(2):
        assert len(data.open_source(str(root))) == 12
    told = capsys.readouterr().err.splitlines()
    assert told == [f"{root}: is read by its parts; its other folders are not read: beach"]
