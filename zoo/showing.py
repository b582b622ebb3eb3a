"""``python -m zoo show FILE``: what a weight file holds, what it looks like, and what would be left over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import foreign, loading
from .checkpoint_reader import read, sha256
from .errors import UserError
from .weights import listed


def described(path: Path) -> str:
    """The file in words: size, places with tensors, what it is taken for or the nearest network, and every key with its shape.

    Raises UserError for a file that cannot be read, with the way to one that can.
    """
    tree = read(path)
    lines = [f"{path}: {path.stat().st_size / 1e6:,.1f} MB, sha256 {sha256(path)[:16]}…"]
    places = foreign.all_places(tree)
    beside = [
        str(key)
        for key, value in tree.items()
        if not hasattr(value, "shape") and not any(p.split(".")[0] == key for p in places)
    ]
    lines += [f"beside the tensors: {', '.join(beside)}"] if beside else []
    lines += [f"left unread, as weights do not need them: {', '.join(tree.unread)}"] if tree.unread else []
    lines += ["", *_taken_for(path, tree), ""]
    for place, tensors in foreign.places(tree, places):
        numbers = sum(value.numel() for value in tensors.values())
        lines.append(f"{place or 'top level'}: {len(tensors)} tensors, {numbers:,} numbers")
        width = max(map(len, tensors))
        lines += [
            f"  {key:<{width}}  {list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
            for key, value in tensors.items()
        ]
    return "\n".join(lines)


def _taken_for(path: Path, tree: Any) -> list[str]:
    try:
        source = loading.recognise(path)
    except UserError as error:
        near = _nearest(tree)
        return [f"not loaded as it stands: {str(error).removeprefix(f'{path}: ')}", *([near] if near else [])]
    if source.found is not None:
        report, line = source.found.report, source.found.line()
    else:
        report, line = (
            loading.fit(source, tree)[1].report,
            f"looks like a file of the registry: {foreign.network_name(source.backbone)} ({source.where})",
        )
    over = list(report.ignored)
    return [line, *([f"left over: {listed(over, 12)}"] if over else []), f'load it: zoo.load("{path}")']


def _nearest(tree: Any) -> str:
    """The network that most tensors of any place would be part of, and what keeps it from being that."""
    best: tuple[int, str] = (0, "")
    form = foreign.Form()
    for place, tensors in foreign.places(tree, foreign.all_places(tree)):
        for row in foreign.rows(form):
            spec, report, _ = foreign.fitted(tensors, row, None, row.small.options)
            if spec is not None and report is not None and report.matched > best[0]:
                text = f"nearest network: {foreign.network_name(spec)} at {place or 'the top level'}: {report.matched} of {report.total} tensors"
                best = report.matched, f"{text}; {'; '.join(report.problems())}" if report.problems() else text
    return best[1]
