"""The real registry: what the authors' scripts say, model by model."""

from __future__ import annotations

import re

import pytest

from zoo import registry
from zoo.errors import UserError

# id: (epochs, batch, crops, smallest scales, lr -> final, warm-up epochs from, queue (length, epoch), freeze, hidden, sync group, network)
# fmt: off
SWAV = {
    "swav_100ep": (100, 4096, "2x224 + 6x96", (0.14, 0.05), (4.8, 0.0048), (10, 0.3), (0, 15), 313, 2048, 8, "resnet50"),
    "swav_200ep": (200, 4096, "2x224 + 6x96", (0.14, 0.05), (4.8, 0.0048), (10, 0.3), (0, 15), 313, 2048, 8, "resnet50"),
    "swav_400ep": (400, 4096, "2x224 + 6x96", (0.14, 0.05), (4.8, 0.0048), (10, 0.3), (0, 15), 313, 2048, 8, "resnet50"),
    "swav_800ep": (800, 4096, "2x224 + 6x96", (0.14, 0.05), (4.8, 0.0048), (10, 0.3), (0, 15), 313, 2048, 8, "resnet50"),
    "swav_400ep_2x224": (400, 4096, "2x224", (0.08,), (4.8, 0.0048), (10, 0.3), (0, 15), 313, 2048, 8, "resnet50"),
    "swav_200ep_bs256": (200, 256, "2x224 + 6x96", (0.14, 0.05), (0.6, 0.0006), (0, 0.0), (3840, 15), 5005, 2048, None, "resnet50"),
    "swav_400ep_bs256": (400, 256, "2x224 + 6x96", (0.14, 0.05), (0.6, 0.0006), (0, 0.0), (3840, 15), 5005, 2048, None, "resnet50"),
    "swav_rn50w2_400ep": (400, 4096, "2x224 + 4x96", (0.14, 0.05), (4.8, 0.0048), (10, 0.3), (0, 15), 313, 8192, 8, "resnet50w2"),
    "swav_rn50w4_400ep": (400, 2560, "2x224 + 4x96", (0.08, 0.08), (4.8, 0.0048), (10, 0.3), (2560, 0), 313, 8192, 8, "resnet50w4"),
    "swav_rn50w5_400ep": (400, 1536, "2x224 + 4x96", (0.14, 0.05), (4.8, 0.0), (10, 0.1875), (1536, 0), 313, 10240, 8, "resnet50w5"),
}
# fmt: on
TOP1 = {
    "swav_100ep": 72.1,
    "swav_200ep": 73.9,
    "swav_400ep": 74.6,
    "swav_800ep": 75.3,
    "swav_400ep_2x224": 70.1,
    "swav_200ep_bs256": 72.7,
    "swav_400ep_bs256": 74.3,
    "swav_rn50w2_400ep": 77.3,
    "swav_rn50w4_400ep": 77.9,
    "swav_rn50w5_400ep": 78.5,
}  # fmt: skip


@pytest.mark.parametrize("model", SWAV)
def test_swav_recipes_are_the_authors_scripts(model):
    recipe = registry.resolve(model)
    found = (
        recipe.schedule.epochs, recipe.batch, str(recipe.views), tuple(crop.scale[0] for crop in recipe.views.crops),
        (recipe.optimizer.lr, recipe.schedule.final_lr), (recipe.schedule.warmup_epochs, recipe.schedule.start_lr),
        (recipe.params["queue"]["length"], recipe.params["queue"]["start_epoch"]), recipe.params["freeze_prototypes_steps"],
        recipe.params["hidden"], recipe.sync_bn_group, recipe.backbone.name,
    )  # fmt: skip
    assert found == SWAV[model]
    assert (
        recipe.optimizer.name,
        recipe.optimizer.weight_decay,
        recipe.optimizer.momentum,
        recipe.optimizer.trust,
    ) == ("larc", 1e-6, 0.9, 0.001)
    assert (
        recipe.params["head_batchnorm"] is (model != "swav_rn50w5_400ep")
        and recipe.sync_bn
        and recipe.precision == "float16"
    )
    assert (recipe.params["temperature"], recipe.params["epsilon"], recipe.params["sinkhorn_iterations"]) == (
        0.1,
        0.05,
        3,
    )
    assert recipe.views.jitter.model_dump() == {
        "brightness": 0.8,
        "contrast": 0.8,
        "saturation": 0.8,
        "hue": 0.2,
        "probability": 0.8,
    }
    assert (recipe.views.flip, recipe.views.grayscale, recipe.views.blur.probability, recipe.views.blur.sigma) == (
        0.5,
        0.2,
        0.5,
        [0.1, 2.0],
    )
    assert recipe.input.std == [0.228, 0.224, 0.225], "the authors' own, not ImageNet's 0.229"


