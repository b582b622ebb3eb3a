"""The loss of every method once more, in float64 and in loops, from its equation and the network's own outputs.

Each function takes the method after `before_step`, its batch and the step, and must not call the method's loss code.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from reproduce.methods.unmix import box

Array = np.ndarray
LOSSES: dict[str, Callable[[Any, Any, int], float]] = {}


def slow(*names: str) -> Callable:
    def keep(function: Callable) -> Callable:
        LOSSES.update(dict.fromkeys(names, function))
        return function
    return keep


def rows(x: torch.Tensor) -> Array:
    return x.detach().double().numpy()


def unit(x: Array) -> Array:
    return np.stack([row / math.sqrt(sum(v * v for v in row)) for row in x])


def cross_entropy(logits: Array, target: int) -> float:
    top = max(logits)
    return top + math.log(sum(math.exp(x - top) for x in logits)) - logits[target]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


# -- SwAV ----------------------------------------------------------------------------------------------------------------
def sinkhorn(scores: Array, epsilon: float, iterations: int) -> Array:
    """Equal mass for prototypes, then for samples, over and over (SwAV, algorithm 1)."""
    q = np.exp(scores / epsilon)
    for _ in range(iterations):
        for k in range(q.shape[1]):
            q[:, k] /= q[:, k].sum() * q.shape[1]
        for b in range(q.shape[0]):
            q[b] /= q[b].sum() * q.shape[0]
    return q * q.shape[0]


def swav_of(method: Any, z: list[Array], weight: Array, assigned: list[Array] | None = None) -> float:
    scores, losses = [one @ weight.T for one in z], []
    for crop in method.assign_crops:
        q = sinkhorn((assigned or z)[crop] @ weight.T, method.epsilon, method.iterations)
        for v in range(len(z)):
            if v != crop:
                for b in range(len(z[v])):
                    losses.append(sum(q[b, k] * cross_entropy(scores[v][b] / method.temperature, k) for k in range(len(weight))))
    return mean(losses)


@slow("swav")
def swav(method: Any, batch: Any, step: int) -> float:
    z, _ = method.scores(batch.views)
    return swav_of(method, [rows(one) for one in z], rows(method.prototypes.weight))


# -- clusters ------------------------------------------------------------------------------------------------------------
@slow("deepclusterv2", "selav2")
def clustered(method: Any, batch: Any, step: int) -> float:
    z, losses = unit(rows(method.projection_head(method.backbone(torch.cat(batch.views))))), []
    images = batch.index.tolist()
    for h, layer in enumerate(method.prototypes.values()):
        weight, head = rows(layer.weight), []
        for i, row in enumerate(z):
            if (label := int(method.labels[h, images[i % len(images)]])) >= 0:
                head.append(cross_entropy(weight @ row / method.temperature, label))
        losses.append(mean(head))
    return mean(losses)


def linear(weight: Array, bias: Array, x: Array) -> Array:
    return np.array([sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)])


@slow("deepcluster")
def deepcluster(method: Any, batch: Any, step: int) -> float:
    weight, bias, losses = rows(method.head.weight), rows(method.head.bias), []
    for view in batch.views:
        for image, row in zip(batch.index.tolist(), rows(method.backbone(view)), strict=True):
            losses.append(cross_entropy(linear(weight, bias, np.maximum(row, 0)), int(method.labels[0, image])))
    return mean(losses)


@slow("deepercluster")
def deepercluster(method: Any, batch: Any, step: int) -> float:
    """Each image is turned as its place in the batch says, and asks two heads: which super-class, which cluster in it."""
    weights, biases, losses = rows(method.sub_weight), rows(method.sub_bias), []
    of = [place // (method.batch // method.super_classes) for place in range(len(batch.index))]
    for view in batch.views:
        turned = torch.stack([torch.rot90(view[i], of[i] % 4, (1, 2)) for i in range(len(of))])
        for i, row in enumerate(rows(method.backbone(turned))):
            h, image = np.maximum(row, 0), int(batch.index[i])
            cluster = int(method.labels[1, image]) - int(method.labels[0, image]) * method.each
            above = linear(rows(method.super_head.weight), rows(method.super_head.bias), h)
            losses.append(cross_entropy(above, of[i]) + cross_entropy(linear(weights[of[i]], biases[of[i]], h), cluster))
    return mean(losses)


@slow("sela", "pseudolabel")
def sela(method: Any, batch: Any, step: int) -> float:
    features, losses = [rows(method.backbone(view)) for view in batch.views], []
    for h, head in enumerate(method.heads):
        for view in features:
            for image, row in zip(batch.index.tolist(), view, strict=True):
                losses.append(cross_entropy(linear(rows(head.weight), rows(head.bias), row), int(method.labels[h, image])))
    return mean(losses)


# -- instances -----------------------------------------------------------------------------------------------------------
def nt_xent(a: Array, b: Array, t: float) -> float:
    flat, n = np.concatenate([a, b]), len(a)
    losses = []
    for i in range(2 * n):
        others = [k for k in range(2 * n) if k != i]
        losses.append(cross_entropy([flat[i] @ flat[k] / t for k in others], others.index((i + n) % (2 * n))))
    return mean(losses)


@slow("simclr")
def simclr(method: Any, batch: Any, step: int) -> float:
    a, b = (rows(z) for z in method.project(batch.views))
    return nt_xent(a, b, method.temperature)


def moco_of(q: Array, k: Array, queue: Array, t: float) -> float:
    return mean([cross_entropy([q[b] @ k[b] / t] + [q[b] @ queue[:, j] / t for j in range(queue.shape[1])], 0) for b in range(len(q))])


@slow("mocov1", "mocov2")
def moco(method: Any, batch: Any, step: int) -> float:
    q, k = rows(method.queries(batch.views[0])), rows(method.keys(batch.views[1], step))
    return moco_of(q, k, rows(method.queue), method.temperature)


@slow("instdisc")
def instdisc(method: Any, batch: Any, step: int) -> float:
    memory, losses = rows(method.memory), []
    for v, view in enumerate(batch.views):
        f = unit(rows(method.head(method.backbone(view))))
        drawn = method.draw(batch.index, step, v).tolist()
        losses += [cross_entropy([f[b] @ memory[i] / method.temperature for i in drawn[b]], 0) for b in range(len(f))]
    return mean(losses)


@slow("pic")
def pic(method: Any, batch: Any, step: int) -> float:
    classes, losses = unit(rows(method.rows.whole())), []
    for view in batch.views:
        f = unit(rows(method.head(method.backbone(view))))
        losses += [cross_entropy(classes @ f[b] / method.temperature, image) for b, image in enumerate(batch.index.tolist())]
    return mean(losses)


@slow("unmix")
def unmix(method: Any, batch: Any, step: int) -> float:
    """On SimCLR, as the digits recipe has it: pixel by pixel mixtures of neighbours, then three plain losses."""
    whole, lam, cy, cx = method.draw(step)
    first, second = batch.views[:2]
    n, _, height, width = first.shape
    top, left, bottom, right = box(height, width, lam, int(cy * height), int(cx * width))
    mixed, share = first.clone(), lam if whole else 1 - (bottom - top) * (right - left) / (height * width)
    for i in range(n):
        partner = min(i ^ 1, n - 1) if i ^ 1 < n else i
        for y in range(height):
            for x in range(width):
                if whole:
                    mixed[i, :, y, x] = lam * first[i, :, y, x] + (1 - lam) * first[partner, :, y, x]
                elif top <= y < bottom and left <= x < right:
                    mixed[i, :, y, x] = first[partner, :, y, x]
    a, b, m = (rows(z) for z in method.base.project([first, second, mixed]))
    back = np.stack([m[i ^ 1] if i ^ 1 < n else m[i] for i in range(n)])
    t = method.base.temperature
    return nt_xent(a, b, t) + share * nt_xent(m, b, t) + (1 - share) * nt_xent(back, b, t)


@slow("simsiam")
def simsiam(method: Any, batch: Any, step: int) -> float:
    z = [method.projector(method.backbone(view)) for view in batch.views]
    p = [rows(method.predictor(one)) for one in z]
    z = [rows(one) for one in z]
    cosine = [unit(p[a])[i] @ unit(z[b])[i] for a, b in ((0, 1), (1, 0)) for i in range(len(z[0]))]
    return -mean(cosine)


# -- labels --------------------------------------------------------------------------------------------------------------
@slow("rotnet")
def rotnet(method: Any, batch: Any, step: int) -> float:
    losses = []
    for view in batch.views:
        turned = [np.rot90(image, k, axes=(1, 2)) for k in range(4) for image in view.numpy()]
        logits = rows(method.head(method.backbone(torch.from_numpy(np.stack(turned)))))
        losses += [cross_entropy(logits[i], i // len(view)) for i in range(len(turned))]
    return mean(losses)


@slow("supervised")
def supervised(method: Any, batch: Any, step: int) -> float:
    logits = rows(method.head(method.backbone(torch.cat(batch.views))))
    return mean([cross_entropy(logits[i], int(batch.labels[i % len(batch.labels)])) for i in range(len(logits))])
