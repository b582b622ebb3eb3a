"""COCO's two ways of writing a mask, decoded exactly as COCO's own evaluation does: run lengths and polygons.

Both run down the columns of the image.  Polygons are drawn on a grid five times finer, and a pixel belongs to the mask
when the number of outline crossings above it in column order is odd.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FINE = 5


def from_runs(counts: Sequence[int] | str | bytes, height: int, width: int) -> np.ndarray:
    """bool (height, width) of run lengths, background first.  Raises ValueError when they do not fill the image."""
    runs = np.array(unpack(counts) if isinstance(counts, str | bytes) else counts, dtype=np.int64)
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"run lengths cover {runs.sum()} pixels, the image has {height * width}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T


def to_runs(mask: np.ndarray) -> list[int]:
    """The run lengths of bool (H, W), background first (of length 0 when the first pixel is set)."""
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    runs = np.diff(edges).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


def unpack(text: str | bytes) -> list[int]:
    """Run lengths from COCO's compressed text: five bits a character, from the third run on as differences."""
    runs: list[int] = []
    value = shift = 0
    for code in text.encode() if isinstance(text, str) else text:
        bits = code - 48
        if not 0 <= bits < 64:
            raise ValueError(f"character {chr(code)!r} does not belong to compressed run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("compressed run lengths end within a number")
    return runs


def from_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """bool (height, width): the union of polygons, each x0, y0, x1, y1, ….  Raises ValueError for an odd one."""
    mask = np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        points = np.array(polygon, dtype=np.float64)
        if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
            raise ValueError(f"a polygon needs at least three pairs of numbers, found {len(points)} numbers")
        mask |= _fill(points.reshape(-1, 2), height, width)
    return mask


def _fill(points: np.ndarray, height: int, width: int) -> np.ndarray:
    fine = (FINE * points + 0.5).astype(np.int64)
    outline = np.concatenate([_line(a, b) for a, b in zip(fine, np.roll(fine, -1, axis=0), strict=True)])
    before, after = outline[:-1], outline[1:]
    crossing = before[:, 0] != after[:, 0]
    before, after = before[crossing], after[crossing]
    x = np.where(after[:, 0] < before[:, 0], after[:, 0], after[:, 0] - 1)
    x = (x + 0.5) / FINE - 0.5
    y = np.ceil(np.clip((np.minimum(before[:, 1], after[:, 1]) + 0.5) / FINE - 0.5, 0, height)).astype(np.int64)
    inside = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    toggles = np.bincount(x[inside].astype(np.int64) * height + y[inside], minlength=height * width + 1)
    return (np.cumsum(toggles[: height * width]) % 2 == 1).reshape(width, height).T


def _line(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Grid points from start to end, both included, one for each step along the longer axis."""
    span = np.abs(end - start)
    axis = 0 if span[0] >= span[1] else 1
    steps = int(span[axis])
    if not steps:
        return start[None]
    low, high = (end, start) if start[axis] > end[axis] else (start, end)  # rounded the same way in both directions
    t = np.arange(steps + 1)
    points = np.empty((steps + 1, 2), dtype=np.int64)
    points[:, axis] = low[axis] + t
    slope = (high[1 - axis] - low[1 - axis]) / steps
    points[:, 1 - axis] = (low[1 - axis] + slope * t + 0.5).astype(np.int64)
    return points if low is start else points[::-1]


def outlines(mask: np.ndarray) -> list[list[int]] | None:
    """Polygons along the pixel edges of bool (H, W), one for each connected part; None when a part has a hole.

    ``from_polygons`` gives the same mask back.
    """
    if not mask.any():
        return []
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    padded = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    follows: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # Edges between a set pixel and an unset neighbour, directed so that the set pixel is on the right.
    for (dy, dx), start, end in (
        ((-1, 0), (0, 0), (1, 0)),
        ((0, 1), (1, 0), (1, 1)),
        ((1, 0), (1, 1), (0, 1)),
        ((0, -1), (0, 1), (0, 0)),
    ):
        edges = np.argwhere(padded & ~np.roll(padded, (-dy, -dx), axis=(0, 1))) + (top - 1, left - 1)
        for y, x in edges.tolist():
            a, b = (x + start[0], y + start[1]), (x + end[0], y + end[1])
            follows.setdefault(a, []).append(b)
    found = []
    while follows:
        here = first = min(follows)
        step = (1, 0)
        loop: list[tuple[int, int]] = []
        while True:
            ways = follows[here]
            # Where two corners touch, turn right: the two pixels are not connected.
            right = (here[0] - step[1], here[1] + step[0])
            there = ways.pop(ways.index(right) if right in ways else 0)
            if not ways:
                del follows[here]
            turn = (there[0] - here[0], there[1] - here[1])
            if turn != step or not loop:
                loop.append(here)
            here, step = there, turn
            if here == first:
                break
        x, y = np.array(loop).T
        if (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() < 0:
            return None
        found.append(np.array(loop).ravel().tolist())
    return found
