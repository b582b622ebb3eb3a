"""YAML without its traps: duplicate keys, ``1e-4`` as text, ``on:`` as True, ``010`` as 8, dates as objects.

Numbers are what a person reads (``1e-4`` is a float); only ``true`` and ``false`` are booleans; a key given twice, an
octal-looking number and anchors are errors with file, line and column.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import yaml

from .errors import UserError

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEPTH = 60  # deeper nesting than any file of ours; guards the recursive walks below


class _Loader(_Base):
    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node in self.constructed_objects:
            raise yaml.constructor.ConstructorError(
                None, None, "anchors and aliases are not used here", node.start_mark
            )
        return super().construct_object(node, deep)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key.start_mark)
            if key.tag != "tag:yaml.org,2002:str":
                told = f"key {key.value!r} is not a word; write it in quotes if it is meant as one"
                raise yaml.constructor.ConstructorError(None, None, told, key.start_mark)
            if key.value in seen:
                first = seen[key.value] + 1
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key.value!r} (first given in line {first})", key.start_mark
                )
            seen[key.value] = key.start_mark.line
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _refuse_octal(loader: Any, node: yaml.ScalarNode) -> Any:
    plain = node.value.lstrip("+-0_") or "0"
    raise yaml.constructor.ConstructorError(
        None, None, f"{node.value} would be an octal number in YAML: write {plain}, or quote it", node.start_mark
    )


def _int(loader: Any, node: yaml.ScalarNode) -> int:
    return int(node.value.replace("_", ""))


def _float(loader: Any, node: yaml.ScalarNode) -> float:
    return float(node.value.replace("_", "").lstrip(".") if node.value[-1] in "fFnN" else node.value.replace("_", ""))


def _bool(loader: Any, node: yaml.ScalarNode) -> bool:
    return bool(node.value.lower() == "true")


for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("!octal", r"^[-+]?0[0-9_]+$", "-+0"),
    ("tag:yaml.org,2002:int", r"^[-+]?(?:0|[1-9][0-9_]*)$", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"^[-+]?(?:[0-9]+[0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?)$|^\.(?:inf|nan)$",
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))
_Loader.add_constructor("!octal", _refuse_octal)
_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)
_Loader.add_constructor("tag:yaml.org,2002:bool", _bool)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever this reader, or any other reader of YAML, would take for something else than text."""


for _source in (_Loader, yaml.SafeDumper):
    for _first, _known in _source.yaml_implicit_resolvers.items():
        for _tag, _regexp in _known:
            _Dumper.add_implicit_resolver(_tag, _regexp, [_first])


def loads(text: str, where: str | Path = "command line") -> Any:
    """The value that ``text`` holds; ``where`` names it in errors.  Raises UserError with file:line:column."""
    try:
        loader = _Loader(text)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else str(where)
        raise UserError(f"{place}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: not YAML: {error}") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None
    _shallow(value, where)
    return value


def load(path: str | Path, shown: str | None = None) -> Any:
    """The content of a YAML file, named ``shown`` in errors: missing, not UTF-8, not clean YAML."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{shown or path}: cannot be read: {reason}") from None
    return loads(text, shown or path)


def load_mapping(path: str | Path, shown: str | None = None) -> dict[str, Any]:
    """A YAML file whose top is a mapping with words as keys."""
    content = load(path, shown)
    if not isinstance(content, dict):
        raise UserError(f"{shown or path}:1:1: expected a mapping of fields, found {describe(content)}")
    return content


def dumps(value: Any) -> str:
    """YAML text that ``loads`` reads back to the same value, keys in the order given."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True))


def locate(path: str | Path, keys: Sequence[str | int]) -> tuple[int, int] | None:
    """1-based (line, column) of the deepest part of ``keys`` that the file has; None when not even the first exists."""
    try:
        stat = Path(path).stat()
        node = _nodes(Path(path), stat.st_mtime_ns, stat.st_size)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return None
    mark = None
    for key in keys:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(key)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and 0 <= key < len(node.value):
            found = (node.value[key], node.value[key])
        if found is None:
            break
        mark, node = found[0].start_mark, found[1]
    return (mark.line + 1, mark.column + 1) if mark else None


@lru_cache(maxsize=64)
def _nodes(path: Path, changed: int, size: int) -> yaml.Node | None:
    node: yaml.Node | None = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
    return node


def describe(value: Any) -> str:
    """A value with its YAML kind, for messages: ``'4096' (text)``."""
    kind = {type(None): "null", bool: "true/false", int: "whole number", float: "number", str: "text"}.get(type(value))
    if kind is None:
        kind = "list" if isinstance(value, list) else "mapping" if isinstance(value, dict) else type(value).__name__
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({kind})" if value is not None else "null"


def _shallow(value: Any, where: str | Path, depth: int = 0) -> None:
    if depth > _DEPTH:
        raise UserError(f"{where}: nested too deeply")
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _shallow(child, where, depth + 1)
