"""python -m zoo data …: list, check, prepare, pack, shard, subset, make."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, writing
from .source import drawn

EXAMPLES = {
    "list": "list",
    "check": "check imagenet PATH --all",
    "prepare": "prepare imagenet-val PATH",
    "pack": "pack imagenet PATH --to FOLDER",
    "shard": "shard imagenet PATH --to FOLDER --per-shard 5000",
    "subset": "subset imagenet PATH --percent 1 --to one_percent.txt",
    "make": "make scenes --to FOLDER",
}


def register(subparsers: Any) -> None:
    """Add ``data`` and its commands; each sets ``func``, which returns an exit status."""
    parser = subparsers.add_parser(
        "data",
        help="check, make, pack and prepare data sets",
        description=__doc__,
        example="python -m zoo data check FOLDER",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, work: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        example = f"python -m zoo data {EXAMPLES[name]}"
        own: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, example=example)
        own.set_defaults(func=work)
        return own

    def add_source(own: argparse.ArgumentParser) -> None:
        own.add_argument("name", metavar="NAME", help="data set (`python -m zoo data list`), or the path of a folder")
        own.add_argument(
            "path", metavar="PATH", nargs="?", help="its folder; default: SELFZOO_DATA/NAME and known places"
        )

    add("list", _list, "every data set that is described, and whether it is on this machine")
    own = add(
        "check",
        _check,
        "read a whole data set and list everything that is wrong with it (exit status 1 if anything is)",
    )
    add_source(own)
    own.add_argument("--all", action="store_true", help="list every problem, not only the first 20")
    own = add("prepare", _prepare, "bring a download into the layout that is read")
    own.add_argument("what", choices=["imagenet-val"], help="imagenet-val: validation images into class folders")
    own.add_argument("path", metavar="PATH", type=Path, help="ImageNet's folder")
    own.add_argument(
        "--labels", type=Path, help="val_map.txt, LOC_val_solution.csv or the devkit; default: looked for in PATH"
    )
    for name, work, text in (
        ("pack", _pack, "write a data set as zip and map (PIC's ImageNet-Zip)"),
        ("shard", _shard, "write a data set as tar shards with an index"),
    ):
        own = add(name, work, text)
        add_source(own)
        own.add_argument("--to", type=Path, required=True, metavar="FOLDER")
        own.add_argument(
            "--split", action="append", help="default: every part that is there; may be given several times"
        )
        if name == "shard":
            own.add_argument("--per-shard", type=int, default=10_000, metavar="N", help="images in a shard (10,000)")
    own = add("subset", _subset, "write the names of a part of the training images; read it as split train@FILE")
    add_source(own)
    own.add_argument("--percent", type=float, required=True, help="of every class")
    own.add_argument("--to", type=Path, required=True, metavar="FILE")
    own.add_argument("--split", default="train")
    own.add_argument("--seed", type=int, default=0)
    own.add_argument("--published", action="store_true", help="ImageNet's 1 or 10 percent as SimCLR published them")
    own = add("make", _make, "compose a small detection, classification and segmentation set")
    own.add_argument("what", choices=["scenes"])
    own.add_argument("--format", default="both", choices=["coco", "voc", "both"])
    own.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    own.add_argument("--items", default="fashion_mnist", choices=["fashion_mnist", "digits"])
    own.add_argument("--images", type=int, default=1000)
    own.add_argument("--seed", type=int, default=0)


def _list(options: argparse.Namespace) -> int:
    from . import locate
    from .specs import load

    for name, spec in sorted(load().items()):
        splits = ", ".join(f"{s} {r.count:,}" if r.count else s for s, r in spec.splits.items())
        print(f"{name:32s} {locate.present(spec):12s} {spec.title}\n{'':45s} {splits}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from .check import check

    spec, root = _described(options)
    report = check(spec, root)
    print(report.text(most=10**9 if options.all else 20))
    return 1 if report.problems else 0


def _described(options: argparse.Namespace) -> tuple[Any, str | None]:
    from .specs import describe, is_path, load

    spec = describe(options.name)
    return spec, options.name if options.path is None and options.name not in load() and is_path(
        options.name
    ) else options.path


def _prepare(options: argparse.Namespace) -> int:
    from .prepare import imagenet_val

    new, old = imagenet_val(options.path, options.labels)
    print(f"{options.path / 'val'}: {new:,} images sorted, {old:,} were in place")
    print(f"next: python -m zoo data check imagenet {options.path}")
    return 0


def _each(options: argparse.Namespace) -> list[tuple[str, Any]]:
    """(split, source) of the splits asked for, or of every part that is there."""
    from .open import open_source
    from .source import FileSource

    spec, _ = _described(options)
    wanted = options.split or [split for split, rule in spec.splits.items() if rule.read]
    found, reasons = [], []
    for split in wanted:
        try:
            found.append((split, open_source(options.name, split, options.path)))
        except UserError as error:
            if options.split:
                raise
            reasons.append(str(error))
    if not found:
        raise UserError(reasons[0])
    if not isinstance(found[0][1], FileSource) or found[0][1].targets is not None:
        raise UserError(f"{options.name}: only sets of image files with one label each can be packed")
    return found


def _pack(options: argparse.Namespace) -> int:
    from .archive_sets import pack_zip

    for split, source in _each(options):
        if not source.labelled:
            raise UserError(f"{options.name}: a map needs labels, and {split} has none; use `data shard`")
        for path in pack_zip(source, options.to, split.partition("@")[0]):
            print(path)
    return 0


def _shard(options: argparse.Namespace) -> int:
    from .archive_sets import write_shards

    for split, source in _each(options):
        for path in write_shards(source, options.to, split.partition("@")[0], options.per_shard):
            print(path)
    return 0


def _subset(options: argparse.Namespace) -> int:
    from .open import open_source

    if not 0 < options.percent <= 100:
        raise UserError(f"--percent {options.percent:g}: expected more than 0 and at most 100")
    if options.published:
        if options.name != "imagenet" or options.percent not in (1, 10):
            raise UserError("--published: there are lists for 1 and 10 percent of imagenet only")
        source = open_source("imagenet", f"train_{options.percent:.0f}percent", options.path)
        names = [source.name(i) for i in range(len(source))]
    else:
        source = open_source(options.name, options.split, options.path)
        if not source.labelled:
            raise UserError(f"{options.name}: {options.split} has no labels to divide by")
        names = [source.name(i) for i in stratified(source, options.percent / 100, options.seed)]
    broken = next((name for name in names if len(name.splitlines()) != 1), None)
    if broken is not None:
        raise UserError(f"{options.name}: {broken!r}: a line cannot hold this name; rename the file")
    text = "".join(f"{name}\n" for name in names).encode("utf-8", "surrogateescape")
    with writing(options.to):
        options.to.parent.mkdir(parents=True, exist_ok=True)
        options.to.write_bytes(text)
    print(f"{options.to}: {len(names):,} of {options.name}'s images, sha256 {hashlib.sha256(text).hexdigest()}")
    print(f"next: use it as split {options.split}@{options.to}")
    return 0


def stratified(source: Any, fraction: float, seed: int) -> np.ndarray:
    """``fraction`` of every class, at least one image each, chosen by hashing ``seed`` and name; sorted positions."""
    rank = np.array([int.from_bytes(drawn(source.name(i), f"{seed} ")[:8], "big") for i in range(len(source))])
    chosen = []
    for label in range(len(source.classes)):
        members = np.flatnonzero(source.labels == label)
        keep = max(1, round(fraction * len(members))) if len(members) else 0
        chosen.append(members[np.argsort(rank[members], kind="stable")[:keep]])
    return np.sort(np.concatenate(chosen))


def _make(options: argparse.Namespace) -> int:
    from .open import make_scenes

    make_scenes(options.to, options.format, options.items, options.images, options.seed)
    forms = ("voc", "coco") if options.format == "both" else (options.format,)
    for form in forms:
        folder = options.to / form if options.format == "both" else options.to
        print(f"{folder}\nnext: python -m zoo data check {form} {folder}")
    return 0
