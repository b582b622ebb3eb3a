"""A run that goes wrong is noticed and named, with remedies that are settings.

Methods say what a collapse looks like (`collapsed_loss`), what they measure (`health()`) and what their authors advise
(`remedies`: alarm -> `path=value` words, each of which the command line accepts). `Watch` looks at the numbers of each log
interval and speaks once per kind of trouble.

    collapse   the loss has stayed within 1 % of the loss of a network that says the same of every image
    features   embeddings of different images have become equal
    queue      the loss has stayed higher since the queue takes part
    rank       embeddings of different images differ in a few directions only
    usage      a handful of prototypes takes all images

effective_rank is that of the features of the whole data set where a method has them for clustering, else of the step's embeddings.
Numbers without an alarm of their own: queue_age (steps since a queue's oldest row was computed), and reproduce.clustering's
empty_clusters, largest_cluster and agreement. All are computed for a line of the log and touch nothing that is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from engine import dist
from reproduce.limits import beyond, changed, found, shown
from zoo.settings import parse

NEAR = 0.01  # relative distance to the collapsed loss
PATIENCE = 300  # steps for which a loss must misbehave
FLAT = 0.02  # feature_std below which embeddings count as equal
# Effective rank below which embeddings count as collapsed onto a few directions. On digits, 64 or 128 dimensions, from step 100 on:
# every method with its own recipe stays above 8 (PIC 4.5 for 50 steps, then 12); SimSiam at a rate of 0.1 has 4, MoCo v2 with
# momentum 0 has 2 (kNN 86 and 80 instead of 96).
FEW = 5.0
ROWS = 32  # images of a batch from which on its effective rank says something
LOPSIDED = 0.1  # prototype usage entropy, as a share of its maximum
COUNTED_IN = {"freeze_prototypes_steps": "steps", "start_epoch": "epochs", "reassignment": "epochs"}
BLOCK = 1 << 16  # rows that are held in double precision at a time


def spread(z: Tensor) -> float:
    """Standard deviation over the batch of unit embeddings (B, D), times sqrt D: near 1 when spread out, 0 when all are equal."""
    return float(z.float().std(0, correction=0).mean() * math.sqrt(z.shape[1]))


def effective_rank(z: Tensor, device: torch.device | None = None) -> float:
    """exp of the entropy of the singular values of centred rows (n_r, D) of all processes: how many directions are in use; NaN for
    rows that are not finite.

    Roy and Vetterli (2007), on the square roots of the covariance's eigenvalues; with fewer rows than columns on those of the
    rows' products, which are the same without most of the zeros. Features of a whole data set are read block by block; device: where
    they are computed with, by default where they are.
    """
    device, blocks = device or z.device, z.detach().split(BLOCK)
    n = dist.all_reduce_(torch.tensor([float(len(z))], dtype=torch.float64, device=device))
    mean = dist.all_reduce_(torch.stack([block.to(device).double().sum(0) for block in blocks]).sum(0)) / n
    if n < z.shape[1]:
        centred = dist.all_gather_rows(z.detach().to(device).double() - mean)
        products = centred @ centred.T
    else:
        products = torch.zeros(z.shape[1], z.shape[1], dtype=torch.float64, device=device)
        for block in blocks:
            centred = block.to(device).double() - mean
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
    """'; try a=1, or b=2' from the method's remedies; '' when it has none. See `remedy` for what becomes of each of them."""
    known = method.remedies
    words = known.get(alarm) or known.get("collapse") or known.get("features") or ()
    fits = [new for word in words if (new := remedy(word, method))]
    return "; try " + ", or ".join(fits) if fits else ""


def remedy(word: str, method: Any) -> str:
    """A remedy `path=value` as advice to this run; '' if it is in force already, or would be of no use here.

    The authors' numbers are those of their runs. Where this run is past one of them, a whole number goes half or twice as far and
    a learning rate to a tenth; what is counted in steps or epochs is at most a quarter of this run; and what the run's limits do
    not allow is left out. Without settings (a method built by hand) the word stays as it is.
    """
    path, wanted = next(iter(parse([word]).items()))
    try:
        present = found(method.settings, path)
    except LookupError:
        return word
    value = _further(path, present, wanted, method)
    if value is None or value == present:
        return ""
    if method.run is not None:
        run = replace(method.run, settings=changed(method.settings, path, value))
        if any(beyond(limit, run) for limit in method.limits_of(run.settings["params"]) if limit.path == path):
            return ""
    return f"{path}={shown(value)}" if value != wanted else word


