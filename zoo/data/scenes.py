"""Composed scenes: items of Fashion-MNIST or digits pasted on coloured canvases, for detection, classification and
segmentation where no photographs can be had.  A recipe, not images: the same seed gives the same pixels.

One scene is 96 x 96: a smooth, noisy background and one to four items, each tinted, scaled and perhaps mirrored.  One item
in ten lies half under another or is faint: difficult.  One scene in eight also has a crowd: a heap of small items of one
class, annotated as one region.  Scenes of a split use items of the same split, so test items are never trained on.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageFilter

from .source import Source

VERSION = 1  # other pictures from the same images make another version
SIDE = 96
CROWD_EVERY = 8
HIDDEN = 0.5  # an item of which less than this fraction can be seen is difficult
LEAST = 12  # visible pixels below which an item is not annotated at all


@dataclass
class Item:
    """An annotated object.  mask: bool (SIDE, SIDE), its visible pixels, of ``whole`` when nothing lay on top of it."""

    mask: np.ndarray
    label: int
    whole: int
    crowd: bool = False
    difficult: bool = False

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 around the mask; x1 and y1 lie just behind the last pixel."""
        rows, columns = (np.flatnonzero(self.mask.any(axis=a)) for a in (1, 0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass
class Scene:
    """pixels: uint8 (SIDE, SIDE, 3); items in the order they were pasted, later ones on top."""

    pixels: np.ndarray
    items: list[Item]

    @cached_property
    def jpeg(self) -> bytes:
        """The image file, the same in every layout."""
        file = io.BytesIO()
        Image.fromarray(self.pixels).save(file, "JPEG", quality=90)
        return file.getvalue()


def compose(source: Source, seed: int, number: int) -> Scene:
    """Scene ``number`` of ``seed`` with items from ``source`` (gray images with labels)."""
    rng = np.random.Generator(np.random.Philox(key=[seed, number]))
    canvas = _background(rng)
    items: list[Item] = []
    if number % CROWD_EVERY == CROWD_EVERY - 1:
        _paste_crowd(canvas, items, source, rng)
    wanted = int(rng.integers(1, 5))
    for _ in range(3 * wanted):
        if sum(not i.crowd for i in items) == wanted:
            break
        pick = int(rng.integers(len(source)))
        shape, alpha = _item(source, pick, rng, rng.uniform(0.7, 1.8))
        faint = rng.random() < 0.05
        occluding = rng.random() < 0.1
        y, x = (int(rng.integers(0, SIDE - n + 1)) for n in shape.shape)
        if not occluding and _crowds(items, shape, y, x):
            continue
        _paste(canvas, items, shape, alpha * (0.3 if faint else 1.0), _tint(rng), y, x, source.label(pick), faint)
    kept = [i for i in items if i.mask.sum() >= LEAST]
    noisy = canvas + rng.normal(0, 6, canvas.shape)
    return Scene(np.clip(noisy, 0, 255).astype(np.uint8), kept)


def _background(rng: np.random.Generator) -> np.ndarray:
    """A smooth field of two colours, float (SIDE, SIDE, 3), dark enough for every tint to stand out."""
    corners = rng.uniform(20, 110, (4, 4, 3))
    smooth = [
        Image.fromarray(corners[..., c].astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        for c in range(3)
    ]
    return np.stack([np.asarray(s, dtype=np.float64) for s in smooth], axis=2)


def _tint(rng: np.random.Generator) -> np.ndarray:
    """A light colour."""
    return rng.uniform(130, 255, 3)


def _item(source: Source, pick: int, rng: np.random.Generator, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """(mask, opacity) of an item at ``scale`` times 28 pixels, cropped to what can be seen of it."""
    side = max(8, round(28 * scale))
    image = source.image(pick).resize((side, side), Image.Resampling.BILINEAR)
    if source.pixels(pick).shape[0] < 28:  # digits have 8 x 8 pixels: round off their steps
        image = image.filter(ImageFilter.GaussianBlur(side / 28))
    if rng.random() < 0.5 and source.dataset != "digits":
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    value = np.asarray(image, dtype=np.float64) / 255
    seen = value > (0.08 if source.dataset != "digits" else 0.3)
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return seen[window], (0.35 + 0.65 * value[window])


def _crowds(items: list[Item], shape: np.ndarray, y: int, x: int) -> bool:
    """True when the item would overlap another one by over 30 % of a side in both directions."""
    for other in items:
        x0, y0, x1, y1 = other.box if other.mask.any() else (0, 0, 0, 0)
        wide = min(x1, x + shape.shape[1]) - max(x0, x)
        high = min(y1, y + shape.shape[0]) - max(y0, y)
        if wide > 0.3 * min(x1 - x0, shape.shape[1]) and high > 0.3 * min(y1 - y0, shape.shape[0]):
            return True
    return False


def _paste(
    canvas: np.ndarray,
    items: list[Item],
    shape: np.ndarray,
    alpha: np.ndarray,
    tint: np.ndarray,
    y: int,
    x: int,
    label: int,
    faint: bool = False,
) -> Item:
    """Draw an item and take its pixels from those below it."""
    window = np.s_[y : y + shape.shape[0], x : x + shape.shape[1]]
    cover = (shape * alpha)[..., None]
    canvas[window] = canvas[window] * (1 - cover) + tint * cover
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[window] = shape
    for other in items:
        other.mask &= ~mask
        other.difficult |= int(other.mask.sum()) < HIDDEN * other.whole
    items.append(Item(mask, label, whole=int(mask.sum()), difficult=faint))
    return items[-1]


def _paste_crowd(canvas: np.ndarray, items: list[Item], source: Source, rng: np.random.Generator) -> None:
    """Six to ten small items of one class on a heap, annotated as one."""
    first = int(rng.integers(len(source)))
    same = np.flatnonzero(source.labels == source.label(first))
    y, x = (int(rng.integers(0, SIDE - 44)) for _ in range(2))
    heap: list[Item] = []
    for _ in range(int(rng.integers(6, 11))):
        shape, alpha = _item(source, int(rng.choice(same)), rng, rng.uniform(0.5, 0.7))
        dy, dx = (int(rng.integers(0, 44 - n + 1)) for n in shape.shape)
        _paste(canvas, heap, shape, alpha, _tint(rng), y + dy, x + dx, 0)
    whole = np.logical_or.reduce([i.mask for i in heap])
    items.append(Item(whole, source.label(first), whole=int(whole.sum()), crowd=True, difficult=True))
