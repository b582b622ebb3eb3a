"""Every distributed form equals the plain one; all of them in one pair of processes."""

import pytest
import torch
from golden import load
from two_processes import run

from engine.maths.sinkhorn import sinkhorn


def on_rank(rank, inputs):
    out = {}
    for name, (halves, epsilon, iterations) in inputs["sinkhorn"].items():
        out[name] = sinkhorn(halves[rank], epsilon, iterations).numpy()
    return out


@pytest.fixture(scope="module")
def world2():
    g = load("swav/sinkhorn_world2.npz")
    uneven = torch.rand(30, 11, generator=torch.manual_seed(5))
    inputs = {
        "sinkhorn": {
            "golden": (torch.from_numpy(g.given("scores")), g.meta["epsilon"], g.meta["iterations"]),
            "uneven": ([uneven[:8], uneven[8:]], 0.05, 3),
        },
    }
    return inputs, run(on_rank, inputs)


def test_sinkhorn_over_two_processes_agrees_with_the_authors(world2):
    g = load("swav/sinkhorn_world2.npz")
    for rank, answer in enumerate(world2[1]):
        g.agree("q", answer["golden"], part=rank)


def test_sinkhorn_of_uneven_ranks_equals_one_process(world2):
    halves, epsilon, iterations = world2[0]["sinkhorn"]["uneven"]
    both = torch.cat([torch.from_numpy(answer["uneven"]) for answer in world2[1]])
    assert torch.allclose(both, sinkhorn(torch.cat(list(halves)), epsilon, iterations), atol=1e-6)
