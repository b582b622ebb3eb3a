"""torchvision's options of a ResNet on the zoo's models, and maps at several scales: the same numbers as torchvision and timm give."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import zoo
from zoo import cache, card, fetch, hub, registry
from zoo.backbones import build
from zoo.errors import UserError
from zoo.registry import Registry
from zoo.schema import Source

DILATED = [[False, False, False], [False, False, True], [False, True, True], [True, True, True]]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A file of torchvision's ResNet-50 with statistics, and the network."""
    torch.manual_seed(0)
    net = torchvision.models.resnet50(weights=None)
    net.fc = nn.Identity()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("net") / "resnet50.pth"
    torch.save(net.state_dict(), path)
    return path, net.eval()


@pytest.mark.parametrize("dilated", DILATED, ids=str)
@torch.no_grad()
def test_dilation_is_torchvisions(released, dilated):
    path, source = released
    theirs = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=dilated)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(source.state_dict())
    ours = zoo.load(path, replace_stride_with_dilation=dilated)
    x = torch.randn(1, 3, 96, 96)
    assert torch.allclose(ours(x), theirs.eval()(x), atol=1e-5)
    assert ours.forward_layers(x, ["res5"])["res5"].shape[-1] == 3 * 2 ** sum(dilated)


@torch.no_grad()
def test_frozen_batch_norm_takes_the_released_statistics(released):
    path, source = released
    ours, x = zoo.load(path, norm_layer=FrozenBatchNorm2d), torch.randn(2, 3, 64, 64)
    assert sum(isinstance(m, FrozenBatchNorm2d) for m in ours.modules()) == 53 and not any(
        isinstance(m, nn.BatchNorm2d) for m in ours.modules()
    )
    assert torch.allclose(ours.train()(x), source(x), atol=1e-4), "frozen in training too"
    assert not any("num_batches" in key for key in ours.state_dict())


