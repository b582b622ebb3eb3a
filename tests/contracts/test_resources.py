"""What a plan says of memory, disk, groups and hours, against what runs take and what was published."""

import re
from types import SimpleNamespace

import contract_tools as tools
import pytest
import torch
from torch import nn

from engine import optim
from reproduce import launch, plan, resources
from reproduce.__main__ import main
from zoo.errors import UserError

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def rows(text):
    return dict(line.split(None, 1) for line in text.splitlines())


def bytes_of(text, name):
    number, unit = re.search(rf"([\d.,]+) (\w+) {name}", text).groups()
    return float(number.replace(",", "")) * UNITS[unit]


@pytest.fixture(scope="module")
def large():
    return rows(plan.plan(launch.job("deepercluster_vgg16_yfcc", {}), 64))


def test_the_papers_deepercluster_on_64_processes_fits_a_card_of_16_gb(large):
    trunk, head = 134_267_904 + 4096 * 16 + 16, 80_000 * 4097
    assert large["parameters"].startswith(
        "462,093,968 a process, 327,760,000 of them held with its group only; 5,378,493,968 in all"
    )
    assert bytes_of(large["memory"], "weights") == pytest.approx(4 * (trunk + head), rel=5e-3)
    assert bytes_of(large["memory"], "buckets of gradients") == pytest.approx(4 * trunk, rel=5e-3)
    assert bytes_of("0 GiB x " + large["memory"].removeprefix("about "), "a process") < 16e9
    assert "16 training groups, a cluster head over 4 processes each" in large["groups"]
    assert bytes_of(large["disk"], "for checkpoints") == pytest.approx(3 * 4 * 2 * 5_378_493_968, rel=5e-3)
    assert bytes_of(large["disk"], "in all") == pytest.approx(4 * 4096 * 95_920_149, rel=5e-3)


def test_few_processes_say_what_each_holds_and_one_says_nothing():
    four = rows(plan.plan(launch.job("deepercluster_vgg16_yfcc", {}), 4))
    assert f"{4 * 327_760_000:,} of them" in four["parameters"]
    one = rows(plan.plan(launch.job("deepercluster_vgg16_yfcc", {}), 1))
    assert one["parameters"] == "5,378,493,968" and "groups" not in one and "buckets" not in one["memory"]


@pytest.mark.parametrize(
    "model, processes, hours",
    [
        ("swav_800ep", 64, 48.8),
        ("swav_800ep", 32, 97.7),
        ("mocov2_200ep", 8, 53),
        ("deepercluster_vgg16_yfcc", 64, None),
    ],
)
def test_hours_are_those_of_published_running_times(model, processes, hours):
    """800 epochs of 3 min 40 s on 64 GPUs, twice that on 32; where none is published, none is told."""
    found = rows(plan.plan(launch.job(model, {}), processes)).get("hours")
    assert (found is None) if hours is None else float(found.split()[1]) == pytest.approx(hours, rel=5e-3)


def test_other_crops_have_no_published_hours():
    crops = [SimpleNamespace(size=224)] * 2
    recipe = launch.job("swav_800ep", {}).recipe
    assert resources.hours(recipe, crops, 10**9, 64) is None


def test_the_command_plans_for_any_number_of_processes(capsys):
    assert main(["swav_800ep", "--plan", "world=16"]) == 0
    assert "4096 = 16 processes x 256" in capsys.readouterr().out
    with pytest.raises(UserError, match="world=0"):
        main(["swav_800ep", "--plan", "world=0"])
    with pytest.raises(UserError, match="world"):
        main(["swav_800ep", "world=16"])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weights_gradients_and_momenta_take_what_the_plan_says(name):
    settings = {"name": name, "lr": 0.1, **({"momentum": 0.9} if name == "sgd" else {})}
    recipe = tools.recipe("simclr", optimizer=settings)
    method, planned = tools.build(recipe), launch.meet(recipe, tools.source(), 1).method
    told = resources.memory(recipe, planned, tools.stream(recipe, method).augment, 1)
    optimizer = optim.build(settings, method.param_groups())
    for p in method.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    held = sum(
        t.nbytes for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor) and t.ndim
    )
    weights = sum(p.nbytes for p in method.parameters())
    assert bytes_of(told, "weights") == pytest.approx(weights, rel=1e-2)
    assert bytes_of(told, "gradients") == pytest.approx(weights, rel=1e-2)
    assert bytes_of(told, "optimiser") == pytest.approx(held, rel=1e-2)


def test_checkpoints_take_what_the_plan_says(tmp_path):
    recipe = tools.recipe("deepercluster in two levels", **{"backbone.options.width": 32})
    method = tools.build(recipe)
    told = resources.disk(recipe, method, method, 100, 1)
    tools.fit(recipe, tmp_path)
    size = (tmp_path / "checkpoint.pt").stat().st_size
    assert bytes_of(told, "for checkpoints") / 3 == pytest.approx(size, rel=0.1)
    assert bytes_of(told, "a process") == 4 * method.backbone.dim * 100 and "in memory" in told


def test_a_layer_that_writes_over_its_input_is_counted_once():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(inplace=True), nn.Conv2d(5, 7, 1), nn.ReLU()).to("meta")
    assert resources.outputs(net, 3, 4) == (5 + 7 + 7) * 16
