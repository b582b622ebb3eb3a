"""Files nobody vouches for: what families really save is read; code, bombs and lies are refused without being run."""

from __future__ import annotations

import argparse
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from typing import ClassVar

import numpy as np
import pytest
import torch

from zoo.checkpoint_reader import read, sha256, tensors_in
from zoo.errors import UserError


def save(path, value, legacy=False):
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before PyTorch 1.6"])
def test_what_the_families_save_can_be_read(tmp_path, legacy):
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    tree = {
        "opt": argparse.Namespace(lr=0.1, aug="SimCLR", crops=[1, 2]),
        "model": OrderedDict(net.state_dict()),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": 1955,
        "best_acc1": np.float64(61.25),
        "prec": np.float32(0.5),
        "rng": np.random.RandomState(0).get_state()[1],
        "L": torch.arange(6).reshape(2, 3),
        "acc": torch.tensor(0.5),
        "tied": [net.weight, net.weight],
    }
    back = read(save(tmp_path / "c.pth.tar", tree, legacy))
    assert back["opt"].lr == 0.1 and back["best_acc1"] == 61.25 and back["prec"] == 0.5
    assert np.array_equal(back["rng"], tree["rng"]) and torch.equal(back["L"], tree["L"])
    assert torch.equal(back["model"]["weight"], net.weight) and back["model"]["weight"].device.type == "cpu"


class PythonTwo(pickle._Pickler):
    """Writes text and bytes as Python 2 did: both are `str`."""

    def save_string(self, value):
        data = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
        self.memoize(value)

    dispatch: ClassVar = {**pickle._Pickler.dispatch, str: save_string, bytes: save_string}


def test_a_file_written_by_python_two_can_be_read(tmp_path):
    weight = torch.arange(4.0)
    path = tmp_path / "checkpoint.pth.tar"
    with path.open("wb") as f:
        for value in (torch.serialization.MAGIC_NUMBER, 1001, {"little_endian": True}):
            PythonTwo(f, 2).dump(value)
        pickler = PythonTwo(f, 2)
        storage = torch.storage.TypedStorage(wrap_storage=weight.untyped_storage(), dtype=weight.dtype, _internal=True)
        pickler.persistent_id = lambda x: ("storage", torch.FloatStorage, "7", "cpu", 4, None) if x is storage else None
        scalar = np.float64(38.2)  # its bytes are no UTF-8
        pickler.dump({"epoch": 499, "best": scalar, "state_dict": {"w": Rebuilt(storage)}})
        PythonTwo(f, 2).dump(["7"])
        f.write(struct.pack("<q", 4) + weight.numpy().tobytes())
    back = read(path)
    assert back["best"] == 38.2 and torch.equal(back["state_dict"]["w"], weight)


class Rebuilt:
    def __init__(self, storage):
        self.storage = storage

    def __reduce__(self):
        return torch._utils._rebuild_tensor, (self.storage, 0, (4,), (1,))


class Hostile:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before PyTorch 1.6"])
@pytest.mark.parametrize("how", ["os.system", "builtins.eval", "a module", "a class of ours"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, legacy, how):
    import os

    witness = tmp_path / "witness"
    bad = {
        "os.system": Hostile(os.system, f"touch {witness}"),
        "builtins.eval": Hostile(eval, f"open({str(witness)!r}, 'w')"),
        "a module": torch.nn.Linear(1, 1),
        "a class of ours": Hostile(argparse.ArgumentParser, "x"),
    }[how]
    path = save(tmp_path / "bad.pth", {"state_dict": {"w": torch.ones(2)}, "x": bad}, legacy)
    with pytest.raises(UserError, match="refused: the file asks for .*code that weights never need"):
        read(path)
    assert not witness.exists()


def test_a_plain_pickle_is_refused(tmp_path):
    import os

    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps(Hostile(os.system, f"touch {tmp_path / 'witness'}")))
    with pytest.raises(UserError, match="bad.pkl"):
        read(path)
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(10**12),
        torch.zeros(1).expand(10**6, 10**6, 10),
        torch.zeros(2, 1).expand(2, 2000),
        torch.zeros(0).to_sparse().resize_as_(torch.zeros(0).to_sparse()).sparse_resize_((10**9,), 1, 0),
        torch.empty(10**9, device="meta"),
    ],
    ids=["a terabyte", "more", "slightly too much", "sparse", "meta"],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "old"])
