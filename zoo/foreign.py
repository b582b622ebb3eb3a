"""Weight files of other projects: recognised by their keys through foreign_layouts.yaml, or read as their owner says.

A row of the table proposes places, renaming rules and what may be left out; the shapes then say which ResNet it would be,
and the contract of weights.py decides: every tensor of that network found, every other tensor of the file named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import backbones
from .backbones import infer
from .checking import check
from .errors import UserError
from .settings import Layer
from .weights import Choice, Report, match, rename
from .yamlfile import load_mapping

HERE = Path(__file__).parent
TABLE = HERE / "foreign_layouts.yaml"
ANYWHERE = (
    "",
    "state_dict",
    "model",
    "model_state_dict",
    "teacher",
    "encoder",
    "network",
    "net",
    "weights",
    "backbone",
)


@dataclass(frozen=True)
class Form:
    """What the owner of a file says of it; None: to be found out.

    backbone  the network, as ``backbones.build`` takes it;  prefix  of the tensors that are it;  path  their place in the file,
    dotted;  mean, std  of its input, one value for each channel, for pixels in 0..1
    """

    backbone: Any = None
    prefix: str | None = None
    path: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What was said, by name."""
        return {name: value for name in FORM if (value := getattr(self, name)) is not None}


FORM = tuple(Form.__dataclass_fields__)


@dataclass(frozen=True)
class Found:
    """A file read as one form: the network, its tensors under ``layout``, how they match, and the input it was trained on."""

    title: str
    spec: dict[str, Any]
    layout: Any
    tensors: Mapping[str, Any]
    report: Report
    input: Any
    path: str
    note: str | None
    assumed: bool  # the input is the usual one of such files; nobody said it

    def line(self) -> str:
        """``looks like solo-learn: ResNet-50 under `backbone.`, 9 head tensors left out, input assumed mean … std …``"""
        under = common_prefix(self.report.mapping)
        place = (f" under `{under}`" if under else "") + (f" in `{self.path}`" if self.path else "")
        said = "assumed " if self.assumed else ""
        words = [
            f"{network_name(self.spec)}{place}",
            f"{self.report.matched + len(self.report.filled)}/{self.report.total} tensors",
            left_out(self.report),
            f"input {said}mean {_numbers(self.input.mean)} std {_numbers(self.input.std)}, {self.input.crop} px",
        ]
        text = f"looks like {self.title}: {', '.join(words)}"
        return text + (f"; {self.note}" if self.note else "")


def _numbers(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{v:g}" for v in values) + "]"


def network_name(spec: Mapping[str, Any]) -> str:
    """``ResNet-50``, ``ResNet-18 (stem_kernel 3, …)``"""
    name, options = backbones.parts(spec)
    words = ", ".join(f"{key} {value}" for key, value in options.items())
    return re.sub(r"^resnet(?=\d)", "ResNet-", name) + (f" ({words})" if words else "")


def left_out(report: Report) -> str:
    """``9 head tensors left out``, with the names that other tensors begin with."""
    heads = {key for keys in report.heads.values() for key in keys.values()}
    others = [key for key in report.ignored if key not in heads]
    groups = list(dict.fromkeys(re.sub(r"^(module\.|_orig_mod\.)+", "", key).split(".")[0] for key in others))
    words = [f"{len(heads)} head tensor{'s' * (len(heads) != 1)}"] if heads or not others else []
    words += [f"{len(others)} other{'s' * (len(others) != 1)} ({', '.join(groups[:4])})"] if others else []
    return f"{' and '.join(words)} left out"


def common_prefix(mapping: Mapping[str, str]) -> str:
    """What every key of the file has in front of the network's own name; "" where they have nothing in common."""
    found = {source[: -len(key)] if source.endswith(key) else None for key, source in mapping.items()}
    if len(found) == 1 and None not in found:
        return next(iter(found)) or ""
    begin = os.path.commonprefix(list(mapping.values()))
    return begin[: begin.rfind(".") + 1]


@lru_cache(maxsize=1)
def table() -> Any:
    """The checked contents of foreign_layouts.yaml."""
    from .schema.foreign import ForeignFile

    content = load_mapping(TABLE, "zoo/foreign_layouts.yaml")
    return check(ForeignFile, content, [Layer(content, TABLE)], "foreign_layouts", HERE)


# ---------------------------------------------------------------- finding out


def recognise(tree: Mapping[str, Any], what: str, form: Form | None = None, signed: bool | None = None) -> Found | None:
    """The first row of the table that accounts for every tensor; None when there is none.

    signed  True: only rows with signs of a project; False: only those of torchvision's bare names; None: all
    Raises UserError for a form that no network of the zoo takes, with what to do instead.
    """
    form = form or Form()
    for row in table().layouts:
        if signed is not None and signed != (row.when is not None):
            continue
        for path, tensors in places(tree, [form.path] if form.path is not None else row.paths):
            if not signs(row, tree, tensors):
                continue
            if row.refuse is not None:
                raise UserError(f"{what}: looks like {row.title}: {row.refuse}")
            found = _try(row, path, tensors, form, what)
            if found is not None:
                return found
    return None


