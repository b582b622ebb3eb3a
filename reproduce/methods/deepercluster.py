"""DeeperCluster: predict rotation and cluster together, with clusters found in two levels so that they can be very many.

Paper     https://arxiv.org/abs/1905.01278, section 3
Recipe    zoo/methods/deepercluster.yaml: VGG-16 on YFCC100M; deepercluster_digits and deepercluster_fashion_mnist for a laptop
Expect    loss from ln S + ln(K / m) downwards after each assignment, S super-classes, K clusters in m super-clusters
          digits, seed 0: loss 4.4 -> 2.5 under heads of 156 steps; agreement 0.58, then 0.68; no cluster empty; scores in
          results/tables/digits.md. That is one super-cluster; two of them (S 8, K 40, divisor 4) with new clusters every 3 epochs of
          8 steps left NMI below the random start (results/selection/deepercluster_digits.yaml)
Deviates  see DEVIATIONS. super_classes=1 rotations=false is DeepCluster, super_classes=4 clusters=1 is RotNet (but the turns of an
          image are not in one batch)
When      clusters are found every `reassignment` epochs, from plain images; heads are then initialised again; no cluster is empty
Processes A batch has equal parts of all super-classes, in order. With S processes or a multiple, each of them sees one super-class and
          holds the head of its clusters only, as in the authors' process groups; gradients and momenta of a head are those of its
          group. With fewer, a process holds the heads of the super-classes that it walks in turn. The numbers are the same
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine import dist, rng
from engine.batch import on
from engine.maths.hierarchy import hierarchy
from engine.maths.pca import pca
from engine.maths.rows import Rows
from reproduce.clustering import by_image, describe, device_of, uniform_over_labels
from reproduce.health import effective_rank, spread
from reproduce.limits import Limit
from reproduce.method import Deviation, Method, Numbers
from zoo.backbones.base import Backbone
from zoo.errors import UserError

DEVIATIONS = (
    Deviation(
        "drc-tails",
        "every image has a cluster",
        "images beyond the last whole batch of the data or of a super-cluster have none",
        "every image has one",
    ),
    Deviation(
        "drc-empty",
        "an empty cluster takes part of another",
        "the same victim for all empty clusters of a pass, a step of 1e-7, "
        "counts of all processes used on labels of one",
        "victims drawn in proportion to size, equal parts, a relative step of 1e-4",
    ),
    Deviation(
        "drc-resume",
        "nothing said",
        "a restart looks for files under a name that is never written, and begins the assignment anew",
        "assignments, heads and momenta are in the checkpoint",
    ),
    Deviation(
        "drc-warm-restart",
        "nothing said",
        "options warm_restart, epoch and start_iter that do nothing",
        "no such options",
    ),
    Deviation(
        "drc-epoch-quarter",
        "nothing said",
        "an epoch is a quarter of the data per super-cluster, with rotations or without",
        "the same by default",
        "params.epoch_divisor=1",
    ),
    Deviation(
        "drc-groups",
        "nothing said",
        "as many processes as super-classes, or a multiple",
        "any number that divides the batch",
    ),
    Deviation(
        "drc-zero-rows",
        "unit-length features",
        "a feature vector of zeros becomes NaN and loses its label",
        "stays zero",
    ),
    Deviation(
        "drc-label-gaps",
        "every cluster is drawn equally often",
        "an earlier sampler took labels for positions, wrong when some are empty",
        "goes over the labels that occur",
    ),
    Deviation(
        "drc-rotations-alone",
        "rotation prediction needs no clusters",
        "extracts features and whitens them all the same",
        "skipped when clusters=1",
    ),
)


def joint_loss(super_logits: Tensor, sub_logits: Tensor, super_classes: Tensor, sub_classes: Tensor) -> Tensor:
    """Cross entropy of the super-class plus cross entropy of the cluster within it, means over the batch. Labels (B,)."""
    return F.cross_entropy(super_logits.float(), super_classes) + F.cross_entropy(sub_logits.float(), sub_classes)


def super_class_of(position: Tensor, batch: int, super_classes: int) -> Tensor:
    """The super-class of the images at `position` of a global batch: the first B / S have number 0, the next number 1, ...

    Super-class s is super-cluster s // 4 turned by 90 (s mod 4) degrees, or super-cluster s when nothing is turned.
    """
    return position // (batch // super_classes)


def held_by(rank: int, processes: int, super_classes: int) -> range:
    """The super-classes of the images that a process sees, whose cluster heads it holds: one, where processes are a multiple of them."""
    return range(rank * super_classes // processes, -(-(rank + 1) * super_classes // processes))


def epoch_images(n: int, super_clusters: int, divisor: int, multiple: int) -> int:
    """Images per super-class and epoch: n over m over the divisor, rounded down to a multiple."""
    return n // super_clusters // divisor // multiple * multiple


def turned(views: Tensor, super_classes: Tensor) -> Tensor:
    """(B, C, S, S) squares, each turned counter-clockwise by a quarter as often as its super-class says (B,), in main memory."""
    out = torch.empty_like(views)
    for quarter in range(4):
        rows = on((super_classes % 4 == quarter).nonzero().flatten(), views.device)
        out[rows] = torch.rot90(views[rows], quarter, (-2, -1))
    return out


class DeeperCluster(Method):
    """Backbone, a head over super-classes, and for each super-class a head over the clusters of its super-cluster.

    super_classes, rotations   S, and whether four of them are one super-cluster in four rotations: m = S / 4, else m = S
    clusters             K in all; K // m in each super-cluster
    pca                  whitened directions kept before clustering
    reassignment         epochs between assignments
    iterations           M steps of k-means, on both levels
    epoch_divisor        an epoch draws n / m / epoch_divisor images for each super-class
    backend              of k-means: torch, or faiss as the authors'; null: torch
    """

    deviations = DEVIATIONS
    limits = (
        Limit("batch", "multiple of", "params.super_classes", because="each super-class has an equal part of a batch"),
        Limit("params.clusters", "<=", "images"),
        Limit("params.pca", "<=", "images", when=lambda s: s["params"]["clusters"] > 1),
    )
    remedies: ClassVar = {
        "collapse": ("optimizer.lr=0.01", "params.clusters=64", "params.reassignment=10"),
        "usage": ("params.clusters=64", "params.iterations=20", "params.reassignment=10"),
    }

    def __init__(
        self,
        backbone: Backbone,
        *,
        super_classes: int = 16,
        rotations: bool = True,
        clusters: int = 320000,
        pca: int = 4096,
        reassignment: int = 3,
        iterations: int = 10,
        epoch_divisor: int = 4,
        backend: str | None = None,
    ) -> None:
        super().__init__(backbone)
        self.super_classes, self.rotations, self.clusters = super_classes, rotations, clusters
        self.super_clusters = super_classes // 4 if rotations else super_classes
        self.pca, self.reassignment, self.iterations, self.divisor = pca, reassignment, iterations, epoch_divisor
        self.backend = backend or "torch"
        if rotations and super_classes % 4:
            raise UserError(
                f"params.super_classes={super_classes} must be a multiple of 4: four turns of an image belong together; set "
                f"params.super_classes={max(1, round(super_classes / 4)) * 4}, or params.rotations=false"
            )
        if pca > backbone.dim:
            raise UserError(
                f"params.pca={pca} must be at most the {backbone.dim:,} features of the backbone; set params.pca={backbone.dim}"
            )
        if clusters < self.super_clusters:
            raise UserError(
                f"params.clusters={clusters} must be at least the {self.super_clusters} super-clusters of params.super_classes="
                f"{super_classes}; set params.clusters={self.super_clusters}"
            )
        self.each = clusters // self.super_clusters
        processes = dist.world_size()
        self.held = held_by(dist.rank(), processes, super_classes)
        self.holders = tuple(
            tuple(r for r in range(processes) if s in held_by(r, processes, super_classes))
            for s in range(super_classes)
        )
        self.super_head = nn.Linear(backbone.dim, super_classes)
        self.sub_weight, self.sub_bias = self.new_sub_heads()
        self.collapsed_loss = math.log(super_classes) + math.log(self.each)
        self.labels: Tensor | None = None  # (2, N) on the CPU: super-cluster; cluster, numbered over all of them
        self.numbers: dict[str, float] = {}
        self.batch = 0  # images of the global batch
        self._seen: Tensor | None = None

    def new_sub_heads(self) -> tuple[nn.ParameterDict, nn.ParameterDict]:
        """For each super-class held here (K / m, D) weights and (K / m,) biases, as PyTorch starts a linear layer. Those of all S are
        drawn, one after the other, so that they do not depend on who holds what."""
        bound = self.backbone.dim**-0.5
        parts = []
        for shape in ((self.each, self.backbone.dim), (self.each,)):
            drawn = ((s, torch.empty(*shape).uniform_(-bound, bound)) for s in range(self.super_classes))
            parts.append(nn.ParameterDict({str(s): nn.Parameter(t) for s, t in drawn if s in self.held}))
        return parts[0], parts[1]

    def held_apart(self) -> frozenset[str]:
        of = range(self.super_classes) if self.super_classes > 1 else ()
        return frozenset(f"{part}.{s}" for part in ("sub_weight", "sub_bias") for s in of)

    def groups(self) -> list[str]:
        alone, members = len({len(r) for r in self.holders}) == 1, len(self.holders[0])
        if self.super_classes == 1:
            return []
        size = f"{members} process{'es' * (members > 1)}" if alone else "its processes"
        return [f"{self.super_classes} training groups, a cluster head over {size} each"]

    @property
    def extracted(self) -> int:
        return self.backbone.dim if self.clusters > 1 else 0

    # -- every few epochs --------------------------------------------------------------------------------------------
    def before_epoch(self, epoch: int, ctx: Any) -> None:
        if self.labels is not None and epoch % self.reassignment:
            return
        if self.clusters == 1:
            self.labels = torch.zeros(2, ctx.n, dtype=torch.int64)
            return
        if self.clusters > ctx.n:
            raise UserError(
                f"params.clusters={self.clusters}, but there are {ctx.n} images; choose params.clusters={ctx.n} or less"
            )
        index, features = ctx.extract(None)
        previous = self.labels
        self.labels = by_image(index, self.assign(index, features, epoch, ctx), ctx.n)
        self.replace_heads()
        sizes = torch.bincount(self.labels[0], minlength=self.super_clusters)
        self.numbers = {
            **describe(self.labels[1:], [self.each * self.super_clusters], None if previous is None else previous[1:]),
            "largest_super_cluster": float(sizes.max()) / ctx.n,
            "effective_rank": effective_rank(features, device_of(self)),
        }

    def assign(self, index: np.ndarray, features: Tensor, epoch: int, ctx: Any) -> Tensor:
        """(2, n_r) super-clusters and clusters of this process's features."""
        enough = max(
            features.shape[1] * (features.shape[1] - 1) // 2, 4096
        )  # images for PCA; the authors take the first
        device = device_of(self)
        white = pca(Rows(features, np.flatnonzero(index % math.ceil(ctx.n / enough) == 0), device=device), self.pca)
        draw = rng.generator(ctx.seed, "clusters", epoch)
        try:
            found = hierarchy(
                Rows(features, transform=white.unit, device=device),
                self.super_clusters,
                self.each * self.super_clusters,
                iterations=self.iterations,
                generator=draw,
                backend=self.backend,
            )
        except ValueError as error:
            raise UserError(f"{error} (params.clusters, params.super_classes)") from None
        return torch.stack([found.supers, found.supers * self.each + found.subs])

    def replace_heads(self) -> None:
        """Fresh heads: of clusters always, of super-classes where these are new clusters too and not only rotations."""
        where = self.super_head.weight.device
        self.sub_weight, self.sub_bias = (heads.to(where) for heads in self.new_sub_heads())
        if self.super_clusters > 1:
            self.super_head = nn.Linear(self.backbone.dim, self.super_classes).to(where)
        self.generation += 1

    def epoch_size(self, n: int) -> int:
        return self.super_classes * epoch_images(n, self.super_clusters, self.divisor, 1)

    def sampler(self, n: int, epoch: int, ctx: Any) -> np.ndarray:
        """Each super-class draws evenly from its clusters; step by step, every super-class has its part of the batch."""
        assert self.labels is not None, "before_epoch makes the labels"
        share = self.share_of(ctx.batch)
        steps = self.epoch_size(n) // ctx.batch
        supers, clusters = self.labels.numpy()
        parts = []
        for s in range(self.super_classes):
            own = np.flatnonzero(supers == s // (4 if self.rotations else 1))
            draw = np.random.Generator(np.random.Philox(rng.key(ctx.seed, "sampler", epoch, s)))
            parts.append(own[uniform_over_labels(clusters[own], steps * share, draw)].reshape(steps, share))
        return np.concatenate(parts, axis=1).ravel()

    def share_of(self, batch: int) -> int:
        if batch % self.super_classes:
            raise UserError(
                f"batch={batch} cannot be shared equally by {self.super_classes} super-classes; choose a multiple, e.g. "
                f"batch={max(1, round(batch / self.super_classes)) * self.super_classes}"
            )
        return batch // self.super_classes

    # -- one step ----------------------------------------------------------------------------------------------------
    def before_step(self, step: int, ctx: Any) -> None:
        self.batch = ctx.batch

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Numbers]:
        assert self.labels is not None, "before_epoch makes the labels"
        self.share_of(self.batch)
        first = dist.rank() * (self.batch // dist.world_size())
        of = super_class_of(first + torch.arange(len(batch.index)), self.batch, self.super_classes)
        sub = (self.labels[1] - self.labels[0] * self.each)[batch.index]
        of_here, sub = (on(t, batch.views[0].device) for t in (of, sub))
        losses, logs = [], []
        for view in batch.views:
            h = F.relu(self.backbone(turned(view, of) if self.rotations else view))
            self._seen = F.normalize(h.detach().float(), dim=1)
            losses.append(joint_loss(*(logits := self.heads(h, of)), of_here, sub))
            logs.append(accuracies(*logits, of_here, sub))
        return torch.stack(losses).mean(), {name: sum(log[name] for log in logs) / len(logs) for name in logs[0]}

    def heads(self, h: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, S) of super-classes, and (B, K / m) of clusters by the head of each image's super-class `of` (B,)."""
        present = of.unique().tolist()  # of is in main memory, and so is who goes to which head
        sub = [(of == s).nonzero().flatten() for s in present]
        parts = [
            F.linear(h[on(rows, h.device)], self.sub_weight[str(s)], self.sub_bias[str(s)])
            for s, rows in zip(present, sub, strict=True)
        ]
        return self.super_head(h), torch.cat(parts)[on(torch.cat(sub).argsort(), h.device)]

    def after_backward(self, step: int) -> None:
        """A cluster head learns from the mean over its own images, which are one S-th of the batch, wherever they were seen."""
        if self.super_classes == 1:
            return  # every process holds the only head: averaged with everything else
        for parameters in (self.sub_weight, self.sub_bias):
            for s in self.held:
                grad = parameters[str(s)].grad
                if grad is not None:
                    grad *= self.super_classes / dist.world_size()
                    if len(self.holders[s]) > 1:
                        dist.all_reduce_(grad, processes=dist.groups(self.holders)[s])

    # -- memory ------------------------------------------------------------------------------------------------------
    def extra_state(self) -> dict[str, Any]:
        return {} if self.labels is None else {"labels": self.labels, "numbers": dict(self.numbers)}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        if state:
            self.labels, self.numbers = state["labels"], dict(state["numbers"])

    # -- looking at it -----------------------------------------------------------------------------------------------
    def health(self) -> dict[str, float]:
        return {**self.numbers, **({} if self._seen is None else {"feature_std": spread(self._seen)})}

    def exported(self) -> dict[str, Tensor]:
        return {
            **super().exported(),
            **{f"pred_layer.{k}": v.detach().cpu() for k, v in self.super_head.state_dict().items()},
        }


def accuracies(
    super_logits: Tensor, sub_logits: Tensor, super_classes: Tensor, sub_classes: Tensor
) -> dict[str, Tensor]:
    """Shares of images whose super-class, cluster, and both are right."""
    first, second = super_logits.detach().argmax(1) == super_classes, sub_logits.detach().argmax(1) == sub_classes
    return {
        "accuracy": (first & second).float().mean(),
        "accuracy_super": first.float().mean(),
        "accuracy_sub": second.float().mean(),
    }
