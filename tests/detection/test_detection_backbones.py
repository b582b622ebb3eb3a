"""Backbones of the zoo as backbones of detectors: complete, frozen where they should be, trained where they should be."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import zoo
from evaluations.detection import detr
from evaluations.detection.backbones import Body, FrozenBatchNorm1d, freeze_norms, parts
from zoo import backbones
from zoo.errors import UserError

SMALL = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "heads": 4, "ffn": 32, "queries": 5, "dropout": 0.1}
OTHERS = ("nin", "pixels")


def networks():
    """Every network of the registry, once, under the id of an entry that has it."""
    found = {}
    for model in zoo.models():
        for spec in backbones.variants(zoo.entry(model).backbone):
            found.setdefault(json.dumps(spec, sort_keys=True), (model, spec))
    return [pytest.param(spec, id=model) for model, spec in found.values() if spec["name"] not in OTHERS]


def on_meta(spec):
    with torch.device("meta"):
        return backbones.build(spec)


@pytest.mark.parametrize("spec", networks())
def test_every_network_is_a_complete_backbone(spec):
    network = on_meta(spec)
    wanted = {k: tuple(v.shape) for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    layers = [name for name in network.layers if name in parts(network)]
    with torch.device("meta"):
        frozen, trained = Body(network, layers[-1:]), Body(network, layers, "batch")
    assert {k: tuple(v.shape) for k, v in frozen.network.state_dict().items()} == wanted
    assert trained.network.state_dict().keys() == network.state_dict().keys()
    assert sum(p.numel() for p in trained.parameters()) == sum(p.numel() for p in network.parameters())
    led = {id(p) for modules in parts(network).values() for m in modules for p in m.parameters()}
    assert led == {id(p) for p in network.parameters()}, "every parameter leads to a layer"


@pytest.mark.parametrize("spec", [p for p in networks() if "resnet" in p.values[0]["name"]])
def test_every_resnet_is_a_backbone_of_detr(spec):
    network = on_meta(spec)
    with torch.device("meta"):
        net = detr.Detr(Body(network, network.layers[-1:], "frozen", "res2"), 80, SMALL)
    kept = {k.partition("body.network.")[2] for k in net.state_dict() if "body.network." in k}
    assert kept == {k for k in network.state_dict() if not k.endswith("num_batches_tracked")}
    assert net.net.model.input_projection.in_channels == network.dim


def test_resnet_50_has_all_265_tensors_of_swavs_file():
    body = Body(on_meta({"name": "resnet50", "options": {}}), ["res5"])
    assert len(body.network.state_dict()) == 265


def small_resnet():
    """As ImageNet's in every respect but width, with statistics that are not those of a fresh network."""
    torch.manual_seed(0)
    network = backbones.build({"name": "resnet18", "width": 16})
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network


def test_gradients_reach_exactly_layers_2_to_4_and_statistics_stay():
    net = detr.Detr(Body(small_resnet(), ["res5"], "frozen", "res2"), 4, SMALL).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-2)
    images, mask = torch.randn(2, 3, 64, 64), torch.ones(2, 64, 64, dtype=torch.bool)
    targets = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}] * 2
    logits, boxes = net(images, mask)
    detr.Criterion(4)(logits, boxes, targets, 2)[0].backward()
    reached = {n for n, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    body = {n.partition("network.")[2].partition(".")[0] for n in reached if "network." in n}
    assert body == {"layer2", "layer3", "layer4"}
    optimizer.step()
    moved = {n for n, v in net.state_dict().items() if not torch.equal(v, before[n])}
    assert {n.partition("network.")[2].partition(".")[0] for n in moved if "network." in n} == body
    assert not any("running" in n or ".bn" in n or "downsample.1" in n for n in moved), "norms are constants"


def test_a_frozen_backbone_gives_what_the_network_gives_in_evaluation_mode():
    network = small_resnet().eval()
    x = torch.randn(2, 3, 64, 64)
    body = Body(network, ["res3", "res5"]).train()
    wanted = network.forward_layers(x, ["res3", "res5"])
    for name, value in body(x).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-5)
    norm = nn.BatchNorm1d(3)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    frozen = freeze_norms(norm)
    assert isinstance(frozen, FrozenBatchNorm1d)
    rows = torch.randn(4, 3)
    torch.testing.assert_close(frozen(rows), norm.eval()(rows))


def test_norms_of_frozen_stages_are_frozen_and_others_train_when_asked():
    body = Body(small_resnet(), ["res5"], "batch", "res3")
    kinds = {
        name.partition(".")[0]: type(m).__name__
        for name, m in body.network.named_modules()
        if "bn" in name or name.endswith("downsample.1")
    }
    assert {k for k, v in kinds.items() if v == "FrozenBatchNorm2d"} == {"bn1", "layer1", "layer2"}
    assert {k for k, v in kinds.items() if v == "BatchNorm2d"} == {"layer3", "layer4"}
    assert not any(p.requires_grad for p in Body(small_resnet(), ["res5"], "batch", "all").parameters())
    assert all(p.requires_grad for p in Body(small_resnet(), ["res5"], "batch").parameters())


def test_vgg_and_alexnet_freeze_up_to_a_convolution():
    for spec, layer, trained in (("alexnet", "conv1", "conv2"), ("vgg16", "conv4", "conv5")):
        with torch.device("meta"):
            body = Body(backbones.build(spec), [layer], "frozen", layer)
        found = parts(body.network)
        assert not any(p.requires_grad for m in found[layer] for p in m.parameters())
        assert all(p.requires_grad for m in found[trained] for p in m.parameters())
        assert all(p.requires_grad for m in found["fc6"] for p in m.parameters())


def test_what_is_no_backbone_of_a_detector_is_refused():
    with pytest.raises(UserError, match="Nin is no detector's backbone"):
        Body(on_meta("nin"), ["block1"])
    with pytest.raises(UserError, match="no layer 'res6'; did you mean 'res"):
        Body(small_resnet(), ["res6"])
    with pytest.raises(UserError, match="no layer 'layer1'"):
        Body(small_resnet(), ["res5"], freeze="layer1")
