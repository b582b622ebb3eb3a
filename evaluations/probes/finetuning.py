"""A short training loop for evaluations that change the network: fine-tuning, semi-supervised learning, VOC classification.

Batches are lists of image numbers fixed beforehand, rates are a table (steps, groups), views are functions of (seed,
epoch, image): an interrupted run goes on from its checkpoint, and several processes compute what one would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine import batchnorm, checkpoint, dist, layout, rng
from engine.signals import Signals, noticed
from results.record import Selection

from ..inputs.features import SAY_EVERY, Compute
from ..inputs.views import Views, stream
from ..protocol import Protocol
from .batched import Diverged


class Tuned(nn.Module):
    """A backbone and a fresh linear layer on its classifier input: images (B, C, H, W) -> scores (B, classes)."""

    def __init__(self, body: Any, classes: int):
        super().__init__()
        self.body = body
        self.pred_layer = nn.Linear(body.dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.pred_layer(self.body.classifier_input(self.body(x)))


@dataclass
class FineTuning:
    """Everything that decides a run. order[epoch] lists the global batches; rates (steps, groups).

    loss     (scores (B, C), targets (B, ...)) -> sum over the rows of their losses, divided by the rows of all processes
    mode     puts the network's parts into train or eval mode before each step
    keep     epochs after which the state is kept, for "best epoch on test"
    seed     of dropout: random numbers are a function of seed, step and process, so that a checkpoint needs to hold none
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer
    order: list[list[np.ndarray]]
    rates: np.ndarray
    loss: Callable[[Tensor, Tensor], Tensor]
    mode: Callable[[nn.Module], Any]
    clip: float | None = None
    keep: Sequence[int] = ()
    seed: int = 0
    losses: list[float] = field(default_factory=list)


def fit(
    job: FineTuning,
    source: Any,
    targets: Tensor,
    views: Callable[[int], Views],
    compute: Compute,
    file: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    every: int = 1000,
) -> None:
    """Run the job to its end; ``file`` holds a checkpoint each ``every`` steps, and kept epochs lie beside it.

    SIGINT or SIGTERM: the step is finished, the checkpoint written, and SystemExit raised.
    """
    with noticed() as signals:
        _fit(job, source, targets, views, compute, file, say, every, signals)


def _fit(
    job: FineTuning,
    source: Any,
    targets: Tensor,
    views: Callable[[int], Views],
    compute: Compute,
    file: Path | None,
    say: Callable[[str], None],
    every: int,
    signals: Signals,
) -> None:
    total = sum(len(batches) for batches in job.order)
    step = _resume(job, file) if file is not None else 0
    said, done = time.monotonic(), 0
    for epoch, batches in enumerate(job.order):
        if done + len(batches) <= step:
            done += len(batches)
            continue
        rest = batches[step - done :]
        mine = [np.array_split(rows, dist.world_size())[dist.rank()] for rows in rest]
        for rows, (mine_now, images) in zip(rest, stream(source, views(epoch), mine, compute.workers), strict=True):
            value = one_step(job, step, images[:, 0], targets[mine_now], len(rows), compute, source, mine_now)
            job.losses.append(value)
            step += 1
            if file is not None and step == done + len(batches) and epoch + 1 in job.keep:
                keep(job.net, kept_file(file, epoch + 1))  # before a checkpoint, from which this epoch counts as done
            asked = step < total and asked_to_stop(signals, compute)
            if file is not None and (asked or step % every == 0) and step < total:
                _save(job, file, step)
            if asked:
                say(f"stopped at step {step:,}: the same command goes on from here")
                raise SystemExit(128 + (signals.received or 15))
            if time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                say(f"step {step:,}/{total:,}, loss {value:.3f}")
        done += len(batches)


def asked_to_stop(signals: Signals, compute: Compute) -> bool:
    """Whether any process was asked to stop."""
    received = signals.received is not None
    return (
        received
        if dist.world_size() == 1
        else bool(dist.all_reduce_(torch.tensor(float(received), device=compute.device)))
    )


def one_step(
    job: FineTuning,
    step: int,
    images: Tensor,
    targets: Tensor,
    rows: int,
    compute: Compute,
    source: Any = None,
    numbers: np.ndarray | None = None,
) -> float:
    """Forward, backward, the mean gradient over processes, clipping, one move. Returns the loss of the global batch.

    source, numbers   where these images come from, and which they are: an error names the first that gives NaN
    """
    for group, rate in zip(job.optimizer.param_groups, job.rates[step], strict=True):
        group["lr"] = float(rate)
    job.mode(job.net)
    rng.seed_torch(compute.device, job.seed, "fine-tuning step", step, dist.rank())
    job.optimizer.zero_grad()
    loss = torch.zeros((), device=compute.device)
    # Synchronised batch norm waits for every process, those without rows too; plain batch norm could not take no rows.
    if len(images) or any(isinstance(m, batchnorm.SyncBatchNorm) for m in job.net.modules()):
        with torch.autocast(compute.device.type, torch.bfloat16, enabled=compute.precision == "bfloat16"):
            scores = job.net(layout.arranged(images, job.net, compute.device))
        loss = job.loss(scores.float(), targets.to(compute.device)) / rows
        loss.backward()
    _sum_gradients(job.net)
    if job.clip is not None:
        nn.utils.clip_grad_norm_(job.net.parameters(), job.clip)
    job.optimizer.step()
    value = float(dist.all_reduce_(loss.detach().clone()))
    if not np.isfinite(value):
        sick = ~scores.detach().flatten(1).isfinite().all(1) if len(images) else torch.zeros(0, dtype=torch.bool)
        if step and bool(sick.all()):
            raise Diverged(f"the loss is not finite at step {step}; lower grid.lr")
        which = ""
        if source is not None and numbers is not None and sick.any():
            which = f" for image {source.name(int(numbers[int(sick.nonzero()[0])]))}"
        raise Diverged(
            f"the loss is not finite at step {step}: the network gives NaN or infinity{which}; its weights may be damaged"
        )
    return value


