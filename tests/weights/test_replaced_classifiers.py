"""torchvision's habit on every network of the zoo: what a caller puts in the place of the classifier is what forward calls."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

from zoo import heads
from zoo.backbones import build
from zoo.errors import UserError

SMALL = {"name": "tiny_resnet", "width": 16, "in_channels": 3}
POOLED = ["resnet18", "resnet50", "resnet50v2", "nin", SMALL]


@pytest.mark.parametrize("spec", POOLED, ids=str)
@torch.no_grad()
def test_a_linear_layer_in_the_place_of_fc_gives_classes(spec):
    net, x = build(spec).eval(), torch.randn(2, 3, 64, 64)
    features, keys = net(x), list(net.state_dict())
    assert not any(key.startswith("fc") for key in keys), "the place of the classifier has no tensors"
    assert net.fc.in_features == net.fc.out_features == net.dim == features.shape[1]
    net.fc = nn.Linear(net.fc.in_features, 7)
    assert torch.equal(net(x), features @ net.fc.weight.T + net.fc.bias) and net(x).shape == (2, 7)
    assert list(net.state_dict()) == [*keys, "fc.weight", "fc.bias"]
    net.fc = nn.Identity()
    assert torch.equal(net(x), features)


@torch.no_grad()
def test_hooks_of_the_empty_place_are_called_and_copies_are_their_own():
    net, x, seen = build("resnet18").eval(), torch.randn(1, 3, 64, 64), []
    net.fc.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert torch.equal(net(x), seen[0])
    other = copy.deepcopy(net)
    other.fc = nn.Linear(512, 3)
    assert other(x).shape == (1, 3) and net(x).shape == (1, 512)


def alike(kind: str) -> tuple[nn.Module, nn.Module]:
    """torchvision's network with a classifier of 7 classes, and ours with its tensors and the same classifier."""
    theirs = torchvision.models.vgg16_bn(weights=None) if kind == "vgg16" else torchvision.models.alexnet(weights=None)
    ours = build({"name": kind, **({} if kind == "vgg16" else {"filters": "big", "batchnorm": False})})
    if kind == "alexnet":  # torchvision's filters are smaller: give it ours
        theirs.features = copy.deepcopy(ours.features)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    theirs.classifier[6] = nn.Linear(4096, 7)
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("classifier.6")}
    ours.load_state_dict(state)
    ours.classifier[6] = theirs.classifier[6]
    return theirs.eval(), ours.eval()


@pytest.mark.parametrize("kind", ["vgg16", "alexnet"])
@torch.no_grad()
def test_classifier_six_is_torchvisions(kind):
    theirs, ours = alike(kind)
    x = torch.randn(2, 3, 224, 224)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5) and ours(x).shape == (2, 7)
    for other in (theirs, ours):
        other.classifier = nn.Sequential(*list(other.classifier.children())[:-1])  # the features, torchvision's way
    assert torch.allclose(ours(x), theirs(x), atol=1e-5) and ours(x).shape == (2, 4096)


@pytest.mark.parametrize(
    "spec", [{"name": "vgg16", "last_relu": False}, {"name": "alexnet", "fc": "batchnorm", "last_relu": False}], ids=str
)
@torch.no_grad()
def test_a_classifier_of_a_network_that_ends_before_its_relu_reads_positive_features(spec):
    net, x = build(spec).eval(), torch.randn(2, 3, 224, 224)
    features = net(x)
    assert (features < 0).any(), "the features themselves stay as they were"
    top = nn.Linear(4096, 5)
    wanted = top(features.relu())
    six, whole, last, wrapped = (copy.deepcopy(net) for _ in range(4))
    six.classifier[6] = top
    last.fc = top
    whole.classifier = nn.Sequential(*list(whole.classifier.children())[:-1], top)
    wrapped = heads.Classifier(wrapped, 5).eval()
    wrapped.fc = top
    for other in (six, whole, last, wrapped):
        assert torch.allclose(other(x), wanted, atol=1e-6)
    whole.classifier = nn.Linear(512 * 7 * 7 if spec["name"] == "vgg16" else 256 * 6 * 6, 3)
    assert whole(x).shape == (2, 3)
    with pytest.raises(UserError, match="layer fc7 went with the classifier"):
        whole.forward_layers(x, ["fc7"])
    assert whole.forward_layers(x, ["conv1"])["conv1"].shape[0] == 2


@torch.no_grad()
def test_released_heads_of_a_network_that_ends_before_its_relu_read_positive_features():
    net, top = build({"name": "alexnet", "last_relu": False}).eval(), nn.Linear(4096, 5)
    tensors = {f"top_layer.{key}": value for key, value in top.state_dict().items()}
    full = heads.Full(net, {"clusters": {key: key for key in tensors}}, tensors).eval()
    x = torch.randn(2, 3, 224, 224)
    out = full(x)
    assert torch.equal(out["features"], net(x)) and torch.allclose(out["clusters"], top(net(x).relu()), atol=1e-6)


@pytest.mark.parametrize("name", ["classifier", "head", "top_layer"])
def test_a_place_that_forward_never_calls_is_an_error_that_names_the_right_one(name):
    with pytest.raises(UserError, match=rf"model.{name}: forward of ResNet never calls it; .* stands in model.fc"):
        setattr(build("resnet18"), name, nn.Linear(512, 7))


@pytest.mark.parametrize("name", ["resnet50", "vgg16", "alexnet"])
def test_an_untouched_network_has_the_keys_and_random_numbers_that_it_had(name):
    """Neither the order of the keys nor the draws of initialisation move with the empty place."""
    torch.manual_seed(0)
    net = build(name)
    after = torch.rand(1).item()
    assert next(iter(net.state_dict())) == ("conv1.weight" if name == "resnet50" else "features.0.weight")
    assert after == {"resnet50": 0.29391467571258545, "vgg16": 0.5966581702232361, "alexnet": 0.0473974347114563}[name]
