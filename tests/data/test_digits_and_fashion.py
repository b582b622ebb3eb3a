"""The two laptop-scale sets: their splits are fixed, disjoint and complete."""

from __future__ import annotations

import numpy as np
import pytest

from zoo import data
from zoo.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return {split: data.open_source("digits", split) for split in ("all", "train", "test", "fit", "val")}


def members(source):
    return {source.name(i) for i in range(len(source))}


def test_train_and_test_divide_all_digits(digits):
    assert members(digits["train"]) | members(digits["test"]) == members(digits["all"])
    assert not members(digits["train"]) & members(digits["test"])


def test_fit_and_val_divide_the_training_digits(digits):
    assert members(digits["fit"]) | members(digits["val"]) == members(digits["train"])
    assert not members(digits["fit"]) & members(digits["val"])
    assert len(digits["val"]) == pytest.approx(0.2 * len(digits["train"]), abs=5)


@pytest.mark.parametrize("part, whole", [("test", "all"), ("val", "train")])
def test_digits_are_split_class_by_class(digits, part, whole):
    share = np.bincount(digits[part].labels) / np.bincount(digits[whole].labels)
    assert np.ptp(share) < 0.02


def test_digits_keep_scikit_learns_values(digits):
    from sklearn.datasets import load_digits

    raw = load_digits()
    assert digits["all"].array.dtype == np.uint8 and digits["all"].array.max() == 255
    assert np.array_equal(np.round(digits["all"].array / 255 * 16), raw.images)
    assert np.array_equal(digits["all"].labels, raw.target)


def test_the_splits_of_digits_never_change(digits):
    # A record names its data by fingerprint: another value here means other test images.
    assert {s: d.fingerprint[:10] for s, d in digits.items()} == {
        "all": "c612e76c1f",
        "train": "dd2eec4f19",
        "test": "16605cf4fd",
        "fit": "a4a5f44128",
        "val": "3be825cba5",
    }


def test_digits_refuse_a_folder(tmp_path):
    with pytest.raises(UserError, match="scikit-learn.*leave out data="):
        data.open_source("digits", root=tmp_path)


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_normalisation_is_that_of_the_training_images(name):
    try:
        source = data.open_source(name, "train")
    except data.DataMissing:
        pytest.skip("Fashion-MNIST is not on this machine")
    spec = data.describe(name)
    pixels = source.array.astype(np.float64) / 255
    assert spec.mean == [pytest.approx(pixels.mean(), abs=1e-4)]
    assert spec.std == [pytest.approx(pixels.std(), abs=1e-4)]


def test_fashion_mnist_lists_what_was_tried(tmp_path, monkeypatch):
    import torchvision

    def offline(*args, **kwargs):
        raise OSError("no network here")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", offline)
    spec = data.describe("fashion_mnist").model_copy(update={"folders": [str(tmp_path / "system")]})
    monkeypatch.setenv("SELFZOO_DATA", str(tmp_path))
    from zoo.data import locate

    with pytest.raises(data.DataMissing) as error:
        locate.find(spec)
    for tried in ("data=PATH", f"{tmp_path}/fashion_mnist", "system", "no network here", "apt-get install"):
        assert tried in str(error.value)
