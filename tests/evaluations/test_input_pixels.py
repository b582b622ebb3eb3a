"""What evaluations give a network: torchvision's pixels for every kind of image, and the same from the file that keeps them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms as T

from engine import mapped
from engine.errors import UserError as NoRoom
from evaluations.inputs import decoded
from evaluations.inputs.decoded import Decoded
from evaluations.inputs.views import Views, stream
from zoo.data import open_source

PHOTOS = [Image.fromarray(array) for array in load_sample_images().images]  # 640 x 427
CARD = {
    "channels": 3,
    "pad": 0,
    "resize": 256,
    "crop": 224,
    "interpolation": "bilinear",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


def torchvisions(card):
    how = T.InterpolationMode(card["interpolation"])
    first = [T.Resize(card["resize"], how)] if card["resize"] else []
    rest = [T.CenterCrop(card["crop"])] if card["crop"] else []
    return T.Compose([*first, *rest, T.ToTensor(), T.Normalize(card["mean"], card["std"])])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "size",
    [(640, 427), (427, 640), (500, 375), (256, 256), (300, 256), (224, 224), (1280, 300), (40, 37), (9, 700), (1, 1)],
)
def test_the_centre_is_torchvisions(size, interpolation):
    for change in ({}, {"resize": 224}, {"resize": None}, {"crop": None}, {"resize": 128, "crop": 160}):
        card = {**CARD, "interpolation": interpolation, **change}
        for photo in PHOTOS:
            image = photo.resize(size)
            expected, ours = torchvisions(card)(image), Views(card)(image, 0)[0]
            difference = (ours - expected).abs() * torch.tensor(card["std"])[:, None, None] * 255
            assert ours.shape == expected.shape
            assert difference.max() < 4.01 and difference.mean() < 0.2  # goal: 0.5


def test_the_random_crop_is_torchvisions_crop_of_the_resized_image():
    for index in range(20):
        views = Views(CARD, "random_crop:3")
        draws = views._draws(index, 3)
        resized = T.functional.resize(PHOTOS[0], 256)
        left, top = (int(u * (side - 224 + 1)) for u, side in zip(draws, resized.size, strict=False))
        expected = T.functional.crop(resized, top, left, 224, 224)
        expected = T.functional.hflip(expected) if draws[40] < 0.5 else expected
        found = views.pixels(PHOTOS[0], index)[0].numpy()
        assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_has_the_bits_of_the_plain_formula(channels):
    card = {**CARD, "channels": channels, "mean": CARD["mean"][:channels], "std": CARD["std"][:channels]}
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3 * channels).view(2, 8, -1, channels)
    mean, std = (torch.tensor(card[k])[:, None, None] for k in ("mean", "std"))
    expected = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
    found = Views(card).normalise(pixels)
    assert torch.equal(found, expected) and found.stride() == expected.stride()


# ---------------------------------------------------------------- pixels that are kept


@pytest.fixture
def folder(tmp_path):
    for i in range(10):
        place = tmp_path / "set" / "train" / f"class{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        PHOTOS[i % 2].resize((60 + 3 * i, 50)).save(place / f"{i}.jpg")
    return tmp_path / "set"


SMALL = {**CARD, "resize": 32, "crop": 24}
ORDER = [np.arange(0, 4), np.arange(4, 8), np.arange(8, 10)]


def read(folder, kept=None, order=ORDER, card=SMALL, workers=0):
    return list(stream(open_source("folder", "train", folder), Views(card), order, workers, kept))


def same(a, b):
    return all(np.array_equal(i, j) and torch.equal(x, y) for (i, x), (j, y) in zip(a, b, strict=True))


def refuses(self, i):
    raise AssertionError(f"image {i} is decoded again")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_second_reading_decodes_nothing_and_gives_the_same(folder, tmp_path, workers, monkeypatch):
    plain, first = read(folder), read(folder, tmp_path / "kept", workers=workers)
    source = open_source("folder", "train", folder)
    monkeypatch.setattr(type(source), "image", refuses)
    shuffled = [np.array([9, 0, 5]), np.array([3, 3])]
    for order in (ORDER, shuffled):
        again = read(folder, tmp_path / "kept", order, workers=workers)
        expected = torch.cat([x for _, x in plain])
        assert same(again, [(rows, expected[rows]) for rows in order])
    assert same(first, plain)


def test_other_images_another_geometry_or_decoder_are_another_file(folder, tmp_path, monkeypatch):
    kept = tmp_path / "kept"

    def count(card=SMALL):
        assert same(read(folder, kept, card=card), read(folder, card=card))
        return len(list(kept.glob("*[!e].npy")))

    assert count() == 1
    for number, change in enumerate(({"resize": 30}, {"crop": 20}, {"interpolation": "bicubic"}, {"pad": 1}), 2):
        assert count({**SMALL, **change}) == number
    assert count({**SMALL, "mean": [0.1] * 3}) == 5  # normalisation is not kept
    PHOTOS[1].resize((60, 50)).save(folder / "train" / "class0" / "0.jpg")  # the same name, other bytes
    assert count() == 6
    monkeypatch.setattr(decoded.PIL, "__version__", "0")
    assert count() == 7


def test_random_views_and_whole_images_are_not_kept(folder, tmp_path):
    read(folder, tmp_path / "kept", card={**SMALL, "crop": None, "resize": None, "pad": 0}, order=[np.array([0])])
    source = open_source("folder", "train", folder)
    list(stream(source, Views(SMALL, "random_crop:0"), ORDER, 0, tmp_path / "kept"))
    assert not (tmp_path / "kept").exists()


KILLED = """
import sys, time
import numpy as np
from pathlib import Path
from evaluations.inputs import decoded
from evaluations.inputs.views import Views, stream
from zoo.data import open_source
decoded.NOTE = 0.0
source = open_source("folder", "train", Path(sys.argv[1]))
for rows, _ in stream(source, Views(eval(sys.argv[3])), [np.arange(0, 4), np.arange(4, 8), np.arange(8, 10)], 0, Path(sys.argv[2])):
    if 4 in rows:
        print("half", flush=True)
        time.sleep(60)
