"""Nearest neighbours: one float32 product and topk, against the search in float64 whose order of near ties is exact.

    python -m benchmarks.neighbours [--rounds 7] [--seconds 40]

The search here pays for float64: equal rows are equally similar wherever they stand, which float32 products do not promise.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import _frame
from engine.maths.knn import search

K = 20


def plain(bank: Tensor, queries: Tensor) -> Tensor:
    return (F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T).topk(K, dim=1).indices


def rows(options: _frame.Options) -> Iterator[_frame.Row]:
    n, asked, dim = (2000, 64, 16) if options.small else (16_384, 1024, 2048)
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(m, dim, generator=generator) for m in (n, asked))
    wide = [x.double() for x in (queries, bank)]
    sides = {"reference": lambda: plain(bank, queries), "here": lambda: search(bank, queries, K)[1]}
    found = _frame.interleave({**sides, "limit": lambda: wide[0] @ wide[1].T}, options)
    a, b = (found[name].result.sort(1).values for name in sides)
    same = float((a == b).all(1).double().mean())
    yield _frame.row(
        found,
        work="Nearest neighbours",
        size=f"{asked:,} of {n:,} x {dim:,}, k = {K}",
        reference="float32 product and topk, torch",
        here="engine.maths.knn.search, float64",
        equal=(same >= 0.99, f"the same {K} neighbours of {100 * same:.1f} % of queries"),
        limit="the float64 product",
    )


if __name__ == "__main__":
    sys.exit(_frame.main(rows))
