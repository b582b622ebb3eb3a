"""What `zoo export` writes is loaded by the project it is meant for, completely, and computes the same features."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from zoo import fetch
from zoo.__main__ import main
from zoo.backbones import build
from zoo.checkpoint_reader import sha256
from zoo.errors import UserError, guard
from zoo.export import export
from zoo.yamlfile import dumps

MODEL = "sela_rn18_1k_aug"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A stand-in for a released ResNet-18 with its head, batch norms as after training."""
    file = tmp_path_factory.mktemp("released") / "resnet18.pth"
    net = build("resnet18")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    fc = nn.Linear(512, 1000)
    torch.save(
        {
            "state_dict": net.state_dict() | {f"fc.{k}": v for k, v in fc.state_dict().items()},
            "labels": torch.zeros(1, 9),
        },
        file,
    )
    return file, net.eval()


@pytest.fixture
def released(weights, monkeypatch):
    monkeypatch.setattr(fetch, "path", lambda name, head=None, progress=True: weights[0])
    return weights


def run_folder(tmp_path, model):
    recipe = zoo.resolve(model)
    (tmp_path / "recipe.yaml").write_text(dumps(recipe.dump()))
    net = build(recipe.backbone).eval()
    torch.save({f"module.{k}": v for k, v in net.state_dict().items()}, tmp_path / "weights.pth")
    return net


def says_where_it_comes_from(note, file):
    assert note["weights_sha256"] == sha256(file) and note["license"] == "MIT" and "SeLa" in note["method"]
    assert note["source"].endswith("resnet18-1k_pp.pth") and note["paper"] == "arXiv 1911.05371"
    assert (
        json.loads(note["input"])["std"] == [0.229, 0.224, 0.225] and json.loads(note["backbone"])["name"] == "resnet18"
    )


@torch.no_grad()
def test_torchvision_and_timm_load_every_tensor(released, tmp_path):
    import timm
    import torchvision

    file, net = released
    x = torch.randn(2, 3, 64, 64)
    theirs = torchvision.models.resnet18()
    theirs.fc = nn.Identity()
    written = torch.load(export(MODEL, "torchvision", tmp_path / "tv.pth"), weights_only=True)
    theirs.load_state_dict(written["state_dict"])
    says_where_it_comes_from(written["meta"], file)
    assert torch.equal(theirs.eval()(x), net(x))
    path = export(MODEL, "timm", tmp_path / "timm.pth")
    model = timm.create_model("resnet18", num_classes=0, checkpoint_path=str(path))
    assert torch.allclose(model.eval()(x), net(x), atol=1e-5)


@torch.no_grad()
def test_a_released_classifier_goes_along_to_torchvision(tmp_path, monkeypatch):
    import torchvision

    net, fc = build("resnet50").eval(), nn.Linear(2048, 1000)
    torch.save({f"module.{k}": v for k, v in net.state_dict().items()}, tmp_path / "w.pth")
    torch.save({"state_dict": {f"module.linear.{k}": v for k, v in fc.state_dict().items()}}, tmp_path / "h.pth")
    monkeypatch.setattr(fetch, "path", lambda name, head=None, progress=True: tmp_path / ("h.pth" if head else "w.pth"))
    written = torch.load(
        export("swav_800ep", "torchvision", tmp_path / "tv.pth", head="linear_imagenet"), weights_only=True
    )
    theirs = torchvision.models.resnet50().eval()
    theirs.load_state_dict(written["state_dict"])
    x = torch.randn(1, 3, 64, 64)
    assert torch.allclose(theirs(x), fc(net(x)), atol=1e-4) and written["meta"]["head"] == "linear_imagenet"


