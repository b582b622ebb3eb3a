"""Batches of network inputs from a source: the model's own preprocessing, ten crops, or counter-based random crops.

A small source that is held in memory and needs no resizing goes through as one array operation; the result is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from engine import rng
from zoo.errors import UserError

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Views:
    """transform: the fields of a model's ``input``; view: "centre", "ten_crop:i" (0..9) or "augmented:e" (epoch e).

    An augmented view is RandomResizedCrop (area 8-100 %, aspect 3/4-4/3) and a flip, a function of (seed, epoch, image).
    """

    transform: dict[str, Any]
    view: str = "centre"
    seed: int = 0

    def __call__(self, image: Image.Image, index: int) -> Tensor:
        """One image as (C, H, W) float32, normalised."""
        mode = "L" if self.transform["channels"] == 1 else "RGB"
        if image.mode != mode:
            image = image.convert(mode)
        name, _, number = self.view.partition(":")
        if name == "augmented":
            image = self._augmented(image, index, int(number))
        else:
            image = self._fixed(image, int(number) if name == "ten_crop" else None)
        return self.normalise(torch.from_numpy(np.array(image, copy=True)).reshape(1, *image.size[::-1], -1))[0]

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, H, W, C) uint8 -> (B, C, H, W) float32."""
        mean, std = (torch.tensor(self.transform[k], dtype=torch.float32)[:, None, None] for k in ("mean", "std"))
        return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std

    def _fixed(self, image: Image.Image, ten: int | None) -> Image.Image:
        how = InterpolationMode(self.transform["interpolation"])
        if self.transform["pad"]:
            image = TF.pad(image, [self.transform["pad"]])
        if self.transform["resize"] is not None:
            image = TF.resize(image, self.transform["resize"], how)
        crop = self.transform["crop"]
        if ten is not None:
            crop = crop or min(image.size)
            return TF.ten_crop(image, crop)[ten]
        return image if crop is None else TF.center_crop(image, crop)

    def _augmented(self, image: Image.Image, index: int, epoch: int) -> Image.Image:
        draws = rng.uniforms(self.seed, "probe view", epoch, np.array([index]), 0, 41)[0]
        if self.transform["pad"]:
            image = TF.pad(image, [self.transform["pad"]])
        width, height = image.size
        left, top, w, h = random_resized_crop(width, height, draws[:40].reshape(10, 4))
        size = self.transform["crop"] or (height, width)
        how = InterpolationMode(self.transform["interpolation"])
        size = [size, size] if isinstance(size, int) else list(size)
        image = TF.resized_crop(image, top, left, h, w, size, how)
        return TF.hflip(image) if draws[40] < 0.5 else image


def random_resized_crop(width: int, height: int, draws: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, width, height) of torchvision's RandomResizedCrop rule, from uniform draws (tries, 4)."""
    for area, aspect, x, y in draws:
        target = width * height * (SCALE[0] + area * (SCALE[1] - SCALE[0]))
        ratio = math.exp(math.log(RATIO[0]) + aspect * (math.log(RATIO[1]) - math.log(RATIO[0])))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
    ratio = width / height
    w, h = (width, round(width / RATIO[0])) if ratio < RATIO[0] else (round(height * RATIO[1]), height)
    w, h = (width, height) if RATIO[0] <= ratio <= RATIO[1] else (min(w, width), min(h, height))
    return (width - w) // 2, (height - h) // 2, w, h


def batches(source: Any, views: Views, size: int, workers: int = 0) -> Iterator[Tensor]:
    """(B, C, H, W) float32 batches of every image of a source, in order."""
    array = source.array if _straight(source, views) else None
    if array is not None:
        for at in range(0, len(source), size):
            part = torch.from_numpy(np.array(array[at : at + size]))
            pixels = part[..., None] if part.ndim == 3 else part
            if views.transform["pad"]:
                pixels = F.pad(pixels, (0, 0, *[views.transform["pad"]] * 4))
            yield views.normalise(pixels.expand(-1, -1, -1, views.transform["channels"]))
        return
    loader = torch.utils.data.DataLoader(
        _Items(source, views), batch_size=size, num_workers=workers, collate_fn=_stack, persistent_workers=False
    )
    yield from loader


def _straight(source: Any, views: Views) -> bool:
    """True when normalising is all that happens to the images."""
    t = views.transform
    if views.view != "centre" or source.array is None or source.channels not in (1, t["channels"]):
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
        raise UserError(
            f"images of several sizes ({', '.join(map(str, sorted(shapes)))}) in one batch: "
            "give the protocol transform.resize and transform.crop"
        )
    return torch.stack(items)
