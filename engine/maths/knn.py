"""Weighted nearest-neighbour classification on frozen features.

One search answers every number of neighbours and every temperature. Rule of SeLa and of instance discrimination alike
(https://arxiv.org/abs/1805.01978, section 3.4): unit-length features, the k most similar training samples vote for their class
with weight exp(similarity / temperature).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import Rows

BLOCK_QUERIES = 1024
BLOCK_BANK = 16384


@torch.no_grad()
def search(
    bank: Any, queries: Any, k: int, *, normalize: bool = True, exclude_self: bool = False, backend: str = "torch"
) -> tuple[Tensor, Tensor]:
    """Similarities (Q, k) float32, falling, and positions (Q, k) int64 of the most similar rows of ``bank``, on the CPU.

    bank, queries  (N, D), (Q, D): whatever Rows takes; compared by dot product, after scaling to unit length if ``normalize``.
    exclude_self   the queries are the bank: leave query i's own row out.
    backend        "torch", or "faiss" (the same but for ties; on the GPU if faiss has one).
    Equal similarities: the earlier row first (torch). Raises ValueError when the bank has fewer than k rows to offer.
    """
    unit = (lambda block: F.normalize(block, dim=1)) if normalize else None
    keys, asked = Rows(bank), Rows(queries)
    if keys.shape[1] != asked.shape[1]:
        raise ValueError(f"knn: the bank has {keys.shape[1]} features, the queries {asked.shape[1]}")
    if exclude_self and len(keys) != len(asked):
        raise ValueError(f"knn: exclude_self needs the bank as queries, not {len(keys)} and {len(asked)} rows")
    if not 1 <= k <= len(keys) - exclude_self:
        raise ValueError(f"knn: k = {k}, but the bank offers {len(keys) - exclude_self} neighbours")
    keys = Rows(keys, transform=unit) if unit else keys
    asked = Rows(asked, transform=unit, device=keys.device) if unit else Rows(asked, device=keys.device)
    find = {"torch": _search_torch, "faiss": _search_faiss}[backend]
    similarity, index = find(keys, asked, k + exclude_self)
    if exclude_self:
        own = index == torch.arange(len(asked))[:, None]
        own[~own.any(1), -1] = True  # crowded out by k rows just as similar: drop the last instead
        similarity, index = similarity[~own].view(-1, k), index[~own].view(-1, k)
    return similarity, index


def _search_torch(keys: Rows, asked: Rows, k: int) -> tuple[Tensor, Tensor]:
    """Outer loop over the bank, so that it is read once; each query keeps its best k so far."""
    best = torch.full((len(asked), k), -torch.inf, device=keys.device)
    index = torch.full((len(asked), k), -1, dtype=torch.int64, device=keys.device)
    for low, block in keys.blocks(BLOCK_BANK):
        for at, query in asked.blocks(BLOCK_QUERIES):
            here = slice(at, at + len(query))
            found, where = (query @ block.T).topk(min(k, len(block)), dim=1)
            both, places = torch.cat([best[here], found], 1), torch.cat([index[here], where + low], 1)
            order = both.sort(dim=1, descending=True, stable=True)
            best[here], index[here] = order.values[:, :k], places.gather(1, order.indices[:, :k])
    return best.cpu(), index.cpu()


def _search_faiss(keys: Rows, asked: Rows, k: int) -> tuple[Tensor, Tensor]:
    import faiss

    store: Any = faiss.IndexFlatIP(keys.shape[1])
    if faiss.get_num_gpus():
        store = faiss.index_cpu_to_all_gpus(store)
    for _, block in keys.blocks(BLOCK_BANK):
        store.add(block.cpu().numpy())
    found = [store.search(query.cpu().numpy(), k) for _, query in asked.blocks(BLOCK_QUERIES)]
    return torch.cat([torch.from_numpy(s) for s, _ in found]), torch.cat([torch.from_numpy(i) for _, i in found])


def vote(similarity: Tensor, neighbours: Tensor, classes: int, k: int, temperature: float | None) -> Tensor:
    """(Q, classes) float64 votes of the first k neighbours.

    similarity   (Q, m) with m >= k, falling;  neighbours  (Q, m) int64 classes of these neighbours, in 0..classes-1.
    temperature  > 0; None: every neighbour counts the same.
    """
    if temperature is not None and temperature <= 0:
        raise ValueError(f"knn: temperature must be positive, not {temperature}")
    near = similarity[:, :k].double()
    weights = torch.ones_like(near) if temperature is None else ((near - near[:, :1]) / temperature).exp()
    return torch.zeros(len(near), classes, dtype=torch.float64).scatter_add_(1, neighbours[:, :k], weights)


def knn(
    bank: Any,
    labels: Any,
    queries: Any,
    *,
    ks: Iterable[int] = (20,),
    temperatures: Iterable[float | None] = (0.1,),
    classes: int | None = None,
    **options: Any,
) -> dict[tuple[int, float | None], Tensor]:
    """``{(k, temperature): (Q, classes) votes}``; the predicted class is the argmax of a row. Options: as of `search`.

    labels   (N,) classes of the bank's rows, 0..classes-1.
    classes  default: one more than the largest label of the bank. Classes that only queries have cannot be predicted.
    """
    labels = torch.as_tensor(labels).cpu().long()
    classes = int(labels.max()) + 1 if classes is None else classes
    if len(labels) != Rows(bank).shape[0] or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"knn: one label in 0..{classes - 1} per row of the bank is needed")
    ks = tuple(ks)
    similarity, index = search(bank, queries, max(ks), **options)
    near = labels[index]
    return {(k, t): vote(similarity, near, classes, k, t) for k in ks for t in temperatures}