def _further(path: str, present: Any, wanted: Any, method: Any) -> Any:
    """The value to propose: `wanted`, or one that lies beyond `present` in the direction from the default to `wanted`."""
    if isinstance(wanted, list) and isinstance(present, list):
        if path.startswith("views."):
            return wanted if wanted[0] > present[0] else None  # larger crops
        each = [_further(f"{path}.{i}", item, wanted[0], method) for i, item in enumerate(present)]
        return None if None in each else each
    if isinstance(wanted, bool) or not isinstance(wanted, (int, float)) or not isinstance(present, (int, float)):
        return wanted
    if path == "optimizer.lr":
        return wanted if wanted < present else present / 10
    unit = COUNTED_IN.get(path.rpartition(".")[2])
    if unit is not None and method.run is not None:
        wanted = min(wanted, int(getattr(method.run, unit) / 4))
        return wanted if wanted > present else None
    more = wanted > _default(path, wanted, method)
    if (wanted > present) == more:
        return wanted
    return (present * 2 if more else present // 2 or None) if isinstance(present, int) else None


def _default(path: str, wanted: Any, method: Any) -> Any:
    """The constructor's value of a setting; of others, any that lies above what is wanted: they are to be made smaller."""
    from reproduce.methods import parameters

    try:
        return found({"params": parameters(type(method))}, path)
    except LookupError:
        return wanted + 1


class Watch:
    """Called once per log interval with the step, the loss and the method's numbers; returns new messages."""

    def __init__(self, method: Any) -> None:
        self.method = method
        self.said: set[str] = set()
        self.since: dict[str, int] = {}  # trouble -> step at which it was first seen without a pause
        self.before_queue: float | None = None  # smoothed loss before the queue took part

    def __call__(self, step: int, loss: float, numbers: Mapping[str, float]) -> list[str]:
        troubles = {
            **self._collapse(loss),
            **self._features(numbers),
            **self._rank(numbers),
            **self._usage(numbers),
            **self._queue(loss, numbers),
        }
        self.since = {kind: self.since.get(kind, step) for kind in troubles}
        new = [kind for kind in troubles if step - self.since[kind] >= self.patience and kind not in self.said]
        self.said.update(new)
        return [f"{troubles[kind]} for {step - self.since[kind]} steps{advice(self.method, kind)}" for kind in new]

    def _collapse(self, loss: float) -> dict[str, str]:
        stuck = self.method.collapsed_loss
        if not stuck or abs(loss - stuck) > NEAR * stuck:
            return {}
        return {
            "collapse": f"collapse: the loss {loss:.3f} has stayed at {stuck:.3f}, that of a network that says the same "
            "of every image,"
        }

    def _features(self, numbers: Mapping[str, float]) -> dict[str, str]:
        value = numbers.get("feature_std", math.inf)
        return (
            {"features": f"dead features: embeddings hardly differ between images (spread {value:.4f})"}
            if value < FLAT
            else {}
        )

    def _rank(self, numbers: Mapping[str, float]) -> dict[str, str]:
        value, run = numbers.get("effective_rank", math.inf), self.method.run
        if value >= FEW or (run is not None and run.batch < ROWS) or self._features(numbers):
            return {}
        return {"rank": f"collapse onto few directions: embeddings have an effective rank of {value:.1f}"}

    @property
    def patience(self) -> float:
        """Steps for which something must be wrong: PATIENCE, or a quarter of a shorter run."""
        return PATIENCE if self.method.run is None else min(PATIENCE, self.method.run.steps / 4)

    def _usage(self, numbers: Mapping[str, float]) -> dict[str, str]:
        value = numbers.get("prototype_usage", math.inf)
        return (
            {"usage": f"a few prototypes take all images (usage entropy {value:.3f} of 1)"} if value < LOPSIDED else {}
        )

    def _queue(self, loss: float, numbers: Mapping[str, float]) -> dict[str, str]:
        if "queue_full" not in numbers:
            return {}
        if not numbers["queue_full"]:
            self.before_queue = loss if self.before_queue is None else 0.9 * self.before_queue + 0.1 * loss
            return {}
        if self.before_queue is None or loss <= 1.02 * self.before_queue:
            return {}
        return {"queue": f"the loss {loss:.3f} is higher than the {self.before_queue:.3f} before the queue took part,"}
