"""Files inside zip and tar archives, read by position: no seek, so a handle may be shared by forks and threads.

Handles are opened when first needed and are left behind by pickling, so a source survives ``fork`` and ``spawn``.  (A
``ZipFile`` opened before a fork shares its file offset with every worker: they read each other's bytes.)
"""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from . import indexes
from .images import ImageError, is_image_name
from .namelist import Names

STORED, DEFLATED, PLAIN = 0, 8, 255  # zip methods, and a tar member, which has no header of its own here
_ZIP_HEADER = 30


class PackStore:
    """Members of archives.  files: paths; file, offset, packed, size, method, crc: one row per member.

    offset  of the local header (zip) or of the data (tar); packed: bytes in the archive; size: bytes of the file
    """

    def __init__(self, files: Sequence[str], rows: np.ndarray, names: Names) -> None:
        self.files = list(files)
        self.rows = rows
        self.names = names
        self._handles: dict[int, int] = {}

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
                try:
                    data = zlib.decompress(data, wbits=-15)
                except zlib.error as error:
                    raise ImageError(f"{self.where(i)}: cannot be unpacked: {error}") from None
            if zlib.crc32(data) != int(row["crc"]):
                raise ImageError(f"{self.where(i)}: checksum is wrong: the archive is damaged here")
        if len(data) != size:
            raise ImageError(f"{self.where(i)}: {len(data)} bytes, expected {size}")
        return data

    def where(self, i: int) -> str:
        return f"{self.files[int(self.rows[i]['file'])]}@/{self.names[i]}"

    def take(self, indices: np.ndarray) -> PackStore:
        return PackStore(self.files, self.rows[indices], self.names.take(indices))

    def _pread(self, i: int, size: int, start: int) -> bytes:
        number = int(self.rows[i]["file"])
        handle = self._handles.get(number)
        try:
            if handle is None:
                handle = os.open(self.files[number], os.O_RDONLY | os.O_CLOEXEC)
                kept = self._handles.setdefault(number, handle)
                if kept != handle:  # another thread was quicker
                    os.close(handle)
                    handle = kept
            data = os.pread(handle, size, start)
        except OSError as error:
            raise UserError(f"{self.files[number]}: cannot be read: {error.strerror}") from None
        if len(data) < size:
            raise ImageError(f"{self.where(i)}: the archive ends inside this file: truncated?")
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}

    def __del__(self) -> None:
        for handle in getattr(self, "_handles", {}).values():
            os.close(handle)


ROW = np.dtype(
    [("file", "<i4"), ("method", "u1"), ("crc", "<u4"), ("offset", "<i8"), ("packed", "<i8"), ("size", "<i8")]
)


def zip_members(path: Path) -> tuple[Names, np.ndarray]:
    """Every image in a zip, in the order of its directory: names and rows.  Kept as an index for large archives."""
    size, changed = indexes.stamp(path)

    def build() -> indexes.Arrays:
        names, rows = [], []
        try:
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if info.is_dir() or not is_image_name(info.filename):
                        continue
                    if info.flag_bits & 1 or info.compress_type not in (STORED, DEFLATED):
                        how = "encrypted" if info.flag_bits & 1 else f"packed by method {info.compress_type}"
                        raise UserError(f"{path}@/{info.filename}: {how}; pack it stored or deflated")
                    names.append(info.filename)
                    rows.append(
                        (0, info.compress_type, info.CRC, info.header_offset, info.compress_size, info.file_size)
                    )
        except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{path}: not a readable zip: {error}") from None
        return _arrays(names, rows, size, changed)

    kept = indexes.remember(f"zip {path.resolve()}", lambda k: _same(k, size, changed), build, lambda k: len(k["ends"]))
    return Names.of(kept["blob"], kept["ends"]), kept["rows"]


def tar_members(path: Path) -> tuple[Names, np.ndarray]:
    """Every regular file in an uncompressed tar, in its order: names and rows.  Kept as an index for large archives."""
    size, changed = indexes.stamp(path)

    def build() -> indexes.Arrays:
        names, rows = [], []
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.isfile():
                        if member.offset_data + member.size > size:
                            raise UserError(f"{path}: ends inside {member.name}: truncated?")
                        names.append(member.name)
                        rows.append((0, PLAIN, 0, member.offset_data, member.size, member.size))
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserError(f"{path}: not a readable, uncompressed tar: {error}") from None
        return _arrays(names, rows, size, changed)

    kept = indexes.remember(f"tar {path.resolve()}", lambda k: _same(k, size, changed), build, lambda k: len(k["ends"]))
    return Names.of(kept["blob"], kept["ends"]), kept["rows"]


def _arrays(names: list[str], rows: Sequence[tuple[int, ...]], size: int, changed: int) -> indexes.Arrays:
    listed = Names(names)
    return {
        "blob": listed.blob,
        "ends": listed.ends,
        "rows": np.array(rows, dtype=ROW),
        "stamps": np.array([changed], dtype=np.int64),
        "size": np.array([size], dtype=np.int64),
    }


def _same(kept: indexes.Arrays, size: int, changed: int) -> bool:
    return int(kept["size"][0]) == size and int(kept["stamps"][0]) == changed
