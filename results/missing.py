"""Empty measured cells of a table: the run and the evaluations that fill each, and what is missing for them here.

A cell is empty while any of its runs (pre-training seeds, see ``seeds`` in tables.yaml) has no record. A run is one set of weights:
released ones that are fetched, or a pre-training with one seed. Its evaluations follow.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from zoo.data.specs import describe

from .compare import PROTOCOLS
from .published import Catalogue
from .store import REPOSITORY, RecordStore
from .tables import Column, Table, row_names

LARGE = 300_000  # training images beyond which a pre-training without a GPU takes months
IMAGES_PER_GPU = 64  # of a batch; SwAV's authors: 4096 on 64 GPUs


@dataclass(frozen=True)
class Evaluation:
    """One record to be made: its command, why it cannot be made (empty: it can), and its usual duration in seconds."""

    protocol: str
    words: tuple[str, ...]
    missing: tuple[str, ...]
    seconds: float | None


@dataclass(frozen=True)
class Run:
    """One set of weights and the evaluations of it that a table lacks. ``first``: the command that brings the weights."""

    model: str
    seed: int | None
    first: tuple[str, ...]
    missing: tuple[str, ...]
    seconds: float | None
    said: str  # where ``seconds`` comes from
    gpus: int
    evaluations: tuple[Evaluation, ...] = field(default=())

    @property
    def ready(self) -> list[Evaluation]:
        return [] if self.missing else [e for e in self.evaluations if not e.missing]

    @property
    def cost(self) -> float:
        """Seconds of what can run; infinite when a part of it is not known."""
        parts = [self.seconds, *(e.seconds for e in self.ready)]
        return sum(p for p in parts if p is not None) if None not in parts else math.inf

    @property
    def name(self) -> str:
        return self.model if self.seed is None else f"{self.model} seed {self.seed}"


def missing(
    table: Table,
    roots: Sequence[Path],
    catalogue: Catalogue,
    *,
    out: Path = Path("runs"),
    record: bool = False,
    given: Mapping[str, Any] | None = None,
) -> list[Run]:
    """The runs that a table lacks, the cheapest first."""
    store, found = RecordStore(roots), []
    own = RecordStore(roots[-1:])
    usual = durations(store)
    for row in row_names(table, catalogue):
        if row in catalogue.external:
            continue
        entry = catalogue.entry(row)
        wanted: list[int | None] = [None] if entry.weights is not None else list(range(seeds(table, row)))
        lacking: dict[int | None, dict[tuple[str, str], Evaluation]] = {}
        for column in table.columns:
            if column.kind != "measured":
                continue
            protocol, version = question(column, row, catalogue)
            have = _seeds(store, row, protocol, column)
            if set(wanted) <= have:
                continue
            if len(roots) > 1:  # own records replace the committed ones of a cell, so that all of them are needed
                have = _seeds(own, row, protocol, column)
            for seed in wanted:
                if seed not in have:
                    one = _evaluation(row, seed, protocol, version, column, out, record, given or {}, usual)
                    lacking.setdefault(seed, {}).setdefault((protocol, str(column.overrides)), one)
        for seed, evaluations in lacking.items():
            found.append(_weights(entry, seed, out, given or {}, tuple(evaluations.values()), catalogue))
    return sorted(found, key=lambda run: (run.cost, run.name))


def seeds(table: Table, row: str) -> int:
    """Pre-training seeds of a row: the last pattern of ``seeds`` in tables.yaml that fits it, else one."""
    fits = [count for pattern, count in table.seeds.items() if fnmatchcase(row, pattern)]
    return fits[-1] if fits else 1


def question(column: Column, row: str, catalogue: Catalogue) -> tuple[str, int]:
    """(protocol, version) by which a row is measured: that of its published number where the column has several."""
    told = {fact.published.protocol for fact in catalogue.facts(row)}
    protocol, version, _ = next((q for q in column.questions if q[0] in told), column.question)
    return protocol, version


def durations(store: RecordStore) -> dict[str, float]:
    """{protocol: median seconds of its records}."""
    spent: dict[str, list[float]] = {}
    for stored in store.all():
        spent.setdefault(stored.record.protocol, []).append(stored.record.provenance.seconds)
    return {protocol: statistics.median(values) for protocol, values in spent.items()}


def pretraining_seconds(entry: Any, catalogue: Catalogue) -> tuple[float | None, str]:
    """Seconds of a pre-training and where they come from: candidates of its recipe tried here, or a published time per epoch."""
    file = REPOSITORY / "results" / "selection" / f"{entry.id}.yaml"
    if file.is_file():
        best = max(yaml.safe_load(file.read_text(encoding="utf-8"))["candidates"], key=lambda c: c["score"])
        return statistics.fmean(best["cpu_seconds"]), f"one core, results/selection/{file.name}"
    for fact in catalogue.facts(entry.id):
        if fact.published.metric == "seconds_per_epoch" and entry.recipe.schedule.epochs:
            note = f" ({fact.published.note})" if fact.published.note else ""
            return fact.published.value * entry.recipe.schedule.epochs, f"published time per epoch{note}"
    return None, ""


def _evaluation(
    row: str, seed: int | None, protocol: str, version: int, column: Column, out: Path, record: bool,
    given: Mapping[str, Any], usual: Mapping[str, float],
) -> Evaluation:  # fmt: skip
    from zoo.settings import read_like

    words = ["python", "-m", "evaluations", "run", protocol, row]
    words += [f"pretrain_seed={seed}"] if seed is not None else []
    words += [
        f"{path}={yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}"
        for path, value in column.overrides.items()
    ]
    words += [f"{key}={value}" for key, value in given.items()]
    words += [] if out == Path("runs") else [f"out={out}"]
    words += ["--record"] if record else []
    file = PROTOCOLS / f"{protocol}.yaml"
    if not file.is_file():
        return Evaluation(
            protocol, tuple(words), (f"protocol {protocol}: its file does not exist, and no code runs it",), None
        )
    told = read_like(file)
    lack = _data(told.get("dataset"), given)
    if told.get("version") != version:
        lack += [
            f"protocol {protocol}@{version}: the file has @{told.get('version')} now; set it in results/tables.yaml"
        ]
    if not lack and told.get("form") == "faithful" and _large(told.get("dataset")) and not _gpu(given):
        lack += [
            "a GPU: its probe passes a large data set through the network in every epoch (device=cpu runs it all the same)"
        ]
    return Evaluation(protocol, tuple(words), tuple(lack), usual.get(protocol))


def _weights(
    entry: Any, seed: int | None, out: Path, given: Mapping[str, Any], evaluations: tuple[Evaluation, ...],
    catalogue: Catalogue,
) -> Run:  # fmt: skip
    from zoo import fetch

    if seed is None:
        item = fetch.item(entry.id)
        if item.place.is_file():
            return Run(entry.id, None, (), (), 0.0, "", 1, evaluations)
        lost = (f"weights of {entry.id}: lost since {item.lost}",) if item.lost else ()
        return Run(entry.id, None, ("python", "-m", "zoo", "fetch", entry.id), lost, None, "", 1, evaluations)
    if entry.recipe is None:
        said = f"; {entry.reproduced_by} trains the same objective" if entry.reproduced_by else ""
        return Run(
            entry.id,
            seed,
            (),
            (f"weights and recipe of {entry.id}: neither was released{said}",),
            None,
            "",
            1,
            evaluations,
        )
    words = ["python", "-m", "reproduce", entry.id, f"seed={seed}", *(f"{key}={value}" for key, value in given.items())]
    words += [] if out == Path("runs") else [f"out={out}"]
    lack = _data(entry.recipe.dataset, given)
    if _large(entry.recipe.dataset) and not _gpu(given):
        lack += ["a GPU: pre-training on a large data set takes months without (device=cpu runs it all the same)"]
    seconds, said = pretraining_seconds(entry, catalogue)
    gpus = max(1, entry.recipe.batch // IMAGES_PER_GPU) if not entry.laptop else 1
    return Run(entry.id, seed, tuple(words), tuple(lack), seconds, said, gpus, evaluations)


def _seeds(store: RecordStore, row: str, protocol: str, column: Column) -> set[int | None]:
    """Pre-training seeds that have a record; any record counts for released weights."""
    records = [
        s.record for s in store.of(row) if s.record.protocol == protocol and s.record.overrides == column.overrides
    ]
    return {r.pretrain_seed for r in records if column.metric in r.metrics}


def _data(dataset: str | None, given: Mapping[str, Any]) -> list[str]:
    from zoo.data import locate

    if dataset is None or "data" in given:
        return []
    spec = describe(dataset)
    return [f"data {dataset}: {spec.prepare}"] if locate.present(spec) == "-" else []


def _large(dataset: str | None) -> bool:
    splits = describe(dataset).splits.values() if dataset else []
    return any((rule.count or rule.about or 0) > LARGE for rule in splits)


def _gpu(given: Mapping[str, Any]) -> bool:
    if "device" in given:
        return True  # what was named is what is used
    import torch

    return torch.cuda.is_available()
