"""Sets with one label per image in ImageNet's layout, in whichever of its three forms is there.

    <root>/<part>/<class>/<image>          folders, as ImageFolder reads them
    <root>/<part>.zip, <part>_map.txt      PIC's ImageNet-Zip
    <root>/<part>-*.tar                    tar shards

<part> is any usual name of the part (zoo/data/parts.py).  A folder of plain images without folders in it is unlabelled.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from . import listing, parts, shards, zipmap
from .places import PartMissing
from .source import FileSource, FolderStore
from .specs import DatasetSpec


def read(spec: DatasetSpec, root: Path, part: str) -> FileSource:
    """The images of ``part``: as folders when there are any, else zip, else shards."""
    found_as = parts.find(root, part)
    name = found_as or part
    if found_as and spec.classes is None:
        parts.tell_unread(root)
    folder = root / name
    if shards.present(root, name) and not (folder.is_dir() and listing.subfolders(folder)):
        return shards.read(spec, root, name)
    if not folder.is_dir():
        if zipmap.present(root, name):
            return zipmap.read(spec, root, name)
        if parts.any_of(root) or spec.classes is not None or part != "train":
            inside = ", ".join(listing.subfolders(root)[:8]) or "no folders"
            raise PartMissing(f"{root}: no folder {part}/, no {part}.zip and no {part}-*.tar in it (found: {inside})")
        folder = root
    if spec.options.get("labelled", True) and listing.subfolders(folder):
        found = listing.by_class(folder)
    elif spec.classes is not None:
        raise UserError(f"{folder}: no class folders in it; {spec.prepare}")
    else:
        found = listing.flat(folder)
    store = FolderStore(folder, found.names)
    return FileSource(found.names, found.sizes, found.labels, found.classes, store, spec.channels)
