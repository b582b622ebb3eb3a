"""Many linear classifiers at once: folds x rates x decays x seeds share every batch of features in one batched matmul.

A fold is a row of sample weights (0 holds a sample out), so all heads read the same rows in the same order and each is
trained exactly as it would be alone. Gradients are written out: softmax or logistic minus target, nothing more.

Before the heads stands a standardisation without parameters (self-label's probes have it as a BatchNorm without affine):
it removes the factor of a hundred between methods' best learning rates. Its mean and variance come from the rows that
a fold may see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from engine import optim, rng
from zoo.errors import UserError

CHUNK = 8192  # rows read at once
IN_MEMORY = 2**26  # numbers of a feature matrix that is kept in memory while heads are trained
IGNORED = 255


class Diverged(UserError, FloatingPointError):
    """Training left the finite numbers."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate over time, as a factor of each head's own base rate.

    cosine     0.5 (1 + cos(pi e / epochs)) per epoch (SwAV), or per step with ``per_step``; after ``warmup`` epochs that
               start at 1/100 of the rate (PIC)
    steps      times ``factor`` at each epoch of ``milestones`` (MoCo, SeLa)
    table      value[i] until epoch milestones[i], the last one to the end, whatever the base rate (RotNet)
    bottou     lr / sqrt(1 + lr decay t) per step t (DeeperCluster)
    constant
    """

    name: Literal["cosine", "steps", "table", "bottou", "constant"] = "cosine"
    per_step: bool = False
    warmup: int = 0
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    values: tuple[float, ...] = ()

    def rates(self, lr: np.ndarray, decay: np.ndarray, epochs: int, steps: int) -> np.ndarray:
        """(epochs * steps, G) float64: the rate of every step for heads with base rates ``lr`` and decays (G,)."""
        t = np.arange(epochs * steps, dtype=np.float64)[:, None]
        lr, decay = np.asarray(lr, np.float64)[None], np.asarray(decay, np.float64)[None]
        if self.name == "bottou":
            return optim.decaying(t, lr, decay)
        if self.name == "steps":
            return optim.falling(t // steps, self.milestones, lr, self.factor)
        if self.name == "table":
            return optim.listed(t // steps, self.milestones, self.values) * np.ones_like(lr)
        if self.name == "constant":
            return lr * np.ones_like(t)
        warm = self.warmup * steps
        at = t - warm if self.per_step or warm else t // steps * steps
        cosine = optim.half_cosine(at, epochs * steps - warm, lr)
        return np.where(t < warm, lr * ((99 * t / max(warm, 1) + 1) / 100), cosine)


@dataclass(frozen=True)
class Grid:
    """The heads of one fold: every rate with every decay with every seed, in that order (seed fastest)."""

    lr: tuple[float, ...]
    weight_decay: tuple[float, ...] = (0.0,)
    seeds: tuple[int, ...] = (0,)

    def __len__(self) -> int:
        return len(self.lr) * len(self.weight_decay) * len(self.seeds)

    @property
    def cells(self) -> list[dict[str, float]]:
        return [{"lr": a, "weight_decay": d, "seed": s} for a in self.lr for d in self.weight_decay for s in self.seeds]


@dataclass
class HeadTraining:
    """How all heads of one call of ``train`` are trained."""

    epochs: int = 100
    batch: int = 256
    momentum: float = 0.9
    schedule: Schedule = field(default_factory=Schedule)
    standardise: bool = True
    init_std: float = 0.01
    objective: Literal["softmax", "binary"] = "softmax"
    snapshots: int = 0  # how many evenly spaced epochs to keep of the last fold
    seed: int = 0  # of the batch order


@dataclass
class Heads:
    """Trained heads of one feature matrix. weight (F, G, C, D), bias (F, G, C), mean and scale (F, D)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    grid: Grid
    history: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)  # (epoch, weight, bias) of the last fold

    def scores(self, x: Tensor, fold: int = -1, epoch: int | None = None) -> Tensor:
        """(n, G, C) scores of rows x (n, D) by all heads of a fold, at the end or after a kept epoch of the last fold."""
        weight, bias = self.weight[fold], self.bias[fold]
        if epoch is not None:
            weight, bias = next((w, b) for e, w, b in self.history if e == epoch)
        z = (x.to(weight) - self.mean[fold]) * self.scale[fold]
        return (z @ weight.flatten(0, 1).T).unflatten(1, weight.shape[:2]) + bias


