"""Files on a disk through the real stream: no view is seen twice, and features are of the view that was asked for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from reproduce.method import Method
from reproduce.stream import Stream
from reproduce.views import Augment, Crop
from zoo.data import open_source
from zoo.data.archive_sets import pack_zip, write_shards

PLAIN = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
COLOUR = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "probability": 0.8}
MULTI = Augment(
    (Crop(16, (0.3, 1.0)),) * 2 + (Crop(10, (0.1, 0.4)),) * 3,
    jitter=COLOUR,
    grayscale=0.2,
    blur={"probability": 0.5, "sigma": [0.1, 2.0]},
    **PLAIN,
)
IMAGES = 12


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """The same pictures as folders, zip and tar shards."""
    home, random = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    for i in range(IMAGES):
        path = home / "folder" / "train" / f"class{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        small.resize((24, 24), Image.Resampling.BICUBIC).save(path)
    source = open_source("folder", "train", home / "folder")
    pack_zip(source, home / "zip", "train")
    write_shards(source, home / "shards", "train", per_shard=5)
    return home


def stream(root, augment=MULTI, **options):
    return Stream(
        open_source("folder", "train", root), augment, **{"batch": 4, "schedule": {"epochs": 3}, "seed": 3, **options}
    )


def by_image(batches):
    """{image: its views}"""
    return {int(i): [view[row] for view in batch.views] for batch in batches for row, i in enumerate(batch.index)}


@pytest.mark.parametrize(
    ("form", "workers"), [("folder", 0), ("folder", 2), ("zip", 0), ("zip", 2), ("shards", 0), ("shards", 2)]
)
def test_no_two_crops_are_the_same_picture(roots, form, workers):
    """Crops of one image, of one image in two epochs, and of two images."""
    batches = stream(roots / form, workers=workers)
    epochs = [by_image(batches.epoch(e)) for e in range(2)]
    assert all(set(views) == set(range(IMAGES)) for views in epochs)
    reference = by_image(stream(roots / "folder").epoch(1))
    assert all(torch.equal(a, b) for i in range(IMAGES) for a, b in zip(epochs[1][i], reference[i], strict=True))
    for size in (2, 3):  # the two large crops, the three small ones
        part = slice(0, 2) if size == 2 else slice(2, 5)
        crops = [crop for views in epochs for i in range(IMAGES) for crop in views[i][part]]
        assert all(not torch.equal(a, b) for a, b in itertools.combinations(crops, 2))


@pytest.mark.parametrize("form", ["folder", "in memory"])
def test_noise_is_another_in_every_view_epoch_and_image(roots, form):
    still = Augment((Crop(24, (1.0, 1.0), (1.0, 1.0)),) * 2, flip=0.0, **PLAIN)
    noisy = Augment((Crop(24, (1.0, 1.0), (1.0, 1.0)),) * 2, flip=0.0, noise=0.1, **PLAIN)
    batches, quiet = stream(roots / "folder", noisy), stream(roots / "folder", still)
    if form == "in memory":
        pixels = np.stack([batches.source.pixels(i) for i in range(IMAGES)])
        for one in (batches, quiet):
            one._array = pixels
    plain, drawn = by_image(quiet.epoch(0)), []
    for epoch in range(2):
        for i, views in by_image(batches.epoch(epoch)).items():
            drawn += [(view - plain[i][0]) * 0.25 for view in views]
    noise = torch.stack(drawn).flatten(1)
    assert noise.std(1).min() > 0.095 and noise.std(1).max() < 0.105
    correlation = torch.corrcoef(noise) - torch.eye(len(noise))
    assert correlation.abs().max() < 5 / noise.shape[1] ** 0.5


class Twice(Method):
    """Draws every image of an epoch twice."""

    def sampler(self, n, epoch, ctx):
        return np.arange(n).repeat(2)

    def epoch_size(self, n):
        return 2 * n


@pytest.mark.parametrize("form", ["folder", "in memory"])
def test_an_image_drawn_twice_in_an_epoch_is_seen_twice_anew(roots, form):
    augment = Augment((Crop(24, (1.0, 1.0), (1.0, 1.0)), Crop(16, (0.3, 0.6))), flip=0.0, noise=0.05, **PLAIN)
    batches = stream(roots / "folder", augment, method=Twice(nn.Identity()))
    if form == "in memory":
        batches._array = np.stack([batches.source.pixels(i) for i in range(IMAGES)])
    for batch in batches.epoch(0):
        for whole, crop in zip(*(view.unflatten(0, (-1, 2)) for view in batch.views), strict=True):
            assert (whole[0] - whole[1]).std() * 0.25 == pytest.approx(0.05 * 2**0.5, rel=0.1)
            assert (crop[0] - crop[1]).std() > 0.35


def test_without_chance_a_view_is_the_picture_with_that_number(roots):
    still = Augment((Crop(24, (1.0, 1.0), (1.0, 1.0)),), flip=0.0, **PLAIN)
    batches = stream(roots / "shards", still)
    for i, (view,) in by_image(batches.epoch(0)).items():
        pixels = torch.from_numpy(batches.source.pixels(i).copy()).permute(2, 0, 1) / 255
        torch.testing.assert_close(view, (pixels - 0.5) / 0.25)


class Trap(Method):
    """Batch norm and dropout: whatever runs in training mode shows."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        )
        with torch.no_grad():
            for _ in range(3):
                self.backbone(torch.randn(16, 3, 16, 16) * 2 + 1)


@pytest.mark.parametrize("form", ["folder", "in memory"])
@pytest.mark.parametrize("view", [None, 0, 1, 2, 4])
@pytest.mark.parametrize("epoch", [0, 1])
def test_features_are_those_of_the_view_and_epoch_asked_for_in_evaluation_mode(roots, form, view, epoch):
    method = Trap().train()
    batches = stream(roots / "folder", method=method)
    if form == "in memory":
        batches._array = np.stack([batches.source.pixels(i) for i in range(IMAGES)])
    before = {key: value.clone() for key, value in method.state_dict().items()}
    index, features = batches.context(method, epoch).extract(view)
    assert method.training and all(module.training for module in method.modules())
    assert index.tolist() == list(range(IMAGES))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    method.eval()
    if view is None:
        whole = stream(roots / "folder", Augment((Crop(16, (1.0, 1.0), (1.0, 1.0)),), flip=0.0, **PLAIN))
        whole._array = batches._array
        expected = by_image(whole.epoch(0))
    else:
        expected = {i: views[view:] for i, views in by_image(batches.epoch(epoch)).items()}
    with torch.no_grad():
        rows = torch.cat([method.backbone(expected[i][0][None]) for i in range(IMAGES)])
    torch.testing.assert_close(features, rows, atol=1e-5, rtol=1e-5)
