"""A grid of linear probes, 3 folds x 4 rates x 5 layers: one run per cell, against features kept once and all heads of a layer together.

    python -m benchmarks.probes [--rounds 7] [--seconds 40]

The functions are those of benchmarks/probe_grid.py, whose report has larger sizes and a third form. A round of the reference runs one cell
of each layer, and the ratio is for one cell. It grows with images and epochs: the network runs once here, and in every epoch there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from benchmarks import _frame, probe_grid
from benchmarks.probe_grid import RATES, Cell


def rows(options: _frame.Options) -> Iterator[_frame.Row]:
    images, epochs = (60, 2) if options.small else (1000, 10)
    bench = probe_grid.setting("digits", images, epochs)
    cells = [Cell(0, RATES[i % len(RATES)], name) for i, name in enumerate(bench.net.layers)]

    def one_by_one() -> dict[Cell, float]:
        found: dict[Cell, float] = {}
        for cell in cells:
            found.update(probe_grid.forwards(bench, [cell], every_epoch=True)[0])
        return found

    found = _frame.interleave({"reference": one_by_one, "here": lambda: probe_grid.fast(bench)}, options)
    held = bench.held_out[0].sum() / 100
    apart = [held * abs(found["here"].result[c] - found["reference"].result[c]) for c in cells]
    yield _frame.row(
        found,
        work="Grid of linear probes",
        size=f"{images:,} digits, {epochs} epochs, {len(bench.grid)} cells",
        reference="one run per cell",
        here="evaluations, heads together on kept features",
        equal=(max(apart) < 1.5, f"scores of {len(cells)} cells apart by {max(apart):.0f} of {held * 100:.0f} held-out images at most"),
        unit="cell",
        per={"reference": len(cells), "here": len(bench.grid)},
        goal=30,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(_frame.main(rows))
