"""How a network is trained: views, optimiser, schedule, and the recipe that holds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .network import Backbone, Fraction, Input, Layout, NotNegative, Positive, Strict


class Jitter(Strict):
    """Colour jitter as torchvision means it: strengths, applied with ``probability``."""

    brightness: NotNegative = 0.0
    contrast: NotNegative = 0.0
    saturation: NotNegative = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    probability: Fraction = 1.0


class Blur(Strict):
    """Gaussian blur with probability ``probability``; sigma in pixels, drawn uniformly from [lo, hi]."""

    probability: Fraction
    sigma: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)] = [0.1, 2.0]


class Solarize(Strict):
    """Invert pixels above ``threshold`` (0..1) with probability ``probability``."""

    probability: Fraction
    threshold: Fraction = 0.5


class Crop(Strict):
    """``count`` random crops of ``size`` pixels covering a fraction ``scale`` of the image at an aspect in ``ratio``."""

    count: Positive
    size: Positive
    scale: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2)] = [0.08, 1.0]
    ratio: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)] = [0.75, 4 / 3]

    @model_validator(mode="after")
    def _ordered(self) -> Crop:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} [{low}, {high}] is the wrong way round")
        return self


class Views(Strict):
    """The random views of an image.  Everything but the crops is off by default; normalisation comes from ``input``."""

    crops: Annotated[list[Crop], Field(min_length=1)]
    flip: Fraction = 0.0  # probability of a horizontal flip
    jitter: Jitter | None = None
    grayscale: Fraction = 0.0  # probability
    blur: Blur | None = None
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0  # degrees, uniform in +-
    noise: NotNegative = 0.0  # standard deviation, pixels in 0..1
    pad: Annotated[int, Field(ge=0)] = 0  # pixels of zeros on each side before cropping
    solarize: Solarize | None = None

    @property
    def count(self) -> int:
        """Number of views of one image."""
        return sum(crop.count for crop in self.crops)

    def __str__(self) -> str:
        return " + ".join(f"{crop.count}x{crop.size}" for crop in self.crops)


# Each optimiser's own settings beside lr and weight_decay, and each schedule's beside its budget, with their defaults; None: no default,
# it has to be said. tests/test_house.py holds engine/optim.py to both tables.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": False},
    "larc": {"momentum": 0.9, "nesterov": False, "trust": 0.001, "eps": 1e-8},
    "lars": {"momentum": 0.9, "nesterov": False, "trust": 0.001, "eps": 1e-8},
    "adamw": {"betas": [0.9, 0.999], "eps": 1e-8},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "warmup_cosine": {"warmup_epochs": 0.0, "start_lr": 0.0, "final_lr": 0.0},
    "multiplied_cosine": {"warmup_epochs": 0.0, "warmup_multiplier": 100.0, "final_lr": 1e-6},
    "epoch_cosine": {"final_lr": 0.0},
    "step": {"milestones": None, "factor": 0.1, "warmup_epochs": 0.0, "warmup_multiplier": 100.0},
}


class Optimizer(Strict):
    """The optimiser; ``lr`` is the rate actually used, never rescaled by the batch.  null: not a setting of this one."""

    name: Literal["sgd", "larc", "lars", "adamw"]
    lr: NotNegative
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: NotNegative = 0.0
    nesterov: bool | None = None
    trust: Annotated[float, Field(gt=0)] | None = None
    eps: Annotated[float, Field(ge=0)] | None = None
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        return _with_defaults(value, OPTIMIZERS)

    @model_validator(mode="after")
    def _consistent(self) -> Optimizer:
        _only_its_own(self, OPTIMIZERS[self.name], ("name", "lr", "weight_decay"))
        return self


class Schedule(Strict):
    """The budget, in epochs or in images seen (exactly one of the two), and the learning rate over it.

    constant           the optimiser's lr throughout
    warmup_cosine      SwAV: linear from start_lr to lr, end included, then half a cosine to final_lr
    multiplied_cosine  PIC: linear from lr / warmup_multiplier, then half a cosine to final_lr
    epoch_cosine       MoCo v2: half a cosine that moves between epochs only, no warm-up
    step               lr times factor at each milestone (in epochs), after PIC's warm-up if there is one
    """

    name: Literal["constant", "warmup_cosine", "multiplied_cosine", "epoch_cosine", "step"]
    epochs: Annotated[int, Field(ge=0)] | None = None
    images: Annotated[int, Field(ge=0)] | None = None
    warmup_epochs: NotNegative | None = None
    warmup_multiplier: Annotated[float, Field(ge=1)] | None = None
    start_lr: NotNegative | None = None
    final_lr: NotNegative | None = None
    milestones: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)] | None = None
    factor: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        return _with_defaults(value, SCHEDULES)

    @model_validator(mode="after")
    def _consistent(self) -> Schedule:
        if (self.epochs is None) == (self.images is None):
            raise ValueError("give exactly one of epochs and images")
        _only_its_own(self, SCHEDULES[self.name], ("name", "epochs", "images"))
        if self.name == "step" and self.milestones is None:
            raise ValueError("step needs milestones: the epochs at which the rate falls")
        if self.milestones is not None and sorted(set(self.milestones)) != self.milestones:
            raise ValueError(f"milestones {self.milestones} must increase")
        if self.epochs is not None and (self.warmup_epochs or 0) > self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} is longer than the {self.epochs} epochs")
        return self


def _with_defaults(value: Any, defaults: dict[str, dict[str, Any]]) -> Any:
    """The settings given, over the defaults of the kind that their ``name`` says."""
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        given = {key: item for key, item in value.items() if item is not None}
        return {**defaults.get(value["name"], {}), **given}
    return value


def _only_its_own(spec: Any, known: Iterable[str], always: tuple[str, ...]) -> None:
    for name in type(spec).model_fields:
        if name not in (*always, *known) and getattr(spec, name) is not None:
            raise ValueError(f"{name} is not a setting of {spec.name} (it has {', '.join(known) or 'none'})")


class Recipe(Strict):
    """Everything that decides the weights of a pre-training run.  ``params`` belong to the method (its YAML file)."""

    method: str
    backbone: Backbone
    input: Input
    layouts: list[Layout] = []
    dataset: str
    split: str = "train"
    max_bad: Annotated[int, Field(ge=0)] | None = None  # missing or unreadable images that may be left out; null: none
    init: str | None = None  # an id or a file to start from
    views: Views
    batch: Positive  # global: images per optimiser step over all processes
    optimizer: Optimizer
    schedule: Schedule
    params: dict[str, Any] = {}
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = False
    sync_bn: bool = False
    sync_bn_group: Positive | None = None  # processes that share statistics; null: all of them
    accumulate: Positive | None = (
        None  # parts of a process's batch, computed one after the other; null: the whole at once
    )

    def dump(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers: YAML can hold it and ``load_recipe`` reads it back."""
        return self.model_dump(mode="json")

    def hash(self) -> str:
        """10 hexadecimal digits over all that can change a weight: not the seed, not how files are read; null does not count."""
        content = _without_null(self.model_dump(mode="json", exclude={"seed", "layouts"}))
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:10]


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    return [_without_null(item) for item in value] if isinstance(value, list) else value