def rows(form: Form) -> list[Any]:
    """The table's rows that name tensors, as layouts with the wrappers and the owner's prefix; the bare names first."""
    kept = [row for row in table().layouts if row.refuse is None]
    bare = kept[-1].model_copy(update={"rules": [], "title": "what was said", "note": None})
    return [_layout(row, form) for row in (bare, *kept)]


def _layout(row: Any, form: Form) -> Any:
    rules = [*_prefix_rules(form.prefix), *((pattern, to) for pattern, to in table().wrappers), *row.rules]
    return row.model_copy(update={"path": None, "rules": rules, "ignore": [*row.ignore, "left_out.*"]})


def signs(row: Any, tree: Mapping[str, Any], tensors: Mapping[str, Any]) -> bool:
    """Whether the file, and the tensors at one place of it, have the signs of a row."""
    wrappers = tuple((pattern, to) for pattern, to in table().wrappers)
    keys = {*tensors, *(rename(key, wrappers) for key in tensors)}

    def fits(signs: Any) -> bool:
        return all(name in tree for name in signs.top) and all(
            any(fnmatchcase(k, glob) for k in keys) for glob in signs.keys
        )

    return (row.when is None or fits(row.when)) and not (row.unless is not None and fits(row.unless))


def _try(row: Any, path: str, tensors: Mapping[str, Any], form: Form, what: str) -> Found | None:
    layout = _layout(row, form)
    spec, report, tensors = fitted(tensors, layout, form.backbone, row.small.options)
    if spec is None or report is None or not report.ok:
        return None
    return Found(
        row.title,
        spec,
        layout,
        tensors,
        report,
        input_of(spec, usual(row, spec), form, what),
        path,
        row.note,
        form.mean is None,
    )


def usual(row: Any, spec: Mapping[str, Any]) -> Any:
    """The input that a project's networks are trained on: of small images where the first convolution is 3x3."""
    small = spec["options"].get("stem_kernel") == 3 or spec["name"] == "tiny_resnet"
    return table().inputs[row.small.input if small else row.input]


def _prefix_rules(prefix: str | None) -> list[tuple[str, str]]:
    if not prefix:
        return []
    return [(f"^(?!{re.escape(prefix)})", "left_out."), (f"^{re.escape(prefix)}", "")]


def fitted(
    tensors: Mapping[str, Any], layout: Any, backbone: Any, small: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any] | None, Report | None, Mapping[str, Any]]:
    """The network (given, or the nearest to the shapes), how the tensors match it, and the tensors."""
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    rules = tuple((pattern, to) for pattern, to in layout.rules)
    renamed = {rename(key, rules): shape for key, shape in shapes.items()}
    if backbone is not None:
        name, options = backbones.parts(backbone)
        specs = [{"name": name, "options": options}] if name != "vgg16" else backbones.variants(backbone)
    else:
        nearest = infer.resnet(renamed, small)
        specs = [nearest] if nearest is not None else []
    best: tuple[dict[str, Any] | None, Report | None, Mapping[str, Any]] = (None, None, tensors)
    for spec in specs:
        wanted = backbones.expected_shapes(spec)
        whole = averaged(tensors, wanted, rules)
        report = match({key: tuple(value.shape) for key, value in whole.items()}, wanted, layout)
        if best[1] is None or len(report.problems()) < len(best[1].problems()):
            best = spec, report, whole
    return best


def averaged(
    tensors: Mapping[str, Any], wanted: Mapping[str, Sequence[int]], rules: Sequence[tuple[str, str]]
) -> Mapping[str, Any]:
    """Running statistics of a split batch norm, one after another in a tensor, as the mean over the splits."""
    made = dict(tensors)
    for key, value in tensors.items():
        name = rename(key, rules)
        if name.endswith((".running_mean", ".running_var")) and name in wanted and value.ndim == 1:
            channels = int(wanted[name][0])
            if channels and len(value) > channels and len(value) % channels == 0:
                made[key] = value.reshape(-1, channels).mean(0)
    return made


def input_of(spec: Mapping[str, Any], seen: Any, form: Form, what: str) -> Any:
    """The input of a network: the usual one of such files, with the mean and std that the owner gives."""
    from .schema import Input

    channels = int(spec["options"].get("in_channels", 3))
    if (form.mean is None) != (form.std is None):
        raise UserError(f"{what}: mean= and std= belong together")
    if form.mean is None and channels != seen.channels:
        raise UserError(
            f"{what}: the network takes {channels} channel{'s' * (channels != 1)}; give mean= and std=, one value for each"
        )
    if form.mean is None:
        return seen
    values = {
        **seen.model_dump(),
        "channels": channels,
        "mean": [float(v) for v in form.mean],
        "std": [float(v) for v in form.std or ()],
    }
    return check(Input, values, [], f"{what}: mean={list(form.mean)} std={list(form.std or ())}", HERE)


