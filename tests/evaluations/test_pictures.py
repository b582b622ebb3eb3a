"""`python -m evaluations pictures`: the numbers that are drawn are those of known answers, and what is drawn are those numbers."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from evaluations import drawing, pictures
from evaluations.__main__ import main
from results.record import Metric
from tests.results.result_samples import sample
from zoo.errors import guard


class Images:
    """Two bright rows for class 0, three for class 1, …; image i is a little different from all others."""

    def __init__(self, labels):
        self.labels = np.asarray(labels)

    def image(self, i):
        picture = np.full((6, 6), 40 + i, dtype=np.uint8)
        picture[: 2 + int(self.labels[i])] = 200
        return Image.fromarray(picture)


def shown(truth, assigned, x, bank=None, keys=None, distance=None, clusters=None, seed=0):
    truth, assigned = np.asarray(truth), np.asarray(assigned)
    classes = int(truth.max()) + 1
    x = torch.as_tensor(x, dtype=torch.float32)
    return pictures.Shown(
        title="a model on data",
        classes=[f"c{i}" for i in range(classes)],
        truth=truth,
        assigned=assigned,
        distance=np.zeros(len(truth)) if distance is None else np.asarray(distance),
        table=pictures.confusion(truth, assigned, clusters or int(assigned.max()) + 1, classes),
        x=x,
        bank=x if bank is None else torch.as_tensor(bank, dtype=torch.float32),
        images=Images(truth),
        keys=Images(truth if keys is None else keys),
        same=bank is None,
        seed=seed,
    )


TRUTH = [0, 0, 0, 1, 1, 2, 2, 2, 2, 1]
ASSIGNED = [2, 2, 0, 0, 0, 1, 1, 1, 2, -1]
# Counted by hand: cluster 0 holds one image of class 0 and two of class 1; 1: three of class 2; 2: two of class 0, one of class 2.
TABLE = [[1, 2, 0], [0, 0, 3], [2, 0, 1]]


def test_the_confusion_is_counted_by_hand_and_purity_with_it():
    table = pictures.confusion(np.array(TRUTH), np.array(ASSIGNED), 4, 3)
    assert table.tolist() == [*TABLE, [0, 0, 0]]
    assert np.allclose(pictures.purity(table), [2 / 3, 1, 2 / 3, 0])
    assert pictures.by_class(np.array(TABLE)).tolist() == [2, 0, 1], "in the order of their largest classes: 0, 1, 2"
    assert pictures.by_class(np.array([[5, 4], [9, 0], [0, 1]])).tolist() == [1, 0, 2], "of one class the purer first"


def test_the_confusion_that_is_drawn_is_the_table():
    figure = drawing.confusion(shown(TRUTH, ASSIGNED, np.eye(10)))
    axes = figure.axes[0]
    expected = np.array(TABLE)[[2, 0, 1]]
    assert np.allclose(axes.images[0].get_array(), 100 * expected / expected.sum(1, keepdims=True))
    assert [t.get_text() for t in axes.get_yticklabels()] == ["2", "0", "1"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["c0", "c1", "c2"]
    written = {(int(t.get_position()[1]), int(t.get_position()[0])): int(t.get_text()) for t in axes.texts}
    assert written == {(int(r), int(c)): int(expected[r, c]) for r, c in np.argwhere(expected)}


def angles(degrees):
    at = np.deg2rad(np.asarray(degrees, dtype=float))
    return np.stack([np.cos(at), np.sin(at)], 1) * np.linspace(1, 9, len(at))[:, None]  # lengths say nothing


def test_the_neighbours_on_a_circle_are_known():
    """The bank lies at every degree of a half circle, in mixed order; the images asked a little off one."""
    order = np.random.default_rng(0).permutation(180)
    asked = np.array([30.1, 90.1, 150.1])
    found = shown([0, 1, 1], [0, 0, 0], angles(asked), bank=angles(order), keys=order % 2)
    rows, index, cosine = found.neighbours()
    assert rows.tolist() == [0, 1, 2] and index.shape == (3, pictures.NEAREST)
    for row, degree in zip(rows, (30, 90, 150), strict=True):
        assert order[index[row]].tolist() == [degree + d for d in (0, 1, -1, 2, -2, 3, -3, 4)]
        assert np.allclose(cosine[row], np.cos(np.deg2rad(np.abs(order[index[row]] - asked[row]))), atol=1e-6)


def test_no_image_is_its_own_neighbour_even_where_others_are_equal():
    degrees = [0, 1, 3, 60, 60, 60, 120]
    rows, index, _ = shown([0] * 7, [0] * 7, angles(degrees)).neighbours()
    assert rows.tolist() == list(range(7)) and index.shape == (7, 6)
    assert all(sorted([i, *near]) == list(range(7)) for i, near in zip(rows, index.tolist(), strict=True))
    assert index[0].tolist()[:2] == [1, 2] and set(index[4].tolist()[:2]) == {3, 5}


def test_points_on_a_line_have_one_component():
    at = np.arange(-5.0, 6.0)
    points, share = pictures.plane(np.array([7.0, -3.0, 2.0]) + np.outer(at, [1.0, 2.0, 2.0]))
    assert np.allclose(np.abs(points[:, 0]), 3 * np.abs(at), atol=1e-4) and np.allclose(points[:, 1], 0, atol=1e-3)
    assert np.all(np.diff(points[:, 0]) * np.sign(points[1, 0] - points[0, 0]) > 0)
    assert np.allclose(share, [1, 0], atol=1e-6)
    _, share = pictures.plane([[3.0, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]])
    assert np.allclose(share, [0.9, 0.1]), "variances 18 and 2 of 20"


def test_the_plane_that_is_drawn_has_every_point_in_its_class():
    x = np.random.default_rng(1).normal(size=(60, 5))
    truth = np.arange(60) % 3
    found = shown(truth, truth, x)
    axes = drawing.scatter(found).axes[0]
    points, share = pictures.plane(x)
    for label, cloud in enumerate(axes.collections):
        drawn = np.asarray(cloud.get_offsets())
        assert cloud.get_label() == f"c{label}"
        assert np.allclose(np.sort(drawn, 0), np.sort(points[truth == label], 0))
    assert f"{100 * share[0]:.0f} % of the variance" in axes.get_xlabel()
    marks = {str(c.get_paths()[0].vertices.round(3).tolist()) for c in axes.collections}
    assert len(marks) == 3, "told apart without colour"


def tiles(figure):
    """Rows of (pixels, frame colour, frame is whole) of the images drawn, and the text left of each row."""
    rows, said = {}, {}
    for axes in figure.axes:
        if axes.images:
            spec = axes.get_subplotspec()
            spine = axes.spines["left"]
            pixels = np.asarray(axes.images[0].get_array())
            rows.setdefault(spec.rowspan.start, []).append(
                (pixels, spine.get_edgecolor(), spine.get_linestyle() == "-")
            )
            said[spec.rowspan.start] = said.get(spec.rowspan.start) or axes.get_ylabel()
    return [rows[r] for r in sorted(rows)], [said[r] for r in sorted(rows)]


def test_the_montage_by_purity_shows_typical_images_with_their_class_as_frame():
    distance = [0.3, 0.1, 0.2, 0.5, 0.4, 0.3, 0.1, 0.2, 0.0, 0.0]
    found = shown(TRUTH, ASSIGNED, np.eye(10), distance=distance)
    assert found.rows("purity").tolist() == [1, 0, 2]
    expected = [[6, 7, 5], [2, 4, 3], [8, 1, 0]]
    drawn, said = tiles(drawing.montage(found, "purity"))
    assert said == ["class c2\n100 % of 3", "class c1\n67 % of 3", "class c0\n67 % of 3"]
    most = [2, 1, 0]
    for row, images, largest in zip(drawn, expected, most, strict=True):
        for (pixels, edge, whole), i in zip(row, images, strict=True):
            assert np.array_equal(pixels, np.asarray(found.images.image(i).convert("RGB")))
            assert np.allclose(edge[:3], drawing.colour(TRUTH[i])[:3]) and whole == (TRUTH[i] == largest)


def test_of_many_clusters_the_purest_and_the_least_pure_are_shown():
    truth = [label for k in range(30) for label in [0] * (30 + k) + [1] * (30 - k)]
    assigned = np.repeat(np.arange(30), 60)
    found = shown(truth, assigned, np.zeros((1800, 1)), clusters=31)  # the last one is empty
    assert found.rows("purity").tolist() == [29, 28, 27, 26, 25, 4, 3, 2, 1, 0]
    other = found.rows("random").tolist()
    assert len(set(other)) == 10 and max(other) < 30 and other != found.rows("purity").tolist()
    assert other == found.rows("random").tolist(), "the same seed, the same picture"
    for cluster in other:
        members = found.members(cluster, typical=False)
        assert len(set(members.tolist())) == 10 and set(assigned[members]) == {cluster}
        assert members.tolist() != sorted(members.tolist())


def test_accuracy_by_layer_is_the_mean_of_records_in_the_networks_order():
    def record(seed, **values):
        return sample(pretrain_seed=seed, metrics={k: Metric(value=v, n=540) for k, v in values.items()})

    found = [
        record(0, top1_stem=50.0, top1_layer1=70.0),
        record(1, top1_stem=54.0, top1_layer1=70.0),
        record(2, top1=9.0),
    ]
    layers = pictures.by_layer(found, ["stem", "layer1", "layer2"])
    (points,) = layers.values()
    assert [p[0] for p in points] == ["stem", "layer1"]
    assert np.allclose([p[1:] for p in points], [(52, 8**0.5), (70, 0)])
    axes = drawing.layers("a", layers).axes[0]
    assert axes.lines[0].get_ydata().tolist() == [52, 70] and axes.get_ylabel().endswith("in percent")
    assert pictures.by_layer([record(2, top1=9.0)], ["stem"]) == {}


def test_accuracy_by_epoch_is_of_the_snapshots_of_this_run_in_their_order():
    def record(model, value, **fields):
        return sample(model=model, metrics={"top1": Metric(value=value, n=540)}, **fields)

    found = [record("m-epoch10", 80.0), record("m-epoch2", 60.0), record("m-epoch2", 64.0, pretrain_seed=1)]
    others = [
        record("m", 1.0),
        record("mm-epoch3", 2.0),
        record("m-epoch2-b", 3.0),
        record("m-epoch4", 9.0, protocol="knn_digits"),
    ]
    epochs = pictures.by_epoch(found + others, "m")
    assert list(epochs) == [found[0].protocol], "one epoch of kNN is no curve"
    assert np.allclose(epochs[found[0].protocol], [(2, 62, 8**0.5), (10, 80, 0)])
    axes = drawing.epochs("m", epochs, 1257).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [2, 10] and axes.lines[0].get_ydata().tolist() == [62, 80]
    assert axes.get_xlabel() == "epochs (of 1,257 images)"
    assert all(tick == int(tick) for tick in axes.get_xticks())


def test_the_command_draws_what_the_evaluation_measures(tmp_path, capsys):
    """Digits by their pixels: the confusion's purity is the one of the cluster protocol's first seed."""
    out = f"out={tmp_path}"
    assert guard(lambda: main(["pictures", "pixels_digits", "digits", out, "device=cpu"])) == 0
    paths = [line for line in capsys.readouterr().out.splitlines() if line.endswith(".png")]
    names = [re.sub(r".*/", "", p) for p in paths]
    assert names == ["neighbours.png", "confusion.png", "pca.png", "montage_purity.png", "montage_random.png"]
    assert all(Image.open(p).size[0] > 500 for p in paths)

    from evaluations.measure import Measurement, Settings, evaluate
    from results import record

    given = {"out": str(tmp_path), "device": "cpu"}
    measured = record.read(evaluate("cluster_digits", "pixels_digits", given, quiet=True)).metrics["purity"]
    drawn = pictures.seen(Measurement.of("cluster_digits", "pixels_digits", Settings.of(given))).table
    assert 100 * drawn.max(1).sum() / drawn.sum() == pytest.approx(measured.per_seed[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pixels_digits", "digist"], "did you mean 'digits'"),
        (["pixels_digits", "digits", "kinds=[pac]"], "did you mean 'pca'"),
    ],
)
def test_a_misspelt_word_is_told(tmp_path, capsys, words, said):
    assert guard(lambda: main(["pictures", *words, f"out={tmp_path}"])) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.rglob("*.png"))


def test_a_folder_of_ones_own_is_drawn_too(tmp_path, capsys):
    """Two classes of 8 x 8 images that k-means tells apart: nearly every image of the part held out lies in a cluster of its class."""
    draw = np.random.default_rng(0)
    for label in range(2):
        for i in range(30):
            image = draw.integers(0, 40, (8, 8), dtype=np.uint8)
            image[3 * label : 3 * label + 3] += 180
            place = tmp_path / "photos" / "ab"[label] / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place)
    words = ["pictures", "pixels_digits", str(tmp_path / "photos"), f"out={tmp_path}", "device=cpu"]
    assert guard(lambda: main([*words, "kinds=[confusion, neighbours]"])) == 0
    made = [line for line in capsys.readouterr().out.splitlines() if line.endswith(".png")]
    assert [re.sub(r".*/", "", p) for p in made] == ["neighbours.png", "confusion.png"]

    from evaluations.measure import Measurement, Settings

    given = {"out": str(tmp_path), "device": "cpu", "data": str(tmp_path / "photos")}
    table = pictures.seen(Measurement.of("cluster_folder", "pixels_digits", Settings.of(given))).table
    assert table.sum() == 12 and sorted(table.max(1)) == [6, 6] and sorted(table.min(1)) == [0, 0]
