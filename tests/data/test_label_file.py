"""labels.csv beside the images of a flat folder: classes by name for every reader, whoever wrote the file."""

import numpy as np
import pytest
from PIL import Image

from evaluations.__main__ import main as evaluate
from reproduce.__main__ import main as reproduce
from results.record import read
from zoo import labels
from zoo.__main__ import main as zoo_main
from zoo.data import open_source
from zoo.errors import UserError, guard


def flat(folder, count=24):
    """Flat colours: even numbers red, odd ones blue."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 60, (32, 32, 3)).astype(np.uint8)
        pixels[..., 0 if i % 2 == 0 else 2] += 150
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return folder


def named(folder, titles, count=24):
    rows = "".join(f"{i:02}.png,{titles[i % 2]}\n" for i in reversed(range(count)))
    (folder / "labels.csv").write_text("file,label\n" + rows)


def test_names_of_classes_are_joined_with_the_images_by_file(tmp_path):
    named(flat(tmp_path), ["red", "blue"])
    source = open_source("folder", root=tmp_path)
    assert source.classes == ("blue", "red") and source.named
    assert source.labels.tolist() == [1, 0] * 12
    assert not open_source("images", root=tmp_path).labelled, "data set 'images' is without labels"


def test_numbers_keep_their_values_as_names(tmp_path):
    named(flat(tmp_path), [10, 9])
    source = open_source("folder", root=tmp_path)
    assert source.classes == ("9", "10") and source.labels.tolist() == [1, 0] * 12


@pytest.mark.parametrize("ending", ["csv", "npz"])
def test_what_clustering_writes_is_read(tmp_path, ending):
    folder = flat(tmp_path)
    labels.write(folder / f"labels.{ending}", [[7, 3] * 12], [f"{i:02}.png" for i in range(24)])
    source = open_source("folder", root=folder)
    assert source.classes == ("3", "7") and source.labels.tolist() == [1, 0] * 12


def test_an_assignment_with_distances_is_read(tmp_path):
    folder = flat(tmp_path)
    rows = "".join(f"{i:02}.png,{i % 2},0.5\n" for i in range(24))
    (folder / "labels.csv").write_text("image,cluster,distance\n" + rows)
    assert open_source("folder", root=folder).labels.tolist() == [0, 1] * 12


def test_changed_labels_are_another_data_set(tmp_path):
    folder = flat(tmp_path)
    named(folder, ["red", "blue"])
    before = open_source("folder", root=folder).fingerprint
    named(folder, ["blue", "red"])
    assert open_source("folder", root=folder).fingerprint != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\n00.png,red\n", "23 of 24 images have no row .01.png"),
        ("file,label\n" + "".join(f"{i:02}.png,red\n" for i in range(25)), "1 rows name images that are not in the data"),
        ("file,label\n" + "".join(f"{i:02}.png,{i - 1}\n" for i in range(24)), "1 images have no class .00.png"),
        ("file,label\n" + "".join(f"{i:02}.png,\n" for i in range(24)), "labels.csv:2: '00.png,' is not a file and its class"),
        ("file,a,b\n" + "".join(f"{i:02}.png,1,2\n" for i in range(24)), "2 columns of labels"),
        ("file,label\n" + "00.png,red\n" * 2 + "".join(f"{i:02}.png,red\n" for i in range(1, 24)), "1 images have several"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_one_error(tmp_path, text, message):
    (flat(tmp_path) / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        open_source("folder", root=tmp_path)


def test_every_command_takes_the_labels(tmp_path, capsys, monkeypatch):
    photos = tmp_path / "photos"
    for part in ("train", "test"):
        named(flat(photos / part, 40), ["red", "blue"], 40)
    with monkeypatch.context() as at:
        at.chdir(tmp_path)
        with pytest.raises(UserError, match="say ./photos"):
            zoo_main(["data", "check", "photos"])
        assert zoo_main(["data", "check", "./photos"]) == 0
    assert "2 classes" in capsys.readouterr().out
    words = ["run", "knn_folder", "random_digits", f"data={photos}", "device=cpu", f"out={tmp_path / 'runs'}"]
    assert evaluate(words) == 0
    (record,) = (tmp_path / "runs" / "measured").rglob("*.json")
    assert read(record).metrics["top1"].value == 100, (
        "red and blue are told apart, so that labels went to the right images"
    )
    assert reproduce(["supervised", f"data={photos}", "--plan"]) == 0


def test_the_check_counts_the_file_of_labels_among_what_is_read_and_names_other_tables(tmp_path, capsys):
    folder = flat(tmp_path)
    (folder / "labels.csv").write_text("file,label\n" + "".join(f"{i:02}.png,{'ab'[i % 2]}\n" for i in range(24)))
    assert guard(lambda: zoo_main(["data", "check", "folder", str(folder)])) == 0
    said = capsys.readouterr().out
    assert "2 classes" in said and "not read" not in said
    (folder / "other.csv").write_text("file,label\n")
    assert guard(lambda: zoo_main(["data", "check", "folder", str(folder)])) == 0
    assert "1 other files are not read: .csv 1" in capsys.readouterr().out
    (folder / "other.csv").unlink()
    (folder / "labels.csv").rename(folder / "labels.csv.txt")  # as an editor saves it: read by nobody
    assert guard(lambda: zoo_main(["data", "check", "folder", str(folder)])) == 0
    assert "1 other files are not read: .txt 1" in capsys.readouterr().out
