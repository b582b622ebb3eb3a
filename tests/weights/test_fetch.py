"""Fetching from a server that misbehaves on purpose: every failure is named, and nothing wrong ever reaches the cache."""

from __future__ import annotations

import hashlib
import http.server
import inspect
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from zoo import cache, download, fetch
from zoo.__main__ import main
from zoo.errors import UserError, guard
from zoo.schema import Source

DATA = hashlib.sha256(b"a").digest() * 16384  # 512 KiB
SHA = hashlib.sha256(DATA).hexdigest()
PAGE = b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title>"


class Misbehaving(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Length": len(body), **named}.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def cut(self, body, **headers):
        """Announce everything, send half, hang up."""
        self.send_response(200)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        self.close_connection = True

    def do_GET(self):
        kind = self.path.rsplit("/", 1)[-1].split(".")[0]
        count = self.server.calls[kind] + 1
        self.server.calls[kind] = count
        self.server.ranges.append(self.headers.get("Range"))
        span = self.headers.get("Range")
        start = int(span.split("=")[1].split("-")[0]) if span else 0
        if kind in ("good", "slowly"):
            if kind == "slowly":
                self.server.pause.wait(1.0)
            self.answer(200, DATA, ETag='"1"')
        elif kind == "gone":
            self.answer(404, b"no")
        elif kind == "forbidden":
            self.answer(403, b"no")
        elif kind == "page":
            self.answer(200, PAGE, Content_Type="text/html; charset=utf-8")
        elif kind == "sneaky":
            self.answer(200, PAGE, Content_Type="application/octet-stream")
        elif kind == "empty":
            self.answer(200, b"")
        elif kind == "tampered":
            self.answer(200, DATA[:-1] + b"x")
        elif kind == "truncated":
            self.cut(DATA)
        elif kind == "busy":
            self.answer(503 if count < 3 else 200, DATA if count >= 3 else b"")
        elif kind == "resumable":
            if count == 1:
                self.cut(DATA, ETag='"1"')
            else:
                whole = f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"
                self.answer(206, DATA[start:], Content_Range=whole, ETag='"1"')
        elif kind == "changed":  # another version when asked again: the range must not be honoured
            if count == 1:
                self.cut(b"old" * len(DATA), ETag='"old"')
            else:
                self.answer(200, DATA, ETag='"new"')
        elif kind == "unversioned":
            self.cut(DATA) if count == 1 else self.answer(200, DATA)
        elif kind == "confused":
            self.cut(DATA, ETag='"1"') if count == 1 else self.answer(206, DATA, Content_Range=f"bytes 0-9/{len(DATA)}")
        elif kind == "beyond":
            if start:
                self.answer(416)
            else:
                self.cut(DATA, ETag='"1"') if count == 1 else self.answer(200, DATA)
        elif kind == "endless":
            self.answer(200, b"", Content_Length=None, Connection="close")
            try:
                while True:
                    self.wfile.write(DATA)
            except OSError:
                self.close_connection = True
        elif kind == "silent":
            self.send_response(200)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            self.server.pause.wait(2.0)
            self.close_connection = True
        elif kind == "circle":
            self.answer(302, Location=self.path)
        else:
            file = self.server.files.get(kind)
            self.answer(200 if file else 404, file or b"")


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(download, "TIMEOUT", (2.0, 0.5))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Misbehaving)
    made.daemon_threads = True
    made.handle_error = lambda *_: None
    made.calls, made.ranges, made.files, made.pause = Counter(), [], {}, threading.Event()
    made.url = f"http://127.0.0.1:{made.server_address[1]}"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.pause.set()
    made.shutdown()
    made.server_close()
    thread.join(5)


def thing(server, *kinds, **fields):
    sources = tuple(Source(url=f"{server.url}/files/{kind}.pth") for kind in kinds)
    known = {"name": "thing", "sources": sources, "sha256": None, "bytes": None, "license": "MIT", "title": "a thing"}
    return fetch.Item(**{**known, **fields})


def left_over() -> list[str]:
    """Files in the cache that are not locks or the memory of hashes."""
    return sorted(p.name for p in cache.folder().iterdir() if not p.name.endswith((".lock", ".seen")))


def test_a_file_is_downloaded_once_and_remembered(server):
    one = thing(server, "good")
    path = fetch.obtain(one)
    assert path.read_bytes() == DATA and path.parent == cache.folder() and left_over() == ["thing--good.pth"]
    assert cache.read_table(cache.seen_file())["thing"] == cache.Seen(SHA, len(DATA))
    assert fetch.obtain(one) == path and server.calls["good"] == 1


