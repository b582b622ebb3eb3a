"""How to run, as opposed to what: not part of a recipe's hash. On a CPU nothing here changes a result; on a GPU ``tf32`` and ``half_features`` do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints

from .errors import UserError, suggest


@dataclass(frozen=True)
class RunOptions:
    """Options of a command, given as `name=value` beside a recipe's settings."""

    data: str | None = None  # folder of the data set; beats SELFZOO_DATA and the usual places
    out: str = "runs"  # folder of run folders
    device: str = "auto"  # auto, cpu, cuda, cuda:0
    workers: int | None = None  # processes that decode images, per training process; null: the cores that are left
    threads: int = 0  # CPU threads of torch; 0: as torch decides
    deterministic: bool = (
        False  # on a GPU: the same bits every time, slower; exact resume there is promised only with it
    )
    cudnn_benchmark: bool = (
        True  # on a GPU: time the algorithms of a convolution and keep the fastest; not when deterministic
    )
    tf32: bool = False  # on a GPU: products of float32 in TF32, 10 bits of mantissa, faster
    half_features: bool = (
        True  # on a GPU that has bfloat16: features of a network that is not trained in it, by autocast
    )
    resume: bool = True  # go on from the checkpoint; false: start again and delete what is there
    log_interval: int = 10  # steps between lines of log.jsonl
    # steps between checkpoints; 0: 20, or more where saving would take over 2 % of the time
    checkpoint_interval: int = 0
    # epochs between snapshots of the weights, epochs/N, each a model of its own (RUN@N); also just before a drop of the rate; 0: none
    checkpoint_keep: int = 0
    stop_after: int = 0  # stop, with a checkpoint, when this many steps are done; 0: run to the end
    tensorboard: bool = True  # write TensorBoard events where tensorboard is installed
    # look at labelled images while it trains (reproduce/monitor.py): {knn: 5, images: 2000, every: EPOCHS, split: train}; null: do not
    monitor: dict | None = None

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            value = getattr(self, field.name)
            allowed = get_args(hints[field.name]) or (hints[field.name],)
            if type(value) not in allowed:
                names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
                raise UserError(f"{field.name}={value}: must be {names}")
        for name in ("workers", "threads", "stop_after", "log_interval", "checkpoint_interval", "checkpoint_keep"):
            least = 1 if name == "log_interval" else 0
            if (getattr(self, name) or 0) < least:
                raise UserError(f"{name}={getattr(self, name)}: must be at least {least}")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    @classmethod
    def split(cls, overrides: Mapping[str, Any]) -> tuple[RunOptions, dict[str, Any]]:
        """The options among the overrides, and the rest, which are settings of a recipe or a protocol."""
        known = cls.names()
        for name in overrides:
            if name not in known and (hint := suggest(name, known, 0.8)):
                raise UserError(f"unknown option {name!r}{hint}")
        options = {name: value for name, value in overrides.items() if name in known}
        inner = {name.partition(".")[2]: value for name, value in overrides.items() if name.startswith("monitor.")}
        if inner:
            options["monitor"] = {**(options.get("monitor") or {}), **inner}
            overrides = {name: value for name, value in overrides.items() if not name.startswith("monitor.")}
        # A path or a device may look like a number to YAML: data=2012, device=0.
        for name in ("data", "out", "device"):
            if type(options.get(name)) in (int, float):
                options[name] = str(options[name])
        return cls(**options), {name: value for name, value in overrides.items() if name not in known}
