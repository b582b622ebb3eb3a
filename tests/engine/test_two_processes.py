"""Two gloo processes with half a batch each are one process with the whole batch."""

import copy
import json
import os
from dataclasses import replace

import engine_processes as processes
import engine_toys as toys
import numpy as np
import pytest
import torch
import torch.distributed as td
from torch import nn

from engine import dist
from engine.batch import Batch
from engine.batchnorm import SyncBatchNorm, convert_sync_bn
from engine.errors import UserError
from engine.place import place as placed
from engine.place import who


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 6), nn.BatchNorm1d(6, momentum=None)
    ).double()  # fmt: skip


def rows(shape=(10, 3, 6, 6), seed=2):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batchnorm_steps(rank, split):
    """Two training steps of `network` on rows[split[rank]:split[rank+1]]: outputs, input and weight gradients, statistics."""
    net, found = network(), {}
    if rank is not None:
        convert_sync_bn(net)
    part = slice(*split[rank : rank + 2]) if rank is not None else slice(None)
    for seed in (2, 3):
        x = rows(seed=seed)[part].clone().requires_grad_()
        out = net(x)
        (out * rows((10, 6), seed=7)[part]).sum().backward()
        found |= {f"out{seed}": out.detach().numpy(), f"grad{seed}": x.grad.numpy()}
    found["weights"] = [p.grad.numpy() for p in net.parameters()]
    found["statistics"] = {name: b.numpy() for name, b in net.named_buffers()}
    with torch.no_grad():
        found["eval"] = net.eval()(rows(seed=4)).numpy()
    return found


def collectives(rank):
    found = {"gathered": dist.all_gather(torch.tensor([[rank, 1]])).tolist()}
    found["rows"] = dist.all_gather_rows(torch.arange(rank + 1).float()[:, None]).flatten().tolist()
    found["max"] = dist.all_reduce_(torch.tensor([rank, -rank]), "max").tolist()
    found["broadcast"] = dist.broadcast_(torch.tensor([rank + 5])).item()
    found["object"] = dist.broadcast_object({"rank": rank})
    x = torch.arange(4.0).view(2, 2).add(10 * rank).requires_grad_()
    everyone = dist.all_gather_grad(x)
    ((rank + 1) * everyone.square()).sum().backward()  # process r weighs the same rows by r + 1
    found["gradient"] = x.grad.tolist()
    found["who"] = (dist.rank(), dist.world_size(), dist.is_main())
    dist.barrier()
    return found


def groups_of_one(rank):
    net = convert_sync_bn(nn.Sequential(nn.BatchNorm1d(3)), group_size=1)
    plain = nn.BatchNorm1d(3)
    x = rows((4, 3), seed=rank).float()
    with pytest.raises(UserError, match="sync_bn_group=3 does not divide the 2 processes"):
        convert_sync_bn(nn.BatchNorm1d(3), group_size=3)
    return (
        type(net[0]) is SyncBatchNorm
        and torch.equal(net(x), plain(x))
        and torch.equal(net[0].running_var, plain.running_var)
    )


def half_precision(rank):
    net, x = convert_sync_bn(nn.BatchNorm2d(3)), rows((8, 3, 4, 4)).float()
    x = x[4 * rank : 4 * rank + 4].to(torch.bfloat16, memory_format=torch.channels_last).requires_grad_()
    out = net(x)
    out.float().square().sum().backward()
    return (
        out.dtype == torch.bfloat16
        and x.grad.dtype == torch.bfloat16
        and out.is_contiguous(memory_format=torch.channels_last)
    )


def everything(rank, folder):
    found = {
        "collectives": collectives(rank),
        "even": batchnorm_steps(rank, (0, 5, 10)),
        "uneven": batchnorm_steps(rank, (0, 3, 10)),
    }
    found["groups"], found["half"] = groups_of_one(rank), half_precision(rank)
    toys.run(folder / "two", toys.Toy(dropout=0.0), sync_bn=True)
    with pytest.raises(UserError, match="belongs to another recipe: batch is 8 there and 4 here"):
        toys.run(folder / "two", batch=4)
    stopped, _ = toys.run(folder / "resumed", toys.Toy(), options=replace(toys.QUIET, stop_after=8))
    resumed, _ = toys.run(folder / "resumed", toys.Toy())
    toys.run(folder / "whole", toys.Toy())
    found["resumed"] = (stopped.steps, resumed.resumed_from, resumed.finished)
    return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    import torch._dynamo  # noqa: F401  DistributedDataParallel wants it: once here instead of once in each fork

    folder = tmp_path_factory.mktemp("pair")
    return folder, processes.together(everything, folder)


