"""What a pickle inside a checkpoint may name, checked before anything is built from it.

PyTorch's restricted unpickler allows more than weights need: sparse and quantised tensors, ``bytearray`` of any size,
NumPy's own constructors, which crash on damaged arguments. So the names are read first, against the list below, and
NumPy's numbers and arrays are built by stand-ins that check every argument.
"""

from __future__ import annotations

import argparse
import pickletools
import re
from pathlib import Path
from typing import IO, Any

import numpy as np

from .errors import UserError

NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
ALLOWED = re.compile(
    r"collections (OrderedDict|Counter)"
    r"|argparse Namespace"
    r"|_codecs encode"
    r"|(builtins|__builtin__) (set|complex)"
    r"|numpy (dtype|ndarray)|numpy\._?core\.multiarray (scalar|_reconstruct)"
    r"|torch (\w+Storage|Size|Tensor|device|(float|bfloat|int|uint)\d+|bool|complex\d+|strided)"
    r"|torch\.(cuda|storage) \w+Storage"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter|parameter_with_state)"
    r"|torch\.nn\.parameter Parameter"
    r"|torch\.serialization _get_layout"
)


def check_names(stream: IO[bytes], path: Path, pickles: int) -> None:
    """Read the next ``pickles`` pickles without building anything; UserError for a name that weights never need."""
    for _ in range(pickles):
        for operation, argument, _ in pickletools.genops(stream):
            if operation.name in ("GLOBAL", "INST") and not ALLOWED.fullmatch(str(argument)):
                raise UserError(refusal(path, str(argument).replace(" ", ".")))


def refusal(path: Path, name: str) -> str:
    """The message for a file that wants to run code."""
    return (
        f"{path}: refused: the file asks for {name[:80]}, code that weights never need. "
        "Nothing of it was executed. Do not load it by other means unless you trust whoever made it"
    )


class Dtype:
    """A NumPy dtype as pickles describe it: a code such as f8 and a byte order, nothing structured."""

    def __init__(self, code: Any, *_: Any):
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248]|c(8|16)|[SU]\d{1,4})", code):
            raise ValueError(f"NumPy type {code!r}")
        self.real = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order: Any = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        order = order.decode("ascii") if isinstance(order, bytes) else order
        if order not in ("<", ">", "|", "="):
            raise ValueError("a NumPy type of an unusual form")
        self.real = self.real.newbyteorder(order)


class Array(np.ndarray):
    """An array whose state is checked before NumPy sees it; equal to a plain one in every use."""

    def __setstate__(self, state: Any) -> None:
        parts: Any = state if isinstance(state, tuple) and len(state) == 5 else (None,) * 5
        _, shape, dtype, fortran, data = parts
        good = isinstance(dtype, Dtype) and isinstance(shape, tuple) and len(shape) <= 8
        if not good or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
            raise ValueError("a NumPy array of an unusual form")
        raw: Any = _raw(data)
        if len(raw) != int(np.prod(shape, dtype=object)) * dtype.real.itemsize:
            raise ValueError("a NumPy array whose size is not that of its data")
        checked: Any = (1, shape, dtype.real, bool(fortran), raw)
        super().__setstate__(checked)


def array(*_: Any) -> Array:
    """An empty array, to be given its state; whatever the pickle asked for."""
    return Array((0,), dtype=np.int8)


def scalar(dtype: Any, data: Any = b"") -> Any:
    """A NumPy number of a checked type from exactly as many bytes as it needs."""
    raw = _raw(data)
    if not isinstance(dtype, Dtype) or len(raw) != dtype.real.itemsize or not raw:
        raise ValueError("a NumPy number of an unusual form")
    return np.frombuffer(raw, dtype=dtype.real)[0]


def _raw(data: Any) -> bytes:
    if isinstance(data, str):  # Python 2 made no difference
        data = data.encode("latin1")
    if not isinstance(data, bytes):
        raise TypeError("NumPy data that are no bytes")
    return data


def stand_ins() -> list[Any]:
    """What PyTorch's unpickler is to use under the names that old and new NumPy write, and argparse.Namespace."""
    names: list[Any] = [(Dtype, "numpy.dtype"), (Array, "numpy.ndarray"), argparse.Namespace]
    for module in NUMPY:
        names += [(scalar, f"{module}.scalar"), (array, f"{module}._reconstruct")]
    return names
