"""zoo.load_weights into any module of the caller's: whole, or a part of it, by its own names; never half of it."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

import zoo
from zoo.errors import UserError


def drawn(make, seed):
    torch.manual_seed(seed)
    net = make()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    return net.eval()


def vit():
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2)


class Segmenter(nn.Module):
    """A backbone of torchvision inside a larger network."""

    def __init__(self):
        super().__init__()
        self.encoder = torchvision.models.resnet18()
        self.encoder.fc = nn.Identity()
        self.decoder = nn.Sequential(nn.Conv2d(512, 64, 3), nn.Conv2d(64, 5, 1))


MODELS = {
    "torchvision's ResNet": lambda: torchvision.models.resnet18(num_classes=7),
    "torchvision's DenseNet": lambda: torchvision.models.densenet121(num_classes=7),
    "timm's ResNet": lambda: timm.create_model("resnet18", num_classes=7),
    "timm's vision transformer": vit,
    "a network of the caller's": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3)
    ),
}
WRAPPED = {
    "flat": lambda state: state,
    "DDP": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
    "Lightning": lambda state: {"state_dict": {f"backbone.{k}": v for k, v in state.items()} | {"projector.0.weight": torch.randn(4, 4)}, "pytorch-lightning_version": "2"},
    "DINO": lambda state: {"teacher": {f"module.backbone.{k}": v for k, v in state.items()} | {"module.head.mlp.0.weight": torch.randn(4, 4)},
                           "student": {f"module.backbone.{k}": v + 1 if v.is_floating_point() else v for k, v in state.items()}, "epoch": 3},
    "MoCo v3": lambda state: {"state_dict": {f"module.base_encoder.{k}": v for k, v in state.items()} | {f"module.momentum_encoder.{k}": v * 0 for k, v in state.items()}},
}  # fmt: skip


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("what", MODELS)
def test_a_file_of_the_same_network_fills_it(tmp_path, what, wrapped):
    source, target = drawn(MODELS[what], 1), drawn(MODELS[what], 2)
    torch.save(WRAPPED[wrapped](source.state_dict()), tmp_path / "x.pth")
    if wrapped == "MoCo v3" and "conv1.weight" not in source.state_dict():
        report = zoo.load_weights(target, tmp_path / "x.pth", prefix="module.base_encoder.")
    else:
        report = zoo.load_weights(target, tmp_path / "x.pth")
    apart = {"fc", "classifier", "head"}
    for key, value in source.state_dict().items():
        if key.split(".")[0] not in apart:
            assert torch.equal(target.state_dict()[key], value), key
    assert report.ok and all(key.split(".")[0] in apart for key in report.left)


def test_a_classifier_of_the_same_shape_is_filled_and_one_of_another_is_left(tmp_path, capsys):
    source = drawn(lambda: torchvision.models.resnet18(num_classes=9), 1)
    torch.save(source.state_dict(), tmp_path / "x.pth")
    same, other = torchvision.models.resnet18(num_classes=9), torchvision.models.resnet18(num_classes=4)
    assert zoo.load_weights(same, tmp_path / "x.pth").left == () and torch.equal(same.fc.weight, source.fc.weight)
    before = other.fc.weight.clone()
    assert zoo.load_weights(other, tmp_path / "x.pth").left == ("fc.weight", "fc.bias") and torch.equal(
        other.fc.weight, before
    )
    assert "left as they were: fc.{weight, bias}" in capsys.readouterr().err


def test_a_part_of_the_model_is_filled_whole_and_the_rest_is_left(tmp_path):
    source = drawn(torchvision.models.resnet18, 1)
    torch.save(source.state_dict(), tmp_path / "x.pth")
    model = Segmenter()
    report = zoo.load_weights(model, tmp_path / "x.pth")
    assert torch.equal(model.encoder.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert report.left and all(key.startswith("decoder.") for key in report.left)


@pytest.mark.parametrize(
    "how", ["a layer is missing", "a whole stage is missing", "more blocks", "another width", "another network"]
)
def test_nothing_is_ever_filled_in_part(tmp_path, how):
    target = drawn(torchvision.models.resnet34, 2)
    state = drawn(torchvision.models.resnet34, 1).state_dict()
    if how == "a layer is missing":
        del state["layer3.2.conv1.weight"]
    elif how == "a whole stage is missing":
        state = {k: v for k, v in state.items() if not k.startswith("layer4")}
    elif how == "more blocks":
        state |= {k.replace("layer4.2", "layer4.3"): v for k, v in state.items() if k.startswith("layer4.2")}
    elif how == "another width":
        state = torchvision.models.resnet50().state_dict()
    else:
        state = vit().state_dict()
    torch.save(state, tmp_path / "x.pth")
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(UserError, match=r"x.pth: does not fit this model: .*Nothing was loaded; python -m zoo show"):
        zoo.load_weights(target, tmp_path / "x.pth")
    assert all(torch.equal(before[k], v) for k, v in target.state_dict().items())


def test_prefix_and_path_choose(tmp_path):
    a, b = drawn(torchvision.models.resnet18, 1), drawn(torchvision.models.resnet18, 2)
    torch.save(
        {
            "one": {f"x.{k}": v for k, v in a.state_dict().items()},
            "two": {f"y.{k}": v for k, v in b.state_dict().items()},
        },
        tmp_path / "x.pth",
    )
    target = torchvision.models.resnet18()
    zoo.load_weights(target, tmp_path / "x.pth", path="two", prefix="y.")
    assert torch.equal(target.conv1.weight, b.conv1.weight)
    zoo.load_weights(target, tmp_path / "x.pth", prefix="x.")
    assert torch.equal(target.conv1.weight, a.conv1.weight)