def test_collectives(pair):
    first, second = (result["collectives"] for result in pair[1])
    for found in (first, second):
        assert found["gathered"] == [[0, 1], [1, 1]] and found["rows"] == [0, 0, 1]
        assert found["max"] == [1, 0] and found["broadcast"] == 5 and found["object"] == {"rank": 0}
    assert (first["who"], second["who"]) == ((0, 2, True), (1, 2, False))


def test_the_gradient_of_gathered_rows_is_summed_over_processes(pair):
    for rank, result in enumerate(pair[1]):
        x = np.arange(4.0).reshape(2, 2) + 10 * rank
        np.testing.assert_allclose(result["collectives"]["gradient"], 2 * x * (1 + 2))


@pytest.mark.parametrize("split", ["even", "uneven"])
def test_synchronised_batch_norm_is_batch_norm_of_the_whole_batch(pair, split):
    whole, parts = batchnorm_steps(None, None), [result[split] for result in pair[1]]
    close = {"rtol": 1e-5, "atol": 1e-5}
    for name in ("out2", "grad2", "out3", "grad3"):
        np.testing.assert_allclose(np.concatenate([part[name] for part in parts]), whole[name], **close)
    for ours, theirs, expected in zip(*(part["weights"] for part in parts), whole["weights"], strict=True):
        np.testing.assert_allclose(ours + theirs, expected, **close)
    for part in parts:
        for name, value in whole["statistics"].items():
            np.testing.assert_allclose(part["statistics"][name], value, **close)
        np.testing.assert_allclose(part["eval"], whole["eval"], **close)


def test_synchronised_batch_norm_keeps_precision_and_memory_format(pair):
    assert all(result["half"] for result in pair[1])


def test_groups_share_statistics_among_themselves_only(pair):
    assert all(result["groups"] for result in pair[1])


def test_a_run_on_two_processes_is_the_run_on_one(pair, tmp_path):
    toys.run(tmp_path / "one", toys.Toy(dropout=0.0))
    one, two = (torch.load(path / "checkpoint.pt", weights_only=True) for path in (tmp_path / "one", pair[0] / "two"))
    assert one["step"] == two["step"] == 20
    assert abs(one["loss"] - two["loss"]) < 1e-5
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_resume_on_two_processes_is_exact(pair):
    assert all(result["resumed"] == (8, 8, True) for result in pair[1])
    assert toys.bits(pair[0] / "resumed") == toys.bits(pair[0] / "whole")


def test_one_process_needs_no_group():
    x = torch.ones(2, 3, requires_grad=True)
    assert dist.all_gather_grad(x) is x and dist.all_gather(x) is x and dist.all_reduce_(x) is x
    assert (dist.rank(), dist.world_size(), dist.is_main()) == (0, 1, True)
    net = nn.Sequential(nn.BatchNorm2d(3))
    assert convert_sync_bn(net) is net and type(net[0]) is nn.BatchNorm2d


def test_conversion_keeps_parameters_names_and_state(monkeypatch):
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    net = network()
    before, state = dict(net.named_parameters()), copy.deepcopy(net.state_dict())
    converted = convert_sync_bn(net)
    assert [type(m) for m in converted.modules()].count(SyncBatchNorm) == 2
    assert all(p is before[name] for name, p in converted.named_parameters())
    assert all(torch.equal(value, state[name]) for name, value in converted.state_dict().items())


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({}, (0, 1, 0)),
        ({"WORLD_SIZE": "1"}, (0, 1, 0)),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}, (3, 4, 1)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, (0, 1, 0)),  # a batch script, not a job step
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}, (5, 8, 1)),
    ],
)
def test_a_process_finds_its_place(env, place):
    assert placed(env)[:3] == place


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"WORLD_SIZE": "2"}, "RANK"),
        ({"WORLD_SIZE": "2", "RANK": "abc"}, "RANK=abc: not a whole number"),
        ({"WORLD_SIZE": "x", "RANK": "0"}, "WORLD_SIZE=x"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2 of WORLD_SIZE=2"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_PROCID"),
    ],
)
def test_half_an_environment_is_an_error(env, said):
    with pytest.raises(UserError, match=f"{said}.*torchrun"):
        placed(env)


def test_errors_name_their_process_but_for_the_first_and_for_one_with_a_stray_rank():
    assert who({"WORLD_SIZE": "4", "RANK": "3"}) == "process 3 of 4: "
    assert who({"WORLD_SIZE": "4", "RANK": "0"}) == who({"RANK": "3"}) == who({"RANK": "abc"}) == who({}) == ""


