"""A box of an image at another size is torchvision's and Pillow's, by whichever kernel; boxes of large images are whole pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_images
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

from reproduce import resize, views
from reproduce.resize import resized
from reproduce.views import Augment, Crop

PHOTOS = load_sample_images().images  # (427, 640, 3)
MULTI = (Crop(224, (0.14, 1.0)), Crop(96, (0.05, 0.14)))


def apart(a, b):
    return np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("view", [0, 1])
def test_crops_are_pillows_box_and_all_by_torch(view, channels, monkeypatch):
    augment, drawn, index = Augment(MULTI, channels=channels), [], np.arange(60)
    monkeypatch.setattr(resize, "_by_pillow", lambda *a, _by=resize._by_pillow: drawn.append(a) or _by(*a))
    for number, photo in enumerate(PHOTOS):
        image = Image.fromarray(photo).convert("L" if channels == 1 else "RGB")
        params = views.sample(augment, number, 0, index, view, *photo.shape[:2])
        size = augment.crops[view].size
        for row in index:
            left, top, w, h = (float(v[row]) for v in (params.left, params.top, params.width, params.height))
            expected = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
            expected = TF.hflip(expected) if params.flip[row] else expected
            ours = views.crop_image(np.asarray(image), params, augment.crops[view], augment, row)
            difference = apart(ours, TF.pil_to_tensor(expected))
            assert ours.is_contiguous() and ours.shape == (channels, size, size)
            assert difference.mean() < 0.2  # goal: 0.5; nearly all of it is the border, where a slice ends
            assert difference[:, 4:-4, 4:-4].max() <= 1
    assert not drawn


def test_whole_boxes_are_torchvisions_crops():
    photo, random = Image.fromarray(PHOTOS[0]), np.random.default_rng(0)
    for size in (96, 224, 300):
        for _ in range(20):
            h, w = (int(n) for n in random.integers(40, 400, 2))
            top, left = int(random.integers(0, 427 - h + 1)), int(random.integers(0, 640 - w + 1))
            expected = TF.resized_crop(photo, top, left, h, w, [size, size], InterpolationMode.BILINEAR)
            difference = apart(resized(PHOTOS[0], left, top, w, h, size), TF.pil_to_tensor(expected))
            assert difference.max() <= 1 and difference.mean() < 0.25


def test_a_corner_between_pixels_is_pillows():
    box = (10.25, 20.5, 150.5, 120.25)
    expected = Image.fromarray(PHOTOS[0]).resize((96, 96), Image.Resampling.BILINEAR, box=(*box[:2], 160.75, 140.75))
    assert apart(resized(PHOTOS[0], *box, 96), TF.pil_to_tensor(expected)).max() == 0


def test_huge_tiny_and_narrow_images_are_cropped():
    augment = Augment(MULTI)
    for shape in ((1, 1), (3, 900), (900, 3), (128, 3000), (2000, 130)):
        image = np.array(Image.fromarray(PHOTOS[0]).resize(shape[::-1], Image.Resampling.BICUBIC))
        params = views.sample(augment, 0, 0, np.arange(20), 0, *shape)
        for row in range(20):
            a, b = (views.crop_image(kind, params, MULTI[0], augment, row) for kind in (image, Image.fromarray(image)))
            assert a.shape == (3, 224, 224) and apart(a, b).mean() < 0.5


def test_the_whole_chain_is_torchvisions_with_the_same_parameters():
    """Geometry in uint8 and colour in float, against PIL for each operation: goal 1.5 of 255 in the mean."""
    augment = Augment(
        MULTI[:1],
        jitter={"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "probability": 0.8},
        grayscale=0.2,
    )
    index, found = np.arange(40), []
    params = views.sample(augment, 1, 0, index, 0, *PHOTOS[0].shape[:2])
    pixels = torch.stack([views.crop_image(PHOTOS[0], params, MULTI[0], augment, row) for row in index])
    ours = views.colour(pixels, params, augment) * 255
    for row in index:
        top, left, h, w = (round(float(v[row])) for v in (params.top, params.left, params.height, params.width))
        image = TF.resized_crop(Image.fromarray(PHOTOS[0]), top, left, h, w, [224, 224], InterpolationMode.BILINEAR)
        image = TF.hflip(image) if params.flip[row] else image
        operations = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
        for number in params.order[row] if params.jitter[row] else ():
            image = operations[number](image, float(params.factors[row, number]))
        image = TF.to_grayscale(image, 3) if params.gray[row] else image
        found.append(apart(ours[row].round(), TF.pil_to_tensor(image)).mean())
    assert np.mean(found) < 1.5


def test_boxes_of_large_images_are_whole_pixels_each_place_as_often_as_the_others():
    crop = Augment((Crop(32, (0.9, 0.9), (1.0, 1.25)),))
    for side, whole in ((127, False), (128, True)):
        p = views.sample(crop, 0, 0, np.arange(20_000), 0, side, side)
        assert all((v == np.floor(v)).all() == whole for v in (p.left, p.top, p.width, p.height))
        assert (p.left + p.width <= side + 1e-9).all() and (p.top + p.height <= side + 1e-9).all()
    for extent in (122, 124, 126):
        places = np.bincount(p.left[p.width == extent].astype(int))
        assert len(places) == 128 - extent + 1 and stats.chisquare(places).pvalue > 1e-4


def test_the_centre_is_torchvisions_when_no_box_fits():
    image = torch.empty(1, 1000, 131)
    top, left, h, w = T.RandomResizedCrop.get_params(image, [1.0, 1.0], [3 / 4, 4 / 3])
    p = views.sample(Augment((Crop(32, (1.0, 1.0)),)), 0, 0, np.arange(3), 0, 1000, 131)
    assert (p.left == left).all() and (p.top == top).all() and (p.height == h).all() and (p.width == w).all()
