"""DeepCluster (2018): cluster the features of the whole data set, predict each image's cluster, and again.

Paper     https://arxiv.org/abs/1807.05520, section 3
Recipe    zoo/methods/deepcluster.yaml: AlexNet and VGG-16 on ImageNet; deepcluster_digits and deepcluster_fashion_mnist for a laptop
Expect    loss from ln K downwards within every epoch, and back up with each new head; agreement with the assignment before rises
          digits, seed 0: loss 3.0 -> 1.1 under a head of 49 steps in mid-run; agreement 0.58 at the second assignment, 0.81 at
          the last; no cluster empty; scores in results/tables/digits.md. A head needs time: with assignments after every 8 steps (reassign 1, K 60) the
          loss stays at ln K and all scores fall below the random start (results/selection/deepcluster_digits.yaml)
Deviates  see DEVIATIONS. DeeperCluster with super_classes=1 and rotations=false is this method up to its schedule of epochs
When      clusters are found before every epoch, from the plain images; the head is initialised again; an empty cluster takes half of another
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine import dist, rng
from engine.batch import on
from engine.maths.kmeans import kmeans
from engine.maths.knn import search
from engine.maths.pca import pca
from engine.maths.power_iteration import absorb_singletons, pic
from engine.maths.rows import Rows
from reproduce.clustering import by_image, compact, cross_entropy, describe, device_of, uniform_over_labels
from reproduce.health import effective_rank, spread
from reproduce.limits import Limit
from reproduce.method import Deviation, Method, Needs, Numbers, embed
from zoo.backbones.base import Backbone
from zoo.errors import UserError

GRAPH = MappingProxyType({"neighbours": 5, "sigma": 0.2, "alpha": 0.001, "precision": None})

DEVIATIONS = (
    Deviation(
        "dc-faiss-seed",
        "k-means",
        "faiss with a start that is random and not kept",
        "starts drawn from the recipe's seed and the epoch",
    ),
    Deviation(
        "dc-empty",
        "an empty cluster takes a perturbed copy of a random non-empty one's centre",
        "left to faiss, which splits the largest",
        "splits a cluster drawn in proportion to its size, rows included",
    ),
    Deviation(
        "dc-layer-order",
        "features of the network",
        "the last ReLU is removed from the network and put back around each clustering",
        "the backbone ends before it (backbone.options.last_relu=false); training applies it",
    ),
    Deviation(
        "dc-nmi",
        "mutual information with the labels of ImageNet is shown",
        "only that with the assignment before is printed",
        "the same, as `agreement`; with labels: python -m evaluations cluster",
    ),
    Deviation(
        "dc-pic-precision",
        "power iteration clustering",
        "in float32, whose rounding decides many of the clusters",
        "in float64",
        "params.graph.precision=float32",
    ),
    Deviation(
        "dc-pic-singletons",
        "power iteration clustering",
        "leaves clusters of one image where no neighbour has company",
        "the same; each is a class of its own",
    ),
)


def new_head(features: int, clusters: int) -> nn.Linear:
    """The authors' start of a classifier: N(0, 0.01), no bias."""
    head = nn.Linear(features, clusters)
    nn.init.normal_(head.weight, 0, 0.01)
    nn.init.zeros_(head.bias)
    return head


def reduce(features: Tensor, dim: int, device: torch.device | None = None) -> Tensor:
    """(n_r, dim) this process's features on `device` after PCA with whitening over all processes, unit length; dim 0: unit length only."""
    rows = Rows(features, device=device)
    scale = (lambda block: F.normalize(block, dim=1)) if not dim else pca(rows, dim).unit
    return (
        torch.cat([scale(block) for _, block in rows.blocks(4096)])
        if len(rows)
        else torch.zeros(0, dim or features.shape[1], device=rows.device)
    )