def detectron2_resnet(blocks, bottleneck):
    """Names and shapes of detectron2's ResNet with FrozenBatchNorm2d, from its definition (BasicStem, stages res2 to res5)."""

    def layer(name, out, inn, k):
        return {f"{name}.weight": (out, inn, k, k)} | {
            f"{name}.norm.{p}": (out,) for p in ("weight", "bias", "running_mean", "running_var")
        }

    keys, inputs = layer("stem.conv1", 64, 3, 7), 64
    for stage, depth in enumerate(blocks):
        width = 64 * 2**stage
        out = width * 4 if bottleneck else width
        for i in range(depth):
            name = f"res{stage + 2}.{i}"
            shapes = (
                ((width, inputs, 1), (width, width, 3), (out, width, 1))
                if bottleneck
                else ((width, inputs, 3), (width, width, 3))
            )
            for number, shape in enumerate(shapes, 1):
                keys |= layer(f"{name}.conv{number}", *shape)
            if inputs != out or (i == 0 and stage and not bottleneck):
                keys |= layer(f"{name}.shortcut", out, inputs, 1)
            inputs = out
    return keys


@pytest.mark.parametrize(
    "name, blocks, bottleneck", [("resnet18", [2, 2, 2, 2], False), ("resnet50", [3, 4, 6, 3], True)]
)
def test_detectron2s_names_and_shapes_are_met_exactly(name, blocks, bottleneck):
    from zoo.export import detectron2_name

    with torch.device("meta"):
        state = build(name).state_dict()
    ours = {detectron2_name(k): tuple(v.shape) for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert ours == detectron2_resnet(blocks, bottleneck)


def test_detectron2_gets_a_pickle_of_arrays(released, tmp_path):
    file, net = released
    with export(MODEL, "detectron2", tmp_path / "d2.pkl").open("rb") as stream:
        data = pickle.load(stream, encoding="latin1")
    assert (
        data["matching_heuristics"] is True
        and data["__author__"]
        and set(data["model"]) == set(detectron2_resnet([2, 2, 2, 2], False))
    )
    assert np.array_equal(
        data["model"]["res3.0.shortcut.norm.running_mean"], net.layer2[0].downsample[1].running_mean.numpy()
    )
    says_where_it_comes_from(data["meta"], file)


@torch.no_grad()
def test_safetensors_come_back_complete_with_their_note(released, tmp_path):
    from safetensors import safe_open

    file, net = released
    path = export(MODEL, "safetensors", tmp_path / "x.safetensors")
    with safe_open(path, "pt") as opened:
        says_where_it_comes_from(opened.metadata(), file)
    back = build("resnet18").eval()
    assert zoo.load_weights(back, path).ok
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(back(x), net(x))
    assert torch.equal(zoo.load(path)(x), net(x)), "a bare file of a known form is recognised"


@torch.no_grad()
def test_onnx_computes_the_same_features_at_other_sizes(tmp_path):
    import onnx
    import onnxruntime

    net = run_folder(tmp_path, "swav_digits")
    path = export(tmp_path, "onnx", tmp_path / "x.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in ((1, 1, 10, 10), (5, 1, 12, 9)):
        x = torch.randn(shape)
        [out] = session.run(None, {"images": x.numpy()})
        assert np.allclose(out, net(x).numpy(), atol=1e-5)
    note = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert note["weights_sha256"] == sha256(tmp_path / "weights.pth") and note["license"].startswith("not stated")
    assert json.loads(note["input"])["mean"] == zoo.resolve("swav_digits").input.mean


@pytest.mark.parametrize("form", ["torchvision", "timm", "detectron2"])
def test_a_network_that_the_target_does_not_have_is_refused_and_nothing_is_left(tmp_path, form, capsys):
    run_folder(tmp_path, "swav_digits")
    (tmp_path / "out").mkdir()
    assert guard(lambda: main(["export", str(tmp_path), "--to", form, "--out", str(tmp_path / "out" / "x")])) == 2
    assert "has no network of this form (tiny_resnet" in capsys.readouterr().err and not list(
        (tmp_path / "out").iterdir()
    )


def test_the_command_prints_the_file_and_the_next_step(released, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", MODEL, "--to", "timm"]) == 0
    said = capsys.readouterr()
    assert (
        said.out.strip() == f"{MODEL}-timm.pth"
        and (tmp_path / said.out.strip()).is_file()
        and "next: timm.create_model" in said.err
    )
    with pytest.raises(UserError, match="is a folder"):
        export(MODEL, "timm", tmp_path)
    with pytest.raises(UserError, match="one of torchvision, timm"):
        export(MODEL, "keras")
