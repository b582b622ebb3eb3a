"""``zoo.load`` and its companions: a complete network from an id, a run folder or a file, or an error that says why not."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import backbones, fitting, foreign, heads, labels, registry
from .backbones import expected_shapes, shapes
from .errors import UserError, suggest
from .labels import Labels
from .weights import COUNTER, Choice, Report, read, select

SUFFIXES = (".pth", ".pt", ".tar", ".t7", ".pkl", ".safetensors")


@dataclass(frozen=True)
class Origin:
    """Where a network comes from: its file (fetched when called), the forms the file may have, what it expects to see."""

    name: str
    backbone: Any
    input: Any
    layouts: list[Any]
    where: str  # the place in the YAML where a mismatch must be corrected
    file: Callable[[], Path]
    entry: Any = None
    assumed: bool = False  # nobody said what the input is normalised by: entries with this network differ
    found: foreign.Found | None = None  # a file of another project, or one that its owner described

    def tree(self) -> Mapping[str, Any]:
        """What the file holds: everything, or of another project's file the tensors alone."""
        return read(self.file()) if self.found is None else self.found.tensors

    def require(self, report: Report) -> Report:
        """The report, printed with where the file comes from, if everything fits; else UserError."""
        if self.found is None or not report.ok:
            return report.require(self.name, self.where)
        print(f"{self.name}: {self.found.line()}", file=sys.stderr)
        return report


def load(
    name: str | Path,
    pretrained: bool = True,
    num_classes: int = 0,
    part: str = "backbone",
    head: str | None = None,
    progress: bool = True,
    backbone: Any = None,
    prefix: str | None = None,
    path: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    **network: Any,
) -> nn.Module:
    """A network in eval mode on the CPU: normalised images (B, C, H, W) -> features (B, D).

    name         a registry id or alias, a run folder (recipe.yaml and weights.pth), or a weight file: of a form that the
                 registry knows, of another project (foreign_layouts.yaml), or with a short file beside it, FILE.yaml
    pretrained   False: freshly initialised, nothing is downloaded
    num_classes  above 0: a fresh linear layer on the features (after the last ReLU, where they end before it), output
                 (B, num_classes)
    part         "full": with the heads in the file; the output is a dict, "features" and one entry per head
    head         a released classifier of the entry, such as "linear_imagenet": output (B, classes)
    progress     a bar on stderr while something is downloaded
    backbone, prefix, path, mean, std   what the owner of a file says of it where it is not recognised, or wrongly: the
                 network, what its tensors' names begin with, their dotted place in the file, the input's normalisation
    features_only, out_indices   a ResNet's maps at several scales, as a list; which of them, 0 (stem) to 4 (last stage)
    network      options of a ResNet that leave its tensors as they are: norm_layer (torchvision's FrozenBatchNorm2d, ...)
                 and replace_stride_with_dilation, both as torchvision takes them
    The report of matched and ignored tensors goes to stderr.  Raises UserError unless every backbone tensor is found
    and every tensor of the file is accounted for by name.
    """
    if part not in ("backbone", "full"):
        raise UserError(f'part={part!r}: "backbone" or "full"')
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
        raise UserError(f"num_classes={num_classes!r}: a whole number, 0 for none")
    if sum((num_classes > 0, part == "full", head is not None, features_only)) > 1:
        raise UserError('num_classes, part="full", head and features_only are alternatives: give one of them')
    if out_indices is not None and not features_only:
        raise UserError("out_indices chooses among the maps of features_only=True")
    for option in network:
        if option not in NETWORK:
            raise UserError(f"no argument {option!r}{suggest(option, [*inspect.signature(load).parameters, *NETWORK])}")
    source = origin(name, progress, foreign.Form(backbone, prefix, path, mean, std))
    released = _released_head(source, head) if head is not None else None
    if not pretrained:
        if part == "full" or released is not None:
            raise UserError(f'{source.name}: part="full" and head= come with the weights; pretrained=False has neither')
        net = backbones.build(_with(backbones.variants(source.backbone)[0] if network else source.backbone, network))
    else:
        spec, choice = fit(source, source.tree())
        source.require(choice.report)
        with torch.device("meta"):  # no memory, no random numbers: every tensor comes from the file
            net = backbones.build(_with(spec, network))
        fill(net, _without_counters(choice, net) if network else choice, source.name)
        if part == "full":
            return heads.Full(net, choice.report.heads, choice.tensors).eval()
    if num_classes:
        return heads.Classifier(net, num_classes).eval()
    if released is not None:
        return _with_head(net, source, str(head), released).eval()
    return heads.Maps(net, out_indices).eval() if features_only else net.eval()


