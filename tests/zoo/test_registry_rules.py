"""Inheritance, and every way in which an entry can be wrong: one clear error with file, line, value and suggestion."""

from __future__ import annotations

import pytest
from zoo_fakes import METHOD, PROFILES, add, registry

from zoo import yamlfile
from zoo.errors import UserError
from zoo.schema import Recipe


def line_of(text: str, part: str) -> int:
    return 1 + text[: text.index(part)].count("\n")


# ---------------------------------------------------------------- inheritance


def test_mappings_merge_and_lists_replace_down_the_layers(tmp_path):
    zoo = registry(tmp_path)
    recipe = zoo.resolve("thing_digits")
    assert (
        recipe.batch == 16
        and recipe.backbone.name == "tiny_resnet"
        and recipe.backbone.options == {"width": 8, "blocks": [1]}
    )
    assert [crop.size for crop in recipe.views.crops] == [8] and recipe.views.flip == 0.5
    assert recipe.params == {
        "temperature": 0.2,
        "mode": "soft",
        "clusters": 3000,
        "queue": {"length": 0},
        "crops": [0, 1],
    }
    assert zoo.resolve("thing_400ep").schedule.epochs == 400 and zoo.resolve("thing_400ep").schedule.warmup_epochs == 10


def test_another_name_starts_afresh(tmp_path):
    optimizer = registry(tmp_path).resolve("thing_digits").optimizer
    assert optimizer.name == "sgd" and optimizer.trust is None and optimizer.weight_decay == 0, (
        "nothing of LARC survives"
    )


def test_a_budget_in_images_replaces_one_in_epochs(tmp_path):
    profiles = PROFILES.replace("{name: constant, images: 64}", "{images: 64, warmup_epochs: 0}")
    schedule = registry(tmp_path, profiles=profiles).resolve("thing_digits").schedule
    assert schedule.name == "warmup_cosine" and schedule.images == 64 and schedule.epochs is None


def test_a_profile_may_be_one_that_authors_shared(tmp_path):
    profiles = PROFILES.replace("  title: small\n", "  title: small\n  laptop: false\n  notes: [shared]\n")
    entry = registry(tmp_path, ("title: Thing", "title: Thing\nnotes: [of the method]"), profiles=profiles).entry(
        "thing_digits"
    )
    assert not entry.laptop and entry.notes == ["shared"]
    assert registry(tmp_path / "b").entry("thing_digits").laptop


def test_a_model_of_other_authors_has_their_code_and_licence(tmp_path):
    other = "    code: {repository: other/thing, license: null}\n    weights: {sources: [{gdrive: abc}]}"
    entry = registry(
        tmp_path, ("title: Thing", "title: Thing\nnotes: [of the method]"), add("thing_400ep:", other)
    ).entry("thing_400ep")
    assert entry.code.repository == "other/thing" and entry.weights.license == "not stated" and entry.notes == []


def test_facts_of_the_old_network_do_not_outlive_it(tmp_path):
    zoo = registry(
        tmp_path,
        ("    recipe: {schedule: {epochs: 400}}", "    backbone: resnet18\n    recipe: {schedule: {epochs: 400}}"),
    )
    assert zoo.entry("thing_400ep").network is None and zoo.entry("thing_800ep").network.dim == 2048


def test_null_says_that_nobody_released_it(tmp_path):
    zoo = registry(
        tmp_path,
        add("thing_400ep:", "    notes: [from a table]"),
        ("recipe: {schedule: {epochs: 400}}", "recipe: null"),
    )
    entry = zoo.entry("thing_400ep")
    assert entry.recipe is None and entry.weights is None and entry.status == "published only"
    with pytest.raises(UserError, match="thing_400ep: its recipe was never released"):
        zoo.resolve("thing_400ep")
    assert zoo.entry("thing_800ep").status == "released" and zoo.entry("thing_digits").status == "recipe only"


def test_what_is_lost_says_since_when(tmp_path):
    zoo = registry(tmp_path, add("thing_400ep:", '    status: lost\n    since: "2023-05"'))
    assert (zoo.entry("thing_400ep").status, zoo.entry("thing_400ep").since) == ("lost", "2023-05")
    with pytest.raises(UserError, match="belong together"):
        registry(tmp_path / "b", add("thing_400ep:", "    status: lost")).entry("thing_400ep")


def test_weights_take_the_methods_licence_and_layouts(tmp_path):
    weights = registry(tmp_path).entry("resnet50").weights
    assert weights.license == "MIT" and weights.layouts[0].rules == [("^module\\.", "")]


