"""The zoo: every label-free model, its recipe, its weights and what was published about it.

    zoo.models("swav*")                     ids
    zoo.load("swav_800ep")                  a backbone: images (B, 3, H, W) -> features (B, 2048)
    zoo.transforms("swav_800ep")            its own preprocessing
    zoo.entry("swav_800ep").published       numbers, each with its source

Importing this package loads neither torch nor the registry: names are looked up when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loading import load, load_weights, pseudolabels, transforms
    from .registry import entry, load_recipe, models, resolve

_WHERE = {
    "models": "registry",
    "entry": "registry",
    "resolve": "registry",
    "load_recipe": "registry",
    "load": "loading",
    "transforms": "loading",
    "load_weights": "loading",
    "pseudolabels": "loading",
}
__all__ = [
    "entry",
    "load",
    "load_recipe",
    "load_weights",
    "models",
    "pseudolabels",
    "resolve",
    "transforms",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
