"""Training from pseudo-labels: cross entropy on one or more columns of given labels, with rotation prediction if wanted.

Idea      SeLa's retraining (https://arxiv.org/abs/1911.05371, section 4): once labels are found, a fresh network learns them as classes
Recipe    zoo/methods/pseudolabel.yaml; labels come from a run, a file of labels (zoo.labels), a weight file, a registry id, or
          kmeans:K, k-means on the pixels themselves, which needs nothing else
Expect    loss from about ln K downwards without jumps: labels never change
          digits, seed 0: loss 3.2 (step 10) -> 0.7; scores in results/tables/digits.md: clusters of pixels are good classes there
Deviates  see DEVIATIONS
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
from engine.maths.rows import Rows
from reproduce import labels as files
from reproduce.clustering import by_image, cross_entropy, describe, device_of
from reproduce.health import embeddings
from reproduce.method import Deviation, Method, Needs, Numbers
from reproduce.methods.rotnet import rotation_loss, rotations
from zoo.backbones.base import Backbone
from zoo.errors import UserError

DEVIATIONS = (
    Deviation(
        "sela-rotation-single",
        "one head of labels is allowed",
        "indexes labels of one head wrongly",
        "any number of heads",
    ),
    Deviation(
        "sela-rotation-accuracy",
        "accuracy of the rotation head",
        "divided by images, not by views: reads up to 4",
        "a share of the views",
    ),
    Deviation(
        "sela-rotation-start",
        "nothing said",
        "offers PyTorch 0.4's initialisation, and batch-norm scales drawn from U(0, 1)",
        "the backbone's own initialisation",
    ),
)


def label_loss(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    """Mean over heads of the cross entropy with that head's column; images without a label do not count. targets (H, B)."""
    return torch.stack([cross_entropy(z, y) for z, y in zip(logits, targets, strict=True)]).mean()


class PseudoLabel(Method):
    """Backbone, a linear layer per column of labels, and perhaps one over four quarter turns.

    labels      a run folder, file, registry id, or kmeans:K; see reproduce.labels
    columns     which heads of these labels; null: all
    rotations   also predict by how many quarter turns an image was turned; labels are asked of the upright image only
    """

    needs = Needs(instances=True)
    deviations = DEVIATIONS
    remedies: ClassVar = {"collapse": ("optimizer.lr=0.01", "params.labels=kmeans:20")}

    def __init__(
        self,
        backbone: Backbone,
        *,
        instances: int,
        labels: str = "kmeans:100",
        columns: Sequence[int] | None = None,
        rotations: bool = False,
    ) -> None:
        super().__init__(backbone)
        self.columns, self.instances = None if columns is None else list(columns), instances
        self.spec = files.find(labels, self.columns)
        self.heads = nn.ModuleList(nn.Linear(backbone.dim, k) for k in self.spec.sizes)
        self.rotation_head = nn.Linear(backbone.dim, 4) if rotations else None
        self.collapsed_loss = sum(math.log(k) for k in self.spec.sizes) / len(self.heads) + (
            math.log(4) if rotations else 0
        )
        self.labels: Tensor | None = None  # (H, N), on the CPU
        self._as_pixels = False
        self._seen: Tensor | None = None

    def check(self, recipe: Mapping[str, Any]) -> None:
        if self.spec.text.startswith("kmeans:") and self.spec.sizes[0] > self.instances:
            raise UserError(
                f"params.labels={self.spec.text} must be at most the {self.instances:,} images of the data set; set "
                f"params.labels=kmeans:{self.instances}"
            )

    # -- labels ------------------------------------------------------------------------------------------------------
    def before_epoch(self, epoch: int, ctx: Any) -> None:
        if self.labels is None:
            asked = self.spec.text.startswith("kmeans:")
            self.labels = self.from_pixels(ctx) if asked else self.joined(getattr(ctx, "source", None))

    def meet(self, source: Any) -> None:
        if self.spec.found is not None:
            self.joined(source)

    def joined(self, source: Any) -> Tensor:
        """(H, N) the labels of a file, a run or an id, joined with the images by name."""
        return files.fetched(self.spec, self.columns, self.instances, source)

    def from_pixels(self, ctx: Any) -> Tensor:
        """(1, N) k-means clusters of the plain images."""
        if self.spec.sizes[0] > ctx.n:
            raise UserError(f"params.labels={self.spec.text}: there are {ctx.n} images")
        self._as_pixels = True
        try:
            index, pixels = ctx.extract(None)
        finally:
            self._as_pixels = False
        found = kmeans(
            Rows(pixels, device=device_of(self)),
            self.spec.sizes[0],
            iterations=20,
            empty="split",
            generator=rng.generator(ctx.seed, "kmeans"),
        )
        return by_image(index, found.labels[None], ctx.n)

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1) if self._as_pixels else super().features(images)

    # -- one step ----------------------------------------------------------------------------------------------------
    def loss(self, batch: Any, step: int) -> tuple[Tensor, Numbers]:
        assert self.labels is not None, "before_epoch reads the labels"
        targets = on(self.labels[:, batch.index], batch.views[0].device)
        losses, hits, turns = [], [], []
        for view in batch.views:
            features = self.classifier_input(self.backbone(view if self.rotation_head is None else rotations(view)))
            upright = features[: len(view)]
            logits = [head(upright).float() for head in self.heads]
            losses.append(label_loss(logits, targets))
            hits += [(z.detach().argmax(1) == y).float().mean() for z, y in zip(logits, targets, strict=True)]
            if self.rotation_head is not None:
                turn = self.rotation_head(features).float()
                losses[-1] = losses[-1] + rotation_loss(turn)
                turns.append(
                    (turn.detach().argmax(1) == torch.arange(4, device=turn.device).repeat_interleave(len(view)))
                    .float()
                    .mean()
                )
            self._seen = F.normalize(upright.detach().float(), dim=1)
        logs = {"accuracy": torch.stack(hits).mean()}
        return torch.stack(losses).mean(), {
            **logs,
            **({"accuracy_rotation": torch.stack(turns).mean()} if turns else {}),
        }

    # -- memory ------------------------------------------------------------------------------------------------------
    def extra_state(self) -> dict[str, Any]:
        return {} if self.labels is None else {"labels": self.labels}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.labels = state["labels"] if state else None

    # -- looking at it -----------------------------------------------------------------------------------------------
    def health(self) -> dict[str, float]:
        return {
            **({} if self.labels is None else describe(self.labels, list(self.spec.sizes))),
            **embeddings(self._seen),
        }

    def exported(self) -> dict[str, Tensor]:
        heads = [*self.heads] + ([] if self.rotation_head is None else [self.rotation_head])
        names = ["top_layer"] if len(heads) == 1 else [f"top_layer{h}" for h in range(len(heads))]
        return {
            **super().exported(),
            **{
                f"{name}.{key}": value.detach().cpu()
                for name, head in zip(names, heads, strict=True)
                for key, value in head.state_dict().items()
            },
        }