def train(
    x: np.ndarray | Tensor,
    targets: np.ndarray,
    weights: np.ndarray,
    grid: Grid,
    settings: HeadTraining,
    *,
    classes: int,
    device: torch.device | str = "cpu",
) -> Heads:
    """Train F x G heads on one feature matrix.

    x (N, D), also a memory map; targets (N,) classes, or (N, C) in {0, 1, 255 = ignored} for the binary objective;
    weights (F, N) sample weights, zero where a fold holds a sample out.
    """
    device = torch.device(device)
    n, dim = x.shape
    folds, cells = len(weights), grid.cells
    if weights.shape != (folds, n) or len(targets) != n:
        raise ValueError(f"{n} rows of features, {len(targets)} targets, weights {weights.shape}: they must agree")
    share = torch.as_tensor(np.ascontiguousarray(weights, dtype=np.float32), device=device)
    truth = one_hot(targets, classes) if settings.objective == "softmax" else torch.as_tensor(targets)
    mean, scale = statistics(x, weights) if settings.standardise else (torch.zeros(folds, dim), torch.ones(folds, dim))
    mean, scale = mean.to(device), scale.to(device)

    # (F, G*C, D): classes of all cells stand below each other, so that one batched matmul serves a fold.
    weight = _start(grid, settings, classes, dim).flatten(0, 1).expand(folds, -1, -1).clone().to(device)
    bias = torch.zeros(folds, len(cells) * classes, 1, device=device)
    speed, speed_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    lr, decay = (np.array([c[k] for c in cells]) for k in ("lr", "weight_decay"))
    rates = settings.schedule.rates(lr, decay, settings.epochs, math.ceil(n / settings.batch))
    columns = torch.as_tensor(rates, dtype=torch.float32, device=device).repeat_interleave(classes, dim=1)[:, :, None]
    shrink = torch.as_tensor(decay, dtype=torch.float32, device=device).repeat_interleave(classes)[:, None]

    seen = weight.unflatten(1, (len(cells), classes)), bias[:, :, 0].unflatten(1, (len(cells), classes))
    heads = Heads(*seen, mean, scale, grid)
    kept = set(np.linspace(0, settings.epochs, settings.snapshots + 1).round().astype(int)[1:].tolist())
    whole = torch.as_tensor(x, device=device) if n * dim <= IN_MEMORY else None  # small: gathered from memory
    step = 0
    for epoch in range(settings.epochs):
        order = rng.permutation(settings.seed, "linear head batches", epoch, n)
        for at in range(0, n, settings.batch):
            rows = order[at : at + settings.batch]
            index = torch.as_tensor(rows, device=device)
            raw = whole[index] if whole is not None else _rows(x, rows, device)
            z = (raw.float() - mean[:, None]) * scale[:, None]  # (F, B, D)
            logits = torch.baddbmm(bias, weight, z.transpose(1, 2)).unflatten(1, (len(cells), classes))
            slope = _slope(logits, truth[index.cpu()].to(device).T, settings.objective)  # (F, G, C, B)
            part = share[:, index]
            slope *= (part / part.sum(1, keepdim=True).clamp_min(1e-12))[:, None, None]
            flat = slope.flatten(1, 2)
            speed.mul_(settings.momentum).add_(flat @ z).addcmul_(weight, shrink)
            speed_bias.mul_(settings.momentum).add_(flat.sum(2, keepdim=True)).addcmul_(bias, shrink)
            weight.addcmul_(speed, columns[step], value=-1)
            bias.addcmul_(speed_bias, columns[step], value=-1)
            step += 1
        if epoch + 1 in kept:
            heads.history.append((epoch + 1, heads.weight[-1].clone(), heads.bias[-1].clone()))
    _refuse_divergence(heads)
    return heads


def one_hot(labels: np.ndarray, classes: int) -> Tensor:
    """(N, classes) uint8 rows with a single 1."""
    return torch.nn.functional.one_hot(torch.as_tensor(np.asarray(labels, dtype=np.int64)), classes).to(torch.uint8)


def _start(grid: Grid, settings: HeadTraining, classes: int, dim: int) -> Tensor:
    """(G, C, D) initial weights: N(0, init_std), one draw per seed of the grid, whatever its rate and decay."""
    drawn = {s: torch.randn(classes, dim, generator=rng.generator(s, "linear head")) for s in grid.seeds}
    return settings.init_std * torch.stack([drawn[int(c["seed"])] for c in grid.cells])


