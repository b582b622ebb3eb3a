"""One file per method, found by the method's name: nothing to register.

`mocov1` and `mocov2` have no file of their own, so the name without its version is tried: `moco.py`. Where a file defines
several methods, the class whose name is the method's is taken (MoCoV1), else the first of them (MoCo).
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reproduce.method import Method
from zoo.backbones.base import Backbone
from zoo.errors import UserError, choices, suggest


def names() -> list[str]:
    """Files of methods that exist, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def find(method: str) -> type[Method]:
    """The class that implements `method`. Unknown: a UserError with a suggestion."""
    stem = next((s for s in (method, re.sub(r"v\d+$", "", method)) if s in names()), None)
    if stem is None:
        raise UserError(f"no method {method!r} in reproduce/methods{suggest(method, names())}")
    module = importlib.import_module(f".{stem}", __name__)
    found = [
        c
        for _, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, Method) and c.__module__ == module.__name__
    ]
    named = [c for c in found if c.__name__.lower() == method.lower()] or found[:1]
    if not named:
        raise UserError(f"reproduce/methods/{stem}.py defines no Method")
    return named[0]


def build(recipe: Any, backbone: Backbone, *, instances: int | None = None, classes: int | None = None) -> Method:
    """The method of a recipe (anything with `.method` and `.params`, or a mapping with these keys).

    instances, classes: facts about the data, handed on to methods that ask for them in `needs`.
    """
    name, params = (
        (recipe["method"], recipe["params"]) if isinstance(recipe, Mapping) else (recipe.method, recipe.params)
    )
    cls = find(name)
    facts: dict[str, Any] = {}
    for fact, wanted, value in (("instances", cls.needs.instances, instances), ("classes", cls.needs.classes, classes)):
        if wanted and value is None:
            raise UserError(f"method {name} needs the number of {fact}, which the data set does not say")
        if wanted:
            facts[fact] = value
    known = parameters(cls)
    for key in params:
        if key not in known:
            raise UserError(f"method {name} has no parameter {key!r}{choices(key, known)}")
    method = cls(backbone, **facts, **params)
    method.settings = recipe.dump() if hasattr(recipe, "dump") else dict(recipe) if isinstance(recipe, Mapping) else {}
    method.check(method.settings)
    return method


def parameters(cls: type[Method]) -> dict[str, Any]:
    """Name -> default of the constructor's settings, as plain values: what the method's YAML must list under params."""
    facts = {"instances", "classes"}
    return {
        p.name: _plain(p.default)
        for p in inspect.signature(cls.__init__).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in facts
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
