"""A network in the registry: what it is, its input, and the forms that its files may have.

``Strict`` is the base of every part of the registry: no unknown fields, no silent conversions.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..settings import normalise_backbone

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]


class Strict(BaseModel):
    """No unknown fields, no silent conversions ("4096" is not a number), no changes after construction."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


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
                plain = (
                    item is None
                    or isinstance(item, (str, bool, int))
                    or isinstance(item, float)
                    and math.isfinite(item)
                )
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
