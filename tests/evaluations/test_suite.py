"""The suite runs what the data at hand permit, keeps what is done, and reports what cannot run without stopping."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from evaluation_fakes import finished_run, protocol
from PIL import Image

import zoo
from evaluations import suite
from evaluations.__main__ import main
from evaluations.kinds import multilabel
from evaluations.measure import Measurement, Settings
from evaluations.probes import sgd
from evaluations.protocol import load
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
    guard(lambda: main(["suite", "random_digits", "--plan", *given]))  # wherever the flag stands
    assert "2 measured already" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["pixels_digits", "random_digits"])
def test_a_plan_on_own_images_has_the_size_that_a_run_would_have_and_refuses_what_it_would_refuse(
    model, tmp_path, capsys
):
    """Neither the laptop models' preprocessing nor a folder says a size: the images do."""
    finished_run(model, tmp_path)
    for name, sides in (("even", [8]), ("odd", [8, 9, 11])):
        for k in range(12):
            place = tmp_path / name / f"class{k % 2}"
            place.mkdir(parents=True, exist_ok=True)
            side = sides[k // 2 % len(sides)]
            Image.new("L", (side, side), 20 * k).save(place / f"{k}.png")
    words = ["run", "knn_folder", model, f"out={tmp_path}", "grid.k=[1]"]
    assert guard(lambda: main([*words, f"data={tmp_path / 'even'}", "--plan"])) == 0
    assert "10 images, 64 numbers each" in capsys.readouterr().out
    last = []
    for flag in (["--plan"], []):
        capsys.readouterr()
        assert guard(lambda: main([*words, f"data={tmp_path / 'odd'}", *flag])) == 2  # noqa: B023
        last.append(capsys.readouterr().err.splitlines()[-1])
    assert last[0] == last[1] and last[0].startswith("error: images of 3 sizes in one batch ("), last
    pad = int(zoo.resolve(model).input.pad)
    assert f"({8 + 2 * pad} to {11 + 2 * pad} pixels high, {8 + 2 * pad} to {11 + 2 * pad} wide)" in last[0]


def test_blank_images_have_the_form_that_the_preprocessing_gives_real_ones(tmp_path):
    """A shorter side without a crop keeps the shape of the images; padding counts."""
    for k in range(8):
        place = tmp_path / "wide" / f"class{k % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20), (30 * k, 0, 0)).save(place / f"{k}.png")
    finished_run("random_digits", tmp_path)
    for given, form in (
        ({"transform.resize": 10, "transform.pad": 0}, (10, 20)),
        ({"transform.pad": 2}, (24, 44)),
        ({"transform.resize": 12, "transform.crop": 9}, (9, 9)),
    ):
        settings = Settings.of({"data": str(tmp_path / "wide"), "grid.k": [1], **given}, str(tmp_path))
        assert suite.blank(Measurement.of("knn_folder", "random_digits", settings), 2).shape == (2, 1, *form)


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

    monkeypatch.setattr(sgd, "train", trained)
    monkeypatch.setattr(sgd, "score", scores)
    f = Features()
    metrics = multilabel.run(protocol("linear_conv_scenes"), f, 0).metrics
    assert metrics["map_res3"].value == 100 and metrics["map11_res3"].value == 100 and metrics["map_res2"].value < 90
    assert f.selection.chosen["res3"]["lr"] == 0.03 and f.selection.on == "val, trained on train"
    assert metrics["map_best_on_test_res2"].style == "paper"


@pytest.fixture
def offline(monkeypatch):
    """Any attempt to download or compose something fails the test."""

    def forbidden(*args, **more):
        raise AssertionError(f"a plan reached for {args}")

    for place in (
        "zoo.fetch.obtain",
        "zoo.data.locate.downloaded",
        "zoo.data.open.make_scenes",
        "urllib.request.urlopen",
    ):
        monkeypatch.setattr(place, forbidden)


def test_a_plan_downloads_nothing_and_says_what_is_not_here(offline, tmp_path, capsys):
    words = ["run", "linear_imagenet_swav", "swav_800ep", f"out={tmp_path}", "--plan"]
    assert guard(lambda: main(words)) == 0
    plan = capsys.readouterr().out
    assert (
        "linear_imagenet_swav@1" in plan and "weights are not here" in plan and "python -m zoo fetch swav_800ep" in plan
    )
    for model in ("swav_800ep", "mocov1_unmix_cifar10_1000ep"):  # CIFAR-10 could be downloaded, and was not asked for
        assert guard(lambda: main(["suite", model, f"out={tmp_path}", "--plan"])) == 2  # noqa: B023
        said = capsys.readouterr().err
        assert "nothing to run" in said and "Traceback" not in said
    assert "left out: knn_cifar10_moco: cifar10: no data found" in said and "was not asked for" in said
    assert not list(tmp_path.iterdir())


def test_what_is_left_out_is_told_with_its_reason_a_line_each(offline, out, tmp_path, capsys):
    chosen = suite.choose("random_digits", {"out": str(out), "only": "*digits*"})
    assert "knn_digits" in chosen and not capsys.readouterr().err
    chosen = suite.choose("random_digits", {"out": str(out), "only": "[kv]*_[dis]*"})
    lines = capsys.readouterr().err.splitlines()
    assert "knn_digits" in chosen and lines and all(line.startswith("left out: ") for line in lines)
    assert any("voc07_all_scenes" in line and "no data found" in line for line in lines)
    with pytest.raises(UserError, match="nothing to run"):
        suite.choose("random_digits", {"out": str(out), "only": "linear_conv_imagenet_rotnet"})
    said = capsys.readouterr().err  # both reasons hold: the network has no conv1, and ImageNet is not here
    assert said.startswith("left out: linear_conv_imagenet_rotnet: ") and (
        "no layer 'conv1'" in said or "no data found" in said
    )


def test_models_of_the_same_image_size_are_judged_on_other_sets_too(offline, tmp_path, capsys):
    with pytest.raises(UserError):
        suite.choose("swav_800ep", {"out": str(tmp_path)})
    told = {line.split(":")[1].strip() for line in capsys.readouterr().err.splitlines()}
    assert {"linear_places205", "linear_voc07", "linear_inaturalist18", "linear_imagenet_swav"} <= told
    assert not any("digits" in name or "fashion" in name or "scenes" in name for name in told)


def test_lost_predictions_are_computed_again_for_a_comparison_or_the_command_is_told(out, capsys):
    words = ["pair", "random_digits", "random_digits", "knn_digits", f"out={out}"]
    assert guard(lambda: main(words)) == 0
    before = capsys.readouterr().out
    for file in (out / "predictions").glob("*.npz"):
        file.unlink()
    assert guard(lambda: main(words)) == 0
    again = capsys.readouterr()
    assert again.out == before and "computing them again" in again.err
    [path] = (out / "measured" / "random_digits").glob("knn_digits--*.json")
    real = records.read(path).predictions_sha256
    path.write_text(path.read_text().replace(real, "0" * 64))
    assert guard(lambda: main(words)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"rm {path} && python -m evaluations run knn_digits random_digits" in said
    path.write_text(path.read_text().replace("0" * 64, real))


SIZES = {"train": 1000, "trainval": 800, "fit": 900, "val": 100, "test": 200}


@pytest.mark.parametrize(
    ("name", "changes", "learned", "scored"),
    [  # five seeds of 800 x 16 and two trials; ten crops of 200 test images five times, of 100 twice
        ("voc07_all_scenes", {}, 7 * 800 * 16, 10 * (5 * 200 + 2 * 100)),
        ("voc07_fc68_scenes", {"seeds": 1, "select": {"on": "none"}, "head": {"iterations": 10}}, 160, 10 * 200),
        # three seeds, two epochs on a tenth of 1,000; three kept epochs scored
        (
            "semisup_digits_10pct",
            {"seeds": 3, "head": {"epochs": 2, "percent": 10.0, "snapshots": 3}},
            600,
            3 * 3 * 200,
        ),
        ("linear_conv_scenes", {"head": {"epochs": 4}, "splits": {"train": "train", "fit": "fit"}}, 4 * 1900, 300),
    ],
)
def test_the_plan_counts_what_protocols_on_images_do(name, changes, learned, scored):
    loaded = load(name)
    for field, value in changes.items():
        old = getattr(loaded, field)
        value = old.model_copy(update=value) if hasattr(old, "model_copy") else value
        loaded = loaded.model_copy(update={field: value})
    assert suite.views_of(SimpleNamespace(protocol=loaded, open=lambda split: range(SIZES[split]))) == (learned, scored)


def test_the_plan_tells_the_time_of_what_trains_on_images(out, capsys):
    words = ["run", "semisup_digits_1pct", "random_digits", f"out={out}", "--plan"]
    assert guard(lambda: main(words)) == 0
    printed = capsys.readouterr().out
    assert re.search(r"trains on [\d,]+ views and scores [\d,]+, about \d", printed)
    assert re.search(r"about \S+ for the features and \S+ for what trains on images", printed)
