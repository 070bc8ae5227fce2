"""The store: the same guarantees on a disk, on S3 (moto's real server) and on a hub (a small one)."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from retune import store
from retune.errors import InputError, RetuneError
from retune.store.local import LocalPlace

pytest_plugins = ["tests.s3_server"]

MIB = 1 << 20


def serve(handler):
    """Start an HTTP server in a thread and return it; its address is in `url`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


def client():
    from retune.store.s3 import _client

    return _client()


@pytest.fixture
def proxy(s3, moto, monkeypatch):
    """A proxy before moto's: `spoil` lists methods and what befalls their next answers, `asked` all calls."""
    port = int(moto.rpartition(":")[2])

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.server.asked.append(self.command)
            way = HTTPConnection("127.0.0.1", port)
            way.request(self.command, self.path, body, dict(self.headers))
            answer = way.getresponse()
            content = answer.read()
            spoil = next((entry for entry in self.server.spoil if entry[0] == self.command), None)
            if spoil:
                self.server.spoil.remove(spoil)
                spoil = spoil[1]
            self.close_connection = True
            if spoil == "lost":
                return
            if spoil in ("busy", "refused"):
                self.send_response(503 if spoil == "busy" else 403)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.end_headers()
            if spoil == "cut":
                content = content[: len(content) // 2]
            if spoil == "damaged":
                content = content[:-1] + bytes([content[-1] ^ 1])
            self.wfile.write(content)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward

        def log_message(self, *_):
            pass

    server = serve(Proxy)
    server.spoil, server.asked = [], []
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.shutdown()


@pytest.fixture(params=["local", "file", "s3"])
def place(request, tmp_path):
    """The URI of an empty folder, on each kind of store."""
    if request.param == "s3":
        return request.getfixturevalue("s3") + "/a folder/base"
    folder = tmp_path / "a folder" / "base"
    return str(folder) if request.param == "local" else folder.as_uri()


# The contract of every place that can be written.


def test_what_is_written_is_read_back_and_replaced(place):
    uri = store.join(place, "x.bin")
    for data in (b"", b"one", bytes(range(256)) * 100):
        store.write(uri, data)
        assert store.read(uri) == data
        assert store.download(uri).read_bytes() == data


def test_missing_is_told_with_its_uri(place):
    uri = store.join(place, "missing.txt")
    for attempt in (store.read, store.download):
        with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
            attempt(uri)
    assert not store.exists(uri)
    assert store.listing(place) == []
    store.remove(uri)  # no error


def test_create_writes_once(place):
    uri = store.join(place, "lease")
    assert store.create(uri, b"first") is True
    assert store.create(uri, b"second") is False
    assert store.read(uri) == b"first"
    store.remove(uri)
    assert store.create(uri, b"third") is True


def test_one_of_many_creators_wins(place):
    uri = store.join(place, "lease")
    start = threading.Barrier(8)
    won = []

    def race(number):
        start.wait()
        if store.create(uri, f"writer {number}".encode()):
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read(uri) == f"writer {won[0]}".encode()


def test_listing_is_recursive_sorted_and_relative(place):
    for name in ("b.txt", "a/c.txt", "a/b/d.txt"):
        store.write(store.join(place, name), b"x")
    store.write(place + "-neighbour/e.txt", b"x")
    assert store.listing(place) == ["a/b/d.txt", "a/c.txt", "b.txt"]
    assert store.exists(place)
    assert store.exists(store.join(place, "a"))
    assert not store.exists(place[:-1])


def test_remove_takes_the_folder_and_not_its_neighbour(place):
    for name in ("b.txt", "a/c.txt"):
        store.write(store.join(place, name), b"x")
    store.write(place + "-neighbour", b"x")
    store.remove(place)
    assert not store.exists(place)
    assert store.listing(place) == []
    assert store.exists(place + "-neighbour")


def test_folder_goes_up_and_comes_down(place, tmp_path):
    source = tmp_path / "source"
    for name in ("adapter/weights.bin", "log.txt", "trial.json"):
        store.write(source / name, name.encode())
    store.upload(source, place)
    assert store.listing(place) == ["adapter/weights.bin", "log.txt", "trial.json"]
    here = store.download(place)
    assert {name: (here / name).read_bytes() for name in store.listing(here)} == {
        name: name.encode() for name in store.listing(source)
    }
    store.upload(source / "log.txt", store.join(place, "copy.txt"))
    assert store.read(store.join(place, "copy.txt")) == b"log.txt"


def test_marker_goes_up_last(place, tmp_path, monkeypatch):
    source = tmp_path / "source"
    names = ["a.json", "mix.json", "z.txt", "below/y.json", "b.json"]
    for name in names:
        store.write(source / name, b"{}")
    order = []
    take = type(store._place(place)).take
    monkeypatch.setattr(
        type(store._place(place)),
        "take",
        lambda self, content: (
            order.append(str(vars(self).get("path") or self.key).rpartition("/")[2]),
            take(self, content),
        ),
    )
    store.upload(source, place, marker="a.json")
    assert order == ["y.json", "z.txt", "b.json", "mix.json", "a.json"]


def test_upload_of_nothing_is_refused(place, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing here"):
        store.upload(tmp_path / "nothing here", place)


def test_join():
    assert store.join("s3://bucket/a/", "b", "c/") == "s3://bucket/a/b/c"
    assert store.join("s3://bucket", "b") == "s3://bucket/b"
    assert store.join("/folder", "b") == "/folder/b"
    assert store.join("/", "b") == "/b"


@pytest.mark.parametrize(
    "uri", ["gs://bucket/x", "s3://", "file://host/x", "hf://datasets/name", "hf://a/b@1/c@2"]
)
def test_strange_uris_are_refused(uri):
    with pytest.raises(InputError, match=r"but got"):
        store.read(uri)


def test_file_uri_may_be_escaped(tmp_path):
    store.write(tmp_path / "with space.txt", b"x")
    assert store.read(f"file://{tmp_path}/with%20space.txt") == b"x"
    assert store.read(f"file://localhost{tmp_path}/with%20space.txt") == b"x"


# A local disk.


def run(code, *args, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, text=True, **options
    )


def test_killed_while_writing_leaves_the_old_file(tmp_path):
    """The child is killed at the worst moment: all bytes are written and none are visible yet."""
    target = tmp_path / "x.bin"
    store.write(target, b"old")
    hang = "import os, sys, time; from retune import store\n"
    hang += "os.fsync = lambda _: (print('hangs', flush=True), time.sleep(60))\n"
    child = run(hang + "store.write(sys.argv[1], b'new' * 1000000)", target)
    assert child.stdout.readline() == "hangs\n"
    child.kill()
    child.wait()
    assert store.read(target) == b"old"
    assert len(list(tmp_path.iterdir())) == 2  # the temporary file is still there, but
    assert store.listing(tmp_path) == ["x.bin"]  # is not taken for a file


def test_killed_at_any_moment_leaves_one_content_or_the_other(tmp_path):
    target = tmp_path / "x.bin"
    store.write(target, b"a" * MIB)
    code = "import sys; from retune import store\nprint('starts', flush=True)\n" + (
        "while True:\n  for letter in (b'b', b'a'): store.write(sys.argv[1], letter * (1 << 20))"
    )
    pause = random.Random(0)
    for _ in range(6):
        child = run(code, target)
        child.stdout.readline()
        time.sleep(pause.uniform(0, 0.05))
        child.kill()
        child.wait()
        assert store.read(target) in (b"a" * MIB, b"b" * MIB)


@pytest.mark.slow
def test_two_processes_race_to_create(tmp_path):
    """Each of two processes creates the same 200 files as fast as it can: every file has one winner."""
    code = "import sys, time; from retune import store\n" + (
        "while time.time() < float(sys.argv[2]): pass\n"
        "print(sum(store.create(f'{sys.argv[1]}/{k}', b'x') for k in range(200)))"
    )
    start = time.time() + 2
    children = [run(code, tmp_path, start) for _ in range(2)]
    won = [int(child.communicate()[0]) for child in children]
    assert sum(won) == 200


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    """On a real file system of 1 MiB."""
    code = (
        "import os, sys; from retune import store; from retune.errors import RetuneError\n"
        "folder = sys.argv[1]; store.write(folder + '/x.bin', b'old')\n"
        "try: store.write(folder + '/x.bin', b'new' * 1000000)\n"
        "except RetuneError as error: print(error)\n"
        "try: store.create(folder + '/y.bin', b'new' * 1000000)\n"
        "except RetuneError as error: print(error)\n"
        "print(os.listdir(folder), store.read(folder + '/x.bin'))"
    )
    mount = 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, str(tmp_path), sys.executable, "-c", code, str(tmp_path)]
    if not shutil.which("unshare"):
        pytest.skip("a small file system needs unshare")
    done = subprocess.run(command, capture_output=True, text=True)
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr}")
    first, second, rest = done.stdout.splitlines()
    assert (
        first
        == f"{tmp_path}/x.bin cannot be written: No space left on device; free some space there and run again"
    )
    assert second.startswith(f"{tmp_path}/y.bin cannot be written: No space left on device")
    assert rest == "['x.bin'] b'old'"


