"""A kept listing saves the next one, and is never believed after a change."""

from __future__ import annotations

import os

import numpy as np
import pytest
from data_samples import build_shards, build_zip, folders, picture

from zoo import data
from zoo.data import archives, index_cache
from zoo.data import folders as folder_reader


@pytest.fixture
def eager(monkeypatch, tmp_path):
    """Keep an index of any size, at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "WORTH", 1)
    monkeypatch.setattr(index_cache, "RACY", -1e12)


@pytest.fixture
def counted(monkeypatch):
    """How often something was really listed."""
    counts = {"walk": 0, "archives": 0}

    def counting(name, function):
        def wrapper(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return wrapper

    monkeypatch.setattr(folder_reader, "walk", counting("walk", folder_reader.walk))
    monkeypatch.setattr(archives, "_arrays", counting("archives", archives._arrays))
    return counts


def names(root, name="folder"):
    source = data.open_source(name, "train", root)
    return [source.name(i) for i in range(len(source))]


def test_a_folder_is_listed_once(eager, counted, tmp_path):
    root = folders(tmp_path / "set", parts=("train",))
    first, second = data.open_source("folder", "train", root), data.open_source("folder", "train", root)
    assert counted["walk"] == 1
    assert first.fingerprint == second.fingerprint and first.classes == second.classes
    assert np.array_equal(first.labels, second.labels) and np.array_equal(first.pixels(5), second.pixels(5))
    assert len(names(root, "images")) == 12 and counted["walk"] == 2  # another way of listing the same folder


@pytest.mark.parametrize("change", ["add", "remove", "rename", "new class", "grow"])
def test_a_changed_folder_is_listed_again(eager, counted, tmp_path, change):
    root = folders(tmp_path / "set", parts=("train",)) / "train"
    before = data.open_source("folder", "train", root.parent).fingerprint
    os.utime(root / "ant", (1, 1))  # as if the folder had been written long ago
    os.utime(root / "bee", (1, 1))
    data.open_source("folder", "train", root.parent)
    if change == "add":
        picture(root / "ant/zz.jpg", 5)
    elif change == "remove":
        (root / "ant/ant_0.jpg").unlink()
    elif change == "rename":
        (root / "bee/bee_0.jpg").rename(root / "bee/bee_9.jpg")
    elif change == "new class":
        picture(root / "dog/d.jpg", 5)
    else:
        picture(root / "ant/ant_0.jpg", 5, size=(99, 99))
    assert data.open_source("folder", "train", root.parent).fingerprint != before


def test_small_and_fresh_sets_are_not_kept(monkeypatch, counted, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = folders(tmp_path / "set", parts=("train",))
    names(root)
    monkeypatch.setattr(index_cache, "WORTH", 1)  # large enough now, but written a moment ago: a change could go unseen
    names(root)
    assert counted["walk"] == 2 and not list((tmp_path / "cache").rglob("*.npz"))


def test_archives_are_listed_once_and_again_after_a_change(eager, counted, tmp_path):
    build_zip(tmp_path / "zip")
    build_shards(tmp_path / "tar")
    (tmp_path / "tar/train.index.tsv").unlink()
    for _ in range(2):
        names(tmp_path / "zip")
        names(tmp_path / "tar")
    assert counted["archives"] == 4  # a zip and three shards
    os.utime(tmp_path / "zip/train.zip", (1, 1))
    os.utime(tmp_path / "tar/train-000000.tar", (1, 1))
    names(tmp_path / "zip")
    names(tmp_path / "tar")
    assert counted["archives"] == 6


def test_a_damaged_index_is_made_again(eager, counted, tmp_path):
    root = folders(tmp_path / "set", parts=("train",))
    first = names(root)
    for path in (tmp_path / "cache").rglob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    assert names(root) == first and counted["walk"] == 2


def test_a_cache_that_cannot_be_written_costs_nothing_else(eager, tmp_path, monkeypatch):
    root = folders(tmp_path / "set", parts=("train",))
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(names(root)) == 12