def choose(
    protocol: Protocol, cells: list[dict[str, float]], trial: Callable[[dict[str, float], str], float], folder: Path
) -> tuple[dict[str, float], Selection | None]:
    """The cell with the best ``trial(cell, name)``, higher being better, and the record of the choice.

    The first cell and None where the protocol chooses nothing. Each score is kept in ``folder``, and found there again
    after an interruption.
    """
    if protocol.select.on != "val":
        return cells[0], None
    scores = []
    for number, cell in enumerate(cells):
        file = folder / f"trial{number}.json"
        if not file.is_file():
            value = trial(cell, file.stem)
            if dist.is_main():
                file.parent.mkdir(parents=True, exist_ok=True)
                checkpoint.write_json(file, value)
            dist.barrier()
        scores.append(float(checkpoint.read_json(file)))
    chosen = cells[int(np.argmax(scores))]
    grid = [{**cell, "score": round(s, 4)} for cell, s in zip(cells, scores, strict=True)]
    on = f"{protocol.splits.val}, trained on {protocol.splits.fit or protocol.splits.train}"
    return chosen, Selection(on=on, metric=protocol.select.metric, chosen=chosen, score=max(scores), grid=grid)


def batches_of(order: np.ndarray, size: int, drop_last: bool = False) -> list[np.ndarray]:
    """Consecutive batches of a list of image numbers."""
    stop = len(order) - len(order) % size if drop_last and len(order) >= size else len(order)
    return [order[at : min(at + size, stop)] for at in range(0, stop, size)]


@torch.no_grad()
def scores_of(net: nn.Module, source: Any, views: Views, compute: Compute, average: str = "logits") -> np.ndarray:
    """(N, C) float32 scores of every image in eval mode, mean over its views; the processes share the work."""
    net.eval()
    batchnorm.broadcast_batchnorm_(net)  # each process gathered its own
    mine = np.array_split(np.arange(len(source)), dist.world_size())[dist.rank()]
    size = max(1, compute.batch // (10 if views.view == "ten_crop" else 1))
    found = None
    for rows, images in stream(source, views, batches_of(mine, size) or [mine], compute.workers):
        with torch.autocast(compute.device.type, torch.bfloat16, enabled=compute.precision == "bfloat16"):
            out = net(layout.arranged(images.flatten(0, 1), net, compute.device)).float()
        whole = out.isfinite().all(1)
        if not whole.all():
            sick = int(rows[int((~whole).nonzero()[0]) * len(rows) // len(whole)])
            raise Diverged(f"the network gives NaN or infinity for image {source.name(sick)}; lower grid.lr")
        out = out.softmax(1) if average == "softmax" else out
        if found is None:
            found = torch.zeros(len(source), out.shape[1])
        found[torch.as_tensor(rows)] = out.unflatten(0, (len(rows), images.shape[1])).mean(1).cpu()
    assert found is not None
    return dist.all_reduce_(found.to(compute.device)).cpu().numpy()


def kept_file(file: Path, epoch: int) -> Path:
    return file.with_name(f"{file.stem}-epoch{epoch}.pt")


def keep(net: nn.Module, file: Path) -> None:
    """Write the network's weights, whole or not at all."""
    if dist.is_main():
        file.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(file, {"net": dict(net.state_dict())})
    dist.barrier()


def discard(folder: Path) -> None:
    """Throw away checkpoints and kept epochs of a measurement that has its numbers."""
    dist.barrier()
    if dist.is_main():
        for file in folder.glob("*.pt"):
            file.unlink(missing_ok=True)


def restore(net: nn.Module, file: Path) -> None:
    """Put a kept epoch's weights into the network."""
    state = checkpoint.load(file)
    assert state is not None
    net.load_state_dict(state["net"])


def _sum_gradients(net: nn.Module) -> None:
    """Each process's loss is its part of the global mean, so gradients add up."""
    if dist.world_size() == 1:
        return
    parameters = [p for p in net.parameters() if p.requires_grad]
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
    for p, part in zip(parameters, dist.all_reduce_(flat).split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)


def _save(job: FineTuning, file: Path, step: int) -> None:
    if dist.is_main():
        file.parent.mkdir(parents=True, exist_ok=True)
        parameters = [p for g in job.optimizer.param_groups for p in g["params"]]
        momentum = [job.optimizer.state[p].get("momentum_buffer") for p in parameters]
        state = {"step": step, "net": dict(job.net.state_dict()), "momentum": momentum, "losses": list(job.losses)}
        checkpoint.save(file, state)
    dist.barrier()


def _resume(job: FineTuning, file: Path) -> int:
    state = checkpoint.load(file) if file.is_file() else None
    if state is None:
        return 0
    job.net.load_state_dict(state["net"])
    parameters = [p for g in job.optimizer.param_groups for p in g["params"]]
    for p, value in zip(parameters, state["momentum"], strict=True):
        if value is not None:
            job.optimizer.state[p]["momentum_buffer"] = value.to(p)
    job.losses[:] = state["losses"]
    return int(state["step"])
