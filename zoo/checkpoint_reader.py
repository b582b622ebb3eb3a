"""Opening a checkpoint of unknown origin: no code of the file is run, no size that it claims is believed.

Formats: PyTorch's zip files, its older format and ``.safetensors``, pickle protocols 0 to 5. ``unpickler.py`` opens the pickle
inside and builds tensors, dictionaries and NumPy's numbers; tensors of a zip are mapped into memory, not read. (``torch.load``
with ``weights_only=True`` reads protocol 2 only, and refuses a file that holds a path or a date beside the weights.)

Names in the pickle are of three kinds. KNOWN ones are what weights are made of: tensors, dictionaries, NumPy's numbers and
arrays; each is built by a function of this project that checks its arguments. HARMLESS ones are found beside weights in
training checkpoints (paths, dates, configurations): an ``Extra`` takes their place and keeps the entries of a mapping only.
Every other name is refused. No name is ever looked up, so nothing of a file can run.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import mmap
import pickle
import re
import struct
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError

ADVICE = "Get the file again (`python -m zoo fetch`), or check where it comes from"
BEGINNINGS = [
    (re.compile(rb"\s*(<!doctype html|<html|<\?xml)", re.IGNORECASE), "is a web page, not a checkpoint: the download was answered by a page"),
    (re.compile(rb"\s*version https://git-lfs"), "is a Git LFS pointer, not the file that it points to"),
    (re.compile(rb"\x1f\x8b"), "is a gzip archive, not a checkpoint: unpack it first"),
    (re.compile(rb"\x89HDF"), "is an HDF5 file, as Keras writes, not a checkpoint of PyTorch"),
    (re.compile(rb"\s*\Z"), "is empty"),
]  # fmt: skip
MAGIC = 0x1950A86A20F9469CFC6C  # what torch.save wrote first, before PyTorch 1.6
PROGRAMS = (  # a member of the archive, what the archive is, and how its weights are had
    (r"(constants\.pkl|model\.json)", "a TorchScript archive (torch.jit.save)", 'torch.jit.load("{file}").state_dict()'),
    (r"(archive_format|serialized_exported_program\.json)", "an exported program (torch.export.save)", 'dict(torch.export.load("{file}").state_dict)'),
    (r"\.data/extern_modules", "a package (torch.package)", 'torch.package.PackageImporter("{file}").load_pickle(package, resource).state_dict()'),
)  # fmt: skip


class Contents(dict[str, Any]):
    """What a file holds; ``unread``: the classes of objects beside the weights that were left unread."""

    unread: tuple[str, ...] = ()


def read(path: str | Path) -> Contents:
    """The contents of a checkpoint as nested dictionaries with tensors on the CPU.  Big files are mapped, not read.

    Accepts PyTorch's zip and older formats in every pickle protocol, and ``.safetensors``. Objects that weights do not
    need (paths, dates, configurations; the list is in pickles.py) are left unread and named in ``unread``.
    Raises UserError for everything else: a file that asks for code, a program, a truncated one, a web page, a compressed
    zip, tensors larger than the file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; a checkpoint file is expected")
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    for pattern, meaning in BEGINNINGS:
        if pattern.match(head):
            raise UserError(f"{path} {meaning}. {ADVICE}")
    size = path.stat().st_size
    try:
        if head[8:9] == b"{" and 2 <= struct.unpack("<Q", head[:8])[0] < size:
            tree = Contents(_read_safetensors(path))
        elif head.startswith(b"PK"):
            tree = _read_zip(path, size)
        elif head[257:262] == b"ustar":
            raise UserError(
                f"{path}: PyTorch's format of 2016, which cannot be read safely; save it again with a newer PyTorch"
            )
        else:
            tree = _read_old(path, size)
        _check_claims(tree, size, path)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  broken bytes end in any exception there is
        raise UserError(_explain(path, error)) from None
    return tree


def unpickled(stream: Any, path: Path, fetch: Any = None) -> tuple[Any, tuple[str, ...]]:
    """The next pickle of a stream, and the harmless classes left unread in it. UserError when it asks for others."""
    from .unpickler import Unpickler

    start = stream.tell()
    for encoding in ("utf-8", "latin1"):  # bytes inside a pickle of Python 2 are no UTF-8
        stream.seek(start)
        machine = Unpickler(stream, fetch, encoding)
        try:
            tree = machine.load()
        except UnicodeDecodeError:
            if encoding == "latin1":
                raise
            continue
        except Exception:
            if machine.refused:
                raise UserError(refusal(path, list(machine.refused))) from None
            raise
        if machine.refused:
            whole = isinstance(tree, Extra) and tree.kind in machine.refused
            raise UserError(refusal(path, list(machine.refused), whole))
        return tree, tuple(machine.unread)
    raise AssertionError


