"""Evaluate one model by one protocol: plan, one pass for features, selection, one look at the test split, one record.

``evaluate("knn_digits", "simclr_digits", {"pretrain_seed": 1})`` returns the path of the record. A measurement that exists is
found by its key and not repeated. Features and models are shared between protocols, in memory and on disk. A ``Measurement``
is one protocol on one model, from its plan to what its kind sees while it runs; ``measure`` runs it with the test split
sealed: the data reader raises until selection has finished.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import backends, checkpoint, dist, provenance
from engine.options import RunOptions
from engine.progress import duration, peak_memory
from results import record as records
from zoo import data
from zoo.data.source import OWN
from zoo.errors import UserError
from zoo.precision import fastest

from . import transductive
from .inputs import datasets, models
from .inputs.features import Compute, FeatureRequest, Features, FeatureStore
from .inputs.models import Model
from .protocol import Protocol, complete, load, module_of, seeded
from .result import Result

PRECISIONS = ("float32", "bfloat16", "float16")
FOLDED = ("float32-folded", "bfloat16-folded")  # batch norm folded into convolutions: the last bits of features change
FAST = "fast"  # the one of FOLDED that this machine computes in the least time
OWN_OPTIONS = {
    "decoded": False,
    "pretrain_seed": None,
    "seed": 0,
    "precision": "float32",
    "batch": 256,
    "download": False,
    "max_bad": None,
}
FORM = (
    "backbone",
    "prefix",
    "path",
    "mean",
    "std",
)  # what a command line may say of a weight file, as zoo.load takes it


@dataclass(frozen=True)
class Settings:
    """What a command line says beside the protocol: the protocol's overrides, and how to run."""

    overrides: dict[str, Any]
    options: RunOptions
    seed: int
    pretrain_seed: int | None
    precision: str
    batch: int
    download: bool
    max_bad: int | None = None
    decoded: bool = False
    form: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any], out: str | None = None) -> Settings:
        rest = dict(given)
        own = {name: rest.pop(name, default) for name, default in OWN_OPTIONS.items()}
        form = {name: rest.pop(name) for name in FORM if rest.get(name) is not None}
        for name in ("pretrain_seed", "seed", "batch", "max_bad"):
            if not isinstance(own[name], int) and not (OWN_OPTIONS[name] is None and own[name] is None):
                raise UserError(f"{name}={own[name]}: must be a whole number")
        if own["precision"] not in (*PRECISIONS, *FOLDED, FAST):
            raise UserError(f"precision={own['precision']}: {' or '.join((*PRECISIONS, *FOLDED, FAST))}")
        if not isinstance(own["decoded"], bool):
            raise UserError(f"decoded={own['decoded']}: true or false")
        plain = {k: v for k, v in rest.items() if k in RunOptions.names()}
        if out is not None:
            plain["out"] = out
        options, _ = RunOptions.split(plain)
        if (
            own["precision"] == FAST
        ):  # recorded as what it is here, so that the record's command computes the same elsewhere
            own["precision"] = f"{fastest(options.device)}-folded"
        return cls({k: v for k, v in rest.items() if k not in RunOptions.names()}, options, **own, form=form)

    @property
    def recorded(self) -> dict[str, Any]:
        """What makes this another measurement than the plain protocol."""
        return {**self.overrides, **self.form, **({"precision": self.precision} if self.precision != "float32" else {})}

    @property
    def plain(self) -> Settings:
        """The same without overrides of a protocol, for another protocol."""
        return replace(self, overrides={})

    def model(self, asked: str, fetch: bool = True) -> Model:
        """The model that a command line names. Raises UserError where there is none, with the command that would make it."""
        return models.resolve(asked, self.pretrain_seed, self.options.out, fetch, self.form)

    @cached_property
    def compute(self) -> Compute:
        """Joins the processes that torchrun started, if any."""
        world = dist.init(self.options.device)
        device = world.device
        backends.configure(self.options, device)
        precision, _, folded = self.precision.partition("-")
        if precision == "bfloat16" and world.is_main and fastest(str(device)) != precision:
            print("precision=bfloat16: float32 is faster on this machine", file=sys.stderr)
        if folded and world.is_main:
            print(f"features are computed in {precision}, batch norm folded into convolutions", file=sys.stderr)
        decoded = Path(self.options.out) / "decoded" if self.decoded else None
        return Compute(device, precision, self.batch, self.options.workers or 0, self.options, bool(folded), decoded)


