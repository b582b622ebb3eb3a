"""DeepCluster-v2: predict the cluster of an image from all its views; spherical k-means once per epoch gives the clusters.

Paper     https://arxiv.org/abs/2006.09882, appendix D; the cluster centres themselves are the (frozen) classifier
Recipe    zoo/methods/deepclusterv2.yaml: the authors' three scripts; deepclusterv2_digits and _fashion_mnist for a laptop
Expect    loss from about ln K downwards, with a small jump at each new assignment
          digits, seed 0: loss 5.8 (step 10) -> 2.1, agreement 0.36 -> 0.55, no cluster empty; scores in results/tables/digits.md
Deviates  see DEVIATIONS
When      assignments change before every epoch, from the embeddings that the epoch before left in a bank (no extra pass);
          an empty cluster keeps its centre
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine import rng
from engine.batch import on
from engine.maths.kmeans import kmeans
from reproduce.clustering import UNSEEN, Bank, by_image, cross_entropy, describe, device_of, rows_of_images
from reproduce.health import effective_rank, spread
from reproduce.limits import Limit
from reproduce.method import Deviation, Method, Needs, Numbers, embed, mlp
from zoo.backbones.base import Backbone

DEVIATIONS: tuple[Deviation, ...] = (
    Deviation(
        "dcv2-bank-state",
        "nothing said",
        "the bank lies in one file per process; another number of processes cannot take it up",
        "part of the checkpoint, for any number of processes",
    ),
    Deviation(
        "dcv2-first-bank",
        "nothing said",
        "the first bank is filled by a pass in training mode, which moves batch-norm statistics",
        "by a pass in evaluation mode over all images",
    ),
    Deviation(
        "dcv2-start-rows",
        "nothing said",
        "k-means starts from rows of the first process only",
        "from rows of all processes",
    ),
    Deviation(
        "dcv2-memory",
        "nothing said",
        "all similarities of a process's bank with the prototypes are held at once",
        "block by block",
    ),
)


def cluster_prediction(scores: Sequence[Tensor], labels: Tensor, temperature: float) -> Tensor:
    """Cross entropy of every view with its image's label, mean over heads; images without a label do not count.

    scores  per head (V, B, K_h) cosines with the head's centres;  labels (H, B).
    """
    losses = [
        cross_entropy(s.flatten(0, 1) / temperature, y.repeat(len(s))) for s, y in zip(scores, labels, strict=True)
    ]
    return torch.stack(losses).mean()


class DeepClusterV2(Method):
    """Backbone, projection head, L2 norm, and one set of prototypes per head.

    prototypes                K of each head
    dim, hidden, head_batchnorm   embedding, width of the head's hidden layer (0: linear), and its batch norm
    temperature
    assign_crops              views that go into the bank; head h clusters the embeddings of assign_crops[h mod A]
    kmeans_iterations         M steps per assignment
    freeze_prototypes_steps   steps in which centres are not trained: by default for ever
    """

    needs = Needs(views=1)
    deviations = DEVIATIONS
    limits: ClassVar[tuple[Limit, ...]] = (
        Limit("params.prototypes", "<=", "used"),
        Limit("params.assign_crops", "<", "views"),
    )
    remedies: ClassVar = {
        "collapse": (
            "params.temperature=0.2",
            "optimizer.lr=0.1",
            "params.prototypes=[100, 100, 100]",
            "params.head_batchnorm=false",
        ),
        "usage": ("params.prototypes=[100, 100, 100]", "params.kmeans_iterations=20"),
    }

    def __init__(
        self,
        backbone: Backbone,
        *,
        prototypes: Sequence[int] = (3000, 3000, 3000),
        dim: int = 128,
        hidden: int = 2048,
        head_batchnorm: bool = True,
        temperature: float = 0.1,
        assign_crops: Sequence[int] = (0, 1),
        kmeans_iterations: int = 10,
        freeze_prototypes_steps: int = 300000,
    ) -> None:
        super().__init__(backbone)
        self.projection_head = mlp(backbone.dim, hidden, dim, norm=head_batchnorm)
        self.prototypes = nn.ModuleDict(
            {f"prototypes{h}": nn.Linear(dim, k, bias=False) for h, k in enumerate(prototypes)}
        )
        self.clusters, self.temperature, self.assign_crops = list(prototypes), temperature, list(assign_crops)
        self.iterations, self.freeze_steps, self.dim = kmeans_iterations, freeze_prototypes_steps, dim
        self.collapsed_loss = sum(math.log(k) for k in prototypes) / len(prototypes)
        self.bank = Bank()
        self.labels: Tensor | None = None  # (H, N), on the CPU
        self.numbers: dict[str, float] = {}
        self._seen: Tensor | None = None

    # -- once per epoch ----------------------------------------------------------------------------------------------
    def before_epoch(self, epoch: int, ctx: Any) -> None:
        if not len(self.bank):
            views = [ctx.extract(crop) for crop in self.assign_crops]
            self.bank.add(views[0][0], torch.stack([z for _, z in views]).to(device_of(self)))
        index, z = self.bank.rows()
        starts = [
            rows_of_images(
                index, z[self.view_of(h)], k, rng.generator(ctx.seed, "kmeans", epoch, h), f"params.prototypes.{h}"
            )
            for h, k in enumerate(self.clusters)
        ]
        previous, self.labels = self.labels, self.assign(index, z, starts, ctx.n)
        self.numbers = {**describe(self.labels, self.clusters, previous), "effective_rank": effective_rank(z[0])}
        self.bank = Bank()

    def assign(self, index: Tensor, z: Tensor, starts: Sequence[Tensor], n: int) -> Tensor:
        """Cluster every head's bank from its first centres, make the centres its prototypes, and return labels (H, n)."""
        found = [
            kmeans(z[self.view_of(h)], start, iterations=self.iterations, spherical=True)
            for h, start in enumerate(starts)
        ]
        with torch.no_grad():
            for weight, result in zip(self.prototypes.parameters(), found, strict=True):
                weight.copy_(result.centroids)
        return by_image(index, torch.stack([result.labels for result in found]), n)

    def view_of(self, head: int) -> int:
        return head % len(self.assign_crops)

    @property
    def extracted(self) -> int:
        return len(self.assign_crops) * self.dim

    # -- one step ----------------------------------------------------------------------------------------------------
    def loss(self, batch: Any, step: int) -> tuple[Tensor, Numbers]:
        z = self.project(embed(self.backbone, batch.views)).unflatten(0, (len(batch.views), -1))
        return self.loss_of(z, batch.index), {}

    def loss_of(self, z: Tensor, index: Tensor) -> Tensor:
        """The loss of unit embeddings (V, B, D) of images index (B,); they go into the bank."""
        assert self.labels is not None, "before_epoch makes the labels"
        with torch.autocast(z.device.type, enabled=False):
            self.bank.add(index, z[self.assign_crops])
            self._seen = z[0].detach()
            scores = [layer(z) for layer in self.prototypes.values()]
            return self.prediction(scores, on(self.labels[:, index], z.device), index)

    def prediction(self, scores: Sequence[Tensor], labels: Tensor, index: Tensor) -> Tensor:
        return cluster_prediction(scores, labels, self.temperature)

    def project(self, features: Tensor) -> Tensor:
        """(B, dim) unit embeddings, float32."""
        head = self.projection_head(features)
        with torch.autocast(head.device.type, enabled=False):
            return F.normalize(head.float(), dim=1)

    def features(self, images: Tensor) -> Tensor:
        return self.project(self.backbone(images))

    def after_backward(self, step: int) -> None:
        if step < self.freeze_steps:
            for weight in self.prototypes.parameters():
                weight.grad = None  # None, not zero: no momentum and no weight decay either

    # -- memory ------------------------------------------------------------------------------------------------------
    def extra_state(self) -> dict[str, Any]:
        if self.labels is None:
            return {}
        return {"labels": self.labels, "bank": self.bank.state(), "numbers": dict(self.numbers)}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        if state:
            self.labels, self.numbers = state["labels"], dict(state["numbers"])
            self.bank.load(state["bank"], next(self.prototypes.parameters()).device)

    # -- looking at it -----------------------------------------------------------------------------------------------
    def health(self) -> dict[str, float]:
        seen = {} if self._seen is None else {"feature_std": spread(self._seen)}
        unlabelled = {} if self.labels is None else {"unlabelled": float((self.labels == UNSEEN).float().mean())}
        return {**self.numbers, **seen, **unlabelled}

    def exported(self) -> dict[str, Tensor]:
        heads = {"projection_head": self.projection_head, "prototypes": self.prototypes}
        return {
            **super().exported(),
            **{
                f"{name}.{key}": value.detach().cpu()
                for name, head in heads.items()
                for key, value in head.state_dict().items()
            },
        }
