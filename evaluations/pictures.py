"""Pictures of a model's features on labelled images: neighbours, confusion, PCA, montages of clusters, accuracy by layer and epoch.

    python -m evaluations pictures swav_digits digits

Features are those of the cluster protocol of the data set (``cluster_digits``; of a folder ``cluster_folder``), kept as for every
evaluation; k-means is fitted on its training split, and the images shown are of its test split. PNG files lie below ``out``/pictures.
Without labels there is ``python -m evaluations cluster``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine import checkpoint, rng
from engine.maths.kmeans import assign
from engine.maths.knn import search
from engine.maths.pca import pca
from engine.maths.rows import Rows
from results import record as records
from results.record import slug
from zoo.errors import UserError, choices

from . import protocol as protocols
from .inputs import datasets
from .inputs.features import FeatureRequest, layers_of, pool_of
from .kinds import clustering
from .measure import Measurement, Settings

KINDS = ("neighbours", "confusion", "pca", "montage_purity", "montage_random", "layers", "epochs")
ASKED, NEAREST = 8, 8  # images whose neighbours are shown, and how many of each
CLUSTERS, TILES = 10, 10  # rows and columns of a montage
POINTS = 3000  # of the plane
SHOWN_CLASSES = 10  # in the plane: as many as there are colours and marks that an eye tells apart


def confusion(truth: np.ndarray, assigned: np.ndarray, clusters: int, classes: int) -> np.ndarray:
    """(clusters, classes) int64: how many images of each class lie in each cluster. Images without a cluster (-1) are left out."""
    table = np.zeros((clusters, classes), dtype=np.int64)
    np.add.at(table, (assigned[assigned >= 0], truth[assigned >= 0]), 1)
    return table


def purity(table: np.ndarray) -> np.ndarray:
    """(clusters,) share of each cluster's images that are of its largest class; 0 of an empty cluster."""
    return np.asarray(table.max(1) / np.maximum(table.sum(1), 1))


def by_class(table: np.ndarray) -> np.ndarray:
    """Clusters in the order of their largest classes, purer ones first, so that a good clustering is a diagonal."""
    return np.lexsort((-purity(table), table.argmax(1)))


def plane(x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 2) on the two directions of largest variance of x (n, D), and the share of all variance on each (2,)."""
    rows = torch.as_tensor(np.asarray(x), dtype=torch.float32)
    found = pca(rows, 2, whiten=False, world="local")
    whole = rows.double().var(0, correction=0).sum()
    return found(rows).numpy(), (found.variances / whole).numpy()


def by_layer(found: Sequence[records.Record], layers: Sequence[str]) -> dict[str, list[tuple[str, float, float]]]:
    """{protocol: (layer, mean accuracy, standard deviation over records)} of records with one ``top1_<layer>`` for several layers,
    in the network's order; the deviation of a single record is 0."""
    values: dict[str, dict[str, list[float]]] = {}
    for record in found:
        of = {layer: record.metrics[f"top1_{layer}"].value for layer in layers if f"top1_{layer}" in record.metrics}
        if len(of) > 1:
            for layer, value in of.items():
                values.setdefault(record.protocol, {}).setdefault(layer, []).append(value)
    return {
        name: [
            (layer, float(np.mean(of[layer])), float(np.std(of[layer], ddof=1)) if len(of[layer]) > 1 else 0.0)
            for layer in layers
            if layer in of
        ]
        for name, of in sorted(values.items())
    }


def by_epoch(found: Sequence[records.Record], model: str) -> dict[str, list[tuple[int, float, float]]]:
    """{protocol: (epoch, mean accuracy, standard deviation over records)} of the snapshots of a run, ``<model>-epoch<N>``, in order;
    protocols with one epoch only are left out."""
    values: dict[str, dict[int, list[float]]] = {}
    for record in found:
        epoch = record.model.removeprefix(f"{model}-epoch")
        if epoch.isdigit() and epoch != record.model and "top1" in record.metrics:
            values.setdefault(record.protocol, {}).setdefault(int(epoch), []).append(record.metrics["top1"].value)
    return {
        name: [(n, float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else 0.0) for n, v in sorted(of.items())]
        for name, of in sorted(values.items())
        if len(of) > 1
    }


