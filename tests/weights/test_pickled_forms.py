"""What stands beside weights, and how it was pickled: every protocol is read, extras are left unread, programs and modules
are refused with a next step that works when it is done."""

from __future__ import annotations

import argparse
import collections
import copyreg
import datetime
import decimal
import fractions
import io
import os
import pathlib
import pickle
import re
import struct
import sys
import types
import typing
import uuid
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from zoo.backbones import build
from zoo.checkpoint_reader import read
from zoo.errors import UserError

FORMS = [(protocol, old) for protocol in (2, 3, 4, 5) for old in (False, True)]
DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128,
)  # fmt: skip


def save(path, value, protocol=2, old=False):
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not old)
    return path


def rich():
    whole = torch.arange(24.0).reshape(4, 6)
    return {
        "dtypes": {str(kind): torch.arange(5).to(kind) for kind in DTYPES},
        "views": [whole, whole[1:3, ::2], whole.T, whole[:0], torch.tensor(2.5), whole.expand(3, 4, 6)],
        "parameter": nn.Parameter(torch.ones(2), requires_grad=False),
        "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
        "counter": collections.Counter("aab"),
        "set": {1, 2},
        "frozen": frozenset({3}),
        "bytes": b"\x00\xff",
        "text": "ä" * 300,
        "numbers": [1, 2**70, -3, 0.5, 1 + 2j, None, True],
        "tuple": (1, (2, (3, 4))),
        "array": np.arange(6.0).reshape(2, 3).T,
        "scalar": np.float64(1.5),
        "integers": np.array([1, 2], dtype=">i2"),
        "namespace": argparse.Namespace(lr=0.1, sizes=[1, 2]),
        "state": nn.BatchNorm1d(3).state_dict(),
    }


def same(a, b) -> bool:
    if isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(b, np.ndarray):
        return a.shape == b.shape and np.array_equal(a, b) and a.dtype == b.dtype.newbyteorder("=")
    if isinstance(b, argparse.Namespace):
        return same(vars(a), vars(b))
    if isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in b)
    if isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("protocol, old", FORMS)
def test_every_pickle_protocol_in_both_formats_gives_back_what_was_saved(tmp_path, protocol, old):
    tree = rich()
    back = read(save(tmp_path / "x.pth", tree, protocol, old))
    assert list(back) == list(tree)
    for name in tree:
        assert same(back[name], tree[name]), name
    assert back["views"][0].data_ptr() == back["views"][2].data_ptr(), "tensors that share memory still do"
    assert not back.unread


@pytest.mark.parametrize("old", [False, True])
def test_the_reader_agrees_with_pytorchs_own(tmp_path, old):
    """torch.load with weights_only=True is the other reader of the same files; it knows protocol 2 alone."""
    path = save(
        tmp_path / "x.pth",
        {k: v for k, v in rich().items() if k not in ("namespace", "array", "scalar", "integers", "frozen")},
        2,
        old,
    )
    theirs = torch.load(path, weights_only=True)
    assert same(dict(read(path)), theirs)


@pytest.mark.parametrize("name", ["uint16", "uint32", "float8_e4m3fn"])
def test_newer_number_types_are_read(tmp_path, name):
    value = torch.arange(4).to(getattr(torch, name))
    back = read(save(tmp_path / "x.pth", {"w": value}))["w"]
    assert back.dtype == value.dtype and torch.equal(back.view(torch.uint8), value.view(torch.uint8))


# ---------------------------------------------------------------- extras beside the weights


class Config(dict):
    """Stands for a configuration class of another library."""


def named(cls: type, module: str, name: str) -> type:
    """``cls`` as if it were ``module.name``, so that pickle writes that name."""
    made = type(name, (cls,), {"__module__": module})
    parts = module.split(".")
    for i in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
    setattr(sys.modules[module], name, made)
    return made


def history():
    """mmengine's HistoryBuffer: an object with arrays and a function of its own class."""
    buffer = named(types.SimpleNamespace, "mmengine.logging.history_buffer", "HistoryBuffer")
    buffer.mean = lambda self: 0
    buffer.mean.__module__, buffer.mean.__qualname__ = "mmengine.logging.history_buffer", "HistoryBuffer.mean"
    return buffer(_log=np.arange(3.0), _methods={"mean": buffer.mean})


