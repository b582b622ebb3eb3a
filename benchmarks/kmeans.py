"""k-means, an assignment, an update and another assignment: a mean of each cluster in turn, against sums of all at once.

    python -m benchmarks.kmeans [--rounds 7] [--seconds 40]

The limit is the two products of all rows with all centroids.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks import _frame
from engine.maths.kmeans import kmeans

BLOCK = 1024


def nearest(x: Tensor, centroids: Tensor) -> Tensor:
    half = centroids.square().sum(1) / 2
    return torch.cat([(block @ centroids.T - half).argmax(1) for block in x.split(BLOCK)])


def plain(x: Tensor, start: Tensor) -> Tensor:
    """The definition: every cluster's centroid is the mean of its rows, and stays where there is none."""
    labels, centroids = nearest(x, start), start.clone()
    for k in range(len(start)):
        own = x[labels == k]
        if len(own):
            centroids[k] = own.mean(0)
    return nearest(x, centroids)


def rows(options: _frame.Options) -> Iterator[_frame.Row]:
    n, dim, clusters = (2000, 16, 20) if options.small else (50_000, 256, 1000)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, dim, generator=generator)
    start = x[torch.randperm(n, generator=generator)[:clusters]].clone()

    def bare() -> None:
        for _ in range(2):
            for block in x.split(BLOCK):
                block @ start.T

    sides = {"reference": lambda: plain(x, start), "here": lambda: kmeans(x, start, iterations=1).labels}
    found = _frame.interleave({**sides, "limit": bare}, options)
    same = float((found["reference"].result == found["here"].result).double().mean())
    yield _frame.row(
        found,
        work="k-means",
        size=f"{n:,} x {dim}, {clusters:,} clusters; two assignments and an update",
        reference="cluster by cluster, torch",
        here="engine.maths.kmeans",
        equal=(same >= 0.9999, f"labels on {100 * same:.3f} % of rows"),
        limit="two float32 products",
    )


if __name__ == "__main__":
    sys.exit(_frame.main(rows))
