"""The contract between a weight file and a backbone: every tensor accounted for by name, or an error that says which.

``match`` looks at names and shapes only (no torch), ``select`` tries the layouts a file may have, ``read`` (checkpoint_reader.py)
opens the file without trusting it.  Nothing here ever loads part of a backbone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from .checkpoint_reader import read
from .errors import UserError

Shape = tuple[int, ...]
Shapes = Mapping[str, Sequence[int]]
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Report:
    """How the tensors of a file fit a backbone.  Keys of the model on the left, keys of the file on the right."""

    total: int
    mapping: dict[str, str]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[tuple[str, Shape, Shape], ...] = ()  # model key, shape in the file, shape in the model
    twice: tuple[tuple[str, str, str], ...] = ()  # model key and two tensors of the file that claim it
    ignored: tuple[str, ...] = ()  # keys of the file, those of heads included
    heads: dict[str, dict[str, str]] = field(default_factory=dict)  # head -> {key after the rules: key of the file}
    filled: tuple[str, ...] = ()  # batch-norm counters that files from before PyTorch 0.4.1 lack
    left: tuple[str, ...] = ()  # tensors of the caller's model outside the backbone

    @property
    def matched(self) -> int:
        return len(self.mapping)

    @property
    def ok(self) -> bool:
        """Every backbone tensor found, every tensor of the file used or ignored by name."""
        whole = self.matched + len(self.filled) == self.total
        return whole and not (self.missing or self.unexpected or self.wrong_shape or self.twice)

    def line(self) -> str:
        """``318/318 backbone tensors; ignored: 10 head tensors``"""
        claimed = {key for keys in self.heads.values() for key in keys.values()}
        others = [key for key in self.ignored if key not in claimed]
        what = [_count(len(claimed), "head tensor")] if claimed else []
        what += (
            [f"{len(others)} {'other' if claimed else 'tensor'}{'s' * (len(others) != 1)} ({listed(others, 3)})"]
            if others
            else []
        )
        text = (
            f"{self.matched + len(self.filled)}/{self.total} backbone tensors; ignored: {', '.join(what) or 'nothing'}"
        )
        if self.filled:
            text += f"; {_count(len(self.filled), 'batch-norm counter')} absent from this old file set to 0"
        if self.left:
            text += f"; left as they were: {listed(self.left)}"
        return text

    def problems(self) -> list[str]:
        """What keeps the file from loading, in words."""
        found = []
        if self.missing:
            found.append(f"missing {listed(self.missing)}")
        for key, in_file, in_model in self.wrong_shape[:3]:
            found.append(f"{key} has shape {list(in_file)} in the file and {list(in_model)} in the backbone")
        if len(self.wrong_shape) > 3:
            found.append(f"{len(self.wrong_shape) - 3} more shapes differ")
        if self.unexpected:
            found.append(f"unexpected {listed(self.unexpected)}, neither matched nor ignored by name")
        for key, first, second in self.twice[:3]:
            found.append(f"{key} is claimed by both {first} and {second}")
        return found

    def require(self, what: str, where: str) -> Report:
        """This report, printed to stderr, if the file fits; else UserError naming every problem and the YAML place."""
        if not self.ok:
            done = self.matched + len(self.filled)
            raise UserError(
                f"{what}: {done} of {self.total} backbone tensors matched; {'; '.join(self.problems())}. "
                f"Nothing was loaded. See {where}"
            )
        print(f"{what}: {self.line()}", file=sys.stderr)
        return self


def rename(key: str, rules: Iterable[tuple[str, str]]) -> str:
    """The key after every ``(regular expression, replacement)``, applied in order."""
    return _rename(key, tuple((pattern, replacement) for pattern, replacement in rules))


@lru_cache(maxsize=1 << 16)
def _rename(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def match(file_shapes: Shapes, model_shapes: Shapes, layout: Any) -> Report:
    """Compare names and shapes under one layout (``rules``, ``ignore``, ``heads``); pure, never raises on a misfit."""
    rules, ignore = tuple((pattern, replacement) for pattern, replacement in layout.rules), list(layout.ignore)
    groups: Mapping[str, Sequence[str]] = getattr(layout, "heads", None) or {}
    mapping: dict[str, str] = {}
    wrong, unexpected, ignored = [], [], []
    twice: list[tuple[str, str, str]] = []
    heads: dict[str, dict[str, str]] = {name: {} for name in groups}
    for source in file_shapes:
        key = _rename(source, rules)
        if key in model_shapes:
            if key in mapping:
                twice.append((key, mapping[key], source))
            mapping[key] = source
            continue
        claims = [name for name, globs in groups.items() if any(fnmatchcase(key, glob) for glob in globs)]
        for name in claims:
            if key in heads[name]:
                twice.append((key, heads[name][key], source))
            heads[name][key] = source
        if claims or any(fnmatchcase(key, glob) for glob in ignore):
            ignored.append(source)
        else:
            unexpected.append(source)
    for key in list(mapping):
        in_file, in_model = tuple(file_shapes[mapping[key]]), tuple(model_shapes[key])
        if in_file != in_model:
            wrong.append((key, in_file, in_model))
            del mapping[key]
    differing = {key for key, _, _ in wrong}
    absent = [key for key in model_shapes if key not in mapping and key not in differing]
    old = not any(key.endswith(COUNTER) for key in file_shapes)
    filled = [key for key in absent if old and key.endswith(COUNTER)]
    return Report(
        total=len(model_shapes),
        mapping=mapping,
        missing=tuple(key for key in absent if key not in filled),
        unexpected=tuple(unexpected),
        wrong_shape=tuple(wrong),
        twice=tuple(twice),
        ignored=tuple(ignored),
        heads={name: keys for name, keys in heads.items() if keys},
        filled=tuple(filled),
    )


@dataclass(frozen=True)
class Choice:
    """The layout that fits a file best, the file's tensors under it, and how they match."""

    layout: Any
    tensors: Mapping[str, Any]
    report: Report


