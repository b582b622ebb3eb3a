"""DeeperCluster: its process groups, its objective, its sampler and its heads."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from engine import dist
from engine.batch import Batch
from golden import load
from reproduce import methods
from reproduce.clustering import uniform_over_labels
from reproduce.methods.deepercluster import DeeperCluster, epoch_images, held_by, super_class_of, turned
from zoo import backbones
from zoo.errors import UserError

IMAGES = torch.randn(120, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def method(**settings):
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(16, 8))
    backbone.dim = 8
    torch.manual_seed(0)
    return DeeperCluster(backbone, **{"super_classes": 8, "clusters": 10, "pca": 6, "epoch_divisor": 1, **settings})


def context(net, batch=16):
    return SimpleNamespace(
        extract=lambda view: (np.arange(120), net.features(IMAGES).detach()), seed=2, n=120, batch=batch
    )


def test_every_process_sees_the_images_of_its_authors_process_group():
    g, layouts, found = load("deepercluster/process_layout.json"), {}, []
    for row in g.given("ranks"):
        layouts.setdefault((row["world"], row["super_classes"], row["rotnet"]), []).append(row)
    for (world, classes, rotations), rows in layouts.items():
        share = 12
        seen = super_class_of(torch.arange(world * share), world * share, classes).reshape(world, share)
        assert (seen == seen[:, :1]).all()  # one super-class per process
        mine, per = seen[:, 0].tolist(), world // classes
        assert [list(held_by(r, world, classes)) for r in range(world)] == [[m] for m in mine]
        turns = 4 if rotations else 1
        assert per == mine.count(mine[0])
        cluster = [m // turns for m in mine]
        for row in rows:
            r, groups = row["rank"], {}
            for name, of in (("training_groups", mine), ("clustering_groups", cluster)):
                if name in row:
                    groups[name] = [[i for i in range(world) if of[i] == k] for k in sorted(set(of))]
            found.append(
                {
                    "world": world,
                    "super_classes": classes,
                    "rotnet": rotations,
                    "rank": r,
                    "nmb_super_clusters": classes // turns,
                    "training_local_world_size": mine.count(mine[r]),
                    "training_local_rank": mine[:r].count(mine[r]),
                    "training_local_world_id": mine[r],
                    "clustering_local_world_size": cluster.count(cluster[r]),
                    "clustering_local_rank": cluster[:r].count(cluster[r]),
                    "clustering_local_world_id": cluster[r],
                    "rotation": mine[r] % 4 if rotations else 0,
                    **groups,
                }
            )
    g.exact(
        "ranks", sorted(found, key=lambda row: list(layouts).index((row["world"], row["super_classes"], row["rotnet"])))
    )


def test_sizes_of_data_and_epoch_are_the_authors():
    g, found = load("deepercluster/process_layout.json"), []
    for row in g.given("sizes"):
        batch = row["batch_size"] * row["world_size"]
        usable = min(row["requested"], 95920149) // batch * batch
        epoch = epoch_images(usable, row["super_classes"] // (4 if row["rotnet"] else 1), 4, batch)
        found.append({**row, "size_dataset": usable, "epoch_size": epoch})
    g.exact("sizes", found)


@pytest.mark.parametrize("processes, heads", [(1, 16), (4, 4), (16, 1), (64, 1)])
def test_the_papers_recipe_on_64_processes_holds_328_million_parameters_of_heads(processes, heads):
    """320,000 / 4 clusters of 4,096 features and a bias: the authors' process holds one such head."""
    recipe = zoo.resolve("deepercluster_vgg16_yfcc", {})
    with torch.device("meta"), dist.imagined(processes, processes - 1):
        backbone = backbones.build(recipe.backbone)
        net = methods.build(recipe, backbone, instances=95_920_149, classes=0)
    found = sum(p.numel() for name, p in net.named_parameters() if name in net.held_apart())
    assert found == heads * 80_000 * 4_097 and (processes < 16 or found == 327_760_000)


