"""Which samples are held out, and which labels are shown: folds and few-label subsets, functions of labels and a seed.

Everything is counter-based: whether sample i is in fold f depends on the seed, on i and on the labels, never on who asks.
"""

from __future__ import annotations

import numpy as np

from engine import rng


def stratified_folds(labels: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """The fold (0..folds-1) of each sample: disjoint, covering, every class spread evenly (counts differ by at most 1).

    labels (N,) integers. Dealing goes on from class to class, so fold sizes differ by at most 1 too.
    """
    labels = np.asarray(labels)
    if not 2 <= folds <= len(labels):
        raise ValueError(f"folds={folds}: between 2 and the number of samples ({len(labels)}) is needed")
    order = np.lexsort((_draw(seed, "folds", 0, len(labels)), labels))
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return fold


def deepercluster_folds(labels: np.ndarray, folds: int, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """(training, validation) indices of the authors' ``--kfold K --cross_valid i``.

    Contiguous blocks of n // K images of each class in file order; the n mod K last images of a class are used by nobody.
    Validation comes class by class; the training part class by class and block by block (they shuffle it each epoch).
    """
    if not 0 <= held_out < folds:
        raise ValueError(f"cross_valid={held_out}: 0 to {folds - 1} for kfold={folds}")
    training: list[np.ndarray] = []
    validation: list[np.ndarray] = []
    _, first = np.unique(labels, return_index=True)
    for label in np.asarray(labels)[np.sort(first)]:  # classes in the order in which the file list meets them
        members = np.flatnonzero(labels == label)
        size = len(members) // folds
        for fold in range(folds):
            (validation if fold == held_out else training).append(members[fold * size : (fold + 1) * size])
    return np.concatenate(training), np.concatenate(validation)


def per_class(labels: np.ndarray, count: int, seed: int = 0, draw: int = 0) -> np.ndarray:
    """Sorted indices of ``count`` samples of every class: draw number ``draw`` of a few-label experiment."""
    labels = np.asarray(labels)
    order, rank, sizes = _ranked(labels, seed, draw)
    if (sizes < count).any():
        short = np.unique(labels)[sizes < count][:5].tolist()
        raise ValueError(f"per_class={count}: classes {short} have fewer samples")
    return np.sort(order[rank < count])


def percent(labels: np.ndarray, share: float, seed: int = 0, draw: int = 0) -> np.ndarray:
    """Sorted indices of ``share`` percent of every class, rounded, at least one each."""
    if not 0 < share <= 100:
        raise ValueError(f"percent={share}: above 0 and up to 100")
    labels = np.asarray(labels)
    order, rank, sizes = _ranked(labels, seed, draw)
    quota = np.maximum(1, np.rint(sizes * share / 100)).astype(np.int64)
    return np.sort(order[rank < np.repeat(quota, sizes)])


def _ranked(labels: np.ndarray, seed: int, draw: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples ordered by class and then at random; each one's rank in its class; class sizes."""
    order = np.lexsort((_draw(seed, "few labels", draw, len(labels)), labels))
    _, sizes = np.unique(labels, return_counts=True)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order, np.arange(len(labels)) - starts, sizes


def _draw(seed: int, purpose: str, counter: int, n: int) -> np.ndarray:
    return rng.uniforms(seed, purpose, counter, np.arange(n), 0, 1)[:, 0]
