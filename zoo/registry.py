"""The registry: one YAML file per method, one level of inheritance, no torch.

    method <- profile <- model <- command line        mappings merge; lists and values replace

A mapping with another ``name`` (backbone, optimizer, schedule) starts from its defaults, so that no setting of the one survives
in the other.  ``recipe: null`` and ``weights: null`` say that nobody released them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import settings as _overrides
from .errors import UserError, suggest
from .settings import EITHER, INHERITED, Layer, merge_layers
from .yamlfile import describe, load_mapping, locate

if TYPE_CHECKING:
    from .schema import Entry, MethodFile, Recipe

HERE = Path(__file__).parent
FREE = ("backbone.options",)  # where the command line may add names: whoever builds the network checks them


@dataclass
class Registry:
    """All method files of a folder and its profiles; each is read once, when first asked for."""

    root: Path = HERE
    _methods: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    _models: dict[str, str] = field(default_factory=dict, repr=False)
    _aliases: dict[str, str] = field(default_factory=dict, repr=False)
    _profiles: dict[str, Any] = field(default_factory=dict, repr=False)
    _checked: dict[str, MethodFile] = field(default_factory=dict, repr=False)
    _entries: dict[str, Entry] = field(default_factory=dict, repr=False)

    def file(self, method: str) -> Path:
        return self.root / "methods" / f"{method}.yaml"

    def read(self) -> Registry:
        """Read every file and index the names; raises on a broken file, a name given twice, a file of another name."""
        if self._methods:
            return self
        methods: dict[str, dict[str, Any]] = {}
        for path in sorted((self.root / "methods").glob("*.yaml")):
            content = load_mapping(path, f"zoo/methods/{path.name}")
            if content.get("method") != path.stem:
                method = describe(content.get("method"))
                raise UserError(
                    f"{self._place(path, 'method')}: method {method} in a file named {path.name}; they must agree"
                )
            self._models_of(path, content.get("models"))
            methods[path.stem] = content
        self._index(methods)
        profiles = self.root / "profiles.yaml"
        self._profiles = load_mapping(profiles, "zoo/profiles.yaml") if profiles.exists() else {}
        self._methods = methods
        return self

    def _models_of(self, path: Path, models: Any) -> None:
        if not isinstance(models, dict):
            raise UserError(f"{self._place(path, 'models')}: models must be a mapping of ids")
        for model, fields in models.items():
            if not isinstance(model, str) or not isinstance(fields, (dict, type(None))):
                what = f"models.{model} is {describe(fields)}: expected an id and a mapping of fields"
                raise UserError(f"{self._place(path, 'models', str(model))}: {what}")

    def _index(self, methods: dict[str, dict[str, Any]]) -> None:
        taken: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._models, self._aliases = {}, {}
        for method, content in methods.items():
            for model, values in content["models"].items():
                aliases = (values or {}).get("aliases")
                names: list[tuple[str, tuple[str, ...]]] = [(model, ("models", model))]
                names += [
                    (str(a), ("models", model, "aliases")) for a in (aliases if isinstance(aliases, list) else [])
                ]
                for name, keys in names:
                    if name in taken:
                        other = self._place(self.file(taken[name][0]), *taken[name][1])
                        raise UserError(
                            f"{self._place(self.file(method), *keys)}: the name {name!r} is already taken at {other}"
                        )
                    taken[name] = (method, keys)
                self._models[model] = method
                self._aliases.update({alias: model for alias, _ in names[1:]})

    # ------------------------------------------------------------ queries

    def models(self, pattern: str = "*", method: str | None = None) -> list[str]:
        """Ids that match a shell pattern (or have an alias that does); 200ep comes before 1600ep."""
        self.read()
        if method is not None and method not in self._methods:
            raise UserError(f"no method {method!r}{suggest(method, self._methods) or ';'} see python -m zoo list")
        by_alias = {model for alias, model in self._aliases.items() if fnmatchcase(alias, pattern)}
        found = [m for m in self._models if fnmatchcase(m, pattern) or m in by_alias]
        return sorted((m for m in found if method in (None, self._models[m])), key=natural)

    def methods(self) -> list[str]:
        """Methods that can be trained: those whose file has a default recipe."""
        return [method for method in self.families() if self._methods[method].get("recipe") is not None]

    def families(self) -> list[str]:
        """Every method that has a file, trainable or not."""
        return sorted(self.read()._methods)

    def aliases(self) -> dict[str, str]:
        """Alias -> id."""
        return dict(sorted(self.read()._aliases.items()))

    def profiles(self) -> list[str]:
        return sorted(self.read()._profiles)

    def method(self, name: str) -> dict[str, Any]:
        """What a method's file says, unchecked."""
        self.models(method=name)
        return self._methods[name]

    def checked(self, method: str) -> MethodFile:
        """A method's file in its typed form, checked once."""
        from .checking import check
        from .schema import MethodFile

        if method not in self._checked:
            layers = [Layer(self.method(method), self.file(method))]
            self._checked[method] = check(MethodFile, layers[0].values, layers, method, self.root)
        return self._checked[method]

    def owner(self, model: str) -> str:
        """The method that a model belongs to."""
        return self.read()._models[self.find(model)]

    def find(self, name: str) -> str:
        """The id behind an id or alias; UserError with the nearest name."""
        self.read()
        if name in self._models:
            return name
        if name in self._aliases:
            return self._aliases[name]
        hint = suggest(name, [*self._models, *self._aliases]) or ";"
        raise UserError(f"no model {name!r}{hint} python -m zoo list shows all")

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
            raise UserError(no_recipe(entry))
        return self.change(entry.recipe, overrides or {})

    def change(self, recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
        """A recipe with dotted paths set; UserError for an unknown path or an impossible value."""
        if not overrides:
            return recipe
        tree = _overrides.apply(recipe.dump(), overrides, free=FREE)
        if tree["method"] != recipe.method:
            raise UserError(f"method={tree['method']}: another method is another model; see python -m zoo list")
        _unset(tree, recipe.dump(), overrides)
        return self._recipe(tree, [Layer(tree)], ", ".join(f"{path}={value}" for path, value in overrides.items()))

    def load_recipe(self, path: str | Path) -> Recipe:
        """A ``recipe.yaml`` as ``Recipe.dump`` wrote it, checked like any other."""
        content = load_mapping(path)
        return self._recipe(content, [Layer(content, Path(path))], str(path))

    # ------------------------------------------------------------ building

    def layers(self, model: str) -> list[Layer]:
        """What a model inherits from, lowest first, and last its own fields."""
        method = self._models[model]
        file, content = self.file(method), self._methods[method]
        own = content["models"][model]
        layers = [Layer({key: content[key] for key in INHERITED if key in content}, file)]
        profile = own.get("profile") if isinstance(own, dict) else None
        if isinstance(profile, str):
            if not isinstance(self._profiles.get(profile), dict):
                where = self._place(file, "models", model, "profile")
                raise UserError(f"{where}: no profile {profile!r}{suggest(profile, self._profiles)}")
            layers.append(Layer(self._profiles[profile], self.root / "profiles.yaml", (profile,)))
        return [*layers, Layer({} if own is None else own, file, ("models", model))]

    def _build(self, model: str) -> Entry:
        from .checking import blame, check, contradictions
        from .schema import Entry, ModelFields, Profile

        method = self._models[model]
        file, layers = self.file(method), self.layers(model)
        top = self.checked(method)
        own = check(ModelFields, layers[-1].values, layers[-1:], model, self.root)
        profile = Profile(title="", laptop=False)
        if own.profile is not None:
            profile = check(Profile, layers[1].values, layers[1:2], own.profile, self.root)
        merged = merge_layers(layers)
        for need in ("backbone", "input"):
            if merged.get(need) is None:
                where = self._place(file, "models", model)
                raise UserError(f"{where}: {model} has no {need}, nor have its method and profile")
        code = own.code or top.code
        licence = (code.license if code else None) or "not stated"
        layouts, recipe = merged.get("layouts") or [], merged.get("recipe")
        shared = {key: merged[key] for key in ("backbone", "input")} | {"layouts": layouts}
        checked = None
        if recipe is not None:
            checked = self._recipe({"method": method, **shared, **recipe}, layers, model, ("recipe",))
        values = {
            "id": model,
            "method": method,
            "title": own.title or "",
            "summary": top.summary,
            "aliases": own.aliases,
            "paper": own.paper or top.paper,
            "code": code,
            "status": status(own.model_dump(), recipe),
            "since": own.since,
            "notes": [*([] if own.profile or own.code else top.notes), *profile.notes, *own.notes],
            "dataset": own.dataset or (checked.dataset if checked else top.dataset),
            **shared,
            "network": merged.get("network"),
            "recipe": checked,
            "weights": own.weights and {"license": licence, "layouts": layouts, **own.weights},
            "heads": {name: {"license": licence, **head} for name, head in own.heads.items()},
            "pseudolabels": own.pseudolabels and {"license": licence, **own.pseudolabels},
            "published": own.published,
            "reproduced_by": own.reproduced_by,
            "profile": own.profile,
            "laptop": profile.laptop,
            "file": f"zoo/methods/{file.name}",
            "line": (locate(file, ("models", model)) or (1, 1))[0],
        }
        entry = check(Entry, values, layers, model, self.root)
        if not entry.title:
            entry = entry.model_copy(update={"title": _title(top.title, entry)})
        for text, keys in contradictions(entry):
            raise UserError(f"{blame(layers, keys, self.root)}: {text}")
        return entry

    def _recipe(self, tree: dict[str, Any], layers: list[Layer], what: str, inside: tuple[str, ...] = ()) -> Recipe:
        """Check a recipe and its params; ``inside``: where the layers hold it (``recipe:`` in the registry's files)."""
        from .checking import blame, check, check_params
        from .schema import Recipe

        recipe = check(Recipe, tree, layers, what, self.root, inside)
        if recipe.method not in self.read()._methods:
            where = blame(layers, ("method",), self.root) or what
            raise UserError(f"{where}: no method {recipe.method!r}{suggest(recipe.method, self._methods)}")
        top = self.checked(recipe.method)

        def fail(keys: tuple[str | int, ...], message: str) -> UserError:
            return UserError(f"{blame(layers, (*inside, 'params', *keys), self.root) or what}: {message}")

        return recipe.model_copy(update={"params": check_params(recipe.params, top.defaults, top.params_spec, fail)})

    def _place(self, file: Path, *keys: Any) -> str:
        from .checking import place

        return place(file, keys, self.root)


def _unset(tree: dict[str, Any], before: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Where setting one thing on the command line plainly unsets another: the budget, and another kind's settings."""
    from .schema import OPTIMIZERS, SCHEDULES

    for part, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        now = tree.get(part)
        if not isinstance(now, dict):
            continue
        for one, other in EITHER.items():
            if now.get(one) is not None and f"{part}.{one}" in overrides and f"{part}.{other}" not in overrides:
                now[other] = None
        if now.get("name") != before[part]["name"]:
            keep = {"name", *EITHER, "lr", "weight_decay", *known.get(str(now.get("name")), ())}
            now.update({key: None for key in now if key not in keep and f"{part}.{key}" not in overrides})


def no_recipe(entry: Entry) -> str:
    """Why a model without a recipe cannot be trained, and which model can be trained instead."""
    if entry.reproduced_by is not None:
        other = entry.reproduced_by
        return f"{entry.id} has no recipe of its own; {other} trains the same objective: python -m reproduce {other}"
    return f"{entry.id}: its recipe was never released, so it cannot be reproduced; python -m zoo show {entry.id} says what is known"


def status(own: Mapping[str, Any], recipe: Any) -> str:
    """lost (as declared), released, labels only, recipe only, or published only: a row of a paper's table."""
    found = (("released", own.get("weights")), ("labels only", own.get("pseudolabels")), ("recipe only", recipe))
    return own.get("status") or next((name for name, there in found if there), "published only")


def _title(method: str, entry: Entry) -> str:
    words = [f"{method}, {entry.backbone.name}"]
    if entry.recipe is not None:
        budget = entry.recipe.schedule
        words.append(f"{budget.epochs} epochs" if budget.epochs is not None else f"{budget.images:,} images seen")
        words += [f"batch {entry.recipe.batch}", f"views {entry.recipe.views}"]
    return ", ".join([*words, entry.dataset] if entry.dataset else words)


def natural(name: str) -> list[tuple[int, Any]]:
    """A sorting key under which 200ep comes before 1600ep."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


# ---------------------------------------------------------------- the project's own registry


@lru_cache(maxsize=1)
def registry() -> Registry:
    """The registry of this checkout."""
    return Registry().read()


def models(pattern: str = "*", method: str | None = None) -> list[str]:
    """Ids of the zoo that match a shell pattern, of one method or of all."""
    return registry().models(pattern, method)


def methods() -> list[str]:
    """Every method that can be trained: those with a default recipe."""
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