@pytest.mark.parametrize("batch, processes, classes", [(24, 3, 2), (24, 2, 8), (48, 6, 16), (12, 4, 1), (60, 5, 4)])
def test_a_process_holds_a_head_for_every_image_that_it_sees(batch, processes, classes):
    seen = super_class_of(torch.arange(batch), batch, classes).reshape(processes, -1)
    assert [sorted(set(row)) for row in seen.tolist()] == [
        list(held_by(r, processes, classes)) for r in range(processes)
    ]


def places_of(net):
    """Weight and bias of the trunk, of the super-classes, and of the clusters in super-class 2."""
    return [
        (net.backbone.weight, net.backbone.bias),
        (net.super_head.weight, net.super_head.bias),
        (net.sub_weight["2"], net.sub_bias["2"]),
    ]


def test_an_epoch_of_the_objective_agrees_with_the_authors(monkeypatch):
    """The third of four processes, which sees super-class 2: what it draws, its losses and accuracies, and where it ends."""
    g = load("deepercluster/train_epoch.npz")
    x, labels = torch.from_numpy(g.given("X")), torch.from_numpy(g.given("sub_labels")).long()
    backbone = nn.Linear(6, 7)
    backbone.dim = 7
    net = DeeperCluster(backbone, super_classes=4, rotations=False, clusters=20, pca=4)
    with torch.no_grad():
        for (weight, bias), name in zip(places_of(net), ("trunk", "super", "sub"), strict=True):
            weight.copy_(torch.from_numpy(g.given(f"init_{name}.weight")))
            bias.copy_(torch.from_numpy(g.given(f"init_{name}.bias")))
    net.labels, net.batch = torch.stack([torch.full_like(labels, 2), 2 * net.each + labels]), 32
    monkeypatch.setattr(dist, "rank", lambda: 2)
    monkeypatch.setattr(dist, "world_size", lambda: 4)
    order = uniform_over_labels(labels.numpy(), 40, np.random.RandomState(5))
    g.exact("index_order", order)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    stats = []
    for ids in torch.from_numpy(order).split(8):
        loss, got = net.loss(Batch(ids, [x[ids]]), 0)
        of = torch.full((8,), 2)
        parts = [
            F.cross_entropy(z, y).item()
            for z, y in zip(net.heads(F.relu(backbone(x[ids])), of), (of, labels[ids]), strict=True)
        ]
        stats.append(
            [
                100 * got["accuracy"],
                loss.item(),
                100 * got["accuracy_super"],
                parts[0],
                100 * got["accuracy_sub"],
                parts[1],
            ]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    epoch, steps = 3, len(stats)
    name = next(n for n in g.names if n.startswith("returned"))
    g.agree(name, np.array([epoch, (epoch + 1) * steps, *np.mean(stats, axis=0)]))
    for (weight, bias), name in zip(places_of(net), ("trunk", "super", "sub"), strict=True):
        g.agree(f"final_{name}.weight", weight)
        g.agree(f"final_{name}.bias", bias)
    reason = "names of the authors' files and keys; this project keeps one checkpoint of its own form"
    assert {"state_dict", "pred_layer_state_dict"} <= set(g.checked("checkpoint_keys", reason))
    assert len(g.checked("files_written", reason)) == 4 and "optimizer" in g.checked("pred_checkpoint_keys", reason)
    assert g.checked("checkpoint_epoch_start_iter", reason).tolist() == [epoch + 1, 0]


def test_a_batch_has_equal_parts_of_all_super_classes_and_even_clusters():
    net = method()
    ctx = context(net)
    net.before_epoch(0, ctx)
    order = net.sampler(120, 0, ctx)
    assert len(order) % 16 == 0 and net.epoch_size(120) == 8 * 60
    batches = torch.from_numpy(order).reshape(-1, 16)
    of = super_class_of(torch.arange(16), 16, 8)
    assert (net.labels[0][batches] == of // 4).all()
    counts = torch.bincount(net.labels[1][order], minlength=10)
    assert counts.max() <= 2 * counts.min()


def test_each_image_is_turned_as_its_super_class_says():
    of = super_class_of(torch.arange(8), 8, 8)
    out = turned(IMAGES[:8], of)
    for i in range(8):
        assert torch.equal(out[i], torch.rot90(IMAGES[i], i % 4, (-2, -1)))


def test_each_image_goes_through_the_cluster_head_of_its_super_class():
    net, of = method(), torch.tensor([3, 0, 3, 7])
    h = torch.randn(4, 8)
    supers, subs = net.heads(h, of)
    assert torch.allclose(supers, net.super_head(h))
    for i, s in enumerate(of):
        assert torch.allclose(subs[i], net.sub_weight[str(int(s))] @ h[i] + net.sub_bias[str(int(s))], atol=1e-6)


def test_a_cluster_head_learns_as_if_its_super_class_were_alone():
    net = method()
    ctx = context(net)
    net.before_epoch(0, ctx)
    net.before_step(0, ctx)
    ids = torch.from_numpy(net.sampler(120, 0, ctx)[:16])
    net.loss(Batch(ids, [IMAGES[ids]]), 0)[0].backward()
    net.after_backward(0)
    joint, own = net.sub_weight["5"].grad.clone(), ids[10:12]  # super-class 5: super-cluster 1, turned once
    h = F.relu(net.backbone(torch.rot90(IMAGES[own], 1, (-2, -1))))
    alone = F.cross_entropy(F.linear(h, net.sub_weight["5"], net.sub_bias["5"]), net.labels[1][own] - net.each)
    assert torch.allclose(torch.autograd.grad(alone, net.sub_weight["5"])[0], joint, atol=1e-6)


def test_assignments_are_renewed_every_few_epochs_with_fresh_heads():
    net = method(reassignment=2)
    ctx, generations = context(net), []
    for epoch in range(4):
        net.before_epoch(epoch, ctx)
        generations.append(net.generation)
    assert generations == [1, 1, 2, 2]
    assert net.labels.shape == (2, 120) and len(net.labels[1].unique()) == 10 and net.health()["empty_clusters"] == 0


def test_the_reductions_are_deepcluster_and_rotnet():
    cluster = method(super_classes=1, rotations=False)
    ctx = context(cluster)
    cluster.before_epoch(0, ctx)
    cluster.before_step(0, ctx)
    ids = torch.from_numpy(cluster.sampler(120, 0, ctx)[:16])
    loss, _ = cluster.loss(Batch(ids, [IMAGES[ids]]), 0)
    h = F.relu(cluster.backbone(IMAGES[ids]))
    assert torch.allclose(
        loss, F.cross_entropy(F.linear(h, cluster.sub_weight["0"], cluster.sub_bias["0"]), cluster.labels[1][ids])
    )
    rotnet = method(super_classes=4, clusters=1)
    rotnet.before_epoch(0, SimpleNamespace(n=120))  # no features are asked for
    rotnet.before_step(0, ctx)
    loss, _ = rotnet.loss(Batch(ids, [IMAGES[ids]]), 0)
    views = torch.cat([torch.rot90(IMAGES[ids[4 * q : 4 * q + 4]], q, (-2, -1)) for q in range(4)])
    expected = F.cross_entropy(rotnet.super_head(F.relu(rotnet.backbone(views))), torch.arange(4).repeat_interleave(4))
    assert torch.allclose(loss, expected)


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"super_classes": 6}, "multiple of 4"),
        ({"clusters": 121}, "params.clusters=121"),
        ({"pca": 9}, "params.pca=9"),
        ({"clusters": 1}, "params.clusters=1"),
    ],
)
def test_what_cannot_be_clustered_is_one_clear_error(settings, word):
    with pytest.raises(UserError, match=word):
        net = method(**settings)
        net.before_epoch(0, context(net))


def test_a_batch_that_cannot_be_shared_is_one_clear_error():
    with pytest.raises(UserError, match="choose a multiple, e.g. batch=16"):
        method().share_of(18)
