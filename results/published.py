"""Published numbers: of registered models (their entries, and published_map.yaml), and of rows that only tables know.

A number is printed only when somebody read it at the source that is named. ``origin: authors`` is the method's own
number; ``quoted`` was copied by the source from another work; ``retrain`` and ``reeval`` are other groups' measurements
and stand under their name (``by``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError

from zoo.errors import UserError, suggest
from zoo.schema import Entry, Published, Strict
from zoo.yamlfile import load_mapping

HERE = Path(__file__).resolve().parent
MAP = HERE / "published_map.yaml"
EXTERNAL = HERE / "published_external.yaml"


class Block(Strict):
    """One source's numbers under one protocol: ``values: {row: {metric: value}}``."""

    protocol: str
    source: str
    origin: str = "authors"
    by: str | None = None
    note: str | None = None
    values: dict[str, dict[str, float | int]]


class External(Strict):
    """A row that is no model of the zoo: a name to print, and what else the table's columns ask for."""

    title: str
    fields: dict[str, str | int | float] = Field(default_factory=dict)


@dataclass(frozen=True)
class Fact:
    """A published number of a row, and where this project keeps it."""

    row: str
    published: Published
    place: str

    @property
    def question(self) -> tuple[str, str, str, str | None]:
        p = self.published
        return (p.protocol, p.metric, p.origin, p.by)


class Catalogue:
    """Registry entries and external rows behind one face: what a table row is, and what was published about it."""

    def __init__(
        self,
        entry: Callable[[str], Entry] | None = None,
        models: Callable[[str], list[str]] | None = None,
        map_file: Path = MAP,
        external_file: Path = EXTERNAL,
    ) -> None:
        self._entry, self._models = entry, models
        self._map_file, self._external_file = map_file, external_file

    def models(self, pattern: str = "*") -> list[str]:
        if self._models is None:
            from zoo.registry import models

            self._models = models
        return self._models(pattern)

    def entry(self, model: str) -> Entry:
        if self._entry is None:
            from zoo.registry import entry

            self._entry = entry
        return self._entry(model)

    @cached_property
    def external(self) -> dict[str, External]:
        return {row: _typed(External, value, f"{self._external_file.name}: rows.{row}") for row, value in
                load_mapping(self._external_file).get("rows", {}).items()}  # fmt: skip

    @cached_property
    def mapped(self) -> list[Fact]:
        """Facts of published_map.yaml; each row must be a registered model."""
        known = set(self.models())
        return self._read(self._map_file, known, "model of the zoo (python -m zoo list)")

    @cached_property
    def outside(self) -> list[Fact]:
        """Facts of published_external.yaml; each row must be described there."""
        return self._read(self._external_file, set(self.external), f"row of {self._external_file.name}")

    def facts(self, row: str) -> list[Fact]:
        """Everything published about one row. The same number in two places is an error when the values differ."""
        if row in self.external:
            return [fact for fact in self.outside if fact.row == row]
        entry = self.entry(row)
        found = [Fact(row, p, f"{entry.file}:{entry.line}") for p in entry.published]
        for fact in self.mapped:
            if fact.row != row:
                continue
            twin = next(
                (f for f in found if f.question == fact.question and f.published.source == fact.published.source), None
            )
            if twin is None:
                found.append(fact)
            elif twin.published.value != fact.published.value:
                raise UserError(
                    f"{twin.place} and {fact.place}: two values of {row} {fact.question}; keep the one that was read"
                )
        return found

    def cell(
        self, row: str, protocol: str, metric: str, *, by: str | None = None, source: str | None = None
    ) -> Fact | None:
        """The number for a published column: of the group ``by``, or whatever one ``source`` prints, or the authors'.

        Without either, a number that the authors did not publish themselves may be a quoted one, never a retrained one.
        """
        fits = [f for f in self.facts(row) if (f.published.protocol, f.published.metric) == (protocol, metric)]
        if source is not None:
            return _only([f for f in fits if f.published.source.startswith(source)], row)
        if by is not None:
            return _only([f for f in fits if f.published.by == by and f.published.origin != "quoted"], row)
        own = [f for f in fits if f.published.origin == "authors"]
        return _only(own or [f for f in fits if f.published.origin == "quoted"], row)

    def title(self, row: str) -> str:
        return self.external[row].title if row in self.external else self.entry(row).title

    def field(self, row: str, path: str) -> Any:
        """A value of the recipe (``schedule.epochs``), else of the entry; None where the row has none."""
        if row in self.external:
            return self.external[row].fields.get(path)
        entry = self.entry(row)
        for start in (entry.recipe, entry):
            node: Any = start
            for part in path.split("."):
                node = getattr(node, part, None) if not isinstance(node, dict) else node.get(part)
            if node is not None:
                return node
        return None

    def _read(self, file: Path, known: set[str], what: str) -> list[Fact]:
        found: list[Fact] = []
        for index, raw in enumerate(load_mapping(file).get("facts", [])):
            where = f"{file.name}: facts[{index}]"
            block = _typed(Block, raw, where)
            for row, metrics in block.values.items():
                if row not in known:
                    raise UserError(f"{where}: {row!r} is no {what}{suggest(row, known)}")
                for metric, value in metrics.items():
                    content = {"protocol": block.protocol, "metric": metric, "value": float(value), "source": block.source,
                               "origin": block.origin, "by": block.by, "note": block.note}  # fmt: skip
                    if block.origin == "quoted" and not block.by:
                        raise UserError(f"{where}: origin quoted needs `by`: the work that prints the number")
                    found.append(Fact(row, _typed(Published, content, where), where))
        return found


def _only(facts: Sequence[Fact], row: str) -> Fact | None:
    """Several sources may print one number; different numbers must not compete for one cell."""
    if len({f.published.value for f in facts}) > 1:
        said = "; ".join(f"{f.published.value} in {f.place} ({f.published.source})" for f in facts)
        raise UserError(f"{row}: which number is meant? {said}. Give them different protocols, or drop one")
    return facts[0] if facts else None


def problem(error: ValidationError) -> tuple[tuple[int | str, ...], str]:
    """Where and what: an unknown field before a missing one, which is often the same field misspelled."""
    found = error.errors(include_url=False)
    first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
    said = "unknown field" if first["type"] == "extra_forbidden" else first["msg"]
    shown = "" if first["type"] == "missing" else f" (got {str(first['input'])[:60]!r})"
    return first["loc"], f"{'.'.join(map(str, first['loc'])) or 'entry'}: {said}{shown}"


def _typed(kind: type[Any], value: Any, where: str) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise UserError(f"{where}: {problem(error)[1]}") from None


def whose(published: Published) -> str:
    """Who measured a number, as tables say it."""
    match published.origin:
        case "authors":
            return "the method's authors"
        case "quoted":
            return f"as quoted by {published.by or published.source.split(',')[0]}"
        case "retrain":
            return f"{published.by}, own training"
        case _:
            return f"{published.by}, the authors' weights"
