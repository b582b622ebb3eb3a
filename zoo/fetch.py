"""Released files by name: downloaded once, checked every time, and ``python -m zoo fetch``.

Names: ``swav_800ep`` (weights), ``swav_800ep/linear_imagenet`` (a released head), ``sela_alexnet_10x3k/labels``
(pseudo-labels in a file of their own) and the names of ``assets.yaml``.  A hash comes from the registry, else from
``weights.lock``, else from the first download, which the user's cache remembers; it is enforced from then on.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from . import cache, download, registry
from .checkpoint_reader import digests
from .errors import UserError, suggest
from .yamlfile import load_mapping

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Item:
    """One released file."""

    name: str
    sources: tuple[Any, ...]
    sha256: str | None
    bytes: int | None
    license: str
    title: str
    lost: str | None = None  # since when it cannot be had

    @property
    def file(self) -> str:
        """Its name in the cache: never the same for two items, whatever their addresses end in."""
        source = next((s for s in self.sources if s.file is None), self.sources[0])
        path = source.member or (unquote(urlsplit(source.url).path) if source.url else "")
        end = re.sub(r"[^A-Za-z0-9._-]", "_", PurePosixPath(path).name) or "file.pth"
        return f"{self.name.replace('/', '-')}--{end}"

    @property
    def local(self) -> Path | None:
        """The first source that is a file of this machine, if there is one and it exists, or is the only kind of source."""
        files = [HERE.parent / Path(s.file).expanduser() for s in self.sources if s.file is not None]
        there = next((file for file in files if file.is_file()), None)
        return there or (files[0] if len(files) == len(self.sources) else None)

    @property
    def place(self) -> Path:
        """Where the file is, or will be once it is downloaded."""
        return self.local or cache.folder() / self.file


@lru_cache(maxsize=1)
def assets() -> dict[str, Item]:
    """The files of assets.yaml: lists, features and models in other formats."""
    from .schema import Weights

    made = {}
    for name, fields in load_mapping(HERE / "assets.yaml").items():
        known = Weights(**{key: value for key, value in fields.items() if key != "title"})
        made[name] = Item(name, tuple(known.sources), known.sha256, known.bytes, known.license, fields["title"])
    return made


def items(model: str) -> Iterator[Item]:
    """The files of one entry: weights first, then heads, then pseudo-labels that are files of their own."""
    entry = registry.entry(model)
    if entry.weights is not None:
        w, lost = entry.weights, entry.since if entry.status == "lost" else None
        yield Item(entry.id, tuple(w.sources), w.sha256, w.bytes, w.license, entry.title, lost)
    for name, head in entry.heads.items():
        title = f"{entry.title}: {name}"
        yield Item(f"{entry.id}/{name}", tuple(head.sources), head.sha256, head.bytes, head.license, title)
    labels = entry.pseudolabels
    if labels is not None and labels.sources:
        yield Item(
            f"{entry.id}/labels", tuple(labels.sources), None, None, labels.license, f"{entry.title}: pseudo-labels"
        )


def item(name: str) -> Item:
    """One file by its name; UserError with a suggestion, or saying that nobody released it."""
    if name in assets():
        return assets()[name]
    model, _, part = name.partition("/")
    if model not in registry.models() and model not in registry.aliases():
        hint = suggest(name, [*registry.models(), *assets()]) or ";"
        raise UserError(f"no model or asset {name!r}{hint} python -m zoo list and python -m zoo verify name all")
    entry = registry.entry(model)
    wanted = f"{entry.id}/{part}" if part else entry.id
    found = {one.name: one for one in items(entry.id)}
    if wanted not in found:
        raise UserError(f"{wanted}: nobody released this file (released: {', '.join(found) or 'none'})")
    return found[wanted]


def matching(patterns: Sequence[str]) -> list[Item]:
    """Every file whose name fits one of the shell patterns; an exact name or alias means its weights only."""
    everything = [one for model in registry.models() for one in items(model)] + list(assets().values())
    found: dict[str, Item] = {}
    for pattern in patterns:
        hits = [one for one in everything if fnmatchcase(one.name, pattern)] or [item(pattern)]
        found.update({one.name: one for one in hits})
    return list(found.values())


def path(name: str, head: str | None = None, progress: bool = True) -> Path:
    """The checked file of an id (or of one of its heads, or of an asset), downloaded on first use."""
    return obtain(item(f"{name}/{head}" if head else name), progress)


def obtain(wanted: Item, progress: bool = True) -> Path:
    """The checked file of an item.  Two processes that ask at once download it once."""
    if wanted.local is not None:
        return _used_where_it_lies(wanted, wanted.local)
    target = cache.folder() / wanted.file
    with cache.locked(target, f"{wanted.name}: another process is downloading it; waiting"):
        if target.is_file():
            try:
                check(wanted, target)
            except download.Failed as error:
                raise UserError(
                    f"{wanted.name}: the cached file {target} is not the expected one: {error}. "
                    "Delete it and fetch again; nothing was loaded"
                ) from None
            return target
        failures = []
        for way in _ways(wanted):
            part = target.with_name(f".{target.name}.{_short(str(way))}.part")
            try:
                way.bring(wanted, part, progress)
                check(wanted, part, way.source)
            except download.Failed as error:
                failures.append(str(error))
                continue
            os.replace(part, target)
            for left in target.parent.glob(f".{glob.escape(target.name)}.*.part*"):
                left.unlink()
            return target
    if wanted.lost:
        failures.append(f"lost: it cannot be had since {wanted.lost}")
    raise UserError(
        f"{wanted.name}: no source delivered it: {'; '.join(failures)}. By hand: put the file at {target}, "
        "or in a folder and set SELFZOO_MIRROR to it"
    )


def _used_where_it_lies(wanted: Item, file: Path) -> Path:
    if not file.is_file():
        raise UserError(
            f"{wanted.name}: its entry names the file {file}, which is not there; put it there, or change weights.sources"
        )
    found = digests(file)[0] if wanted.sha256 else None
    if found != wanted.sha256:
        raise UserError(
            f"{wanted.name}: {file} is not the expected file: sha256 {str(found)[:16]}…, its entry says {str(wanted.sha256)[:16]}…"
        )
    return file


@dataclass(frozen=True)
class Way:
    """One place to try: a source as the registry gives it, or a copy of it in the mirror folder."""

    source: Any
    copy: Path | None = None

    def __str__(self) -> str:
        return str(
            self.copy or f"{self.source.url or self.source.gdrive or self.source.file} {self.source.member or ''}"
        )

    def bring(self, wanted: Item, part: Path, progress: bool) -> None:
        """Write the file to ``part``, with a bar on stderr."""
        with _bar(wanted, progress) as bar:
            if self.copy is not None:
                download.copy(self.copy, part, bar)
                download.refuse_page(part, str(self.copy))
            elif self.source.member is not None:
                whole = self.source.model_copy(update={"member": None})
                box = Item(f"archives/{_short(str(Way(whole)))}", (whole,), None, None, wanted.license, "an archive")
                try:
                    archive = obtain(box, progress)
                except UserError as error:
                    raise download.Failed(f"its archive: {error}") from None
                download.extract(archive, self.source.member, part)
            else:
                download.bring(self.source, part, wanted.bytes, bar)


def _ways(wanted: Item) -> Iterator[Way]:
    mirror = os.environ.get("SELFZOO_MIRROR")
    away = [source for source in wanted.sources if source.file is None]
    for source in away if mirror else ():
        found = download.in_mirror(Path(str(mirror)).expanduser(), source, wanted.file)
        if found is not None:
            yield Way(source, found)
    for source in () if wanted.lost else away:
        yield Way(source)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@contextmanager
def _bar(wanted: Item, progress: bool) -> Iterator[download.Progress]:
    """A bar on stderr where there is a terminal; nothing in a log file."""
    from tqdm import tqdm

    with tqdm(desc=wanted.name, unit="B", unit_scale=True, disable=None if progress else True, leave=False) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


# ---------------------------------------------------------------- hashes


def expected(wanted: Item) -> tuple[cache.Seen | None, str]:
    """What the file must be, and who says so: the registry, weights.lock, or the user's first download."""
    tables = [(place, cache.read_table(place).get(wanted.name)) for place in (cache.LOCK, cache.seen_file())]
    if wanted.sha256:
        prints = [known.fingerprint for _, known in tables if known and known.sha256 == wanted.sha256]
        return cache.Seen(wanted.sha256, wanted.bytes or 0, max(prints, default=(), key=len)), "the registry"
    return next(((known, str(place)) for place, known in tables if known), (None, "never seen before"))


