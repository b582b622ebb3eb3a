"""Every registered method on a handful of real digits: built, trained for a few steps, and taken apart again."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import zoo
from engine import dist, loop, rng
from engine.batch import Batch
from engine.options import RunOptions
from reproduce import launch
from zoo import data, registry
from zoo.data.source import FileSource, FolderStore, Names

IMAGES, BATCH = 100, 16  # six steps in an epoch, four images left over
# Adam would turn gradients that are zero but for rounding into steps of full size.
SGD = {"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4}
# Settings of a method that change its mathematics enough to be run as well.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "swav with a queue": ("swav", {"params.queue": {"length": 32, "start_epoch": 0}}),
    "swav with small crops": (
        "swav",
        {
            "views.crops": [{"count": 2, "size": 10}, {"count": 3, "size": 8, "scale": [0.2, 0.5]}],
            "params.assignment": "hard",
        },
    ),
    "simclr detached": ("simclr", {"params.gather": "detached"}),
    "simclr apart": ("simclr", {"params.encode": "apart"}),
    "mocov2 symmetric": ("mocov2", {"params.symmetric": True}),
    "pic with negatives and a window": ("pic", {"params.negatives": 24, "params.window": {"size": 48, "stride": 16}}),
    "pic with small crops": (
        "pic",
        {"views.crops": [{"count": 1, "size": 10}, {"count": 2, "size": 8, "scale": [0.2, 0.5]}]},
    ),
    "pseudolabel with rotations": ("pseudolabel", {"params.rotations": True}),
    "selav2 soft": ("selav2", {"params.assignment": "soft"}),
    "deepcluster, every epoch": ("deepcluster", {"params.reassign": 1.0}),
    "deepercluster in two levels": (
        "deepercluster",
        {"params.super_classes": 8, "params.clusters": 12, "params.reassignment": 1},
    ),
    "unmix of swav": ("unmix", {"params.base": "swav", "params.swav": {"prototypes": 20, "dim": 8, "hidden": 16}}),
    "unmix of mocov2": ("unmix", {"params.base": "mocov2", "params.mocov2": {"dim": 8, "hidden": 16, "queue": 64}}),
}
# Batch norm over parts of a batch makes the parts matter: which rows they hold, and how many processes hold them.
WHOLE_BATCH = {name: {"params.splits": 1} for name in ("mocov1", "mocov2", "mocov2 symmetric")}


def registered() -> list[str]:
    """Every method of the registry that has digits to run on."""
    return [m for m in registry.methods() if f"{m}_digits" in zoo.models(method=m)]


def trained() -> list[str]:
    """Those that train: the untrained reference rows have a budget of zero images."""
    return [m for m in registered() if not idle(recipe(m))]


def idle(recipe: Any) -> bool:
    return not (zoo.entry(f"{recipe.method}_digits").recipe.schedule.images or recipe.schedule.epochs)


@cache
def source() -> Any:
    return data.open_source("digits", "fit").subset(range(IMAGES))


@cache
def files(folder: Path) -> Any:
    """The same images as PNG files, which workers decode."""
    plain = source()
    names = Names(f"{plain.name(i)}.png" for i in range(len(plain)))
    for i, name in enumerate(names):
        plain.image(i).save(folder / name)
    sizes = np.array([(folder / name).stat().st_size for name in names])
    return FileSource(names, sizes, plain.labels, plain.classes, FolderStore(folder, names), channels=1)


def cases() -> list[str]:
    """Every method that trains, and the variants of those that are registered."""
    return trained() + [name for name, (method, _) in VARIANTS.items() if method in trained()]


def recipe(name: str, **overrides: Any) -> Any:
    """The digits recipe of a method or variant, cut down: a narrow network, 16 images a step, nine steps."""
    method, variant = VARIANTS.get(name, (name, {}))
    settings = {"batch": BATCH, "optimizer": SGD, "precision": "float32", "channels_last": False, **variant}
    model = zoo.entry(f"{method}_digits")
    if model.backbone.name == "tiny_resnet":
        settings |= {"backbone.options.width": 8}
    if model.recipe.schedule.images:
        settings |= {"schedule.images": 9 * BATCH}
    return zoo.resolve(f"{method}_digits", {**settings, **overrides})


def build(recipe: Any) -> Any:
    return launch.build(recipe, source()).train()


def stream(recipe: Any, method: Any, rank: int = 0, world: int = 1, images: Any = None, workers: int = 0) -> Any:
    return launch.streamed(recipe, images or source(), method, rank=rank, world=world, workers=workers)


def begin(method: Any, batches: Any, epoch: int = 0) -> Any:
    """The work before an epoch, as the loop does it; returns the context."""
    ctx = batches.context(method, epoch)
    torch.manual_seed(rng.key(batches.seed, "epoch", epoch))
    method.before_epoch(epoch, ctx)
    method.train()
    return ctx


def loss_of(method: Any, batch: Batch, step: int, ctx: Any) -> torch.Tensor:
    """The loss of one step, hooks and random numbers as in the loop."""
    torch.manual_seed(rng.key(0, "step", step, 0))
    method.before_step(step, ctx)
    return method.loss(batch, step)[0]


def first(name: str, **overrides: Any) -> tuple[Any, Batch, Any]:
    """A method ready for its first step, its first batch, and the context."""
    settings = recipe(name, **overrides)
    method = build(settings)
    batches = stream(settings, method)
    ctx = begin(method, batches)
    return method, next(iter(batches.epoch(0))), ctx


def warm(name: str, steps: int = 3, **overrides: Any) -> tuple[Any, Batch, Any]:
    """A method after a few steps of training, its next batch before that step, and the context."""
    settings = recipe(name, **overrides)
    method = build(settings)
    batches = stream(settings, method)
    ctx, parts = begin(method, batches), list(batches.epoch(0))
    optimizer = torch.optim.SGD([p for group in method.param_groups() for p in group["params"]], lr=0.05)
    for step in range(steps):
        loss_of(method, parts[step], step, ctx).backward()
        method.after_backward(step)
        optimizer.step()
        optimizer.zero_grad()
    return method, parts[steps], ctx


def select(batch: Batch, rows: Any) -> Batch:
    labels = None if batch.labels is None else batch.labels[rows]
    return Batch(batch.index[rows], [v[rows] for v in batch.views], labels, batch.epoch)


def fit(
    recipe: Any,
    folder: Path,
    *,
    stop_after: int = 0,
    world: dist.World | None = None,
    method: Any = None,
    images: Any = None,
    workers: int = 0,
) -> loop.FitResult:
    """The engine's loop on the handful of digits (or on `images`, other forms of them), with a checkpoint every other step."""
    world, method = world or dist.World(), method or build(recipe)
    options = RunOptions(stop_after=stop_after, checkpoint_interval=2, log_interval=2, tensorboard=False)
    batches = stream(recipe, method, world.rank, world.size, images, workers)
    return loop.fit(
        method,
        batches,
        rates=batches.rates,
        recipe=recipe.dump(),
        folder=folder,
        options=options,
        world=world,
        provenance={},
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pth", weights_only=True)
