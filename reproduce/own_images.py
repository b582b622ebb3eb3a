"""`python -m reproduce METHOD data=FOLDER`: a method's name instead of a model's, and a recipe derived from the images.

The images are looked at here (a sample of them, the same one each time); what follows from the numbers is in from_folder.py.
Settings of the command line hold, and what depends on them is derived from them: batch=64 changes the rates too.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import zoo
from engine import layout, rng
from engine.options import RunOptions
from engine.progress import duration
from reproduce import from_folder
from reproduce.from_folder import Choice, Facts
from reproduce.method import embed
from reproduce.stream import Stream
from reproduce.views import Augment
from zoo import backbones, data
from zoo.data import looks
from zoo.data.source import FileSource
from zoo.errors import UserError
from zoo.registry import registry

FEW = 1000  # images; a plan for fewer says what to expect of them
SAMPLE = 256  # images that are looked at
SHORT = 600.0  # seconds: a plan says how many images fit
SIDE = 256  # pixels: larger images are halved until their shorter side is below twice this


@dataclass(frozen=True)
class Derived:
    """A recipe for a set of images, why it is as it is, and what is odd about the images."""

    recipe: Any
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """A line for each setting: its value and the reason."""
        return [f"{choice.path}={_shown(choice.value)}  ({choice.why})" for choice in self.choices] + list(self.notes)


def is_method(name: str) -> bool:
    """Whether a name is a method's and no model's."""
    known = registry()
    return name in known.families() and name not in known.models() and name not in known.aliases()


def derive(method: str, settings: Mapping[str, Any], options: RunOptions) -> Derived:
    """The recipe of `method` for the images that `data=` (or `dataset=`) names, with the other settings on top.

    Raises UserError: no images named, too few of them, images that cannot be read, unknown settings.
    """
    given = dict(settings)
    dataset = str(given.get("dataset", "folder"))
    if options.data is None and "dataset" not in given:
        raise UserError(
            f"{method} is a method; name images of your own (python -m reproduce {method} data=FOLDER), or one of its "
            f"models: python -m zoo list '{method}*'"
        )
    source = data.open_source(
        dataset, str(given.get("split", "train")), root=options.data, max_bad=given.get("max_bad")
    )
    facts, notes = look(source)
    require_enough(facts, options.data or dataset)
    if facts.images < FEW:
        notes.append(
            f"note: {facts.images:,} images are few to train from random weights; compare the run with released weights before you use it: "
            "python -m evaluations rank FOLDER"
        )
    base = base_recipe(method, facts.small)
    given.setdefault("dataset", dataset)
    batch, epochs = _insisted(given, len(source))
    choices = from_folder.derive(base.dump(), facts, batch=batch, epochs=epochs)
    plain = {"dataset": dataset, "split": "train", "init": None, "sync_bn_group": None, "precision": "bfloat16"}
    try:
        recipe = registry().change(base, {**plain, **{choice.path: choice.value for choice in choices}})
    except UserError as error:
        raise UserError(f"{method}: no recipe can be derived from these images: {error}") from None
    recipe = registry().change(recipe, given)
    kept = tuple(choice for choice in choices if choice.path == "batch" or not _overridden(choice.path, given))
    return Derived(recipe, kept, tuple(notes))


def require_enough(facts: Facts, where: str) -> None:
    """Raise UserError for fewer images than any method can learn from."""
    if facts.images < from_folder.FEWEST:
        raise UserError(
            f"{where}: {facts.images} images; pre-training needs {from_folder.FEWEST} at least, and some hundreds to be of "
            "use: take released weights instead (python -m zoo list)"
        )


def base_recipe(method: str, small: bool) -> Any:
    """The method's recipe at laptop scale; for larger images with what the method's own file says of views and training."""
    recipe = zoo.resolve(f"{method}_fashion_mnist")
    own = registry().method(method).get("recipe") or {}
    if small or "views" not in own:
        return recipe
    changes = {name: own[name] for name in ("batch", "optimizer", "schedule", "params") if name in own}
    nothing = {
        "flip": 0.0,
        "jitter": None,
        "grayscale": 0.0,
        "blur": None,
        "rotate": 0.0,
        "noise": 0.0,
        "pad": 0,
        "solarize": None,
    }
    return registry().change(
        recipe, {**changes, **{f"views.{name}": value for name, value in {**nothing, **own["views"]}.items()}}
    )


def _insisted(given: Mapping[str, Any], images: int) -> tuple[int | None, float | None]:
    """The batch and the epochs that the command line asks for, as far as they are numbers."""
    batch, epochs, seen = (given.get(name) for name in ("batch", "schedule.epochs", "schedule.images"))
    whole = lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0
    total = float(epochs) if whole(epochs) else seen / images if whole(seen) else None  # type: ignore[arg-type, operator]
    return (int(batch) if whole(batch) else None), total  # type: ignore[arg-type]


def _overridden(path: str, given: Mapping[str, Any]) -> bool:
    return any(path == other or path.startswith(f"{other}.") for other in given)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_shown(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)


# -- looking at images -----------------------------------------------------------------------------------------------------
def look(source: Any) -> tuple[Facts, list[str]]:
    """Facts about a source, from SAMPLE of its images drawn by a fixed rule, and lines about what is unusual.

    Mean and standard deviation are over all pixels of the sample, those of large images averaged in blocks.
    """
    n = len(source)
    if not n:
        raise UserError("no images in it")
    chosen = np.sort(rng.permutation(0, "facts of a folder", 0, n)[:SAMPLE])
    sides, sums, squares, pixels = [], np.zeros(3), np.zeros(3), 0
    modes: Counter[str] = Counter()
    deep: list[looks.Look] = []
    gray = True
    for i in chosen.tolist():
        image = source.image(i)
        if isinstance(source, FileSource):
            file = looks.look(source.raw(i))
            modes[file.mode] += 1
            deep += [file] if file.stated else []
        sides.append(image.size)
        image = image.convert("RGB")
        if (factor := min(image.size) // SIDE) > 1:
            image = image.reduce(factor)
        values = np.asarray(image, dtype=np.float64).reshape(-1, 3) / 255
        gray = gray and bool((values == values[:, :1]).all())
        sums, squares, pixels = sums + values.sum(0), squares + (values**2).sum(0), pixels + len(values)
    mean = sums / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    channels = 1 if gray else 3
    shorter = np.array([min(size) for size in sides])
    facts = Facts(
        n, int(np.median(shorter)), channels, tuple(map(float, mean[:channels])), tuple(map(float, std[:channels]))
    )
    notes = _notes(facts, shorter, modes, len(chosen))
    return facts, notes + ([f"note: {dark}"] if (dark := looks.unused_bits(deep)) else [])


def _notes(facts: Facts, shorter: np.ndarray, modes: Mapping[str, int], count: int) -> list[str]:
    of = f"{count} images looked at" if count < facts.images else f"{count} images"
    notes = []
    if shorter.max() > 2 * shorter.min():
        notes.append(
            f"note: shorter sides from {shorter.min()} to {shorter.max()} pixels in the {of}; the recipe is for their median, {facts.side}"
        )
    how = {
        "CMYK": "converted to RGB",
        "RGBA": "transparency dropped",
        "LA": "transparency dropped",
        "P": "the palette's colours",
        "1": "black and white",
    }
    for mode, number in sorted(modes.items()):
        if mode.startswith(("I", "F")):
            notes.append(
                f"note: {number} of the {of} have more than 8 bits a pixel: scaled to 8 by the range that each file states"
            )
        elif mode not in ("RGB", "L"):
            notes.append(f"note: {number} of the {of} have mode {mode}: {how.get(mode, 'converted to RGB')}")
    if facts.channels == 3 and modes.get("L", 0):
        notes.append(f"note: {modes['L']} of the {of} are gray among colour: read as three equal channels")
    if min(facts.std) < 0.01:
        notes.append("note: these images hardly differ from one even colour; is this the right folder?")
    return notes


# -- how long ----------------------------------------------------------------------------------------------------------------
def hours(recipe: Any, source: Any, options: RunOptions, images: int) -> str:
    """How long a run that sees `images` would take: loading, and forward and backward of the network, of a few images are timed."""
    plain = recipe.dump()
    augment = Augment.of(plain["views"], plain["input"])
    few = min(recipe.batch, 16 if recipe.input.crop and recipe.input.crop < from_folder.SMALL else 4)
    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    )
    stream = Stream(source, augment, batch=few, seed=recipe.seed, schedule={"images": 2 * few})
    batches = stream.epoch(0)
    next(batches)
    began = time.perf_counter()
    batch = next(batches)
    loading = (time.perf_counter() - began) / few
    network = backbones.build(recipe.backbone)
    memory: Any = layout.memory_format(network, recipe.channels_last)
    network.to(device).to(memory_format=memory).train()
    batch = batch.to(device, channels_last=memory is torch.channels_last)
    kind = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(recipe.precision)
    computing = 0.0
    if any(p.requires_grad for p in network.parameters()):
        for _ in range(2):  # the first time prepares kernels
            began = time.perf_counter()
            with torch.autocast(device.type, kind or torch.bfloat16, enabled=kind is not None):
                features = embed(network, batch.views)
            features.float().sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            computing = (time.perf_counter() - began) / few
    workers = stream.workers_of(options.workers)
    each = max(loading / workers, computing) if workers else loading + computing
    shorter = max(recipe.batch, int(SHORT / each) // recipe.batch * recipe.batch) if each else images
    less = f"; {duration(SHORT)} with schedule.images={shorter}" if shorter < images else ""
    return (
        f"about {duration(each * images)} on this machine's {device.type}{less} (an estimate: {few} images timed, "
        f"{1000 * loading:.3g} ms to load one and {1000 * computing:.3g} ms for the network; heads and clustering come on top)"
    )
