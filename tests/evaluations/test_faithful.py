"""Linear probes as the authors ran them: golden forwards and schedules, one process = two, resume, honest selection."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import zlib

import numpy as np
import pytest
import torch
from evaluation_fakes import finished_run

import zoo
from engine import batchnorm, dist
from evaluations import measure, protocol
from evaluations.inputs.features import pool_of
from evaluations.inputs.pooling import kernel_below, pool_map, pooled
from evaluations.probes import nonlinear, sgd
from evaluations.probes.batched import Grid, Schedule
from evaluations.probes.sgd import LinearProbe
from evaluations.scores import topk
from golden import load
from results import record as records
from zoo import backbones
from zoo.errors import UserError

FAST = {
    "form": "faithful",
    "head.epochs": 3,
    "head.batch": 200,
    "head.snapshots": 3,
    "grid.lr": [0.3],
    "head.norm": "none",
}


def deepercluster_tensor(key, shape):
    g = np.random.default_rng(zlib.crc32(key.encode()) + 1000)
    values = g.standard_normal(shape) * (0.1 if key.endswith("bias") else np.sqrt(2 / np.prod(shape[1:])))
    return torch.tensor(values.astype(np.float32))


def swav_tensor(salt, key, shape):
    rs = np.random.RandomState(zlib.crc32((salt + key).encode()))
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if key.endswith("running_mean"):
        values = 0.1 * rs.standard_normal(shape)
    elif key.endswith("running_var"):
        values = 0.5 + rs.random_sample(shape)
    elif len(shape) == 2:
        values = rs.standard_normal(shape) / np.sqrt(shape[1])
    elif key.endswith("weight"):
        values = 0.5 + 0.5 * rs.random_sample(shape)
    else:
        values = 0.1 * rs.standard_normal(shape)
    return torch.tensor(values.astype(np.float32))


def sela_tensor(key, shape, salt):
    g = np.random.default_rng(zlib.crc32(key.encode()) + salt)
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if key.endswith("running_mean"):
        values = 0.1 * g.standard_normal(shape)
    elif key.endswith("running_var"):
        values = 0.5 + g.random(shape)
    elif len(shape) > 1:
        values = g.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    else:
        values = 0.5 + g.random(shape) if key.endswith("weight") else 0.1 * g.standard_normal(shape)
    return torch.tensor(values.astype(np.float32))


PROBED = {"vgg16": ("deepercluster_vgg16_yfcc", "linear_conv_imagenet_deepercluster"),
          "alexnet": ("deepcluster_alexnet_imagenet", "linear_conv_imagenet_deepcluster")}  # fmt: skip


def test_maps_of_the_networks_and_pools_of_the_protocols_are_the_authors():
    g = load("deepercluster/linear_probe_dims.json")
    for kind, (model, name) in PROBED.items():
        with torch.device("meta"):
            network = backbones.build(zoo.entry(model).backbone).eval()
            layers = [layer for layer in network.layers if layer.startswith("conv")]
            maps = network.forward_layers(torch.empty(1, 3, 224, 224), layers)
        for layer in layers:
            pool = pool_of(protocol.load(name), layer)
            numbers = [int(n) for n in pool.split(":")[1:]]
            kernel, stride, padding = (*numbers, numbers[0], 0)[:3] if len(numbers) < 3 else numbers
            found = {"map": maps[layer].shape[1:], "pool_kernel": kernel, "pool_stride": stride, "pool_padding": padding, "ok": True,
                     "pooled": pool_map(maps[layer], pool).shape[1:], "dim": pooled(maps[layer], pool).shape[1]}  # fmt: skip
            if kind == "vgg16":
                assert found.pop("pool_padding") == 0
            g.exact(f"{kind}_{layer}", found)
    assert kernel_below(torch.zeros(1, 512, 14, 14), 10000) == 3


def test_a_conv13_probe_gives_the_authors_logits():
    g = load("deepercluster/reglog_conv13.npz")
    x = np.random.default_rng(zlib.crc32(b"reglog") + 1000).standard_normal((2, 512, 14, 14)).astype(np.float32)
    maps = pool_map(torch.tensor(x), pool_of(protocol.load("linear_imagenet_deepercluster"), "conv13"))
    probe = LinearProbe(tuple(maps.shape[1:]), 5)
    probe.load_state_dict({k: deepercluster_tensor(k, v.shape) for k, v in probe.state_dict().items()})
    g.agree("pooled_first256", maps.flatten(1)[:, :256])
    g.agree("logits", probe(maps).detach())


def test_swavs_evaluation_heads_rates_and_accuracy_are_the_authors():
    g = load("swav/eval_linear.npz")
    x = np.random.RandomState(g.meta["input_seed"]).standard_normal((2, 2048, 7, 7)).astype(np.float32)
    for case, pool, norm in (
        ("avg", "avg", "none"),
        ("pool6", "avg:6:1:0", "none"),
        ("pool6_bn", "avg:6:1:0", "batch_affine"),
    ):
        maps = pool_map(torch.tensor(x), pool)
        probe = LinearProbe(tuple(maps.shape[1:]), 20, norm).eval()
        state = {k: swav_tensor(g.meta["salt"], k, tuple(v.shape)) for k, v in probe.state_dict().items()}
        assert {k: list(v.shape) for k, v in state.items()} == __import__("json").loads(str(g.given(f"{case}.keys")))
        probe.load_state_dict(state)
        g.agree(f"{case}.logits", probe(maps).detach())
    logits, targets = torch.tensor(g.given("acc_logits")), torch.tensor(g.given("acc_targets"))
    g.agree("acc1", [topk(logits, targets, 1)])
    g.agree("acc5", [topk(logits, targets, 5)])
    g.agree("linear_lr_per_epoch", Schedule("cosine").rates(np.array([0.3]), np.array([1e-6]), 100, 2)[::2, 0])


def test_selas_five_probes_train_and_evaluate_as_the_authors():
    g = load("sela/forwards.npz")
    salt = int(g.given("salt"))
    net = backbones.build({"name": "alexnet", "filters": "big"}).eval()
    net.load_state_dict({k: sela_tensor(k, tuple(v.shape), salt) for k, v in net.state_dict().items()})
    x = np.random.default_rng(int(g.given("image_seeds")[1])).standard_normal((4, 3, 224, 224)).astype(np.float32)
    names = [f"conv{i}" for i in range(1, 6)]
    with torch.no_grad():
        maps = net.forward_layers(torch.tensor(x), names)
        pools = [pool_map(maps[n], pool_of(protocol.load("linear_conv_imagenet_sela"), n)) for n in names]
        g.exact("lp_predictor_shapes", [[10, *p.shape[1:]] for p in pools])
        probes = [LinearProbe(tuple(p.shape[1:]), 10, "batch") for p in pools]
        for i, (probe, p) in enumerate(zip(probes, pools, strict=True)):
            probe.linear.weight.data = sela_tensor(f"probe{i}.weight", (10, *p.shape[1:]), salt).flatten(1)
            probe.linear.bias.data = sela_tensor(f"probe{i}.bias", (10,), salt)
        g.agree("lp_train_mode_logits", torch.stack([h.train()(p) for h, p in zip(probes, pools, strict=True)]))
        after = torch.stack([h.eval()(p) for h, p in zip(probes, pools, strict=True)])
        g.agree("lp_eval_mode_logits_after_one_train_pass", after)


def test_selas_rate_table_is_its_step_schedule():
    rates = Schedule("steps", milestones=(10, 20, 30)).rates(np.array([0.01]), np.array([0.0]), 36, 1)[:, 0]
    load("sela/schedules.npz").agree("lr_linear_probe_alexnet", rates)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A faithful probe of raw pixels with three folds, in one process."""
    out = tmp_path_factory.mktemp("faithful")
    finished_run("pixels_digits", out)
    path = measure.evaluate("linear_digits", "pixels_digits", {**FAST, "select.folds": 2}, out=str(out), quiet=True)
    return out, path


