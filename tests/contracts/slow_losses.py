"""The loss of every method once more, in float64 and in loops, from its equation and the network's own outputs.

Each function takes the method after `before_step`, its batch and the step, returns the loss with its graph, and must not call the
method's loss code. What a paper treats as a constant (assignments, keys, memories, the other side of SimSiam) is detached here, so
that gradients are checked as well as values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reproduce.methods.unmix import box

LOSSES: dict[str, Callable[[Any, Any, int], Tensor]] = {}
# What else has a gradient: parameters that a method keeps from the optimiser.
APART: dict[str, Callable[[Any], Tensor]] = {}


def slow(*names: str) -> Callable:
    def keep(function: Callable) -> Callable:
        LOSSES.update(dict.fromkeys(names, function))
        return function

    return keep


def rows(x: Tensor) -> Tensor:
    return x.double()


def constant(x: Tensor) -> Tensor:
    return x.detach().double()


def unit(x: Tensor) -> Tensor:
    return torch.stack([row / (row * row).sum().sqrt() for row in x])


def cross_entropy(logits: Tensor, target: int) -> Tensor:
    top = logits.detach().max()
    return top + (logits - top).exp().sum().log() - logits[target]


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).sum() / len(values)


def linear(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return (weight * x).sum(1) + bias


# -- SwAV ----------------------------------------------------------------------------------------------------------------
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Equal mass for prototypes, then for samples, over and over (SwAV, algorithm 1)."""
    q = torch.exp(scores / epsilon)
    for _ in range(iterations):
        for k in range(q.shape[1]):
            q[:, k] /= q[:, k].sum() * q.shape[1]
        for b in range(q.shape[0]):
            q[b] /= q[b].sum() * q.shape[0]
    return q * q.shape[0]


def swav_embeddings(method: Any, views: list[Tensor]) -> list[Tensor]:
    """Unit embeddings of each view. Neighbours of equal size go through the backbone together, all of them through the head."""
    features: list[Tensor] = []
    previous = 0
    for view in views:
        if view.shape[-1] == previous:
            features[-1] = torch.cat([features[-1], view])
        else:
            features.append(view)
        previous = view.shape[-1]
    head = method.projection_head(torch.cat([method.backbone(part) for part in features]))
    return list(unit(rows(head)).reshape(len(views), len(views[0]), -1))


def swav_of(method: Any, z: list[Tensor], assigned: list[Tensor] | None = None) -> Tensor:
    """z: unit embeddings of the views that predict; assigned: of those that are assigned, where these are others."""
    weight, losses = rows(method.prototypes.weight), []
    for a, crop in enumerate(method.assign_crops):
        before = [] if not method.queue_full else [constant(method.queue[a])]
        q = sinkhorn(
            torch.cat([*before, constant((assigned or z)[crop])]) @ weight.detach().T, method.epsilon, method.iterations
        )
        q = torch.nn.functional.one_hot(q.argmax(1), q.shape[1]) if method.hard else q
        for v in range(len(z)):
            if v != crop:
                for b in range(len(z[v])):
                    own, logits = q[len(q) - len(z[v]) + b], weight @ z[v][b] / method.temperature
                    losses.append(sum(own[k] * cross_entropy(logits, k) for k in range(len(weight))))
    return mean(losses)


@slow("swav", "swav with a queue", "swav with small crops")
def swav(method: Any, batch: Any, step: int) -> Tensor:
    return swav_of(method, swav_embeddings(method, batch.views))


# -- clusters ------------------------------------------------------------------------------------------------------------
@slow("deepclusterv2", "selav2", "selav2 soft")
def clustered(method: Any, batch: Any, step: int) -> Tensor:
    z, losses = torch.cat(swav_embeddings(method, batch.views)), []
    images = batch.index.tolist()
    for h, layer in enumerate(method.prototypes.values()):
        weight, head = rows(layer.weight), []
        for i, row in enumerate(z):
            image, logits = images[i % len(images)], weight @ row / method.temperature
            if getattr(method, "soft", False):  # its row of the transport plan, which is a softmax
                bank = constant(method.plan["z"][h % len(method.assign_crops), image])
                e = torch.exp(constant(method.plan[f"w{h}"]) @ bank / method.epsilon + constant(method.plan[f"r{h}"]))
                head.append(sum(e[k] / e.sum() * cross_entropy(logits, k) for k in range(len(e))))
            elif (label := int(method.labels[h, image])) >= 0:
                head.append(cross_entropy(logits, label))
        losses.append(mean(head))
    return mean(losses)


@slow("deepcluster", "deepcluster, every epoch")
def deepcluster(method: Any, batch: Any, step: int) -> Tensor:
    weight, bias, losses = rows(method.head.weight), rows(method.head.bias), []
    for row, image in zip(
        rows(method.backbone(torch.cat(batch.views))), batch.index.tolist() * len(batch.views), strict=True
    ):
        losses.append(cross_entropy(linear(weight, bias, row.clamp(min=0)), int(method.labels[0, image])))
    return mean(losses)


