"""Missing, empty and unreadable images: left out up to a limit that the caller names, an error beyond it."""

from __future__ import annotations

import hashlib
import os
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..errors import UserError
from ..files import whole
from .images import ImageError
from .index_cache import RACY
from .paths import user_cache
from .source import FileSource, Source

T = TypeVar("T")


def limit(max_bad: int | None) -> int:
    """How many images may be left out: as said, else SELFZOO_MAX_BAD, else none."""
    given = os.environ.get("SELFZOO_MAX_BAD") or "0" if max_bad is None else str(max_bad)
    if not given.isdigit():
        raise UserError(f"max_bad (or SELFZOO_MAX_BAD) is {given}; it counts images: a whole number of 0 or more")
    return int(given)


def without_bad_images(source: Source, what: str, expected: int | None, max_bad: int) -> Source:
    """``source`` when it is complete; without its bad images when ``max_bad`` allows; else an error naming the first.

    expected  number of images of the complete set, None when it is not known
    """
    missing = 0 if expected is None else expected - len(source)
    if missing < 0:
        raise UserError(f"{what}: {len(source):,} images found, the set has {expected:,}; is it another data set?")
    bad = unreadable(source, what) if max_bad else empty(source)
    if not missing and not bad:
        return source
    found = []
    if missing:
        found.append(f"{missing:,} of {expected:,} images are missing")
    if bad:
        first = next(iter(bad.values()))
        found.append(f"{len(bad):,} of {len(source):,} images cannot be read (first: {first})")
    if missing + len(bad) > max_bad:
        limit = (
            f"more than max_bad={max_bad}"
            if max_bad
            else "repair the data, or allow it with max_bad=N (SELFZOO_MAX_BAD=N)"
        )
        raise UserError(f"{what}: {' and '.join(found)}; {limit}. `python -m zoo data check` lists them all")
    print(f"{what}: {' and '.join(found)}; left out (max_bad={max_bad})", file=sys.stderr, flush=True)
    return source.subset(np.setdiff1d(np.arange(len(source)), list(bad))) if bad else source


def empty(source: Source) -> dict[int, str]:
    """Files of zero bytes, which the listing alone shows: index -> complaint."""
    if not isinstance(source, FileSource):
        return {}
    return {int(i): f"{source.where(int(i))}: empty file (0 bytes)" for i in np.flatnonzero(source.sizes == 0)}


def unreadable(source: Source, what: str) -> dict[int, str]:
    """Images that do not decode: index -> complaint.

    What was found is remembered with the state of each file on disk: an image is read again once its file (or the archive
    that holds it) was touched, and so is one whose file could not be read at all, which says nothing about its content.
    """
    if not isinstance(source, FileSource) or not len(source):
        return {}
    key = hashlib.sha256(f"{source.fingerprint} {os.path.abspath(source.where(0))}".encode("utf-8", "surrogateescape"))
    record = user_cache() / "unreadable" / f"{key.hexdigest()[:32]}.npz"
    stamps = np.array([source.store.stamp(i) for i in range(len(source))], dtype=np.int64)
    known, kept = _remembered(record, stamps)
    left = np.flatnonzero(~known)
    found = {i: complaint for i, complaint in decoding(source, left, what) if complaint} if len(left) else {}
    bad = {**kept, **{i: str(complaint) for i, complaint in found.items()}}
    stamps[[i for i, complaint in found.items() if not isinstance(complaint, ImageError)]] = 0
    stamps[(stamps[:, 1] % 10**9 == 0) & (stamps[:, 1] > time.time_ns() - RACY)] = 0  # a disk that counts whole seconds
    numbers = np.array([i for i in bad if stamps[i].any()], dtype=np.int64)
    try:
        complaints = np.array([bad[int(i)] for i in numbers], dtype=str)
        with whole(record) as part, part.open("wb") as file:
            np.savez_compressed(file, stamps=stamps, bad=numbers, complaints=complaints)
    except (OSError, UserError):
        pass  # a full or read-only cache costs the next search, nothing else
    return dict(sorted(bad.items()))


def _remembered(record: Path, stamps: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """(bool (N,): images whose files are as they were when they were read; the complaints about those of them that are bad)."""
    try:
        with np.load(record, allow_pickle=False) as file:
            before, bad, complaints = file["stamps"], file["bad"].tolist(), file["complaints"].tolist()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return np.zeros(len(stamps), bool), {}
    if before.shape != stamps.shape:
        return np.zeros(len(stamps), bool), {}
    known = (before == stamps).all(axis=1) & (stamps[:, 0] >= 0)
    return known, {i: complaint for i, complaint in zip(bad, complaints, strict=True) if known[i]}


def decoding(source: FileSource, chosen: Iterable[int], what: str) -> Iterator[tuple[int, UserError | None]]:
    """(index, complaint) of the ``chosen`` images in order, None for a good one; with a progress bar, on all cores."""

    def attempt(i: int) -> tuple[int, UserError | None]:
        try:
            source.decoded(i)
        except UserError as error:  # ImageError above all
            return i, error
        return i, None

    yield from in_order(attempt, map(int, chosen), f"{what}: reading every image")


def in_order(work: Callable[[int], tuple[int, T]], items: Iterable[int], title: str) -> Iterator[tuple[int, T]]:
    """``work`` on each item on all cores (decoding releases the interpreter), results in order, bar with ETA."""
    from tqdm import tqdm

    numbers = list(items)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        chunks = (numbers[i : i + 1024] for i in range(0, len(numbers), 1024))
        with tqdm(total=len(numbers), desc=title, unit="img", disable=None, leave=False) as bar:
            for chunk in chunks:
                for result in pool.map(work, chunk):
                    bar.update()
                    yield result
