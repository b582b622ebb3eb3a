"""Checkpoints of other projects: the rows of foreign_layouts.yaml, and the short file that an owner puts beside weights."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from .network import Backbone, Input, Layout, Strict


class Signs(Strict):
    """What tells a form: ``top`` names all of which the file has, ``keys`` globs each of which some tensor's key fits."""

    top: list[str] = []
    keys: list[str] = []


class Small(Strict):
    """What is different when the first convolution is 3x3."""

    input: str = "cifar10"
    options: dict[str, Any] = {}


class Foreign(Layout):
    """One row: a layout with the signs that it is known by, the places to look at and the input it was trained on."""

    title: str
    paths: list[str] = ["", "state_dict", "model", "model_state_dict"]
    when: Signs | None = None
    unless: Signs | None = None
    input: str = "imagenet"
    small: Small = Small()
    note: str | None = None
    refuse: str | None = None


class ForeignFile(Strict):
    """The whole of foreign_layouts.yaml."""

    inputs: dict[str, Input]
    wrappers: list[Annotated[list[str], Field(min_length=2, max_length=2)]]
    layouts: Annotated[list[Foreign], Field(min_length=1)]


class Sidecar(Strict):
    """``weights.yaml`` beside ``weights.pth``: the network, what it expects, and the forms that the file may have."""

    backbone: Backbone
    input: Input
    layouts: list[Layout] = []
