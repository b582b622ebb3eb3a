"""`zoo validate` says valid only of what it has looked at: each check finds the fault that it is for."""

from __future__ import annotations

import pytest
from zoo_fakes import PROFILES, add, registry

from zoo.validate import validate


def test_a_sound_registry_is_valid_and_says_how_often_it_looked(tmp_path):
    found = validate(registry(tmp_path), networks=False)
    assert found.ok and str(found).endswith("valid"), str(found)
    assert found.looked["entries inherited and checked, ids against their fields"] == 4
    assert (
        any("reproduce/methods is not here" in text for text in found.skipped)
        and "networks (as asked)" in found.skipped
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("recipe: {schedule: {epochs: 400}}", "recipe: {schedule: {epochs: 300}}"), "says 400 epochs"),
        (("mode: {choices: [soft, hard]}", "moode: {choices: [soft]}"), "limits for 'moode', which has no default; did you mean 'mode'"),
        (("temperature: {gt: 0}", "temperature: {gt: 5}"), "params.temperature is 0.1 (number): must be greater than 5"),
        (("dataset: imagenet", "dataset: imagenette"), "no data set 'imagenette' in datasets.yaml; did you mean 'imagenet'"),
        (("recipe: {schedule: {epochs: 400}}", "recipe: {schedule: {epochs: 400}, init: thing_80ep}"), "'thing_80ep', which is not a model; did you mean"),
        (add("thing_400ep:", '    weights: {sources: [{url: "https://example.org/thing_800ep.pth"}]}'), "have the same file https://example.org"),
        (("thing_800ep:\n", "thing_800ep:\n    recipe: null\n    layouts: []\n"), "thing_800ep has weights but no layout to read them with"),
        (('ignore: ["head.*"]}', 'ignore: ["head.*"]}\n  - {path: null, rules: [["^module\\\\.", ""]], ignore: ["head.*"]}'), "has the same layout twice"),
        (add('source: "someone/thing:README.md"}', '      - {protocol: linear, metric: top1, value: 70.2, source: "someone/thing:README.md"}'), "two values for top1 of linear"),
        (("  thing_digits:", "  thing_again_400ep:\n    recipe: {schedule: {epochs: 400}}\n  thing_digits:"), "and thing_again_400ep have the same recipe|and thing_400ep have the same recipe"),
        (("recipe: {schedule: {epochs: 400}}", "recipe: null\n    reproduced_by: thing_80ep"), "'thing_80ep', which is not a model; did you mean 'thing_800ep'"),
        (("recipe: {schedule: {epochs: 400}}", "reproduced_by: thing_800ep\n    recipe: {schedule: {epochs: 400}}"), "the one must have no recipe and the other a recipe"),
        (("    profile: small\n    recipe: {params: {temperature: 0.2}}", "    recipe: {dataset: digits}"), "no model uses the profile 'small'"),
    ],
    ids=["id", "spec name", "default", "dataset", "init", "file", "no layout", "layout twice", "number twice", "recipe twice", "reproduced by nobody", "reproduced twice", "profile"],
)  # fmt: skip
def test_each_fault_is_found_and_placed(tmp_path, change, message):
    found = validate(registry(tmp_path, change), networks=False)
    assert not found.ok
    hits = [problem for problem in found.problems if any(part in problem for part in message.split("|"))]
    assert hits and all(hit.startswith("zoo/") for hit in hits), str(found)


def test_all_faults_are_reported_not_just_the_first(tmp_path):
    changes = [
        ("batch: 256}", "batch: 512}"),
        ("recipe: {schedule: {epochs: 400}}", "recipe: {schedule: {epochs: 300}}"),
    ]
    found = validate(registry(tmp_path, *changes), networks=False)
    assert len(found.problems) == 2 and "2 problem(s)" in str(found)


def test_a_broken_file_ends_the_look(tmp_path):
    found = validate(registry(tmp_path, ("batch: 4096", "batch: 4096\n  batch: 256")), networks=False)
    assert len(found.problems) == 1 and "duplicate key 'batch'" in found.problems[0]


def test_a_recipe_without_code_is_found(tmp_path):
    scripts = tmp_path / "reproduce" / "methods"
    scripts.mkdir(parents=True)
    (scripts / "think.py").write_text("")
    found = validate(registry(tmp_path), networks=False)
    assert "reproduce/methods/thing.py does not exist; did you mean 'think'?" in found.problems[0]
    (scripts / "thing.py").write_text("")
    assert validate(registry(tmp_path / "b"), networks=False, checkout=tmp_path).ok


def test_sound_networks_are_built_and_pass(tmp_path):
    found = validate(registry(tmp_path))
    assert found.ok and found.looked["networks built: parameters, width, input size"] == 4, str(found)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("parameters: 1272", "parameters: 1273", "network.parameters is 1273, the built tiny_resnet"),
        ("dim: 8", "dim: 9", "network.dim is 9, the built tiny_resnet"),
        ("  network: {parameters: 1272, dim: 8}\n", "", "network.parameters is None"),
        ("name: tiny_resnet", "name: tiny_resnett", "unknown backbone 'tiny_resnett'"),
        ("width: 8", "widht: 8", "widht"),
        (
            "channels: 1, mean: [0.5], std: [0.5]",
            "channels: 3, mean: [0, 0, 0], std: [1, 1, 1]",
            "does not accept 3x224x224 images",
        ),
    ],
)
def test_networks_are_built_and_recomputed(tmp_path, old, new, message):
    assert old in PROFILES
    found = validate(registry(tmp_path, profiles=PROFILES.replace(old, new, 1)))
    assert any(message in problem and problem.startswith("zoo/") for problem in found.problems), str(found)