def select(tree: Any, layouts: Sequence[Any], model_shapes: Shapes, what: str) -> Choice:
    """The first layout under which the file fits; if none does, the one that comes closest.

    tree  what ``read`` returned.  Raises UserError when no layout leads to a mapping of tensors at all.
    """
    best: Choice | None = None
    dead_ends = []
    for layout in layouts:
        tensors, complaint = follow(tree, layout.path)
        if tensors is None:
            dead_ends.append(complaint)
            continue
        choice = Choice(
            layout, tensors, match({key: tuple(t.shape) for key, t in tensors.items()}, model_shapes, layout)
        )
        if choice.report.ok:
            return choice
        if best is None or _misfit(choice.report) < _misfit(best.report):
            best = choice
    if best is None:
        reasons = "; ".join(dict.fromkeys(dead_ends)) or "no layout is known for this entry"
        raise UserError(f"{what}: not a weight file of this form: {reasons}")
    return best


def follow(tree: Any, path: str | None) -> tuple[Mapping[str, Any] | None, str]:
    """The mapping of tensors at a dotted path, or None and the reason why there is none."""
    at, node = "the top level", tree
    steps = path.split(".") if path else []
    for i, step in enumerate(steps):
        if not isinstance(node, Mapping) or step not in node:
            known = listed([str(key) for key in node]) if isinstance(node, Mapping) else type(node).__name__
            return None, f"no {step!r} at {at} ({known})"
        at, node = repr(".".join(steps[: i + 1])), node[step]
    if not isinstance(node, Mapping):
        return None, f"{at} holds {type(node).__name__}, not tensors by name"
    others = [str(key) for key, value in node.items() if not (isinstance(key, str) and hasattr(value, "shape"))]
    if others:
        return None, f"{at} holds {listed(others)}, not only tensors"
    return node, ""


def _misfit(report: Report) -> tuple[int, int]:
    return (
        len(report.missing) + len(report.wrong_shape),
        len(report.unexpected) + len(report.twice),
    )


def listed(names: Sequence[str], limit: int = 6) -> str:
    """``a.{weight, bias}, b.weight and 3 more``: keys grouped by their prefix."""
    groups: dict[str, list[str]] = {}
    for name in names[:limit]:
        prefix, _, last = name.rpartition(".")
        groups.setdefault(prefix, []).append(last)
    words = [
        f"{prefix}.{{{', '.join(ends)}}}"
        if len(ends) > 1 and prefix
        else ", ".join(f"{prefix}.{e}".lstrip(".") for e in ends)
        for prefix, ends in groups.items()
    ]
    more = len(names) - limit
    return ", ".join(words) + (f" and {more} more" if more > 0 else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


__all__ = ["Choice", "Report", "follow", "listed", "match", "read", "rename", "select"]
