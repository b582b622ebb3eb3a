"""ResNets of every width: the authors' keys, their features, and the contract of every backbone."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from golden import load
from reproduce.methods.deepclusterv2 import DeepClusterV2
from reproduce.methods.swav import SwAV
from zoo.backbones import build
from zoo.errors import UserError

WIDTHS = {
    "resnet50": "resnet50_swav",
    "resnet50w2": "resnet50w2_swav",
    "resnet50w4": "resnet50w4_swav",
    "resnet50w5": "resnet50w5_backbone_only",
}


def formula(key: str, shape: tuple[int, ...], salt: str) -> torch.Tensor:
    """The weight of one state-dict key, as the golden README writes it."""
    rs = np.random.RandomState(zlib.crc32((salt + key).encode("utf-8")))
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    if key.endswith("running_mean"):
        value = 0.1 * rs.standard_normal(shape)
    elif key.endswith("running_var"):
        value = 0.5 + rs.random_sample(shape)
    elif len(shape) == 4:
        value = rs.standard_normal(shape) * np.sqrt(2 / (shape[1] * shape[2] * shape[3]))
    elif len(shape) == 2:
        value = rs.standard_normal(shape) / np.sqrt(shape[1])
    elif key.endswith("weight"):
        value = 0.5 + 0.5 * rs.random_sample(shape)
    else:
        value = 0.1 * rs.standard_normal(shape)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def fill(module: nn.Module, salt: str, prefix: str = "") -> nn.Module:
    module.load_state_dict({k: formula(prefix + k, tuple(v.shape), salt) for k, v in module.state_dict().items()})
    return module


@torch.no_grad()
def test_resnet50_gives_the_authors_features_embeddings_and_scores(tmp_path):
    g = load("swav/resnet_forward.npz")
    salt, stream = g.meta["salt"], np.random.RandomState(g.meta["input_seed"])

    def draw(*shape):
        return torch.from_numpy(stream.standard_normal(shape).astype(np.float32))

    x = draw(2, 3, 64, 64)
    crops = [draw(2, 3, 64, 64) for _ in range(2)] + [draw(2, 3, 40, 40) for _ in range(3)]
    odd, wide_input = draw(1, 3, 51, 37), draw(1, 3, 48, 48)
    net = fill(build("resnet50"), salt).eval()
    method = SwAV(net).eval()
    for name in ("projection_head", "prototypes"):
        fill(getattr(method, name), salt, f"{name}.")
    embeddings, scores = method.scores([x])
    g.agree("rn50_feat", method.features(x))
    g.agree("rn50_emb", embeddings[0])
    g.agree("rn50_scores_first64", scores[0, :, :64])
    deep = net.forward_layers(x, ["res5"])["res5"]
    g.exact("rn50_fmap_shape", deep.shape)
    g.agree("rn50_fmap_chan0_8", deep[:, :8])
    several, scores = (found.flatten(0, 1) for found in method.scores(crops))
    g.agree("rn50_multicrop_emb", several)
    g.agree("rn50_multicrop_scores_first32", scores[:, :32])
    g.agree("rn50_odd_feat", net(odd))
    clusters = DeepClusterV2(net, prototypes=(16, 16, 16)).eval()
    for name in ("projection_head", "prototypes"):
        fill(getattr(clusters, name), salt, f"{name}.")
    z = clusters.features(x)
    g.agree("rn50_3heads_scores_first16", torch.stack([head(z) for head in clusters.prototypes.values()]))
    torch.save({"epoch": 400, "state_dict": method.export()}, tmp_path / "swav.pth.tar")
    found = zoo.load(tmp_path / "swav.pth.tar", part="full")(x)  # the same network by way of a file
    g.agree("rn50_feat", found["features"])
    g.agree("rn50_emb", nn.functional.normalize(found["projection"], dim=1))
    g.agree("rn50_scores_first64", found["prototypes"][:, :64])
    g.agree("rn50_trainmode_feat", net.train()(x))
    wide = SwAV(fill(build("resnet50w2"), salt), hidden=8192).eval()
    fill(wide.projection_head, salt, "projection_head.")
    g.agree("w2_feat", wide.features(wide_input))
    g.agree("w2_emb", wide.scores([wide_input])[0][0])


@pytest.mark.parametrize("name, variant", WIDTHS.items())
def test_every_width_has_the_released_keys_shapes_and_parameter_count(name, variant):
    g = load("swav/state_dict_shapes.json")
    expected = g.checked(variant, "keys and numbers of parameters are compared below, heads apart")
    with torch.device("meta"):
        net = build(name)
    ours = {k: list(v.shape) for k, v in net.state_dict().items()}
    heads = ("projection_head", "prototypes")
    assert ours == {k: s for k, s in expected["keys"].items() if not k.startswith(heads)} and len(ours) == 318
    assert sum(p.numel() for p in net.parameters()) == expected["backbone_params"]
    assert net.dim == net.dims["res5"] == expected["keys"]["layer4.2.bn3.weight"][0]


def test_keys_are_torchvisions_without_the_classifier():
    from torchvision.models import resnet18

    ours = {k: v.shape for k, v in build("resnet18").state_dict().items()}
    assert ours == {k: v.shape for k, v in resnet18().state_dict().items() if not k.startswith("fc.")}


@pytest.mark.slow
@pytest.mark.parametrize("name, dim", [("resnet50w4", 8192), ("resnet50w5", 10240)])
@torch.no_grad()
def test_the_widest_networks_run_on_a_cpu(name, dim):
    out = build(name).eval()(torch.zeros(1, 3, 64, 64))
    assert out.shape == (1, dim) and out.isfinite().all()


def test_layers_come_in_one_pass_that_stops_at_the_deepest_asked_for():
    net = build({"name": "tiny_resnet", "width": 8, "blocks": [1, 1, 1], "stem_stride": 2, "in_channels": 1}).eval()
    assert net.layers == ("res1", "res2", "res3", "res4") and net.dim == net.dims["res4"] == 32
    calls: list[str] = []
    for i in (1, 2, 3):
        getattr(net, f"layer{i}").register_forward_hook(lambda *_, i=i: calls.append(f"layer{i}"))
    maps = net.forward_layers(torch.rand(2, 1, 28, 28), ["res3", "res1"])
    assert list(maps) == ["res3", "res1"] and calls == ["layer1", "layer2"]
    assert maps["res1"].shape == (2, 8, 14, 14) and maps["res3"].shape == (2, 16, 7, 7)
    assert all((m >= 0).all() for m in maps.values())
    assert net.forward_layers(torch.rand(2, 1, 28, 28), []) == {}


def test_pixels_flatten_the_image_and_have_no_parameters():
    net = build({"name": "pixels", "options": {"dim": 64}})
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(net(x), x.flatten(1)) and not list(net.parameters()) and net.dim == 64
    with pytest.raises(UserError, match="it takes images of .* values, these of .* have 784"):
        net(torch.rand(1, 1, 28, 28))


@pytest.mark.parametrize(
    "spec, message",
    [
        ("resnet5", "did you mean 'resnet50'"),
        ({"name": "tiny_resnet", "widht": 8}, "did you mean 'width'"),
        ({"name": "tiny_resnet", "width": 0}, "width=0"),
        ({"name": "tiny_resnet", "blocks": []}, r"blocks=\[\]"),
        ({"name": "tiny_resnet", "stem_stride": "2"}, "stem_stride='2'"),
        ({"width": 8}, "has no name"),
    ],
)
def test_a_wrong_name_or_option_is_named(spec, message):
    with pytest.raises(UserError, match=message):
        build(spec)


def test_an_unknown_layer_is_named_with_the_known_ones():
    with pytest.raises(UserError, match="no layer 'res9'.*res1, res2"):
        build("tiny_resnet").forward_layers(torch.zeros(1, 1, 8, 8), ["res9"])
