"""Judge one model by one protocol: plan, one pass, selection, one look at the test split, one record.

``evaluate("knn_digits", "simclr_digits", {"pretrain_seed": 1})`` returns the path of the record. The same measurement
again is found by its key and not repeated. Features and models are shared between protocols, in memory and on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import dist, provenance
from engine.options import RunOptions
from engine.progress import duration, peak_memory
from results import record as records
from zoo import data
from zoo.errors import UserError

from . import models
from .features import Compute, FeatureRequest, Features, Store
from .protocol import Protocol, complete, load

OWN_OPTIONS = {"pretrain_seed": None, "seed": 0, "precision": "float32", "batch": 256}


@dataclass(frozen=True)
class Settings:
    """What a command line says beside the protocol: the protocol's overrides, and how to run."""

    overrides: dict[str, Any]
    options: RunOptions
    seed: int
    pretrain_seed: int | None
    precision: str
    batch: int

    @classmethod
    def of(cls, given: Mapping[str, Any], out: str | None = None) -> Settings:
        rest = dict(given)
        own = {name: rest.pop(name, default) for name, default in OWN_OPTIONS.items()}
        for name in ("pretrain_seed", "seed", "batch"):
            if not isinstance(own[name], int) and not (name == "pretrain_seed" and own[name] is None):
                raise UserError(f"{name}={own[name]}: must be a whole number")
        if own["precision"] not in ("float32", "bfloat16"):
            raise UserError(f"precision={own['precision']}: float32 or bfloat16")
        plain = {k: v for k, v in rest.items() if k in RunOptions.names()}
        if out is not None:
            plain["out"] = out
        options, _ = RunOptions.split(plain)
        return cls({k: v for k, v in rest.items() if k not in RunOptions.names()}, options, **own)

    @property
    def recorded(self) -> dict[str, Any]:
        """What makes this another measurement than the plain protocol."""
        return {**self.overrides, **({"precision": self.precision} if self.precision != "float32" else {})}

    @cached_property
    def compute(self) -> Compute:
        """Joins the processes that torchrun started, if any."""
        device = dist.init(self.options.device).device
        return Compute(device, self.precision, self.batch, self.options.workers)


def evaluate(
    protocol_id: str,
    model: str,
    overrides: Mapping[str, Any] | None = None,
    out: str | None = None,
    record: bool = False,
    quiet: bool = False,
    also: Iterable[str] = (),
) -> Path:
    """Measure and write the record; returns its path. ``also``: protocols that will follow on the same features.

    overrides  dotted paths of the protocol, and data, device, workers, precision, pretrain_seed, seed
    record     write below results/measured/ (the project's own models) instead of <out>/measured/
    Raises UserError: unknown protocol, model or path, no finished run, data not found.
    """
    settings = Settings.of(overrides or {}, out)
    if settings.options.threads:
        torch.set_num_threads(settings.options.threads)
    device = settings.compute.device  # joins the other processes first
    say = _silent if quiet or not dist.is_main() else _say
    protocol = complete(load(protocol_id, settings.overrides))
    judged = models.resolve(model, settings.pretrain_seed, settings.options.out)
    root = records.COMMITTED if record else Path(settings.options.out) / "measured"
    found = measured(protocol, judged, settings, root)
    if found is not None:
        say(f"{protocol.name} on {judged.name}: measured before, nothing to do: {found}")
        return found
    plans = [plan_of(complete(load(name)), judged) for name in also if load(name).dataset == protocol.dataset]
    started = time.perf_counter()
    result, features = measure(protocol, judged, settings, say, [r for plan in plans for r in plan])
    seconds = time.perf_counter() - started
    if not dist.is_main():
        dist.barrier()
        return root / judged.name
    predictions = keep_predictions(result, Path(settings.options.out) / "predictions")
    written = records.write(
        records.Record(
            schema=records.SCHEMA,
            model=judged.name,
            pretrain_seed=judged.pretrain_seed,
            protocol=protocol.id,
            version=protocol.version,
            form=protocol.form,
            command=command_of(protocol, model, settings, record),
            pretrain_command=judged.pretrain_command,
            metrics=result.metrics,
            selection=features.selection,
            test_reads=features.test_reads,
            data_fingerprint=fingerprint_of(protocol, settings),
            weights_sha256=judged.weights_sha256,
            predictions_sha256=predictions,
            provenance=_provenance(seconds, device),
            overrides=settings.recorded,
            evaluation_seed=settings.seed,
            transductive=judged.saw(protocol.dataset, protocol.splits.test),
        ),
        root,
    )
    dist.barrier()
    say(f"{protocol.name} on {judged.name}: {summary(result.metrics)}  ({duration(seconds)}) -> {written}")
    return written


