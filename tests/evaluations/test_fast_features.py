"""precision=fast: what it is on this machine, in the key of features and in the record; float32 stays as it was."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from evaluations import measure
from evaluations.inputs import models
from evaluations.inputs.features import Compute, FeatureRequest, Features, FeatureStore
from evaluations.measure import Settings
from evaluations.protocol import complete, load
from zoo import data, precision
from zoo.errors import UserError


@pytest.fixture
def protocol():
    return complete(load("knn_digits"))


def test_fast_is_bfloat16_where_it_is_faster_and_the_record_says_which(monkeypatch):
    for units, expected in ((True, "bfloat16-folded"), (False, "float32-folded")):
        monkeypatch.setattr(precision, "has_bfloat16", lambda device=None: True)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda units=units: units, raising=False)
        settings = Settings.of({"precision": "fast", "device": "cpu"})
        assert settings.precision == expected and settings.recorded == {"precision": expected}
    monkeypatch.setattr(precision, "has_bfloat16", lambda device=None: False)
    assert precision.fastest("cpu") == "float32" and Settings.of({"precision": "fast"}).precision == "float32-folded"


def test_the_default_is_the_path_of_the_committed_records():
    assert Settings.of({}).recorded == {}
    assert Compute().path == "cpu float32 channels_last batch norm by torch"
    paths = {Compute(precision=p, folded=f).path for p in ("float32", "bfloat16") for f in (False, True)}
    assert len(paths) == 4


def test_folded_features_are_the_plain_ones_under_another_key(tmp_path, protocol):
    from evaluation_fakes import finished_run

    finished_run("random_digits", tmp_path)
    model = models.resolve("random_digits", out=tmp_path)
    found, keys = [], set()
    for folded in (False, True):
        features = Features(
            model,
            protocol,
            FeatureStore(tmp_path / "features"),
            compute=Compute(folded=folded),
            open_split=lambda split: data.open_source("digits", split),
        )
        request = FeatureRequest("train", model.layers[-1])
        keys.add(features.key(request))
        found.append(np.array(features.get(request), dtype=np.float64))
    assert len(keys) == 2 and not np.array_equal(*found)
    cosine = (found[0] * found[1]).sum(1) / np.linalg.norm(found[0], axis=1) / np.linalg.norm(found[1], axis=1)
    assert cosine.min() > 1 - 1e-6


def test_the_command_of_a_fast_record_computes_the_same_elsewhere(tmp_path, capsys):
    from evaluation_fakes import finished_run

    finished_run("random_digits", tmp_path)
    path = measure.evaluate("knn_digits", "random_digits", {"precision": "fast"}, out=str(tmp_path), quiet=True)
    kept = json.loads(path.read_text())
    (ran,) = {f"{precision.fastest()}-folded"}
    assert kept["overrides"] == {"precision": ran} and f"precision={ran}" in kept["command"]
    assert f"computed in {precision.fastest()}, batch norm folded" in capsys.readouterr().err


def test_a_protocol_without_kept_features_refuses_to_fold(tmp_path):
    from evaluation_fakes import finished_run

    finished_run("random_digits", tmp_path)
    with pytest.raises(UserError, match=r"precision=float32-folded: .* choose float32"):
        measure.evaluate("semisup_digits_10pct", "random_digits", {"precision": "float32-folded"}, out=str(tmp_path))


def test_decoded_is_true_or_false():
    with pytest.raises(UserError, match="decoded=7: true or false"):
        Settings.of({"decoded": 7})
