"""Bringing one file here: https with resume, Google Drive, a member of an archive, a folder that mirrors them.

Every way ends with a complete file at a ``.part`` path, or raises ``Failed`` with a sentence that names what happened.
Nothing is believed of a server: what it announces, what it sends, or that it ever stops.
"""

from __future__ import annotations

import errno
import inspect
import json
import re
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from .errors import UserError

BLOCK = 1 << 16
RESERVE = 1 << 26  # bytes of disk that are left alone
TRIES = 3
PAUSE = 1.0  # seconds before the first retry, doubled each time
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two pieces of data
PAGE = re.compile(rb"\s*(<!doctype html|<html)", re.IGNORECASE)


class Failed(Exception):
    """One source did not deliver; the message says what happened, the next source may still work."""


class Interrupted(Exception):
    """The connection broke; what came is kept, and another try continues there."""


Progress = Callable[[int, "int | None"], None]  # bytes here, bytes expected


def bring(source: Any, part: Path, size: int | None, progress: Progress) -> None:
    """Write the file of a ``Source`` (url or gdrive) to ``part``; ``size`` in bytes where the registry knows it."""
    if source.url is not None:
        http(source.url, part, size, progress)
    else:
        drive(source.gdrive, part, progress)
    refuse_page(part, source.url or f"Google Drive, file {source.gdrive}")


# ---------------------------------------------------------------- https


def http(url: str, part: Path, size: int | None, progress: Progress) -> None:
    """Download ``url`` to ``part``, continuing what an earlier attempt left there if the server still has that version."""
    for attempt in range(TRIES):
        try:
            return _http(url, part, size, progress)
        except Interrupted as broken:
            reason = str(broken)
            if attempt + 1 < TRIES:
                time.sleep(PAUSE * 2**attempt)
    raise Failed(f"{url}: {reason}; what came is kept, the same command continues")


def _http(url: str, part: Path, size: int | None, progress: Progress) -> None:
    import requests

    notes = part.with_name(part.name + ".json")
    have, headers = _resumable(part, notes, url)
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 416:  # nothing beyond what is here: start afresh
                part.unlink(missing_ok=True)
                notes.unlink(missing_ok=True)
                raise Interrupted("the server has no more of this file")
            _complain(url, answer.status_code, answer.headers.get("Content-Type", ""))
            if have and not _continues(answer, have):
                have = 0
            total = _length(answer, have)
            if size is not None and total not in (None, size):
                raise Failed(f"{url}: the server announces {total} bytes, the registry says {size}: another file")
            limit = size if size is not None else total
            room(part, (limit or 0) - have)
            notes.write_text(json.dumps({"url": url, "tag": _tag(answer), "total": total}), encoding="utf-8")
            with part.open("ab" if have else "wb") as out:
                for block in answer.iter_content(BLOCK):
                    have += len(block)
                    if limit is not None and have > limit:
                        raise Failed(f"{url}: more data than the {limit} bytes announced")
                    _write(out, block, part, limit)
                    progress(have, limit)
    except requests.Timeout:
        raise Interrupted(f"no data for {TIMEOUT[1]:g} s") from None
    except requests.RequestException as error:
        raise network_failure(url, error, have) from None
    if limit is not None and have < limit:
        raise Interrupted(f"truncated: {have} of {limit} bytes came")
    notes.unlink(missing_ok=True)