def test_write_cut_short_by_the_system_leaves_the_old_file(tmp_path):
    """As the test above with a limit on file size, which needs no root: the write fails half way."""
    code = (
        "import os, resource, signal, sys; from retune import store; from retune.errors import RetuneError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); folder = sys.argv[1]\n"
        "store.write(folder + '/x.bin', b'old')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))\n"
        "try: store.write(folder + '/x.bin', b'new' * 1000000)\n"
        "except RetuneError as error: print(error)\n"
    )
    out, _ = run(code, tmp_path).communicate()
    advice = "raise the limit on the size of a file (ulimit -f) and run again"
    assert out == f"{tmp_path}/x.bin cannot be written: File too large; {advice}\n"
    assert os.listdir(tmp_path) == ["x.bin"]
    assert store.read(tmp_path / "x.bin") == b"old"


def test_a_file_where_a_folder_should_be(tmp_path):
    store.write(tmp_path / "file", b"x")
    with pytest.raises(FileNotFoundError):
        store.read(tmp_path / "file" / "below")
    remedy = "below cannot be written: Not a directory; a part of the path is a file where a folder is needed"
    with pytest.raises(RetuneError, match=remedy):
        store.write(tmp_path / "file" / "below", b"x")
    with pytest.raises(RetuneError, match=r"cannot be read: Is a directory"):
        store.read(tmp_path)