def check(wanted: Item, file: Path, source: Any = None) -> cache.Seen:
    """Compare size and hash with what is expected; remember the hash of a file seen for the first time.

    Raises Failed with both values.  ``source``: where it just came from, whose md5 prefix is checked as well.
    """
    size = file.stat().st_size
    known, who = expected(wanted)
    wants = wanted.bytes or (known.bytes if known else 0)
    if size == 0 or (wants and size != wants):
        file.unlink() if source is not None else None
        raise download.Failed(f"{size} bytes, {wants or 'more'} are expected ({who})")
    prefix = getattr(source, "md5_prefix", None)
    sha, md5 = digests(file, md5=prefix is not None)
    if known is not None and sha != known.sha256:
        file.unlink() if source is not None else None
        raise download.Failed(f"wrong hash: sha256 {sha[:16]}…, {known.sha256[:16]}… is expected ({who})")
    if prefix and not md5.startswith(prefix):
        file.unlink() if source is not None else None
        raise download.Failed(f"wrong hash: md5 {md5[:8]}…, {prefix}… is expected (the authors' list)")
    seen = cache.Seen(sha, size, known.fingerprint if known else ())
    if known is None:
        cache.write_entry(cache.seen_file(), wanted.name, seen)
    return seen


# ---------------------------------------------------------------- commands


