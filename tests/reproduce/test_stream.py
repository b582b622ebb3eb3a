"""Streams: the same images and views for any number of processes and workers, from any starting step."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from engine import extract
from reproduce.method import Method, Needs
from reproduce.order import visits
from reproduce.stream import Stream
from reproduce.views import Augment, Crop

AUGMENT = Augment(
    (Crop(12, (0.3, 1.0)), Crop(12, (0.3, 1.0)), Crop(8, (0.1, 0.5))), noise=0.05, channels=1, mean=(0.5,), std=(0.25,)
)


class Pictures:
    """30 gray pictures of 16 x 16, in memory or one by one."""

    def __init__(self, in_memory: bool = True, n: int = 30) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (n, 16, 16), dtype=np.uint8)
        self.pictures, self.array = pixels, pixels if in_memory else None
        self.labels = np.arange(n) % 3
        self.fingerprint = f"pictures {n}"

    def __len__(self) -> int:
        return len(self.pictures)

    def pixels(self, i: int) -> np.ndarray:
        return self.pictures[i]

    def image(self, i: int) -> Image.Image:
        return Image.fromarray(self.pictures[i])


def stream(source=None, augment=AUGMENT, **options) -> Stream:
    return Stream(source or Pictures(), augment, **{"batch": 8, "schedule": {"epochs": 2}, **options})


def test_an_epoch_visits_every_image_at_most_once_and_drops_the_tail():
    s = stream()
    assert (s.steps_per_epoch, s.total_steps) == (3, 6)
    seen = torch.cat([b.index for b in s.epoch(0)])
    assert len(seen) == len(set(seen.tolist())) == 24
    assert not torch.equal(seen, torch.cat([b.index for b in s.epoch(1)]))


def test_a_budget_in_images_counts_images_not_views_and_may_end_within_an_epoch():
    assert stream(schedule={"images": 100}).total_steps == 12
    assert stream(schedule={"images": 0}).total_steps == stream(schedule={"epochs": 0}).total_steps == 0
    for wrong in ({}, {"epochs": 1, "images": 5}):
        with pytest.raises(Exception, match="exactly one of epochs and images"):
            stream(schedule=wrong)


def test_views_have_the_sizes_asked_and_differ_from_each_other():
    batch = next(iter(stream().epoch(0)))
    assert [tuple(v.shape) for v in batch.views] == [(8, 1, 12, 12), (8, 1, 12, 12), (8, 1, 8, 8)]
    assert not torch.equal(batch.views[0], batch.views[1]) and batch.labels is None


@pytest.mark.parametrize("in_memory", [True, False])
def test_two_processes_see_together_what_one_sees(in_memory):
    whole = list(stream(Pictures(in_memory)).epoch(1))
    parts = [list(stream(Pictures(in_memory), rank=r, world=2).epoch(1)) for r in range(2)]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.index, torch.cat([p[step].index for p in parts]))
        for v, view in enumerate(batch.views):
            assert torch.equal(view, torch.cat([p[step].views[v] for p in parts]))


def test_workers_change_nothing():
    for epoch in (0, 1):
        alone = list(stream(Pictures(False)).epoch(epoch))
        helped = list(stream(Pictures(False), workers=2).epoch(epoch))
        assert all(
            torch.equal(a, b) for x, y in zip(alone, helped, strict=True) for a, b in zip(x.views, y.views, strict=True)
        )


def test_workers_live_on_through_epochs():
    helped = stream(Pictures(False), workers=1)
    first = [b.index.tolist() for b in helped.epoch(0)]
    loader = helped._loader
    assert [b.index.tolist() for b in helped.epoch(1)] != first and helped._loader is loader


def test_starting_in_the_middle_gives_the_rest():
    rest = list(stream().epoch(1, start=2))
    last = list(stream().epoch(1))[2:]
    assert len(rest) == 1 and torch.equal(rest[0].views[2], last[0].views[2]) and rest[0].epoch == 1


def test_memory_and_files_give_nearly_the_same_pixels():
    for a, b in zip(stream().epoch(0), stream(Pictures(False)).epoch(0), strict=True):
        for x, y in zip(a.views, b.views, strict=True):
            assert (x - y).abs().max() < 4.1 / 255 / 0.25  # PIL rounds after each of its passes


def test_a_batch_that_the_processes_cannot_share_or_the_data_cannot_fill_says_what_would_do():
    with pytest.raises(Exception, match=r"batch=8 .* 3 processes.*batch=9"):
        stream(world=3)
    with pytest.raises(Exception, match=r"batch=31 is larger than the 30 images.*batch=30"):
        stream(batch=31)


class Asks(Method):
    needs = Needs(labels=True)

    def __init__(self) -> None:
        super().__init__(nn.Flatten())

    def epoch_size(self, n):
        return 16

    def sampler(self, n, epoch, ctx):
        assert ctx.n == n == 30 and ctx.seed == 5 and ctx.steps_per_epoch == 2
        return np.full(16, epoch)


def test_a_methods_sampler_and_its_wish_for_labels_are_honoured():
    s = stream(method=Asks(), seed=5, schedule={"epochs": 3})
    assert s.total_steps == 6
    batch = list(s.epoch(2))[1]
    assert batch.index.tolist() == [2] * 8 and batch.labels.tolist() == [2] * 8
    s.source.labels = np.full(30, -1)
    with pytest.raises(Exception, match="images without one"):
        next(iter(s.epoch(0)))


class Drawn(Asks):
    """Images in an order that does not rise, with labels of their own."""

    ORDER = np.array([29, 3, 17, 0, 8, 8, 21, 5] * 2)

    def __init__(self, labels: bool) -> None:
        super().__init__()
        self.needs = Needs(labels=labels)

    def sampler(self, n, epoch, ctx):
        return self.ORDER


def test_labels_are_those_of_the_images_beside_them_and_are_kept_from_methods_that_need_none():
    source = Pictures()
    source.labels = np.random.default_rng(1).permutation(30)
    batch = next(iter(stream(source, method=Drawn(True), seed=5).epoch(0)))
    assert batch.labels.tolist() == source.labels[Drawn.ORDER[:8]].tolist()
    assert next(iter(stream(source, method=Drawn(False), seed=5).epoch(0))).labels is None


def test_another_seed_shows_the_images_in_another_order():
    one, same, other = (torch.cat([b.index for b in stream(seed=s).epoch(0)]) for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_stored_features_of_an_epoch_are_not_taken_for_another_ones(tmp_path, monkeypatch):
    """Of an augmented view, which differs by epoch; kept in files, as long runs keep them."""
    monkeypatch.setattr(extract, "collect", partial(extract.collect, in_memory=0))
    method = Asks().train()
    kept, plain = stream(), stream()
    kept.workspace = tmp_path
    for epoch in (0, 1, 0):
        torch.testing.assert_close(
            kept.extract(method, 1, epoch=epoch)[1], plain.extract(method, 1, epoch=epoch)[1], rtol=0, atol=0
        )
    assert list(tmp_path.glob("view1-*.npy")), "the features were kept in a file"
    assert not torch.equal(plain.extract(method, 1, epoch=0)[1], plain.extract(method, 1, epoch=1)[1])


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("view", [None, 1])
def test_extract_covers_the_set_once_in_order_whatever_the_number_of_processes(in_memory, view):
    method = Asks().train()
    whole = stream(Pictures(in_memory)).extract(method, view)
    parts = [stream(Pictures(in_memory), rank=r, world=2).extract(method, view) for r in range(2)]
    assert whole[0].tolist() == list(range(30)) and whole[1].shape == (30, 144) and method.training
    assert np.array_equal(whole[0], np.concatenate([p[0] for p in parts]))
    assert torch.equal(whole[1], torch.cat([p[1] for p in parts]))


def test_the_plain_view_is_the_image_itself():
    s = stream(augment=Augment((Crop(16, (0.3, 1.0)),), noise=0.5, channels=1, mean=(0.5,), std=(0.25,)))
    pixels = torch.from_numpy(s.source.pictures).flatten(1) / 255
    torch.testing.assert_close(s.extract(Asks())[1], (pixels - 0.5) / 0.25, atol=1e-5, rtol=0)


# -- an image that is drawn again within an epoch ---------------------------------------------------------------------------
CROPPED = Augment((Crop(12, (0.3, 1.0)),), flip=0.0, channels=1, mean=(0.5,), std=(0.25,))
NOISY = Augment((Crop(16, (1.0, 1.0), (1.0, 1.0)),), flip=0.0, noise=0.05, channels=1, mean=(0.5,), std=(0.25,))


class Again(Method):
    """Image 3 fills a third of the epoch, twice in a row now and then; some images come once."""

    ORDER = np.array([3, 7, 3, 3, 1, 7, 9, 3, 3, 12, 7, 3, 1, 20, 3, 9, 3, 7, 28, 28, 29, 3, 1, 0])

    def __init__(self) -> None:
        super().__init__(nn.Flatten())

    def epoch_size(self, n):
        return len(self.ORDER)

    def sampler(self, n, epoch, ctx):
        return self.ORDER


class Once(Again):
    ORDER = np.concatenate([np.unique(Again.ORDER), np.setdiff1d(np.arange(30), Again.ORDER)])[:24]


def test_visits_count_the_places_before():
    assert visits(np.array([3, 1, 3, 3, 2, 1])).tolist() == [0, 0, 1, 2, 0, 1]
    assert visits(np.array([], dtype=np.int64)).tolist() == []
    assert visits(np.arange(1000)[::-1]).max() == 0 and visits(np.full(5, 8)).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("augment", [CROPPED, NOISY], ids=["crop", "noise"])
def test_each_draw_of_an_image_has_a_view_of_its_own_and_the_first_is_that_of_an_image_drawn_once(in_memory, augment):
    again, once = (
        [
            (int(i), view)
            for batch in stream(Pictures(in_memory), augment, method=method()).epoch(1)
            for i, view in zip(batch.index, batch.views[0], strict=True)
        ]
        for method in (Again, Once)
    )
    assert len({view.numpy().tobytes() for _, view in again}) == len(again) == 24
    only, first = dict(once), {}
    for i, view in again:
        first.setdefault(i, view)
    assert all(torch.equal(view, only[i]) for i, view in first.items())


@pytest.mark.parametrize("in_memory", [True, False])
def test_repeated_draws_are_the_same_for_any_processes_workers_and_starting_step(in_memory):
    whole = [batch.views for batch in stream(Pictures(in_memory), method=Again()).epoch(1)]
    for workers in (0,) if in_memory else (0, 2):
        parts = [
            list(stream(Pictures(in_memory), method=Again(), rank=r, world=2, workers=workers).epoch(1, start=1))
            for r in range(2)
        ]
        for step, expected in enumerate(whole[1:]):
            for v, view in enumerate(expected):
                assert torch.equal(view, torch.cat([p[step].views[v] for p in parts]))
