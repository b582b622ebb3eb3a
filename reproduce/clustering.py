"""What the clustering methods share: a loss on labels that may be missing, banks of embeddings, balanced sampling, health.

Labels are int64; UNSEEN marks an image without one. Everything that is remembered is kept by image, not by process, so that
another number of processes can take it up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine import dist
from engine.maths.contingency import contingency, nmi
from zoo.errors import UserError

UNSEEN = -100
AT_ONCE = 1 << 20  # labels of each process that are brought to the others at a time


def mean_over_known(each: Tensor, known: Tensor) -> Tensor:
    """Mean of losses (B,) over the images of all processes that are `known` (B,); 0 if none is.

    Processes may hold different numbers of such images: the mean over processes of what this returns is the mean over images.
    """
    count = dist.all_reduce_(known.sum().float()) / dist.world_size()
    return each.masked_fill(~known, 0.0).sum() / count.clamp(min=1 / dist.world_size())


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Over the images of all processes that have a label. logits (B, K), labels (B,) with UNSEEN."""
    each = F.cross_entropy(logits.float(), labels, ignore_index=UNSEEN, reduction="none")
    return mean_over_known(each, labels != UNSEEN)


def by_image(index: Any, labels: Tensor, n: int) -> Tensor:
    """(H, n) labels of all images, on every process, from each process's (n_r,) index and (H, n_r) labels; UNSEEN elsewhere."""
    out = torch.full((len(labels), n), UNSEEN, dtype=torch.int64)
    index, labels = torch.as_tensor(index).cpu(), labels.cpu()
    longest = int(dist.all_reduce_(torch.tensor(len(index)), "max"))
    for low in range(0, longest, AT_ONCE):
        where = dist.all_gather_rows(index[low : low + AT_ONCE])
        out[:, where] = dist.all_gather_rows(labels[:, low : low + AT_ONCE].T.contiguous()).T
    return out


def rows_by_image(index: Any, rows: Tensor, n: int) -> Tensor:
    """(n, D) rows of all images, on every process, from each process's (n_r,) index and (n_r, D) rows; 0 elsewhere."""
    out = torch.zeros(n, rows.shape[1])
    out[dist.all_gather_rows(torch.as_tensor(index).cpu())] = dist.all_gather_rows(rows.float().cpu())
    return out


def device_of(method: Any) -> torch.device:
    """Where a method is trained, and its images are clustered."""
    return next(method.parameters(), torch.empty(0)).device


class Bank:
    """Embeddings of the images of an epoch, as this process saw them: (A, n_r, D) of A views each."""

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return sum(len(index) for index, _ in self.parts)

    def add(self, index: Any, z: Tensor) -> None:
        """index (B,), z (A, B, D)."""
        self.parts.append((torch.as_tensor(index).detach().clone(), z.detach()))

    def rows(self) -> tuple[Tensor, Tensor]:
        """This process's index (n_r,) and embeddings (A, n_r, D), in the order of adding."""
        if len(self.parts) > 1:
            self.parts = [(torch.cat([i for i, _ in self.parts]), torch.cat([z for _, z in self.parts], dim=1))]
        return self.parts[0]

    def state(self) -> dict[str, Tensor]:
        """The rows of all processes; {} for an empty bank."""
        if not self.parts:
            return {}
        index, z = self.rows()
        return {
            "index": dist.all_gather_rows(index).cpu(),
            "z": dist.all_gather_rows(z.transpose(0, 1).contiguous()).transpose(0, 1).contiguous().cpu(),
        }

    def load(self, state: Mapping[str, Any], device: Any = None) -> None:
        """Take back a state, perhaps with another number of processes: each takes a share."""
        self.parts = []
        if state:
            share = torch.tensor_split(torch.arange(len(state["index"])), dist.world_size())[dist.rank()]
            self.parts = [(state["index"][share].to(device), state["z"][:, share].to(device))]


def rows_of_images(index: Tensor, rows: Tensor, clusters: int, generator: torch.Generator, setting: str) -> Tensor:
    """(clusters, D) rows of different images drawn from those that any process holds; the same for any number of processes."""
    index = index.cpu()
    images = dist.all_gather_rows(index).unique()
    if clusters > len(images):
        raise UserError(
            f"{setting}={clusters} clusters, but only {len(images)} images have features; choose at most {len(images)}"
        )
    drawn = images[torch.randperm(len(images), generator=generator)[:clusters]]
    held, order = index.sort()
    at = torch.searchsorted(held, drawn).clamp(max=max(len(held) - 1, 0))
    mine = held[at] == drawn if len(held) else torch.zeros(clusters, dtype=torch.bool)
    found = torch.zeros(clusters, rows.shape[1] + 1, device=rows.device)
    found[mine, :-1], found[mine, -1] = rows[order[at[mine]].to(rows.device)].float(), 1.0
    dist.all_reduce_(found)
    return found[:, :-1] / found[:, -1:]


def uniform_over_labels(labels: np.ndarray, total: int, draw: Any) -> np.ndarray:
    """(total,) positions such that every label that occurs is drawn equally often (DeepCluster's and DeeperCluster's sampler).

    labels  (n,) integers; UNSEEN is never drawn.
    draw    np.random.Generator, or RandomState for the authors' own numbers: its choice() and shuffle() are used.
    A label takes total // (number of labels) + 1 of its images, with repetition if it has no more than that.
    """
    by_label = np.argsort(labels, kind="stable")
    present, first = np.unique(labels[by_label], return_index=True)
    groups = [members for label, members in zip(present, np.split(by_label, first[1:]), strict=True) if label != UNSEEN]
    if not groups:
        raise UserError("no image has a label: nothing can be drawn")
    quota = total // len(groups) + 1
    order = np.concatenate([draw.choice(members, quota, replace=len(members) <= quota) for members in groups])
    draw.shuffle(order)
    return order[:total].astype(np.int64)


def compact(labels: np.ndarray) -> np.ndarray:
    """Labels renumbered 0, 1, ... over those that occur, in their order; UNSEEN stays."""
    result = np.full_like(labels, UNSEEN)
    known = labels != UNSEEN
    result[known] = np.unique(labels[known], return_inverse=True)[1]
    return result


# -- health ----------------------------------------------------------------------------------------------------------------
def describe(labels: Tensor, clusters: list[int], previous: Tensor | None = None) -> dict[str, float]:
    """What an assignment looks like. labels, previous (H, n) of all images; clusters: K of each head. Means over heads.

    prototype_usage   entropy of the cluster sizes as a share of ln K: 1 when all are equal, 0 when one holds everything
    empty_clusters    clusters without an image;  largest_cluster  share of the images in the largest
    agreement         normalised mutual information with the previous assignment, over images labelled in both
    """
    rows = []
    for head, k in enumerate(clusters):
        mine = labels[head][labels[head] != UNSEEN]
        if not len(mine):
            continue
        p = torch.bincount(mine, minlength=k).double() / len(mine)
        row = {
            "prototype_usage": float(-(p * p.clamp(min=1e-300).log()).sum()) / math.log(k) if k > 1 else 1.0,
            "empty_clusters": float((p == 0).sum()),
            "largest_cluster": float(p.max()),
        }
        if previous is not None:
            both = (labels[head] != UNSEEN) & (previous[head] != UNSEEN)
            row["agreement"] = nmi(contingency(previous[head][both], labels[head][both]))
        rows.append(row)
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}