class DeepCluster(Method):
    """Backbone and one linear layer over the clusters of the moment.

    clusters, iterations   K and M steps of k-means
    pca                    directions kept and whitened before clustering; 0: none, unit length only
    reassign               length of an epoch as a share of the data: clusters are renewed that often
    clustering             kmeans, or pic: power iteration clustering, which chooses the number of clusters (graph: its settings; precision
                           float32, or float64 where it is null)
    head_momentum          of the head's optimiser; the trunk has the recipe's
    backend                of k-means: torch, or faiss as the authors'; null: torch
    """

    needs = Needs(divisible=True)
    deviations = DEVIATIONS
    limits = (
        Limit("params.clusters", "<=", "images", when=lambda s: s["params"]["clustering"] == "kmeans"),
        Limit("params.pca", "<=", "images", off=0),
        Limit("params.graph.neighbours", "<", "images", when=lambda s: s["params"]["clustering"] == "pic"),
    )
    remedies: ClassVar = {
        "collapse": ("optimizer.lr=0.01", "params.clusters=50", "params.pca=16", "params.reassign=2.0"),
        "usage": ("params.clusters=50", "params.iterations=50", "params.pca=16"),
    }

    def __init__(
        self,
        backbone: Backbone,
        *,
        clusters: int = 10000,
        pca: int = 256,
        iterations: int = 20,
        reassign: float = 1.0,
        clustering: str = "kmeans",
        graph: Mapping[str, Any] = GRAPH,
        head_momentum: float = 0.0,
        backend: str | None = None,
    ) -> None:
        super().__init__(backbone)
        if pca > backbone.dim:
            raise UserError(
                f"params.pca={pca} must be at most the {backbone.dim:,} features of the backbone; set params.pca={backbone.dim}, or params.pca=0"
            )
        self.head = new_head(backbone.dim, clusters)
        self.clusters, self.pca, self.iterations, self.reassign = clusters, pca, iterations, reassign
        self.pic, self.graph, self.head_momentum = clustering == "pic", dict(graph), head_momentum
        self.backend = backend or "torch"
        self.collapsed_loss = math.log(clusters)
        self.labels: Tensor | None = None  # (1, N), on the CPU
        self.numbers: dict[str, float] = {}
        self._seen: Tensor | None = None

    # -- once per epoch ----------------------------------------------------------------------------------------------
    def before_epoch(self, epoch: int, ctx: Any) -> None:
        index, features = ctx.extract(None)
        rows = reduce(features, self.pca, device_of(self))
        labels = by_image(index, self.assign(rows, epoch, ctx)[None], ctx.n)
        previous, self.labels = self.labels, torch.from_numpy(compact(labels.numpy()))
        found = int(self.labels.max()) + 1
        self.replace_head(found if self.pic else self.clusters)
        self.numbers = {
            **describe(self.labels, [self.head.out_features], previous),
            "effective_rank": effective_rank(features, device_of(self)),
            "clusters": float(found),
        }

    def assign(self, rows: Tensor, epoch: int, ctx: Any) -> Tensor:
        """(n_r,) clusters of this process's rows."""
        if self.pic:
            everyone = dist.all_gather_rows(rows)
            similarity, near = search(everyone, everyone, self.graph["neighbours"], exclude_self=True)
            labels = pic(
                near.numpy(),
                (2 - 2 * similarity).clamp(min=0).numpy(),
                self.graph["sigma"],
                self.graph["alpha"],
                dtype=self.graph["precision"] or "float64",
            )
            share = torch.from_numpy(absorb_singletons(labels, near.numpy()))
            before = int(dist.all_gather(torch.tensor([len(rows)]))[: dist.rank()].sum())
            return share[before : before + len(rows)]
        if self.clusters > ctx.n:
            raise UserError(
                f"params.clusters={self.clusters}, but there are {ctx.n} images; choose params.clusters={ctx.n} or less"
            )
        draw = rng.generator(ctx.seed, "kmeans", epoch)
        return kmeans(
            rows, self.clusters, iterations=self.iterations, empty="split", generator=draw, backend=self.backend
        ).labels

    def replace_head(self, clusters: int) -> None:
        self.head = new_head(self.backbone.dim, clusters).to(self.head.weight)
        self.collapsed_loss = math.log(max(clusters, 2))
        self.generation += 1

    def epoch_size(self, n: int) -> int:
        return int(self.reassign * n)

    def sampler(self, n: int, epoch: int, ctx: Any) -> np.ndarray:
        assert self.labels is not None, "before_epoch makes the labels"
        draw = np.random.Generator(np.random.Philox(rng.key(ctx.seed, "sampler", epoch)))
        return uniform_over_labels(self.labels[0].numpy(), self.epoch_size(n), draw)

    # -- one step ----------------------------------------------------------------------------------------------------
    def loss(self, batch: Any, step: int) -> tuple[Tensor, Numbers]:
        assert self.labels is not None, "before_epoch makes the labels"
        features = embed(self.backbone, batch.views)
        self._seen = F.normalize(features[: len(batch.index)].detach().float(), dim=1)
        logits = self.head(F.relu(features)).float()
        labels = on(self.labels[0, batch.index], logits.device).repeat(len(batch.views))
        hits = (logits.detach().argmax(1) == labels).float().mean()
        return cross_entropy(logits, labels), {"accuracy": hits}

    def param_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": [p for p in self.backbone.parameters() if p.requires_grad]},
            {"params": list(self.head.parameters()), "momentum": self.head_momentum},
        ]

    @property
    def extracted(self) -> int:
        return self.backbone.dim

    # -- memory ------------------------------------------------------------------------------------------------------
    def extra_state(self) -> dict[str, Any]:
        if self.labels is None:
            return {}
        return {"labels": self.labels, "numbers": dict(self.numbers), "head": self.head.out_features}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        if state:
            self.labels, self.numbers = state["labels"], dict(state["numbers"])
            self.replace_head(state["head"])

    # -- looking at it -----------------------------------------------------------------------------------------------
    def health(self) -> dict[str, float]:
        return {**self.numbers, **({} if self._seen is None else {"feature_std": spread(self._seen)})}

    def exported(self) -> dict[str, Tensor]:
        return {**super().exported(), **{f"top_layer.{k}": v.detach().cpu() for k, v in self.head.state_dict().items()}}
