"""VGG, AlexNet, NIN, Sobel and SeLa's and PIC's ResNets against the outputs of the authors' networks."""

from __future__ import annotations

import zlib
from functools import cache

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from golden import load
from zoo.backbones import build
from zoo.backbones.sobel import FILTERS, Stem, merged_kernel, sobel
from zoo.backbones.vgg import sobel_to_rgb
from zoo.errors import UserError
from zoo.heads import Full

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@cache
def deepercluster(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A weight by the formula of tests/golden/deepercluster (seed 1000)."""
    g = np.random.default_rng(zlib.crc32(key.encode()) + 1000)
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    if key.endswith("running_var"):
        value = g.uniform(0.5, 1.5, shape)
    elif key.endswith(("running_mean", "bias")):
        value = 0.1 * g.standard_normal(shape)
    elif len(shape) == 1:
        value = 1 + 0.1 * g.standard_normal(shape)
    else:
        value = g.standard_normal(shape)
        value *= np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


@cache
def sela(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A weight by the formula of tests/golden/sela and tests/golden/pic (salt 0)."""
    g = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    if key.endswith("running_mean"):
        value = 0.1 * g.standard_normal(shape)
    elif key.endswith("running_var"):
        value = 0.5 + g.random(shape)
    elif len(shape) >= 2:
        value = g.standard_normal(shape)
        value *= np.sqrt(2 / np.prod(shape[1:]))
    elif key.endswith("weight"):
        value = 0.5 + g.random(shape)
    else:
        value = 0.1 * g.standard_normal(shape)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def network(spec, formula, theirs=lambda key: key, only=""):
    """The backbone with formula weights; ``theirs`` gives the authors' name of one of our keys."""
    with torch.device("meta"):
        net = build(spec)
    wanted = {key: tuple(value.shape) for key, value in net.state_dict().items() if key.startswith(only)}
    state = {key: formula(theirs(key), shape) for key, shape in wanted.items()}
    net.load_state_dict(state, strict=not only, assign=True)
    return net.eval()


def last(size, width=4096):
    """Names and shapes of a linear layer's tensors."""
    return (("weight", (size, width)), ("bias", (size,)))


def heads_of(net, group, tensors, x):
    """What heads of these names give, built from a file's tensors as zoo.load(part="full") does."""
    return Full(net, {group: {name: name for name in tensors}}, tensors).eval()(x)[group]


def picture(tag: str, height: int, width: int) -> tuple[np.ndarray, torch.Tensor]:
    pixels = (
        np.random.default_rng(zlib.crc32(f"img:{tag}".encode()) + 1000)
        .integers(0, 256, (1, height, width, 3))
        .astype(np.uint8)
    )
    return pixels, torch.from_numpy(((pixels / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32))


def summary(maps: torch.Tensor) -> np.ndarray:
    """mean, std, max |x|, L2 norm and 64 values of the first sample."""
    x = maps[0].double().flatten().numpy()
    probes = x[np.random.default_rng(zlib.crc32(b"probe")).integers(0, x.size, 64)]
    return np.concatenate([[x.mean(), x.std(), np.abs(x).max(), np.sqrt((x**2).sum())], probes])


def agree_layers(g, net, x, names, shapes="shapes"):
    maps = net.forward_layers(x, names)
    g.exact(shapes, np.array([tuple(maps[name].shape[1:]) for name in names]))
    g.agree("summary", np.stack([summary(maps[name]) for name in names]))


def test_sobel_maps_are_the_authors():
    g = load("deepercluster/sobel.npz")
    pixels, image = picture("sobel", 14, 11)
    g.exact("image_u8", pixels)
    x = torch.from_numpy(g.given("x"))
    assert torch.allclose(image, x, atol=1e-6)
    edges = torch.tensor(FILTERS).unsqueeze(1)
    g.agree("y_deepercluster_valid", sobel(x, edges, 0))
    g.agree("y_deepercluster_pad2", Stem("deepercluster_sobel")(x))
    g.agree("y_deepcluster_pad1", Stem("deepcluster_sobel")(x))
    g.exact("sobel_weight", edges)
    g.agree("gray_weight", np.full((1, 3, 1, 1), 1 / 3, np.float32))
    for name, size in (("gray_bias", 1), ("sobel_bias", 2)):
        g.exact(name, np.zeros(size, np.float32))
    assert not g.checked("requires_grad", "ours are buffers").any() and not list(Stem("deepcluster_sobel").parameters())


@torch.no_grad()
def test_the_merger_of_sobel_into_the_first_convolution_is_exact():
    g = load("deepercluster/sobel2rgb.npz")
    pixels, x = picture("sobel2rgb", 12, 10)
    g.exact("image_u8", pixels)
    weight, bias = (torch.from_numpy(g.given(name)) for name in ("conv_weight_2ch", "conv_bias"))
    kernel = merged_kernel(weight)
    g.agree("exact_merged_weight", kernel)
    g.agree("merged_bias", bias)
    g.exact("kernel", kernel.shape[2:])
    padding = tuple(int(p) for p in g.given("padding"))
    g.agree("out", F.conv2d(F.pad(x, [2] * 4), kernel, bias, padding=padding).relu()[:, :8])
    corner = g.checked("reference_top_left_3x3", "all that the released helper fills")
    assert np.allclose(kernel[:, :, :3, :3].numpy(), corner, atol=1e-4)


@torch.no_grad()
def test_a_merged_network_sees_rgb_and_gives_the_same_maps():
    net = network({"name": "vgg16", "stem": "deepercluster_sobel"}, deepercluster, only="features.")
    x = torch.randn(1, 3, 40, 33)
    net.classifier.to_empty(device="cpu")
    merged = sobel_to_rgb(net)
    assert merged.features[0].weight.shape == (64, 3, 5, 5) and merged.stem.inner is None
    for name in ("conv1", "conv5"):
        ours, theirs = (n.forward_layers(x, [name])[name] for n in (net, merged))
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-4 * float(ours.abs().max()))
    with pytest.raises(UserError, match="only networks with stem deepercluster_sobel"):
        sobel_to_rgb(network({"name": "vgg16", "stem": "deepcluster_sobel"}, deepercluster, only="features."))


@torch.no_grad()
@pytest.mark.parametrize(
    "file, tag, stem",
    [
        ("vgg16_conv_sobel", "vggconv1", "deepercluster_sobel"),
        ("vgg16_conv_rgb", "vggconv0", "deepercluster_rgb"),
        ("deepcluster_vgg16_conv_sobel_pad1", "dcvgg", "deepcluster_sobel"),
    ],
)
def test_vgg_convolutions_give_the_authors_maps(file, tag, stem):
    g = load(f"deepercluster/{file}.npz")
    pixels, x = picture(tag, 64, 48)
    g.exact("image_u8", pixels)
    net = network({"name": "vgg16", "stem": stem}, deepercluster, only="features.")
    numbers = g.given("layers") if "layers" in g.names else range(1, 14)
    agree_layers(g, net, x, [f"conv{i}" for i in numbers])
    with pytest.raises(UserError, match="need a 7x7 map"):
        net(x)


@torch.no_grad()
def test_deeperclusters_feature_is_fc7_before_its_relu():
    g = load("deepercluster/vgg16_fc7_sobel.npz")
    pixels, x = picture("vggfc", 224, 224)
    g.exact("image_corner_u8", pixels[:, :4, :4])
    assert "regenerated" in str(g.given("seed_note"))
    net = network({"name": "vgg16", "stem": "deepercluster_sobel", "last_relu": False}, deepercluster)
    feature = net(x)
    g.agree("fc7_preact", feature)
    net.last_relu = True
    assert torch.equal(net(x), feature.relu())
    assert torch.equal(net.forward_layers(x, ["fc7"])["fc7"][:, :, 0, 0], feature.relu())


@torch.no_grad()
def test_deepclusters_alexnet_gives_the_authors_outputs():
    g = load("deepercluster/alexnet_sobel.npz")
    net = network({"name": "alexnet", "stem": "deepcluster_sobel"}, deepercluster)
    pixels, x = picture("alex", 96, 96)
    g.exact("image_u8", pixels)
    agree_layers(g, net, x, [f"conv{i}" for i in range(1, 6)])
    _, x = picture("alexfc", 224, 224)
    feature = net(x)
    g.agree("fc7_relu", feature[:, :512])
    g.agree(
        "logits",
        heads_of(net, "clusters", {f"top_layer.{k}": deepercluster(f"top_layer.{k}", s) for k, s in last(10)}, x),
    )
    net.last_relu = False
    g.agree("fc7_clustering_feature", net(x)[:, :512])


def rotnet_alexnet(key: str) -> str:
    """RotNet's name of one of our keys: features.4.weight -> _feature_blocks.2.0.weight."""
    room, number, last = key.split(".")
    at = {0: "0.0", 1: "0.1", 4: "2.0", 5: "2.1", 8: "4.0", 9: "4.1", 11: "5.0", 12: "5.1", 14: "6.0", 15: "6.1"}
    place = at[int(number)] if room == "features" else f"8.{int(number) + 1}"
    return f"_feature_blocks.{place}.{last}"


@torch.no_grad()
def test_rotnets_alexnet_gives_the_authors_outputs():
    g = load("deepercluster/rotnet_alexnet.npz")
    net = network({"name": "alexnet", "filters": "small", "fc": "batchnorm"}, deepercluster, rotnet_alexnet)
    _, x = picture("rotalex", 224, 224)
    names = [str(name) for name in g.given("conv_names")]
    agree_layers(g, net, x, names, "conv_shapes")
    feature = net(x)
    g.agree("fc7_first256", feature[:, :256])
    tensors = {f"_feature_blocks.9.0.{k}": deepercluster(f"_feature_blocks.9.0.{k}", s) for k, s in last(4)}
    g.agree("logits", heads_of(net, "rotations", tensors, x))


def rotnet_nin(key: str) -> str:
    _, block, number, kind, last = key.split(".")
    layer = {"conv": "Conv", "bn": "BatchNorm"}[kind]
    return f"_feature_blocks.{block}.Block{int(block) + 1}_ConvB{number}.layers.{layer}.{last}"


@torch.no_grad()
def test_rotnets_nin_gives_the_authors_outputs():
    g = load("deepercluster/rotnet_nin4.npz")
    net = network("nin", deepercluster, rotnet_nin)
    x = torch.from_numpy(g.given("x"))
    agree_layers(g, net, x, ["conv1", "conv2", "conv3", "conv4"])
    name = "_feature_blocks.4.Classifier"
    g.agree(
        "logits",
        heads_of(net, "rotations", {f"{name}.{k}": deepercluster(f"{name}.{k}", s) for k, s in last(4, 192)}, x),
    )


def images(seed: int, n: int, side: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 3, side, side)).astype(np.float32))


