"""SeLa's labelling: the authors' iteration in NumPy float64, two products an iteration, against one over-relaxed float32 reading.

    python -m benchmarks.sela [--rounds 7] [--seconds 40]

Both stop by the same rule. The reference reads an N x K float64 matrix twice an iteration; the limit is one product by rows and one
by columns with a float32 matrix, for the iterations that are needed here, the second while a block lies in the cache.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks import _frame
from engine.maths.sela import SelfLabels, sela_labels

LAMBDA, RELAXATION, TOLERANCE, LOOK = 25.0, 1.6, 0.1, 10


def plain(logits: Tensor) -> tuple[np.ndarray, int]:
    """(labels, iterations) by the definition: r and c of the paper's eq. 7 in turn until the sum of |c / c' - 1| is small."""
    kernel = (logits.double().log_softmax(1) * LAMBDA).exp_().numpy()
    n, clusters = kernel.shape
    c, iterations = np.full(n, 1 / n), 0
    while True:
        r = 1 / clusters / (c @ kernel)
        renewed = 1 / n / (kernel @ r)
        error = np.abs(c / renewed - 1).sum() if iterations % LOOK == 0 else np.inf
        c, iterations = renewed, iterations + 1
        if error <= TOLERANCE:
            return (kernel * r).argmax(1), iterations


def rows(options: _frame.Options) -> Iterator[_frame.Row]:
    n, clusters = (2000, 20) if options.small else (100_000, 1000)
    logits = 0.5 * torch.randn(n, clusters, generator=torch.Generator().manual_seed(0))
    here: SelfLabels = sela_labels(logits, LAMBDA, relaxation=RELAXATION)
    matrix, u, v = logits.clone(), torch.rand(clusters), torch.rand(n)

    def bare() -> None:
        for _ in range(here.iterations):
            for block, part in zip(matrix.split(256), v.split(256), strict=True):
                block @ u
                part @ block

    sides = {"reference": lambda: plain(logits), "here": lambda: sela_labels(logits, LAMBDA, relaxation=RELAXATION)}
    found = _frame.interleave({**sides, "limit": bare}, options)
    labels, iterations = found["reference"].result
    same = float((torch.from_numpy(labels) == here.labels).double().mean())
    a, b = (
        1000 * min(found[name].seconds) / its for name, its in (("reference", iterations), ("here", here.iterations))
    )
    yield _frame.row(
        found,
        work="SeLa labelling",
        size=f"{n:,} x {clusters:,}, lambda {LAMBDA:g}; {iterations} iterations by the reference, {here.iterations} here",
        reference="NumPy float64",
        here="engine.maths.sela",
        unit="labelling",
        equal=(same >= 0.9999 and here.converged, f"labels on {100 * same:.3f} % of rows, both stopped by the rule"),
        goal=4,
        limit=f"{here.iterations} x two float32 products",
        note=f"all-in {a:.0f} ms an iteration by the reference, {b:.0f} here, start and labels among them",
    )


if __name__ == "__main__":
    sys.exit(_frame.main(rows))
