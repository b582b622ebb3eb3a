"""``data check``: everything that is wrong with a data set, not only the first thing, with a progress bar."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import UserError
from . import archive_sets, locate, looks, parts
from .annotations import DetectionSource
from .archives import PackStore
from .bad_images import in_order
from .classes import Classes
from .classes import numbers as match
from .coco import CocoSource
from .folders import label_file, subfolders
from .images import is_image_name
from .looks import FORMATS, Looks
from .open import read_part
from .source import FileSource, FolderStore, Source
from .specs import DatasetSpec


@dataclass
class Report:
    """What was found.  facts: lines about what is there; problems: what must be corrected; notes: odd but readable."""

    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self, most: int = 20) -> str:
        lines = list(self.facts)
        for title, entries in (("problem", self.problems), ("note", self.notes)):
            lines += [f"  {title}: {e}" for e in entries[:most]]
            if len(entries) > most:
                lines.append(f"  … and {len(entries) - most:,} more {title}s (--all lists them)")
        lines.append("nothing wrong" if not self.problems else f"{len(self.problems):,} problems")
        return "\n".join(lines)


def check(spec: DatasetSpec, root: str | Path | None) -> Report:
    """Read every image of every part that is there."""
    folder = locate.find(spec, root)
    report = Report([f"{spec.name}: {folder or spec.prepare}"])
    seen: dict[bytes, tuple[str, str, str]] = {}
    found: dict[str, Source] = {}
    looked: dict[str, Looks] = {}
    own = list(dict.fromkeys(rule.read for rule in spec.splits.values() if rule.read))
    for part in own:
        looked[part] = Looks(part)
        if (source := _part(spec, folder, part, report, seen, looked[part])) is not None:
            found[part] = source
    _compare(spec, found, looked, report)
    if len(report.facts) == 1 and not report.problems:
        report.problems.append(f"none of its parts ({', '.join(own)}) is there")
    return report


def _part(
    spec: DatasetSpec,
    folder: Path | None,
    part: str,
    report: Report,
    seen: dict[bytes, tuple[str, str, str]],
    looked: Looks,
) -> Source | None:
    report.problems += _map_lines(spec, folder, part)
    try:
        source = read_part(spec, folder, part, check=False)
    except UserError as error:
        # A set without fixed sizes (the user's own) need not have every part.
        optional = spec.classes is None and isinstance(error, locate.PartMissing)
        if not optional and not any(str(error).startswith(p) for p in report.problems):
            report.problems.append(str(error))
        return None
    expected = next(rule.count for rule in spec.splits.values() if rule.read == part)
    if expected is not None and len(source) != expected:
        what = (
            f"{expected - len(source):,} images missing"
            if len(source) < expected
            else f"{len(source) - expected:,} too many"
        )
        report.problems.append(f"{part}: {len(source):,} images of {expected:,}: {what}")
    report.facts.append(f"  {part}: {_counts(source)}")
    report.notes += _left_out(spec, source, part) + _alone(source, part)
    _images(source, part, report, seen, looked)
    if isinstance(source, DetectionSource):
        _objects(source, part, report)
    return source


def _alone(source: Source, part: str) -> list[str]:
    """What a part has too little of to be judged on."""
    shown = [str(source.classes[k]) for k in np.flatnonzero(source.shown)] if source.labelled else []
    if len(shown) != 1:
        return []
    return [
        f"{part}: all images are of one class ({shown[0]!r}): they can be pre-trained on and clustered, no evaluation of classes runs on them"
    ]


def _compare(spec: DatasetSpec, found: dict[str, Source], looked: dict[str, Looks], report: Report) -> None:
    """Whether the parts look alike, and mean the same by their classes: names, numbers, COCO's category ids, against the training part."""
    train = spec.part("train") if "train" in spec.splits else ""
    train = train if train in found else next(iter(found), "")
    for part in found:
        if part != train:
            report.notes += looks.compare(looked[part], looked[train])
    for part, source in found.items():
        here, there = Classes.of(source), Classes.of(found[train])
        if part == train or not here.names or not there.names:
            continue
        try:
            numbers, notes = match(there, here, (train, part))
        except UserError as error:
            report.problems.append(f"{part}: {error}; evaluations refuse these parts")
            continue
        report.notes += [f"{part}: {note}" for note in notes]
        same = here.names == there.names
        if same:
            report.facts.append(f"  {part}: the {len(here.names):,} classes of {train}, numbered alike")
        moved = [] if same else [k for k in np.flatnonzero(here.shown) if numbers[k] != k]
        if moved:
            first = int(moved[0])
            report.notes.append(
                f"{part}: numbers its classes otherwise than {train} ({here.names[first]!r} is {first} here and {numbers[first]}"
                " there): evaluations join them by name; a program that joins by number is wrong on this set"
            )
        _compare_ids(source, found[train], (part, train), report)


def _compare_ids(source: Source, other: Source, titles: tuple[str, str], report: Report) -> None:
    """COCO's category ids, by the names of the categories."""
    if not isinstance(source, CocoSource) or not isinstance(other, CocoSource):
        return
    ids = dict(zip(other.classes, other.category_ids.tolist(), strict=True))
    for name, ident in zip(source.classes, source.category_ids.tolist(), strict=True):
        if ids.get(name, ident) != ident:
            report.notes.append(
                f"{titles[0]}: category {name!r} has id {ident} here and {ids[name]} in {titles[1]}: evaluations join "
                "categories by name; results are written with the ids of the part that they are of"
            )
            return