def test_a_tensor_larger_than_its_file_is_refused(tmp_path, tensor, legacy):
    path = save(tmp_path / "claim.pth", {"w": tensor}, legacy)
    assert path.stat().st_size < 8000
    with pytest.raises(UserError, match="refused|unreadable"):
        read(path)


def test_many_tensors_that_share_a_little_memory_are_refused(tmp_path):
    block = torch.zeros(30_000)
    path = save(tmp_path / "many.pth", {f"w{i}": block[:] for i in range(200)})
    with pytest.raises(UserError, match="in a file of"):
        read(path)


@pytest.mark.parametrize("behind", [0, 90_000], ids=["end of the file", "other tensors"])
def test_a_storage_that_claims_more_than_its_record_is_refused(tmp_path, behind):
    good = save(tmp_path / "good.pth", {"w": torch.zeros(1000), "x": torch.ones(behind)})
    lie = tmp_path / "lie.pth"
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(lie, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(
                name,
                data.replace(struct.pack("<H", 1000), struct.pack("<H", 60_000)) if name.endswith("data.pkl") else data,
            )
    with pytest.raises(UserError, match="refused|damaged"):
        read(lie)


def test_a_compressed_zip_is_refused_before_it_is_unpacked(tmp_path):
    good, bomb = save(tmp_path / "good.pth", {"w": torch.zeros(3_000_000)}), tmp_path / "bomb.pth"
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert bomb.stat().st_size < 50_000
    with pytest.raises(UserError, match="refused: a compressed zip"):
        read(bomb)


def test_containers_that_refer_to_each_other_many_times_are_walked_once():
    node: list = [torch.ones(1)]
    for _ in range(200):
        node = [node, node]
    loop: dict = {"again": node}
    loop["self"] = loop
    assert len(list(tensors_in(loop))) == 1


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><title>Google Drive - Quota exceeded</title>", "is a web page"),
        (b"\n<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "is a Git LFS pointer"),
        (b"\x1f\x8b" + bytes(60), "is a gzip archive"),
        (b"not a checkpoint at all", "not a checkpoint"),
        (b"\xff" * 3000, "not a checkpoint"),
        (tarfile.TarInfo("storages").tobuf() + bytes(2048), "format of 2016"),
    ],
)
def test_what_is_not_a_checkpoint_is_called_by_its_name(tmp_path, content, words):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read(tmp_path / "x.pth")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, share, legacy):
    path = save(tmp_path / "cut.pth", {"w": torch.rand(5000)}, legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match="truncated"):
        read(path)


def test_an_archive_a_folder_a_list_and_a_missing_file_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "pretrained.zip", "w") as archive:
        archive.writestr("self-label_models/alexnet.pth", b"x")
    with pytest.raises(UserError, match="a zip archive .self-label_models/alexnet.pth., not a checkpoint"):
        read(tmp_path / "pretrained.zip")
    with pytest.raises(UserError, match="a folder"):
        read(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "nowhere.pth")
    with pytest.raises(UserError, match="holds a list"):
        read(save(tmp_path / "list.pth", [torch.ones(1)]))


def test_safetensors_can_be_read_and_damaged_ones_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.arange(3.0)}, tmp_path / "x.safetensors")
    assert torch.equal(read(tmp_path / "x.safetensors")["w"], torch.arange(3.0))
    data = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(data[:-2])
    with pytest.raises(UserError, match="damaged"):
        read(tmp_path / "x.safetensors")


def test_sha256_is_the_files(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