def _refuse_divergence(heads: Heads) -> None:
    """Heads that ran away score at chance from here on; when all did, that is an error."""
    sick = ~torch.isfinite(heads.weight).all(3).all(2).all(0)  # (G,)
    if sick.all():
        raise Diverged("every head diverged: its weights are not finite; lower grid.lr")
    for tensor in (heads.weight, heads.bias, *(t for _, w, b in heads.history for t in (w, b))):
        tensor.nan_to_num_(0, 0, 0)


def correct(x: np.ndarray | Tensor, labels: np.ndarray, heads: Heads, held_out: np.ndarray) -> np.ndarray:
    """(F, G): how many of the samples that each fold holds out its heads get right, top-1. held_out (F, N) bool."""
    hits = np.zeros((len(held_out), len(heads.grid)))
    for rows, chunk in chunks(x, heads.weight.device):
        truth = torch.as_tensor(labels[rows].astype(np.int64), device=chunk.device)
        for fold, mask in enumerate(held_out):
            if mask[rows].any():
                kept = torch.as_tensor(mask[rows], device=chunk.device)
                best = heads.scores(chunk[kept], fold).argmax(2)
                hits[fold] += (best == truth[kept, None]).sum(0).cpu().numpy()
    return hits


def all_scores(
    x: np.ndarray | Tensor,
    heads: Heads,
    *,
    fold: int = -1,
    cells: Sequence[int] | None = None,
    epoch: int | None = None,
) -> Tensor:
    """(N, len(cells), C) scores of every row by chosen cells of one fold (all cells by default)."""
    found = []
    for _, chunk in chunks(x, heads.weight.device):
        scores = heads.scores(chunk, fold, epoch)
        found.append(scores if cells is None else scores[:, list(cells)])
    return torch.cat(found)


