"""Thousands of damaged files: each loads completely or ends in one of our own errors, and nothing in between."""

from __future__ import annotations

import argparse
import io
import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from zoo import loading
from zoo.backbones import build
from zoo.checkpoint_reader import read
from zoo.errors import UserError
from zoo.pickles import Array, Dtype, array, scalar
from zoo.registry import HERE, Registry

BOUNDED = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
SPEC = {"name": "tiny_resnet", "width": 2, "blocks": [1], "in_channels": 1}
LAYOUT = SimpleNamespace(path="state_dict", rules=[("^module\\.", "")], ignore=["extra.*"], heads={"top": ["top.*"]})
ORIGIN = loading.Origin("damaged", SPEC, None, [LAYOUT], "the registry", lambda: Path("nowhere"))
NET = build(SPEC)
STATE = {f"module.{k}": v for k, v in NET.state_dict().items()} | {"module.top.weight": torch.ones(3, 2)}
TREE = {
    "epoch": 3,
    "opt": argparse.Namespace(lr=0.1),
    "acc": np.float64(3.25),
    "rng": np.arange(5),
    "state_dict": STATE,
}


def load(path: Path) -> torch.nn.Module:
    """What zoo.load does after it has found the file; complete and finite, or UserError."""
    spec, choice = loading.fit(ORIGIN, read(path))
    choice.report.require("damaged", "the registry")
    with torch.device("meta"):
        net = build(spec)
    loading.fill(net, choice, "damaged")
    state = net.state_dict()
    assert choice.report.matched + len(choice.report.filled) == len(state) == len(NET.state_dict())
    assert all(not v.is_meta and (not v.is_floating_point() or v.isfinite().all()) for v in state.values())
    return net


def written(kind: str, folder: Path) -> bytes:
    path = folder / "whole"
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(STATE, path)
    else:
        torch.save(TREE, path, _use_new_zipfile_serialization=kind != "old")
    return path.read_bytes()


edits = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), min_size=1, max_size=6
)


def damage(data: bytes, changes: list[tuple[int, int, int]]) -> bytes:
    """Overwrite, flip, cut, insert, copy, or write a number that claims too much."""
    out = bytearray(data)
    for kind, where, value in changes:
        if not out:
            break
        i = where % len(out)
        if kind == 0:
            out[i] = value % 256
        elif kind == 1:
            out[i] ^= 1 << value % 8
        elif kind == 2:
            del out[i : i + 1 + value % 200]
        elif kind == 3:
            out[i:i] = struct.pack("<I", value)[: 1 + value % 4]
        elif kind == 4:
            j = value % len(out)
            out[i : i + 8] = out[j : j + 8]
        else:
            out[i : i + 4] = struct.pack("<I", (0, 1, 2**31 - 1, 2**32 - 1, 10**6)[value % 5])
    return bytes(out)


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors", "pickle inside a sound zip"])
def test_a_damaged_checkpoint_loads_completely_or_is_refused(tmp_path, kind, capsys):
    whole = written("zip" if kind.startswith("pickle") else kind, tmp_path)
    members = {}
    if kind.startswith("pickle"):
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    outcomes = {"whole": 0, "refused": 0}

    @settings(max_examples=400, **BOUNDED)
    @given(edits)
    def check(changes):
        data = whole
        if members:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                for name, content in members.items():
                    archive.writestr(name, damage(content, changes) if name.endswith("data.pkl") else content)
            data = buffer.getvalue()
        else:
            data = damage(whole, changes)
        (tmp_path / "damaged").write_bytes(data)
        try:
            if kind == "safetensors":
                read(tmp_path / "damaged")
            else:
                load(tmp_path / "damaged")
            outcomes["whole"] += 1
        except UserError as error:
            assert "damaged" in str(error)
            outcomes["refused"] += 1

    check()
    capsys.readouterr()
    assert outcomes["refused"] > 100 and sum(outcomes.values()) >= 400


CHANGES = (
    "drop",
    "rename",
    "grow",
    "transpose",
    "integers",
    "number",
    "text",
    "nan",
    "half",
    "extra",
    "ignored",
    "sparse",
    "wrap",
    "copy",
)


def is_sound(tree) -> bool:
    """Whether the rearranged file still holds the whole backbone and nothing unnamed, said in another way."""
    state, wanted = tree.get("state_dict"), NET.state_dict()
    if state is None or not all(isinstance(v, torch.Tensor) and v.layout == torch.strided for v in state.values()):
        return False
    names = [key.removeprefix("module.") for key in state]
    backbone = [name for name in names if not name.startswith(("top.", "extra."))]
    counters = any(name.endswith("num_batches_tracked") for name in names)
    needed = {k for k in wanted if counters or not k.endswith("num_batches_tracked")}
    if len(set(backbone)) != len(backbone) or set(backbone) != needed:
        return False
    values = {key.removeprefix("module."): value for key, value in state.items()}
    return all(
        values[k].shape == wanted[k].shape
        and values[k].is_floating_point() == wanted[k].is_floating_point()
        and bool(values[k].isfinite().all())
        for k in needed
    )


