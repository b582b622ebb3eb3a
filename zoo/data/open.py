"""The front door: a data set by name, found on this machine, cut to a split, checked, and closed while it is sealed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import UserError, suggest
from ..files import exclusive
from . import arrays, coco, folders, locate, scene_files, seal, voc, yfcc
from .archives import Access
from .bad_images import limit, without_bad_images
from .source import FileSource, Source, drawn
from .specs import LISTS, DatasetSpec, describe

READERS: dict[str, Callable[..., Source]] = {
    "digits": arrays.read_digits,
    "idx": arrays.read_idx,
    "torchvision": arrays.read_torchvision,
    "folders": folders.read_folders,
    "listed": folders.read_listed,
    "voc": voc.read,
    "coco": coco.read,
    "yfcc": yfcc.read,
}


def open_source(
    name: str,
    split: str = "train",
    root: str | Path | None = None,
    *,
    cache: str | None = None,
    share: tuple[int, int] | None = None,
    max_bad: int | None = None,
    fetch: bool = True,
) -> Source:
    """The images of ``split`` of data set ``name`` (a name in datasets.yaml, or the path of a folder of images).

    split    a split of the data set, or ``train@FILE``: the images of ``train`` that a file names, one a line
    root     folder that holds the data; else SELFZOO_DATA/<name>, folders known to the system, a download are tried
    cache    of packed sets: no, part or full (zoo/data/archives.py); default: the variable SELFZOO_CACHE, else no
    share    (process, processes) for cache=part; default: this process among those of the node
    max_bad  how many missing or unreadable images may be left out (a recipe's setting); 0: the first one is an error.
             A limit above 0 reads every image once and remembers the result.  Default: SELFZOO_MAX_BAD, else 0
    fetch    False: neither download nor compose anything (for plans); DataMissing instead
    Raises UserError (unknown name or split, nothing found, incomplete or faulty data), SealedError (zoo.data.sealed).
    """
    spec = describe(name)
    split, _, chosen_file = split.partition("@")
    if split not in spec.splits:
        raise UserError(
            f"{name}: no split {split!r}{suggest(split, spec.splits) or ';'} there are {', '.join(spec.splits)}"
        )
    if chosen_file and not Path(chosen_file).is_file():
        raise UserError(f"{name}: split {split}@{chosen_file}: no such file of names, one a line")
    allowed = limit(max_bad)
    seal.permit(spec.name, split)
    if spec.name == "folder" and name != spec.name:
        if root is not None:
            raise UserError(f"{name}: the data set is a path already; leave out data={root}")
        root = name
    folder = locate.find(spec, root, fetch)
    if spec.made and folder == locate.scenes(spec) and not (folder / "scenes.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(folder.with_suffix(".lock")):  # the first process that wants them makes them
            make_scenes(folder, str(spec.options["format"]), str(spec.options["items"]))
    access = Access.of(cache, share)
    source = read_part(spec, folder, spec.part(split), allowed)
    chosen = positions(spec, split, source, folder, fetch)
    _refuse_overlap(spec, split, source, folder, chosen)
    if chosen is not None:
        source = source.subset(chosen)
        wanted = spec.splits[split].count
        if wanted is not None and len(source) != wanted and not allowed:
            raise UserError(f"{name}: split {split!r} has {len(source):,} images, expected {wanted:,}")
    if chosen_file:
        source = source.subset(by_names(Path(chosen_file), source))
    if isinstance(source, FileSource) and access.mode != "no":
        from .memory import in_memory

        source = in_memory(source, access)
    source.dataset, source.split, source.home = spec.name, split, "" if folder is None else str(folder)
    return source


def make_scenes(folder: Path, form: str, items: str = "fashion_mnist", images: int = 1000, seed: int = 0) -> Path:
    """Compose ``images`` scenes below ``folder``; form: voc, coco or both (then in folder/voc and folder/coco).

    items: the data set whose images are laid out, fashion_mnist or digits.  A folder that the same recipe has made is left
    as it is; any other folder with something in it is a UserError.
    """
    return scene_files.make(folder, form, items, images, seed, open_source)


def read_part(spec: DatasetSpec, folder: Path | None, part: str, max_bad: int = 0, check: bool = True) -> Source:
    """One of the reader's own parts, whole; ``check`` its length and its empty or unreadable files."""
    if spec.reader not in READERS:
        raise UserError(f"datasets.yaml: {spec.name}: no reader {spec.reader!r}{suggest(spec.reader, READERS)}")
    source = READERS[spec.reader](spec, folder, part)
    expected = next((rule.count for rule in spec.splits.values() if rule.read == part), None)
    wanted = spec.class_count
    if wanted is not None and len(source.classes) not in (0, wanted):
        raise UserError(
            f"{folder}: found {len(source.classes)} classes, {spec.name} has {wanted};"
            " for another set in this layout use data set 'folder'"
        )
    return without_bad_images(source, f"{spec.name}/{part}", expected, max_bad) if check else source


def positions(
    spec: DatasetSpec, split: str, source: Source, folder: Path | None, fetch: bool = True
) -> np.ndarray | None:
    """Positions of ``split`` within the reader's part ``source``; None when the split is the whole part."""
    rule = spec.splits[split]
    if rule.of is None:
        return None
    everything = np.arange(len(source))
    outer = everything if (found := positions(spec, rule.of, source, folder, fetch)) is None else found
    if rule.without is not None:
        inner = positions(spec, rule.without, source, folder, fetch)
        return outer[~np.isin(outer, everything if inner is None else inner)]
    if rule.per_class is not None:
        return _per_class(source, outer, rule.per_class)
    if rule.names is not None:
        return by_names(locate.published_list(spec, rule, folder, fetch), source)
    if rule.range is not None:
        listed = np.arange(*rule.range)
    else:
        listed = np.loadtxt(LISTS / str(rule.listed), dtype=np.int64, comments="#", ndmin=1)
    stray = listed[~np.isin(listed, outer)]
    if len(stray):
        raise UserError(
            f"{spec.name}: position {stray[0]} of split {split!r} is not in {rule.of!r} ({len(source)} images)"
        )
    return listed


def _refuse_overlap(
    spec: DatasetSpec, split: str, source: Source, folder: Path | None, chosen: np.ndarray | None
) -> None:
    """A split that holds images of a sealed split is sealed too."""
    for other, rule in spec.splits.items():
        if other == split or not seal.is_sealed(spec.name, other):
            continue
        if other in spec.splits[split].holds or split in rule.holds:
            raise seal.SealedError(f"{spec.name}: split {split!r} holds images of {other!r}, which is sealed")
        if spec.part(other) != spec.part(split):
            continue
        theirs = positions(spec, other, source, folder)
        if chosen is None or theirs is None or np.intersect1d(chosen, theirs).size:
            raise seal.SealedError(f"{spec.name}: split {split!r} holds images of {other!r}, which is sealed")


def _per_class(source: Source, outer: np.ndarray, count: int) -> np.ndarray:
    """``count`` images of every class, those whose names hash lowest: the same choice wherever the names are the same."""
    labels = source.labels[outer]
    order = sorted(range(len(outer)), key=lambda j: drawn(source.name(int(outer[j]))))
    chosen: list[int] = []
    left = dict.fromkeys(range(len(source.classes)), count)
    for j in order:
        if left.get(int(labels[j]), 0):
            left[int(labels[j])] -= 1
            chosen.append(int(outer[j]))
    short = [source.classes[k] for k, n in left.items() if n]
    if short:
        raise UserError(f"class {short[0]}: fewer than {count} images to choose from ({len(short)} such classes)")
    return np.sort(np.array(chosen, dtype=np.int64))


def by_names(path: Path, source: Source) -> np.ndarray:
    """Positions of the images that ``path`` names, one a line: by their names in the source, or by their file names alone."""
    try:
        wanted = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    where = {source.name(i): i for i in range(len(source))}
    if not all(n in where for n in wanted):
        alone = [n.rpartition("/")[2] for n in where]
        if len(set(alone)) == len(alone):
            where = dict(zip(alone, where.values(), strict=True))
    for number, name in enumerate(wanted, 1):
        if name not in where:
            missing = sum(n not in where for n in wanted)
            raise UserError(
                f"{path}:{number}: {name!r} is not in {source.dataset or 'the data set'} ({missing} such lines)"
            )
    if len(set(wanted)) != len(wanted):
        raise UserError(f"{path}: names an image twice")
    return np.array([where[n] for n in wanted], dtype=np.int64)
