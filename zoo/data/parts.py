"""The parts of a data set by their usual names, in whatever spelling a folder has them: Train/, validation/, dev.zip.

A name that looks like a part (``val_images``, ``train2017``) and is none of the usual ones is an error rather than a class, or a
part that is silently missing.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from ..errors import UserError
from .folders import subfolders

NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation", "holdout", "heldout"),
}
_KIND = {name: part for part, names in NAMES.items() for name in names}
# Words that say nothing about what is shown: "train_images" is a part, "bullet train" a class.
_PLAIN = re.compile(
    r"(set|split|part|data|dataset|folder|images?|imgs?|photos?|pictures?|my|new|old|raw|full|small|seg)"
)
_ARCHIVE = re.compile(r"(.+)\.zip|([^-]+)-.*\.tar|(.+)\.index\.tsv")
_ENDING = re.compile(r"(set|split|data|images|imgs)$")


def known(name: str) -> str | None:
    """train, val or test when ``name`` is a usual name of that part, in any case."""
    return _KIND.get(name.casefold())


def resembled(name: str) -> str | None:
    """train, val or test when a word of ``name`` is a usual name of that part: "val_images", "train2017", "fruitTest"."""
    return next((kind for kind in map(_kind, _words(name)) if kind), None)


def named_alike(name: str) -> bool:
    """True when ``name`` resembles a part and says nothing else: "val_images", but not "bullet train"."""
    kinds = [_kind(word) or _PLAIN.fullmatch(word) for word in _words(name)]
    return all(kinds) and resembled(name) is not None


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).casefold())


def _kind(word: str) -> str | None:
    return _KIND.get(word) or _KIND.get(_ENDING.sub("", word))


def spelled(part: str, names: Iterable[str], where: Path | str) -> str | None:
    """The one of ``names`` that is ``part``; None when there is none.  Raises UserError when there are two.

    A part with a name of its own (COCO's train2017) is found under exactly that name.
    """
    found = sorted({n for n in names if (known(n) == part if part in NAMES else n == part)})
    if len(found) > 1:
        raise UserError(f"{where}: {' and '.join(found)} both look like the part {part!r}; rename or move one of them")
    return found[0] if found else None


def present(root: Path) -> set[str]:
    """Every name below which ``root`` may hold a part: its folders, its zips, and the first word of its tar shards."""
    try:
        with os.scandir(root) as entries:
            seen = [(e.name, e.is_dir()) for e in entries if not e.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{root}: folder cannot be read: {error.strerror}") from None
    archives = (_ARCHIVE.fullmatch(name) for name, folder in seen if not folder)
    return {
        *(name for name, folder in seen if folder),
        *(next(filter(None, found.groups())) for found in archives if found),
    }


def find(root: Path, part: str) -> str | None:
    """The name that ``part`` has below ``root``; None when it is not there.

    Raises UserError when two names are that part, or when one only looks like it.
    """
    names = present(root)
    found = spelled(part, names, root)
    if found is None and any(known(name) for name in names):
        refuse(root, [name for name in names if resembled(name) == part])
    return found


def any_of(root: Path) -> bool:
    """True when ``root`` is divided into parts.  Raises UserError when its folders look like parts and are none."""
    names = present(root)
    if any(map(known, names)):
        return True
    alike = [n for n in names if named_alike(n)] or [n for n in names if all(map(resembled, names))]
    several = len({resembled(name) for name in alike}) > 1
    refuse(root, [n for n in alike if several or not (root / n).is_dir() or subfolders(root / n)])
    return False


def undeclared(root: Path, classes: Iterable[str]) -> list[str]:
    """Folders below a divided ``root`` that hold folders of ``classes`` although no part is called so: a part under another name."""
    wanted = set(classes)
    names = [name for name in sorted(present(root)) if known(name) is None and (root / name).is_dir()]
    return [name for name in names if len(wanted & set(subfolders(root / name))) * 2 > len(wanted)]


@lru_cache(maxsize=64)
def tell_unread(root: Path) -> None:
    """One line on stderr, once: folders beside the parts, whose images nobody reads."""
    left = [name for name in subfolders(root) if known(name) is None]
    if left:
        more = ", …" if len(left) > 8 else ""
        print(
            f"{root}: is read by its parts; its other folders are not read: {', '.join(left[:8])}{more}",
            file=sys.stderr,
            flush=True,
        )


def refuse(root: Path, names: Iterable[str]) -> None:
    """Raise UserError for the first of ``names``, if there is one."""
    for name in sorted(names):
        kind = str(resembled(name))
        raise UserError(
            f"{root}: {name} looks like the part {kind!r} and is not called so; rename it to {kind} (or {', '.join(NAMES[kind][1:])}),"
            f" move it elsewhere, or read it alone with data={root / name}"
        )
