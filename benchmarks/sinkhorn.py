"""SwAV's Sinkhorn on one batch with a queue: the whole matrix normalised in turn, against two scaling vectors in blocks.

python -m benchmarks.sinkhorn [--rounds 7] [--seconds 40]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks import _frame
from engine.maths.sinkhorn import Workspace, sinkhorn

EPSILON, ITERATIONS = 0.05, 3


def whole_matrix(scores: Tensor) -> Tensor:
    """The iteration of the paper's listing: the matrix (K, B) divided by its row sums, then by its column sums, in place."""
    q = (scores / EPSILON).exp_().T
    clusters, samples = q.shape
    q /= q.sum()
    for _ in range(ITERATIONS):
        q /= q.sum(1, keepdim=True)
        q /= clusters
        q /= q.sum(0, keepdim=True)
        q /= samples
    return q.mul_(samples).T


def rows(options: _frame.Options) -> Iterator[_frame.Row]:
    batch, used, prototypes = (128, 64, 40) if options.small else (7936, 4096, 3000)
    scores = torch.rand(batch, prototypes, generator=torch.Generator().manual_seed(0)) * 2 - 1
    target, workspace = torch.empty_like(scores), Workspace()

    def bare() -> None:
        torch.div(scores, EPSILON, out=target).exp_()
        for _ in range(ITERATIONS):
            target.sum(0)

    sides = {
        "reference": lambda: whole_matrix(scores)[-used:],
        "here": lambda: sinkhorn(scores, EPSILON, ITERATIONS, last=used, workspace=workspace),
    }
    found = _frame.interleave({**sides, "limit": bare}, options)
    a, b = (found[name].result for name in sides)
    apart, same = float((a - b).abs().max()), float((a.argmax(1) == b.argmax(1)).double().mean())
    yield _frame.row(
        found,
        work="SwAV Sinkhorn",
        size=f"{batch:,} x {prototypes:,}, {ITERATIONS} iterations, the last {used:,} rows used",
        reference="whole matrix, torch",
        here="engine.maths.sinkhorn in kept memory",
        equal=(same == 1 and apart <= 1e-6, f"argmax on {100 * same:g} % of rows, greatest difference {apart:.1e}"),
        goal=2.5,
        limit=f"one exp and {ITERATIONS} readings",
    )


if __name__ == "__main__":
    sys.exit(_frame.main(rows))