def test_swav_files_and_numbers_are_the_released_ones():
    released = [model for model in registry.models(method="swav") if registry.entry(model).weights]
    assert sorted(released) == sorted(SWAV)
    for model in released:
        entry = registry.entry(model)
        name = model.replace("swav_rn50", "swav_RN50") + "_pretrain.pth.tar"
        assert [source.url for source in entry.weights.sources] == [
            f"https://dl.fbaipublicfiles.com/deepcluster/{name}"
        ]
        number = entry.published[0]
        assert (number.value, number.origin, number.source) == (
            TOP1[model],
            "authors",
            "facebookresearch/swav:README.md @06b1b7c",
        )
    assert registry.aliases() | {"resnet50": "swav_800ep"} == registry.aliases()
    assert {a: m for a, m in registry.aliases().items() if a.startswith("resnet50")} == {
        "resnet50": "swav_800ep", "resnet50w2": "swav_rn50w2_400ep", "resnet50w4": "swav_rn50w4_400ep", "resnet50w5": "swav_rn50w5_400ep",
    }  # fmt: skip
    assert registry.entry("swav_800ep").heads["linear_imagenet"].classes == 1000


def test_every_layout_of_swav_reads_prefixed_wrapped_and_bare_keys():
    plain, wrapped = registry.entry("swav_800ep").layouts
    assert (plain.path, wrapped.path) == (None, "state_dict")
    for key in ("module.conv1.weight", "conv1.weight"):
        ((pattern, replacement),) = plain.rules
        assert re.sub(pattern, replacement, key) == "conv1.weight"
    assert plain.heads == {"projection": ["projection_head.*"], "prototypes": ["prototypes.*"]}


def test_simclr_is_pics_script():
    recipe = registry.resolve("simclr_pic_200ep")
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.weight_decay, recipe.batch) == (
        "lars",
        0.3,
        1e-6,
        256,
    )
    assert (recipe.schedule.name, recipe.schedule.warmup_epochs, recipe.schedule.warmup_multiplier) == (
        "multiplied_cosine",
        5,
        100,
    )
    assert recipe.params["gather"] == "detached" and registry.resolve("simclr_pic_100ep").schedule.warmup_epochs == 2
    assert all(
        number.origin == "retrain" and number.by == "PIC" for number in registry.entry("simclr_pic_200ep").published
    )


@pytest.mark.parametrize("data", ["digits", "fashion_mnist"])
def test_every_laptop_row_sees_the_same_network_input_and_data(data):
    rows = {m: registry.resolve(f"{m}_{data}") for m in registry.methods() if f"{m}_{data}" in registry.models()}
    assert {"swav", "simclr", "rotnet", "random", "pixels", "supervised"} <= set(rows)
    swav = rows["swav"]
    for method, recipe in rows.items():
        assert recipe.dataset == data and (recipe.input.mean, recipe.input.std) == (swav.input.mean, swav.input.std)
        if method != "pixels":
            assert recipe.backbone == swav.backbone and recipe.input == swav.input
        if method in ("random", "pixels"):
            assert recipe.schedule.images == 0, "reference rows are not trained"


def test_all_recipes_differ_and_come_back_from_their_dump():
    from zoo.schema import Recipe

    recipes = [entry.recipe for entry in map(registry.entry, registry.models()) if entry.recipe]
    assert len({recipe.hash() for recipe in recipes}) == len(recipes)
    assert all(Recipe.model_validate(recipe.dump()) == recipe for recipe in recipes)


def test_every_number_names_the_place_where_it_was_read():
    place = re.compile(
        r"\S+/\S+:\S+ @[0-9a-f]{7}|arXiv \d{4}\.\d{4,5}.*(Table|Figure)|\b20\d\d\b.*(Table \d|abstract|@[0-9a-f]{7})|\S+/\S+ issue \d+"
    )
    for model in registry.models():
        for number in registry.entry(model).published:
            assert place.search(number.source), (model, number)


