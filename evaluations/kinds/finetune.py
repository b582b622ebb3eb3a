"""Fine-tuning the whole network with labels: all of them, or a small part (semi-supervised learning).

Protocols  semisup_imagenet_1pct / 10pct (SwAV: two learning rates, 20 epochs), finetune_imagenet_deepercluster, semisup_*
Metrics    top1, top5           after the last epoch; mean and spread over seeds, each with its own draw of labels
           top1_best_on_test    the best epoch on the test split, as papers print it; never ranked

The labelled part is a split of the data set (SimCLR's published lists), or ``head.percent`` / ``head.per_class`` of each class.
Rates are given, or chosen by training on ``splits.fit`` and scoring ``splits.val``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from engine import batchnorm, rng
from zoo.errors import UserError
from zoo.schema import Strict

from .. import checks
from ..inputs.features import FeatureRequest, Features
from ..inputs.models import Model
from ..inputs.splits import per_class, percent
from ..probes import finetuning
from ..probes.finetuning import FineTuning, Tuned
from ..protocol import Kind, NotNegative, Positive, Protocol, head_of
from ..result import Result, beside_top1, rate, rates

KIND = Kind(
    classifies=True,
    grid={"lr": Positive, "lr_head": Positive, "weight_decay": NotNegative},
    needed=("lr",),
    selects=("val", "none"),
    forms=("faithful",),
    layers="none",
)


class Head(Strict):
    """epochs over the labelled images; rates times ``factor`` at ``milestones``; ``lr_head`` in the grid is the classifier's.

    restart        the network's fully connected layers (VGG, AlexNet) start afresh: N(0, 0.01), bias 0.1
    merge_sobel    Sobel filters become part of the first convolution, so that colours can be learned (DeeperCluster)
    sync_bn        statistics over all processes
    """

    epochs: Annotated[int, Field(ge=1)] = 20
    batch: Annotated[int, Field(ge=1)] = 256
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    milestones: list[int] = Field(default_factory=list)
    factor: float = 0.1
    percent: Annotated[float, Field(gt=0, le=100)] | None = None
    per_class: Annotated[int, Field(ge=1)] | None = None
    restart: bool = False
    merge_sobel: bool = False
    sync_bn: bool = False
    drop_last: bool = False
    snapshots: Annotated[int, Field(ge=0)] = 10
    trunk: Literal["train", "eval"] = "train"

    @model_validator(mode="after")
    def _one_amount(self) -> Head:
        if self.percent is not None and self.per_class is not None:
            raise ValueError("give at most one of head.percent and head.per_class")
        return self


def plan(protocol: Protocol, model: Model) -> list[FeatureRequest]:
    """Nothing is kept: it trains on images."""
    if head_of(protocol).merge_sobel and not hasattr(model.blank, "stem"):
        raise UserError(
            f"{protocol.id}: {model.name} has no Sobel filters to merge; head.merge_sobel=false goes without"
        )
    return []


def check(protocol: Protocol, model: Model, open: Callable[[str], Any]) -> None:
    """Raises UserError when a class has too few images for ``head.per_class``, or a split has no labels."""
    head, splits = head_of(protocol), protocol.splits
    trials = [splits.fit or splits.train] if protocol.select.on == "val" else []
    for split in dict.fromkeys((splits.train, *trials)):
        labelled(checks.labels(protocol, split, open(split)), head, 0)
    for scored in (splits.val, splits.test):
        if scored is not None:
            checks.labels(protocol, scored, open(scored))


def run(protocol: Protocol, features: Features, seed: int) -> Result:
    head = head_of(protocol)

    def trial(cell: dict[str, float], name: str) -> float:
        """Accuracy on the validation split."""
        net = train(protocol, head, features, protocol.splits.fit or protocol.splits.train, cell, seed, name)
        val = str(protocol.splits.val)
        return 100 * float((guesses(features, features.source(val), net)[0] == features.labels(val)).mean())

    chosen, selection = finetuning.choose(protocol, cells_of(protocol), trial, features.workspace)
    seeds = [seed * 1000 + i for i in range(protocol.seeds)]
    nets = [train(protocol, head, features, protocol.splits.train, chosen, s, f"seed{s}") for s in seeds]
    features.finish_selection(selection)

    test = protocol.splits.test
    source, truth = features.source(test), features.labels(test)
    first = [guesses(features, source, net) for net in nets]
    top1 = [100 * float((g[0] == truth).mean()) for g in first]
    known = features.labels(protocol.splits.train)
    metrics = {"top1": rates(top1, len(truth)), **beside_top1(np.stack([g[0] for g in first]), truth, known)}
    if features.classes(test) > 10:
        metrics["top5"] = rates([100 * float((g[1] == truth[:, None]).any(1).mean()) for g in first], len(truth))
    best = max(top1)
    for net, s in zip(nets, seeds, strict=True):
        for epoch in kept_epochs(head)[:-1]:
            finetuning.restore(net, finetuning.kept_file(features.workspace / f"seed{s}.pt", epoch))
            best = max(best, 100 * float((guesses(features, source, net)[0] == truth).mean()))
    metrics["top1_best_on_test"] = rate(best, len(truth), style="paper", note="best epoch and seed on the test split")
    finetuning.discard(features.workspace)
    return Result(metrics, first[0][0], np.mean([g[0] == truth for g in first], axis=0))


def cells_of(protocol: Protocol) -> list[dict[str, float]]:
    """Every setting of the grid; the classifier's rate is the network's where none is given."""
    heads = protocol.grid.get("lr_head", [None])
    cells = [(a, h, d) for a in protocol.grid["lr"] for h in heads for d in protocol.grid.get("weight_decay", [0.0])]
    return [{"lr": a, "lr_head": a if h is None else h, "weight_decay": d} for a, h, d in cells]


def train(
    protocol: Protocol, head: Head, features: Features, split: str, cell: dict[str, float], seed: int, name: str
) -> Tuned:
    """The network after the last epoch; found again in its file when it was trained before."""
    source, labels = features.source(split), features.labels(split)
    shown = labelled(labels, head, seed)
    file = features.workspace / f"{name}.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(seed, "fine-tuning"))
        net = begin(features, head, len(source.classes))
        finished = finetuning.kept_file(file, head.epochs)
        if finished.is_file():
            finetuning.restore(net, finished)
            return net
        job = job_of(net, head, cell, shown, seed)

        def views(epoch: int) -> Any:
            return features.views(f"{protocol.transform.train}:{epoch}", seed)

        finetuning.fit(job, source, torch.as_tensor(labels), views, features.compute, file, features.say)
    file.unlink(missing_ok=True)
    return net


def labelled(labels: np.ndarray, head: Head, seed: int) -> np.ndarray:
    """Indices of the images whose labels are shown."""
    try:
        if head.percent is not None:
            return percent(labels, head.percent, seed)
        return np.arange(len(labels)) if head.per_class is None else per_class(labels, head.per_class, seed)
    except ValueError as error:
        raise UserError(f"head: {error}") from None


def begin(features: Features, head: Head, classes: int) -> Tuned:
    body = copy.deepcopy(features.model.backbone)
    if head.merge_sobel:
        from zoo.backbones.vgg import sobel_to_rgb

        body = sobel_to_rgb(body)
    if head.restart:
        for layer in getattr(body, "classifier", nn.Identity()).modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, 0.01)
                nn.init.constant_(layer.bias, 0.1)
    net = Tuned(body.requires_grad_(True), classes)
    made = batchnorm.convert_sync_bn(net) if head.sync_bn else net
    assert isinstance(made, Tuned)
    return made.to(features.compute.device)


def job_of(net: Tuned, head: Head, cell: dict[str, float], shown: np.ndarray, seed: int) -> FineTuning:
    groups = [{"params": list(net.body.parameters())}, {"params": list(net.pred_layer.parameters())}]
    optimizer = torch.optim.SGD(groups, lr=cell["lr"], momentum=head.momentum, weight_decay=cell["weight_decay"])
    order = []
    for epoch in range(head.epochs):
        shuffled = shown[rng.permutation(seed, "fine-tuning order", epoch, len(shown))]
        order.append(finetuning.batches_of(shuffled, head.batch, head.drop_last))
    scale = head.factor ** np.searchsorted(np.asarray(head.milestones), np.arange(head.epochs), side="right")
    rates = np.repeat(scale, len(order[0]))[:, None] * np.array([[cell["lr"], cell["lr_head"]]])
    mode = whole if head.trunk == "train" else only_classifier
    return FineTuning(net, optimizer, order, rates, cross_entropy, mode, keep=kept_epochs(head), seed=seed)


def kept_epochs(head: Head) -> list[int]:
    """Evenly spaced epochs, the last among them."""
    count = max(1, min(head.snapshots, head.epochs))
    return [int(e) for e in np.linspace(0, head.epochs, count + 1).round()[1:]]


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores, labels, reduction="sum")


def whole(net: nn.Module) -> nn.Module:
    return net.train()


def only_classifier(net: nn.Module) -> nn.Module:
    """Batch norm keeps its statistics, dropout is off."""
    return net.eval()


def guesses(features: Features, source: Any, net: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Predicted class (N,) and the five best (N, 5) under the protocol's test views."""
    wanted = features.protocol.transform
    scores = finetuning.scores_of(net, source, features.views(wanted.test), features.compute, wanted.average)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    return best[:, 0], best
