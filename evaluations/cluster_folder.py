"""Clustering of an unlabelled folder of images: the assignment of each image, and a montage of each cluster.

    python -m evaluations cluster swav_800ep ~/photos clusters=20

writes ``assignment.csv`` (image, cluster, distance to the centroid), ``centroids.npy`` and ``montage.jpg``: one row per
cluster, largest first, its most typical images from left to right. They lie below ``out``/clusters, in a folder whose name ends
in the hash of weights, images and settings.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from engine import checkpoint
from engine.maths.kmeans import assign
from engine.maths.rows import Rows
from results.record import slug
from zoo.errors import UserError

from .inputs import datasets
from .inputs.features import FeatureRequest
from .kinds.clustering import Head, fit, preparation
from .measure import Measurement, Settings

TILE, COLUMNS, ROWS, LABEL = 64, 12, 40, 56


def cluster(model: str, folder: str, given: Mapping[str, Any]) -> list[Path]:
    """Files written. given: clusters (default: about the square root of half the images), iterations, restarts, out, ..."""
    if not Path(folder).expanduser().is_dir():
        raise UserError(f"{folder}: no such folder of images")
    own = {k: given[k] for k in ("clusters", "iterations", "restarts", "preprocess") if k in given}
    rest = {k: v for k, v in given.items() if k not in own}
    settings = Settings.of({**rest, "data": folder, **{f"head.{k}": v for k, v in own.items()}})
    datasets.forget()
    measurement = Measurement.of("cluster_images", model, settings)
    measurement.begin(lambda: None, measurement.plan, print)
    source = measurement.source("train")
    x = measurement.get(FeatureRequest("train"))
    head = Head(**{**measurement.protocol.head, "clusters": own.get("clusters", max(2, round((len(x) / 2) ** 0.5)))})
    assert head.clusters is not None
    if head.clusters > len(x):
        raise UserError(f"clusters={head.clusters}: only {len(x)} images in {folder}")
    rows = Rows(preparation(x, head.preprocess)(x), device=measurement.compute.device)
    found = fit(rows, head.clusters, head, settings.seed, 0)
    labels, distance = (v.numpy() for v in assign(rows, found.centroids))
    by_size = np.argsort(-np.bincount(labels, minlength=head.clusters), kind="stable")
    labels = np.argsort(by_size)[labels]  # cluster 0 is the largest

    target = (
        measurement.out
        / "clusters"
        / measurement.model.name
        / f"{slug(Path(folder).expanduser().resolve().name)}-{measurement.record_key}"
    )
    target.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "cluster", "distance"])
    table.writerows((source.name(i), int(labels[i]), f"{distance[i]:.6f}") for i in range(len(source)))
    checkpoint.write_text(target / "assignment.csv", text.getvalue())
    checkpoint.write_atomic(
        target / "centroids.npy", lambda f: np.save(f, found.centroids.cpu()[by_size.copy()].numpy())
    )
    picture = montage(source, labels, distance)
    checkpoint.write_atomic(target / "montage.jpg", lambda f: picture.save(f, format="JPEG", quality=90))
    return [target / name for name in ("assignment.csv", "centroids.npy", "montage.jpg")]


def montage(source: Any, labels: np.ndarray, distance: np.ndarray) -> Image.Image:
    """One row per cluster (the first ones): its number and size, then the images nearest to the centroid."""
    clusters = min(int(labels.max()) + 1, ROWS)
    sheet = Image.new("RGB", (LABEL + COLUMNS * TILE, clusters * TILE), "white")
    pen = ImageDraw.Draw(sheet)
    for row in range(clusters):
        members = np.flatnonzero(labels == row)
        pen.text((4, row * TILE + TILE // 2 - 12), f"{row}\n{len(members)}", fill="black")
        for column, i in enumerate(members[np.argsort(distance[members], kind="stable")][:COLUMNS]):
            tile = source.image(int(i)).convert("RGB")
            side = min(tile.size)
            left, top = (tile.width - side) // 2, (tile.height - side) // 2
            tile = tile.crop((left, top, left + side, top + side)).resize((TILE - 2, TILE - 2))
            sheet.paste(tile, (LABEL + column * TILE, row * TILE))
    return sheet
