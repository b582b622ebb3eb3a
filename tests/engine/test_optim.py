"""Optimisers and schedules against the authors' numbers, and their rules for missing gradients and unknown settings."""

import numpy as np
import pytest
import torch

from engine import optim
from engine.errors import UserError
from golden import load


def params_of(arrays):
    return [torch.nn.Parameter(torch.from_numpy(a.copy())) for a in arrays]


def test_larc_takes_the_steps_of_the_authors():
    g = load("swav/larc.npz")
    count, steps = g.meta["nparams"], g.meta["steps"]
    assert not g.meta["clip"]
    params = params_of([g.given(f"p{i}.init") for i in range(count)])
    spec = {"name": "larc", "lr": g.meta["lr"], "eps": g.meta["eps"], "trust": g.meta["trust"]}
    spec |= {"momentum": g.meta["momentum"], "weight_decay": g.meta["weight_decay"], "nesterov": False}
    optimizer = optim.build(spec, [{"params": params}])
    for s in range(steps):
        optim.set_lr(optimizer, g.meta["lr_per_step"][s])
        for i, p in enumerate(params):
            gradient = torch.from_numpy(g.given(f"p{i}.grad{s}").copy())
            p.grad = None if g.meta["grad_none"].get(str(s)) == i else gradient
        optimizer.step()
        for i, p in enumerate(params):
            g.agree(f"p{i}.after{s}", p)


def test_lars_takes_the_steps_of_the_authors():
    g = load("pic/lars.npz")
    params = params_of([g.given(f"{name}0") for name in "wbz"])
    spec = {"name": "lars"} | {key: float(g.given(key)) for key in ("lr", "momentum", "weight_decay", "trust", "eps")}
    optimizer = optim.build(spec, [{"params": params}])
    for t in range(3):
        for name, p in zip("wbz", params, strict=True):
            p.grad = torch.from_numpy(g.given(f"grad{t}_{name}").copy())
        optimizer.step()
        for name, p in zip("wbz", params, strict=True):
            g.agree(f"after{t}_{name}", p)


def test_swav_schedule():
    g = load("swav/lr_schedule.npz")
    for case in g.meta:
        n = case["iters_per_epoch"]
        spec = {"name": "warmup_cosine", "epochs": case["epochs"], "warmup_epochs": float(case["warmup_epochs"])}
        spec |= {"start_lr": case["start_warmup"], "final_lr": case["final_lr"], "milestones": None}
        g.agree(f"lr_{case['case']}", optim.schedule(spec, n, n * case["epochs"], lr=case["base_lr"]))


@pytest.mark.parametrize("name", ["cos", "cos_nowarm", "lin_eval", "step"])
def test_pic_schedules(name):
    g = load("pic/lr_schedules.npz")
    epochs, warmup, n, lr, multiplier = g.given(f"{name}_cfg")
    spec = {"name": "multiplied_cosine", "warmup_epochs": warmup, "warmup_multiplier": multiplier, "final_lr": 1e-6}
    if name == "step":
        milestones = g.given("step_decay_epochs").tolist()
        spec = {"name": "step", "warmup_epochs": warmup, "warmup_multiplier": multiplier, "milestones": milestones}
    g.agree(name, optim.schedule(spec, int(n), int(n * epochs), lr=lr))


def test_sela_schedules():
    g = load("sela/schedules.npz")
    for name in g.names:
        if name.startswith("lr_main"):
            lr, drop = (float(word) for word in name.split("_")[2:])
            g.agree(name, optim.step(1, 402, lr=lr, milestones=[drop, 2 * drop, 350]))
        elif name.startswith("lr_cifar"):
            epochs = int(name.split("_")[2])
            g.agree(name, optim.step(1, epochs, lr=0.03, milestones=[0.6 * epochs, 0.8 * epochs]))
    rates = {"milestones": [10, 20, 30, 36], "rates": [1e-2, 1e-3, 1e-4, 1e-5]}
    g.agree("lr_linear_probe_alexnet", optim.schedule({"name": "table", **rates}, 1, 36, lr=0.05))


def test_deepercluster_schedules():
    g = load("deepercluster/lr_schedules.npz")
    lr0, wd, t = (g.given(name) for name in ("lr0", "wd", "t"))
    ours = [optim.bottou(100, int(t.max()) + 1, lr=a, weight_decay=b)[t] for a, b in zip(lr0, wd, strict=True)]
    g.agree("bottou_lr", np.stack(ours))
    lr = float(g.given("pretrain_lr0"))
    g.agree("pretrain_lr", optim.step(1, len(g.given("pretrain_epoch")), lr=lr, milestones=[30, 60, 90]))


def test_epoch_cosine_moves_between_epochs_only():
    rates = optim.schedule({"name": "epoch_cosine", "epochs": 100}, 3, 300, lr=0.3).reshape(100, 3)
    assert (rates == rates[:, :1]).all()
    np.testing.assert_allclose(rates[:, 0], 0.15 * (1 + np.cos(np.pi * np.arange(100) / 100)), rtol=1e-12)


