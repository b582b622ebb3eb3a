"""Text for people from the registry: the table of `zoo list` and the card of `zoo show`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from .errors import UserError, suggest
from .registry import status
from .settings import merge_layers

if TYPE_CHECKING:
    from .registry import Registry
    from .schema import Entry, Input, Layout, Recipe, Source

PERMITS = {
    "CC-BY-NC-4.0": "use, sharing and change with attribution; not for commercial purposes",
    "CC-BY-NC-SA-4.0": "use, sharing and change with attribution, under the same licence; not for commercial purposes",
    "MIT": "use, change and redistribution, commercial too; keep the notice",
    "Apache-2.0": "use, change and redistribution, commercial too; keep the notices and state changes",
    "not stated": "nothing was granted: there is no licence file, so ask the authors before you pass it on or sell it",
}
TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")  # the same names and tensors in timm
WHOSE = {"authors": "authors", "quoted": "quoted", "retrain": "retrained by", "reeval": "re-evaluated by"}


def listing(registry: Registry, pattern: str = "*") -> str:
    """One line per model: id, status, network, data, aliases, and a count.  ``pattern`` may also be a method's name."""
    registry.read()
    found = registry.models(pattern) or [m for m in registry.models() if fnmatchcase(registry.owner(m), pattern)]
    if not found:
        known = [*registry.models(), *registry.aliases(), *registry.families()]
        raise UserError(f"no model matches {pattern!r}{suggest(pattern, known) or ';'} quote patterns such as 'swav*'")
    rows: list[Sequence[str]] = [("MODEL", "STATUS", "NETWORK", "TRAINED ON", "ALSO CALLED")]
    counts: dict[str, int] = {}
    for model in found:
        row = _row(registry, model)
        counts[row[1]] = counts.get(row[1], 0) + 1
        rows.append(row)
    total = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
    return "\n".join([*align(rows), f"{len(found)} model{'s' * (len(found) > 1)}: {total}"])


def _row(registry: Registry, model: str) -> tuple[str, ...]:
    """A line of the listing, from the files alone: no checks, so that listing stays quick."""
    layers = registry.layers(model)
    own, merged, method = layers[-1].values, merge_layers(layers), registry.method(registry.owner(model))
    data = own.get("dataset") or _inside(merged, "recipe", "dataset") or method.get("dataset") or ""
    state = status(own, merged.get("recipe")) + (f" since {own['since']}" if "since" in own else "")
    aliases = own.get("aliases")
    other = ", ".join(map(str, aliases)) if isinstance(aliases, list) else ""
    return model, state, str(_inside(merged, "backbone", "name") or ""), str(data), other


