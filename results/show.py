"""Records on the terminal: a list, or one in full."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from zoo.errors import UserError

from . import cells
from .record import dumps, read
from .store import RecordStore, Stored, place, summarise


def table(store: RecordStore, pattern: str = "*") -> str:
    """One line per (model, protocol, overrides, metric): mean, spread, seeds, and where the records are."""
    from tabulate import tabulate

    groups: dict[tuple[str, str, int, str], list[Stored]] = {}
    for stored in store.all():
        r = stored.record
        if fnmatchcase(r.model, pattern):
            changed = ", ".join(f"{k}={v}" for k, v in sorted(r.overrides.items()))
            groups.setdefault((r.model, r.protocol, r.version, changed), []).append(stored)
    lines = []
    for (model, protocol, version, changed), group in sorted(groups.items()):
        metrics = sorted(set.intersection(*(set(s.record.metrics) for s in group)))
        for metric in metrics:
            summary = summarise(group, metric)
            style = " (paper style)" if summary.style == "paper" else ""
            lines.append([model, f"{protocol}@{version}", changed, metric + style, cells.measured(summary)])
    if not lines:
        roots = ", ".join(place(root) for root in store.roots)
        raise UserError(f"no record of {pattern!r} in {roots}; make one with: python -m evaluations run PROTOCOL MODEL")
    text = tabulate(lines, ["model", "protocol", "overrides", "metric", "mean ± sd (seeds)"], disable_numparse=True)
    return f"{text}\n\n{len(store)} records in {', '.join(place(root) for root in store.roots)}"


def one(path: Path) -> str:
    """A record in full, after it has been checked."""
    return dumps(read(path)).rstrip()
