"""Files that are whole or absent, and checkpoints that are read without trusting them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .errors import CheckpointError, DamagedCheckpoint

FORMAT = "selfzoo checkpoint 1"
TEMPORARY = ".part"
MAPPED = 1 << 32  # bytes of a file above which it is mapped, not read; its checksums are then not compared, its size is


def write_atomic(path: Path, write: Callable[[BinaryIO], Any], *, keep: bool = False) -> None:
    """`write(file)` into `path`, so that a crash at any moment leaves the old content or the new, never a mixture.

    keep: what was there stays, as `previous(path)`.

    The new content is on the disk before the name moves, and the move is on the disk before this returns.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            _keep(path)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise CheckpointError(f"cannot write {path} ({error}); what was there before is intact") from error
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """UTF-8; file names that are not are written as the bytes that they are on disk."""
    write_atomic(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it") from None


def write_tensors(path: Path, tensors: Mapping[str, Any], *, keep: bool = False) -> None:
    """A plain state dict; equal tensors give equal bytes, whatever the path. keep: see write_atomic."""
    write_atomic(path, lambda file: torch.save(dict(tensors), file), keep=keep)


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint; the one that was there stays beside it, as `previous(path)`.

    `state` holds tensors, numbers, strings, lists and dicts only: TypeError for anything else.
    """
    _require_plain(state, "checkpoint")
    write_tensors(path, {"format": FORMAT, **state}, keep=True)


def previous(path: Path) -> Path:
    """Where the checkpoint before the last one is."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _keep(path: Path) -> None:
    """The file at `path` under its second name too, without a moment in which it has none."""
    second = path.with_name(previous(path).name + TEMPORARY)
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
        os.replace(second, previous(path))
    except (
        OSError
    ):  # a file system without hard links: the move leaves only the second name until the new file is there
        second.unlink(missing_ok=True)
        os.replace(path, previous(path))


def latest(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The last checkpoint that can be read, None if there is none; and what to say if it is the one before the last.

    Raises CheckpointError as `load` does when neither can be used.
    """
    before, damage = previous(path), ""
    try:
        state = load(path)
    except DamagedCheckpoint as error:
        if not before.exists():
            raise
        state, damage = None, str(error).partition(";")[0]
    if state is not None or not before.exists():
        return state, ""
    state = load(before)
    assert state is not None
    return state, f"{damage or f'{path} is gone'}; going on from the checkpoint before it, of step {state.get('step')}"


def _require_plain(value: Any, where: str) -> None:
    """What the safe reader would refuse to load must not be saved in the first place."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _require_plain(key, f"a key of {where}")
            _require_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            _require_plain(item, f"{where}[{i}]")
    elif not isinstance(value, torch.Tensor) and type(value) not in (int, float, bool, str, type(None)):
        raise TypeError(
            f"{where} is a {type(value).__name__}: only tensors, numbers, strings, lists and dicts can be kept"
        )


def load(path: Path) -> dict[str, Any] | None:
    """The checkpoint at `path`, on the CPU; None when there is none. Raises CheckpointError when it is not whole or not ours.

    Nothing in the file is executed: torch's weights_only reader refuses everything but plain data.
    """
    try:
        # A very large one is mapped: of 43 GB, a process reads what it holds.
        mapped = path.stat().st_size > MAPPED
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001  zip, pickle and tensor errors come in a dozen types
        reason = str(error).split("\n")[0][:200]
        raise DamagedCheckpoint(
            f"{path} cannot be read ({type(error).__name__}: {reason}): it is truncated, damaged or not a checkpoint; "
            "put a copy back, or start again with resume=false"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(
            f"{path} is not a checkpoint of this version (its format is {found!r}, expected {FORMAT!r}); "
            "move it away, or start again with resume=false"
        )
    return state


def require_recipe(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise CheckpointError, naming the settings, when a checkpoint was made by another recipe."""
    a, b = dict(_leaves(found)), dict(_leaves(wanted))
    differing = [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
    if differing:
        shown = "; ".join(f"{name} is {a.get(name)} there and {b.get(name)} here" for name in differing[:5])
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise CheckpointError(f"{path} belongs to another recipe: {shown}{more}. Use another folder, or resume=false")


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths of a recipe and their values; an empty container is a value, null is the same as absent."""
    if isinstance(value, Mapping) and (value or not prefix):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, (list, tuple)) and value:
        for i, item in enumerate(value):
            yield from _leaves(item, f"{prefix}.{i}")
    elif value is not None:
        yield prefix, value
