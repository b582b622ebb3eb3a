"""SeLa: predict pseudo-labels that optimal transport spreads equally over the whole data set, on several heads at once.

Paper     https://arxiv.org/abs/1911.05371 (eq. 5-7 for the labels; one cross entropy per head for the network)
Recipe    zoo/methods/sela.yaml: the authors' scripts; sela_digits and sela_fashion_mnist for a laptop
Expect    loss from about ln K downwards, with a jump whenever the labels are renewed
          digits, seed 0: loss 4.1 (step 10) -> 1.6, agreement 0.36 -> 0.50, usage 1.000; scores in results/tables/digits.md
Deviates  see DEVIATIONS
When      labels are renewed `labelings` times, at moments spread over the run (quadratic: densely at the start), the first before
          the first step; every label holds about N / K images, a dead cluster included. `python -m reproduce labels RUN --to FILE`
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine import rng
from engine.batch import on
from engine.maths.rows import Rows
from engine.maths.sela import SelfLabels, sela_labels
from reproduce.clustering import by_image, describe, device_of
from reproduce.health import effective_rank, spread
from reproduce.limits import Limit
from reproduce.method import Deviation, Method, Needs, Numbers, embed
from zoo.backbones.base import Backbone

KEPT_CELLS = (
    1 << 31
)  # images x clusters whose matrix one process holds (8 GiB); beyond, it is recomputed in every iteration

DEVIATIONS = (
    Deviation(
        "sela-dead-cluster",
        "labels are equally frequent",
        "a cluster whose probabilities all underflow turns everything NaN, and the loop stops as if converged",
        "logarithms are carried: the cluster gets its share; params.max_iterations bounds the loop",
    ),
    Deviation(
        "sela-softmax",
        "nothing said",
        "the softmax on GPUs is exp over sum, which overflows float32 for logits above 88",
        "log-softmax relative to the maximum",
    ),
    Deviation(
        "sela-extra-epoch",
        "a number of epochs",
        "trains one epoch more",
        "trains the epochs given",
        "schedule.epochs=401",
    ),
    Deviation(
        "sela-last-labeling",
        "a number of labelings",
        "the last falls just behind the end of training and is reached or not by rounding",
        "the last falls on the last step, and is what `labels` exports",
    ),
    Deviation(
        "sela-train-mode",
        "nothing said",
        "labels are computed in training mode: dropout on, batch statistics, running statistics moving",
        "in evaluation mode, of one random view (params.label_view=random) or the plain image",
    ),
    Deviation(
        "sela-iterations",
        "Sinkhorn-Knopp",
        "plain iterations",
        "over-relaxed: the same labels in fewer iterations (31 for 51 at 100,000 images and 1,000 labels)",
        "params.relaxation=1.0",
    ),
    Deviation(
        "sela-scatter",
        "nothing said",
        "labels of several GPUs are scattered onto a permutation of themselves, which aliases",
        "gathered by image",
    ),
    Deviation(
        "sela-cifar-heads",
        "every head has its labels",
        "on CIFAR one head is renewed per event, in turn; heads not yet renewed keep random labels",
        "all heads at every event",
        "params.heads_per_labeling=one",
    ),
    Deviation(
        "sela-test-knn",
        "nothing said",
        "on CIFAR the best checkpoint is chosen by kNN on the test set",
        "the last weights are exported",
    ),
)


def head_loss(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Mean over heads of the cross entropy with that head's labels. logits: H tensors (B, K_h); labels (H, B)."""
    return torch.stack([F.cross_entropy(z.float(), y) for z, y in zip(logits, labels, strict=True)]).mean()


def labeling_times(images: float, labelings: int, power: float = 2.0) -> np.ndarray:
    """(labelings,) rising moments in images seen, from 0 to `images`: quadratic on ImageNet, linear (1) on CIFAR.

    The authors' `images` is (E + 1.01) N on ImageNet and (E + 1.0001) N on CIFAR, for E + 1 epochs of N images.
    """
    return images * np.linspace(0, 1, labelings) ** power


def labeling_steps(times: np.ndarray, batch: int, steps: int) -> list[int]:
    """The steps before which labels are renewed: at most one event per step, each at the first step that has reached its time."""
    fired: list[int] = []
    for time in times:
        step = max(math.ceil(time / batch), fired[-1] + 1 if fired else 0)
        if step >= steps:
            break
        fired.append(step)
    return fired


def initial_labels(heads: int, images: int, clusters: int, draw: Any) -> np.ndarray:
    """(heads, images) balanced random labels. draw: np.random.Generator, or RandomState for the authors' own numbers."""
    return np.stack([draw.permutation(np.arange(images) % clusters) for _ in range(heads)])


