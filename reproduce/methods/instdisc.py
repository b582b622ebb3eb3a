"""InstDisc: discriminate each image from all others, whose features a memory bank holds.

Paper     https://arxiv.org/abs/1805.01978; the softmax over drawn negatives is that of PIC's re-implementation, not NCE
Recipe    zoo/methods/instdisc.yaml: PIC's InstDisc script; instdisc_digits and instdisc_fashion_mnist for a laptop
Expect    ImageNet linear 60.6 after 200 epochs (PIC's README); loss from ln(negatives + 1) downwards
          digits, seed 0: loss 10.3 (step 10) -> 3.5; scores in results/tables/digits.md
Deviates  see DEVIATIONS
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engine import dist, rng
from engine.batch import on
from reproduce.health import embeddings
from reproduce.limits import Limit
from reproduce.method import Deviation, Method, Needs, Numbers, full, mlp, pic_head
from zoo.backbones.base import Backbone

DEVIATIONS = (
    Deviation(
        "instdisc-memory-axis",
        "rows are unit vectors",
        "the memory is normalised over its columns, so rows are not unit vectors until they are visited",
        "rows are unit vectors from the start",
        "params.memory_init=columns",
    ),
    Deviation(
        "instdisc-memory-local",
        "one memory",
        "each process updates its own copy for its own images; process 0's is saved",
        "every process sees every update, so that two processes equal one",
    ),
    Deviation(
        "instdisc-partition",
        "one memory",
        "with data in folders an image moves between processes, whose copies of its row then are stale",
        "one memory, whoever reads the image",
    ),
    Deviation("instdisc-nce", "noise-contrastive estimation", "a softmax over the drawn negatives", "as released"),
)


def instance_logits(f: Tensor, memory: Tensor, drawn: Tensor, temperature: float) -> Tensor:
    """(B, 1 + n): cosine of each feature with its own memory row, then with its drawn rows, over the temperature.

    f (B, D) unit rows; memory (N, D); drawn (B, 1 + n) rows, column 0 is the image's own. A negative may be the image itself.
    """
    return torch.einsum("bd,bnd->bn", f, memory[drawn]) / temperature


class InstDisc(Method):
    """Backbone, head, and a memory with one row per training image.

    dim, hidden    embedding, and hidden width of the head (0: a linear head)
    temperature
    momentum       of a memory row when its image is seen: row <- normalise(momentum * row + (1 - momentum) * feature)
    negatives      rows drawn for each image, with replacement, from the whole memory
    memory_init    rows: unit rows; columns: as released
    """

    needs = Needs(instances=True)
    deviations = DEVIATIONS
    limits = (Limit("params.negatives", "<=", "images", otherwise="an image's negatives are drawn several times each"),)
    remedies: ClassVar = {"collapse": ("optimizer.lr=0.01", "params.temperature=0.2", "params.momentum=0.9")}

    memory: Tensor  # (N, dim) a row for every image, a buffer

    def __init__(
        self,
        backbone: Backbone,
        *,
        instances: int,
        dim: int = 128,
        hidden: int = 2048,
        temperature: float = 0.07,
        momentum: float = 0.5,
        negatives: int = 65536,
        memory_init: str = "rows",
    ) -> None:
        super().__init__(backbone)
        self.head = mlp(backbone.dim, hidden, dim)
        self.temperature, self.momentum, self.negatives, self.seed = temperature, momentum, negatives, 0
        self.register_buffer("memory", F.normalize(torch.randn(instances, dim), dim=1 if memory_init == "rows" else 0))
        self.collapsed_loss = math.log(1 + negatives)
        self._seen: Tensor | None = None

    def before_step(self, step: int, ctx: Any = None) -> None:
        self.seed = ctx.seed

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Numbers]:
        features, losses, own = [], [], on(batch.index, self.memory.device)
        for number, view in enumerate(batch.views):
            f = F.normalize(full(self.head(self.backbone(view))), dim=1)
            drawn = self.draw(own, step, number)
            with torch.autocast(f.device.type, enabled=False):
                logits = instance_logits(f, self.memory, drawn, self.temperature)
                losses.append(F.cross_entropy(logits, torch.zeros_like(drawn[:, 0])))
            features.append(f.detach())
        self._seen = features[0]
        for f in features:
            self.remember(own, f)
        return torch.stack(losses).mean(), {}

    def draw(self, index: Tensor, step: int, view: int) -> Tensor:
        """(B, 1 + negatives): an image's own row, then rows drawn uniformly: a function of (seed, step, image) alone. On the device of
        `index` (B,)."""
        u = rng.uniforms_on(self.seed, "negatives", step, index, view, self.negatives)
        return torch.cat([index[:, None], (u * len(self.memory)).long()], dim=1)

    @torch.no_grad()
    def remember(self, index: Tensor, f: Tensor) -> None:
        """Move the rows of the images seen, those of all processes, towards their features."""
        index, f = dist.all_gather(index), dist.all_gather(f)
        self.memory[index] = F.normalize(self.momentum * self.memory[index] + (1 - self.momentum) * f, dim=1)

    def health(self) -> dict[str, float]:
        return embeddings(self._seen)

    def exported(self) -> dict[str, Tensor]:
        """PIC's names: encoder.* holds backbone and head; the memory is part of the file."""
        encoder = {**super().exported(), **pic_head(self.head)}
        return {**{f"encoder.{k}": v for k, v in encoder.items()}, "memory": self.memory.cpu()}
