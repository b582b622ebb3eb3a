"""Batches from a data set: the images of step b, their views, and the part of the batch that this process takes.

The global batch of step b is order[b*B:(b+1)*B], where the order of an epoch is a permutation drawn from (seed, epoch), or
what the method's sampler says; the images left over at the end of an epoch are dropped. Process r of R takes rows
[r*B/R, (r+1)*B/R). A sampler may draw an image several times in an epoch: its visits are counted along the order of all
processes, and each gets views of its own.

Small sets that live in memory are cropped a batch at a time, on the training device; files are decoded and cropped one image at a
time in a DataLoader, whose workers hand over uint8 pixels. They reach a GPU from pinned memory, on a stream of copies that runs
beside the step before; colour, noise and normalisation are computed there.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from engine import batchnorm, extract, layout, optim, signals
from engine.batch import Batch, on
from reproduce import views
from reproduce.order import Order, of_epoch
from reproduce.views import Augment
from zoo.errors import UserError

EXTRACT_CHUNK = 512


def spare_cores(processes: int, device: torch.device) -> int:
    """Cores that this machine has left for each training process: beside the one that feeds a GPU, or torch's threads on a CPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    alone = "SLURM_PROCID" in os.environ  # srun shows each task its own cores
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or (1 if alone else processes))
    return max(0, cores // max(here, 1) - (torch.get_num_threads() if device.type == "cpu" else 1))


def loading_time(source: Any, augment: Augment, images: int = 8) -> float:
    """Seconds in which one core decodes and crops all views of an image: the mean over the first few, one before them left out."""
    reader, few = _Views(source, augment, 0), min(images, len(source))
    reader.__getitems__([(0, 0, 0)])
    began = time.perf_counter()
    reader.__getitems__([(0, i, 0) for i in range(few)])
    return (time.perf_counter() - began) / few


@dataclass(frozen=True)
class Context:
    """What a method's hooks may use: `n` images, the run's `seed`, its rates, and features through `extract`."""

    method: Any
    stream: Stream
    epoch: int = 0

    @property
    def n(self) -> int:
        return len(self.stream.source)

    @property
    def source(self) -> Any:
        """The training images, for their names."""
        return self.stream.source

    @property
    def seed(self) -> int:
        return self.stream.seed

    @property
    def steps_per_epoch(self) -> int:
        return self.stream.steps_per_epoch

    @property
    def batch(self) -> int:
        """Images of the global batch."""
        return self.stream.batch

    @property
    def total_steps(self) -> int:
        """Steps of the run."""
        return self.stream.total_steps

    @property
    def optimizer(self) -> Mapping[str, Any]:
        """The recipe's optimizer settings."""
        return self.stream.optimizer

    def lr(self, step: int) -> float:
        """The scheduled learning rate of a step."""
        return float(self.stream.rates[step])

    def extract(self, view: int | None = None) -> tuple[np.ndarray, Tensor]:
        """(index, features) of this process's part of the data; see Stream.extract."""
        return self.stream.extract(self.method, view, epoch=self.epoch)


class Stream:
    """Batches of a source for one process.

    source   zoo.data Source: len, image(i), labels, array
    batch    images in the global batch; the number of processes must divide it
    schedule the budget, exactly one of `epochs` and `images` (images, not views), and the settings of the learning rate over it
    optimizer   the recipe's optimizer settings, for methods that keep parameters out of the engine's optimiser
    method   asked for its sampler and whether it wants labels; None for neither
    accumulate   parts that this process's share of a batch is computed in
    device   where batches are finished and delivered
    precision   of features of the whole set: float32, or bfloat16 by autocast
    workers  processes that decode and crop; None: `spare_cores`, none for arrays in memory
    """

    workspace: Path | None = None  # where many features may lie; the engine's loop says a folder of the run

    def __init__(
        self,
        source: Any,
        augment: Augment,
        *,
        batch: int,
        schedule: Mapping[str, Any],
        optimizer: Mapping[str, Any] | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int | None = 0,
        method: Any = None,
        accumulate: int = 1,
        device: torch.device | str = "cpu",
        precision: str = "float32",
    ) -> None:
        if batch % world:
            raise UserError(
                f"batch={batch} cannot be shared equally by {world} processes; "
                f"choose batch={max(1, round(batch / world)) * world} or another number of processes"
            )
        self.schedule, self.optimizer = schedule, optimizer or {}
        epochs, images = schedule.get("epochs"), schedule.get("images")
        if (epochs is None) == (images is None):
            raise UserError(
                f"schedule needs exactly one of epochs and images, it has epochs={epochs} and images={images}"
            )
        self.source, self.augment, self.batch, self.seed = source, augment, batch, seed
        if batch // world % accumulate:
            raise UserError(
                f"accumulate={accumulate} does not divide the {batch // world} images that a process has of a batch; choose "
                "a divisor of it"
            )
        self.accumulate = accumulate
        self.device, self.precision = torch.device(device), precision
        self.rank, self.world, self.method = rank, world, method
        self._array = source.array
        self.workers = self.workers_of(workers)
        drawn = method.epoch_size(len(source)) if method is not None else len(source)
        self.steps_per_epoch = drawn // batch
        if epochs is not None:
            self.total_steps = epochs * self.steps_per_epoch
        else:
            self.total_steps = round(images / batch) if images else 0
        if self.steps_per_epoch == 0 and (epochs or images):
            raise UserError(
                f"batch={batch} is larger than the {drawn} images of an epoch; choose batch={drawn} or smaller"
            )
        self._loader: DataLoader | None = None
        self._copies: Any = None

    @cached_property
    def rates(self) -> np.ndarray:
        """(total_steps,) float64: the learning rate of each step."""
        return optim.schedule(self.schedule, max(self.steps_per_epoch, 1), self.total_steps, lr=self.optimizer["lr"])

    def workers_of(self, asked: int | None) -> int:
        """The number of workers that an option asks for; None: what the machine can give, none for arrays in memory."""
        return asked if asked is not None else spare_cores(self.world, self.device) if self._array is None else 0

    # -- training ----------------------------------------------------------------------------------------------------
    def order(self, epoch: int) -> np.ndarray:
        """(steps_per_epoch * batch,) int64: the images of the epoch, over all processes."""
        return self._order(epoch).at(0, self.steps_per_epoch * self.batch)[0]

    def _order(self, epoch: int) -> Order:
        n, method = len(self.source), self.method

        def sampler() -> np.ndarray | None:
            return None if method is None else method.sampler(n, epoch, self.context(method, epoch))

        return of_epoch(sampler, self.seed, epoch, n, self.steps_per_epoch * self.batch, self.workspace)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This process's batches of an epoch, from step `start` on."""
        steps = _Steps(self._order(epoch), self.batch, self.rank, self.world, start, self.steps_per_epoch)
        for (index, visit), drawn in zip(steps, self._render(steps, epoch), strict=True):
            finished = [
                views.finish(view, self.augment, self.seed, epoch, index, v, visit)
                for v, view in enumerate(self._coloured(drawn))
            ]
            batch = Batch(torch.from_numpy(index), finished, self._labels(index), epoch)
            yield batch if self.accumulate == 1 else batch.divided(self.accumulate)

    def _labels(self, index: np.ndarray) -> Tensor | None:
        if self.method is None or not self.method.needs.labels:
            return None  # a method without labels cannot see them by accident
        labels = self.source.labels
        if labels is None or (labels[index] < 0).any():
            raise UserError("this method learns from labels, and the data set has images without one")
        return torch.from_numpy(labels[index].astype(np.int64))

    def _render(self, steps: _Steps, epoch: int) -> Iterator[list[tuple[Tensor, views.Params]]]:
        """The cropped views of each step, on the device, and what was drawn for them."""
        if self._array is None:
            for drawn in self._load(steps, epoch):
                yield list(zip(self._moved([view for view, _ in drawn]), [params for _, params in drawn], strict=True))
            return
        for index, visit in steps:
            (images,) = self._moved([torch.from_numpy(self._array[index])])
            height, width = images.shape[1:3]
            params = [self._params(epoch, index, v, height, width, visit) for v in range(len(self.augment.crops))]
            yield [
                (views.crop_batch(images, p, crop, self.augment), p)
                for p, crop in zip(params, self.augment.crops, strict=True)
            ]

    def _coloured(self, drawn: list[tuple[Tensor, views.Params]]) -> Iterator[Tensor]:
        """The views after the recipe's colour operations; consecutive views of one size together, which is fewer operations to launch."""
        for _, group in itertools.groupby(drawn, key=lambda view: view[0].shape):
            pixels, params = zip(*group, strict=True)
            yield from views.colour(torch.cat(pixels), views.joined(params), self.augment).chunk(len(pixels))

    def _moved(self, pixels: list[Tensor]) -> list[Tensor]:
        """On the device. A GPU copies on a stream of its own: the loop is a step ahead of it, which it still computes."""
        if self.device.type != "cuda":
            return [on(t, self.device) for t in pixels]
        self._copies = self._copies or torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._copies):
            moved = [on(t, self.device) for t in pixels]
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._copies)
        for t in moved:
            t.record_stream(current)
        return moved

    def _params(
        self, epoch: int, index: np.ndarray, view: int, height: Any, width: Any, visit: Any = 0
    ) -> views.Params:
        return views.sample(self.augment, self.seed, epoch, index, view, height, width, visit)

    def _load(self, steps: _Steps, epoch: int) -> Iterator[list[tuple[Tensor, views.Params]]]:
        if self._loader is None:
            self._plan = _Plan()
            self._loader = DataLoader(
                _Views(self.source, self.augment, self.seed),
                batch_sampler=self._plan,
                num_workers=self.workers,
                collate_fn=_as_it_is,
                worker_init_fn=signals.left_to_main,
                persistent_workers=self.workers > 0,
                pin_memory=self.device.type == "cuda",
            )
        self._plan.steps, self._plan.epoch = steps, epoch
        yield from self._loader

    # -- features of the whole set -----------------------------------------------------------------------------------
    def context(self, method: Any, epoch: int = 0) -> Context:
        return Context(method, self, epoch)

    @torch.no_grad()
    def extract(self, method: Any, view: int | None = None, *, epoch: int = 0) -> tuple[np.ndarray, Tensor]:
        """This process's share of the data set and its features: (n_r,) int64 in rising order, (n_r, D) float32 on the CPU.

        view: None for the whole image without chance (its central square); a number for that augmented view of the epoch.
        The method is put in evaluation mode meanwhile, with the running statistics of process 0 (a checkpoint holds these, so
        that a resumed run extracts the same). Many features lie in a memory-mapped file of the run folder.
        """
        each, more = divmod(len(self.source), self.world)  # the first ones have one image more
        index = np.arange(each + (self.rank < more), dtype=np.int64) + self.rank * each + min(self.rank, more)
        batchnorm.broadcast_batchnorm_(method)
        training, method_device = method.training, next(method.parameters(), torch.empty(0)).device
        method.eval()
        try:
            where = None if self.workspace is None else self.workspace / f"view{view}-{self.rank}of{self.world}.npy"
            path = () if method_device.type == "cpu" else (f"{method_device.type} {self.precision} channels_last",)
            key = (
                extract.fingerprint(method, view, epoch, self.seed, self.source.fingerprint, *path)
                if where is not None
                else ""
            )
            found = extract.collect(
                lambda a, b: self._features(method, self._plain(index[a:b], view, epoch), method_device),
                len(index),
                path=where,
                key=key,
                block=EXTRACT_CHUNK,
                quiet=self.rank > 0,
            )
        finally:
            method.train(training)
        return index, found

    def _features(self, method: Any, images: Tensor, device: torch.device) -> Tensor:
        """What a method extracts of images; on a GPU in channels_last where the network may have it."""
        images = layout.arranged(images, method, device) if device.type == "cuda" else images.to(device)
        with torch.autocast(device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext():
            return cast(Tensor, method.features(images))

    def _plain(self, part: np.ndarray, view: int | None, epoch: int) -> Tensor:
        """Normalised images of `part`."""
        augment, crop = (
            (self.augment, self.augment.crops[view])
            if view is not None
            else views.plain(self.augment, self.augment.crops[0].size)
        )
        number = view or 0
        if self._array is not None:
            images = on(torch.from_numpy(self._array[part]), self.device)
            height, width = (np.full(len(part), side) for side in images.shape[1:3])
            params = (
                self._params(epoch, part, number, height, width)
                if view is not None
                else views.whole(height, width, augment.pad)
            )
            pixels = views.crop_batch(images, params, crop, augment)
        else:
            with ThreadPoolExecutor(
                max(1, self.workers)
            ) as threads:  # decoding and resizing leave the interpreter free
                found = list(threads.map(lambda i: self._one(augment, crop, int(i), view, epoch), part))
            pixels, params = (
                on(torch.stack([image for image, _ in found]), self.device),
                views.joined([drawn for _, drawn in found]),
            )
        return views.finish(views.colour(pixels, params, augment), augment, self.seed, epoch, part, number)

    def _one(
        self, augment: Augment, crop: views.Crop, i: int, view: int | None, epoch: int
    ) -> tuple[Tensor, views.Params]:
        image = self.source.pixels(i)
        height, width = image.shape[:2]
        params = (
            views.whole([height], [width], augment.pad)
            if view is None
            else self._params(epoch, np.array([i]), view, height, width)
        )
        return views.crop_image(image, params, crop, augment), params


class _Views(Dataset):
    """All views of a list of (epoch, i, visit): for each view uint8 (B, C, S, S), and what was drawn for it."""

    def __init__(self, source: Any, augment: Augment, seed: int) -> None:
        self.source, self.augment, self.seed = source, augment, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, items: list[tuple[int, int, int]]) -> list[tuple[Tensor, views.Params]]:
        images = [self.source.pixels(i) for _, i, _ in items]
        index, visit = (np.array(column, dtype=np.int64) for column in list(zip(*items, strict=True))[1:])
        heights, widths = np.array([image.shape[:2] for image in images]).T
        drawn = []
        for v, crop in enumerate(self.augment.crops):
            params = views.sample(self.augment, self.seed, items[0][0], index, v, heights, widths, visit)
            pixels = torch.stack(
                [views.crop_image(im, params, crop, self.augment, row) for row, im in enumerate(images)]
            )
            drawn.append((pixels, params))
        return drawn


@dataclass(frozen=True)
class _Steps:
    """The images of this process and their visits, step by step, from step `start` of an epoch on."""

    order: Order
    batch: int
    rank: int
    world: int
    start: int
    stop: int

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        share = self.batch // self.world
        for step in range(self.start, self.stop):
            first = step * self.batch + self.rank * share
            yield self.order.at(first, first + share)


class _Plan:
    """A batch sampler whose steps are replaced every epoch, so that workers live on."""

    steps: _Steps
    epoch = 0

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for index, visit in self.steps:
            yield [(self.epoch, int(i), int(v)) for i, v in zip(index, visit, strict=True)]

    def __len__(self) -> int:
        return len(self.steps)


def _as_it_is(drawn: list[tuple[Tensor, views.Params]]) -> list[tuple[Tensor, views.Params]]:
    return drawn
