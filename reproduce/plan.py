"""The plan of a run, computed without running it: steps, images, memory, data, and where the output goes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

import zoo
from engine.options import RunOptions
from engine.place import place
from reproduce import curves, from_folder, monitor, own_images, resources
from reproduce.launch import Job, finished, meet
from reproduce.stream import loading_time
from zoo import backbones, data
from zoo.data.specs import is_path
from zoo.errors import UserError
from zoo.registry import registry

UNCOUNTED = 1 << 20  # images of a set whose size nobody knows beforehand: more than any batch


class Unread:
    """Stands for a data set that is not on this machine: only its size and classes are known, of YFCC the size that the authors
    had. `counted` False: not even the size is known, and `images` is any number above the batch."""

    array = None

    def __init__(self, images: int, classes: int, *, counted: bool = True) -> None:
        self.classes = list(range(classes))
        self.labels = np.broadcast_to(np.int64(0 if classes else -1), images)  # no memory
        self.counted = counted
        self._images = images

    def __len__(self) -> int:
        return self._images


def plan(work: Job, world: int | None = None) -> str:
    """A dozen lines. A data folder that was named and is wrong is an error; one that is merely missing is said, and what
    cannot be known without it is left open. world: processes; by default as many as the environment says."""
    recipe, options = work.recipe, work.options
    if world is not None and (type(world) is not int or world < 1):
        raise UserError(f"world={world}: a plan is for 1 process or more")
    world = world or place({"RANK": "0", **os.environ}).size
    source, where = find(recipe, options)
    meeting = meet(recipe, source, world)
    require_init(recipe)
    method, stream = meeting.method, meeting.stream
    alone = meet(recipe, source, 1).method if world > 1 and method.held_apart() else method
    here = isinstance(source, data.Source)
    watch = monitor.of(recipe, options, method, stream) if here else None
    counted = getattr(source, "counted", True)
    seen = stream.total_steps * recipe.batch if counted or recipe.schedule.images is not None else 0
    time = resources.hours(recipe, stream.augment.crops, seen, world) if seen and not work.derived else None
    images, steps = amounts(recipe, stream, counted)
    state = (
        "finished: nothing to do"
        if finished(work.folder)
        else "unfinished: would go on"
        if (work.folder / "checkpoint.pt").exists()
        else "new"
    )
    rows = [
        (
            "model",
            f"{work.id}  (method {recipe.method}, backbone {recipe.backbone.name}, seed {recipe.seed}"
            + (", recipe derived from the images" if work.derived else "" if work.default else ", settings changed")
            + ")",
        ),
        ("data", where),
        ("images", images),
        ("views", f"{recipe.views} of every image"),
        (
            "batch",
            f"{recipe.batch} = {world} process{'es' * (world > 1)} x {recipe.batch // world}"
            + (f", in {recipe.accumulate} parts" if (recipe.accumulate or 1) > 1 else ""),
        ),
        ("steps", steps),
        *([("few GPUs", text)] if (text := few(recipe, stream, world)) else []),
        *(
            [("time", own_images.hours(recipe, source, options, stream.total_steps * recipe.batch))]
            if work.derived
            else []
        ),
        *([("loading", loading(source, stream, options, world))] if here and stream.total_steps else []),
        ("precision", work.note.removeprefix("precision=") if work.note.startswith("precision=") else recipe.precision),
        *([("start", work.note)] if work.note and not work.note.startswith("precision=") else []),
        *(
            [
                (
                    "loss",
                    f"{method.collapsed_loss:.2f} for a network that says the same of every image (chance); it has to fall below{beside(work)}",
                )
            ]
            if method.collapsed_loss is not None and stream.total_steps
            else []
        ),
        *([("monitor", watch.text.removeprefix("monitor: "))] if watch is not None else []),
        *([("rate", rates(stream.rates))] if counted and stream.total_steps else []),
        ("parameters", resources.parameters(method, alone)),
        ("memory", resources.memory(recipe, method, stream.augment, world)),
        ("disk", resources.disk(recipe, method, alone, len(source) if counted else None, world)),
        *([("groups", resources.groups(recipe, method, world))] if world > 1 else []),
        *([("hours", time)] if time else []),
        ("output", f"{work.folder}/  ({state})"),
        *(("warning", line) for line in meeting.warnings),
        *(("derived", line) for line in work.derived),
    ]
    return "\n".join(f"{name:<11}{text}" for name, text in rows)


def rates(values: Any) -> str:
    """The learning rate of the schedule, as it begins, at its highest, and as it ends."""
    first, highest, last = float(values[0]), float(values.max()), float(values[-1])
    return (
        f"{first:.4g}"
        if first == highest == last
        else f"{first:.4g} at first, {highest:.4g} at most, {last:.4g} at last"
    )


def require_init(recipe: Any) -> None:
    """Raise UserError where the run would: for weights to start from that do not exist, or that lie here and do not fit.
    What has yet to be downloaded is not looked at."""
    if recipe.init is None:
        return
    try:
        released = zoo.entry(recipe.init).weights is not None
    except UserError:
        released = False
    if not released:
        zoo.load_weights(backbones.build(recipe.backbone), recipe.init)


def few(recipe: Any, stream: Any, world: int) -> str:
    """Settings for the processes that there are, where the batch was made for more; '' where it fits them."""
    if not stream.total_steps:
        return ""
    epochs = stream.total_steps / max(stream.steps_per_epoch, 1)
    choices = from_folder.fewer(recipe.dump(), len(stream.source), world, epochs)
    if not choices:
        return ""
    known = registry()
    own = [
        name
        for name in known.models()
        if (entry := zoo.entry(name)).recipe is not None
        and (entry.recipe.method, entry.recipe.dataset) == (recipe.method, recipe.dataset)
        and entry.recipe.batch <= choices[0].value
    ]
    words = " ".join(f"{choice.path}={choice.value:g}" for choice in choices)
    return (
        f"{recipe.batch // world:,} images on each process; {words} computes {from_folder.LARGEST} on each, the rates in proportion ({recipe.optimizer.name})"
        + (f"; recipes of the zoo with such batches: {', '.join(own[:3])}" if own else "")
    )


def beside(work: Job) -> str:
    """Where the committed runs of this recipe ended, if there are any."""
    found = curves.of(work.folder)
    return (
        ""
        if found is None
        else f"; {found.runs} committed runs of this recipe ended at {found.low[-1]:.4g} to {found.high[-1]:.4g}"
    )


def amounts(recipe: Any, stream: Any, counted: bool) -> tuple[str, str]:
    """Images and steps, in words. `counted` False: the data set's size is not known."""
    total, epoch = stream.total_steps, stream.steps_per_epoch
    if counted:
        epochs = total / epoch if epoch else 0
        return (
            f"{len(stream.source):,} in an epoch; {total * recipe.batch:,} seen in all",
            f"{total:,} = {epochs:.4g} epochs of {epoch:,}",
        )
    unknown = "how many an epoch has is known when the data are here"
    if recipe.schedule.images is not None:
        return f"{total * recipe.batch:,} seen in all; {unknown}", f"{total:,}"
    return unknown, f"{recipe.schedule.epochs:,} epochs of as many as the images make"