NETWORK = ("norm_layer", "replace_stride_with_dilation")


def _with(spec: Any, network: Mapping[str, Any]) -> Any:
    """The network with options on top that change none of its tensors; those left at None are not given at all."""
    given = {key: value for key, value in network.items() if value is not None}
    if not given:
        return spec
    name, options = backbones.parts(spec)
    return {"name": name, "options": {**options, **given}}


def _without_counters(choice: Choice, net: nn.Module) -> Choice:
    """The match without batch norm's counters where another layer stands for it that has none."""
    own = net.state_dict()
    gone = [key for key in (*choice.report.mapping, *choice.report.filled) if key not in own]
    lost = [key for key in gone if not key.endswith(COUNTER)] or [
        key for key in own if key not in choice.report.mapping and key not in choice.report.filled
    ]
    if lost:
        raise UserError(
            f"norm_layer: the released weights and this layer do not go together ({lost[0]}); it must have batch norm's tensors, as FrozenBatchNorm2d has"
        )
    report = replace(
        choice.report,
        mapping={k: v for k, v in choice.report.mapping.items() if k in own},
        filled=tuple(k for k in choice.report.filled if k in own),
    )
    return replace(choice, report=report)


def load_weights(model: nn.Module, name: str | Path, prefix: str | None = None, path: str | None = None) -> Report:
    """Copy the tensors of an id, a run folder or a weight file into ``model``, any module of the caller's.

    Of an id or a run the backbone's tensors, under torchvision's names or ours. Of a file whatever fills the model, or one
    part of it such as ``model.backbone``, by its own names and shapes; prefix and path say where in the file to look.
    A classifier may be left as it was: the report lists what was. Raises UserError, and changes nothing, unless every other
    tensor of the model, or of that part, is there with its shape.
    """
    own, form = shapes(model), foreign.Form(prefix=prefix, path=path)
    place = _place(name)
    if place is not None and not _is_run(place):
        if not place.exists() or place.is_dir():
            recognise(place)  # which says what is wrong
        choice = fitting.choose(model, read(place), _every_layout(), form, str(place))
        choice.report.require(str(place), str(place))
        fill(model, choice, str(place), assign=False)
        return choice.report
    source = origin(name, form=form)
    tree, what = dict(source.tree()), source.name
    expected = expected_shapes(fit(source, tree)[0])
    lacking = [key for key in expected if key not in own]
    if lacking:
        raise UserError(f"{what}: the model has no {lacking[0]} (nor {len(lacking) - 1} more); it is not this backbone")
    choice = select(tree, source.layouts, {key: own[key] for key in expected}, what)
    choice = replace(choice, report=replace(choice.report, left=tuple(key for key in own if key not in expected)))
    choice.report.require(what, source.where)
    fill(model, choice, what, assign=False)
    return choice.report


def transforms(name: Any, train: bool = False, **form: Any) -> Callable[[Any], Tensor]:
    """A model's own preprocessing, from a PIL image to (C, H, W): stock torchvision classes, picklable.

    name   an id, a run folder, a weight file, a Recipe, an Entry or an Input
    train  True: random resized crop and flip in place of resize and centre crop, as linear probes train
    form   of a weight file: backbone, prefix, path, mean, std, as ``load`` takes them
    """
    from torchvision import transforms as T
    from torchvision.transforms import v2

    given = getattr(name, "input", name)
    spec = given if hasattr(given, "interpolation") else origin(name, form=foreign.Form(**form)).input
    how = T.InterpolationMode(spec.interpolation)
    steps: list[Any] = [v2.RGB() if spec.channels == 3 else T.Grayscale(1)]
    if getattr(spec, "pad", 0):
        steps.append(T.Pad(spec.pad))
    if train and spec.crop:
        steps += [T.RandomResizedCrop(spec.crop, interpolation=how), T.RandomHorizontalFlip()]
    else:
        steps += [T.Resize(spec.resize, interpolation=how)] if spec.resize else []
        steps += [T.CenterCrop(spec.crop)] if spec.crop else []
    return T.Compose([*steps, T.ToTensor(), T.Normalize(spec.mean, spec.std)])


def pseudolabels(name: str) -> Labels:
    """The released cluster assignments of an entry: ``labels`` int64 (heads, images) and, where known, ``images``."""
    entry = registry.entry(name)
    if entry.pseudolabels is None:
        have = [model for model in registry.models() if registry.entry(model).pseudolabels is not None]
        raise UserError(f"{entry.id}: no pseudo-labels were released (they were for: {', '.join(have) or 'none'})")
    return labels.released(entry)