class Measurement(Features):
    """One protocol on one model. What its kind sees while it runs is itself, as ``Features``.

    open   opens a split of the data with the classes of the training split, unless it is sealed
    """

    def __init__(self, protocol: Protocol, model: Model, settings: Settings, open: Callable[[str], Any]) -> None:
        super().__init__(model, protocol, FeatureStore(Path(settings.options.out) / "features"), open_split=open)
        self.settings = settings

    @classmethod
    def of(cls, protocol_id: str, model: str, settings: Settings, fetch: bool = True) -> Measurement:
        """Raises UserError: unknown protocol, path or model, no finished run, data not found.

        fetch   False: neither weights nor data are downloaded, for plans.
        """
        protocol = complete(load(protocol_id, settings.overrides))
        able = getattr(module_of(protocol.kind), "PRECISIONS", PRECISIONS[:2])
        if settings.precision.removesuffix("-folded") not in able:
            raise UserError(f"precision={settings.precision}: {protocol.id} computes in {' or '.join(able)}")
        if protocol.seeds > 1 and not seeded(protocol):
            raise UserError(f"seeds={protocol.seeds}: {protocol.id} has no repetitions under other seeds; leave it out")
        arranged, opener = datasets.open_for(
            protocol, settings.options.data, settings.download, fetch, settings.max_bad
        )
        return cls(arranged, settings.model(model, fetch), settings, opener)

    @property
    def compute(self) -> Compute:
        return self.settings.compute

    @property
    def out(self) -> Path:
        return Path(self.settings.options.out)

    @property
    def workspace(self) -> Path:
        """A folder for what this measurement keeps while it runs: checkpoints of heads."""
        return self.out / "probes" / self.model.name / f"{self.protocol.id}--{self.record_key}"

    @cached_property
    def fingerprint(self) -> str:
        """One hash over the identities of every split of the protocol, taken before any of them is sealed."""
        splits = self.protocol.splits
        used = dict.fromkeys(s for s in (splits.train, splits.fit, splits.val, splits.test) if s)
        each = [self._fingerprint(split) for split in used]
        return each[0] if len(each) == 1 else hashlib.sha256("\n".join(each).encode()).hexdigest()[:32]

    def _fingerprint(self, split: str) -> str:
        place = self.protocol.dataset, self.settings.options.data, split
        if place in _FINGERPRINTS:
            return _FINGERPRINTS[place]
        source = self.open(split)
        if source.dataset in data.names() and source.dataset not in OWN:  # not what may be edited at any time
            _FINGERPRINTS[place] = source.identity
        return str(source.identity)

    @cached_property
    def record_key(self) -> str:
        """The name of this measurement, known before it is made."""
        return records.key(
            weights_sha256=self.model.weights_sha256,
            data_fingerprint=self.fingerprint,
            protocol=self.protocol.id,
            version=self.protocol.version,
            overrides=self.settings.recorded,
            evaluation_seed=self.settings.seed,
        )

    def measured(self, root: Path) -> Path | None:
        """The record of this measurement below ``root``, if it was made before."""
        return records.find(root, self.model.name, self.protocol.id, self.record_key)

    @property
    def plan(self) -> list[FeatureRequest]:
        return list(module_of(self.protocol.kind).plan(self.protocol, self.model))

    def check(self) -> None:
        """Raises UserError for whatever a run would refuse: layers, settings that do not go together, too few images or
        labels. Opens the splits, and so comes before any of them is sealed; a plan asks it too."""
        if not self.plan and self.settings.precision in FOLDED:
            raise UserError(
                f"precision={self.settings.precision}: {self.protocol.id} keeps no features; choose {self.settings.precision.removesuffix('-folded')}"
            )
        module_of(self.protocol.kind).check(self.protocol, self.model, self.open)

    @property
    def closed(self) -> list[str]:
        """Splits to seal: the test split, unless it also serves to fit or to select; a set that was cut in two as well."""
        splits = self.protocol.splits
        if splits.test in (splits.train, splits.fit, splits.val):
            return []
        return [splits.test, *(["train"] if splits.test == datasets.HELD_OUT else [])]

    @property
    def scored(self) -> str:
        """The split whose images give the metrics."""
        splits, head = self.protocol.splits, self.protocol.head
        return splits.train if head.get("score") == "train" or head.get("assignments") == "own" else splits.test

    @property
    def transductive(self) -> bool:
        """Whether pre-training read images of the scored split, without their labels. Opens it: not under seal."""
        place = self.protocol.dataset, self.scored, self.settings.options.data
        return transductive.saw(self.model, self.open(self.scored), *place)

    def measure(self, say: Callable[[str], None] = lambda line: None, also: Iterable[FeatureRequest] = ()) -> Result:
        """The evaluation under seal. ``also``: what will be asked of the same images later, and is computed in the same pass."""
        self.check()
        _ = self.record_key  # fingerprints first: a sealed split cannot be opened
        with ExitStack() as stack:
            seals = [stack.enter_context(data.sealed(split)) for split in self.closed]

            def release() -> None:
                for seal in seals:
                    seal.release()

            self.begin(release, [*self.plan, *also], say)
            found: Result = module_of(self.protocol.kind).run(self.protocol, self, self.settings.seed)
            return found


