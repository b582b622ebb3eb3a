"""Sets in ImageNet's layout: <root>/<part>/<class>/<image>, or one plain folder of images."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from . import listing
from .access import Access
from .source import FileSource, FolderStore
from .specs import DatasetSpec


def read(spec: DatasetSpec, root: Path, part: str, access: Access) -> FileSource:
    """The images of ``part``; labelled by class folder unless the set is unlabelled or the folder holds no folders."""
    labelled = spec.options.get("labelled", True)
    folder = root / part
    if not folder.is_dir():
        generic = spec.classes is None
        if not (generic and part == "train") or any((root / p).is_dir() for p in ("train", "val", "test")):
            raise UserError(
                f"{root}: no folder {part}/ in it (found: {', '.join(listing.subfolders(root)[:8]) or 'no folders'})"
            )
        folder = root
    found = listing.by_class(folder) if labelled and listing.subfolders(folder) else listing.flat(folder)
    if not len(found.classes) and spec.classes is not None:
        raise UserError(f"{folder}: no class folders in it")
    store = FolderStore(folder, found.names)
    return FileSource(found.names, found.sizes, found.labels, found.classes, store, spec.channels)
