"""What a record and an output folder are called rests on the content of weights and images, never on a last name alone."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch
from evaluation_fakes import finished_run
from PIL import Image

from evaluations import cluster_folder, measure
from evaluations.inputs import models
from results import record as records
from results.store import RecordStore
from zoo import data
from zoo.backbones import build
from zoo.data import content, paths

SMALL = {"transform.resize": 16, "transform.crop": 16, "grid.k": [1]}


def paint(root, seed=0, each=6):
    """Two classes of uncompressed images: names and sizes are those of every other seed."""
    draw = np.random.default_rng(seed)
    for k, name in enumerate("ab"):
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = np.clip(60 + 120 * k + draw.integers(-20, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.bmp")
    return root


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs")
    finished_run("random_digits", where)
    return where


def judged(out, place, protocol="knn_folder", model="random_digits"):
    given = SMALL if protocol == "knn_folder" else {"transform.resize": 16, "transform.crop": 16}
    return measure.evaluate(protocol, model, {**given, "data": str(place)}, out=str(out), quiet=True)


@pytest.mark.parametrize("protocol", ["knn_folder", "linear_folder", "ridge_folder"])
def test_another_folder_with_the_same_names_and_sizes_keeps_the_record_of_the_first(out, tmp_path, protocol):
    first = judged(out, paint(tmp_path / "x" / "own"), protocol)
    second = judged(out, paint(tmp_path / "y" / "own", seed=1), protocol)
    assert first != second and first.is_file() and second.is_file()
    one, two = records.read(first), records.read(second)
    assert one.question == two.question and one.data_fingerprint != two.data_fingerprint
    assert judged(out, paint(tmp_path / "z" / "copy"), protocol) == first, (
        "the same images elsewhere are the same measurement"
    )


def test_an_image_that_is_edited_in_place_is_measured_again_from_its_new_pixels(out, tmp_path):
    place = paint(tmp_path / "own")
    first = judged(out, place)
    kept = set((out / "features").rglob("*.npy"))
    image = place / "b" / "0.bmp"
    before = image.stat()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(image)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))  # size and time stamp are as they were
    assert image.stat().st_size == before.st_size
    second = judged(out, place)
    assert second != first and first.is_file()
    assert len(set((out / "features").rglob("*.npy")) - kept) == 1, "of the split with that image, and of no other"


def test_files_are_read_once_and_again_when_they_were_touched(tmp_path, monkeypatch):
    place = paint(tmp_path / "own")
    for image in place.rglob("*.bmp"):
        os.utime(image, (1e9, 1e9))
    later = time.time_ns() + 10**10  # ns: the stamps are no longer young
    monkeypatch.setattr(content.time, "time_ns", lambda: later)
    read, original = [], data.FileSource.raw
    monkeypatch.setattr(data.FileSource, "raw", lambda self, i: read.append(i) or original(self, i))

    def identity():
        read.clear()
        return data.open_source("folder", root=place).identity

    first = identity()
    assert len(read) == 12
    assert identity() == first and not read
    os.utime(place / "a" / "3.bmp", (2e9, 2e9))
    assert identity() == first and read == [3]
    for kept in (paths.user_cache() / "content").iterdir():
        kept.write_bytes(b"PK broken")
    assert identity() == first and len(read) == 12


def test_labels_are_part_of_it_and_published_sets_are_known_by_their_listing(tmp_path):
    source = data.open_source("folder", root=paint(tmp_path / "own"))
    assert len({source.identity, source.fingerprint, source.renumbered(("b", "a"), np.array([1, 0])).identity}) == 3
    assert source.subset([0, 1]).identity != source.subset([0, 2]).identity
    digits = data.open_source("digits")
    assert digits.identity == digits.fingerprint


def saved(place, seed):
    torch.manual_seed(seed)
    net = build({"name": "tiny_resnet", "width": 16, "blocks": [1, 1], "in_channels": 3})
    place.parent.mkdir()
    torch.save(net.state_dict(), place)
    return place


def test_weight_files_of_one_name_have_records_of_their_own(tmp_path):
    files = [saved(tmp_path / where / "model_best.pth", seed) for seed, where in enumerate("AB")]
    images = paint(tmp_path / "own")
    made = [judged(tmp_path / "runs", images, model=str(file)) for file in files]
    assert all(path.is_file() for path in made)
    names = [records.read(path).model for path in made]
    assert names == [f"model_best-{records.read(path).weights_sha256[:8]}" for path in made] and len(set(names)) == 2
    assert models.resolve(str(files[0])).name == names[0]
    assert len(RecordStore([tmp_path / "runs" / "measured"]).models()) == 2


def test_clusters_of_two_folders_of_one_last_name_are_kept(out, tmp_path):
    written = [
        cluster_folder.cluster(
            "random_digits", str(paint(tmp_path / where / "photos", seed)), {"clusters": 2, "out": str(out)}
        )
        for seed, where in enumerate("xy")
    ]
    assert written[0][0].parent != written[1][0].parent and all(path.is_file() for one in written for path in one)
    more = cluster_folder.cluster("random_digits", str(tmp_path / "x" / "photos"), {"clusters": 3, "out": str(out)})
    assert more[0].parent not in (written[0][0].parent, written[1][0].parent)
