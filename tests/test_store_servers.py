"""S3 servers that differ from AWS in what they require or lack, imitated by a proxy before moto."""

import http.client
import logging
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from retune import store
from retune.errors import RetuneError

pytest_plugins = ["tests.s3_server"]


@pytest.fixture
def server(s3, moto, monkeypatch):
    """A server with traits; `asked` lists the requests.

    Traits: `ignores If-None-Match`, `refuses If-None-Match`, `wants Content-MD5`, `has ETags of its own`, `finds keys expired`.
    """
    target, traits, asked = urlsplit(moto), set(), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def reply(self, status, headers, data):
            self.send_response(status)
            for key, value in headers:
                if key.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(key, value)
            length = dict(headers).get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def refuse(self, status, code):
            self.reply(status, [], f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

        def pass_on(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((self.command, self.path, dict(self.headers)))
            headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
            headers["Host"] = target.netloc
            if "refuses If-None-Match" in traits and "If-None-Match" in headers:
                return self.refuse(501, "NotImplemented")
            if "ignores If-None-Match" in traits:
                headers.pop("If-None-Match", None)
            if "wants Content-MD5" in traits and "?delete" in self.path and "Content-MD5" not in headers:
                return self.refuse(400, "MissingContentMD5")
            if "finds keys expired" in traits:
                return self.refuse(400, "ExpiredToken")
            connection = http.client.HTTPConnection(target.hostname, target.port, timeout=60)
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            found, data = dict(answer.getheaders()), answer.read()
            if "has ETags of its own" in traits:  # as S3Proxy passes those of Azure on
                found = {key: "0x8DC5F0A1B2C3D4E" if key.lower() == "etag" else found[key] for key in found}
                data = re.sub(rb"<ETag>[^<]*</ETag>", b"<ETag>0x8DC5F0A1B2C3D4E</ETag>", data)
            self.reply(answer.status, list(found.items()), data)
            connection.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.traits, running.asked = traits, asked
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{running.server_port}")
    yield running
    running.shutdown()
    running.server_close()


def test_a_folder_is_deleted_where_content_md5_is_wanted(server, s3):
    server.traits.add("wants Content-MD5")
    for name in ("a", "b"):
        store.write(f"{s3}/folder/{name}", b"x")
    store.remove(f"{s3}/folder")
    assert store.listing(f"{s3}/folder") == []


@pytest.mark.slow
@pytest.mark.parametrize("trait", ["ignores If-None-Match", "refuses If-None-Match"])
def test_a_server_without_conditional_writes_is_told_of_once_and_nothing_is_written_over(
    server, s3, caplog, trait
):
    server.traits.add(trait)
    with caplog.at_level(logging.WARNING, logger="retune.store"):
        assert store.create(f"{s3}/a/record", b"first")
        assert not store.create(f"{s3}/a/record", b"second")
        assert store.create(f"{s3}/a/other", b"third")
    assert store.read(f"{s3}/a/record") == b"first"
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "no conditional writes (If-None-Match)" in warnings[0]
    assert store.listing(f"{s3}/a") == ["other", "record"]


def test_a_server_with_conditional_writes_is_asked_once(server, s3, caplog):
    for name in ("a", "b", "c"):
        assert store.create(f"{s3}/{name}", b"x")
        assert not store.create(f"{s3}/{name}", b"y")
    assert [record for record in caplog.records if record.name.startswith("retune")] == []
    probes = [path for command, path, _ in server.asked if command == "PUT" and ".probe-" in path]
    assert len(probes) == 2


def test_an_etag_that_is_no_checksum_says_nothing_of_damage(server, s3):
    server.traits.add("has ETags of its own")
    store.write(f"{s3}/folder/a", b"x")
    store.write(f"{s3}/folder/b", b"y")
    assert store.read(f"{s3}/folder/a") == b"x"
    assert (store.download(f"{s3}/folder") / "b").read_bytes() == b"y"
    assert store.contents(f"{s3}/folder", lambda name: True) == {"a": b"x", "b": b"y"}


@pytest.mark.parametrize("ask", [store.read, store.exists, store.listing, store.download])
def test_expired_keys_are_told_as_such(server, s3, ask):
    """The answer to HEAD has no text, and boto3 knows only `Bad Request`."""
    server.traits.add("finds keys expired")
    with pytest.raises(RetuneError, match=r"the server refused .*that have not expired"):
        ask(f"{s3}/a")


def test_keys_that_are_renewed_in_their_file_are_used(server, s3, tmp_path, monkeypatch):
    """As a login or a sidecar does every hour, while a study runs for days."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    for number in (1, 2):
        (tmp_path / "keys").write_text(
            f"[default]\naws_access_key_id=KEY{number}\naws_secret_access_key=s\naws_session_token=t{number}\n"
        )
        os.utime(tmp_path / "keys", ns=(number * 10**9, number * 10**9))
        store.write(f"{s3}/a", b"x")
        headers = server.asked[-1][2]
        assert f"Credential=KEY{number}/" in headers["Authorization"]
        assert headers["X-Amz-Security-Token"] == f"t{number}"
