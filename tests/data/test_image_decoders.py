"""simplejpeg and Pillow give the same pixels and the same refusals, whatever the file; without simplejpeg nothing changes."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from engine import provenance
from zoo.data import images

PHOTOS = [Image.fromarray(array) for array in load_sample_images().images]
SHAPES = [(320, 214), (1, 1), (7, 9), (33, 17), (5, 400), (400, 3)]
EXIF_ROTATED = Image.Exif()
EXIF_ROTATED[0x0112] = 6


def saved(image, form="JPEG", **how):
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


def outcome(read):
    """The pixels, or the complaint."""
    try:
        return np.asarray(read())
    except images.ImageError as error:
        return str(error)


def by_both(data, channels, monkeypatch, lenient=False):
    """What the module gives (image and array), and what Pillow alone gives."""
    ours = [
        outcome(lambda read=read: read(data, channels, lambda: "x", lenient)) for read in (images.decode, images.pixels)
    ]
    with monkeypatch.context() as hidden:
        hidden.setattr(images, "simplejpeg", None)
        pillow = outcome(lambda: images.decode(data, channels, lambda: "x", lenient))
    return ours, pillow


def agree(data, channels, monkeypatch, lenient=False):
    ours, pillow = by_both(data, channels, monkeypatch, lenient)
    if isinstance(pillow, str):
        assert ours == [pillow] * 2
    else:
        assert all(not isinstance(o, str) and o.dtype == np.uint8 and np.array_equal(o, pillow) for o in ours)
    return pillow


def by_simplejpeg(data, channels=3):
    return images._simple(data, channels) is not None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
def test_every_sampling_size_and_quality_has_the_same_pixels(subsampling, progressive, channels, monkeypatch):
    for shape in SHAPES:
        for quality in (30, 75, 95):
            for mode in ("RGB", "L"):
                picture = PHOTOS[0].resize(shape).convert(mode)
                restart = {"restart_marker_blocks": 3} if quality == 75 else {}
                data = saved(picture, quality=quality, subsampling=subsampling, progressive=progressive, **restart)
                found = agree(data, channels, monkeypatch)
                assert found.shape == (shape[1], shape[0], 3)[: 3 if channels == 3 else 2]
                assert by_simplejpeg(data, channels) == (channels == 3 or mode == "L")


KINDS = {  # a file, and whether simplejpeg is to read it
    "gray": (saved(PHOTOS[0].convert("L")), True),
    "rgb without conversion": (saved(PHOTOS[0], keep_rgb=True), True),
    "exif orientation": (saved(PHOTOS[0], exif=EXIF_ROTATED), True),
    "colour profile": (saved(PHOTOS[0], icc_profile=b"\0" * 200), True),
    "several pictures": (saved(PHOTOS[0], "MPO", save_all=True, append_images=[PHOTOS[1]]), True),
    "cmyk": (saved(PHOTOS[0].convert("CMYK")), False),
    "16-bit png": (saved(Image.fromarray(np.arange(0, 60000, 100, dtype=np.uint16).reshape(20, 30)), "PNG"), False),
    "png": (saved(PHOTOS[0], "PNG"), False),
    "webp": (saved(PHOTOS[0], "WEBP"), False),
    "no image": (b"\xff\xd8\xff but no more", False),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_has_the_same_pixels(kind, channels, monkeypatch):
    data, simple = KINDS[kind]
    found = agree(data, channels, monkeypatch)
    assert by_simplejpeg(data) == simple
    if kind == "exif orientation":
        assert found.shape[:2] == PHOTOS[0].size[::-1]  # as it is stored: orientation is not applied


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("progressive", [False, True])
def test_cut_and_damaged_files_are_pillows_to_judge(progressive, lenient, monkeypatch):
    whole, random = saved(PHOTOS[1].resize((48, 40)), progressive=progressive), np.random.default_rng(0)
    files = [whole[:cut] for cut in range(2, len(whole), 7)] + [whole[:-2], whole + b"\0" * 30]
    for _ in range(150):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[random.integers(2, len(damaged), 2)] = random.integers(0, 256, 2)
        files.append(damaged.tobytes())
    found = [agree(data, 3, monkeypatch, lenient) for data in files]
    refused = sum(isinstance(f, str) for f in found)
    assert refused > (0 if lenient else 100) and refused < len(found)


def test_a_picture_of_too_many_pixels_is_pillows_to_judge(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = saved(PHOTOS[0])
    assert not by_simplejpeg(data)
    assert "decompression bomb" in agree(data, 3, monkeypatch)


def test_the_array_may_be_written_to_whoever_decoded_it():
    for data in (saved(PHOTOS[0]), saved(PHOTOS[0], "PNG")):
        assert images.pixels(data, 3, lambda: "x").flags.writeable


def test_a_decoded_image_may_be_changed_and_outlives_its_file():
    image = images.decode(saved(PHOTOS[0]), 3, lambda: "x")
    expected = np.array(image)
    image.putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) == (1, 2, 3) and np.array_equal(np.asarray(image)[1:], expected[1:])
    assert image.mode == "RGB" and len(image.tobytes()) == expected.size


def test_the_decoder_is_named_and_its_version_recorded():
    assert images.decoder().startswith("simplejpeg ") and "simplejpeg" in provenance.collect()["versions"]


def test_a_machine_without_simplejpeg_reads_with_pillow():
    program = """
import sys
sys.modules["simplejpeg"] = None
from zoo.data import images
assert images.simplejpeg is None and images.decoder().startswith("Pillow ")
print(images.pixels(sys.stdin.buffer.read(), 3, lambda: "x").sum())
"""
    data = saved(PHOTOS[0])
    ran = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
    assert int(ran.stdout) == np.asarray(Image.open(io.BytesIO(data))).sum()
