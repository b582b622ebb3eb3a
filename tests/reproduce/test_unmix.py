"""Un-Mix: mixing and losses against the authors' numbers, and the paper's formula against a plain one."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from golden import load
from reproduce.methods.unmix import BASES, Unmix, box, mix


def flat(dim: int) -> nn.Module:
    backbone = nn.Flatten()
    backbone.dim = dim
    return backbone


SWAV = {
    "prototypes": 7,
    "dim": 8,
    "hidden": 0,
    "head_batchnorm": False,
    "sinkhorn_iterations": 3,
    "epsilon": 0.05,
    "temperature": 0.1,
    "assign_crops": [0, 1],
    "freeze_prototypes_steps": 0,
    "assignment": "soft",
    "queue": {"length": 0, "start_epoch": 0},
}


def test_boxes_agree_with_the_authors():
    g = load("swav/unmix_bbox.npz")
    assert json.loads(str(g.given("columns"))) == [
        "H",
        "W",
        "lam",
        "cx",
        "cy",
        "x1",
        "y1",
        "x2",
        "y2",
    ]  # their x is the first axis
    found = [box(int(h), int(w), lam, int(cx), int(cy)) for h, w, lam, cx, cy in g.given("rows")[:, :5]]
    g.exact("rows", np.array(found), part=np.s_[:, 5:])


def authors_draw(meta):
    """What their program drew: whole images?, the weight, then a centre (first axis first) for each pair of crops."""
    numbers = np.random.RandomState(meta["np_seed"])
    whole, lam, side = numbers.rand() < meta["unmix_prob"], numbers.beta(1, 1), meta["S"]
    centres = [(numbers.randint(side), numbers.randint(side)) for _ in range(2)]
    assert lam == pytest.approx(meta["lam_drawn"], abs=1e-15)
    return lambda step, pair=0: (whole, lam, *((c + 0.5) / side for c in centres[pair]))


def swav_case(g, meta, form):
    name = meta["name"]
    settings = {
        "prototypes": "K",
        "dim": "D",
        "sinkhorn_iterations": "sinkhorn_iterations",
        "epsilon": "epsilon",
        "temperature": "temperature",
    }
    assert all(SWAV[ours] == meta[theirs] for ours, theirs in settings.items())
    queue = {"length": len(g.given(f"{name}.queue_before")[0]), "start_epoch": 0} if "queue" in name else SWAV["queue"]
    method = Unmix(flat(432), base="swav", form=form, pairing="reversed", swav={**SWAV, "queue": queue})
    base = method.base
    base.projection_head = nn.Linear(432, 8, bias=False)
    with torch.no_grad():
        base.projection_head.weight.copy_(torch.from_numpy(g.given(f"{name}.fc")))
        base.prototypes.weight.copy_(F.normalize(torch.from_numpy(g.given(f"{name}.prototypes_raw")), dim=1))
    if "queue" in name:
        base.queue = torch.from_numpy(g.given(f"{name}.queue_before")).clone()
        base.share, base.pushed = meta["bs"], 100
    return method


@pytest.mark.parametrize("case", range(5))
def test_unmix_on_swav_agrees_with_the_released_code(case, monkeypatch):
    g = load("swav/unmix_swav.npz")
    meta = g.meta[case]
    name, crops = meta["name"], torch.from_numpy(g.given(f"{g.meta[case]['name']}.crops"))
    method = swav_case(g, meta, "released")
    assert crops.shape[:2] == (sum(meta["nmb_crops"]), meta["bs"])
    monkeypatch.setattr(method, "draw", authors_draw(meta))
    mixed, lam = method.mixtures(list(crops[::2]), 0)
    g.agree(f"{name}.mixed", torch.stack(mixed))
    g.agree(f"meta.{case}.lam_loss", lam)
    if meta["bbox"]:  # where the mixture is another's pixels, pair by pair
        for one, view, (_, *region) in zip(mixed, crops[::2], meta["bbox"], strict=True):
            changed = (one != view).any(0).any(0).nonzero()
            assert [*changed.amin(0), *(changed.amax(0) + 1)] == region
    losses = []
    plain = method.base.swav_loss
    monkeypatch.setattr(method.base, "swav_loss", lambda *a, **k: losses.append(plain(*a, **k)) or losses[-1])
    total, logs = method.loss(SimpleNamespace(views=list(crops), epoch=0), 0)
    total.backward()
    assert logs["lam"] == lam
    for loss, key in zip([*losses, total], ("loss_ori", "loss_mix", "loss_mix_flip", "loss_total"), strict=True):
        g.agree(f"meta.{case}.{key}", loss.double())
    g.agree(f"{name}.grad_fc", method.base.projection_head.weight.grad)
    if "queue" in name:
        g.agree(f"{name}.queue_after", method.base.queue)


@pytest.mark.parametrize("case", range(2))
def test_unmix_on_moco_agrees_with_the_released_code(case, monkeypatch):
    g = load("swav/unmix_moco.npz")
    meta = g.meta[case]
    name = meta["name"]
    method = Unmix(
        flat(192),
        base="mocov1",
        pairing="reversed",
        mocov1={"dim": meta["dim"], "hidden": 0, "queue": meta["K"], "momentum": meta["m"], "temperature": meta["T"]},
    )
    base = method.base
    for encoder, key in ((base, "W_q"), (base.key_encoder, "W_k")):
        layer = nn.Linear(192, meta["dim"], bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(g.given(f"{name}.{key}")))
        if encoder is base:
            base.head = layer
        else:
            base.key_encoder[1] = layer.requires_grad_(False)
    base.queue.copy_(torch.from_numpy(g.given(f"{name}.queue")))
    method.before_step(0, SimpleNamespace(seed=0))
    g.agree(f"{name}.W_k_after", base.key_encoder[1].weight)
    query, key = (torch.from_numpy(g.given(f"{name}.{k}")) for k in ("im_q", "im_k"))
    monkeypatch.setattr(method, "draw", authors_draw(meta))
    (mixed,), lam = method.mixtures([query], 0)
    assert len(query) == meta["bs"] and bool(meta["bbox"]) == (not meta["unmix_prob"])
    g.agree(f"{name}.mixed", mixed)
    g.agree(f"meta.{case}.lam_loss", lam)
    q, q_mix, k = base.queries(query), base.queries(mixed), base.keys(key, 0)
    for rows, entry in ((q, "loss_ori"), (q_mix, "loss_mix"), (q_mix.flip(0), "loss_mix_flip")):
        g.agree(f"meta.{case}.{entry}", base.contrast(rows, k).double())
    total, _ = method.loss(SimpleNamespace(views=[query, key]), 0)
    total.backward()
    g.agree(f"meta.{case}.loss_total", total.double())
    g.agree(f"{name}.grad_W_q", base.head.weight.grad)
    g.agree(f"{name}.queue_after", base.queue)


def unmix(base: str, **params) -> Unmix:
    torch.manual_seed(0)
    small = {
        "swav": SWAV,
        "simclr": {"dim": 4, "hidden": 0},
        "mocov1": {"dim": 4, "queue": 20},
        "mocov2": {"dim": 4, "hidden": 6, "queue": 20},
    }[base]
    return Unmix(flat(48), base=base, **{base: small}, **params)


def batch(count: int = 2, size: int = 6):
    g = torch.Generator().manual_seed(1)
    return SimpleNamespace(
        views=[torch.randn(size, 3, 4, 4, generator=g) for _ in range(count)], epoch=0, index=torch.arange(size)
    )


def test_in_the_papers_form_predictions_and_assignments_are_read_backwards_together():
    """The last term is SwAV's own loss on crops of which every even one is the mixture of the partner."""
    method = unmix("swav").double()
    one = batch(4)
    views = [v.double() for v in one.views]
    mixed = [mix(v, method.swap(v), 0.3, None)[0] for v in views[::2]]
    method.base.before_step(0)
    total = method.swav_loss(SimpleNamespace(views=views, epoch=0), mixed, 0.3, 0)

    def plain(views):
        return method.base.loss(SimpleNamespace(views=views, epoch=0), 0)[0]

    there = [mixed[0], views[1], mixed[1], views[3]]
    back = [method.swap(mixed[0]), views[1], method.swap(mixed[1]), views[3]]
    torch.testing.assert_close(total, plain(views) + 0.3 * plain(there) + 0.7 * plain(back))


