"""Batches of network inputs from a source: the model's own preprocessing, ten crops, or counter-based random crops.

A small source that is held in memory and needs no resizing goes through as one array operation; the result is the same. Of other
images, workers hand over uint8, and pixels of the centre view may be kept on disk (decoded.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
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

from .decoded import Decoded

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
        return self.normalise(self.pixels(image, index))

    def pixels(self, image: Image.Image, index: int) -> Tensor:
        """The same before normalisation, (V, H, W, C) uint8."""
        mode = "L" if self.transform["channels"] == 1 else "RGB"
        if image.mode != mode:
            image = image.convert(mode)
        if self.transform["pad"]:
            image = TF.pad(image, [self.transform["pad"]])
        name, _, number = self.view.partition(":")
        if name == "random_resized_crop":
            images = [self._resized_crop(image, self._draws(index, int(number)))]
        elif name == "ten_crop":
            image = self._resized(image)
            ten = TF.ten_crop(image, self.transform["crop"] or min(image.size))
            images = [ten[int(number)]] if number else list(ten)
        elif self.transform["crop"] is None:
            images = [self._resized(image)]
        else:
            images = [self._cut(image, self._draws(index, int(number)) if name == "random_crop" else None)]
        return torch.cat([_pixels(i) for i in images])

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, H, W, C) uint8 -> (B, C, H, W) float32, in the order in memory that the pixels have."""
        width = pixels.shape[2]
        mean, std = (torch.tensor(self.transform[k], dtype=torch.float32).repeat(width) for k in ("mean", "std"))
        rows = pixels.float().contiguous().flatten(2)  # (B, H, W C): long lines, and one array for all four operations
        return rows.div_(255).sub_(mean).div_(std).view(pixels.shape).permute(0, 3, 1, 2)

    def _cut(self, image: Image.Image, draws: np.ndarray | None) -> Image.Image:
        """Resized, then a crop: at the centre, or where ``draws`` (41,) say, and mirrored as they say."""
        crop, mirrored = self.transform["crop"], draws is not None and draws[40] < 0.5
        size = _resized_size(image.size, self.transform["resize"])
        if min(size) < crop:
            image = self._resized(image)
            cut = (
                TF.center_crop(image, crop)
                if draws is None
                else TF.crop(image, *_corner(size, crop, draws)[::-1], crop, crop)
            )
        else:
            cut = _boxed(image, size, _corner(size, crop, draws), crop, self._how)
        return TF.hflip(cut) if mirrored else cut

    def _resized(self, image: Image.Image) -> Image.Image:
        resize = self.transform["resize"]
        return image if resize is None else TF.resize(image, resize, self._how)

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


def _resized_size(size: tuple[int, int], resize: int | None) -> tuple[int, int]:
    """(width, height) after torchvision's Resize to a shorter side."""
    if resize is None:
        return size
    short, long = min(size), max(size)
    return tuple(resize if side == short else int(resize * long / short) for side in size)  # type: ignore[return-value]


def _corner(size: tuple[int, int], crop: int, draws: np.ndarray | None) -> tuple[int, int]:
    """(left, top) of a crop in an image of ``size``: torchvision's centre, or a place drawn."""
    if draws is None:
        return round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    left, top = (int(u * (max(side - crop, 0) + 1)) for u, side in zip(draws[:2], size, strict=True))
    return left, top


def _boxed(
    image: Image.Image, size: tuple[int, int], corner: tuple[int, int], crop: int, how: InterpolationMode
) -> Image.Image:
    """The square at ``corner`` of the image resized to ``size``, of which no other pixel is computed.

    Pillow may then take the two directions in the other order: pixels differ from the crop of the whole resized image by a few at most, by
    less than 0.2 in the mean.
    """
    if size == image.size:
        return image.crop((*corner, corner[0] + crop, corner[1] + crop))
    (left, top), (width, height), (across, down) = (
        corner,
        image.size,
        (a / b for a, b in zip(image.size, size, strict=True)),
    )
    box = left * across, top * down, min((left + crop) * across, width), min((top + crop) * down, height)
    return image.resize((crop, crop), Image.Resampling[how.name], box=box)


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
    source: Any, views: Views, order: Sequence[np.ndarray], workers: int = 0, kept: Path | None = None
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """(indices (B,), images (B, V, C, H, W)) for each array of indices in ``order``; no index, no image.

    kept   the folder where pixels of the centre view are kept, for views that crop; None: they are decoded every time
    """
    if _straight(source, views):
        for rows in order:
            part = torch.from_numpy(source.array[rows])
            pixels = part[..., None] if part.ndim == 3 else part
            if views.transform["pad"]:
                pixels = F.pad(pixels, (0, 0, *[views.transform["pad"]] * 4))
            yield rows, views.normalise(pixels.expand(-1, -1, -1, views.transform["channels"]))[:, None]
        return
    square = views.view == "centre" and views.transform["crop"] is not None
    store = Decoded(kept, source, views.transform) if kept is not None and square else None
    missing = [rows if store is None else store.missing(rows) for rows in order]
    loader = torch.utils.data.DataLoader(
        _Items(source, views),
        batch_sampler=[rows.tolist() for rows in missing if len(rows)],
        num_workers=workers,
        collate_fn=stacked,
        worker_init_fn=signals.left_to_main,
    )
    batches = iter(loader) if any(map(len, missing)) else iter(())
    nothing = None if all(map(len, order)) else views.pixels(source.image(0), 0)[None][:0]
    for rows, left in zip(order, missing, strict=True):  # a last batch may have fewer images than there are processes
        found: Any = next(batches) if len(left) else nothing
        if store is not None and len(rows):
            if len(left):
                store.keep(left, found[:, 0])
            found = store.read(rows)[:, None]
        yield rows, views.normalise(found.flatten(0, 1)).unflatten(0, found.shape[:2])
    if store is not None:
        store.flush()


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
        return self.views.pixels(self.source.image(index), index)


def stacked(items: list[Tensor]) -> Tensor:
    """(B, ...) of items of one shape. Raises UserError with their sizes where there are several."""
    shapes = {tuple(i.shape) for i in items}
    if len(shapes) > 1:
        least, most = ([side(s[k] for s in shapes) for k in (-3, -2)] for side in (min, max))  # (V, H, W, C)
        raise UserError(
            f"images of {len(shapes)} sizes in one batch ({least[0]} to {most[0]} pixels high, {least[1]} to {most[1]} wide): "
            "give the protocol transform.resize and transform.crop, for example transform.resize=256 transform.crop=224"
        )
    return torch.stack(items)