"""


def test_a_killed_pass_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(kept), repr(SMALL)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "half\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    plain = read(folder)
    opened = []
    source = open_source("folder", "train", folder)
    image = type(source).image
    monkeypatch.setattr(type(source), "image", lambda self, i: opened.append(i) or image(self, i))
    assert same(read(folder, kept), plain)
    assert set(opened) == {8, 9}


def test_a_kept_file_that_was_cut_short_is_made_again(folder, tmp_path):
    kept = tmp_path / "kept"
    plain = read(folder, kept)
    (file,) = kept.glob("*[!e].npy")
    file.write_bytes(file.read_bytes()[:1000])
    assert same(read(folder, kept), plain) and file.stat().st_size > 10 * 24 * 24 * 3


def test_a_full_disk_is_said_before_the_first_image(folder, tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mapped, "reserve", full)
    with pytest.raises(NoRoom, match=r"needs 17,280 bytes and .* are free there"):
        Decoded(tmp_path / "kept", open_source("folder", "train", folder), SMALL)
    assert not list((tmp_path / "kept").glob("*.npy"))


def test_the_file_says_what_it_holds(folder, tmp_path):
    read(folder, tmp_path / "kept")
    (note,) = (tmp_path / "kept").glob("*.json")
    held = json.loads(note.read_text())
    assert held["geometry"] == {name: SMALL[name] for name in decoded.GEOMETRY} and "Pillow " in held["decoder"]
    assert held["images"] == open_source("folder", "train", folder).identity


def test_kept_pixels_are_marked_within_seconds(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(decoded, "NOTE", 0.0)
    source = open_source("folder", "train", folder)
    store = Decoded(tmp_path / "kept", source, SMALL)
    time.sleep(0.01)
    store.keep(np.array([2]), torch.zeros(1, 24, 24, 3, dtype=torch.uint8))
    other = Decoded(tmp_path / "kept", source, SMALL)  # another process
    assert other.missing(np.arange(4)).tolist() == [0, 1, 3]