def chunks(x: np.ndarray | Tensor, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    for at in range(0, len(x), CHUNK):
        rows = slice(at, min(at + CHUNK, len(x)))
        yield rows, torch.as_tensor(np.asarray(x[rows]), device=device).float()


def ridge(
    x: np.ndarray | Tensor, labels: np.ndarray, weights: np.ndarray, penalties: Sequence[float], *, classes: int
) -> Heads:
    """Closed-form heads: least squares on one-hot targets in {-1, 1} with an L2 penalty, every fold and penalty at once.

    Standardised features; penalty ``l`` adds ``l * sum of weights`` to the Gram matrix, so it does not depend on N.
    The Gram matrix of each fold is decomposed once and serves every penalty: that of the features (D x D), of which images that the
    same folds see are multiplied once, or that of the fold's images (N x N) where they are fewer. weights (F, N). ``Grid.lr`` of
    the result holds the penalties.
    """
    mean, scale = statistics(x, weights)
    share = torch.as_tensor(weights, dtype=torch.float64)
    total = share.sum(1)
    penalty = torch.as_tensor(penalties, dtype=torch.float64)[None, :] * total[:, None]  # (F, G)
    truth = torch.full((len(labels), classes), -1.0, dtype=torch.float64)
    truth[torch.arange(len(labels)), torch.as_tensor(np.asarray(labels).astype(np.int64))] = 1
    few = int((share > 0).sum(1).max()) < x.shape[1]
    weight = (_by_images if few else _by_features)(x, truth, share, mean.double(), scale.double(), penalty)
    bias = (share @ truth / total[:, None])[:, None].expand(-1, len(penalties), -1)
    return Heads(
        weight.float().contiguous(), bias.float().contiguous(), mean, scale, Grid(tuple(float(p) for p in penalties))
    )


def _by_features(
    x: np.ndarray | Tensor, truth: Tensor, share: Tensor, mean: Tensor, scale: Tensor, penalty: Tensor
) -> Tensor:
    """(F, G, C, D) ridge weights from each fold's D x D Gram matrix; images of equal weight in all folds are multiplied together."""
    folds, dim = mean.shape
    gram, cross = mean.new_zeros(folds, dim, dim), mean.new_zeros(folds, dim, truth.shape[1])
    first = mean.new_zeros(folds, dim)
    centre = mean.mean(0)  # one shift for all folds, so that their own means take little away
    patterns, which = share.unique(dim=1, return_inverse=True)
    for kind, pattern in enumerate(patterns.T):
        own = np.flatnonzero((which == kind).numpy())
        square, product, sums = torch.zeros_like(gram[0]), torch.zeros_like(cross[0]), torch.zeros_like(centre)
        for at in range(0, len(own), CHUNK):
            rows = own[at : at + CHUNK]
            z = torch.as_tensor(np.asarray(x[rows])).double() - centre
            square.addmm_(z.T, z)
            product.addmm_(z.T, truth[torch.from_numpy(rows)])
            sums += z.sum(0)
        for f in pattern.nonzero().flatten().tolist():
            gram[f].add_(square, alpha=float(pattern[f]))
            cross[f].add_(product, alpha=float(pattern[f]))
            first[f].add_(sums, alpha=float(pattern[f]))
    total, middle = share.sum(1), share @ truth
    for f in range(folds):
        shift = mean[f] - centre
        gram[f] -= torch.outer(shift, first[f]) + torch.outer(first[f], shift) - total[f] * torch.outer(shift, shift)
        gram[f] *= torch.outer(scale[f], scale[f])
        cross[f] = (cross[f] - torch.outer(shift, middle[f])) * scale[f][:, None]
    values, vectors = torch.linalg.eigh(gram)
    rotated = vectors.transpose(1, 2) @ cross  # (F, D, C); standardised features have mean 0, so the bias stands apart
    shrunk = rotated[:, :, None] / (values[:, :, None, None].clamp_min(0) + penalty[:, None, :, None] + 1e-12)
    return (vectors @ shrunk.flatten(2)).unflatten(2, shrunk.shape[2:]).permute(0, 2, 3, 1)


def _by_images(
    x: np.ndarray | Tensor, truth: Tensor, share: Tensor, mean: Tensor, scale: Tensor, penalty: Tensor
) -> Tensor:
    """The same weights from the N x N Gram matrix of each fold's images: z' (z z' + penalty)^-1 truth."""
    found = []
    for f, seen in enumerate(share > 0):
        root = share[f, seen].sqrt()[:, None]
        z = (
            torch.as_tensor(np.asarray(x[np.flatnonzero(seen.numpy())]))
            .double()
            .sub_(mean[f])
            .mul_(scale[f])
            .mul_(root)
        )
        values, vectors = torch.linalg.eigh(z @ z.T)
        rotated = vectors.T @ (truth[seen] * root)
        shrunk = rotated[:, None] / (values[:, None, None].clamp_min(0) + penalty[f][None, :, None] + 1e-12)
        solved = (vectors @ shrunk.flatten(1)).T @ z
        found.append(solved.unflatten(0, shrunk.shape[1:]))
    return torch.stack(found)


def statistics(x: np.ndarray | Tensor, weights: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and 1/sd (F, D) of the rows each fold may see; 1e-5 of the mean variance keeps dead features at zero."""
    share = torch.as_tensor(weights, dtype=torch.float64)
    total = share.sum(1, keepdim=True)
    if (total <= 0).any():
        raise ValueError("a fold without a single training sample")
    first = torch.zeros(len(weights), x.shape[1], dtype=torch.float64)
    for rows, chunk in chunks(x, torch.device("cpu")):
        first += share[:, rows] @ chunk.double()
    mean = first / total
    second = torch.zeros_like(first)
    centre = mean.mean(0)  # one shift for all folds, so that one pass serves them and nothing cancels
    for rows, chunk in chunks(x, torch.device("cpu")):
        second += share[:, rows] @ (chunk.double() - centre).square()
    variance = (second / total - (mean - centre).square()).clamp_min(0)
    floor = 1e-5 * variance.mean(1, keepdim=True) + 1e-30
    return mean.float(), (variance + floor).rsqrt().float()


def _slope(logits: Tensor, truth: Tensor, objective: str) -> Tensor:
    """d loss / d logits (F, G, C, B) of each sample's loss, before weighting. truth (C, B)."""
    if objective == "softmax":
        return logits.softmax(2).sub_(truth)
    return (logits.sigmoid() - (truth == 1).float()) * (truth != IGNORED)


def _rows(x: np.ndarray | Tensor, rows: np.ndarray, device: torch.device) -> Tensor:
    """Gathered rows of a large (mapped) matrix: read in file order, returned in batch order."""
    order = np.argsort(rows)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return torch.as_tensor(np.asarray(x[rows[order]]), device=device)[torch.as_tensor(back, device=device)]