def test_a_cached_file_that_somebody_changed_is_refused(server):
    one = thing(server, "good")
    path = fetch.obtain(one)
    path.write_bytes(DATA[:-1] + b"x")
    with pytest.raises(UserError, match="cached file .* wrong hash: sha256 .* is expected .*selfzoo.seen.*Delete it"):
        fetch.obtain(one)
    path.write_bytes(DATA[:-1])
    with pytest.raises(UserError, match=f"{len(DATA) - 1} bytes, {len(DATA)} are expected"):
        fetch.obtain(one)
    path.unlink()
    with pytest.raises(UserError, match="wrong hash"):
        fetch.obtain(thing(server, "tampered"))
    assert left_over() == [] and fetch.obtain(one).read_bytes() == DATA


@pytest.mark.parametrize(
    "kind, words",
    [
        ("gone", "404: the file is no longer there"),
        ("forbidden", "403: the server refuses access"),
        ("page", "an HTML page instead of the file"),
        ("sneaky", "an HTML page instead of the file"),
        ("empty", "0 bytes, more are expected"),
        ("truncated", r"truncated: 262144 of 524288 bytes came|broke after"),
        ("silent", "no data for 0.5 s"),
        ("circle", "TooManyRedirects"),
    ],
)
def test_each_misbehaviour_is_named_with_the_way_out(server, kind, words):
    with pytest.raises(UserError, match=words) as caught:
        fetch.obtain(thing(server, kind))
    for hint in ("thing: no source delivered it", "By hand: put the file at", "thing--", "SELFZOO_MIRROR"):
        assert hint in str(caught.value)
    assert not [name for name in left_over() if not name.startswith(".")]


def test_sources_are_tried_in_order(server):
    path = fetch.obtain(thing(server, "gone", "page", "tampered", "good", sha256=SHA))
    assert path.read_bytes() == DATA and left_over() == ["thing--gone.pth"]
    assert [server.calls[k] for k in ("gone", "page", "tampered", "good")] == [1, 1, 1, 1]


def test_size_hash_and_md5_prefix_of_the_registry_are_enforced(server):
    with pytest.raises(UserError, match="announces 524288 bytes, the registry says 7"):
        fetch.obtain(thing(server, "good", bytes=7))
    with pytest.raises(UserError, match="wrong hash: sha256 .* is expected .the registry"):
        fetch.obtain(thing(server, "good", sha256="0" * 64))
    md5 = hashlib.md5(DATA).hexdigest()[:8]
    for prefix, fine in ((md5, True), ("0123abcd", False)):
        source = Source(url=f"{server.url}/files/good.pth", md5_prefix=prefix)
        one = thing(server, sources=(source,), name=f"m{prefix}")
        if fine:
            assert fetch.obtain(one).exists()
        else:
            with pytest.raises(UserError, match="wrong hash: md5"):
                fetch.obtain(one)
    assert not cache.seen_file().exists() or "m0123abcd" not in cache.read_table(cache.seen_file())


def test_an_interrupted_download_continues_where_it_stopped(server):
    assert fetch.obtain(thing(server, "resumable")).read_bytes() == DATA
    first, second = server.ranges
    assert first is None and 0 < int(second.split("=")[1][:-1]) <= len(DATA) // 2


def test_a_later_command_continues_an_interrupted_one(server, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    with pytest.raises(UserError, match="what came is kept, the same command continues"):
        fetch.obtain(thing(server, "resumable"))
    assert fetch.obtain(thing(server, "resumable")).read_bytes() == DATA and server.ranges[1]


@pytest.mark.parametrize("kind", ["changed", "unversioned", "beyond"])
def test_pieces_of_two_versions_are_never_joined(server, kind):
    assert fetch.obtain(thing(server, kind)).read_bytes() == DATA


def test_a_wrong_range_is_refused(server):
    with pytest.raises(UserError, match="asked for bytes from"):
        fetch.obtain(thing(server, "confused"))


def test_a_busy_server_is_asked_again(server):
    assert fetch.obtain(thing(server, "busy")).read_bytes() == DATA and server.calls["busy"] == 3


def test_a_server_that_never_stops_is_stopped(server, monkeypatch):
    with pytest.raises(UserError, match="more data than the 1000000 bytes announced"):
        fetch.obtain(thing(server, "endless", bytes=1_000_000))
    free = iter([10**9] + [0] * 9)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("U", (), {"free": next(free)}))
    with pytest.raises(UserError, match="is full: more room is needed"):
        fetch.obtain(thing(server, "endless"))