def test_heads_are_ignored_by_the_backbone_without_saying_so_twice(tmp_path):
    heads = 'heads: {head: ["head.*", "more.*"]}'
    zoo = registry(tmp_path, ('ignore: ["head.*"]}', f'ignore: ["head.*"], {heads}}}'))
    assert zoo.entry("thing_800ep").layouts[0].ignore == ["head.*", "more.*"]


def test_names_are_found_by_pattern_alias_and_method(tmp_path):
    zoo = registry(tmp_path)
    assert zoo.models() == ["thing_200ep_bs256", "thing_400ep", "thing_800ep", "thing_digits"]
    assert zoo.models("*ep") == ["thing_400ep", "thing_800ep"] and zoo.models("resnet*") == ["thing_800ep"]
    assert (
        zoo.models(method="thing") == zoo.models()
        and zoo.methods() == ["thing"]
        and zoo.aliases() == {"resnet50": "thing_800ep"}
    )
    assert zoo.entry("resnet50") is zoo.entry("thing_800ep")
    with pytest.raises(UserError, match="no model 'thing_80ep'; did you mean 'thing_800ep'"):
        zoo.entry("thing_80ep")
    with pytest.raises(UserError, match="no method 'thin'; did you mean 'thing'"):
        zoo.models(method="thin")


# ---------------------------------------------------------------- recipes


def test_a_recipe_survives_its_file_and_the_seed_is_not_in_its_hash(tmp_path):
    zoo = registry(tmp_path)
    recipe = zoo.resolve("thing_digits", {"seed": 3})
    (tmp_path / "recipe.yaml").write_text(yamlfile.dumps(recipe.dump()))
    assert zoo.load_recipe(tmp_path / "recipe.yaml") == recipe
    assert (
        recipe.hash()
        == zoo.resolve("thing_digits").hash()
        != zoo.resolve("thing_digits", {"precision": "bfloat16"}).hash()
    )
    assert len(recipe.hash()) == 10 and set(recipe.hash()) <= set("0123456789abcdef")


def test_hashes_do_not_see_how_a_number_was_written_or_settings_that_are_off(tmp_path):
    zoo = registry(tmp_path)
    assert (
        zoo.resolve("thing_digits", {"optimizer.lr": 1}).hash()
        == zoo.resolve("thing_digits", {"optimizer.lr": 1.0}).hash()
    )
    assert (
        zoo.resolve("thing_digits", {"params.temperature": 1}).hash()
        == zoo.resolve("thing_digits", {"params.temperature": 1.0}).hash()
    )
    dump = zoo.resolve("thing_digits").dump()
    del dump["init"], dump["views"]["blur"]
    assert Recipe.model_validate(dump).hash() == zoo.resolve("thing_digits").hash()


