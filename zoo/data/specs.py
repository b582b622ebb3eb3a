"""What is known about each data set: zoo/datasets.yaml, typed, with errors that name file and line."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from .. import yamlfile
from ..errors import UserError, suggest
from ..schema import Strict

FILE = Path(__file__).parents[1] / "datasets.yaml"
LISTS = Path(__file__).parent / "splits"
_HEX = r"^[0-9a-f]{64}$"


class SplitRule(Strict):
    """Which images a split holds: ``read`` names one of the reader's own parts, everything else cuts one of those.

    of           the split that this one is a part of, with exactly one of
    listed       file in zoo/data/splits with positions in the reader's part, one a line
    range        [first, last) positions in the reader's part
    without      everything of ``of`` that is not in this other split
    per_class    so many images of each class, chosen by hashing their names
    names        published list of file names, one a line: in the data folder, or downloaded from ``url``; ``sha256`` is checked
    count        the number of images when the set is complete; null: not fixed
    about        the number of images to plan with where it is not fixed: as many as the authors had
    holds        other splits whose images are among these, where the reader's parts overlap (trainval)
    """

    read: str | None = None
    of: str | None = None
    listed: str | None = None
    range: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)] | None = None
    without: str | None = None
    per_class: Annotated[int, Field(ge=1)] | None = None
    names: str | None = None
    url: str | None = None
    sha256: Annotated[str, Field(pattern=_HEX)] | None = None
    count: Annotated[int, Field(ge=1)] | None = None
    about: Annotated[int, Field(ge=1)] | None = None
    holds: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_rule(self) -> SplitRule:
        ways = [w for w in ("listed", "range", "without", "per_class", "names") if getattr(self, w) is not None]
        if (self.read is None) == (self.of is None):
            raise ValueError("give exactly one of read and of")
        if self.of is not None and len(ways) != 1 or self.read is not None and ways:
            raise ValueError(
                f"`of` goes with exactly one of listed, range, without, per_class, names; found {ways or 'none'}"
            )
        if (self.names is None) != (self.sha256 is None):
            raise ValueError("names and sha256 belong together")
        return self


class DatasetSpec(Strict):
    """One data set.

    classes    class names, or just their number, or null when that depends on the folder
    size       [height, width] of every image, or null when they differ
    mean, std  per channel, for pixels in 0..1
    reader     the layout family that reads it (``READERS`` in zoo/data/open.py)
    options    settings of that reader
    origin     where it comes from; prepare: how this project finds or prepares it
    """

    name: str
    title: str
    reader: str
    options: dict[str, Any] = Field(default_factory=dict)
    classes: list[str] | Annotated[int, Field(ge=1)] | None
    channels: Literal[1, 3]
    size: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)] | None
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]
    splits: Annotated[dict[str, SplitRule], Field(min_length=1)]
    licence: str
    origin: str
    prepare: str
    folders: list[str] = Field(default_factory=list)  # places on the system where a package may have put it
    download: bool = False  # through torchvision, when nothing was found
    made: bool = False  # composed by this project, when nothing was found
    embedded: bool = False  # comes with an installed package; no folder is ever read

    @model_validator(mode="after")
    def _consistent(self) -> DatasetSpec:
        for field in ("mean", "std"):
            if len(getattr(self, field)) != self.channels:
                raise ValueError(f"{field} has {len(getattr(self, field))} values for {self.channels} channels")
        for split, rule in self.splits.items():
            for other in (rule.of, rule.without, *rule.holds):
                if other is not None and other not in self.splits:
                    raise ValueError(f"split {split!r} refers to {other!r}, which is not a split")
            self.part(split)
        return self

    @property
    def class_count(self) -> int | None:
        return len(self.classes) if isinstance(self.classes, list) else self.classes

    def covers(self, split: str) -> set[str]:
        """The reader's own parts of which ``split`` has images: its own, and where parts overlap those that it holds."""
        held = self.splits[split].holds
        return {self.part(split)}.union(*(self.covers(other) for other in held))

    def part(self, split: str) -> str:
        """The reader's own part that ``split`` is cut from."""
        seen = [split]
        while (rule := self.splits[seen[-1]]).read is None:
            if rule.of in seen:
                raise ValueError(f"splits {' -> '.join([*seen, str(rule.of)])} are cut from each other")
            seen.append(str(rule.of))
        return rule.read


@lru_cache(maxsize=4)
def load(path: Path = FILE) -> dict[str, DatasetSpec]:
    """All data sets of a file by name.  Raises UserError with file, line, the value and a suggestion."""
    specs = {}
    for name, fields in yamlfile.load_mapping(path).items():
        if not isinstance(fields, dict):
            raise UserError(f"{_place(path, [name])}: {name}: expected fields, found {yamlfile.describe(fields)}")
        try:
            specs[name] = DatasetSpec(name=name, **fields)
        except ValidationError as error:
            raise UserError("\n".join(_complaint(path, name, e) for e in error.errors())) from None
        except TypeError:
            raise UserError(f"{_place(path, [name, 'name'])}: {name}: the name is the key, not a field") from None
    return specs


def _place(path: Path, keys: list[str | int]) -> str:
    found = yamlfile.locate(path, keys)
    return f"{path.name}:{found[0]}:{found[1]}" if found else path.name


def _complaint(path: Path, name: str, error: Any) -> str:
    keys = [k for k in error["loc"] if not (isinstance(k, str) and ("[" in k or k in ("int", "list")))]
    hint = ""
    if error["type"] == "extra_forbidden":
        known = SplitRule.model_fields if "splits" in keys else DatasetSpec.model_fields
        hint = suggest(str(keys[-1]), [k for k in known if k != "name"])
    given = "" if error["type"] in ("missing", "value_error") else f" (given: {error['input']!r})"
    message = error["msg"].removeprefix("Value error, ")
    return f"{_place(path, [name, *keys])}: {'.'.join(map(str, [name, *keys]))}: {message}{given}{hint}"


def names() -> list[str]:
    """All data sets that datasets.yaml describes."""
    return sorted(load())


def describe(name: str) -> DatasetSpec:
    """The description of a data set.  A path to a folder is described as ``folder`` is."""
    specs = load()
    if name in specs:
        return specs[name]
    if is_path(name):
        return specs["folder"]
    if Path(name).is_dir():
        raise UserError(f"unknown data set {name!r}; for the folder of that name say ./{name}")
    raise UserError(
        f"unknown data set {name!r}{suggest(name, specs) or ';'} there are {', '.join(sorted(specs))}, or the path of a folder"
    )


def is_path(name: str) -> bool:
    return "/" in name or name in (".", "..") or name.startswith("~")
