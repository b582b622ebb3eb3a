"""What a list or an archive from elsewhere can do: never a place outside the data set, never more memory than it states."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
import shutil
import struct
import tarfile
import threading
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from data_samples import build_coco, build_inaturalist, build_places, build_voc2007, folders, loosened, picture

from zoo import data
from zoo.__main__ import main
from zoo.data import archives, arrays, paths, specs
from zoo.data.archive_sets import pack_zip, write_shards
from zoo.data.archives import zip_members
from zoo.errors import UserError, guard


@pytest.fixture(autouse=True)
def small(monkeypatch):
    table = loosened()
    monkeypatch.setattr(specs, "load", lambda *_: table)


# ---------------------------------------------------------------- names that lead elsewhere


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.jpg", "a/../../x.jpg", "a/..", "", "a\0.jpg"])
def test_a_name_that_leads_out_is_refused(name):
    with pytest.raises(UserError, match="^list:3: .* leads out of the folder"):
        paths.inside(name, "list:3")


def test_ordinary_names_are_not(tmp_path):
    for name in ("a.jpg", "a/b.jpg", "..a/b..jpg", "größe/x y.jpg", "a//b.jpg"):
        assert paths.inside(name, "x") == name
    with pytest.raises(UserError, match="is not the name of a folder"):
        paths.component("a/b", "x")


def edited(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def coco_out(root):
    build_coco(root)
    edited(root / "annotations/instances_train.json", "000000000003.jpg", "../../outside.jpg")
    return "coco"


def voc_out(root):
    build_voc2007(root)
    for path in (root / "VOCdevkit/VOC2007/ImageSets/Main").glob("*.txt"):
        edited(path, "000003", "../../../../outside")
    return "voc2007"


def places_out(root):
    build_places(root)
    edited(
        root / "trainvalsplit_places205/train_places205.csv", "a/abbey/gsun_0.jpg", "../../../../../../../outside.jpg"
    )
    return "places205"


def inaturalist_out(root):
    build_inaturalist(root)
    edited(root / "train2018.json", "train_val2018/Plantae/12/0000000c.jpg", "../outside.jpg")
    return "inaturalist2018"


def index_out(root):
    write_shards(data.open_source("folder", "train", folders(root.with_name("loose"), parts=("train",))), root, "train")
    shutil.copy(root / "train-000000.tar", root.with_name("outside.tar"))
    edited(root / "train.index.tsv", "train-000000.tar", "../outside.tar")
    return "folder"


def zip_out(root):
    root.mkdir()
    with zipfile.ZipFile(root / "train.zip", "w") as archive:
        for name in ("a/0.png", "b/../../outside.png"):
            archive.write(picture(root / "x.png", 0), name)
    (root / "train_map.txt").write_text("a/0.png\t0\nb/../../outside.png\t1\n")
    return "folder"


def tar_out(root):
    root.mkdir()
    with tarfile.open(root / "train-0.tar", "w") as tar:
        tar.add(picture(root / "x.png", 0), "../outside.png")
    return "images"


@pytest.mark.parametrize("build", [coco_out, voc_out, places_out, inaturalist_out, index_out, zip_out, tar_out])
def test_no_list_reads_a_file_outside_its_data_set(tmp_path, build):
    name = build(tmp_path / "set")
    picture(tmp_path / "outside.jpg", 1, size=(20, 16))
    with pytest.raises(UserError, match=r"outside.*(leads out of the folder|is not the name of a folder)"):
        data.open_source(name, "train", tmp_path / "set")


@pytest.mark.parametrize("kind", ["csv", "kit", "map"])
@pytest.mark.parametrize("name", ["../..", "..", "/tmp", "../../elsewhere", "n01440764/../../.."])
def test_validation_images_never_leave_their_folder(tmp_path, kind, name, capsys):
    root = tmp_path / "a/imagenet"
    path = picture(root / "val/ILSVRC2012_val_00000001.jpg", 0)
    path.rename(path.with_suffix(".JPEG"))
    if kind == "csv":
        (root / "LOC_val_solution.csv").write_text(
            f"ImageId,PredictionString\nILSVRC2012_val_00000001,{name} 1 1 2 2\n"
        )
    elif kind == "kit":
        from scipy.io import savemat

        kit = root / "ILSVRC2012_devkit_t12/data"
        kit.mkdir(parents=True)
        savemat(
            kit / "meta.mat",
            {"synsets": np.array([(1, name), (2, "n1")], dtype=[("ILSVRC2012_ID", "i4"), ("WNID", "O")])},
        )
        (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n")
    else:
        (root / "train/n1").mkdir(parents=True)
        (root / "val_map.txt").write_text(f"{name}/ILSVRC2012_val_00000001.JPEG\t0\n")
    before = sorted(tmp_path.rglob("*"))
    status = guard(lambda: main(["data", "prepare", "imagenet-val", str(root)]))
    if kind == "map":  # only its numbers and the last part of its names are used
        assert status == 0 and (root / "val/n1/ILSVRC2012_val_00000001.JPEG").is_file()
        return
    assert status == 2 and "leads out of" in (told := capsys.readouterr().err) or "is not the name" in told
    assert sorted(tmp_path.rglob("*")) == before


# ---------------------------------------------------------------- archives that unpack to more than they are


def bomb(path, size, stated=None, name="a/0.png"):
    """A zip with ``size`` zeros, whose directory states ``stated`` bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join([*(packer.compress(bytes(2**20)) for _ in range(size // 2**20)), packer.flush()])
    crc = 0
    for _ in range(size // 2**20):
        crc = zlib.crc32(bytes(2**20), crc)
    said = size if stated is None else stated
    fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, crc, len(packed), said, len(name), 0)
    local = b"PK\3\4" + fields + name.encode() + packed
    central = b"PK\1\2" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name.encode()
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(local + central + end)
    return path


def peak(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_zip_that_states_far_more_than_it_stores_is_refused_when_it_is_listed(tmp_path):
    archive = bomb(tmp_path / "train.zip", 200 * 2**20)
    assert archive.stat().st_size < 2**18

    def read():
        with pytest.raises(
            UserError, match=r"train.zip@/a/0.png: \d+,\d+ bytes that unpack to 209,715,200, which no image does"
        ):
            zip_members(archive)

    assert peak(read) < 4 * 2**20


@pytest.mark.parametrize("stated", [1000, 2**20, 20 * 2**20 - 1])
def test_a_zip_that_unpacks_to_more_than_it_states_stops_there(tmp_path, stated):
    archive = bomb(tmp_path / "train.zip", 100 * 2**20, stated)
    (tmp_path / "train_map.txt").write_text("a/0.png\t0\n")
    if stated > 2**24:
        with pytest.raises(UserError, match="which no image does"):
            data.open_source("folder", "train", tmp_path)
        return
    source = data.open_source("folder", "train", tmp_path)

    def read():
        with pytest.raises(
            data.ImageError, match=rf"{archive.name}@/a/0.png: unpacks to more than the {stated:,} bytes"
        ):
            source.raw(0)

    assert peak(read) < 8 * 2**20


def test_a_stored_member_beyond_the_end_is_refused_before_memory_is_taken_for_it(tmp_path):
    path = bomb(tmp_path / "train.zip", 0, 2**29)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\1\2")
    struct.pack_into("<H", content, at + 10, 0)  # stored
    struct.pack_into("<I", content, at + 20, 2**29)
    path.write_bytes(content)
    with pytest.raises(UserError, match="reaches beyond the end of the archive"):
        zip_members(path)


def test_an_index_that_reaches_beyond_its_shard_is_refused(tmp_path):
    write_shards(
        data.open_source("folder", "train", folders(tmp_path / "loose", parts=("train",))), tmp_path / "tar", "train"
    )
    lines = (tmp_path / "tar/train.index.tsv").read_text().splitlines()
    lines[3] = "\t".join([*lines[3].split("\t")[:4], str(2**40)])
    (tmp_path / "tar/train.index.tsv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"train.index.tsv:4: .* reaches beyond the end of its shard"):
        data.open_source("folder", "train", tmp_path / "tar")


def test_what_compresses_well_and_is_small_is_read(tmp_path):
    """A flat gray image of 3 MB, stored well in a zip, is no bomb."""
    with zipfile.ZipFile(tmp_path / "train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for k, name in enumerate("ab"):
            file = io.BytesIO()
            data.images.Image.new("RGB", (1000, 1000), (k, 0, 0)).save(file, "BMP")
            archive.writestr(f"{name}/0.bmp", file.getvalue())
    (tmp_path / "train_map.txt").write_text("a/0.bmp\t0\nb/0.bmp\t1\n")
    assert data.open_source("folder", "train", tmp_path).pixels(1)[0, 0].tolist() == [1, 0, 0]


def test_a_gzip_that_holds_more_than_its_header_says_is_not_unpacked(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    head = b"\0\0\x08\3" + struct.pack(">III", 2, 28, 28)
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(head)
        for _ in range(100):
            file.write(bytes(2**20))

    def read():
        with pytest.raises(UserError, match=r"shape \(2, 28, 28\) needs 1568 bytes, the file holds more"):
            arrays.parse(path)

    assert peak(read) < 4 * 2**20
    with gzip.open(path, "wb") as file:
        file.write(b"\0\0\x08\3" + struct.pack(">III", 2**20, 2**10, 2**10))
    with pytest.raises(UserError, match="more than any set of this kind has"):
        arrays.parse(path)


def test_masks_of_an_image_without_end_are_not_made(tmp_path):
    build_coco(tmp_path)
    path = tmp_path / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["images"][0].update(width=10**6, height=10**6)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="image 9: 1000000 x 1000000 pixels"):
        data.open_source("coco", "train", tmp_path)


# ---------------------------------------------------------------- many archives


def many_shards(root, count):
    root.mkdir(exist_ok=True)
    image = picture(root / "x.png", 0).read_bytes()
    for k in range(count):
        with tarfile.open(root / f"train-{k:05d}.tar", "w") as tar:
            for name, content in ((f"{k}.png", image), (f"{k}.cls", str(k % 2).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def few_files():
    """A process that may keep 64 files more open than now."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 64, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_shards_than_a_process_may_open_are_read(tmp_path, few_files):
    many_shards(tmp_path, 200)
    source = data.open_source("folder", "train", tmp_path)
    order = np.random.default_rng(0).permutation(200)
    for i in (*order, *order):
        assert source.image(int(i)).size == (20, 16)
    assert archives.most_open() < 64 and open_handles(source) <= archives.most_open()
    again = pickle.loads(pickle.dumps(source))
    assert open_handles(again) == 0 and again.raw(7) == source.raw(7)


def open_handles(source):
    return sum(map(len, source.store._handles._idle.values()))


def test_threads_share_a_bounded_number_of_handles(tmp_path, few_files):
    many_shards(tmp_path, 100)
    source = data.open_source("folder", "train", tmp_path)
    expected = [source.raw(i) for i in range(100)]
    wrong = []

    def reader(seed):
        for i in np.random.default_rng(seed).integers(0, 100, 400):
            try:
                wrong.extend([i] * (source.raw(int(i)) != expected[i]))
            except Exception as error:  # noqa: BLE001
                wrong.append(error)

    threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and open_handles(source) <= archives.most_open()


def test_the_handles_used_last_stay_open(tmp_path):
    files = []
    for k in range(5):
        files.append(str(tmp_path / f"{k}"))
        (tmp_path / f"{k}").write_bytes(bytes([k]) * 4)
    handles = archives.Handles(files, most=2)
    assert [handles.pread(k, 2, 1) for k in (0, 1, 0, 2)] == [b"\0\0", b"\1\1", b"\0\0", b"\2\2"]
    assert list(handles._idle) == [0, 2]
    before = set(os.listdir("/proc/self/fd"))
    handles.close()
    assert len(before - set(os.listdir("/proc/self/fd"))) >= 2


def test_the_end_of_the_interpreter_finds_archives_open_and_says_nothing(tmp_path, monkeypatch):
    many_shards(tmp_path, 2)
    source = data.open_source(str(tmp_path))
    source.image(0)
    with monkeypatch.context() as patch:
        patch.setattr(archives, "os", None)  # what the interpreter leaves of a module's names
        source.store.__del__()
    assert open_handles(source) == 1


def test_a_source_of_many_zips_keeps_few_open(tmp_path, few_files):
    from zoo.data.yfcc import place

    for k in range(100):
        archive, member = place(k * 1000)
        (tmp_path / archive).parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(tmp_path / archive, "w") as file:
            file.write(picture(tmp_path / "x.jpg", k), member)
    np.save(tmp_path / "flickr_unique_ids.npy", np.arange(100) * 1000)
    source = data.open_source("yfcc100m", root=tmp_path)
    for i in range(100):
        source.image(i)
    assert len(source.store._zips) <= archives.most_open()


def test_packing_writes_into_the_folder_that_was_named(tmp_path, capsys):
    root = folders(tmp_path / "set", parts=("train",))
    (tmp_path / "few.txt").write_text("ant/ant_0.jpg\nbee/bee_0.jpg\n")
    for command, written in (("pack", "train.zip"), ("shard", "train.index.tsv")):
        words = [
            "data",
            command,
            "folder",
            str(root),
            "--to",
            str(tmp_path / command),
            "--split",
            f"train@{tmp_path}/few.txt",
        ]
        assert guard(lambda words=words: main(words)) == 0, capsys.readouterr().err
        assert (tmp_path / command / written).is_file()
        assert len(data.open_source("folder", "train", tmp_path / command)) == 2
    with pytest.raises(UserError, match="beside"):
        pack_zip(data.open_source("folder", "train", root), tmp_path / "beside", "../train")
