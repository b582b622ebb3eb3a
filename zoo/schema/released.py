"""What was released and what was published."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Positive, Strict
from .network import Layout


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
