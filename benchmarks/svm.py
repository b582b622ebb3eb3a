"""Support vector machines of the VOC07 protocol: scikit-learn's LinearSVC one by one, against all problems together.

    python -m benchmarks.svm [--rounds 7] [--seconds 40]

One class of the protocol's five costs is fitted by LinearSVC in its dual form, as the scripts that made the published numbers do; here
four classes of five costs are one call, and the ratio is for one fit. Rows and dimensions are those of VOC07 trainval and ResNet-50,
the features are made up: rectified mixtures of what an image shows. The ratio depends on the costs: the dual slows down as they grow.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import _frame
from evaluations.kinds import svm
from evaluations.scores import average_precision

CLASSES = 4


def made_up(images: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(images, dim) features of unit length and (images, CLASSES) labels, several or none of them per image."""
    parts = np.random.default_rng(0).standard_normal((64, dim)) / 8
    draw = np.random.default_rng(seed)
    targets = (draw.random((images, CLASSES)) < 0.08).astype(np.uint8)
    shown = draw.standard_normal((images, 64))
    shown[:, :CLASSES] += 2.0 * targets
    x = torch.as_tensor(np.maximum(shown @ parts + 0.3 * draw.standard_normal((images, dim)), 0))
    return F.normalize(x, dim=1).float().numpy(), targets


def rows(options: _frame.Options) -> Iterator[_frame.Row]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    from evaluations.protocol import load

    images, dim = (300, 32) if options.small else (5011, 2048)
    head = svm.Head()
    costs = [float(c) for c in load("linear_voc07").grid["cost"]]
    x, targets = made_up(images, dim, 1)
    queries, truth = made_up(images, dim, 2)

    def plain() -> np.ndarray:
        found = []
        for cost in costs:
            one = LinearSVC(
                C=cost,
                class_weight={1: head.positive_weight, 0: 1.0},
                dual=True,
                tol=1e-4,
                max_iter=2000,
                random_state=0,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the scripts stop after 2,000 iterations too
                found.append(one.fit(x, targets[:, 0]).decision_function(queries))
        return np.stack(found)

    def here() -> np.ndarray:
        every = np.repeat(targets, len(costs), axis=1)
        w = svm.solve(torch.as_tensor(x), every, costs * CLASSES, head)
        return svm.decide(torch.as_tensor(queries), w[:, : len(costs)]).numpy().T

    found = _frame.interleave({"reference": plain, "here": here}, options)
    theirs, ours = (
        np.array([average_precision(scores, truth[:, 0]) for scores in found[name].result])
        for name in ("reference", "here")
    )
    apart = 100 * abs(theirs.mean() - ours.mean())
    yield _frame.row(
        found,
        work="SVM of the VOC07 protocol",
        size=f"{images:,} x {dim:,}, costs {', '.join(f'{c:g}' for c in costs)}",
        reference="LinearSVC, dual, one by one",
        here=f"evaluations.kinds.svm, {CLASSES * len(costs)} together",
        equal=(apart <= 0.05, f"mAP apart by {apart:.4f} points, one cost by {100 * np.abs(theirs - ours).max():.4f} at most"),
        unit="fit",
        per={"reference": len(costs), "here": CLASSES * len(costs)},
        goal=5,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(_frame.main(rows))