def measured(protocol: Protocol, judged: models.Model, settings: Settings, root: Path) -> Path | None:
    """The record of this measurement below ``root``, if it was made before."""
    return records.find(root, judged.name, protocol.id, key_of(protocol, judged, settings))


def key_of(protocol: Protocol, judged: models.Model, settings: Settings) -> str:
    """The name of this measurement, known before it is made."""
    return records.key(
        weights_sha256=judged.weights_sha256,
        data_fingerprint=fingerprint_of(protocol, settings),
        protocol=protocol.id,
        version=protocol.version,
        overrides=settings.recorded,
        evaluation_seed=settings.seed,
    )


def measure(
    protocol: Protocol, judged: models.Model, settings: Settings, say: Any = None, also: Iterable[FeatureRequest] = ()
) -> tuple[Any, Features]:
    """Run the evaluation with its test split sealed: the data reader raises until selection has finished."""
    module = import_module(f"evaluations.{protocol.kind}")
    with ExitStack() as stack:
        closed = sealed_split(protocol)
        seal = stack.enter_context(data.sealed(closed)) if closed else None
        features = Features(
            judged,
            protocol,
            Store(Path(settings.options.out) / "features"),
            compute=settings.compute,
            open_split=lambda split: data.open_source(protocol.dataset, split, root=settings.options.data),
            release=seal.release if seal else _nothing,
            also=[*module.plan(protocol, judged), *also],
            say=say or _silent,
            workspace=Path(settings.options.out)
            / "probes"
            / judged.name
            / f"{protocol.id}--{key_of(protocol, judged, settings)}",
        )
        return module.run(protocol, features, settings.seed), features


def sealed_split(protocol: Protocol) -> str | None:
    """The test split; None when it also serves to fit or to select (then there is nothing to keep closed)."""
    return protocol.splits.test if protocol.splits.test not in (protocol.splits.train, protocol.splits.val) else None


def plan_of(protocol: Protocol, judged: models.Model) -> list[FeatureRequest]:
    return list(import_module(f"evaluations.{protocol.kind}").plan(protocol, judged))


def fingerprint_of(protocol: Protocol, settings: Settings) -> str:
    """One hash over the fingerprints of every split of the protocol, taken before any of them is sealed."""
    splits = dict.fromkeys(s for s in (protocol.splits.train, protocol.splits.val, protocol.splits.test) if s)
    each = [_fingerprint(protocol.dataset, split, settings.options.data) for split in splits]
    return each[0] if len(each) == 1 else hashlib.sha256("\n".join(each).encode()).hexdigest()[:32]


@lru_cache(maxsize=64)
def _fingerprint(dataset: str, split: str, root: str | None) -> str:
    return str(data.open_source(dataset, split, root=root).fingerprint)


def keep_predictions(result: Any, folder: Path) -> str | None:
    """Predictions and per-sample correctness in a file named by its hash, for ``pair``."""
    if result.predictions is None:
        return None
    correct = result.correct if result.correct is not None else np.zeros(0, np.float32)
    digest = hashlib.sha256()
    for array in (result.predictions, correct):
        digest.update(f"{array.dtype.str} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    name = digest.hexdigest()
    target = folder / f"{name}.npz"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{name}.{os.getpid()}.npz"
        np.savez_compressed(temporary, predictions=result.predictions, correct=correct)
        os.replace(temporary, target)
    return name


def command_of(protocol: Protocol, model: str, settings: Settings, record: bool) -> str:
    """The command that measures this again, without places of this machine."""
    words = ["python", "-m", "evaluations", "run", protocol.id, model]
    if settings.pretrain_seed is not None:
        words.append(f"pretrain_seed={settings.pretrain_seed}")
    if settings.seed:
        words.append(f"seed={settings.seed}")
    words += [f"{path}={v if isinstance(v, str) else json.dumps(v)}" for path, v in settings.recorded.items()]
    return shlex.join(words)


def summary(metrics: Mapping[str, records.Metric]) -> str:
    """``top1 96.3 ± 0.2, top5 99.1``; what papers print from the test split stays out."""
    shown = [(n, m) for n, m in metrics.items() if m.style == "honest"]
    return ", ".join(f"{n} {m.value:.1f}" + (f" ± {m.sd:.1f}" if m.sd is not None else "") for n, m in shown)


def _provenance(seconds: float, device: torch.device) -> records.Provenance:
    found = _collected()
    return records.Provenance(
        git=records.Git(found["git"]["commit"], bool(found["git"]["dirty"])),
        libraries=found["versions"],
        hardware={**found["hardware"], "platform": found["platform"], "device": device.type},
        threads=torch.get_num_threads(),
        seconds=round(seconds, 3),
        peak_memory=peak_memory(device),
    )


@lru_cache(maxsize=1)
def _collected() -> dict[str, Any]:
    return provenance.collect()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    pass


def _nothing() -> None:
    pass