def _map_lines(spec: DatasetSpec, folder: Path | None, part: str) -> list[str]:
    """Every wrong line of an ImageNet-Zip map; the reader itself stops at the first."""
    if spec.reader not in ("folders", "listed") or folder is None:
        return []
    try:
        part = parts.find(folder, part) or part
    except UserError:
        return []  # the reader says so
    path = folder / f"{part}_map.txt"
    if not path.is_file():
        return []
    names, _, wrong = archive_sets.scan_map(path, spec.class_count)
    if not wrong and (folder / f"{part}.zip").is_file():
        try:
            inside = set(archive_sets.zip_members(path.with_name(f"{part}.zip"))[0])
        except UserError:
            return wrong  # the reader says so
        wrong = [f"{path}:{n}: {name} is not in {part}.zip" for n, name in enumerate(names, 1) if name not in inside]
    return wrong


def _left_out(spec: DatasetSpec, source: Source, part: str) -> list[str]:
    """Files that lie there and are not read: hidden, without an image's extension, or in no list."""
    if not isinstance(source, FileSource) or spec.reader != "folders":
        return []
    if isinstance(source.store, FolderStore):
        root = Path(source.store.root)
        labels = label_file(root) if source.labelled and not subfolders(root) else None
        text = looks.unread(
            name
            for at, _, files in os.walk(root, followlinks=True)
            for name in files
            if not is_image_name(name) and Path(at, name) != labels
        )
        return [f"{part}: {text}"] if text else []
    if isinstance(source.store, PackStore) and len(source.store.files) == 1 and source.store.files[0].endswith(".zip"):
        inside = len(archive_sets.zip_members(Path(source.store.files[0]))[0])
        return (
            [f"{part}: {inside - len(source):,} images in the zip are not in its map"] if inside > len(source) else []
        )
    return []


def _counts(source: Source) -> str:
    text = f"{len(source):,} images"
    if source.labelled:
        each = np.bincount(source.labels, minlength=len(source.classes))
        text += f", {len(source.classes):,} classes of {each.min():,} to {each.max():,} images"
        text += "" if source.named else " (numbers without names)"
    elif source.targets is not None:
        text += f", {len(source.classes)} classes, {int((source.targets == 1).sum()):,} times present"
    else:
        text += ", unlabelled"
    if isinstance(source, FileSource) and len(source) and source.sizes.min() >= 0:
        text += f", {source.sizes.sum() / 2**20:,.1f} MiB"
    return text + f", fingerprint {source.fingerprint[:10]}"


def _images(source: Source, part: str, report: Report, seen: dict[bytes, tuple[str, str, str]], looked: Looks) -> None:
    """Decode all, find the same bytes twice (also across parts), count what is unusual."""
    odd: Counter[str] = Counter()
    digests: dict[int, bytes] = {}

    def attempt(i: int) -> tuple[int, str]:
        try:
            if isinstance(source, FileSource):
                data = source.raw(i)
                digests[i] = hashlib.blake2b(data, digest_size=12).digest()
                source.decoded(i)
                looked.each.append(found := looks.look(data))
                odd.update(_unusual(source.name(i), found.format))
            else:
                digests[i] = hashlib.blake2b(source.pixels(i).tobytes(), digest_size=12).digest()
        except UserError as error:
            return i, str(error)
        return i, ""

    twins: Counter[str] = Counter()
    for i, complaint in in_order(attempt, range(len(source)), f"checking {part}"):
        if complaint:
            report.problems.append(complaint)
        if (digest := digests.pop(i, None)) is None:
            continue
        here, file = f"{part}: {source.name(i)}", source.where(i) if isinstance(source, FileSource) else str(i)
        name, where, other = seen.setdefault(digest, (here, file, part))
        if where != file:  # the same file is in several parts of some sets: train and trainval
            twins[other] += 1
            report.notes.append(f"{here} is the same as {name}")
    report.notes += [f"{part}: {count:,} images {what}" for what, count in sorted(odd.items())]
    report.facts += looks.facts(looked)
    report.notes += looks.notes(looked)
    if twins:
        report.facts.append(f"  {part}: {twins.total():,} images have the bytes of an earlier one")
    if twins[part]:
        report.notes.append(
            f"{part}: {twins[part]:,} images are there twice or more: each counts as often in training and in a score"
        )
    for other, count in sorted(twins.items()):
        if other != part:
            report.notes.append(
                f"{part}: {count:,} of its {len(source):,} images are in {other} too: what is trained on one and judged on the other has seen them; "
                "remove them from one"
            )


def _unusual(name: str, form: str) -> list[str]:
    wanted = FORMATS.get(name.rpartition(".")[2].lower())
    return [] if wanted in (None, form) else [f"are {form} behind another extension"]


def _objects(source: DetectionSource, part: str, report: Report) -> None:
    def attempt(i: int) -> tuple[int, str]:
        try:
            source.objects(i)
        except UserError as error:
            return i, str(error)
        return i, ""

    report.problems += [c for _, c in in_order(attempt, range(len(source)), f"checking boxes of {part}") if c]
