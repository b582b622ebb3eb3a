"""Every fault has a stated behaviour: an error that names file and line, or a skip within a limit that the caller names."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import struct

import numpy as np
import pytest
from data_samples import folders, loosened, picture
from PIL import Image

from zoo import data
from zoo.data import arrays, bad_images, images, specs
from zoo.data.archive_sets import pack_zip
from zoo.errors import UserError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    table = loosened()
    monkeypatch.setattr(specs, "load", lambda *_: table)


@pytest.fixture
def root(tmp_path):
    return folders(tmp_path / "set", parts=("train",))


def train(root, **how):
    return data.open_source("folder", "train", root, **how)


# ---------------------------------------------------------------- images that are unusual but good


def test_the_content_decides_not_the_extension(root):
    picture(root / "train/ant/ant_0.png", 7).replace(root / "train/ant/ant_0.jpg")
    assert np.array_equal(train(root).pixels(0), np.asarray(Image.open(root / "train/ant/ant_0.jpg").convert("RGB")))


@pytest.mark.parametrize(
    "mode, name", [("CMYK", "x.jpg"), ("L", "x.png"), ("LA", "x.png"), ("1", "x.png"), ("YCbCr", "x.jpg")]
)
def test_other_colour_modes_become_rgb_as_pillow_converts_them(tmp_path, mode, name):
    path = picture(tmp_path / name, 3, mode=mode)
    found = images.decode(path.read_bytes(), 3, lambda: "x")
    assert found.mode == "RGB" and np.array_equal(np.asarray(found), np.asarray(Image.open(path).convert("RGB")))


def test_palette_images_keep_their_colours_and_lose_their_transparency(tmp_path):
    image = Image.new("P", (4, 2))
    image.putpalette([255, 0, 0, 0, 0, 255] + [0] * 762)
    image.putdata([0, 1, 0, 1] * 2)
    image.save(tmp_path / "x.png", transparency=bytes([0, 255]))
    found = np.asarray(images.decode((tmp_path / "x.png").read_bytes(), 3, lambda: "x"))
    assert found[0].tolist() == [[255, 0, 0], [0, 0, 255]] * 2


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, channels):
    deep = np.array([[0, 257, 300, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "x.png")
    found = np.asarray(images.decode((tmp_path / "x.png").read_bytes(), channels, lambda: "x"))
    assert (found if channels == 1 else found[..., 1]).tolist() == [[0, 1, 1, 128, 255]]


def tiff_of_12_bits(values):
    """A TIFF whose samples have 12 bits, two in three bytes."""
    a, b = values[::2], values[1::2]
    strip = b"".join(bytes([x >> 4, (x & 15) << 4 | y >> 8, y & 255]) for x, y in zip(a, b, strict=True))
    tags = [
        (256, 4, len(values)),
        (257, 4, 1),
        (258, 3, 12),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, 1),
        (279, 4, len(strip)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", len(tags)) + entries + bytes(4)


DEEP = np.array([[0, 1000, 2048, 4095]], dtype=np.uint16)


def deep(kind, form="TIFF", **tags):
    file = io.BytesIO()
    more = {"tiffinfo": {int(k[1:]): v for k, v in tags.items()}} if tags else {}
    Image.fromarray(DEEP.astype(kind)).save(file, form, **more)
    return file.getvalue()


STATED = {  # what the file says is white, and the four values by it
    "16-bit png": (deep(np.uint16, "PNG"), "png", [0, 4, 8, 16]),
    "16-bit tiff": (deep(np.uint16), "tif", [0, 4, 8, 16]),
    "16-bit tiff that states 4095": (deep(np.uint16, t281=4095), "tif", [0, 62, 128, 255]),
    "16-bit tiff that states less than it holds": (deep(np.uint16, t281=255), "tif", [0, 4, 8, 16]),
    "16-bit tiff in which white is 0": (deep(np.uint16, t262=0), "tif", [255, 251, 247, 239]),
    "12-bit tiff": (tiff_of_12_bits(DEEP[0].tolist()), "tif", [0, 62, 128, 255]),
    "32-bit tiff that states 4095": (deep(np.int32, t341=4095), "tif", [0, 62, 128, 255]),
    "float tiff that states -1 to 4095": (deep(np.float32, t340=-1.0, t341=4095.0), "tif", [0, 62, 128, 255]),
    "12-bit pgm": (b"P5 4 1 4095\n" + DEEP.astype(">u2").tobytes(), "pgm", [0, 62, 128, 255]),
    "16-bit pgm": (b"P5 4 1 65535\n" + DEEP.astype(">u2").tobytes(), "pgm", [0, 4, 8, 16]),
    "12-bit pgm in words": (b"P2 4 1 4095\n0 1000 2048 4095\n", "pgm", [0, 62, 128, 255]),
}


@pytest.mark.parametrize("kind", STATED)
def test_deep_gray_is_scaled_by_what_the_file_says(kind):
    content, _, expected = STATED[kind]
    for channels in (1, 3):
        found = np.asarray(images.decode(content, channels, lambda: "x"))
        assert (found if channels == 1 else found[..., 1])[0].tolist() == expected


@pytest.mark.parametrize(
    "content, reason",
    [
        (deep(np.int32), "a 32-bit integer image, and the file does not state its range"),
        (deep(np.float32), "a floating-point image, and the file does not state its range"),
        (deep(np.int32, t341=255), "values 0..4095 lie outside the range 0..255 that the file states"),
        (b"Pf\n2 1\n-1.0\n" + np.array([0, np.nan], "<f4").tobytes(), "a floating-point"),
    ],
)
def test_deep_gray_without_a_range_is_refused(content, reason):
    with pytest.raises(data.ImageError, match=f"^x.tif: cannot be decoded: {reason}"):
        images.decode(content, 3, lambda: "x.tif")


def test_every_road_scales_deep_gray_alike(tmp_path):
    from torchvision.datasets import ImageFolder

    from evaluations.inputs import datasets
    from zoo.data.archive_sets import write_shards

    for name, content in {
        "ant": STATED["16-bit png"],
        "bee": STATED["12-bit tiff"],
        "cat": STATED["12-bit pgm"],
    }.items():
        place = tmp_path / "set/train" / name
        place.mkdir(parents=True)
        (place / f"0.{content[1]}").write_bytes(content[0])
    folder = train(tmp_path / "set")
    pack_zip(folder, tmp_path / "zip", "train")
    write_shards(folder, tmp_path / "tar", "train")
    opened = [folder, train(tmp_path / "zip"), train(tmp_path / "tar"), train(tmp_path / "zip", cache="full")]
    for source in opened:
        assert [source.pixels(i)[0, :, 0].tolist() for i in range(3)] == [
            STATED[k][2] for k in ("16-bit png", "12-bit tiff", "12-bit pgm")
        ]
    items = datasets._torchvision("torchvision:ImageFolder", "train", str(tmp_path / "set/train"), False)
    assert isinstance(items._items, ImageFolder)
    assert [items.pixels(i)[0, :, 0].tolist() for i in range(3)] == [
        STATED[k][2] for k in ("16-bit png", "12-bit tiff", "12-bit pgm")
    ]


def test_names_beyond_ascii_and_beyond_utf8_are_read(tmp_path):
    root = folders(tmp_path / "dätä", parts=("train",), classes=("größe", "日本"))
    odd = os.fsencode(root / "train/日本") + b"/caf\xe9.jpg"
    shutil.copy(root / "train/日本/日本_0.jpg", odd)
    source = train(root)
    assert source.classes == ("größe", "日本") and len(source) == 9
    names = [source.name(i) for i in range(9)]
    assert "日本/日本_0.jpg" in names and "日本/caf\udce9.jpg" in names
    assert source.image(names.index("日本/caf\udce9.jpg")).size == (20, 16)
    with pytest.raises(UserError, match="cannot hold this name"):
        pack_zip(source, tmp_path / "packed", "train")
    assert not list((tmp_path / "packed").iterdir())


# ---------------------------------------------------------------- images that cannot be read


def break_image(path, how):
    whole = path.read_bytes()
    path.write_bytes(
        {"truncated": whole[: len(whole) // 2], "zero bytes": b"", "text": b"no image", "cut header": whole[:20]}[how]
    )


@pytest.mark.parametrize("how", ["truncated", "text", "cut header"])
def test_an_unreadable_image_is_an_error_that_names_the_file(root, how):
    break_image(root / "train/bee/bee_1.JPEG", how)
    source = train(root)
    with pytest.raises(data.ImageError, match=r"set/train/bee/bee_1.JPEG: cannot be decoded: \w+"):
        source.image(5)
    assert source.image(4).size == (20, 16)


def test_a_zero_byte_file_is_an_error_when_the_set_is_opened(root):
    break_image(root / "train/bee/bee_1.JPEG", "zero bytes")
    with pytest.raises(
        UserError, match=r"1 of 12 images cannot be read \(first: .*bee_1.JPEG: empty file \(0 bytes\)\).*max_bad=N"
    ):
        train(root)


def test_bad_images_are_left_out_up_to_the_limit_that_the_caller_names(root, capsys):
    break_image(root / "train/bee/bee_1.JPEG", "truncated")
    break_image(root / "train/cat/cat_0.jpg", "zero bytes")
    with pytest.raises(UserError, match=r"2 of 12 images cannot be read .*bee_1.JPEG.*more than max_bad=1"):
        train(root, max_bad=1)
    source = train(root, max_bad=2)
    assert "2 of 12 images cannot be read" in capsys.readouterr().err
    assert len(source) == 10 and source.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 3
    assert {"bee/bee_1.JPEG", "cat/cat_0.jpg"}.isdisjoint(source.name(i) for i in range(10))
    for i in range(10):
        source.image(i)


def test_the_search_for_bad_images_is_made_once(root, monkeypatch):
    break_image(root / "train/bee/bee_1.JPEG", "truncated")
    first = train(root, max_bad=2)
    monkeypatch.setattr(bad_images, "in_order", None)
    assert train(root, max_bad=2).fingerprint == first.fingerprint


def test_the_search_for_bad_images_knows_what_is_on_disk_not_what_was(root, monkeypatch):
    """The same names and sizes throughout: a repaired image is read again, a newly broken one is found."""
    first, second = root / "train/bee/bee_1.JPEG", root / "train/cat/cat_2.jpg"
    whole = {path: path.read_bytes() for path in (first, second)}
    first.write_bytes(b"x" * len(whole[first]))
    assert len(train(root, max_bad=2)) == 11
    read = []
    decoded = data.FileSource.decoded
    monkeypatch.setattr(data.FileSource, "decoded", lambda self, i: (read.append(self.name(i)), decoded(self, i))[1])
    first.write_bytes(whole[first])
    assert len(train(root, max_bad=2)) == 12 and read == ["bee/bee_1.JPEG"]
    second.write_bytes(b"x" * len(whole[second]))
    assert len(train(root, max_bad=2)) == 11 and read[1:] == ["cat/cat_2.jpg"]
    partial = root / "train/cat/.new"
    partial.write_bytes(whole[second])
    os.utime(partial, ns=(0, second.stat().st_mtime_ns))  # as rsync --times and cp --preserve leave it
    partial.replace(second)
    assert len(train(root, max_bad=2)) == 12
    assert len(train(root, max_bad=2)) == 12 and len(read) == 3


def test_the_search_for_bad_images_knows_its_archive(root, tmp_path):
    for path in (root / "train/bee/bee_1.JPEG", root / "train/cat/cat_2.jpg"):
        whole = path.read_bytes()
        path.write_bytes(b"x" * len(whole))
        pack_zip(train(root), tmp_path / "zip", "train")
        assert len(train(tmp_path / "zip", max_bad=1)) == 11
        path.write_bytes(whole)
    pack_zip(train(root), tmp_path / "zip", "train")
    assert len(train(tmp_path / "zip", max_bad=1)) == 12


def test_a_file_that_could_not_be_opened_once_is_tried_again(root, monkeypatch):
    from zoo.data.source import FolderStore

    read = FolderStore.read

    def failing(self, i):
        if self.names[i] == "bee/bee_1.JPEG":
            raise UserError("bee_1.JPEG: cannot be read: Input/output error")
        return read(self, i)

    monkeypatch.setattr(FolderStore, "read", failing)
    assert len(train(root, max_bad=2)) == 11
    monkeypatch.setattr(FolderStore, "read", read)
    assert len(train(root, max_bad=2)) == 12


@pytest.mark.parametrize("road", ["folder", "zip"])
def test_an_unreadable_image_says_what_leaves_it_out_and_what_lists_all(root, tmp_path, road):
    break_image(root / "train/bee/bee_1.JPEG", "truncated")
    if road == "zip":
        pack_zip(train(root), tmp_path / "my zip", "train")
        root = tmp_path / "my zip"
    for source in (train(root), train(root).subset([5])):
        with pytest.raises(data.ImageError, match="bee_1.JPEG.*max_bad=N.*`python -m zoo data check") as told:
            source.image(5 if len(source) > 1 else 0)
    command = str(told.value).rpartition("`python -m ")[2].partition("`")[0]
    from zoo.__main__ import main

    assert main(shlex.split(command)[1:]) == 1  # the command finds the set and the image
    assert len(train(root, max_bad=1)) == 11


def test_missing_and_unreadable_images_count_against_the_limit_together(monkeypatch, root):
    complete = data.describe("folder").splits["train"].model_copy(update={"count": 13})
    spec = data.describe("folder").model_copy(update={"splits": {"train": complete}})
    monkeypatch.setattr(specs, "load", lambda *_: {"folder": spec})
    next((root / "train/ant").iterdir()).write_bytes(b"no image")
    with pytest.raises(
        UserError, match="1 of 13 images are missing and 1 of 12 images cannot be read.*more than max_bad=1"
    ):
        train(root, max_bad=1)
    assert len(train(root, max_bad=2)) == 11


def test_a_missing_image_counts_against_the_limit(monkeypatch, root):
    complete = data.describe("folder").splits["train"].model_copy(update={"count": 13})
    spec = data.describe("folder").model_copy(update={"splits": {"train": complete}})
    monkeypatch.setattr(specs, "load", lambda *_: {"folder": spec})
    with pytest.raises(UserError, match="1 of 13 images are missing; repair the data, or allow it with max_bad=N"):
        train(root)
    assert len(train(root, max_bad=1)) == 12
    with pytest.raises(UserError, match="is -1; it counts images"):
        train(root, max_bad=-1)
    monkeypatch.setenv("SELFZOO_MAX_BAD", "1")
    assert len(train(root)) == 12
    with pytest.raises(UserError, match="1 of 13 images are missing"):
        train(root, max_bad=0)  # what the caller says counts
    picture(root / "train/ant/more.jpg", 1)
    picture(root / "train/ant/most.jpg", 1)
    with pytest.raises(UserError, match="14 images found, the set has 13; is it another data set"):
        train(root, max_bad=5)


# ---------------------------------------------------------------- folders


def test_an_empty_class_folder_is_named(root):
    (root / "train/dog").mkdir()
    with pytest.raises(UserError, match=r"train/dog: class folder without images \(1 such\)"):
        train(root)


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "train/ant").mkdir(parents=True)
    (tmp_path / "train/ant/readme.txt").write_text("none")
    with pytest.raises(UserError, match="train: no images found"):
        train(tmp_path)


def test_one_folder_of_pictures_is_one_class_and_read_without_labels_as_images(tmp_path):
    root = folders(tmp_path / "set", parts=("train",), classes=("all",))
    assert train(root).classes == ("all",) and train(root).labels.tolist() == [0] * 4
    source = data.open_source("images", "train", root)
    assert len(source) == 4 and not source.labelled and source.classes == ()


def test_images_beside_the_class_folders_are_refused(root):
    picture(root / "train/stray.jpg", 1)
    with pytest.raises(UserError, match=r"1 images lie beside the 3 class folders \(first: stray.jpg\)"):
        train(root)


def test_hidden_files_and_folders_are_left_out(root):
    (root / "train/.ipynb_checkpoints").mkdir()
    (root / "train/ant/._ant_0.jpg").write_bytes(b"macOS leaves these")
    assert len(train(root)) == 12


def test_a_loop_of_links_is_named(root):
    (root / "train/ant/again").symlink_to(root / "train", target_is_directory=True)
    with pytest.raises(UserError, match=r"train/ant/again: symbolic link leads back to a folder above it"):
        train(root)


def test_links_that_are_no_loop_are_followed(root, tmp_path):
    folders(tmp_path / "other", parts=("train",), classes=("dog",))
    (root / "train/dog").symlink_to(tmp_path / "other/train/dog", target_is_directory=True)
    (root / "train/ant/linked.jpg").symlink_to(tmp_path / "other/train/dog/dog_0.jpg")
    source = train(root)
    assert source.classes == ("ant", "bee", "cat", "dog") and len(source) == 17


def test_a_link_to_nothing_is_named(root):
    (root / "train/ant/gone.jpg").symlink_to(root / "nowhere.jpg")
    with pytest.raises(UserError, match="train/ant/gone.jpg: broken link"):
        train(root)


def test_a_folder_that_cannot_be_read_is_named(root, monkeypatch):
    scandir = os.scandir  # the tests may run as root, who may read everything

    def refusing(path):
        if str(path).endswith("bee"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match="train/bee: folder cannot be read: Permission denied"):
        train(root)


def test_an_image_that_vanishes_is_named(root):
    source = train(root)
    (root / "train/ant/ant_0.jpg").unlink()
    with pytest.raises(UserError, match="ant_0.jpg: cannot be read: No such file"):
        source.image(0)


def test_the_wrong_number_of_classes_is_refused(root, monkeypatch):
    imagenet = data.describe("imagenet").model_copy(update={"classes": 1000})
    monkeypatch.setattr(specs, "load", lambda *_: {"imagenet": imagenet})
    with pytest.raises(UserError, match="found 3 classes, imagenet has 1000; .*'folder'"):
        data.open_source("imagenet", "train", root)


def test_a_missing_split_says_what_is_there(root):
    with pytest.raises(UserError, match=r"no folder val/, no val.zip and no val-\*.tar in it \(found: train\)"):
        data.open_source("folder", "val", root)


def test_a_path_is_a_data_set_too(root):
    assert len(data.open_source(str(root))) == 12 and len(data.open_source(f"{root}/train")) == 12
    with pytest.raises(UserError, match="is a path already"):
        data.open_source(str(root), root=root)
    with pytest.raises(data.DataMissing, match="is a file, not a folder"):
        data.open_source(str(root / "train/ant/ant_0.jpg"))


# ---------------------------------------------------------------- zip and map


@pytest.fixture
def packed(root, tmp_path):
    pack_zip(train(root), tmp_path / "packed", "train")
    return tmp_path / "packed"


@pytest.mark.parametrize(
    "line, message",
    [
        ("ant/ant_9.jpg\t0", r"train_map.txt:2: ant/ant_9.jpg is not in train.zip"),
        ("ant/ant_1.JPEG 0", r"train_map.txt:2: expected path<TAB>label, found 'ant/ant_1.JPEG 0'"),
        ("ant/ant_1.JPEG\t-1", r"train_map.txt:2: expected path<TAB>label"),
        ("ant/ant_1.JPEG\tzero", r"train_map.txt:2: expected path<TAB>label"),
        ("ant/ant_0.jpg\t0", r"train_map.txt:2: ant/ant_0.jpg is listed already in line 1"),
        ("ant/ant_1.txt\t0", r"train_map.txt:2: 'ant/ant_1.txt' does not have the extension of an image"),
        ("", r"train_map.txt:2: expected path<TAB>label"),
    ],
)
def test_a_wrong_map_line_is_named(packed, line, message):
    lines = (packed / "train_map.txt").read_text().splitlines()
    lines[1] = line
    (packed / "train_map.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message):
        train(packed)


def test_a_label_out_of_range_is_named(packed, monkeypatch):
    spec = data.describe("folder").model_copy(update={"classes": ["ant", "bee"]})
    monkeypatch.setattr(specs, "load", lambda *_: {"folder": spec})
    with pytest.raises(UserError, match=r"train_map.txt:9: label 2 is out of range 0..1 \(4 such lines\)"):
        train(packed)


@pytest.mark.parametrize(
    "damage, message", [("truncated", "train.zip: not a readable zip"), ("text", "train.zip: not a readable zip")]
)
def test_a_broken_zip_is_named(packed, damage, message):
    break_image(packed / "train.zip", damage)
    with pytest.raises(UserError, match=message):
        train(packed)


def test_a_damaged_member_is_named_by_its_checksum(packed):
    source = train(packed)
    data_start = int(source.store.rows["offset"][3]) + 30 + len(source.name(3)) + 40
    with (packed / "train.zip").open("r+b") as file:
        file.seek(data_start)
        file.write(b"\xff\x00\xff")
    fresh = train(packed)
    with pytest.raises(data.ImageError, match=r"train.zip@/ant/ant_3.JPEG: checksum is wrong"):
        fresh.image(3)
    assert fresh.image(2).size == (20, 16)


def test_a_zip_without_its_map_says_how_to_make_one(packed):
    (packed / "train_map.txt").unlink()
    with pytest.raises(UserError, match="map train_map.txt is missing.*data pack"):
        train(packed)


def test_pic_maps_without_folders_number_their_classes(packed):
    import zipfile

    with (
        zipfile.ZipFile(packed / "train.zip") as old,
        zipfile.ZipFile(packed / "val.zip", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for k, name in enumerate(old.namelist()[:4]):
            new.writestr(f"ILSVRC2012_val_{k:08d}.JPEG", old.read(name))
    lines = "".join(f"ILSVRC2012_val_{k:08d}.JPEG\t{label}\n" for k, label in ((2, 1), (0, 0), (3, 2), (1, 1)))
    (packed / "val_map.txt").write_text(lines)
    source = data.open_source("folder", "val", packed)
    assert source.labels.tolist() == [1, 0, 2, 1] and source.classes == ("0", "1", "2")
    assert source.raw(1) == train(packed).raw(0)


# ---------------------------------------------------------------- shards


@pytest.fixture
def sharded(root, tmp_path):
    from zoo.data.archive_sets import write_shards

    write_shards(train(root), tmp_path / "shards", "train", per_shard=5)
    return tmp_path / "shards"


def test_shards_that_changed_since_their_index_are_refused(sharded):
    with (sharded / "train-000001.tar").open("ab") as file:
        file.write(b"\0" * 512)
    with pytest.raises(UserError, match=r"train-000001.tar: has \d+ bytes, \d+ when it was written; run .*data shard"):
        train(sharded)
    (sharded / "train-000001.tar").unlink()
    with pytest.raises(UserError, match="train-000001.tar: is missing"):
        train(sharded)


@pytest.mark.parametrize(
    "number, line, message",
    [
        (1, "{}", "index.tsv:1: expected the header"),
        (4, "name\t0\t0\t512", "index.tsv:4: expected name, label"),
        (4, "name\t7\t0\t512\t9", "index.tsv:4: shard 0 or label 7"),
    ],
)
def test_a_wrong_index_line_is_named(sharded, number, line, message):
    lines = (sharded / "train.index.tsv").read_text().splitlines()
    lines[number - 1] = line
    (sharded / "train.index.tsv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message):
        train(sharded)


def test_foreign_shards_with_faults_are_named(sharded):
    import io
    import tarfile

    (sharded / "train.index.tsv").unlink()
    assert train(sharded).labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    with tarfile.open(sharded / "train-000002.tar", "a") as tar:
        info = tarfile.TarInfo("unlabelled.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(UserError, match="train-000002/unlabelled.jpg: no .cls beside it"):
        train(sharded)
    with tarfile.open(sharded / "train-000002.tar", "a") as tar:
        info = tarfile.TarInfo("unlabelled.cls")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"two"))
    with pytest.raises(UserError, match=r"train-000002.tar@/unlabelled.cls: expected a class number, found b'two'"):
        train(sharded)


def test_a_truncated_shard_is_named(sharded):
    (sharded / "train.index.tsv").unlink()
    path = sharded / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match="train-000000.tar: (ends inside|not a readable)"):
        train(sharded)


# ---------------------------------------------------------------- IDX, lists, torchvision


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not an IDX file.*none"),
        (b"\0\0\x0d\x01\0\0\0\1abcd", "not an IDX file of bytes.*00 00 0d 01"),
        (b"\0\0\x08\x01\0\0\0\5abc", "shape .5,. needs 5 bytes, the file holds 3: truncated"),
    ],
)
def test_a_wrong_idx_file_is_named(tmp_path, content, message):
    (tmp_path / "x-ubyte").write_bytes(content)
    with pytest.raises(UserError, match=f"x-ubyte: {message}"):
        arrays.parse(tmp_path / "x-ubyte")


def test_a_truncated_gzip_is_named(tmp_path):
    path = tmp_path / "x-ubyte.gz"
    arrays.write(path, np.arange(200, dtype=np.uint8))
    assert arrays.parse(path).tolist() == list(range(200))
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(UserError, match="x-ubyte.gz: cannot be read"):
        arrays.parse(path)


def test_idx_labels_out_of_range_are_named(tmp_path):
    images_, labels = arrays.FILES["train"]
    arrays.write(tmp_path / images_, np.zeros((2, 28, 28), np.uint8))
    arrays.write(tmp_path / labels, np.array([3, 10], np.uint8))
    with pytest.raises(UserError, match="label 10 of image 1 is out of range for 10 classes"):
        data.open_source("fashion_mnist", "train", tmp_path)
    arrays.write(tmp_path / labels, np.array([3], np.uint8))
    os.utime(tmp_path / labels, (1, 1))
    with pytest.raises(UserError, match=r"\(2, 28, 28\) images do not go with \(1,\) labels"):
        data.open_source("fashion_mnist", "train", tmp_path)


@pytest.mark.parametrize(
    "line, message",
    [
        ("a/abbey/gsun_0.jpg", ":1: expected `path label`"),
        ("a/x.jpg 205", ":1: label 205 is out of range"),
        ("a/x.jpg 3", ":1: .*x.jpg: No such"),
    ],
)
def test_a_wrong_line_of_a_places_list_is_named(tmp_path, line, message):
    from data_samples import build_places

    build_places(tmp_path)
    (tmp_path / "trainvalsplit_places205/train_places205.csv").write_text(line + "\n")
    with pytest.raises(UserError, match=f"train_places205.csv{message}"):
        data.open_source("places205", "train", tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ('"category_id": 12', "image 11 .* category 9000 is out of range"),
        ('"image_id": 10,', "image 10 .* has no annotation"),
    ],
)
def test_a_wrong_inaturalist_list_is_named(tmp_path, change, message):
    from data_samples import build_inaturalist

    build_inaturalist(tmp_path)
    path = tmp_path / "train2018.json"
    new = '"category_id": 9000' if "category" in change else '"image_id": 99,'
    path.write_text(path.read_text().replace(change, new))
    with pytest.raises(UserError, match=f"train2018.json: {message}"):
        data.open_source("inaturalist2018", "train", tmp_path)


def test_a_torchvision_set_that_is_damaged_says_how_to_get_it(tmp_path):
    from data_samples import build_cifar

    build_cifar(tmp_path)  # right names, wrong MD5 sums
    with pytest.raises(UserError, match="cifar10: Dataset not found or corrupted.*unpack cifar-10-python.tar.gz"):
        data.open_source("cifar10", "train", tmp_path)


# ---------------------------------------------------------------- names of subsets


def test_a_split_may_name_its_images_in_a_file(root, tmp_path):
    (tmp_path / "few.txt").write_text("cat/cat_1.JPEG\nant/ant_0.jpg\n")
    source = data.open_source("folder", f"train@{tmp_path}/few.txt", root)
    assert [source.name(i) for i in range(2)] == ["cat/cat_1.JPEG", "ant/ant_0.jpg"] and source.labels.tolist() == [
        2,
        0,
    ]
    (tmp_path / "bare.txt").write_text("bee_2.jpg\n")
    assert data.open_source("folder", f"train@{tmp_path}/bare.txt", root).name(0) == "bee/bee_2.jpg"
    (tmp_path / "wrong.txt").write_text("bee_2.jpg\nbee_7.jpg\n")
    with pytest.raises(UserError, match=r"wrong.txt:2: 'bee_7.jpg' is not in .* \(1 such lines\)"):
        data.open_source("folder", f"train@{tmp_path}/wrong.txt", root)
    (tmp_path / "twice.txt").write_text("bee_2.jpg\nbee_2.jpg\n")
    with pytest.raises(UserError, match="names an image twice"):
        data.open_source("folder", f"train@{tmp_path}/twice.txt", root)
