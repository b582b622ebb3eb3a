"""File names that are no UTF-8: every road works with them, or refuses them before any work is done."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_fakes import finished_run
from test_own_data import OWN, paint

from evaluations import cluster_folder, measure
from evaluations.inputs import views
from results import record as records
from zoo import data
from zoo.data.archive_sets import pack_zip, write_shards
from zoo.errors import UserError

ODD = os.fsdecode(b"caf\xe9")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs")
    finished_run("random_digits", where)
    return where


@pytest.fixture
def images(tmp_path):
    """Three classes, one with a name that is no UTF-8, and such an image in each."""
    root = paint(tmp_path / f"own {ODD}", {"a": 10, "b": 10, "c": 10}, parts=("",))
    for name in "abc":
        (root / name / f"{name}0.png").rename(root / name / f"{ODD}.png")
    (root / "c").rename(root / f"c{ODD}")
    return root


def test_a_folder_is_cut_in_two_and_judged(out, images):
    path = measure.evaluate(
        "knn_folder", "random_digits", {**OWN, "data": str(images), "grid.k": [1]}, out=str(out), quiet=True
    )
    assert records.read(path).metrics["top1"].value == 100


def test_the_clusters_of_a_folder_are_written_with_the_names_on_disk(out, images):
    written = cluster_folder.cluster("random_digits", str(images), {"clusters": 3, "out": str(out), **OWN})
    with written[0].open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30 and all((images / row["image"]).is_file() for row in rows)
    assert f"c{ODD}/{ODD}.png" in {row["image"] for row in rows}
    assert b"caf\xe9.png" in written[0].read_bytes()


def test_a_part_of_the_images_is_listed_and_read_back(images, tmp_path):
    from zoo.__main__ import main

    few = tmp_path / "few.txt"
    assert main(["data", "subset", str(images), "--percent", "50", "--to", str(few)]) == 0
    source = data.open_source(str(images), f"train@{few}")
    assert len(source) == 15 and np.bincount(source.labels).tolist() == [5, 5, 5]


def test_a_pack_refuses_such_a_name_before_anything_is_written(images, tmp_path, monkeypatch):
    source = data.open_source(str(images))
    monkeypatch.setattr(type(source), "raw", None)  # not a byte is read
    for work in (pack_zip, write_shards):
        with pytest.raises(UserError, match=r"cannot hold this name; rename the file"):
            work(source, tmp_path / "packed", "train")
    assert not list((tmp_path / "packed").iterdir())


def command(*words, place=None):
    plain = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, cwd=place, env=plain, check=False)


def test_commands_print_such_names(images, out):
    broken = images / "a" / f"{ODD}.png"
    broken.write_bytes(b"no image")
    found = command("zoo", "data", "check", str(images))
    assert found.returncode == 1 and b"caf\\udce9.png: cannot be decoded" in found.stdout and not found.stderr.strip()
    shutil.copy(images / "a/a1.png", broken)
    again = command(
        "evaluations",
        "cluster",
        "random_digits",
        str(images),
        "clusters=3",
        f"out={out}",
        "transform.resize=16",
        "transform.crop=16",
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(b"\n") == 3


def test_a_path_that_is_no_utf8_is_a_value_like_any_other(images):
    found = command("reproduce", "simclr_digits", "dataset=images", f"data={images}", "batch=10", "--plan")
    assert found.returncode == 0 and b"found: 30 images" in found.stdout, found.stderr


def test_a_recipe_that_could_not_be_read_back_is_refused_before_the_run(images, out):
    """It is kept as YAML, which has no way to write such a path."""
    from reproduce import launch

    with pytest.raises(UserError, match="dataset: a recipe is kept as text.*dataset=images data=PATH"):
        launch.job("simclr_digits", {"dataset": str(images), "out": str(out)})


def test_many_sizes_are_told_in_one_short_line():
    items = [torch.zeros(1, 10 + k, 20 + 2 * k, 3) for k in range(40)]
    with pytest.raises(
        UserError,
        match=r"images of 40 sizes in one batch \(10 to 49 pixels high, 20 to 98 wide\): give .*transform.resize",
    ) as told:
        views.stacked(items)
    assert len(str(told.value)) < 200


@pytest.mark.parametrize(
    "words",
    [
        ["reproduce", "simclr_digits", "dataset=/nowhere/at/all"],
        ["reproduce", "simclr_digits", "dataset=images", "data=/nowhere/at/all"],
        ["reproduce", "simclr_digits", "split=train@/nowhere/at/all"],
        ["reproduce", "simclr_digits", "dataset=imagenet", "split=train@/nowhere/at/all"],
        ["reproduce", "simclr_digits", "init=/nowhere/at/all"],
        ["evaluations", "run", "knn_folder", "random_digits", "data=/nowhere/at/all"],
        ["evaluations", "run", "knn_folder", "random_digits", "dataset=/nowhere/at/all"],
        ["evaluations", "run", "linear_imagenet_swav_fast", "random_digits", "data=/nowhere/at/all"],
        ["evaluations", "run", "knn_digits", "random_digits", "splits.train=train@/nowhere/at/all"],
        ["evaluations", "run", "cluster_digits", "/nowhere/at/all"],
    ],
)
def test_a_plan_refuses_a_path_that_does_not_exist(words, out, capsys):
    from importlib import import_module

    from zoo.errors import guard

    main = import_module(f"{words[0]}.__main__").main
    assert guard(lambda: main([*words[1:], f"out={out}", "--plan"])) == 2
    told = capsys.readouterr()
    assert "/nowhere/at/all" in told.err and not told.out


def test_the_plan_knows_how_many_images_the_largest_set_has(capsys):
    from reproduce.__main__ import main
    from zoo import yamlfile

    assert main(["deepercluster_vgg16_yfcc", "--plan"]) == 0
    assert "95,920,149 in an epoch" in capsys.readouterr().out
    title = yamlfile.load_mapping(Path(data.specs.FILE).with_name("assets.yaml"))["flickr_unique_ids"]["title"]
    assert f"{data.describe('yfcc100m').splits['train'].about:,}" in title
