"""A small zoo for the tests of this room: entries with just the fields that tables ask for."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace

from results.published import Catalogue
from zoo.errors import UserError
from zoo.schema import Published

AUTHORS = {"protocol": "linear_big", "metric": "top1", "source": "authors/code:README.md"}


def entry(name: str, backbone: str = "tiny", published: tuple[dict, ...] = (), epochs: int = 100) -> SimpleNamespace:
    facts = [Published(**fact) for fact in published]
    recipe = SimpleNamespace(schedule=SimpleNamespace(epochs=epochs), batch=64, params={"heads": 3})
    return SimpleNamespace(
        id=name, title=name.upper(), backbone=backbone, recipe=recipe, published=facts, file="zoo/fake.yaml", line=7
    )


ZOO = {
    e.id: e
    for e in (
        entry("swav_big", published=({**AUTHORS, "value": 75.3},)),
        entry(
            "moco_big", published=({**AUTHORS, "value": 71.0, "origin": "quoted", "by": "the SwAV paper"},), epochs=200
        ),
        entry("pixels_digits", backbone="pixels"),
        entry("random_digits"),
        entry("swav_digits"),
        entry("simclr_digits"),
    )
}


def catalogue(folder: Path, mapped: str = "facts: []\n", external: str = "rows: {}\nfacts: []\n") -> Catalogue:
    """A Catalogue over ZOO with its two files written into ``folder``."""
    (folder / "published_map.yaml").write_text(mapped)
    (folder / "published_external.yaml").write_text(external)

    def find(name: str) -> SimpleNamespace:
        if name not in ZOO:
            raise UserError(f"unknown model {name!r}")
        return ZOO[name]

    return Catalogue(
        entry=find,
        models=lambda pattern="*": [n for n in ZOO if fnmatchcase(n, pattern)],
        map_file=folder / "published_map.yaml",
        external_file=folder / "published_external.yaml",
    )
