"""A run that goes wrong is noticed and named, with remedies that are settings.

Methods say what a collapse looks like (`collapsed_loss`), what they measure (`health()`) and what their authors advise
(`remedies`: alarm -> `path=value` words, each of which the command line accepts). `Watch` looks at the numbers of each log
interval and speaks once per kind of trouble.

    collapse   the loss has stayed within 1 % of the loss of a network that says the same of every image
    features   embeddings of different images have become equal
    queue      the loss has stayed higher since the queue takes part
    usage      a handful of prototypes takes all images

Numbers without an alarm of their own: queue_age (steps since a queue's oldest row was computed), and reproduce.clustering's
empty_clusters, largest_cluster, agreement and effective_rank.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

NEAR = 0.01            # relative distance to the collapsed loss
PATIENCE = 300         # steps for which a loss must misbehave
FLAT = 0.02            # feature_std below which embeddings count as equal
LOPSIDED = 0.1         # prototype usage entropy, as a share of its maximum


def spread(z: Tensor) -> float:
    """Standard deviation over the batch of unit embeddings (B, D), times sqrt D: near 1 when spread out, 0 when all are equal."""
    return float(z.float().std(0, correction=0).mean() * math.sqrt(z.shape[1]))


def advice(method: Any, alarm: str) -> str:
    """'try a=1, or b=2' from the method's remedies; '' when it has none."""
    words = method.remedies.get(alarm) or method.remedies.get("collapse", ())
    return "; try " + ", or ".join(words) if words else ""


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

