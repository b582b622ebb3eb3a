"""PIC, InstDisc and MoCo: against the authors' numbers and slow references."""

import copy
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine import dist, rng
from golden import load
from reproduce import launch
from reproduce.methods.instdisc import InstDisc, instance_logits
from reproduce.methods.moco import MoCo, MoCoV1, split_batchnorm
from reproduce.methods.pic import PIC, pic_logits, window, windows
from reproduce.plan import plan
from reproduce.stream import Stream
from reproduce.views import Augment, Crop
from reproduce.weight_table import sharded_cross_entropy
from zoo.errors import UserError

SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}


def flat(dim: int) -> nn.Module:
    backbone = nn.Flatten()
    backbone.dim = dim
    return backbone


def ctx(lr=lambda step: 0.1, optimizer=SGD, seed=0):
    return SimpleNamespace(seed=seed, optimizer=optimizer, lr=lr)


def views(count: int, size: int, dim: int, seed: int = 0, index=None):
    g = torch.Generator().manual_seed(seed)
    index = torch.arange(size) if index is None else torch.as_tensor(index)
    return SimpleNamespace(
        views=[torch.randn(size, dim, 1, 1, generator=g) for _ in range(count)], index=index, epoch=0
    )


# -- PIC -----------------------------------------------------------------------------------------------------------------
def test_pic_logits_loss_and_gradients_agree_with_the_release():
    g = load("pic/pic_loss.npz")
    leaves = {k: torch.from_numpy(g.given(k)).requires_grad_() for k in ("x_large", "x_small", "weight")}
    large, small = (F.normalize(leaves[k].transpose(0, 1).flatten(0, 1), dim=1) for k in ("x_large", "x_small"))
    logits = pic_logits(large, small, leaves["weight"], float(g.given("temperature")))
    target = torch.from_numpy(g.given("y")).repeat(4)
    loss = sharded_cross_entropy(logits, target).mean()
    loss.backward()
    g.agree("logits", logits)
    g.exact("labels", target)
    g.agree("loss", loss.double())
    g.agree("grad_weight", leaves["weight"].grad)
    g.agree("grad_large", leaves["x_large"].grad)
    g.agree("grad_small", leaves["x_small"].grad)


def pic(instances: int = 30, dim: int = 6, **params) -> PIC:
    torch.manual_seed(0)
    return PIC(
        flat(dim),
        instances=instances,
        **{"dim": 4, "hidden": 0, "window": {"size": 0, "stride": 0, "mode": "sliding"}, **params},
    )


def test_small_crops_train_the_encoder_and_not_the_classes():
    grads = []
    for sides in ([3, 3], [3, 1]):
        method = pic(dim=9)
        g = torch.Generator().manual_seed(1)
        method.head = nn.Linear(9, 4)
        backbone = nn.AdaptiveAvgPool2d(3)
        method.backbone = nn.Sequential(backbone, nn.Flatten())
        batch = SimpleNamespace(
            views=[torch.randn(4, 1, s, s, generator=g) for s in sides], index=torch.arange(4), epoch=0
        )
        method.before_step(0, ctx())
        method.loss(batch, 0)[0].backward()
        only = pic_logits(
            F.normalize(method.head(method.backbone(batch.views[0])), dim=1).detach(),
            torch.empty(0, 4),
            (w := method.rows.whole().requires_grad_()),
            0.2,
        )
        expected = torch.autograd.grad(sharded_cross_entropy(only, torch.arange(4)).sum() / 8, w)[0]
        grads.append(torch.allclose(method._taken[1].grad, expected, atol=1e-6))
        assert method.head.weight.grad.abs().sum() > 0
    assert grads == [False, True]


def trained(method: PIC, steps: list[SimpleNamespace], lr=lambda step: 0.1 / (1 + step), optimizer=SGD) -> list[float]:
    losses = []
    for step, batch in enumerate(steps):
        method.before_step(step, ctx(lr, optimizer))
        loss, _ = method.loss(batch, step)
        loss.backward()
        method.after_backward(step)
        losses.append(loss.item())
    return losses


