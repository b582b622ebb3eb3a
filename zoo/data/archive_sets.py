"""Data sets packed in archives: PIC's ImageNet-Zip, and tar shards in WebDataset's layout.

ImageNet-Zip is <part>.zip and <part>_map.txt with one ``relative/path<TAB>label`` a line. The order of the map is the order of
the source: PIC's and InstDisc's rows are tied to it.

Tar shards hold ``<key>.jpg`` beside ``<key>.cls`` and are read in any order through an index. ``write_shards`` leaves an index
file beside the shards (names, labels, positions), so that a data set keeps its order, names and fingerprint. For shards
written by other tools the headers are scanned, and the result is kept by index_cache.py.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np

from ..errors import UserError, writing
from ..files import whole
from .archives import PLAIN, ROW, PackStore, tar_members, zip_members
from .classes import titled_by_folder
from .images import is_image_name
from .paths import component
from .source import FileSource, Names
from .specs import DatasetSpec


def zip_present(root: Path, part: str) -> bool:
    return (root / f"{part}.zip").is_file()


def read_zip(spec: DatasetSpec, root: Path, part: str) -> FileSource:
    """The images of ``part`` in the map's order.  Raises UserError naming the line of the map that is wrong."""
    archive, listing = root / f"{part}.zip", root / f"{part}_map.txt"
    if not listing.is_file():
        raise UserError(f"{archive}: its map {listing.name} is missing; `python -m zoo data pack` writes both")
    names, labels = read_map(listing, spec.class_count)
    inside, rows = zip_members(archive)
    at = {inside[i]: i for i in range(len(inside))}
    for number, name in enumerate(names):
        if name not in at:
            raise UserError(f"{listing}:{number + 1}: {name} is not in {archive.name}")
    chosen = np.array([at[n] for n in names], dtype=np.int64)
    kept = Names(names)
    store = PackStore([str(archive)], rows[chosen], kept)
    classes, named = _classes(spec, names, labels)
    source = FileSource(kept, store.rows["size"].astype(np.int64), labels, classes, store, spec.channels)
    source.named = named
    return source


def read_map(path: Path, classes: int | None) -> tuple[list[str], np.ndarray]:
    """(names, labels) of a map file.  ``classes`` bounds the labels when it is known."""
    names, labels, wrong = scan_map(path, classes)
    if wrong:
        raise UserError(wrong[0] + (f" ({len(wrong)} such lines)" if len(wrong) > 1 else ""))
    if not names:
        raise UserError(f"{path}: no images listed")
    return names, labels


def scan_map(path: Path, classes: int | None) -> tuple[list[str], np.ndarray, list[str]]:
    """(names, labels, a complaint for each line that is wrong)."""
    first: dict[str, int] = {}
    labels: list[int] = []
    wrong = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        name, tab, label = line.rpartition("\t")
        if not tab or not label.strip().isdigit():
            wrong.append(f"{path}:{number}: expected path<TAB>label, found {line[:80]!r}")
        elif not is_image_name(name):
            wrong.append(f"{path}:{number}: {name!r} does not have the extension of an image")
        elif name in first:
            wrong.append(f"{path}:{number}: {name} is listed already in line {first[name]}")
        elif classes is not None and int(label) >= classes:
            wrong.append(f"{path}:{number}: label {int(label)} is out of range 0..{classes - 1}")
        else:
            first[name] = number
            labels.append(int(label))
    return list(first), np.array(labels, dtype=np.int64), wrong


def _classes(spec: DatasetSpec, names: list[str], labels: np.ndarray) -> tuple[list[str], bool]:
    """Class names, and whether they are more than numbers: the folders in the zip when each label has one of its own, else
    the data set's."""
    found, named = titled_by_folder(names, labels, max(spec.class_count or 0, int(labels.max()) + 1))
    return (list(spec.classes), True) if not named and isinstance(spec.classes, list) else (found, named)


def check_names(source: FileSource, line: str) -> None:
    """Raise UserError, before anything is written, for a name that one ``line`` of text cannot hold."""
    for i in range(len(source)):
        name = source.name(i)
        if any(c in name for c in "\t\n\r") or not name.isprintable():
            raise UserError(f"{source.where(i)}: {line} cannot hold this name; rename the file")


def pack_zip(source: FileSource, folder: Path, part: str) -> tuple[Path, Path]:
    """Write ``source`` as <part>.zip and <part>_map.txt; the same bytes every time.  Nothing half-written is left."""
    from tqdm import tqdm

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    check_names(source, "a map line")
    archive, listing = folder / f"{component(part, str(folder))}.zip", folder / f"{part}_map.txt"
    with (
        whole(listing) as lines,
        whole(archive) as members,
        zipfile.ZipFile(members, "w", zipfile.ZIP_STORED) as zipped,
        lines.open("w", encoding="utf-8", newline="\n") as mapped,
    ):
        for i in tqdm(range(len(source)), desc=f"packing {archive.name}", unit="img", disable=None, leave=False):
            name = source.name(i)
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o644 << 16
            zipped.writestr(info, source.raw(i))
            mapped.write(f"{name}\t{source.label(i)}\n")
    return archive, listing


def shard_files(root: Path, part: str) -> list[Path]:
    """<root>/<part>-*.tar or <root>/<part>/*.tar, sorted."""
    return sorted(root.glob(f"{part}-*.tar")) or sorted((root / part).glob("*.tar"))


def shards_present(root: Path, part: str) -> bool:
    return bool(shard_files(root, part))


def read_shards(spec: DatasetSpec, root: Path, part: str) -> FileSource:
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


def write_shards(source: FileSource, folder: Path, part: str, per_shard: int = 10_000) -> list[Path]:
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
            with whole(path) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
                for i in range(first, min(first + per_shard, len(source))):
                    lines.append(_add(tar, source, i, len(files)))
                    bar.update()
            files.append(path)
    head = {"classes": list(source.classes), "labelled": source.labelled, **({} if source.named else {"named": False})}
    sizes = {path.name: path.stat().st_size for path in files}
    with whole(index) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps({**head, "shards": sizes}) + "\n")
        file.writelines(lines)
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
            shards, classes, labelled, named = (
                head["shards"],
                head["classes"],
                head["labelled"],
                head.get("named", True),
            )
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
