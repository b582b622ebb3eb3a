"""Files inside zip and tar archives, read by position: no seek, so a handle may be shared by forks and threads.

Handles are opened when first needed and not pickled, so a source survives ``fork`` and ``spawn``. (A ``ZipFile`` opened before a
fork shares its file offset with every worker: they read each other's bytes.) Of a set of many archives the most recently used
stay open. Sizes that a zip's directory states are checked when it is listed, and unpacking stops where the stated size is
exceeded: a small archive may claim to unpack to more than the machine holds.

``Access`` says how the bytes are kept:
no     every image is read from its archive when it is asked for
part   this process keeps its share (every n-th file) in memory, once for itself and its workers, and lets the other
       processes of the machine read it: together they hold each file once
full   every file is kept in memory, by the first process of the machine that asks, for all of them
"""

from __future__ import annotations

import os
import resource
import struct
import tarfile
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from . import index_cache
from .images import ImageError, is_image_name
from .paths import inside
from .source import Names

MODES = ("no", "part", "full")


@dataclass(frozen=True)
class Access:
    """mode: no, part or full; share: (process, number of processes) that divide the files among them in mode part."""

    mode: str = "no"
    share: tuple[int, int] = (0, 1)

    @classmethod
    def of(cls, mode: str | None = None, share: tuple[int, int] | None = None) -> Access:
        """Defaults from the environment: SELFZOO_CACHE, and the launcher's local rank and size."""
        mode = mode if mode is not None else os.environ.get("SELFZOO_CACHE") or "no"
        if mode not in MODES:
            raise UserError(f"cache is {mode!r}; it is one of {', '.join(MODES)} (SELFZOO_CACHE or cache=)")
        if share is None:
            size = _number("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", 1)
            share = (_number("LOCAL_RANK", "SLURM_LOCALID", 0) if size > 1 else 0, size)  # no size told: all for itself
        if not 0 <= share[0] < share[1]:
            raise UserError(f"share {share}: process {share[0]} of {share[1]} does not exist")
        return cls(mode, share)


def _number(torchrun: str, slurm: str, default: int) -> int:
    value = os.environ.get(torchrun) or os.environ.get(slurm) or ""
    return int(value) if value.isdigit() else default


STORED, DEFLATED, PLAIN = 0, 8, 255  # zip methods, and a tar member, which has no header of its own here
_ZIP_HEADER = 30


LARGE = 16 * 2**20  # bytes of one unpacked image from which on the ratio counts
RATIO = 100  # of an image file that compresses further nothing could be seen
LARGEST = 2**30


