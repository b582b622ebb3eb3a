"""The suite runs what the data at hand permit, keeps what is done, and reports what cannot run without stopping."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_fakes import finished_run, protocol

from evaluations import faithful, multilabel, suite
from evaluations.__main__ import main
from results import record as records
from zoo.errors import UserError, guard


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs")
    finished_run("random_digits", where)
    return where


def test_the_plan_names_passes_images_and_disk_and_the_suite_ends_with_every_number(out, capsys):
    given = [f"out={out}", "only=[kc]*_digits"]
    assert guard(lambda: main(["suite", "random_digits", *given, "--plan"])) == 0
    plan = capsys.readouterr().out
    assert "2 protocols, 0 measured already" in plan and "2 passes, 1,797 images" in plan and "MB of features" in plan
    assert not (out / "measured").exists()
    assert guard(lambda: main(["suite", "random_digits", *given])) == 0
    said = capsys.readouterr().out
    paths = sorted((out / "measured").rglob("*.json"))
    assert [p.name.split("--")[0] for p in paths] == ["cluster_digits", "knn_digits"]
    assert all(str(p) in said for p in paths) and f"top1 {records.read(paths[1]).metrics['top1'].value:.1f}" in said
    guard(lambda: main(["suite", "random_digits", *given, "--plan"]))
    assert "2 measured already" in capsys.readouterr().out


def test_a_protocol_that_cannot_run_is_reported_and_the_others_go_on(out, capsys, monkeypatch):
    real = suite.evaluate

    def breaks(name, *rest, **more):
        if name.startswith("cluster"):
            raise UserError("no such thing")
        return real(name, *rest, **more)

    monkeypatch.setattr(suite, "evaluate", breaks)
    assert suite.run(["cluster_digits", "knn_digits"], "random_digits", {"out": str(out)}) == 2
    said = capsys.readouterr().out
    assert "error: no such thing" in said and "top1" in said


def test_the_suite_is_that_of_the_data_set_a_model_was_trained_on(out):
    chosen = suite.choose("random_digits", {"out": str(out)})
    assert {"linear_digits", "semisup_digits_10pct"} <= set(chosen) and all("digits" in name for name in chosen)
    with pytest.raises(UserError, match="only=PATTERN"):
        suite.choose("random_digits", {"out": str(out), "only": "voc07_*_deepercluster"})


def test_several_labels_are_learned_on_several_layers_and_chosen_on_val(tmp_path, monkeypatch):
    """Heads on fixed maps in place of a network: two classes that are two of the channels."""
    rng = np.random.default_rng(0)
    targets = {s: rng.integers(0, 2, (60, 2)).astype(np.uint8) for s in ("train", "val", "trainval", "test")}
    targets["trainval"][:5, 0] = 255
    opened = []

    class Features:
        compute, workspace = None, tmp_path

        def source(self, split):
            assert split != "test" or self.selection is not None, "the test split was opened before selection"
            opened.append(split)
            return type("Source", (), {"targets": targets[split]})()

        selection = None

        def finish_selection(self, selection):
            self.selection = selection

    def trained(wanted, head, features, given, weights, grid, seed, loss):
        assert given is features.source(wanted.splits.train).targets
        return type("Trained", (), {"heads": {"res2": 1, "res3": 1}, "kept": {1: None}})()

    def scores(features, split, found, view, which):
        truth = features.source(split).targets == 1
        cell = np.array([c for _, c, _ in which])[:, None, None]
        noise = rng.standard_normal((len(which), *truth.shape))
        return {"res2": noise, "res3": np.where(cell == 1, truth[None] * 1.0, noise)}

    monkeypatch.setattr(faithful, "train", trained)
    monkeypatch.setattr(faithful, "score", scores)
    f = Features()
    metrics = multilabel.run(protocol("linear_conv_scenes"), f, 0).metrics
    assert metrics["map_res3"].value == 100 and metrics["map11_res3"].value == 100 and metrics["map_res2"].value < 90
    assert f.selection.chosen["res3"]["lr"] == 0.03 and f.selection.on == "val, trained on train"
    assert metrics["map_best_on_test_res2"].style == "paper"