def test_a_mixture_read_backwards_is_the_mixture_with_the_shares_exchanged():
    for pairing in ("neighbours", "reversed"):
        method = unmix("simclr", pairing=pairing)
        x = torch.randn(6, 3, 4, 4)
        torch.testing.assert_close(
            method.swap(mix(x, method.swap(x), 0.3, None)[0]), mix(x, method.swap(x), 0.7, None)[0]
        )
        assert torch.equal(method.swap(method.swap(x)), x)


def test_neighbours_stay_together_when_processes_share_a_batch():
    method = unmix("simclr")
    x = torch.arange(8.0)
    assert torch.equal(method.swap(x), torch.cat([method.swap(x[:4]), method.swap(x[4:])]))
    assert method.swap(torch.arange(5.0)).tolist() == [1, 0, 3, 2, 4]


def test_shares_match_the_pixels_exchanged():
    method = unmix("simclr", pairing="reversed")
    ones = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    for step in range(40):
        mixed, lam = method.mixtures([ones], step)
        assert mixed[0][1].mean().item() == pytest.approx(lam, abs=1e-6)
    method.probability = 1.0
    mixed, lam = method.mixtures([ones], 0)
    assert len(mixed[0].unique()) == 2 and mixed[0][1].mean().item() == pytest.approx(lam, abs=1e-6)