class Handles:
    """Open files by number, of which at most ``most`` stay open: the most recently used ones, and those being read now.

    Safe for threads; a forked process goes on with the handles of its parent, which positions do not share.
    """

    def __init__(self, files: Sequence[str], most: int) -> None:
        self.files, self.most = files, most
        self._idle: OrderedDict[int, list[int]] = OrderedDict()  # a list: several threads may read one archive
        self._lock, self._owner = threading.Lock(), os.getpid()

    def pread(self, number: int, size: int, start: int) -> bytes:
        """Up to ``size`` bytes from position ``start`` of a file.  Raises OSError."""
        with self._alone():
            idle = self._idle.get(number)
            handle = idle.pop() if idle else None
        if handle is None:
            handle = os.open(self.files[number], os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(handle, size, start)
        finally:
            with self._alone():
                self._idle.setdefault(number, []).append(handle)
                self._idle.move_to_end(number)
                surplus = self._surplus()
            for old in surplus:
                os.close(old)

    def close(self) -> None:
        with self._alone():
            left = [handle for idle in self._idle.values() for handle in idle]
            self._idle.clear()
        for handle in left:
            os.close(handle)

    def _surplus(self) -> list[int]:
        found = []
        count = sum(map(len, self._idle.values()))
        while count > self.most:
            oldest = next(iter(self._idle))
            idle = self._idle[oldest]
            if idle:
                found.append(idle.pop(0))
                count -= 1
            if not idle:
                del self._idle[oldest]
        return found

    def _alone(self) -> threading.Lock:
        """The lock; a new one in a forked process, whose parent may have held it."""
        if self._owner != os.getpid():
            self._lock, self._owner = threading.Lock(), os.getpid()
        return self._lock


def most_open() -> int:
    """How many files one source may keep open: 128, or an eighth of what the system allows a process where that is less."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(128, allowed // 8)) if allowed > 0 else 128


class PackStore:
    """Members of archives.  files: paths; file, offset, packed, size, method, crc: one row per member.

    offset  of the local header (zip) or of the data (tar); packed: bytes in the archive; size: bytes of the file
    """

    def __init__(self, files: Sequence[str], rows: np.ndarray, names: Names) -> None:
        self.files = list(files)
        self.rows = rows
        self.names = names
        self._handles = Handles(self.files, most_open())

    def read(self, i: int) -> bytes:
        row = self.rows[i]
        start, packed, size, method = (int(row[f]) for f in ("offset", "packed", "size", "method"))
        if method == PLAIN:
            data = self._pread(i, size, start)
        else:
            head = self._pread(i, _ZIP_HEADER, start)
            if head[:4] != b"PK\x03\x04":
                raise ImageError(f"{self.where(i)}: the zip's directory points to something else; was it overwritten?")
            name, extra = struct.unpack_from("<HH", head, 26)
            data = self._pread(i, packed, start + _ZIP_HEADER + name + extra)
            if method == DEFLATED:
                data = self._unpacked(i, data, size)
            if zlib.crc32(data) != int(row["crc"]):
                raise ImageError(f"{self.where(i)}: checksum is wrong: the archive is damaged here")
        if len(data) != size:
            raise ImageError(f"{self.where(i)}: {len(data)} bytes, expected {size}")
        return data

    def _unpacked(self, i: int, data: bytes, size: int) -> bytes:
        """The deflated ``data`` in memory of no more than the stated ``size``."""
        stream = zlib.decompressobj(wbits=-15)
        try:
            found = stream.decompress(data, size + 1)
        except zlib.error as error:
            raise ImageError(f"{self.where(i)}: cannot be unpacked: {error}") from None
        if len(found) > size:
            raise ImageError(
                f"{self.where(i)}: unpacks to more than the {size:,} bytes that the zip's directory states"
            )
        return found

    def where(self, i: int) -> str:
        return f"{self.files[int(self.rows[i]['file'])]}@/{self.names[i]}"

    def stamp(self, i: int) -> tuple[int, int, int]:
        return index_cache.state(self.files[int(self.rows[i]["file"])])

    def take(self, indices: np.ndarray) -> PackStore:
        return PackStore(self.files, self.rows[indices], self.names.take(indices))

    def _pread(self, i: int, size: int, start: int) -> bytes:
        number = int(self.rows[i]["file"])
        try:
            data = self._handles.pread(number, size, start)
        except OSError as error:
            raise UserError(f"{self.files[number]}: cannot be read: {error.strerror}") from None
        if len(data) < size:
            raise ImageError(f"{self.where(i)}: the archive ends inside this file: truncated?")
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _handles=Handles(state["files"], most_open()))

    def __del__(self) -> None:
        # At the end of the interpreter its modules are gone, and the system closes what is open.
        if os is not None and (handles := getattr(self, "_handles", None)) is not None:
            handles.close()


ROW = np.dtype(
    [("file", "<i4"), ("method", "u1"), ("crc", "<u4"), ("offset", "<i8"), ("packed", "<i8"), ("size", "<i8")]
)


def zip_members(path: Path) -> tuple[Names, np.ndarray]:
    """Every image in a zip, in the order of its directory: names and rows.  Kept as an index for large archives."""
    size, changed = index_cache.stamp(path)

    def build() -> index_cache.Arrays:
        names, rows = [], []
        try:
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if info.is_dir() or not is_image_name(info.filename):
                        continue
                    if info.flag_bits & 1 or info.compress_type not in (STORED, DEFLATED):
                        how = "encrypted" if info.flag_bits & 1 else f"packed by method {info.compress_type}"
                        raise UserError(f"{path}@/{info.filename}: {how}; pack it stored or deflated")
                    _refuse_bomb(path, info, size)
                    names.append(inside(info.filename, f"{path}@/{info.filename}"))
                    rows.append(
                        (0, info.compress_type, info.CRC, info.header_offset, info.compress_size, info.file_size)
                    )
        except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{path}: not a readable zip: {error}") from None
        return _arrays(names, rows, size, changed)

    kept = index_cache.remember(
        f"zip {path.resolve()}", lambda k: _same(k, size, changed), build, lambda k: len(k["ends"])
    )
    return Names.of(kept["blob"], kept["ends"]), kept["rows"]


def _refuse_bomb(path: Path, info: zipfile.ZipInfo, whole: int) -> None:
    """Raise UserError for a member that claims more bytes than its archive of ``whole`` bytes can stand for."""
    packed, size = info.compress_size, info.file_size
    if info.header_offset + packed > whole:
        raise UserError(f"{path}@/{info.filename}: reaches beyond the end of the archive: truncated or damaged?")
    if size > LARGEST or size > LARGE and size > RATIO * packed or info.compress_type == STORED and size != packed:
        raise UserError(
            f"{path}@/{info.filename}: {packed:,} bytes that unpack to {size:,}, which no image does (at most {LARGEST:,}, and "
            f"{RATIO} times what is stored): the archive is damaged or made to fill the memory; leave the file out of it"
        )


def tar_members(path: Path) -> tuple[Names, np.ndarray]:
    """Every regular file in an uncompressed tar, in its order: names and rows.  Kept as an index for large archives."""
    size, changed = index_cache.stamp(path)

    def build() -> index_cache.Arrays:
        names, rows = [], []
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.isfile():
                        if member.offset_data + member.size > size:
                            raise UserError(f"{path}: ends inside {member.name}: truncated?")
                        names.append(inside(member.name, f"{path}@/{member.name}"))
                        rows.append((0, PLAIN, 0, member.offset_data, member.size, member.size))
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserError(f"{path}: not a readable, uncompressed tar: {error}") from None
        return _arrays(names, rows, size, changed)

    kept = index_cache.remember(
        f"tar {path.resolve()}", lambda k: _same(k, size, changed), build, lambda k: len(k["ends"])
    )
    return Names.of(kept["blob"], kept["ends"]), kept["rows"]


def _arrays(names: list[str], rows: Sequence[tuple[int, ...]], size: int, changed: int) -> index_cache.Arrays:
    listed = Names(names)
    return {
        "blob": listed.blob,
        "ends": listed.ends,
        "rows": np.array(rows, dtype=ROW),
        "stamps": np.array([changed], dtype=np.int64),
        "size": np.array([size], dtype=np.int64),
    }


def _same(kept: index_cache.Arrays, size: int, changed: int) -> bool:
    return int(kept["size"][0]) == size and int(kept["stamps"][0]) == changed
