"""`data check` on sizes, formats, colour and depth of images: what is told of a part, of two parts, and what it means."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from zoo import data
from zoo.__main__ import main
from zoo.errors import guard

COLOUR, GRAY = (3,), ()


@pytest.fixture
def check(capsys, tmp_path):
    """`data check` of the folder of this test: (exit status, what it printed)."""

    def command():
        status = guard(lambda: main(["data", "check", str(tmp_path), "--all"]))
        return status, capsys.readouterr().out

    return command


def draw(folder: Path, count: int, size=(64, 48), kind=COLOUR, suffix="png", seed=0, classes="ab") -> None:
    """Images of noise, `count` in each class folder."""
    random = np.random.default_rng(seed)
    for label in classes:
        for i in range(count):
            path = folder / label / f"{seed}_{i}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (size[1], size[0], *kind), dtype=np.uint8)).save(path)


def notes(out: str) -> list[str]:
    return [line.removeprefix("  note: ") for line in out.splitlines() if line.startswith("  note: ")]


def test_parts_that_look_alike_get_facts_and_no_note(check, tmp_path):
    draw(tmp_path / "train", 4)
    draw(tmp_path / "test", 3, seed=1)
    status, out = check()
    assert status == 0 and notes(out) == []
    assert (
        "  train: shorter sides of 48 to 48 pixels (median 48), longer sides up to 1.3 times as long; PNG 8; 0% gray"
        in out
    )


def test_images_of_one_class_are_told_what_they_are_good_for(check, tmp_path):
    draw(tmp_path / "train", 4, classes="a")
    status, out = check()
    assert status == 0 and [n for n in notes(out) if "of one class ('a')" in n and "no evaluation of classes" in n]


def deep(folder: Path, brightest: int, *, suffix="png", info=None) -> None:
    values = np.random.default_rng(0).integers(0, brightest + 1, (40, 40), dtype=np.uint16)
    values[0, 0] = brightest
    for label in "ab":
        path = folder / label / f"deep{brightest}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        values[1, 1] = ord(label)  # other bytes
        Image.fromarray(values).save(path, **({"tiffinfo": info} if info else {}))


def test_twelve_bit_data_in_sixteen_bit_files_is_told_with_its_factor(check, tmp_path):
    deep(tmp_path, 4000)
    status, out = check()
    (told,) = [note for note in notes(out) if "bits a pixel" in note]
    assert (
        status == 0
        and "2 images have 16 bits a pixel by their files and use 12 of them (brightest 4,000 of 65,535)" in told
    )
    assert "1/16 of their brightness" in told and "multiply them by 16" in told
    source = data.open_source("folder", "train", root=tmp_path)
    before = np.asarray(source.image(0)).max()
    for path in tmp_path.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 16).save(path)
    status, out = check()
    assert not [note for note in notes(out) if "bits a pixel" in note]
    after = np.asarray(data.open_source("folder", "train", root=tmp_path).image(0)).max()
    assert before == 16 and after == 249  # 4000 and 64000 of 65535, in 255ths


def test_a_stated_range_is_the_other_remedy(check, tmp_path):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[281] = 4095
    deep(tmp_path, 4000, suffix="tif", info=info)
    assert not [note for note in notes(check()[1]) if "bits a pixel" in note]
    assert np.asarray(data.open_source("folder", "train", root=tmp_path).image(0)).max() == 249


def test_parts_of_other_sizes_colours_and_formats_are_compared_with_training(check, tmp_path):
    draw(tmp_path / "train", 5, size=(200, 100))
    draw(tmp_path / "test", 5, size=(60, 50), kind=GRAY, suffix="jpg", seed=1)
    draw(tmp_path / "val", 5, size=(210, 110), seed=2)
    status, out = check()
    told = notes(out)
    assert status == 0 and len(told) == 3 and all(note.startswith("test: ") for note in told)
    assert "median of 50 pixels, those of train 100" in told[0] and "smaller in test" in told[0]
    assert "100% of its images are gray, 0% of train" in told[1]
    assert "JPEG 100% here and 0% there, PNG 0% here and 100% there" in told[2]


def test_images_in_two_parts_or_twice_in_one_are_counted(check, tmp_path):
    draw(tmp_path / "train", 5)
    draw(tmp_path / "test", 4, seed=1)
    for i in range(3):
        shutil.copy(tmp_path / f"train/a/0_{i}.png", tmp_path / f"test/b/copy{i}.png")
    shutil.copy(tmp_path / "train/b/0_0.png", tmp_path / "train/b/again.png")
    status, out = check()
    told = notes(out)
    assert status == 0 and any(
        n.startswith("test: 3 of its 11 images are in train too: what is trained on one") for n in told
    )
    assert any(n.startswith("train: 1 images are there twice or more") for n in told)
    assert not any("test: 1 images are there twice" in n for n in told)


def test_gray_among_colour_tiny_among_large_and_files_that_are_not_read(check, tmp_path):
    draw(tmp_path, 4, size=(300, 200))
    draw(tmp_path, 1, size=(300, 200), kind=GRAY, seed=1, classes="a")
    draw(tmp_path, 1, size=(20, 16), seed=2, classes="b")
    for name in ("a/x.heic", "a/y.HEIC", "b/notes.txt", "b/.DS_Store"):
        (tmp_path / name).write_bytes(b"?")
    status, out = check()
    told = " | ".join(notes(out))
    assert status == 0 and "4 other files are not read: .heic 2, .DS_Store 1, .txt 1; save .heic as PNG or JPEG" in told
    assert "train: 1 of its 10 images are gray" in told and "1 images have a shorter side below 32 pixels" in told
    assert "shorter sides from 16 to 200 pixels" in told
