"""A weight file of another project is judged like any model: as recognised or as its owner says, and the record says which."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evaluations import suite
from evaluations.inputs import models
from evaluations.measure import evaluate
from results import record as records
from zoo.backbones import build
from zoo.errors import UserError


@pytest.fixture
def file(tmp_path):
    """A small network as a solo-learn file with a momentum copy of other numbers, the network and its copy."""
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(build({"name": "tiny_resnet", "width": 16, "blocks": [1, 1], "in_channels": 3}).eval())
    state = {f"backbone.{k}": v for k, v in made[0].state_dict().items()} | {
        f"momentum_backbone.{k}": v for k, v in made[1].state_dict().items()
    }
    torch.save(
        {"state_dict": state | nn.Linear(4, 4).state_dict(prefix="projector.0."), "epoch": 1}, tmp_path / "own.ckpt"
    )
    return tmp_path / "own.ckpt", *made


def measure(tmp_path, file, **given):
    return records.read(
        evaluate("knn_digits", str(file), {"grid.k": [1], **given}, out=str(tmp_path / "runs"), quiet=True)
    )


def test_the_assumed_input_stands_in_the_record_and_another_one_is_another_measurement(tmp_path, file):
    path, *_ = file
    assumed = measure(tmp_path, path)
    assert assumed.input == {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}
    assert records.parse(records.dumps(assumed), "x") == assumed
    said = measure(tmp_path, path, mean=[0.5] * 3, std=[0.25] * 3)
    assert said.input is None and said.overrides["mean"] == [0.5] * 3 and said.key != assumed.key
    assert "'mean=[0.5, 0.5, 0.5]'" in said.command and '"input"' not in records.dumps(said)
    assert assumed.metrics["top1"].value > 60


def test_prefix_chooses_the_network_that_is_judged(tmp_path, file):
    path, online, momentum = file
    x = torch.randn(2, 3, 16, 16)
    for prefix, net in (("backbone.", online), ("momentum_backbone.", momentum)):
        judged = models.resolve(str(path), form={"prefix": prefix, "path": "state_dict"})
        assert torch.equal(judged.backbone(x), net(x))
    one, two = (models.resolve(str(path), form={"prefix": p}) for p in ("backbone.", "momentum_backbone."))
    assert one.weights_sha256 == two.weights_sha256 and one.description != two.description, (
        "their features are kept apart"
    )
    a, b = (measure(tmp_path, path, prefix=p) for p in ("backbone.", "momentum_backbone."))
    assert a.key != b.key and a.predictions_sha256 != b.predictions_sha256


def test_a_plan_and_a_suite_take_the_same_words_and_ids_refuse_them(tmp_path, file):
    path, *_ = file
    given = {"prefix": "momentum_backbone.", "mean": [0.5] * 3, "std": [0.5] * 3, "out": str(tmp_path)}
    assert "knn_digits" in suite.plan(["knn_digits"], str(path), given)
    assert suite.choose(str(path), {**given, "only": "knn_digits"}) == ["knn_digits"]
    with pytest.raises(UserError, match="prefix describes a weight file; this is none"):
        models.resolve("random_digits", form={"prefix": "x."})
    with pytest.raises(UserError, match="mean= and std= belong together"):
        models.resolve(str(path), form={"mean": [0.5] * 3})
