"""The model under evaluation: a registry id, a run folder or a file, as a complete backbone with its own preprocessing.

A registry id without released weights means its finished run below ``out``; that of a reference row which is not trained is made
when it is asked for. Nothing is ever evaluated on a backbone of
which a tensor is missing: ``zoo.load`` raises.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import zoo
from engine import dist
from zoo import backbones, precision
from zoo.checkpoint_reader import sha256
from zoo.errors import UserError


@dataclass
class Model:
    """name: as records have it; asked: as the command line has it; place: what ``zoo.load`` is given; weights: the file on disk,
    which may still be missing."""

    name: str
    place: str
    weights: Path
    recipe: Any  # whatever has .backbone and .input: a Recipe, or an Entry when nobody released the recipe
    pretrain_seed: int | None = None
    pretrain_command: str | None = None
    form: dict[str, Any] = field(default_factory=dict)  # what the command line says of a weight file
    asked: str = ""

    @cached_property
    def weights_sha256(self) -> str:
        return sha256(self.weights)

    @cached_property
    def backbone(self) -> Any:
        return _loaded(self.place, self.weights_sha256, json.dumps(self.form, sort_keys=True))

    @cached_property
    def projection(self) -> nn.Module:
        """What the weight file has on the features (B, D) to embed them (B, d). Raises UserError where it has nothing."""
        full: Any = zoo.load(self.place, part="full", **self.form)
        head = dict(full.heads.items()).get("projection")
        if not isinstance(head, (nn.Linear, nn.Sequential)):
            raise UserError(f"{self.name}: its file has no projection head (it has: {', '.join(full.heads)})")
        return head.eval()

    @property
    def here(self) -> bool:
        """False for released weights that have not been downloaded."""
        return self.weights.is_file()

    @cached_property
    def blank(self) -> Any:
        """The network without its weights, to ask about its layers: nothing is read or downloaded."""
        with torch.device("meta"):
            return backbones.build(backbones.variants(self.recipe.backbone)[0])

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.blank.layers)

    @property
    def classifier_layer(self) -> str:
        """The layer that a classifier of the network's output reads: "output", or "classifier_input" where that differs."""
        return "output" if self.blank.last_relu else "classifier_input"

    @property
    def dim(self) -> int:
        return int(self.backbone.dim)

    @property
    def input(self) -> dict[str, Any]:
        return dict(self.recipe.input.model_dump(mode="json"))

    @property
    def description(self) -> dict[str, Any]:
        """The network by name and options, and which tensors of a file it is: others are other features."""
        if isinstance(self.recipe.backbone, dict):  # of a file of another project
            where = self.recipe.found
            return {**self.recipe.backbone, "tensors": [where.path, where.title, self.form.get("prefix")]}
        return dict(self.recipe.backbone.model_dump(mode="json"))

    @property
    def assumed_input(self) -> dict[str, Any] | None:
        """mean and std of a weight file's input, where nobody said them; None for a model that says its own."""
        found = getattr(self.recipe, "found", None)
        if (found is not None and found.assumed) or getattr(self.recipe, "assumed", False):
            return {name: list(self.input[name]) for name in ("mean", "std")}
        return None


def resolve(
    name: str,
    pretrain_seed: int | None = None,
    out: str | Path = "runs",
    fetch: bool = True,
    form: Mapping[str, Any] | None = None,
) -> Model:
    """The model behind an id, a run folder or a weight file (``name``). Raises UserError with the command that would make it.

    form    of a weight file: backbone, prefix, path, mean, std, as ``zoo.load`` takes them
    fetch   False: nothing is downloaded; released weights that are not here make a model that is not ``here``.
    """
    return replace(_found(name, pretrain_seed, out, fetch, form), asked=name)


def _found(name: str, pretrain_seed: int | None, out: str | Path, fetch: bool, form: Mapping[str, Any] | None) -> Model:
    place = Path(name)
    run, at, epoch = name.rpartition("@")
    if at and epoch.isdigit() and not place.exists():
        return _snapshot(run, epoch, pretrain_seed, out)
    if place.is_file() and not (place.name == "weights.pth" and (place.parent / "recipe.yaml").is_file()):
        return _file(place, dict(form or {}))
    if form:
        raise UserError(f"{name}: {', '.join(form)} describe{'s' * (len(form) == 1)} a weight file; this is none")
    if place.is_dir():
        return _run_folder(place, pretrain_seed)
    if place.is_file():
        return _file(place, {})
    if "/" in name or name.endswith((".pth", ".pt", ".tar", ".safetensors")):
        raise UserError(f"{name}: no such run folder or file")
    entry = zoo.entry(name)
    if entry.weights is not None:
        if pretrain_seed:
            raise UserError(f"{entry.id}: pretrain_seed={pretrain_seed} makes no sense for released weights")
        return _released(entry, fetch)
    folder, seed = _run_of(entry, pretrain_seed, out, "weights.pth")
    if not (folder / "weights.pth").is_file() and _untrained(entry.recipe):
        if not fetch:
            return Model(entry.id, str(folder), folder / "weights.pth", zoo.resolve(entry.id, {"seed": seed}), seed)
        dist.together(lambda: _make(entry.id, seed, out) if dist.is_main() else None)
    if not (folder / "weights.pth").is_file():
        more = "" if str(out) == "runs" else f" out={out}"
        begun = "its run is not finished" if folder.is_dir() else "nobody released its weights, and there is no run"
        raise UserError(f"{entry.id}: {begun} ({folder}); run: python -m reproduce {entry.id} seed={seed}{more}")
    return _run_folder(folder, seed, entry.id)


