"""Tables as data: ``tables.yaml`` says which rows and columns, the registry and the records fill them.

A cell is a published number, the mean of measured records, or a value of the row's recipe; a cell without any is empty.
Nothing here formats Markdown or HTML: see ``pages.py`` and ``site.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from zoo.errors import UserError, suggest
from zoo.schema import Strict
from zoo.yamlfile import load_mapping, locate

from . import cells
from .cells import Cell
from .published import Catalogue, problem
from .store import RecordStore, Summary, Verdict, better_than_random

FILE = Path(__file__).resolve().parent / "tables.yaml"
SELECTION = FILE.parent / "selection"


class Column(Strict):
    """``published`` and ``measured`` columns name protocol@version and metric; ``field`` names a path in the recipe;
    ``candidates`` counts the recipes that were tried on held-out images (results/selection/).

    ``also``: protocols of the same question for rows that have nothing under ``protocol`` (other settings for another
    method or network); the page says which rows stand there by which of them.
    """

    head: str
    kind: Literal["published", "measured", "field", "title", "candidates"]
    protocol: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]+@[0-9]+$")
    also: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+@[0-9]+$")]] = Field(default_factory=list)
    metric: str | None = None
    by: str | None = None  # published: another group's measurements instead of the authors'
    source: str | None = None  # published: everything that one source prints, whoever measured it
    field: str | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)  # measured: records made with these settings
    style: Literal["honest", "paper"] = "honest"
    unit: Literal["percent", "seconds", "count"] = "percent"  # published: how the number is printed

    @model_validator(mode="after")
    def _complete(self) -> Column:
        needs = {
            "published": ("protocol", "metric"),
            "measured": ("protocol", "metric"),
            "field": ("field",),
            "title": (),
            "candidates": (),
        }
        for name in needs[self.kind]:
            if getattr(self, name) is None:
                raise ValueError(f"a {self.kind} column needs {name}")
        return self

    @property
    def question(self) -> tuple[str, int, str]:
        """(protocol, version, metric) of ``protocol``."""
        return self.questions[0]

    @property
    def questions(self) -> list[tuple[str, int, str]]:
        """(protocol, version, metric) of ``protocol``, then of those in ``also``."""
        split = [name.partition("@") for name in (str(self.protocol), *self.also)]
        return [(name, int(version), str(self.metric)) for name, _, version in split]


class RowRule(Strict):
    """Registered models by pattern or by id, or external rows by name; in the order written, each once."""

    query: str | None = None
    ids: list[str] = Field(default_factory=list)
    external: list[str] = Field(default_factory=list)
    leave_out: list[str] = Field(default_factory=list)  # patterns


class Table(Strict):
    """One table. ``against`` is the random row that measured cells are judged by."""

    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    title: str
    text: str = ""
    rows: list[RowRule]
    columns: list[Column]
    missing: str = ""
    against: str | None = None
    unmeasured_rows: Literal["show", "hide"] = "show"
    seeds: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict
    )  # pre-training seeds by pattern of rows, the last fits
    readme: bool = False  # README.md must hold the table's markers


@dataclass(frozen=True)
class Built:
    """A table with its cells: ``rows`` pairs a row's label (a model's id) with one cell per column."""

    table: Table
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]

    @property
    def summaries(self) -> list[Summary]:
        return [cell.summary for _, row in self.rows for cell in row if cell.summary]

    @property
    def verdicts(self) -> list[tuple[str, str, Verdict]]:
        """(row, column head, verdict) of every judged cell."""
        return [
            (name, column.head, cell.verdict)
            for name, row in self.rows
            for column, cell in zip(self.table.columns, row, strict=True)
            if cell.verdict
        ]


def load(file: Path = FILE) -> list[Table]:
    """Every table of ``tables.yaml``, in its order; errors name file, line and field."""
    found: list[Table] = []
    for index, raw in enumerate(load_mapping(file).get("tables", [])):
        try:
            found.append(TypeAdapter(Table).validate_python(raw))
        except ValidationError as error:
            where, said = problem(error)
            line = (locate(file, ["tables", index, *where]) or (1, 1))[0]
            raise UserError(f"{file.name}:{line}: {said}") from None
    twice = [t.id for i, t in enumerate(found) if t.id in {other.id for other in found[:i]}]
    if twice:
        raise UserError(f"{file.name}: two tables are called {twice[0]!r}")
    return found


def pick(tables: Sequence[Table], only: str | None) -> list[Table]:
    """All tables, or the one called ``only``."""
    if only is None:
        return list(tables)
    known = [table.id for table in tables]
    if only not in known:
        raise UserError(f"no table {only!r}{suggest(only, known)} ({', '.join(known)})")
    return [table for table in tables if table.id == only]


def build(table: Table, store: RecordStore, catalogue: Catalogue) -> Built:
    """Fill one table."""
    rows = []
    for name in row_names(table, catalogue):
        filled = tuple(_cell(table, column, name, store, catalogue) for column in table.columns)
        if table.unmeasured_rows == "show" or any(cell.summary for cell in filled):
            rows.append((catalogue.title(name) if name in catalogue.external else name, filled))
    return Built(table, tuple(rows))


def row_names(table: Table, catalogue: Catalogue) -> list[str]:
    """The ids of a table's rows, each checked to exist."""
    names: list[str] = []
    for rows in table.rows:
        if rows.query is not None:
            names += catalogue.models(rows.query)
        for model in rows.ids:
            catalogue.entry(model)  # an unknown id is told here
            names.append(model)
        for row in rows.external:
            if row not in catalogue.external:
                raise UserError(f"table {table.id}: no external row {row!r}{suggest(row, catalogue.external)}")
            names.append(row)
        names = [n for n in names if not any(fnmatchcase(n, pattern) for pattern in rows.leave_out)]
    return list(dict.fromkeys(names))


