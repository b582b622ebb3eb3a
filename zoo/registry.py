"""The registry: one YAML file per method, one level of inheritance, no torch.

    method <- profile <- model <- command line        mappings merge; lists and values replace

A mapping with another ``name`` (backbone, optimizer, schedule) starts afresh, so that no setting of the one survives
in the other.  ``recipe: null`` and ``weights: null`` say that nobody released them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import overrides as _overrides
from .errors import UserError, suggest
from .yamlfile import describe, load_mapping, locate

if TYPE_CHECKING:
    from .schema import Entry, Recipe

HERE = Path(__file__).parent
_INHERITED = ("backbone", "input", "network", "layouts", "recipe")


@dataclass(frozen=True)
class Layer:
    """One source of settings: its values, and where they stand for the sake of messages."""

    values: dict[str, Any]
    file: Path | None = None
    at: tuple[str, ...] = ()


@dataclass
class Registry:
    """All method files of a folder and its profiles; reading is lazy and happens once."""

    root: Path = HERE
    _methods: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    _models: dict[str, str] = field(default_factory=dict, repr=False)
    _aliases: dict[str, str] = field(default_factory=dict, repr=False)
    _profiles: dict[str, Any] = field(default_factory=dict, repr=False)
    _entries: dict[str, Entry] = field(default_factory=dict, repr=False)

    def file(self, method: str) -> Path:
        return self.root / "methods" / f"{method}.yaml"

    def read(self) -> Registry:
        """Read every file and index the names; raises on a broken file, a name given twice, a file of another name."""
        if self._methods:
            return self
        methods: dict[str, dict[str, Any]] = {}
        for path in sorted((self.root / "methods").glob("*.yaml")):
            content = load_mapping(path)
            if content.get("method") != path.stem:
                raise UserError(
                    f"{self._place(path, ('method',))}: method {describe(content.get('method'))} "
                    f"in a file named {path.name}; the two must agree"
                )
            if not isinstance(content.get("models"), dict):
                raise UserError(f"{self._place(path, ('models',))}: models must be a mapping of ids")
            methods[path.stem] = content
        self._index(methods)
        profiles = self.root / "profiles.yaml"
        self._profiles = load_mapping(profiles) if profiles.exists() else {}
        self._methods = methods
        return self

    def _index(self, methods: dict[str, dict[str, Any]]) -> None:
        owner: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._models, self._aliases = {}, {}
        for method, content in methods.items():
            for model, values in content["models"].items():
                names: list[tuple[str, tuple[str, ...]]] = [(model, ("models", model))]
                aliases = values.get("aliases") if isinstance(values, dict) else None
                for alias in aliases if isinstance(aliases, list) else []:
                    names.append((str(alias), ("models", model, "aliases")))
                for name, keys in names:
                    if name in owner:
                        other = self._place(self.file(owner[name][0]), owner[name][1])
                        place = self._place(self.file(method), keys)
                        raise UserError(f"{place}: the name {name!r} is already taken at {other}")
                    owner[name] = (method, keys)
                self._models[model] = method
                self._aliases.update({alias: model for alias, _ in names[1:]})

    # ------------------------------------------------------------ queries

    def models(self, pattern: str = "*", method: str | None = None) -> list[str]:
        """Ids that match a shell pattern (or an alias that does), sorted so that 400ep follows 200ep."""
        self.read()
        if method is not None and method not in self._methods:
            raise UserError(f"no method {method!r}{suggest(method, self._methods)}; see python -m zoo list")
        by_alias = {model for alias, model in self._aliases.items() if fnmatchcase(alias, pattern)}
        found = [m for m in self._models if fnmatchcase(m, pattern) or m in by_alias]
        return sorted((m for m in found if method in (None, self._models[m])), key=natural)

    def methods(self) -> list[str]:
        return sorted(self.read()._methods)

    def aliases(self) -> dict[str, str]:
        """Alias -> id."""
        return dict(sorted(self.read()._aliases.items()))

    def profiles(self) -> list[str]:
        return sorted(self.read()._profiles)

    def raw(self, model: str) -> dict[str, Any]:
        """What the file says of a model, uninherited and unchecked."""
        return self.read()._methods[self._models[model]]["models"][model] or {}

    def method(self, name: str) -> dict[str, Any]:
        """What the file says of a method, unchecked."""
        self.models(method=name)
        return self._methods[name]

    def find(self, name: str) -> str:
        """The id behind an id or alias; UserError with the nearest name."""
        self.read()
        if name in self._models:
            return name
        if name in self._aliases:
            return self._aliases[name]
        hint = suggest(name, [*self._models, *self._aliases])
        raise UserError(f"no model {name!r}{hint}; python -m zoo list shows all")

    def entry(self, name: str) -> Entry:
        """The model, inherited and checked.  Raises UserError with file, line and column."""
        model = self.find(name)
        if model not in self._entries:
            self._entries[model] = self._build(model)
        return self._entries[model]

    def resolve(self, name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
        """The model's recipe with ``{"optimizer.lr": 0.1}`` applied."""
        entry = self.entry(name)
        if entry.recipe is None:
            raise UserError(f"{entry.id}: nobody released its recipe, so it cannot be reproduced (python -m zoo show {entry.id})")
        return self.change(entry.recipe, overrides or {})

    def change(self, recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
        """A recipe with dotted paths set; UserError for an unknown path or an impossible value."""
        if not overrides:
            return recipe
        tree = _overrides.apply(recipe.dump(), overrides, free=("backbone.options",))
        if tree["method"] != recipe.method:
            raise UserError(f"method={tree['method']}: another method is another model; see python -m zoo list")
        _follow(tree, recipe.dump(), overrides)
        given = ", ".join(f"{path}={value}" for path, value in overrides.items())
        return self._recipe(tree, [Layer(tree)], given)

    def load_recipe(self, path: str | Path) -> Recipe:
        """A ``recipe.yaml`` as ``Recipe.dump`` wrote it, checked like any other."""
        return self._recipe(load_mapping(path), [Layer(load_mapping(path), Path(path))], str(path))

    # ------------------------------------------------------------ building

    def _build(self, model: str) -> Entry:
        from .schema import Entry, MethodFile, ModelFields, Profile, Weights

        method = self._models[model]
        file, content = self.file(method), self._methods[method]
        own = content["models"][model]
        own = {} if own is None else own
        top = self._check(MethodFile, content, [Layer(content, file)], method)
        fields = self._check(ModelFields, own, [Layer(own, file, ("models", model))], model)
        layers = [Layer({k: content[k] for k in _INHERITED if k in content}, file)]
        if fields.profile is not None:
            layers.append(self._profile_layer(fields.profile, file, model))
            self._check(Profile, layers[-1].values, layers[-1:], fields.profile)
        layers.append(Layer({k: own[k] for k in _INHERITED if k in own}, file, ("models", model)))
        merged = merge_layers(layers)
        for need in ("backbone", "input"):
            if merged.get(need) is None:
                raise UserError(f"{self._place(file, ('models', model))}: {model} has no {need}, nor has its method or profile")
        license = top.code.license if top.code else None
        layouts = merged.get("layouts") or []
        recipe = merged.get("recipe")
        if recipe is not None:
            recipe = {"method": method, **{k: merged[k] for k in ("backbone", "input")}, "layouts": layouts, **recipe}
        values = {
            "id": model,
            "method": method,
            "title": fields.title or "",
            "aliases": fields.aliases,
            "paper": top.paper,
            "code": top.code,
            "status": "published only",
            "since": fields.since,
            "notes": [*top.notes, *fields.notes],
            "dataset": fields.dataset or (recipe or {}).get("dataset") or top.dataset,
            "backbone": merged["backbone"],
            "input": merged["input"],
            "network": merged.get("network"),
            "layouts": layouts,
            "recipe": None,
            "weights": _released(fields.weights, layouts, license),
            "heads": {name: _released(head, None, license) for name, head in fields.heads.items()},
            "pseudolabels": _released(fields.pseudolabels, None, license),
            "published": fields.published,
            "profile": fields.profile,
            "file": f"zoo/methods/{file.name}",
            "line": (locate_quick(file, model) or 1),
        }
        values["recipe"] = self._recipe(recipe, layers, model, inner=True) if recipe is not None else None
        values["status"] = _status(fields.status, fields.weights, recipe)
        entry: Entry = self._check(Entry, values, layers, model)
        if not entry.title:
            entry = entry.model_copy(update={"title": _title(top.title, entry)})
        for problem in contradictions(entry):
            raise UserError(f"{self._blame(layers, problem.keys)}: {problem.text}")
        assert entry.weights is None or isinstance(entry.weights, Weights)
        return entry

    def _profile_layer(self, profile: str, file: Path, model: str) -> Layer:
        if profile not in self._profiles:
            place = self._place(file, ("models", model, "profile"))
            raise UserError(f"{place}: no profile {profile!r}{suggest(profile, self._profiles)}")
        return Layer(self._profiles[profile], self.root / "profiles.yaml", (profile,))

    def _recipe(self, tree: dict[str, Any], layers: list[Layer], what: str, inner: bool = False) -> Recipe:
        """Check a recipe; ``inner``: the layers hold it under ``recipe:``, as the registry's files do."""
        from .schema import Recipe

        recipe: Recipe = self._check(Recipe, tree, layers, what, ("recipe",) if inner else ())
        params = self._check_params(recipe, layers, ("recipe", "params") if inner else ("params",), what)
        return recipe.model_copy(update={"params": params})

    def _check_params(self, recipe: Recipe, layers: list[Layer], at: tuple[str, ...], what: str) -> dict[str, Any]:
        from .params import check_params
        from .schema import MethodFile

        if recipe.method not in self.read()._methods:
            raise UserError(
                f"{self._blame(layers, ('method',)) or what}: no method {recipe.method!r}"
                f"{suggest(recipe.method, self._methods)}"
            )
        content = self._methods[recipe.method]
        top = self._check(MethodFile, content, [Layer(content, self.file(recipe.method))], recipe.method)
        defaults = ((content.get("recipe") or {}).get("params")) or {}

        def fail(keys: tuple[str | int, ...], message: str) -> UserError:
            return UserError(f"{self._blame(layers, (*at, *keys)) or what}: {message}")

        return check_params(recipe.params, defaults, top.params_spec, fail)

    # ------------------------------------------------------------ messages

    def _check(self, kind: Any, values: Any, layers: list[Layer], what: str, inside: tuple[str, ...] = ()) -> Any:
        """``kind(values)``, with pydantic's complaints turned into one UserError that says where and what to do."""
        from pydantic import ValidationError

        if not isinstance(values, dict):
            raise UserError(f"{self._blame(layers, ()) or what}: expected a mapping of fields, found {describe(values)}")
        try:
            return kind.model_validate(values)
        except ValidationError as error:
            lines = [self._complaint(problem, layers, what, inside, kind) for problem in error.errors()[:5]]
            raise UserError("\n       ".join(dict.fromkeys(lines))) from None

    def _complaint(self, problem: Any, layers: list[Layer], what: str, inside: tuple[str, ...], kind: Any) -> str:
        loc = tuple(part for part in problem["loc"])
        keys = loc if not loc or loc[0] in _INHERITED[:-1] and inside else (*inside, *loc)
        place = self._blame(layers, keys) or what
        name = ".".join(str(part) for part in loc) or "the whole"
        if problem["type"] == "extra_forbidden":
            known = _fields(kind, loc[:-1])
            hint = suggest(str(loc[-1]), known) or f"; known: {', '.join(known)}"
            return f"{place}: unknown field {name!r}{hint}"
        if problem["type"] == "missing":
            return f"{place}: {name} is missing"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "value_error":
            return f"{place}: {name}: {message}"
        hint = ""
        if problem["type"] == "literal_error":
            hint = suggest(str(problem["input"]), re.findall(r"'([^']+)'", message))
        return f"{place}: {name} is {describe(problem['input'])}: {message[0].lower()}{message[1:]}{hint}"

    def _blame(self, layers: list[Layer], keys: tuple[Any, ...]) -> str:
        """file:line:column of the topmost layer that says something about ``keys``."""
        for depth in range(len(keys), -1, -1):
            for layer in reversed(layers):
                if layer.file is not None and _has(layer.values, keys[:depth]):
                    return self._place(layer.file, (*layer.at, *keys[:depth]))
        return ""

    def _place(self, file: Path, keys: tuple[Any, ...]) -> str:
        where = locate(file, keys) or (1, 1)
        shown = f"zoo/{file.relative_to(self.root)}" if file.is_relative_to(self.root) else str(file)
        return f"{shown}:{where[0]}:{where[1]}"


# ---------------------------------------------------------------- merging


def merge(base: Any, over: Any) -> Any:
    """``over`` on top of ``base``: mappings merge unless they change the ``name``; everything else replaces."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return copy.deepcopy(over)
    if "name" in over and over["name"] != base.get("name"):
        return copy.deepcopy(over)
    result = dict(base)
    for one, other in (("epochs", "images"), ("images", "epochs")):  # two ways to give a budget
        if over.get(one) is not None and other not in over:
            result.pop(other, None)
    for key, value in over.items():
        result[key] = merge(base[key], value) if key in base else copy.deepcopy(value)
    return result


def merge_layers(layers: list[Layer]) -> dict[str, Any]:
    from .schema import normalise_backbone

    merged: dict[str, Any] = {}
    for layer in layers:
        values = dict(layer.values)
        if "backbone" in values:
            values["backbone"] = normalise_backbone(values["backbone"])
            if merged.get("backbone") not in (None, values["backbone"]) and "network" not in values:
                merged.pop("network", None)  # another network: what was said of the old one no longer holds
        values = {key: values[key] for key in _INHERITED if key in values}
        merged = merge(merged, values)
    return merged


def _follow(tree: dict[str, Any], before: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """The two places where setting one thing on the command line plainly unsets another."""
    from .schema import OPTIMIZER_FIELDS, SCHEDULE_FIELDS

    schedule = tree.get("schedule")
    if isinstance(schedule, dict):
        for one, other in (("epochs", "images"), ("images", "epochs")):
            if schedule.get(one) is not None and f"schedule.{one}" in overrides and f"schedule.{other}" not in overrides:
                schedule[other] = None
    for part, known in (("optimizer", OPTIMIZER_FIELDS), ("schedule", SCHEDULE_FIELDS)):
        now = tree.get(part)
        if isinstance(now, dict) and now.get("name") != before[part]["name"]:
            keep = {"name", "epochs", "images", "weight_decay", *known.get(str(now.get("name")), ())}
            for key in now:
                if key not in keep and f"{part}.{key}" not in overrides:
                    now[key] = None


def _released(values: Any, layouts: Any, license: str | None) -> Any:
    if not isinstance(values, dict):
        return values
    defaults = {"license": license or "not stated"}
    if layouts is not None:
        defaults["layouts"] = layouts
    return {**defaults, **values}


def _status(declared: str | None, weights: Any, recipe: Any) -> str:
    if declared:
        return declared
    return "released" if weights else "recipe only" if recipe else "published only"


def _title(method: str, entry: Entry) -> str:
    words = [f"{method}, {entry.backbone.name}"]
    if entry.recipe is not None:
        budget = entry.recipe.schedule
        length = f"{budget.epochs} epochs" if budget.epochs is not None else f"{budget.images:,} images seen"
        words += [length, f"batch {entry.recipe.batch}", f"views {entry.recipe.views}"]
    if entry.dataset:
        words.append(entry.dataset)
    return ", ".join(words)


def _has(tree: Any, keys: tuple[Any, ...]) -> bool:
    for key in keys:
        inside = key in tree if isinstance(tree, dict) else isinstance(tree, list) and key in range(len(tree))
        if not inside:
            return False
        tree = tree[key]
    return True


def _fields(kind: Any, loc: tuple[Any, ...]) -> list[str]:
    """Field names of the model that ``loc`` leads to inside ``kind``."""
    from typing import get_args

    from pydantic import BaseModel

    for part in loc:
        if isinstance(part, int) or not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            continue
        info = kind.model_fields.get(part)
        if info is None:
            continue
        queue, kind = [info.annotation], None
        while queue:
            found = queue.pop()
            if isinstance(found, type) and issubclass(found, BaseModel):
                kind = found
                break
            queue += get_args(found)
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def natural(name: str) -> list[tuple[int, Any]]:
    """A sorting key under which 200ep comes before 1600ep."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


@lru_cache(maxsize=64)
def _model_lines(file: Path) -> dict[str, int]:
    pattern = re.compile(r"^  ([a-z][a-z0-9_]*):")
    lines = file.read_text(encoding="utf-8").splitlines()
    return {m.group(1): i for i, line in enumerate(lines, 1) if (m := pattern.match(line))}


def locate_quick(file: Path, model: str) -> int | None:
    """The line of a model's id without composing the file."""
    return _model_lines(file).get(model)


# ---------------------------------------------------------------- what an id promises


@dataclass(frozen=True)
class Contradiction:
    text: str
    keys: tuple[Any, ...]


def contradictions(entry: Entry) -> Iterator[Contradiction]:
    """Every way in which an id says something else than its fields."""
    from .names import check

    for text, keys in check(entry):
        yield Contradiction(text, keys)


# ---------------------------------------------------------------- the project's own registry


@lru_cache(maxsize=1)
def registry() -> Registry:
    """The registry of this checkout."""
    return Registry().read()


def models(pattern: str = "*", method: str | None = None) -> list[str]:
    """Ids of the zoo that match a shell pattern, of one method or of all."""
    return registry().models(pattern, method)


def methods() -> list[str]:
    """Every method that has a file."""
    return registry().methods()


def aliases() -> dict[str, str]:
    """Other names (the authors' hub names) and the ids they stand for."""
    return registry().aliases()


def entry(name: str) -> Entry:
    """The model behind an id or alias: card, recipe, weights, published numbers."""
    return registry().entry(name)


def resolve(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a model with dotted paths set, e.g. ``{"optimizer.lr": 0.1}``."""
    return registry().resolve(name, overrides)


def load_recipe(path: str | Path) -> Recipe:
    """A run folder's ``recipe.yaml``."""
    return registry().load_recipe(path)