# ---------------------------------------------------------------- where things come from


def origin(name: str | Path, progress: bool = True, form: foreign.Form | None = None) -> Origin:
    """An id or alias, a run folder, a ``weights.pth`` inside one, or a file: recognised, or as ``form`` describes it."""
    place, form = _place(name), form or foreign.Form()
    if form.given and (place is None or _is_run(place)):
        raise UserError(
            f"{name}: {', '.join(form.given)} describe{'s' * (len(form.given) == 1)} a weight file; this is {'an id' if place is None else 'a run'} with a recipe of its own"
        )
    if place is None:
        entry = registry.entry(str(name))
        where = f"{entry.file}:{entry.line}: models.{entry.id}.weights.layouts"
        layouts = list(entry.weights.layouts) if entry.weights else list(entry.layouts)
        return Origin(entry.id, entry.backbone, entry.input, layouts, where, lambda: _released(entry, progress), entry)
    if _is_run(place):
        folder = place if place.is_dir() else place.parent
        recipe = registry.load_recipe(folder / "recipe.yaml")
        where = f"{folder / 'recipe.yaml'}: layouts"
        layouts = [*recipe.layouts] or _every_layout()
        return Origin(str(folder), recipe.backbone, recipe.input, layouts, where, lambda: _finished(folder))
    return recognise(place, form)


def recognise(path: Path, form: foreign.Form | None = None) -> Origin:
    """The origin of a bare file: as the caller or the short file beside it says, or the one network that accounts for
    every tensor in it, of the registry's families or of other projects.
    """
    if not path.exists():
        raise UserError(f"{path}: no such run folder or file")
    if path.is_dir():
        raise UserError(f"{path}: no recipe.yaml in this folder; a run folder has recipe.yaml and weights.pth")
    tree, form, side = read(path), form or foreign.Form(), foreign.sidecar(path)
    if side is not None:
        return _foreign(path, foreign.from_sidecar(tree, side, form, str(path)))
    if form.given and (form.backbone, form.prefix, form.path) != (None, None, None):
        return _foreign(path, foreign.given(tree, form, str(path)))
    other = foreign.recognise(tree, str(path), form, signed=True)
    found = _fitting(path, tree, own=True, evident=True) if other is None else {}
    if not found:
        other = other or foreign.recognise(tree, str(path), form, signed=False)
        if other is not None:
            return _foreign(path, other)
    found = found or _fitting(path, tree, own=True) or _fitting(path, tree, own=False)
    if len(found) == 1:
        return _normalised(next(iter(found.values())), form)
    if found:
        raise UserError(
            f"{path}: fits several networks ({'; '.join(found)}); say which: backbone={{name: …}}, or give its id or run folder"
        )
    shown = ", ".join(foreign.all_places(tree)[:4]) or "none"
    raise UserError(
        f"{path}: fits no network of the registry and no known form of another project (places with tensors: {shown}). "
        f"python -m zoo show {path} lists its keys and the nearest network; say what it is (backbone=, prefix=, path=), or use "
        "zoo.load_weights(model, path) with a model of your own"
    )


def _foreign(path: Path, found: foreign.Found) -> Origin:
    where = f"python -m zoo show {path}"
    return Origin(str(path), found.spec, found.input, [found.layout], where, lambda: path, found=found)


def _normalised(source: Origin, form: foreign.Form) -> Origin:
    """The origin with the mean and std that the caller gives; where entries with its network differ, the one assumed is told."""
    if form.mean is not None or form.std is not None:
        spec = {"options": {"in_channels": source.input.channels}}
        return replace(source, input=foreign.input_of(spec, source.input, form, source.name))
    same = [registry.entry(m) for m in registry.models()]
    seen = {(tuple(e.input.mean), tuple(e.input.std)) for e in same if e.backbone == source.backbone}
    if len(seen) > 1:
        print(f"{source.name}: input assumed mean {source.input.mean} std {source.input.std}: entries with this network differ; "
              "mean= and std= say another", file=sys.stderr)  # fmt: skip
    return replace(source, assumed=len(seen) > 1)


