"""Average precision of detections: COCO's (faster-coco-eval) and VOC's, with a standard error over the images.

The two differ in more than their thresholds. VOC: IoU above the threshold, difficult objects are neither found nor missed,
11 points or the area under the curve. COCO: IoU at or above it, 101 points, at most 100 detections of an image and category,
crowd regions take any number of detections without counting them. Rates are in percent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torchvision.ops import box_iou

from zoo.data import rle

from ..scores import jackknife
from . import optional

ELEVEN = np.arange(0.0, 1.1, 0.1)
THRESHOLDS = np.arange(0.5, 1.0, 0.05).round(2)
COCO_NAMES = ("ap", "ap50", "ap75", "aps", "apm", "apl", "ar1", "ar10", "ar100", "ars", "arm", "arl")


@dataclass
class Detections:
    """Detections of a split, n in all.

    images   int64 (n,): position of the image in its split
    classes  int64 (n,): index into the split's class names
    scores   float64 (n,)
    boxes    float64 (n, 4): x0, y0, x1, y1 in pixels of the image file, x1 - x0 is the width
    masks    COCO run lengths, one per detection, or None
    """

    images: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    masks: list[dict[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def table(self) -> np.ndarray:
        """float64 (n, 7): image, class, score, box; what is kept beside a record. Masks are left out."""
        return np.column_stack([self.images, self.classes, self.scores, self.boxes]).astype(np.float64)

    @classmethod
    def of(cls, table: np.ndarray) -> Detections:
        """From ``table``."""
        numbers = table.reshape(-1, 7)
        return cls(numbers[:, 0].astype(np.int64), numbers[:, 1].astype(np.int64), numbers[:, 2], numbers[:, 3:])


Score = Callable[[np.ndarray], dict[str, float]]
"""Positions of images -> percent by name; scores that are not defined on these images are left out."""


def with_errors(score: Score, images: int) -> dict[str, tuple[float, float]]:
    """(percent, standard error) by name, on all images."""
    errors = jackknife(score, images)
    return {name: (value, errors[name]) for name, value in score(np.arange(images)).items()}


# ---------------------------------------------------------------- COCO


def coco_truth(source: Any, masks: bool = False) -> dict[str, Any]:
    """A split in COCO's layout: images 1..N, categories 1..C, annotations from 1 (to the evaluators 0 means no match)."""
    annotations: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for i in range(len(source)):
        objects = source.objects(i)
        images.append({"id": i + 1})
        shapes = []
        if masks:
            drawn = source.masks(i)
            shapes, (height, width) = [rle.encode(mask) for mask in drawn], drawn.shape[1:]
            images[-1] |= {"height": int(height), "width": int(width)}
        for k, box in enumerate(objects.boxes.tolist()):
            entry: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": i + 1,
                "category_id": int(objects.classes[k]) + 1,
                "iscrowd": int(objects.crowd[k]),
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "area": float(objects.area[k]),
            }
            if masks:
                entry["segmentation"] = shapes[k]
            annotations.append(entry)
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(source.classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_results(found: Detections, masks: bool = False) -> list[dict[str, Any]]:
    """Detections as COCO's evaluators read them, numbered as in ``coco_truth``. Of masks the area is the mask's."""
    shapes: Sequence[Any] = found.masks if masks and found.masks is not None else [None] * len(found)
    rows = []
    for i, k, score, box, shape in zip(
        found.images.tolist(), found.classes.tolist(), found.scores.tolist(), found.boxes.tolist(), shapes, strict=True
    ):
        own = {"segmentation": shape} if masks else {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
        rows.append({"image_id": i + 1, "category_id": k + 1, "score": score, **own})
    return rows


def coco_evaluator(truth: dict[str, Any], results: Sequence[dict[str, Any]], kind: str = "bbox") -> Any:
    """A COCOeval_faster that has not run; ``kind``: bbox or segm."""
    library = optional("faster_coco_eval", "COCO's average precision")
    quiet = lambda *words: None
    reference = library.COCO({key: [dict(entry) for entry in truth[key]] for key in truth}, print_function=quiet)
    answers = reference.loadRes([dict(entry) for entry in results])
    return library.COCOeval_faster(reference, answers, iouType=kind, print_function=quiet)


def coco_score(truth: dict[str, Any], results: Sequence[dict[str, Any]], kind: str = "bbox") -> Score:
    """AP, AP50, AP75, AP and AR by area (below 32^2, below 96^2, above) and by number of detections."""
    every = np.array([entry["id"] for entry in truth["images"]])
    evaluator = coco_evaluator(truth, results, kind)

    def score(positions: np.ndarray) -> dict[str, float]:
        evaluator.params.imgIds = every[positions].tolist()
        evaluator.run()
        values = np.asarray(evaluator.stats[: len(COCO_NAMES)], dtype=np.float64)
        return {name: 100 * float(v) for name, v in zip(COCO_NAMES, values, strict=True) if v >= 0}

    return score


# ---------------------------------------------------------------- VOC


@dataclass
class VocMatches:
    """Detections of one class by falling score, judged once; every subset of the images is scored from it.

    images    int64 (n,) of the detections
    outcomes  int8 (thresholds, n): 1 found, 0 false, -1 on a difficult object: not counted
    objects   int64 (m,): the image of each object that is not difficult
    """

    images: np.ndarray
    outcomes: np.ndarray
    objects: np.ndarray
    thresholds: np.ndarray = field(default_factory=lambda: THRESHOLDS)

    def curve(self, threshold: int, kept: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Recall and precision after each detection at ``thresholds[threshold]``; kept: bool by image."""
        outcomes, objects = self.outcomes[threshold], self.objects
        if kept is not None:
            outcomes, objects = outcomes[kept[self.images]], objects[kept[objects]]
        found, false = np.cumsum(outcomes == 1), np.cumsum(outcomes == 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            recall = found / np.float64(len(objects))
        return recall, found / np.maximum(found + false, np.finfo(np.float64).eps)

    def average_precision(self, points: Literal[11] | None, kept: np.ndarray | None = None) -> np.ndarray:
        """(thresholds,) in 0..1."""
        return np.array([voc_average(*self.curve(t, kept), points) for t in range(len(self.thresholds))])


def voc_average(recall: np.ndarray, precision: np.ndarray, points: Literal[11] | None) -> float:
    """Average precision of one curve: the mean over 11 recalls of the best precision there or beyond, or (``points`` None)
    the area under the monotone envelope.

    The recalls are those of numpy's arange(0, 1.1, 0.1), as in the reference implementations: 0.3, 0.6 and 0.7 lie one
    rounding above the tenths.
    """
    if points is not None:
        return float(np.mean([precision[recall >= level].max(initial=0.0) for level in ELEVEN]))
    if not len(recall):
        return 0.0
    ends = np.concatenate([[0.0], recall, [1.0]])
    best = np.maximum.accumulate(np.concatenate([[0.0], precision, [0.0]])[::-1])[::-1]
    return float(np.sum(np.diff(ends) * best[1:]))


def voc_matches(
    truth: Sequence[Any], found: Detections, classes: int, *, rounded: bool = False, thresholds: np.ndarray = THRESHOLDS
) -> list[VocMatches]:
    """One VocMatches per class. truth: the ``Objects`` of every image.

    A detection is judged by the object of its class that it overlaps most, difficult ones included. Equal scores keep the
    order of the images. rounded: scores to three decimals and 1-based boxes to one, as detectron2 writes them for VOC.
    """
    scores, boxes = found.scores, found.boxes
    if rounded:
        shift = np.array([1, 1, 0, 0], dtype=np.float32)
        written = (boxes.astype(np.float32) + shift).tolist()
        boxes = np.array([[float(f"{v:.1f}") for v in box] for box in written]).reshape(-1, 4) - shift
        scores = np.array([float(f"{s:.3f}") for s in scores.tolist()])
    found_by: list[VocMatches] = []
    for k in range(classes):
        mine = np.flatnonzero(found.classes == k)
        mine = mine[np.argsort(found.images[mine], kind="stable")]
        mine = mine[np.argsort(-scores[mine], kind="stable")]
        overlap, target = np.zeros(len(mine)), np.full(len(mine), -1)
        owner: list[int] = []
        difficult: list[bool] = []
        images = found.images[mine]
        for i, objects in enumerate(truth):
            own = np.flatnonzero(objects.classes == k)
            rows = np.flatnonzero(images == i)
            if len(own) and len(rows):
                iou = box_iou(torch.as_tensor(boxes[mine[rows]]), torch.as_tensor(objects.boxes[own])).numpy()
                overlap[rows], target[rows] = iou.max(1), iou.argmax(1) + len(owner)
            owner += [i] * len(own)
            difficult += objects.difficult[own].tolist()
        hard = np.array(difficult, dtype=bool)
        outcomes = np.stack([_judge(overlap, target, hard, t) for t in thresholds])
        found_by.append(VocMatches(images, outcomes, np.array(owner, dtype=np.int64)[~hard], thresholds))
    return found_by


def _judge(overlap: np.ndarray, target: np.ndarray, hard: np.ndarray, threshold: float) -> np.ndarray:
    """int8 (n,) outcomes of detections by falling score: the first one on an object finds it, later ones are false."""
    outcome = np.zeros(len(overlap), dtype=np.int8)
    on = np.flatnonzero(overlap > threshold)
    if len(on):
        difficult = hard[target[on]]
        outcome[on[difficult]] = -1
        counted = on[~difficult]
        _, first = np.unique(target[counted], return_index=True)
        outcome[counted[first]] = 1
    return outcome


def voc_score(truth: Sequence[Any], found: Detections, classes: int, *, rounded: bool = False) -> Score:
    """ap, ap50, ap75 with 11 points, and the same with ``_area``: means over the classes that have an object to find."""
    matches = voc_matches(truth, found, classes, rounded=rounded)

    def score(positions: np.ndarray) -> dict[str, float]:
        kept = np.zeros(len(truth), dtype=bool)
        kept[positions] = True
        present = [m for m in matches if kept[m.objects].any()]
        values: dict[str, float] = {}
        ways: tuple[tuple[str, Literal[11] | None], ...] = (("", 11), ("_area", None))
        for suffix, points in ways:
            if present:
                each = 100 * np.mean([m.average_precision(points, kept) for m in present], axis=0)
                values |= {f"ap{suffix}": each.mean(), f"ap50{suffix}": each[0], f"ap75{suffix}": each[5]}
        return {name: float(value) for name, value in values.items()}

    return score
