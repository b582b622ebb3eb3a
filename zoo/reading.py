"""Opening a checkpoint that nobody vouches for: no code is run, no claim about sizes is believed.

``weights_only=True`` always.  Beyond PyTorch's own list a few harmless types are allowed, by name, because released
files hold them: ``argparse.Namespace`` (PIC's options) and NumPy scalars and arrays (accuracies, random states).
A zip is looked at first without reading its data, so that tensors that claim more memory than the file has are refused.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import UserError
from .pickles import check_names, refusal, stand_ins

ADVICE = "Get the file again (`python -m zoo fetch`), or check where it comes from"
BEGINNINGS = [
    (re.compile(rb"\s*(<!doctype html|<html|<\?xml)", re.IGNORECASE), "is a web page, not a checkpoint: the download was answered by a page"),
    (re.compile(rb"\s*version https://git-lfs"), "is a Git LFS pointer, not the file that it points to"),
    (re.compile(rb"\x1f\x8b"), "is a gzip archive, not a checkpoint: unpack it first"),
    (re.compile(rb"\s*\Z"), "is empty"),
]  # fmt: skip


def read(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint as nested dictionaries with tensors on the CPU.  Big files are mapped, not read.

    Accepts PyTorch's zip and older formats, and ``.safetensors``.  Raises UserError for everything else: a file that
    asks for code, a truncated one, a web page, a compressed zip, tensors larger than the file.
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
            tree = _read_safetensors(path)
        elif head.startswith(b"PK"):
            _check_zip(path, size)
            _check_claims(_torch_load(path, map_location="meta"), size, path)
            tree = _torch_load(path, map_location="cpu", mmap=True)
        else:
            if head[257:262] != b"ustar":
                with path.open("rb") as stream:  # magic number, version, system, the tree itself, names of storages
                    check_names(stream, path, 5)
            tree = _torch_load(path, map_location="cpu")
        _check_claims(tree, size, path)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  the unpickler meets broken bytes with any exception there is
        raise UserError(_explain(path, error)) from None
    if not isinstance(tree, Mapping):
        raise UserError(f"{path}: holds a {type(tree).__name__}, not a dictionary of tensors")
    return dict(tree)


def _torch_load(path: Path, **options: Any) -> Any:
    import torch

    with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins()):
        warnings.simplefilter("ignore")
        try:
            return torch.load(str(path), weights_only=True, **options)
        except UnicodeDecodeError:  # bytes inside a pickle of Python 2
            return torch.load(str(path), weights_only=True, encoding="latin1", **options)


def _check_zip(path: Path, size: int) -> None:
    """Refuse a zip that is damaged, compressed (it could unpack to any size), no checkpoint, or asks for code."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            packed = any(m.compress_type != zipfile.ZIP_STORED for m in members)
            unpacked = sum(m.file_size for m in members)
            names = [m.filename for m in members if m.filename.endswith("data.pkl")]
            if not names:
                held = ", ".join(member.filename for member in members[:4])
                raise UserError(
                    f"{path}: a zip archive ({held}), not a checkpoint: name the member to load, or unpack it"
                )
            if packed or unpacked > size:
                raise UserError(
                    f"{path}: refused: a compressed zip ({unpacked} bytes in {size}); checkpoints are stored uncompressed"
                )
            for name in names:
                with archive.open(name) as stream:
                    check_names(stream, path, 1)
    except zipfile.BadZipFile:
        raise UserError(
            f"{path}: truncated or damaged: a zip file of {size} bytes without a sound directory. {ADVICE}"
        ) from None


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
    text = str(error)
    wanted = re.search(r"GLOBAL:? ([\w.]+)", text) or re.search(r"unrecognized function (.+)", text)
    if wanted:
        return refusal(path, wanted.group(1))
    if "legacy .tar" in text:
        return f"{path}: PyTorch's format of 2016, which cannot be read safely; save it again with a newer PyTorch"
    if "TorchScript" in text or "torch.jit" in text:
        return f"{path}: a TorchScript program, not weights; refused"
    reason = text.partition("WeightsUnpickler error:")[2].strip() or text.strip() or "no detail"
    detail = reason.splitlines()[0][:160]
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
