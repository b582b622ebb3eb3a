"""Any single setting with an odd value: the plan accepts it, or refuses it in one line; it never ends in a traceback."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import contract_tools as tools
import pytest
import yaml

import zoo
from reproduce import launch, plan
from zoo.settings import parse

ODD = ("0", "-1", "0.5", ".nan", "1e30", "null", "x", "[]", "{}")
SCHEDULE = ("batch", "schedule.epochs", "schedule.images", "optimizer.lr", "seed")
BASES = ("swav", "mocov1", "mocov2", "simclr")
ROOT = zoo.__path__[0]


def leaves(tree: Mapping[str, Any], above: str) -> Iterator[str]:
    for name, value in tree.items():
        path = f"{above}.{name}"
        yield from leaves(value, path) if isinstance(value, Mapping) else [path]


def refused(model: str, settings: Mapping[str, Any], word: str) -> str | None:
    """The refusal; None when the plan is accepted."""
    try:
        plan.plan(launch.job(model, {**settings, **parse([word])}))
    except Exception as error:  # noqa: BLE001  any class with the mark of a user error is a refusal
        assert getattr(error, "user_error", False), f"{model} {word}: {type(error).__name__}: {error}"
        return str(error)
    return None


@pytest.mark.parametrize("name", [*tools.registered(), *(f"unmix of {base}" for base in BASES)])
def test_an_odd_value_is_accepted_or_refused_in_one_line(name, tmp_path):
    method, _, base = name.partition(" of ")
    model = f"{method}_digits"
    settings = {"out": str(tmp_path), **({"params.base": base} if base else {})}
    params = zoo.resolve(model).dump()["params"]
    own = {base: params[base]} if base else {k: v for k, v in params.items() if method != "unmix" or k not in BASES}
    words = [f"{path}={value}" for path in (*leaves(own, "params"), *SCHEDULE) for value in ODD]
    said = {word: refused(model, settings, word) for word in words}
    assert not {word: text for word, text in said.items() if text is not None and ("\n" in text or len(text) > 500)}
    assert said["batch=0"] and said["optimizer.lr=.nan"] and said["seed=0"] is None


@pytest.mark.parametrize("base", BASES)
def test_unmix_limits_the_settings_of_a_base_as_the_base_does(base):
    def spec(method):
        with open(f"{ROOT}/methods/{method}.yaml") as file:
            return yaml.safe_load(file)["params_spec"]

    mixed = {
        name.removeprefix(f"{base}."): limits for name, limits in spec("unmix").items() if name.startswith(f"{base}.")
    }
    assert mixed == spec(base)
