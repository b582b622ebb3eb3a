"""Every limit that a method declares: the plan and the run refuse what is beyond it in one and the same line, or both only warn."""

import math

import contract_tools as tools
import pytest
import torch

import zoo
from reproduce import health, launch, methods, plan
from reproduce.limits import RELATIONS, Run
from zoo import backbones, data
from zoo.errors import UserError
from zoo.settings import parse

UNMIXED = [f"unmix of {base}" for base in ("swav", "mocov1", "mocov2", "simclr")]
# What must be set for a conditional limit to hold at all, by its path, and by its place where two have one path.
SWITCHES = {
    "params.queue.start_epoch": {"params.queue.length": 256},
    "params.graph.neighbours": {"params.clustering": "pic"},
    "optimizer.name": {"params.class_sgd.lr": 0.0},
    "optimizer.nesterov": {"params.class_sgd.lr": 0.0, "optimizer.name": "sgd"},
    ("params.queue", 2): {"params.symmetric": True},
}


def settings_of(name):
    """The digits model of a method, or of Un-Mix on a base, and the settings that make it one."""
    method, _, base = name.partition(" of ")
    return f"{method}_digits", {} if method == "pixels" else {
        "backbone.options.width": 16,
        **({"params.base": base} if base else {}),
    }


def limits_of(name):
    model, settings = settings_of(name)
    recipe = zoo.resolve(model, settings)
    return methods.find(recipe.method).limits_of(recipe.params)


def facts(model, settings):
    """What the run's limits are compared with, computed here without `meet`."""
    recipe, source = zoo.resolve(model, settings), data.open_source("digits", "train")
    with torch.device("meta"):
        method = methods.build(recipe, backbones.build(recipe.backbone), instances=len(source), classes=10)
    stream = launch.streamed(recipe, source, method)
    return Run(
        recipe.dump(),
        len(source),
        method.backbone.dim,
        recipe.views.count,
        1,
        stream.total_steps,
        stream.steps_per_epoch,
    )


def beyond(limit, run):
    """A value of the limit's setting that it does not allow."""
    bound = limit.bound
    if isinstance(bound, str) and bound != "sgd":
        bound = run.get(bound) if "." in bound else getattr(run, bound) * limit.times
    if limit.relation == "is":
        return "adamw" if bound == "sgd" else True if bound is False else 128
    value = run.get(limit.path)
    wrong = {"<=": bound + 1, "<": math.ceil(bound), ">=": bound - 1, ">": bound, "multiple of": bound + 1}[
        limit.relation
    ]
    return [wrong] if isinstance(value, list) else wrong


@pytest.mark.parametrize(
    "name, number", [(name, n) for name in [*tools.registered(), *UNMIXED] for n in range(len(limits_of(name)))]
)
def test_plan_and_run_agree_about_every_limit(name, number, tmp_path):
    limit, (model, settings) = limits_of(name)[number], settings_of(name)
    group = f"params.{name.partition(' of ')[2]}." if " of " in name else "params."
    plainly = limit.path.replace(group, "params.")
    for path, value in SWITCHES.get((plainly, limit.times), SWITCHES.get(plainly, {})).items():
        settings[path.replace("params.", group)] = value
    settings[limit.path] = beyond(limit, facts(model, settings))
    work = launch.job(model, {**settings, "out": str(tmp_path), "tensorboard": False})
    if limit.otherwise:
        lines = [line for line in plan.plan(work).splitlines() if line.startswith("warning ")]
        assert any(f"{limit.path}=" in line and limit.otherwise in line for line in lines), lines
        return
    said = []
    for way in (plan.plan, launch.run):
        with pytest.raises(UserError) as caught:
            way(work)
        said.append(str(caught.value))
    assert said[0] == said[1] and "\n" not in said[0] and f"{limit.path}=" in said[0]
    assert not list(tmp_path.rglob("*.*")), "nothing is written for a run that cannot be"


def test_a_relation_names_a_value_that_passes():
    for word, (_, holds, nearest) in RELATIONS.items():
        for value, bound in ((9, 4), (3, 4), (4, 4), (0, 4), (7, 3)):
            fit = nearest(value, bound)
            assert fit is None or holds(fit, bound), (word, value, bound)


@pytest.mark.parametrize("name", tools.trained())
def test_every_remedy_that_an_alarm_would_print_fits_the_run(name):
    """Each is a setting, changes something, is refused by nothing, and raises no doubt that the run has not."""
    model, settings = settings_of(name)
    recipe, source = zoo.resolve(model, settings), data.open_source("digits", "train")
    meeting = launch.meet(recipe, source, 1)
    method = meeting.method
    method.run = meeting.run
    for alarm in ("collapse", "features", "rank", "usage", "queue"):
        for word in filter(None, health.advice(method, alarm).removeprefix("; try ").split(", or ")):
            changed = zoo.resolve(model, {**settings, **parse([word])})
            assert changed.hash() != recipe.hash(), word
            assert set(launch.meet(changed, source, 1).warnings) <= set(meeting.warnings), word