def _contents(tree: Any, unread: tuple[str, ...], path: Path) -> Contents:
    if not isinstance(tree, Mapping):
        raise UserError(f"{path}: holds a {type(tree).__name__}, not a dictionary of tensors")
    found = Contents(tree)
    found.unread = unread
    return found


# ---------------------------------------------------------------- PyTorch's zip


def _read_zip(path: Path, size: int) -> Contents:
    """A zip of torch.save: ``data.pkl`` and a stored member for each storage, mapped into memory."""
    import torch

    members = {m.filename: m for m in _members(path, size)}
    pickles = [name for name in members if name.endswith("data.pkl")]
    if not pickles:
        raise UserError(
            f"{path}: a zip archive ({', '.join(list(members)[:4])}), not a checkpoint: name the member to load, or unpack it"
        )
    root = min(pickles, key=len).removesuffix("data.pkl")
    whole = torch.UntypedStorage.from_file(str(path), False, size)
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        order = (
            archive.read(f"{root}byteorder").decode("ascii", "replace") if f"{root}byteorder" in members else "little"
        )
        found: dict[str, Any] = {}

        def fetch(key: str, dtype: Any, count: int, view: Any) -> Any:
            if key not in found:
                member = members.get(f"{root}data/{key}")
                wanted = count * dtype.itemsize
                if member is None or member.file_size < wanted:
                    raise UserError(
                        f"{path}: truncated or damaged: it refers to {wanted} bytes of data/{key} that it lacks. {ADVICE}"
                    )
                start = _start(raw, member)
                if start + wanted > size:
                    raise UserError(f"{path}: truncated or damaged: data/{key} ends beyond the file. {ADVICE}")
                part = whole[start : start + wanted] if wanted else torch.UntypedStorage(0, device="cpu")
                part = part.clone() if start % 16 or order != sys.byteorder else part
                if order != sys.byteorder:
                    part.byteswap(dtype)
                found[key] = part
            if found[key].nbytes() < count * dtype.itemsize:
                raise UserError(f"{path}: refused: data/{key} is claimed in two sizes")
            return found[key]

        tree, unread = unpickled(io.BytesIO(archive.read(f"{root}data.pkl")), path, fetch)
    return _contents(tree, unread, path)


def _members(path: Path, size: int) -> list[zipfile.ZipInfo]:
    """The members of a zip that is sound and stored uncompressed (a compressed one could unpack to any size)."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile:
        raise UserError(
            f"{path}: truncated or damaged: a zip file of {size} bytes without a sound directory. {ADVICE}"
        ) from None
    _refuse_programs(path, [m.filename for m in members])
    unpacked = sum(m.file_size for m in members)
    pickles = [m for m in members if m.filename.endswith("data.pkl")]
    if pickles and (unpacked > size or any(m.compress_type != zipfile.ZIP_STORED for m in members)):
        raise UserError(
            f"{path}: refused: a compressed zip ({unpacked} bytes in {size}); checkpoints are stored uncompressed"
        )
    return members


def _refuse_programs(path: Path, members: list[str]) -> None:
    for pattern, what, weights in PROGRAMS:
        if any(re.fullmatch(rf"([^/]+/)?{pattern}", name) for name in members):
            how = weights.format(file=path)
            raise UserError(
                f"{path}: refused: {what}: a program with its weights inside, and no program of a file is run here. Whoever "
                f'trusts it writes the weights alone: torch.save({how}, "weights.pth"), and zoo.load("weights.pth") here'
            )


def _start(raw: Any, member: zipfile.ZipInfo) -> int:
    """Where the data of a stored member begin: behind its own header, whose lengths may differ from the directory's."""
    raw.seek(member.header_offset)
    header = raw.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile("a member without a header")
    name, more = struct.unpack("<HH", header[26:30])
    return int(member.header_offset + 30 + name + more)


# ---------------------------------------------------------------- before PyTorch 1.6


