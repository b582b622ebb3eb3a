"""What an id promises: ``swav_rn50w2_400ep`` names a network of double width and 400 epochs, and must not lie."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .schema import Entry

# word of an id -> backbone names that it may stand for
NETWORKS: dict[str, tuple[str, ...]] = {
    "rn18": ("resnet18",),
    "rn26": ("resnet26",),
    "rn50": ("resnet50",),
    "rn50w2": ("resnet50w2",),
    "rn50w4": ("resnet50w4",),
    "rn50w5": ("resnet50w5",),
    "resnet50v2": ("resnet50v2",),
    "vgg16": ("vgg16",),
    "alexnet": ("alexnet",),
    "nin": ("nin",),
}
DATASETS = {
    "digits": "digits",
    "fashion_mnist": "fashion_mnist",
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "svhn": "svhn",
    "places205": "places205",
    "imagenet": "imagenet",
    "yfcc": "yfcc100m",
}
Problem = tuple[str, tuple[Any, ...]]


def contradictions(entry: Entry) -> Iterator[Problem]:
    """Sentences about the contradictions between an id and its fields, with the path of the field to blame."""
    rest = entry.id.removeprefix(entry.method)
    if rest == entry.id or not rest.startswith("_"):
        yield f"{entry.id} must begin with its method: {entry.method}_…", ()
    for word, dataset in DATASETS.items():
        if f"_{word}_" in f"{rest}_" and entry.dataset != dataset:
            yield f"{entry.id} says {word}, but its dataset is {entry.dataset}", ("recipe", "dataset")
    for word in rest.split("_"):
        if word in NETWORKS and not entry.backbone.name.startswith(NETWORKS[word]):
            yield f"{entry.id} says {word}, but its backbone is {entry.backbone.name}", ("backbone",)
        if word in NETWORKS and re.fullmatch(r"w\d", entry.backbone.name.removeprefix(NETWORKS[word][0])):
            yield f"{entry.id} says {word}, but its backbone is {entry.backbone.name}", ("backbone",)
    if not any(word in NETWORKS for word in rest.split("_")) and re.search(r"w\d$", entry.backbone.name):
        yield f"{entry.id} does not say that its backbone is {entry.backbone.name}", ("backbone",)
    if entry.recipe is not None:
        yield from _recipe(entry, rest)


def _recipe(entry: Entry, rest: str) -> Iterator[Problem]:
    recipe = entry.recipe
    assert recipe is not None
    for word in rest.split("_"):
        if (found := re.fullmatch(r"(\d+)ep", word)) and recipe.schedule.epochs != int(found[1]):
            text = f"{entry.id} says {found[1]} epochs, but schedule.epochs is {recipe.schedule.epochs}"
            yield text, ("recipe", "schedule", "epochs")
        if (found := re.fullmatch(r"bs(\d+)", word)) and recipe.batch != int(found[1]):
            yield f"{entry.id} says batch {found[1]}, but batch is {recipe.batch}", ("recipe", "batch")
        if re.fullmatch(r"\d+x\d+", word) and str(recipe.views) != word:
            yield f"{entry.id} says crops {word}, but its views are {recipe.views}", ("recipe", "views", "crops")
        if found := re.fullmatch(r"(?:(\d+)x)?(\d+)k", word):
            heads, clusters = int(found[1] or 1), int(found[2]) * 1000
            have = (recipe.params.get("heads", heads), recipe.params.get("clusters", clusters))
            if have != (heads, clusters):
                yield f"{entry.id} says {heads}x{clusters} clusters, but params say {have[0]}x{have[1]}", ("recipe", "params")
