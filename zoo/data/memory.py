"""Compressed files held in memory once per machine, whatever the number of processes and workers.

Each process puts its share into a sealed, anonymous memory file (memfd) and leaves a link to it under a name that the
others can derive; of several processes with the same share, the first one does.  Workers and the other processes map the
same pages.  The memory goes away with the processes, even when they are killed; a share that is not there yet, or whose
owner has gone, is read from the archive instead.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import exclusive
from .archives import Access
from .source import FileSource, Store


def in_memory(source: FileSource, access: Access) -> FileSource:
    """``source`` with its bytes in memory as ``access`` says; the same source for mode no."""
    if access.mode != "no":
        if len(source) and source.sizes.min() < 0:
            raise UserError(
                f"cache={access.mode}: the sizes of this set's files are not known beforehand; use cache=no"
            )
        share = access.share if access.mode == "part" else (0, 1)
        source.store = MemoryStore(source.store, source.sizes, source.fingerprint, share)
    return source


class MemoryStore:
    """Every ``share[1]``-th file from ``share[0]`` on in this process's memory, the others in their owners', or read.

    store: where the files come from; sizes: int64 (N,) bytes of each; key: identifies the set on this machine
    """

    def __init__(self, store: Store, sizes: np.ndarray, key: str, share: tuple[int, int]) -> None:
        self.store, self.key, self.share = store, key, share
        self.starts = np.zeros(len(sizes), dtype=np.int64)  # of each file within its owner's share
        self.sizes = sizes
        self.totals = []
        for owner in range(share[1]):
            own = sizes[owner :: share[1]]
            ends = np.cumsum(own)
            self.starts[owner :: share[1]] = ends - own
            self.totals.append(int(ends[-1]) if len(ends) else 0)
        self.rows = np.arange(len(sizes))
        self._maps: dict[int, mmap.mmap] = {}
        self._published: _Published | None = None
        if not (hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")):
            raise UserError("cache=part and cache=full need Linux; use cache=no")
        if self.totals[share[0]]:
            with exclusive(self._link(share[0]).with_suffix(".lock")):  # one of the processes with this share reads it
                if self._attach(share[0]) is None:
                    self._fill()

    def read(self, i: int) -> bytes:
        row = int(self.rows[i])
        owner = row % self.share[1]
        pages = self._maps.get(owner) or self._attach(owner)
        if pages is None:
            return self.store.read(i)
        start = int(self.starts[row])
        return pages[start : start + int(self.sizes[row])]

    def where(self, i: int) -> str:
        return self.store.where(i)

    def stamp(self, i: int) -> tuple[int, int, int]:
        return self.store.stamp(i)

    def take(self, indices: np.ndarray) -> MemoryStore:
        part = MemoryStore.__new__(MemoryStore)
        part.__dict__.update(
            self.__dict__, store=self.store.take(indices), rows=self.rows[indices], _maps=dict(self._maps)
        )
        return part

    def _fill(self) -> None:
        from tqdm import tqdm

        number, processes = self.share
        total = self.totals[number]
        if total > (free := available_memory()):
            raise UserError(
                f"cache: {total / 2**30:.1f} GiB of images do not fit into {free / 2**30:.1f} GiB of free memory;"
                " use cache=no, or cache=part with more processes"
            )
        handle = os.memfd_create(f"selfzoo-{self.key[:16]}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        mine = range(number, len(self.sizes), processes)
        for i in tqdm(mine, desc=f"into memory ({total / 2**30:.1f} GiB)", unit="img", disable=None, leave=False):
            data = self.store.read(i)
            if len(data) != self.sizes[i]:
                raise UserError(f"{self.store.where(i)}: {len(data)} bytes, {self.sizes[i]} when it was listed")
            os.pwrite(handle, data, int(self.starts[i]))
        fcntl.fcntl(handle, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self._maps[number] = _pages(handle, total)
        self._published = _Published(self._link(number), handle)

    def _attach(self, owner: int) -> mmap.mmap | None:
        """The share of ``owner``, mapped; None when it is not (or no longer) there."""
        if not self.totals[owner]:
            return None
        try:
            handle = os.open(self._link(owner), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:  # the link may have outlived its owner and lead to some other file by now
            sealed = fcntl.fcntl(handle, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
            name = os.readlink(f"/proc/self/fd/{handle}")
            if (
                not sealed
                or f"memfd:selfzoo-{self.key[:16]}" not in name
                or os.fstat(handle).st_size != self.totals[owner]
            ):
                return None
            pages = _pages(handle, self.totals[owner])
        except OSError:
            return None
        finally:
            os.close(handle)
        self._maps[owner] = pages
        return pages

    def _link(self, owner: int) -> Path:
        folder = Path(tempfile.gettempdir()) / f"selfzoo-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise UserError(f"{folder} belongs to another user; set TMPDIR to a folder of yours")
        return folder / f"{self.key}-{owner}-of-{self.share[1]}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}, "_published": None}  # a spawned worker attaches by name


class _Published:
    """The link by which others find a share; withdrawn when the last source that uses it has gone."""

    def __init__(self, link: Path, handle: int) -> None:
        for old in link.parent.iterdir():  # of processes that were killed
            if old.is_symlink() and not old.exists():
                old.unlink(missing_ok=True)
        partial = link.with_name(f"{link.name}.{os.getpid()}")
        partial.symlink_to(f"/proc/{os.getpid()}/fd/{handle}")
        os.replace(partial, link)
        weakref.finalize(self, _withdraw, link, handle, os.getpid())


def _pages(handle: int, size: int) -> mmap.mmap:
    """Read-only pages of a sealed memory file; private, since older kernels refuse to share what is sealed."""
    return mmap.mmap(handle, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)


def _withdraw(link: Path, handle: int, owner: int) -> None:
    if os.getpid() != owner:  # a fork must not take the link from its parent
        return
    if os.path.realpath(link) == os.path.realpath(f"/proc/{owner}/fd/{handle}"):
        link.unlink(missing_ok=True)
    os.close(handle)


def available_memory() -> int:
    """Bytes that can still be used: the machine's, or the container's where that is less."""
    free = [2**62]
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit.isdigit():
            free.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except OSError:
        pass
    return max(0, min(free))
