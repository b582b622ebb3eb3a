"""A run that goes wrong is noticed and named, with remedies that are settings.

Methods say what a collapse looks like (`collapsed_loss`), what they measure (`health()`) and what their authors advise
(`remedies`: alarm -> `path=value` words, each of which the command line accepts). `Watch` looks at the numbers of each log
interval and speaks once per kind of trouble.

    collapse   the loss has stayed within 1 % of the loss of a network that says the same of every image
    features   embeddings of different images have become equal
    queue      the loss has stayed higher since the queue takes part
    usage      a handful of prototypes takes all images

Numbers without an alarm of their own: queue_age (steps since a queue's oldest row was computed); effective_rank, of the features
of the whole data set where a method has them for clustering, else of the step's embeddings; and reproduce.clustering's
empty_clusters, largest_cluster and agreement. All are computed for a line of the log and touch nothing that is trained.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine import dist
from zoo.overrides import parse

NEAR = 0.01            # relative distance to the collapsed loss
PATIENCE = 300         # steps for which a loss must misbehave
FLAT = 0.02            # feature_std below which embeddings count as equal
LOPSIDED = 0.1         # prototype usage entropy, as a share of its maximum
BLOCK = 1 << 16        # rows that are held in double precision at a time


def spread(z: Tensor) -> float:
    """Standard deviation over the batch of unit embeddings (B, D), times sqrt D: near 1 when spread out, 0 when all are equal."""
    return float(z.float().std(0, correction=0).mean() * math.sqrt(z.shape[1]))


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the singular values of centred rows (n_r, D) of all processes: how many directions are in use; NaN for
    rows that are not finite.

    Roy and Vetterli (2007), on the square roots of the covariance's eigenvalues; with fewer rows than columns on those of the
    rows' products, which are the same without most of the zeros. Features of a whole data set are read block by block.
    """
    blocks = z.detach().split(BLOCK)
    n = dist.all_reduce_(torch.tensor([float(len(z))], dtype=torch.float64, device=z.device))
    mean = dist.all_reduce_(torch.stack([block.double().sum(0) for block in blocks]).sum(0)) / n
    if n < z.shape[1]:
        centred = dist.all_gather_rows(z.detach().double() - mean)
        products = centred @ centred.T
    else:
        products = z.new_zeros(z.shape[1], z.shape[1], dtype=torch.float64)
        for block in blocks:
            centred = block.double() - mean
            products += centred.T @ centred
        dist.all_reduce_(products)
    if not torch.isfinite(products).all():
        return math.nan
    singular = torch.linalg.eigvalsh(products).clamp(min=0).sqrt()
    p = singular / singular.sum().clamp(min=1e-300)
    return float(torch.exp(-(p * p.clamp(min=1e-300).log()).sum()))


def embeddings(z: Tensor | None) -> dict[str, float]:
    """feature_std and effective_rank of a step's unit embeddings (B, D); nothing before the first step. Every process calls it."""
    return {} if z is None else {"feature_std": spread(z), "effective_rank": effective_rank(z)}


def advice(method: Any, alarm: str) -> str:
    """'try a=1, or b=2' from the method's remedies; '' when it has none.

    What the run already does is left out, and a learning rate that is not below the run's becomes a tenth of the run's.
    """
    words = [new for word in method.remedies.get(alarm) or method.remedies.get("collapse", ())
             if (new := _new(word, method.settings))]
    return "; try " + ", or ".join(words) if words else ""


def _new(word: str, settings: Mapping[str, Any]) -> str:
    """A remedy as advice to a run with these settings (a recipe's dump; {}: unknown); '' if it is in force already."""
    path, wanted = next(iter(parse([word]).items()))
    present: Any = settings
    for name in path.split("."):
        if isinstance(present, list):
            present = present[int(name)] if int(name) < len(present) else {}
        else:
            present = present.get(name, {}) if isinstance(present, Mapping) else {}
    if present == wanted:
        return ""
    return f"{path}={present / 10:g}" if path == "optimizer.lr" and present and wanted >= present else word


class Watch:
    """Called once per log interval with the step, the loss and the method's numbers; returns new messages."""

    def __init__(self, method: Any) -> None:
        self.method = method
        self.said: set[str] = set()
        self.since: dict[str, int] = {}           # trouble -> step at which it was first seen without a pause
        self.before_queue: float | None = None    # smoothed loss before the queue took part

    def __call__(self, step: int, loss: float, numbers: Mapping[str, float]) -> list[str]:
        troubles = {**self._collapse(loss), **self._features(numbers), **self._usage(numbers), **self._queue(loss, numbers)}
        self.since = {kind: self.since.get(kind, step) for kind in troubles}
        new = [kind for kind in troubles if step - self.since[kind] >= PATIENCE and kind not in self.said]
        self.said.update(new)
        return [f"{troubles[kind]} for {step - self.since[kind]} steps{advice(self.method, kind)}" for kind in new]

    def _collapse(self, loss: float) -> dict[str, str]:
        stuck = self.method.collapsed_loss
        if not stuck or abs(loss - stuck) > NEAR * stuck:
            return {}
        return {"collapse": f"collapse: the loss {loss:.3f} has stayed at {stuck:.3f}, that of a network that says the same "
                            "of every image,"}

    def _features(self, numbers: Mapping[str, float]) -> dict[str, str]:
        value = numbers.get("feature_std", math.inf)
        return {"features": f"dead features: embeddings hardly differ between images (spread {value:.4f})"} if value < FLAT else {}

    def _usage(self, numbers: Mapping[str, float]) -> dict[str, str]:
        value = numbers.get("prototype_usage", math.inf)
        return {"usage": f"a few prototypes take all images (usage entropy {value:.3f} of 1)"} if value < LOPSIDED else {}

    def _queue(self, loss: float, numbers: Mapping[str, float]) -> dict[str, str]:
        if "queue_full" not in numbers:
            return {}
        if not numbers["queue_full"]:
            self.before_queue = loss if self.before_queue is None else 0.9 * self.before_queue + 0.1 * loss
            return {}
        if self.before_queue is None or loss <= 1.02 * self.before_queue:
            return {}
        return {"queue": f"the loss {loss:.3f} is higher than the {self.before_queue:.3f} before the queue took part,"}

