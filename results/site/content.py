"""What the site shows: models, methods, protocols and tables, collected from the registry, the records and the sources."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import Any

import yaml
from markupsafe import Markup

from zoo.card import card, words
from zoo.schema import Entry
from zoo.settings import read_like
from zoo.yamlfile import load_mapping

from .. import cells
from ..compare import Comparison, compare
from ..figures import draw_all
from ..pages import grid, legend
from ..published import Catalogue, whose
from ..store import REPOSITORY, RecordStore, place
from ..tables import Built, build, load

METHODS = REPOSITORY / "reproduce" / "methods"
PROTOCOLS = REPOSITORY / "evaluations" / "protocols"
SOURCE = "https://github.com/"


@dataclass(frozen=True)
class Model:
    """A row of the zoo and its page."""

    entry: Entry
    comparisons: tuple[Comparison, ...]

    @property
    def id(self) -> str:
        return self.entry.id

    @property
    def card(self) -> str:
        return card(self.entry)

    @property
    def licence(self) -> str:
        if self.entry.laptop:
            return "yours"
        found = (
            self.entry.weights.license if self.entry.weights else self.entry.code.license if self.entry.code else None
        )
        return found or "not stated"

    @property
    def line(self) -> str:
        """The line that loads it: by torch.hub where weights are released, else the command that trains it."""
        if self.entry.weights is not None and self.entry.status == "released":
            return f'torch.hub.load("path/to/selfzoo", "{self.id}", source="local", trust_repo=True)'
        return f"python -m reproduce {self.id}" if self.entry.recipe else ""

    @property
    def numbers(self) -> dict[str, list[str]]:
        """``protocol metric`` -> [published, measured] as text, for the columns of the zoo's table."""
        return {
            f"{c.protocol} {c.metric}": [
                cells.published(c.fact.published.value) if c.fact else "",
                cells.measured(c.summary) if c.summary else "",
            ]
            for c in reversed(self.comparisons)  # the first of several published numbers wins
        }


@dataclass(frozen=True)
class MethodPage:
    """A method: what its file says about it, what differs from the release, and its models."""

    id: str
    title: str
    idea: str
    docstring: str
    loss: str
    deviations: tuple[Mapping[str, str], ...]
    models: tuple[Model, ...]


@dataclass(frozen=True)
class ProtocolPage:
    """A protocol: its file, and every number under it."""

    id: str
    fields: Mapping[str, Any]
    text: str
    numbers: list[tuple[str, Comparison]] = field(default_factory=list)


@dataclass(frozen=True)
class TablePage:
    """A table as text cells, with what explains it."""

    built: Built
    head: list[str]
    rows: list[list[str]]
    right: list[bool]
    notes: list[Markup]
    said: list[str]
    links: list[str | None]
    records: list[tuple[str, str, str]]


