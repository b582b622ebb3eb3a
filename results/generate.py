"""Writing, or checking, everything that is derived from the records: pages, README blocks, figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from . import figures as drawings
from .pages import FOLDER, FORMATS, README, block, difference, fill_blocks, other_format, page, write_text
from .published import Catalogue
from .record import COMMITTED
from .store import REPOSITORY, RecordStore, place
from .tables import build, load, pick

USER_TABLES = Path("runs") / "tables"
USER_FIGURES = Path("runs") / "figures"
FIGURES = REPOSITORY / "results" / "figures"


def tables(
    roots: Sequence[Path],
    *,
    only: str | None = None,
    to: Path | None = None,
    check: bool = False,
    form: str = "markdown",
    catalogue: Catalogue | None = None,
    readme: Path | None = README,
) -> int:
    """Render to ``to``, or to the repository when only committed records are used; returns an exit status.

    README.md is filled only with committed records: a user's numbers never slip into it. ``form``: markdown, or csv and latex, which are
    written for a user and are no part of the repository.
    """
    official = to is None and list(roots) == [COMMITTED] and form == "markdown"
    folder = to or (FOLDER if official else USER_TABLES)
    store, catalogue = RecordStore(roots), catalogue or Catalogue()
    specs = load()
    built = [build(table, store, catalogue) for table in pick(specs, only)]
    files: dict[Path, str | None] = {
        folder / f"{b.table.id}.{FORMATS[form]}": page(b, folder) if form == "markdown" else other_format(b, form)
        for b in built
    }
    if official and only is None:
        files |= {path: None for path in folder.glob("*.md") if path not in files}
    if official and readme is not None:
        blocks = {b.table.id: block(b, f"results/tables/{b.table.id}.md") for b in built}
        needed = [b.table.id for b in built if b.table.readme]
        known = [table.id for table in specs]
        files[readme] = fill_blocks(readme.read_text(encoding="utf-8"), blocks, readme.name, needed, known)
    return write_or_check(files, check, "python -m results tables")


def render_to(only: str, *, roots: Sequence[Path | str] = (COMMITTED,), folder: Path | str) -> Path:
    """Build one table from the records below ``roots`` and write its page into ``folder``; returns the page."""
    built = build(pick(load(), only)[0], RecordStore(roots), Catalogue())
    target = Path(folder) / f"{only}.md"
    write_text(target, page(built, target.parent))
    return target


def figures(
    roots: Sequence[Path], *, to: Path | None = None, check: bool = False, catalogue: Catalogue | None = None
) -> int:
    """Draw every figure."""
    folder = to or (FIGURES if list(roots) == [COMMITTED] else USER_FIGURES)
    drawn = drawings.draw_all(RecordStore(roots), catalogue or Catalogue())
    files: dict[Path, str | None] = {folder / name: svg for name, svg in drawn.items()}
    if check:  # another matplotlib draws the same numbers with other bytes
        files = {p: _read(p) if drawings.agrees(_read(p), drawn[p.name]) else svg for p, svg in files.items()}
    return write_or_check(files, check, "python -m results figures")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def write_or_check(files: dict[Path, str | None], check: bool, command: str) -> int:
    """Write what differs (None: remove), or, to check, print the differences and return 1 when there are any."""
    if check:
        found = [text for path, wanted in files.items() if (text := difference(path, wanted, place(path)))]
        for text in found:
            print(text)
        if found:
            print(
                f"error: {len(found)} of {len(files)} files differ from the records; write them again with: {command}",
                file=sys.stderr,
            )
        else:
            print(f"{len(files)} files agree with the records")
        return 1 if found else 0
    for path, wanted in files.items():
        if wanted is None:
            path.unlink()
            print(f"removed {place(path)}")
        else:
            print(("wrote " if write_text(path, wanted) else "same  ") + place(path))
    return 0
