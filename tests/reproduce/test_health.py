"""Alarms: each trouble is named once, after patience, with the authors' remedies; a healthy run stays quiet."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from reproduce import launch
from reproduce.health import BLOCK, FEW, PATIENCE, Watch, advice, effective_rank, spread
from reproduce.limits import Run
from reproduce.methods.moco import MoCo
from reproduce.methods.swav import SwAV
from reproduce.methods.unmix import Unmix


def swav(prototypes: int = 100) -> SwAV:
    backbone = nn.Flatten()
    backbone.dim = 4
    return SwAV(backbone, prototypes=prototypes, dim=4, hidden=0)


def listen(watch, losses, numbers=lambda step: {}):
    """Messages of a run that reports every ten steps."""
    return [m for i, loss in enumerate(losses) for m in watch(10 * i, loss, numbers(10 * i))]


def test_a_loss_stuck_at_ln_k_is_a_collapse_with_the_authors_remedies():
    messages = listen(Watch(swav()), [math.log(100) * 1.002] * 80)
    assert len(messages) == 1  # said once
    for part in (
        "collapse",
        "4.61",
        "params.epsilon=0.03",
        "params.freeze_prototypes_steps",
        "params.queue.length=0",
        "params.assignment=hard",
        "params.head_batchnorm=false",
        "params.prototypes",
    ):
        assert part in messages[0]


def test_a_loss_that_leaves_ln_k_in_time_or_passes_it_again_is_no_collapse():
    early = [math.log(100)] * (PATIENCE // 10 - 1)
    assert listen(Watch(swav()), [*early, *[4.0] * 50]) == []
    assert listen(Watch(swav()), [*early, 4.0, *early]) == []


def test_a_loss_that_stays_higher_after_the_queue_starts_is_named():
    numbers = lambda step: {"queue_full": float(step >= 500)}
    messages = listen(Watch(swav()), [3.0] * 50 + [3.5] * 60, numbers)
    assert len(messages) == 1 and "queue" in messages[0] and "params.queue.start_epoch" in messages[0]
    assert listen(Watch(swav()), [3.0] * 50 + [3.5] * 20 + [2.9] * 60, numbers) == []
    assert listen(Watch(swav()), [3.0] * 110, lambda step: {"queue_full": 1.0}) == []  # nothing to compare with


def test_dead_features_and_a_few_prototypes_that_take_all_are_named():
    dead = listen(Watch(swav()), [3.0] * 60, lambda step: {"feature_std": 0.001})
    few = listen(Watch(swav()), [3.0] * 60, lambda step: {"prototype_usage": 0.05})
    assert "dead features" in dead[0] and "usage" in few[0] and len(dead) == len(few) == 1


def test_a_healthy_run_is_quiet():
    losses = [4.6 - 0.01 * i for i in range(200)]
    numbers = lambda step: {"feature_std": 0.9, "prototype_usage": 0.95, "queue_full": float(step > 300)}
    assert listen(Watch(swav()), losses, numbers) == []


def test_spread_is_one_for_spread_out_embeddings_and_zero_for_equal_ones():
    z = torch.nn.functional.normalize(torch.randn(4000, 16), dim=1)
    assert spread(z) == pytest.approx(1.0, abs=0.05) and spread(z[:1].expand(50, -1)) == 0.0
    assert spread(z[:1]) == 0.0  # a batch of one is not NaN


def test_a_network_that_really_says_the_same_of_every_image_raises_the_alarm():
    """Constant embeddings through the method itself: loss, health and alarms agree on what is wrong."""
    method = swav(20)
    nn.init.zeros_(method.projection_head.weight)
    nn.init.constant_(method.projection_head.bias, 1.0)
    messages = []
    for step in range(0, 400, 10):
        nn.init.constant_(method.prototypes.weight, 0.1)
        loss, _ = method.loss(SimpleNamespace(views=[torch.randn(6, 4)[..., None, None]] * 2, epoch=0), step)
        messages += method.alarms(step, loss.item(), method.health())
    assert sum("collapse" in m for m in messages) == 1 and sum("dead features" in m for m in messages) == 1


def test_the_age_of_a_queue_is_counted_in_steps():
    backbone = nn.Flatten()
    backbone.dim = 4
    method = SwAV(backbone, prototypes=6, dim=4, hidden=0, queue={"length": 12, "start_epoch": 0})
    ages = []
    for step in range(5):
        views = [torch.randn(4, 4, 1, 1) for _ in range(2)]
        method.before_step(step)
        method.loss(SimpleNamespace(views=views, epoch=0), step)
        ages.append((method.health()["queue_age"], method.health()["queue_full"]))
    assert ages == [(1, 0), (2, 0), (3, 1), (3, 1), (3, 1)]
    assert "queue_age" not in swav().health()
    keys = MoCo(backbone, dim=4, hidden=0, queue=20)
    keys.enqueue(torch.randn(8, 4))
    keys._seen = torch.randn(8, 4)
    assert keys.health()["queue_age"] == 2.5


def test_the_age_of_a_queue_into_which_several_losses_push_is_counted_in_steps_too():
    """Un-Mix on SwAV pushes three batches a step: a queue of six batches holds two steps."""
    backbone = nn.Flatten()
    backbone.dim = 4
    method = Unmix(backbone, swav={"prototypes": 6, "dim": 4, "hidden": 0, "queue": {"length": 24, "start_epoch": 0}})
    ages = []
    for step in range(4):
        method.before_step(step, SimpleNamespace(seed=0))
        method.loss(SimpleNamespace(views=[torch.randn(4, 4, 1, 1) for _ in range(2)], epoch=0), step)
        ages.append((method.health()["queue_age"], method.health()["queue_full"]))
    assert ages == [(1, 0), (2, 1), (2, 1), (2, 1)]


def test_effective_rank_counts_directions_however_the_rows_lie():
    """k equal orthogonal directions give k; so do fewer rows than columns, and rows that take several blocks."""
    basis = torch.linalg.qr(torch.randn(32, 32))[0]
    for k in (1, 3, 8):
        rows = torch.cat([basis[:k], -basis[:k]])  # centred, k equal singular values
        assert effective_rank(rows) == pytest.approx(k, rel=1e-3)  # 2k rows of 32
        assert effective_rank(rows.repeat(40, 1) + 5) == pytest.approx(k, rel=1e-3)
    z = torch.randn(200, 8)
    assert effective_rank(z.repeat(BLOCK // 100, 1)) == pytest.approx(effective_rank(z), rel=1e-9)
    assert effective_rank(torch.ones(9, 4)) == pytest.approx(0, abs=1.01)  # nothing but zeros: 1 at most


def test_advice_leaves_out_what_the_run_does_already_and_never_raises_the_learning_rate():
    method = swav()
    method.settings = {
        "optimizer": {"lr": 0.003},
        "params": {"epsilon": 0.03, "queue": {"length": 0}},
        "views": {"crops": [{"scale": [0.5, 1.0]}]},
    }
    text = advice(method, "collapse")
    assert "optimizer.lr=0.0003" in text and "params.prototypes=100" in text
    assert not any(part in text for part in ("epsilon", "queue.length", "views.crops", "lr=0.1"))
    method.settings = {"optimizer": {"lr": 4.8}}
    assert "optimizer.lr=0.1" in advice(method, "collapse") and "params.epsilon=0.03" in advice(method, "collapse")


def test_un_mix_names_the_remedies_of_its_base_by_their_own_place():
    backbone = nn.Flatten()
    backbone.dim = 4
    method = Unmix(backbone, swav={"prototypes": 6, "dim": 4, "hidden": 0})
    assert "params.swav.epsilon=0.03" in advice(method, "collapse")
    assert advice(method, "queue") == "; try params.swav.queue.length=0, or params.swav.queue.start_epoch=30"


def run_of(steps=400, batch=128, **settings) -> Run:
    return Run(
        {"batch": batch, **settings}, images=1258, features=64, views=2, processes=1, steps=steps, steps_per_epoch=9
    )


def test_embeddings_in_a_few_directions_raise_an_alarm_in_a_short_run_too():
    """400 steps: after 100 of them. What healthy runs on digits show (lowest: PIC 4.5 for 50 steps, InstDisc 8) stays quiet."""
    method = swav()
    method.run = run_of()
    said = {}
    for step in range(0, 400, 10):
        for message in method.alarms(step, 3.0, {"effective_rank": 2.0, "feature_std": 0.97}):
            said[step] = message
    assert (
        list(said) == [100]
        and "few directions" in said[100]
        and "effective rank of 2.0" in said[100]
        and "; try " in said[100]
    )
    for rank, last in ((8.3, 390), (4.5, 50)):
        quiet = swav()
        quiet.run = run_of()
        assert not [
            m for s in range(0, 400, 10) for m in quiet.alarms(s, 3.0, {"effective_rank": rank if s <= last else 9.0})
        ]
    small = swav()
    small.run = run_of(batch=8)  # eight rows span seven directions at most
    assert not [m for s in range(0, 400, 10) for m in small.alarms(s, 3.0, {"effective_rank": 2.0})]


def test_a_run_that_collapses_onto_few_directions_says_so_and_a_healthy_one_does_not(tmp_path):
    """SimSiam at thirty times its rate: three of 128 directions, while the loss falls and the spread looks sound."""
    for rate, collapsed in ((0.1, True), (0.003, False)):
        folder = launch.pretrain(
            "simsiam_digits",
            {
                "optimizer.lr": rate,
                "batch": 64,
                "schedule.images": 7680,
                "out": str(tmp_path),
                "tensorboard": False,
                "schedule.warmup_epochs": 1,
            },
            quiet=True,
        )
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        ranks = [line["effective_rank"] for line in lines if line.get("step", 0) >= 50 and "effective_rank" in line]
        alarms = [line["message"] for line in lines if line.get("event") == "alarm"]
        assert (max(ranks) < FEW) == (min(ranks) < 2 * FEW) == collapsed, ranks
        assert [("few directions" in m and "try optimizer.lr=0.01" in m) for m in alarms] == [True] * collapsed, alarms


def test_remedies_are_those_of_this_run_not_of_imagenet():
    method = swav()
    method.settings = {
        "batch": 128,
        "optimizer": {"lr": 0.003},
        "views": {"crops": [{"scale": [0.6, 1.0]}]},
        "params": {
            "prototypes": 50,
            "freeze_prototypes_steps": 10,
            "epsilon": 0.05,
            "assignment": "soft",
            "head_batchnorm": True,
            "queue": {"length": 256, "start_epoch": 5},
        },
    }
    method.run = run_of(**{k: v for k, v in method.settings.items() if k != "batch"})
    words = advice(method, "collapse").removeprefix("; try ").split(", or ")
    assert "params.freeze_prototypes_steps=100" in words, "a quarter of 400 steps, where ImageNet's advice is 5000"
    assert "params.prototypes=25" in words, "fewer than the 50 that there are, where ImageNet's advice is 100"
    assert not any(word.startswith("views.") for word in words), "its crops are larger than those advised"
    assert "params.queue.start_epoch=11" in advice(method, "queue"), (
        "a quarter of 44 epochs, where ImageNet's advice is 30"
    )
    method.run = run_of(steps=250_000, **{k: v for k, v in method.settings.items() if k != "batch"})
    assert "params.freeze_prototypes_steps=5000" in advice(method, "collapse")