@dataclass
class Shown:
    """What every picture is drawn from. truth, assigned: (N,) of the images shown; distance: to their centroids; x, bank: features
    of the images shown and of the training split; images, keys: the two sources; ``same``: they are one."""

    title: str
    classes: list[str]
    truth: np.ndarray
    assigned: np.ndarray
    distance: np.ndarray
    table: np.ndarray
    x: Tensor
    bank: Tensor
    images: Any
    keys: Any
    same: bool
    seed: int

    def members(self, cluster: int, typical: bool) -> np.ndarray:
        """Up to TILES images of a cluster: the nearest to its centroid, or any."""
        found = np.flatnonzero(self.assigned == cluster)
        order = (
            np.argsort(self.distance[found], kind="stable")
            if typical
            else rng.permutation(self.seed, "montage", cluster, len(found))
        )
        return np.asarray(found[order][:TILES])

    def rows(self, how: str) -> np.ndarray:
        """Clusters of a montage: half the purest and half the least pure, purest first, or any; all where they fit."""
        full = np.flatnonzero(self.table.sum(1))
        if how == "random":
            return np.asarray(full[rng.permutation(self.seed, "montage rows", 0, len(full))][:CLUSTERS])
        order = full[np.argsort(-purity(self.table)[full], kind="stable")]
        half = CLUSTERS // 2
        return order if len(order) <= CLUSTERS else np.concatenate([order[:half], order[-half:]])

    def neighbours(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images asked (Q,), drawn evenly, and their nearest training images (Q, K) with cosines; never the image itself."""
        asked = np.sort(rng.permutation(self.seed, "neighbours", 0, len(self.x))[:ASKED])
        k = min(NEAREST, len(self.bank) - self.same)
        cosine, index = search(self.bank, self.x[torch.as_tensor(asked)], k + self.same)
        if self.same:
            own = index == torch.as_tensor(asked)[:, None]
            own[~own.any(1), -1] = True
            cosine, index = cosine[~own].view(-1, k), index[~own].view(-1, k)
        return asked, index.numpy(), cosine.numpy()


def pictures(model: str, data: str, given: Mapping[str, Any]) -> list[Path]:
    """Files written. given: kinds=[…] of KINDS (all), clusters=N (the number of classes), out, device, workers, …

    Raises UserError for a data set without a cluster protocol, an unknown kind, and a folder without classes.
    """
    rest = dict(given)
    asked = rest.pop("kinds", None) or list(KINDS)
    asked = asked if isinstance(asked, list) else [asked]
    for kind in asked:
        if kind not in KINDS:
            raise UserError(f"kinds={kind}: no such picture{choices(str(kind), KINDS)}")
    if "clusters" in rest:
        rest["head.clusters"] = rest.pop("clusters")
    name = f"cluster_{data}"
    if name not in protocols.names():
        if not Path(data).expanduser().is_dir():
            known = [n.removeprefix("cluster_") for n in protocols.names("cluster_*")]
            raise UserError(f"{data}: neither a folder of images nor a data set{choices(data, known)}")
        name, rest["data"] = "cluster_folder", data
    datasets.forget()
    measurement = Measurement.of(name, model, Settings.of(rest))
    measurement.check()
    shown = seen(measurement)
    target = measurement.out / "pictures" / measurement.model.name / f"{slug(Path(data).name)}-{measurement.record_key}"
    target.mkdir(parents=True, exist_ok=True)
    from . import drawing

    own, trained_on = measurement.model.name, getattr(measurement.model.recipe, "dataset", None)
    in_epoch = len(shown.keys) if trained_on == measurement.protocol.dataset else None
    by_depth = by_layer(kept(measurement, own), measurement.model.layers)
    over_time = by_epoch(kept(measurement, f"{own}-epoch*"), own)
    draw: dict[str, Callable[[], Any]] = {
        "neighbours": lambda: drawing.neighbours(shown),
        "confusion": lambda: drawing.confusion(shown),
        "pca": lambda: drawing.scatter(shown),
        "montage_purity": lambda: drawing.montage(shown, "purity"),
        "montage_random": lambda: drawing.montage(shown, "random"),
    }
    if by_depth:  # of several layers or epochs something was measured
        draw["layers"] = lambda: drawing.layers(own, by_depth)
    if over_time:
        draw["epochs"] = lambda: drawing.epochs(own, over_time, in_epoch)
    written = []
    for kind in (k for k in KINDS if k in asked and k in draw):
        figure = draw[kind]()
        path = target / f"{kind}.png"
        checkpoint.write_atomic(path, lambda f, figure=figure: figure.savefig(f, format="png", dpi=130))  # type: ignore[misc]
        written.append(path)
    return written


def kept(measurement: Measurement, pattern: str) -> list[records.Record]:
    """Records of the models of a pattern, the user's own before the committed ones of the same protocol."""
    found: dict[tuple[str, str], list[records.Record]] = {}
    for root in (records.COMMITTED, measurement.out / "measured"):
        here: dict[tuple[str, str], list[records.Record]] = {}
        for path in records.files(root):
            if fnmatchcase(path.parent.name, pattern):
                one = records.read(path)
                here.setdefault((one.model, one.protocol), []).append(one)
        found |= here
    return [one for group in found.values() for one in group]


def seen(measurement: Measurement) -> Shown:
    """Features, clusters and classes, as the cluster protocol makes them with its first seed."""
    protocol, settings = measurement.protocol, measurement.settings
    head, train, test = protocols.head_of(protocol), protocol.splits.train, protocol.splits.test
    measurement.begin(lambda: None, measurement.plan, print)
    layer = layers_of(protocol, measurement.model)[0]
    pool = pool_of(protocol, layer)
    bank, x = (measurement.get(FeatureRequest(split, layer, pool)) for split in (train, test))
    keys, images = measurement.source(train), measurement.source(test)
    prepare, device = clustering.preparation(bank, head.preprocess), measurement.compute.device
    clusters = clustering.clusters_of(head, len(keys.classes), len(bank))
    found = clustering.fit(Rows(prepare(bank), device=device), clusters, head, settings.seed, 0)
    assigned, distance = (v.cpu().numpy() for v in assign(Rows(prepare(x), device=device), found.centroids))
    truth, classes = measurement.labels(test), [str(name) for name in keys.classes]
    return Shown(
        title=f"{measurement.model.name} on {protocol.dataset}",
        classes=classes,
        truth=truth,
        assigned=assigned,
        distance=distance,
        table=confusion(truth, assigned, clusters, len(classes)),
        x=torch.as_tensor(np.asarray(x)),
        bank=torch.as_tensor(np.asarray(bank)),
        images=images,
        keys=keys,
        same=train == test,
        seed=settings.seed,
    )
