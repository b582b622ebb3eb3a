"""The typed form of the registry: every field, its type, its unit.  An unknown field or a wrong type is an error."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .merging import normalise_backbone

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]


class Strict(BaseModel):
    """No unknown fields, no silent conversions ("4096" is not a number), no changes after construction."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


# ---------------------------------------------------------------- what a network is and what it eats


class Backbone(Strict):
    """A network by name.  ``resnet50``, ``{name: tiny_resnet, width: 16}`` and the long form are all accepted."""

    name: str
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        return normalise_backbone(value)

    @field_validator("options")
    @classmethod
    def _plain(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, value in options.items():
            for item in value if isinstance(value, list) else [value]:
                plain = item is None or isinstance(item, (str, bool, int)) or isinstance(item, float) and math.isfinite(item)
                if not plain:
                    raise ValueError(f"option {name} is {value!r}: expected a word, a finite number, or a list of them")
        return options

    def __str__(self) -> str:
        words = [f"{key} {value}" for key, value in self.options.items()]
        return f"{self.name} ({', '.join(words)})" if words else self.name


class Input(Strict):
    """How an image becomes the network's input: ``pad`` pixels of zeros on each side, the shorter side to ``resize``,
    a centre ``crop``, then (x - mean) / std.

    ``resize`` and ``crop`` are pixels, null leaves that step out; mean and std are for pixels in 0..1, one per channel.
    """

    pad: Annotated[int, Field(ge=0)] = 0
    resize: Positive | None = None
    crop: Positive | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    channels: Literal[1, 3] = 3
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> Input:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {self.channels} channels")
        return self


class Network(Strict):
    """What the built backbone must turn out to be; ``python -m zoo validate`` recomputes it."""

    parameters: Annotated[int, Field(ge=0)]
    dim: Positive


class Layout(Strict):
    """One form that a weight file may have.

    ``path`` leads to the tensors inside the file (``state_dict``); ``rules`` are regular expressions and their
    replacements, applied to each key in order; tensors whose key then matches ``ignore`` need no place in the
    backbone.  ``heads`` names groups of them (globs); what a head claims is ignored by the backbone too.
    """

    path: str | None = None
    rules: list[tuple[str, str]] = []
    ignore: list[str] = []
    heads: dict[str, list[str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _pairs_and_heads(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = dict(value)
        if isinstance(value.get("rules"), list):
            value["rules"] = [tuple(rule) if isinstance(rule, list) else rule for rule in value["rules"]]
        heads, ignore = value.get("heads"), value.get("ignore", [])
        if isinstance(heads, dict) and isinstance(ignore, list):
            claimed = [glob for globs in heads.values() if isinstance(globs, list) for glob in globs]
            value["ignore"] = [*ignore, *(glob for glob in claimed if glob not in ignore)]
        return value

    @field_validator("rules")
    @classmethod
    def _rules_compile(cls, rules: list[tuple[str, str]]) -> list[tuple[str, str]]:
        for pattern, replacement in rules:
            try:
                re.sub(re.compile(pattern), replacement, "")
            except re.error as error:
                raise ValueError(f"{pattern!r} -> {replacement!r} is not a regular expression: {error}") from None
        return rules


# ---------------------------------------------------------------- how a network is trained


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


OPTIMIZER_FIELDS: dict[str, tuple[str, ...]] = {
    "sgd": ("lr", "momentum", "weight_decay", "nesterov"),
    "larc": ("lr", "momentum", "weight_decay", "nesterov", "trust", "eps"),
    "lars": ("lr", "momentum", "weight_decay", "nesterov", "trust", "eps"),
    "adamw": ("lr", "weight_decay", "betas", "eps"),
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
        defaults: dict[str, dict[str, Any]] = {
            "sgd": {"momentum": 0.9, "nesterov": False},
            "larc": {"momentum": 0.9, "nesterov": False, "trust": 0.001, "eps": 1e-8},
            "lars": {"momentum": 0.9, "nesterov": False, "trust": 0.001, "eps": 1e-8},
            "adamw": {"betas": [0.9, 0.999], "eps": 1e-8},
        }
        return _with_defaults(value, defaults)

    @model_validator(mode="after")
    def _consistent(self) -> Optimizer:
        _only_its_own(self, OPTIMIZER_FIELDS[self.name], ("name", "weight_decay"))
        return self


SCHEDULE_FIELDS: dict[str, tuple[str, ...]] = {
    "constant": (),
    "warmup_cosine": ("warmup_epochs", "start_lr", "final_lr"),
    "multiplied_cosine": ("warmup_epochs", "warmup_multiplier", "final_lr"),
    "epoch_cosine": ("final_lr",),
    "step": ("milestones", "factor", "warmup_epochs", "warmup_multiplier"),
}


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
        defaults: dict[str, dict[str, Any]] = {
            "warmup_cosine": {"warmup_epochs": 0.0, "start_lr": 0.0, "final_lr": 0.0},
            "multiplied_cosine": {"warmup_epochs": 0.0, "warmup_multiplier": 100.0, "final_lr": 1e-6},
            "epoch_cosine": {"final_lr": 0.0},
            "step": {"factor": 0.1, "warmup_epochs": 0.0, "warmup_multiplier": 100.0},
        }
        return _with_defaults(value, defaults)

    @model_validator(mode="after")
    def _consistent(self) -> Schedule:
        if (self.epochs is None) == (self.images is None):
            raise ValueError("give exactly one of epochs and images")
        _only_its_own(self, SCHEDULE_FIELDS[self.name], ("name", "epochs", "images"))
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


def _only_its_own(spec: Any, known: tuple[str, ...], always: tuple[str, ...]) -> None:
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


# ---------------------------------------------------------------- what was released and what was published


class Source(Strict):
    """Where a file can be had: an address or a Google Drive id, and the member to take when it is an archive."""

    url: str | None = None
    gdrive: str | None = None
    member: str | None = None
    md5_prefix: Annotated[str, Field(pattern=r"^[0-9a-f]{4,32}$")] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if (self.url is None) == (self.gdrive is None):
            raise ValueError("give exactly one of url and gdrive")
        if self.url is not None and not re.match(r"https?://[^/\s]+/\S+$", self.url):
            raise ValueError(f"{self.url!r} is not an http(s) address of a file")
        return self


class Weights(Strict):
    """A released file.  ``sha256: null``: the project has never seen it.  ``layouts`` default to the method's."""

    sources: Annotated[list[Source], Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    bytes: Positive | None = None
    license: str
    layouts: list[Layout] = []


class Head(Weights):
    """A released classifier for the backbone's features: ``zoo.load(id, head=<name>)``."""

    classes: Positive
    dataset: str


class Pseudolabels(Strict):
    """Released cluster assignments of the training images.

    ``sources`` null: inside the weight file, under the first of ``keys`` that it has.
    ``format``: tensor (heads, images), csv (one row per image) or clusters (lists of (image path, cluster)).
    """

    sources: list[Source] | None = None
    keys: list[str] = []
    format: Literal["tensor", "csv", "clusters"]
    heads: Positive
    clusters: Positive | None = None
    license: str


class Published(Strict):
    """One published number.  ``origin`` says whose measurement it is; ``by`` names the group when not the authors.

    authors: of the method, in ``source``.  quoted: printed by ``source``, measured by someone else.
    retrain: ``by`` trained the method itself.  reeval: ``by`` evaluated the authors' weights.
    """

    protocol: str
    metric: str
    value: float
    source: str
    origin: Literal["authors", "quoted", "retrain", "reeval"] = "authors"
    by: str | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _named(self) -> Published:
        if self.origin in ("retrain", "reeval") and not self.by:
            raise ValueError(f"origin {self.origin} needs `by`: the group that measured it")
        if self.origin == "authors" and self.by:
            raise ValueError("`by` is for numbers that others measured; origin is authors")
        return self


class Paper(Strict):
    """The paper; ``arxiv`` is the identifier without version."""

    title: str
    authors: str
    venue: str
    arxiv: Annotated[str, Field(pattern=r"^\d{4}\.\d{4,5}$")] | None = None


class Code(Strict):
    """The authors' code and the licence it states (null: no licence file)."""

    repository: str
    license: str | None


class ParamSpec(Strict):
    """Limits of one parameter of a method; its type is its default's, or ``type`` where the default is null."""

    choices: list[Any] | None = None
    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    type: Literal["int", "float", "bool", "str", "list"] | None = None


# ---------------------------------------------------------------- entries


class Entry(Strict):
    """One model of the zoo, everything inherited and checked."""

    id: str
    method: str
    title: str
    summary: str
    aliases: list[str]
    paper: Paper | None
    code: Code | None
    status: Literal["released", "lost", "labels only", "recipe only", "published only"]
    since: str | None
    notes: list[str]
    dataset: str | None
    backbone: Backbone
    input: Input
    network: Network | None
    layouts: list[Layout]
    recipe: Recipe | None
    weights: Weights | None
    heads: dict[str, Head]
    pseudolabels: Pseudolabels | None
    published: list[Published]
    profile: str | None
    laptop: bool = False
    file: str
    line: int


class ModelFields(Strict):
    """What may stand below ``models: <id>:``; the mappings that inherit are checked after merging."""

    title: str | None = None
    aliases: list[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]] = []
    profile: str | None = None
    status: Literal["lost"] | None = None
    since: Annotated[str, Field(pattern=r"^\d{4}(-\d{2}(-\d{2})?)?$")] | None = None
    notes: list[str] = []
    paper: Paper | None = None
    code: Code | None = None
    dataset: str | None = None
    backbone: Any = None
    input: dict[str, Any] | None = None
    network: dict[str, Any] | None = None
    layouts: list[Any] | None = None
    recipe: dict[str, Any] | None = None
    weights: dict[str, Any] | None = None
    heads: dict[str, Any] = {}
    pseudolabels: dict[str, Any] | None = None
    published: list[Published] = []

    @model_validator(mode="after")
    def _lost_since(self) -> ModelFields:
        if (self.status is None) != (self.since is None):
            raise ValueError("status: lost and since: <date> belong together")
        return self


class MethodFile(Strict):
    """The top level of zoo/methods/<method>.yaml."""

    method: str
    title: str
    summary: str
    paper: Paper | None = None
    code: Code | None = None
    notes: list[str] = []
    dataset: str | None = None
    backbone: Any = None
    input: dict[str, Any] | None = None
    network: dict[str, Any] | None = None
    layouts: list[Any] | None = None
    recipe: dict[str, Any] | None = None
    params_spec: dict[str, ParamSpec] = {}
    models: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Any]

    @property
    def defaults(self) -> dict[str, Any]:
        """The method's parameters and their defaults."""
        return (self.recipe or {}).get("params") or {}

    @model_validator(mode="after")
    def _params_are_a_mapping(self) -> MethodFile:
        if not isinstance(self.defaults, dict):
            raise ValueError(f"recipe.params is {self.defaults!r}: expected a mapping of parameters and their defaults")  # noqa: TRY004  pydantic wants a ValueError
        return self


class Profile(Strict):
    """One setting of zoo/profiles.yaml, merged between a method and its model.

    ``laptop``: a scale of this project's own, which everybody trains for himself; else one that authors shared.
    """

    title: str
    laptop: bool = True
    notes: list[str] = []
    backbone: Any = None
    input: dict[str, Any] | None = None
    network: dict[str, Any] | None = None
    recipe: dict[str, Any] | None = None
