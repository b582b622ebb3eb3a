"""pydantic's complaints as one readable error: file:line:column, the value, what was expected, the nearest right word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from .errors import UserError, suggest
from .merging import INHERITED, Layer, has
from .yamlfile import describe, locate

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
        return f"{where}: unknown field {name!r}{suggest(str(loc[-1]), known) or '; known: ' + ', '.join(known)}"
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
