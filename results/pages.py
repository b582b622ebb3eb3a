"""Markdown pages of tables, and the marked blocks of README.md. The same records give the same bytes."""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

import tabulate

from zoo.errors import UserError, suggest
from zoo.files import whole

from . import cells
from .cells import Cell
from .published import Fact, whose
from .store import ENOUGH_RANDOM, FALSE_ALARMS, LEVEL, REPOSITORY, Summary
from .tables import Built

tabulate.MIN_PADDING = 0  # columns as wide as their text

FOLDER = REPOSITORY / "results" / "tables"
README = REPOSITORY / "README.md"
_OPEN = re.compile(r"<!-- table:([^ ]*) -->")
_CLOSE = "<!-- /table -->"
FORMATS = {"markdown": "md", "csv": "csv", "latex": "tex"}  # and the ending of their files
LATEX = {
    "±": r"$\pm$",
    "▲": r"$\blacktriangle$",
    "▼": r"$\blacktriangledown$",
    "○": r"$\circ$",
    "†": r"$\dagger$",
    "–": "--",
    "×": r"$\times$",
}


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """A GitHub table, padded so that it also reads well as plain text."""
    return tabulate.tabulate(
        [[_escape(cell) for cell in row] for row in rows],
        [_escape(cell) for cell in head],
        tablefmt="pipe",
        colalign=["right" if r else "left" for r in right],
        disable_numparse=True,
    )


class Footnotes:
    """Numbers for the sources of published cells, and the words "as quoted by X" where they belong.

    What a whole column shares stands in its head, once.
    """

    def __init__(self, built: Built) -> None:
        self.texts: list[str] = []
        self._of: dict[str, int] = {}
        self._shared: dict[int, tuple[bool, bool]] = {}  # column -> (its source, its quoting work) stand in the head
        self.heads: list[str] = []
        for number, column in enumerate(built.table.columns):
            facts = [row[number].fact for _, row in built.rows if row[number].fact]
            marks = {self._mark(fact) for fact in facts if fact}
            words = {_quoted(fact) for fact in facts if fact}
            self._shared[number] = (len(marks) == 1, len(words) == 1)
            self.heads.append(
                column.head + (words.pop() if len(words) == 1 else "") + (marks.pop() if len(marks) == 1 else "")
            )

    def cell(self, number: int, cell: Cell) -> str:
        if cell.fact is None:
            return cell.text
        source, words = self._shared[number]
        return cell.text + ("" if words else _quoted(cell.fact)) + ("" if source else self._mark(cell.fact))

    def _mark(self, fact: Fact) -> str:
        published = fact.published
        text = f"{whose(published)}: {published.source}" + (f" ({published.note})" if published.note else "")
        if text not in self._of:
            self.texts.append(text)
            self._of[text] = len(self.texts)
        return f" [{self._of[text]}]"


def _quoted(fact: Fact) -> str:
    return f" ({whose(fact.published)})" if fact.published.origin == "quoted" else ""


def grid(built: Built) -> tuple[list[str], list[list[str]], list[bool], Footnotes]:
    """Head, rows and alignment as text, without escaping; shared by Markdown and HTML."""
    notes = Footnotes(built)
    rows = []
    for name, line in built.rows:
        dagger = cells.DAGGER if any(cell.summary and cell.summary.transductive for cell in line) else ""
        rows.append([name + dagger, *(notes.cell(i, cell) for i, cell in enumerate(line))])
    right = [False] + [column.kind in ("published", "measured") for column in built.table.columns]
    return ["model", *notes.heads], rows, right, notes


