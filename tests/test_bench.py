"""The machinery of ``make bench``: equal numbers of candidates, one budget, a choice that is written down and not made twice."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import yaml

import zoo
from benchmarks import bench, select_recipes
from results import record as records
from results.record import COMMITTED
from zoo.errors import UserError
from zoo.registry import Registry

FOUR = ["linear_digits", "knn_digits", "fewlabel_digits", "cluster_digits"]
FOUR_SORTED = sorted(FOUR)


@pytest.mark.parametrize("dataset", ["digits", "fashion_mnist"])
def test_every_method_has_the_same_number_of_candidates_the_same_budget_and_all_of_train(dataset):
    rows = bench.table_rows(dataset)
    trained = [row for row in rows if row.candidates]
    assert {row.model for row in rows} == set(zoo.models(f"*_{dataset}"))
    assert len({len(row.candidates) for row in trained}) == 1
    for row in trained:
        recipes = [zoo.resolve(row.model, candidate) for candidate in row.candidates]
        assert len({recipe.hash() for recipe in recipes}) == len(recipes), "two candidates are the same recipe"
        assert {(recipe.schedule.images, recipe.split) for recipe in recipes} == {(row.header["images"], "train")}
        assert len({tuple(candidate) for candidate in row.candidates}) == 1, "each names every path"


def test_another_number_of_candidates_is_refused(tmp_path):
    told = yaml.safe_load(bench.FILE.read_text())
    told["digits"]["methods"]["swav"] = {"optimizer.lr": [0.001]}
    (tmp_path / "candidates.yaml").write_text(yaml.safe_dump(told))
    with pytest.raises(UserError, match=r"candidates.yaml: digits: methods have \[1, 6\] candidates"):
        bench.table_rows("digits", tmp_path / "candidates.yaml")


@pytest.fixture
def selections(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(select_recipes, "FOLDER", tmp_path / "selection")
    return tmp_path / "selection"


def row(name="swav_digits", images=51200) -> bench.Row:
    grid = [{"schedule.images": images, "split": "train", "optimizer.lr": lr} for lr in (0.001, 0.01)]
    return bench.Row(name, tuple(grid), 2, 3)


def scores(calls):
    def score(model, dataset, overrides, seed):
        calls.append((overrides["optimizer.lr"], seed))
        good = 80.0 + 1000 * overrides["optimizer.lr"] + seed
        return {"linear": good, "fewlabel": good, "cluster": good, "cpu_seconds": 1.0}

    return score


def test_each_candidate_runs_once_with_every_seed_and_the_best_mean_is_chosen(selections):
    calls = []
    selection = bench.selected(row(), None, scores(calls))
    assert calls == [(0.001, 0), (0.001, 1), (0.01, 0), (0.01, 1)]
    assert [c["score"] for c in selection["candidates"]] == [81.5, 90.5]  # by hand: 80 + 1 + 0.5, 80 + 10 + 0.5
    assert "optimizer.lr=0.01" in select_recipes.best(selection)["overrides"]
    calls.clear()
    assert bench.selected(row(), None, scores(calls)) == selection and not calls  # kept
    bench.selected(row(images=25600), None, scores(calls))
    assert len(calls) == 4  # another budget is another selection, and nothing of the old one is in it
    assert len(select_recipes.read("swav_digits")["candidates"]) == 2


def test_an_interrupted_selection_goes_on_with_the_candidate_it_stopped_at(selections):
    calls = []

    def stops(model, dataset, overrides, seed):
        if overrides["optimizer.lr"] == 0.01:
            raise KeyboardInterrupt
        return scores(calls)(model, dataset, overrides, seed)

    # one candidate is finished and the second is begun: only with one job after the other is the order certain
    half = bench.Row("swav_digits", row().candidates[:1], 2, 3)
    bench.selected(half, None, stops)
    kept = select_recipes.read("swav_digits")
    bench.write(selections / "swav_digits.yaml", {**kept, "header": row().header})
    calls.clear()
    bench.selected(row(), None, scores(calls))
    assert calls == [(0.01, 0), (0.01, 1)]


@pytest.mark.parametrize("model", ["unmix_digits", "deepclusterv2_digits", "supervised_fashion_mnist", "rotnet_digits"])
def test_the_chosen_recipe_is_written_into_the_models_own_lines(tmp_path, model):
    shutil.copytree(Path(zoo.__file__).parent, tmp_path / "zoo", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    candidate = next(r for r in bench.table_rows(model.partition("_")[2]) if r.model == model).candidates[-1]
    before = Registry(tmp_path / "zoo").read()
    path = bench.put_recipe(model, candidate, tmp_path / "zoo")
    after = Registry(tmp_path / "zoo").read()
    assert after.resolve(model).hash() == zoo.resolve(model, candidate).hash()
    others = [m for m in after.models() if m != model and after.entry(m).method == path.stem]
    assert others
    for other in others:
        new, old = after.entry(other), before.entry(other)
        assert (new.recipe, new.weights, new.published) == (old.recipe, old.weights, old.published)
    once = path.read_text()
    assert bench.put_recipe(model, candidate, tmp_path / "zoo").read_text() == once


def test_records_of_the_former_recipe_do_not_stay_beside_the_new_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "COMMITTED", tmp_path)
    shutil.copytree(COMMITTED / "swav_digits", tmp_path / "swav_digits")
    old = sorted((tmp_path / "swav_digits").glob("knn_digits--*.json"))
    assert len(old) > 1
    template = records.read(old[0])
    new = records.Record(
        **{**template.__dict__, "weights_sha256": hashlib.sha256(b"new").hexdigest(), "pretrain_seed": 0}
    )
    made = [records.write(new, tmp_path)]
    assert bench.drop_others(row(), made) == FOUR_SORTED
    assert sorted((tmp_path / "swav_digits").glob("*.json")) == made
    assert bench.drop_others(row(), made) == []


def test_a_row_is_done_when_its_choice_and_its_records_are_those_of_the_recipe_in_use(selections, monkeypatch):
    r = row("swav_digits")
    assert not bench.done(r, FOUR)  # nothing was chosen
    selection = bench.selected(r, None, scores([]))
    assert not bench.done(r, FOUR)
    bench.write(selections / "swav_digits.yaml", {**selection, "measured": zoo.resolve("swav_digits").hash()})
    assert bench.done(r, FOUR)
    assert not bench.done(bench.Row("swav_digits", r.candidates, 2, 99), FOUR)  # a seed is missing
    assert bench.done(bench.Row("pixels_digits", (), 0, 1), FOUR)
