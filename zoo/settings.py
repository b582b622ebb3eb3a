"""Settings: how they are inherited (method <- profile <- model) and overridden (``path=value``). Plain dictionaries, no checks."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError, suggest
from .yamlfile import load_mapping, loads

INHERITED = ("backbone", "input", "network", "layouts", "recipe")
ITS_OWN = ("id", "version", "title", "differs_from")  # of a protocol, however much it is like another one
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


def read_like(path: Path) -> dict[str, Any]:
    """The mapping of a protocol's file; with ``like: ID`` what it says over the file ID.yaml beside it.

    Mappings are merged key by key, everything else is replaced; ``id``, ``version``, ``title`` and ``differs_from`` are never
    inherited. One level: the other file may not be ``like`` a third (evaluations/protocol.py checks that).
    """
    tree = load_mapping(path)
    if "like" not in tree:
        return tree
    above = load_mapping(path.with_name(f"{tree.pop('like')}.yaml"))
    base = {key: value for key, value in above.items() if key not in ITS_OWN}
    both = (key for key in tree if isinstance(tree[key], dict) and isinstance(base.get(key), dict))
    return {**base, **tree, **{key: {**base[key], **tree[key]} for key in both}}


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


def parse(words: Iterable[str]) -> dict[str, Any]:
    """``["optimizer.lr=1e-4"]`` -> ``{"optimizer.lr": 0.0001}``; the right side is YAML.  A path given twice is an error."""
    found: dict[str, Any] = {}
    for word in words:
        path, equals, text = word.partition("=")
        path = path.strip()
        if not equals or not path or any(not part for part in path.split(".")):
            raise UserError(f"{word!r} is not of the form path=value, for example optimizer.lr=0.1")
        if path in found:
            raise UserError(f"{path} is given twice: {path}={found[path]} and {word}")
        # The name of a file need not be UTF-8; such a text is no YAML and is taken as it is.
        found[path] = loads(text, f"{path}={text}") if text.isascii() or _is_text(text) else text
    return found


def _is_text(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def apply(tree: Mapping[str, Any], overrides: Mapping[str, Any], free: Collection[str] = ()) -> dict[str, Any]:
    """A new tree with each dotted path set.  Every path must exist, save new names directly below a ``free`` path.

    Mappings merge, lists and values replace; a number in a path (``views.crops.0.size``) is a position in a list.
    Raises UserError with the closest existing path.
    """
    result: dict[str, Any] = copy.deepcopy(dict(tree))
    for path, value in overrides.items():
        _set(result, path, value, tree, free)
    return result


def leaves(tree: Any, prefix: str = "") -> list[str]:
    """Every dotted path of a tree: the mappings, the positions of lists and what they hold."""
    paths: list[str] = []
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        path = f"{prefix}.{key}" if prefix else str(key)
        paths += [path, *leaves(value, path)]
    return paths


def _set(result: Any, path: str, value: Any, tree: Mapping[str, Any], free: Collection[str]) -> None:
    node, parts = result, path.split(".")
    for i, part in enumerate(parts[:-1]):
        node = node[_key(node, part, path, parts[:i], tree)]
        if node is None:
            done = ".".join(parts[: i + 1])
            raise UserError(f"{path}: {done} is null here; set it as a whole, for example {done}={{{parts[-1]}: …}}")
    if ".".join(parts[:-1]) in free and isinstance(node, dict):
        node.setdefault(parts[-1], None)
    key = _key(node, parts[-1], path, parts[:-1], tree)
    if isinstance(value, Mapping) and isinstance(node[key], dict) and "name" not in value:
        for name, inner in value.items():
            _set(result, f"{path}.{name}", inner, tree, free)
    else:
        node[key] = copy.deepcopy(value)


def _key(node: Any, part: str, path: str, above: list[str], tree: Mapping[str, Any]) -> Any:
    if isinstance(node, dict) and part in node:
        return part
    if isinstance(node, list) and part.isdigit() and int(part) < len(node):
        return int(part)
    here = ".".join(above)
    if not isinstance(node, (dict, list)):
        raise UserError(f"{path}: {here} is a single value ({node!r}) and holds nothing named {part!r}")
    known = [str(key) for key in node] if isinstance(node, dict) else [str(i) for i in range(len(node))]
    listed = f"; known{' below ' + here if here else ''}: {', '.join(known)}"
    raise UserError(f"unknown setting {path!r}{suggest(path, leaves(tree), 0.6) or suggest(part, known) or listed}")
