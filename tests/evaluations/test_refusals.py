"""A plan refuses what a run refuses, with the same words: settings, layers, labels, and places that do not exist."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_fakes import finished_run, protocol

from evaluations import checks
from evaluations import protocol as protocols
from evaluations.__main__ import main
from evaluations.kinds import svm
from evaluations.protocol import load
from results import record as records
from zoo.errors import UserError, guard


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs")
    finished_run("random_digits", where)
    return where


NONSENSE = {
    "a misspelled setting": ("linear_digits", ["head.epoch=3"], "did you mean 'head.epochs'"),
    "a number below its range": ("linear_digits", ["head.epochs=0"], "head.epochs"),
    "a word for a number": ("knn_digits", ["head.queries=many"], "head.queries"),
    "a solver for another grid": ("linear_digits", ["head.solver=ridge"], "needs grid.penalty, and takes no grid.lr"),
    "a classifier that kept features cannot feed": (
        "linear_digits",
        ["head.classifier=mlp"],
        "only with form=faithful",
    ),
    "a classifier for no layer": ("linear_digits", ["form=faithful", "head.classifier={res9: mlp}"], "'res9'"),
    "a warm-up as long as the training": (
        "linear_digits",
        ["head.schedule.warmup=60", "head.epochs=60"],
        "schedule.warmup=60",
    ),
    "no whole number of neighbours": ("knn_digits", ["grid.k=[2.5]"], "grid.k=2.5"),
    "more neighbours than images": ("knn_digits", ["grid.k=[5000]"], "grid.k: 5000 neighbours of 1258 training images"),
    "a temperature of zero": ("knn_digits", ["grid.temperature=0"], "grid.temperature=0"),
    "a negative rate": ("fewlabel_digits", ["grid.lr=-0.1"], "grid.lr=-0.1"),
    "a cost of zero": ("linear_scenes", ["dataset=digits", "splits.train=train", "grid.cost=[0]"], "grid.cost=0"),
    "no cost": (
        "linear_scenes",
        ["dataset=digits", "splits.train=train", "grid.cost=[]"],
        "grid: every list needs at least one value",
    ),
    "no shots": ("linear_scenes", ["dataset=digits", "splits.train=train", "head.shots=[0]"], "head.shots.0"),
    "folds for neighbours": (
        "knn_digits",
        ["select.on=folds"],
        "select.on=folds: knn takes leave_one_out or val or none",
    ),
    "folds for fine-tuning": ("semisup_digits_10pct", ["select.on=folds"], "finetune takes val or none"),
    "another score to choose by": ("linear_digits", ["select.metric=map"], "linear chooses by top1"),
    "a form that does not exist": ("knn_digits", ["form=faithful"], "form=faithful: knn is fast"),
    "ten crops of kept features": ("knn_digits", ["transform.test=ten_crop"], "one view"),
    "more folds than images": (
        "linear_digits",
        ["select.folds=5000"],
        "select.folds=5000: digits/train has 1258 images",
    ),
    "more clusters than images": ("cluster_digits", ["head.clusters=5000"], "head.clusters=5000"),
    "more labels than a class has": ("fewlabel_digits", ["head.per_class=500"], "have fewer samples"),
    "more labels to tune on": (
        "semisup_digits_10pct",
        ["head.percent=null", "head.per_class=500"],
        "have fewer samples",
    ),
    "labels in no file": ("cluster_digits", ["head.assignments=own", "head.labels=/no/such.csv"], "/no/such.csv"),
    "labels beside k-means": ("cluster_digits", ["head.labels=/no/such.csv"], "not read with head.assignments=kmeans"),
    "several layers for neighbours": ("knn_digits", ["layers=[res2, res3]"], "knn reads one layer, not 2"),
    "several layers for clusters": ("cluster_digits", ["layers=[all]"], "clustering reads one layer"),
    "no such layer": ("knn_digits", ["layers=[conv9]"], "no layer 'conv9'"),
    "filters that are not there": ("semisup_digits_10pct", ["head.merge_sobel=true"], "no Sobel filters"),
    "several labels wanted": (
        "voc07_fc68_scenes",
        ["dataset=digits", "splits={train: fit, fit: fit, val: val}"],
        "needs several",
    ),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_a_plan_and_a_run_refuse_nonsense_in_the_same_words(case, out, tmp_path, capsys):
    name, given, words = NONSENSE[case]
    told = []
    for flag in (["--plan"], []):
        command = ["run", name, "random_digits", f"out={out}", *given, *flag]
        assert guard(lambda: main(command)) == 2  # noqa: B023
        said = capsys.readouterr().err.strip().splitlines()
        told.append([line for line in said if line.startswith("error:")])
    assert told[0] == told[1] and len(told[0]) == 1 and words in told[0][0]
    assert not list((out / "probes").rglob("*")) if (out / "probes").exists() else True


@pytest.mark.parametrize(
    "words",
    [
        ["linear_digits", "no_such_model"],
        ["linear_digits", "no/such/run"],
        ["linear_digits", "nowhere.pth"],
        ["linear_folder", "random_digits", "data=/no/such/folder"],
        ["knn_imagenet", "random_digits", "data=/no/such/folder"],
        ["knn_imagenet", "swav_800ep", "data=/no/such/folder"],  # whose weights are not here either
        ["linear_voc07", "swav_800ep", "data=/no/such/folder"],
        ["linear_folder", "swav_800ep", "dataset=/no/such/folder"],
        ["no_such_protocol", "swav_800ep"],
        ["linear_imagenet_swav", "swav_800ep", "head.epochs=0"],
    ],
    ids=" ".join,
)
def test_a_plan_of_what_does_not_exist_ends_with_an_error(words, out, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SELFZOO_DATA", raising=False)
    command = ["run", *words, f"out={out}", "--plan"]
    assert guard(lambda: main(command)) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    bad = next((w for w in words if "no" in w.lower() and "digits" not in w), "epochs").split("=")[-1]
    assert bad in line


def test_every_protocol_of_the_repository_is_permitted_by_its_kind():
    for name in protocols.names():
        protocols.complete(load(name))


# -------------------------------------------------------- a cost for every class


def test_a_class_takes_the_best_mean_over_the_folds_that_say_something_about_it():
    scores = np.full((3, 3, 4), np.nan)  # folds, costs, classes
    scores[:, :, 0] = [[0.1, 0.9, 0.2], [0.3, 0.5, 0.2], [0.2, 0.7, 0.3]]  # the middle cost, in every fold
    scores[1, :, 1] = [0.2, 0.3, 0.8]  # one fold says something: the last
    scores[:2, :, 2] = [[0.6, 0.1, 0.1], [0.2, 0.4, 0.4]]  # first 0.4, others 0.25
    chosen, judged = svm.choose(scores)
    assert judged.tolist() == [True, True, True, False]
    # the last class has nothing of its own: over the others the costs reach 0.267, 0.417 and 0.428
    assert chosen.tolist() == [1, 2, 0, 2]
    assert not svm.choose(np.full((2, 3, 2), np.nan))[1].any()


def test_a_fold_whose_training_side_lacks_a_class_says_nothing_about_it():
    rng = np.random.default_rng(0)
    x, targets = svm.torch.tensor(rng.standard_normal((12, 5)), dtype=svm.torch.float32), np.zeros((12, 2), np.uint8)
    targets[:, 0] = np.arange(12) % 2
    targets[3, 1] = 1  # the only positive of this class
    inside = np.arange(12) < 6
    found = svm._fold_scores(x, targets, inside, [0.1, 1.0], svm.Head())
    assert np.isfinite(found[:, 0]).all() and np.isnan(found[:, 1]).all()
    assert np.isnan(svm._fold_scores(x, targets, ~inside, [0.1], svm.Head())[:, 1]).all()


def test_when_no_class_can_choose_a_cost_that_is_an_error():
    from test_svm import Labelled

    targets = np.eye(4, dtype=np.uint8)  # one positive of each class: never on both sides
    f = Labelled(
        {"train": (np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32), np.r_[targets, 0 * targets])}, 4
    )
    wanted = protocol("linear_scenes", splits__train="train", head__shots=[])
    with pytest.raises(UserError, match="no class of .* has a positive image on both sides of a fold"):
        svm.run(wanted, f, seed=0)
    with pytest.raises(UserError, match="shows any class"):
        checks.positives(wanted, "train", 0 * targets)


# -------------------------------------------------------- what stands beside top1


def test_mean_per_class_and_majority_are_those_of_a_hand_count_and_their_interval_covers():
    from evaluations.result import beside_top1

    truth, guess = np.array([0] * 8 + [1] * 2), np.array([0] * 6 + [1] * 2 + [1, 0])
    found = beside_top1(np.stack([guess, truth]), truth, np.array([1, 1, 0, 2, 1]))
    assert found["mean_per_class"].per_seed == (62.5, 100.0) and found["mean_per_class"].value == 81.25
    assert found["majority"].value == 20.0 and found["majority"].ci == records.interval(20.0, 10)
    rng, inside = np.random.default_rng(0), 0
    labels, rates = np.repeat([0, 1, 2], [200, 40, 10]), np.array([0.9, 0.6, 0.4])
    for _ in range(400):
        right = rng.random(250) < rates[labels]
        low, high = beside_top1(np.where(right, labels, labels + 1)[None], labels, labels)["mean_per_class"].ci
        inside += low <= 100 * rates.mean() <= high
    assert 0.92 < inside / 400 < 0.98
