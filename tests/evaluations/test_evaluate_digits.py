"""The real path on real images: run folder -> one feature pass -> record; the test split stays closed until the choice is made."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from evaluation_fakes import finished_run, protocol

from evaluations import measure
from evaluations.__main__ import main
from evaluations.inputs import features as feature_module
from evaluations.inputs import models
from evaluations.inputs.features import Compute, FeatureRequest, Features, FeatureStore
from evaluations.kinds import linear
from results import record as records
from zoo import data
from zoo.errors import UserError, guard

QUICK = {"head.epochs": 3}
TRAIN = FeatureRequest("train")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    finished_run("random_digits", folder)
    finished_run("pixels_digits", folder)
    return folder


@pytest.fixture
def passes(monkeypatch):
    """Images that went through a backbone, pass by pass."""
    seen = []
    real = feature_module.forward
    monkeypatch.setattr(feature_module, "forward", lambda n, i, r, c: seen.append(len(i)) or real(n, i, r, c))
    return seen


def command(capsys, *words):
    status = guard(lambda: main(words))
    return status, capsys.readouterr()


def test_a_record_says_how_it_was_made_and_the_same_measurement_is_not_repeated(out, passes):
    path = measure.evaluate("linear_digits", "random_digits", QUICK, out=str(out), quiet=True)
    found = records.read(path)
    assert found.model == "random_digits" and found.pretrain_seed == 0 and found.test_reads == 1
    assert found.overrides == QUICK and found.metrics["top1"].n == 539 and 50 < found.metrics["top1"].value <= 100
    assert found.command == "python -m evaluations run linear_digits random_digits head.epochs=3"
    assert found.pretrain_command == "python -m reproduce random_digits seed=0"
    assert found.selection.on == "5 folds of train" and str(out) not in path.read_text()
    assert sum(passes) == 1258 + 539
    before = path.read_bytes()
    assert measure.evaluate("linear_digits", "random_digits", QUICK, out=str(out), quiet=True) == path
    assert sum(passes) == 1258 + 539 and path.read_bytes() == before


def test_all_protocols_share_one_pass_over_each_split(out, passes, tmp_path):
    finished_run("random_digits", tmp_path, seed=3)
    for name in ("linear_digits", "knn_digits", "fewlabel_digits", "cluster_digits"):
        measure.evaluate(
            name,
            "random_digits",
            {"pretrain_seed": 3, **({"head.epochs": 2} if name == "linear_digits" else {})},
            out=str(tmp_path),
            quiet=True,
        )
    assert sum(passes) == 1258 + 539


def test_all_layers_are_taken_from_the_pass_that_gives_the_output(out, passes, tmp_path):
    model = models.resolve("random_digits", out=out)
    wanted = protocol("linear_digits", layers=["all", "output"])
    f = Features(
        model,
        wanted,
        FeatureStore(tmp_path),
        compute=Compute(batch=500),
        release=lambda: None,
        open_split=lambda s: data.open_source("digits", s),
        also=linear.plan(wanted, model),
    )
    found = {name: f.get(FeatureRequest("train", name)) for name in (*model.layers, "output")}
    assert sum(passes) == 1258 and f.passes == 1
    np.testing.assert_array_equal(found["output"], found[model.layers[-1]])
    for name in model.layers:
        assert found[name].shape == (1258, model.backbone.dims[name])


def test_features_equal_those_of_the_loaded_model_image_by_image(out):
    import zoo

    model = models.resolve("random_digits", out=out)
    folder = model.place
    source = data.open_source("digits", "test")
    backbone, transform = zoo.load(folder), zoo.transforms(folder)
    with torch.no_grad():
        wanted = backbone(torch.stack([transform(source.image(i)) for i in range(20)]))
    measure.evaluate("knn_digits", "random_digits", {}, out=str(out), quiet=True)
    f = Features(
        model,
        protocol("knn_digits"),
        FeatureStore(out / "features"),
        release=lambda: None,
        open_split=lambda s: data.open_source("digits", s),
    )
    np.testing.assert_allclose(f.get(FeatureRequest("test"))[:20], wanted, atol=1e-5)


@pytest.mark.parametrize("trap", ["features", "reader", "whole set"])
def test_a_test_split_that_is_read_too_early_raises_under_the_real_command(trap, out, monkeypatch, capsys, tmp_path):
    real = linear.fit

    def peeking(x, labels, *rest):
        if trap == "features":
            peeking.features.get(FeatureRequest("test"))
        data.open_source("digits", "test" if trap == "reader" else "all")
        return real(x, labels, *rest)

    run_linear = linear.run

    def remember(wanted, features, seed):
        peeking.features = features
        return run_linear(wanted, features, seed)

    monkeypatch.setattr(linear, "fit", peeking)
    monkeypatch.setattr(linear, "run", remember)
    words = ("run", "linear_digits", "random_digits", f"out={out}", "head.epochs=1", f"seed={len(trap)}")
    status, said = command(capsys, *words)
    assert status == 2 and "sealed" in said.err and "Traceback" not in said.err
    assert not said.out
    monkeypatch.setattr(linear, "fit", real)
    assert command(capsys, *words)[0] == 0


def test_cached_test_features_are_sealed_too(out, tmp_path):
    measure.evaluate("knn_digits", "random_digits", {}, out=str(out), quiet=True)  # the test features lie on disk now
    model = models.resolve("random_digits", out=out)
    with data.sealed("test") as seal:
        f = Features(
            model,
            protocol("knn_digits"),
            FeatureStore(out / "features"),
            release=seal.release,
            open_split=lambda s: data.open_source("digits", s),
        )
        with pytest.raises(data.SealedError):
            f.get(FeatureRequest("test"))
        with pytest.raises(data.SealedError):
            f.labels("test")
        f.finish_selection(None)
        assert len(f.get(FeatureRequest("test"))) == 539


def test_the_key_of_features_names_everything_that_changes_them(out, tmp_path, monkeypatch):
    model, other = (models.resolve(m, out=out) for m in ("random_digits", "pixels_digits"))

    def key(judged=model, request=TRAIN, **changes):
        compute = Compute(precision=changes.pop("precision", "float32"))
        return Features(
            judged,
            protocol("knn_digits", **changes),
            FeatureStore(tmp_path),
            compute=compute,
            open_split=lambda s: data.open_source("digits", s),
            release=lambda: None,
        ).key(request)

    keys = [key(), key(other), key(precision="bfloat16"), key(transform__resize=9), key(transform__crop=6)]
    keys += [
        key(request=FeatureRequest(*r))
        for r in (("val",), ("train", "res2"), ("train", "res2", "flat"), ("train", "output", "avg", "ten_crop:0"))
    ]
    feature_module.backbone_code.cache_clear()
    monkeypatch.setattr(feature_module, "backbone_code", lambda: "other")
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_an_interrupted_pass_leaves_nothing_behind(out, tmp_path, monkeypatch):
    model = models.resolve("random_digits", out=out)
    f = Features(
        model,
        protocol("knn_digits"),
        FeatureStore(tmp_path),
        compute=Compute(batch=300),
        release=lambda: None,
        open_split=lambda s: data.open_source("digits", s),
    )
    real, calls = feature_module.forward, []

    def killed(*rest):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*rest)

    monkeypatch.setattr(feature_module, "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        f.get(FeatureRequest("train"))
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    assert f.get(FeatureRequest("train")).shape == (1258, 64)


def test_a_broken_feature_file_is_made_again(out, tmp_path):
    model = models.resolve("random_digits", out=out)
    f = Features(
        model,
        protocol("knn_digits"),
        FeatureStore(tmp_path),
        release=lambda: None,
        open_split=lambda s: data.open_source("digits", s),
    )
    before = np.array(f.get(FeatureRequest("train")))
    [file] = tmp_path.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:1000])
    np.testing.assert_array_equal(f.get(FeatureRequest("train")), before)


def test_a_partly_loaded_backbone_is_never_evaluated(out, tmp_path):
    folder = finished_run("random_digits", tmp_path)
    state = torch.load(folder / "weights.pth", weights_only=True)
    state.pop(next(k for k in state if k.endswith("weight")))
    torch.save(state, folder / "weights.pth")
    with pytest.raises(UserError, match="backbone tensors"):
        measure.evaluate("knn_digits", str(folder), {}, out=str(tmp_path), quiet=True)
    assert not (tmp_path / "measured").exists()


def test_models_are_ids_run_folders_and_files_and_what_is_missing_names_its_command(out, tmp_path):
    folder = next((out / "random_digits").iterdir())
    by_id, by_folder, by_file = (
        models.resolve(str(m), out=out) for m in ("random_digits", folder, folder / "weights.pth")
    )
    assert by_id.name == by_folder.name == by_file.name == "random_digits"
    assert by_id.weights_sha256 == by_folder.weights_sha256 == by_file.weights_sha256
    with pytest.raises(UserError, match=r"python -m reproduce swav_digits seed=7 out="):
        models.resolve("swav_digits", 7, out)
    with pytest.raises(UserError, match="its seed is 0, not pretrain_seed=1"):
        models.resolve(str(folder), 1, out)
    with pytest.raises(UserError, match="no such run folder or file"):
        models.resolve("runs/nowhere", out=out)
    with pytest.raises(UserError, match="did you mean"):
        models.resolve("random_digit", out=out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "linear_digit", "random_digits"), "did you mean 'linear_digits'"),
        (("run", "linear_digits", "random_digits", "head.epoch=3"), "did you mean 'head.epochs'"),
        (("run", "linear_digits", "random_digits", "head.epochs=0"), "head.epochs"),
        (("run", "linear_digits", "random_digits", "precision=float8"), "precision=float8"),
        (("run", "linear_digits", "random_digits", "seed=x"), "seed=x"),
    ],
)
def test_mistakes_on_the_command_line_are_one_error_each(words, said, out, capsys):
    status, printed = command(capsys, *words, f"out={out}")
    assert status == 2 and printed.err.startswith("error: ") and said in printed.err and "Traceback" not in printed.err


def test_list_plan_and_pair(out, capsys):
    status, printed = command(capsys, "list", "knn*")
    assert status == 0 and "knn_digits@1" in printed.out and "linear" not in printed.out
    status, printed = command(
        capsys, "run", "knn_digits", "random_digits", f"out={out}", "precision=bfloat16", "--plan"
    )
    assert status == 0 and "2 passes, 1,797 images" in printed.out
    status, printed = command(capsys, "pair", "pixels_digits", "random_digits", "knn_digits", f"out={out}")
    assert status == 0 and "539 images, top1\n" in printed.out and "difference" in printed.out
    values = [records.read(p).metrics["top1"].value for p in (out / "measured").glob("*/knn_digits--*.json")]
    assert all(f"{v:.2f}" in printed.out for v in values)
    assert json.loads(next((out / "measured").glob("*/knn_digits--*.json")).read_text())["test_reads"] == 1
    status, printed = command(capsys, "pair", "pixels_digits", "random_digits", "cluster_digits", f"out={out}")
    first = [records.read(p).metrics["nmi"].per_seed[0] for p in (out / "measured").glob("*/cluster_digits--*.json")]
    assert status == 0 and len(first) == 2 and all(f"{v:.2f}" in printed.out for v in first)
    assert "the first seed of the evaluation" in printed.out and "pixels_digits is better" in printed.out
