"""zoo.load and its companions on run folders, bare files and stand-ins for released files."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import zoo
from zoo import heads, loading
from zoo.backbones import build
from zoo.errors import UserError
from zoo.yamlfile import dumps


def swav_state(backbone, hidden=32, dim=16, prototypes=5):
    """The tensors that a SwAV file holds: backbone, projection head with batch norm, prototypes; all under module."""
    head = nn.Sequential(nn.Linear(backbone.dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, dim))
    top = nn.Linear(dim, prototypes, bias=False)
    state = {f"module.{k}": v.clone() for k, v in backbone.state_dict().items()}
    state |= {f"module.projection_head.{k}": v.clone() for k, v in head.state_dict().items()}
    return state | {"module.prototypes.weight": top.weight.detach().clone()}, head.eval(), top


@pytest.fixture
def run(tmp_path):
    """A finished run of swav_digits: recipe.yaml, weights.pth and the network that they hold."""
    recipe = zoo.resolve("swav_digits")
    folder = tmp_path / "runs" / "swav_digits" / f"{recipe.hash()}-s0"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dumps(recipe.dump()))
    net = build(recipe.backbone).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    state, head, top = swav_state(net)
    torch.save(state, folder / "weights.pth")
    return folder, net, head, top


def images(net, n=2):
    return torch.randn(n, net.in_channels, 10, 10)


@torch.no_grad()
def test_a_run_folder_and_its_weight_file_load_the_same_network(run, capsys):
    folder, net, *_ = run
    x = images(net)
    for name in (folder, str(folder), folder / "weights.pth"):
        loaded = zoo.load(name)
        assert torch.equal(loaded(x), net(x)) and not loaded.training
        assert all(p.requires_grad and not p.is_meta for p in loaded.parameters())
    total = len(net.state_dict())
    assert f"{total}/{total} backbone tensors; ignored: 10 head tensors" in capsys.readouterr().err


def test_a_file_that_fits_two_networks_is_an_error_that_names_both(run, tmp_path, monkeypatch):
    folder, _, *_ = run
    other = tmp_path / "elsewhere.pth"
    torch.save(torch.load(folder / "weights.pth"), other)
    one = loading.recognise(other)
    monkeypatch.setattr(loading.foreign, "recognise", lambda *rest, **more: None)
    monkeypatch.setattr(loading, "_fitting", lambda *rest, **more: {"first": one, "second": one})
    with pytest.raises(UserError, match="fits several networks .first; second.; say which"):
        zoo.load(other)


@torch.no_grad()
def test_the_heads_of_a_file_come_with_part_full(run):
    folder, net, head, top = run
    x, full = images(net, 3), zoo.load(folder, part="full")
    out = full(x)
    embedding = head(net(x))
    assert set(out) == {"features", "projection", "prototypes"} and torch.allclose(out["projection"], embedding)
    assert torch.allclose(out["prototypes"], top(nn.functional.normalize(embedding)), atol=1e-6)


@torch.no_grad()
def test_num_classes_gives_a_fresh_classifier(run):
    folder, net, *_ = run
    model = zoo.load(folder, num_classes=7)
    assert model(images(net)).shape == (2, 7) and torch.equal(model.backbone(images(net) * 0), net(images(net) * 0))


def test_without_pretrained_nothing_is_read(run):
    folder, net, *_ = run
    (folder / "weights.pth").unlink()
    fresh = zoo.load(folder, pretrained=False)
    assert loading.shapes(fresh) == loading.shapes(net)
    with pytest.raises(UserError, match="no weights.pth; the run is not finished"):
        zoo.load(folder)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("module.layer2.0.bn2.bias"), "missing layer2.0.bn2.bias"),
        (lambda s: s.update({"module.extra.weight": torch.ones(2)}), "unexpected module.extra.weight"),
        (
            lambda s: s.update({"module.conv1.weight": torch.ones(16, 3, 3, 3)}),
            r"conv1.weight has shape \[16, 3, 3, 3\]",
        ),
        (lambda s: s["module.bn1.bias"].fill_(float("nan")), "module.bn1.bias holds NaN"),
        (lambda s: s["module.bn1.bias"][3:4].fill_(float("-inf")), "module.bn1.bias holds NaN or infinity"),
        (lambda s: s.update({"module.bn1.bias": torch.ones(16, dtype=torch.int64)}), "holds torch.int64"),
        (lambda s: s.update(epoch=3), "unexpected|holds epoch"),
    ],
    ids=["missing", "extra", "wrong shape", "NaN", "infinity", "integers", "a number among the tensors"],
)
def test_one_wrong_tensor_is_an_error_that_names_it_and_the_place(run, change, words):
    folder, *_ = run
    state = torch.load(folder / "weights.pth")
    change(state)
    torch.save(state, folder / "weights.pth")
    with pytest.raises(UserError, match=words):
        zoo.load(folder)


def test_a_model_of_the_callers_own_is_filled_or_left_untouched(run):
    folder, net, *_ = run
    mine = build(zoo.resolve("swav_digits").backbone)
    mine.fc = nn.Linear(3, 4)
    report = zoo.load_weights(mine, folder)
    assert report.ok and report.left == ("fc.weight", "fc.bias")
    assert torch.equal(mine.conv1.weight, net.conv1.weight)
    state = torch.load(folder / "weights.pth")
    del state["module.bn1.weight"]
    torch.save(state, folder / "weights.pth")
    other = build(zoo.resolve("swav_digits").backbone)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(UserError, match="missing bn1.weight"):
        zoo.load_weights(other, folder)
    assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())
    with pytest.raises(UserError, match="the model has no conv1.weight"):
        zoo.load_weights(nn.Linear(2, 2), folder)


def test_a_bare_file_is_recognised_or_refused(run, tmp_path):
    folder, net, *_ = run
    (tmp_path / "somewhere.pth").write_bytes((folder / "weights.pth").read_bytes())
    mine = build(zoo.resolve("swav_digits").backbone)
    assert zoo.load_weights(mine, tmp_path / "somewhere.pth").ok
    loaded = zoo.load(tmp_path / "somewhere.pth")
    assert torch.equal(loaded.conv1.weight, net.conv1.weight)
    torch.save({"a": torch.ones(1)}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="fits no network of the registry"):
        zoo.load(tmp_path / "odd.pth")
    with pytest.raises(UserError, match="no such run folder or file"):
        zoo.load("nowhere/file.pth")
    with pytest.raises(UserError, match="no recipe.yaml in this folder"):
        zoo.load(tmp_path)


@pytest.fixture
def released(tmp_path, monkeypatch):
    """A stand-in for swav_800ep's file and for its linear classifier."""
    net = build("resnet50")
    state, _, _ = swav_state(net)
    torch.save(state, tmp_path / "swav_800ep.pth.tar")
    fc = nn.Linear(2048, 1000)
    linear = {f"module.linear.{k}": v for k, v in fc.state_dict().items()}
    torch.save({"epoch": 100, "state_dict": linear, "best_acc": np.float64(75.3)}, tmp_path / "linear.pth.tar")
    from zoo import fetch

    files = {None: tmp_path / "swav_800ep.pth.tar", "linear_imagenet": tmp_path / "linear.pth.tar"}
    monkeypatch.setattr(fetch, "path", lambda name, head=None, progress=True: files[head])
    return net.eval(), fc


