"""Un-Mix: a wrapper around another method whose loss also compares mixtures of two images, weighted by the mixing proportion.

Paper     https://arxiv.org/abs/2003.05438
Recipe    zoo/methods/unmix.yaml: the authors' scripts on SwAV and MoCo v2; unmix_digits and unmix_fashion_mnist for a laptop
Expect    total loss about twice the base method's; ImageNet linear of MoCo v2 67.5 -> 68.6 after 200 epochs (authors)
          digits on SimCLR, seed 0: loss 10.4 (step 10) -> 7.9; scores in results/tables/digits.md
Deviates  see DEVIATIONS
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from engine import rng
from reproduce.limits import Limit
from reproduce.method import Deviation, Method, Needs, Numbers
from reproduce.methods.moco import MoCo, MoCoV1
from reproduce.methods.simclr import SimCLR
from reproduce.methods.swav import SwAV
from zoo.backbones.base import Backbone

BASES: dict[str, type[Method]] = {"swav": SwAV, "mocov1": MoCoV1, "mocov2": MoCo, "simclr": SimCLR}

DEVIATIONS = (
    Deviation(
        "unmix-flip",
        "the mixture read backwards replaces the mixture in both directions of the comparison",
        "only the assignment of the first crop is read backwards, predictions are not",
        "predictions and assignments",
        "params.form=released",
    ),
    Deviation(
        "unmix-lambda",
        "one mixing weight per batch",
        "with several pairs of crops each pair has a box at a place of its own, "
        "each box changes the weight for the next, and the loss uses the last",
        "one weight and one place for all crops of a batch",
        "params.form=released",
    ),
    Deviation(
        "unmix-queue",
        "nothing said",
        "stops with a NameError as soon as SwAV's queue is full",
        "runs; each of the three losses pushes its embeddings",
    ),
    Deviation(
        "unmix-temperature", "nothing said", "a temperature of its own for mixtures is read and not used", "the base's"
    ),
    Deviation(
        "unmix-symmetric",
        "nothing said",
        "the symmetric loss (CIFAR) uses the mixture of the first view in both directions, although the "
        "second direction's keys are that view's, and encodes it for each",
        "the same mixture, encoded once",
    ),
    Deviation(
        "unmix-batch-size",
        "nothing said",
        "SwAV's parts are cut by the option of the batch size, the CIFAR programs read no options at all",
        "by the batch that is there",
    ),
    Deviation(
        "unmix-resnet18",
        "ResNet-18 on CIFAR",
        "bottleneck blocks [2, 2, 2, 2], 2048 features, and an extra border of zeros in front",
        "the same network, so that its files load; its entries say so",
    ),
    Deviation(
        "unmix-partner",
        "image i with image B-1-i of the process's batch",
        "the same",
        "neighbours 2j and 2j+1, which the split of a batch over processes does not part; batches are in random order",
        "params.pairing=reversed",
    ),
)


def box(height: int, width: int, lam: float, cy: int, cx: int) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of the region that comes from the other image: a share 1 - lam of it, cut off at the borders.

    cy, cx: the centre, in whole pixels.
    """
    share = np.sqrt(1.0 - lam)
    half = int(height * share) // 2, int(width * share) // 2
    top, bottom = (int(np.clip(cy + s * half[0], 0, height)) for s in (-1, 1))
    left, right = (int(np.clip(cx + s * half[1], 0, width)) for s in (-1, 1))
    return top, left, bottom, right


def mix(images: Tensor, other: Tensor, lam: float, region: tuple[int, int, int, int] | None) -> tuple[Tensor, float]:
    """The mixture (B, C, H, W) of images with others, and the share of the first: lam, or what the region leaves of it."""
    if region is None:
        return lam * images + (1 - lam) * other, lam
    top, left, bottom, right = region
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = other[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])


def _defaults(cls: type[Method]) -> Mapping[str, Any]:
    from reproduce.methods import parameters

    return MappingProxyType(parameters(cls))


SWAV, MOCOV1, MOCOV2, SIMCLR = (_defaults(cls) for cls in BASES.values())


