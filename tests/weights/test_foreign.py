"""Checkpoints of other projects, built from the key lists of their sources: each is recognised, loads the source network's
features, and says in one line what it was taken for."""

from __future__ import annotations

import argparse
import copy
import itertools

import pytest
import torch
import torchvision
from torch import nn

import zoo
from zoo import foreign, loading
from zoo.backbones import build
from zoo.errors import UserError

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CIFAR = ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
PLAIN = ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])


def network(name="resnet18", small=False, padding=1, seed=0):
    """torchvision's own network without a classifier, or with the 3x3 stem of small images; statistics are not trivial."""
    torch.manual_seed(seed)
    net = getattr(torchvision.models, name)(weights=None)
    net.fc = nn.Identity()
    if small:
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, padding, bias=False), nn.Identity()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


def named(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def linear(name, *sizes, bias=True):
    """A projection head: linear layers at 0, 2, …"""
    made = {}
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        made[f"{name}.{2 * i}.weight"] = torch.randn(b, a)
        if bias:
            made[f"{name}.{2 * i}.bias"] = torch.randn(b)
    return made


def other(seed=7, **options):
    """A second copy of the network with other numbers: what must not be taken."""
    return network(seed=seed, **options).state_dict()


def numbered(state, numbers, shortcut="downsample"):
    """Children of nn.Sequential by number, in the order conv1 bn1 layer1 .. layer4."""
    names = dict(zip(("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"), numbers, strict=True))
    made = {}
    for key, value in state.items():
        first, rest = key.split(".", 1)
        made[f"{names[first]}.{rest}".replace("downsample", shortcut)] = value
    return made


def lightning(state, **more):
    return {"epoch": 9, "global_step": 90, "pytorch-lightning_version": "2.1.0", "state_dict": state, "loops": {}, "callbacks": {},
            "optimizer_states": [], "lr_schedulers": [], **more}  # fmt: skip


def dino(net):
    state = (
        named("backbone.", net.state_dict())
        | linear("head.mlp", 512, 64, 32)
        | {"head.last_layer.weight_g": torch.ones(99, 1), "head.last_layer.weight_v": torch.randn(99, 32)}
    )
    student = named("module.", named("backbone.", other()) | linear("head.mlp", 512, 64))
    return {
        "student": student,
        "teacher": named("module.", state),
        "optimizer": {},
        "epoch": 1,
        "args": argparse.Namespace(arch="resnet18"),
        "dino_loss": {"center": torch.zeros(1, 99)},
    }


def mocov3(net):
    state = (
        named("base_encoder.", net.state_dict())
        | linear("base_encoder.fc", 512, 64)
        | named("momentum_encoder.", other())
        | linear("predictor", 64, 64)
    )
    return {"epoch": 1, "arch": "resnet18", "state_dict": named("module.", state), "optimizer": {}, "scaler": {}}


def moco(net):
    state = (
        named("encoder_q.", net.state_dict())
        | linear("encoder_q.fc", 512, 512, 64)
        | named("encoder_k.", other())
        | {"queue": torch.randn(64, 16), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    )
    return {"epoch": 1, "arch": "resnet18", "state_dict": named("module.", state), "optimizer": {}}


def simsiam(net):
    state = named("encoder.", net.state_dict()) | linear("encoder.fc", 512, 64, 64) | linear("predictor", 64, 32, 64)
    return {"epoch": 1, "arch": "resnet18", "state_dict": named("module.", state), "optimizer": {}}


def barlow(net):
    bn = {
        "bn.running_mean": torch.zeros(64),
        "bn.running_var": torch.ones(64),
        "bn.num_batches_tracked": torch.tensor(3),
    }
    return {
        "epoch": 1,
        "model": named(
            "module.", named("backbone.", net.state_dict()) | linear("projector", 512, 64, 64, bias=False) | bn
        ),
        "optimizer": {},
    }


def vicreg(net):
    return {
        "epoch": 1,
        "model": named("module.", named("backbone.", net.state_dict()) | linear("projector", 512, 64, 64)),
        "optimizer": {},
    }


def vissl(net):
    model = {"trunk": named("_feature_blocks.", net.state_dict()), "heads": linear("0.projection_head", 512, 64)}
    return {
        "phase_idx": 1,
        "iteration": 2,
        "classy_state_dict": {"base_model": {"model": model}},
        "loss": {"num_iteration": 3},
    }


def solo(prefix):
    def made(net):
        state = named(f"{prefix}.", net.state_dict()) | {
            "classifier.weight": torch.randn(10, 512),
            "classifier.bias": torch.randn(10),
        }
        return lightning(
            state
            | linear("projector", 512, 64, 32)
            | named(f"momentum_{prefix}.", other())
            | {"queue": torch.randn(2, 8)}
        )

    return made  # fmt: skip


def lightly(net):
    state = (
        named("backbone.", net.state_dict())
        | linear("projection_head.layers", 512, 64)
        | {"online_classifier.weight": torch.randn(10, 512)}
    )
    return lightning(state | named("teacher_backbone.", other()), hyper_parameters={"batch_size_per_device": 256})


def split_batchnorm(state, splits=8):
    """lightly's SplitBatchNorm keeps one set of running statistics for each split, one after another, whose mean counts."""
    made = dict(state)
    for key, value in state.items():
        if key.endswith(("running_mean", "running_var")):
            noise = torch.randn(splits, len(value)) * 0.01
            made[key] = (value + noise - noise.mean(0)).flatten()
    return made


def byol_yaox12(net):
    online = named(
        "online_network.",
        named("encoder.", numbered(net.state_dict(), (0, 1, 4, 5, 6, 7))) | linear("projetion", 512, 64),
    )
    target = named("target_network.", named("encoder.", numbered(other(), (0, 1, 4, 5, 6, 7))))
    return {
        "config": {},
        "epoch": 1,
        "steps": 2,
        "model": named("module.", online | target | linear("predictor.predictor", 64, 64)),
        "optimizer": {},
    }


def byol_sthalles(net):
    return {"online_network_state_dict": named("encoder.", numbered(net.state_dict(), (0, 1, 4, 5, 6, 7))) | linear("projetion.net", 512, 64),
            "target_network_state_dict": named("encoder.", numbered(other(), (0, 1, 4, 5, 6, 7))), "optimizer_state_dict": {}}  # fmt: skip


def mm(net):
    state = (
        named("backbone.", net.state_dict())
        | linear("neck.mlp", 512, 64)
        | named("encoder_k.module.0.", other())
        | {"queue": torch.randn(64, 8), "queue_ptr": torch.zeros(1)}
    )
    return {
        "meta": {"cfg": "model = 1", "seed": 0, "epoch": 3},
        "state_dict": state,
        "message_hub": {},
        "optimizer": {},
    }


def openselfsup(net):
    state = (
        named("backbone.", net.state_dict())
        | named("encoder_q.0.", net.state_dict())
        | named("encoder_k.0.", other())
        | linear("neck.mlp", 512, 64)
    )
    return {"meta": {"epoch": 3}, "state_dict": state, "optimizer": {}}


def scan(net):
    return {k.replace("downsample", "shortcut"): v for k, v in named("backbone.", net.state_dict()).items()} | linear(
        "contrastive_head", 512, 512, 128
    )


def scan_clusters(net):
    state = {k.replace("downsample", "shortcut"): v for k, v in named("backbone.", net.state_dict()).items()}
    heads = {
        f"cluster_head.{i}.{k}": torch.randn(10, 512) if k == "weight" else torch.randn(10)
        for i in range(10)
        for k in ("weight", "bias")
    }
    return {"model": state | heads, "head": 3}


def huggingface(net):
    made = {}
    for key, value in net.state_dict().items():
        place, last = key.rsplit(".", 1)
        if place in ("conv1", "bn1"):
            made[f"resnet.embedder.embedder.{'convolution' if place == 'conv1' else 'normalization'}.{last}"] = value
            continue
        stage, block, part = place.split(".", 2)
        if part.startswith("downsample"):
            part = f"shortcut.{'convolution' if part.endswith('0') else 'normalization'}"
        else:
            part = f"layer.{int(part[-1]) - 1}.{'convolution' if part.startswith('conv') else 'normalization'}"
        made[f"resnet.encoder.stages.{int(stage[-1]) - 1}.layers.{block}.{part}.{last}"] = value
    return made | {"classifier.1.weight": torch.randn(9, 512), "classifier.1.bias": torch.randn(9)}


def separius(net):
    made = {}
    for key, value in net.state_dict().items():
        place, last = key.rsplit(".", 1)
        if place in ("conv1", "bn1"):
            made[f"net.0.{'0' if place == 'conv1' else '1.0'}.{last}"] = value
            continue
        stage, block, part = place.split(".", 2)
        if part.startswith("downsample"):
            part = "projection.shortcut" if part.endswith("0") else "projection.bn.0"
        else:
            number = 2 * (int(part[-1]) - 1)
            part = f"net.{number}" if part.startswith("conv") else f"net.{number + 1}.0"
        made[f"net.{stage[-1]}.blocks.{block}.{part}.{last}"] = value
    return {
        "resnet": made | {"fc.weight": torch.randn(9, 2048), "fc.bias": torch.randn(9)},
        "head": {"layers.0.weight": torch.randn(4, 4)},
    }


def classified(state, width=512):
    return state | {"fc.weight": torch.randn(1000, width), "fc.bias": torch.randn(1000)}


def plain(net):
    return dict(net.state_dict())


# name -> (network options, file, what it is taken for, the common prefix, mean and std)
FORMS = {
    "DINO, full": ({}, dino, "DINO", "module.backbone.", IMAGENET),
    "DINO, backbone": ({}, plain, "torchvision's names", "", IMAGENET),
    "MoCo v3": ({}, mocov3, "MoCo v3", "module.base_encoder.", IMAGENET),
    "MoCo, PCL": ({}, moco, "MoCo or PCL", "module.encoder_q.", IMAGENET),
    "MoCo's CIFAR demo": ({"small": True}, lambda net: {"epoch": 1, "state_dict": named("encoder_q.net.", numbered(net.state_dict(), (0, 1, 3, 4, 5, 6)) | {"9.weight": torch.randn(8, 512), "9.bias": torch.randn(8)}) | named("encoder_k.net.", numbered(other(small=True), (0, 1, 3, 4, 5, 6))) | {"queue": torch.randn(8, 8)}}, "MoCo's CIFAR demo", "encoder_q.net.", CIFAR),
    "SimSiam": ({}, simsiam, "SimSiam", "module.encoder.", IMAGENET),
    "Barlow Twins, full": ({}, barlow, "Barlow Twins", "module.backbone.", IMAGENET),
    "VICReg, full": ({}, vicreg, "VICReg", "module.backbone.", IMAGENET),
    "VISSL": ({}, vissl, "VISSL", "_feature_blocks.", IMAGENET),
    "VISSL, converted": ({}, lambda net: {"model_state_dict": named("_feature_blocks.", net.state_dict())}, "VISSL, converted", "_feature_blocks.", IMAGENET),
    "PAWS": ({}, lambda net: {"encoder": named("module.", net.state_dict() | linear("fc.fc", 512, 64) | linear("pred.fc", 64, 64)), "opt": {}, "epoch": 1, "world_size": 8}, "MSN or PAWS", "module.", IMAGENET),
    "solo-learn, ImageNet": ({}, solo("backbone"), "solo-learn", "backbone.", IMAGENET),
    "solo-learn, CIFAR": ({"small": True, "padding": 2}, solo("backbone"), "solo-learn", "backbone.", CIFAR),
    "solo-learn, old": ({"small": True, "padding": 2}, solo("encoder"), "solo-learn, before September 2022", "encoder.", CIFAR),
    "lightly, benchmark": ({}, lightly, "lightly", "backbone.", IMAGENET),
    "lightly, numbered": ({"small": True}, lambda net: {"state_dict": named("backbone.", numbered(net.state_dict(), (0, 1, 2, 3, 4, 5), "shortcut")) | linear("projection_head.layers", 512, 64)}, "lightly, numbered children", "backbone.", CIFAR),
    "lightly, split batch norm": ({"small": True}, lambda net: {"state_dict": named("backbone.", numbered(split_batchnorm(net.state_dict()), (0, 1, 2, 3, 4, 5), "shortcut"))}, "lightly, numbered children", "backbone.", CIFAR),
    "lightly, torchvision's children": ({}, lambda net: named("backbone.", numbered(net.state_dict(), (0, 1, 4, 5, 6, 7))) | linear("projection_head.layers", 512, 64), "numbered children of torchvision's ResNet", "backbone.", IMAGENET),
    "lightly's ResNet by names": ({"small": True}, lambda net: {"state_dict": {k.replace("downsample", "shortcut"): v for k, v in net.state_dict().items()} | {"linear.weight": torch.randn(10, 512), "linear.bias": torch.randn(10)}}, "lightly's ResNet", "", CIFAR),
    "lightly-train, export": ({}, lambda net: classified(plain(net)), "torchvision's names", "", IMAGENET),
    "mmpretrain": ({}, mm, "mmpretrain or mmselfsup", "backbone.", IMAGENET),
    "mmselfsup, tensors alone": ({}, lambda net: mm(net)["state_dict"], "mmselfsup", "backbone.", IMAGENET),
    "mmselfsup, extracted": ({}, lambda net: {"state_dict": plain(net), "author": "MMSelfSup"}, "mmselfsup, backbone", "", IMAGENET),
    "OpenSelfSup": ({}, openselfsup, "OpenSelfSup", "backbone.", IMAGENET),
    "SimCLR v2, converted": ({"name": "resnet50"}, separius, "SimCLR v2, converted", "net.", PLAIN),
    "BYOL, yaox12": ({}, byol_yaox12, "BYOL (yaox12)", "module.online_network.encoder.", IMAGENET),
    "BYOL, sthalles": ({}, byol_sthalles, "BYOL (sthalles)", "encoder.", PLAIN),
    "BYOL, lucidrains": ({}, lambda net: named("online_encoder.net.", classified(plain(net))) | named("target_encoder.net.", other()) | linear("online_encoder.projector.net", 512, 64) | linear("online_predictor.net", 64, 64), "BYOL (lucidrains)", "online_encoder.net.", IMAGENET),
    "PyContrast": ({}, lambda net: {"model": named("module.", named("encoder.", net.state_dict()) | linear("head", 512, 64) | linear("head_jig.fc1", 512, 64)), "contrast": {"memory_1": torch.randn(4, 4)}, "optimizer": {}, "epoch": 1}, "PyContrast", "module.encoder.", IMAGENET),
    "SCAN, pretext": ({"small": True}, scan, "SCAN", "backbone.", CIFAR),
    "SCAN, clusters": ({"small": True}, scan_clusters, "SCAN, clustering", "backbone.", CIFAR),
    "stable-pretraining": ({}, lambda net: lightning(named("backbone.", net.state_dict()) | linear("projector", 512, 64) | {"callbacks_modules.probe.weight": torch.randn(10, 512)}), "stable-pretraining", "backbone.", IMAGENET),
    "stable-pretraining, teacher": ({}, lambda net: lightning(named("backbone.teacher.", net.state_dict()) | named("backbone.student.", other()) | {"backbone.ema_coefficient": torch.tensor(0.99)}), "stable-pretraining, the teacher", "backbone.teacher.", IMAGENET),
    "SimCLR, sthalles": ({}, lambda net: {"epoch": 1, "arch": "resnet18", "state_dict": named("backbone.", plain(net) | linear("fc", 512, 512, 128)), "optimizer": {}}, "SimCLR (sthalles)", "backbone.", PLAIN),
    "SimCLR, leftthomas": ({"small": True}, lambda net: named("f.", numbered(net.state_dict(), (0, 1, 3, 4, 5, 6))) | linear("g", 512, 512, 128), "SimCLR (leftthomas)", "f.", CIFAR),
    "SimCLR, Spijkervet": ({}, lambda net: named("encoder.", net.state_dict()) | linear("projector", 512, 512, 64, bias=False), "SimCLR (Spijkervet)", "encoder.", PLAIN),
    "timm": ({}, lambda net: {"epoch": 1, "arch": "resnet18", "state_dict": classified(other()), "state_dict_ema": classified(plain(net)), "optimizer": {}, "version": 2, "args": argparse.Namespace(lr=1)}, "timm's training script", "", IMAGENET),
    "torchvision, training": ({}, lambda net: {"model": classified(plain(net)), "optimizer": {}, "lr_scheduler": {}, "epoch": 1, "args": argparse.Namespace(lr=1)}, "torchvision's training script", "", IMAGENET),
    "Hugging Face": ({}, huggingface, "Hugging Face's ResNet", "resnet.", IMAGENET),
    "torch.compile": ({}, lambda net: named("_orig_mod.", classified(plain(net))), "torchvision's names", "_orig_mod.", IMAGENET),
    "DDP of a compiled network": ({}, lambda net: {"model": named("module._orig_mod.", plain(net))}, "torchvision's names", "module._orig_mod.", IMAGENET),
    "compiled inside": ({}, lambda net: lightning(named("backbone._orig_mod.", net.state_dict()) | linear("projector", 512, 64)), "solo-learn", "backbone._orig_mod.", IMAGENET),
    "averaged": ({}, lambda net: named("module.", classified(plain(net))) | {"n_averaged": torch.tensor(3)}, "torchvision's names", "module.", IMAGENET),
    "FSDP, checkpointed": ({}, lambda net: named("_fsdp_wrapped_module._checkpoint_wrapped_module.", plain(net)), "torchvision's names", "_fsdp_wrapped_module._checkpoint_wrapped_module.", IMAGENET),
    "before counters": ({}, lambda net: {k: v for k, v in plain(net).items() if not k.endswith("num_batches_tracked")}, "torchvision's names", "", IMAGENET),
    "a number among the tensors": ({}, lambda net: {**plain(net), "epoch": 3, "arch": "resnet18"}, "torchvision's names", "", IMAGENET),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_every_form_is_recognised_and_gives_the_source_networks_features(tmp_path, capsys, form):
    options, make, title, prefix, (mean, std) = FORMS[form]
    net = network(**options)
    torch.save(make(net), tmp_path / "weights.pth")
    loaded = zoo.load(tmp_path / "weights.pth")
    x = torch.randn(2, 3, *((32, 32) if options.get("small") else (64, 64)))
    assert torch.allclose(loaded(x), net(x), atol=1e-5, rtol=1e-4)
    line = capsys.readouterr().err.strip()
    assert line.count("\n") == 0 and f"weights.pth: looks like {title}: ResNet-" in line
    assert f"under `{prefix}`" in line if prefix else "under `" not in line
    assert "left out, input assumed mean [" in line
    spec = loading.origin(tmp_path / "weights.pth").input
    assert (list(spec.mean), list(spec.std)) == (mean, std)


@pytest.mark.parametrize("name", ["resnet34", "resnet50", "resnet101", "wide"])
@torch.no_grad()
def test_depth_and_width_are_read_from_the_shapes(tmp_path, name):
    if name == "wide":  # all widths doubled, as VICReg's resnet50x2
        net = build("resnet50w2").eval()
    else:
        net = network(name)
    torch.save(plain(net), tmp_path / "x.pth")
    x = torch.randn(1, 3, 64, 64)
    assert torch.allclose(zoo.load(tmp_path / "x.pth")(x), net(x), atol=1e-5, rtol=1e-4)


REFUSED = {
    "CLIP": {
        "visual.conv1.weight": torch.zeros(32, 3, 3, 3),
        "visual.attnpool.positional_embedding": torch.zeros(50, 8),
    },
    "DINOv2": {"cls_token": torch.zeros(1, 1, 8), "blocks.0.ls1.gamma": torch.zeros(8)},
    "MAE after fine-tuning": {
        "model": {"blocks.0.attn.qkv.weight": torch.zeros(24, 8), "fc_norm.weight": torch.zeros(8)}
    },
    "a vision transformer": {"teacher": {"backbone.blocks.0.attn.qkv.weight": torch.zeros(24, 8)}, "student": {}},
    "CMC": {
        "model": {
            "module.encoder1.conv1.weight": torch.zeros(32, 1, 7, 7),
            "module.encoder2.conv1.weight": torch.zeros(32, 2, 7, 7),
        }
    },
    "an FSDP shard": {"flat_param_0": torch.zeros(8)},
    "detectron2": {"model": {"stem.conv1.norm.weight": torch.zeros(8)}},
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_form_that_no_network_takes_says_so_and_what_to_do(tmp_path, what):
    torch.save(REFUSED[what], tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"x.pth: looks like {what}.*: .*\w"):
        zoo.load(tmp_path / "x.pth")


@pytest.mark.parametrize("change", ["missing", "extra block", "another shape", "deep stem", "squeeze and excitation"])
def test_a_file_of_nearly_this_network_is_refused(tmp_path, change):
    state = plain(network("resnet50"))
    if change == "missing":
        del state["layer4.0.conv2.weight"]
    elif change == "extra block":
        state |= {k.replace("layer4.2", "layer4.3"): v for k, v in state.items() if k.startswith("layer4.2")}
    elif change == "another shape":
        state["layer2.0.conv2.weight"] = torch.zeros(128, 4, 3, 3)
    elif change == "deep stem":
        state["conv1.0.weight"] = state.pop("conv1.weight")
    else:
        state["layer1.0.se.fc1.weight"] = torch.zeros(16, 256)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match="python -m zoo show"):
        zoo.load(tmp_path / "x.pth")
    with pytest.raises(
        UserError, match=r"does not fit backbone='resnet50': nearest: ResNet-50 in .*Nothing was loaded"
    ):
        zoo.load(tmp_path / "x.pth", backbone="resnet50")


# ---------------------------------------------------------------- as the owner says


@torch.no_grad()
def test_the_owner_says_what_the_file_is(tmp_path, capsys):
    net, student = network(seed=1), network(seed=2)
    tree = {
        "nets": {"a": named("deep.inside.", classified(plain(net))) | linear("deep.head", 4, 4), "b": plain(student)},
        "step": 3,
    }
    torch.save(tree, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"places with tensors: nets.a, nets.b"):
        zoo.load(tmp_path / "x.pth")
    x = torch.randn(1, 3, 64, 64)
    a = zoo.load(tmp_path / "x.pth", prefix="deep.inside.", path="nets.a", mean=[0.5] * 3, std=[0.25] * 3)
    assert torch.allclose(a(x), net(x), atol=1e-5)
    assert "under `deep.inside.` in `nets.a`" in capsys.readouterr().err
    b = zoo.load(tmp_path / "x.pth", backbone="resnet18", path="nets.b")
    assert torch.allclose(b(x), student(x), atol=1e-5)
    transform = zoo.transforms(tmp_path / "x.pth", prefix="deep.inside.", mean=[0.5] * 3, std=[0.25] * 3)
    assert transform.transforms[-1].mean == [0.5] * 3
    for wrong, words in (({"path": "nowhere"}, "no tensors there"), ({"prefix": "nothing."}, "nothing in it looks like"), ({"mean": [0.5] * 3, "path": "nets.b"}, "belong together"),
                         ({"backbone": "resnet34", "path": "nets.b"}, "nearest: ResNet-34"), ({"backbone": "resnet5"}, "did you mean 'resnet50'")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            zoo.load(tmp_path / "x.pth", **wrong)
    with pytest.raises(UserError, match="this is an id with a recipe of its own"):
        zoo.load("swav_800ep", prefix="x.")


@torch.no_grad()
def test_a_short_file_beside_the_weights_says_it(tmp_path, capsys):
    net = network(small=True)
    torch.save({"weird": named("q.", plain(net)) | linear("z", 4, 4)}, tmp_path / "w.pth")
    (tmp_path / "w.yaml").write_text(
        "backbone: {name: resnet18, stem_kernel: 3, stem_stride: 1, max_pool: false}\n"
        "input: {resize: 40, crop: 32, mean: [0.1, 0.2, 0.3], std: [0.4, 0.5, 0.6]}\n"
        "layouts: [{path: weird, rules: [['^q\\.', '']], heads: {top: ['z.*']}}]\n"
    )
    x = torch.randn(1, 3, 32, 32)
    assert torch.allclose(zoo.load(tmp_path / "w.pth")(x), net(x), atol=1e-5)
    assert "looks like what the file beside it says" in capsys.readouterr().err
    spec = loading.origin(tmp_path / "w.pth").input
    assert (spec.resize, spec.crop, spec.mean) == (40, 32, [0.1, 0.2, 0.3])
    (tmp_path / "w.yaml").write_text("backbone: resnet18\ninput: {mean: [0.1], std: [0.4, 0.5, 0.6]}\n")
    with pytest.raises(UserError, match=r"w.yaml:2.*mean has 1 values for 3 channels"):
        zoo.load(tmp_path / "w.pth")


def test_every_row_of_the_table_is_used_by_a_test_or_refuses():
    used = {title for _, _, title, _, _ in FORMS.values()}
    rows = {row.title for row in foreign.table().layouts if row.refuse is None}
    assert used == rows
    assert copy.deepcopy(foreign.table()) == foreign.table()


def shown(path, capsys):
    from zoo.__main__ import main

    assert main(["show", str(path)]) == 0
    return capsys.readouterr().out


def test_show_lists_keys_shapes_the_network_and_what_is_over(tmp_path, capsys):
    net = network()
    torch.save({**mocov3(net), "when": __import__("datetime").date(2024, 1, 1)}, tmp_path / "m.pth")
    text = shown(tmp_path / "m.pth", capsys)
    assert "looks like MoCo v3: ResNet-18 under `module.base_encoder.` in `state_dict`, 120/120 tensors" in text
    assert "left over: " in text and "beside the tensors: epoch, arch, optimizer, scaler" in text
    assert "left unread, as weights do not need them: datetime.date" in text
    assert (
        "module.base_encoder.conv1.weight" in text
        and "[64, 3, 7, 7] float32" in text
        and "state_dict: 244 tensors" in text
    )
    state = plain(network("resnet34"))
    del state["layer3.2.conv1.weight"]
    torch.save(state, tmp_path / "near.pth")
    text = shown(tmp_path / "near.pth", capsys)
    assert "nearest network: ResNet-34 at the top level: 215 of 216 tensors; missing layer3.2.conv1.weight" in text
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(UserError, match="a whole pickled module"):
        shown(tmp_path / "whole.pth", capsys)
