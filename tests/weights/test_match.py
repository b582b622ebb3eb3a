"""The contract of names and shapes: complete, or an error that names every tensor in the way."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from zoo.errors import UserError
from zoo.weights import follow, match, rename, select

MODEL = {"conv1.weight": (8, 3, 3, 3), "bn1.weight": (8,), "bn1.num_batches_tracked": ()}


def layout(path=None, rules=(("^module\\.", ""),), ignore=("head.*",), **heads):
    return SimpleNamespace(path=path, rules=list(rules), ignore=list(ignore), heads=heads)


def file(**changes):
    shapes = {f"module.{k}": v for k, v in MODEL.items()} | {"module.head.weight": (4, 8)}
    shapes.update({k.replace("__", "."): v for k, v in changes.items()})
    return {k: v for k, v in shapes.items() if v is not None}


def test_a_complete_file_is_reported_in_one_line(capsys):
    report = match(file(), MODEL, layout())
    assert report.ok and report.matched == report.total == 3 and report.ignored == ("module.head.weight",)
    assert report.mapping["conv1.weight"] == "module.conv1.weight"
    report.require("x", "here")
    assert capsys.readouterr().err == "x: 3/3 backbone tensors; ignored: 1 tensor (module.head.weight)\n"


def test_tensors_of_a_named_head_are_counted_as_such():
    shapes = file(module__head__bias=(4,), module__queue=(9, 9))
    report = match(shapes, MODEL, layout(ignore=["queue"], projection=["head.*"]))
    assert report.ok
    assert report.heads == {"projection": {"head.weight": "module.head.weight", "head.bias": "module.head.bias"}}
    assert report.line() == "3/3 backbone tensors; ignored: 2 head tensors, 1 other (module.queue)"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"module__bn1__weight": None}, ["2 of 3", "missing bn1.weight"]),
        ({"module__bn2__weight": (8,)}, ["unexpected module.bn2.weight", "neither matched nor ignored"]),
        ({"module__conv1__weight": (8, 1, 3, 3)}, ["conv1.weight has shape [8, 1, 3, 3] in the file and [8, 3, 3, 3]"]),
        ({"conv1__weight": (8, 3, 3, 3)}, ["conv1.weight is claimed by both module.conv1.weight and conv1.weight"]),
    ],
)
def test_one_tensor_missing_extra_wrong_or_doubled_is_an_error_that_names_it(changes, words, capsys):
    report = match(file(**changes), MODEL, layout())
    assert not report.ok
    with pytest.raises(UserError) as caught:
        report.require("swav_x", "zoo/methods/swav.yaml:7")
    for word in [*words, "swav_x", "zoo/methods/swav.yaml:7", "Nothing was loaded"]:
        assert word in str(caught.value)
    assert not capsys.readouterr().err


def test_a_glob_that_ignores_everything_cannot_hide_a_missing_tensor():
    report = match(file(module__bn1__weight=None), MODEL, layout(ignore=["*"]))
    assert report.missing == ("bn1.weight",) and not report.ok


def test_two_tensors_may_not_become_one_inside_a_head():
    shapes = file(module__head__weight=None, a__head__weight=(4, 8), b__head__weight=(4, 8))
    report = match(shapes, MODEL, layout(rules=[("^(module|a|b)\\.", "")], top=["head.*"]))
    assert report.twice == (("head.weight", "a.head.weight", "b.head.weight"),) and not report.ok


def test_counters_that_old_files_lack_are_filled_and_said():
    report = match(file(module__bn1__num_batches_tracked=None), MODEL, layout())
    assert report.ok and report.filled == ("bn1.num_batches_tracked",)
    assert "1 batch-norm counter absent from this old file set to 0" in report.line()


def test_a_counter_missing_beside_others_is_an_error():
    model = MODEL | {"bn2.num_batches_tracked": ()}
    assert match(file(), model, layout()).missing == ("bn2.num_batches_tracked",)


def test_every_single_change_of_a_complete_file_is_noticed():
    for key in [k for k in file() if "head" not in k and "num_batches" not in k]:
        assert not match(file(**{key.replace(".", "__"): None}), MODEL, layout()).ok
        assert not match(file(**{key.replace(".", "__"): (7, 7)}), MODEL, layout()).ok
    for a, b in itertools.permutations([k for k in file() if "head" not in k], 2):
        shapes = file()
        shapes[a + ".renamed"] = shapes.pop(a)
        shapes[b] = shapes[b] + (1,)
        assert not match(shapes, MODEL, layout()).ok


def test_rules_apply_in_order():
    assert (
        rename("features.module.0.weight", [("^features\\.module\\.", "features."), ("^features\\.0\\.", "conv1.")])
        == "conv1.weight"
    )


class FakeTensor:
    def __init__(self, shape):
        self.shape = shape


def test_layouts_are_tried_in_order_and_the_nearest_one_is_blamed():
    tensors = {k: FakeTensor(s) for k, s in file().items()}
    layouts = [layout("model"), layout(None), layout("state_dict")]
    assert select({"epoch": 3, "state_dict": tensors}, layouts, MODEL, "x").layout is layouts[2]
    assert select(tensors, layouts, MODEL, "x").layout is layouts[1]
    del tensors["module.bn1.weight"]
    nearest = select(tensors, [layout(None, rules=[]), layout(None)], MODEL, "x")
    assert nearest.report.missing == ("bn1.weight",)
    with pytest.raises(UserError, match="no 'model' at the top level.*holds epoch, not only tensors"):
        select({"epoch": 3}, layouts[:2], MODEL, "x")


def test_a_dotted_path_leads_into_the_file():
    inner = {"w": FakeTensor((1,))}
    assert follow({"a": {"b": inner}}, "a.b")[0] is inner
    assert follow({"a": {"b": inner}}, "a.c") == (None, "no 'c' at 'a' (b)")
    assert follow({"a": [1]}, "a") == (None, "'a' holds list, not tensors by name")
    assert follow({}, None) == ({}, "")  # the weights of raw pixels