@settings(max_examples=250, **BOUNDED)
@given(st.lists(st.tuples(st.sampled_from(CHANGES), st.integers(0, 10**6)), max_size=3))
@example([])
@example([("half", 0)])
@example([("drop", 4)])
def test_a_rearranged_checkpoint_loads_exactly_when_every_tensor_is_there(tmp_path_factory, changes):
    tree = {**TREE, "state_dict": dict(STATE)}
    state = tree["state_dict"]
    for kind, number in changes:
        keys = [k for k in state if not k.startswith(("module.top", "module.extra"))]
        key = keys[number % len(keys)]
        value = state[key]
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        if kind == "drop":
            del state[key]
        elif kind == "rename":
            state[f"{key}.x"] = state.pop(key)
        elif kind == "copy":
            state[key.removeprefix("module.")] = value
        elif kind in ("number", "text"):
            state[key] = 3 if kind == "number" else "3"
        elif kind in ("extra", "ignored"):
            state[f"module.{'new' if kind == 'extra' else 'extra.'}{number}"] = torch.ones(2)
        elif kind == "wrap":
            tree = {"model": state}
        elif floating:
            changed = {
                "grow": lambda v: v.new_zeros((*v.shape, 2)),
                "transpose": lambda v: v.transpose(0, -1),
                "integers": torch.Tensor.long,
                "nan": lambda v: torch.full_like(v, float("nan")),
                "half": torch.Tensor.half,
                "sparse": lambda v: v.reshape(v.shape[0], -1).to_sparse(),
            }
            state[key] = changed[kind](value) if value.layout == torch.strided else value
    path = tmp_path_factory.getbasetemp() / "rearranged"
    torch.save(tree, path)
    sound = is_sound(tree)
    try:
        load(path)
    except UserError:
        assert not sound, changes
    else:
        assert sound, changes


NASTY = ("1e-4", "-1", "null", "[]", "{}", "true", "!!python/object/apply:os.system [ls]", "&a [*a]", "\t", ".nan", "1_0", "0x1F", "010",
         "'", '"', "{a: 1, a: 2}", "? [a]", "on", "2001-01-01", "a" * 300, "[" * 80, "\x00", "é", "<<: {}", "%YAML 1.1")  # fmt: skip


@settings(max_examples=300, **BOUNDED)
@given(
    st.sampled_from(["methods/swav.yaml", "methods/sela.yaml", "profiles.yaml"]),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**6), st.sampled_from(NASTY)), min_size=1, max_size=3),
)
def test_a_damaged_registry_file_is_read_or_refused(tmp_path_factory, name, changes):
    root = tmp_path_factory.getbasetemp() / "registry"
    (root / "methods").mkdir(parents=True, exist_ok=True)
    for known in ("methods/swav.yaml", "methods/sela.yaml", "profiles.yaml"):
        (root / known).write_bytes((HERE / known).read_bytes())
    lines = (HERE / name).read_text().splitlines()
    for kind, number, word in changes:
        i = number % len(lines)
        if kind == 0:
            lines[i] = lines[i][: number % (len(lines[i]) + 1)]
        elif kind == 1:
            lines.insert(i, lines[number * 7 % len(lines)])
        elif kind == 2:
            lines[i] = " " + lines[i]
        elif kind == 3:
            lines[i] = f"{lines[i].partition(':')[0]}: {word}"
        elif kind == 4:
            at = number % (len(lines[i]) + 1)
            lines[i] = lines[i][:at] + word + lines[i][at:]
        else:
            lines[i : i + 2] = []
            lines = lines or [""]
    (root / name).write_text("\n".join(lines))
    registry = Registry(root)
    try:
        models = registry.read().models()
    except UserError as error:
        assert "yaml" in str(error)
        return
    for model in models[number % max(len(models), 1) :][:2]:
        try:
            entry = registry.entry(model)
        except UserError as error:
            assert "yaml" in str(error)
        else:
            assert entry.id == model and entry.backbone.name and entry.input.std


# ---------------------------------------------------------------- what the fuzzing found, kept


@pytest.mark.parametrize(
    "make",
    [
        lambda: array(1, 2, 3).__setstate__((1, (10**12,), Dtype("f8"), False, b"")),
        lambda: array().__setstate__((1, (2,), np.dtype("f8"), False, bytes(16))),
        lambda: array().__setstate__((1, (2,), Dtype("f8"), False, bytes(15))),
        lambda: array().__setstate__((1, (-1,), Dtype("f8"), False, b"")),
        lambda: array().__setstate__(3),
        lambda: Dtype("O8"),
        lambda: Dtype("V16"),
        lambda: Dtype("f8").__setstate__((3, "x", None)),
        lambda: Dtype("f8").__setstate__(None),
        lambda: scalar(Dtype("f8"), bytes(7)),
        lambda: scalar(np.dtype("f8"), bytes(8)),
        lambda: scalar(Dtype("f8"), [0] * 8),
    ],
)
def test_damaged_numpy_state_never_reaches_numpy(make):
    with pytest.raises((ValueError, TypeError)):
        make()


def test_sound_numpy_state_gives_the_same_array():
    made = array()
    made.__setstate__((1, (2, 3), Dtype("<i8"), True, np.arange(6).tobytes()))
    assert isinstance(made, Array) and np.array_equal(made, np.arange(6).reshape(3, 2).T)
    big = Dtype("f4")
    big.__setstate__((3, ">", None, None, None, -1, -1, 0))
    assert scalar(big, struct.pack(">f", 2.5)) == 2.5


def test_a_request_for_endless_memory_is_refused_unread(tmp_path):
    class Greedy:
        def __reduce__(self):
            return bytearray, (1 << 40,)

    for old in (False, True):
        torch.save(
            {"state_dict": STATE, "x": Greedy()}, tmp_path / "greedy.pth", _use_new_zipfile_serialization=not old
        )
        with pytest.raises(UserError, match="refused: the file asks for .*bytearray"):
            read(tmp_path / "greedy.pth")
