"""SimSiam: predict the embedding of an image's other view, with a stop-gradient on the target.

Paper     https://arxiv.org/abs/2011.10566 (algorithm 1)
Recipe    zoo/methods/simsiam.yaml; simsiam_digits and simsiam_fashion_mnist for a laptop
Expect    loss from 0 to about -0.9; at -1 with dead features it has collapsed
          digits, seed 0: loss -0.05 (step 10) -> -0.82, feature spread 0.98; scores in results/tables/digits.md
Example   this file and its YAML are all that was written to add the method: see docs/
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from reproduce.health import embeddings
from reproduce.limits import Limit
from reproduce.method import Method, Needs, Numbers, embed, full
from zoo.backbones.base import Backbone


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """-cos(p, stopgrad(z)), mean over rows; p, z (B, D)."""
    return -F.cosine_similarity(p, z.detach(), dim=1).mean()


class SimSiam(Method):
    """Backbone, projector (three layers with batch norm), predictor (a bottleneck).

    dim, hidden   width of projector and embedding, of the predictor's bottleneck
    """

    needs = Needs(views=2)
    limits = (Limit("batch", ">=", "processes", times=2, because="batch norm of the heads needs two images a process"),)
    remedies: ClassVar = {"features": ("optimizer.lr=0.01", "params.hidden=32")}

    def __init__(self, backbone: Backbone, *, dim: int = 2048, hidden: int = 512) -> None:
        super().__init__(backbone)
        self.projector = nn.Sequential(
            nn.Linear(backbone.dim, dim, bias=False),
            nn.BatchNorm1d(dim),
            nn.ReLU(inplace=True),
            nn.Linear(dim, dim, bias=False),
            nn.BatchNorm1d(dim),
            nn.ReLU(inplace=True),
            nn.Linear(dim, dim, bias=False),
            nn.BatchNorm1d(dim, affine=False),
        )
        self.predictor = nn.Sequential(
            nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim)
        )
        self._seen: Tensor | None = None

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Numbers]:
        z = [full(self.projector(embed(self.backbone, [view]))) for view in batch.views[:2]]
        p = [full(self.predictor(one)) for one in z]
        self._seen = F.normalize(z[0].detach(), dim=1)
        return (negative_cosine(p[0], z[1]) + negative_cosine(p[1], z[0])) / 2, {}

    def health(self) -> dict[str, float]:
        return embeddings(self._seen)