PUBLIC = """
swav_100ep swav_200ep swav_400ep swav_800ep swav_200ep_bs256 swav_400ep_bs256 swav_400ep_2x224
swav_rn50w2_400ep swav_rn50w4_400ep swav_rn50w5_400ep
deepclusterv2_800ep deepclusterv2_400ep deepclusterv2_400ep_2x224 selav2_400ep selav2_400ep_2x224
unmix_swav_100ep unmix_swav_200ep unmix_swav_400ep unmix_swav_800ep unmix_swav_200ep_bs256 unmix_swav_400ep_bs256
unmix_swav_400ep_2x224 unmix_swav_rn50w2_400ep unmix_swav_rn50w4_400ep unmix_mocov2_200ep unmix_mocov2_800ep
deepercluster_vgg16_yfcc deepcluster_vgg16_yfcc deepcluster_vgg16_imagenet deepcluster_alexnet_imagenet
rotnet_vgg16_yfcc rotnet_vgg16_imagenet rotnet_nin_cifar10 rotnet_alexnet_imagenet
sela_alexnet_1k sela_alexnet_10k sela_alexnet_10x3k sela_alexnet_10x3k_rot sela_resnet50v2_10x3k sela_rn18_1k_aug
sela_rn50_1k_aug sela_rn50_10x3k_aug
pic_200ep pic_400ep pic_1600ep instdisc_pic_200ep instdisc_pic_400ep mocov2_pic_100ep mocov2_pic_200ep
simclr_pic_100ep simclr_pic_200ep mocov1_200ep mocov2_200ep mocov2_800ep
""".split()  # noqa: SIM905


def test_ids_are_public_and_stay():
    assert set(PUBLIC) <= set(registry.models())


def test_every_trainable_method_has_its_laptop_models():
    for method in registry.methods():
        for data in ("digits", "fashion_mnist"):
            entry = registry.entry(f"{method}_{data}")
            assert entry.laptop and entry.profile == data and entry.weights is None


# What was released, by how it is had: addresses, Drive ids, members of archives; and labels.
RELEASED = {
    "deepclusterv2": 3,
    "selav2": 2,
    "deepercluster": 1,
    "deepcluster": 3,
    "rotnet": 4,
    "sela": 5,
    "pic": 2,
    "instdisc": 2,
    "mocov2": 4,
    "unmix": 5,
}


def test_nothing_released_is_missing():
    for method, count in RELEASED.items():
        assert len([m for m in registry.models(method=method) if registry.entry(m).weights]) == count, method
    labelled = {m: registry.entry(m).pseudolabels for m in registry.models() if registry.entry(m).pseudolabels}
    assert {m: (p.heads, p.clusters, p.format) for m, p in labelled.items()} == {
        "sela_rn18_1k_aug": (1, 1000, "tensor"), "sela_rn50_1k_aug": (1, 1000, "tensor"), "sela_rn50_10x3k_aug": (10, 3000, "tensor"),
        "sela_alexnet_10x3k": (10, 3000, "csv"), "sela_resnet50v2_10x3k": (10, 3000, "csv"),
        "deepcluster_alexnet_imagenet": (1, 10000, "clusters"), "deepcluster_vgg16_imagenet": (1, 10000, "clusters"),
    }  # fmt: skip
    assert registry.entry("sela_alexnet_10x3k").status == "labels only"


def test_what_others_trained_is_not_called_the_authors_own():
    for model in (
        "simclr_pic_200ep",
        "instdisc_pic_200ep",
        "mocov2_pic_200ep",
        "swav_unmix_cifar10_400ep",
        "mocov1_unmix_cifar10_1000ep",
    ):
        entry = registry.entry(model)
        assert entry.published and all(number.origin == "retrain" for number in entry.published)
        assert entry.code.repository in ("bl0/PIC", "szq0214/Un-Mix"), (model, entry.code)


def test_sobel_networks_keep_the_borders_that_they_were_trained_with():
    stems = {
        m: registry.entry(m).backbone.options.get("stem")
        for m in registry.models("*cluster_*")
        if registry.entry(m).weights
    }
    assert stems == {
        "deepercluster_vgg16_yfcc": "deepercluster_sobel", "deepcluster_vgg16_yfcc": "deepercluster_sobel",
        "deepcluster_vgg16_imagenet": "deepcluster_sobel", "deepcluster_alexnet_imagenet": "deepcluster_sobel",
    }  # fmt: skip


