"""Classes of the parts of a data set, joined by name: each part numbers its own classes, and only names say which are the same.

``numbers`` gives a part's classes the numbers that the training part has for them. A class that only the training part has
is a note; a class that only the other part has is an error. Where the data give numbers without names (a map of a flat zip,
tar shards from elsewhere), a number means the training part's class of that number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError, suggest

NOWHERE = -1


@dataclass(frozen=True)
class Classes:
    """What one part calls its classes.

    names   (C,) the class of each number
    shown   bool (C,): at least one image of the part has it
    named   False: the data give numbers only, and ``names`` are those numbers as text
    single  one label per image; otherwise several (VOC, COCO)
    """

    names: tuple[str, ...]
    shown: np.ndarray
    named: bool = True
    single: bool = True

    @classmethod
    def of(cls, source: Any) -> Classes:
        """The classes of an opened source; without names when nothing is labelled."""
        if not source.labelled and source.targets is None:
            return cls((), np.zeros(0, bool))
        return cls(tuple(source.classes), source.shown, source.named, source.labelled)


def numbers(
    train: Classes, part: Classes, titles: tuple[str, str] = ("train", "the part")
) -> tuple[np.ndarray, list[str]]:
    """(int64 (C,): the training part's number of each class of ``part``, -1 for one that no image shows; notes in words).

    titles  what the training part and the part are called in messages
    Raises UserError naming the classes that only ``part`` has, or names that do not say which class is which.
    """
    if not train.names or not part.names:
        return np.arange(len(part.names)), []
    found = _matched(train, part, titles)
    known = np.where(found >= 0, found, 0)
    untaught = ~train.shown[known] if train.single and part.single else np.zeros(len(found), bool)
    only = np.flatnonzero(part.shown & ((found < 0) | untaught))
    if len(only):
        first = part.names[only[0]]
        alike = [n for n in train.names if n.casefold() == first.casefold() and n != first]
        hint = suggest(first, alike, cutoff=0) or suggest(first, [n for n in train.names if n != first], cutoff=0.7)
        what = f"class {first!r} of {titles[1]} has no images in {titles[0]}{hint}"
        more = f" ({len(only)} such classes: {_listed(part.names, only)})" if len(only) > 1 else ""
        raise UserError(
            f"{what}{more}: no model can learn it; rename the class, add it to {titles[0]}, or take it out of {titles[1]}"
        )
    notes = []
    if not part.named and train.named and train.names != part.names:
        notes.append(f"{titles[1]} gives its classes by number only; its numbers are taken as those of {titles[0]}")
    seen = np.zeros(len(train.names), bool)
    seen[found[part.shown]] = True
    absent = np.flatnonzero(train.shown & ~seen)
    if len(absent):
        verb = "has" if len(absent) == 1 else "have"
        notes.append(
            f"{len(absent)} of {len(train.names)} classes {verb} images in {titles[0]} and none in {titles[1]}: "
            f"{_listed(train.names, absent)}; scores are over the others"
        )
    return found, notes


def _matched(train: Classes, part: Classes, titles: tuple[str, str]) -> np.ndarray:
    """int64 (C,): position of each of the part's classes among the training part's, -1 where there is none."""
    if part.names == train.names:
        return np.arange(len(part.names))
    if not part.named:
        if train.named and all(n.isdigit() for n in train.names) and train.names != _plain(len(train.names)):
            raise UserError(
                f"{titles[0]} has classes called {train.names[1]!r} and the like, {titles[1]} gives numbers only: is its 1 "
                f"the class {'1'!r} or the second one ({train.names[1]!r})? Bring both parts into the same layout"
            )
        return np.array([k if k < len(train.names) else NOWHERE for k in range(len(part.names))], dtype=np.int64)
    for names, title in ((train.names, titles[0]), (part.names, titles[1])):
        twice = [n for n in dict.fromkeys(names) if names.count(n) > 1]
        if twice:
            raise UserError(
                f"{title} has several classes called {twice[0]!r}, so its classes cannot be joined by name; rename one"
            )
    where = {name: k for k, name in enumerate(train.names)}
    return np.array([where.get(name, NOWHERE) for name in part.names], dtype=np.int64)


def _plain(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _listed(names: Sequence[str], chosen: np.ndarray, most: int = 8) -> str:
    return ", ".join(repr(names[int(k)]) for k in chosen[:most]) + (", …" if len(chosen) > most else "")


def titled(pairs: Iterable[tuple[int, str]], count: int) -> tuple[list[str], bool]:
    """(names of classes 0..count-1, True) when ``pairs`` (number, name) say one name for each number that occurs and no two
    the same; a number that does not occur is called "#k".  Otherwise (the numbers as text, False)."""
    found: dict[int, str] = {}
    for number, name in pairs:
        if not name or found.setdefault(number, name) != name:
            return list(_plain(count)), False
    if not found or len(set(found.values())) < len(found):
        return list(_plain(count)), False
    return [found.get(k, f"#{k}") for k in range(count)], True


def titled_by_folder(names: Sequence[str], labels: np.ndarray, count: int) -> tuple[list[str], bool]:
    """``titled`` by the folder that each class has to itself, at whatever depth below the archive's top: train/ant/1.png."""
    folders = [name.split("/")[:-1] for name in names]
    numbers_ = labels.tolist()
    depth = min(map(len, folders), default=0)
    levels = [depth - 1] if len(set(numbers_)) == 1 else range(depth)  # one class alone: the folder its images lie in
    for level in levels if depth else ():
        found, named = titled(((k, parts[level]) for k, parts in zip(numbers_, folders, strict=True)), count)
        if named:
            return found, True
    return list(_plain(count)), False