def candidates(row: str, folder: Path = SELECTION) -> int:
    """Recipes of a model that were tried on held-out images; none for a model without a file there."""
    file = folder / f"{row}.yaml"
    return len(load_mapping(file)["candidates"]) if file.is_file() else 0


def _cell(table: Table, column: Column, row: str, store: RecordStore, catalogue: Catalogue) -> Cell:
    if column.kind == "title":
        return Cell(catalogue.title(row))
    if column.kind == "field":
        return Cell(cells.plain(catalogue.field(row, str(column.field))) or table.missing)
    if column.kind == "candidates":
        return Cell(str(candidates(row)))
    if column.kind == "published":
        asked = (
            catalogue.cell(row, p, metric, by=column.by, source=column.source) for p, _, metric in column.questions
        )
        fact = next(filter(None, asked), None)
        if fact is None:
            return Cell(table.missing)
        return Cell(cells.published(fact.published.value, column.unit), fact=fact)
    found = (store.summary(row, *question, column.overrides) for question in column.questions)
    summary = next(filter(None, found), None)
    if summary is None:
        return Cell(table.missing)
    if summary.style != column.style:
        raise UserError(
            f"table {table.id}: {column.metric} of {row} is {summary.style}-style; column {column.head!r} says style: {column.style}"
        )
    verdict = _judge(table, column, summary, store, catalogue)
    mark = cells.MARKS[verdict.mark] if verdict else ""
    return Cell(cells.measured(summary) + (f" {mark}" if mark else ""), summary=summary, verdict=verdict)


def _judge(table: Table, column: Column, row: Summary, store: RecordStore, catalogue: Catalogue) -> Verdict | None:
    """None where nothing is to be judged: no reference, the reference itself, numbers chosen on the test split.
    ``unknown``, with the reason, where the rule cannot be applied."""
    if table.against is None or row.model == table.against or column.style == "paper":
        return None
    if catalogue.entry(row.model).backbone != catalogue.entry(table.against).backbone:
        return Verdict("unknown", f"another network than {table.against}")
    random = store.summary(table.against, row.protocol, row.version, row.metric, column.overrides)
    if random is None:
        return Verdict("unknown", f"{table.against} was not measured")
    if random.data != row.data:
        return Verdict("unknown", f"other data than {table.against}")
    return better_than_random(row, random)