def legend(built: Built) -> list[str]:
    """Only what this table needs to be read."""
    said = []
    if built.summaries:
        line = "Measured: mean ± standard deviation over pre-training seeds"
        if any(s.images is not None for s in built.summaries):
            line += " / half of the 95 % interval for other test images, which more seeds do not narrow"
        line += " (number of seeds)"
        if any(s.seeds == 1 and s.inner > 1 for s in built.summaries):
            line += "; (1×n): one set of weights, n seeds of the evaluation"
        said.append(line + ".")
    if built.verdicts:
        said.append(
            f"Marks compare a cell with {built.table.against} in the same column: ▲ better, ▼ worse, ○ no difference shown, which does "
            f"not say that there is none. Rule: same network, data and test images, at least {ENOUGH_RANDOM} random seeds, Welch's t-test "
            f"over pre-training seeds at {100 * LEVEL:g} %; where nothing differs, {FALSE_ALARMS[0]} to {FALSE_ALARMS[1]} % of marks are "
            "▲ or ▼ all the same (simulated). Marks do not rank methods: `python -m results compare A B` does."
        )
    if others := _other_protocols(built):
        said.append(f"Under a protocol of their own: {others}.")
    if unmarked := _unmarked(built):
        said.append(f"No mark, nothing claimed: {unmarked}.")
    if any(s.transductive for s in built.summaries):
        said.append(f"{cells.DAGGER} transductive: pre-training saw the test images, without their labels.")
    paper = [c.head for c in built.table.columns if c.style == "paper"]
    if paper and any(s.style == "paper" for s in built.summaries):
        notes = sorted({note for s in built.summaries if s.style == "paper" for note in s.notes})
        said.append(
            f"{'; '.join(paper)}: as many papers print it ({'; '.join(notes) or 'chosen on the test split'}); not ranked."
        )
    return said


def _other_protocols(built: Built) -> str:
    """``simclr_pic_100ep (linear_imagenet_pic_simclr)``: rows with a number under a protocol of ``also``."""
    rows: dict[str, list[str]] = {}
    for name, row in built.rows:
        for column, cell in zip(built.table.columns, row, strict=True):
            used = cell.fact.published.protocol if cell.fact else cell.summary.protocol if cell.summary else None
            if used is not None and used != column.question[0]:
                rows.setdefault(used, []).append(name)
    return "; ".join(f"{', '.join(dict.fromkeys(names))} ({protocol})" for protocol, names in rows.items())


def _unmarked(built: Built) -> str:
    """``pixels_digits (another network than random_digits)``: the rows that the rule does not reach, by reason."""
    reasons: dict[str, list[str]] = {}
    for row, _, verdict in built.verdicts:
        if verdict.mark == "unknown":
            reasons.setdefault(verdict.said, []).append(row)
    return "; ".join(f"{', '.join(dict.fromkeys(rows))} ({said})" for said, rows in reasons.items())


def block(built: Built, link: str) -> str:
    """What stands between the markers in README.md: the table, its legend and the sources that its cells refer to."""
    head, rows, right, notes = grid(built)
    sources = "; ".join(f"[{number}] {_link(text)}" for number, text in enumerate(notes.texts, 1))
    said = [
        *legend(built),
        *([f"{sources}."] if sources else []),
        f"Sources and records of every number: [{link}]({link}).",
    ]
    return f"{_filled(built, head, rows, right)}\n\n{' '.join(said)}"