def loading(source: Any, stream: Any, options: RunOptions, world: int) -> str:
    """What feeds the network: measured on a few images of a set that is here."""
    if source.array is not None:
        return "images are in memory"
    each, workers = loading_time(source, stream.augment), stream.workers_of(options.workers)
    rate = max(workers, 1) * world / each
    by = (
        f"{workers} worker{'s' * (workers != 1)} a process"
        if workers
        else "the training process itself, as there is no core left,"
    )
    return (
        f"{1000 * each:.3g} ms of one core to decode and crop an image (a few timed); {by} would load about {rate:,.0f} images/s, "
        f"a batch in {stream.batch / rate:.2g} s: a network that is faster waits for data; workers=N sets their number"
    )


def find(recipe: Any, options: RunOptions) -> tuple[Any, str]:
    """The source, or a stand-in of the size that datasets.yaml knows, and a line about it."""
    try:
        source = data.open_source(recipe.dataset, recipe.split, root=options.data, max_bad=recipe.max_bad, fetch=False)
        return (
            source,
            f"{recipe.dataset}/{recipe.split}, found: {len(source):,} images, fingerprint {source.fingerprint[:10]}",
        )
    except data.DataMissing as error:
        if options.data is not None or is_path(recipe.dataset):
            raise
        home = os.environ.get("SELFZOO_DATA")
        if home and not Path(home).expanduser().is_dir():
            raise UserError(
                f"SELFZOO_DATA={home} is no folder; name one that has {recipe.dataset}/ in it, or say data=PATH"
            ) from error
        spec = data.describe(recipe.dataset)
        rule = spec.splits[recipe.split.partition("@")[0]]
        count = rule.count or rule.about
        stand_in = Unread(count or UNCOUNTED, spec.class_count or 0, counted=count is not None)
        return stand_in, f"{recipe.dataset}/{recipe.split}, NOT FOUND ({error})"