@pytest.mark.parametrize("total", [0, 1, 7, 23])
@pytest.mark.parametrize(
    "name", ["constant", "warmup_cosine", "multiplied_cosine", "epoch_cosine", "step", "table", "bottou"]
)
def test_every_schedule_has_one_finite_rate_per_step(name, total):
    own = {
        "step": {"milestones": [1, 2], "warmup_epochs": 0.5},
        "bottou": {"weight_decay": 0.1},
    }
    own |= {"table": {"milestones": [1, 4], "rates": [0.1, 0.2]}, "warmup_cosine": {"warmup_epochs": 1.5}}
    rates = optim.schedule({"name": name, **own.get(name, {})}, 5, total, lr=0.5)
    assert rates.shape == (total,) and rates.dtype == np.float64 and np.isfinite(rates).all()


@pytest.mark.parametrize("name", ["sgd", "larc", "lars", "adamw"])
def test_a_parameter_without_gradient_neither_moves_nor_decays(name):
    used, unused = params_of([np.ones((2, 2), np.float32)] * 2)
    optimizer = optim.build({"name": name, "lr": 0.1, "weight_decay": 0.5}, [{"params": [used, unused]}])
    for _ in range(2):
        used.grad, unused.grad = torch.ones(2, 2), None
        optimizer.step()
    assert torch.equal(unused, torch.ones(2, 2)) and not torch.equal(used, torch.ones(2, 2))
    assert unused not in optimizer.state


LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("saved", LAYOUTS, ids=["saved_nchw", "saved_nhwc"])
@pytest.mark.parametrize("gradient", LAYOUTS, ids=["gradient_nchw", "gradient_nhwc"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
def test_adamw_takes_the_steps_of_the_loop_in_every_layout(layout, gradient, saved):
    """torch's fused kernel walks through memory: with a gradient or a loaded moment in another layout it takes other elements."""
    start, grads = torch.randn(4, 8, 3, 3), torch.randn(6, 4, 8, 3, 3)
    plain = torch.nn.Parameter(start.clone())
    reference = torch.optim.AdamW([plain], lr=0.1, weight_decay=0.3, fused=False, foreach=False)
    ours = torch.nn.Parameter(start.contiguous(memory_format=layout))
    group = [{"params": [ours]}]
    optimizer = optim.build({"name": "adamw", "lr": 0.1, "weight_decay": 0.3}, group)
    for i, grad in enumerate(grads):
        plain.grad, ours.grad = grad.clone(), grad.contiguous(memory_format=gradient)
        reference.step()
        optimizer.step()
        if i == 2:  # a run that goes on from a checkpoint, whose tensors may lie in another order
            state = optimizer.state_dict()
            moments = {
                k: v.contiguous(memory_format=saved) if v.dim() == 4 else v for k, v in state["state"][0].items()
            }
            optimizer = optim.build({"name": "adamw", "lr": 0.1, "weight_decay": 0.3}, group)
            optimizer.load_state_dict({**state, "state": {0: moments}})
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
    assert optimizer.param_groups[0]["fused"]


@pytest.mark.parametrize("name", ["larc", "lars"])
def test_a_group_may_opt_out_of_adaptation_and_set_its_own_rate(name):
    value, gradient = torch.randn(3, 3), torch.randn(3, 3)
    ours, theirs = torch.nn.Parameter(value.clone()), torch.nn.Parameter(value.clone())
    optimizer = optim.build(
        {"name": name, "lr": 9.0, "momentum": 0.9, "weight_decay": 0.0},
        [{"params": [ours], "no_adapt": True, "weight_decay": 0.3, "lr_scale": 0.5}, {"params": []}],
    )
    reference = optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.3)
    optim.set_lr(optimizer, 0.2)
    for _ in range(3):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)
    assert optimizer.param_groups[0]["weight_decay"] == 0.3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "adam", "lr": 1}, "did you mean 'adamw'"),
        ({"name": "sgd", "lr": 1, "trust": 0.1}, "optimizer.trust: sgd has no such setting"),
        ({"name": "adamw", "lr": 1, "momentum": 0.9}, "optimizer.momentum"),
    ],
)
def test_an_optimizer_setting_is_honoured_or_refused(spec, message):
    with pytest.raises(UserError, match=message):
        optim.build(spec, [{"params": params_of([np.zeros(2, np.float32)])}])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "warmup_cosin"}, "did you mean 'warmup_cosine'"),
        ({"name": "constant", "final_lr": 0.1}, "schedule.final_lr: constant has no such setting"),
        ({"name": "step"}, "schedule.milestones: step needs it"),
        ({"name": "warmup_cosine", "warmup_epoch": 3}, "did you mean 'warmup_epochs'"),
    ],
)
def test_a_schedule_setting_is_honoured_or_refused(spec, message):
    with pytest.raises(UserError, match=message):
        optim.schedule(spec, 10, 100, lr=0.1)
