"""Cache modes no, part and full: the same images, in one process and in two, and each file in memory once."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_samples import build_zip, stream

from zoo import data
from zoo.data import memory
from zoo.data.archive_sets import pack_zip
from zoo.data.archives import Access
from zoo.errors import UserError


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A folder, and the zip packed from it; links of shared memory stay below tmp_path."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    build_zip(tmp_path / "set")
    return tmp_path


def open_zip(root, cache, share=None):
    return data.open_source("folder", "train", root / "set", cache=cache, share=share)


@pytest.mark.parametrize("cache", ["no", "part", "full"])
def test_a_zip_gives_the_images_of_the_folder_it_was_packed_from(packed, cache):
    folder = data.open_source("folder", "train", packed / "set_folder")
    zipped = open_zip(packed, cache)
    assert stream(zipped) == stream(folder)
    assert zipped.classes == folder.classes and zipped.fingerprint == folder.fingerprint


def _process(root, cache, rank, ready, done, results):
    import tempfile

    tempfile.tempdir = str(root)
    source = open_zip(root, cache, (rank, 2))
    ready.wait()
    held = stream(source)
    owners = sorted(source.store._maps) if cache != "no" else []
    results.put((rank, held, owners))
    done.wait()


@pytest.mark.parametrize("cache", ["no", "part", "full"])
def test_two_processes_read_the_same_images_and_share_their_memory(packed, cache):
    context = multiprocessing.get_context("fork")
    ready, done, results = context.Barrier(2), context.Barrier(2), context.Queue()
    processes = [context.Process(target=_process, args=(packed, cache, r, ready, done, results)) for r in (0, 1)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    expected = stream(data.open_source("folder", "train", packed / "set_folder"))
    for _, held, owners in found:
        assert held == expected
        assert owners == {"no": [], "part": [0, 1], "full": [0]}[cache]
    assert not [p for p in packed.glob("selfzoo-*/*") if p.is_symlink()]  # taken away with the memory


def test_a_share_is_read_from_the_archive_when_its_owner_is_not_there(packed):
    alone = open_zip(packed, "part", (0, 2))
    assert stream(alone) == stream(open_zip(packed, "no"))
    assert sorted(alone.store._maps) == [0]


def test_a_share_whose_owner_was_killed_is_not_mistaken_for_memory(packed):
    folder = packed / f"selfzoo-{os.getuid()}"
    code = (
        "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from zoo import data\n"
        "s = data.open_source('folder', 'train', sys.argv[1] + '/set', cache='part', share=(1, 2))\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(packed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout.readline() == b"ready\n"
    child.kill()
    child.wait()
    left = [p for p in folder.iterdir() if p.is_symlink()]
    assert len(left) == 1 and not left[0].exists()
    source = open_zip(packed, "part", (0, 2))
    assert stream(source) == stream(open_zip(packed, "no"))
    assert not any(p.is_symlink() and not p.exists() for p in folder.iterdir())


def test_a_link_to_another_file_is_not_believed(packed):
    source = open_zip(packed, "part", (0, 2))
    other = packed / "other"
    other.write_bytes(b"x" * source.store.totals[1])
    source.store._link(1).symlink_to(other)
    assert stream(source) == stream(open_zip(packed, "no"))


def test_memory_that_would_not_fit_is_refused_before_it_is_taken(packed, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 100)
    with pytest.raises(UserError, match="do not fit into.*cache=no"):
        open_zip(packed, "full")


def test_subsets_of_a_source_in_memory_keep_it_alive(packed):
    part = open_zip(packed, "full").subset([5, 2])
    assert part.store._maps and stream(part)[0] == stream(open_zip(packed, "no"))[5]


def test_the_mode_and_the_share_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("SELFZOO_CACHE", "part")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert Access.of() == Access("part", (1, 4))
    with pytest.raises(UserError, match="'half'.*no, part, full"):
        Access.of("half")
    with pytest.raises(UserError, match="process 4 of 4"):
        Access.of("part", (4, 4))


def test_part_and_full_hold_each_file_once_per_machine(tmp_path, monkeypatch):
    """Two processes with two workers each: the pages of the set are counted once among the six."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    root = tmp_path / "set_folder"
    rng = np.random.default_rng(0)
    for label in "ab":
        (root / "train" / label).mkdir(parents=True)
        for i in range(8):  # 8 MiB of what looks like images to the listing; nothing is decoded here
            (root / "train" / label / f"{i}.png").write_bytes(rng.bytes(1 << 19))
    pack_zip(data.open_source("folder", "train", root), tmp_path / "set", "train")
    total = 16 * (1 << 19)
    grown = {mode: measure(tmp_path, mode) for mode in ("no", "part", "full")}
    assert grown["no"] < 0.1 * total
    assert 0.9 * total < grown["part"] < 1.3 * total
    assert 0.9 * total < grown["full"] < 1.3 * total


def measure(root, cache):
    """Bytes of shared memory (proportional: each page divided by its users) of two ranks with two workers each."""
    context = multiprocessing.get_context("fork")
    everyone, results = context.Barrier(6), context.Queue()
    ranks = [context.Process(target=_rank, args=(root, cache, r, everyone, results)) for r in (0, 1)]
    for process in ranks:
        process.start()
    sizes = [results.get(timeout=60) for _ in range(6)]
    for process in ranks:
        process.join(60)
    return sum(sizes)


def _rank(root, cache, rank, everyone, results):
    import tempfile

    tempfile.tempdir = str(root)
    source = open_zip(root, cache, (rank, 2))
    workers = [
        multiprocessing.get_context("fork").Process(target=_worker, args=(source, everyone, results)) for _ in (0, 1)
    ]
    for worker in workers:
        worker.start()
    _worker(source, everyone, results)
    for worker in workers:
        worker.join(60)


def _worker(source, everyone, results):
    everyone.wait()  # both ranks hold their share
    for i in range(len(source)):
        source.raw(i)
    everyone.wait()
    shared = 0
    mapping = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and ":" not in line.split()[0]:
            mapping = "memfd:selfzoo" in line
        elif mapping and line.startswith("Pss:"):
            shared += int(line.split()[1]) * 1024
    results.put(shared)
    everyone.wait()  # nobody leaves before all have counted
