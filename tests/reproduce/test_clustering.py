"""What all clustering methods share: means over processes, first centroids, and the numbers of the log."""

import engine_processes as processes
import pytest
import torch

from reproduce.clustering import UNSEEN, describe, mean_over_known, rows_of_images

LOSSES = torch.tensor([1.0, 2.0, 6.0, 10.0, 20.0])
KNOWN = torch.tensor([True, True, True, True, False])


def shares(rank):
    """Process 0 has three images with a label and one without, process 1 has one: and both hold image 4."""
    mine = [slice(0, 3), slice(3, 5)][rank]
    mean = float(mean_over_known(LOSSES[mine], KNOWN[mine]))
    index = torch.tensor([[0, 4, 2], [4, 1, 3]][rank])
    rows = torch.stack([index.float() + 1, -index.float()], 1)
    drawn = rows_of_images(index, rows, 5, torch.Generator().manual_seed(1), "params.clusters")
    return mean, drawn


def test_two_processes_mean_over_images_and_draw_each_image_once():
    (one, rows), (two, others) = processes.together(shares)
    assert (one + two) / 2 == pytest.approx((1 + 2 + 6 + 10) / 4)
    assert torch.equal(rows, others)
    assert sorted(rows[:, 0].tolist()) == [1, 2, 3, 4, 5], "image 4, held twice, is one row of its own length"
    assert torch.equal(rows[:, 1], 1 - rows[:, 0])


def test_first_centroids_are_drawn_among_all_images():
    index = torch.arange(100)
    drawn = [
        set(rows_of_images(index, index[:, None].float(), 5, torch.Generator().manual_seed(s), "K")[:, 0].tolist())
        for s in range(20)
    ]
    assert max(max(one) for one in drawn) > 80 and len(set(map(frozenset, drawn))) == 20


def test_the_numbers_of_an_assignment_by_hand():
    uneven = torch.tensor([[0, 0, 0, 1, UNSEEN]])
    found = describe(uneven, [4])
    entropy = -(0.75 * torch.tensor(0.75).log() + 0.25 * torch.tensor(0.25).log()) / torch.tensor(4.0).log()
    assert found["prototype_usage"] == pytest.approx(float(entropy))
    assert found["empty_clusters"] == 2 and found["largest_cluster"] == 0.75
    assert describe(torch.zeros(1, 5, dtype=torch.int64), [4])["prototype_usage"] == 0
    assert describe(torch.arange(4)[None], [4])["prototype_usage"] == pytest.approx(1)


def test_agreement_is_with_the_assignment_before():
    labels, crossed = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 0, 1]])
    assert describe(labels, [2], crossed)["agreement"] == pytest.approx(0, abs=1e-9)
    assert describe(labels, [2], 1 - labels)["agreement"] == pytest.approx(1)