def _inside(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def align(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """Rows as lines with columns of equal width."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]


def card(entry: Entry) -> str:
    """The model card: what it is, how to load it, how to reproduce it, numbers, licence, and what is not known."""
    head = entry.id + (f" (also {', '.join(entry.aliases)})" if entry.aliases else "")
    state = entry.status + (f" since {entry.since}" if entry.since else "")
    parts = [f"{head}: {state}", entry.title, entry.summary]
    for title, lines in (
        ("What it is", _what(entry)),
        ("Load", _loading(entry)),
        ("Reproduce", _reproduce(entry)),
        ("Published numbers", _published(entry)),
        ("Licence", _licence(entry)),
        ("Notes", [f"- {note}" for note in entry.notes]),
        ("Not known", [f"- {gap}" for gap in unknown(entry)]),
    ):
        if lines:
            parts += ["", title, *(f"  {line}" for line in lines)]
    return "\n".join(parts)


def _what(entry: Entry) -> list[str]:
    rows = [("network", str(entry.backbone) + (f": {entry.network.parameters:,} parameters" if entry.network else ""))]
    if entry.network:
        rows.append(("features", f"{entry.network.dim} per image"))
    rows.append(("input", input_words(entry.input)))
    if entry.dataset:
        rows.append(("trained on", entry.dataset + ("" if entry.method == "supervised" else ", without labels")))
    if entry.paper:
        paper = entry.paper
        where = f", https://arxiv.org/abs/{paper.arxiv}" if paper.arxiv else ""
        rows.append(("paper", f"{paper.title} ({paper.authors}; {paper.venue}{where})"))
    if entry.code:
        rows.append(("code", f"https://github.com/{entry.code.repository} ({entry.code.license or 'no licence file'})"))
    rows.append(("defined in", f"{entry.file}, line {entry.line}"))
    return align(rows)


def input_words(spec: Input) -> str:
    """``shorter side to 256 (bilinear), centre 224x224; minus [...], divided by [...]``."""
    steps = [f"{spec.pad} px of zeros on each side"] if spec.pad else []
    steps += [f"shorter side to {spec.resize} ({spec.interpolation})"] if spec.resize else []
    steps += [f"centre {spec.crop}x{spec.crop}"] if spec.crop else []
    colour = "RGB" if spec.channels == 3 else "gray"
    return f"{colour}, {', '.join(steps) or 'as it is'}; 0..1, minus {spec.mean}, divided by {spec.std}"


def _loading(entry: Entry) -> list[str]:
    if entry.weights is None:
        made = f"python -m reproduce {entry.id}, then " if entry.recipe else ""
        lines = [f'zoo.load("{entry.id}", pretrained=False)   the network, untrained']
        lines.append(f'{made}zoo.load("<run folder>")' if entry.recipe else "Nobody released weights.")
        return lines + _labels(entry)
    lines = [f'zoo.load("{entry.id}")   features (B, {entry.network.dim if entry.network else "D"})']
    lines += [
        f'zoo.load("{entry.id}", head="{name}")   the released {h.classes}-class classifier'
        for name, h in entry.heads.items()
    ]
    if entry.backbone.name in TORCHVISION and not entry.backbone.options:
        lines.append(f"python -m zoo export {entry.id} --to timm, then")
        lines.append(
            f'timm.create_model("{entry.backbone.name}", num_classes=0, checkpoint_path="{entry.id}-timm.pth")'
        )
    groups = _heads(entry.weights.layouts)
    lines += [f'zoo.load("{entry.id}", part="full")   with its {groups}'] if groups else []
    return [*lines, *_labels(entry), f"file: {', or '.join(where(source) for source in entry.weights.sources)}"]


def _labels(entry: Entry) -> list[str]:
    if entry.pseudolabels is None:
        return []
    count = entry.pseudolabels.heads
    return [f'zoo.pseudolabels("{entry.id}")   {count} cluster{"s" * (count > 1)} of each training image']


def _heads(layouts: Iterable[Layout]) -> str:
    return ", ".join(dict.fromkeys(name for layout in layouts for name in layout.heads))


def where(source: Source) -> str:
    """A source in words."""
    place = source.url or source.file or f"https://drive.google.com/file/d/{source.gdrive}/view"
    return place + (f" (member {source.member})" if source.member else "")


def _reproduce(entry: Entry) -> list[str]:
    if entry.recipe is None and entry.reproduced_by is not None:
        return [f"python -m reproduce {entry.reproduced_by}   the model whose recipe trains the same objective"]
    if entry.recipe is None:
        return ["The recipe was never released in full."]
    return [f"python -m reproduce {entry.id}   recipe {entry.recipe.hash()}", *recipe_words(entry.recipe)]


def recipe_words(recipe: Recipe) -> list[str]:
    """The recipe in a few aligned lines."""
    views, optimizer, schedule = recipe.views, recipe.optimizer, recipe.schedule
    augment = [
        f"flip {views.flip:g}" if views.flip else "",
        f"colour jitter {_settings(views.jitter)}" if views.jitter else "",
        f"gray {views.grayscale:g}" if views.grayscale else "",
        f"blur {views.blur.probability:g}" if views.blur else "",
        f"rotation ±{views.rotate:g}°" if views.rotate else "",
        f"noise {views.noise:g}" if views.noise else "",
        f"solarise {views.solarize.probability:g}" if views.solarize else "",
    ]
    crops = " + ".join(f"{c.count}x{c.size} ({c.scale[0]:g}-{c.scale[1]:g} of the area)" for c in views.crops)
    rows = [
        ("views", "; ".join([crops, *(word for word in augment if word)])),
        ("batch", str(recipe.batch)),
        ("optimizer", _settings(optimizer)),
        ("schedule", _settings(schedule)),
        ("params", words(recipe.params) or "none"),
    ]
    return align(rows)


def _settings(spec: Any) -> str:
    return words({key: value for key, value in spec.model_dump().items() if value is not None})


def words(settings: Mapping[str, Any]) -> str:
    """``{name: sgd, lr: 0.1, queue: {length: 0}}`` as ``sgd, lr 0.1, queue (length 0)``."""
    parts = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            parts.append(f"{key} ({words(value)})")
        elif key == "name":
            parts.append(str(value))
        else:
            shown = (
                str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value
            )
            parts.append(f"{key} {shown}")
    return ", ".join(parts)


def _published(entry: Entry) -> list[str]:
    rows = []
    for number in entry.published:
        whose = WHOSE[number.origin] + (f" {number.by}" if number.by else "")
        note = f" ({number.note})" if number.note else ""
        rows.append((number.protocol, number.metric, f"{number.value:g}", whose, number.source + note))
    return align(rows) if rows else ["None that was read at its source."]


def _licence(entry: Entry) -> list[str]:
    if entry.laptop:
        return ["You train it yourself with this project's code: see LICENSE."]
    licences = [w.license for w in (entry.weights, *entry.heads.values(), entry.pseudolabels) if w is not None]
    if not licences and entry.code:
        licences = [entry.code.license or "not stated"]
    return [f"{name}: {PERMITS.get(name, 'see the text of this licence')}" for name in dict.fromkeys(licences)]


def unknown(entry: Entry) -> list[str]:
    """What a careful reader would ask and nobody can answer yet."""
    gaps = []
    if entry.weights is not None and entry.weights.sha256 is None:
        gaps.append("the file's SHA-256: the project has not seen the file; yours is remembered at its first download")
    if entry.weights is None and not entry.laptop:
        gaps.append("the weights: no address of a file is known")
    if entry.recipe is None and entry.reproduced_by is None:
        gaps.append("the complete recipe")
    if entry.code is not None and entry.code.license is None and not entry.laptop:
        gaps.append("the licence: the authors' repository has no licence file")
    if not entry.published and not entry.laptop:
        gaps.append("any published number for exactly these weights")
    return gaps
