"""Whole entries of the registry, the files they are read from, and what was released and published of each."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .network import Backbone, Input, Layout, Network, Positive, Strict
from .training import Recipe


class Source(Strict):
    """Where a file can be had: an address, a Google Drive id, or a file of this machine; the member when it is an archive.

    A ``file`` is used where it lies: an absolute path, ``~/…``, or a path from the root of the checkout.
    """

    url: str | None = None
    gdrive: str | None = None
    file: str | None = None
    member: str | None = None
    md5_prefix: Annotated[str, Field(pattern=r"^[0-9a-f]{4,32}$")] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if sum(place is not None for place in (self.url, self.gdrive, self.file)) != 1:
            raise ValueError("give exactly one of url, gdrive and file")
        if self.file is not None and (self.member or self.md5_prefix):
            raise ValueError("member and md5_prefix belong to what is downloaded; a file is used as it lies")
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
            raise ValueError(f"recipe.params is {self.defaults!r}: expected a mapping of parameters and their defaults")
        return self


class Profile(Inherited):
    """One setting of zoo/profiles.yaml, merged between a method and its model.

    ``laptop``: a scale of this project's own, which everybody trains for himself; else one that authors shared.
    """

    title: str
    laptop: bool = True
    notes: list[str] = []
