"""The order of images in an epoch, and how often each was drawn before; with bounded memory for very many images.

Below MANY images every process holds the order. From MANY on, a permutation is computed position by position (``rng.shuffled``: another one
than that of sorted keys, which recipes of fewer images keep), and what a method's sampler draws is drawn by process 0 alone, into a file
that all processes map.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from engine import dist, mapped, rng

MANY = 1 << 24  # images; 16.8 million


class Order(Protocol):
    def at(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """(images, visits), both (high - low,) int64, of these positions."""
        ...


@dataclass(frozen=True)
class Listed:
    """An order that is held, or mapped from a file: images (n,) and their visits (n,)."""

    images: np.ndarray
    visits: np.ndarray

    def at(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.images[low:high], dtype=np.int64), np.array(self.visits[low:high], dtype=np.int64)


@dataclass(frozen=True)
class Computed:
    """A permutation of n images, each once: nothing is held."""

    seed: int
    epoch: int
    n: int

    def at(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        images = rng.shuffled(self.seed, "order", self.epoch, self.n, np.arange(low, high))
        return images, np.zeros_like(images)


def visits(order: np.ndarray) -> np.ndarray:
    """(n,) int64: how often each entry of `order` (n,) occurs before its own place."""
    order = np.asarray(order)
    by_image = np.argsort(order, kind="stable")
    grouped = order[by_image]
    first = np.searchsorted(grouped, grouped, side="left")
    out = np.empty(len(order), dtype=np.int64)
    out[by_image] = np.arange(len(order)) - first
    return out


def of_epoch(
    sampler: Callable[[], np.ndarray | None], seed: int, epoch: int, n: int, drawn: int, folder: Path | None
) -> Order:
    """The order of an epoch that draws `drawn` of `n` images. sampler: a method's, None from it for a permutation.

    folder  seen by all processes; None: what a sampler draws is held by each
    """
    many = n >= MANY
    if many and folder is not None:
        return _shared(sampler, seed, epoch, n, drawn, folder)
    found = sampler()
    if found is None:
        if many:
            return Computed(seed, epoch, n)
        found = rng.permutation(seed, "order", epoch, n)
    images = np.asarray(found, dtype=np.int64)[:drawn]
    return Listed(images, visits(images))


def _shared(sampler: Callable[[], np.ndarray | None], seed: int, epoch: int, n: int, drawn: int, folder: Path) -> Order:
    paths = folder / "order.npy", folder / "visits.npy"

    def write() -> bool:
        if not dist.is_main() or (found := sampler()) is None:
            return False
        folder.mkdir(parents=True, exist_ok=True)
        images = np.asarray(found, dtype=np.int64)[:drawn]
        for path, values in zip(paths, (images, visits(images)), strict=True):
            fresh = path.with_suffix(".part.npy")  # who still maps the one before keeps it
            file = mapped.create(fresh, values.shape, np.int64)
            file[:] = values
            file.flush()
            os.replace(fresh, path)
        return True

    if not dist.broadcast_object(dist.together(write)):
        return Computed(seed, epoch, n)
    images, again = (np.load(path, mmap_mode="r") for path in paths)
    dist.barrier()  # nobody replaces a file that another has yet to open
    return Listed(images, again)