def register(commands: Any) -> None:
    """Add ``fetch`` to ``python -m zoo``."""
    own = commands.add_parser(
        "fetch",
        help="download released files and check them",
        example="python -m zoo fetch swav_800ep",
        description=__doc__,
    )
    own.add_argument("patterns", nargs="*", metavar="NAME", help="ids, asset names or shell patterns such as 'swav*'")
    own.add_argument("--all", action="store_true", help="every released file: hundreds of megabytes each")
    own.add_argument("--record", action="store_true", help="write size and hash to zoo/weights.lock")
    own.add_argument("--list", action="store_true", help="print names, sources and places, download nothing")
    own.set_defaults(func=_fetch)


def _fetch(options: argparse.Namespace) -> int:
    if bool(options.patterns) == options.all:
        raise UserError("give names or patterns, or --all; python -m zoo list shows the ids")
    wanted = matching(["*"] if options.all else options.patterns)
    failed = []
    for one in wanted:
        if options.list:
            print(f"{one.name}  {', '.join(str(Way(s)).strip() for s in one.sources)}  {cache.folder() / one.file}")
            continue
        try:
            file = obtain(one)
        except UserError as error:
            failed.append(one.name)
            print(f"error: {error}", file=sys.stderr)
            continue
        seen, who = expected(one)
        assert seen is not None
        print(f"{one.name}  {file}  {file.stat().st_size} bytes  sha256 {seen.sha256} ({who})")
        if options.record and not one.sha256:
            cache.write_entry(cache.LOCK, one.name, cache.Seen(seen.sha256, file.stat().st_size, seen.fingerprint))
    if failed and len(wanted) > 1:
        print(f"error: {len(failed)} of {len(wanted)} files could not be had: {', '.join(failed)}", file=sys.stderr)
    return 2 if failed else 0
