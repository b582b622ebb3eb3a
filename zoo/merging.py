"""How settings inherit: method <- profile <- model.  Plain dictionaries, no checks, nothing heavy to import."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INHERITED = ("backbone", "input", "network", "layouts", "recipe")
EITHER = {"epochs": "images", "images": "epochs"}  # two ways to give a budget


@dataclass(frozen=True)
class Layer:
    """One source of settings: its values, and where they stand for the sake of messages."""

    values: dict[str, Any]
    file: Path | None = None
    at: tuple[str, ...] = ()


def merge(base: Any, over: Any) -> Any:
    """``over`` on top of ``base``: mappings merge unless they change the ``name``; everything else replaces."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return copy.deepcopy(over)
    if "name" in over and over["name"] != base.get("name"):
        return copy.deepcopy(over)
    dropped = [EITHER[key] for key in over if key in EITHER and over[key] is not None and EITHER[key] not in over]
    result = {key: value for key, value in base.items() if key not in dropped}
    for key, value in over.items():
        result[key] = merge(base.get(key), value)
    return result


def merge_layers(layers: Iterable[Layer]) -> dict[str, Any]:
    """The inherited fields of an entry, from the method's layer up to the model's."""
    merged: dict[str, Any] = {}
    for layer in layers:
        values = {key: layer.values[key] for key in INHERITED if key in layer.values}
        if "backbone" in values:
            values["backbone"] = normalise_backbone(values["backbone"])
            if merged.get("backbone") not in (None, values["backbone"]) and "network" not in values:
                merged.pop("network", None)  # what was said of the old network does not hold for the new one
        merged = merge(merged, values)
    return merged


def normalise_backbone(value: Any) -> Any:
    """``resnet50`` or ``{name, width: 16}`` as ``{name, options: {width: 16}}``; anything else unchanged."""
    if isinstance(value, str):
        return {"name": value, "options": {}}
    if isinstance(value, dict) and "name" in value:
        loose = {key: item for key, item in value.items() if key not in ("name", "options")}
        options = value.get("options") or {}
        return {"name": value["name"], "options": {**options, **loose} if isinstance(options, dict) else options}
    return value


def has(tree: Any, keys: Iterable[Any]) -> bool:
    """Whether a path of keys and positions exists in nested dictionaries and lists."""
    for key in keys:
        inside = key in tree if isinstance(tree, dict) else isinstance(tree, list) and key in range(len(tree))
        if not inside:
            return False
        tree = tree[key]
    return True
