"""SimCLR: contrast the two views of an image with the views of all other images in the batch.

Paper     https://arxiv.org/abs/2002.05709 (eq. 1)
Recipe    zoo/methods/simclr.yaml: PIC's SimCLR script; simclr_digits and simclr_fashion_mnist for a laptop
Expect    ImageNet linear 66.6 after 200 epochs at batch 256 (PIC's README); on digits the loss falls within seconds
Deviates  see DEVIATIONS
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine import dist
from reproduce.health import embeddings
from reproduce.limits import Limit
from reproduce.method import Deviation, Method, Needs, Numbers, embed, full, mlp, pic_head
from zoo.backbones.base import Backbone

DEVIATIONS = (
    Deviation(
        "simclr-detached-gather",
        "one loss over the whole batch, gradients to both sides of every pair",
        "features gathered from other processes carry no gradient",
        "gradients through the gathered features, so that two processes equal one",
        "params.gather=detached",
    ),
    Deviation(
        "simclr-views-apart",
        "the views of a batch pass the network together (the authors' TensorFlow code)",
        "each view passes by itself, normalised by its own batch statistics",
        "as released",
        "params.encode=together",
    ),
    Deviation(
        "simclr-mask",
        "a view is not its own negative",
        "1e9 is subtracted from its logit (overflows float16)",
        "its logit is minus infinity",
    ),
)


def similarities(z: Tensor, every: Tensor, first: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits (2B, 2N) of each view against all other views, and the position of its partner (2B,).

    z      (2, B, D) unit rows: this process's two views; row b of one is the partner of row b of the other.
    every  (2, N, D) the same of all processes; this process's rows start at `first`.
    The columns are the other view of everyone, then the same view of everyone, oneself excluded.
    """
    own = torch.arange(z.shape[1], device=z.device) + first
    logits = torch.cat([z[v] @ torch.cat([every[1 - v], every[v]]).T for v in (0, 1)]) / temperature
    return logits.scatter(1, (own + every.shape[1]).repeat(2)[:, None], float("-inf")), own.repeat(2)


def nt_xent(z: Tensor, every: Tensor, first: int, temperature: float) -> Tensor:
    """Cross entropy of finding each view's partner among all other views (eq. 1), mean over the 2B rows of z."""
    return F.cross_entropy(*similarities(z, every, first, temperature))


class SimCLR(Method):
    """Backbone, projection MLP, L2 norm.

    dim, hidden    embedding, and hidden width of the projection head (0: a linear head)
    temperature
    gather         differentiable, or detached: no gradient through the features of other processes, as PIC's release
    encode         apart: each view passes the backbone by itself and has its own batch statistics, as in PIC's release; together:
                   views of one size pass at once, as in the original
    """

    needs = Needs(views=2)
    deviations = DEVIATIONS
    limits = (Limit("batch", ">=", 2, because="views are told from those of other images"),)
    remedies: ClassVar = {"collapse": ("params.temperature=0.5", "optimizer.lr=0.03")}

    def __init__(
        self,
        backbone: Backbone,
        *,
        dim: int = 128,
        hidden: int = 2048,
        temperature: float = 0.1,
        gather: str = "differentiable",
        encode: str = "apart",
    ) -> None:
        super().__init__(backbone)
        self.head = mlp(backbone.dim, hidden, dim)
        self.temperature, self.detached, self.apart = temperature, gather == "detached", encode == "apart"
        self._seen: Tensor | None = None

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Numbers]:
        return self.pair_loss(*self.project(batch.views)), {}

    def project(self, views: list[Tensor]) -> Tensor:
        """(V, B, D) unit embeddings, float32."""
        h = torch.cat([self.backbone(view) for view in views]) if self.apart else embed(self.backbone, views)
        z = F.normalize(full(self.head(h)), dim=1).unflatten(0, (len(views), -1))
        self._seen = z[0].detach()
        return z

    def pair_loss(self, *views: Tensor) -> Tensor:
        """Mean of nt_xent over all pairs of views; two views: one pair. Each (B, D)."""
        with torch.autocast(views[0].device.type, enabled=False):
            return self._pairs(torch.stack(views))

    def _pairs(self, z: Tensor) -> Tensor:
        every = self._gather(z.transpose(0, 1)).transpose(0, 1)  # (V, N, D): gathered once
        first = dist.rank() * z.shape[1]
        pairs = [(a, b) for b in range(len(z)) for a in range(b)]
        return torch.stack(
            [
                nt_xent(torch.stack([z[a], z[b]]), torch.stack([every[a], every[b]]), first, self.temperature)
                for a, b in pairs
            ]
        ).mean()

    def _gather(self, rows: Tensor) -> Tensor:
        """(B, ...) -> (N, ...) over processes, in rank order."""
        if not self.detached:
            return dist.all_gather_grad(rows)
        return dist.all_gather(rows.detach().contiguous())

    def health(self) -> dict[str, float]:
        return embeddings(self._seen)

    def exported(self) -> dict[str, Tensor]:
        """PIC's names: the encoder holds backbone and head (fc1, fc2; fc when linear)."""
        backbone = {f"encoder.{k}": v for k, v in super().exported().items()}
        return {**backbone, **{f"encoder.{k}": v for k, v in pic_head(self.head).items()}}
