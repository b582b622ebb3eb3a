"""PIC: each image is its own class; a cosine softmax over all classes, one branch, one view of an image at a time.

Paper     https://arxiv.org/abs/2006.14618
Recipe    zoo/methods/pic.yaml: the authors' scripts at 200, 400 and 1600 epochs; pic_digits and pic_fashion_mnist for a laptop
Expect    loss from ln N (14.1 on ImageNet) downwards; ImageNet linear 68.6 after 200 epochs with multi-crop (authors)
          digits, seed 0: loss 11.8 (step 10) -> 6.0; scores in results/tables/digits.md
Deviates  see DEVIATIONS. Recent negative sampling and its weight-update correction are in the paper and were never released:
          they are implemented here from the description (params.negatives, params.correction)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine import dist, rng
from engine.batch import on
from reproduce.health import embeddings
from reproduce.limits import Limit
from reproduce.method import Deviation, Method, Needs, Numbers, full, mlp, pic_head
from reproduce.weight_table import WeightTable, sharded_cross_entropy
from zoo.backbones.base import Backbone
from zoo.errors import UserError

WINDOW = MappingProxyType({"size": 131072, "stride": 16384, "mode": "sliding"})
CLASS_SGD = MappingProxyType({"lr": 0.0, "momentum": 0.9, "weight_decay": 0.0})

DEVIATIONS = (
    Deviation(
        "pic-window-modulo",
        "a window over the data slides by its stride and wraps around the data set",
        "wraps around the window, so that without reshuffling only the first window is ever used, and with it windows are fresh "
        "random subsets",
        "slides over the whole data set, in another order at each pass",
        "params.window.mode=subset",
    ),
    Deviation(
        "pic-window-epochs",
        "epochs",
        "converts epochs and warm-up to windows, and counts windows in its checkpoints",
        "an epoch is a pass over as many images as the data has, whatever the window",
    ),
    Deviation(
        "pic-window-resume",
        "nothing said",
        "the checkpoint keeps the window's start, neither its permutation nor its random state",
        "the order is a function of (seed, step): a resume changes nothing",
    ),
    Deviation(
        "pic-negatives",
        "recent negative sampling and a correction of idle class weights",
        "neither",
        "both; as released by default",
        "params.negatives=65536",
    ),
    Deviation(
        "pic-matrix-copies",
        "nothing said",
        "every process holds the whole class matrix",
        "rows are spread over processes",
    ),
    Deviation(
        "pic-crops-axis",
        "views are crops",
        "a batch (B, 3, H, W) is read as three crops of one channel and refused",
        "views are a list; one view is one crop",
    ),
    Deviation(
        "pic-nan",
        "nothing said",
        "half-precision softmax over all classes; very long runs end in NaN",
        "features, class weights, logits and loss are float32 at every precision, norms have a floor",
    ),
)


def _own_rate(settings: Mapping[str, Any]) -> bool:
    return bool(settings["params"]["class_sgd"]["lr"])


def pic_logits(large: Tensor, small: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """(M + m, n) cosines of crops with the classes `rows`, over the temperature.

    large, small  (M, D) and (m, D) unit features, crop-major; small crops see the class rows without gradient
    rows          (n, D) class weights, normalised here
    """
    unit = F.normalize(rows.to(large.dtype), dim=1)
    logits = (large / temperature) @ unit.T
    return torch.cat([logits, (small / temperature) @ unit.detach().T]) if len(small) else logits


def windows(images: int, size: int) -> int:
    """Windows needed for so many images, the last perhaps in part."""
    return -(-images // size)


def window(order: np.ndarray, number: int, size: int, stride: int) -> np.ndarray:
    """The images of sliding window `number`: `size` consecutive ones of a permutation, wrapping around its end."""
    return order[(number * stride + np.arange(size)) % len(order)]


class PIC(Method):
    """Backbone, head, and a class row for every training image.

    dim, hidden   embedding, and hidden width of the head (0: a linear head)
    temperature
    window        size, stride: images are drawn from a window of `size` that moves by `stride` (0: plain epochs); mode: sliding over a
                  permutation that is drawn anew at each pass, as PIC.sh asks, or
                  subset: each window is a fresh random subset, as the released sampler with its shuffling flag behaves
    negatives     classes of the softmax: the most recently visited images and the batch; 0: all classes
    correction    rows that were no negatives catch up with momentum and weight decay when they are next used
    class_sgd     lr, momentum, weight_decay of the class rows, the rate moving with the recipe's schedule; lr 0: the recipe's own SGD.
                  With a rate of their own the network may have any optimizer
    """

    needs = Needs(instances=True)
    rates = ("optimizer.lr", "params.class_sgd.lr")
    limits = (
        Limit("params.window.size", "<=", "images", off=0),
        Limit("params.negatives", "<=", "images", off=0, otherwise="all classes take part"),
        *(
            Limit(
                f"optimizer.{name}",
                "is",
                value,
                when=lambda s: not _own_rate(s),
                instead="params.class_sgd.lr=0.3",
                because="class rows without a rate of their own are trained by the recipe's optimizer, which must be plain SGD",
            )
            for name, value in (("name", "sgd"), ("nesterov", False))
        ),
        Limit("optimizer.lr", ">", 0, when=_own_rate, because="the rate of the class rows moves with it"),
    )
    deviations = DEVIATIONS
    remedies: ClassVar = {"collapse": ("optimizer.lr=0.01", "params.temperature=0.5", "params.negatives=0")}

    def __init__(
        self,
        backbone: Backbone,
        *,
        instances: int,
        dim: int = 128,
        hidden: int = 2048,
        temperature: float = 0.2,
        window: Mapping[str, Any] = WINDOW,
        negatives: int = 0,
        correction: bool = True,
        class_sgd: Mapping[str, Any] = CLASS_SGD,
    ) -> None:
        super().__init__(backbone)
        self.head = mlp(backbone.dim, hidden, dim)
        self.temperature, self.window, self.negatives = temperature, dict(window), negatives
        self.rows = WeightTable(instances, dim, seed=torch.initial_seed(), correction=correction)
        self.recent = torch.empty(0, dtype=torch.int64)  # images visited last, newest first, of all processes
        self.collapsed_loss = math.log(min(instances, negatives or instances))
        self.class_sgd = dict(class_sgd)
        self.step_of_rows: Mapping[str, float] = {}
        self._scale = 1.0
        self._seen: Tensor | None = None
        self._taken: tuple[Tensor, Tensor] | None = None

    # -- one step ----------------------------------------------------------------------------------------------------
    def before_step(self, step: int, ctx: Any) -> None:
        own, recipe, lr = self.class_sgd, ctx.optimizer, ctx.lr(step)
        if own["lr"]:
            lr *= own["lr"] / recipe["lr"]
        elif recipe["name"] != "sgd" or recipe.get("nesterov"):
            raise UserError(
                f"optimizer.name={recipe['name']}: pic trains its class rows by plain SGD with momentum; set "
                "optimizer.name=sgd, optimizer.nesterov=false, or give the rows a rate of their own: params.class_sgd.lr=0.3"
            )
        else:
            own = recipe
        self.step_of_rows = {"lr": lr, "momentum": own.get("momentum") or 0.0, "decay": own.get("weight_decay") or 0.0}

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Numbers]:
        seen = dist.all_gather(batch.index)
        features = [
            F.normalize(full(self.head(self.backbone(view))), dim=1) for view in batch.views
        ]  # each crop by itself
        self._seen = features[0].detach()
        with torch.autocast(features[0].device.type, enabled=False):
            loss = self.classify(features, [view.shape[-1] for view in batch.views], seen)
        if loss.requires_grad and self.settings.get("precision", "float16") == "float16":
            loss.register_hook(self._note_scale)
        return loss, {}

    def classify(self, features: list[Tensor], sides: list[int], seen: Tensor) -> Tensor:
        """The loss of the global batch, the same on every process. seen (N,): images of all processes, in rank order, in main
        memory."""
        every = [_shared(f) for f in features]
        large = [f for f, side in zip(every, sides, strict=True) if side == max(sides)]
        small = [f for f, side in zip(every, sides, strict=True) if side < max(sides)]
        ids, device = self.rows.own(self.classes(seen)), features[0].device
        rows = self.rows.take(ids, device) if self.negatives else self.rows.all(device)
        self._taken = (ids, rows)
        logits = pic_logits(torch.cat(large), torch.cat(small) if small else large[0][:0], rows, self.temperature)
        target = on(self.column(seen, ids), device).repeat(len(features))
        return sharded_cross_entropy(logits, target).mean()  # each crop has equal weight

    def classes(self, seen: Tensor) -> Tensor:
        """Sorted ids of the softmax's classes; the images seen become the most recent."""
        if not self.negatives:
            return torch.arange(self.rows.count)
        self.recent = torch.cat([seen, self.recent])[: max(self.negatives, len(seen))]
        return torch.unique(self.recent)

    @staticmethod
    def column(seen: Tensor, ids: Tensor) -> Tensor:
        """Position of each image among sorted ids; -1 for those on another process."""
        if not len(ids):
            return torch.full_like(seen, -1)
        at = torch.searchsorted(ids, seen).clamp(max=len(ids) - 1)
        return torch.where(ids[at] == seen, at, -1)

    def after_backward(self, step: int) -> None:
        """The rows' own step of SGD."""
        assert self._taken is not None, "classify takes the rows"
        ids, rows = self._taken
        self._taken = None
        assert rows.grad is not None, "backward gives the rows their gradient"
        grad = rows.grad if self._scale == 1.0 else rows.grad / self._scale
        if self._scale != 1.0 and not dist.all_reduce_(grad.isfinite().all().float(), "min"):
            return  # mixed precision overflowed: the engine skips this step as well
        if self.negatives:
            self.rows.update(ids, grad, **self.step_of_rows)
        else:
            self.rows.update_all(grad, **self.step_of_rows)

    def _note_scale(self, grad: Tensor) -> None:
        self._scale = float(grad)  # of the loss under mixed precision, else 1

    # -- the window --------------------------------------------------------------------------------------------------
    def sampler(self, n: int, epoch: int, ctx: Any) -> np.ndarray | None:
        size = self.window["size"]
        if not size:
            return None
        if size > n:
            raise UserError(
                f"params.window.size={size} is larger than the {n} images; set params.window.size=0 for plain epochs"
            )
        length = ctx.steps_per_epoch * ctx.batch  # windows follow each other without regard to epochs
        first, last = epoch * length // size, windows((epoch + 1) * length, size)
        drawn = np.concatenate([self.images(n, number, ctx.seed) for number in range(first, last)])
        return drawn[epoch * length - first * size :][:length]

    def images(self, n: int, number: int, seed: int) -> np.ndarray:
        """Window `number`, shuffled."""
        size, stride = self.window["size"], self.window["stride"]
        if self.window["mode"] == "subset":
            return rng.permutation(seed, "subset", number, n)[:size]
        whole = rng.permutation(seed, "windows", number * stride // n, n)  # a window that wraps stays in its pass
        return window(whole, number, size, stride)[rng.permutation(seed, "window", number, size)]

    # -- memory and looks --------------------------------------------------------------------------------------------
    def extra_state(self) -> dict[str, Any]:
        return {"rows": self.rows.state(), "recent": self.recent}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.rows.load(state["rows"])
        self.recent = state["recent"]

    def health(self) -> dict[str, float]:
        return embeddings(self._seen)

    def export(self) -> dict[str, Tensor]:
        matrix = self.rows.whole()  # every process takes part
        return {**super().export(), "module.sim_matrix": matrix}

    def exported(self) -> dict[str, Tensor]:
        return {f"encoder.{k}": v for k, v in {**super().exported(), **pic_head(self.head)}.items()}


class _Shared(torch.autograd.Function):
    """Rows of all processes; the gradient of mine, summed over processes, times their number.

    Every process computes the loss of the whole batch, and gradients are averaged over processes afterwards.
    """

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        ctx.share = len(mine)
        return dist.all_gather(mine)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        first = dist.rank() * ctx.share
        return dist.all_reduce_(grad.contiguous().clone())[first : first + ctx.share] * dist.world_size()


def _shared(mine: Tensor) -> Tensor:
    return _Shared.apply(mine) if dist.world_size() > 1 else mine