def test_a_faithful_probe_learns_and_says_its_form(measured):
    found = records.read(measured[1])
    assert found.form == "faithful" and found.test_reads == 1 and found.metrics["top1"].value > 60
    assert found.selection.on == "2 folds of train" and len(found.selection.grid) == 2
    assert found.metrics["top1_best_on_test"].value >= found.metrics["top1"].value


def test_an_interrupted_probe_goes_on_and_ends_with_the_same_predictions(measured, tmp_path, monkeypatch):
    _, path = measured
    finished_run("pixels_digits", tmp_path)
    real, saved = sgd._save, []

    def save_once(*rest):
        real(*rest)
        saved.append(1)
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(sgd, "_save", save_once)
    again = lambda: measure.evaluate(
        "linear_digits", "pixels_digits", {**FAST, "select.folds": 2}, out=str(tmp_path), quiet=True
    )
    with pytest.raises(KeyboardInterrupt):
        again()
    assert records.read(again()).predictions_sha256 == records.read(path).predictions_sha256
    assert len(saved) == 3  # one epoch before the interruption, two after


def gradients(rows):
    """Of heads with batch norm after one batch of eight, of which this process has ``rows``; fold 1 sees the first three."""
    g = torch.Generator().manual_seed(0)
    maps, labels = torch.randn(8, 6, 3, 3, generator=g), torch.arange(8) % 4
    allowed = torch.stack([torch.ones(8, dtype=torch.bool), torch.arange(8) < 3])
    torch.manual_seed(1)
    build = [lambda: LinearProbe((6, 3, 3), 4, "batch_affine"), lambda: nonlinear.build("mlp", (6, 3, 3), 4)]
    heads = [[batchnorm.convert_sync_bn(make()) for make in build] for _ in allowed]
    found = sgd.Trained(torch.nn.Identity(), {"output": heads}, Grid((0.1, 0.1)))
    sgd.total_loss(found, {"output": maps[rows]}, labels[rows], allowed[:, rows], sgd.cross_entropy).backward()
    sgd._average_gradients(found)
    statistics = [b.float() for h in found.all() for b in h.buffers()]
    return torch.cat([p.grad.flatten() for h in found.all() for p in h.parameters()]), torch.stack(
        [s.double().sum() for s in statistics]
    )