class Unmix(Method):
    """A base method on images and on mixtures of images: L(x) + lam L(mixture) + (1 - lam) L(mixture read backwards).

    base         swav, mocov1, mocov2 or simclr; the group of parameters of that name is the base's
    probability  of mixing whole images (lam x + (1 - lam) x'); otherwise a region is exchanged
    beta         lam is drawn from Beta(beta, beta), once per batch
    form         paper, or released (SwAV only; see DEVIATIONS)
    pairing      neighbours: images 2j and 2j+1 are mixed; reversed: images i and B-1-i of a process
    """

    needs = Needs(views=2)
    deviations = DEVIATIONS
    remedies: ClassVar = {"collapse": ("params.probability=0.5",)}  # an instance adds its base's

    def __init__(
        self,
        backbone: Backbone,
        *,
        base: str = "swav",
        probability: float = 0.0,
        beta: float = 1.0,
        form: str = "paper",
        pairing: str = "neighbours",
        swav: Mapping[str, Any] = SWAV,
        mocov1: Mapping[str, Any] = MOCOV1,
        mocov2: Mapping[str, Any] = MOCOV2,
        simclr: Mapping[str, Any] = SIMCLR,
    ) -> None:
        nn.Module.__init__(self)  # the backbone stays the base's
        settings = {"swav": swav, "mocov1": mocov1, "mocov2": mocov2, "simclr": simclr}[base]
        self.base = BASES[base](backbone, **settings)
        self.probability, self.beta, self.released, self.reversed, self.seed = (
            probability,
            beta,
            form == "released",
            pairing == "reversed",
            0,
        )
        self.loss_of = {"swav": self.swav_loss, "simclr": self.simclr_loss}.get(base, self.moco_loss)
        self.collapsed_loss = None if self.base.collapsed_loss is None else 2 * self.base.collapsed_loss
        own, nested = type(self).remedies, re.compile(r"^params\.")
        self.__dict__["remedies"] = {
            alarm: (*own.get(alarm, ()), *(nested.sub(f"params.{base}.", word) for word in words))
            for alarm, words in self.base.remedies.items()
        }
        if isinstance(self.base, SwAV):
            self.base.pushes_per_step = 3  # see swav_total

    def check(self, recipe: Mapping[str, Any]) -> None:
        self.base.check(recipe)

    @classmethod
    def limits_of(cls, params: Mapping[str, Any]) -> tuple[Limit, ...]:
        base = params["base"]
        return tuple(limit.within(base) for limit in BASES[base].limits_of(params[base]))

    # -- one step ----------------------------------------------------------------------------------------------------
    def before_step(self, step: int, ctx: Any) -> None:
        self.seed = ctx.seed
        self.base.before_step(step, ctx)

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Numbers]:
        mixed, lam = self.mixtures(batch.views[:1] if self.loss_of != self.swav_loss else batch.views[::2], step)
        return self.loss_of(batch, mixed, lam, step), {"lam": lam}

    def draw(self, step: int, pair: int = 0) -> tuple[bool, float, float, float]:
        """Whole images?, lam, and the centre of a pair's region as fractions of the sides: the same on every process."""
        generator = np.random.default_rng(rng.key(self.seed, "unmix", step))
        whole, lam = generator.random() < self.probability, float(generator.beta(self.beta, self.beta))
        cy, cx = generator.random((pair + 1, 2))[pair]
        return whole, lam, float(cy), float(cx)

    def mixtures(self, views: list[Tensor], step: int) -> tuple[list[Tensor], float]:
        """A mixture of each view, and the share of the image itself in the first of them."""
        whole, lam, cy, cx = self.draw(step)
        mixed, share, drawn = [], lam, lam
        for pair, view in enumerate(views):
            if self.released:
                cy, cx = self.draw(step, pair)[2:]
            height, width = view.shape[-2:]
            region = None if whole else box(height, width, drawn, int(cy * height), int(cx * width))
            one, left = mix(view, self.swap(view), drawn, region)
            mixed.append(one)
            share = left if pair == 0 or self.released else share
            drawn = left if self.released else drawn  # as released, each box starts from what the last one left
        return mixed, share

    def swap(self, rows: Tensor) -> Tensor:
        """Each image's partner in its place; twice is the identity."""
        if self.reversed:
            return rows.flip(0)
        paired = len(rows) // 2 * 2  # an odd one out is its own partner
        return torch.cat([rows[:paired].unflatten(0, (-1, 2)).flip(1).flatten(0, 1), rows[paired:]])

    # -- L(x) + lam L(mixture) + (1 - lam) L(mixture backwards), for each base ----------------------------------------
    def swav_loss(self, batch: Any, mixed: list[Tensor], lam: float, step: int) -> Tensor:
        assert isinstance(self.base, SwAV)
        views, order = batch.views, []  # crops 2j, 2j+1, mixture j: equal sizes stay together
        for j, mixture in enumerate(mixed):
            order += [(True, view) for view in views[2 * j : 2 * j + 2]] + [(False, mixture)]
        z, scores = self.base.scores([view for _, view in order])

        def part(rows: Tensor, wanted: bool) -> Tensor:
            return torch.stack([row for row, (plain, _) in zip(rows, order, strict=True) if plain is wanted])

        return self.swav_total(part(z, True), part(scores, True), part(z, False), part(scores, False), lam, batch.epoch)

    def swav_total(
        self, z: Tensor, scores: Tensor, z_mix: Tensor, scores_mix: Tensor, lam: float, epoch: int = 0
    ) -> Tensor:
        """z, scores (V, B, .) of the crops; z_mix, scores_mix (ceil(V/2), B, .) of the mixtures of crops 0, 2, 4, …"""
        assert isinstance(self.base, SwAV)
        own = self.base.swav_loss(z, scores, epoch)
        return (
            own
            + lam * self.swav_mixed(z, scores, z_mix, scores_mix, epoch, False)
            + (1 - lam) * self.swav_mixed(z, scores, z_mix, scores_mix, epoch, True)
        )

    def swav_mixed(
        self, z: Tensor, scores: Tensor, z_mix: Tensor, scores_mix: Tensor, epoch: int, backwards: bool
    ) -> Tensor:
        """SwAV's loss with every even crop replaced by its mixture, read backwards or not."""
        assert isinstance(self.base, SwAV)

        def place(plain: Tensor, mixtures: Tensor, flip: Any) -> Tensor:
            rows = list(plain)
            for j, mixture in enumerate(mixtures):
                rows[2 * j] = self.swap(mixture) if flip(j) else mixture
            return torch.stack(rows)

        predicted = place(scores, scores_mix, lambda j: backwards and not self.released)
        assigned = place(scores, scores_mix, lambda j: backwards and (j == 0 or not self.released))
        embedded = place(z, z_mix, lambda j: backwards and (j == 0 or not self.released))
        return self.base.swav_loss(embedded, predicted, epoch, assigned=assigned)

    def moco_loss(self, batch: Any, mixed: list[Tensor], lam: float, step: int) -> Tensor:
        assert isinstance(self.base, MoCo)
        base, (image, other) = self.base, batch.views[:2]
        directions = [(image, other, 1), (other, image, 0)] if base.symmetric else [(image, other, 1)]
        q_mix = base.queries(mixed[0])
        keys, losses = [], []
        for query, key, number in directions:  # only queries are mixed, and the same mixture in both directions
            k = base.keys(key, step, number)
            q = base.queries(query)
            losses.append(
                base.contrast(q, k) + lam * base.contrast(q_mix, k) + (1 - lam) * base.contrast(self.swap(q_mix), k)
            )
            keys.append(k)
        base.remember(keys)
        return torch.stack(losses).sum()

    def simclr_loss(self, batch: Any, mixed: list[Tensor], lam: float, step: int) -> Tensor:
        assert isinstance(self.base, SimCLR)
        first, second, mixture = self.base.project([*batch.views[:2], mixed[0]])
        pair = self.base.pair_loss
        return pair(first, second) + lam * pair(mixture, second) + (1 - lam) * pair(self.swap(mixture), second)

    # -- everything else is the base's -------------------------------------------------------------------------------
    @property
    def backbone(self) -> Backbone:  # type: ignore[override]
        return self.base.backbone

    def before_epoch(self, epoch: int, ctx: Any) -> None:
        self.base.before_epoch(epoch, ctx)

    def after_backward(self, step: int) -> None:
        self.base.after_backward(step)

    def param_groups(self) -> list[dict[str, Any]]:
        return self.base.param_groups()

    def of_each_process(self, recipe: Mapping[str, Any]) -> list[str]:
        return self.base.of_each_process(recipe)

    def extra_state(self) -> dict[str, Any]:
        return self.base.extra_state()

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.base.load_extra_state(state)

    def health(self) -> dict[str, float]:
        return self.base.health()

    def export(self) -> dict[str, Tensor]:
        return self.base.export()