_FINGERPRINTS: dict[tuple[str, str | None, str], str] = {}


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
    _ = settings.compute  # joins the other processes first
    tell = _silent if quiet or not dist.is_main() else say
    datasets.forget()
    measurement = Measurement.of(protocol_id, model, settings)
    title = f"{measurement.protocol.name} on {measurement.model.name}"
    dist.require_same(
        lambda: measurement.record_key,
        lambda *_: f"{title}: other images or weights here than on process 0; bring the same files to every machine",
    )
    root = records.COMMITTED if record else measurement.out / "measured"
    found = measurement.measured(root)
    if found is not None:
        tell(f"{title}: measured before, nothing to do: {found}")
        return found
    others = [
        Measurement.of(name, model, settings.plain)
        for name in also
        if load(name).dataset == measurement.protocol.dataset
    ]
    started = time.perf_counter()
    result = measurement.measure(tell, [request for other in others for request in other.plan])
    seconds = time.perf_counter() - started
    if not dist.is_main():
        dist.barrier()
        return root / measurement.model.name
    written = records.write(record_of(measurement, result, seconds), root)
    dist.barrier()
    tell(f"{title}: {summary(result.metrics)}  ({duration(seconds)}) -> {written}")
    return written


def record_of(measurement: Measurement, result: Result, seconds: float) -> records.Record:
    """The record of a measurement that is made; its predictions are kept in a file."""
    protocol, model = measurement.protocol, measurement.model
    return records.Record(
        schema=records.SCHEMA,
        model=model.name,
        pretrain_seed=model.pretrain_seed,
        protocol=protocol.id,
        version=protocol.version,
        form=protocol.form,
        command=command_of(measurement),
        pretrain_command=model.pretrain_command,
        metrics=result.metrics,
        selection=measurement.selection,
        test_reads=measurement.test_reads,
        data_fingerprint=measurement.fingerprint,
        weights_sha256=model.weights_sha256,
        predictions_sha256=keep_predictions(result, measurement.out / "predictions"),
        provenance=_provenance(seconds, measurement.compute),
        overrides=measurement.settings.recorded,
        evaluation_seed=measurement.settings.seed,
        input=model.assumed_input,
        transductive=measurement.transductive,
    )


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
        arrays = {"predictions": result.predictions, "correct": correct}
        checkpoint.write_atomic(target, lambda file: np.savez_compressed(file, **arrays))
    return name


def command_of(measurement: Measurement) -> str:
    """The command that measures this again, without places of this machine."""
    settings = measurement.settings
    words = ["python", "-m", "evaluations", "run", measurement.protocol.id, measurement.model.asked]
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


def _provenance(seconds: float, compute: Compute) -> records.Provenance:
    found, device = _collected(), compute.device
    told = " ".join(f"{k}={v}" for k, v in backends.settings(compute.options, device, compute.passes).items())
    return records.Provenance(
        git=records.Git(found["git"]["commit"], bool(found["git"]["dirty"])),
        libraries=found["versions"],
        hardware={
            **found["hardware"],
            "platform": found["platform"],
            "device": device.type,
            **({"told": told} if told else {}),
        },
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
