"""Evaluations that train the network: the authors' VOC steps, resume, seeds, few labels, and the closed test split."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engine_processes import together
from evaluation_fakes import finished_run, protocol
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import nn

from engine import checkpoint
from evaluations import measure
from evaluations.inputs.features import Compute
from evaluations.inputs.views import Views, stream
from evaluations.kinds import finetune, voc
from evaluations.probes import finetuning
from evaluations.probes.finetuning import FineTuning, Tuned
from evaluations.scores import _average_precisions, average_precision, bootstrap, mean_average_precision
from golden import load
from results import record as records
from zoo.backbones.base import Backbone
from zoo.errors import UserError


class ToyBody(Backbone):
    """conv, batch norm, ReLU, 2x2 average pool, then a fully connected layer."""

    replaceable = ("fc", "classifier")

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.classifier = nn.Sequential(nn.Linear(16, 8), nn.ReLU())
        self.dim = 8

    def forward(self, x):
        return self.classifier(self.features(x))


def test_mean_average_precision_is_the_authors_with_ties_and_difficult_objects():
    g = load("deepercluster/voc_map.npz")
    targets, base = g.given("gts"), g.given("base")
    for name, scores in (("single", base), ("ten", np.sum([base + n for n in g.given("noise")], axis=0))):
        each = [average_precision(scores[:, c], targets[:, c]) for c in range(20)]
        g.agree(f"ap_{name}", each)
        g.agree(f"map_{name}", mean_average_precision(scores, targets) / 100)


def test_average_precision_equals_scikit_learn_and_eleven_points_a_hand_count():
    rng = np.random.default_rng(0)
    targets, scores = rng.integers(0, 2, 200), rng.standard_normal(200)
    assert average_precision(scores, targets) == pytest.approx(average_precision_score(targets, scores))
    # hits at ranks 1 and 3 of 4: precision 1 up to recall 0.5, then 2/3: (6 * 1 + 5 * 2/3) / 11
    value = average_precision(np.array([4.0, 3, 2, 1]), np.array([1, 0, 1, 0]), points=11)
    assert value == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert np.isnan(average_precision(scores, np.zeros(200)))


@pytest.mark.parametrize("points", [None, 11])
def test_the_bootstrap_error_of_average_precision_is_its_spread_over_other_images(points):
    rng = np.random.default_rng(5)

    def sample():
        targets = (rng.random((400, 4)) < 0.25).astype(np.uint8)
        return rng.standard_normal((400, 4)) + 1.5 * targets, targets

    spread = np.std([mean_average_precision(*sample(), points=points) for _ in range(1000)], ddof=1)
    found = []
    for _ in range(20):
        scores, targets = sample()
        found.append(bootstrap([scores], targets, points=points).std(ddof=1))
    assert np.mean(found) == pytest.approx(spread, rel=0.08)
    again = bootstrap([scores, scores], targets, points=points).std(ddof=1)
    assert again == pytest.approx(found[-1], rel=1e-9)  # the same images, the same draws


@pytest.mark.parametrize("points", [None, 11])
def test_an_image_drawn_twice_counts_as_two_images(points):
    rng = np.random.default_rng(6)
    targets, scores = rng.choice([0, 0, 1, 255], 60).astype(np.uint8), rng.integers(0, 20, 60).astype(float)
    times = rng.integers(0, 4, (3, 60))
    for row, value in zip(times, _average_precisions(scores, targets, points, times), strict=True):
        copied = average_precision(scores.repeat(row), targets.repeat(row), points=points)
        assert value == pytest.approx(copied, rel=1e-12)
    nothing = np.where(targets == 1, 0, 1)[None]  # a draw without any positive has no average precision
    assert np.isnan(_average_precisions(scores, targets, points, nothing)).all()


def toy_job(order=None):
    torch.manual_seed(0)
    net = Tuned(ToyBody(), 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    order = order or [[np.arange(0, 4), np.arange(4, 8)]] * 3
    return FineTuning(net, optimizer, order, np.full((6, 1), 0.05), finetune.cross_entropy, finetune.whole, keep=[1, 3])


class ToySource:
    array, channels = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), dtype=np.uint8), 3

    def __len__(self):
        return 8


def toy_views(epoch):
    from evaluations.inputs.views import Views

    card = {
        "pad": 0,
        "resize": None,
        "crop": None,
        "interpolation": "bilinear",
        "channels": 3,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    return Views(card, "centre")


def test_an_interrupted_training_ends_with_the_bits_of_an_undisturbed_one(tmp_path, monkeypatch):
    targets = torch.arange(8) % 3
    whole, cut = toy_job(), toy_job()
    finetuning.fit(whole, ToySource(), targets, toy_views, Compute(), tmp_path / "a.pt", every=2)
    real, calls = finetuning.one_step, []

    def dies(*rest):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*rest)

    monkeypatch.setattr(finetuning, "one_step", dies)
    with pytest.raises(KeyboardInterrupt):
        finetuning.fit(cut, ToySource(), targets, toy_views, Compute(), tmp_path / "b.pt", every=2)
    again = toy_job()
    finetuning.fit(again, ToySource(), targets, toy_views, Compute(), tmp_path / "b.pt", every=2)
    assert len(calls) == 3 + 1 + 4 and again.losses == whole.losses
    for key, value in whole.net.state_dict().items():
        assert torch.equal(value, again.net.state_dict()[key]), key
    kept = copy.deepcopy(whole.net)
    finetuning.restore(kept, finetuning.kept_file(tmp_path / "a.pt", 3))
    assert torch.equal(kept.pred_layer.weight, whole.net.pred_layer.weight)
    finetuning.discard(tmp_path)
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize("where", ["before the checkpoint", "after it"])
def test_a_kill_at_the_last_step_of_an_epoch_loses_no_kept_epoch(tmp_path, monkeypatch, where):
    """Two steps an epoch and a checkpoint every two: epoch 1 is kept and done at the same step."""
    targets = torch.arange(8) % 3
    finetuning.fit(toy_job(), ToySource(), targets, toy_views, Compute(), tmp_path / "a.pt", every=2)
    save = finetuning._save

    def dies(*rest):
        if where == "after it":
            save(*rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(finetuning, "_save", dies)
    with pytest.raises(KeyboardInterrupt):
        finetuning.fit(toy_job(), ToySource(), targets, toy_views, Compute(), tmp_path / "b.pt", every=2)
    monkeypatch.setattr(finetuning, "_save", save)
    finetuning.fit(toy_job(), ToySource(), targets, toy_views, Compute(), tmp_path / "b.pt", every=2)
    for epoch in (1, 3):
        nets = [toy_job().net for _ in "ab"]
        for net, name in zip(nets, "ab", strict=True):
            finetuning.restore(net, finetuning.kept_file(tmp_path / f"{name}.pt", epoch))
        assert torch.equal(nets[0].pred_layer.weight, nets[1].pred_layer.weight)


def test_dropout_is_resumed_exactly_whatever_the_generator_holds(tmp_path):
    """Random numbers come from seed, step and process, on any device: a checkpoint of the main process is enough for all."""
    targets, ended = torch.arange(8) % 3, []
    for name, stop in (("whole", None), ("cut", 3)):
        job = toy_job()
        job.net.pred_layer = nn.Sequential(nn.Dropout(0.5), job.net.pred_layer)
        if stop:
            short = dataclasses.replace(job, order=job.order[:1] + [job.order[1][:1]])
            finetuning.fit(short, ToySource(), targets, toy_views, Compute(), tmp_path / f"{name}.pt", every=1)
            torch.manual_seed(99)
            job = toy_job()
            job.net.pred_layer = nn.Sequential(nn.Dropout(0.5), job.net.pred_layer)
        finetuning.fit(job, ToySource(), targets, toy_views, Compute(), tmp_path / f"{name}.pt", every=1)
        ended.append(job)
    assert ended[0].losses == ended[1].losses and len(set(ended[0].losses)) > 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_from_which_the_same_bits_come(tmp_path, monkeypatch, number):
    targets = torch.arange(8) % 3
    whole = toy_job()
    finetuning.fit(whole, ToySource(), targets, toy_views, Compute())
    real = finetuning.one_step

    def asked(job, step, *rest):
        for _ in range(2 * (step == 2)):  # the launcher passes on what it gets as well
            os.kill(os.getpid(), number)
        return real(job, step, *rest)

    monkeypatch.setattr(finetuning, "one_step", asked)
    with pytest.raises(SystemExit) as left:
        finetuning.fit(toy_job(), ToySource(), targets, toy_views, Compute(), tmp_path / "b.pt")
    assert left.value.code == 128 + number and checkpoint.load(tmp_path / "b.pt")["step"] == 3
    monkeypatch.setattr(finetuning, "one_step", real)
    again = toy_job()
    finetuning.fit(again, ToySource(), targets, toy_views, Compute(), tmp_path / "b.pt")
    assert again.losses == whole.losses
    assert all(torch.equal(value, again.net.state_dict()[key]) for key, value in whole.net.state_dict().items())


def scored(rank):
    torch.manual_seed(0)
    net = Tuned(ToyBody(), 3)
    net.body.features[1].running_mean += rank  # what this process alone has seen
    return finetuning.scores_of(net, ToySource(), toy_views(0), Compute()).copy()


def test_every_process_scores_with_the_statistics_that_are_kept():
    first, second = together(scored)
    assert np.array_equal(first, second)
    np.testing.assert_allclose(first, scored(0), rtol=1e-5, atol=1e-6)


def test_the_best_trial_is_chosen_and_none_is_made_twice(tmp_path):
    cells, made = [{"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3}], []

    def trial(cell, name):
        made.append((cell["lr"], name))
        if len(made) == 3:
            raise KeyboardInterrupt
        return {0.1: 5.0, 0.2: 9.0, 0.3: 9.0}[cell["lr"]]

    chooses = protocol("voc07_fc68_scenes")
    with pytest.raises(KeyboardInterrupt):
        finetuning.choose(chooses, cells, trial, tmp_path)
    chosen, selection = finetuning.choose(chooses, cells, trial, tmp_path)
    assert made == [(0.1, "trial0"), (0.2, "trial1"), (0.3, "trial2"), (0.3, "trial2")]
    assert chosen == cells[1] and selection.score == 9.0 and [row["score"] for row in selection.grid] == [5.0, 9.0, 9.0]
    nothing = chooses.model_copy(update={"select": chooses.select.model_copy(update={"on": "none"})})
    assert finetuning.choose(nothing, cells, trial, tmp_path) == (cells[0], None)


def test_a_process_without_images_of_a_batch_gets_a_batch_of_none():
    source = SimpleNamespace(image=lambda i: Image.new("RGB", (9, 7), (i, 0, 0)), array=None, channels=3)
    card = {
        "pad": 0,
        "resize": None,
        "crop": 6,
        "channels": 3,
        "mean": [0] * 3,
        "std": [1] * 3,
        "interpolation": "bilinear",
    }
    order = [np.array([2, 1]), np.array([], int), np.array([3])]
    for view, many in (("centre", 1), ("ten_crop", 10)):
        got = list(stream(source, Views(card, view), order))
        assert [len(rows) for rows, _ in got] == [2, 0, 1]
        assert [tuple(images.shape) for _, images in got] == [(n, many, 3, 6, 6) for n in (2, 0, 1)]
        assert (255 * got[2][1][0, 0, 0]).round().unique().tolist() == [3]


def test_rates_follow_two_groups_and_their_milestones():
    head = finetune.Head(epochs=20, batch=4, milestones=[12, 16], factor=0.2)
    job = finetune.job_of(Tuned(ToyBody(), 3), head, {"lr": 0.02, "lr_head": 5.0, "weight_decay": 0.0}, np.arange(8), 0)
    assert job.rates.shape == (40, 2) and len(job.order) == 20
    np.testing.assert_allclose(job.rates[[0, 23, 24, 31, 32]], np.outer([1, 1, 0.2, 0.2, 0.04], [0.02, 5.0]))
    assert [len(g["params"]) for g in job.optimizer.param_groups] == [6, 2]


def test_vocs_rates_halve_every_stepsize_steps():
    head = voc.Head(iterations=25, batch=4)
    job = voc.job_of(Tuned(ToyBody(), 3), head, {"lr": 0.02, "weight_decay": 0.0, "stepsize": 10}, np.arange(8))
    np.testing.assert_allclose(job.rates[[0, 9, 10, 19, 20, 24], 0], 0.02 * np.array([1, 1, 0.5, 0.5, 0.25, 0.25]))
    assert sum(map(len, job.order)) == len(job.rates) == 25


def test_labelled_images_are_drawn_per_seed_or_are_a_split():
    labels = np.arange(300) % 3
    draws = [finetune.labelled(labels, finetune.Head(percent=2.0), s) for s in (0, 1)]
    assert all(np.bincount(labels[d]).tolist() == [2, 2, 2] for d in draws) and not np.array_equal(*draws)
    assert len(finetune.labelled(labels, finetune.Head(), 0)) == 300
    with pytest.raises(UserError, match="fewer samples"):
        finetune.labelled(labels, finetune.Head(per_class=101), 0)


def test_fine_tuning_with_few_labels_writes_a_record_over_seeds_and_cleans_up(tmp_path):
    finished_run("random_digits", tmp_path)
    given = {"seeds": 2, "head.epochs": 2, "head.per_class": 10, "head.percent": None}
    path = measure.evaluate("semisup_digits_10pct", "random_digits", given, out=str(tmp_path), quiet=True)
    found = records.read(path)
    assert len(found.metrics["top1"].per_seed) == 2 and found.test_reads == 1
    assert found.metrics["top1_best_on_test"].style == "paper"
    assert not list((tmp_path / "probes").rglob("*.pt"))


def test_voc_classification_needs_several_labels_and_a_closed_test_split(tmp_path):
    with pytest.raises(UserError, match="one label per image"):
        source = SimpleNamespace(targets=None, source=None)
        voc.train(
            protocol("voc07_fc68_scenes"), voc.Head(), SimpleNamespace(source=lambda s: source), "train", {}, 0, "x"
        )