@torch.no_grad()
def test_a_released_backbone_its_classifier_and_torchvisions_network(released, capsys):
    net, fc = released
    x = torch.randn(1, 3, 64, 64)
    model = zoo.load("swav_800ep", head="linear_imagenet")
    assert torch.allclose(model(x), fc(net(x)), atol=1e-5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "swav_800ep: 318/318 backbone tensors; ignored: 10 head tensors"
    assert lines[1] == "swav_800ep, head linear_imagenet: 2/2 backbone tensors; ignored: nothing"
    from torchvision.models import resnet50

    theirs = resnet50()
    assert zoo.load_weights(theirs, "resnet50").left == ("fc.weight", "fc.bias")
    theirs.fc = nn.Identity()
    assert torch.equal(theirs.eval()(x), net(x))
    with pytest.raises(UserError, match="no released head 'linear_imagent'; did you mean 'linear_imagenet'"):
        zoo.load("swav_800ep", head="linear_imagent")


def test_an_id_without_weights_says_how_to_make_them():
    with pytest.raises(
        UserError, match="swav_digits: nobody released its weights; train it: python -m reproduce swav_digits"
    ):
        zoo.load("swav_digits")


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"part": "head"}, "part='head'"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"num_classes": 3, "part": "full"}, "alternatives"),
        ({"pretrained": False, "part": "full"}, "come with the weights"),
        ({"head": "linear_imagenet"}, "no released head .linear_imagenet. .released: none"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        zoo.load("swav_digits", **arguments)


def test_transforms_are_the_models_own_and_cross_process_borders():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    transform = pickle.loads(pickle.dumps(zoo.transforms("swav_800ep")))
    out = transform(image)
    assert out.shape == (3, 224, 224)
    assert torch.equal(out, transform(image)) and torch.equal(out, zoo.transforms(zoo.resolve("swav_800ep"))(image))
    gray = transform(image.convert("L"))
    pixel = (gray[0] * 0.228 + 0.485) * 255
    assert torch.allclose(pixel, (gray[1] * 0.224 + 0.456) * 255, atol=1e-3), "each channel is normalised by its own"
    train = zoo.transforms("swav_800ep", train=True)
    assert train(image).shape == (3, 224, 224) and not torch.equal(train(image), train(image))
    digits = zoo.transforms("swav_digits")
    assert digits(Image.new("L", (8, 8))).shape == (1, 10, 10)


@torch.no_grad()
def test_heads_are_rebuilt_from_names_and_shapes():
    mlp = heads.build(
        {
            "fc1.weight": torch.ones(6, 4),
            "fc1.bias": -torch.ones(6),
            "fc2.weight": torch.ones(2, 6),
            "fc2.bias": torch.zeros(2),
        }
    )
    assert [type(m).__name__ for m in mlp] == ["Linear", "ReLU", "Linear"] and mlp(torch.zeros(1, 4)).tolist() == [
        [0, 0]
    ]
    without_norm = heads.build(
        {
            "p.0.weight": torch.ones(4, 4),
            "p.0.bias": torch.ones(4),
            "p.2.weight": torch.ones(2, 4),
            "p.2.bias": torch.ones(2),
        }
    )
    assert [type(m).__name__ for m in without_norm] == ["Linear", "ReLU", "Linear"]
    several = heads.build({f"top_layer{h}.weight": torch.full((h + 2, 4), float(h)) for h in (10, 0, 2, 1)})
    assert [y.shape[1] for y in several(torch.ones(1, 4))] == [2, 3, 4, 12]
    assert isinstance(heads.build({"top_layer.0.weight": torch.ones(2, 3)}), nn.Linear)
    bank = heads.build({"queue": torch.ones(2, 3), "queue_ptr": torch.zeros(1)})
    assert torch.equal(bank.queue, torch.ones(2, 3))
    with pytest.raises(UserError, match="a head does not fit together"):
        heads.build({"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(4)})


def test_a_file_is_read_once_for_its_hash_however_often_it_is_loaded(tmp_path, monkeypatch):
    """Checked before every load, named in records and exports: one reading of the file, and MD5 only for a fresh download."""
    from evaluations.inputs import models
    from zoo import cache, checkpoint_reader, fetch

    net = build("resnet18")
    entry, target = zoo.entry("swav_800ep"), cache.folder() / "kept.pth"
    torch.save({f"module.{k}": v for k, v in net.state_dict().items()}, target)
    item = fetch.Item("swav_800ep", tuple(entry.weights.sources), None, None, "MIT", "x")
    monkeypatch.setattr(fetch.Item, "file", property(lambda self: "kept.pth"))
    fed, made = [], checkpoint_reader.hashlib.sha256

    class Counted:
        def __init__(self):
            self.own = made()

        def update(self, block):
            fed.append(len(block))
            self.own.update(block)

        def hexdigest(self):
            return self.own.hexdigest()

    monkeypatch.setattr(checkpoint_reader.hashlib, "sha256", Counted)
    shorts = []
    monkeypatch.setattr(checkpoint_reader.hashlib, "md5", lambda **_: shorts.append(made()) or shorts[-1])
    for _ in range(3):
        fetch.obtain(item)
    judged = models.Model("x", str(target), target, entry)
    assert judged.weights_sha256 == checkpoint_reader.sha256(target) == made(target.read_bytes()).hexdigest()
    assert sum(fed) == target.stat().st_size, "one pass"
    assert not any(one.digest() != made().digest() for one in shorts), "nothing was fed to MD5"
    target.write_bytes(target.read_bytes() + b"x")
    assert checkpoint_reader.sha256(target) == made(target.read_bytes()).hexdigest(), (
        "a file that changed is another file"
    )
