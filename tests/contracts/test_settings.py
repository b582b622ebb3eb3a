"""Every setting of every method does what it says: another value moves a stated quantity in a stated direction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import contract_tools as tools
import numpy as np
import pytest
import torch

from engine.maths import kmeans
from reproduce import methods, stream

Quantity = Callable[[Any, Any, Any], float]  # of a method after three steps, its next batch and the context
UP, DOWN, OTHER = "up", "down", "other"


@dataclass(frozen=True)
class Does:
    """With `value` instead of the recipe's (or `base`'s) the quantity goes this way."""

    value: Any
    quantity: Quantity
    way: str
    base: Mapping[str, Any] = field(default_factory=dict)


def loss(method, batch, ctx):
    return tools.loss_of(method, batch, 3, ctx).item()


def parameters(method, batch, ctx):
    return sum(p.numel() for p in method.parameters())


def norms(method, batch, ctx):
    return sum(isinstance(m, torch.nn.BatchNorm1d) for m in method.modules())


def collapsed(method, batch, ctx):
    return method.collapsed_loss


def targets(method, batch, ctx):
    method.before_step(3, ctx)
    z, scores = method.scores(batch.views)
    return method.assign(z, scores, batch.epoch)


def entropy(method, batch, ctx):
    q = targets(method, batch, ctx)
    return float(-(q * q.clamp(min=1e-30).log()).sum(-1).mean())


def imbalance(method, batch, ctx):
    return float(targets(method, batch, ctx)[0].sum(0).std())


def prototypes_moved(method, batch, ctx):
    """How far prototypes turned in three steps, from where the first of them found them."""
    now, before = (
        [p.detach() for p in m.prototypes.parameters()]
        for m in (method, tools.warm(method.method_name, 0, **method.overrides)[0])
    )
    unit = torch.nn.functional.normalize
    return sum(float((unit(a, dim=1) - unit(b, dim=1)).norm()) for a, b in zip(now, before, strict=True))


def queue_rows(method, batch, ctx):
    return 0 if method.queue is None else method.queue.shape[1]


def banked_views(method, batch, ctx):
    return len(method.bank.rows()[1])


def cosine_with_centre(method, batch, ctx):
    """Of the labelled embeddings with the prototype of their label: what spherical k-means raises."""
    _, z = ctx.extract(0)
    weight = next(method.prototypes.parameters()).detach()
    return float((z * weight[method.labels[0]]).sum(1).mean())


def label_imbalance(method, batch, ctx):
    return float(torch.bincount(method.labels[0], minlength=20).double().std())


def health(name):
    return lambda method, batch, ctx: method.health()[name]


def epoch_size(method, batch, ctx):
    return method.epoch_size(100)


def found_clusters(method, batch, ctx):
    return int(method.labels.max()) + 1


def label_sum(method, batch, ctx):
    """Any change of labels shows."""
    return float((method.labels * torch.arange(1, method.labels.numel() + 1).view_as(method.labels)).sum())


def clustering(name, value):
    """`value` of what the k-means (`name` in the method's file) that is called next was given and gave."""

    def quantity(method, batch, ctx):
        seen, module = [], type(method).__module__
        plain = getattr(__import__(module, fromlist=[name]), name)

        def spied(data, *args, **options):
            found = plain(data, *args, **options)
            seen.append(value(data, found))
            return found

        with mock.patch(f"{module}.{name}", spied):
            method.before_epoch(0, ctx)
        return seen[0]

    return quantity


WIDTH, PASSES = (
    clustering("kmeans", lambda data, _: data.shape[1]),
    clustering("kmeans", lambda _, found: len(found.history)),
)
WIDTH2 = clustering("hierarchy", lambda data, _: data.shape[1])


def by_faiss(method, batch, ctx):
    """Indices of faiss that an assignment makes."""
    with mock.patch("engine.maths.kmeans.flat_index", wraps=kmeans.flat_index) as index:
        method.before_epoch(0, ctx)
    return index.call_count


PASSES2 = clustering("hierarchy", lambda _, found: max(len(level.history) for level in found.levels))


def assignments(method, batch, ctx):
    """In four epochs."""
    before = method.generation
    for epoch in range(4):
        method.before_epoch(epoch, ctx)
    return method.generation - before


def events(method, batch, ctx):
    """Steps before which SeLa renews labels, of a run of 30."""
    where = mock.Mock(wraps=ctx)
    where.total_steps, where.batch, where.n, where.seed = 30, 16, ctx.n, ctx.seed
    method.labels, method._events, found = None, None, []
    for step in range(30):
        before = method.labels
        method.before_step(step, where)
        found += [step] * (method.labels is not before)
    return found


def heads_renewed(method, batch, ctx):
    before = method.labels
    with torch.no_grad():
        for p in method.heads.parameters():
            p += torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    method.renew(1, ctx)
    return int((method.labels != before).any(1).sum())


def plain_extractions(method, batch, ctx):
    with mock.patch.object(stream.Stream, "extract", autospec=True, side_effect=stream.Stream.extract) as spied:
        method.renew(1, ctx)
    return sum(call.args[2] is None for call in spied.call_args_list)


def key_distance(method, batch, ctx):
    keys, queries = list(method.key_encoder.parameters()), [*method.backbone.parameters(), *method.head.parameters()]
    return float(sum((k - q).detach().norm() for k, q in zip(keys, queries, strict=True)))


def key_changes_with_its_company(method, batch, ctx):
    """The same images in two steps: how much their keys differ, where batch norm sees them in groups."""
    return float((method.keys(batch.views[1], 1) - method.keys(batch.views[1], 2)).norm())


def query_depends_on_the_other_half(method, batch, ctx):
    images = batch.views[0]
    other = torch.cat([images[:8], images[8:] + 1])
    return float((method.queries(images)[0] - method.queries(other)[0]).norm())


def views_share_statistics(method, batch, ctx):
    """How much an embedding of view 0 moves when view 1 does."""
    first, second = batch.views
    return float((method.project([first, second])[0] - method.project([first, 2 * second])[0]).detach().norm())


def queue_pointer(method, batch, ctx):
    return int(method.queue_ptr)


def memory_moved(method, batch, ctx):
    fresh = tools.build(tools.recipe(method.method_name, **method.overrides))
    return float((method.memory - fresh.memory).norm())


def row_lengths_off_one(method, batch, ctx):
    fresh = tools.build(tools.recipe(method.method_name, **method.overrides))
    return float((fresh.memory.norm(dim=1) - 1).abs().mean())


def classes_in_softmax(method, batch, ctx):
    loss(method, batch, ctx)
    return len(method._taken[1])


def class_rows(method):
    fresh = tools.build(tools.recipe(method.method_name, **method.overrides))
    return method.rows.whole() - fresh.rows.whole(), method.rows.whole()


def rows_moved(method, batch, ctx):
    return int((class_rows(method)[0] != 0).any(1).sum())


def way_of_rows(method, batch, ctx):
    return float(class_rows(method)[0].norm())


def length_of_rows(method, batch, ctx):
    return float(class_rows(method)[1].norm())


def images_of_an_epoch(method, batch, ctx):
    return len(np.unique(ctx.stream.order(0)))


def whole_mixtures(method, batch, ctx):
    return sum(method.draw(step)[0] for step in range(60))


def spread_of_lam(method, batch, ctx):
    return float(np.std([method.draw(step)[1] for step in range(200)]))


def first_partner(method, batch, ctx):
    return int(method.swap(torch.arange(8))[0])


def has_momentum(method, batch, ctx):
    return hasattr(method.base, "key_encoder")


def head_outputs(method, batch, ctx):
    return method.head.out_features


SIZES = {"dim": Does(96, parameters, UP), "hidden": Does(40, parameters, OTHER)}
SWAV_QUEUE = {
    "queue.length": Does(64, queue_rows, UP, {"params.queue": {"length": 32, "start_epoch": 0}}),
    "queue.start_epoch": Does(1, queue_rows, DOWN, {"params.queue": {"length": 32, "start_epoch": 0}}),
}
TRAINED_PROTOTYPES = Does(0, prototypes_moved, UP)
CLUSTERING = {
    **SIZES,
    "head_batchnorm": Does(False, norms, DOWN),
    "prototypes": Does([10, 20], collapsed, DOWN),
    "assign_crops": Does([1], banked_views, DOWN),
}
GRAPH = {"params.clustering": "pic"}
MOCO = {
    **SIZES,
    "momentum": Does(0.5, key_distance, DOWN),
    "queue": Does(600, collapsed, UP),
    "symmetric": Does(True, queue_pointer, UP),
    "shuffle_bn": Does(False, key_changes_with_its_company, DOWN, {"params.splits": 2}),
    "splits": Does(2, query_depends_on_the_other_half, DOWN),
}
WINDOW = {"params.window": {"size": 48, "stride": 16, "mode": "sliding"}}
CLASSES = {"params.class_sgd": {"lr": 0.1, "momentum": 0.1, "weight_decay": 0.0}}
# The temperature of a loss is looked at below.
SETTINGS: dict[str, dict[str, Does]] = {
    "swav": {
        **SIZES,
        "head_batchnorm": Does(False, norms, DOWN),
        "prototypes": Does(80, collapsed, UP),
        "assignment": Does("hard", entropy, DOWN),
        "epsilon": Does(0.5, entropy, UP),
        "sinkhorn_iterations": Does(30, imbalance, DOWN),
        "assign_crops": Does([1], lambda *a: len(targets(*a)), DOWN),
        "freeze_prototypes_steps": TRAINED_PROTOTYPES,
        **SWAV_QUEUE,
    },
    "deepclusterv2": {
        **CLUSTERING,
        "kmeans_iterations": Does(0, cosine_with_centre, DOWN, {"params.prototypes": [8]}),
        "freeze_prototypes_steps": TRAINED_PROTOTYPES,
    },
    "selav2": {
        **CLUSTERING,
        "freeze_prototypes_steps": TRAINED_PROTOTYPES,
        "assignment": Does("soft", lambda m, *_: len(m.plan), UP),
        "epsilon": Does(5.0, label_imbalance, UP),
        "max_iterations": Does(2, health("labelling_iterations"), DOWN),
        "tolerance": Does(1e-4, health("labelling_error"), DOWN),
        "relaxation": Does(
            1.0, health("labelling_iterations"), UP, {"params.epsilon": 0.002, "params.max_iterations": 5000}
        ),
    },
    "deepcluster": {
        "clusters": Does(30, collapsed, UP),
        "pca": Does(16, WIDTH, DOWN),
        "iterations": Does(1, PASSES, DOWN, {"params.clusters": 6, "params.pca": 4}),
        "backend": Does("faiss", by_faiss, UP),
        "reassign": Does(2.0, epoch_size, DOWN),
        "clustering": Does("pic", found_clusters, OTHER),
        "graph.neighbours": Does(20, found_clusters, DOWN, GRAPH),
        "graph.sigma": Does(2.0, label_sum, OTHER, GRAPH),
        "graph.alpha": Does(0.9, label_sum, OTHER, GRAPH),
        "graph.precision": Does("float32", label_sum, OTHER, GRAPH),
        "head_momentum": Does(0.9, lambda m, *_: m.param_groups()[1]["momentum"], UP),
    },
    "deepercluster": {
        "super_classes": Does(8, lambda m, *_: m.super_head.out_features, UP),
        "rotations": Does(False, lambda m, *_: m.super_clusters, UP),
        "clusters": Does(30, collapsed, UP),
        "pca": Does(16, WIDTH2, DOWN),
        "reassignment": Does(1, assignments, UP),
        "iterations": Does(1, PASSES2, DOWN),
        "backend": Does("faiss", by_faiss, UP),
        "epoch_divisor": Does(4, epoch_size, DOWN),
    },
    "sela": {
        "clusters": Does(30, collapsed, DOWN),
        "heads": Does(6, parameters, UP),
        "labelings": Does(4, lambda *a: len(events(*a)), DOWN),
        "spacing": Does("linear", lambda *a: sum(events(*a)), UP),
        "lam": Does(0.5, label_imbalance, UP, {"params.clusters": 20}),
        "tolerance": Does(1e-4, health("labeling_error"), DOWN),
        "max_iterations": Does(3, health("labeling_iterations"), DOWN),
        "relaxation": Does(1.0, health("labeling_iterations"), UP, {"params.lam": 500.0, "params.tolerance": 1e-4}),
        "heads_per_labeling": Does("one", heads_renewed, DOWN),
        "label_view": Does("plain", plain_extractions, UP),
    },
    "simclr": {
        **SIZES,
        "gather": Does("detached", lambda m, b, c: m.detached, UP),  # the gradient: test_slow_losses
        "encode": Does("together", views_share_statistics, UP, {"params.encode": "apart"}),
    },
    "mocov1": MOCO | {"hidden": Does(40, parameters, UP)},
    "mocov2": MOCO,
    "instdisc": {
        **SIZES,
        "momentum": Does(0.95, memory_moved, DOWN),
        "negatives": Does(700, collapsed, UP),
        "memory_init": Does("columns", row_lengths_off_one, UP),
    },
    "pic": {
        **SIZES,
        "window.size": Does(24, images_of_an_epoch, UP, WINDOW),
        "window.stride": Does(1, images_of_an_epoch, DOWN, WINDOW),
        "window.mode": Does("subset", images_of_an_epoch, OTHER, WINDOW),
        "negatives": Does(24, classes_in_softmax, DOWN),
        "correction": Does(False, rows_moved, DOWN, {"params.negatives": 24, "params.class_sgd.weight_decay": 0.1}),
        "class_sgd.lr": Does(1.0, way_of_rows, UP, CLASSES),
        "class_sgd.momentum": Does(0.9, way_of_rows, UP, CLASSES),
        "class_sgd.weight_decay": Does(1.0, length_of_rows, DOWN, CLASSES),
    },
    "pseudolabel": {
        "labels": Does("kmeans:10", found_clusters, DOWN),
        "rotations": Does(True, collapsed, UP),
        "columns": Does([0], collapsed, OTHER),
    },  # see test_pseudolabel
    "rotnet": {"angles": Does(2, head_outputs, DOWN)},
    "simsiam": {"dim": Does(200, parameters, UP), "hidden": Does(200, parameters, UP)},
    "supervised": {},
    "unmix": {
        "base": Does("mocov1", has_momentum, UP, {"params.mocov1": {"queue": 64}}),
        "probability": Does(0.9, whole_mixtures, UP),
        "beta": Does(8.0, spread_of_lam, DOWN),
        "pairing": Does("reversed", first_partner, UP),
        "form": Does(
            "released",
            lambda m, *_: m.released,
            UP,
            {"params.base": "swav", "params.swav": {"prototypes": 20, "hidden": 0}},
        ),
    },
}


def names(params: Mapping[str, Any], before: str = "") -> set[str]:
    inner = {name: value for name, value in params.items() if isinstance(value, Mapping)}
    return {before + name for name in params if name not in inner}.union(
        *(names(v, f"{before}{k}.") for k, v in inner.items())
    )


def test_every_setting_of_every_method_is_listed():
    for name in tools.trained():
        there = {key for key in names(methods.parameters(methods.find(name))) if name != "unmix" or "." not in key}
        assert there - {"temperature"} == set(SETTINGS[name]), name


LISTED = [
    (name, key) for name, effects in SETTINGS.items() for key in effects if (name, key) != ("pseudolabel", "columns")
]


@pytest.mark.parametrize(("name", "key"), LISTED, ids=lambda word: word)
def test_another_value_moves_its_quantity(name, key):
    effect, found = SETTINGS[name][key], []
    steps = 0 if effect.quantity in (parameters, norms, collapsed, head_outputs, cosine_with_centre) else 3
    for overrides in (dict(effect.base), {**effect.base, f"params.{key}": effect.value}):
        overrides = tools.WHOLE_BATCH.get(name, {}) | overrides
        method, batch, ctx = tools.warm(name, steps, **overrides)
        method.method_name, method.overrides = name, overrides
        found.append(effect.quantity(method, batch, ctx))
    before, after = found
    assert {UP: after > before, DOWN: after < before, OTHER: after != before}[effect.way], found


@pytest.mark.parametrize(
    "name", [name for name in tools.trained() if "temperature" in methods.parameters(methods.find(name))]
)
def test_at_a_high_temperature_nothing_is_told_apart(name):
    """The loss is ln of the number of candidates then, and is not at the recipe's own."""
    found = []
    for overrides in ({}, {"params.temperature": 1e5}):
        method, batch, ctx = tools.warm(name, **overrides)
        found.append(loss(method, batch, ctx))
    expected = method.collapsed_loss or math.log(2 * tools.BATCH - 1)
    assert found[1] == pytest.approx(expected, rel=1e-4) and found[0] != pytest.approx(expected, rel=1e-3)