def test_a_full_disk_is_named_before_and_during_a_download(server, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda _: type("U", (), {"free": 1000}))
        with pytest.raises(UserError, match="is full: 1 MB more are needed. Free some, or set TORCH_HOME"):
            fetch.obtain(thing(server, "good"))
    with Path("/dev/full").open("wb") as out, pytest.raises(UserError, match="is full"):
        download._write(out, b"x" * 10**6, Path("/dev/full"), 10**6)


def test_no_network_and_a_dead_server_are_told_apart(server, monkeypatch):
    import requests
    import urllib3

    def unresolved(*_, **__):
        raise requests.ConnectionError(
            urllib3.exceptions.NameResolutionError("host", None, "Name or service not known")
        )

    with monkeypatch.context() as patch:
        patch.setattr(requests, "get", unresolved)
        with pytest.raises(UserError, match="no network: 127.0.0.1 cannot be reached.*By hand"):
            fetch.obtain(thing(server, "good"))
    with pytest.raises(UserError, match="127.0.0.1:1 refuses connections"):
        fetch.obtain(thing(server, sources=(Source(url="http://127.0.0.1:1/x.pth"),)))


def test_a_mirror_folder_comes_first_and_is_checked_too(server, monkeypatch, tmp_path):
    mirror = tmp_path / "mirror"
    (mirror / "files").mkdir(parents=True)
    monkeypatch.setenv("SELFZOO_MIRROR", str(mirror))
    (mirror / "files" / "gone.pth").write_bytes(DATA)
    assert fetch.obtain(thing(server, "gone", sha256=SHA)).read_bytes() == DATA and not server.calls["gone"]
    (mirror / "good.pth").write_bytes(b"something else")
    other = thing(server, "good", sha256=SHA, name="other")
    assert fetch.obtain(other).read_bytes() == DATA and server.calls["good"] == 1
    assert (mirror / "good.pth").read_bytes() == b"something else", "the mirror is never changed"


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_member_of_an_archive_is_taken_and_the_archive_fetched_once(server, tmp_path, kind):
    (tmp_path / "a.pth").write_bytes(DATA)
    (tmp_path / "b.pth").write_bytes(DATA[::-1])
    packed = tmp_path / f"pretrained.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
            out.write(tmp_path / "a.pth", "models/a.pth")
            out.write(tmp_path / "b.pth", "models/b.pth")
    else:
        with tarfile.open(packed, "w:gz") as out:
            out.add(tmp_path / "a.pth", "models/a.pth")
            out.add(tmp_path / "b.pth", "models/b.pth")
    server.files["pretrained"] = packed.read_bytes()
    url = f"{server.url}/files/pretrained.{kind}"
    for member, data in (("models/a.pth", DATA), ("b.pth", DATA[::-1])):
        assert (
            fetch.obtain(thing(server, name=member[-5], sources=(Source(url=url, member=member),))).read_bytes() == data
        )
    assert server.calls["pretrained"] == 1
    with pytest.raises(UserError, match=r"no member 'c.pth' \(it holds models/a.pth, models/b.pth\)"):
        fetch.obtain(thing(server, name="c", sources=(Source(url=url, member="c.pth"),)))


