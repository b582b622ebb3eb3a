"""Records made up for the tests of this room; nothing here was measured."""

import hashlib
from typing import Any

from results.record import SCHEMA, Git, Metric, Provenance, Record

PROVENANCE = Provenance(
    git=Git(commit="0" * 40),
    libraries={"torch": "2.10.0"},
    hardware={"device": "cpu", "name": "a test"},
    threads=1,
    seconds=1.5,
    peak_memory=1000,
)


def sample(model: str = "swav_digits", seed: int | None = 0, value: float = 80.0, **changes: Any) -> Record:
    """A record of ``model``; ``metric`` names its only metric, everything else may be replaced by field name."""
    metric = changes.pop("metric", "top1")
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "model": model,
        "pretrain_seed": seed,
        "protocol": "linear_digits",
        "version": 1,
        "form": "fast",
        "command": f"python -m evaluations run linear_digits {model} pretrain_seed={seed}",
        "pretrain_command": f"python -m reproduce {model} seed={seed}",
        "metrics": {metric: Metric(value=value, n=540, ci=(value - 3, value + 3))},
        "selection": None,
        "test_reads": 1,
        "data_fingerprint": "digits-test",
        "weights_sha256": hashlib.sha256(f"{model}-{seed}".encode()).hexdigest(),
        "predictions_sha256": None,
        "provenance": PROVENANCE,
    }
    return Record(**{**fields, **changes})