def test_another_norm_is_for_untrained_networks_only(released):
    path, _ = released

    def norm(channels):
        return nn.GroupNorm(32, channels)

    with pytest.raises(UserError, match=r"norm_layer: the released weights and this layer do not go together"):
        zoo.load(path, norm_layer=norm)
    fresh = zoo.load("swav_800ep", pretrained=False, norm_layer=norm)
    assert sum(isinstance(m, nn.GroupNorm) for m in fresh.modules()) == 53
    for wrong, words in (({"norm_layer": "frozen"}, "a function of the number of channels"), ({"replace_stride_with_dilation": [True]}, "3 times true or false"),
                         ({"replace_stride_with_dilation": [0, 1, 1]}, "3 times true or false"), ({"norm_layr": norm}, "did you mean 'norm_layer'")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            zoo.load("swav_800ep", pretrained=False, **wrong)
    with pytest.raises(UserError, match="vgg16 has no option 'norm_layer'"):
        zoo.load("deepercluster_vgg16_yfcc", pretrained=False, norm_layer=norm)


@torch.no_grad()
def test_maps_at_several_scales_are_timms(released):
    path, source = released
    theirs = timm.create_model("resnet50", pretrained=False, features_only=True)
    theirs.load_state_dict(source.state_dict(), strict=False)
    ours, x = zoo.load(path, features_only=True), torch.randn(1, 3, 96, 96)
    for a, b in zip(ours(x), theirs.eval()(x), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    assert (
        list(ours.channels) == theirs.feature_info.channels()
        and list(ours.reductions) == theirs.feature_info.reduction()
    )
    two = zoo.load(path, features_only=True, out_indices=(1, -1), replace_stride_with_dilation=[False, False, True])
    assert two.layers == ("res2", "res5") and two.reductions == (4, 16) and [m.shape[1] for m in two(x)] == [256, 2048]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"features_only": True, "num_classes": 3}, "alternatives"),
        ({"out_indices": [1]}, "out_indices chooses among the maps of features_only=True"),
        ({"features_only": True, "out_indices": [9]}, r"numbers from 0 to 4, for res1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        zoo.load("swav_800ep", pretrained=False, **arguments)


def test_other_networks_say_how_their_maps_are_had():
    with pytest.raises(UserError, match="forward_layers"):
        zoo.load("rotnet_nin_cifar10", pretrained=False, features_only=True)


@torch.no_grad()
def test_the_hub_passes_the_options_on_and_tells_of_them():
    model = hub.functions()["swav_800ep"](
        pretrained=False, replace_stride_with_dilation=[False, True, True], features_only=True
    )
    assert model.reductions == (2, 4, 8, 8, 8)
    page = hub.functions()["swav_800ep"].__doc__
    assert (
        "features_only, out_indices" in page
        and "norm_layer, replace_stride_with_dilation" in page
        and "model.fc = torch.nn.Linear" in page
    )


@torch.no_grad()
def test_the_cards_path_to_timm_works(released, tmp_path, monkeypatch, capsys):
    """The two lines of the card, done as written."""
    path, source = released
    lines = card.card(registry.entry("swav_800ep")).splitlines()
    commands = [line.strip() for line in lines if "timm" in line]
    assert commands == [
        "python -m zoo export swav_800ep --to timm, then",
        'timm.create_model("resnet50", num_classes=0, checkpoint_path="swav_800ep-timm.pth")',
    ]
    monkeypatch.setattr(fetch, "path", lambda name, head=None, progress=True: path)
    monkeypatch.chdir(tmp_path)
    from zoo.__main__ import main

    assert main(commands[0].removesuffix(", then").split()[3:]) == 0
    model = eval(commands[1], {"timm": timm}).eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.allclose(model(x), source(x), atol=1e-5)
    assert not any("timm" in line for line in card.card(registry.entry("swav_rn50w2_400ep")).splitlines()), (
        "timm has no such width"
    )


# ---------------------------------------------------------------- an entry that names a file of this machine


def test_an_entry_may_name_a_file_of_this_machine(released, tmp_path, monkeypatch):
    path, _ = released
    item = fetch.Item("mine", (Source(file=str(path)),), None, None, "MIT", "x")
    assert fetch.obtain(item) == path and item.place == path and not list(cache.folder().glob("mine*")), (
        "it is used where it lies"
    )
    sha = __import__("hashlib").sha256(path.read_bytes()).hexdigest()
    assert fetch.obtain(fetch.Item("mine", (Source(file=str(path)),), sha, None, "MIT", "x")) == path
    with pytest.raises(UserError, match="is not the expected file: sha256"):
        fetch.obtain(fetch.Item("mine", (Source(file=str(path)),), "0" * 64, None, "MIT", "x"))
    with pytest.raises(UserError, match=r"mine: its entry names the file .*gone.pth, which is not there"):
        fetch.obtain(fetch.Item("mine", (Source(file=str(tmp_path / "gone.pth")),), None, None, "MIT", "x"))
    with pytest.raises(ValueError, match="exactly one of url, gdrive and file"):
        Source(file="x.pth", url="https://a/b")


@torch.no_grad()
def test_a_registry_with_such_an_entry_loads_it(released, tmp_path, monkeypatch):
    path, source = released
    (tmp_path / "methods").mkdir()
    (tmp_path / "profiles.yaml").write_text("{}\n")
    (tmp_path / "methods" / "own.yaml").write_text(
        "method: own\ntitle: Own\nsummary: Mine.\nbackbone: resnet50\n"
        "input: {resize: 256, crop: 224, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}\n"
        "network: {parameters: 23508032, dim: 2048}\nlayouts: [{path: null}]\nmodels:\n"
        f"  own_first: {{dataset: imagenet, weights: {{sources: [{{file: {path}}}]}}}}\n"
    )
    own = Registry(tmp_path).read()
    monkeypatch.setattr(registry, "registry", lambda: own)
    x = torch.randn(1, 3, 64, 64)
    assert torch.allclose(zoo.load("own_first")(x), source(x), atol=1e-5)
    assert f"file: {path}" in card.card(registry.entry("own_first"))
    assert build("resnet50").dim == 2048
