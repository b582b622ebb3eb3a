"""Broken registry files end in the project's own error, never in a traceback: thousands of mutations of a sound file."""

from __future__ import annotations

import contextlib
import copy
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from zoo_fakes import METHOD, PROFILES

from zoo import yamlfile
from zoo.card import card, listing
from zoo.errors import UserError
from zoo.hub import describe
from zoo.registry import Registry
from zoo.settings import apply
from zoo.validate import validate

VALUES: list[Any] = [
    None, True, 0, -1, 10**30, 1.5, float("inf"), float("nan"), "", "x", "swav", "é\u2028", [], [None], [[]], [1, "a", {}], {}, {"name": 3},
    {"name": "sgd"}, {"name": "tiny_resnet", "options": 3}, {1: 2}, {"a": {"b": {"c": None}}}, "(", "\\9", "1e-4", "2024-01-01", "../../x",
]  # fmt: skip
QUICK = {"deadline": None, "derandomize": True, "phases": [Phase.generate], "suppress_health_check": list(HealthCheck)}


def look(folder: Path, method: str, profiles: str) -> None:
    """Everything that reads the registry, on these two files; UserError is fine, anything else is not."""
    (folder / "methods").mkdir(exist_ok=True)
    (folder / "methods/thing.yaml").write_text(method, encoding="utf-8")
    (folder / "profiles.yaml").write_text(profiles, encoding="utf-8")
    zoo = Registry(folder)
    try:
        zoo.read()
    except UserError:
        return
    for action in (lambda: listing(zoo), lambda: str(validate(zoo, networks=False))):
        with contextlib.suppress(UserError):
            action()
    for model in zoo.models():
        try:
            entry = zoo.entry(model)
        except UserError as error:
            assert str(error).strip()
            continue
        card(entry)
        describe(entry, model)
        if entry.recipe is not None:
            assert type(entry.recipe).model_validate(entry.recipe.dump()) == entry.recipe
            entry.recipe.hash()


def nodes(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(found for key, value in items for found in nodes(value, (*path, key)))]


def mutate(tree: Any, draw: random.Random) -> Any:
    """One node replaced, removed, renamed, or given a child that does not belong there."""
    tree = copy.deepcopy(tree)
    paths = nodes(tree)[1:]
    if not paths:
        return draw.choice(VALUES)
    path = draw.choice(paths)
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    way = draw.randrange(4)
    if way == 0:
        parent[path[-1]] = copy.deepcopy(draw.choice(VALUES))
    elif way == 1:
        del parent[path[-1]]
    elif way == 2 and isinstance(parent, dict):
        parent[draw.choice([f"{path[-1]}x", "", 7, None, True])] = parent.pop(path[-1])
    else:
        parent[path[-1]] = {"extra": parent[path[-1]]}
    return tree


def scratch(text: str, draw: random.Random) -> str:
    """Some characters removed, doubled or replaced."""
    for _ in range(draw.randrange(1, 4)):
        at = draw.randrange(len(text))
        text = (
            text[:at]
            + draw.choice(
                ["", text[at] * 2, "\t", ":", "{", "]", "'", "\n", "&a ", "*a", "!!x ", "- ", "#", "\x00", "€"]
            )
            + text[at + 1 :]
        )
    return text


@pytest.mark.parametrize("cases", [200, pytest.param(6000, marks=pytest.mark.slow)])
def test_trees_with_a_wrong_node_end_in_our_own_error(tmp_path, cases):
    method, profiles = yamlfile.loads(METHOD), yamlfile.loads(PROFILES)

    @settings(max_examples=cases, **QUICK)
    @given(st.randoms(use_true_random=False), st.integers(1, 3))
    def run(draw: random.Random, times: int) -> None:
        one, two = method, profiles
        for _ in range(times):
            if draw.random() < 0.8:
                one = mutate(one, draw)
            else:
                two = mutate(two, draw)
        look(tmp_path, yamlfile.dumps(one), yamlfile.dumps(two))

    run()


@pytest.mark.parametrize("cases", [200, pytest.param(6000, marks=pytest.mark.slow)])
def test_scratched_text_ends_in_our_own_error(tmp_path, cases):
    @settings(max_examples=cases, **QUICK)
    @given(st.randoms(use_true_random=False))
    def run(draw: random.Random) -> None:
        if draw.random() < 0.8:
            look(tmp_path, scratch(METHOD, draw), PROFILES)
        else:
            look(tmp_path, METHOD, scratch(PROFILES, draw))

    run()


@settings(max_examples=400, **QUICK)
@given(
    st.dictionaries(
        st.text("abz.019_ -é", max_size=12),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=4),
            lambda s: st.lists(s, max_size=2) | st.dictionaries(st.text(max_size=3), s, max_size=2),
            max_leaves=4,
        ),
        max_size=3,
    )
)
def test_any_override_is_applied_or_refused(words):
    tree = {"a": {"b": 1, "z": [1, {"a": None}]}, "b": None, "0": [0, 1]}
    before = copy.deepcopy(tree)
    with contextlib.suppress(UserError):
        apply(tree, words)
    assert tree == before


@settings(max_examples=400, **QUICK)
@given(st.text(max_size=40))
def test_any_text_is_a_value_or_a_yaml_error(text):
    try:
        value = yamlfile.loads(text)
    except UserError:
        return
    again = yamlfile.loads(yamlfile.dumps(value))
    assert again == value or "nan" in str(value)
