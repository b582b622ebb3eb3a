"""Checkpoints are whole or absent, and reading one executes nothing."""

import os
import pickle

import pytest
import torch

from engine import checkpoint
from engine.errors import CheckpointError


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"step": 3, "model": {"w": torch.arange(1000.0)}})
    return path


def test_a_checkpoint_comes_back(saved):
    state = checkpoint.load(saved)
    assert state["step"] == 3 and torch.equal(state["model"]["w"], torch.arange(1000.0))
    assert checkpoint.load(saved.with_name("none.pt")) is None


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_checkpoint_is_named(saved, keep):
    size = saved.stat().st_size
    os.truncate(saved, keep if keep >= 1 else int(size * keep))
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt cannot be read.*truncated.*resume=false"):
        checkpoint.load(saved)


def test_a_foreign_file_is_named(saved):
    torch.save({"state_dict": {}}, saved)
    with pytest.raises(CheckpointError, match="not a checkpoint of this version"):
        checkpoint.load(saved)


class Hostile:
    def __reduce__(self):
        return os.mkdir, (str(Hostile.target),)


def test_a_hostile_pickle_is_refused_and_not_executed(saved, tmp_path):
    Hostile.target = tmp_path / "owned"
    for write in (
        lambda: torch.save({"format": Hostile()}, saved),
        lambda: saved.write_bytes(pickle.dumps(Hostile(), protocol=2)),
    ):
        write()
        with pytest.raises(CheckpointError, match="cannot be read"):
            checkpoint.load(saved)
    assert not Hostile.target.exists()


@pytest.mark.parametrize("stage", ["torch.save", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(saved, monkeypatch, stage):
    before = saved.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch if stage == "torch.save" else os, stage.removeprefix("torch."), full)
    with pytest.raises(CheckpointError, match=r"cannot write .*checkpoint\.pt.*No space left.*intact"):
        checkpoint.save(saved, {"step": 4})
    assert saved.read_bytes() == before and [p.name for p in saved.parent.iterdir()] == ["checkpoint.pt"]


def test_the_content_is_on_the_disk_before_the_name_moves(saved, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, original=original: (calls.append(name), original(*a))[1])
    checkpoint.save(saved, {"step": 4})
    assert calls == [
        "fsync",
        "replace",
        "replace",
        "fsync",
    ]  # the old file takes its second name, then the new one its first


def test_equal_tensors_make_equal_files(tmp_path):
    paths = [tmp_path / "a.pth", tmp_path / "sub" / "b.pth"]
    paths[1].parent.mkdir()
    for path in paths:
        checkpoint.write_tensors(path, {"w": torch.arange(5), "n": torch.tensor(2)})
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_recipes_differ_by_their_leaves_and_null_is_absence(tmp_path):
    a = {"views": {"crops": [{"size": 32}]}, "init": None, "params": {}}
    checkpoint.require_recipe(tmp_path, a, {"views": {"crops": [{"size": 32}]}, "params": {}})
    with pytest.raises(CheckpointError, match=r"views\.crops\.0\.size is 32 there and 16 here"):
        checkpoint.require_recipe(tmp_path, a, {"views": {"crops": [{"size": 16}]}, "params": {}})
    with pytest.raises(CheckpointError, match="and 2 more"):
        checkpoint.require_recipe(tmp_path, {}, {str(i): i for i in range(7)})


def test_a_very_large_checkpoint_is_mapped_and_one_that_is_cut_is_refused(tmp_path, monkeypatch):
    path, state = tmp_path / "checkpoint.pt", {"step": 3, "model": {"w": torch.arange(5000.0)}}
    checkpoint.save(path, state)
    monkeypatch.setattr(checkpoint, "MAPPED", 0)
    found, asked = checkpoint.load(path), []
    assert found["step"] == 3 and torch.equal(found["model"]["w"], state["model"]["w"])
    found["model"]["w"].zero_()  # a private map: the file stays as it is
    assert torch.equal(checkpoint.load(path)["model"]["w"], state["model"]["w"])
    plain = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: asked.append(kwargs["mmap"]) or plain(*args, **kwargs))
    checkpoint.load(path)
    assert asked == [True]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        checkpoint.load(path)
