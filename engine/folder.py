"""A run folder belongs to one run of one recipe at a time."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from . import checkpoint, dist
from .errors import LockedError, UserError

WRITTEN = (
    "done.json",
    "checkpoint.pt",
    "checkpoint.previous.pt",
    "weights.pth",
    "log.jsonl",
    "provenance.json",
    "recipe.yaml",
    "curves.png",
)
_held: set[Path] = set()


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; LockedError when another has it.

    The lock is the operating system's, so it goes with the process that held it, however that ended. It is not inherited
    by workers. The file's content is only for people.
    """
    path = folder.resolve() / "lock"
    if path in _held:
        raise LockedError(f"{folder} is in use by this very process; two runs cannot share a folder")
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise LockedError(f"{folder} cannot be written to ({error.strerror}); choose another with out=") from None
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise LockedError(
                f"{folder} is in use by {_owner(file)}; wait for it, stop it, or choose another folder with out="
            ) from None
        except OSError as error:
            raise LockedError(
                f"{folder} is on a file system that cannot lock files ({error.strerror}); choose another with out="
            ) from None
        _held.add(path)
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(file, 0)
        os.pwrite(file, (json.dumps(owner) + "\n").encode(), 0)
        for leftover in folder.glob(f"*{checkpoint.TEMPORARY}"):
            leftover.unlink()  # of a process killed while writing
        yield
    finally:
        _held.discard(path)
        os.close(file)


def holder(folder: Path) -> str | None:
    """Who trains in `folder` now, in words; None when nobody does. Asks the operating system and changes nothing."""
    try:
        file = os.open(folder / "lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return _owner(file)
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(file)
    return None


def _owner(file: int) -> str:
    try:
        owner = json.loads(os.pread(file, 4096, 0))
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (ValueError, KeyError):
        return "another process"


@contextmanager
def exclusive(folder: Path, recipe: Mapping[str, Any], *, resume: bool = True) -> Iterator[dict[str, Any] | None]:
    """Process 0 locks the folder and looks at it for everyone: gives done.json of a finished run, else None."""
    with ExitStack() as stack:
        error: UserError | None = None
        done: dict[str, Any] | None = None
        if dist.is_main():
            try:
                done = _take(stack, folder, recipe, resume)
            except UserError as caught:
                error = caught
            except OSError as caught:
                error = UserError(f"cannot use {folder}: {caught.strerror}; choose another with out=")
        reason, done = dist.broadcast_object((str(error) if error else None, done))
        if reason is not None:
            raise error or UserError(reason)
        yield done


def _take(stack: ExitStack, folder: Path, recipe: Mapping[str, Any], resume: bool) -> dict[str, Any] | None:
    folder.mkdir(parents=True, exist_ok=True)
    stack.enter_context(lock(folder))
    if not resume:
        for name in WRITTEN:
            (folder / name).unlink(missing_ok=True)
        for name in ("tensorboard", "features", "epochs"):
            shutil.rmtree(folder / name, ignore_errors=True)
    written = folder / "recipe.yaml"
    if written.exists():
        checkpoint.require_recipe(written, yaml.safe_load(written.read_text()), recipe)
    done = folder / "done.json"
    return checkpoint.read_json(done) if done.exists() else None
