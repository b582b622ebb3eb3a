"""MoCo v1 and v2: find the other view of an image, encoded by a momentum encoder, among a queue of earlier images.

Paper     https://arxiv.org/abs/1911.05722, https://arxiv.org/abs/2003.04297 (an MLP head, other temperature and views)
Recipe    zoo/methods/mocov1.yaml, mocov2.yaml; moco*_digits and moco*_fashion_mnist for a laptop
Expect    the loss rises while the queue fills with real keys, towards ln(queue + 1) = 11.1, then falls; 6.9 later is normal.
          ImageNet linear 60.6 (v1), 67.5 (v2) after 200 epochs (authors). The symmetric loss starts at twice these values
          digits, seed 0: loss 6.2 (step 10) -> 4.1 (v1), 6.1 -> 3.7 (v2); scores in results/tables/digits.md
Deviates  see DEVIATIONS
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine import dist, rng
from engine.batch import on
from reproduce.health import embeddings
from reproduce.limits import Limit
from reproduce.method import Deviation, Method, Needs, Numbers, full, mlp
from zoo.backbones.base import Backbone
from zoo.errors import UserError

DEVIATIONS = (
    Deviation(
        "moco-queue-multiple",
        "a queue of any length",
        "the length must be a multiple of the global batch",
        "any length not below the batch: keys wrap around the end",
    ),
    Deviation(
        "moco-one-process",
        "batches shuffled between GPUs, so that batch statistics give nothing away",
        "needs several processes; with one, nothing is shuffled",
        "a process may split its batch into groups that are normalised apart, keys shuffled between them",
        "params.splits=8",
    ),
)


def moco_logits(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """(B, 1 + K): each query with its own key, then with the queue. q, k (B, D) and the columns of queue (D, K) are unit vectors."""
    return torch.cat([(q * k).sum(1, keepdim=True), q @ queue], dim=1) / temperature


class SplitBatchNorm(_BatchNorm):
    """Batch norm that normalises `splits` consecutive groups of rows apart, as that many processes would, in one pass.

    A pass in training is one update of the running statistics, by the mean over the groups of their statistics (MoCo's CIFAR
    demonstration). In evaluation it is plain batch norm.
    """

    splits = 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        parts = x.chunk(self.splits)
        if not self.track_running_stats:
            return torch.cat(
                [F.batch_norm(part, None, None, self.weight, self.bias, True, 0.0, self.eps) for part in parts]
            )
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        means, variances = ([one.clone() for _ in parts] for one in (self.running_mean, self.running_var))
        out = [
            F.batch_norm(part, mean, variance, self.weight, self.bias, True, rate, self.eps)
            for part, mean, variance in zip(parts, means, variances, strict=True)
        ]
        self.running_mean.copy_(torch.stack(means).mean(0))
        self.running_var.copy_(torch.stack(variances).mean(0))
        return torch.cat(out)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any (B, C, ...), as of both BatchNorm1d and BatchNorm2d."""


def split_batchnorm(module: nn.Module, splits: int) -> nn.Module:
    """Every batch norm inside becomes a SplitBatchNorm with the same parameters, buffers and name; one split: nothing changes."""
    if splits == 1:
        return module
    if isinstance(module, _BatchNorm):
        new = SplitBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        new.weight, new.bias = module.weight, module.bias
        new.running_mean, new.running_var = module.running_mean, module.running_var
        new.num_batches_tracked, new.splits = module.num_batches_tracked, splits
        return new.train(module.training)
    for name, child in module.named_children():
        module.add_module(name, split_batchnorm(child, splits))
    return module


