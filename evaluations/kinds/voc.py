"""VOC07 classification: a multi-label classifier on the pre-trained network, FC6-8 or ALL, over several seeds.

Protocols  voc07_fc68_*.yaml, voc07_all_*.yaml
Metrics    map      mean over classes of the step-wise average precision (scikit-learn's), as DeeperCluster reports it
           map11    the same with VOC07's eleven points; both in percent, mean and spread over seeds

FC6-8 freezes the convolutions (batch-norm scales too); the fully connected layers and the classifier are initialised again. ALL trains
everything. Batch-norm statistics stay as they were in both. Images come in one order, shuffled once per seed. Rates and decays
are chosen by training on ``splits.fit`` and scoring ``splits.val``; then every seed trains on ``splits.train``.
Deviates   the authors always put Sobel in front, whatever the flag said; here the model's own card decides
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from engine import rng
from zoo.errors import UserError
from zoo.schema import Strict

from .. import checks
from ..inputs.features import FeatureRequest, Features
from ..inputs.models import Model
from ..probes import finetuning
from ..probes.finetuning import FineTuning, Tuned
from ..protocol import Kind, NotNegative, Positive, Protocol, Whole, head_of
from ..result import Result, precision
from ..scores import mean_average_precision

KIND = Kind(
    classifies=True,
    grid={"lr": Positive, "weight_decay": NotNegative, "stepsize": Whole},
    selects=("val", "none"),
    metric="map",
    forms=("faithful",),
    layers="none",
)
SCORES: dict[str, int | None] = {"map": None, "map11": 11}


class Head(Strict):
    """train: fc68 or all. restart: the fully connected layers start afresh. views: random crops whose logits are summed
    in evaluation, or 0 for ``transform.test``. train_batchnorm: fc68 also moves the convolutions' batch-norm scales."""

    train: Literal["fc68", "all"] = "fc68"
    iterations: Annotated[int, Field(ge=1)] = 150000
    batch: Annotated[int, Field(ge=1)] = 16
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    clip: Annotated[float, Field(gt=0)] | None = 10.0
    restart: bool = True
    std: float = 0.01
    bias: float = 0.1
    views: Annotated[int, Field(ge=0)] = 10
    train_batchnorm: bool = False


def plan(protocol: Protocol, model: Model) -> list[FeatureRequest]:
    return []  # trains on images


def check(protocol: Protocol, model: Model, open: Callable[[str], Any]) -> None:
    """Raises UserError unless every split has several labels per image, and some positive one."""
    splits = protocol.splits
    trials = [splits.fit or splits.train, str(splits.val)] if protocol.select.on == "val" else []
    for split in dict.fromkeys((splits.train, *trials, splits.test)):
        checks.targets(protocol, split, open(split))


def run(protocol: Protocol, features: Features, seed: int) -> Result:
    head = head_of(protocol)

    def trial(cell: dict[str, float], name: str) -> float:
        """Mean average precision on the validation split."""
        net = train(protocol, head, features, protocol.splits.fit or protocol.splits.train, cell, seed, name)
        source = features.source(str(protocol.splits.val))
        return mean_average_precision(evaluate(head, features, source, net, seed), source.targets)

    chosen, selection = finetuning.choose(protocol, cells_of(protocol), trial, features.workspace)
    seeds = [seed * 1000 + i for i in range(protocol.seeds)]
    nets = [train(protocol, head, features, protocol.splits.train, chosen, s, f"seed{s}") for s in seeds]
    features.finish_selection(selection)

    source = features.source(protocol.splits.test)
    found = [evaluate(head, features, source, net, s) for net, s in zip(nets, seeds, strict=True)]
    finetuning.discard(features.workspace)
    metrics = {name: precision(found, source.targets, points=points) for name, points in SCORES.items()}
    return Result(metrics, found[0])


