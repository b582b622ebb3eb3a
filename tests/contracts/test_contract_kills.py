"""A run that is killed while it clusters or labels goes on with the same command and ends with the bits of an undisturbed one."""

import contract_kill
import contract_tools as tools
import pytest
import torch

# case -> what its assignments go through
CASES = {
    "deepcluster, every epoch": {"features", "k-means"},
    "deepercluster in two levels": {"features", "k-means"},
    "deepclusterv2": {"features", "k-means"},
    "sela": {"features", "transport"},
    "selav2": {"features", "transport"},
    "selav2 soft": {"features", "transport"},
    "pseudolabel": {"features", "k-means"},
}
SETTINGS = {"deepercluster in two levels": {"params.epoch_divisor": 4}}  # an epoch of six steps, hence two assignments
ONCE = {
    "pseudolabel": "labels are found once, before the first step",
    "deepclusterv2": "features are collected once, then kept",
    "selav2": "as deepclusterv2",
    "selav2 soft": "as deepclusterv2",
}


def recipe(name):
    return tools.recipe(name, **SETTINGS.get(name, {}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{(case, place): (folder of the undisturbed run, folder of the killed one, exit code)}"""
    home, found, kills = tmp_path_factory.mktemp("kills"), {}, []
    for number, (name, expected) in enumerate(CASES.items()):
        whole = home / f"whole{number}"
        with contract_kill.counted() as calls:
            assert tools.fit(recipe(name), whole).finished
        assert set(calls) == expected, name
        for place in sorted(calls):
            parts = home / f"parts{number}-{place}"
            kills.append(
                (name, SETTINGS.get(name, {}), parts, place, calls[place] - (place != "features"))
            )  # within the last assignment
            found[name, place] = whole, parts
    codes = contract_kill.kill(kills)
    return {key: (*folders, code) for (key, folders), code in zip(found.items(), codes, strict=True)}


@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name, places in CASES.items() for place in sorted(places)]
)
def test_a_kill_inside_an_assignment_costs_no_bit(name, place, runs):
    whole, parts, code = runs[name, place]
    assert code == -9, "the run was to be killed inside its assignment"
    assert not (parts / "done.json").exists()
    result = tools.fit(recipe(name), parts)
    assert result.finished
    if name not in ONCE:
        assert result.resumed_from, "a later assignment was to be interrupted"
    a, b = tools.weights(whole), tools.weights(parts)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    states = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (whole, parts)]
    labels = [state["extra"]["labels"] for state in states]
    assert torch.equal(*labels) and states[0]["loss"] == states[1]["loss"]


def test_every_clustering_method_is_killed():
    """Those whose state holds labels for the data set."""
    with_labels = {name for name in tools.trained() if hasattr(tools.build(tools.recipe(name)), "labels")}
    assert with_labels == {tools.VARIANTS[name][0] if name in tools.VARIANTS else name for name in CASES}