def _untrained(recipe: Any) -> bool:
    """Whether a run of this recipe takes no step: a reference row, whose weights are those of the first moment."""
    return recipe is not None and 0 in (recipe.schedule.images, recipe.schedule.epochs)


def _make(model: str, seed: int, out: str | Path) -> None:
    """Write the run of a model that is not trained, as `python -m reproduce` does, in a process of its own. UserError with its words."""
    alone = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("RANK", "LOCAL_", "GROUP_", "WORLD_SIZE", "MASTER_", "TORCHELASTIC", "SLURM_"))
    }
    program = f"{__name__.partition('evaluations.')[0]}reproduce"  # selfzoo.reproduce where it is installed
    words = [sys.executable, "-m", program, model, f"seed={seed}", f"out={out}", "device=cpu", "tensorboard=false"]
    done = subprocess.run(words, env=alone, capture_output=True, text=True, check=False)
    if done.returncode:
        told = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(
            f"{model}: its weights, which are not trained, could not be made: {told[-1].removeprefix('error: ')}"
        )


def _run_of(entry: Any, pretrain_seed: int | None, out: str | Path, has: str) -> tuple[Path, int]:
    """The run folder of a registry id that has a file of this name, else where it would be; and its seed.

    It is of the registry's own recipe, run here or elsewhere, or of what this machine makes of it.
    """
    recipe = zoo.resolve(entry.id)
    seed = recipe.seed if pretrain_seed is None else pretrain_seed
    folders = [Path(out) / entry.id / f"{kind.hash()}-s{seed}" for kind in (recipe, precision.as_run_here(recipe))]
    return next((f for f in folders if (f / has).is_file()), folders[-1]), seed


def _snapshot(run: str, epoch: str, pretrain_seed: int | None, out: str | Path) -> Model:
    """The weights that a run had after an epoch, kept by checkpoint_keep: a model of its own."""
    kept = Path("epochs", epoch)
    folder = (
        Path(run) if Path(run).is_dir() else _run_of(zoo.entry(run), pretrain_seed, out, str(kept / "weights.pth"))[0]
    )
    if not (folder / kept / "weights.pth").is_file():
        there = sorted(int(f.parent.name) for f in folder.glob("epochs/*/weights.pth") if f.parent.name.isdigit())
        known = (
            f"kept are {', '.join(map(str, there))}" if there else "none is kept: run it with checkpoint_keep=EPOCHS"
        )
        raise UserError(f"{run}@{epoch}: {folder} has no weights of epoch {epoch}; {known}")
    return _run_folder(folder / kept, pretrain_seed)


def _released(entry: Any, download: bool) -> Model:
    from zoo import fetch

    kept = fetch.item(entry.id).place
    weights = Path(fetch.path(entry.id)) if download or kept.is_file() else kept
    return Model(entry.id, entry.id, weights, entry.recipe or entry)


def _run_folder(folder: Path, seed: int | None = None, name: str | None = None) -> Model:
    """A finished run. Its name is the registry id when the recipe is the registry's own, else that of the folder."""
    from results.record import slug

    weights = folder / "weights.pth"
    if not weights.is_file():
        raise UserError(f"{folder}: no weights.pth; the run is not finished: start it again with the same command")
    recipe = zoo.load_recipe(folder / "recipe.yaml")
    if seed is not None and seed != recipe.seed:
        raise UserError(f"{folder}: its seed is {recipe.seed}, not pretrain_seed={seed}")
    kept = folder.resolve()
    run = kept.parent.parent if kept.parent.name == "epochs" else kept
    model = run.parent.name
    if name is None:
        own = model in zoo.models() and zoo.entry(model).recipe is not None and _same(recipe, zoo.resolve(model))
        name = model if own else slug(f"{model}-{run.name.rpartition('-s')[0]}")
    else:
        own = True
    command = f"python -m reproduce {model} seed={recipe.seed}" if own else None
    if command and recipe.precision != zoo.resolve(model).precision:
        command += f" precision={recipe.precision}"
    if run is not kept:
        name, command = f"{name}-epoch{kept.name}", command and f"{command} checkpoint_keep={kept.name}"
    return Model(name, str(folder), weights, recipe, recipe.seed, command)


def _same(recipe: Any, registered: Any) -> bool:
    """Whether a run's recipe is the registry's, or what this machine makes of it."""
    return recipe.hash() in (registered.hash(), precision.as_run_here(registered).hash())


def _file(path: Path, form: dict[str, Any]) -> Model:
    """A weight file: in a run folder it is that run, else the one network of the registry that accounts for all of it.

    Its name has eight digits of its hash: half of all weight files are called model_best.pth.
    """
    from results.record import slug
    from zoo import foreign, loading

    if (path.parent / "recipe.yaml").is_file() and path.name == "weights.pth":
        return _run_folder(path.parent)
    origin = loading.recognise(path, foreign.Form(**form))
    return Model(f"{slug(path.stem)}-{sha256(path)[:8]}", str(path), path, origin, form=form)


@lru_cache(maxsize=2)
def _loaded(place: str, sha256: str, form: str) -> Any:
    return zoo.load(place, **json.loads(form))