def test_class_rows_follow_torchs_own_sgd_exactly():
    steps = [views(2, 4, 6, seed=s, index=[s, s + 5, 20, 3]) for s in range(6)]
    method = pic()
    rows = nn.Parameter(method.rows.whole())
    optimizer = torch.optim.SGD([rows], lr=1.0, momentum=0.9, weight_decay=1e-2)
    for step, batch in enumerate(steps):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        f = F.normalize(torch.cat([method.head(v.flatten(1)) for v in batch.views]), dim=1).detach()
        F.cross_entropy(f @ F.normalize(rows, dim=1).T / 0.2, batch.index.repeat(2)).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained(method, steps)
    torch.testing.assert_close(method.rows.whole(), rows.detach(), atol=2e-6, rtol=1e-5)


def test_class_rows_with_a_rate_of_their_own_follow_the_schedule_beside_any_optimizer():
    steps = [views(2, 4, 6, seed=s, index=[s, s + 5, 20, 3]) for s in range(4)]
    adamw = {"name": "adamw", "lr": 0.004, "weight_decay": 0.5}
    plain, own = pic(), pic(class_sgd={"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2})
    start = own.rows.whole().clone()
    trained(plain, steps)
    trained(own, steps, lambda step: 0.004 / (1 + step), adamw)
    torch.testing.assert_close(own.rows.whole(), plain.rows.whole(), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(own.rows.whole(), start)
    with pytest.raises(UserError, match=r"optimizer.name=adamw.*params.class_sgd.lr"):
        pic().before_step(0, ctx(optimizer=adamw))


def test_with_correction_idle_rows_end_where_the_full_optimiser_would_have_put_them(monkeypatch):
    """Sampled softmax with correction = dense SGD whose gradient is zero outside the sampled classes, at a changing rate."""
    monkeypatch.setattr("reproduce.weight_table.BLOCK", 32)
    steps = [
        views(1, 3, 6, seed=s, index=[(7 * s + j) % 30 for j in range(3)]) for s in range(150)
    ]  # past merged blocks
    method = pic(negatives=6)
    rows = nn.Parameter(method.rows.whole().double())
    optimizer = torch.optim.SGD([rows], lr=1.0, momentum=0.9, weight_decay=1e-2)
    recent = torch.empty(0, dtype=torch.int64)
    for step, batch in enumerate(steps):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step / 100)
        recent = torch.cat([batch.index, recent])[:6]
        chosen = torch.unique(recent)
        f = F.normalize(method.head(batch.views[0].flatten(1)), dim=1).detach().double()
        logits = f @ F.normalize(rows[chosen], dim=1).T / 0.2
        F.cross_entropy(logits, torch.searchsorted(chosen, batch.index)).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained(method, steps, lambda step: 0.1 / (1 + step / 100))
    found = method.rows.whole().double()
    assert (found - rows.detach()).abs().max() < 2e-4 * rows.detach().abs().max()


def test_without_correction_idle_rows_stand_still():
    method = pic(negatives=4, correction=False)
    before = method.rows.whole()
    trained(method, [views(1, 2, 6, seed=s, index=[0, 1]) for s in range(5)])
    after = method.rows.whole()
    assert torch.equal(before[2:], after[2:]) and not torch.equal(before[:2], after[:2])


def test_the_softmax_runs_over_the_images_visited_last_and_the_batch():
    method = pic(negatives=5)
    for ids, expected in (([1, 2], [1, 2]), ([3, 4], [1, 2, 3, 4]), ([5, 1], [1, 3, 4, 5]), ([6, 7], [1, 3, 5, 6, 7])):
        assert method.classes(torch.tensor(ids)).tolist() == expected
    assert pic(negatives=1).classes(torch.tensor([4, 8, 9])).tolist() == [4, 8, 9]  # never less than the batch


def test_idle_products_equal_a_plain_loop_over_any_span():
    from reproduce.weight_table import Idle

    idle, matrices = Idle(), []
    for s in range(1300):
        lr, m, d = 0.1 / (1 + s), 0.9, 1e-2
        idle.advance(lr, m, d)
        matrices.append(np.array([[1 - lr * d, -lr * m], [d, m]]))
    starts = np.array([0, 1, 511, 512, 700, 1024, 1290, 1299, 1300])
    for start, found in zip(starts, idle.since(starts), strict=True):
        expected = np.eye(2)
        for a in matrices[start:]:
            expected = a @ expected
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)


def test_pic_survives_a_mixed_precision_scale_and_skips_an_overflow():
    plain, scaled = pic(), pic()
    batch = views(1, 4, 6)
    for method, factor in ((plain, 1.0), (scaled, 1024.0)):
        method.before_step(0, ctx())
        (method.loss(batch, 0)[0] * factor).backward()
        method.after_backward(0)
    torch.testing.assert_close(plain.rows.whole(), scaled.rows.whole())
    before = scaled.rows.whole()
    scaled.before_step(1, ctx())
    (scaled.loss(batch, 1)[0] * float("inf")).backward()
    scaled.after_backward(1)
    assert torch.equal(scaled.rows.whole(), before)


def test_pic_rows_are_the_same_for_any_number_of_processes(monkeypatch):
    whole = pic().rows.whole()
    for world in (2, 3):
        for rank in range(world):
            monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
            monkeypatch.setattr(dist, "world_size", lambda world=world: world)
            part = pic().rows
            ids = part.own(torch.arange(30))
            assert torch.equal(part.take(ids).detach(), whole[ids])


def test_pic_refuses_an_optimiser_that_its_rows_do_not_know():
    with pytest.raises(UserError, match="optimizer.name=sgd"):
        pic().before_step(0, ctx(optimizer={"name": "adamw", "lr": 1.0}))


# -- the sliding window --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", ["plain", "two_ranks"])
def test_windows_slide_over_the_whole_permutation_as_the_paper_means(case):
    g = load("pic/sliding_window.npz")
    _, size, stride, world, _, windows, _ = g.given(f"{case}_cfg")
    for r in range(world):
        order = g.given(f"{case}_r{r}_permutation")
        found = [np.sort(window(order, w, size // world, stride // world)) for w in range(windows)]
        g.exact(f"{case}_r{r}_paper_windows_sorted", np.stack(found).astype(order.dtype))
        released = g.checked(
            f"{case}_r{r}_released", "the released sampler is defective: it never leaves its first window"
        )
        assert len(np.unique(released)) == size // world < len(np.unique(np.concatenate(found)))


def test_the_released_sampler_with_shuffling_draws_random_subsets():
    g = load("pic/sliding_window.npz")
    _, size, stride, *_ = g.given("shuffle_cfg")
    order = g.given("shuffle_r0_permutation")
    released = g.checked("shuffle_r0_released", "drawn from an unseeded generator: only its statistics can be compared")
    overlaps = [len(np.intersect1d(a, b)) for a, b in pairwise(released)]
    sliding = [
        len(np.intersect1d(window(order, w, size, stride), window(order, w + 1, size, stride))) for w in range(7)
    ]
    assert min(sliding) == size - stride and min(overlaps) < size - stride


def test_epochs_make_as_many_windows_as_the_scripts_count():
    g = load("pic/sliding_window.npz")
    rows = g.checked("epochs_to_windows", "columns epochs, windows, warm-up windows (a fortieth of the epochs)")
    for epochs, count, warmup in rows.tolist():
        assert windows(epochs * 1281167, 131072) == count and windows(epochs // 40 * 1281167, 131072) == warmup


class Numbers:
    array, labels = np.zeros((40, 4, 4), dtype=np.uint8), None

    def __len__(self):
        return 40


@pytest.mark.parametrize("mode", ["sliding", "subset"])
def test_pic_visits_an_image_size_over_stride_times_and_windows_run_on_through_epochs(mode):
    method = pic(instances=40, window={"size": 16, "stride": 4, "mode": mode})
    stream = Stream(
        Numbers(),
        Augment((Crop(4, (0.5, 1.0)),), channels=1, mean=(0.0,), std=(1.0,)),
        batch=8,
        schedule={"epochs": 4},
        method=method,
    )
    order = np.concatenate([stream.order(e) for e in range(4)])
    assert len(order) == 160
    for number in range(10):
        part = order[16 * number : 16 * number + 16]
        assert len(np.unique(part)) == 16  # a window is a set, shuffled
        if mode == "sliding":
            whole = np.sort(window(method.images(40, 0, 0), 0, 16, 4))
            assert number or np.array_equal(np.sort(part), whole)
    if mode == "sliding":
        drawn = [set(order[16 * w : 16 * w + 16]) for w in range(10)]
        assert all(len(a & b) == 12 for a, b in pairwise(drawn))
        assert set(np.bincount(order)) == {4}  # 16 / 4, once the permutation has been gone through
    assert np.array_equal(stream.order(2), np.concatenate([stream.order(e) for e in range(4)])[80:120])


def test_the_images_of_each_window_are_shuffled_anew():
    """Of 16 images that two neighbouring windows share 12: in the same relative order they would be if one shuffle served all."""
    method = pic(instances=40, window={"size": 16, "stride": 4, "mode": "sliding"})
    whole = rng.permutation(5, "windows", 0, 40)
    places = [np.argsort(window(whole, number, 16, 4)) for number in range(6)]
    drawn = [method.images(40, number, 5) for number in range(6)]
    shuffles = [
        place[np.searchsorted(window(whole, number, 16, 4), images, sorter=place)].tolist()
        for number, (place, images) in enumerate(zip(places, drawn, strict=True))
    ]
    assert all(sorted(shuffle) == list(range(16)) for shuffle in shuffles)
    assert len({tuple(shuffle) for shuffle in shuffles}) == 6


def test_each_pass_of_the_window_has_an_order_of_its_own_and_shows_every_image_equally_often():
    """PIC.sh reshuffles at each pass. Windows of 16, steps of 4, 40 images: ten windows a pass."""
    method = pic(instances=40, window={"size": 16, "stride": 4, "mode": "sliding"})
    drawn = np.stack([method.images(40, number, 5) for number in range(30)])
    for first in (0, 10, 20):
        assert (np.bincount(drawn[first : first + 10].ravel()) == 4).all()
        assert all(len(np.intersect1d(a, b)) == 12 for a, b in pairwise(drawn[first : first + 10]))
    sets = [{frozenset(np.sort(part)) for part in drawn[first : first + 10]} for first in (0, 10, 20)]
    assert not sets[0] & sets[1] and not sets[1] & sets[2]
    odd = pic(
        instances=30, window={"size": 12, "stride": 8, "mode": "sliding"}
    )  # a stride that does not divide the data
    for number in range(20):
        assert len(np.unique(odd.images(30, number, 0))) == 12
    assert len(np.intersect1d(odd.images(30, 3, 0), odd.images(30, 2, 0))) == 4  # places 24 to 36: still the first pass


def test_a_window_larger_than_the_data_says_what_to_set():
    method = pic(instances=40, window={"size": 41, "stride": 4, "mode": "sliding"})
    with pytest.raises(UserError, match=r"window\.size=41 .* 40 images.*size=0"):
        method.sampler(40, 0, None)


# -- InstDisc ------------------------------------------------------------------------------------------------------------
def test_instdisc_logits_gradient_and_memory_agree_with_the_release(monkeypatch):
    g = load("pic/instdisc_loss.npz")
    method = InstDisc(
        flat(8),
        instances=60,
        dim=8,
        hidden=0,
        negatives=20,
        temperature=float(g.given("temperature")),
        momentum=float(g.given("momentum")),
    )
    method.head = nn.Identity()
    method.memory.copy_(torch.from_numpy(g.given("memory_before")))
    drawn = torch.from_numpy(g.given("drawn_indices"))
    monkeypatch.setattr(method, "draw", lambda *_: drawn)
    x = torch.from_numpy(g.given("x")).requires_grad_()
    g.agree("logits", instance_logits(F.normalize(x, dim=1), method.memory, drawn, method.temperature))
    method.before_step(0, ctx())
    loss, _ = method.loss(SimpleNamespace(views=[x], index=torch.from_numpy(g.given("y"))), 0)
    loss.backward()
    g.agree("loss", loss.double())
    g.agree("grad_x", x.grad)
    g.agree("memory_after", method.memory)


def instdisc(**params) -> InstDisc:
    torch.manual_seed(0)
    return InstDisc(flat(6), **{"instances": 50, "dim": 4, "hidden": 0, "negatives": 400, **params})


def test_negatives_are_uniform_with_replacement_and_depend_on_the_image_alone():
    method = instdisc()
    drawn = method.draw(torch.tensor([3, 7]), 5, 0)
    assert drawn[:, 0].tolist() == [3, 7] and torch.equal(drawn[1:], method.draw(torch.tensor([7]), 5, 0))
    assert not torch.equal(drawn, method.draw(torch.tensor([3, 7]), 6, 0))
    assert not torch.equal(drawn[:, 1:], method.draw(torch.tensor([3, 7]), 5, 1)[:, 1:])  # another view meets others
    assert torch.equal(method.export()["module.memory"], method.memory)
    many = method.draw(torch.arange(50), 0, 0)[:, 1:].flatten()
    assert np.bincount(many.numpy(), minlength=50).min() > 300 and int(many.max()) == 49


def test_memory_rows_are_unit_vectors_from_the_start_unless_the_release_is_wanted():
    torch.testing.assert_close(instdisc().memory.norm(dim=1), torch.ones(50))
    torch.testing.assert_close(instdisc(memory_init="columns").memory.norm(dim=0), torch.ones(4))


def test_memory_rows_move_towards_both_views_by_their_momentum():
    method, batch = instdisc(momentum=0.8), views(2, 3, 6, index=[4, 8, 40])
    expected = method.memory[batch.index].clone()
    for view in batch.views:
        f = F.normalize(method.head(view.flatten(1)), dim=1).detach()
        expected = F.normalize(0.8 * expected + 0.2 * f, dim=1)
    method.before_step(0, ctx())
    method.loss(batch, 0)
    torch.testing.assert_close(method.memory[batch.index], expected)


def test_only_the_images_seen_change_their_memory():
    method = instdisc()
    before = method.memory.clone()
    method.before_step(0, ctx())
    method.loss(views(1, 3, 6, index=[4, 8, 40]), 0)
    changed = (method.memory != before).any(1).nonzero().flatten().tolist()
    assert changed == [4, 8, 40]
    torch.testing.assert_close(method.memory.norm(dim=1), torch.ones(50))


# -- MoCo ----------------------------------------------------------------------------------------------------------------
def moco(backbone=None, **params) -> MoCo:
    torch.manual_seed(0)
    return MoCo(backbone or flat(6), **{"dim": 4, "hidden": 8, "queue": 10 if backbone is None else 64, **params})


def test_the_queue_forgets_oldest_first_and_wraps_at_any_length():
    method = moco(queue=7)
    keys = torch.arange(12.0)[:, None].expand(12, 4)
    for start in range(0, 12, 3):
        method.enqueue(keys[start : start + 3])
    assert sorted(method.queue[0].tolist()) == [5, 6, 7, 8, 9, 10, 11] and int(method.queue_ptr) == 12 % 7
    with pytest.raises(UserError, match=r"params\.queue=7 is shorter than the 12 keys"):
        method.enqueue(keys)


def test_the_key_encoder_moves_by_exactly_its_momentum():
    method = moco(momentum=0.75)
    key, query = method.key_encoder[1][0].weight, method.head[0].weight
    with torch.no_grad():
        query += 1
    before = key.clone()
    method.before_step(0, ctx())
    torch.testing.assert_close(key, 0.75 * before + 0.25 * query)


def test_shuffled_keys_are_the_keys_of_their_own_images():
    method = moco(splits=3).eval()
    images = torch.randn(9, 6, 1, 1)
    torch.testing.assert_close(method.keys(images, 4), F.normalize(method.key_encoder(images), dim=1))


def normed() -> nn.Module:
    backbone = nn.Sequential(nn.BatchNorm2d(6), nn.Flatten())
    backbone.dim = 6
    return backbone


def test_splits_normalise_groups_apart():
    method = moco(normed(), splits=2)
    images = torch.randn(6, 6, 1, 1)
    q = method.queries(images)
    for half in (slice(0, 3), slice(3, 6)):
        torch.testing.assert_close(
            q[half], F.normalize(method.head(F.batch_norm(images[half].flatten(1), None, None, training=True)), dim=1)
        )


@pytest.mark.parametrize("splits", [1, 2, 8])
def test_a_step_is_one_update_of_the_running_statistics_whatever_the_splits(splits):
    """0.9 x 0 + 0.1 x 3 = 0.3, where an update for each of eight groups would give 1.7; the backbone is passed once."""
    method, passes = moco(normed(), splits=splits), []
    method.backbone.register_forward_hook(lambda *_: passes.append(1))
    batch = views(2, 32, 6)
    for view in batch.views:
        view += 3 - view.mean((0, 2, 3), keepdim=True)
    method.before_step(0, ctx())
    method.loss(batch, 0)
    for norm in (method.backbone[0], method.key_encoder[0][0]):
        torch.testing.assert_close(norm.running_mean, torch.full((6,), 0.3))
        assert int(norm.num_batches_tracked) == 1
    assert len(passes) == 1


@pytest.mark.parametrize("layer, shape", [(nn.BatchNorm2d, (12, 5, 4, 3)), (nn.BatchNorm1d, (12, 5))])
@pytest.mark.parametrize("splits", [3, 5])
def test_split_batch_norm_is_a_batch_norm_for_each_group_with_averaged_statistics(layer, shape, splits):
    g = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=g).mul(2).add(1).requires_grad_() for _ in range(2))
    plain = layer(5)
    with torch.no_grad():
        plain.weight.uniform_(0.5, 2)
        plain.running_mean.uniform_(-1, 1)
    state = copy.deepcopy(plain.state_dict())
    alone = [copy.deepcopy(plain) for _ in x.chunk(splits)]  # as on so many processes
    expected = torch.cat([norm(part) for norm, part in zip(alone, x.chunk(splits), strict=True)])
    grads = torch.autograd.grad((expected * weight).sum(), x)[0]
    split = split_batchnorm(nn.Sequential(plain), splits)[0]
    assert split.state_dict().keys() == state.keys()
    found = split(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad((found * weight).sum(), x)[0], grads)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(split, name), torch.stack([getattr(norm, name) for norm in alone]).mean(0))
    split.eval()
    torch.testing.assert_close(
        split(x), F.batch_norm(x, split.running_mean, split.running_var, split.weight, split.bias)
    )


def test_splits_beside_synchronised_statistics_are_refused_before_any_work():
    with pytest.raises(UserError, match=r"sync_bn=true .* params\.splits=4 keeps apart; set sync_bn=false"):
        plan(launch.job("mocov2_digits", {"params.splits": 4, "sync_bn": True}))
    with pytest.raises(UserError, match=r"params\.splits=4"):
        plan(launch.job("unmix_digits", {"params.base": "mocov2", "params.mocov2.splits": 4, "sync_bn": True}))
    plan(launch.job("mocov2_digits", {"params.splits": 1, "sync_bn": True}))


def test_symmetric_moco_is_the_sum_of_both_directions_and_keeps_both_keys():
    method, batch = moco(symmetric=True), views(2, 3, 6)
    one, other = moco(), moco()
    expected = one.loss(batch, 0)[0] + other.loss(SimpleNamespace(views=batch.views[::-1]), 0)[0]
    torch.testing.assert_close(method.loss(batch, 0)[0], expected)
    assert int(method.queue_ptr) == 6 and method.collapsed_loss == 2 * one.collapsed_loss == pytest.approx(
        2 * np.log(11)
    )


def test_v1_and_v2_differ_in_head_and_temperature_and_export_the_authors_names():
    from reproduce.methods import find

    assert find("mocov1") is MoCoV1 and find("mocov2") is MoCo
    v1, v2 = MoCoV1(flat(6)), MoCo(flat(6))
    assert (v1.temperature, v2.temperature) == (0.07, 0.2)
    assert {k for k in v1.export() if "encoder_q" in k} == {"module.encoder_q.fc.weight", "module.encoder_q.fc.bias"}
    assert {"module.encoder_q.fc.2.weight", "module.encoder_k.fc.0.bias", "module.queue", "module.queue_ptr"} < set(
        v2.export()
    )