def test_written_files_can_be_read_by_others(tmp_path):
    """A step in another pod has another user: a temporary file's 0600 must not stick."""
    store.write(tmp_path / "x", b"")
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~umask


def test_hidden_folder_above_hides_nothing(tmp_path):
    folder = tmp_path / ".work.tmp"
    store.write(folder / "x.txt", b"x")
    assert store.listing(folder) == ["x.txt"]


# S3.


def test_large_files_go_in_parts(s3, tmp_path):
    content = random.Random(0).randbytes(9 * MIB)
    (tmp_path / "large.bin").write_bytes(content)
    store.upload(tmp_path / "large.bin", f"{s3}/large.bin")
    head = client().head_object(Bucket=s3[5:], Key="large.bin")
    assert head["ETag"].endswith('-2"')
    assert store.download(f"{s3}/large.bin").read_bytes() == content
    assert store.read(f"{s3}/large.bin") == content


@pytest.mark.slow
def test_killed_between_two_parts_leaves_the_old_object(s3, tmp_path):
    store.write(f"{s3}/large.bin", b"old")
    (tmp_path / "large.bin").write_bytes(bytes(33 * MIB))
    code = (
        "import os, signal, sys; from retune import store; from retune.store.s3 import _client\n"
        "kill = lambda **_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "_client().meta.events.register('after-call.s3.UploadPart', kill)\n"
        "store.upload(sys.argv[1], sys.argv[2])"
    )
    child = run(code, tmp_path / "large.bin", f"{s3}/large.bin")
    assert child.wait() == -signal.SIGKILL
    assert client().list_multipart_uploads(Bucket=s3[5:])["Uploads"]  # it had begun
    assert store.read(f"{s3}/large.bin") == b"old"
    store.upload(tmp_path / "large.bin", f"{s3}/large.bin")
    assert store.read(f"{s3}/large.bin") == bytes(33 * MIB)