def _resumable(part: Path, notes: Path, url: str) -> tuple[int, dict[str, str]]:
    """How many bytes of the same version are here, and the headers that ask for the rest."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "selfzoo"}
    try:
        known = json.loads(notes.read_text(encoding="utf-8"))
        have = part.stat().st_size
        if known["url"] != url or not known["tag"] or not have:
            return 0, headers
    except (OSError, ValueError, KeyError, TypeError):
        return 0, headers
    return have, {**headers, "Range": f"bytes={have}-", "If-Range": known["tag"]}


def _tag(answer: Any) -> str | None:
    """A strong validator of this version of the file; without one nothing is ever continued."""
    tag = answer.headers.get("ETag") or ""
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")


def _continues(answer: Any, have: int) -> bool:
    if answer.status_code != 206:
        return False
    span = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    if not span or int(span.group(1)) != have:
        raise Failed(f"{answer.url}: asked for bytes from {have}, got {answer.headers.get('Content-Range')!r}")
    return True


def _length(answer: Any, have: int) -> int | None:
    """The size of the whole file that the server announces, None if it does not."""
    if answer.status_code == 206:
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if total.isdigit() else None
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _complain(url: str, status: int, kind: str) -> None:
    if status in (404, 410):
        raise Failed(f"{url}: {status}: the file is no longer there")
    if status in (401, 403, 451):
        raise Failed(f"{url}: {status}: the server refuses access")
    if status >= 500 or status == 429:
        raise Interrupted(f"the server answers {status}")
    if status not in (200, 206):
        raise Failed(f"{url}: unexpected answer {status}")
    if kind.startswith("text/html"):
        raise Failed(f"{url}: an HTML page instead of the file (a login, a quota, or a moved page)")


def network_failure(url: str, error: Exception, have: int) -> Exception:
    text = str(error)
    if any(word in text for word in ("NameResolution", "Name or service", "getaddrinfo", "unreachable", "No route")):
        return Failed(f"no network: {urlsplit(url).hostname} cannot be reached")
    if "timed out" in text:
        return Interrupted(f"no data for {TIMEOUT[1]:g} s")
    if "refused" in text:
        return Failed(f"{urlsplit(url).netloc} refuses connections (no network, a firewall, or the server is down)")
    if "SSL" in text or "certificate" in text.lower():
        return Failed(f"{url}: the secure connection fails: {text[:120]}")
    return Interrupted(f"the connection broke after {have} bytes ({type(error).__name__})")


# ---------------------------------------------------------------- Google Drive


def drive(file_id: str, part: Path, progress: Progress) -> None:
    """Download a Google Drive file through gdown, which knows the way past Drive's warning page."""
    where = f"Google Drive, file {file_id}"
    try:
        import gdown
        from gdown.exceptions import FileURLRetrievalError
    except ImportError:
        raise Failed(f"{where}: needs gdown: pip install 'selfzoo[download]'") from None
    import requests

    if "timeout" not in inspect.signature(gdown.download).parameters:
        raise Failed(f"{where}: needs gdown 6.3 or newer: pip install --upgrade 'selfzoo[download]'")
    room(part, 0)
    try:
        done = gdown.download(
            id=file_id, output=str(part), quiet=True, resume=True, timeout=TIMEOUT[1], progress=progress
        )
    except FileURLRetrievalError as error:
        first = " ".join(str(error).split())[:200]
        raise Failed(
            f"{where}: Drive gives a page instead of the file (its quota is used up, or it is not public): {first}"
        ) from None
    except requests.HTTPError as error:
        status = getattr(error.response, "status_code", "an error")
        raise Failed(f"{where}: {status}{': the file is no longer there' if status == 404 else ''}") from None
    except requests.RequestException as error:
        broken = network_failure("https://drive.google.com/", error, 0)
        raise Failed(str(broken)) from None
    except OSError as error:
        raise full(part, None) if error.errno == errno.ENOSPC else Failed(f"{where}: {error}") from None
    if done is None or not part.is_file():
        raise Failed(f"{where}: nothing came")


# ---------------------------------------------------------------- archives, mirrors


def extract(archive: Path, member: str, part: Path) -> None:
    """Copy one member of a zip or tar archive to ``part``; its name never becomes a path of ours."""
    try:
        with _Member(archive, member) as (stream, size), part.open("wb") as out:
            room(part, size)
            done = 0
            while block := stream.read(BLOCK):
                done += len(block)
                if done > size:
                    raise Failed(f"{archive.name}: {member} unpacks to more than the {size} bytes it claims")
                _write(out, block, part, size)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError, NotImplementedError) as error:
        raise Failed(f"{archive.name}: damaged archive ({error})") from None
    if done != size:
        raise Failed(f"{archive.name}: {member} has {done} of {size} bytes")


