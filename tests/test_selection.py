"""Recipes in use are the best of those that were tried on ``val``; the grid and its scores are in results/selection/."""

from __future__ import annotations

import statistics

import pytest

import zoo
from benchmarks import select_recipes
from zoo.errors import UserError

MODELS = sorted(path.stem for path in select_recipes.FOLDER.glob("*.yaml"))


def test_the_demo_models_were_selected():
    assert {"simclr_digits", "swav_digits", "rotnet_digits", "supervised_digits"} <= set(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_the_recipe_in_use_is_the_best_of_those_tried(model):
    selection = select_recipes.read(model)
    assert selection["model"] == model and len(selection["candidates"]) > 1
    assert zoo.resolve(model).hash() == select_recipes.best(selection)["recipe"]


@pytest.mark.parametrize("model", MODELS)
def test_each_score_is_the_mean_that_the_rule_says(model):
    for row in select_recipes.read(model)["candidates"]:
        parts = [statistics.mean(row[name]) for name in select_recipes.MEASURES]
        assert row["score"] == pytest.approx(statistics.mean(parts), abs=0.006)
        assert len({len(row[name]) for name in select_recipes.MEASURES}) == 1


def test_a_recipe_of_its_own_split_keeps_it_only_without_images_of_val():
    assert select_recipes.training_split("swav_digits", "digits", {}) == "fit"
    assert select_recipes.training_split("swav_digits", "digits", {"split": "fit"}) == "fit"
    with pytest.raises(UserError, match="split=val holds images of val"):
        select_recipes.training_split("swav_digits", "digits", {"split": "val"})


def test_no_recipe_was_chosen_on_the_test_split():
    assert "on val" in select_recipes.RULE and "pre-training on fit" in select_recipes.RULE
    assert all(select_recipes.read(model)["rule"] == select_recipes.RULE for model in MODELS)
