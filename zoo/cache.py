"""The torch.hub cache: where files lie, one process at a time per file, and the memory of hashes once seen."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from .errors import UserError
from .files import exclusive, whole

LOCK = Path(__file__).parent / "weights.lock"


@dataclass(frozen=True)
class Seen:
    """What is known of a file: its hash, its size and, perhaps, the first features of a fixed image."""

    sha256: str
    bytes: int
    fingerprint: tuple[float, ...] = ()

    def __str__(self) -> str:
        return "  ".join([self.sha256, str(self.bytes), ",".join(f"{x:.4e}" for x in self.fingerprint) or "-"])


def folder() -> Path:
    """``<hub>/checkpoints``, as torch.hub would say (torch is not imported for it); created when missing."""
    hub = sys.modules.get("torch.hub")
    if hub is not None:
        base = Path(hub.get_dir())
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        base = Path(os.environ.get("TORCH_HOME") or f"{cache}/torch").expanduser() / "hub"
    place = base / "checkpoints"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{place}: the cache cannot be made ({error.strerror}); set TORCH_HOME to a folder you may write"
        ) from None
    return place


def read_table(path: Path) -> dict[str, Seen]:
    """Name -> what is known, from lines ``sha256  bytes  fingerprint  name``."""
    known: dict[str, Seen] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return known
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            digest, size, print_, name = line.split(maxsplit=3)
            values = () if print_ == "-" else tuple(float(x) for x in print_.split(","))
            known[name] = Seen(digest, int(size), values)
            if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                raise ValueError
        except ValueError:
            raise UserError(f"{path}:{number}: {line[:80]!r} is not `sha256  bytes  fingerprint  name`") from None
    return known


def write_entry(path: Path, name: str, seen: Seen) -> None:
    """Add or replace one line, atomically; other processes may do the same at the same moment."""
    with locked(path):
        known = {**read_table(path), name: seen}
        head = (
            [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
            if path.exists()
            else []
        )
        lines = [*head, *(f"{value}  {key}" for key, value in sorted(known.items()))]
        try:
            with whole(path) as part:
                part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def seen_file() -> Path:
    """The user's memory of hashes."""
    return folder() / "selfzoo.seen"


def locked(path: Path, waiting: str = "") -> AbstractContextManager[None]:
    """Only one process at a time is inside for this path."""
    return exclusive(folder() / f".{path.name}.lock", waiting)