def test_an_archive_bomb_and_a_damaged_archive_are_refused(server, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        out.writestr("a.pth", bytes(20_000_000))
    server.files["bomb"] = (tmp_path / "bomb.zip").read_bytes()
    server.files["broken"] = b"PK\x03\x04 no archive"
    with pytest.raises(UserError, match="claims 20000000 bytes in an archive of"):
        fetch.obtain(thing(server, sources=(Source(url=f"{server.url}/bomb.zip", member="a.pth"),)))
    with pytest.raises(UserError, match="damaged archive"):
        fetch.obtain(thing(server, sources=(Source(url=f"{server.url}/broken.zip", member="a.pth"),)))


def test_google_drive_goes_through_gdown_and_its_troubles_are_named(server, monkeypatch):
    import gdown
    import requests
    from gdown.exceptions import FileURLRetrievalError

    one = thing(server, sources=(Source(gdrive="1abc"),))
    asked, known = [], inspect.signature(gdown.download)

    def give(content):
        def deliver(id, output, timeout, **others):
            known.bind(id=id, output=output, timeout=timeout, **others)  # the installed gdown has all of these
            asked.append(id)
            if isinstance(content, Exception):
                raise content
            Path(output).write_bytes(content)
            return output

        monkeypatch.setattr(gdown, "download", deliver)

    troubles = [
        (
            FileURLRetrievalError("Too many users have viewed or downloaded this file"),
            "quota is used up.*Too many users",
        ),
        (PAGE, "an HTML page instead of the file"),
        (requests.ConnectionError("NameResolutionError"), "no network: drive.google.com"),
        (b"", "0 bytes"),
    ]
    for content, words in troubles:
        give(content)
        with pytest.raises(UserError, match=words):
            fetch.obtain(one)
    give(DATA)
    assert fetch.obtain(one).read_bytes() == DATA and set(asked) == {"1abc"}
    monkeypatch.setattr(
        gdown, "download", lambda url=None, output=None, quiet=False, id=None, resume=False: output
    )  # 5.2
    with pytest.raises(UserError, match=r"needs gdown 6.3 or newer: pip install --upgrade 'selfzoo\[download\]'"):
        fetch.obtain(thing(server, name="old", sources=one.sources))
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(UserError, match="pip install 'selfzoo.download.'"):
        fetch.obtain(thing(server, name="second", sources=one.sources))


def test_two_processes_at_once_download_once(server, tmp_path):
    code = (
        "import sys; from zoo import fetch; from zoo.schema import Source\n"
        f"one = fetch.Item('thing', (Source(url='{server.url}/files/slowly.pth'),), None, None, 'MIT', 'x')\n"
        "print(fetch.obtain(one)); assert 'torch' not in sys.modules"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {run.communicate(timeout=60)[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0] and len(paths) == 1 and server.calls["slowly"] == 1


def test_a_damaged_memory_of_hashes_is_named(server):
    cache.seen_file().write_text("not a line\n")
    with pytest.raises(UserError, match=r"selfzoo.seen:1: 'not a line' is not"):
        fetch.obtain(thing(server, "good"))


def test_items_have_names_of_their_own_in_the_cache():
    everything = fetch.matching(["*"])
    assert len({one.file for one in everything}) == len(everything) > 10
    assert all(
        set(one.file) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") for one in everything
    )
    assert fetch.item("resnet50").name == "swav_800ep" and fetch.item("swav_800ep/linear_imagenet").title.endswith(
        "linear_imagenet"
    )
    assert [one.name for one in fetch.matching(["swav_800ep*"])] == ["swav_800ep", "swav_800ep/linear_imagenet"]
    assert fetch.item("imagenet_1percent").sha256.startswith("71e82a48")


@pytest.mark.parametrize(
    "words, message",
    [
        (["fetch"], "give names or patterns, or --all"),
        (["fetch", "swav_800ep", "--all"], "give names or patterns, or --all"),
        (["fetch", "swav_80ep"], "did you mean 'swav_800ep'"),
        (["fetch", "swav_digits"], "swav_digits: nobody released this file"),
        (["fetch", "swav_800ep/linear"], "released: swav_800ep, swav_800ep/linear_imagenet"),
    ],
)
def test_the_command_refuses_what_it_cannot_mean(words, message, capsys):
    assert guard(lambda: main(words)) == 2
    assert message in capsys.readouterr().err


def test_the_command_fetches_records_and_lists(server, monkeypatch, tmp_path, capsys):
    lock = tmp_path / "weights.lock"
    monkeypatch.setattr(cache, "LOCK", lock)
    everything = {"first": thing(server, "good", name="first"), "second": thing(server, "gone", name="second")}
    monkeypatch.setattr(
        fetch, "matching", lambda patterns: [v for k, v in everything.items() if k in patterns or "*" in patterns]
    )
    assert main(["fetch", "first", "--record"]) == 0
    assert f"sha256 {SHA}" in capsys.readouterr().out
    assert cache.read_table(lock) == {"first": cache.Seen(SHA, len(DATA))}
    assert main(["fetch", "--all"]) == 2
    said = capsys.readouterr()
    assert "weights.lock" in said.out and "404" in said.err and "1 of 2 files could not be had: second" in said.err
    assert main(["fetch", "--all", "--list"]) == 0
    assert "first--good.pth" in capsys.readouterr().out
    cache.write_entry(lock, "second", cache.Seen("0" * 64, 5))
    with pytest.raises(UserError, match="wrong hash|5 are expected"):
        fetch.obtain(thing(server, "good", name="second"))
