"""A recipe for images that nobody wrote a recipe for: numbers in, settings out, each with its reason. Nothing is read here.

    derive(base, facts) -> [Choice("batch", 64, "a quarter of 300 images, …"), …]

base is a recipe of the same method that was tuned: its model at laptop scale for images below 96 pixels, the method's own (the
authors' for ImageNet) for larger ones. What the images decide:

    side of the images      network and crops           number of images    batch, epochs, clusters, queues, negatives
    colour or gray          channels, colour jitter     batch               learning rates
    their pixels            mean and std

Rates scale with the batch: in proportion for SGD, LARC and LARS (Goyal et al., arXiv 1706.02677), by the square root for AdamW
(Malladi et al., arXiv 2205.10287). The other rules are rules of thumb, stated in each reason and overridden by a `path=value`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SMALL = 96  # pixels: below it the small network, from it on a ResNet
FEWEST = 32  # images; fewer make no batches to learn from
MANY = 100_000  # images from which on resnet50 replaces resnet18
LARGEST = 256  # images of a batch that one accelerator, or a patient CPU, computes
PER_CLUSTER = 10  # images for each cluster or prototype, at least
RECENT = 65_536  # classes of an instance softmax, where there are more images than three times as many


@dataclass(frozen=True)
class Facts:
    """What is known about a set of images: how many, the median of their shorter sides in pixels, channels (1: all gray, 3),
    mean and std per channel of pixels in 0..1."""

    images: int
    side: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def small(self) -> bool:
        return self.side < SMALL


@dataclass(frozen=True)
class Choice:
    """A setting of a recipe, and why it has this value."""

    path: str
    value: Any
    why: str


def derive(
    base: Mapping[str, Any], facts: Facts, *, batch: int | None = None, epochs: float | None = None
) -> list[Choice]:
    """The settings in which a recipe for these images differs from `base` (a recipe's dump); `base` holds for all others.

    batch, epochs   those that the caller insists on: rates, milestones and queues follow them
    """
    found = [*_network(base, facts), *_views(base, facts)]
    batch = batch or batch_for(facts.images, base["batch"])
    found.append(Choice("batch", batch, f"a quarter of the {facts.images:,} images at most, {LARGEST} at most"))
    trained = base["schedule"].get("epochs") != 0 and base["schedule"].get("images") != 0
    if trained:
        total = epochs if epochs is not None else epochs_for(facts)
        found += _rates(base, batch)
        found += _schedule(base, facts, total, given=epochs is not None)
        found += _params(base["params"], "params", facts, batch, total, dim_of(network(base, facts)))
    return [choice for choice in found if not _same(base, choice)]


# -- network and views ---------------------------------------------------------------------------------------------------
def network(base: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """Name and options of the backbone."""
    if base["method"] == "pixels":
        return {
            "name": "pixels",
            "options": {"dim": facts.channels * crop_for(base, facts) ** 2, "in_channels": facts.channels},
        }
    if not facts.small:
        return {"name": "resnet18" if facts.images < MANY else "resnet50", "options": {}}
    width, blocks, stride = (16, [1, 1, 1], 1) if facts.side < 20 else (24 if facts.side < 48 else 32, [1, 1, 1, 1], 2)
    return {
        "name": "tiny_resnet",
        "options": {"width": width, "blocks": blocks, "stem_stride": stride, "in_channels": facts.channels},
    }


def dim_of(spec: Mapping[str, Any]) -> int:
    """Features D of a network above."""
    if spec["name"] == "tiny_resnet":
        return int(spec["options"]["width"] * 2 ** (len(spec["options"]["blocks"]) - 1))
    return {"resnet18": 512, "resnet50": 2048}.get(spec["name"], 0) or int(spec["options"]["dim"])


def crop_for(base: Mapping[str, Any], facts: Facts) -> int:
    """Side of the largest crop: the images' own, to a multiple of 4 (small) or 32; never above the authors', nor above 224."""
    if base["method"] == "pixels":
        return min(32, _multiple(facts.side, 4))
    if facts.small:
        return _multiple(facts.side, 4)
    own = max(crop["size"] for crop in base["views"]["crops"])
    return min(224 if own < SMALL else own, 32 * (facts.side // 32))


def _network(base: Mapping[str, Any], facts: Facts) -> list[Choice]:
    spec = network(base, facts)
    if spec["name"] == "pixels":
        why = "no network: the pixels of an image of this size"
    elif facts.small:
        why = f"images of {facts.side} pixels, below {SMALL}: the small network"
    else:
        why = f"images of {facts.side} pixels, {facts.images:,} of them: resnet18 below {MANY:,} images, resnet50 from there on"
    channels = 3 if spec["name"].startswith("resnet") else facts.channels
    seen = "all gray" if facts.channels == 1 else "in colour"
    spread = tuple(max(v, 0.01) for v in facts.std)
    values = {"mean": facts.mean, "std": spread}
    stored = {
        name: [round(v, 4) for v in (given * channels if len(given) < channels else given)]
        for name, given in values.items()
    }
    side = crop_for(base, facts)
    whole = side if facts.small or spec["name"] == "pixels" else min(224, 32 * (facts.side // 32))
    resize = whole if facts.small or spec["name"] == "pixels" else round(whole * 256 / 224)
    gray = " (three equal channels, since a ResNet of the zoo takes three)" if channels > facts.channels else ""
    return [
        Choice("backbone", spec, why),
        Choice(
            "input",
            {"pad": 0, "resize": resize, "crop": whole, "channels": channels, **stored},
            f"images {seen}{gray}; mean and std are measured on them; a shorter side of {resize}, then the central {whole} pixels",
        ),
    ]


def _views(base: Mapping[str, Any], facts: Facts) -> list[Choice]:
    views, side = base["views"], crop_for(base, facts)
    largest = max(crop["size"] for crop in views["crops"])
    crops = [
        {**crop, "size": side if crop["size"] == largest else max(32, _multiple(crop["size"] * side / largest, 16))}
        for crop in views["crops"]
    ]
    found = [
        Choice("views.crops", crops, f"the method's crops for images of {facts.side} pixels"),
        Choice("views.pad", 0, "crops have the size of the images"),
        Choice("views.rotate", 0, "only where a profile knows that images may be turned"),
        Choice("views.noise", 0.0, "only where a profile knows that pixels are noisy"),
    ]
    jitter = views["jitter"]
    if facts.channels == 1:
        found.append(Choice("views.grayscale", 0.0, "images are gray already"))
        if jitter:
            found.append(
                Choice(
                    "views.jitter",
                    {**jitter, "saturation": 0.0, "hue": 0.0},
                    "gray images have no hue and no saturation",
                )
            )
    elif facts.small and jitter:
        if not jitter["saturation"]:
            found.append(
                Choice(
                    "views.jitter",
                    {**jitter, "saturation": 0.4, "hue": 0.1},
                    "colours change too (MoCo v2's strengths)",
                )
            )
        found.append(
            Choice(
                "views.grayscale",
                views["grayscale"] or 0.2,
                "views in gray too, so that colour alone is not enough (MoCo v2)",
            )
        )
    return found


# -- batch, rates, schedule ----------------------------------------------------------------------------------------------
def batch_for(images: int, base: int) -> int:
    """The largest power of two that is a quarter of the images at most, and at most the base recipe's batch and LARGEST."""
    most = max(2, min(images // 4, base, LARGEST))
    return int(2 ** math.floor(math.log2(most)))


def epochs_for(facts: Facts) -> int:
    """More epochs for fewer images, but more images seen for more images: proportional to 1 / sqrt(images)."""
    if facts.small:
        return round(min(400, max(2, 50 * math.sqrt(10_000 / facts.images))))
    return round(min(800, max(10, 200 * math.sqrt(100_000 / facts.images))))


def scale_of(optimizer: str, batch: int, base: int) -> float:
    """By how much rates change when the batch does."""
    return math.sqrt(batch / base) if optimizer == "adamw" else batch / base


def scaled(rate: float, optimizer: str, batch: int, base: int) -> float:
    """A rate for another batch, to four digits."""
    return float(f"{rate * scale_of(optimizer, batch, base):.4g}")


def _rates(base: Mapping[str, Any], batch: int) -> list[Choice]:
    name = base["optimizer"]["name"]
    how = "the square root of the batch" if name == "adamw" else "the batch"
    rates = [("optimizer.lr", base["optimizer"]["lr"])]
    rates += [(f"schedule.{rate}", base["schedule"].get(rate)) for rate in ("start_lr", "final_lr")]
    return [
        Choice(
            path,
            scaled(rate, name, batch, base["batch"]),
            f"{rate:g} for a batch of {base['batch']:,}, in proportion to {how} ({name})",
        )
        for path, rate in rates
        if rate
    ]


def fewer(base: Mapping[str, Any], images: int, processes: int, epochs: float) -> list[Choice]:
    """The settings of a recipe for so few processes, LARGEST images on each; none where its batch is no larger than that.

    base: a recipe's dump; epochs: of the run.
    """
    batch = LARGEST * processes
    if batch >= base["batch"]:
        return []
    params, most = base["params"], max(2, images // PER_CLUSTER)
    found = [Choice("batch", batch, f"{LARGEST} images on each of {processes}"), *_rates(base, batch)]
    if isinstance(params.get("queue"), Mapping) and not params["queue"]["length"]:
        found += [c for c in _queue(params, "params", images, batch, epochs, most) if c.value]
    frozen = params.get("freeze_prototypes_steps", 0)
    if 0 < frozen < 100_000:
        steps = round(frozen * base["batch"] / batch)
        found.append(Choice("params.freeze_prototypes_steps", steps, "for as many images"))
    return found


def _schedule(base: Mapping[str, Any], facts: Facts, total: float, *, given: bool) -> list[Choice]:
    schedule = base["schedule"]
    usual = schedule["epochs"] or schedule["images"] / 60_000  # laptop budgets are counted in images of Fashion-MNIST
    found = (
        []
        if given
        else [
            Choice(
                "schedule.epochs",
                int(total),
                "200 epochs for 100,000 images (small network: 50 for 10,000), "
                f"in proportion to 1 / sqrt(images): {int(total) * facts.images:,} images seen",
            )
        ]
    )
    if schedule.get("warmup_epochs"):
        found.append(
            Choice(
                "schedule.warmup_epochs",
                round(schedule["warmup_epochs"] * total / usual, 3),
                f"the same share of {total:g} epochs",
            )
        )
    if schedule.get("milestones"):
        at = [round(m * total / usual, 3) for m in schedule["milestones"]]
        found.append(Choice("schedule.milestones", at, f"the same shares of {total:g} epochs"))
    return found


# -- what a method counts ------------------------------------------------------------------------------------------------
def _params(params: Mapping[str, Any], path: str, facts: Facts, batch: int, epochs: float, dim: int) -> list[Choice]:
    n, found = facts.images, []
    steps = n // batch
    most = max(2, n // PER_CLUSTER)

    def add(name: str, value: Any, why: str) -> None:
        found.append(Choice(f"{path}.{name}", value, why))

    few = f"{PER_CLUSTER} of the {n:,} images for each cluster at least"
    for name in ("prototypes", "clusters"):
        if name in params:
            given = params[name]
            least = 4 if "super_classes" in params else 2
            add(name, [min(k, most) for k in given] if isinstance(given, list) else max(least, min(given, most)), few)
    if str(params.get("labels", "")).startswith("kmeans:"):
        add("labels", f"kmeans:{min(int(params['labels'].partition(':')[2]), most)}", few)
    if params.get("pca"):
        add(
            "pca",
            min(params["pca"], dim, max(2, n // 4)),
            f"the {dim} features of the network and a quarter of the images at most",
        )
    if "labelings" in params:
        add("labelings", max(1, min(params["labelings"], int(epochs * steps) // 2)), "every other step at most")
    if "negatives" in params and "window" not in params:
        add("negatives", min(params["negatives"], n - 1), "the other images at most")
    if "window" in params:
        size, stride = params["window"]["size"], params["window"]["stride"]
        if size > n or not size:
            add("window.size", 0, f"{n:,} images: no window")
        if stride > n:
            add("window.stride", n, "the images at most")
        if n > 3 * RECENT and not facts.small:
            add("negatives", RECENT, f"{n:,} classes: the most recent ones take part")
    if isinstance(params.get("queue"), int):
        add("queue", min(params["queue"], batch * max(1, n // 2 // batch)), "half of the images at most, whole batches")
    if isinstance(params.get("queue"), Mapping):
        found += _queue(params, path, n, batch, epochs, most)
    if "freeze_prototypes_steps" in params and params["freeze_prototypes_steps"] < 100_000:
        frozen = max(1, min(params["freeze_prototypes_steps"], steps, int(epochs * steps) // 10))
        add("freeze_prototypes_steps", frozen, "an epoch, and a tenth of the run at most")
    if isinstance(params.get(params.get("base", "")), Mapping):
        group = params["base"]
        found += _params(params[group], f"{path}.{group}", facts, batch, epochs, dim)
    return found


def _queue(params: Mapping[str, Any], path: str, n: int, batch: int, epochs: float, most: int) -> list[Choice]:
    """SwAV's queue: 15 batches of 256 for 3000 prototypes, as in the authors' script for small batches."""
    prototypes = min(params["prototypes"], most)
    blocks = min(15, n // 2 // batch)
    if batch >= prototypes or blocks < 1:
        return [Choice(f"{path}.queue.length", 0, f"a batch of {batch} for {prototypes} prototypes needs none")]
    start = int(min(15, epochs * 15 / 400))
    return [
        Choice(
            f"{path}.queue.length",
            blocks * batch,
            f"fewer images in a batch than the {prototypes} prototypes; 15 batches and half of the images at most",
        ),
        Choice(f"{path}.queue.start_epoch", start, "the share of SwAV's script for small batches, 15 of 400 epochs"),
    ]


def _multiple(value: float, of: int) -> int:
    return max(of, of * int(value / of + 0.5))


def _same(base: Mapping[str, Any], choice: Choice) -> bool:
    node: Any = base
    for name in choice.path.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return bool(node == choice.value)
