"""From a registry id and overrides to a finished run folder: `pretrain("swav_digits", {"seed": 1})`."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import zoo
from engine import backends, dist, loop, provenance, rng
from engine.options import RunOptions
from reproduce import curves, limits, methods, monitor, own_images
from reproduce.from_folder import scaled
from reproduce.method import Method
from reproduce.stream import Stream
from reproduce.views import Augment
from zoo import backbones, data, precision
from zoo.data import images, locate
from zoo.errors import UserError
from zoo.registry import no_recipe, registry

OWN_IMAGES = ("folder", "images")  # data sets of datasets.yaml that are whatever lies in a folder


@dataclass(frozen=True)
class Job:
    """A resolved request: what to train, how, and where it goes."""

    id: str
    recipe: Any
    options: RunOptions
    default: bool  # the recipe is the registry's own, the seed and the precision that this machine lacks apart
    note: str = ""  # how the recipe differs from what was asked for, and why
    derived: tuple[str, ...] = ()  # of a recipe that was derived from images: each setting and its reason

    @property
    def folder(self) -> Path:
        return Path(self.options.out) / self.id / f"{self.recipe.hash()}-s{self.recipe.seed}"


def job(id: str, overrides: Mapping[str, Any] | None = None) -> Job:
    """Split overrides into run options and recipe settings, and resolve both. Unknown names: a UserError with a suggestion.

    id   a model of the registry, or a method's name: then the recipe is derived from the images that data= names.
    """
    options, settings = RunOptions.split(overrides or {})
    derived: tuple[str, ...] = ()
    own: str | None = None  # hash of the registry's recipe
    if own_images.is_method(id):
        made = own_images.derive(id, settings, options)
        recipe, derived = made.recipe, tuple(made.lines)
    else:
        entry = zoo.entry(id)
        if entry.recipe is None:
            raise UserError(no_recipe(entry))
        id, own, recipe = entry.id, entry.recipe.hash(), zoo.resolve(id, settings)
    try:
        json.dumps(recipe.dump(), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        wrong = next((k for k, v in settings.items() if str(error.object[error.start]) in str(v)), "a setting")
        raise UserError(
            f"{wrong}: a recipe is kept as text, and {settings.get(wrong)!r} is no UTF-8; rename the file, or name own "
            "images with dataset=images data=PATH"
        ) from None
    work = Job(id, recipe, options, recipe.hash() == own, derived=derived)
    here = recipe if "precision" in settings or finished(work.folder) else precision.as_run_here(recipe, options.device)
    if here is recipe:
        return work
    return replace(
        work,
        recipe=here,
        note=f"precision={here.precision}: this machine has no instructions for the recipe's "
        f"{recipe.precision}; precision={recipe.precision} asks for it all the same, slowly",
    )


def extension(run: str, overrides: Mapping[str, Any]) -> Job:
    """A new run that begins with the network of a finished one: its recipe with `init` set to its weights, and what is overridden.

    A warm start, not a longer run: heads, optimizer and schedule start afresh, and a method's memory is empty.
    Raises UserError: no finished run, no budget named.
    """
    folder = Path(run)
    if not finished(folder):
        raise UserError(f"{run}: no finished run (done.json and weights.pth); give its folder, runs/ID/HASH-sSEED")
    options, settings = RunOptions.split({"out": str(folder.resolve().parent.parent), **overrides})
    if not {"schedule.images", "schedule.epochs"} & set(settings):
        raise UserError(f"extend {run}: say for how long: schedule.images=N or schedule.epochs=N")
    before = zoo.load_recipe(folder / "recipe.yaml")
    weights = folder / "weights.pth"
    recipe = registry().change(before, {"init": str(weights), **settings})
    said = (
        f"a warm start from {weights}: the network begins with these weights; heads, memory, optimizer and schedule start afresh, so "
        "that this is not the run which would have been longer from its beginning"
    )
    return Job(folder.resolve().parent.name, recipe, options, default=False, note=said)


def pretrain(id: str, overrides: Mapping[str, Any] | None = None, *, quiet: bool = False) -> Path:
    """Run a recipe to its end, or go on with it; returns its run folder. A finished run is left as it is.

    overrides  dotted path -> value: recipe settings (`optimizer.lr`) and run options (`data`, `out`, `device`, …)
    quiet      no progress on stderr
    Under torchrun every process calls this. Raises UserError, and what engine.loop.fit raises.
    """
    return run(job(id, overrides), quiet=quiet).folder


def run(work: Job, *, quiet: bool = False) -> loop.FitResult:
    """The run of a job; see pretrain."""
    if work.options.resume and finished(work.folder):
        return loop.FitResult(work.folder, finished=True, already=True)
    world = dist.init(work.options.device)
    recipe = work.recipe
    if work.note and world.is_main and not quiet:
        print(f"{work.id}: {work.note}", file=sys.stderr)
    if work.derived and world.is_main and not quiet:
        print(
            "\n".join(
                [
                    f"{work.id}: a recipe derived from {len(work.derived)} facts and rules; each is a setting of the command line:",
                    *(f"  {line}" for line in work.derived),
                ]
            ),
            file=sys.stderr,
        )
    source, meeting, method, stream, watch = dist.together(lambda: _opened(work, world))
    dist.require_same(lambda: (len(source), source.fingerprint), partial(_other_images, recipe))
    files = source.array is None
    if files and world.is_main and not quiet:
        print(f"{work.id}: JPEG files are decoded by {images.decoder()}", file=sys.stderr)
    if watch is not None and world.is_main and not quiet:
        print(f"{work.id}: {watch.text}", file=sys.stderr)
    with contextlib.redirect_stderr(io.StringIO()) if quiet else contextlib.nullcontext():
        return loop.fit(
            method,
            stream,
            rates=stream.rates,
            recipe=recipe.dump(),
            folder=work.folder,
            options=work.options,
            world=world,
            provenance=origin(work, world, source),
            warnings=meeting.warnings,
            notes=work.derived,
            monitor=watch,
            expected=curve.at if (curve := curves.of(work.folder)) is not None else None,
        )


def _other_images(recipe: Any, first: tuple[int, str], own: tuple[int, str]) -> str:
    """Of a process that found another set than the first one: each would train on its share of what it sees."""
    return (
        f"{recipe.dataset}/{recipe.split}: {own[0]:,} images with fingerprint {own[1][:10]} here, {first[0]:,} with {first[1][:10]} on process 0; "
        "bring the same files to every machine (python -m zoo data check tells the fingerprint)"
    )


def origin(work: Job, world: dist.World, source: Any) -> dict[str, Any]:
    """The provenance of a run: code and machine (engine/provenance.py), recipe, device and what it was told, processes, data."""
    recipe = work.recipe
    features = precision.of_features(str(world.device), work.options.half_features)
    return {
        **provenance.collect(),
        "id": work.id,
        "recipe_hash": recipe.hash(),
        "processes": world.size,
        "device": {"type": world.device.type, **backends.settings(work.options, world.device, features)},
        "data": {
            "name": recipe.dataset,
            "split": recipe.split,
            "images": len(source),
            "classes": len(source.classes),
            "fingerprint": source.fingerprint,
            **({"decoder": images.decoder()} if source.array is None else {}),
        },
    }


@dataclass(frozen=True)
class Meeting:
    """A recipe met with its data and processes: the method on shapes alone, its batches, the facts, and what is doubtful."""

    method: Method
    stream: Stream
    run: limits.Run
    warnings: list[str]


def meet(recipe: Any, source: Any, world: int) -> Meeting:
    """Everything that must fit together, checked on shapes alone: what the plan and the run both do first.

    source  a Source, or a stand-in that knows its length and classes (and `counted` False where it does not know its length)
    Raises UserError with the first thing that does not fit.
    """
    plain = recipe.dump()
    if methods.find(recipe.method).needs.labels:
        require_labels(recipe, source)
    with torch.device("meta"), dist.imagined(world):
        backbone = backbones.build(recipe.backbone)
        method = methods.build(recipe, backbone, instances=len(source), classes=len(source.classes))
    if isinstance(source, data.Source):
        method.meet(source)
    if (recipe.accumulate or 1) > 1 and not method.needs.divisible:
        raise UserError(
            f"accumulate={recipe.accumulate}: the loss of {recipe.method} compares the images of a batch, so that the mean over "
            f"parts is another loss; set accumulate=null and a smaller batch, with the rates in proportion: batch="
            f"{max(1, recipe.batch // recipe.accumulate)} optimizer.lr="
            f"{scaled(recipe.optimizer.lr, recipe.optimizer.name, max(1, recipe.batch // recipe.accumulate), recipe.batch):g}"
        )
    stream = streamed(recipe, source, method, world=world)
    counted = getattr(source, "counted", True)
    known = counted or recipe.schedule.images is not None
    run = limits.Run(
        plain,
        images=len(source) if counted else math.inf,
        features=backbone.dim,
        views=len(stream.augment.crops),
        processes=world,
        steps=stream.total_steps if known else math.inf,
        steps_per_epoch=stream.steps_per_epoch if counted else math.inf,
    )
    of_method = method.limits_of(recipe.params)
    limits.refuse(of_method, run)
    limits.require_images(backbone, run)
    return Meeting(method, stream, run, limits.warnings(of_method, run))


def require_labels(recipe: Any, source: Any) -> None:
    """Raise UserError for a method that learns from labels where images have none, or all of them the same."""
    missing = len(source) if source.labels is None else int((source.labels < 0).sum())
    where = f"{recipe.dataset}/{recipe.split}: method {recipe.method} learns from labels, and"
    if len(source.classes) < 2:
        raise UserError(
            f"{where} its images have {f'one class only ({source.classes[0]})' if source.classes else 'none'}; "
            "put each class into a folder of its own"
        )
    if missing:
        raise UserError(
            f"{where} {missing:,} of its {len(source):,} images have none; choose a data set with labels, or another method"
        )


def _opened(work: Job, world: dist.World) -> tuple[Any, Meeting, Method, Stream, monitor.Monitor | None]:
    recipe = work.recipe
    source = data.open_source(recipe.dataset, recipe.split, root=work.options.data, max_bad=recipe.max_bad)
    meeting = meet(recipe, source, world.size)
    method = build(recipe, source)
    method.run = meeting.run
    stream = streamed(
        recipe,
        source,
        method,
        rank=world.rank,
        world=world.size,
        workers=work.options.workers,
        device=world.device,
        precision=precision.of_features(str(world.device), work.options.half_features),
    )
    return source, meeting, method, stream, monitor.of(recipe, work.options, method, stream, world.device)


def build(recipe: Any, source: Any) -> Method:
    """The recipe's method on its backbone, initialised from the recipe's seed and, if it says so, from other weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(recipe.seed, "init"))
        backbone = backbones.build(recipe.backbone)
        if recipe.init is not None:
            zoo.load_weights(backbone, recipe.init)
        return methods.build(recipe, backbone, instances=len(source), classes=len(source.classes))


