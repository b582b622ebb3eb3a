"""The last ReLU of VGG-16 and AlexNet: whatever classifies sees fc7 after it, whatever clusters or compares sees fc7 before it."""

from __future__ import annotations

import json
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from evaluations import protocol
from evaluations.inputs import models
from evaluations.inputs.features import Compute, FeatureRequest, forward, layers_of
from evaluations.kinds import finetune, voc
from evaluations.probes import finetuning, sgd
from evaluations.probes.finetuning import Tuned
from golden import load
from reproduce.methods.deepcluster import DeepCluster
from reproduce.methods.rotnet import RotNet
from reproduce.methods.supervised import Supervised
from zoo import backbones, heads
from zoo.backbones.sobel import Stem

ENTRIES = [m for m in zoo.models() if zoo.entry(m).backbone.name in ("vgg16", "alexnet")]
# Networks whose authors cluster fc7 before its ReLU (DeepCluster, DeeperCluster and its RotNet); SeLa and RotNet end in it.
ENDS_BEFORE = [m for m in ENTRIES if "deepercluster" in m or m.startswith(("deepcluster_", "rotnet_vgg16"))]
DIFFERENT = list({json.dumps(zoo.entry(m).backbone.model_dump(), sort_keys=True): m for m in ENTRIES}.values())


def golden_sized(model: str) -> backbones.Backbone:
    """The registry's network around the parts of the golden one: a convolution, batch norm, ReLU, pooling, one linear layer."""
    with torch.device("meta"):
        net = backbones.build(backbones.variants(zoo.entry(model).backbone)[0])
    net.stem, net.map_shape, net.dim = Stem("rgb"), (4, 2, 2), 8
    net.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
    net.classifier = nn.Sequential(nn.Linear(16, 8))
    return net


def golden_state(net):
    state = {}
    for key, value in net.state_dict().items():
        g, shape = np.random.default_rng(zlib.crc32(key.encode()) + 1000), tuple(value.shape)
        if key.endswith("num_batches_tracked"):
            state[key] = value
            continue
        if key.endswith("running_var"):
            drawn = g.uniform(0.5, 1.5, shape)
        elif key.endswith(("running_mean", "bias")):
            drawn = 0.1 * g.standard_normal(shape)
        elif len(shape) == 1:
            drawn = 1 + 0.1 * g.standard_normal(shape)
        else:
            drawn = g.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        state[key] = torch.tensor(drawn.astype(np.float32))
    return state


def test_the_registry_says_which_networks_end_before_their_last_relu():
    assert len(ENDS_BEFORE) == 9 and len(ENTRIES) > len(ENDS_BEFORE)
    for model in zoo.models():
        if zoo.entry(model).weights is None:
            continue
        judged = models.Model(model, model, None, zoo.entry(model))
        assert judged.classifier_layer == ("classifier_input" if model in ENDS_BEFORE else "output"), model


@pytest.mark.parametrize("train", ["fc68", "all"])
@pytest.mark.parametrize("model", DIFFERENT)
def test_voc_training_steps_on_the_registrys_networks_are_the_authors(model, train):
    g = load("deepercluster/voc_train_steps.npz")
    head = voc.Head(train=train, batch=4, iterations=int(g.given("nit")), momentum=float(g.given("momentum")))
    cell = {"lr": float(g.given("lr")), "weight_decay": float(g.given("wd")), "stepsize": float(g.given("stepsize"))}
    net = Tuned(golden_sized(model), 20)
    voc.begin(net, head)
    net.load_state_dict(golden_state(net))
    job = voc.job_of(net, head, cell, np.arange(20))
    inputs, targets = torch.tensor(g.given("inputs")), torch.tensor(g.given("targets"))
    for step in range(head.iterations):
        job.losses.append(finetuning.one_step(job, step, inputs[step % 5], targets[step % 5], 4, Compute()))
    g.agree(f"{train}_loss_avg", np.mean(job.losses))
    g.agree(f"{train}_final_lr", job.rates[-1, 0])
    for key, value in net.state_dict().items():
        g.agree(f"{train}:{key}", value)
    assert sum(len(epoch) for epoch in job.order) == 8 and len(job.order) == 2