def cells_of(protocol: Protocol) -> list[dict[str, float]]:
    grid = {
        name: protocol.grid.get(name, default)
        for name, default in (("lr", [0.003]), ("weight_decay", [1e-6]), ("stepsize", [10000.0]))
    }
    return [
        {"lr": a, "weight_decay": d, "stepsize": s}
        for a in grid["lr"]
        for d in grid["weight_decay"]
        for s in grid["stepsize"]
    ]


def train(
    protocol: Protocol, head: Head, features: Features, split: str, cell: dict[str, float], seed: int, name: str
) -> nn.Module:
    """A network trained on ``split``; found again in its file when it was trained before."""
    source = features.source(split)
    if source.targets is None:
        raise UserError(f"{protocol.dataset}/{split}: one label per image; {protocol.id} needs several (VOC's layout)")
    device = features.compute.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(seed, "voc classifier"))
        net = Tuned(copy.deepcopy(features.model.backbone), source.targets.shape[1]).to(device)
        begin(net, head)
        file = features.workspace / f"{name}.pt"
        finished = finetuning.kept_file(file, 0)
        if finished.is_file():
            finetuning.restore(net, finished)
            return net
        job = job_of(net, head, cell, rng.permutation(seed, "voc order", 0, len(source)))
        job.seed = seed
        targets = torch.as_tensor(source.targets)

        views = lambda epoch: features.views(f"{protocol.transform.train}:{epoch}", seed)
        finetuning.fit(job, source, targets, views, features.compute, file, features.say)
    finetuning.keep(net, finished)
    file.unlink(missing_ok=True)
    return net


def job_of(net: Tuned, head: Head, cell: dict[str, float], order: np.ndarray) -> FineTuning:
    """Stochastic gradient descent as the authors have it: the same order every epoch, rate halved every ``stepsize``."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=cell["lr"], momentum=head.momentum, weight_decay=cell["weight_decay"])
    batches = finetuning.batches_of(order, head.batch)
    epochs, rest = divmod(head.iterations, len(batches))
    schedule = [batches] * epochs + ([batches[:rest]] if rest else [])
    rates = cell["lr"] * 0.5 ** (np.arange(head.iterations) // int(cell["stepsize"]))
    return FineTuning(net, optimizer, schedule, rates[:, None], multilabel_loss, frozen_statistics, clip=head.clip)


def multilabel_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Sum of the logistic losses of all images and classes; entries marked 255 (difficult objects) cost nothing."""
    each = F.binary_cross_entropy_with_logits(scores, (targets == 1).float(), reduction="none")
    return (each * (targets != 255)).sum()


def begin(net: Tuned, head: Head) -> None:
    """Fresh fully connected layers, and only the chosen parameters left to train."""
    classifier = getattr(net.body, "classifier", nn.Identity())
    layers = [m for m in classifier.modules() if isinstance(m, nn.Linear)] if head.restart else []
    for layer in (*layers, net.pred_layer):
        nn.init.normal_(layer.weight, 0, head.std)
        if layer.bias is not None:
            nn.init.constant_(layer.bias, head.bias)
    if head.train == "fc68":
        net.body.requires_grad_(False)
        classifier.requires_grad_(True)
        for m in net.body.modules():
            if head.train_batchnorm and isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.requires_grad_(True)


def frozen_statistics(net: nn.Module) -> nn.Module:
    """Dropout is active in the fully connected layers; everything before them, batch norm above all, is in eval mode."""
    net.train()
    body: Any = net.body
    for name, part in body.named_children():
        part.train(name == "classifier")
    return net


def evaluate(head: Head, features: Features, source: Any, net: nn.Module, seed: int) -> np.ndarray:
    """(N, classes) logits, the mean over ``head.views`` random crops or over the protocol's fixed ones."""
    if not head.views:
        return finetuning.scores_of(net, source, features.views(features.protocol.transform.test), features.compute)
    drawn = rng.key(seed, "voc test crops") % 2**31
    passes = (features.views(f"random_resized_crop:{e}", drawn) for e in range(head.views))
    return np.mean([finetuning.scores_of(net, source, views, features.compute) for views in passes], axis=0)