def resnet_v1(key: str) -> str:
    """SeLa's name of a torchvision key: layer2.0.conv1.weight -> features.5.0.conv1.weight."""
    room, _, rest = key.partition(".")
    place = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}[room]
    return f"features.{place}.{rest}"


def resnet_v2(key: str) -> str:
    room, _, rest = key.partition(".")
    place = {"conv1": 0, "layer1": 2, "layer2": 3, "layer3": 4, "layer4": 5}[room]
    return f"features.{place}.{rest}"


@torch.no_grad()
def test_selas_networks_give_the_authors_outputs():
    g = load("sela/forwards.npz")
    assert int(g.given("salt")) == 0
    x = images(int(g.given("image_seeds")[0]), 2, 224)
    big = network("alexnet", sela)
    feature = big(x)
    g.agree("alexnet_big_prelast_first32", feature[:, :32])
    g.agree("alexnet_big_prelast_norm", feature.norm(dim=1))
    maps = big.forward_layers(x, ["pool5"])["pool5"]
    g.exact("alexnet_big_features_shape", maps.shape)
    g.agree("alexnet_big_features_sum", maps.sum((1, 2, 3)))

    def logits(net, sizes, name):
        """Of one head, or of several side by side, as zoo.load(part="full") builds them from a file's tensors."""
        names = [name] if len(sizes) == 1 else [f"{name}{i}" for i in range(len(sizes))]
        tensors = {
            f"{n}.{k}": sela(f"{n}.{k}", s)
            for n, size in zip(names, sizes, strict=True)
            for k, s in last(size, net.dim)
        }
        return heads_of(net, "clusters", tensors, x)

    for i, found in enumerate(logits(big, [g.arrays[f"alexnet_big_head{i}"].shape[1] for i in range(3)], "top_layer")):
        g.agree(f"alexnet_big_head{i}", found)
    g.agree("alexnet_small_head0", logits(network({"name": "alexnet", "filters": "small"}, sela), [13], "top_layer"))
    g.agree("alexnet_nobn_head0", logits(network({"name": "alexnet", "batchnorm": False}, sela), [6], "top_layer"))
    for name, spec, theirs in (("resnetv1", "resnet50", resnet_v1), ("resnetv2", "resnet50v2", resnet_v2)):
        net = network(spec, sela, theirs)
        g.agree(f"{name}_1head_head0", logits(net, [10], "top_layer.0"))
        for i, found in enumerate(logits(net, [4, 5, 6], "top_layer")):
            g.agree(f"{name}_3heads_head{i}", found)
    for name in ("resnet18", "resnet50"):
        g.agree(f"torchvision_{name}_head0", logits(network(name, sela), [12], "fc"))