@slow("deepercluster", "deepercluster in two levels")
def deepercluster(method: Any, batch: Any, step: int) -> Tensor:
    """Each image is turned as its place in the batch says, and asks two heads: which super-class, which cluster in it."""
    weights, biases, losses = (*([rows(p) for p in d.values()] for d in (method.sub_weight, method.sub_bias)), [])
    of = [place // (method.batch // method.super_classes) for place in range(len(batch.index))]
    for view in batch.views:
        turned = torch.stack([torch.rot90(view[i], of[i] % 4, (1, 2)) for i in range(len(of))])
        for i, row in enumerate(rows(method.backbone(turned))):
            h, image = row.clamp(min=0), int(batch.index[i])
            cluster = int(method.labels[1, image]) - int(method.labels[0, image]) * method.each
            above = linear(rows(method.super_head.weight), rows(method.super_head.bias), h)
            losses.append(
                cross_entropy(above, of[i]) + cross_entropy(linear(weights[of[i]], biases[of[i]], h), cluster)
            )
    return mean(losses)


@slow("sela")
def sela(method: Any, batch: Any, step: int) -> Tensor:
    features, losses = rows(method.backbone(torch.cat(batch.views))), []
    for h, head in enumerate(method.heads):
        for image, row in zip(batch.index.tolist() * len(batch.views), features, strict=True):
            losses.append(cross_entropy(linear(rows(head.weight), rows(head.bias), row), int(method.labels[h, image])))
    return mean(losses)


def turns(method: Any, head: Any, features: list[Tensor], size: int) -> Tensor:
    """Cross entropy of the turn of each image, `size` images upright, then the same turned once, and so on."""
    losses = []
    for view in features:
        losses += [
            cross_entropy(linear(rows(head.weight), rows(head.bias), row), i // size) for i, row in enumerate(view)
        ]
    return mean(losses)


def turned(view: Tensor, angles: int = 4) -> Tensor:
    """Every pixel moved by hand: (x, y) of an image turned once counter-clockwise is (side - 1 - y, x) of the image."""
    out, now, side = [view], view, view.shape[-1]
    for _ in range(3):
        pixels = [torch.stack([now[:, :, x, side - 1 - y] for x in range(side)], -1) for y in range(side)]
        now = torch.stack(pixels, -2)
        out.append(now)
    return torch.cat(out if angles == 4 else out[::2])


@slow("pseudolabel", "pseudolabel with rotations")
def pseudolabel(method: Any, batch: Any, step: int) -> Tensor:
    rotated = method.rotation_head is not None
    features = [rows(method.backbone(turned(view) if rotated else view)) for view in batch.views]
    losses = []
    for h, head in enumerate(method.heads):
        for view in features:
            for image, row in zip(batch.index.tolist(), view[: len(batch.index)], strict=True):
                losses.append(
                    cross_entropy(linear(rows(head.weight), rows(head.bias), row), int(method.labels[h, image]))
                )
    return mean(losses) + (turns(method, method.rotation_head, features, len(batch.index)) if rotated else 0)


# -- instances -----------------------------------------------------------------------------------------------------------
def nt_xent(a: Tensor, b: Tensor, t: float, detached: bool = False) -> Tensor:
    """detached: the other rows are constants, as PIC's release gathers them."""
    flat, n = torch.cat([a, b]), len(a)
    other, losses = flat.detach() if detached else flat, []
    for i in range(2 * n):
        others = [k for k in range(2 * n) if k != i]
        losses.append(cross_entropy(other[others] @ flat[i] / t, others.index((i + n) % (2 * n))))
    return mean(losses)


@slow("simclr", "simclr apart", "simclr detached")
def simclr(method: Any, batch: Any, step: int) -> Tensor:
    """apart: each view passes the backbone by itself, and the head with the others."""
    features = (
        torch.cat([method.backbone(view) for view in batch.views])
        if method.apart
        else method.backbone(torch.cat(batch.views))
    )
    a, b = unit(rows(method.head(features))).reshape(2, len(batch.index), -1)
    return nt_xent(a, b, method.temperature, method.detached)


def moco_of(q: Tensor, k: Tensor, queue: Tensor, t: float) -> Tensor:
    return mean([cross_entropy(torch.cat([k[b] @ q[b, :, None], queue.T @ q[b]]) / t, 0) for b in range(len(q))])


def moco_query(method: Any, images: Tensor) -> Tensor:
    return unit(rows(method.head(method.backbone(images))))


def moco_key(method: Any, images: Tensor) -> Tensor:
    return unit(constant(method.key_encoder(images)))


@slow("mocov1", "mocov2", "mocov2 symmetric")
def moco(method: Any, batch: Any, step: int) -> Tensor:
    ways = [(0, 1), (1, 0)] if method.symmetric else [(0, 1)]
    keys = [moco_key(method, batch.views[b]) for _, b in ways]
    return sum(
        moco_of(moco_query(method, batch.views[a]), k, constant(method.queue), method.temperature)
        for (a, _), k in zip(ways, keys, strict=True)
    )


@slow("instdisc")
def instdisc(method: Any, batch: Any, step: int) -> Tensor:
    memory, losses = constant(method.memory), []
    for v, view in enumerate(batch.views):
        f = unit(rows(method.head(method.backbone(view))))
        drawn = method.draw(batch.index, step, v)
        losses += [cross_entropy(memory[drawn[b]] @ f[b] / method.temperature, 0) for b in range(len(f))]
    return mean(losses)


@slow("pic", "pic with negatives and a window", "pic with small crops")
def pic(method: Any, batch: Any, step: int) -> Tensor:
    """Small crops see the classes as constants; with negatives the classes are the images of this step and of the steps before."""
    recent = [] if not method.negatives else method.recent.tolist()
    images, classes = batch.index.tolist(), list(range(method.rows.count))
    if method.negatives:
        classes = sorted(set((images + recent)[: max(method.negatives, len(images))]))
    method.class_rows = rows(method.rows.whole()[classes]).requires_grad_()
    weight, losses = unit(method.class_rows), []
    for view in batch.views:
        f = unit(rows(method.head(method.backbone(view))))
        small = view.shape[-1] < max(other.shape[-1] for other in batch.views)
        losses += [
            cross_entropy((weight.detach() if small else weight) @ f[b] / method.temperature, classes.index(images[b]))
            for b in range(len(f))
        ]
    return mean(losses)


APART["pic"] = lambda method: method.class_rows.grad if hasattr(method, "class_rows") else method._taken[1].grad


def mixture(method: Any, view: Tensor, step: int) -> tuple[Tensor, Tensor, float]:
    """Pixel by pixel: the mixture of neighbours, the partner of each image, and the share of the image itself."""
    whole, lam, cy, cx = method.draw(step)
    n, _, height, width = view.shape
    top, left, bottom, right = box(height, width, lam, int(cy * height), int(cx * width))
    mixed, share = view.clone(), lam if whole else 1 - (bottom - top) * (right - left) / (height * width)
    partner = [i ^ 1 if i ^ 1 < n else i for i in range(n)]
    for i in range(n):
        for y in range(height):
            for x in range(width):
                if whole:
                    mixed[i, :, y, x] = lam * view[i, :, y, x] + (1 - lam) * view[partner[i], :, y, x]
                elif top <= y < bottom and left <= x < right:
                    mixed[i, :, y, x] = view[partner[i], :, y, x]
    return mixed, torch.tensor(partner), share


@slow("unmix")
def unmix(method: Any, batch: Any, step: int) -> Tensor:
    """On SimCLR, as the digits recipe has it: three plain losses."""
    first, second = batch.views[:2]
    mixed, partner, share = mixture(method, first, step)
    z = unit(rows(method.base.head(method.base.backbone(torch.cat([first, second, mixed])))))
    (a, b, m), t = z.reshape(3, len(first), -1), method.base.temperature
    return nt_xent(a, b, t) + share * nt_xent(m, b, t) + (1 - share) * nt_xent(m[partner], b, t)


@slow("unmix of swav")
def unmix_swav(method: Any, batch: Any, step: int) -> Tensor:
    first, second = batch.views
    mixed, partner, share = mixture(method, first, step)
    a, b, m = swav_embeddings(method.base, [first, second, mixed])
    return (
        swav_of(method.base, [a, b])
        + share * swav_of(method.base, [m, b])
        + (1 - share) * swav_of(method.base, [m[partner], b])
    )


@slow("unmix of mocov2")
def unmix_moco(method: Any, batch: Any, step: int) -> Tensor:
    base, (first, second) = method.base, batch.views
    mixed, partner, share = mixture(method, first, step)
    m, key, q = moco_query(base, mixed), moco_key(base, second), moco_query(base, first)
    return sum(
        w * moco_of(x, key, constant(base.queue), base.temperature)
        for w, x in ((1, q), (share, m), (1 - share, m[partner]))
    )


@slow("simsiam")
def simsiam(method: Any, batch: Any, step: int) -> Tensor:
    z = [method.projector(method.backbone(view)) for view in batch.views]
    p = [unit(rows(method.predictor(one))) for one in z]
    z = [unit(constant(one)) for one in z]
    return -mean([p[a][i] @ z[b][i] for a, b in ((0, 1), (1, 0)) for i in range(len(z[0]))])


# -- labels --------------------------------------------------------------------------------------------------------------
@slow("rotnet")
def rotnet(method: Any, batch: Any, step: int) -> Tensor:
    features = [rows(method.backbone(turned(view, method.angles))) for view in batch.views]
    return turns(method, method.head, features, len(batch.index))


@slow("supervised")
def supervised(method: Any, batch: Any, step: int) -> Tensor:
    features = rows(method.backbone(torch.cat(batch.views)))
    return mean(
        [
            cross_entropy(
                linear(rows(method.head.weight), rows(method.head.bias), row), int(batch.labels[i % len(batch.labels)])
            )
            for i, row in enumerate(features)
        ]
    )
