"""NMI, AMI and ARI of a clustering: scikit-learn's three functions, against one table of counts.

    python -m benchmarks.metrics [--rounds 7] [--seconds 40]

Class sizes are uneven, as ImageNet's are. Nearly all of the reference's time is the expected mutual information of AMI, which grows with
images x classes: the ratio depends on the size.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from benchmarks import _frame
from engine.maths.contingency import ami, ari, contingency, nmi


def rows(options: _frame.Options) -> Iterator[_frame.Row]:
    from sklearn import metrics

    images, classes, clusters = (2000, 10, 20) if options.small else (50_000, 300, 600)
    draw = np.random.default_rng(0)
    share = draw.uniform(0.5, 1.0, classes)
    true = draw.choice(classes, images, p=share / share.sum())
    found_at = np.where(draw.random(images) < 0.5, 2 * true, draw.integers(0, clusters, images)) % clusters

    def plain() -> list[float]:
        names = ("normalized_mutual_info_score", "adjusted_mutual_info_score", "adjusted_rand_score")
        return [float(getattr(metrics, name)(true, found_at)) for name in names]

    def here() -> list[float]:
        table = contingency(true, found_at)
        return [nmi(table), ami(table), ari(table)]

    found = _frame.interleave({"reference": plain, "here": here}, options)
    apart = float(np.abs(np.subtract(found["reference"].result, found["here"].result)).max())
    yield _frame.row(
        found,
        work="NMI, AMI and ARI",
        size=f"{images:,} images, {classes:,} classes, {clusters:,} clusters",
        reference="scikit-learn",
        here="engine.maths.contingency",
        equal=(apart <= 1e-9, f"greatest difference {apart:.1e}"),
    )


if __name__ == "__main__":
    sys.exit(_frame.main(rows))