def _fitting(path: Path, tree: Mapping[str, Any], own: bool, evident: bool = False) -> dict[str, Origin]:
    """The different backbones of the registry that a file fits, under the layouts of their entries or under any.

    evident  only where heads that the layout names are in the file too: torchvision's bare names fit many families
    """
    found: dict[str, Origin] = {}
    every = [] if own else _every_layout()
    for model in registry.models():
        entry = registry.entry(model)
        layouts = list((entry.weights or entry).layouts) if own else every
        key = json.dumps(entry.backbone.model_dump(mode="json"), sort_keys=True)
        if key in found or not layouts or entry.backbone.name == "pixels":
            continue
        candidate = Origin(str(path), entry.backbone, entry.input, layouts, f"{entry.file}:{entry.line}", lambda: path)
        with suppress(UserError):
            report = fit(candidate, tree)[1].report
            if report.ok and (report.heads or not evident or not _torchvision_named(entry.backbone)):
                found[key] = candidate
    return found


def _torchvision_named(backbone: Any) -> bool:
    return str(backbone.name).startswith("resnet") and backbone.name != "resnet50v2"


def _place(name: str | Path) -> Path | None:
    """The path that a name means, or None when it is an id; ids win over files of the same name."""
    text = str(name)
    if not isinstance(name, Path) and (text in registry.models() or text in registry.aliases()):
        return None
    path = Path(name).expanduser()
    looks_like_one = isinstance(name, Path) or "/" in text or "\\" in text or text.endswith(SUFFIXES)
    return path if path.exists() or looks_like_one else None


def _is_run(path: Path) -> bool:
    folder = path if path.is_dir() else path.parent
    return (folder / "recipe.yaml").is_file() and (path.is_dir() or path.name == "weights.pth")


def _finished(folder: Path) -> Path:
    if not (folder / "weights.pth").is_file():
        raise UserError(f"{folder}: no weights.pth; the run is not finished: start it again with the same command")
    return folder / "weights.pth"


def _released(entry: Any, progress: bool) -> Path:
    from . import fetch

    if entry.weights is None:
        way = f"train it: python -m reproduce {entry.id}" if entry.recipe else "nor is its recipe known"
        raise UserError(f"{entry.id}: nobody released its weights; {way}")
    return fetch.path(entry.id, progress=progress)


def _every_layout() -> list[Any]:
    layouts: list[Any] = []
    for model in registry.models():
        entry = registry.entry(model)
        layouts += [layout for layout in (entry.weights or entry).layouts if layout not in layouts]
    return layouts


# ---------------------------------------------------------------- putting tensors in


def fit(source: Origin, tree: Mapping[str, Any]) -> tuple[dict[str, Any], Choice]:
    """The backbone that the file's tensors fit (the origin's, or the variant of it that the file decides), and how."""
    found = []
    for spec in backbones.variants(source.backbone):
        choice = select(tree, source.layouts, expected_shapes(spec), source.name)
        if choice.report.ok:
            return spec, choice
        found.append((len(choice.report.problems()), spec, choice))
    _, spec, choice = min(found, key=lambda one: one[0])
    return spec, choice


def fill(module: nn.Module, choice: Choice, what: str, assign: bool = True) -> None:
    """Put the matched tensors into a module.  NaN and infinity are refused: no feature could be computed with them."""
    state = {}
    own = module.state_dict()
    for key, source in choice.report.mapping.items():
        value = choice.tensors[source].detach()
        if value.is_floating_point() != own[key].is_floating_point() or value.is_complex():
            raise UserError(f"{what}: {source} holds {value.dtype}, {own[key].dtype} is expected; nothing was loaded")
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{what}: {source} holds NaN or infinity; the file is damaged or its training diverged")
        state[key] = value.to(dtype=own[key].dtype, copy=True, memory_format=torch.contiguous_format)
    state.update({key: torch.zeros(own[key].shape, dtype=own[key].dtype) for key in choice.report.filled})
    module.load_state_dict(state, strict=assign, assign=assign)


def _released_head(source: Origin, name: str) -> Any:
    known = source.entry.heads if source.entry is not None else {}
    if name not in known:
        have = ", ".join(known) or "none"
        raise UserError(f"{source.name}: no released head {name!r}{suggest(name, known)} (released: {have})")
    return known[name]


def _with_head(backbone: backbones.Backbone, source: Origin, name: str, head: Any) -> nn.Module:
    from . import fetch

    model = heads.Classifier(backbone, head.classes)
    what = f"{source.name}, head {name}"
    tree = read(fetch.path(source.name, head=name))
    choice = select(tree, head.layouts, shapes(model.fc), what)
    choice.report.require(what, f"{source.entry.file}:{source.entry.line}: models.{source.name}.heads.{name}.layouts")
    fill(model.fc, choice, what)
    return model
