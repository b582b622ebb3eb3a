"""Tar shards in WebDataset's manner: ``<key>.jpg`` beside ``<key>.cls``, read in any order through an index.

``write`` leaves an index file beside the shards (names, labels, positions), so that a data set keeps its order, names
and fingerprint.  Shards from elsewhere are read without one: their headers are scanned once.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np

from ..errors import UserError, writing
from .images import is_image_name
from .namelist import Names
from .packs import PLAIN, ROW, PackStore, tar_members
from .paths import component
from .source import FileSource
from .specs import DatasetSpec
from .zipmap import check_names


def shard_files(root: Path, part: str) -> list[Path]:
    """<root>/<part>-*.tar or <root>/<part>/*.tar, sorted."""
    return sorted(root.glob(f"{part}-*.tar")) or sorted((root / part).glob("*.tar"))


def present(root: Path, part: str) -> bool:
    return bool(shard_files(root, part))


def read(spec: DatasetSpec, root: Path, part: str) -> FileSource:
    """The images of ``part``, in the index's order, or in that of the shards where there is no index."""
    index = root / f"{part}.index.tsv"
    if index.is_file():
        return _read_index(spec, root, index)
    return _scan(spec, shard_files(root, part))


def _scan(spec: DatasetSpec, files: list[Path]) -> FileSource:
    names: list[str] = []
    rows = []
    labels: list[int] = []
    for number, path in enumerate(files):
        inside, positions = tar_members(path)
        members = [inside[i] for i in range(len(inside))]
        store = PackStore([str(path)], positions, inside)
        classes = {_key(m): i for i, m in enumerate(members) if m.endswith(".cls")}
        for i, member in enumerate(members):
            if not is_image_name(member):
                continue
            at = classes.get(_key(member))
            label = b"-1" if at is None else store.read(at).strip()
            if not label.removeprefix(b"-").isdigit():
                raise UserError(f"{path}@/{members[at or 0]}: expected a class number, found {label[:40]!r}")
            names.append(f"{path.stem}/{member}")
            rows.append((number, *positions[i].tolist()[1:]))
            labels.append(int(label))
    if not names:
        raise UserError(f"{files[0].parent}: {len(files)} shards without a single image")
    table = np.array(rows, dtype=ROW)
    known = np.array(labels, dtype=np.int64)
    if known.min() < 0 <= known.max():
        raise UserError(f"{names[int(known.argmin())]}: no .cls beside it, while other images have one")
    count = spec.class_count or int(known.max()) + 1
    titles = spec.classes if isinstance(spec.classes, list) else [str(k) for k in range(count)]
    kept = Names(names)
    packed = PackStore([str(f) for f in files], table, kept)
    unlabelled = known.max() < 0
    source = FileSource(
        kept,
        table["size"].astype(np.int64),
        None if unlabelled else known,
        [] if unlabelled else titles,
        packed,
        spec.channels,
    )
    source.named = isinstance(spec.classes, list)
    return source


def _key(member: str) -> str:
    """WebDataset's rule: everything up to the first dot of the last part of the path."""
    folder, slash, base = member.rpartition("/")
    return folder + slash + base.partition(".")[0]


def write(source: FileSource, folder: Path, part: str, per_shard: int = 10_000) -> list[Path]:
    """Write ``source`` as <part>-000000.tar, … and <part>.index.tsv; the same bytes every time.  The index comes last."""
    from tqdm import tqdm

    if per_shard < 1:
        raise UserError(f"{per_shard} images per shard: at least 1 is needed")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    check_names(source, "an index line")
    index = folder / f"{component(part, str(folder))}.index.tsv"
    index.unlink(missing_ok=True)
    files: list[Path] = []
    lines: list[str] = []
    with tqdm(total=len(source), desc=f"sharding {part}", unit="img", disable=None, leave=False) as bar:
        for first in range(0, len(source), per_shard):
            path = folder / f"{part}-{first // per_shard:06d}.tar"
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
                    for i in range(first, min(first + per_shard, len(source))):
                        lines.append(_add(tar, source, i, len(files)))
                        bar.update()
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
            files.append(path)
    head = {"classes": list(source.classes), "labelled": source.labelled, **({} if source.named else {"named": False})}
    sizes = {path.name: path.stat().st_size for path in files}
    partial = index.with_name(f".{index.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps({**head, "shards": sizes}) + "\n")
        file.writelines(lines)
    os.replace(partial, index)
    return [*files, index]


def _add(tar: tarfile.TarFile, source: FileSource, i: int, shard: int) -> str:
    name, data = source.name(i), source.raw(i)
    extension = name.rpartition(".")[2].lower()
    member = tarfile.TarInfo(f"{i:08d}.{extension}")
    member.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE  # a USTAR header with so short a name is one block
    tar.addfile(member, io.BytesIO(data))
    if source.labelled:
        label = str(source.label(i)).encode()
        note = tarfile.TarInfo(f"{i:08d}.cls")
        note.size = len(label)
        tar.addfile(note, io.BytesIO(label))
    return f"{name}\t{source.label(i)}\t{shard}\t{offset}\t{len(data)}\n"


def _read_index(spec: DatasetSpec, root: Path, index: Path) -> FileSource:
    with index.open(encoding="utf-8") as file:
        try:
            head = json.loads(file.readline())
            shards, classes, labelled, named = head["shards"], head["classes"], head["labelled"], head.get("named", True)
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{index}:1: expected the header that `data shard` writes") from None
        names, labels, rows = [], [], []
        for number, line in enumerate(file, 2):
            fields = line.rstrip("\n").split("\t")
            if len(fields) != 5 or not all(f.removeprefix("-").isdigit() for f in fields[1:]):
                raise UserError(f"{index}:{number}: expected name, label, shard, offset and size, found {line[:80]!r}")
            label, shard, offset, size = map(int, fields[1:])
            if not 0 <= shard < len(shards) or min(offset, size) < 0 or labelled and not 0 <= label < len(classes):
                raise UserError(f"{index}:{number}: shard {shard} or label {label} does not exist")
            names.append(fields[0])
            labels.append(label)
            rows.append((shard, PLAIN, 0, offset, size, size))
    for name, size in shards.items():
        path = root / component(name, f"{index}:1")
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes, {size} when it was written"
            raise UserError(f"{path}: {what}; run `python -m zoo data shard` again")
    table = np.array(rows, dtype=ROW)
    reach = np.flatnonzero(table["offset"] + table["size"] > np.array([*shards.values(), 0])[table["file"]])
    if len(reach):
        raise UserError(f"{index}:{reach[0] + 2}: {names[reach[0]]} reaches beyond the end of its shard")
    kept = Names(names)
    store = PackStore([str(root / name) for name in shards], table, kept)
    known = np.array(labels, dtype=np.int64) if labelled else None
    source = FileSource(kept, table["size"].astype(np.int64), known, classes, store, spec.channels)
    source.named = bool(named)
    return source
