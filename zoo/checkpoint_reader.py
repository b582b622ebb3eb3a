"""Opening a checkpoint of unknown origin: no code of the file is run, no size that it claims is believed.

Formats: PyTorch's zip files, its older format and ``.safetensors``, pickle protocols 0 to 5. ``unpickler.py`` opens the pickle
inside and builds tensors, dictionaries and NumPy's numbers; tensors of a zip are mapped into memory, not read. (``torch.load``
with ``weights_only=True`` reads protocol 2 only, and refuses a file that holds a path or a date beside the weights.)
"""

from __future__ import annotations

import hashlib
import io
import mmap
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError
from .pickles import Extra, refusal

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
