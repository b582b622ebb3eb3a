"""Weighted nearest-neighbour classification on frozen features.

One search answers every number of neighbours and every temperature. Rule of SeLa and of instance discrimination alike
(https://arxiv.org/abs/1805.01978, section 3.4): unit-length features, the k most similar training samples vote for their class
with weight exp(similarity / temperature).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .flat import exchanged, flat_index
from .rows import Rows

BLOCK_QUERIES = 1024
BLOCK_BANK = 16384
SPARE = 8  # candidates beyond k that faiss is asked for
COSINE_STEPS = 2**24
FAISS_ERROR = 1e-5  # relative error of a float32 dot product: scores of faiss that lie closer than this are not ordered

Rounding = Callable[[Tensor], Tensor]


@torch.no_grad()
def search(
    bank: Any, queries: Any, k: int, *, normalize: bool = True, exclude_self: bool = False, backend: str = "torch"
) -> tuple[Tensor, Tensor]:
    """Similarities (Q, k) float32, falling, and positions (Q, k) int64 of the most similar rows of ``bank``, on the CPU.

    bank, queries  (N, D), (Q, D): whatever Rows takes; compared by dot product, after scaling to unit length if ``normalize``.
    exclude_self   the queries are the bank: leave query i's own row out.
    backend        "torch", or "faiss" (finds candidates, on the rows' GPU if faiss has it; the result is the same).
    Equal similarities: the earlier row of the bank first, whatever the blocks. Products are summed in float64; cosines are
    rounded to multiples of 2^-24, other products to float32, so that equal rows are equally similar wherever they stand.
    Raises ValueError when the bank has fewer than k rows to offer, and for a row that is not finite.
    """
    keys, asked = Rows(bank), Rows(queries)
    if keys.shape[1] != asked.shape[1]:
        raise ValueError(f"knn: the bank has {keys.shape[1]} features, the queries {asked.shape[1]}")
    if exclude_self and len(keys) != len(asked):
        raise ValueError(f"knn: exclude_self needs the bank as queries, not {len(keys)} and {len(asked)} rows")
    if not 1 <= k <= len(keys) - exclude_self:
        raise ValueError(f"knn: k = {k}, but the bank offers {len(keys) - exclude_self} neighbours")
    wide = torch.float32 if keys.device.type == "mps" else torch.float64

    def prepared(block: Tensor) -> Tensor:
        block = block.to(wide)
        return F.normalize(block, dim=1, eps=torch.finfo(wide).tiny) if normalize else block

    def rounded(products: Tensor) -> Tensor:
        return (products * COSINE_STEPS).round_().div_(COSINE_STEPS).float() if normalize else products.float()

    keys, asked = Rows(keys, transform=prepared), Rows(asked, transform=prepared, device=keys.device)
    find = {"torch": _search_torch, "faiss": _search_faiss}[backend]
    similarity, index = find(keys, asked, k + exclude_self, rounded)
    if exclude_self:
        own = index == torch.arange(len(asked))[:, None]
        own[~own.any(1), -1] = True  # crowded out by k rows just as similar: drop the last instead
        similarity, index = similarity[~own].view(-1, k), index[~own].view(-1, k)
    return similarity, index


def _search_torch(keys: Rows, asked: Rows, k: int, rounded: Rounding) -> tuple[Tensor, Tensor]:
    """Outer loop over the bank, so that it is read once; each query keeps its best k so far."""
    best = torch.full((len(asked), k), -torch.inf, device=keys.device)
    index = torch.full((len(asked), k), -1, dtype=torch.int64, device=keys.device)
    for low, block in _finite(keys, BLOCK_BANK, "bank"):
        for at, query in _finite(asked, BLOCK_QUERIES, "queries"):
            here = slice(at, at + len(query))
            found, where = _largest(rounded(query @ block.T), k)
            both, places = torch.cat([best[here], found], 1), torch.cat([index[here], where + low], 1)
            order = both.sort(dim=1, descending=True, stable=True)
            best[here], index[here] = order.values[:, :k], places.gather(1, order.indices[:, :k])
    return best.cpu(), index.cpu()


def _finite(rows: Rows, size: int, name: str) -> Iterator[tuple[int, Tensor]]:
    """The blocks of ``rows``. Raises ValueError at the first row with NaN or infinity."""
    for low, block in rows.blocks(size):
        whole = block.isfinite().all(1)
        if not whole.all():
            raise ValueError(f"knn: row {low + int((~whole).nonzero()[0])} of the {name} is not finite")
        yield low, block


def _largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row of x (B, N), falling, and their columns; equal values: the earlier column first."""
    k, n = min(k, x.shape[1]), x.shape[1]
    values, columns = x.topk(min(k + 1, n), dim=1)
    if n > k:  # where the next value is as large, topk's choice among the equal ones is not defined
        tied = values[:, k - 1] == values[:, k]
        if tied.any():
            whole = x[tied].sort(dim=1, descending=True, stable=True)
            values[tied], columns[tied] = whole.values[:, : k + 1], whole.indices[:, : k + 1]
    return _in_order(values[:, :k], columns[:, :k])


def _in_order(values: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Both (B, k) by falling value, and by column among equal values."""
    columns, order = columns.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def _search_faiss(keys: Rows, asked: Rows, k: int, rounded: Rounding) -> tuple[Tensor, Tensor]:
    """Candidates by faiss in float32, then ordered as ``_search_torch`` orders them. Queries whose candidates end among
    equals are searched again by ``_search_torch``."""
    store = flat_index(keys.shape[1], keys.device, products=True)
    longest = 0.0
    for _, block in _finite(keys, BLOCK_BANK, "bank"):
        store.add(exchanged(block))
        longest = max(longest, float(block.norm(dim=1).max()))
    wanted = min(k + SPARE, len(keys))
    scores, index, gaps = torch.empty(len(asked), wanted), torch.empty(len(asked), wanted, dtype=torch.int64), []
    for at, query in _finite(asked, BLOCK_QUERIES, "queries"):
        here = slice(at, at + len(query))
        scores[here], index[here] = map(torch.as_tensor, store.search(exchanged(query), wanted))
        gaps.append(FAISS_ERROR * longest * query.norm(dim=1).float().cpu())
    exact = torch.empty(len(asked), wanted)
    for low, block in keys.blocks(BLOCK_BANK):
        pairs = ((index >= low) & (index < low + len(block))).nonzero()  # (query, place among its candidates)
        for row, place in (part.T for part in pairs.split(BLOCK_BANK) if len(part)):
            first = int(row[0])
            query = asked.read(first, int(row[-1]) + 1)[(row - first).to(asked.device)]
            products = (block[(index[row, place] - low).to(block.device)] * query).sum(1)
            exact[row, place] = rounded(products).cpu()
    similarity, index = (value[:, :k] for value in _in_order(exact, index))
    if wanted < len(keys):
        again = (scores[:, k - 1] - scores[:, -1] <= torch.cat(gaps)).nonzero()[:, 0]
        if len(again):
            rest = Rows(asked.shards, index=again, transform=asked.transform, device=asked.device)
            similarity[again], index[again] = _search_torch(keys, rest, k, rounded)
    return similarity, index


def vote(similarity: Tensor, neighbours: Tensor, classes: int, k: int, temperature: float | None) -> Tensor:
    """(Q, classes) float64 votes of the first k neighbours; among equal votes, argmax takes the smallest class.

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
