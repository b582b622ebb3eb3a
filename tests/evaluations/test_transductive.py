"""The mark of a record that says pre-training read the test images: by the images themselves, whatever their splits are called."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from evaluation_fakes import finished_run
from test_own_data import OWN, paint

import zoo
from evaluations import measure, transductive
from results import record as records
from zoo import backbones, data, yamlfile
from zoo.data import specs


def trained_on(dataset, split, place="nowhere", images=None, init=None):
    schedule = SimpleNamespace(images=images)
    recipe = SimpleNamespace(dataset=dataset, split=split, schedule=schedule, init=init)
    return SimpleNamespace(place=str(place), recipe=recipe)


def saw(model, dataset, split, root=None):
    return transductive.saw(model, data.open_source(dataset, split, root), dataset, split, root and str(root))


@pytest.mark.parametrize(
    "trained, judged, shared",
    [
        ("train", "train", True),
        ("train", "val", True),
        ("val", "train", True),
        ("train", "fit", True),
        ("all", "test", True),
        ("test", "all", True),
        ("train", "test", False),
        ("fit", "val", False),
        ("val", "fit", False),
        ("first100", "train", True),
        ("first100", "test", True),
        ("first100", "last100", False),
    ],
)
def test_splits_share_images_by_what_they_hold(trained, judged, shared, monkeypatch):
    spec = data.describe("digits")
    more = {
        "first100": specs.SplitRule(of="all", range=[0, 100]),
        "last100": specs.SplitRule(of="all", range=[1697, 1797]),
    }
    table = {**specs.load(), "digits": spec.model_copy(update={"splits": {**spec.splits, **more}})}
    monkeypatch.setattr(specs, "load", lambda *_: table)
    assert saw(trained_on("digits", trained), "digits", judged) is shared


def test_parts_of_their_own_overlap_where_one_holds_the_other():
    """Released weights: the photographs are nowhere on this machine, and the data sets' own rules say it."""
    blank = object()
    for trained, judged, shared in (
        ("trainval", "val", True),
        ("val", "trainval", True),
        ("train", "val", False),
        ("train", "test", False),
    ):
        assert transductive.saw(trained_on("voc2007", trained), blank, "voc2007", judged, None) is shared
    assert not transductive.saw(trained_on("imagenet", "train"), blank, "imagenet", "val", None)


def test_a_list_of_names_is_a_part_of_its_split(tmp_path):
    train = data.open_source("digits", "train")
    few = tmp_path / "few.txt"
    few.write_text("".join(f"{train.name(i)}\n" for i in range(5)))
    assert saw(trained_on("digits", f"train@{few}"), "digits", "train")
    (tmp_path / "val.txt").write_text("".join(f"{data.open_source('digits', 'val').name(i)}\n" for i in range(5)))
    assert saw(trained_on("digits", f"train@{tmp_path}/val.txt"), "digits", "val")
    assert not saw(trained_on("digits", f"train@{tmp_path}/val.txt"), "digits", "fit")


def test_the_same_files_in_another_data_set_are_found_by_their_bytes(tmp_path, monkeypatch):
    paint(tmp_path / "one", {"a": 6, "b": 6}, parts=("train",))
    paint(tmp_path / "two", {"c": 6, "d": 6}, parts=("train", "test"))
    shutil.copy(tmp_path / "one/train/b/b3.png", tmp_path / "two/test/d/d0.png")
    model = trained_on(str(tmp_path / "one"), "train")
    assert saw(model, "folder", "test", tmp_path / "two")
    one, two = data.open_source(str(tmp_path / "one")), data.open_source(str(tmp_path / "two"), "test")
    assert transductive.common(one.subset([9]), two.subset([6])) and not transductive.common(one.subset(range(9)), two)


def test_what_a_run_was_trained_on_is_known_by_its_fingerprint(tmp_path):
    """Own images have no name that says which they are: another folder is not taken for what the run read."""
    mine, others = paint(tmp_path / "mine", {"a": 6, "b": 6}), paint(tmp_path / "others", {"b": 7, "a": 7})
    place = tmp_path / "run"
    place.mkdir()
    seen = data.open_source("images", "train", mine)
    (place / "provenance.json").write_text(json.dumps({"data": {"fingerprint": seen.fingerprint}}))
    model = trained_on("images", "train", place)
    assert saw(model, "folder", "train", mine) and not saw(model, "folder", "train", others)


def test_untrained_networks_saw_nothing_and_weights_pass_on_what_they_saw(tmp_path):
    assert not saw(trained_on("digits", "all", images=0), "digits", "test")
    first = finished_run("simclr_digits", tmp_path)
    recipe = zoo.load_recipe(first / "recipe.yaml")
    (first / "recipe.yaml").write_text(yamlfile.dumps({**recipe.dump(), "split": "all"}))
    assert saw(trained_on("digits", "fit", init=str(first / "weights.pth")), "digits", "test")
    assert not saw(trained_on("digits", "fit"), "digits", "test")


def test_records_say_so(tmp_path):
    finished_run("simclr_digits", tmp_path)
    marks = {}
    for split in ("test", "val"):
        more = {"splits.test": split, "splits.train": "fit" if split == "val" else "train", "grid.k": [1]}
        path = measure.evaluate("knn_digits", "simclr_digits", more, out=str(tmp_path), quiet=True)
        marks[split] = records.read(path).transductive
    assert marks == {"test": False, "val": True}


def test_a_test_part_cut_from_what_was_trained_on_is_marked(tmp_path):
    images = paint(tmp_path / "own", {"a": 10, "b": 10, "c": 10}, parts=("",))
    recipe = zoo.resolve("simclr_digits", {"dataset": "images"})
    folder = tmp_path / "runs/simclr_digits" / f"{recipe.hash()}-s0"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yamlfile.dumps(recipe.dump()))
    torch.save(backbones.build(recipe.backbone).state_dict(), folder / "weights.pth")
    seen = data.open_source("images", "train", images)
    for fingerprint, mark in ((seen.fingerprint, True), ("another", False)):
        (folder / "provenance.json").write_text(json.dumps({"data": {"fingerprint": fingerprint}}))
        path = measure.evaluate(
            "knn_folder",
            str(folder),
            {**OWN, "data": str(images), "grid.k": [1]},
            out=str(tmp_path / fingerprint),
            quiet=True,
        )
        assert records.read(path).transductive is mark
