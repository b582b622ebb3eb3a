"""Every table and figure on one HTML page that needs nothing else: no script, no style sheet, no image file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from .figures import draw_all
from .pages import grid, legend, write_text
from .published import Catalogue
from .store import Store, place
from .tables import Built, build, load

STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
nav a { margin-right: 1rem; white-space: nowrap; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
td.number, th.number { text-align: right; } tbody tr:hover { background: var(--soft); }
.note { font-size: .85rem; opacity: .8; } svg { max-width: 100%; height: auto; } details { font-size: .85rem; }
"""


def html(store: Store, catalogue: Catalogue) -> str:
    """The page."""
    built = [build(table, store, catalogue) for table in load()]
    links = "".join(f"<a href='#{b.table.id}'>{escape(b.table.title.split(':')[0])}</a>" for b in built)
    figures = "".join(
        f"<figure>{svg[svg.index('<svg') :]}</figure>" for _, svg in sorted(draw_all(store, catalogue).items())
    )
    body = "\n".join(_section(b) for b in built)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'><title>selfzoo: results</title>"
        f"<style>{STYLE}</style></head>\n<body><h1>selfzoo: results</h1>"
        "<p>Published numbers beside those measured here. An empty cell has not been measured.</p>"
        f"<nav>{links}</nav>{figures}\n{body}\n</body></html>\n"
    )


def _section(built: Built) -> str:
    head, rows, right, notes = grid(built)
    kind = [" class='number'" if r else "" for r in right]
    cells = "".join(f"<th{k}>{escape(h)}</th>" for h, k in zip(head, kind, strict=True))
    lines = "".join(
        "<tr>" + "".join(f"<td{k}>{escape(c)}</td>" for c, k in zip(row, kind, strict=True)) + "</tr>" for row in rows
    )
    said = "".join(f"<p class='note'>{escape(line)}</p>" for line in [built.table.text, *legend(built)] if line.strip())
    sources = "".join(f"<li>{_linked(text)}</li>" for text in notes.texts)
    records = "".join(
        f"<li>{escape(name)}, {escape(column.head)}: {escape(', '.join(place(s.path) for s in cell.summary.records))}</li>"
        for name, row in built.rows
        for column, cell in zip(built.table.columns, row, strict=True)
        if cell.summary
    )
    more = f"<details><summary>Published numbers</summary><ol>{sources}</ol></details>" if sources else ""
    more += f"<details><summary>Records</summary><ul>{records}</ul></details>" if records else ""
    return (
        f"<section id='{built.table.id}'><h2>{escape(built.table.title)}</h2><div class='wide'><table><thead><tr>{cells}"
        f"</tr></thead><tbody>{lines}</tbody></table></div>{said}{more}</section>"
    )


def _linked(text: str) -> str:
    return re.sub(r"https?://[^\s,()]+", lambda m: f"<a href='{m[0]}'>{m[0]}</a>", escape(text))


def write(roots: Sequence[Path], target: Path) -> Path:
    """Write the page; returns its path."""
    write_text(target, html(Store(roots), Catalogue()))
    return target
