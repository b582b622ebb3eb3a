"""The whole way of a released file: registry, server, cache, contract, network; and the health table."""

from __future__ import annotations

import functools
import http.server
import threading

import pytest
import torch
from torch import nn

import zoo
from zoo import cache, download, fetch, registry
from zoo.__main__ import main
from zoo.backbones import build
from zoo.errors import UserError, guard

SPEC = {"name": "tiny_resnet", "width": 8, "blocks": [1, 1]}
METHOD = """
method: small
title: Small
summary: A stand-in for a family.
code: {{repository: a/b, license: MIT}}
dataset: digits
backbone: {{name: tiny_resnet, width: 8, blocks: [1, 1]}}
input: {{pad: 1, channels: 1, mean: [0.3], std: [0.4]}}
layouts: [{{path: null, rules: [["^module\\\\.", ""]], heads: {{top: ["top.*"]}}}}]
models:
  small_good:
    aliases: [tiny]
    weights: {{sources: [{{url: "{url}/good.pth"}}]}}
    heads: {{linear: {{sources: [{{url: "{url}/linear.pth"}}], layouts: [{{path: null}}], classes: 10, dataset: digits}}}}
  small_gone:
    weights: {{sources: [{{url: "{url}/gone.pth"}}]}}
  small_wrong:
    weights: {{sources: [{{url: "{url}/wrong.pth"}}]}}
  small_lost:
    status: lost
    since: "2021-05"
    weights: {{sources: [{{url: "{url}/good.pth"}}]}}
  small_drive:
    weights: {{sources: [{{gdrive: 1abc}}]}}
"""


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A registry of five models whose files lie on a local server; yields the network behind small_good."""
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(cache, "LOCK", tmp_path / "weights.lock")
    served = tmp_path / "served"
    served.mkdir()
    net, fc = build(SPEC).eval(), nn.Linear(16, 10)
    state = {f"module.{k}": v for k, v in net.state_dict().items()}
    torch.save(state | {"module.top.weight": torch.ones(2, 16)}, served / "good.pth")
    torch.save({k: v for k, v in state.items() if "bn1.weight" not in k}, served / "wrong.pth")
    torch.save(fc.state_dict(), served / "linear.pth")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    root = tmp_path / "zoo"
    (root / "methods").mkdir(parents=True)
    (root / "methods" / "small.yaml").write_text(METHOD.format(url=f"http://127.0.0.1:{server.server_address[1]}"))
    made = registry.Registry(root)
    monkeypatch.setattr(registry, "registry", lambda: made)
    fetch.assets.cache_clear()
    monkeypatch.setattr(fetch, "assets", dict)
    yield net, fc, server
    server.shutdown()
    server.server_close()
    thread.join(5)


@torch.no_grad()
def test_one_line_downloads_checks_and_loads_and_the_next_time_needs_no_network(house, capsys):
    net, fc, server = house
    x = torch.randn(2, 1, 10, 10)
    assert torch.equal(zoo.load("tiny")(x), net(x))
    assert torch.allclose(zoo.load("small_good", head="linear")(x), fc(net(x)), atol=1e-6)
    server.shutdown()
    server.server_close()
    assert torch.equal(zoo.load("small_good")(x), net(x))
    assert "backbone tensors; ignored: 1 head tensor" in capsys.readouterr().err
    (cache.folder() / "small_good--good.pth").unlink()
    with pytest.raises(UserError, match="refuses connections.*By hand: put the file at"):
        zoo.load("small_good")


def test_a_lost_file_says_so_and_can_still_be_put_there_by_hand(house, tmp_path, monkeypatch):
    net, *_ = house
    with pytest.raises(
        UserError, match="small_lost: no source delivered it: lost: it cannot be had since 2021-05. By hand"
    ):
        zoo.load("small_lost")
    place = cache.folder() / fetch.item("small_lost").file
    place.write_bytes((tmp_path / "served" / "good.pth").read_bytes())
    assert torch.equal(zoo.load("small_lost").conv1.weight, net.conv1.weight)


def rows(text):
    table = {line.split()[0]: line for line in text.splitlines()}
    assert text.splitlines()[0].split() == ["file", "link", "size", "hash", "contract", "fingerprint"]
    return table


def test_the_health_table_tells_what_is_known_of_each_file(house, capsys):
    assert guard(lambda: main(["verify"])) == 2
    table = rows(capsys.readouterr().out)
    assert "not here" in table["small_good"] and " ok " in table["small_good"] and "WRONG 404" in table["small_gone"]
    assert "lost 2021-05" in table["small_lost"] and "Drive" in table["small_drive"]
    assert main(["fetch", "small_good*"]) == 0
    assert main(["verify", "small_good*", "--offline"]) == 0 and not cache.read_table(cache.LOCK)
    assert main(["verify", "small_good*", "--offline", "--record"]) == 0
    recorded = cache.read_table(cache.LOCK)
    assert set(recorded) == {"small_good", "small_good/linear"} and len(recorded["small_good"].fingerprint) == 4


def test_the_health_table_notices_a_broken_contract_other_features_and_a_changed_file(house, capsys):
    for name in ("small_good", "small_wrong"):
        fetch.path(name)
    assert main(["verify", "small_good", "--offline"]) == 0
    first = rows(capsys.readouterr().out)["small_good"]
    assert "not asked" in first and "(first time)" in first and "backbone tensors" in first
    assert main(["verify", "small_good", "--offline"]) == 0
    assert "(agrees)" in rows(capsys.readouterr().out)["small_good"]
    assert guard(lambda: main(["verify", "small_wrong", "--offline"])) == 2
    assert "WRONG: small_wrong" in (said := capsys.readouterr().out) and "missing bn1.weight" in said
    seen = cache.read_table(cache.seen_file())["small_good"]
    cache.write_entry(
        cache.seen_file(), "small_good", cache.Seen(seen.sha256, seen.bytes, tuple(v + 1 for v in seen.fingerprint))
    )
    assert guard(lambda: main(["verify", "small_good", "--offline"])) == 2
    assert "is expected" in capsys.readouterr().out
    file = cache.folder() / "small_good--good.pth"
    data = bytearray(file.read_bytes())
    data[-300] ^= 1
    file.write_bytes(data)
    assert guard(lambda: main(["verify", "small_good", "--offline"])) == 2
    assert "WRONG: wrong hash" in capsys.readouterr().out


def test_a_hash_in_the_registry_is_named_as_its_source(house, capsys):
    file = fetch.path("small_good")
    from zoo.checkpoint_reader import sha256

    seen, who = fetch.expected(fetch.item("small_good"))
    assert seen.sha256 == sha256(file) and who.endswith("selfzoo.seen")
    assert main(["fetch", "small_good", "--record"]) == 0
    assert fetch.expected(fetch.item("small_good"))[1] == str(cache.LOCK)
