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
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import dist, provenance
from engine.progress import duration, peak_memory
from results import record as records

from . import sources
from .protocol import load
from .task import Settings, Task


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
    tell = _silent if quiet or not dist.is_main() else say
    sources.forget()
    task = Task.of(protocol_id, model, settings)
    protocol, judged = task.protocol, task.judged
    root = records.COMMITTED if record else task.out / "measured"
    found = task.measured(root)
    if found is not None:
        tell(f"{protocol.name} on {judged.name}: measured before, nothing to do: {found}")
        return found
    others = [Task.of(name, model, settings.plain) for name in also if load(name).dataset == protocol.dataset]
    started = time.perf_counter()
    result, features = task.measure(tell, [request for other in others for request in other.plan])
    seconds = time.perf_counter() - started
    if not dist.is_main():
        dist.barrier()
        return root / judged.name
    written = records.write(
        records.Record(
            schema=records.SCHEMA,
            model=judged.name,
            pretrain_seed=judged.pretrain_seed,
            protocol=protocol.id,
            version=protocol.version,
            form=protocol.form,
            command=command_of(task, model),
            pretrain_command=judged.pretrain_command,
            metrics=result.metrics,
            selection=features.selection,
            test_reads=features.test_reads,
            data_fingerprint=task.fingerprint,
            weights_sha256=judged.weights_sha256,
            predictions_sha256=keep_predictions(result, task.out / "predictions"),
            provenance=_provenance(seconds, device),
            overrides=settings.recorded,
            evaluation_seed=settings.seed,
            input=judged.assumed_input,
            transductive=task.transductive,
        ),
        root,
    )
    dist.barrier()
    tell(f"{protocol.name} on {judged.name}: {summary(result.metrics)}  ({duration(seconds)}) -> {written}")
    return written


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


def command_of(task: Task, model: str) -> str:
    """The command that measures this again, without places of this machine."""
    settings = task.settings
    words = ["python", "-m", "evaluations", "run", task.protocol.id, model]
    if settings.pretrain_seed is not None:
        words.append(f"pretrain_seed={settings.pretrain_seed}")
    if settings.seed:
        words.append(f"seed={settings.seed}")
    if settings.max_bad:
        words.append(f"max_bad={settings.max_bad}")
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


def say(line: str) -> None:
    """Progress goes to stderr, results to stdout."""
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    pass