def test_the_whole_registry_is_valid():
    from zoo.validate import validate

    found = validate(registry.registry())
    assert found.ok, str(found)
    assert found.looked["networks built: parameters, width, input size"] == len(registry.models())
    assert not found.skipped


def test_a_number_stands_under_the_protocol_that_made_it():
    """PIC's README: rate 30 without decay, SimCLR alone 0.1 with 1e-6; SeLa's: AlexNets by the probes on convolutions."""
    used = {model: {number.protocol for number in registry.entry(model).published} for model in registry.models()}
    for model in registry.models("*_pic_*") + registry.models("pic_*ep"):
        assert used[model] <= {"linear_imagenet_pic_simclr" if model.startswith("simclr") else "linear_imagenet_pic"}, (
            model
        )
    for model in registry.models("sela_*"):
        assert "linear_imagenet_sela" not in used[model] or registry.entry(model).backbone.name.startswith("resnet"), (
            model
        )
        assert not any("_conv_" in name for name in used[model]) or registry.entry(model).backbone.name == "alexnet", (
            model
        )
    for model in ("sela_alexnet_1k", "sela_alexnet_10k"):
        [number] = [n for n in registry.entry(model).published if n.protocol == "linear_conv_imagenet_sela"]
        assert number.note == "layer not stated" and number.value in (42.1, 43.8)


def test_selas_rows_have_the_settings_that_its_readme_and_scripts_give():
    for model, heads, clusters in (
        ("sela_alexnet_1k", 1, 1000),
        ("sela_alexnet_10k", 1, 10000),
        ("sela_alexnet_10x3k", 10, 3000),
    ):
        recipe = registry.entry(model).recipe
        assert (recipe.params["heads"], recipe.params["clusters"], recipe.params["labelings"]) == (heads, clusters, 100)
        assert (recipe.batch, recipe.schedule.epochs, recipe.schedule.milestones) == (256, 400, [150, 300, 350])
        assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (0.08, 1e-5)
    moco = registry.entry("mocov2_200ep").recipe.views.model_dump()
    for model, heads, clusters in (
        ("sela_rn18_1k_aug", 1, 1000),
        ("sela_rn50_1k_aug", 1, 1000),
        ("sela_rn50_10x3k_aug", 10, 3000),
    ):
        recipe = registry.entry(model).recipe
        views = recipe.views.model_dump()
        assert recipe.views.count == 1 and views | {"crops": []} == moco | {"crops": []}, (
            "MoCo v2's augmentation, a single crop"
        )
        assert views["crops"][0] | {"count": 2} == moco["crops"][0]
        assert (recipe.schedule.epochs, recipe.schedule.milestones, recipe.schedule.factor) == (
            280,
            [120, 160, 200],
            0.1,
        )
        assert (recipe.params["heads"], recipe.params["clusters"]) == (heads, clusters)


def test_a_model_without_a_recipe_names_the_model_that_trains_its_objective():
    named = {
        model: registry.entry(model).reproduced_by for model in registry.models() if registry.entry(model).reproduced_by
    }
    assert named == {
        "sela_alexnet_10x3k_rot": "pseudolabel_alexnet_10x3k_rot", "deepcluster_vgg16_yfcc": "deepercluster_as_deepcluster_vgg16_yfcc",
        "rotnet_vgg16_yfcc": "deepercluster_as_rotnet_vgg16_yfcc", "rotnet_vgg16_imagenet": "deepercluster_as_rotnet_vgg16_imagenet",
    }  # fmt: skip
    for model, other in named.items():
        with pytest.raises(UserError, match=f"python -m reproduce {other}$"):
            registry.resolve(model)
        assert registry.resolve(other).dataset == registry.entry(model).dataset


def test_recipes_of_resnets_are_in_channels_last_those_of_other_published_networks_are_not():
    recipes = {
        model: entry.recipe for model in registry.models() if (entry := registry.entry(model)).recipe is not None
    }
    residual = {model: r for model, r in recipes.items() if "resnet" in r.backbone.name}
    imagenet = {model for model, r in residual.items() if r.dataset == "imagenet"}
    assert {"swav_800ep", "sela_rn50_10x3k_aug", "sela_resnet50v2_10x3k", "pic_1600ep", "mocov2_800ep"} <= imagenet
    assert [model for model in residual if not residual[model].channels_last] == []
    assert not any(r.channels_last for r in recipes.values() if r.backbone.name in ("alexnet", "vgg16", "nin"))
