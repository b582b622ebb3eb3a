"""Features of a whole set: the same in memory and in a file, and a killed collection goes on."""

import errno
import os
import resource
import signal

import engine_processes as processes
import numpy as np
import pytest
import torch
from torch import nn

from engine import extract, mapped
from engine.errors import UserError

ROWS, DIM = 1000, 7


def feature(start, stop):
    return torch.arange(start * DIM, stop * DIM, dtype=torch.float64).view(-1, DIM).sqrt()


EXPECTED = feature(0, ROWS).float()


@pytest.mark.parametrize("block", [1, 64, 512, 5000])
def test_memory_and_file_hold_the_same_rows(tmp_path, block):
    for path, in_memory in [(None, 0), (tmp_path / "f.npy", 10**9), (tmp_path / "f.npy", 100)]:
        found = extract.collect(feature, ROWS, path=path, key="a", block=block, in_memory=in_memory)
        assert found.dtype == torch.float32 and torch.equal(found, EXPECTED)
        assert (tmp_path / "f.npy").exists() == (in_memory == 100)


def test_a_killed_collection_goes_on_with_the_rows_that_were_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "_NOTE", 0.0)

    def work():
        calls = []

        def compute(start, stop):
            calls.append(start)
            if len(calls) == 8:
                processes.commit_suicide()
            return feature(start, stop)

        extract.collect(compute, ROWS, path=tmp_path / "f.npy", key="a", block=100, in_memory=0)

    assert processes.status_of(processes.fork(work)) == -signal.SIGKILL
    starts = []

    def again(start, stop):
        starts.append(start)
        return feature(start, stop)

    found = extract.collect(again, ROWS, path=tmp_path / "f.npy", key="a", block=100, in_memory=0)
    assert starts == [700, 800, 900] and torch.equal(found, EXPECTED)
    starts.clear()
    assert (
        torch.equal(extract.collect(again, ROWS, path=tmp_path / "f.npy", key="a", in_memory=0), EXPECTED)
        and not starts
    )


@pytest.mark.parametrize("change", ["key", "rows", "note", "file"])
def test_anything_else_starts_over(tmp_path, change):
    path, key, rows = tmp_path / "f.npy", "a", ROWS
    extract.collect(lambda a, b: -feature(a, b), ROWS, path=path, key=key, in_memory=0)
    if change == "key":
        key = "b"
    elif change == "rows":
        rows = 900
    else:
        (path.with_suffix(".json") if change == "note" else path).write_text("{")
    assert torch.equal(extract.collect(feature, rows, path=path, key=key, in_memory=0), EXPECTED[:rows])


def test_a_tensor_in_use_survives_the_next_collection_and_writing_to_it_stays_private(tmp_path):
    path = tmp_path / "f.npy"
    first = extract.collect(feature, ROWS, path=path, key="a", in_memory=0)
    first[0] = -1
    assert np.load(path)[0, 0] == 0
    second = extract.collect(lambda a, b: -feature(a, b), 10, path=path, key="b", in_memory=0)
    assert torch.equal(first[1:], EXPECTED[1:]) and torch.equal(second, -EXPECTED[:10])


def test_an_empty_share_is_an_empty_matrix(tmp_path):
    assert extract.collect(feature, 0, path=tmp_path / "f.npy", in_memory=-1).shape == (0, DIM)


def test_the_fingerprint_sees_every_bit_of_the_weights():
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    seen = {extract.fingerprint(net), extract.fingerprint(net, "view", 1), extract.fingerprint(net, "view", 2)}
    with torch.no_grad():
        net[1].running_mean[1] += 1e-7
    seen.add(extract.fingerprint(net))
    assert len(seen) == 4 and extract.fingerprint(net) in seen


def refuse(path, match):
    with pytest.raises(UserError, match=match) as told:
        extract.collect(feature, ROWS, path=path, key="a", block=100, in_memory=0)
    assert str(path) in str(told.value) and "28,000 bytes" in str(told.value) and "out=" in str(told.value)
    assert not list(path.parent.iterdir())


def test_a_disk_without_room_is_an_error_before_the_first_row_is_written(tmp_path, monkeypatch):
    def full(handle, offset, length):
        assert (offset, length) == (0, os.fstat(handle).st_size) and length >= 4 * ROWS * DIM
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    refuse(tmp_path / "f.npy", "No space left")


def test_a_limit_of_file_sizes_is_the_same_error(tmp_path):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        refuse(tmp_path / "f.npy", "File too large")

    assert processes.status_of(processes.fork(limited)) == 0


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_without_reservation_the_free_space_is_compared(tmp_path, monkeypatch, code):
    def unsupported(*_):
        raise OSError(code, os.strerror(code))

    if code is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", unsupported)
    assert torch.equal(extract.collect(feature, ROWS, path=tmp_path / "f.npy", key="a", in_memory=0), EXPECTED)
    for file in tmp_path.iterdir():
        file.unlink()
    monkeypatch.setattr(mapped, "_free", lambda path: 10_000)
    refuse(tmp_path / "f.npy", "10,000 are free")


def test_every_block_of_a_new_file_is_on_the_disk(tmp_path):
    mapped.create(tmp_path / "f.npy", (1000, 1000))
    assert (tmp_path / "f.npy").stat().st_blocks * 512 >= 4_000_000
