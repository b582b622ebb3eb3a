"""A sealed split stays closed until it is released, in every way that leads to its images."""

from __future__ import annotations

import multiprocessing

import pytest
from data_samples import folders

from zoo import data
from zoo.errors import UserError


def test_a_sealed_split_raises_until_it_is_released():
    with data.sealed("test") as seal:
        with pytest.raises(data.SealedError, match="digits: split 'test' is sealed"):
            data.open_source("digits", "test")
        assert len(data.open_source("digits", "train")) == 1258
        seal.release()
        assert len(data.open_source("digits", "test")) == 539


def test_the_seal_is_gone_after_the_block_and_after_an_error_in_it():
    with pytest.raises(RuntimeError), data.sealed("test"):
        raise RuntimeError
    assert len(data.open_source("digits", "test")) == 539


def test_a_split_that_holds_sealed_images_is_sealed_too():
    with data.sealed("test"), pytest.raises(data.SealedError, match="'all' holds images of 'test'"):
        data.open_source("digits", "all")
    with data.sealed("val"):
        for split in ("train", "all"):
            with pytest.raises(data.SealedError, match=f"{split!r} holds images of 'val'"):
                data.open_source("digits", split)
        assert data.open_source("digits", "fit") and data.open_source("digits", "test")


def test_a_split_of_files_that_holds_a_sealed_one_is_sealed_too(tmp_path):
    from data_samples import voc_year

    for part in ("train", "val", "trainval", "test"):
        voc_year(tmp_path, ["a", "b"] if part != "val" else ["b"], part=part)
    for sealed, wanted in (("val", "trainval"), ("trainval", "train")):
        with data.sealed(sealed), pytest.raises(data.SealedError, match=f"{wanted!r} holds images of {sealed!r}"):
            data.open_source("voc", wanted, tmp_path)
    with data.sealed("test"):
        assert len(data.open_source("voc", "trainval", tmp_path)) == 2


def test_a_named_part_of_a_sealed_split_is_sealed(tmp_path):
    (tmp_path / "few.txt").write_text("digits-000000\n")
    with data.sealed("test"), pytest.raises(data.SealedError):
        data.open_source("digits", f"test@{tmp_path}/few.txt")


def test_a_seal_may_be_for_one_data_set_only(tmp_path):
    root = folders(tmp_path, parts=("train", "test"))
    with data.sealed("test", dataset="digits"):
        assert len(data.open_source("folder", "test", root)) == 12
        with pytest.raises(data.SealedError):
            data.open_source("digits", "test")
    with data.sealed("test"), pytest.raises(data.SealedError):
        data.open_source(str(root), "test")


def test_the_inner_of_two_seals_does_not_open_the_outer():
    with data.sealed("test"), data.sealed("test") as inner:
        inner.release()
        with pytest.raises(data.SealedError):
            data.open_source("digits", "test")


def test_what_is_read_from_a_cache_asks_permit():
    with data.sealed("test") as seal:
        with pytest.raises(data.SealedError):
            data.permit("digits", "test")
        seal.release()
        before = data.openings()["digits", "test"]
        data.permit("digits", "test")
        assert data.openings()["digits", "test"] == before + 1


def test_openings_are_counted_and_refusals_are_not():
    before = data.openings()
    data.open_source("digits", "test")
    data.open_source("digits", "test")
    with data.sealed("test"), pytest.raises(data.SealedError):
        data.open_source("digits", "test")
    assert data.openings()["digits", "test"] - before["digits", "test"] == 2


def _try(results):
    try:
        results.put(len(data.open_source("digits", "test")))
    except data.SealedError as error:
        results.put(str(error))


def test_a_forked_worker_is_sealed_too():
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with data.sealed("test"):
        worker = context.Process(target=_try, args=(results,))
        worker.start()
        assert "sealed" in results.get(timeout=30)
        worker.join()


def test_a_seal_needs_a_split():
    with pytest.raises(UserError, match="name of a split"), data.sealed():
        pass
