"""Checks a method's ``params`` against the defaults and limits of its YAML file."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

from .errors import suggest
from .schema import ParamSpec
from .yamlfile import describe

Fail = Callable[[tuple[str | int, ...], str], Exception]
_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "list": (list,)}
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
            hint = suggest(name, defaults) or f"; known: {', '.join(map(str, defaults)) or 'none'}"
            raise fail(keys, f"unknown parameter {'.'.join(keys)!r}{hint}")
        result[name] = _value(value, defaults[name], spec, fail, keys)
    return result


def _value(value: Any, default: Any, spec: Any, fail: Fail, keys: tuple[str, ...]) -> Any:
    name = ".".join(keys)
    limits = spec.get(name) or ParamSpec()
    if isinstance(default, Mapping):
        if not isinstance(value, Mapping):
            raise fail(keys, f"params.{name} is {describe(value)}: expected a mapping with {', '.join(map(str, default))}")
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
        raise fail(keys, f"params.{name} is {describe(value)}: expected one of {', '.join(map(str, limits.choices))}{hint}")
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
