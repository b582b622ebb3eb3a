"""Batches of network inputs from a source: the model's own preprocessing, ten crops, or counter-based random crops.

A small source that is held in memory and needs no resizing goes through as one array operation; the result is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from engine import rng, signals
from zoo.errors import UserError

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Views:
    """transform: the fields of a model's ``input``; view: one of

    centre                  the card's own: pad, resize, centre crop
    ten_crop                four corners, centre, and their mirror images: ten views
    ten_crop:i              one of the ten
    random_resized_crop:e   area 8-100 %, aspect 3/4-4/3, and a flip, in epoch e
    random_crop:e           resize, then a crop at a random place, and a flip, in epoch e

    Random views are a function of (seed, epoch, image).
    """

    transform: dict[str, Any]
    view: str = "centre"
    seed: int = 0
    scale: tuple[float, float] = SCALE
    ratio: tuple[float, float] = RATIO

    def __call__(self, image: Image.Image, index: int) -> Tensor:
        """One image as (V, C, H, W) float32, normalised; V = 1 but for ten_crop."""
        mode = "L" if self.transform["channels"] == 1 else "RGB"
        if image.mode != mode:
            image = image.convert(mode)
        if self.transform["pad"]:
            image = TF.pad(image, [self.transform["pad"]])
        name, _, number = self.view.partition(":")
        if name == "random_resized_crop":
            images = [self._resized_crop(image, self._draws(index, int(number)))]
        else:
            if self.transform["resize"] is not None:
                image = TF.resize(image, self.transform["resize"], self._how)
            images = self._cut(image, name, number, index)
        return torch.cat([self.normalise(_pixels(i)) for i in images])

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, H, W, C) uint8 -> (B, C, H, W) float32."""
        mean, std = (torch.tensor(self.transform[k], dtype=torch.float32)[:, None, None] for k in ("mean", "std"))
        return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std

    def _cut(self, image: Image.Image, name: str, number: str, index: int) -> list[Image.Image]:
        crop = self.transform["crop"]
        if name == "ten_crop":
            ten = TF.ten_crop(image, crop or min(image.size))
            return [ten[int(number)]] if number else list(ten)
        if name == "random_crop" and crop is not None:
            draws = self._draws(index, int(number))
            left, top = (int(u * (max(side - crop, 0) + 1)) for u, side in zip(draws, image.size, strict=False))
            image = TF.crop(image, top, left, crop, crop)
            return [TF.hflip(image) if draws[40] < 0.5 else image]
        return [image if crop is None else TF.center_crop(image, crop)]

    def _resized_crop(self, image: Image.Image, draws: np.ndarray) -> Image.Image:
        width, height = image.size
        left, top, w, h = random_resized_crop(width, height, draws[:40].reshape(10, 4), self.scale, self.ratio)
        crop = self.transform["crop"]
        image = TF.resized_crop(image, top, left, h, w, [crop, crop] if crop else [height, width], self._how)
        return TF.hflip(image) if draws[40] < 0.5 else image

    def _draws(self, index: int, epoch: int) -> np.ndarray:
        return rng.uniforms(self.seed, "probe view", epoch, np.array([index]), 0, 41)[0]

    @property
    def _how(self) -> InterpolationMode:
        return InterpolationMode(self.transform["interpolation"])


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).reshape(1, image.size[1], image.size[0], -1)


def random_resized_crop(
    width: int,
    height: int,
    draws: np.ndarray,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> tuple[int, int, int, int]:
    """(left, top, width, height) of torchvision's RandomResizedCrop rule, from uniform draws (tries, 4)."""
    low, high = (math.log(r) for r in ratio)
    for area, aspect, x, y in draws:
        target = width * height * (scale[0] + area * (scale[1] - scale[0]))
        shape = math.exp(low + aspect * (high - low))
        w, h = round(math.sqrt(target * shape)), round(math.sqrt(target / shape))
        if 0 < w <= width and 0 < h <= height:
            return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
    shape = width / height  # no try fitted: the largest centred crop whose aspect is allowed
    w = width if shape <= ratio[1] else round(height * ratio[1])
    h = height if shape >= ratio[0] else round(width / ratio[0])
    return (width - w) // 2, (height - h) // 2, w, h


def stream(
    source: Any, views: Views, order: Sequence[np.ndarray], workers: int = 0
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """(indices (B,), images (B, V, C, H, W)) for each array of indices in ``order``; no index, no image."""
    if _straight(source, views):
        for rows in order:
            part = torch.from_numpy(source.array[rows])
            pixels = part[..., None] if part.ndim == 3 else part
            if views.transform["pad"]:
                pixels = F.pad(pixels, (0, 0, *[views.transform["pad"]] * 4))
            yield rows, views.normalise(pixels.expand(-1, -1, -1, views.transform["channels"]))[:, None]
        return
    lists = [rows.tolist() for rows in order if len(rows)]
    loader = torch.utils.data.DataLoader(
        _Items(source, views),
        batch_sampler=lists,
        num_workers=workers,
        collate_fn=_stack,
        worker_init_fn=signals.left_to_main,
    )
    batches = iter(loader)
    for rows in order:  # a last batch may have fewer images than there are processes
        yield rows, next(batches) if len(rows) else torch.zeros(0, *views(source.image(0), 0).shape)


def _straight(source: Any, views: Views) -> bool:
    """True when normalising is all that happens to the images."""
    t = views.transform
    if views.view.partition(":")[0] != "centre" or source.array is None or source.channels not in (1, t["channels"]):
        return False
    height, width = (n + 2 * t["pad"] for n in source.array.shape[1:3])
    return t["resize"] in (None, height) and t["crop"] in (None, height) and (height == width or t["resize"] is None)


class _Items(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, source: Any, views: Views) -> None:
        self.source, self.views = source, views

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        return self.views(self.source.image(index), index)


def _stack(items: list[Tensor]) -> Tensor:
    shapes = {tuple(i.shape) for i in items}
    if len(shapes) > 1:
        least, most = ([side(s[k] for s in shapes) for k in (-2, -1)] for side in (min, max))
        raise UserError(
            f"images of {len(shapes)} sizes in one batch ({least[0]} to {most[0]} pixels high, {least[1]} to {most[1]} wide): "
            "give the protocol transform.resize and transform.crop"
        )
    return torch.stack(items)
