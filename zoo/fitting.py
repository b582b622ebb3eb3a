"""A weight file put into any module of the caller's: matched with the module's own names and shapes, whatever it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from . import foreign
from .backbones import shapes
from .backbones.base import HEADS
from .errors import UserError
from .weights import Choice, match, rename

APART = (*HEADS, "projection_head", "projector", "predictor", "prototypes", "prediction_head")  # may stay as they were
SMALLEST = 10  # tensors of a part of the model that a file may be meant for


def choose(model: nn.Module, tree: Mapping[str, Any], layouts: Sequence[Any], form: foreign.Form, what: str) -> Choice:
    """The layout under which the file fills the model, or one part of it, completely; classifiers may stay as they were.

    layouts  more forms to try, beside those of foreign_layouts.yaml
    Raises UserError with the nearest fit when there is none.
    """
    own, nearest = shapes(model), (-1, "no tensor of it has a name and a shape of the model")
    for part in parts(own):
        wanted = {key[len(part) :]: shape for key, shape in own.items() if key.startswith(part)}
        for path, tensors, layout in candidates(tree, layouts, form):
            choice = _fit(wanted, tensors, layout)
            report = choice.report
            if report.ok and report.matched:
                mapping = {part + key: source for key, source in report.mapping.items()}
                filled = tuple(part + key for key in report.filled)
                left = tuple(key for key in own if key not in mapping and key not in filled)
                return replace(choice, report=replace(report, mapping=mapping, filled=filled, left=left))
            if not part and report.matched > nearest[0] and report.matched:
                place = f" at {path}" if path else ""
                nearest = (
                    report.matched,
                    f"nearest{place}: {report.matched} of {report.total} tensors; {'; '.join(report.problems())}",
                )
    raise UserError(
        f"{what}: does not fit this model: {nearest[1]}. Nothing was loaded; python -m zoo show {what} lists its keys"
    )


def parts(own: Mapping[str, Any]) -> list[str]:
    """ "" for the model itself, then its modules that are large enough to be a network, the largest first."""
    count: dict[str, int] = {}
    for key in own:
        steps = key.split(".")[:-1]
        for i in range(1, min(len(steps), 3) + 1):
            name = ".".join(steps[:i]) + "."
            count[name] = count.get(name, 0) + 1
    return ["", *sorted((name for name, n in count.items() if n >= SMALLEST), key=lambda name: -count[name])]


def candidates(
    tree: Mapping[str, Any], layouts: Sequence[Any], form: foreign.Form
) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """(place, tensors, layout) to try: bare names first, then the rows of the table whose signs the file has."""
    rows = foreign.rows(form)
    for path in [form.path] if form.path is not None else dict.fromkeys([*foreign.ANYWHERE, *foreign.all_places(tree)]):
        for _, tensors in foreign.places(tree, [path]):
            for row in rows:
                if foreign.signs(row, tree, tensors):
                    yield path, tensors, row
            for layout in layouts if not form.prefix else ():
                if (layout.path or "") == path:
                    yield path, tensors, layout


def _fit(wanted: Mapping[str, Sequence[int]], tensors: Mapping[str, Any], layout: Any) -> Choice:
    """How the tensors fill what is wanted: all of it save classifiers, which are filled where name and shape agree."""
    rules = tuple((pattern, to) for pattern, to in layout.rules)
    body = {key: shape for key, shape in wanted.items() if key.split(".")[0] not in APART}
    whole = foreign.averaged(tensors, body, rules)
    given = {key: tuple(value.shape) for key, value in whole.items()}
    renamed = {rename(key, rules): shape for key, shape in given.items()}
    body |= {key: shape for key, shape in wanted.items() if key not in body and renamed.get(key) == tuple(shape)}
    report = match(given, body, layout)
    inside = {key.split(".")[0] for key in body if key.split(".")[0] not in APART}
    beside = {rename(key, rules).split(".")[0] for key in report.unexpected} - inside
    if beside:
        globs = [glob for name in beside for glob in (name, f"{name}.*")]
        layout = layout.model_copy(update={"ignore": [*layout.ignore, *globs]})
        report = match(given, body, layout)
    return Choice(layout, whole, report)
