"""Settings checked against the schema, a method's ``params`` against its YAML file, and an entry's fields against its id.

pydantic's complaints become one readable error: file:line:column, the value, what was expected, the nearest known name.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from .errors import UserError, choices, suggest
from .schema import Entry, ParamSpec
from .settings import INHERITED, Layer, has
from .yamlfile import describe, locate

Fail = Callable[[tuple[str | int, ...], str], Exception]
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "list": (list,),
}
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "list": "a list"}


def check_params(
    given: Mapping[str, Any], defaults: Mapping[str, Any], spec: Mapping[str, ParamSpec], fail: Fail
) -> dict[str, Any]:
    """``given`` over ``defaults``, checked; whole numbers become floats where the default is one.

    A name that the defaults lack, a value of another type or outside its limits raises ``fail(keys, message)``.
    """
    return _mapping(given, defaults, spec, fail, ())


def _mapping(given: Any, defaults: Mapping[str, Any], spec: Any, fail: Fail, at: tuple[str, ...]) -> dict[str, Any]:
    result: dict[str, Any] = copy.deepcopy(dict(defaults))
    for name, value in given.items():
        keys = (*at, str(name))
        if name not in defaults:
            raise fail(keys, f"unknown parameter {'.'.join(keys)!r}{choices(name, defaults)}")
        result[name] = _value(value, defaults[name], spec, fail, keys)
    return result


def _value(value: Any, default: Any, spec: Any, fail: Fail, keys: tuple[str, ...]) -> Any:
    name = ".".join(keys)
    limits = spec.get(name) or ParamSpec()
    if isinstance(default, Mapping):
        if not isinstance(value, Mapping):
            raise fail(
                keys, f"params.{name} is {describe(value)}: expected a mapping with {', '.join(map(str, default))}"
            )
        return _mapping(value, default, spec, fail, keys)
    if value is None and default is None:
        return None
    kind = limits.type or _kind(default)
    if value is None and limits.type is not None:
        return None
    if kind is not None and not (isinstance(value, _TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))):
        raise fail(keys, f"params.{name} is {describe(value)}: expected {_WORDS[kind]}")
    if limits.choices is not None and value not in limits.choices:
        hint = suggest(str(value), [str(choice) for choice in limits.choices])
        raise fail(
            keys, f"params.{name} is {describe(value)}: expected one of {', '.join(map(str, limits.choices))}{hint}"
        )
    if isinstance(value, list):
        _items(value, default, fail, keys, name)
    if kind in ("int", "float", "list"):
        for item in value if isinstance(value, list) else [value]:
            _limit(item, limits, fail, keys, name)
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, float) and not math.isfinite(item):
            raise fail(keys, f"params.{name} is {describe(value)}: expected a finite number")
    return float(value) if kind == "float" else copy.deepcopy(value)


def _items(value: list[Any], default: Any, fail: Fail, keys: tuple[str, ...], name: str) -> None:
    """A list is never empty, and its items are of the kind that the default's are."""
    if not value:
        raise fail(keys, f"params.{name} is []: expected at least one item")
    kind = _kind(default[0]) if isinstance(default, list) and default else None
    if kind is None:
        return
    for item in value:
        if not isinstance(item, _TYPES[kind]) or (isinstance(item, bool) and kind != "bool"):
            raise fail(keys, f"params.{name} has the item {describe(item)}: expected {_WORDS[kind]} each")


def _limit(value: Any, limits: ParamSpec, fail: Fail, keys: tuple[str, ...], name: str) -> None:
    if not isinstance(value, (int, float)):
        return
    for word, bound, ok in (
        ("greater than", limits.gt, lambda b: value > b),
        ("at least", limits.ge, lambda b: value >= b),
        ("less than", limits.lt, lambda b: value < b),
        ("at most", limits.le, lambda b: value <= b),
    ):
        if bound is not None and not ok(bound):
            raise fail(keys, f"params.{name} is {describe(value)}: must be {word} {bound:g}")


def _kind(default: Any) -> str | None:
    for kind, python in (("bool", bool), ("int", int), ("float", float), ("str", str), ("list", list)):
        if isinstance(default, python):
            return kind
    return None


Model = TypeVar("Model", bound=BaseModel)
SHOWN = 5  # complaints about one thing in one message


def check(
    kind: type[Model], values: Any, layers: Sequence[Layer], what: str, root: Path, inside: tuple[str, ...] = ()
) -> Model:
    """``kind`` filled with ``values``.  Raises UserError that blames the topmost layer which set the wrong value.

    layers  where the values come from, lowest first; ``what`` names the thing when no layer has a file.
    inside  the path under which the layers hold what ``values`` holds (``recipe``).
    """
    if not isinstance(values, dict):
        raise UserError(f"{blame(layers, (), root) or what}: expected a mapping of fields, found {describe(values)}")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        # Misspelled fields first, and without the complaint that what they were meant to be is missing.
        problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        lines = [_complaint(problem, kind, layers, what, root, inside) for problem in problems[:SHOWN]]
        meant = {line.split("did you mean '")[1].split("'")[0] for line in lines if "did you mean '" in line}
        lines = [line for line in lines if not any(line.endswith(f"{name} is missing") for name in meant)]
        raise UserError("\n       ".join(dict.fromkeys(lines))) from None


