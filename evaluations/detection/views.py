"""Input transforms of detectors, applied to an image with its objects: sizes, flips, crops, their rounding.

Geometry is torchvision.transforms.v2 on tv_tensors; only the random numbers and the rounding of sizes are decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from zoo.schema import Strict

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
Count = Annotated[int, Field(ge=1)]


class Crop(Strict):
    """With probability 1/2 the short side is drawn from ``short``, then a part whose sides are drawn from ``size`` is cut out."""

    short: Annotated[list[Count], Field(min_length=1)] = Field(default_factory=lambda: [400, 500, 600])
    size: Annotated[list[Count], Field(min_length=2, max_length=2)] = Field(default_factory=lambda: [384, 600])


class Views(Strict):
    """How an image becomes the network's input. Sizes are of the short side; ``cap`` limits the long one.

    rounding   of the other side: as facebookresearch/detr does it, or as detectron2 does
    normalise  imagenet: ImageNet's mean and standard deviation for every model; model: the model's own card
    """

    short: Annotated[list[Count], Field(min_length=1)]
    cap: Count | None = None
    test_short: Count
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    crop: Crop | None = None
    rounding: Literal["detr", "detectron2"] = "detectron2"
    normalise: Literal["imagenet", "model"] = "imagenet"


def resized(width: int, height: int, short: int, cap: int | None, rounding: str) -> tuple[int, int]:
    """(width, height) with the short side at ``short``, or below it where the long side would exceed ``cap``."""
    low, high = min(width, height), max(width, height)
    if rounding == "detectron2":
        scale = short * 1.0 / low
        sides = [short * 1.0 if side == low else scale * side for side in (width, height)]
        if cap is not None and max(sides) > cap:
            shrink = cap * 1.0 / max(sides)
            sides = [side * shrink for side in sides]
        return int(sides[0] + 0.5), int(sides[1] + 0.5)
    if cap is not None and high / low * short > cap:
        short = round(cap * low / high)
    if low == short:
        return width, height
    long = int(short * high / low)
    return (short, long) if width < height else (long, short)


# ---------------------------------------------------------------- one image


@dataclass
class Sample:
    """image: PIL; targets: tv_tensors by name (``boxes`` with their ``labels``, ``masks``, or ``map`` of a segmentation)."""

    image: Image.Image
    targets: dict[str, Tensor]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.image.size

    def apply(self, function: Any, *args: Any) -> Sample:
        """A transform of torchvision on the image and on everything that has a place in it."""
        moved = {
            name: function(value, *args) if isinstance(value, tv_tensors.TVTensor) else value
            for name, value in self.targets.items()
        }
        return Sample(function(self.image, *args), moved)

    def resize(self, width: int, height: int) -> Sample:
        return self if (width, height) == self.size else self.apply(F.resize, [height, width])

    def without_empty_boxes(self) -> Sample:
        """Objects of which nothing is left after a crop are dropped; the image stays, perhaps without objects."""
        if "boxes" not in self.targets:
            return self
        boxes = self.targets["boxes"]
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        left = {name: value[kept] for name, value in self.targets.items() if name in ("boxes", "labels", "masks")}
        wrapped = {k: tv_tensors.wrap(v, like=self.targets[k]) if k != "labels" else v for k, v in left.items()}
        return Sample(self.image, {**self.targets, **wrapped})


def train_view(sample: Sample, views: Views, draws: np.ndarray) -> Sample:
    """A random view. draws: 8 uniform numbers in [0, 1), so that a view is a function of (seed, epoch, image)."""
    flip, branch, short, first, wide, high, left, top = draws.tolist()
    if flip < views.flip:
        sample = sample.apply(F.horizontal_flip)
    if views.crop is not None and branch < 0.5:
        width, height = resized(*sample.size, _pick(views.crop.short, first), None, views.rounding)
        sample = sample.resize(width, height)
        low, most = views.crop.size
        width, height = (
            _between(min(low, side), min(most, side), u) for side, u in zip(sample.size, (wide, high), strict=True)
        )
        corner = [
            _between(0, side - part, u) for side, part, u in zip(sample.size, (width, height), (left, top), strict=True)
        ]
        sample = sample.apply(F.crop, corner[1], corner[0], height, width).without_empty_boxes()
    return sample.resize(*resized(*sample.size, _pick(views.short, short), views.cap, views.rounding))


def plain_view(sample: Sample, views: Views) -> Sample:
    return sample.resize(*resized(*sample.size, views.test_short, views.cap, views.rounding))


def _pick(values: Sequence[int], u: float) -> int:
    return values[int(u * len(values))]


def _between(low: int, high: int, u: float) -> int:
    """A whole number in low..high, both included."""
    return low + int(u * (high - low + 1))
