"""A run that diverges ends in one line, whatever the method was doing: step, rate, last loss, and remedies that are settings."""

import math
import re

import contract_tools as tools
import pytest
import torch

import zoo
from engine import loop
from engine.errors import NonFiniteLoss
from engine.options import RunOptions
from zoo.settings import parse

LINE = re.compile(
    r"(?P<what>[^.()]+(\([^)]*\))?[^()]*) at step (?P<step>\d+) \((loss before it [-\d.e+]+, )?learning rate (?P<rate>[\d.e+]+)\); "
    r"training stopped, (no checkpoint was written|the checkpoint of step \d+ is intact)\. Try (?P<remedies>\S+=\S+(, or \S+=\S+)*)"
)
EPOCH = 6  # steps in an epoch of the contract's handful of digits


def end_of(name, tmp_path, *, wrap=None, stream=None, **settings):
    """The message with which a run of `name` ends, and the run's recipe."""
    recipe = tools.recipe(name, **settings)
    method = tools.build(recipe)
    if wrap:
        wrap(method)
    batches = tools.stream(recipe, method)
    if stream:
        stream(batches)
    options = RunOptions(checkpoint_interval=100, log_interval=1, tensorboard=False)
    with pytest.raises(NonFiniteLoss) as caught:
        loop.fit(
            method,
            batches,
            rates=batches.rates,
            recipe=recipe.dump(),
            folder=tmp_path / "run",
            options=options,
            world=tools.dist.World(),
            provenance={},
        )
    assert not (tmp_path / "run" / "weights.pth").exists()
    return str(caught.value), recipe


def check(message, recipe, step=None):
    assert "\n" not in message
    found = LINE.fullmatch(message)
    assert found, message
    assert step is None or int(found["step"]) == step, message
    assert float(found["rate"]) >= 0
    for word in found["remedies"].split(", or "):
        changed = zoo.resolve(f"{recipe.method}_digits", parse([word]))
        assert changed.hash() != zoo.resolve(f"{recipe.method}_digits").hash(), word
    assert f"optimizer.lr={recipe.optimizer.lr / 10:g}" in message


@pytest.mark.parametrize("name", tools.cases())
def test_an_absurd_learning_rate(name, tmp_path):
    message, recipe = end_of(name, tmp_path, **{"optimizer.lr": 1e30})
    check(message, recipe)


@pytest.mark.parametrize("name", tools.cases())
def test_a_batch_that_is_not_finite(name, tmp_path):
    def poison(batches):
        plain = batches.epoch

        def epoch(number, start=0):
            for i, batch in enumerate(plain(number, start)):
                if number == 0 and i == 3:
                    for view in batch.views:
                        view[0] = math.nan
                yield batch

        batches.epoch = epoch

    message, recipe = end_of(name, tmp_path, stream=poison)
    check(message, recipe, step=3)
    assert re.search(r"loss before it -?\d", message), "three steps went well"


@pytest.mark.parametrize("name", tools.cases())
def test_weights_that_turn_bad_just_before_the_work_between_epochs(name, tmp_path):
    """k-means, PCA, Sinkhorn and labelling meet features that are not finite before any loss does."""

    def poison(method):
        plain = method.after_backward

        def after_backward(step):
            plain(step)
            if step == EPOCH - 1:
                next(p for p in method.backbone.parameters() if p.grad is not None).grad.fill_(math.nan)

        method.after_backward = after_backward

    message, recipe = end_of(name, tmp_path, wrap=poison)
    check(message, recipe, step=EPOCH)


@pytest.mark.parametrize("name", ["deepcluster", "deepercluster", "deepercluster in two levels"])
def test_features_that_are_all_equal_cannot_be_clustered_and_say_so(name, tmp_path):
    def poison(method):
        method.features = lambda images: torch.ones(len(images), method.backbone.dim)

    message, _ = end_of(name, tmp_path, wrap=poison)
    assert "collapsed" in message and LINE.fullmatch(message), message


def test_a_rate_that_a_method_keeps_for_itself_is_among_the_remedies(tmp_path):
    message, recipe = end_of("pic", tmp_path, **{"optimizer.lr": 1e30, "params.class_sgd": {"lr": 0.3}})
    check(message, recipe)
    assert "optimizer.lr=1e+29, or params.class_sgd.lr=0.03" in message
