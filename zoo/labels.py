"""Pseudo-labels and cluster assignments as files: one module writes and reads them, whoever made them.

    file,label_0,label_1          one row per image, a column per head; ``file,label`` where there is one head
    cat/1.jpg,17,3                -1: the image has no label

``.csv`` as above, ``.npz`` with ``names`` (N,) and ``labels`` (N, H), or a file of tensors with ``names`` and ``labels``
(H, N). Read as well: the authors' released layouts (SeLa's tables without names, DeepCluster's pickled lists of (image,
cluster), labels inside a weight file) and the labels that a run folder keeps. Names tell which label belongs to which image;
labels without names belong to the images in their order, and then the numbers of both must agree.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from .checkpoint_reader import read as read_tensors
from .checkpoint_reader import unpickled
from .errors import UserError, writing
from .files import whole

KEYS = ("labels", "L")  # names under which files of tensors hold them
FILE_COLUMN = ("file", "image", "path", "name", "filename")
OTHER_COLUMNS = ("distance", "confidence")  # what may stand behind the labels, as `evaluations cluster` writes it
KEEP_LABELS = "deepcluster, deepclusterv2, deepercluster, sela, selav2, pseudolabel"
ADVICE = "write it again: python -m reproduce labels RUN --to FILE"


class Labels(NamedTuple):
    """``labels`` int64 (heads, images), -1 where an image has none; ``images`` their names, None when they go by order.

    ``fingerprint``: of the images that labels of a run belong to, where the run says so.
    """

    labels: Tensor
    images: list[str] | None = None
    fingerprint: str | None = None


# ---------------------------------------------------------------- whose label is whose


def without(found: Labels, names: Sequence[str]) -> Labels:
    """Labels less the rows of the images ``names``: of a part of the same set that is not asked for."""
    if found.images is None or not (left := set(names) & set(found.images)):
        return found
    kept = [i for i, name in enumerate(found.images) if name not in left]
    return Labels(images=[found.images[i] for i in kept], labels=found.labels[:, kept], fingerprint=None)


def by_name(found: Labels, names: Sequence[str], what: str, fingerprint: str | None = None) -> Tensor:
    """(H, N) labels of the images ``names``, in their order.

    what  names the labels in errors;  fingerprint  of the images, to be compared with that of the labels
    Raises UserError for an image without a row, a row without an image, another number of images where there are no names.
    Names that differ in their folders only are taken for the same where the file names alone are unique.
    """
    if found.images is None:
        if found.labels.shape[1] != len(names):
            raise UserError(
                f"{what}: labels of {found.labels.shape[1]:,} images, the data set has {len(names):,}; {ADVICE}"
            )
        if None not in (fingerprint, found.fingerprint) and fingerprint != found.fingerprint:
            raise UserError(
                f"{what}: its labels have no names and belong to other images than these; {ADVICE}, with their names"
            )
        return found.labels
    order = _positions(found.images, names)
    if order is None:
        order = _positions([PurePosixPath(n).name for n in found.images], [PurePosixPath(n).name for n in names])
    if order is None:
        known, wanted = set(found.images), set(names)
        missing, extra = [n for n in names if n not in known], [n for n in found.images if n not in wanted]
        said = [f"{len(missing):,} of {len(names):,} images have no row ({_some(missing)})"] if missing else []
        said += [f"{len(extra):,} rows name images that are not in the data ({_some(extra)})"] if extra else []
        raise UserError(
            f"{what}: {' and '.join(said) or 'two images have one name'}; give images without a label -1, or {ADVICE}"
        )
    return found.labels[:, order]


def _positions(have: Sequence[str], want: Sequence[str]) -> Tensor | None:
    """For each wanted name its place among those there are; None unless both are the same set of unique names."""
    where = {name: i for i, name in enumerate(have)}
    if len(where) != len(have) or len(set(want)) != len(want) or where.keys() != set(want):
        return None
    return torch.tensor([where[name] for name in want], dtype=torch.int64, device="cpu")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


# ---------------------------------------------------------------- writing


def write(path: str | Path, labels: Any, images: Sequence[str] | None) -> None:
    """Labels (H, N) of images by name to .csv, .npz or a file of tensors; whole or not at all.

    images  None: rows in the order of the images, without names
    """
    path = Path(path)
    table = torch.as_tensor(labels).reshape(-1, torch.as_tensor(labels).shape[-1]).long()
    table = torch.where(table < 0, -1, table)
    if images is not None and len(images) != table.shape[1]:
        raise UserError(f"{path}: {len(images)} names for labels of {table.shape[1]} images")
    with whole(path) as part, writing(path):
        if path.suffix == ".csv":
            part.write_text(_csv(table, images), encoding="utf-8", errors="surrogateescape", newline="")
        elif path.suffix == ".npz":
            with part.open("wb") as stream:
                arrays: dict[str, Any] = {"labels": table.T.numpy()}
                if images is not None:
                    arrays["names"] = np.array(list(images))
                np.savez_compressed(stream, **arrays)
        else:
            torch.save({"labels": table, **({} if images is None else {"names": list(images)})}, part)


def _csv(table: Tensor, images: Sequence[str] | None) -> str:
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    if images is not None:
        heads = ["label"] if len(table) == 1 else [f"label_{h}" for h in range(len(table))]
        out.writerow(["file", *heads])
    for i, row in enumerate(table.T.tolist()):
        out.writerow([*([] if images is None else [images[i]]), *row])
    return text.getvalue()


# ---------------------------------------------------------------- reading


def read(path: str | Path, heads: int | None = None) -> Labels:
    """The labels of a file or a run folder; the ending says how a file is read, .csv, .npz, .pickle or tensors.

    heads  how many there are, where that is known
    """
    path = Path(path)
    if path.is_dir():
        return _of_run(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; labels are in a run's checkpoint.pt, or in a file written from it")
    if path.suffix == ".csv":
        return table(path, heads)
    if path.suffix == ".npz":
        return _of_npz(path)
    if path.suffix in (".pickle", ".pkl"):
        return clusters(path)
    return tensor(path, KEYS)


def _of_run(folder: Path) -> Labels:
    file = folder / "checkpoint.pt"
    if not file.is_file():
        raise UserError(f"{file}: no such file; labels are in a run's checkpoint.pt")
    try:
        recorded = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["data"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        recorded = None
    return tensor(file, KEYS)._replace(fingerprint=recorded)


def _of_npz(path: Path) -> Labels:
    try:
        with np.load(path, allow_pickle=False) as found:
            values = found["labels"]
            names = [str(n) for n in found["names"]] if "names" in found else None
    except (ValueError, KeyError, OSError, EOFError, BadZipFile) as error:
        raise UserError(f"{path}: no labels as `python -m reproduce labels` writes them ({error}); {ADVICE}") from None
    if values.dtype.kind not in "iu" or values.ndim not in (1, 2):
        raise UserError(
            f"{path}: labels are {values.dtype} of shape {values.shape}, whole numbers (images, heads) are expected"
        )
    return _checked(torch.from_numpy(values.reshape(len(values), -1).T.astype(np.int64).copy()), names, path)


def _checked(labels: Tensor, names: list[str] | None, path: Path) -> Labels:
    if names is not None:
        if len(names) != labels.shape[1]:
            raise UserError(f"{path}: {len(names)} names for labels of {labels.shape[1]} images; {ADVICE}")
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise UserError(f"{path}: {len(twice)} images have several rows ({_some(twice)})")
    return Labels(torch.where(labels < 0, -1, labels), names)


def tensor(file: Path, keys: Sequence[str]) -> Labels:
    """(heads, images) under the first of ``keys`` that the file, or a checkpoint's ``extra``, has."""
    tree: Mapping[str, Any] = read_tensors(file)
    extra = tree.get("extra")
    tree = extra if isinstance(extra, Mapping) and not any(key in tree for key in keys) else tree
    key = next((key for key in keys if key in tree), None)
    if key is None:
        have = ", ".join(map(str, list(tree)[:6]))
        raise UserError(
            f"{file}: no pseudo-labels under {' or '.join(keys)} (no labels in it; it has {have}); methods that keep some: {KEEP_LABELS}"
        )
    value, names = tree[key], tree.get("names")
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex() or value.ndim not in (1, 2):
        raise UserError(f"{file}: {key} is not a table of whole numbers")
    return _checked(
        value.reshape(-1, value.shape[-1]).long(), [str(n) for n in names] if isinstance(names, list) else None, file
    )