def streamed(recipe: Any, source: Any, method: Method, **where: Any) -> Stream:
    """The recipe's batches; `where`: rank, world, workers, device."""
    plain = recipe.dump()
    augment = Augment.of(plain["views"], plain["input"])
    if len(augment.crops) < method.needs.views:
        raise UserError(
            f"{recipe.method} compares at least {method.needs.views} views of an image, the recipe has "
            f"{len(augment.crops)}; set views.crops.0.count={method.needs.views}"
        )
    return Stream(
        source,
        augment,
        batch=recipe.batch,
        schedule=plain["schedule"],
        optimizer=plain["optimizer"],
        seed=recipe.seed,
        method=method,
        accumulate=recipe.accumulate or 1,
        **where,
    )


def finished(folder: Path) -> bool:
    return (folder / "done.json").exists() and (folder / "weights.pth").exists()


def report(work: Job, result: loop.FitResult) -> str:
    """What to tell at the end: the files written, and what to do next."""
    if not result.finished:
        return f"stopped at step {result.steps} as asked; the same command without stop_after goes on\n  {work.folder}/checkpoint.pt"
    done = json.loads((work.folder / "done.json").read_text())
    loss = "" if done["loss"] is None else f", loss {done['loss']:.4f}"
    first = "finished before, nothing to do" if result.already else "finished"
    files = [f"  {path}" for path in sorted(work.folder.iterdir()) if path.is_file() and path.name != "lock"]
    return "\n".join(
        [
            f"{work.id}: {first}: {done['steps']} steps{loss}, {done['seconds']:.0f} s",
            *files,
            f"next: {next_command(work)}",
        ]
    )


