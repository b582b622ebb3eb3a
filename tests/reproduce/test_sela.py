"""SeLa: when labels are renewed, what they hold, and the authors' schedules."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import optim
from engine.batch import Batch
from golden import load
from reproduce.methods.sela import SeLa, head_loss, initial_labels, labeling_steps, labeling_times


def method(**settings):
    backbone = nn.Identity()
    backbone.dim = 6
    torch.manual_seed(0)
    return SeLa(backbone, **{"clusters": 5, "heads": 3, "labelings": 4, **settings})


IMAGES = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))


def context(steps=20, batch=8):
    return SimpleNamespace(
        extract=lambda view: (np.arange(40), IMAGES),
        seed=0,
        n=40,
        total_steps=steps,
        batch=batch,
    )


def test_labelling_events_fall_where_the_authors_code_has_them():
    g = load("sela/schedules.npz")
    for case in range(3):
        n, bs, epochs, events = (int(x) for x in g.given(f"s{case}_N_bs_E_nopts"))
        times = labeling_times((epochs + 1.01) * n, events)
        g.agree(
            f"s{case}_times_in_list_order", np.append((epochs + 2.0) * n, times[::-1])
        )  # theirs: falling, behind a sentinel
        if f"s{case}_fired_at_iteration" in g.names:
            steps = int(g.given(f"s{case}_iterations_per_epoch")) * int(g.given(f"s{case}_epochs_run"))
            g.exact(f"s{case}_fired_at_iteration", labeling_steps(times, bs, steps))


def test_learning_rates_are_the_authors():
    g = load("sela/schedules.npz")
    for name in g.names:
        if name.startswith("lr_main"):
            lr, drop = float(name.split("_")[2]), int(name.split("_")[3])
            spec = {"name": "step", "milestones": [drop, 2 * drop, 350], "factor": 0.1}
        elif name.startswith("lr_cifar"):
            epochs = int(name.split("_")[2])
            lr, spec = 0.03, {"name": "step", "milestones": [0.6 * epochs, 0.8 * epochs], "factor": 0.1}
        elif name == "lr_linear_probe_alexnet":
            lr, spec = 0.01, {"name": "step", "milestones": [10, 20, 30], "factor": 0.1}
        else:
            continue
        epochs = len(g.arrays[name])
        g.agree(name, optim.schedule(spec, 1, epochs, lr=lr))


def test_initial_labels_are_balanced_and_the_authors_with_their_random_numbers():
    g = load("sela/schedules.npz")
    seed, n, k = (int(x) for x in g.given("init_seed_N_K"))
    g.exact("init_labels", initial_labels(len(g.arrays["init_labels"]), n, k, np.random.RandomState(seed)))
    assert np.bincount(initial_labels(1, 12, 4, np.random.default_rng(0))[0]).tolist() == [3] * 4


def test_at_most_one_event_per_step_and_the_last_on_the_last_step():
    assert labeling_steps(labeling_times(19 * 8, 4, 1.0), 8, 20) == [0, 7, 13, 19]
    assert labeling_steps(np.zeros(3), 8, 20) == [0, 1, 2]
    assert labeling_steps(np.array([0, 1e9]), 8, 20) == [0]


def test_labels_are_renewed_at_their_moments_and_equally_frequent():
    net, ctx, changed = method(), context(), []
    for step in range(20):
        before = net.labels
        net.before_step(step, ctx)
        if net.labels is not before:
            changed.append(step)
    assert changed == [0, 3, 9, 19]
    for labels in net.labels:
        assert (torch.bincount(labels, minlength=5) - 8).abs().max() <= 1
    assert net.health()["labeling"] == 3 and net.health()["agreement"] == pytest.approx(1)


def test_one_head_per_event_leaves_the_others_alone():
    net, ctx = method(heads_per_labeling="one"), context()
    net.before_step(0, ctx)
    first = net.labels
    net.before_step(3, ctx)
    assert torch.equal(net.labels[0], first[0]) and torch.equal(net.labels[2], first[2])
    assert not torch.equal(net.labels[1], first[1])


def test_the_loss_is_the_mean_over_heads_and_every_view_predicts_the_label():
    net, ctx = method(), context()
    net.before_step(0, ctx)
    ids = torch.tensor([3, 17, 5])
    loss, logs = net.loss(Batch(ids, [IMAGES[ids], IMAGES[ids] + 1]), 0)
    x = torch.cat([IMAGES[ids], IMAGES[ids] + 1])
    expected = sum(F.cross_entropy(head(x), net.labels[h][ids].repeat(2)) for h, head in enumerate(net.heads)) / 3
    assert torch.allclose(loss, expected) and 0 <= logs["accuracy"] <= 1
    assert head_loss([torch.zeros(4, 5)], torch.zeros(1, 4, dtype=torch.int64)).item() == pytest.approx(np.log(5))


def test_one_head_is_exported_under_the_released_name():
    assert {k for k in method(heads=1).exported() if "top" in k} == {"top_layer.weight", "top_layer.bias"}
    net = method()
    exported = net.exported()
    for h, head in enumerate(net.heads):
        assert torch.equal(exported[f"top_layer{h}.weight"], head.weight), "each head under its own number"
    assert len({exported[f"top_layer{h}.weight"].sum().item() for h in range(3)}) == 3
