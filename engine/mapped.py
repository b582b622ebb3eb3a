"""Memory-mapped files whose disk space is reserved before the first write.

A mapped file without blocks of its own is the one place where a full disk is no error of a call: the process dies of SIGBUS
at some later assignment. Reserved blocks cannot be missing.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError

_UNSUPPORTED = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # full disk, full quota, limit of a file's size (ulimit -f)


def create(path: Path, shape: tuple[int, ...], dtype: Any = np.float32) -> np.memmap:
    """A .npy file of this shape, mapped for reading and writing, all of its blocks reserved.

    Raises UserError, and leaves no file, where there is no room for it.
    """
    try:
        mapped = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        reserve(path)
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno not in _NO_SPACE:
            raise
        raise UserError(_no_room(path, np.dtype(dtype).itemsize * int(np.prod(shape)), error)) from None
    return mapped


def reserve(path: Path) -> None:
    """Give the file a block of disk for each byte of its size; its content stays. Raises OSError (ENOSPC and the like).

    Where the file system (or, as on macOS, the system) cannot reserve, the free space is compared instead: enough now, if
    nobody else fills it meanwhile.
    """
    size = path.stat().st_size
    if hasattr(os, "posix_fallocate"):
        try:
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    if size - path.stat().st_blocks * 512 > _free(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _free(path: Path) -> int:
    disk = os.statvfs(path.parent)
    return disk.f_bavail * disk.f_frsize


def _no_room(path: Path, needed: int, error: OSError) -> str:
    return (
        f"{path} needs {needed:,} bytes and {_free(path):,} are free there ({error.strerror}); "
        "free some, or name a folder on another disk by out="
    )