class SeLa(Method):
    """Backbone and `heads` linear layers over `clusters` labels each.

    clusters, heads      K and H
    labelings, spacing   how often labels are renewed, and the power of time at which: quadratic or linear
    lam, tolerance, max_iterations, relaxation    of the transport problem; see engine.maths.sela
    heads_per_labeling   all, or one head per event, in turn
    label_view           random: labels are computed from a random view, as training sees it; plain: from the plain image
    """

    needs = Needs(divisible=True)
    deviations = DEVIATIONS
    limits = (
        Limit("params.clusters", "<=", "images"),
        Limit(
            "params.labelings",
            "<=",
            "steps",
            share=0.1,
            otherwise="labels are renewed at most once a step, and the last times fall away",
        ),
    )
    remedies: ClassVar = {
        "collapse": (
            "optimizer.lr=0.01",
            "params.labelings=50",
            "params.lam=10.0",
            "params.clusters=100",
            "params.heads=1",
        ),
        "usage": ("params.tolerance=0.01", "params.max_iterations=10000", "params.lam=50.0"),
    }

    def __init__(
        self,
        backbone: Backbone,
        *,
        clusters: int = 3000,
        heads: int = 10,
        labelings: int = 100,
        spacing: str = "quadratic",
        lam: float = 25.0,
        tolerance: float = 0.1,
        max_iterations: int = 2000,
        relaxation: float = 1.6,
        heads_per_labeling: str = "all",
        label_view: str = "random",
    ) -> None:
        super().__init__(backbone)
        self.heads = nn.ModuleList(nn.Linear(backbone.dim, clusters) for _ in range(heads))
        self.clusters, self.labelings, self.power = clusters, labelings, {"quadratic": 2.0, "linear": 1.0}[spacing]
        self.lam, self.tolerance, self.max_iterations, self.relaxation = lam, tolerance, max_iterations, relaxation
        self.in_turn, self.view = heads_per_labeling == "one", {"random": 0, "plain": None}[label_view]
        self.collapsed_loss = math.log(clusters)
        self.labels: Tensor | None = None  # (H, N), on the CPU
        self.numbers: dict[str, float] = {}
        self._events: list[int] | None = None
        self._seen: Tensor | None = None

    # -- labelling ---------------------------------------------------------------------------------------------------
    def before_step(self, step: int, ctx: Any) -> None:
        if self._events is None:
            last = (ctx.total_steps - 1) * ctx.batch
            self._events = labeling_steps(labeling_times(last, self.labelings, self.power), ctx.batch, ctx.total_steps)
        if step in self._events or self.labels is None:
            self.renew(self._events.index(step) if step in self._events else 0, ctx)

    def renew(self, event: int, ctx: Any) -> None:
        """Label the whole data set from the features of now."""
        index, features = ctx.extract(self.view)
        previous = self.labels
        if self.labels is None:
            draw = np.random.Generator(np.random.Philox(rng.key(ctx.seed, "labels")))
            self.labels = torch.from_numpy(initial_labels(len(self.heads), ctx.n, self.clusters, draw))
        wanted = [event % len(self.heads)] if self.in_turn else list(range(len(self.heads)))
        found = [self.solve(features, self.heads[h]) for h in wanted]
        labels = self.labels.clone()
        labels[wanted] = by_image(index, torch.stack([f.labels for f in found]), ctx.n)
        self.labels = labels
        self.numbers = {
            **describe(labels, [self.clusters] * len(labels), previous),
            "effective_rank": effective_rank(features, device_of(self)),
            "labeling": float(event),
            "labeling_iterations": float(max(f.iterations for f in found)),
            "labeling_error": max(f.error for f in found),
            "labeling_cost": sum(f.cost for f in found) / len(found),
        }

    @torch.no_grad()
    def solve(self, features: Any, head: nn.Module) -> SelfLabels:
        """Labels of this process's features (n_r, D): whatever Rows takes."""
        weight, bias = (parameter.detach() for parameter in head.parameters())
        logits = Rows(features, transform=lambda x: x @ weight.T + bias, device=weight.device)
        return sela_labels(
            logits,
            keep=logits.shape[0] * logits.shape[1] <= KEPT_CELLS,
            lam=self.lam,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
            relaxation=self.relaxation,
        )

    # -- one step ----------------------------------------------------------------------------------------------------
    def loss(self, batch: Any, step: int) -> tuple[Tensor, Numbers]:
        assert self.labels is not None, "before_step makes the labels"
        features = self.classifier_input(embed(self.backbone, batch.views))
        self._seen = F.normalize(features[: len(batch.index)].detach().float(), dim=1)
        labels = on(self.labels[:, batch.index], features.device).repeat(1, len(batch.views))
        logits = [head(features) for head in self.heads]
        hits = torch.stack([(z.detach().argmax(1) == y).float().mean() for z, y in zip(logits, labels, strict=True)])
        return head_loss(logits, labels), {"accuracy": hits.mean()}

    @property
    def extracted(self) -> int:
        return self.backbone.dim

    # -- memory ------------------------------------------------------------------------------------------------------
    def extra_state(self) -> dict[str, Any]:
        return {} if self.labels is None else {"labels": self.labels, "numbers": dict(self.numbers)}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        if state:
            self.labels, self.numbers = state["labels"], dict(state["numbers"])

    # -- looking at it -----------------------------------------------------------------------------------------------
    def features(self, images: Tensor) -> Tensor:
        return self.classifier_input(super().features(images))

    def health(self) -> dict[str, float]:
        return {**self.numbers, **({} if self._seen is None else {"feature_std": spread(self._seen)})}

    def exported(self) -> dict[str, Tensor]:
        names = ["top_layer"] if len(self.heads) == 1 else [f"top_layer{h}" for h in range(len(self.heads))]
        return {
            **super().exported(),
            **{
                f"{name}.{key}": value.detach().cpu()
                for name, head in zip(names, self.heads, strict=True)
                for key, value in head.state_dict().items()
            },
        }
