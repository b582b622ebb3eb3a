"""Principal components with whitening, in one pass over rows of any number.

Used by   DeeperCluster (whitening of 4096 features, eigenvalues below 1e-5 of the largest raised to that), DeepCluster (256 of 4096).
Source    https://arxiv.org/abs/1905.01278, section 3.3; covariance divided by n, as in the authors' code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dist
from ..errors import Degenerate
from .rows import Rows

BLOCK_CELLS = 1 << 22


@dataclass(frozen=True)
class PCA:
    """``pca(x) = projection @ (x - mean)``; the same on every rank."""

    mean: Tensor  # (D,) float32
    projection: Tensor  # (dim, D) float32: eigenvectors, divided by the square root of their eigenvalue when whitening
    variances: Tensor  # (dim,) float64, falling, as found (not raised)

    def __call__(self, block: Tensor) -> Tensor:
        """(b, D) -> (b, dim) float32."""
        return (block - self.mean.to(block)) @ self.projection.to(block).T

    def unit(self, block: Tensor) -> Tensor:
        """The same, each row scaled to unit length."""
        return F.normalize(self(block), dim=1)


@torch.no_grad()
def pca(data: Any, dim: int, *, whiten: bool = True, floor: float = 1e-5, world: dist.Processes = "dist") -> PCA:
    """The ``dim`` directions of largest variance of all ranks' rows.

    data    (n, D) rows of this rank: whatever Rows takes. All ranks together at least two.
    whiten  give every direction unit variance; eigenvalues below ``floor`` times the largest count as that much.
    Raises ValueError when dim exceeds D or the number of rows, Degenerate when the rows are constant or not finite.
    """
    rows = Rows(data)
    width = rows.shape[1]
    n = sum(dist.counts(len(rows), world))
    if not 1 <= dim <= min(width, n):
        raise ValueError(f"pca: {dim} directions of {n} rows with {width} features: ask for at most {min(width, n)}")
    size = max(BLOCK_CELLS // width, 1024)
    pilot = torch.zeros(width + 1, dtype=torch.float64, device=rows.device)
    if len(rows):  # a rough mean, so that the squares below do not cancel
        first = rows.read(0, min(size, len(rows))).double()
        pilot[:width], pilot[width] = first.sum(0), len(first)
    dist.sum_(pilot, world)
    rough = (pilot[:width] / pilot[width]).float()
    size_of = torch.zeros(1, dtype=torch.float64, device=rows.device)
    if len(rows):
        size_of += (first - rough.double()).square().mean()
    dist.sum_(size_of, world)
    finite = 0 < float(size_of) < math.inf
    scale = 2.0 ** round(math.log2(float(size_of)) / 2) if finite else 1.0  # exact; squares neither vanish nor overflow
    moments = torch.zeros(width + 1, width, dtype=torch.float64, device=rows.device)
    for _, block in rows.blocks(size):
        block = (block - rough) / scale
        moments[:width] += block.T @ block
        moments[width] += block.double().sum(0)
    dist.sum_(moments, world)
    shift = moments[width] / n
    covariance = (moments[:width] / n - torch.outer(shift, shift)) * scale**2
    shift = shift * scale
    if not torch.isfinite(covariance).all():
        raise Degenerate("pca: rows are not finite")
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0)[:dim], vectors.flip(1)[:, :dim].T
    if values[0] <= 0:
        raise Degenerate("pca: all rows are equal: the features have collapsed to a point")
    stretch = values.clamp(min=floor * float(values[0])).rsqrt() if whiten else torch.ones_like(values)
    return PCA((rough.double() + shift).float(), (vectors * stretch[:, None]).float(), values)