def next_command(work: Job) -> str:
    """The evaluation of this run, complete: on the images that it was trained on, wherever they lie."""
    model = work.id if work.default and zoo.entry(work.id).weights is None else str(work.folder)
    words = evaluation(work, model)
    if model == work.id:
        words += [f"pretrain_seed={work.recipe.seed}"] if work.recipe.seed else []
        words += [f"out={work.options.out}"] if work.options.out != "runs" else []
    return f"python -m evaluations {shlex.join(words)}"


def evaluation(work: Job, model: str) -> list[str]:
    """Own images are judged by their classes, or clustered where they have none; named data sets by their protocols."""
    dataset, place = work.recipe.dataset, work.options.data
    spec = data.describe(dataset)
    if spec.name in OWN_IMAGES:
        where = str(place or (dataset if dataset != spec.name else locate.find(spec, fetch=False)))
        classes = json.loads((work.folder / "provenance.json").read_text())["data"].get("classes", 0)
        return ["run", "knn_folder", model, f"data={where}"] if classes > 1 else ["cluster", model, where]
    there = [f"data={place}"] if place else []
    if dataset in ("digits", "fashion_mnist"):
        return ["run", f"linear_{dataset}", model, *there]
    return ["suite", model, *([f"only=*_{dataset}*"] if place else []), *there]