def page(built: Built, folder: Path) -> str:
    """A whole page: the table, its legend, the source of every published and the records of every measured number."""
    head, rows, right, notes = grid(built)
    parts = [f"# {built.table.title}", "<!-- generated by `python -m results tables`; do not edit -->"]
    parts += [built.table.text.strip()] if built.table.text.strip() else []
    parts += [_filled(built, head, rows, right), *legend(built)]
    if notes.texts:
        parts.append(
            "## Published numbers\n\n" + "\n".join(f"{i}. {_link(text)}" for i, text in enumerate(notes.texts, 1))
        )
    if built.summaries:
        parts.append("## Records of the measured numbers\n\n" + "\n".join(_records(built, folder)))
    if lines := [f"- `{row}`, {head}: {v.said} ({v.mark})" for row, head, v in built.verdicts if v.mark != "unknown"]:
        parts.append("## Verdicts\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def other_format(built: Built, form: str) -> str:
    """The table alone, for a program (``csv``) or a paper (``latex``, with booktabs): the same cells, footnotes by number."""
    head, rows, right, notes = grid(built)
    if form == "csv":
        csv.writer(stream := io.StringIO(), lineterminator="\n").writerows([head, *rows])
        return stream.getvalue()
    align = ["right" if r else "left" for r in right]
    table = tabulate.tabulate(rows, head, tablefmt="latex_booktabs", colalign=align, disable_numparse=True)
    for mark, command in LATEX.items():
        table = table.replace(mark, command)
    sources = "\n".join(f"% [{number}] {text}" for number, text in enumerate(notes.texts, 1))
    return f"% {built.table.title}\n{table}\n" + (f"{sources}\n" if sources else "")


def _filled(built: Built, head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    return markdown(head, rows, right) if rows else f"(nothing of table {built.table.id} has been measured here yet)"


def _records(built: Built, folder: Path) -> list[str]:
    """One line per row and set of records, with the columns that rest on it."""
    lines = []
    for name, row in built.rows:
        groups: dict[str, list[str]] = {}
        for column, cell in zip(built.table.columns, row, strict=True):
            if cell.summary:
                groups.setdefault(links(cell.summary, folder), []).append(column.head)
        lines += [f"- `{name}`, {'; '.join(heads)}: {shown}" for shown, heads in groups.items()]
    return lines


def links(summary: Summary, folder: Path) -> str:
    """One link per record, named by its seeds."""
    shown = []
    for stored in summary.records:
        record = stored.record
        seed = "released weights" if record.pretrain_seed is None else f"seed {record.pretrain_seed}"
        extra = f", evaluation seed {record.evaluation_seed}" if record.evaluation_seed else ""
        path = os.path.relpath(stored.path.resolve(), folder.resolve())
        shown.append(f"[{seed}{extra}]({Path(path).as_posix()})")
    return ", ".join(shown)


def fill_blocks(
    text: str, blocks: dict[str, str], where: str, needed: Sequence[str] = (), known: Sequence[str] = ()
) -> str:
    """``text`` with what stands between ``<!-- table:ID -->`` and ``<!-- /table -->`` replaced.

    A block of a table in ``known`` but not in ``blocks`` keeps its content.
    """
    out, position, seen = [], 0, []
    for mark in _OPEN.finditer(text):
        name, line = mark[1], text.count("\n", 0, mark.start()) + 1
        end = text.find(_CLOSE, mark.end())
        following = _OPEN.search(text, mark.end())
        if end < 0 or (following and following.start() < end):
            raise UserError(f"{where}:{line}: the block of table {name!r} is not closed; add a line {_CLOSE}")
        if name not in blocks and name not in known:
            raise UserError(f"{where}:{line}: no table {name!r}{suggest(name, [*blocks, *known])}")
        if name in seen:
            raise UserError(f"{where}:{line}: a second block of table {name!r}; remove one")
        out += [text[position : mark.end()], f"\n{blocks[name]}\n" if name in blocks else text[mark.end() : end]]
        position = end
        seen.append(name)
    missing = [name for name in needed if name not in seen]
    if missing:
        raise UserError(
            f"{where}: no block of table {missing[0]!r}; add the lines <!-- table:{missing[0]} --> and {_CLOSE}"
        )
    opened, closed = len(seen), text.count(_CLOSE)
    if closed > opened:
        raise UserError(f"{where}: {closed} {_CLOSE} for {opened} opened blocks; remove the stray one")
    return "".join(out) + text[position:]


def difference(path: Path, wanted: str | None, name: str) -> str:
    """A unified diff from the file to what it should hold; empty when they agree. ``wanted`` None: should not exist."""
    have = path.read_text(encoding="utf-8") if path.is_file() else ""
    if path.is_file() == (wanted is not None) and have == (wanted or ""):
        return ""
    lines = difflib.unified_diff(
        have.splitlines(), (wanted or "").splitlines(), name, f"{name} (from the records)", lineterm=""
    )
    return "\n".join(lines) or f"{name}: {'not generated by any table' if wanted is None else 'missing'}"


def write_text(path: Path, text: str) -> bool:
    """Write a whole file or nothing; False when it already held these bytes."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    try:
        with whole(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place with --to") from None
    return True


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _link(text: str) -> str:
    """``owner/name:path @commit`` and bare addresses become links."""
    return re.sub(
        r"(?<![\w/])([\w.-]+/[\w.-]+):([\w./-]+)( @([0-9a-f]{7,40}))?",
        lambda m: f"[{m[0]}](https://github.com/{m[1]}/blob/{m[4] or 'HEAD'}/{m[2]})",
        text,
    )
