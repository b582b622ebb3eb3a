"""What must fit together before a run begins: a method's settings, the batch, the views, the backbone, the data, the budget.

A method lists its `limits`, a line each: a setting, a relation, a quantity of the run; `refuse` checks them. The plan and the run
call it at the same moment, so that `--plan` refuses what a run would refuse, in the same words. A limit that says `otherwise`
refuses nothing: the run is possible, but a setting of it has no effect or does harm; `warnings` lists those.

    Limit("params.clusters", "<=", "images")
    Limit("params.queue.length", ">=", "batch", off=0)                     0: no queue, no limit
    Limit("params.freeze_prototypes_steps", "<", "steps", share=0.1, otherwise="the prototypes never move")
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from zoo import backbones
from zoo.backbones.dry_run import dry_run
from zoo.errors import UserError

Settings = Mapping[str, Any]
RELATIONS: dict[str, tuple[str, Callable[[Any, Any], bool], Callable[[Any, Any], Any]]] = {
    # words, test of (value, bound), the nearest value that passes (None: there is none to name)
    "<=": ("at most", lambda v, b: v <= b, min),
    "<": ("less than", lambda v, b: v < b, lambda v, b: min(v, b - 1)),
    ">=": ("at least", lambda v, b: v >= b, max),
    ">": ("more than", lambda v, b: v > b, lambda v, b: None),
    "multiple of": ("a multiple of", lambda v, b: v % b == 0, lambda v, b: max(1, round(v / b)) * b),
    "is": ("", lambda v, b: v == b, lambda v, b: b),
}
QUANTITIES = {
    "images": "the {:,} images of the data set",
    "used": "the {:,} images that the batches of an epoch hold",
    "batch": "the batch of {:,}",
    "part": "the {:,} images that a process has of a batch",
    "features": "the {:,} features of the backbone",
    "views": "the {:,} views of an image",
    "processes": "the number of processes, {:,}",
    "steps": "the {:,} steps of the run",
    "epochs": "the {:.3g} epochs of the run",
}


@dataclass(frozen=True)
class Limit:
    """One line of what must fit.

    path       dotted path of a setting of the recipe; of a list, every item is compared
    relation   one of RELATIONS
    bound      a name of QUANTITIES, the dotted path of another setting, or a value
    times      the bound is so many times the quantity
    off        a value of the setting that switches it off: always allowed, and offered as a remedy
    when       settings -> whether the limit holds at all; None: always
    because    why, where the relation does not say it
    instead    `path=value` words of another way out
    otherwise  makes it a warning: what happens beyond the limit
    share      the remedy as a share of the bound, where the nearest allowed value would be of no use
    """

    path: str
    relation: str
    bound: Any
    times: int = 1
    off: Any = None
    when: Callable[[Settings], bool] | None = None
    because: str = ""
    instead: str = ""
    otherwise: str = ""
    share: float | None = None

    def within(self, group: str) -> Limit:
        """The same limit for a method whose settings lie in a group: params.NAME becomes params.GROUP.NAME."""
        when = self.when
        inside = None if when is None else lambda settings: when({**settings, "params": settings["params"][group]})
        path, bound, instead = (
            value.replace("params.", f"params.{group}.") if isinstance(value, str) else value
            for value in (self.path, self.bound, self.instead)
        )
        return replace(self, path=path, bound=bound, instead=instead, when=inside)


def found(settings: Settings, path: str) -> Any:
    """The setting at a dotted path. Raises LookupError where there is none."""
    node: Any = settings
    for name in path.split("."):
        node = node[int(name)] if isinstance(node, list) else (node or {})[name]
    return node


def changed(settings: Settings, path: str, value: Any) -> dict[str, Any]:
    """The settings with one of them set."""
    tree = copy.deepcopy(dict(settings))
    above, _, name = path.rpartition(".")
    node: Any = found(tree, above) if above else tree
    node[int(name) if isinstance(node, list) else name] = value
    return tree


@dataclass(frozen=True)
class Run:
    """Facts about a run: its settings (a recipe's dump), and what follows from them, the data and the processes."""

    settings: Settings
    images: float  # of the data set; infinite where the number is not known beforehand
    features: int  # D of the backbone
    views: int  # of an image
    processes: int
    steps: float
    steps_per_epoch: float

    @property
    def batch(self) -> int:
        return int(self.settings["batch"])

    @property
    def part(self) -> int:
        return self.batch // self.processes

    @property
    def used(self) -> float:
        return self.steps_per_epoch * self.batch

    @property
    def epochs(self) -> float:
        return self.steps / self.steps_per_epoch if self.steps else 0.0

    def get(self, path: str) -> Any:
        """The setting at a dotted path. Raises LookupError where this run has none."""
        return found(self.settings, path)


# For every method. What is too short a run is one for any setting that is counted in epochs or steps.
COMMON = (
    Limit(
        "schedule.warmup_epochs",
        "<",
        "epochs",
        off=0.0,
        share=0.1,
        otherwise="the learning rate never reaches optimizer.lr",
    ),
    Limit("schedule.milestones.0", "<", "epochs", share=0.5, otherwise="the learning rate never falls"),
)


def refuse(limits: Sequence[Limit], run: Run) -> None:
    """Raise UserError for the first limit that the run is beyond: one line with value, bound, and settings that fit."""
    for limit in limits:
        if not limit.otherwise and (complaint := beyond(limit, run)):
            raise UserError(complaint)


def warnings(limits: Sequence[Limit], run: Run) -> list[str]:
    """A line for each limit that the run is beyond and that forbids nothing."""
    doubtful = (*COMMON, *limits) if run.steps else ()
    return [complaint for limit in doubtful if limit.otherwise and (complaint := beyond(limit, run))]


def beyond(limit: Limit, run: Run) -> str:
    """What is wrong about a limit; '' if it holds, or is none of this run's."""
    if limit.when is not None and not limit.when(run.settings):
        return ""
    try:
        value = run.get(limit.path)
    except LookupError:
        return ""
    if value is None or (limit.off is not None and value == limit.off):
        return ""
    bound, name = _bound(limit, run)
    relation, holds, nearest = RELATIONS[limit.relation]
    items = value if isinstance(value, list) else [value]
    if all(holds(item, bound) for item in items):
        return ""
    fits = [type(item)(bound * limit.share) if limit.share is not None else nearest(item, bound) for item in items]
    fits = list(dict.fromkeys(fits)) if limit.relation == "<" else fits  # positions: each of them once
    remedies = [] if None in fits else [f"{limit.path}={shown(fits if isinstance(value, list) else fits[0])}"]
    remedies += [] if limit.off is None else [f"{limit.path}={shown(limit.off)}"]
    remedies += [limit.instead] if limit.instead else []
    verb = "is not" if limit.otherwise else "must be"
    words = " ".join(filter(None, (f"{limit.path}={shown(value)}", verb, relation, name)))
    reason = f": {limit.otherwise or limit.because}" if limit.otherwise or limit.because else ""
    return f"{words}{reason}" + (f"; set {', or '.join(dict.fromkeys(remedies))}" if remedies else "")


def _bound(limit: Limit, run: Run) -> tuple[Any, str]:
    """What a setting is compared with, and its name."""
    if limit.bound in QUANTITIES:
        number = getattr(run, limit.bound)
        times = f"{limit.times} times " if limit.times > 1 else ""
        return number * limit.times, times + QUANTITIES[limit.bound].format(number)
    if isinstance(limit.bound, str) and "." in limit.bound:
        return run.get(limit.bound), f"{limit.bound}={shown(run.get(limit.bound))}"
    return limit.bound, shown(limit.bound)


def shown(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"[{', '.join(map(shown, value))}]" if isinstance(value, list) else str(value)


# -- images and network --------------------------------------------------------------------------------------------------
def require_images(backbone: Any, run: Run) -> None:
    """Raise UserError unless the backbone takes the channels and the sides of the recipe's views. Computes on shapes alone."""
    channels, wanted = run.get("input.channels"), backbone.in_channels
    if channels != wanted:
        known = "in_channels" in backbones.options(run.get("backbone.name"))
        remedy = (
            f"backbone.options.in_channels={channels}"
            if known
            else f"input.channels={wanted}, with as many values of input.mean and input.std"
        )
        raise UserError(f"input.channels={channels}: {run.get('backbone.name')} takes {wanted}; set {remedy}")
    for number, crop in enumerate(run.get("views.crops")):
        shape = (channels, crop["size"], crop["size"])
        try:
            dry_run(backbone, channels, crop["size"])
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"views.crops.{number}.size={crop['size']}: {run.get('backbone.name')} cannot take images of "
                f"{'x'.join(map(str, shape))} ({reason}); choose another size"
            ) from None