def inputs_of(layer: nn.Module) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    return seen


@pytest.mark.parametrize("model", DIFFERENT)
def test_every_classifier_takes_fc7_after_its_relu_and_everything_else_the_networks_output(model, monkeypatch):
    torch.manual_seed(0)
    net, x = golden_sized(model).eval(), torch.randn(16, 3, 8, 8)
    with torch.no_grad():
        plain = net(x)
        fc7 = plain.relu()
    assert bool((plain < 0).any()) == (model in ENDS_BEFORE)

    full = heads.Full(
        net,
        {"clusters": {"weight": "w", "bias": "b"}, "projection": {"weight": "w", "bias": "b"}},
        {"w": torch.randn(5, 8), "b": torch.zeros(5)},
    )
    tuned = finetune.begin(SimpleNamespace(model=SimpleNamespace(backbone=net), compute=Compute()), finetune.Head(), 3)
    small = golden_sized(model)
    monkeypatch.setattr(backbones, "build", lambda spec: small)
    hub = zoo.load(model, pretrained=False, num_classes=3)  # what the entry points of hubconf.py call
    hub.backbone.load_state_dict(net.state_dict())
    layers = {
        Tuned(net, 3): "pred_layer",
        tuned: "pred_layer",
        heads.Classifier(net, 3): "fc",
        hub: "fc",
        full: "heads.clusters",
    }
    for module, name in layers.items():
        seen = inputs_of(module.get_submodule(name))
        with torch.no_grad():
            module.eval()(x)
        torch.testing.assert_close(seen[0], fc7)
    seen = inputs_of(full.heads["projection"])
    with torch.no_grad():
        assert torch.equal(full(x)["features"], plain)
    torch.testing.assert_close(seen[0], plain)

    requests = [FeatureRequest("train", layer) for layer in ("output", "classifier_input")]
    found = forward(net, x, requests, Compute())
    torch.testing.assert_close(found[requests[0]], plain)
    torch.testing.assert_close(found[requests[1]], fc7)
    maps = sgd.pooled_maps(net, x, None, ["output", "classifier_input"])
    torch.testing.assert_close(maps["classifier_input"].flatten(1), fc7)
    torch.testing.assert_close(maps["output"].flatten(1), plain)


@pytest.mark.parametrize("name", protocol.names())
def test_a_protocol_reads_the_classifier_input_exactly_when_it_trains_classifiers(name):
    wanted = protocol.load(name)
    if wanted.layers != ["output"]:
        return
    compares = wanted.kind in ("knn", "clustering", "quality")
    before, after = (
        layers_of(wanted, models.Model(m, m, None, zoo.entry(m)))
        for m in ("deepercluster_vgg16_yfcc", "sela_alexnet_1k")
    )
    assert before == ["output" if compares else "classifier_input"] and after == ["output"]


@pytest.mark.parametrize("kind", [RotNet, Supervised, DeepCluster])
def test_the_classifiers_of_pre_training_see_it_too(kind):
    torch.manual_seed(0)
    given = {Supervised: {"classes": 3}, DeepCluster: {"pca": 8}}.get(kind, {})
    method = kind(golden_sized("deepercluster_vgg16_yfcc"), **given)
    if kind is DeepCluster:
        method.labels, method.head = torch.arange(8)[None] % 3, nn.Linear(8, 3)
    seen = inputs_of(method.head)
    method.loss(SimpleNamespace(views=[torch.randn(8, 3, 8, 8)], index=torch.arange(8), labels=torch.arange(8) % 3), 0)
    assert seen and all((x >= 0).all() and (x > 0).any() for x in seen)
