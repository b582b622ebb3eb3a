"""The typed form of the registry: every field, its type, its unit.  An unknown field or a wrong type is an error."""

from .base import Fraction, NotNegative, Positive, Strict
from .entry import Entry, MethodFile, ModelFields, ParamSpec, Profile
from .network import Backbone, Input, Layout, Network
from .released import Code, Head, Paper, Pseudolabels, Published, Source, Weights
from .training import (
    OPTIMIZER_FIELDS,
    SCHEDULE_FIELDS,
    Blur,
    Crop,
    Jitter,
    Optimizer,
    Recipe,
    Schedule,
    Solarize,
    Views,
)

__all__ = [
    "OPTIMIZER_FIELDS",
    "SCHEDULE_FIELDS",
    "Backbone",
    "Blur",
    "Code",
    "Crop",
    "Entry",
    "Fraction",
    "Head",
    "Input",
    "Jitter",
    "Layout",
    "MethodFile",
    "ModelFields",
    "Network",
    "NotNegative",
    "Optimizer",
    "Paper",
    "ParamSpec",
    "Positive",
    "Profile",
    "Pseudolabels",
    "Published",
    "Recipe",
    "Schedule",
    "Solarize",
    "Source",
    "Strict",
    "Views",
    "Weights",
]