@torch.no_grad()
def test_pics_encoders_give_the_authors_outputs():
    g = load("pic/forwards.npz")
    assert int(g.given("salt")) == 0
    seed, side = (int(v) for v in g.given("image_seed_size"))
    x = images(seed, 2, side)

    def projection(net, **sizes):
        """fc1 and fc2, or fc, as zoo.load(part="full") builds them and as PIC's files name them."""
        widths = [net.dim, *sizes.values()]
        tensors = {
            f"{n}.{k}": sela(f"{n}.{k}", s) for i, n in enumerate(sizes) for k, s in last(widths[i + 1], widths[i])
        }
        return heads_of(net, "projection", tensors, x)

    net = network("resnet50", sela)
    g.agree("resnet50_mlp", projection(net, fc1=2048, fc2=128))
    g.agree("resnet50_fc", projection(net, fc=128))
    g.agree("resnet50_linear1000", projection(net, fc=1000)[:, :128])
    g.agree("resnet18_mlp", projection(network("resnet18", sela), fc1=2048, fc2=128))
    deep = {"name": "resnet18", "deep_stem": True, "average_shortcut": True}
    g.agree("resnet18_d_fc", projection(network(deep, sela), fc=128))
    fresh = build({"name": "resnet50", "zero_last_gamma": True})
    zeros = [key for key, value in fresh.state_dict().items() if key.endswith("weight") and not value.any()]
    g.exact("zero_init_keys_count", len(zeros))


def test_options_that_do_not_exist_are_named():
    for spec, words in (
        ({"name": "vgg16", "stem": "sobel"}, "stem='sobel': one of rgb, deepercluster_rgb"),
        ({"name": "alexnet", "filters": "huge"}, "filters='huge'"),
        ({"name": "nin", "blocks": 0}, "blocks=0"),
    ):
        with pytest.raises(UserError, match=words), torch.device("meta"):
            build(spec)
