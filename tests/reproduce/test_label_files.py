"""Labels travel by name: what one command writes, every other one reads, in any order of rows, and nothing is joined by number
that has names."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import zoo
from engine.options import RunOptions
from evaluations.kinds import clustering
from reproduce import launch, plan
from reproduce.__main__ import main
from zoo import data, labels
from zoo.errors import UserError
from zoo.yamlfile import dumps

ENDS = (".csv", ".npz", ".pth")


@pytest.fixture(scope="module")
def digits():
    return data.open_source("digits", "train")


@pytest.fixture
def run(tmp_path, digits):
    """A run folder of deepcluster_digits that has come to labels: two heads, some images without a label in the first."""
    folder = tmp_path / "run"
    folder.mkdir()
    recipe = zoo.resolve("deepcluster_digits")
    (folder / "recipe.yaml").write_text(dumps(recipe.dump()))
    (folder / "provenance.json").write_text(json.dumps({"data": {"fingerprint": digits.fingerprint}}))
    n = len(digits)
    table = torch.stack([(torch.arange(n) * 7919) % 20, (torch.arange(n) * 104729) % 13])
    table[0, :5] = -100
    torch.save({"model": {}, "extra": {"labels": table}}, folder / "checkpoint.pt")
    return folder, table


def named(source):
    return [source.name(i) for i in range(len(source))]


def read_everywhere(place, source):
    """(H, N) as params.labels reads it, and as head.assignments=own does."""
    recipe = zoo.resolve("pseudolabel_digits", {"params.labels": str(place)})
    method = launch.build(recipe, source)
    method.before_epoch(0, SimpleNamespace(source=source, n=len(source), seed=0))
    own = clustering.own_labels(
        SimpleNamespace(place="nowhere", name="x"), clustering.Head(assignments="own", labels=str(place)), source
    )
    return method.labels, torch.from_numpy(own)


@pytest.mark.parametrize("end", ENDS)
def test_what_the_command_writes_is_read_by_training_and_by_clustering(run, digits, tmp_path, end, capsys):
    folder, table = run
    file = tmp_path / f"labels{end}"
    assert main(["labels", str(folder), "--to", str(file)]) == 0
    assert "without a label" in capsys.readouterr().out
    trained, own = read_everywhere(file, digits)
    assert torch.equal(trained, table) and torch.equal(own, table.clamp(min=-1))
    found = labels.read(file)
    assert found.images == named(digits) and torch.equal(found.labels, table.clamp(min=-1))


def test_a_run_folder_is_read_as_it_stands(run, digits):
    folder, table = run
    trained, own = read_everywhere(folder, digits)
    assert torch.equal(trained, table) and torch.equal(own, table.clamp(min=-1))
    model = SimpleNamespace(place=str(folder), name="x")
    assert np.array_equal(
        clustering.own_labels(model, clustering.Head(assignments="own"), digits), table.clamp(min=-1).numpy()
    )


@pytest.mark.parametrize("end", ENDS)
def test_rows_may_come_in_any_order_and_from_another_folder(run, digits, tmp_path, end):
    """The known answer: label of image i is a function of its name, whatever the row that it stands in."""
    _, table = run
    order = np.random.default_rng(0).permutation(len(digits))
    names = named(digits)
    for prefix in ("", "somewhere/else/"):
        file = tmp_path / f"shuffled{end}"
        labels.write(file, table[:, order], [prefix + names[i] for i in order])
        trained, own = read_everywhere(file, digits)
        assert torch.equal(trained, table) and torch.equal(own, table.clamp(min=-1))


@pytest.mark.parametrize("end", ENDS)
def test_missing_extra_and_repeated_images_are_errors_that_name_them(run, digits, tmp_path, end):
    _, table = run
    names = named(digits)
    file = tmp_path / f"x{end}"
    labels.write(file, table[:, 2:], names[2:])
    with pytest.raises(
        UserError, match=rf"{file.name}: 2 of {len(names):,} images have no row \({names[0]}, {names[1]}\); give images"
    ):
        read_everywhere(file, digits)
    labels.write(file, torch.cat([table, table[:, :1]], dim=1), [*names, "stranger.png"])
    with pytest.raises(UserError, match=r"1 rows name images that are not in the data \(stranger.png\)"):
        read_everywhere(file, digits)
    labels.write(file, torch.cat([table, table[:, :1]], dim=1), [*names, names[3]])
    with pytest.raises(UserError, match=rf"1 images have several rows \({names[3]}\)"):
        read_everywhere(file, digits)


def test_a_plan_refuses_labels_of_other_images(run, digits, tmp_path):
    _, table = run
    file = tmp_path / "x.csv"
    labels.write(file, table[:, 2:], named(digits)[2:])
    work = launch.Job(
        "pseudolabel_digits", zoo.resolve("pseudolabel_digits", {"params.labels": str(file)}), RunOptions(), False
    )
    with pytest.raises(UserError, match="2 of .* images have no row"):
        plan.plan(work)
    labels.write(file, table, named(digits))
    assert "steps" in plan.plan(work)


def test_labels_without_names_belong_to_the_images_that_their_run_saw(run, digits):
    folder, _ = run
    (folder / "provenance.json").write_text(json.dumps({"data": {"fingerprint": "0" * 32}}))
    with pytest.raises(UserError, match="belong to other images than these.*reproduce labels"):
        read_everywhere(folder, digits)
    with pytest.raises(UserError, match="it was trained on other images than those of"):
        main(["labels", str(folder), "--to", str(folder / "x.csv")])


def test_names_with_commas_quotes_line_ends_and_no_encoding_come_back(tmp_path):
    names = ["a,b.png", 'c"d.png', "e\nf.png", "0", "ä.png", b"\xff.png".decode("utf-8", "surrogateescape"), " g.png"]
    table = torch.arange(7)[None]
    for end in (".csv", ".pth"):
        file = tmp_path / f"odd{end}"
        labels.write(file, table, names if end == ".csv" else [n for n in names if "\udcff" not in n] + ["h"])
        found = labels.read(file)
        assert torch.equal(found.labels, table)
    labels.write(tmp_path / "odd.csv", table, names)
    assert labels.read(tmp_path / "odd.csv").images == names


def test_the_table_has_a_column_for_the_file_and_one_for_each_head(tmp_path):
    labels.write(tmp_path / "one.csv", torch.tensor([[3, -100]]), ["a.png", "b.png"])
    assert (tmp_path / "one.csv").read_text() == "file,label\na.png,3\nb.png,-1\n"
    labels.write(tmp_path / "two.csv", torch.tensor([[3, 1], [0, 2]]), ["a.png", "b.png"])
    assert list(csv.reader((tmp_path / "two.csv").open())) == [
        ["file", "label_0", "label_1"],
        ["a.png", "3", "0"],
        ["b.png", "1", "2"],
    ]


TABLES = {
    "an assignment of `evaluations cluster`": (
        "image,cluster,distance\na.png,1,0.25\nb.png,0,0.5\n",
        [[1, 0]],
        ["a.png", "b.png"],
    ),
    "no header, names": ("a.png,1\nb.png,0\n", [[1, 0]], ["a.png", "b.png"]),
    "numbers alone": ("1,4\n0,5\n", [[1, 0], [4, 5]], None),
    "column numbers": ("0,1\n1,4\n0,5\n", [[1, 0], [4, 5]], None),
    "an index of pandas": (",0,1\n0,1,4\n1,0,5\n", [[1, 0], [4, 5]], None),
    "files named by numbers": ("file,label\n0,1\n1,0\n", [[1, 0]], ["0", "1"]),
    "one column": ("4\n5\n", [[4, 5]], None),
    "semicolons": ("file;label\na.png;4\nb.png;5\n", [[4, 5]], ["a.png", "b.png"]),
    "tabs": ("file\tlabel\na b.png\t4\nb.png\t5\n", [[4, 5]], ["a b.png", "b.png"]),
}


@pytest.mark.parametrize("what", TABLES)
def test_tables_of_others_are_understood(tmp_path, what):
    text, wanted, names = TABLES[what]
    (tmp_path / "x.csv").write_text(text)
    found = labels.read(tmp_path / "x.csv")
    assert found.labels.tolist() == wanted and found.images == names


@pytest.mark.parametrize(
    "text",
    [
        "file,label\na.png,x\n",
        "file,label\na.png,1.5\n",
        "file,label\na.png,1,2\n",
        "a,b\nc\n",
        "file,label\na.png,nan\n",
    ],
)
def test_a_row_that_is_no_label_is_an_error_with_its_line(tmp_path, text):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UserError, match=r"x.csv:2: .* not a table of labels"):
        labels.read(tmp_path / "x.csv")


def test_a_file_of_another_kind_is_one_error(tmp_path):
    np.savez(tmp_path / "x.npz", other=np.ones(3))
    (tmp_path / "y.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "z.npz", labels=np.ones((3, 1)))
    for name, words in (
        ("x", "no labels as"),
        ("y", "no labels as"),
        ("z", "whole numbers .images, heads. are expected"),
    ):
        with pytest.raises(UserError, match=rf"{name}.npz: .*{words}"):
            labels.read(tmp_path / f"{name}.npz")
    with pytest.raises(UserError, match="no such file"):
        labels.read(tmp_path / "nowhere.csv")
