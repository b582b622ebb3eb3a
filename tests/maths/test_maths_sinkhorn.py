import numpy as np
import pytest
import torch

from engine.maths.sinkhorn import Workspace, sinkhorn
from golden import load


def plainly(scores, epsilon, iterations):
    """The definition, in float64: normalise prototypes, then samples, over and over."""
    q = torch.exp((scores.double() - scores.max()) / epsilon)
    for _ in range(iterations):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return q


def test_one_process_agrees_with_the_authors():
    g = load("swav/sinkhorn.npz")
    for case in g.meta:
        scores = torch.from_numpy(g.given(f"scores_{case['case']}"))
        assert scores.shape == (case["B"], case["K"]) and case["world_size"] == 1
        g.agree(f"q_{case['case']}", sinkhorn(scores, case["epsilon"], case["iterations"]))


@pytest.mark.parametrize(
    "batch, prototypes, epsilon, iterations", [(1, 4, 0.05, 3), (700, 900, 0.05, 3), (9, 2, 0.5, 7), (5, 1, 1.0, 1)]
)
def test_equals_the_plain_definition(batch, prototypes, epsilon, iterations):
    scores = torch.rand(batch, prototypes, generator=torch.manual_seed(batch)) * 2 - 1
    assert torch.allclose(
        sinkhorn(scores, epsilon, iterations).double(), plainly(scores, epsilon, iterations), atol=2e-6
    )


def test_rows_sum_to_one_and_columns_become_even():
    scores = torch.randn(64, 8, generator=torch.manual_seed(0))
    q = sinkhorn(scores, 0.5, 200)
    assert torch.allclose(q.sum(1), torch.ones(64), atol=1e-6)
    assert torch.allclose(q.sum(0), torch.full((8,), 8.0), atol=1e-4)


def test_tiny_epsilon_neither_overflows_nor_starves_a_prototype():
    scores = torch.rand(32, 6, generator=torch.manual_seed(3)) * 0.2 + 0.8
    scores[:, 5] = -1.0  # exp(-2 / 0.005) is 0 even in float64's neighbourhood of the others
    q = sinkhorn(scores, 0.005, 3)
    assert torch.isfinite(q).all()
    assert q[:, 5].sum() > 1


def test_half_precision_scores_are_handled_in_float32():
    scores = torch.rand(16, 5, generator=torch.manual_seed(1)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = sinkhorn(scores, 0.05)
    assert q.dtype == torch.float32
    assert torch.allclose(q.double(), plainly(scores.float(), 0.05, 3), atol=2e-6)


def test_hard_assignments_are_the_largest_soft_ones():
    scores = torch.randn(30, 7, generator=torch.manual_seed(2))
    hard = sinkhorn(scores, 0.3, hard=True)
    assert torch.equal(hard.argmax(1), sinkhorn(scores, 0.3).argmax(1))
    assert set(np.unique(hard.numpy())) == {0.0, 1.0} and torch.equal(hard.sum(1), torch.ones(30))


def test_scores_are_left_alone():
    scores = torch.randn(6, 3)
    before = scores.clone()
    sinkhorn(scores)
    assert torch.equal(scores, before)


@pytest.mark.parametrize("last", [0, 1, 300, 399, 700])
@pytest.mark.parametrize("hard", [False, True])
def test_the_last_rows_alone_and_in_kept_memory_are_the_same_bits(last, hard):
    """700 x 900 are several blocks; the memory has held a larger matrix, and one of not-a-number, before."""
    scores = torch.rand(700, 900, generator=torch.manual_seed(4)) * 2 - 1
    workspace = Workspace()
    workspace.matrix(800, 900, scores.device).fill_(float("nan"))
    for given in (scores.flip(0), scores):
        part = sinkhorn(given, last=last, hard=hard, workspace=workspace)
        assert torch.equal(part, sinkhorn(given, hard=hard)[700 - last :])


def test_calls_in_one_workspace_take_memory_once_and_without_one_results_stand_alone():
    scores, workspace = torch.randn(40, 6, generator=torch.manual_seed(5)), Workspace()
    assert sinkhorn(scores, workspace=workspace).data_ptr() == sinkhorn(-scores, workspace=workspace).data_ptr()
    first = sinkhorn(scores)
    kept = first.clone()
    sinkhorn(-scores)
    assert torch.equal(first, kept)


@pytest.mark.parametrize(
    "wrong, word",
    [
        ({"epsilon": 0}, "epsilon"),
        ({"iterations": 0}, "iterations"),
        ({"world": "all"}, "world"),
        ({"last": 5}, "last must be 0 to 4"),
        ({"last": -1}, "last"),
    ],
)
def test_a_wrong_argument_is_named(wrong, word):
    with pytest.raises(ValueError, match=word):
        sinkhorn(torch.zeros(4, 2), **wrong)


@pytest.mark.parametrize("wrong, rows", [(float("nan"), [1]), (float("inf"), [1]), (-float("inf"), [0, 1, 2])])
def test_scores_that_are_not_finite_are_refused(wrong, rows):
    scores = torch.randn(3, 4)
    scores[rows, 2] = wrong
    with pytest.raises(ValueError, match="not finite"):
        sinkhorn(scores)
    assert sinkhorn(torch.zeros(0, 4)).shape == (0, 4)