def blame(layers: Sequence[Layer], keys: tuple[Any, ...], root: Path) -> str:
    """file:line:column of the topmost layer that says something about ``keys``, or about what they are part of."""
    for depth in range(len(keys), -1, -1):
        for layer in reversed(layers):
            if layer.file is not None and has(layer.values, keys[:depth]):
                return place(layer.file, (*layer.at, *keys[:depth]), root)
    return ""


def place(file: Path, keys: Sequence[Any], root: Path) -> str:
    """file:line:column of a path of keys; files of the registry are named from ``zoo/`` on."""
    line, column = locate(file, keys) or (1, 1)
    shown = f"zoo/{file.relative_to(root)}" if file.is_relative_to(root) else str(file)
    return f"{shown}:{line}:{column}"


def _complaint(
    problem: Any, kind: type[BaseModel], layers: Sequence[Layer], what: str, root: Path, inside: tuple[str, ...]
) -> str:
    loc = tuple(problem["loc"])
    keys = loc if inside and loc and loc[0] in INHERITED[:-1] else (*inside, *loc)
    where, name = blame(layers, keys, root) or what, ".".join(map(str, loc)) or "the whole"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        known = fields(kind, loc[:-1])
        return f"{where}: unknown field {name!r}{choices(str(loc[-1]), known)}"
    if problem["type"] == "missing":
        return f"{where}: {name} is missing"
    if problem["type"] == "value_error":
        return f"{where}: {name}: {message}"
    hint = ""
    if problem["type"] == "literal_error":
        hint = suggest(str(problem["input"]), re.findall(r"'([^']+)'", message))
    return f"{where}: {name} is {describe(problem['input'])}: {message[0].lower()}{message[1:]}{hint}"


def fields(kind: Any, loc: Sequence[Any]) -> list[str]:
    """The field names at ``loc`` inside a model."""
    for part in loc:
        info = kind.model_fields.get(part) if isinstance(part, str) else None
        if info is not None:
            kind = _model_in(info.annotation) or kind
    return list(kind.model_fields)


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg)) is not None), None)


# -- what an id promises: ``swav_rn50w2_400ep`` names a network of double width and 400 epochs ----------------------------

# word of an id -> backbone names that it may stand for
NETWORKS: dict[str, tuple[str, ...]] = {
    "rn18": ("resnet18",),
    "rn26": ("resnet26",),
    "rn50": ("resnet50",),
    "rn50w2": ("resnet50w2",),
    "rn50w4": ("resnet50w4",),
    "rn50w5": ("resnet50w5",),
    "resnet50v2": ("resnet50v2",),
    "vgg16": ("vgg16",),
    "alexnet": ("alexnet",),
    "nin": ("nin",),
}
DATASETS = {
    "digits": "digits",
    "fashion_mnist": "fashion_mnist",
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "svhn": "svhn",
    "places205": "places205",
    "imagenet": "imagenet",
    "yfcc": "yfcc100m",
}
Problem = tuple[str, tuple[Any, ...]]


def contradictions(entry: Entry) -> Iterator[Problem]:
    """Sentences about the contradictions between an id and its fields, with the path of the field to blame."""
    rest = entry.id.removeprefix(entry.method)
    if rest == entry.id or not rest.startswith("_"):
        yield f"{entry.id} must begin with its method: {entry.method}_…", ()
    for word, dataset in DATASETS.items():
        if f"_{word}_" in f"{rest}_" and entry.dataset != dataset:
            yield f"{entry.id} says {word}, but its dataset is {entry.dataset}", ("recipe", "dataset")
    for word in rest.split("_"):
        if word in NETWORKS and not entry.backbone.name.startswith(NETWORKS[word]):
            yield f"{entry.id} says {word}, but its backbone is {entry.backbone.name}", ("backbone",)
        if word in NETWORKS and re.fullmatch(r"w\d", entry.backbone.name.removeprefix(NETWORKS[word][0])):
            yield f"{entry.id} says {word}, but its backbone is {entry.backbone.name}", ("backbone",)
    if not any(word in NETWORKS for word in rest.split("_")) and re.search(r"w\d$", entry.backbone.name):
        yield f"{entry.id} does not say that its backbone is {entry.backbone.name}", ("backbone",)
    if entry.recipe is not None:
        yield from _broken_promises(entry, rest)


def _broken_promises(entry: Entry, rest: str) -> Iterator[Problem]:
    recipe = entry.recipe
    assert recipe is not None
    for word in rest.split("_"):
        if (found := re.fullmatch(r"(\d+)ep", word)) and recipe.schedule.epochs != int(found[1]):
            text = f"{entry.id} says {found[1]} epochs, but schedule.epochs is {recipe.schedule.epochs}"
            yield text, ("recipe", "schedule", "epochs")
        if (found := re.fullmatch(r"bs(\d+)", word)) and recipe.batch != int(found[1]):
            yield f"{entry.id} says batch {found[1]}, but batch is {recipe.batch}", ("recipe", "batch")
        if re.fullmatch(r"\d+x\d+", word) and str(recipe.views) != word:
            yield f"{entry.id} says crops {word}, but its views are {recipe.views}", ("recipe", "views", "crops")
        if found := re.fullmatch(r"(?:(\d+)x)?(\d+)k", word):
            heads, clusters = int(found[1] or 1), int(found[2]) * 1000
            have = (recipe.params.get("heads", heads), recipe.params.get("clusters", clusters))
            if have != (heads, clusters):
                yield (
                    f"{entry.id} says {heads}x{clusters} clusters, but params say {have[0]}x{have[1]}",
                    ("recipe", "params"),
                )
