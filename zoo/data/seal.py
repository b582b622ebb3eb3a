"""Keep a split closed until the choice that must not see it has been made.

    with sealed("test") as seal:
        best = choose(...)              # open_source(name, "test") raises SealedError in here
        seal.release()                  # the choice is made and recorded
        score(best, open_source(name, "test"))

A split that shares images with a sealed one (``all`` of digits) is closed too.  Code that reads a split from a cache
rather than through ``open_source`` says so with ``permit(name, split)``, which raises in the same way.  Every opening is
counted: ``openings()`` is what a record states as its test reads.  Seals hold for all threads of the process and for
workers forked from it; a worker started by ``spawn`` gets its sources ready-made and opens none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UserError

_seals: list[Seal] = []
_openings: Counter[tuple[str, str]] = Counter()


class SealedError(UserError):
    """A split was opened before the choices that must not see it were made."""


class Seal:
    """Splits that may not be opened while this is closed; ``dataset`` None means of any data set."""

    def __init__(self, splits: tuple[str, ...], dataset: str | None) -> None:
        self.splits, self.dataset = splits, dataset
        self.closed = True

    def release(self) -> None:
        """Open the splits for good (of this seal; another one may still hold them)."""
        self.closed = False

    def holds(self, dataset: str, split: str) -> bool:
        return self.closed and split in self.splits and self.dataset in (None, dataset)


@contextmanager
def sealed(*splits: str, dataset: str | None = None) -> Iterator[Seal]:
    """Within the block, opening one of ``splits`` raises until ``release()`` is called."""
    if not splits:
        raise UserError("sealed() needs the name of a split")
    seal = Seal(splits, dataset)
    _seals.append(seal)
    try:
        yield seal
    finally:
        seal.release()
        _seals.remove(seal)


def is_sealed(dataset: str, split: str) -> bool:
    """True while some seal closes this split."""
    return any(seal.holds(dataset, split) for seal in _seals)


def permit(dataset: str, split: str) -> None:
    """Count an opening of ``split``, or raise SealedError while it is sealed."""
    if is_sealed(dataset, split):
        raise SealedError(
            f"{dataset}: split {split!r} is sealed: it may be read only after model selection has finished"
        )
    _openings[dataset, split] += 1


def openings() -> Counter[tuple[str, str]]:
    """How often each (data set, split) was opened in this process, as a copy."""
    return Counter(_openings)
