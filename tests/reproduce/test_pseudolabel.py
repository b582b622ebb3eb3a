"""Pseudo-labels: from everywhere they may come, into a file and back, and the loss on them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.batch import Batch
from reproduce import labels
from reproduce.__main__ import main
from reproduce.clustering import UNSEEN
from reproduce.methods.pseudolabel import PseudoLabel
from zoo.errors import UserError

TABLE = torch.tensor([[0, 2, 1, UNSEEN, 2], [5, 5, 4, 0, 1]])
IMAGES = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def method(**settings):
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(16, 8))
    backbone.dim = 8
    torch.manual_seed(0)
    return PseudoLabel(backbone, instances=5, **settings)


def context(net):
    return SimpleNamespace(extract=lambda view: (np.arange(5), net.features(IMAGES).detach()), seed=0, n=5)


@pytest.fixture(params=["labels.csv", "labels.pth", "L in a checkpoint", "a run folder", "a table with column numbers"])
def source(request, tmp_path):
    path = tmp_path / request.param.replace(" ", "_")
    if "L in" in request.param:
        torch.save({"state_dict": {}, "L": TABLE}, path)
    elif "folder" in request.param:
        path.mkdir()
        torch.save({"model": {}, "extra": {"labels": TABLE}}, path / "checkpoint.pt")
    elif "numbers" in request.param:
        path = path.with_suffix(".csv")
        rows = [",".join(map(str, row)) for row in torch.where(TABLE < 0, -1, TABLE).T.tolist()]
        path.write_text("\n".join(["0,1", *rows]))
    else:
        labels.write(TABLE, path)
    return str(path)


def test_labels_come_back_from_wherever_they_are(source):
    spec = labels.find(source)
    assert torch.equal(spec.table, TABLE) and spec.sizes == (3, 6)
    assert torch.equal(labels.find(source, [1]).table, TABLE[1:])
    net = method(labels=source)
    net.before_epoch(0, context(net))
    assert [head.out_features for head in net.heads] == [3, 6] and torch.equal(net.labels, TABLE)


def test_the_csv_has_a_row_per_image_and_a_column_per_head(tmp_path):
    labels.write(TABLE, tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text().splitlines() == ["0,5", "2,5", "1,4", "-1,0", "2,1"]


def test_released_labels_are_known_by_their_numbers_before_they_are_fetched():
    spec = labels.find("sela_alexnet_10x3k", [0, 3])
    assert spec.sizes == (3000, 3000) and spec.table is None


@pytest.mark.parametrize(
    "text, word", [("kmeans:1", "at least 2"), ("nowhere.csv", "not a file"), ("swav_800ep", "no pseudo-labels")]
)
def test_what_has_no_labels_is_one_clear_error(text, word):
    with pytest.raises(UserError, match=word):
        labels.find(text)


def test_a_file_without_labels_or_of_another_data_set_is_one_clear_error(tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="no labels in it"):
        labels.find(str(tmp_path / "x.pth"))
    (tmp_path / "x.csv").write_text("a,b\nc\n")
    with pytest.raises(UserError, match="not a table"):
        labels.find(str(tmp_path / "x.csv"))
    labels.write(TABLE[:, :4], tmp_path / "short.csv")
    net = method(labels=str(tmp_path / "short.csv"))
    with pytest.raises(UserError, match="labels of 4 images, the data set has 5"):
        net.before_epoch(0, context(net))
    with pytest.raises(UserError, match="has 2 heads"):
        method(labels=str(tmp_path / "short.csv"), columns=[2])


def test_the_loss_is_the_mean_over_columns_and_skips_images_without_a_label(tmp_path):
    labels.write(TABLE, tmp_path / "x.pth")
    net = method(labels=str(tmp_path / "x.pth"))
    net.before_epoch(0, context(net))
    loss, logs = net.loss(Batch(torch.arange(5), [IMAGES]), 0)
    x, seen = net.backbone(IMAGES), TABLE[0] >= 0
    expected = (F.cross_entropy(net.heads[0](x[seen]), TABLE[0][seen]) + F.cross_entropy(net.heads[1](x), TABLE[1])) / 2
    assert torch.allclose(loss, expected) and set(logs) == {"accuracy"}


def test_rotations_are_asked_of_all_turns_and_labels_of_the_upright_image(tmp_path):
    labels.write(TABLE[1:], tmp_path / "x.pth")
    net = method(labels=str(tmp_path / "x.pth"), rotations=True)
    net.before_epoch(0, context(net))
    loss, logs = net.loss(Batch(torch.arange(5), [IMAGES]), 0)
    views = torch.cat([torch.rot90(IMAGES, k, (-2, -1)) for k in range(4)])
    turn = F.cross_entropy(net.rotation_head(net.backbone(views)), torch.arange(4).repeat_interleave(5))
    assert torch.allclose(loss, F.cross_entropy(net.heads[0](net.backbone(IMAGES)), TABLE[1]) + turn)
    assert 0 <= logs["accuracy_rotation"] <= 1
    assert {k for k in net.exported() if k.endswith("bias") and "top" in k} == {"top_layer0.bias", "top_layer1.bias"}


def test_clusters_of_pixels_need_nothing_else():
    net = method(labels="kmeans:3")
    net.before_epoch(0, context(net))
    assert net.labels.shape == (1, 5) and len(net.labels.unique()) == 3
    assert net.features(IMAGES).shape == (5, 8)  # features are the backbone's again


def test_the_command_writes_what_a_run_has_come_to(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    torch.save({"extra": {"labels": TABLE}}, run / "checkpoint.pt")
    assert main(["labels", str(run), "--to", str(tmp_path / "out.csv")]) == 0
    assert "2 heads x 5 images, 1 of them without a label" in capsys.readouterr().out
    assert torch.equal(labels.read(tmp_path / "out.csv"), TABLE)
    with pytest.raises(UserError, match="no such run folder"):
        main(["labels", str(tmp_path / "nothing"), "--to", str(tmp_path / "out.csv")])
