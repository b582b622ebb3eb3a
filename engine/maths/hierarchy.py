"""Two-level clustering: whitened features into a few super-clusters, each of these into many clusters.

Paper     https://arxiv.org/abs/1905.01278, section 3.2. Both levels are Euclidean k-means on the same whitened, unit-length features
Differs   The authors' code clusters whole batches only: what is left of the data, and of each super-cluster, gets no label (here
          ``multiple`` restores that). Its processes form one group per super-cluster; here all of them share each super-cluster in
          turn, which gives the same clusters for any number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import dist
from .kmeans import KMeans, kmeans
from .rows import Rows

UNLABELLED = -100


@dataclass(frozen=True)
class Hierarchy:
    """``supers`` and ``subs`` (n,) int64 of this rank's rows, on the CPU; UNLABELLED where a row was left out."""

    supers: Tensor
    subs: Tensor  # 0 .. clusters / super_clusters - 1 within each super-cluster
    levels: tuple[KMeans, ...]  # of the super-clusters, then of each super-cluster's rows


def hierarchy(
    data: Any,
    super_clusters: int,
    clusters: int,
    *,
    iterations: int = 10,
    generator: torch.Generator | None = None,
    starts: Sequence[Tensor] | None = None,
    multiple: int = 1,
    backend: str = "torch",
    world: dist.Processes = "dist",
) -> Hierarchy:
    """Cluster (n, D) rows of this rank (whatever Rows takes; whitened, unit length) in two levels.

    super_clusters  m; with 1 the first level is trivial
    clusters        in all: clusters // m in each super-cluster
    starts          first centroids: of level one (or None), then of each super-cluster; default: rows drawn by ``generator``
    backend         of k-means
    multiple        leave out the last rows of this rank, in each super-cluster too, beyond a multiple of this number
    Raises ValueError when a super-cluster has fewer rows than clusters are wanted in it.
    """
    rows = Rows(data)
    generator = generator or torch.Generator().manual_seed(0)
    if not 1 <= super_clusters <= clusters:
        raise ValueError(f"hierarchy: {clusters} clusters in {super_clusters} super-clusters")
    whole = len(rows) // multiple * multiple
    kept = torch.arange(whole)
    first: list[Any] = (
        [super_clusters, *[clusters // super_clusters] * super_clusters] if starts is None else list(starts)
    )
    options: dict[str, Any] = {"iterations": iterations, "empty": "split", "generator": generator, "backend": backend}
    options["world"] = world
    if super_clusters == 1:
        levels, assigned = [], torch.zeros(whole, dtype=torch.int64)
    else:
        levels = [kmeans(Rows(rows, kept), first[0], **options)]
        assigned = levels[0].labels
    supers, subs = (torch.full((len(rows),), UNLABELLED, dtype=torch.int64) for _ in range(2))
    supers[:whole] = assigned
    for s in range(super_clusters):
        members = torch.nonzero(assigned == s).flatten()
        members = members[: len(members) // multiple * multiple]
        if (held := sum(dist.counts(len(members), world))) < clusters // super_clusters:
            raise ValueError(
                f"hierarchy: super-cluster {s} has {held} rows for {clusters // super_clusters} clusters: ask for fewer clusters "
                "or fewer super-clusters, or give more images"
            )
        levels.append(kmeans(Rows(rows, members), first[s + 1], **options))
        subs[members] = levels[-1].labels
    return Hierarchy(supers, subs, tuple(levels))
