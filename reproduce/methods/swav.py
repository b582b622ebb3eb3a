"""SwAV: predict a view's cluster assignment from the other views, clusters being balanced within each batch.

Paper     https://arxiv.org/abs/2006.09882 (eq. 1-5, appendix A)
Recipe    zoo/methods/swav.yaml: the authors' ten scripts; swav_digits and swav_fashion_mnist for a laptop
Expect    loss from ln K (8.0 for 3000 prototypes) to 3-4; ImageNet linear 75.3 after 800 epochs (authors); a loss that stays
          at ln K is a collapse: raise an alarm's remedies one by one (they are all settings, see reproduce/health.py)
Deviates  see DEVIATIONS
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine import dist
from engine.maths.sinkhorn import Workspace, sinkhorn
from reproduce.health import embeddings
from reproduce.limits import Limit
from reproduce.method import Deviation, Method, Needs, Numbers, embed, full, mlp
from zoo.backbones.base import Backbone
from zoo.errors import UserError

QUEUE = MappingProxyType({"length": 0, "start_epoch": 15})

DEVIATIONS = (
    Deviation(
        "swav-queue-state",
        "the queue is part of training",
        "kept in one file per process; another number of processes mismatches silently",
        "part of the checkpoint, for any number of processes",
    ),
    Deviation(
        "swav-queue-zero",
        "a queue of the length given",
        "a length below the batch becomes 0 without a word",
        "an error that says so; set params.queue.length=0",
    ),
    Deviation(
        "swav-sinkhorn-overflow",
        "exp(scores / epsilon)",
        "overflows float32 when epsilon < 0.0113",
        "computed relative to the maximum: the same assignments, for any epsilon",
    ),
    Deviation(
        "swav-scores-half",
        "nothing said",
        "scores are half precision under mixed precision",
        "embeddings, scores and loss are float32 at every precision",
    ),
    Deviation(
        "swav-hard",
        "soft assignments; hard ones in an ablation",
        "soft only; the README names hard ones as a remedy",
        "soft by default",
        "params.assignment=hard",
    ),
)


def swapped_prediction(scores: Tensor, targets: Tensor, crops: Sequence[int], temperature: float) -> Tensor:
    """Cross entropy of every view's prediction with the assignments of other views (eq. 1-2, all views).

    scores   (V, B, K) cosine of each view's embedding with each prototype.
    targets  (A, B, K) assignments, rows sum to 1, no gradient; targets[a] was computed from view crops[a], which is not
             asked to predict itself. Mean over a, the V - 1 other views, and the batch.
    """
    views, batch, _ = scores.shape
    log_p = F.log_softmax(scores / temperature, dim=-1)
    others = log_p.sum(0) - log_p[list(crops)]  # (A, B, K)
    return -(targets * others).sum() / (len(crops) * (views - 1) * batch)


class SwAV(Method):
    """Backbone, projection head, L2 norm, prototypes.

    prototypes, dim, hidden, head_batchnorm   K, embedding D, width of the head's hidden layer (0: a linear head)
    temperature, epsilon, sinkhorn_iterations of the prediction, of the assignment, its iterations
    assignment                soft, or hard: one-hot at the largest soft one
    assign_crops              views whose assignments are predicted (the large ones)
    freeze_prototypes_steps   steps at the start in which prototypes do not move
    queue                     length: embeddings of past batches (all processes together) that share in the assignment, a
                              multiple of the batch (rounded down); start_epoch: from when on
    """

    needs = Needs(views=2)
    deviations = DEVIATIONS
    limits = (
        Limit("params.assign_crops", "<", "views"),
        Limit("params.queue.length", ">=", "batch", off=0),
        Limit("params.queue.length", "multiple of", "batch", off=0, otherwise="it is rounded down to whole batches"),
        Limit(
            "params.queue.length",
            "<=",
            "images",
            off=0,
            otherwise="earlier embeddings of an image take part in its own assignment",
        ),
        Limit(
            "params.queue.start_epoch",
            "<",
            "epochs",
            share=0,
            when=lambda s: s["params"]["queue"]["length"] > 0,
            otherwise="the queue never takes part",
        ),
        Limit("params.freeze_prototypes_steps", "<", "steps", share=0.1, otherwise="the prototypes never move"),
        Limit("params.prototypes", "<=", "images", otherwise="some prototypes can have no image"),
    )

    collapsed_loss: float

    def __init__(
        self,
        backbone: Backbone,
        *,
        prototypes: int = 3000,
        dim: int = 128,
        hidden: int = 2048,
        head_batchnorm: bool = True,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        assignment: str = "soft",
        assign_crops: Sequence[int] = (0, 1),
        freeze_prototypes_steps: int = 313,
        queue: Mapping[str, int] = QUEUE,
    ) -> None:
        super().__init__(backbone)
        self.projection_head = mlp(backbone.dim, hidden, dim, norm=head_batchnorm)
        self.prototypes = nn.Linear(dim, prototypes, bias=False)
        self.collapsed_loss = math.log(prototypes)
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, sinkhorn_iterations
        self.hard, self.assign_crops = assignment == "hard", list(assign_crops)
        self.freeze_steps, self.queue_spec = freeze_prototypes_steps, dict(queue)
        self.queue: Tensor | None = None  # (A, rows of this process, D), newest first
        self.pushed, self.share = 0, 0  # batches pushed so far; images of this process's part of a batch
        self.pushes_per_step = 1  # Un-Mix asks for several losses a step, each of which pushes
        self._seen: dict[str, Tensor] = {}
        self._workspace = Workspace()

    # -- one step ----------------------------------------------------------------------------------------------------
    def before_step(self, step: int, ctx: Any = None) -> None:
        with torch.no_grad():
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Numbers]:
        z, scores = self.scores(batch.views)
        return self.swav_loss(z, scores, batch.epoch), {}

    def scores(self, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Unit embeddings (V, B, D) and their cosines with the prototypes (V, B, K), float32. The head runs once on all views."""
        head = self.projection_head(embed(self.backbone, views))
        with torch.autocast(head.device.type, enabled=False):
            z = F.normalize(full(head), dim=1)
            return z.unflatten(0, (len(views), -1)), self.prototypes(z).unflatten(0, (len(views), -1))

    def swav_loss(self, z: Tensor, scores: Tensor, epoch: int, assigned: Tensor | None = None) -> Tensor:
        """The loss of one batch; assigns, then pushes the assigned views' embeddings into the queue.

        assigned: other scores for the assignment than those of the prediction (Un-Mix).
        """
        with torch.autocast(z.device.type, enabled=False):
            targets = self.assign(z.detach(), (scores if assigned is None else assigned).detach(), epoch)
            self._seen = {"z": z[0].detach(), "targets": targets[0]}
            return swapped_prediction(scores, targets, self.assign_crops, self.temperature)

    @torch.no_grad()
    def assign(self, z: Tensor, scores: Tensor, epoch: int) -> Tensor:
        """(A, B, K) assignments of the views assign_crops; the queue, once full, takes part."""
        self._start_queue(z, epoch)
        targets = scores.new_empty(len(self.assign_crops), *scores.shape[1:], dtype=torch.float32)
        for a, crop in enumerate(self.assign_crops):
            rows = scores[crop]
            if self.queue is not None and self.queue_full:
                rows = torch.cat([self.prototypes(self.queue[a]), rows])
            settings = (self.epsilon, self.iterations)
            own, memory = scores.shape[1], self._workspace  # targets copies: the next view computes in the same memory
            targets[a] = sinkhorn(rows, *settings, hard=self.hard, last=own, workspace=memory)
        self._push(z[self.assign_crops])
        return targets

    def after_backward(self, step: int) -> None:
        if step < self.freeze_steps:
            self.prototypes.weight.grad = None  # None, not zero: no momentum and no weight decay either

    # -- the queue ---------------------------------------------------------------------------------------------------
    @property
    def queue_full(self) -> bool:
        return self.queue is not None and self.pushed * self.share >= self.queue.shape[1]

    def _start_queue(self, z: Tensor, epoch: int) -> None:
        length, share = self.queue_spec["length"], z.shape[1]
        if self.queue is not None or not length or epoch < self.queue_spec["start_epoch"]:
            return
        batch = share * dist.world_size()
        if length < batch:
            raise UserError(
                f"params.queue.length={length} is less than the batch of {batch}: set params.queue.length={batch} "
                "or more, or 0 for no queue"
            )
        self.share, self.pushed = share, 0
        self.queue = z.new_zeros(len(self.assign_crops), length // batch * share, z.shape[2])

    def _push(self, new: Tensor) -> None:
        """new (A, B, D): the newest rows come first, the oldest fall off."""
        if self.queue is not None:
            self.queue = torch.cat([new, self.queue[:, : -new.shape[1]]], dim=1)
            self.pushed += 1

    def extra_state(self) -> dict[str, Any]:
        if self.queue is None:
            return {}
        world, (crops, _, dim) = dist.world_size(), self.queue.shape
        parts = dist.all_gather(self.queue[None].contiguous())  # (R, A, blocks * share, D)
        parts = parts.reshape(world, crops, -1, self.share, dim).permute(1, 2, 0, 3, 4)  # (A, blocks, R, share, D)
        return {"queue": parts.reshape(crops, -1, dim).cpu(), "pushed": self.pushed, "batch": self.share * world}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        if not state:
            self.queue, self.pushed = None, 0
            return
        world, whole = dist.world_size(), state["queue"]
        self.share, self.pushed = state["batch"] // world, state["pushed"]
        blocks = whole.reshape(len(whole), -1, world, self.share, whole.shape[-1])[:, :, dist.rank()]
        self.queue = blocks.flatten(1, 2).to(self.prototypes.weight.device).clone()

    # -- looking at it -----------------------------------------------------------------------------------------------
    remedies: ClassVar = MappingProxyType(
        {  # the authors' own advice, in the order in which they give it
            "collapse": (
                "params.epsilon=0.03",
                "params.freeze_prototypes_steps=5000",
                "params.prototypes=100",
                "params.queue.length=0",
                "params.assignment=hard",
                "params.head_batchnorm=false",
                "views.crops.0.scale=[0.5, 1.0]",
                "optimizer.lr=0.1",
            ),
            "queue": ("params.queue.length=0", "params.queue.start_epoch=30"),
        }
    )

    def health(self) -> dict[str, float]:
        if not self._seen:
            return {}
        usage = self._seen["targets"].mean(0)
        entropy = -(usage * usage.clamp(min=1e-12).log()).sum() / self.collapsed_loss
        held = 0 if self.queue is None else min(self.pushed, self.queue.shape[1] // self.share)  # batches in the queue
        age = -(-held // self.pushes_per_step)  # steps since the oldest of them
        return {
            "prototype_usage": float(entropy),
            "largest_cluster": float(usage.max()),
            **embeddings(self._seen["z"]),
            "queue_full": float(self.queue_full),
            **({"queue_age": float(age)} if age else {}),
        }

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
