"""`random_*` and `pixels_*` are judged without a pre-training run: their weights are those of the first moment."""

from __future__ import annotations

import json

import pytest
import torch

from evaluations import suite
from evaluations.inputs import models
from evaluations.measure import evaluate
from results import record as records
from zoo.errors import UserError


def committed(model, seed):
    """The weights of a committed record of this model and seed."""
    found = [records.read(path) for path in records.files(records.COMMITTED) if path.parent.name == model]
    return {r.weights_sha256 for r in found if r.pretrain_seed == seed and r.protocol == "knn_digits"}


def test_an_untrained_network_is_judged_with_the_weights_of_the_committed_records(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # of torchrun; the process that writes the weights is alone
    monkeypatch.setenv("RANK", "0")
    model = models.resolve("random_digits", 3, tmp_path)
    first = torch.load(model.weights)["module.conv1.weight"].flatten()[:3].tolist()
    assert first == pytest.approx([0.0834309, 0.0114041, 0.1460697], abs=1e-6)
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT":  # its logarithms round normal numbers otherwise
        assert {model.weights_sha256} == committed("random_digits", 3) != committed("random_digits", 0)
    assert model.pretrain_command == "python -m reproduce random_digits seed=3"
    before = model.weights.stat().st_mtime_ns
    assert models.resolve("random_digits", 3, tmp_path).weights.stat().st_mtime_ns == before


def test_pixels_need_no_run_and_a_plan_makes_none(tmp_path):
    text = suite.plan(["knn_digits"], "pixels_digits", {"out": str(tmp_path)})
    assert "a run makes them first, in seconds" in text and not list(tmp_path.iterdir())
    found = records.read(evaluate("knn_digits", "pixels_digits", {}, out=str(tmp_path), quiet=True))
    assert json.loads((tmp_path / "pixels_digits").glob("*/done.json").__next__().read_text())["steps"] == 0
    known = [
        records.read(p)
        for p in records.files(records.COMMITTED)
        if p.name.startswith("knn_digits--") and p.parent.name == "pixels_digits"
    ]
    assert found.metrics["top1"].value == pytest.approx(known[0].metrics["top1"].value)


def test_a_model_that_is_trained_still_needs_its_run_and_a_failure_is_told(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="run: python -m reproduce swav_digits seed=0"):
        models.resolve("swav_digits", out=tmp_path)
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="random_digits: its weights, which are not trained, could not be made: .*runs"):
        models.resolve("random_digits", out=tmp_path / "runs")
