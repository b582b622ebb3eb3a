"""python -m zoo validate: looks at every entry, and says how often it looked.

Without torch: files, inheritance, recipes, params, ids, aliases, names of data sets and methods, sources, layouts, numbers.
With torch: every network is built on the meta device, and its parameters, width and input size recomputed.

What an id promises: ``swav_rn50w2_400ep`` names a network of double width and 400 epochs, and must not lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError, suggest
from .yamlfile import load_mapping

if TYPE_CHECKING:
    from .registry import Registry
    from .schema import Entry


@dataclass
class Findings:
    """How many times each check looked, what it found, and what could not be looked at."""

    looked: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def look(self, what: str, problems: Iterator[str]) -> None:
        """Count one look and keep what it finds."""
        self.looked[what] = self.looked.get(what, 0) + 1
        try:
            self.problems.extend(problems)
        except UserError as error:
            self.problems.append(str(error))

    def __str__(self) -> str:
        lines = [f"{number:5d}  {what}" for what, number in self.looked.items()]
        lines += [f"       not looked at: {what}" for what in self.skipped]
        lines += [f"error: {problem}" for problem in dict.fromkeys(self.problems)]
        return "\n".join([*lines, "valid" if self.ok else f"{len(dict.fromkeys(self.problems))} problem(s)"])


def validate(registry: Registry, networks: bool = True, checkout: Path | None = None) -> Findings:
    """Every check over every entry; never stops at the first problem.  ``checkout``: where reproduce/methods is."""
    found = Findings()
    try:
        registry.read()
    except UserError as error:
        found.problems.append(str(error))
        return found
    entries: list[Entry] = []
    for model in registry.models():
        found.look("entries inherited and checked, ids against their fields", _build(registry, model, entries))
    found.look("profiles in use", _profiles(registry))
    for method in registry.families():
        found.look("method files: parameters and their limits", _method(registry, method))
    datasets = registry.root / "datasets.yaml"
    if datasets.exists():
        known = list(load_mapping(datasets))
        for entry in entries:
            found.look("data sets known by name", _dataset(registry, entry, known))
    else:
        found.skipped.append("names of data sets: there is no datasets.yaml")
    scripts = (checkout or registry.root.parent) / "reproduce" / "methods"
    if scripts.is_dir():
        stems = {path.stem for path in scripts.glob("*.py")} - {"__init__"}
        for entry in entries:
            found.look("methods with a recipe that can be run", _script(registry, entry, stems))
    else:
        found.skipped.append("methods against their code: reproduce/methods is not here")
    _across(found, registry, entries)
    for entry in entries:
        found.look("cards and hub entries that can be printed", _printed(entry))
    if networks:
        _networks(found, registry, entries)
    else:
        found.skipped.append("networks (as asked)")
    return found


def _build(registry: Registry, model: str, entries: list[Entry]) -> Iterator[str]:
    entries.append(registry.entry(model))
    yield from ()


def _at(registry: Registry, entry: Entry, *keys: Any) -> str:
    from .checking import blame

    return blame(registry.layers(entry.id), keys, registry.root)


def _profiles(registry: Registry) -> Iterator[str]:
    used = [registry.layers(model)[-1].values.get("profile") for model in registry.models()]
    for name in registry.profiles():
        if name not in used:
            yield f"zoo/profiles.yaml: no model uses the profile {name!r}"


def _method(registry: Registry, method: str) -> Iterator[str]:
    from .checking import check_params, place
    from .settings import leaves

    top, file = registry.checked(method), registry.file(method)
    defaults, specs = top.defaults, top.params_spec
    names = leaves(defaults)
    for name in specs:
        if name not in names:
            yield f"{place(file, ('params_spec', name), registry.root)}: limits for {name!r}, which has no default{suggest(name, names)}"

    def fail(keys: tuple[str | int, ...], message: str) -> UserError:
        return UserError(f"{place(file, ('recipe', 'params', *keys), registry.root)}: {message}")

    check_params(defaults, defaults, specs, fail)


def _dataset(registry: Registry, entry: Entry, known: list[str]) -> Iterator[str]:
    used = {
        entry.dataset,
        entry.recipe.dataset if entry.recipe else None,
        *(head.dataset for head in entry.heads.values()),
    }
    for name in sorted(used - {None} - set(known), key=str):
        yield f"{_at(registry, entry, 'recipe', 'dataset')}: {entry.id}: no data set {name!r} in datasets.yaml{suggest(str(name), known)}"


def _script(registry: Registry, entry: Entry, stems: set[str]) -> Iterator[str]:
    if entry.recipe is None:
        return
    wanted = {entry.method, entry.method.rstrip("0123456789").removesuffix("v")}
    if not wanted & stems:
        where = _at(registry, entry)
        yield f"{where}: {entry.id} has a recipe, but reproduce/methods/{entry.method}.py does not exist{suggest(entry.method, stems)}"


def _across(found: Findings, registry: Registry, entries: list[Entry]) -> None:
    """What only shows when entries stand beside each other."""
    by_file: dict[tuple[Any, ...], str] = {}
    by_recipe: dict[str, str] = {}
    ids = {*registry.models(), *registry.aliases()}
    for entry in entries:
        found.look("released files that belong to one model only", _files(registry, entry, by_file))
        found.look("recipes that no other model has", _recipes(registry, entry, by_recipe))
        found.look("starting points (init) that exist", _init(registry, entry, ids))
        found.look("recipes of other models that exist", _reproduced_by(registry, entry, ids))
        found.look("layouts that could match", _layouts(registry, entry))
        found.look("published numbers given once", _numbers(registry, entry))


def _files(registry: Registry, entry: Entry, seen: dict[tuple[Any, ...], str]) -> Iterator[str]:
    for what in (entry.weights, *entry.heads.values()):
        for source in what.sources if what else ():
            key = (source.url, source.gdrive, source.file, source.member)
            if key in seen:
                yield f"{_at(registry, entry, 'weights')}: {entry.id} and {seen[key]} have the same file {source.url or source.gdrive or source.file}"
            seen[key] = entry.id


def _recipes(registry: Registry, entry: Entry, seen: dict[str, str]) -> Iterator[str]:
    if entry.recipe is None:
        return
    key = entry.recipe.hash()
    if key in seen:
        yield f"{_at(registry, entry, 'recipe')}: {entry.id} and {seen[key]} have the same recipe"
    seen[key] = entry.id


def _init(registry: Registry, entry: Entry, ids: set[str]) -> Iterator[str]:
    if entry.recipe and entry.recipe.init and entry.recipe.init not in ids:
        where = _at(registry, entry, "recipe", "init")
        yield f"{where}: {entry.id} starts from {entry.recipe.init!r}, which is not a model{suggest(entry.recipe.init, ids)}"


def _reproduced_by(registry: Registry, entry: Entry, ids: set[str]) -> Iterator[str]:
    other, where = entry.reproduced_by, _at(registry, entry, "reproduced_by")
    if other is None:
        return
    if other not in ids:
        yield f"{where}: {entry.id} is reproduced by {other!r}, which is not a model{suggest(other, ids)}"
    elif entry.recipe is not None or registry.entry(other).recipe is None:
        yield f"{where}: {entry.id} is reproduced by {other!r}: the one must have no recipe and the other a recipe"


def _layouts(registry: Registry, entry: Entry) -> Iterator[str]:
    if entry.weights is not None and not entry.weights.layouts:
        yield f"{_at(registry, entry, 'weights')}: {entry.id} has weights but no layout to read them with"
    if entry.recipe is not None and not entry.layouts:
        yield f"{_at(registry, entry)}: {entry.id} can be trained, but no layout reads its weights back"
    layouts = [layout.model_dump_json() for layout in entry.layouts]
    if len(set(layouts)) < len(layouts):
        yield f"{_at(registry, entry, 'layouts')}: {entry.id} has the same layout twice"


def _numbers(registry: Registry, entry: Entry) -> Iterator[str]:
    seen = set()
    for i, number in enumerate(entry.published):
        key = (number.protocol, number.metric, number.origin, number.by, number.source)
        if key in seen:
            where = _at(registry, entry, "published", i)
            yield f"{where}: {entry.id} has two values for {number.metric} of {number.protocol} from {number.source}"
        seen.add(key)


def _printed(entry: Entry) -> Iterator[str]:
    from .card import card
    from .hub import describe

    if not card(entry) or not describe(entry, entry.id):
        yield f"{entry.id}: its card is empty"


def _networks(found: Findings, registry: Registry, entries: list[Entry]) -> None:
    try:
        import torch

        from . import backbones
    except ImportError as error:
        found.skipped.append(f"networks: {error}")
        return
    sizes: dict[str, tuple[int, int] | str] = {}
    for entry in entries:
        spec = f"{entry.backbone!r} {entry.input.channels} {_side(entry)}"
        if spec not in sizes:
            sizes[spec] = _measure(torch, backbones, entry)
        found.look("networks built: parameters, width, input size", _network(registry, entry, sizes[spec]))


def _side(entry: Entry) -> int | None:
    """Side of the images that reach the network; null: as large as they come."""
    if entry.input.crop or entry.input.resize:
        return entry.input.crop or entry.input.resize
    crop = entry.recipe.views.crops[0] if entry.recipe else None
    return crop.size if crop else None


def _measure(torch: Any, backbones: Any, entry: Entry) -> tuple[int, int] | str:
    """(parameters, width of the features), or what went wrong."""
    try:
        with torch.device("meta"):
            network = backbones.build(entry.backbone).eval()
            side = _side(entry) or 224
            out = network(torch.empty(2, entry.input.channels, side, side))
    except UserError as error:
        return str(error)
    except RuntimeError as error:
        return f"{entry.backbone} does not accept {entry.input.channels}x{side}x{side} images: {error}"
    if tuple(out.shape) != (2, network.dim):
        return f"{entry.backbone} gives features of shape {tuple(out.shape)} for 2 images and calls itself {network.dim} wide"
    return sum(p.numel() for p in network.parameters()), network.dim


def _network(registry: Registry, entry: Entry, measured: tuple[int, int] | str) -> Iterator[str]:
    if isinstance(measured, str):
        yield f"{_at(registry, entry, 'backbone')}: {entry.id}: {measured}"
        return
    for name, real in zip(("parameters", "dim"), measured, strict=True):
        said = getattr(entry.network, name, None)
        if said != real:
            where = _at(registry, entry, "network", name)
            yield f"{where}: {entry.id}: network.{name} is {said}, the built {entry.backbone} has {real}"
