"""Cluster heads of DeeperCluster that a process does not hold: any number of processes trains, keeps and takes up the network of one."""

import contract_pair
import contract_tools as tools
import pytest
import torch

from engine import apart, dist
from reproduce.methods.deepercluster import held_by

STEPS, CASE = 6, "deepercluster in two levels"
# processes -> settings: groups of one, groups of two, and a process that sees parts of two super-classes
WORLDS = {2: {"params.super_classes": 2}, 4: {"params.super_classes": 2}, 3: {"params.super_classes": 2, "batch": 18}}


def recipe(size, **more):
    settings = {"sync_bn": True, "params.rotations": False, "params.epoch_divisor": 1, **WORLDS[size], **more}
    return tools.recipe(CASE, **{"schedule.images": STEPS * settings.get("batch", tools.BATCH), **settings})


def on_rank(rank, folder, size):
    """Whole, stopped and resumed, and begun here to be finished by one process: what each came to, and what this rank held."""
    world, found = dist.World(rank, size, rank), {}
    for name, stops in {"whole": [0], "resumed": [4, 0], "begun": [4]}.items():
        for stop in stops:
            method = tools.build(recipe(size))
            result = tools.fit(recipe(size), folder / name, world=world, method=method, stop_after=stop)
        found[name] = result.loss
    held = sorted(key for key, _ in method.named_parameters() if key in method.held_apart())
    files = {name: read(folder / name) for name in found} if rank == 0 else None
    return found, held, files


def read(folder):
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    return {
        "bytes": (folder / "checkpoint.pt").read_bytes(),
        "model": {k: v.numpy() for k, v in state["model"].items()},
        "momenta": {k: v["momentum_buffer"].numpy() for k, v in state["optimizer"]["named"].items()},
        "labels": state["extra"]["labels"].numpy(),
        "export": {k: v.numpy() for k, v in tools.weights(folder).items()} if (folder / "weights.pth").exists() else {},
    }


def near(found, expected, start=None):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        moved = abs(value - start[key]).max() if start is not None else abs(value).max()
        assert abs(found[key] - value).max() <= 1e-6 + 2e-3 * moved, key


@pytest.fixture(scope="module", params=WORLDS)
def together(request):
    return request.param, contract_pair.run(on_rank, request.param, size=request.param)


@pytest.fixture(scope="module")
def alone(together, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return tools.fit(recipe(together[0]), folder).loss, read(folder), folder


def test_a_process_holds_the_heads_of_its_super_classes_only(together):
    size, ranks = together
    for rank, (_, held, _) in enumerate(ranks):
        own = held_by(rank, size, 2)
        assert held == sorted(f"{part}.{s}" for part in ("sub_bias", "sub_weight") for s in own)
    assert [len(held) // 2 for _, held, _ in ranks] == {2: [1, 1], 3: [1, 2, 1], 4: [1, 1, 1, 1]}[size]


def test_they_train_the_network_of_one_process(together, alone):
    size, ranks = together
    loss, expected, _ = alone
    found = ranks[0][2]["whole"]
    assert ranks[0][0]["whole"] == pytest.approx(loss, rel=1e-4)
    assert (found["labels"] == expected["labels"]).all()
    start = {k: v.detach().numpy() for k, v in tools.build(recipe(size)).state_dict().items()}
    near(found["model"], expected["model"], start)
    near(found["momenta"], expected["momenta"])
    near(found["export"], expected["export"])


def test_a_resumed_run_ends_with_the_same_bits(together):
    files = together[1][0][2]
    for part in ("model", "momenta", "export"):
        for key, value in files["whole"][part].items():
            if "running" not in key:
                assert (value == files["resumed"][part][key]).all(), (part, key)


def test_another_number_of_processes_goes_on(together, alone, tmp_path):
    size, ranks = together
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(ranks[0][2]["begun"]["bytes"])
    (tmp_path / "run" / "provenance.json").write_text("{}")
    result = tools.fit(recipe(size), tmp_path / "run")
    assert result.resumed_from == 4 and result.finished
    start = {k: v.detach().numpy() for k, v in tools.build(recipe(size)).state_dict().items()}
    near(read(tmp_path / "run")["model"], alone[1]["model"], start)


def one_has_overflown(rank, folder):
    """A loss scaler that finds infinity in what rank 1 alone holds: does either process step?"""
    method = tools.build(recipe(2))
    scaler = apart.scaler(method, "cpu", enabled=True)
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler.scale(parameter.sum()).backward()
    parameter.grad *= float("inf") if rank else 1.0
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    return parameter.tolist()


def test_a_step_that_overflows_on_one_process_is_left_out_on_all():
    assert contract_pair.run(one_has_overflown) == [[1.0, 1.0]] * 2


@pytest.mark.gpu
def test_a_gpu_takes_up_the_checkpoint_of_two_processes(tmp_path):
    """Heads gathered by gloo onto the CPU go on on a GPU."""
    ranks = contract_pair.run(on_rank, 2)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(ranks[0][2]["begun"]["bytes"])
    (tmp_path / "run" / "provenance.json").write_text("{}")
    world = dist.World(device=torch.device("cuda"))
    result = tools.fit(recipe(2), tmp_path / "run", world=world)
    assert result.resumed_from == 4 and result.finished and result.loss == pytest.approx(ranks[0][0]["whole"], rel=0.05)
