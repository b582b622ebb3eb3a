"""``python -m zoo verify``: the current state of every released file."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import cache, download, registry
from .errors import UserError
from .fetch import Item, assets, check, expected, matching

COLUMNS = ("file", "link", "size", "hash", "contract", "fingerprint")
TOLERANCE = 1e-3  # relative to the largest value: features differ a little between machines


def register(commands: Any) -> None:
    """Add ``verify`` to ``python -m zoo``."""
    own = commands.add_parser(
        "verify",
        help="a health table: link, size, hash, contract, fingerprint of features",
        example="python -m zoo verify 'swav*' --offline",
    )
    own.add_argument("patterns", nargs="*", default=["*"], metavar="NAME")
    own.add_argument("--offline", action="store_true", help="do not ask the servers")
    own.add_argument("--record", action="store_true", help="write fingerprints to zoo/weights.lock")
    own.set_defaults(func=_verify)


def _verify(options: argparse.Namespace) -> int:
    text, healthy = table(matching(options.patterns), offline=options.offline, record=options.record)
    print(text)
    return 0 if healthy else 2


def table(wanted: Sequence[Item], offline: bool = False, record: bool = False) -> tuple[str, bool]:
    """The table as text, and whether nothing in it is wrong.  "no network" and "not here" are not wrong, only unknown."""
    with ThreadPoolExecutor(8) as pool:
        links = list(pool.map(lambda one: "not asked" if offline else link(one), wanted))
    rows = [COLUMNS, *(row(one, answer, record) for one, answer in zip(wanted, links, strict=True))]
    widths = [max(len(r[i]) for r in rows) for i in range(len(COLUMNS))]
    text = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(r, widths, strict=True)).rstrip() for r in rows)
    return text, not any("WRONG" in cell for r in rows for cell in r)


def link(one: Item) -> str:
    """What the servers say of the first source that answers."""
    import requests

    if one.lost:
        return f"lost {one.lost}"
    answer = "none"
    for source in one.sources:
        if source.url is None:
            answer = "Drive" if source.gdrive else "a file"
            continue
        try:
            reply = requests.head(source.url, allow_redirects=True, timeout=download.TIMEOUT[0])
        except requests.RequestException as error:
            answer = (
                "no network" if "no network" in str(download.network_failure(source.url, error, 0)) else "unreachable"
            )
            continue
        kind, size = reply.headers.get("Content-Type", ""), reply.headers.get("Content-Length", "")
        if reply.status_code >= 400:
            answer = f"WRONG {reply.status_code}"
        elif kind.startswith("text/html"):
            answer = "WRONG a page"
        elif one.bytes and size.isdigit() and int(size) != one.bytes and source.member is None:
            answer = f"WRONG size {size}"
        else:
            return "ok"
    return answer


def row(one: Item, answer: str, record: bool) -> tuple[str, ...]:
    """One line: link, bytes on disk, hash and who vouches for it, contract, features of a fixed image."""
    file = one.place
    if not file.is_file():
        known, who = expected(one)
        return (one.name, answer, "not here", f"known to {_who(who)}" if known else "never seen", "-", "-")
    try:
        _, who = expected(one)
        seen = check(one, file)
    except download.Failed as error:
        return (one.name, answer, str(file.stat().st_size), f"WRONG: {error}", "-", "-")
    said = "first seen now" if who.startswith("never") else f"as {_who(who)} says"
    contract, features = _contract(one)
    print_ = _compare(one, seen, features, record) if features else "-"
    return (one.name, answer, str(seen.bytes), said, contract, print_)


def _who(place: str) -> str:
    return {str(cache.LOCK): "weights.lock", str(cache.seen_file()): "this cache"}.get(place, place)


def _contract(one: Item) -> tuple[str, tuple[float, ...]]:
    """Load the file as ``zoo.load`` does; its report or what was wrong, and the first features of a fixed image."""
    from . import loading

    if one.name in assets() or one.name.endswith("/labels"):
        return "-", ()
    model, _, head = one.name.partition("/")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            net = loading.load(model, head=head or None)
    except UserError as error:
        return f"WRONG: {error}", ()
    return said.getvalue().splitlines()[-1].partition(": ")[2].split(";")[0], fingerprint(
        net, registry.entry(model).input
    )


def fingerprint(net: object, spec: object) -> tuple[float, ...]:
    """The first four outputs for a fixed synthetic image: waves of several lengths, in the model's own normalisation."""
    import torch

    side = spec.crop or spec.resize or 32  # type: ignore[attr-defined]
    channels = spec.channels  # type: ignore[attr-defined]
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    image = torch.stack([0.5 + 0.5 * torch.sin(20 * (c + 1) * x + 13 * y * y) for c in range(channels)])
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (spec.mean, spec.std))  # type: ignore[attr-defined]
    with torch.inference_mode():
        out = net(((image - mean) / std).unsqueeze(0))  # type: ignore[operator]
    return tuple(float(v) for v in out[0, :4])


def _compare(one: Item, seen: cache.Seen, features: tuple[float, ...], record: bool) -> str:
    text = " ".join(f"{v:.4g}" for v in features)
    if seen.fingerprint:
        scale = max(abs(v) for v in seen.fingerprint) or 1.0
        if max(abs(a - b) for a, b in zip(features, seen.fingerprint, strict=True)) > TOLERANCE * scale:
            return f"WRONG: {text}, {' '.join(f'{v:.4g}' for v in seen.fingerprint)} is expected"
        if record:
            cache.write_entry(cache.LOCK, one.name, seen)
        return f"{text} (agrees)"
    place = cache.LOCK if record else cache.seen_file()
    cache.write_entry(place, one.name, cache.Seen(seen.sha256, seen.bytes, features))
    return f"{text} (first time)"