def test_lost_answer_to_a_create_is_still_a_win(proxy, s3):
    assert store.create(f"{s3}/other", b"")  # asks once whether the server knows conditional writes
    proxy.asked.clear()
    proxy.spoil = [("PUT", "lost")]
    assert store.create(f"{s3}/lease", b"mine") is True
    assert proxy.asked.count("PUT") == 2  # it was sent again, and refused
    assert store.create(f"{s3}/lease", b"mine") is False


@pytest.mark.slow
@pytest.mark.parametrize("spoil", ["busy", "lost"])
def test_passing_faults_are_tried_again(proxy, s3, spoil):
    proxy.spoil = [("PUT", spoil), ("GET", spoil), ("HEAD", spoil)]
    store.write(f"{s3}/x", b"content")
    assert store.read(f"{s3}/x") == b"content"
    assert store.download(f"{s3}/x").read_bytes() == b"content"
    assert not proxy.spoil


def test_download_that_breaks_off_is_taken_up_again(proxy, s3):
    store.write(f"{s3}/x", b"content" * 1000)
    for get in (lambda uri: store.download(uri).read_bytes(), store.read):
        proxy.spoil = [("GET", "cut")]
        assert get(f"{s3}/x") == b"content" * 1000
        assert not proxy.spoil


def test_unchanged_object_comes_over_once(proxy, s3):
    store.write(f"{s3}/folder/x.json", b"one")
    first = store.download(f"{s3}/folder/x.json")
    assert first.name == "x.json"
    proxy.asked.clear()
    assert store.download(f"{s3}/folder/x.json") == first
    assert proxy.asked == ["HEAD"]
    store.write(f"{s3}/folder/x.json", b"two")
    assert store.download(f"{s3}/folder/x.json").read_bytes() == b"two"
    assert first.read_bytes() == b"one"  # who reads the old one goes on undisturbed


def test_unchanged_folder_comes_over_once_and_resumes(proxy, s3):
    for name in ("a.txt", "b/c.txt"):
        store.write(f"{s3}/folder/{name}", name.encode())
    one = store.download(f"{s3}/folder/a.txt")
    proxy.asked.clear()
    folder = store.download(f"{s3}/folder")  # a.txt is here already, as after a killed download
    assert folder.name == "folder"
    assert (folder / "a.txt").samefile(one)
    proxy.asked.clear()
    assert store.download(f"{s3}/folder") == folder
    assert proxy.asked == ["HEAD", "GET"]  # is it an object? then the listing
    store.write(f"{s3}/folder/b/c.txt", b"new")
    assert (store.download(f"{s3}/folder") / "b" / "c.txt").read_bytes() == b"new"


def json_of(name):
    return name.endswith(".json")


@pytest.mark.slow
def test_gathered_records_come_in_two_requests_and_what_changed_by_itself(proxy, s3, monkeypatch, tmp_path):
    written = {f"trials/{k:03}/trial.json": f'{{"n": {k}, "é": "ü"}}'.encode() for k in range(30)}
    for name, content in written.items():
        store.write(f"{s3}/x/{name}", content)
    store.write(f"{s3}/x/report.html", b"page")
    store.gather(f"{s3}/x", json_of)
    monkeypatch.setenv("RETUNE_CACHE", str(tmp_path / "another machine"))
    proxy.asked.clear()
    assert store.contents(f"{s3}/x", json_of) == written
    assert proxy.asked == ["GET", "GET"]

    written["trials/007/trial.json"] = b"{}"
    store.write(f"{s3}/x/trials/007/trial.json", b"{}")
    del written["trials/008/trial.json"]
    store.remove(f"{s3}/x/trials/008/trial.json")
    monkeypatch.setenv("RETUNE_CACHE", str(tmp_path / "a third"))
    proxy.asked.clear()
    assert store.contents(f"{s3}/x", json_of) == written
    assert len(proxy.asked) <= 4

    assert store.listing(f"{s3}/x") == sorted([*written, "report.html"])
    assert {path.name for path in store.download(f"{s3}/x").rglob("*") if path.is_file()} == {
        "trial.json",
        "report.html",
    }
    store.remove(f"{s3}/x")
    assert client().list_objects_v2(Bucket=s3.removeprefix("s3://"))["KeyCount"] == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"\x1f\x8b cut", gzip.compress(b"[1]"), gzip.compress(b'{"a.json": 1}')],
    ids=["nothing", "no gzip", "a list", "an object of numbers"],
)
def test_what_was_gathered_may_be_damaged(s3, content):
    for name in ("a.json", "b.json"):
        store.write(f"{s3}/x/{name}", name.encode())
    store.write(f"{s3}/x/.gathered.json.gz", content)
    assert store.contents(f"{s3}/x", json_of) == {"a.json": b"a.json", "b.json": b"b.json"}


