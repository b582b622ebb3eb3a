"""A protocol: one YAML file that says what is measured, on what, how hyper-parameters are chosen, and where it comes from.

``load("linear_digits", {"head.epochs": 20})`` gives the typed form with overrides applied; an unknown field or path is
an error with file, line and a suggestion. The settings under ``head`` belong to the evaluation file named by ``kind``,
which declares them as ``Head``, and what else it takes as ``KIND``. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from zoo import settings, yamlfile
from zoo.errors import UserError, choices, suggest
from zoo.schema import Strict

FOLDER = Path(__file__).parent / "protocols"
KINDS = Path(__file__).parent / "kinds"
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Whole = Annotated[float, Field(ge=1, multiple_of=1, allow_inf_nan=False)]


@dataclass(frozen=True)
class Kind:
    """What an evaluation file takes beside its ``Head``; a protocol that asks for anything else is refused.

    classifies  it trains classifiers, so that layer "output" is the network's classifier input; others compare features
    grid        names that ``grid`` may hold, and what their values may be;  needed: those that must be there
    selects     what settings may be chosen on;  metric: by which score
    forms       faithful, fast or both
    labelled    False: it measures images without labels, and the labels of the data set are not opened
    layers      "one" or "several" at once, or "none": it reads images only and takes the network as a whole
    """

    classifies: bool
    grid: Mapping[str, Any]
    needed: tuple[str, ...] = ()
    selects: tuple[str, ...] = ("none",)
    metric: str = "top1"
    forms: tuple[str, ...] = ("fast",)
    layers: Literal["one", "several", "none"] = "one"
    labelled: bool = True


class Splits(Strict):
    """Names of splits of the data set. ``train`` fits and selects, ``test`` is opened once selection has finished.

    fit   where training on ``train`` would include ``val``: the part that trials for selection are trained on
    """

    train: str = "train"
    fit: str | None = None
    val: str | None = None
    test: str = "test"


class Transform(Strict):
    """How an image becomes the network's input. pad, resize, crop: null where the model's own card decides.

    pad      black pixels around the image before anything else; a crop of the image's size undoes it, a random one does not
    train    views of the training images in the faithful form; the fast form sees each image once, as it tests
    test     one centre crop, or ten crops whose logits (or softmax) are averaged
    """

    pad: Annotated[int, Field(ge=0)] | None = None
    resize: Annotated[int, Field(ge=1)] | None = None
    crop: Annotated[int, Field(ge=1)] | None = None
    train: Literal["random_resized_crop", "random_crop", "centre"] = "random_resized_crop"
    test: Literal["centre", "ten_crop"] = "centre"
    average: Literal["logits", "softmax"] = "logits"
    scale: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None  # area of a random resized crop
    ratio: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None  # its aspect


class Select(Strict):
    """What hyper-parameters are chosen on: stratified ``folds`` of the training split, each of its images against all
    others (``leave_one_out``), a ``val`` split, or nothing; null: the first that the kind takes. rule: how folds are cut
    (splits.py)."""

    on: Literal["folds", "leave_one_out", "val", "none"] | None = None
    folds: Annotated[int, Field(ge=2)] = 5
    rule: Literal["stratified", "deepercluster"] = "stratified"
    metric: str = "top1"


class Protocol(Strict):
    """See the module docstring; fields in the order of a reader's questions."""

    id: str
    version: Annotated[int, Field(ge=1)]
    kind: str
    title: str
    dataset: str
    splits: Splits = Splits()
    transform: Transform = Transform()
    layers: Annotated[list[str], Field(min_length=1, default_factory=lambda: ["output"])]
    pool: str | dict[str, str] = "avg"
    head: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, list[float]] = Field(default_factory=dict)
    select: Select = Select()
    metrics: Annotated[list[str], Field(min_length=1)]
    form: Literal["faithful", "fast"] = "fast"
    seeds: Annotated[int, Field(ge=1)] = 1
    source: str
    differs_from: dict[str, str] = Field(default_factory=dict)

    @field_validator("grid", mode="before")
    @classmethod
    def _numbers(cls, grid: Any) -> Any:
        """``lr: 0.3`` is a grid of one."""
        if not isinstance(grid, dict):
            return grid
        lists = {k: v if isinstance(v, list) else [v] for k, v in grid.items()}
        return {k: [float(x) if isinstance(x, int) else x for x in v] for k, v in lists.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        if any(not values for values in self.grid.values()):
            raise ValueError("grid: every list needs at least one value")
        if self.select.on == "val" and self.splits.val is None:
            raise ValueError("select.on is val, and splits.val names no split")
        if self.select.on == "none" and any(len(values) > 1 for values in self.grid.values()):
            raise ValueError("a grid of several values needs select.on: folds or val")
        return self

    @property
    def name(self) -> str:
        return f"{self.id}@{self.version}"


@lru_cache(maxsize=1)
def kinds() -> list[str]:
    """Every evaluation: a file of evaluations/kinds/."""
    return sorted(path.stem for path in KINDS.glob("*.py") if path.stem != "__init__")


def module_of(kind: str) -> Any:
    """The module evaluations/kinds/<kind>.py: the settings of its ``head`` (``Head``), itself (``KIND``), ``plan``, ``check``
    and ``run``."""
    return import_module(f".kinds.{kind}", __package__)


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


def names(pattern: str = "*") -> list[str]:
    """Ids of all protocols that match a shell pattern."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml") if fnmatchcase(p.stem, pattern))


def load(name: str, overrides: Mapping[str, Any] | None = None) -> Protocol:
    """A protocol by id with dotted paths set. Raises UserError with file:line, the value and a suggestion."""
    if name not in names():
        raise UserError(f"no protocol {name!r}{suggest(name, names()) or ';'} python -m evaluations list shows all")
    protocol = _read(name)
    if not overrides:
        return protocol
    fixed = {"id", "version", "kind", "source", "title"} & {path.split(".")[0] for path in overrides}
    if fixed:
        raise UserError(f"{min(fixed)} says what a protocol is; write another file below evaluations/protocols/")
    tree = settings.apply(_listed(complete(protocol).model_dump()), overrides, free=("grid",))
    given = ", ".join(f"{path}={value}" for path, value in overrides.items())
    protocol = _check(tree, name, given)
    head_of(protocol, given)
    return protocol


@lru_cache(maxsize=256)
def _read(name: str) -> Protocol:
    return _check(_inherited(name), name)


def _inherited(name: str) -> dict[str, Any]:
    """The file's mapping, over that of the protocol that it is ``like`` (zoo.settings.read_like)."""
    tree = yamlfile.load_mapping(path_of(name))
    if tree.get("id") != name:
        raise UserError(
            f"{_place(name, ['id'])}: id {tree.get('id')!r} in a file named {name}.yaml; the two must agree"
        )
    if "like" not in tree:
        return tree
    above = tree["like"]
    if above not in names() or above == name:
        raise UserError(f"{_place(name, ['like'])}: no protocol {above!r} to be like{suggest(str(above), names())}")
    base = yamlfile.load_mapping(path_of(above))
    if "like" in base:
        raise UserError(
            f"{_place(name, ['like'])}: {above} is itself like {base['like']}; one level is allowed: name that one"
        )
    return settings.read_like(path_of(name))


def _check(tree: dict[str, Any], name: str, given: str | None = None) -> Protocol:
    try:
        protocol = Protocol.model_validate(tree)
    except ValidationError as error:
        raise _complaint(error, Protocol, name, (), given) from None
    if protocol.kind not in kinds():
        raise UserError(f"{_place(name, ['kind'])}: no evaluation {protocol.kind!r}{choices(protocol.kind, kinds())}")
    return protocol


def kind_of(protocol: Protocol) -> Kind:
    found: Kind = module_of(protocol.kind).KIND
    return found


def seeded(protocol: Protocol) -> bool:
    """Whether ``seeds`` repeats the measurement: yes, unless the kind's own ``seeded(protocol)`` says otherwise."""
    asked = getattr(module_of(protocol.kind), "seeded", None)
    return asked is None or bool(asked(protocol))


def head_of(protocol: Protocol, given: str | None = None) -> Any:
    """The typed ``Head`` of the protocol's evaluation file. Raises UserError for what that file does not take.

    given   the overrides, as the place to name in errors; None: the protocol's file
    """
    module = module_of(protocol.kind)
    _permitted(protocol, module.KIND, given)
    try:
        return module.Head.model_validate(protocol.head)
    except ValidationError as error:
        raise _complaint(error, module.Head, protocol.id, ("head",), given) from None


def _permitted(protocol: Protocol, kind: Kind, given: str | None) -> None:
    def refuse(keys: list[str], problem: str) -> UserError:
        return UserError(f"{given or _place(protocol.id, keys)}: {problem}")

    for name, values in protocol.grid.items():
        if name not in kind.grid:
            raise refuse(["grid", name], f"{protocol.kind} has no grid.{name}{choices(name, kind.grid)}")
        for value in values:
            try:
                TypeAdapter(kind.grid[name]).validate_python(value)
            except ValidationError as error:
                raise refuse(["grid", name], f"grid.{name}={value:g}: {error.errors()[0]['msg']}") from None
    for name in kind.needed:
        if name not in protocol.grid:
            raise refuse(["grid"], f"grid.{name} is missing; {protocol.kind} needs at least one value")
    select = protocol.select
    if select.on is not None and select.on not in kind.selects:
        raise refuse(["select"], f"select.on={select.on}: {protocol.kind} takes {' or '.join(kind.selects)}")
    if select.on not in (None, "none") and select.metric != kind.metric:
        raise refuse(["select"], f"select.metric={select.metric}: {protocol.kind} chooses by {kind.metric}")
    if protocol.form not in kind.forms:
        raise refuse(["form"], f"form={protocol.form}: {protocol.kind} is {' or '.join(kind.forms)}")
    if protocol.form == "fast" and protocol.transform.test != "centre":
        raise refuse(["transform"], f"transform.test={protocol.transform.test}: the fast form has one view: centre")


def complete(protocol: Protocol) -> Protocol:
    """The protocol with the defaults of its kind written out, so that each is a path that can be set."""
    select = protocol.select.model_copy(update={"on": protocol.select.on or kind_of(protocol).selects[0]})
    chosen = protocol.model_copy(update={"select": select})
    return chosen.model_copy(update={"head": head_of(chosen).model_dump()})


def _complaint(
    error: ValidationError, kind: Any, name: str, above: tuple[str, ...], given: str | None = None
) -> UserError:
    # A misspelled field is also a missing one: the misspelling is what to tell.
    problem = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    keys = [*above, *(k for k in problem["loc"] if not (isinstance(k, str) and ("[" in k or k in ("str", "dict"))))]
    place = given or _place(name, keys)
    path = ".".join(map(str, keys)) or "the whole"
    if problem["type"] == "extra_forbidden":
        known = _fields(kind, list(problem["loc"][:-1]))
        return UserError(f"{place}: unknown field {path!r}{choices(str(keys[-1]), known)}")
    if problem["type"] == "missing":
        return UserError(f"{place}: {path} is missing")
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if problem["type"] == "value_error" else f" is {yamlfile.describe(problem['input'])}"
    return UserError(f"{place}: {path}{shown}: {message}")


def _fields(kind: Any, loc: list[Any]) -> list[str]:
    for part in loc:
        kind = kind.model_fields[part].annotation
    return list(kind.model_fields)


def _place(name: str, keys: list[Any]) -> str:
    where = yamlfile.locate(path_of(name), keys) or (1, 1)
    return f"evaluations/protocols/{name}.yaml:{where[0]}:{where[1]}"


def _listed(value: Any) -> Any:
    """Tuples as lists, as YAML has them."""
    if isinstance(value, dict):
        return {k: _listed(v) for k, v in value.items()}
    return [_listed(v) for v in value] if isinstance(value, (list, tuple)) else value
