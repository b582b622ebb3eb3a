"""Every family's files, built from the authors' own lists of keys and shapes, against the registry's layouts."""

from __future__ import annotations

import argparse
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from golden import load
from zoo import fetch, loading
from zoo.backbones import build
from zoo.errors import UserError
from zoo.weights import rename, select

SWAV, DEEPER = load("swav/state_dict_shapes.json"), load("deepercluster/state_dict_shapes.json")
SELA, PIC = load("sela/state_dict_keys.json"), load("pic/state_dict_keys.json")


def shapes_of(family, name):
    return family.checked(name, "matched tensor by tensor against the registry's layouts")


class Shape:
    """All that matching needs of a tensor."""

    def __init__(self, shape):
        self.shape = tuple(shape)


def tensors(shapes, prefix=""):
    return {prefix + key: Shape(shape) for key, shape in shapes.items()}


def swav(name, **more):
    keys = dict(shapes_of(SWAV, name)["keys"]) | more
    return tensors(keys, "module."), tensors(keys)


def w5(second):
    keys = shapes_of(SWAV, "resnet50w5_backbone_only")["keys"] | {
        "projection_head.0.weight": [10240, 10240],
        "projection_head.0.bias": [10240],
        f"projection_head.{second}.weight": [128, 10240],
        f"projection_head.{second}.bias": [128],
        "prototypes.weight": [3000, 128],
    }
    return tensors(keys, "module.")


def deeper(name, wrapped=True):
    state = tensors(shapes_of(DEEPER, name))
    more = ("epoch", "start_iter", "optimizer", "pred_layer_state_dict", "optimizer_pred_layer")
    return {**dict.fromkeys(more, 1), "state_dict": state} if wrapped else state


def with_head(tree, name, shape):
    return {**tree, "state_dict": {**tree["state_dict"], name: Shape(shape)}}


