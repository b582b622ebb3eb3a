"""The linear probe as its authors ran it: fresh crops every epoch, plain heads under SGD, one or several processes.

The backbone runs once per batch for every head (layers x folds x rates x decays x seeds), each an ordinary module with
its own rate and schedule. Heads are kept at evenly spaced epochs; when training and selection are over, one pass over
the test split scores them all, so that "best epoch on test" costs no second look.

Several processes are one with the whole batch, batch norm in the heads included. Only a trunk in training mode
normalises by each process's own part, as PIC's code does; the running statistics that count are process 0's.

Used by   linear.py for protocols with ``form: faithful``;  torchrun divides each batch among its processes
Resumes   after every epoch, from ``<out>/probes/<model>/<protocol>--<key>/checkpoint-<split>.pt``
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine import batchnorm, checkpoint, dist, layout, rng
from engine.signals import noticed
from zoo.errors import UserError

from ..inputs.features import SAY_EVERY, Compute, FeatureRequest, Features, layers_of, pool_of
from ..inputs.pooling import pool_map
from ..inputs.views import stream
from ..protocol import Protocol
from . import nonlinear
from .batched import Diverged, Grid
from .finetuning import asked_to_stop

NORMS = {
    "none": lambda channels: nn.Identity(),
    "batch": lambda channels: nn.BatchNorm2d(channels, affine=False),
    "batch_affine": nn.BatchNorm2d,
}


class LinearProbe(nn.Module):
    """A pooled map, perhaps a batch norm over its channels, and one linear layer.

    shape (C, h, w) of the pooled map; norm: none, batch (no affine: self-label, RotNet), batch_affine (SwAV's option);
    init: default (PyTorch's), normal (N(0, std), bias 0: SwAV, MoCo), xavier (SeLa), he_out (RotNet).
    """

    def __init__(
        self, shape: tuple[int, ...], classes: int, norm: str = "none", init: str = "default", std: float = 0.01
    ):
        super().__init__()
        self.bn = NORMS[norm](shape[0])
        self.linear = nn.Linear(int(np.prod(shape)), classes)
        if init != "default":
            nn.init.zeros_(self.linear.bias)
        if init == "normal":
            nn.init.normal_(self.linear.weight, 0, std)
        elif init == "xavier":
            nn.init.xavier_uniform_(self.linear.weight)
        elif init == "he_out":
            nn.init.normal_(self.linear.weight, 0, (2 / classes) ** 0.5)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, classes)."""
        return self.linear(self.bn(pooled).flatten(1))


@dataclass
class Trained:
    """Every head, and what it looked like at the kept epochs. ``heads[layer][fold][cell]``; the last fold is everything."""

    net: Any  # the frozen backbone; a copy of its own where batch norm statistics drift
    heads: dict[str, list[list[nn.Module]]]
    grid: Grid
    # epoch -> layer -> state per cell
    kept: dict[int, dict[str, list[dict[str, Tensor]]]] = field(default_factory=dict)

    def all(self) -> Iterator[nn.Module]:
        for folds in self.heads.values():
            for cells in folds:
                yield from cells


Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Sum over rows; scores (B, C), labels (B,)."""
    return F.cross_entropy(scores, labels, reduction="sum")


def train(
    protocol: Protocol,
    head: Any,
    features: Features,
    targets: np.ndarray,
    weights: np.ndarray,
    grid: Grid,
    seed: int,
    loss_of: Loss = cross_entropy,
) -> Trained:
    """Train every head on random views of the training split. weights (F+1, N): which samples a fold may see.

    targets (N, ...) are what ``loss_of(scores, targets)`` takes; it sums over rows. A checkpoint is written after each epoch, and on
    SIGINT or SIGTERM after the batch, with SystemExit. (A trunk in training mode whose statistics drift apart between processes
    within an epoch goes on with those of process 0.)
    """
    split, n = protocol.splits.train, weights.shape[1]
    labels = torch.as_tensor(targets)
    allowed = torch.as_tensor(weights > 0)
    device = features.compute.device
    found = _build(protocol, head, features, len(weights), grid)
    # One group per head, so that each follows its own schedule; the rate is set before every step.
    optimizer = torch.optim.SGD(
        [{"params": list(h.parameters())} for h in found.all()], lr=0.0, momentum=head.momentum, nesterov=head.nesterov
    )
    steps = -(-n // head.batch)
    rates = _rates(head, grid, found, len(weights), steps)
    for group, cell in zip(optimizer.param_groups, grid.cells * (len(found.heads) * len(weights)), strict=True):
        group["weight_decay"] = float(cell["weight_decay"])
    keep = set(np.linspace(0, head.epochs, min(head.snapshots, head.epochs) + 1).round().astype(int)[1:].tolist())

    file = features.workspace / f"checkpoint-{split}.pt"
    first, start = _resume(file, found, optimizer)
    said = time.monotonic()
    with noticed() as signals:
        for epoch in range(first, head.epochs):
            order = _order(n, head.batch, seed, epoch, drop_last=head.drop_last)
            start = start if epoch == first else 0
            views = features.views(f"{protocol.transform.train}:{epoch}", seed)
            batches = stream(features.source(split), views, order[start:], features.compute.workers)
            for step, (rows, images) in enumerate(batches, start):
                maps = passed(found.net, images[:, 0], protocol, list(found.heads), features.compute)
                for name, value in maps.items():
                    features.refuse_nan(FeatureRequest(split, name), rows, value)
                for group, rate in zip(optimizer.param_groups, rates[epoch * steps + step], strict=True):
                    group["lr"] = float(rate)
                optimizer.zero_grad()
                loss = total_loss(found, maps, labels[rows].to(device), allowed[:, rows].to(device), loss_of)
                if loss.requires_grad:
                    loss.backward()
                _average_gradients(found)
                optimizer.step()
                if step + 1 < len(order) and asked_to_stop(signals, features.compute):
                    if dist.is_main():
                        _save(file, epoch, found, optimizer, step + 1)
                    features.say(f"stopped in epoch {epoch + 1}: the same command goes on from here")
                    raise SystemExit(128 + (signals.received or 15))
                if time.monotonic() - said > SAY_EVERY:
                    said = time.monotonic()
                    features.say(
                        f"epoch {epoch + 1}/{head.epochs}, batch {step + 1}/{len(order)}, loss {loss.item():.3f}"
                    )
            _refuse_divergence(found)
            if epoch + 1 in keep:
                found.kept[epoch + 1] = {name: [_state(h) for h in folds[-1]] for name, folds in found.heads.items()}
            if head.trunk == "train":
                batchnorm.broadcast_batchnorm_(found.net)
            if dist.is_main():
                _save(file, epoch + 1, found, optimizer)
            dist.barrier()
    return found


def total_loss(found: Trained, maps: dict[str, Tensor], labels: Tensor, allowed: Tensor, loss_of: Loss) -> Tensor:
    """Sum over heads of the mean loss on the rows that each may see: every head learns as if it were alone.

    Means are over the rows of all processes, so that averaging gradients over processes gives the global mean. A single
    row teaches nothing to a head with batch norm, which would have one number to normalise: it is left out.
    """
    counts = dist.all_reduce_(allowed.sum(1).float().clone())
    total = torch.zeros((), device=labels.device)
    for name, folds in found.heads.items():
        for fold, cells in enumerate(folds):
            rows = allowed[fold]
            alone = counts[fold] == 1 and maps[name].shape[2:].numel() == 1
            if alone and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for h in cells for m in h.modules()):
                continue
            if counts[fold]:  # a process without such rows takes part too: batch norm waits for everyone
                x, y = maps[name][rows], labels[rows]
                each = torch.stack([loss_of(h(x), y) for h in cells]).sum()
                total = total + each * dist.world_size() / counts[fold]
    return total


Which = tuple[int, int, int | None]  # fold, cell, kept epoch or None for the end


def predict(features: Features, split: str, found: Trained, view: str, which: Sequence[Which]) -> dict[str, np.ndarray]:
    """{layer: (len(which), N) predicted classes} in one pass."""
    return _pass(features, split, found, view, which, lambda scores: scores.argmax(1))


def five_best(
    features: Features, split: str, found: Trained, view: str, which: Sequence[Which]
) -> dict[str, np.ndarray]:
    """{layer: (len(which), N, 5)}, the best first."""
    return _pass(
        features, split, found, view, which, lambda scores: scores.topk(min(5, scores.shape[1]), dim=1).indices
    )


def score(features: Features, split: str, found: Trained, view: str, which: Sequence[Which]) -> dict[str, np.ndarray]:
    """{layer: (len(which), N, C) scores} in one pass."""
    return _pass(features, split, found, view, which, lambda scores: scores)


def _pass(
    features: Features,
    split: str,
    found: Trained,
    view: str,
    which: Sequence[Which],
    keep: Callable[[Tensor], Tensor],
) -> dict[str, np.ndarray]:
    """What ``keep`` makes of each head's scores (B, C), mean over the views of an image; processes share the images."""
    source, protocol, device = features.source(split), features.protocol, features.compute.device
    for module in (found.net, *found.all()):
        module.eval()
    kept: dict[str, Tensor] = {}
    size = max(1, features.compute.batch // (10 if view == "ten_crop" else 1))
    order = np.array_split(np.arange(len(source)), -(-len(source) // size))
    # A process without a batch has an empty one, which says how wide the scores are that all processes add up.
    mine = order[dist.rank() :: dist.world_size()] or [np.arange(0)]
    for rows, images in stream(source, features.views(view), mine, features.compute.workers):
        maps = passed(found.net, images.flatten(0, 1), protocol, list(found.heads), features.compute)
        for name, value in maps.items():
            features.refuse_nan(FeatureRequest(split, name), rows, value.unflatten(0, (len(rows), images.shape[1])))
        for name in found.heads:
            for i, place in enumerate(which):
                scores = _scores(found, name, place, maps[name])
                scores = scores.softmax(1) if protocol.transform.average == "softmax" else scores
                value = keep(scores.unflatten(0, (len(rows), images.shape[1])).mean(1)).cpu()
                if name not in kept:
                    kept[name] = torch.zeros(len(which), len(source), *value.shape[1:], dtype=value.dtype)
                kept[name][i, torch.as_tensor(rows)] = value
    # Each process filled its own rows and left zeros elsewhere.
    return {name: dist.all_reduce_(value.to(device)).cpu().numpy() for name, value in kept.items()}


@torch.no_grad()
def _scores(found: Trained, name: str, place: Which, maps: Tensor) -> Tensor:
    fold, cell, epoch = place
    probe = found.heads[name][fold][cell]
    if epoch is None:
        return probe(maps)
    state = {k: v.to(maps.device) for k, v in found.kept[epoch][name][cell].items()}
    return torch.func.functional_call(probe, state, maps)


def passed(net: Any, images: Tensor, protocol: Protocol, layers: list[str], compute: Compute) -> dict[str, Tensor]:
    """``pooled_maps`` on the device; a GPU computes them as other frozen features (features.py)."""
    if compute.device.type != "cuda":
        return pooled_maps(net, images.to(compute.device), protocol, layers)
    with compute.autocast():
        return pooled_maps(net, layout.arranged(images, net, compute.device), protocol, layers)


def pooled_maps(net: Any, images: Tensor, protocol: Protocol, layers: list[str]) -> dict[str, Tensor]:
    """{layer: (B, C, h, w)} of one pass; the backbone's vector and its classifier input are maps of one position."""
    with torch.no_grad():
        names = [name for name in layers if name not in ("output", "classifier_input")]
        maps = net.forward_layers(images, names) if names else {}
        found = {name: pool_map(maps[name].float(), pool_of(protocol, name)) for name in names}
        if len(names) < len(layers):
            output = net(images).float()
            vectors = {"output": output, "classifier_input": net.classifier_input(output)}
            found |= {name: vectors[name][:, :, None, None] for name in layers if name in vectors}
    return found


def _build(protocol: Protocol, head: Any, features: Features, folds: int, grid: Grid) -> Trained:
    split, device = protocol.splits.train, features.compute.device
    layers = layers_of(protocol, features.model)
    views = features.views(f"{protocol.transform.train}:0")
    _, images = next(iter(stream(features.source(split), views, [np.arange(1)])))
    net = features.model.backbone.to(device).requires_grad_(False).eval()
    shapes = {name: tuple(m.shape[1:]) for name, m in pooled_maps(net, images[0].to(device), protocol, layers).items()}
    classes = features.classes(split)
    built: dict[str, list[list[nn.Module]]] = {}
    for name, shape in shapes.items():
        built[name] = []
        for _ in range(folds):
            cells = []
            for cell in grid.cells:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(rng.key(int(cell["seed"]), "linear head"))
                    cells.append(batchnorm.convert_sync_bn(probe_of(head, name, shape, classes)).to(device))
            built[name].append(cells)
    # In train mode batch norm takes the batch's statistics and lets the running ones drift, as PIC's and SeLa's code does.
    return Trained(copy.deepcopy(net).train() if head.trunk == "train" else net, built, grid)


def probe_of(head: Any, layer: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """The classifier of a layer, freshly drawn: pooled maps (B, *shape) -> (B, classes)."""
    name = head.classifier_of(layer)
    if name == "linear":
        return LinearProbe(shape, classes, head.norm, head.init, head.init_std)
    return nonlinear.build(name, shape, classes)


def _rates(head: Any, grid: Grid, found: Trained, folds: int, steps: int) -> np.ndarray:
    """(epochs * steps, heads): layer by layer, fold by fold, cell by cell."""
    decay = np.array([c["weight_decay"] for c in grid.cells])
    columns = []
    for name in found.heads:
        lr = np.array([head.lr_of.get(name, c["lr"]) for c in grid.cells])
        columns += [head.schedule.build().rates(lr, decay, head.epochs, steps)] * folds
    return np.concatenate(columns, axis=1)


def _order(n: int, batch: int, seed: int, epoch: int, drop_last: bool) -> list[np.ndarray]:
    """This process's part of every global batch of an epoch."""
    shuffled = rng.permutation(seed, "linear head batches", epoch, n)
    stop = n - n % batch if drop_last and n >= batch else n
    world, rank = dist.world_size(), dist.rank()
    return [np.array_split(shuffled[at : min(at + batch, stop)], world)[rank] for at in range(0, stop, batch)]


@torch.no_grad()
def _refuse_divergence(found: Trained) -> None:
    """A head that ran away scores at chance from here on; when all heads of a layer did, that is an error."""
    for name, folds in found.heads.items():
        sick = [h for h in folds[-1] if not all(p.isfinite().all() for p in h.parameters())]
        if len(sick) == len(folds[-1]):
            raise Diverged(f"every classifier of layer {name} diverged; lower grid.lr")
        for h in [h for cells in folds for h in cells if not all(p.isfinite().all() for p in h.parameters())]:
            for value in (*h.parameters(), *h.buffers()):
                value.nan_to_num_(0, 0, 0)


def _average_gradients(found: Trained) -> None:
    """The mean over processes; a head that saw no row of this batch has a zero gradient, and only decays."""
    parameters = [p for h in found.all() for p in h.parameters()]
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    if dist.world_size() > 1:
        flat = dist.all_reduce_(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
        for p, part in zip(parameters, (flat / dist.world_size()).split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)


def _state(probe: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().to("cpu", copy=True) for k, v in probe.state_dict().items()}


def _save(file: Path, epoch: int, found: Trained, optimizer: torch.optim.Optimizer, batches: int = 0) -> None:
    """After ``epoch`` whole epochs and ``batches`` of the next."""
    file.parent.mkdir(parents=True, exist_ok=True)
    momentum = [optimizer.state[p].get("momentum_buffer") for g in optimizer.param_groups for p in g["params"]]
    state = {"epoch": epoch, "batches": batches, "heads": [_state(h) for h in found.all()], "momentum": momentum}
    if found.net.training:
        state["drift"] = {k: v.to("cpu", copy=True) for k, v in found.net.named_buffers()}
    checkpoint.save(file, {**state, "kept": {str(k): v for k, v in found.kept.items()}})


def _resume(file: Path, found: Trained, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """(epochs, batches of the next) that are done; heads, momentum and the trunk's statistics as they were after them."""
    if not file.is_file():
        return 0, 0
    state = checkpoint.load(file)
    assert state is not None
    if len(state["heads"]) != sum(1 for _ in found.all()):
        raise UserError(f"{file}: was written with other heads; remove it to start again")
    for probe, values in zip(found.all(), state["heads"], strict=True):
        probe.load_state_dict(values)
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    for p, value in zip(parameters, state["momentum"], strict=True):
        if value is not None:
            optimizer.state[p]["momentum_buffer"] = value.to(p)
    buffers = dict(found.net.named_buffers())
    for name, value in state.get("drift", {}).items():
        buffers[name].copy_(value)
    found.kept.update({int(k): v for k, v in state["kept"].items()})
    return int(state["epoch"]), int(state.get("batches", 0))