EXTRAS = {
    "a path": lambda: pathlib.PurePosixPath("/data/imagenet"),
    "a path of Windows": lambda: pathlib.PureWindowsPath("C:/data"),
    "this system's path": lambda: pathlib.Path("data"),
    "a moment": lambda: datetime.datetime(2024, 5, 1, 12, 30, tzinfo=datetime.timezone.utc),
    "a duration": lambda: datetime.timedelta(hours=3),
    "options with a path": lambda: argparse.Namespace(data=pathlib.Path("data"), when=datetime.date(2024, 5, 1)),
    "a dictionary with defaults": lambda: collections.defaultdict(list, {"loss": [1.0, 2.0]}),
    "a queue": lambda: collections.deque([1, 2], maxlen=5),
    "a plain namespace": lambda: types.SimpleNamespace(a=1),
    "an identifier": lambda: uuid.uuid4(),
    "exact numbers": lambda: [decimal.Decimal("1.5"), fractions.Fraction(1, 3)],
    "a type": lambda: typing.Any,
    "PyTorch's version": lambda: torch.__version__,
    "a random state": lambda: np.random.RandomState(0),
    "a generator": lambda: np.random.default_rng(0),
    "omegaconf": lambda: named(Config, "omegaconf.dictconfig", "DictConfig")({"lr": 0.1}),
    "yacs": lambda: named(Config, "yacs.config", "CfgNode")({"lr": 0.1}),
    "Lightning's hyper-parameters": lambda: named(Config, "lightning.fabric.utilities.data", "AttributeDict")(lr=1),
    "a callback of Lightning as a key": lambda: {named(object, "pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"): {"best": 1}},
    "mmengine's log": history,
}  # fmt: skip


@pytest.mark.parametrize("what", EXTRAS)
@pytest.mark.parametrize("protocol, old", [(2, False), (2, True), (4, False), (5, True)])
def test_what_merely_stands_beside_the_weights_does_not_keep_them_from_loading(tmp_path, what, protocol, old):
    weights = nn.Linear(3, 2).state_dict()
    known = set(sys.modules)
    back = read(
        save(
            tmp_path / "x.pth",
            {"before": [1], "extra": EXTRAS[what](), "state_dict": weights, "epoch": 7},
            protocol,
            old,
        )
    )
    assert same(back["state_dict"], weights) and back["epoch"] == 7 and back["before"] == [1]
    assert back.unread, "what was left out is named"
    for name in set(sys.modules) - known:
        del sys.modules[name]


def test_entries_of_a_mapping_that_is_left_unread_are_kept(tmp_path):
    """Weights inside a configuration class or a dictionary with defaults are weights."""
    weights = nn.Linear(3, 2).state_dict()
    back = read(save(tmp_path / "x.pth", {"state_dict": collections.defaultdict(list, weights)}))
    assert back.unread == ("collections.defaultdict", "builtins.list") or "collections.defaultdict" in back.unread
    assert same(dict(back["state_dict"]), dict(weights))


# ---------------------------------------------------------------- refused, with a next step that works


def network():
    torch.manual_seed(0)
    return build({"name": "tiny_resnet", "width": 16, "in_channels": 3}).eval()


def follow(message: str, path, **names) -> None:
    """Do what a message says: the ``torch.save(…)`` in it, with the names that its reader has, in the folder of ``path``."""
    steps = re.findall(r'torch\.save\(.*?, "weights\.pth"\)', message)
    assert len(steps) == 1, message
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        exec(steps[0], {"torch": torch, **names})  # noqa: S102
    finally:
        os.chdir(before)


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_is_called_one_and_the_printed_step_gives_its_weights(tmp_path):
    net = network()
    path = tmp_path / "clip.pt"
    torch.jit.save(torch.jit.trace(net, torch.randn(1, 3, 32, 32)), str(path))
    with pytest.raises(UserError, match=r"refused: a TorchScript archive \(torch.jit.save\)") as caught:
        zoo.load(path)
    follow(str(caught.value), path)
    other = build({"name": "tiny_resnet", "width": 16, "in_channels": 3}).eval()
    assert zoo.load_weights(other, tmp_path / "weights.pth").ok
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(other(x), net(x))