def _read_old(path: Path, size: int) -> Contents:
    """Magic number, version, system, the tree and the names of its storages, each a pickle; then the storages."""
    import torch

    storages: dict[str, tuple[Any, Any]] = {}
    claimed = 0

    def fetch(key: str, dtype: Any, count: int, view: Any) -> Any:
        nonlocal claimed
        wanted = count * dtype.itemsize
        if key not in storages:
            claimed += wanted
            if claimed > size:
                raise UserError(f"{path}: refused: its storages claim {claimed} bytes in a file of {size}")
            storages[key] = torch.UntypedStorage(wanted, device="cpu"), dtype
        memory = storages[key][0]
        if view is not None:
            _, first, length = view
            begin, end = first * dtype.itemsize, (first + length) * dtype.itemsize
            if not 0 <= begin <= end <= memory.nbytes():
                raise ValueError("a view beyond its storage")
            return memory[begin:end]
        if memory.nbytes() < wanted:
            raise ValueError("a storage claimed in two sizes")
        return memory

    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        magic, unread = unpickled(raw, path)
        if magic != MAGIC:
            raise UserError(f"{path}: {_plain(magic)}. {ADVICE}")
        version, _ = unpickled(raw, path)
        system, _ = unpickled(raw, path)
        if version != 1001 or not isinstance(system, dict):
            raise pickle.UnpicklingError(f"version {version!r}")
        tree, unread = unpickled(raw, path, fetch)
        keys, _ = unpickled(raw, path)
        if not isinstance(keys, list) or not set(storages) <= set(map(str, keys)):
            raise pickle.UnpicklingError("storages without data")
        swapped = bool(system.get("little_endian", True)) != (sys.byteorder == "little")
        for key in map(str, keys):
            _fill(raw, *storages.get(key, (None, torch.uint8)), swapped)
    return _contents(tree, unread, path)


def _fill(raw: mmap.mmap, storage: Any, dtype: Any, swapped: bool) -> None:
    """The next storage of the file: how many numbers it has, and the numbers."""
    import torch

    (count,) = struct.unpack("<q", raw.read(8))
    if storage is None or count * dtype.itemsize != storage.nbytes():
        raise pickle.UnpicklingError("a storage of another size than the tensors say")
    data = raw.read(storage.nbytes())
    if len(data) != storage.nbytes():
        raise EOFError(f"{len(data)} of {storage.nbytes()} bytes of a storage")
    if data:
        memory = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)  # type: ignore[call-overload]
        memory.numpy()[:] = np.frombuffer(data, dtype=np.uint8)
    if swapped:
        storage.byteswap(dtype)


def _plain(content: Any) -> str:
    what = f"a {type(content).__name__}" + (
        f" with {', '.join(map(str, list(content)[:4]))}" if isinstance(content, Mapping) else ""
    )
    return f"truncated, damaged or not a checkpoint: a plain pickle ({what}), not a file of torch.save"


def tensors_in(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every tensor in nested containers with its dotted place; each object once, however often it is referred to."""
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = [("", tree)]
    while stack:
        where, node = stack.pop()
        if id(node) in seen or isinstance(node, (str, bytes, int, float, type(None))):
            continue
        seen.add(id(node))
        if hasattr(node, "untyped_storage"):
            yield where, node
        elif isinstance(node, Mapping):
            stack += [(f"{where}.{key}" if where else str(key), value) for key, value in node.items()]
        elif isinstance(node, (list, tuple, set, frozenset)):
            stack += [(f"{where}[{i}]", value) for i, value in enumerate(node)]
        elif hasattr(node, "__dict__"):
            stack.append((where, vars(node)))


def _check_claims(tree: Any, size: int, path: Path) -> None:
    """No tensor may be larger than the file it came from, nor all of them together much larger (shared ones count)."""
    import torch

    total = 0
    for where, tensor in tensors_in(tree):
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            raise UserError(f"{path}: refused: {where} is not a plain dense tensor")
        claimed = tensor.numel() * tensor.element_size()
        total += claimed
        if claimed > size or total > 4 * size + 2**20:
            raise UserError(
                f"{path}: refused: {where} claims {claimed} bytes ({list(tensor.shape)}) in a file of {size}"
            )


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path}: reading .safetensors needs `pip install safetensors`") from None
    return load_file(path)


def _explain(path: Path, error: Exception) -> str:
    text = str(error).strip() or "no detail"
    detail = text.splitlines()[0][:160]
    if isinstance(error, MemoryError) or "allocate memory" in text:
        return f"{path}: refused: it claims more memory than this machine has ({detail})"
    kind = "unreadable" if isinstance(error, pickle.UnpicklingError) else f"unreadable ({type(error).__name__})"
    return f"{path}: truncated, damaged or not a checkpoint: {kind}: {detail}. {ADVICE}"


def sha256(path: str | Path) -> str:
    """64 hexadecimal digits of a file's contents; a file that has not changed on disk is read once in a process."""
    return digests(path)[0]


def digests(path: str | Path, md5: bool = False) -> tuple[str, str]:
    """SHA-256 of a file and, where asked for, its MD5 (else ""), both in one reading that a process makes once.

    Another size, inode, or time of change is another file.
    """
    place = Path(path).resolve()
    state = place.stat()
    return _digests(str(place), (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino), md5)


@lru_cache(maxsize=256)
def _digests(path: str, state: tuple[int, ...], md5: bool) -> tuple[str, str]:
    long, short = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            long.update(block)
            if md5:
                short.update(block)
    return long.hexdigest(), short.hexdigest() if md5 else ""


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