def test_setting_a_budget_or_an_optimizer_unsets_the_other(tmp_path):
    zoo = registry(tmp_path)
    assert zoo.resolve("thing_digits", {"schedule.epochs": 2}).schedule.images is None
    optimizer = zoo.resolve("thing_800ep", {"optimizer.name": "sgd"}).optimizer
    assert optimizer.trust is None and optimizer.lr == 4.8
    adamw = zoo.resolve("thing_800ep", {"optimizer.name": "adamw", "optimizer.lr": 1e-3}).optimizer
    assert adamw.momentum is None and adamw.betas == [0.9, 0.999]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimzer.lr": 1}, "did you mean 'optimizer.lr'"),
        ({"params.temperatur": 1}, "did you mean 'params.temperature'"),
        ({"params.temperature": 0}, r"params.temperature is 0 \(whole number\): must be greater than 0"),
        ({"params.temperature": "hot"}, r"'hot' \(text\): expected a number"),
        ({"params.temperature": True}, "expected a number"),
        ({"params.mode": "sofft"}, "expected one of soft, hard; did you mean 'soft'"),
        ({"params.queue.length": 1.5}, "expected a whole number"),
        ({"params.queue.length": -1}, "must be at least 0"),
        ({"params.queue": 3}, "expected a mapping with length"),
        ({"params.crops": 1}, "expected a list"),
        ({"params.crops": []}, "expected at least one item"),
        ({"params.crops": [0, 0.5]}, "has the item 0.5 .*expected a whole number each"),
        ({"params.crops": ["a"]}, "has the item 'a' .*expected a whole number each"),
        ({"batch": "4096"}, r"batch is '4096' \(text\)"),
        ({"batch": 0}, "batch is 0"),
        ({"schedule.epochs": 5, "schedule.images": 5}, "exactly one of epochs and images"),
        ({"schedule.name": "step"}, "step needs milestones"),
        ({"schedule.final_lr": 0.1}, "final_lr is not a setting of constant"),
        ({"optimizer.trust": 0.1}, "trust is not a setting of sgd"),
        ({"optimizer.name": "sdg"}, "did you mean 'sgd'"),
        ({"optimizer.lr": float("nan")}, "finite"),
        ({"views.crops.0.scale": [1.0, 0.2]}, "wrong way round"),
        ({"views.flip": 2}, "less than or equal to 1"),
        ({"input.mean": [0.5, 0.5]}, "mean has 2 values for 1 channels"),
        ({"method": "other"}, "another method is another model"),
        ({"precision": "bf16"}, "did you mean 'bfloat16'"),
    ],
)
def test_an_impossible_override_says_why(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        registry(tmp_path).resolve("thing_digits", overrides)


def test_a_backbone_may_get_options_and_be_replaced(tmp_path):
    zoo = registry(tmp_path)
    assert zoo.resolve("thing_digits", {"backbone.options.width": 4}).backbone.options["width"] == 4
    assert zoo.resolve("thing_digits", {"backbone.options.stem_stride": 2}).backbone.options["stem_stride"] == 2
    assert zoo.resolve("thing_digits", {"backbone": "resnet18"}).backbone.model_dump() == {
        "name": "resnet18",
        "options": {},
    }


def test_a_recipe_file_is_checked_like_the_registry(tmp_path):
    zoo = registry(tmp_path)
    dump = zoo.resolve("thing_digits").dump()
    file = tmp_path / "recipe.yaml"
    for keys, value, message in (
        (("params", "temperature"), 0, r"recipe\.yaml:\d+:3: params.temperature is 0"),
        (("optimizer", "name"), "sdg", r"recipe\.yaml:\d+:3: optimizer.name is 'sdg'"),
        (("method",), "thin", r"recipe\.yaml:1:1: no method 'thin'; did you mean 'thing'"),
    ):
        broken = yamlfile.loads(yamlfile.dumps(dump))
        node = broken
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value
        file.write_text(yamlfile.dumps(broken))
        with pytest.raises(UserError, match=message):
            zoo.load_recipe(file)


# ---------------------------------------------------------------- errors name the place

WRONG = [
    (
        add("    recipe: {schedule: {epochs: 400}}", "    wieghts: null"),
        r"unknown field 'wieghts'; did you mean 'weights'",
    ),
    (
        ("recipe: {schedule: {epochs: 400}}", "recipe: {schedule: {epoch: 400}}"),
        r"unknown field 'schedule.epoch'; did you mean 'epochs'",
    ),
    (
        ("recipe: {schedule: {epochs: 400}}", "recipe: {schedule: {epochs: '400'}}"),
        r"schedule.epochs is '400' \(text\)",
    ),
    (
        ("recipe: {schedule: {epochs: 400}}", "recipe: {shcedule: {epochs: 400}}"),
        r"unknown field 'shcedule'; did you mean 'schedule'",
    ),
    (
        ("recipe: {schedule: {epochs: 400}}", "recipe: {params: {mode: hrad}}"),
        r"params.mode is 'hrad'.*did you mean 'hard'",
    ),
    (("recipe: {schedule: {epochs: 400}}", "recipe: 400"), r"recipe is 400 \(whole number\)"),
    (("url:", "ulr:"), r"unknown field 'weights.sources.0.ulr'; did you mean 'url'"),
    (("https://example.org/thing_800ep.pth", "example.org/thing"), "not an http"),
    (('[["^module\\\\.", ""]]', '[["^module(", ""]]'), "not a regular expression"),
    (("metric: top1", "metrik: top1"), r"unknown field 'published.0.metrik'; did you mean 'metric'"),
    (("value: 70.1", "value: '70.1'"), r"published.0.value is '70.1' \(text\)"),
    (('README.md"}', 'README.md", origin: retrain}'), "needs `by`"),
    (("lr: 4.8", "lr: fast"), r"optimizer.lr is 'fast' \(text\)"),
    (("aliases: [resnet50]", "aliases: resnet50"), r"aliases is 'resnet50' \(text\)"),
    (("mean: [0.485, 0.456, 0.406]", "mean: [0.485, 0.456]"), "mean has 2 values for 3 channels"),
    (("title: Thing", "titel: Thing"), r"unknown field 'titel'; did you mean 'title'"),
    (("summary: What it does.", "summary: 3"), "summary is 3"),
    (
        ("temperature: {gt: 0}", "temperature: {gtt: 0}"),
        "unknown field 'params_spec.temperature.gtt'; did you mean 'gt'",
    ),
]


@pytest.mark.parametrize(
    ("change", "message"), WRONG, ids=[change[1].split("\n")[-1].strip()[:40] for change, _ in WRONG]
)
def test_a_wrong_field_is_named_with_file_line_and_suggestion(tmp_path, change, message):
    zoo = registry(tmp_path, change)
    model = "thing_400ep" if "400" in change[0] else "thing_800ep"
    with pytest.raises(UserError, match=message) as error:
        zoo.entry(model)
    wanted = change[1].split("\n")[-1].strip()
    line = line_of((zoo.root / "methods/thing.yaml").read_text(), wanted[:20])
    assert str(error.value).startswith(f"zoo/methods/thing.yaml:{line}:"), str(error.value)


def test_a_wrong_profile_is_blamed_in_its_own_file(tmp_path):
    with pytest.raises(UserError, match=r"^zoo/profiles\.yaml:9:5: batch is 'many'"):
        registry(tmp_path, profiles=PROFILES.replace("batch: 16", "batch: many")).entry("thing_digits")
    with pytest.raises(UserError, match=r"^zoo/methods/thing\.yaml:\d+:5: no profile 'smal'; did you mean 'small'"):
        registry(tmp_path / "b", ("profile: small", "profile: smal")).entry("thing_digits")


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(UserError, match="thing_800ep has no backbone"):
        registry(tmp_path, ("backbone: resnet50\n", "")).entry("thing_800ep")
    with pytest.raises(UserError, match=r"batch is missing"):
        registry(tmp_path / "b", ("  batch: 4096\n", "")).entry("thing_800ep")


# ---------------------------------------------------------------- names


def test_a_name_belongs_to_one_model(tmp_path):
    taken = r"zoo/methods/thing\.yaml:\d+:\d+: the name 'resnet50' is already taken at zoo/methods/thing\.yaml:\d+:\d+"
    with pytest.raises(UserError, match=taken):
        registry(tmp_path, add("thing_400ep:", "    aliases: [resnet50]")).read()
    other = METHOD.replace("method: thing", "method: other")
    with pytest.raises(UserError, match=r"'thing_800ep' is already taken at zoo/methods/other\.yaml"):
        registry(tmp_path / "b", more={"methods/other.yaml": other}).read()
    with pytest.raises(UserError, match="'thing_400ep' is already taken"):
        registry(tmp_path / "c", ("aliases: [resnet50]", "aliases: [thing_400ep]")).read()


def test_a_file_is_named_after_its_method(tmp_path):
    with pytest.raises(UserError, match=r"thing\.yaml:1:1: method 'thin' \(text\) in a file named thing\.yaml"):
        registry(tmp_path, ("method: thing", "method: thin")).read()
    with pytest.raises(UserError, match="models must be a mapping"):
        registry(tmp_path / "b", method=METHOD.split("models:")[0]).read()


@pytest.mark.parametrize(
    ("change", "model", "message"),
    [
        (("thing_800ep:", "thing_600ep:"), "thing_600ep", "says 600 epochs, but schedule.epochs is 800"),
        (("batch: 256}", "batch: 512}"), "thing_200ep_bs256", "says batch 256, but batch is 512"),
        (("thing_400ep:", "thing_400ep_2x160:"), "thing_400ep_2x160", "says crops 2x160, but its views are 2x224"),
        (("thing_400ep:", "thing_rn50w2_400ep:"), "thing_rn50w2_400ep", "says rn50w2, but its backbone is resnet50"),
        (("thing_400ep:", "thing_vgg16_400ep:"), "thing_vgg16_400ep", "says vgg16, but its backbone is resnet50"),
        (add("thing_400ep:", "    backbone: resnet50w4"), "thing_400ep", "does not say that its backbone is resnet50w4"),
        (("thing_digits:", "thing_fashion_mnist:"), "thing_fashion_mnist", "says fashion_mnist, but its dataset is digits"),
        (("thing_digits:", "thing_cifar10:"), "thing_cifar10", "says cifar10, but its dataset is digits"),
        (("thing_400ep:", "thing_cifar100_400ep:"), "thing_cifar100_400ep", "says cifar100, but its dataset is imagenet"),
        (("thing_400ep:", "think_400ep:"), "think_400ep", "must begin with its method: thing_"),
        (("thing_400ep:", "thing_10k_400ep:"), "thing_10k_400ep", "says 1x10000 clusters, but params say 1x3000"),
    ],
)  # fmt: skip
def test_an_id_may_not_contradict_its_fields(tmp_path, change, model, message):
    with pytest.raises(UserError, match=message) as error:
        registry(tmp_path, change).entry(model)
    assert str(error.value).startswith("zoo/")


def test_an_id_may_repeat_what_its_fields_say(tmp_path):
    zoo = registry(tmp_path, ("thing_400ep:", "thing_rn50_3k_400ep_2x224:"))
    assert zoo.entry("thing_rn50_3k_400ep_2x224").recipe.schedule.epochs == 400
