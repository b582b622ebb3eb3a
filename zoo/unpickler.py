"""Pickles of every protocol, opened without running anything of theirs (see pickles.py for what is built instead).

Python's own reading machine, with each operation that calls, builds or fills an object replaced by one that knows only the
makers of pickles.py and the tensors below. Reads never ask for more than the stream has.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from struct import unpack
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .pickles import HARMLESS, KNOWN, Array, Dtype, Extra, Maker, key

STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64, "Untyped": torch.uint8,
}  # fmt: skip
STORAGE = re.compile(r"torch(?:\.cuda|\.storage)? (\w+)Storage")
DTYPE = re.compile(r"torch ((?:float|bfloat|int|uint|complex)\d+\w*|bool)")


class Kind(NamedTuple):
    """A storage class or a number type, as a value: it cannot be called."""

    dtype: torch.dtype


class Stored(NamedTuple):
    """Numbers of one type in memory, from which tensors are cut."""

    storage: torch.UntypedStorage
    dtype: torch.dtype


Fetch = Callable[[str, torch.dtype, int, Any], torch.UntypedStorage]  # key, type, count, view -> memory


_Machine: Any = pickle._Unpickler  # the one written in Python: its operations can be replaced one by one


class Unpickler(_Machine):
    """One pickle. ``refused`` and ``unread`` list the names (module.name) met that are refused, and harmless ones."""

    dispatch: ClassVar[dict[int, Any]] = dict(_Machine.dispatch)

    def __init__(self, stream: Any, fetch: Fetch | None = None, encoding: str = "utf-8"):
        super().__init__(stream, encoding=encoding)
        self.fetch = fetch
        self.refused: dict[str, None] = {}
        self.unread: dict[str, None] = {}

    def find_class(self, module: Any, name: Any) -> Any:
        text = f"{module} {name}"
        dotted = f"{module}.{name}"
        if found := STORAGE.fullmatch(text):
            if found.group(1) in STORAGES:
                return Kind(STORAGES[found.group(1)])
        elif DTYPE.fullmatch(text) and isinstance(getattr(torch, name, None), torch.dtype):
            return Kind(getattr(torch, name))
        make = KNOWN.get(text) or TENSORS.get(text)
        if make is not None:
            return Maker(dotted, make)
        fine = HARMLESS.fullmatch(text) is not None
        (self.unread if fine else self.refused)[dotted] = None
        return Maker(dotted, lambda *_: Extra(dotted), fine)

    def persistent_load(self, pid: Any) -> Any:
        """("storage", class, key, device, count) or, in the old format, one with a view (key, offset, count) of it."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] not in ("storage", b"storage"):
            if isinstance(pid, tuple) and len(pid) > 1 and isinstance(pid[1], Maker) and self.refused:
                return pid[1]  # a class with its source, as the old format keeps whole modules: already refused
            raise pickle.UnpicklingError("a reference to something that is not a storage")
        _, kind, name, _, count = pid[:5]
        if not isinstance(kind, Kind) or type(count) is not int or count < 0 or self.fetch is None:
            raise pickle.UnpicklingError("a storage of an unusual form")
        return Stored(self.fetch(str(name), kind.dtype, count, pid[5] if len(pid) == 6 else None), kind.dtype)

    # ------------------------------------------------------------ operations that touch objects

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Maker) or type(arguments) is not tuple:
            raise pickle.UnpicklingError("a call of what is no function")
        return function.make(*arguments)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], arguments)

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        self.stack.append(self.call(self.stack.pop(), arguments))

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # named arguments: only objects that are not read have any
        self.load_newobj()

    def load_obj(self) -> None:
        function, *arguments = self.pop_mark()
        self.append(self.call(function, tuple(arguments)))

    def load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        arguments = tuple(self.pop_mark())
        self.append(self.call(self.find_class(module, name), arguments))

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, (Extra, Dtype, Array)):
            target.__setstate__(state)
        elif isinstance(target, argparse.Namespace) and isinstance(state, Mapping):
            vars(target).update({str(key): value for key, value in state.items()})
        elif not isinstance(target, (OrderedDict, Counter, Tensor)):  # their attributes are not part of the weights
            raise pickle.UnpicklingError(f"a state for {type(target).__name__}")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.put([key, value])

    def load_setitems(self) -> None:
        self.put(self.pop_mark())

    def put(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise pickle.UnpicklingError(f"entries for {type(target).__name__}")
        for i in range(0, len(items), 2):
            target[key(items[i])] = items[i + 1]

    def load_append(self) -> None:
        value = self.stack.pop()
        self.extend([value])

    def load_appends(self) -> None:
        self.extend(self.pop_mark())

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, (list, Extra)):
            raise pickle.UnpicklingError(f"items for {type(target).__name__}")
        target.extend(items)

    def load_additems(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if not isinstance(target, set):
            raise pickle.UnpicklingError(f"members for {type(target).__name__}")
        target.update(key(item) for item in items)

    def load_frozenset(self) -> None:
        items = self.pop_mark()  # first: it changes what append adds to
        self.append(frozenset(key(item) for item in items))

    def load_bytearray8(self) -> None:
        (count,) = unpack("<Q", self.read(8))
        self.append(bytes(self.read(count)))

    def load_unusual(self) -> None:
        raise pickle.UnpicklingError("an operation that checkpoints never need")


for _name, _operation in {
    "REDUCE": Unpickler.load_reduce, "NEWOBJ": Unpickler.load_newobj, "NEWOBJ_EX": Unpickler.load_newobj_ex,
    "OBJ": Unpickler.load_obj, "INST": Unpickler.load_inst, "BUILD": Unpickler.load_build,
    "SETITEM": Unpickler.load_setitem, "SETITEMS": Unpickler.load_setitems, "APPEND": Unpickler.load_append,
    "APPENDS": Unpickler.load_appends, "ADDITEMS": Unpickler.load_additems, "FROZENSET": Unpickler.load_frozenset,
    "BYTEARRAY8": Unpickler.load_bytearray8, "EXT1": Unpickler.load_unusual,
    "EXT2": Unpickler.load_unusual, "EXT4": Unpickler.load_unusual, "NEXT_BUFFER": Unpickler.load_unusual,
    "READONLY_BUFFER": Unpickler.load_unusual,
}.items():  # fmt: skip
    Unpickler.dispatch[getattr(pickle, _name)[0]] = _operation


# ---------------------------------------------------------------- tensors


def _tensor(stored: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A tensor cut from a storage; every element must lie inside it."""
    whole = isinstance(stored, Stored) and isinstance(size, tuple) and isinstance(stride, tuple)
    if not whole or len(size) != len(stride) or len(size) > 64:
        raise ValueError("a tensor of an unusual form")
    if any(type(n) is not int or not 0 <= n < 2**62 for n in (offset, *size, *stride)):
        raise ValueError("a tensor of an unusual form")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if 0 not in size else -1
    if (last + 1) * stored.dtype.itemsize > stored.storage.nbytes():
        raise ValueError("a tensor that reaches beyond its data")
    return torch.empty(0, dtype=stored.dtype, device="cpu").set_(stored.storage, offset, size, stride)  # type: ignore[call-overload]


def _tensor_of_kind(
    stored: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, kind: Any, *_: Any
) -> Tensor:
    if not isinstance(stored, Stored) or not isinstance(kind, Kind):
        raise TypeError("a tensor of an unusual form")
    return _tensor(Stored(stored.storage, kind.dtype), offset, size, stride)


def _data(data: Any, *_: Any) -> Tensor:
    """A parameter is its tensor."""
    if not isinstance(data, Tensor):
        raise TypeError("a parameter without a tensor")
    return data


def _of_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor with attributes of its own; they are left out."""
    if not isinstance(function, Maker) or not isinstance(arguments, tuple):
        raise TypeError("a tensor of an unusual form")
    return function.make(*arguments)


def _layout(name: Any) -> str:
    if name != "torch.strided":
        raise ValueError(f"a tensor of layout {name!r}")
    return name


def _size(numbers: Any = ()) -> tuple[int, ...]:
    return tuple(int(n) for n in numbers)


TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _tensor_of_kind,
    "torch._utils _rebuild_parameter": _data,
    "torch._utils _rebuild_parameter_with_state": _data,
    "torch.nn.parameter Parameter": _data,
    "torch._tensor _rebuild_from_type_v2": _of_type,
    "torch.serialization _get_layout": _layout,
    "torch Size": _size,
    "torch device": lambda *words: ":".join(map(str, words)),
    "torch strided": lambda *_: "torch.strided",
    "torch Tensor": lambda *_: torch.empty(0, device="cpu"),
}