def places(tree: Mapping[str, Any], paths: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, tensors by name) for those of the dotted paths at which the file has tensors; whatever else is there is left."""
    for path in paths:
        node: Any = tree
        for step in path.split(".") if path else []:
            node = node.get(step) if isinstance(node, Mapping) else None
        if isinstance(node, Mapping):
            tensors = {
                key: value
                for key, value in node.items()
                if isinstance(key, str) and hasattr(value, "shape") and hasattr(value, "is_floating_point")
            }
            if tensors:
                yield path, tensors


# ---------------------------------------------------------------- as the owner says


def given(tree: Mapping[str, Any], form: Form, what: str) -> Found:
    """The file as its owner describes it. Every tensor of the network must be there; tensors beside its modules are left out.

    Raises UserError, naming the nearest network and what is missing.
    """
    if form.path is not None and not list(places(tree, [form.path])):
        known = [path for path, _ in places(tree, all_places(tree))]
        raise UserError(
            f"{what}: path={form.path!r}: no tensors there (there are some at {', '.join(map(repr, known)) or 'no place'})"
        )
    if form.prefix is None:
        found = recognise(tree, what, form)
        if found is not None:
            return found
    closest: tuple[int, str] | None = None
    for path, tensors in places(tree, [form.path] if form.path is not None else [*ANYWHERE, *all_places(tree)]):
        if form.prefix and not any(key.startswith(form.prefix) for key in tensors):
            continue
        for row in rows(form):
            spec, report, whole = fitted(tensors, row, form.backbone, row.small.options)
            if spec is None or report is None:
                continue
            layout, report = beside(whole, row, spec, report)
            if report.ok:
                seen = input_of(spec, usual(row, spec), form, what)
                return Found(row.title, spec, layout, whole, report, seen, path, None, form.mean is None)
            text = f"{network_name(spec)} in {path or 'the top level'}: {report.matched} of {report.total} tensors; {'; '.join(report.problems())}"
            if closest is None or report.total - report.matched < closest[0]:
                closest = report.total - report.matched, text
    near = f"nearest: {closest[1]}" if closest else "nothing in it looks like a ResNet"
    said = ", ".join(f"{key}={value!r}" for key, value in form.given.items())
    raise UserError(
        f"{what}: does not fit {said}: {near}. Nothing was loaded; python -m zoo show {what} lists its keys"
    )


def beside(tensors: Mapping[str, Any], layout: Any, spec: Any, report: Report) -> tuple[Any, Report]:
    """The match with tensors left out whose first word is none of the network's modules, as heads are."""
    wanted = backbones.expected_shapes(spec)
    own = {key.split(".")[0] for key in wanted}
    rules = tuple((pattern, to) for pattern, to in layout.rules)
    others = {rename(key, rules).split(".")[0] for key in report.unexpected} - own
    if not others:
        return layout, report
    globs = [glob for name in others for glob in (name, f"{name}.*")]
    layout = layout.model_copy(update={"ignore": [*layout.ignore, *globs]})
    return layout, match({key: tuple(value.shape) for key, value in tensors.items()}, wanted, layout)


def all_places(tree: Mapping[str, Any], depth: int = 4) -> list[str]:
    """Every dotted path, outermost first, at which there are tensors by name."""
    found, level = [], [("", tree)]
    for _ in range(depth):
        inner = []
        for path, node in level:
            if list(places({"x": node}, ["x"])):
                found.append(path)
            inner += [
                (f"{path}.{key}".lstrip("."), value)
                for key, value in node.items()
                if isinstance(key, str) and isinstance(value, Mapping)
            ]
        level = inner
    return found


def sidecar(path: Path) -> Any:
    """The short file beside a weight file (``weights.yaml`` or ``weights.pth.yaml``), checked; None when there is none."""
    from .schema.foreign import Sidecar

    for name in (path.with_name(path.name + ".yaml"), path.with_suffix(".yaml")):
        if name.is_file() and name != path:
            content = load_mapping(name)
            return check(Sidecar, content, [Layer(content, name)], str(name), HERE)
    return None


def from_sidecar(tree: Mapping[str, Any], side: Any, form: Form, what: str) -> Found:
    """The file as the short file beside it says, with what the caller says on top."""
    spec = form.backbone if form.backbone is not None else side.backbone
    own = replace(form, backbone=spec, mean=form.mean or side.input.mean, std=form.std or side.input.std)
    if side.layouts and form.prefix is None and form.path is None:
        from .weights import select

        name, options = backbones.parts(spec)
        choice: Choice = select(tree, side.layouts, backbones.expected_shapes(spec), what)
        if not choice.report.ok:
            raise UserError(f"{what}: the file beside it says otherwise: {'; '.join(choice.report.problems())}")
        seen = side.input.model_copy(update={"mean": list(own.mean or ()), "std": list(own.std or ())})
        layout = choice.layout.model_copy(update={"path": None})
        return Found(
            "what the file beside it says",
            {"name": name, "options": options},
            layout,
            choice.tensors,
            choice.report,
            seen,
            choice.layout.path or "",
            None,
            False,
        )
    found = given(tree, own, what)
    return replace(
        found,
        input=side.input.model_copy(update={"mean": list(own.mean or ()), "std": list(own.std or ())}),
        assumed=False,
    )


__all__ = ["FORM", "Form", "Found", "all_places", "from_sidecar", "given", "recognise", "sidecar", "table"]
