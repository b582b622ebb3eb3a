"""What is left out and what is an error: missing, empty and unreadable images, against a limit that the caller names."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..errors import UserError
from .places import user_cache
from .source import FileSource, Source


def limit(max_bad: int | None) -> int:
    """How many images may be left out: as said, else SELFZOO_MAX_BAD, else none."""
    given = os.environ.get("SELFZOO_MAX_BAD") or "0" if max_bad is None else str(max_bad)
    if not given.isdigit():
        raise UserError(f"max_bad (or SELFZOO_MAX_BAD) is {given}; it counts images: a whole number of 0 or more")
    return int(given)


def screen(source: Source, what: str, expected: int | None, max_bad: int) -> Source:
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
            else "mend the data, or allow it with max_bad=N (SELFZOO_MAX_BAD=N)"
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
    """Images that do not decode: index -> complaint.  Every image is read once; remembered by fingerprint."""
    if not isinstance(source, FileSource):
        return {}
    record = user_cache() / "unreadable" / f"{source.fingerprint}.json"
    if record.is_file():
        return {int(i): complaint for i, complaint in json.loads(record.read_text()).items()}
    bad = {i: complaint for i, complaint in decoding(source, what) if complaint}
    record.parent.mkdir(parents=True, exist_ok=True)
    partial = record.with_name(f"{record.name}.{os.getpid()}")
    partial.write_text(json.dumps(bad))
    os.replace(partial, record)
    return bad


def decoding(source: Source, what: str) -> Iterator[tuple[int, str]]:
    """(index, complaint) of every image in order, '' for a good one; with a progress bar, on all cores."""

    def attempt(i: int) -> tuple[int, str]:
        try:
            source.image(i)
        except UserError as error:  # ImageError above all
            return i, str(error)
        return i, ""

    yield from in_order(attempt, range(len(source)), f"{what}: reading every image")


def in_order(work: Callable[[int], tuple[int, str]], items: Iterable[int], title: str) -> Iterator[tuple[int, str]]:
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
