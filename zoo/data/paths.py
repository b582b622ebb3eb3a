"""The user's cache folder, and names that lists, maps, annotations and archives give to files: always below their folder.

Such a name comes from the author of the list. An absolute one, or one with ``..`` in it, could read or write anywhere.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError


def user_cache() -> Path:
    """The user's folder for downloads and indexes: XDG_CACHE_HOME/selfzoo, else ~/.cache/selfzoo."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "selfzoo"


def inside(name: str, where: str) -> str:
    """``name`` when it leads to a place below its folder.  ``where`` is where it is written, for the message."""
    parts = name.replace(os.sep, "/").split("/")
    if (
        not name
        or ".." in parts
        or parts[0] == ""
        or "\0" in name
        or os.path.isabs(name)
        or os.path.splitdrive(name)[0]
    ):
        raise UserError(
            f"{where}: {name!r} leads out of the folder of its data set; names in it are relative and without '..'"
        )
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise UserError(f"{where}: no file can be called {name!r}") from None
    return name


def component(name: str, where: str) -> str:
    """``name`` when it is the name of one file or folder, and not a way to somewhere else."""
    if name in (".", "..") or "/" in name or os.sep in name or not inside(name, where):
        raise UserError(f"{where}: {name!r} is not the name of a folder or file, but a way to another one")
    return name