def table(file: Path, heads: int | None = None) -> Labels:
    """One row per image: a name or a number first or not, a column per head, perhaps a header."""
    rows = _rows(file)
    header = rows[0][1] if rows and _is_header([row for _, row in rows[:2]], heads) else None
    rows = rows[1:] if header is not None else rows
    others = [name for name in header or () if name in OTHER_COLUMNS]
    if not rows:
        return Labels(torch.empty(heads or 1, 0, dtype=torch.int64, device="cpu"))
    width = len(header or rows[0][1]) - len(others)
    named = width > heads if heads is not None else width > 1 and _named(header, rows[0][1])
    heads = heads if heads is not None else width - named
    values, names = [], []
    for number, cells in rows:
        labels = [_whole(cell) for cell in cells[named : named + heads]]
        if len(cells) != named + heads + len(others) or None in labels:
            raise UserError(
                f"{file}:{number}: {','.join(cells)[:60]!r} is not {heads} whole numbers{' behind a name' * named}: not a table of labels"
            )
        values.append(labels)
        names += cells[:named]
    numbered = (
        named and (header is None or header[0] not in FILE_COLUMN) and names == [str(i) for i in range(len(names))]
    )
    return _checked(
        torch.tensor(values, dtype=torch.int64, device="cpu").T.contiguous(),
        names if named and not numbered else None,
        file,
    )


