"""zoo/datasets.yaml: complete, typed, and wrong entries named with their line."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from zoo import data
from zoo.data import locate, open, specs
from zoo.errors import UserError

GOOD = """toy:
  title: Toy
  reader: folders
  classes: [a, b]
  channels: 3
  size: null
  mean: [0.5, 0.5, 0.5]
  std: [0.2, 0.2, 0.2]
  splits:
    train: {read: train}
    part: {of: train, range: [0, 2]}
  licence: none
  origin: here
  prepare: nothing
"""


@pytest.mark.parametrize("name", data.names())
def test_every_data_set_is_described_completely(name):
    spec = data.describe(name)
    assert spec.reader in open.READERS
    assert spec.title and spec.licence and spec.origin and spec.prepare
    assert all(0 < m < 1 for m in spec.mean) and all(0 < s < 1 for s in spec.std)
    for split, rule in spec.splits.items():
        assert spec.part(split)
        if rule.listed:
            assert (specs.LISTS / rule.listed).is_file()
    counted = [r.count for r in spec.splits.values()]
    assert all(counted) or not any(counted), "either every split has a size or the set is the user's own"


def test_parts_add_up():
    for name in data.names():
        splits = data.describe(name).splits
        for split, rule in splits.items():
            if rule.without and rule.count:
                assert rule.count + splits[rule.without].count == splits[rule.of].count, f"{name}/{split}"
        if {"train", "val", "trainval"} <= set(splits) and splits["train"].count:
            assert splits["train"].count + splits["val"].count == splits["trainval"].count, name
    trainval = [data.describe(f"voc{year}").splits["trainval"].count for year in (2007, 2012)]
    assert sum(trainval) == data.describe("voc0712").splits["trainval"].count


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("  licence: none\n", "", r"toy.yaml:1:1: toy.licence: Field required"),
        ("licence: none", "license: none", r"toy.yaml:12:3: toy.license: Extra inputs .*did you mean 'licence'"),
        (
            "range: [0, 2]",
            "ranges: [0, 2]",
            r"toy.yaml:11:23: toy.splits.part.ranges: Extra inputs .*did you mean 'range'",
        ),
        ("channels: 3", "channels: 4", r"toy.yaml:5:3: toy.channels: Input should be 1 or 3 \(given: 4\)"),
        ("mean: [0.5, 0.5, 0.5]", "mean: [0.5]", r"toy: mean has 1 values for 3 channels"),
        ("std: [0.2, 0.2, 0.2]", "std: [0.2, 0.0, 0.2]", r"toy.yaml:8:14: toy.std.1: Input should be greater than 0"),
        ("of: train", "of: trian", r"toy: split 'part' refers to 'trian', which is not a split"),
        ("{of: train, range: [0, 2]}", "{of: train}", r"toy.splits.part: `of` goes with exactly one of"),
        ("{read: train}", "{of: part, range: [0, 1]}", r"toy: splits .* are cut from each other"),
        ("classes: [a, b]", "classes: 1e3", r"toy.yaml:4:3: toy.classes"),
        ("  size: null", "  size: null\n  size: null", r"toy.yaml:7:3: duplicate key 'size'"),
        ("title: Toy", "title: Toy\n  name: other", r"toy.yaml:3:3: toy: the name is the key"),
    ],
)
def test_a_wrong_entry_names_its_line(tmp_path, old, new, message):
    path = tmp_path / "toy.yaml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        specs.load(path)


def test_a_good_entry_is_read(tmp_path):
    (tmp_path / "toy.yaml").write_text(GOOD)
    assert specs.load(tmp_path / "toy.yaml")["toy"].class_count == 2


def test_unknown_names_and_splits_come_with_a_suggestion():
    with pytest.raises(UserError, match="unknown data set 'fashion_mist'; did you mean 'fashion_mnist'"):
        data.open_source("fashion_mist")
    with pytest.raises(
        UserError, match="no split 'tran'; did you mean 'train'; |no split 'tran'; did you mean 'train'"
    ):
        data.open_source("digits", "tran")


def test_places_are_tried_in_order(tmp_path, monkeypatch):
    spec = data.describe("imagenet").model_copy(update={"folders": [str(tmp_path / "system")]})
    (tmp_path / "system").mkdir()
    assert locate.find(spec) == tmp_path / "system"
    (tmp_path / "home" / "imagenet").mkdir(parents=True)
    monkeypatch.setenv("SELFZOO_DATA", str(tmp_path / "home"))
    assert locate.find(spec) == tmp_path / "home" / "imagenet"
    (tmp_path / "given").mkdir()
    assert locate.find(spec, tmp_path / "given") == tmp_path / "given"
    with pytest.raises(data.DataMissing, match="nowhere does not exist"):
        locate.find(spec, tmp_path / "nowhere")  # nothing else is tried in place of what was named


def test_a_download_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    monkeypatch.setattr("zoo.data.arrays.download_torchvision", lambda spec, folder: calls.append(spec.name))
    folder = locate.find(data.describe("cifar10"))
    assert folder == tmp_path / "selfzoo/data/cifar10" == locate.find(data.describe("cifar10"))
    assert calls == ["cifar10"]


def test_a_plan_downloads_and_composes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("zoo.data.arrays.download_torchvision", lambda spec, folder: None)
    for name in ("cifar10", "scenes_digits_voc"):
        with pytest.raises(data.DataMissing):
            data.open_source(name, fetch=False)
    assert not list(tmp_path.iterdir())
    locate.find(data.describe("cifar10"))
    assert locate.find(data.describe("cifar10"), fetch=False) == tmp_path / "selfzoo/data/cifar10"


def test_an_interrupted_download_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "selfzoo/data/cifar10").mkdir(parents=True)

    def offline(spec, folder):
        raise OSError("no route to host")

    monkeypatch.setattr("zoo.data.arrays.download_torchvision", offline)
    with pytest.raises(data.DataMissing, match="download through torchvision .*no route to host"):
        locate.find(data.describe("cifar10"))


def toy_imagenet(tmp_path, monkeypatch, **rule):
    from data_samples import folders

    root = folders(tmp_path / "set", parts=("train",), each=6)
    spec = data.describe("folder")
    splits = {**spec.splits, "chosen": specs.SplitRule(of="train", **rule)}
    monkeypatch.setattr(specs, "load", lambda *_: {"folder": spec.model_copy(update={"splits": splits})})
    return root


def test_a_published_list_is_used_only_with_its_own_hash(tmp_path, monkeypatch):
    text = "bee_1.JPEG\nant_0.jpg\n"
    root = toy_imagenet(tmp_path, monkeypatch, names="few.txt", sha256=hashlib.sha256(text.encode()).hexdigest())
    with pytest.raises(data.DataMissing, match="few.txt is not in"):
        data.open_source("folder", "chosen", root)
    (root / "few.txt").write_text(text)
    source = data.open_source("folder", "chosen", root)
    assert [source.name(i) for i in range(2)] == ["bee/bee_1.JPEG", "ant/ant_0.jpg"]
    (root / "few.txt").write_text(text + "cat_0.jpg\n")
    with pytest.raises(UserError, match="few.txt: sha256 is .*the published list has"):
        data.open_source("folder", "chosen", root)


def test_a_held_out_part_takes_as_many_of_each_class_whatever_the_order(tmp_path, monkeypatch):
    root = toy_imagenet(tmp_path, monkeypatch, per_class=2)
    source = data.open_source("folder", "chosen", root)
    assert np.bincount(source.labels).tolist() == [2, 2, 2]
    whole = data.open_source("folder", "train", root)
    turned = whole.subset(np.arange(len(whole))[::-1])
    again = open.positions(data.describe("folder"), "chosen", turned, root)
    assert {turned.name(int(i)) for i in again} == {source.name(i) for i in range(len(source))}
    toy_imagenet(tmp_path / "two", monkeypatch, per_class=7)
    with pytest.raises(UserError, match=r"class ant: fewer than 7 images to choose from \(3 such classes\)"):
        data.open_source("folder", "chosen", root)


def test_an_index_beyond_the_set_is_an_error(tmp_path, monkeypatch):
    root = toy_imagenet(tmp_path, monkeypatch, range=[10, 30])
    with pytest.raises(UserError, match="position 18 of split 'chosen' is not in 'train' \\(18 images\\)"):
        data.open_source("folder", "chosen", root)
