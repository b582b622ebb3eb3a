"""RUN@epoch: the weights of an intermediate epoch are a model of their own."""

from __future__ import annotations

import pytest
import torch

import zoo
from evaluations.inputs import models
from reproduce.launch import pretrain
from zoo.errors import UserError

SETTINGS = {"schedule.images": None, "schedule.epochs": 2, "batch": 512, "checkpoint_keep": 1, "tensorboard": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return pretrain("simclr_digits", {**SETTINGS, "out": str(out)}, quiet=True)


def test_an_epoch_of_a_run_is_a_model_with_its_own_name_and_weights(run):
    whole, first, last = models.resolve(str(run)), models.resolve(f"{run}@1"), models.resolve(f"{run}@2")
    assert (
        first.name == f"{whole.name}-epoch1"
        and first.recipe.hash() == whole.recipe.hash()
        and first.pretrain_seed == whole.pretrain_seed
    )
    assert last.weights_sha256 == whole.weights_sha256 != first.weights_sha256
    images = torch.rand(2, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    features = [model.backbone.eval()(images) for model in (whole, first, last)]
    assert torch.equal(features[0], features[2]) and not torch.allclose(features[0], features[1])
    assert torch.equal(zoo.load(str(run / "epochs" / "1")).eval()(images), features[1])


def test_the_registrys_own_run_has_epochs_by_its_id(run, monkeypatch):
    folder = run.parent / f"{zoo.resolve('simclr_digits').hash()}-s0"
    folder.symlink_to(run, target_is_directory=True)
    assert (
        models.resolve("simclr_digits@1", out=run.parent.parent).weights.resolve()
        == run / "epochs" / "1" / "weights.pth"
    )


@pytest.mark.parametrize("epoch", ["0", "7"])
def test_an_epoch_that_was_not_kept_is_one_line_with_those_that_were(run, epoch):
    with pytest.raises(UserError, match=rf"@{epoch}: .* has no weights of epoch {epoch}; kept are 1, 2"):
        models.resolve(f"{run}@{epoch}")


def test_a_run_that_kept_none_says_how_to_keep_them(run, tmp_path):
    with pytest.raises(UserError, match="none is kept: run it with checkpoint_keep=EPOCHS"):
        models.resolve(f"{tmp_path}@1")
