"""Names that a pickled checkpoint may contain, and the objects built for them: never a class or function that the file names.

Names are of three kinds. KNOWN ones are what weights are made of: tensors, dictionaries, NumPy's numbers and arrays; each is
built by a function of this project that checks its arguments. HARMLESS ones are found beside weights in training checkpoints
(paths, dates, configurations): an ``Extra`` takes their place and keeps the entries of a mapping only. Every other name is
refused. No name is ever looked up, so nothing of a file can run.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HARMLESS = re.compile(
    r"pathlib(\._local)? (Pure)?(Posix|Windows)?Path"
    r"|datetime (datetime|date|time|timedelta|timezone)"
    r"|collections (defaultdict|deque)|types SimpleNamespace|uuid \w+|decimal Decimal|fractions Fraction|typing \w+"
    r"|(builtins|__builtin__) (getattr|object|list|dict|tuple|int|float|str|unicode|bytes|bool|long|range|slice)"
    r"|copy_?reg _reconstructor"
    r"|numpy (\w*int\d+|float\d+|bool_?)|numpy\.random\.\w+ \w+"
    r"|torch\.torch_version TorchVersion|torch\.optim\.lr_scheduler [\w.]+|torch(\.cuda)?\.amp\.grad_scaler [\w.]+"
    r"|omegaconf(\.\w+)+ [\w.]+|antlr4(\.\w+)+ \w+"
    r"|(yacs|fvcore\.common|detectron2\.config)\.config CfgNode|easydict EasyDict|addict(\.addict)? Dict|munch \w+"
    r"|mm(cv|engine)(\.\w+)* (Config|ConfigDict|HistoryBuffer)(\.\w+)*"
    r"|(pytorch_)?lightning(_fabric)?(\.\w+)+ [\w.]+|vissl\.config\.attr_dict AttrDict"
)
MODULES = re.compile(r"torch\.nn\.|torchvision\.models|timm\.|__torch__|transformers\.models|lightly\.")


class Extra(dict[Any, Any]):
    """What stands for an object that weights do not need; ``kind`` is the name that the file gives its class."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def __setstate__(self, state: Any) -> None:
        """Nothing: whatever the object was made of is left unread."""

    def append(self, item: Any) -> None:
        """Nothing."""

    def extend(self, items: Any) -> None:
        """Nothing."""


class Maker:
    """A name in a pickle that may be called: ``make`` builds what it stands for. ``fine``: False for a refused name."""

    def __init__(self, name: str, make: Callable[..., Any], fine: bool = True):
        self.name, self.make, self.fine = name, make, fine


def refusal(path: Path, names: list[str], whole: bool = False) -> str:
    """The message for a file that asks for code, with the way to a file that does not.

    names  what it asks for, ``module.name``;  whole  the file is one object of that class, not a dictionary
    """
    live = next((name for name in names if MODULES.match(name)), None)
    first = live or names[0]
    text = (
        f"{path}: refused: the file asks for {first[:80]}, code that weights never need. Nothing of it was executed. "
    )
    clean = (
        'torch.save(model.state_dict(), "weights.pth") where the model can be built, and zoo.load("weights.pth") or '
        'zoo.load_weights(model, "weights.pth") here'
    )
    if whole:
        return f"{text}It is a whole pickled module, which only its own code can open. Its owner writes the weights alone: {clean}"
    if live is not None:
        return f"{text}It holds live modules beside its weights. Its owner writes the weights alone: {clean}"
    return f"{text}Do not load it by other means unless you trust whoever made it; they make a clean file: {clean}"


# ---------------------------------------------------------------- NumPy


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
        checked: Any = (1, *_checked(shape, dtype), bool(fortran), _filling(data, shape, dtype))
        super().__setstate__(checked)


def array(*_: Any) -> Array:
    """An empty array, to be given its state; whatever the pickle asked for."""
    return Array((0,), dtype=np.int8)


def from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """An array as pickle protocol 5 writes it: its bytes, its type, its shape and "C" or "F"."""
    _checked(shape, dtype)
    if order not in ("C", "F"):
        raise ValueError("a NumPy array of an unusual order")
    values = np.frombuffer(_filling(data, shape, dtype), dtype=dtype.real).reshape(shape, order=order)
    return values.astype(dtype.real.newbyteorder("="))


def _checked(shape: Any, dtype: Any) -> tuple[Any, np.dtype]:
    good = isinstance(dtype, Dtype) and isinstance(shape, tuple) and len(shape) <= 8
    if not good or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise ValueError("a NumPy array of an unusual form")
    return shape, dtype.real


def _filling(data: Any, shape: Any, dtype: Any) -> bytes:
    _checked(shape, dtype)
    raw = _raw(data)
    if len(raw) != int(np.prod(shape, dtype=object)) * dtype.real.itemsize:
        raise ValueError("a NumPy array whose size is not that of its data")
    return raw


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


# ---------------------------------------------------------------- Python's own


def key(value: Any) -> Any:
    """A key or member, if it is no tuple of tuples: one that holds itself many times over is hashed for ever."""
    if isinstance(value, (tuple, frozenset)) and any(isinstance(item, (tuple, frozenset)) for item in value):
        raise ValueError("a nested key")
    return value


def _ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    return OrderedDict((key(name), value) for name, value in pairs)


def _counter(counts: Any = ()) -> Counter[Any]:
    return Counter({key(name): count for name, count in dict(counts).items()})


def _set(items: Any = ()) -> set[Any]:
    return {key(item) for item in items}


def _encode(text: Any, codec: Any = "latin1") -> bytes:
    """Bytes as protocol 2 writes them."""
    return str(text).encode("latin1")


def _number(real: Any, imaginary: Any = 0.0) -> complex:
    return complex(float(real), float(imaginary))


def _namespace(*_: Any) -> argparse.Namespace:
    return argparse.Namespace()


KNOWN: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _ordered,
    "collections Counter": _counter,
    "argparse Namespace": _namespace,
    "_codecs encode": _encode,
    "builtins set": _set,
    "__builtin__ set": _set,
    "builtins frozenset": lambda items=(): frozenset(_set(items)),
    "__builtin__ frozenset": lambda items=(): frozenset(_set(items)),
    "builtins complex": _number,
    "__builtin__ complex": _number,
    "numpy dtype": Dtype,
    "numpy ndarray": array,
}
for _module in ("numpy.core", "numpy._core"):
    KNOWN[f"{_module}.multiarray scalar"] = scalar
    KNOWN[f"{_module}.multiarray _reconstruct"] = array
    KNOWN[f"{_module}.numeric _frombuffer"] = from_buffer