class MoCo(Method):
    """Query encoder, key encoder (its moving average), queue. Views 0 and 1 are query and key.

    dim, hidden    embedding, and hidden width of the head (0: a linear head, as v1)
    temperature
    momentum       of the key encoder's parameters, once per step; its batch-norm statistics are its own
    queue          keys remembered
    shuffle_bn     keys are normalised in other company than queries: rows are shuffled among processes and splits
    splits         groups of a process's batch that batch norm sees apart; 1 leaves it whole
    symmetric      the sum of both directions, as released; the keys of both views enter the queue
    """

    needs = Needs(views=2)
    deviations = DEVIATIONS
    limits = (
        Limit("params.queue", ">=", "batch"),
        Limit(
            "params.queue",
            ">=",
            "batch",
            times=2,
            when=lambda s: s["params"]["symmetric"],
            because="a step has the keys of both views",
        ),
        Limit("params.queue", "<=", "images", otherwise="earlier keys of an image are among its own negatives"),
        Limit("params.splits", "<=", "part"),
    )
    remedies: ClassVar = {
        "collapse": (
            "optimizer.lr=0.01",
            "params.temperature=0.2",
            "params.momentum=0.99",
            "params.queue=4096",
            "params.splits=4",
        )
    }
    queue: Tensor  # (dim, K) unit columns, a buffer
    queue_ptr: Tensor  # (1,) where the next key goes, a buffer

    def __init__(
        self,
        backbone: Backbone,
        *,
        dim: int = 128,
        hidden: int = 2048,
        temperature: float = 0.2,
        momentum: float = 0.999,
        queue: int = 65536,
        shuffle_bn: bool = True,
        splits: int = 1,
        symmetric: bool = False,
    ) -> None:
        split_batchnorm(backbone, splits)
        super().__init__(backbone)
        self.head = mlp(backbone.dim, hidden, dim)
        self.key_encoder = copy.deepcopy(nn.Sequential(self.backbone, self.head)).requires_grad_(False)
        self.temperature, self.momentum = temperature, momentum
        self.shuffle, self.splits, self.symmetric, self.seed = shuffle_bn, splits, symmetric, 0
        self.register_buffer("queue", F.normalize(torch.randn(dim, queue), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        self.collapsed_loss = (2 if symmetric else 1) * math.log(1 + queue)
        self._seen: Tensor | None = None
        self._stay = 0.0

    def check(self, recipe: Mapping[str, Any]) -> None:
        if self.splits > 1 and recipe.get("sync_bn"):
            raise UserError(
                f"sync_bn=true joins the batch statistics that params.splits={self.splits} keeps apart; "
                "set sync_bn=false or params.splits=1"
            )

    def of_each_process(self, recipe: Mapping[str, Any]) -> list[str]:
        parts = (
            [f"each process's batch is normalised in {self.splits} parts (params.splits)"] if self.splits > 1 else []
        )
        return super().of_each_process(recipe) + parts

    # -- one step ----------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def before_step(self, step: int, ctx: Any = None) -> None:
        """The key encoder follows. The query encoder does not change until this step's update, so now is as good as later."""
        self.seed = ctx.seed if ctx is not None else 0
        keys: list[Tensor] = list(self.key_encoder.parameters())
        queries: list[Tensor] = [*self.backbone.parameters(), *self.head.parameters()]
        torch._foreach_mul_(keys, self.momentum)
        torch._foreach_add_(keys, queries, alpha=1 - self.momentum)

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Numbers]:
        views = batch.views[:2]
        directions = [(0, 1), (1, 0)] if self.symmetric else [(0, 1)]
        keys = [self.keys(views[b], step, b) for _, b in directions]
        losses = [self.contrast(self.queries(views[a]), k) for (a, _), k in zip(directions, keys, strict=True)]
        self.remember(keys)  # after the loss: it saw the queue before
        return torch.stack(losses).sum(), {}

    def queries(self, images: Tensor) -> Tensor:
        """(B, D) unit rows, with a graph."""
        q = F.normalize(full(self.head(self.backbone(images))), dim=1)
        self._seen = q.detach()
        return q

    @torch.no_grad()
    def keys(self, images: Tensor, step: int, view: int = 1) -> Tensor:
        """(B, D) unit rows of this process's images; on the way they are normalised among rows of other processes and splits."""
        if not self.shuffle or dist.world_size() * self.splits == 1:
            return self._encode_keys(images)
        share = len(images)
        everyone = dist.all_gather(images)
        order = on(
            torch.from_numpy(rng.permutation(self.seed, "shuffle", 2 * step + view, len(everyone))), images.device
        )
        mine = slice(dist.rank() * share, (dist.rank() + 1) * share)
        shuffled = dist.all_gather(self._encode_keys(everyone[order[mine]]))
        back = torch.empty_like(shuffled)
        back[order] = shuffled
        return back[mine]

    def _encode_keys(self, images: Tensor) -> Tensor:
        return F.normalize(full(self.key_encoder(images)), dim=1)

    def contrast(self, q: Tensor, k: Tensor) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            logits = moco_logits(
                q, k, self.queue.clone(), self.temperature
            )  # cloned: the queue changes before backward
            return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))

    def remember(self, keys: list[Tensor]) -> None:
        """Put the keys of all processes into the queue, one view after the other."""
        self.enqueue(torch.cat([dist.all_gather(k) for k in keys]))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest columns by the keys of all processes (N, D)."""
        length, n = self.queue.shape[1], len(keys)
        if n > length:
            raise UserError(
                f"params.queue={length} is shorter than the {n} keys of a step; set params.queue={n} or more"
            )
        self.queue[:, (torch.arange(n, device=keys.device) + self.queue_ptr) % length] = keys.T
        self._stay = length / n
        self.queue_ptr.add_(n).remainder_(length)  # on the device: the host never asks where the pointer is

    # -- looking at it -----------------------------------------------------------------------------------------------
    def health(self) -> dict[str, float]:
        """queue_age: steps for which a key stays in the queue."""
        return {**embeddings(self._seen), **({"queue_age": self._stay} if self._stay else {})}

    def exported(self) -> dict[str, Tensor]:
        """The authors' names: the head is fc (v1) or fc.0 and fc.2 (v2) of each encoder."""
        key = self.key_encoder
        encoders = {"encoder_q": (self.backbone, self.head), "encoder_k": (key[0], key[1])}
        out = {}
        for name, (backbone, head) in encoders.items():
            out.update({f"{name}.{k}": v.detach().cpu() for k, v in backbone.state_dict().items()})
            out.update({f"{name}.fc.{k}": v.detach().cpu() for k, v in head.state_dict().items()})
        return {**out, "queue": self.queue.cpu(), "queue_ptr": self.queue_ptr.cpu()}


class MoCoV1(MoCo):
    """MoCo with v1's defaults: a linear head, temperature 0.07."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        dim: int = 128,
        hidden: int = 0,
        temperature: float = 0.07,
        momentum: float = 0.999,
        queue: int = 65536,
        shuffle_bn: bool = True,
        splits: int = 1,
        symmetric: bool = False,
    ) -> None:
        super().__init__(
            backbone,
            dim=dim,
            hidden=hidden,
            temperature=temperature,
            momentum=momentum,
            queue=queue,
            shuffle_bn=shuffle_bn,
            splits=splits,
            symmetric=symmetric,
        )
