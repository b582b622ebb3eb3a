"""Networks by name: ``build("resnet50")``, ``build({"name": "tiny_resnet", "width": 16})``, ``build(recipe.backbone)``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn

from ..errors import UserError, suggest
from .alexnet import AlexNet
from .base import Backbone, Pixels
from .nin import Nin
from .resnet import PreactResNet, ResNet, tiny_resnet
from .vgg import Vgg16

BUILDERS: dict[str, Callable[..., Backbone]] = {
    "resnet18": partial(ResNet, [2, 2, 2, 2], False),
    "resnet26": partial(ResNet, [2, 2, 2, 2]),  # Un-Mix calls it resnet18 on CIFAR
    "resnet34": partial(ResNet, [3, 4, 6, 3], False),
    "resnet50": partial(ResNet, [3, 4, 6, 3]),
    "resnet101": partial(ResNet, [3, 4, 23, 3]),
    "resnet152": partial(ResNet, [3, 8, 36, 3]),
    "resnet50w2": partial(ResNet, [3, 4, 6, 3], width=128),
    "resnet50w4": partial(ResNet, [3, 4, 6, 3], width=256),
    "resnet50w5": partial(ResNet, [3, 4, 6, 3], width=320),
    "resnet50v2": PreactResNet,
    "vgg16": Vgg16,
    "alexnet": AlexNet,
    "nin": Nin,
    "tiny_resnet": tiny_resnet,
    "pixels": Pixels,
}


def names() -> list[str]:
    """Every name that ``build`` knows."""
    return sorted(BUILDERS)


def options(name: str) -> dict[str, Any]:
    """The options of a backbone and their defaults (``inspect.Parameter.empty`` where one must be given)."""
    if name not in BUILDERS:
        raise UserError(f"unknown backbone {name!r}{suggest(name, BUILDERS)} (known: {', '.join(names())})")
    given = BUILDERS[name]
    fixed = len(given.args) if isinstance(given, partial) else 0
    target = given.func if isinstance(given, partial) else given
    parameters = list(inspect.signature(target).parameters.values())[fixed:]
    set_already = given.keywords if isinstance(given, partial) else {}
    return {p.name: set_already.get(p.name, p.default) for p in parameters}


def parts(spec: Any) -> tuple[str, dict[str, Any]]:
    """Name and options of a spec: a name, a mapping with ``name``, or an object with ``.name`` and ``.options``."""
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, Mapping):
        rest = {k: v for k, v in spec.items() if k not in ("name", "options")}
        name, chosen = spec.get("name"), {**(spec.get("options") or {}), **rest}
    else:
        name, chosen = getattr(spec, "name", None), dict(getattr(spec, "options", None) or {})
    if not isinstance(name, str):
        raise UserError(f"backbone {spec!r} has no name (known: {', '.join(names())})")
    return name, chosen


def variants(spec: Any) -> list[dict[str, Any]]:
    """The concrete networks that a spec leaves open for the weight file to decide (``vgg16`` with ``stem: auto``)."""
    name, chosen = parts(spec)
    if name == "vgg16" and chosen.get("stem") == "auto":
        stems = ("deepercluster_rgb", "deepercluster_sobel")
        return [{"name": name, "options": {**chosen, "stem": stem}} for stem in stems]
    return [{"name": name, "options": chosen}]


def build(spec: Any) -> Backbone:
    """A freshly initialised backbone; its device and random numbers are torch's current ones.

    spec  "resnet50" | {"name": "tiny_resnet", "width": 16} | {"name": ..., "options": {...}} | the registry's Backbone
    Raises UserError for an unknown name or option.
    """
    name, chosen = parts(spec)
    known = options(name)
    for key in chosen:
        if key not in known:
            raise UserError(
                f"backbone {name} has no option {key!r}{suggest(key, known)} (options: {', '.join(known) or 'none'})"
            )
    return BUILDERS[name](**chosen)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a module's state."""
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


@lru_cache(maxsize=128)
def _known_shapes(spec: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes(build(json.loads(spec)))


def expected_shapes(spec: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a backbone's tensors, from its description alone."""
    name, chosen = parts(spec)
    return _known_shapes(json.dumps({"name": name, "options": chosen}, sort_keys=True))


__all__ = ["BUILDERS", "Backbone", "build", "expected_shapes", "names", "options", "parts", "shapes", "variants"]