def test_slurm_tasks_that_see_one_gpu_each_use_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    step = placed({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "3"})
    assert dist._device("auto", step) == torch.device("cuda", 0)
    with pytest.raises(UserError, match="process 3 of this machine finds 1 GPUs; start at most 1"):
        dist._device("auto", placed({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3"}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert dist._device("auto", step) == torch.device("cuda", 3)


@pytest.mark.parametrize(("visible", "device"), [(1, 0), (8, 3)])
def test_a_task_of_srun_takes_its_gpu_and_its_rank_from_slurm(visible, device, monkeypatch):
    """The fourth task of the second machine: with its own GPU alone, and with all eight of the machine."""
    taken, joined = [], {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(td, "init_process_group", lambda backend, **how: joined.update(backend=backend, **how))
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "DIST_URL"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile goes
        monkeypatch.delenv(name)
    step = {"STEP_NUM_TASKS": "16", "PROCID": "11", "LOCALID": "3", "JOB_ID": "7", "STEP_NODELIST": "gpu[1-2]"}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    world = dist.init()
    assert world == dist.World(11, 16, 3, torch.device("cuda", device)) and taken == [torch.device("cuda", device)]
    assert (joined["rank"], joined["world_size"]) == (11, 16) and "cuda:nccl" in joined["backend"]
    assert os.environ["MASTER_ADDR"] == "gpu1" and os.environ["MASTER_PORT"] == "20007"


def test_the_address_of_several_processes_is_asked_for():
    with pytest.raises(UserError, match="MASTER_ADDR"):
        dist._set_address({})


@pytest.mark.parametrize(
    ("nodes", "first"), [("gpu[03-07,12],x1", "gpu03"), ("a,b", "a"), ("n1", "n1"), ("c-4-[7,9]", "c-4-7")]
)
def test_the_first_host_of_a_slurm_list(nodes, first):
    assert dist.first_host(nodes) == first
    env = {"SLURM_JOB_NODELIST": nodes, "SLURM_JOB_ID": "123456"}
    dist._set_address(env)
    assert env["MASTER_ADDR"] == first and env["MASTER_PORT"] == "23456"


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_an_error(name):
    with pytest.raises(UserError, match=f"device={name}"):
        dist._device(name, placed({}))


class Parts:
    """A global batch of 8 as parts of 2 images."""

    def __init__(self, batch, size):
        rows = range(0, len(batch), size)
        self.parts = [
            Batch(batch.index[a : a + size], [v[a : a + size] for v in batch.views], None, batch.epoch) for a in rows
        ]
        self.epoch = batch.epoch


class Parted(toys.Stream):
    def epoch(self, epoch, start=0):
        for batch in super().epoch(epoch, start):
            yield Parts(batch, 2)


class Plain(nn.Module):
    """A loss that is a mean over rows, so that parts of equal size change nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(108, 4)
        self.needs, self.generation, self.most = toys.Needs(), 0, 0

    before_epoch = before_step = after_backward = lambda self, *rest: None
    extra_state = health = lambda self: {}
    load_extra_state = alarms = lambda self, *rest: []

    def param_groups(self):
        return [{"params": list(self.parameters())}]

    def export(self):
        return self.state_dict()

    def loss(self, batch, step):
        self.most = max(self.most, len(batch))
        a, b = (self.net(view.flatten(1)) for view in batch.views)
        return (a - b).square().mean() + a.square().mean(), {"a": float(a.detach().mean())}


def train_in_parts(rank, folder, parted):
    kind = Parted if parted else toys.Stream
    stream = kind(rank=dist.rank(), world=dist.world_size())
    result, method = toys.run(folder, Plain(), stream)
    return result.loss, method.most, [p.detach().numpy() for p in method.parameters()]


def test_a_batch_in_parts_is_the_batch_and_only_a_part_is_held(tmp_path):
    whole = train_in_parts(None, tmp_path / "whole", False)
    parts = train_in_parts(None, tmp_path / "parts", True)
    assert (whole[1], parts[1]) == (8, 2)
    for found in (parts, *processes.together(train_in_parts, tmp_path / "two", True)):
        assert found[0] == pytest.approx(whole[0], rel=1e-5)
        for a, b in zip(found[2], whole[2], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    lines = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "parts", "two")]
    logged = [[json.loads(x)["a"] for x in text if '"a"' in x] for text in lines]
    np.testing.assert_allclose(logged[1:], [logged[0]] * 2, rtol=1e-4, atol=1e-6)