class _Member:
    """The stream and the size of a member, for a zip or a (compressed) tar."""

    def __init__(self, archive: Path, name: str):
        self.archive, self.name = archive, name

    def __enter__(self) -> tuple[IO[bytes], int]:
        packed = self.archive.stat().st_size
        if zipfile.is_zipfile(self.archive):
            self.file: Any = zipfile.ZipFile(self.archive)
            found: dict[str, Any] = {i.filename: i for i in self.file.infolist() if not i.is_dir()}
            sizes = {name: info.file_size for name, info in found.items()}
        else:
            self.file = tarfile.open(self.archive, "r:*")
            found = {i.name: i for i in self.file if i.isfile()}
            sizes = {name: info.size for name, info in found.items()}
        exact = [n for n in found if n == self.name] or [n for n in found if PurePosixPath(n).name == self.name]
        if len(exact) != 1:
            self.file.close()
            raise Failed(
                f"{self.archive.name}: no member {self.name!r} (it holds {', '.join(list(found)[:5]) or 'nothing'})"
            )
        size = sizes[exact[0]]
        if size > 200 * packed + (1 << 20):
            self.file.close()
            raise Failed(f"{self.archive.name}: {self.name} claims {size} bytes in an archive of {packed}; refused")
        self.stream = (
            self.file.open(found[exact[0]])
            if isinstance(self.file, zipfile.ZipFile)
            else self.file.extractfile(found[exact[0]])
        )
        return self.stream, size

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.file.close()


def in_mirror(mirror: Path, source: Any, name: str) -> Path | None:
    """The file in a mirror folder: under our name, or under the end of its address (``alexnet/checkpoint.pth.tar``)."""
    candidates = [name]
    if source.url is not None:
        steps = [s for s in unquote(urlsplit(source.url).path).split("/") if s not in ("", "..")]
        if source.member is not None:
            candidates.append(PurePosixPath(source.member).name)
        else:
            candidates += ["/".join(steps[i:]) for i in range(len(steps))]
    elif source.gdrive is not None:
        candidates.append(source.gdrive)
    return next((mirror / c for c in candidates if (mirror / c).is_file()), None)


def copy(origin: Path, part: Path, progress: Progress) -> None:
    """Copy a local file to ``part``."""
    size = origin.stat().st_size
    room(part, size)
    with origin.open("rb") as source, part.open("wb") as out:
        while block := source.read(BLOCK):
            _write(out, block, part, size)
            progress(out.tell(), size)


# ---------------------------------------------------------------- the disk


def room(part: Path, more: int) -> None:
    """Raise UserError unless the disk has room for ``more`` bytes and a reserve."""
    if shutil.disk_usage(part.parent).free < max(more, 0) + RESERVE:
        raise full(part, more)


def full(part: Path, more: int | None) -> UserError:
    need = f"{more / 1e6:.0f} MB more are needed" if more else "more room is needed"
    return UserError(
        f"the disk of {part.parent} is full: {need}. Free some, or set TORCH_HOME to another disk and run again"
    )


def _write(out: IO[bytes], block: bytes, part: Path, total: int | None) -> None:
    try:
        out.write(block)
        out.flush()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise full(part, total) from None
        raise
    if total is None and out.tell() % (256 * BLOCK) < len(block):
        room(part, 0)


def refuse_page(part: Path, where: str) -> None:
    """A page of HTML that arrived as a file is deleted and named."""
    with part.open("rb") as stream:
        start = stream.read(512)
    if PAGE.match(start):
        part.unlink()
        raise Failed(f"{where}: an HTML page instead of the file (a login, a quota, or a moved page)")