def test_gathering_takes_bytes_that_are_no_text_too(place):
    written = {"a.json": b"\xff\xfe", "b.json": b"{}", "c.json": b""}
    for name, content in written.items():
        store.write(f"{place}/{name}", content)
    store.gather(place, json_of)
    assert store.contents(place, json_of) == written
    assert store.listing(place) == sorted(written)


def test_truncated_cache_is_fetched_again(s3):
    store.write(f"{s3}/x", b"content")
    path = store.download(f"{s3}/x")
    path.write_bytes(b"con")
    assert store.download(f"{s3}/x").read_bytes() == b"content"


def test_damage_on_the_way_is_seen(proxy, s3, monkeypatch, tmp_path):
    """Some servers do not send the CRC that boto3 compares."""
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    store.write(f"{s3}/x", b"content")
    for get in (store.download, store.read):
        proxy.spoil = [("GET", "damaged")] * 3
        with pytest.raises(RetuneError, match=r"s3://.*/x arrived damaged: .*md5.*sha256"):
            get(f"{s3}/x")
        assert not proxy.spoil
    assert store.listing(tmp_path / "cache") == []
    proxy.spoil = [("GET", "damaged")] * 2
    assert store.download(f"{s3}/x").read_bytes() == b"content"


def test_server_away(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for attempt in (store.read, store.download, store.exists, store.listing, store.remove):
        with pytest.raises(RetuneError, match=r"127\.0\.0\.1:9 of AWS_ENDPOINT_URL cannot be reached"):
            attempt(f"{s3}/x")
    for attempt in (store.write, store.create):
        with pytest.raises(RetuneError, match=r"AWS_ENDPOINT_URL"):
            attempt(f"{s3}/x", b"")


def test_no_credentials(s3, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(RetuneError, match=r"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        store.read(f"{s3}/x")


def test_refused(proxy, s3):
    proxy.spoil = [("PUT", "refused")]
    with pytest.raises(RetuneError, match=r"refused \(403\).*AWS_ACCESS_KEY_ID"):
        store.write(f"{s3}/x", b"")


def test_no_such_bucket(s3):
    with pytest.raises(FileNotFoundError, match=r"No such bucket.*s3://no-such-bucket/x"):
        store.write("s3://no-such-bucket/x", b"")
    with pytest.raises(FileNotFoundError, match=r"s3://no-such-bucket/x"):
        store.read("s3://no-such-bucket/x")


def test_cache_that_cannot_be_made(s3, monkeypatch, tmp_path):
    store.write(f"{s3}/x", b"content")
    store.write(tmp_path / "file", b"")
    monkeypatch.setenv("RETUNE_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(RetuneError, match="RETUNE_CACHE"):
        store.download(f"{s3}/x")


def test_folder_markers_of_consoles_are_no_files(s3):
    client().put_object(Bucket=s3[5:], Key="folder/", Body=b"")
    client().put_object(Bucket=s3[5:], Key="folder/below/", Body=b"")
    assert store.listing(f"{s3}/folder") == []
    assert not store.exists(f"{s3}/folder")


# A hub: a small server that answers as the real one does.

FILES = {"data/train.jsonl": b'{"a": 1}\n', "data/more/b.txt": b"b", "README.md": b"hello"}
COMMIT = "0123456789012345678901234567890123456789"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            path, _, _ = self.path.partition("?")
            at, tree, info = (
                f"/datasets/me/set/resolve/{{}}/{'{}'}",
                "/api/datasets/me/set/tree/",
                "/api/datasets/me/set/revision/",
            )
            for revision in ("main", "v2", COMMIT):
                for name, content in FILES.items():
                    if path == at.format(revision, name):
                        return self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')
                if path == tree + revision:
                    entries = [
                        {"type": "file", "path": n, "oid": "0", "size": len(c)} for n, c in FILES.items()
                    ]
                    return self.answer(json.dumps(entries).encode())
                if path == info + revision:
                    siblings = [{"rfilename": name} for name in FILES]
                    return self.answer(
                        json.dumps({"id": "me/set", "sha": COMMIT, "siblings": siblings}).encode()
                    )
            if path.startswith("/datasets/me/gated") or path.startswith("/api/datasets/me/gated"):
                return self.answer(b"", 403, **{"X-Error-Code": "GatedRepo"})
            code = "EntryNotFound" if path.startswith("/datasets/me/set/resolve/main") else "RepoNotFound"
            if "/v9" in path:
                code = "RevisionNotFound"
            self.answer(b"", 404, **{"X-Error-Code": code})

        do_HEAD = do_GET

        def answer(self, content, status=200, **headers):
            self.send_response(status)
            for name, value in {
                **headers,
                "X-Repo-Commit": COMMIT,
                "Content-Length": str(len(content)),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    from huggingface_hub import constants

    server = serve(Hub)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield server
    server.shutdown()


@pytest.mark.parametrize(
    "uri", ["hf://datasets/me/set/{}", "hf://datasets/me/set@v2/{}", "hf://datasets/me/set/{}@v2"]
)
def test_hub_file(hub, uri):
    uri = uri.format("data/train.jsonl")
    assert store.exists(uri)
    assert store.read(uri) == FILES["data/train.jsonl"]
    assert store.download(uri).name == "train.jsonl"


def test_hub_folder(hub):
    assert store.listing("hf://datasets/me/set/data") == ["more/b.txt", "train.jsonl"]
    assert store.exists("hf://datasets/me/set/data")
    folder = store.download("hf://datasets/me/set/data")
    assert (folder / "more" / "b.txt").read_bytes() == b"b"
    assert not (folder.parent / "README.md").exists()
    assert (store.download("hf://datasets/me/set") / "README.md").read_bytes() == b"hello"


def test_hub_missing(hub):
    for uri in (
        "hf://datasets/me/set/none.txt",
        "hf://datasets/me/none/x",
        "hf://datasets/me/set@v9/README.md",
    ):
        with pytest.raises(FileNotFoundError, match=uri):
            store.read(uri)
        assert not store.exists(uri)
        assert store.listing(uri) == []
    with pytest.raises(FileNotFoundError):
        store.download("hf://datasets/me/set/none")


def test_hub_gated(hub):
    with pytest.raises(RetuneError, match="HF_TOKEN"):
        store.read("hf://datasets/me/gated/x.txt")


def test_hub_is_read_only(hub):
    for attempt in (lambda uri: store.write(uri, b""), lambda uri: store.create(uri, b""), store.remove):
        with pytest.raises(InputError, match="only read from"):
            attempt("hf://datasets/me/set/x.txt")


def test_hub_away_but_file_in_its_cache(hub, monkeypatch):
    uri = "hf://datasets/me/set/README.md"
    store.read(uri)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # its pauses add up to 23 s
    assert store.read(uri) == b"hello"
    with pytest.raises(RetuneError, match=r"127\.0\.0\.1:9 cannot be reached.*HF_ENDPOINT"):
        store.read("hf://datasets/me/set/data/train.jsonl")


def test_door_does_not_load_what_is_not_used():
    code = "import sys, retune.store; retune.store.exists('.')\n"
    code += "print([name for name in ('boto3', 'huggingface_hub') if name in sys.modules])"
    assert run(code).communicate()[0] == "[]\n"


def test_every_place_keeps_the_whole_contract():
    from retune.store.hub import HubPlace
    from retune.store.s3 import S3Place

    needed = {name for name in vars(store._Place) if not name.startswith("_")}
    for kind in (LocalPlace, S3Place, HubPlace):
        assert needed <= set(dir(kind))


def test_a_folder_that_another_process_removes_meanwhile_is_removed(tmp_path, monkeypatch):
    (tmp_path / "adapter").mkdir()
    real = os.replace

    def beaten(source, target):
        shutil.rmtree(source)
        real(source, target)

    monkeypatch.setattr(os, "replace", beaten)
    store.remove(tmp_path / "adapter")
    assert not list(tmp_path.iterdir())
