"""A ranking beside the committed table: intervals and orders with known answers, and the committed report against the records."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy import stats

from benchmarks import rank_fashion_mnist
from benchmarks.rank_fashion_mnist import Pairing, apart, orders
from evaluations import protocol
from results.store import RecordStore


def pairing(name, folder, table, half=1.0):
    return Pairing(name, 1, folder, (folder - half, folder + half), table, (table - half, table + half), 3)


def test_only_pairs_that_both_tell_apart_can_be_in_opposite_orders():
    assert [apart((3, 4), (1, 2)), apart((1, 2), (3, 4)), apart((1, 3), (2, 4))] == [1, -1, 0]
    same = [pairing("a", 90, 80), pairing("b", 85, 75), pairing("c", 84, 70)]
    assert orders(same) == (2, 3, 2, []), "b and c overlap on the folder"
    turned = [pairing("a", 90, 70), pairing("b", 85, 75), pairing("c", 84, 76)]
    here, there, both, opposite = orders(turned)
    assert (here, there, both) == (2, 2, 2)
    assert [(a.model, b.model) for a, b in opposite] == [("a", "b"), ("a", "c")]


def tables():
    """{kind: {model: (folder, table)}} of the committed report, and its text."""
    text = Path(rank_fashion_mnist.__file__).with_suffix(".md").read_text(encoding="utf-8")
    found = {}
    for kind, title in rank_fashion_mnist.TITLES.items():
        part = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if "_mnist |" in line
        ]
        found[kind] = part, {row[0]: (float(row[1]), float(row[3])) for row in rows}
    return found


@pytest.mark.parametrize("kind", list(rank_fashion_mnist.COMPARED))
def test_the_committed_report_agrees_with_the_records_and_with_itself(kind):
    part, rows = tables()[kind]
    assert len(rows) == 18 and "of these in opposite orders: 0." in part
    name, store = rank_fashion_mnist.COMPARED[kind], RecordStore()
    for model, (_, table) in rows.items():
        summary = store.summary(model, name, protocol.load(name).version, "top1")
        assert summary is not None and table == pytest.approx(summary.value, abs=0.051), model
    told = float(part.partition("18 models ")[2].split()[0])
    assert told == pytest.approx(stats.spearmanr(*zip(*rows.values(), strict=True)).statistic, abs=0.03)


def test_the_folder_has_the_classes_and_images_of_the_set(tmp_path, monkeypatch):
    import numpy as np
    from PIL import Image

    class Two:
        classes = ("T-shirt/top", "Bag")
        labels = np.array([1, 0])
        array = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)

    monkeypatch.setattr(rank_fashion_mnist.data, "open_source", lambda *_: Two)
    rank_fashion_mnist.write_folder(tmp_path / "made")
    files = sorted(str(p.relative_to(tmp_path / "made")) for p in (tmp_path / "made").rglob("*.png"))
    assert files == [f"{part}/{name}.png" for part in ("test", "train") for name in ("Bag/00000", "T-shirt-top/00001")]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "made" / "test" / "Bag" / "00000.png")), Two.array[0])
