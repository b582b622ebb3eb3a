"""Whole entries of the registry, and the files they are read from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .base import Strict
from .network import Backbone, Input, Layout, Network
from .released import Code, Head, Paper, Pseudolabels, Published, Weights
from .training import Recipe


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
    reproduced_by: str | None = None
    profile: str | None
    laptop: bool = False
    file: str
    line: int


class Inherited(Strict):
    """What a method, a profile and a model may each say; merged in this order and checked as a whole after that."""

    backbone: Any = None
    input: dict[str, Any] | None = None
    network: dict[str, Any] | None = None
    layouts: list[Any] | None = None
    recipe: dict[str, Any] | None = None


class ModelFields(Inherited):
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
    weights: dict[str, Any] | None = None
    heads: dict[str, Any] = {}
    pseudolabels: dict[str, Any] | None = None
    published: list[Published] = []
    reproduced_by: str | None = None  # recipe: null, but this other model's recipe trains the same objective

    @model_validator(mode="after")
    def _lost_since(self) -> ModelFields:
        if (self.status is None) != (self.since is None):
            raise ValueError("status: lost and since: <date> belong together")
        return self


class ParamSpec(Strict):
    """Limits of one parameter of a method; its type is its default's, or ``type`` where the default is null."""

    choices: list[Any] | None = None
    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    type: Literal["int", "float", "bool", "str", "list"] | None = None


class MethodFile(Inherited):
    """The top level of zoo/methods/<method>.yaml."""

    method: str
    title: str
    summary: str
    paper: Paper | None = None
    code: Code | None = None
    notes: list[str] = []
    dataset: str | None = None
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


class Profile(Inherited):
    """One setting of zoo/profiles.yaml, merged between a method and its model.

    ``laptop``: a scale of this project's own, which everybody trains for himself; else one that authors shared.
    """

    title: str
    laptop: bool = True
    notes: list[str] = []