def _rows(file: Path) -> list[tuple[int, list[str]]]:
    """(line number, cells) of every row that is not empty; the separator is guessed, but for files of this project's own form."""
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        text = stream.read()
    try:
        dialect: Any = csv.Sniffer().sniff(text[:8192], ",;\t ")
    except csv.Error:
        dialect = csv.excel
    if text.startswith(("file,", "image,")):
        dialect = csv.excel
    read_rows = csv.reader(io.StringIO(text, newline=""), dialect)
    rows = [(read_rows.line_num, row) for row in read_rows if any(cell.strip() for cell in row)]
    return rows if text.startswith("file,") else [(number, [cell.strip() for cell in row]) for number, row in rows]


def classes(file: Path, images: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels of ``file`` as classes of the images: int64 (N,) class numbers in the order of ``images``, and the classes' names.

    A .csv with the header ``file,label`` may hold class names; numbers (clusters too) become the names of their classes. Classes are
    sorted by name, numbers by value. Raises UserError: several columns of labels, images without a row or without a label.
    """
    told = _by_title(file) if file.suffix == ".csv" else None
    found, titles = told if told is not None else (read(file), None)
    if len(found.labels) != 1:
        raise UserError(f"{file}: {len(found.labels)} columns of labels; classes of a folder are one: file,label")
    row = by_name(found, images, str(file))[0].numpy()
    if (row < 0).any():
        none = [images[i] for i in np.flatnonzero(row < 0)[:3].tolist()]
        raise UserError(
            f"{file}: {int((row < 0).sum()):,} images have no class ({_some(none)}); give them one or move them out of the folder; without "
            "labels the folder is data set 'images'"
        )
    seen, numbers = np.unique(row, return_inverse=True)
    return numbers.astype(np.int64), tuple(str(k) if titles is None else titles[k] for k in seen.tolist())


def _by_title(file: Path) -> tuple[Labels, list[str]] | None:
    """Labels whose second column holds class names, and the names; None where it holds numbers."""
    rows = _rows(file)
    if not rows or len(rows[0][1]) < 2 or rows[0][1][0] not in FILE_COLUMN:
        return None
    number, _ = rows[0]
    for number, cells in rows[1:]:
        if len(cells) < 2 or not cells[1].strip():
            raise UserError(f"{file}:{number}: {','.join(cells)[:60]!r} is not a file and its class")
    titles = sorted({cells[1] for _, cells in rows[1:]})
    if all(_whole(title) is not None for title in titles):
        return None
    place = {title: k for k, title in enumerate(titles)}
    values = torch.tensor([[place[cells[1]] for _, cells in rows[1:]]], dtype=torch.int64, device="cpu")
    return _checked(values, [cells[0] for _, cells in rows[1:]], file), titles


def _is_header(first: Sequence[Sequence[str]], heads: int | None) -> bool:
    """Words over the labels, or the column numbers that pandas writes."""
    cells = first[0]
    if len(first) == 2 and (len(cells) > 1 or heads == 1):
        count = heads if heads is not None else len(cells) - (cells[0] == "")
        if cells[-count:] == [str(i) for i in range(count)]:
            return True
    body = cells[1:] if len(cells) > 1 else cells
    return all(_whole(cell) is None for cell in body)


def _named(header: Sequence[str] | None, row: Sequence[str]) -> bool:
    return _whole(row[0]) is None or (header is not None and header[0] in ("", *FILE_COLUMN))


def _whole(cell: str) -> int | None:
    try:
        return int(float(cell)) if float(cell).is_integer() else None
    except (ValueError, OverflowError):
        return None


def clusters(file: Path) -> Labels:
    """A list of (image path, cluster), in any order, pickled by Python 2 or 3; images in sorted order of their names."""
    try:
        with file.open("rb") as stream:
            content, _ = unpickled(stream, file)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  broken pickles fail with any exception there is
        raise UserError(f"{file}: truncated, damaged or not a pickle ({type(error).__name__})") from None
    pairs = list(content.items()) if isinstance(content, Mapping) else content
    try:
        found = {str(name): int(cluster) for name, cluster in pairs}
    except (TypeError, ValueError):
        raise UserError(f"{file}: not a list of (image, cluster)") from None
    names = sorted(found)
    return Labels(torch.tensor([[found[name] for name in names]], dtype=torch.int64, device="cpu"), names)


# ---------------------------------------------------------------- released ones


def released(entry: Any) -> Labels:
    """The assignments of an entry that has ``pseudolabels``, checked against the heads and clusters it states."""
    from . import fetch

    spec = entry.pseudolabels
    if spec.sources:
        file = fetch.path(f"{entry.id}/labels")
        read_as = {
            "tensor": lambda: tensor(file, spec.keys),
            "csv": lambda: table(file, spec.heads),
            "clusters": lambda: clusters(file),
        }
        found = read_as[spec.format]()
    else:
        found = tensor(fetch.path(entry.id), spec.keys)
    heads, images = found.labels.shape
    if heads != spec.heads or not images:
        raise UserError(
            f"{entry.id}: pseudo-labels of {heads} heads x {images} images; {spec.heads} heads are expected"
        )
    low, high = int(found.labels.min()), int(found.labels.max())
    if low < 0 or (spec.clusters is not None and high >= spec.clusters):
        raise UserError(f"{entry.id}: pseudo-labels from {low} to {high}; 0 to {(spec.clusters or 1) - 1} is expected")
    return found