def old(state):
    """A file from before PyTorch 0.4.1: no counters."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def pic(name, **more):
    return {
        "opt": argparse.Namespace(aug="SimCLR"),
        "model": tensors(shapes_of(PIC, name)),
        "epoch": 1955,
        "optimizer": {},
        **more,
    }


def official_moco(head):
    """facebookresearch/moco's keys, from PIC's list: encoder -> encoder_q, and its own names for the head."""
    state = {}
    for key, shape in shapes_of(PIC, "MoCo v2 (epochs 100/200)").items():
        key = key.replace("module.encoder.", "module.encoder_q.")
        for ours, theirs in head.items():
            key = key.replace(f".{ours}.", f".{theirs}.")
        state[key] = Shape(shape)
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": {}}


FULL_V2 = {"fc1": "fc.0", "fc2": "fc.2"}
DP = "deepcluster_{} (checkpoint state_dict, features in DataParallel)"
DDP = "deepercluster_{} (checkpoint state_dict, DDP)"
ALEX, RESV2 = (
    "alexnet-10x3k-wRot.pth (flat state_dict; arch alexnet, 10 heads of 3000)",
    "resnet-10x3k.pth (flat state_dict; arch resnetv2, 10 heads of 3000)",
)
PP = "resnet{}_pp.pth['state_dict'] (torchvision resnet{} = head 0)"


def sela(name):
    return tensors(shapes_of(SELA, name))


def data_parallel(state):
    return {key.replace("features.", "features.module.", 1): value for key, value in state.items()}


def only(prefix):
    return next(name for name in SELA.names if name.startswith(prefix))


# id of the registry -> forms of its file; backbone tensors and head tensors that must be found
CASES = {
    "swav released": ("swav_800ep", lambda: swav("resnet50_swav")[0], 318, 10),
    "swav trained by its users": ("swav_400ep", lambda: {"epoch": 3, "optimizer": {}, "amp": {}, "state_dict": swav("resnet50_swav")[0]}, 318, 10),
    "swav without prefix": ("swav_200ep", lambda: swav("resnet50_swav")[1], 318, 10),
    "deepclusterv2": ("deepclusterv2_800ep", lambda: swav("resnet50_deepclusterv2")[0], 318, 12),
    "selav2, one head": ("selav2_400ep", lambda: swav("resnet50_swav")[0], 318, 10),
    "selav2, three heads": ("selav2_400ep_2x224", lambda: swav("resnet50_deepclusterv2")[0], 318, 12),
    "swav w2": ("swav_rn50w2_400ep", lambda: swav("resnet50w2_swav")[0], 318, 10),
    "swav w4": ("swav_rn50w4_400ep", lambda: swav("resnet50w4_swav")[0], 318, 10),
    "swav w5, head without batch norm": ("swav_rn50w5_400ep", lambda: w5(2), 318, 5),
    "swav w5, numbered as with it": ("swav_rn50w5_400ep", lambda: w5(3), 318, 5),
    "deepercluster": ("deepercluster_vgg16_yfcc", lambda: deeper(DDP.format("sobel")), 95, 0),
    "deepercluster with its head": (
        "deepercluster_vgg16_yfcc",
        lambda: with_head(deeper(DDP.format("sobel")), "module.pred_layer.weight", (16, 4096)),
        95,
        1,
    ),
    "deepercluster, bare": ("deepercluster_vgg16_yfcc", lambda: deeper("deepercluster_sobel (Net, no prefix)", False), 95, 0),
    "deepercluster, old": ("deepercluster_vgg16_yfcc", lambda: {"state_dict": old(deeper(DDP.format("sobel"))["state_dict"])}, 95, 0),
    "deepcluster in deepercluster's code": ("deepcluster_vgg16_yfcc", lambda: deeper(DDP.format("sobel")), 95, 0),
    "rotnet vgg, rgb": ("rotnet_vgg16_yfcc", lambda: deeper(DDP.format("rgb")), 95, 0),
    "rotnet vgg, sobel": ("rotnet_vgg16_imagenet", lambda: deeper(DDP.format("sobel")), 95, 0),
    "deepcluster vgg": ("deepcluster_vgg16_imagenet", lambda: {"epoch": 1, "arch": "vgg16", "state_dict": tensors(shapes_of(DEEPER, DP.format("vgg16")))}, 95, 2),
    "deepcluster alexnet": (
        "deepcluster_alexnet_imagenet",
        lambda: {"epoch": 1, "arch": "alexnet", "state_dict": tensors(shapes_of(DEEPER, DP.format("alexnet"))), "optimizer": {}},
        39,
        2,
    ),
    "deepcluster alexnet, old": ("deepcluster_alexnet_imagenet", lambda: {"state_dict": old(tensors(shapes_of(DEEPER, DP.format("alexnet"))))}, 39, 2),
    "rotnet alexnet": ("rotnet_alexnet_imagenet", lambda: {"epoch": 50, "network": tensors(shapes_of(DEEPER, "rotnet_repo_alexnet (key 'network')"))}, 47, 2),
    "rotnet nin": ("rotnet_nin_cifar10", lambda: {"epoch": 200, "network": tensors(shapes_of(DEEPER, "rotnet_repo_nin4_cifar10 (key 'network')"))}, 72, 2),
    "rotnet nin, old": ("rotnet_nin_cifar10", lambda: {"network": old(tensors(shapes_of(DEEPER, "rotnet_repo_nin4_cifar10 (key 'network')")))}, 72, 2),
    "sela alexnet": ("sela_alexnet_10x3k_rot", lambda: sela(ALEX), 39, 20),
    "sela alexnet with a rotation head": (
        "sela_alexnet_10x3k_rot",
        lambda: sela(ALEX) | {"top_layer10.weight": Shape((4, 4096)), "top_layer10.bias": Shape((4,))},
        39,
        22,
    ),
    "sela alexnet, a training checkpoint": (
        "sela_alexnet_10x3k_rot",
        lambda: {"epoch": 2, "arch": "alexnet", "state_dict": data_parallel(sela(ALEX)), "optimizer": {}, "L": 1},
        39,
        20,
    ),
    "sela alexnet, one head": ("sela_alexnet_10x3k_rot", lambda: sela("own alexnet big, 1 head of 1000"), 39, 2),
    "sela resnet": ("sela_resnet50v2_10x3k", lambda: sela(RESV2), 293, 20),
    "sela resnet, wrapped": ("sela_resnet50v2_10x3k", lambda: {f"module.{k}": v for k, v in sela(RESV2).items()}, 293, 20),
    "sela aug++ 18": ("sela_rn18_1k_aug", lambda: {"state_dict": sela(only("resnet18-1k_pp")), "labels": Shape((1, 9))}, 120, 2),
    "sela aug++ 50": ("sela_rn50_1k_aug", lambda: {"state_dict": sela(only("resnet50-1k_pp")), "L": Shape((1, 9))}, 318, 2),
    "sela aug++ 50, ten heads": ("sela_rn50_10x3k_aug", lambda: {"state_dict": sela(only("resnet50-10x3k_pp")), "labels": Shape((10, 9))}, 318, 2),
    "pic": ("pic_400ep", lambda: pic("PIC (epochs 200/400)", amp={}, sampler={"start_index": 7}, scheduler={}), 318, 5),
    "instdisc": ("instdisc_pic_200ep", lambda: pic("InstDisc (epochs 200/400)"), 318, 5),
    "moco v2 by pic": ("mocov2_pic_200ep", lambda: pic("MoCo v2 (epochs 100/200)"), 318, 6),
    "simclr by pic": ("simclr_pic_200ep", lambda: pic("SimCLR (script, not released)"), 318, 4),
    "moco v1": ("mocov1_200ep", lambda: {**official_moco({}), "state_dict": {k.replace("module.encoder.", "module.encoder_q."): Shape(s) for k, s in shapes_of(PIC, "MoCo v1 (script, not released)").items()}}, 318, 4),
    "moco v2": ("mocov2_800ep", lambda: official_moco(FULL_V2), 318, 6),
    "unmix moco v2": ("unmix_mocov2_200ep", lambda: official_moco(FULL_V2), 318, 6),
}  # fmt: skip


def cifar_moco():
    """Un-Mix's and MoCo's CIFAR demonstration: a ResNet-18 inside `net`, numbered, and its momentum copy."""
    at = {"conv1": 0, "bn1": 1, "layer1": 3, "layer2": 4, "layer3": 5, "layer4": 6}
    state = {"queue": Shape((128, 4096)), "queue_ptr": Shape((1,))}
    for copy in ("encoder_q", "encoder_k"):
        for key, shape in loading.expected_shapes(zoo.entry("unmix_mocov1_cifar10_1000ep").backbone).items():
            room, _, rest = key.partition(".")
            state[f"{copy}.net.{at[room]}.{rest}"] = Shape(shape)
        state |= {f"{copy}.net.9.weight": Shape((128, 512)), f"{copy}.net.9.bias": Shape((128,))}
    return {"epoch": 1000, "state_dict": state, "optimizer": {}}


CASES["unmix on cifar"] = ("unmix_mocov1_cifar10_1000ep", cifar_moco, 120, 4)
CASES["moco on cifar"] = ("mocov1_unmix_cifar100_1000ep", cifar_moco, 120, 4)

BACKBONES = {
    "deepcluster_alexnet": {"name": "alexnet", "filters": "big", "stem": "deepcluster_sobel"},
    "deepcluster_vgg16": {"name": "vgg16", "stem": "deepcluster_sobel"}, "deepercluster_rgb": {"name": "vgg16", "stem": "deepercluster_rgb"},
    "resnet18": "resnet18", "resnetv2": "resnet50v2", "resnetv1": "resnet50", "resnet50": "resnet50",
    "alexnet small": {"name": "alexnet", "filters": "small"}, "alexnet": "alexnet",
    "PIC": "resnet50", "InstDisc": "resnet50", "MoCo": "resnet50", "SimCLR": "resnet50", "linear": "resnet50",
}  # fmt: skip


BARE = [
    "deepercluster_rgb (Net, no prefix)",
    "deepcluster_vgg16 (module, out=10000)",
    "deepcluster_alexnet (module, out=10000)",
]


@pytest.mark.parametrize("name", [*SELA.names, *PIC.names, *BARE])
def test_every_list_of_the_authors_fits_a_layout_of_the_registry(name):
    shapes = shapes_of(next(family for family in (SELA, PIC, DEEPER) if name in family.names), name)
    spec = next(spec for word, spec in BACKBONES.items() if word in name)
    for tree in (tensors(shapes), {"state_dict": tensors(shapes)}, {"model": tensors(shapes)}):
        if select(tree, loading._every_layout(), loading.expected_shapes(spec), name).report.ok:
            return
    pytest.fail(f"no layout accounts for {name}")


def place(tree, layout):
    node = tree
    for step in layout.path.split(".") if layout.path else ():
        node = node[step]
    return node


@pytest.mark.parametrize("case", CASES)
def test_a_familys_file_is_accounted_for_tensor_by_tensor(case):
    model, make, backbone, head = CASES[case]
    source, tree = loading.origin(model), make()
    spec, choice = loading.fit(source, tree)
    report = choice.report
    assert report.ok, report.problems()
    assert report.total == backbone and sum(len(keys) for keys in report.heads.values()) == head
    state, expected = place(tree, choice.layout), loading.expected_shapes(spec)
    used = list(report.mapping.values())
    assert len(set(used)) == len(used) and set(used) | set(report.ignored) == set(state)
    for change, word in one_wrong_tensor(state, used):
        wrong = change if choice.layout.path is None else {**tree, choice.layout.path: change}
        bad = select(wrong, [choice.layout], expected, case).report
        assert not bad.ok
        with pytest.raises(UserError) as caught:
            bad.require(model, source.where)
        assert all(part in str(caught.value) for part in word)
        assert f"{source.entry.file}:{source.entry.line}" in str(caught.value) and "Nothing was loaded" in str(
            caught.value
        )


def one_wrong_tensor(state, used):
    """One tensor less, one more, one of another shape; and the words of the error that name it."""
    rng = np.random.default_rng(0)
    victim = [key for key in used if not key.endswith("num_batches_tracked")][int(rng.integers(0, 30))]
    name = victim.rsplit(".", 1)[1]
    yield {key: value for key, value in state.items() if key != victim}, ("missing", f".{name}. Nothing was loaded")
    yield {**state, "module.surprise.weight": Shape((3,))}, ("unexpected module.surprise.weight",)
    yield {**state, victim: Shape((*state[victim].shape, 2))}, (f"{name} has shape",)


def test_every_released_entry_has_a_case():
    covered = {zoo.entry(model).id for model, *_ in CASES.values()}
    layouts = [zoo.entry(model).weights.layouts for model in covered if zoo.entry(model).weights]
    released = [model for model in zoo.models() if zoo.entry(model).weights is not None]
    alone = [m for m in released if zoo.entry(m).weights.layouts not in layouts]
    assert len(released) > 25 and not alone, "these entries have a layout that no case above builds"


def test_the_clean_up_of_keys_is_the_original_loaders_and_more():
    rules = [
        *zoo.entry("deepercluster_vgg16_yfcc").layouts[0].rules,
        *zoo.entry("deepcluster_alexnet_imagenet").layouts[0].rules,
    ]
    g = load("deepercluster/rename_key.json")
    for key in g.names:
        theirs = g.checked(key, "a bare body. is ours to strip")["deepercluster_loader"]
        assert rename(key, rules) == theirs.removeprefix("body.")


def test_a_sobel_file_is_not_taken_for_an_rgb_one():
    source = loading.origin("deepercluster_vgg16_yfcc")
    report = loading.fit(source, deeper(DDP.format("rgb")))[1].report
    with pytest.raises(UserError, match=r"features.0.weight has shape \[64, 3, 3, 3\] in the file and \[64, 2, 3, 3\]"):
        report.require(source.name, source.where)
    assert (
        loading.fit(loading.origin("rotnet_vgg16_yfcc"), deeper(DDP.format("sobel")))[0]["options"]["stem"]
        == "deepercluster_sobel"
    )


# ---------------------------------------------------------------- small ones as real files


@pytest.fixture
def release(tmp_path, monkeypatch):
    """Put a file in the place of a released one."""

    def put(model, tree, **options):
        torch.save(tree, tmp_path / model, **options)
        monkeypatch.setattr(fetch, "path", lambda name, head=None, progress=True: tmp_path / model)
        return tmp_path / model

    return put


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


@torch.no_grad()
def test_rotnets_nin_loads_with_its_rotation_head_from_an_old_file(release):
    net, fc = build("nin").eval(), nn.Linear(192, 4)
    state = {}
    for key, value in net.state_dict().items():
        _, block, number, kind, last = key.split(".")
        kind = {"conv": "Conv", "bn": "BatchNorm"}[kind]
        if last != "num_batches_tracked":
            state[f"_feature_blocks.{block}.Block{int(block) + 1}_ConvB{number}.layers.{kind}.{last}"] = value
    state |= prefixed("_feature_blocks.4.Classifier.", fc.state_dict())
    release("rotnet_nin_cifar10", {"epoch": 200, "network": state}, _use_new_zipfile_serialization=False)
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(zoo.load("rotnet_nin_cifar10")(x), net(x))
    out = zoo.load("rotnet_nin_cifar10", part="full")(x)
    assert torch.allclose(out["rotation"], fc(net(x)), atol=1e-6)


@torch.no_grad()
def test_selas_aug_file_gives_backbone_head_and_pseudolabels(release):
    net, fc = build("resnet18").eval(), nn.Linear(512, 1000)
    labels = torch.randint(0, 1000, (1, 40))
    release("sela_rn18_1k_aug", {"state_dict": net.state_dict() | prefixed("fc.", fc.state_dict()), "labels": labels})
    x = torch.randn(1, 3, 64, 64)
    full = zoo.load("sela_rn18_1k_aug", part="full")(x)
    assert torch.allclose(full["clusters"], fc(net(x)), atol=1e-5)
    found = zoo.pseudolabels("sela_rn18_1k_aug")
    assert torch.equal(found.labels, labels) and found.labels.dtype == torch.int64 and found.images is None
    release("sela_rn18_1k_aug", {"state_dict": {}, "L": labels.int()})
    assert torch.equal(zoo.pseudolabels("sela_rn18_1k_aug").labels, labels)
    release("sela_rn18_1k_aug", {"state_dict": {}, "L": labels + 1000})
    with pytest.raises(UserError, match="0 to 999 is expected"):
        zoo.pseudolabels("sela_rn18_1k_aug")
    release("sela_rn18_1k_aug", {"state_dict": {}})
    with pytest.raises(UserError, match="no pseudo-labels under labels or L"):
        zoo.pseudolabels("sela_rn18_1k_aug")
    with pytest.raises(
        UserError, match="swav_800ep: no pseudo-labels were released .they were for: .*sela_rn18_1k_aug"
    ):
        zoo.pseudolabels("swav_800ep")


@torch.no_grad()
def test_pics_file_with_its_options_and_counters_loads(release, capsys):
    net = build("resnet50").eval()
    mlp = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 128))
    head = {"fc1.weight": mlp[0].weight, "fc1.bias": mlp[0].bias, "fc2.weight": mlp[2].weight, "fc2.bias": mlp[2].bias}
    model = prefixed("module.encoder.", net.state_dict() | head) | {"module.sim_matrix": torch.randn(9, 128)}
    tree = {
        "opt": argparse.Namespace(data_root="./data", crop=0.08, epochs=1955, lr_decay_epochs=[120, 160]),
        "model": model,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.03, "params": [0]}]},
        "scheduler": {
            "multiplier": 100,
            "last_epoch": np.int64(7),
            "after_scheduler": {"base_lrs": [np.float64(0.03)]},
        },
        "epoch": 1955,
        "sampler": {"start_index": 16384},
    }
    release("pic_400ep", tree)
    x = torch.randn(1, 3, 64, 64)
    full = zoo.load("pic_400ep", part="full")
    assert torch.allclose(full(x)["projection"], mlp(net(x)), atol=1e-5)
    assert torch.equal(full.heads["classes"].sim_matrix, model["module.sim_matrix"])
    assert "pic_400ep: 318/318 backbone tensors; ignored: 5 head tensors" in capsys.readouterr().err


def test_tables_of_pseudolabels_are_read_with_and_without_header_and_names(tmp_path, monkeypatch):
    path = tmp_path / "labels.csv"
    monkeypatch.setattr(fetch, "path", lambda name, head=None, progress=True: path)
    labels = np.random.default_rng(0).integers(0, 3000, (7, 10))
    rows = [",".join(map(str, row)) for row in labels]
    forms = [
        rows,
        [",".join(f"head{i}" for i in range(10)), *rows],
        ["," + ",".join(map(str, range(10))), *(f"{i},{row}" for i, row in enumerate(rows))],
        [row.replace(",", ".0,") for row in rows],
    ]
    for lines in forms:
        path.write_text("\n".join(lines) + "\n")
        found = zoo.pseudolabels("sela_alexnet_10x3k")
        assert torch.equal(found.labels, torch.from_numpy(labels).T) and found.images is None
    path.write_text("\n".join(f"train/{i}.jpg,{row}" for i, row in enumerate(rows)))
    assert zoo.pseudolabels("sela_alexnet_10x3k").images == [f"train/{i}.jpg" for i in range(7)]
    for lines, words in (
        ([*rows, "1,2,3"], "labels.csv:8: '1,2,3' is not 10|labels.csv:8: 3 columns"),
        ([*rows, ",".join("x" * 10)], "labels.csv:8"),
        ([], "0 images"),
        ([rows[0], rows[0].replace(rows[0].split(",")[0], "3000", 1)], "0 to 2999 is expected"),
    ):
        path.write_text("\n".join(lines))
        with pytest.raises(UserError, match=words):
            zoo.pseudolabels("sela_alexnet_10x3k")


def test_deepclusters_assignments_are_read_without_running_anything(tmp_path, monkeypatch):
    path = tmp_path / "alexnet_cluster_assignment.pickle"
    monkeypatch.setattr(fetch, "path", lambda name, head=None, progress=True: path)
    pairs = [("n02/b.JPEG", 9999), ("n01/a.JPEG", 0), ("n03/c.JPEG", np.int64(5))]
    for protocol in (0, 2, 4):
        path.write_bytes(pickle.dumps(pairs, protocol))
        found = zoo.pseudolabels("deepcluster_alexnet_imagenet")
        assert found.images == ["n01/a.JPEG", "n02/b.JPEG", "n03/c.JPEG"] and found.labels.tolist() == [[0, 9999, 5]]
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "witness").encode() + b"'\ntR.")
    with pytest.raises(UserError, match="refused: the file asks for os.system"):
        zoo.pseudolabels("deepcluster_alexnet_imagenet")
    assert not (tmp_path / "witness").exists()
    path.write_bytes(pickle.dumps(pairs)[:-7])
    with pytest.raises(UserError, match="truncated, damaged"):
        zoo.pseudolabels("deepcluster_alexnet_imagenet")
    path.write_bytes(pickle.dumps(3))
    with pytest.raises(UserError, match="not a list of"):
        zoo.pseudolabels("deepcluster_alexnet_imagenet")