def test_probability_one_mixes_whole_images_zero_regions_and_half_both():
    for probability, expected in ((0.0, {False}), (1.0, {True}), (0.5, {True, False})):
        method = unmix("simclr", probability=probability)
        assert {method.draw(step)[0] for step in range(60)} == expected
    method = unmix("simclr")
    lams = np.array([method.draw(step)[1] for step in range(400)])
    assert 0.45 < lams.mean() < 0.55 and lams.std() > 0.25  # Beta(1, 1) is uniform


def places(method, step):
    """Where the regions of four equal views lie."""
    zeros = [torch.stack([torch.zeros(1, 64, 64), torch.ones(1, 64, 64)])] * 4
    return [tuple(mixture[0, 0].nonzero().float().mean(0).tolist()) for mixture in method.mixtures(zeros, step)[0]]


def test_as_released_every_pair_of_crops_has_a_place_of_its_own_and_in_the_papers_form_one_for_all():
    paper, released = unmix("swav"), unmix("swav", form="released")
    steps = [step for step in range(30) if 0.3 < paper.draw(step)[1] < 0.9]
    assert len(steps) > 10
    for step in steps:
        found = places(released, step)
        assert len(set(places(paper, step))) == 1 and len({tuple(round(v) for v in place) for place in found}) == 4
        assert found[0] == places(paper, step)[0] and places(released, step) == found  # the same again after a resume
    centres = np.array([released.draw(step, pair)[2:] for step in range(500) for pair in (1, 3)])
    assert (
        np.abs(centres.mean(0) - 0.5).max() < 0.03 and abs(np.corrcoef(centres[::2, 0], centres[1::2, 0])[0, 1]) < 0.1
    )
    assert {released.draw(7, pair)[:2] for pair in range(4)} == {paper.draw(7)[:2]}  # one weight and one kind


def test_the_symmetric_loss_on_moco_is_the_sum_of_both_directions():
    settings = {"dim": 4, "hidden": 6, "queue": 20}
    both, there, back = (
        Unmix(flat(48), base="mocov2", mocov2={**settings, "symmetric": s}) for s in (True, False, False)
    )
    for method in (there, back):
        method.load_state_dict(both.state_dict())
    one = batch()
    mixed = [mix(one.views[0], both.swap(one.views[0]), 0.3, None)[0]]
    losses = [
        m.moco_loss(SimpleNamespace(views=v), mixed, 0.3, 0)
        for m, v in ((both, one.views), (there, one.views), (back, one.views[::-1]))
    ]
    torch.testing.assert_close(losses[0], losses[1] + losses[2])
    assert both.collapsed_loss == pytest.approx(4 * np.log(21))


@pytest.mark.parametrize("base", sorted(BASES))
@pytest.mark.parametrize("count", [2, 3])
def test_every_base_trains_with_any_number_of_views(base, count):
    method = unmix(base)
    method.before_step(0, SimpleNamespace(seed=0))
    loss, logs = method.loss(batch(count), 0)
    loss.backward()
    assert loss.isfinite() and 0 <= logs["lam"] <= 1
    trained = [p for group in method.param_groups() for p in group["params"]]
    assert trained and all(p.grad is not None for p in trained)
    assert not any(k.startswith("backbone") for k in method.state_dict())  # held once, by the base


def test_the_queue_path_runs_which_the_released_one_cannot():
    method = unmix("swav", form="paper")
    method.base.queue_spec = {"length": 6, "start_epoch": 0}
    for step in range(4):
        method.before_step(step, SimpleNamespace(seed=0))
        assert method.loss(batch(), step)[0].isfinite()
    assert method.base.queue_full and method.base.pushed == 12