def test_an_exported_program_and_a_package_are_called_so(tmp_path):
    for member, words in (
        ("x/archive_format", "an exported program"),
        ("x/.data/extern_modules", "a package"),
        ("x/model.json", "a TorchScript archive"),
    ):
        with zipfile.ZipFile(tmp_path / "x.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, "pt2")
        with pytest.raises(UserError, match=f"refused: {words}.*weights alone: torch.save"):
            read(tmp_path / "x.pt2")


@pytest.mark.parametrize("protocol, old", [(2, False), (2, True), (4, False), (5, True)])
@pytest.mark.filterwarnings("ignore")
def test_a_whole_pickled_module_is_called_one_and_the_printed_step_gives_its_weights(tmp_path, protocol, old):
    import torchvision

    net = torchvision.models.resnet18().eval()
    path = save(tmp_path / "model.pt", net, protocol, old)
    words = r"refused: the file asks for (torch\.nn|torchvision\.models)[\w.]+, code that weights never need.*It is a whole pickled module"
    with pytest.raises(UserError, match=words) as caught:
        zoo.load(path)
    follow(str(caught.value), path, model=net)
    mine = torchvision.models.resnet18().eval()
    assert zoo.load_weights(mine, tmp_path / "weights.pth").matched >= 120
    mine.fc = net.fc = nn.Identity()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(mine(x), net(x))


def test_live_modules_beside_the_weights_are_named(tmp_path):
    tree = {"state_dict": nn.Linear(2, 2).state_dict(), "models": {"model": nn.Linear(2, 2)}}
    with pytest.raises(
        UserError,
        match=r"torch.nn.modules.linear.Linear, code .*It holds live modules beside its weights.*state_dict\(\)",
    ):
        read(save(tmp_path / "x.ckpt", tree))


def test_a_plain_pickle_is_called_one(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": {"w": np.ones(2)}}))
    with pytest.raises(UserError, match=r"x.pkl: .*a plain pickle \(a dict with model\), not a file of torch.save"):
        read(tmp_path / "x.pkl")


# ---------------------------------------------------------------- nothing runs


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol, old", FORMS)
@pytest.mark.parametrize("how", ["a call", "a factory", "an attribute", "an extension", "a state"])
def test_no_protocol_and_no_detour_runs_code(tmp_path, protocol, old, how):
    witness = tmp_path / "witness"
    bad = Call(os.system, f"touch {witness}")
    if how == "a factory":
        bad = Call(collections.defaultdict, os.system)
    elif how == "an attribute":
        bad = Call(getattr, Call(os.getenv, "HOME"), "upper")
    elif how == "a state":
        bad = Stateful(witness)
    elif how == "an extension":
        copyreg.add_extension("posix", "system", 240)
    try:
        save(tmp_path / "x.pth", {"state_dict": {"w": torch.ones(1)}, "x": bad}, protocol, old)
    finally:
        if how == "an extension":
            copyreg.remove_extension("posix", "system", 240)
    with pytest.raises(UserError, match="refused: the file asks for|an operation that checkpoints never need"):
        read(tmp_path / "x.pth")
    assert not witness.exists()


class Stateful:
    def __init__(self, witness):
        self.witness = witness

    def __setstate__(self, state):
        state["witness"].write_text("ran")


BOMBS = {
    "a place in the memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "a frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
    "an array of bytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "a number": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.",
    "a key that holds itself": b"\x80\x02}(N" + b"2\x86" * 60 + b"Nu.",
    "a set that holds itself": b"\x80\x04\x8f(N" + b"2\x86" * 60 + b"\x90.",
}


@pytest.mark.parametrize("what", BOMBS)
@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_that_asks_for_endless_memory_or_time_ends_at_once(tmp_path, what, old):
    good = save(tmp_path / "good.pth", {"w": torch.ones(2)}, old=old)
    path, data = tmp_path / "bomb.pth", good.read_bytes()
    if old:
        head = io.BytesIO(data)
        for _ in range(3):
            pickle.load(head)
        path.write_bytes(data[: head.tell()] + BOMBS[what])
    else:
        with zipfile.ZipFile(good) as before, zipfile.ZipFile(path, "w") as after:
            for name in before.namelist():
                after.writestr(name, BOMBS[what] if name.endswith("data.pkl") else before.read(name))
    with pytest.raises(UserError, match="bomb.pth"):
        read(path)