class Content:
    """Everything that the templates show."""

    def __init__(self, store: RecordStore, catalogue: Catalogue) -> None:
        self.store, self.catalogue = store, catalogue

    @cached_property
    def models(self) -> list[Model]:
        found = []
        for name in self.catalogue.models():
            entry = self.catalogue.entry(name)
            found.append(Model(entry, tuple(compare(name, self.store, self.catalogue))))
        return found

    @cached_property
    def methods(self) -> list[MethodPage]:
        by_method: dict[str, list[Model]] = {}
        for model in self.models:
            by_method.setdefault(model.entry.method, []).append(model)
        return [self._method(name, models) for name, models in sorted(by_method.items())]

    def _method(self, name: str, models: list[Model]) -> MethodPage:
        file = next(
            (f for f in (METHODS / f"{stem}.py" for stem in (name, re.sub(r"v\d+$", "", name))) if f.is_file()), None
        )
        source = file.read_text(encoding="utf-8") if file else ""
        tree = ast.parse(source)
        docstring = ast.get_docstring(tree) or ""
        loss = next((ast.get_source_segment(source, n) for n in tree.body if isinstance(n, ast.FunctionDef)), None)
        entry = models[0].entry
        title = load_mapping(REPOSITORY / "zoo" / "methods" / f"{name}.yaml").get("title", name)
        idea = docstring.split("\n\n")[0].split(": ", 1)[-1].replace("\n", " ")
        return MethodPage(
            name, title, idea or entry.summary, docstring, loss or "", tuple(_deviations(tree)), tuple(models)
        )

    @cached_property
    def protocols(self) -> list[ProtocolPage]:
        found = {}
        for file in sorted(PROTOCOLS.glob("*.yaml")):
            found[file.stem] = ProtocolPage(file.stem, read_like(file), file.read_text(encoding="utf-8"))
        for model in self.models:
            for comparison in model.comparisons:
                if comparison.protocol in found:
                    found[comparison.protocol].numbers.append((model.id, comparison))
        return list(found.values())

    @cached_property
    def tables(self) -> list[Built]:
        return [build(table, self.store, self.catalogue) for table in load()]

    def table(self, built: Built) -> TablePage:
        head, rows, right, notes = grid(built)
        known = {model.id for model in self.models}
        records = [
            (name, column.head, ", ".join(place(s.path) for s in cell.summary.records))
            for name, row in built.rows
            for column, cell in zip(built.table.columns, row, strict=True)
            if cell.summary
        ]
        links = [f"model/{name}.html" if name in known else None for name, _ in built.rows]
        return TablePage(built, head, rows, right, [linked(t) for t in notes.texts], legend(built), links, records)

    @cached_property
    def figures(self) -> dict[str, str]:
        """File name -> SVG text."""
        return draw_all(self.store, self.catalogue)

    @cached_property
    def pages(self) -> set[str]:
        """``model/<id>`` and ``protocol/<id>`` of every page that exists: some published numbers have neither."""
        return {f"model/{m.id}" for m in self.models} | {f"protocol/{p.id}" for p in self.protocols}

    @cached_property
    def metrics(self) -> list[str]:
        """Every ``protocol metric`` that some model has a number for, the most frequent first."""
        count: dict[str, int] = {}
        for model in self.models:
            for name in model.numbers:
                count[name] = count.get(name, 0) + 1
        return sorted(count, key=lambda name: (-count[name], name))

    @property
    def numbers(self) -> Markup:
        """Numbers of the zoo's table as JSON, safe inside a script element."""
        text = json.dumps({model.id: model.numbers for model in self.models}, ensure_ascii=False, sort_keys=True)
        return Markup(text.replace("<", "\\u003c"))

    def choices(self, what: str) -> list[str]:
        """Values of a filter: method, network, data, licence or status."""
        return sorted({self.value(model, what) for model in self.models})

    @staticmethod
    def value(model: Model, what: str) -> str:
        entry = model.entry
        values = {
            "method": entry.method,
            "network": entry.backbone.name,
            "data": entry.dataset or "",
            "licence": model.licence,
            "status": entry.status,
        }
        return values[what]

    @staticmethod
    def words(settings: Mapping[str, Any]) -> str:
        return words(settings)

    @staticmethod
    def whose(comparison: Comparison) -> str:
        return whose(comparison.fact.published) if comparison.fact else ""

    @staticmethod
    def published(comparison: Comparison) -> str:
        return cells.published(comparison.fact.published.value) if comparison.fact else ""

    @staticmethod
    def measured(comparison: Comparison) -> str:
        return cells.measured(comparison.summary) if comparison.summary else ""

    @staticmethod
    def places(comparison: Comparison) -> list[str]:
        return [place(s.path) for s in comparison.summary.records] if comparison.summary else []

    @staticmethod
    def recipe(model: Model) -> str:
        if model.entry.recipe is None:
            return ""
        return yaml.safe_dump(model.entry.recipe.model_dump(mode="json"), sort_keys=False, width=100)


def _deviations(tree: ast.Module) -> list[Mapping[str, str]]:
    """Rows of ``DEVIATIONS`` in a method's file, read without importing it (results stands beside reproduce, not above)."""
    names = ("id", "paper", "release", "ours", "option", "where")
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "DEVIATIONS" for t in node.targets):
            calls = [call for call in getattr(node.value, "elts", []) if isinstance(call, ast.Call)]
            rows = [
                dict(zip(names, (_text(a) for a in call.args), strict=False))
                | {k.arg: _text(k.value) for k in call.keywords if k.arg}
                for call in calls
            ]
            return [{name: row.get(name, "") for name in names} for row in rows]
    return []


def _text(node: ast.expr) -> str:
    try:
        return str(ast.literal_eval(node))
    except ValueError:
        return ast.unparse(node)


def linked(text: str) -> Markup:
    """Addresses and ``owner/name:path`` as links."""
    safe = re.sub(r"https?://[^\s,()]+", lambda m: f"<a href='{m[0]}'>{m[0]}</a>", escape(text))
    safe = re.sub(
        r"(?<![\w/.'])([\w-]+/[\w.-]+):([\w./-]+\.\w+)",
        lambda m: f"<a href='{SOURCE}{m[1]}/blob/HEAD/{m[2]}'>{m[0]}</a>",
        safe,
    )
    return Markup(safe)
