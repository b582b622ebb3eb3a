"""Conditions on labels, checked before an evaluation starts. Each function raises UserError with the place, the value, the next step.

A plan and a run ask the same questions (``Measurement.check``), so that what a run would refuse is refused before any work.
Of the test split only the presence of labels is looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.errors import UserError

from .inputs.splits import deepercluster_folds
from .protocol import Protocol


def labels(protocol: Protocol, split: str, source: Any) -> np.ndarray:
    """(N,) int64 classes of a split."""
    found: np.ndarray = source.labels
    if not len(found):
        raise UserError(f"{protocol.dataset}/{split}: no image")
    if (found < 0).any():
        raise UserError(
            f"{protocol.dataset}/{split}: {int((found < 0).sum())} images have no label, and "
            f"{protocol.id} needs them; without labels: python -m evaluations cluster MODEL FOLDER"
        )
    return found


def targets(protocol: Protocol, split: str, source: Any) -> np.ndarray:
    """(N, C) uint8 of a split with several labels per image: 1 present, 0 absent, 255 to be left out."""
    if source.targets is None:
        raise UserError(
            f"{protocol.dataset}/{split}: one label per image; {protocol.id} needs several (VOC's layout); with one: "
            "linear_folder, fewlabel_folder, knn_folder"
        )
    return positives(protocol, split, np.asarray(source.targets))


def positives(protocol: Protocol, split: str, found: np.ndarray) -> np.ndarray:
    """``found`` (N, C) itself, unless no image shows any class: average precision would have no value."""
    if not (found == 1).any():
        raise UserError(
            f"{protocol.dataset}/{split}: none of its {len(found)} images shows any class, so that {protocol.id} has nothing "
            "to find; look at its annotations: python -m zoo data check"
        )
    return found


def folds(protocol: Protocol, split: str, found: np.ndarray) -> None:
    """``select.folds`` parts of images with these classes (N,): each has an image, and some class is on both sides."""
    count, n = protocol.select.folds, len(found)
    if count > n:
        raise UserError(
            f"select.folds={count}: {protocol.dataset}/{split} has {n} images; set select.folds to {n} or less, or choose "
            "nothing: select.on=none with one value for each setting of grid"
        )
    if protocol.select.rule == "deepercluster" and not len(deepercluster_folds(found, count, 0)[1]):
        raise UserError(
            f"select.rule=deepercluster: no class of {protocol.dataset}/{split} has {count} images, one for each fold; lower "
            "select.folds, or select.rule=stratified"
        )
    several(protocol, split, found)


def several(protocol: Protocol, split: str, found: np.ndarray) -> None:
    """Some class has two images: one of them can be held out and its class still be learned."""
    _, sizes = np.unique(found, return_counts=True)
    if sizes.max() < 2:
        raise UserError(
            f"select.on={protocol.select.on}: every class of {protocol.dataset}/{split} has one image only, so that no setting "
            "can be chosen on them; choose nothing: select.on=none with one value for each setting of grid"
        )