def one_of_two(rank, port, folder, out):
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        RANK=str(rank),
        LOCAL_RANK=str(rank),
    )
    given = {**FAST, "select.folds": 2, "device": "cpu"}
    measure.evaluate("linear_digits", folder, given, out=out, quiet=True)
    measure.evaluate("knn_digits", folder, {"device": "cpu"}, out=out, quiet=True)
    torch.save(gradients([slice(0, 5), slice(5, 8)][rank]), f"{out}/gradients-{rank}.pt")
    dist.finish()


def test_two_processes_give_the_numbers_of_one(measured, tmp_path):
    folder = finished_run("pixels_digits", tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")  # autograd forbids fork
    both = [context.Process(target=one_of_two, args=(r, port, str(folder), str(tmp_path))) for r in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=240)
    assert [process.exitcode for process in both] == [0, 0]
    found = {p.name.split("--")[0]: records.read(p) for p in (tmp_path / "measured").rglob("*.json")}
    one, two = records.read(measured[1]), found["linear_digits"]
    for name in ("top1", "top1_best_on_test"):
        assert abs(one.metrics[name].value - two.metrics[name].value) < 0.2
    assert abs(one.selection.score - two.selection.score) < 0.1
    alone = measure.evaluate("knn_digits", "pixels_digits", {}, out=str(measured[0]), quiet=True)
    assert found["knn_digits"].metrics == records.read(alone).metrics
    alone = gradients(slice(0, 8))
    for rank in range(2):  # process 1 has no row of fold 1
        for mine, whole in zip(torch.load(tmp_path / f"gradients-{rank}.pt"), alone, strict=True):
            torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-5)


def test_ten_crops_and_a_drifting_trunk_are_options_and_the_drift_outlives_an_interruption(tmp_path, monkeypatch):
    finished_run("random_digits", tmp_path)
    given = {
        **FAST,
        "head.epochs": 1,
        "select.on": "none",
        "grid.weight_decay": [0.0],
        "layers": ["res2", "output"],
        "transform": {"crop": 8, "resize": 10, "test": "ten_crop", "average": "softmax", "train": "random_crop"},
        "head.trunk": "train",
        "head.init": "xavier",
        "head.norm": "batch",
        "grid.lr": [0.05],
    }
    again = lambda: records.read(
        measure.evaluate("linear_digits", "random_digits", given, out=str(tmp_path), quiet=True)
    )
    with monkeypatch.context() as patch:
        patch.setattr(sgd, "_pass", lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):  # all epochs are done, nothing has been scored
            again()
    resumed = again()
    assert {"top1_res2", "top1_output"} <= set(resumed.metrics)
    for kept in (*tmp_path.glob("measured/**/*.json"), *tmp_path.glob("probes/**/*.pt")):
        kept.unlink()
    assert again().predictions_sha256 == resumed.predictions_sha256


def test_a_signal_within_an_epoch_leaves_a_checkpoint_from_which_the_same_bits_come(tmp_path, monkeypatch):
    finished_run("random_digits", tmp_path)
    given = {
        **FAST,
        "head.epochs": 2,
        "head.batch": 256,
        "select.on": "none",
        "grid.weight_decay": [0.0],
        "grid.lr": [0.05],
    }
    given |= {"head.norm": "batch", "transform.train": "random_crop", "transform.resize": 10, "transform.crop": 8}
    again = lambda out: records.read(
        measure.evaluate("linear_digits", "random_digits", given, out=str(out), quiet=True)
    )
    whole = again(tmp_path)
    for kept in (*tmp_path.glob("measured/**/*.json"), *tmp_path.glob("probes/**/*.pt")):
        kept.unlink()
    real, steps = sgd.total_loss, []

    def asked(*rest):
        steps.append(1)
        if len(steps) in (3, 7):  # the third batch of the first epoch, the second of the second
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*rest)

    monkeypatch.setattr(sgd, "total_loss", asked)
    for _ in range(2):
        with pytest.raises(SystemExit) as left:
            again(tmp_path)
        assert left.value.code == 128 + signal.SIGTERM
    assert again(tmp_path).predictions_sha256 == whole.predictions_sha256
    assert len(steps) == 2 * 5, "1,258 images in batches of 256, two epochs, no batch twice"


def test_the_authors_folds_are_a_rule_of_selection(measured, tmp_path):
    out, _ = measured
    given = {"select.rule": "deepercluster", "select.folds": 3, "head.epochs": 5}
    found = records.read(measure.evaluate("linear_digits", "pixels_digits", given, out=str(out), quiet=True))
    assert found.selection.on == "3 folds of train" and len(found.metrics["top1"].per_fold) == 3
    with pytest.raises(UserError, match="rule"):
        measure.evaluate("linear_digits", "pixels_digits", {"select.rule": "random"}, out=str(out), quiet=True)
