"""Classifiers of more than one layer, and the embedding: against the authors' networks, and on answers known beforehand."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from evaluation_fakes import finished_run, protocol

import zoo
from evaluations import measure
from evaluations.inputs import models
from evaluations.inputs.features import FeatureRequest, Features, FeatureStore
from evaluations.kinds import knn
from evaluations.probes import nonlinear
from golden import load
from results import record as records
from zoo import backbones, data
from zoo.errors import UserError


def theirs(key: str, shape) -> torch.Tensor:
    """A weight by the formula of tests/golden/deepercluster."""
    g, shape = np.random.default_rng(zlib.crc32(key.encode()) + 1000), tuple(shape)
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if key.endswith("running_var"):
        value = g.uniform(0.5, 1.5, shape)
    elif key.endswith(("running_mean", "bias")):
        value = 0.1 * g.standard_normal(shape)
    else:
        value = g.standard_normal(shape)
        value = 1 + 0.1 * value if len(shape) == 1 else value * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(value.astype(np.float32))


def filled(module, name_of):
    state = {key: theirs(name_of(*key.split(".")), value.shape) for key, value in module.state_dict().items()}
    module.load_state_dict(state)
    return module.eval()


@torch.no_grad()
def test_a_block_of_convolutions_is_the_authors_last_block():
    g = load("deepercluster/rotnet_nin4.npz")
    kinds = {"conv": "Conv", "bn": "BatchNorm"}
    net = backbones.build("nin")
    filled(
        net, lambda _, b, n, kind, last: f"_feature_blocks.{b}.Block{int(b) + 1}_ConvB{n}.layers.{kinds[kind]}.{last}"
    )

    def name(place, last):
        number, kind = divmod(int(place), 3)
        if number == 3:
            return f"_feature_blocks.4.Classifier.{last}"
        return f"_feature_blocks.3.Block4_ConvB{number + 1}.layers.{('Conv', 'BatchNorm')[kind]}.{last}"

    probe = nonlinear.build("nin_block", (192, 8, 8), 4)
    places = {key.split(".")[0] for key in probe.state_dict()}
    last = max(places, key=int)
    filled(probe, lambda place, what: name("9" if place == last else place, what))
    maps = net.forward_layers(torch.from_numpy(g.given("x")), ["conv3"])["conv3"]
    g.agree("logits", probe(maps))


@torch.no_grad()
def test_the_rest_of_alexnet_is_the_authors():
    g = load("deepercluster/rotnet_alexnet.npz")
    at = {"0": "0.0", "1": "0.1", "4": "2.0", "5": "2.1", "8": "4.0", "9": "4.1", "11": "5.0", "12": "5.1"}
    net = backbones.build({"name": "alexnet", "filters": "small", "fc": "batchnorm"}).eval()
    for key, value in net.state_dict().items():
        room, number, last = key.split(".")
        if room == "features" and number in at:
            value.copy_(theirs(f"_feature_blocks.{at[number]}.{last}", value.shape))
    probe = nonlinear.build("alexnet_conv4", (256, 13, 13), 4)
    names = {"0": "6.0", "1": "6.1", "5": "8.1", "6": "8.2", "8": "8.4", "9": "8.5", "11": "9.0"}
    filled(probe, lambda place, last: f"_feature_blocks.{names[place]}.{last}")
    pixels = (
        np.random.default_rng(zlib.crc32(b"img:rotalex") + 1000).integers(0, 256, (1, 224, 224, 3)).astype(np.uint8)
    )
    x = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    maps = net.forward_layers(torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32)), ["conv4"])["conv4"]
    g.agree("logits", probe(maps))


def test_three_fully_connected_layers_have_twenty_units_per_class():
    probe = nonlinear.build("mlp", (192, 8, 8), 10)
    sizes = [tuple(m.weight.shape) for m in probe if isinstance(m, torch.nn.Linear)]
    assert sizes == [(200, 12288), (200, 200), (10, 200)] and probe[1].bias is None and probe[-1].bias is not None
    assert abs(probe[1].weight.std().item() - (2 / 200) ** 0.5) < 0.001
    assert nonlinear.build("mlp", (2, 2, 2), 1000)[1].out_features == 2048
    with pytest.raises(UserError, match="at least 3x3"):
        nonlinear.build("alexnet_conv5", (256, 2, 2), 10)


def test_each_layer_may_have_a_classifier_of_its_own_and_both_learn(tmp_path):
    finished_run("random_digits", tmp_path)
    given = {"form": "faithful", "layers": ["res3", "res4"], "pool": "flat", "select.on": "none", "head.epochs": 2}
    given |= {
        "grid.lr": [0.1],
        "grid.weight_decay": [5e-4],
        "transform.train": "centre",
        "head.nesterov": True,
        "head.batch": 64,
    }
    both = {**given, "head.classifier": {"res3": "mlp", "res4": "nin_block"}}
    found = records.read(measure.evaluate("linear_digits", "random_digits", both, out=str(tmp_path), quiet=True))
    assert min(found.metrics[f"top1_{name}"].value for name in ("res3", "res4")) > 60
    with pytest.raises(UserError, match=r"head\.classifier names none for layer 'res4'"):
        measure.evaluate(
            "linear_digits",
            "random_digits",
            {**given, "head.classifier": {"res3": "mlp"}},
            out=str(tmp_path),
            quiet=True,
        )
    with pytest.raises(UserError, match="form=faithful"):
        measure.evaluate("linear_digits", "random_digits", {"head.classifier": "mlp"}, out=str(tmp_path), quiet=True)


def embedding_run(out):
    """An untrained MoCo run on digits, as its method would leave it."""
    folder = finished_run("mocov1_digits", out)
    state = torch.load(folder / "weights.pth", weights_only=True)
    torch.manual_seed(1)
    state |= {"fc.weight": torch.randn(5, 64), "fc.bias": torch.randn(5)}
    torch.save(state, folder / "weights.pth")
    return folder


def test_the_embedding_is_that_of_the_whole_file_and_its_neighbours_are_found_there(tmp_path):
    folder = embedding_run(tmp_path)
    model = models.resolve(str(folder), out=tmp_path)
    source = data.open_source("digits", "test")
    f = Features(
        model,
        protocol("knn_digits", layers=["projection"]),
        FeatureStore(tmp_path),
        release=lambda: None,
        open_split=lambda s: data.open_source("digits", s),
    )
    found = f.get(FeatureRequest("test", "projection"))
    transform = zoo.transforms(folder)
    with torch.no_grad():
        wanted = zoo.load(folder, part="full")(torch.stack([transform(source.image(i)) for i in range(20)]))
    assert found.shape == (539, 5)
    np.testing.assert_allclose(found[:20], wanted["projection"], atol=1e-4)
    given = {"layers": ["projection"], "grid.k": [200], "grid.temperature": [0.1], "select.on": "none"}
    [here, plain] = (
        records.read(measure.evaluate("knn_digits", str(folder), g, out=str(tmp_path), quiet=True))
        .metrics["top1"]
        .value
        for g in (given, {**given, "layers": ["output"]})
    )
    assert here != plain and here > 20


def test_a_file_without_a_projection_head_says_so(tmp_path):
    finished_run("random_digits", tmp_path)
    with pytest.raises(UserError, match="no heads|no projection head"):
        measure.evaluate("knn_digits", "random_digits", {"layers": ["projection"]}, out=str(tmp_path), quiet=True)


def test_un_mixs_vote_is_ours_with_two_hundred_neighbours_at_a_tenth():
    """The rule written out for one query: exp(similarity / 0.1) summed over the 200 nearest, class by class."""
    wanted = protocol("knn_cifar10_moco")
    assert wanted.layers == ["projection"] and wanted.grid == {"k": [200.0], "temperature": [0.1]}
    rng = np.random.default_rng(0)
    bank, labels, query = rng.standard_normal((400, 8)), rng.integers(0, 10, 400), rng.standard_normal(8)
    similarity = (bank / np.linalg.norm(bank, axis=1, keepdims=True)) @ (query / np.linalg.norm(query))
    nearest = np.argsort(-similarity)[:200]
    score = [np.exp(similarity[nearest] / 0.1)[labels[nearest] == c].sum() for c in range(10)]
    order = torch.from_numpy(nearest.copy())
    got = knn.votes(
        torch.from_numpy(similarity)[order][None].float(),
        torch.from_numpy(labels)[order][None],
        [{"k": 200, "temperature": 0.1}],
        10,
    )
    assert got[0][0] == int(np.argmax(score))
