"""No client blocks the page server for others: neither by many connections nor by slow or silent ones."""

import itertools
import socket
import threading
import time
import urllib.request
from contextlib import closing

import pytest

from retune import web


def _ipv6():
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


IPV6 = _ipv6()


class Hello(web.Page):
    def do_GET(self):
        if self.path == "/endless":
            self.send("text/plain", itertools.repeat(b"x" * 65536))
        if self.path == "/broken":
            raise ValueError("\x1b[2J is broken")
        self.send("text/plain", b"hello")


@pytest.fixture
def serve(monkeypatch):
    running = []

    def start(host="127.0.0.1", **bounds):
        for name, value in bounds.items():
            monkeypatch.setattr(web, name, value)
        monkeypatch.setattr(Hello, "timeout", web.SILENT_SECONDS)
        server = web.Server((host, 0), Hello)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return server.server_port

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def reads(port, host="127.0.0.1"):
    with urllib.request.urlopen(f"http://{host}:{port}/", timeout=60) as answer:
        return answer.read()


def connect(port):
    return closing(socket.create_connection(("127.0.0.1", port), timeout=60))


def ended(connection):
    """Wait until the server has closed a connection, and return whether it sent nothing."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_all_addresses_are_those_of_ipv4_and_of_ipv6(serve):
    """Pods of a cluster with IPv6 alone have no other address, and `kubectl port-forward` comes from either."""
    port = serve("::")
    assert reads(port) == b"hello"
    if not IPV6:
        pytest.skip("this machine has no IPv6")
    assert reads(port, "[::1]") == b"hello"
    assert reads(serve("::1"), "[::1]") == b"hello"


def test_all_addresses_of_a_machine_without_ipv6(serve, monkeypatch):
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    assert reads(serve("::")) == b"hello"


def test_one_connection_too_many_is_closed_and_room_is_made_again(serve):
    port = serve(MOST_CONNECTIONS=3)
    idle = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(3)]
    with connect(port) as more:
        assert ended(more)
    for each in idle:
        each.close()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            assert reads(port) == b"hello"
            break
        except OSError:  # the places of the closed connections are not free yet
            time.sleep(0.05)
    else:
        pytest.fail("no room was made")


def test_a_request_that_comes_letter_by_letter_is_given_up(serve):
    """Each letter arrives within the timeout, so that the connection would last for ever."""
    port = serve(REQUEST_SECONDS=1.0)
    with connect(port) as slow:
        slow.settimeout(0.05)
        deadline = time.monotonic() + 60
        slow.send(b"GET / HTTP/1.0\r\n")
        for letter in itertools.cycle(b"X-Header: 1\r\n"):
            try:
                slow.send(bytes([letter]))
                if slow.recv(1) == b"":
                    break
            except TimeoutError:
                assert time.monotonic() < deadline
            except OSError:
                break
    assert reads(port) == b"hello"


def test_a_client_that_never_reads_is_let_go(serve):
    port = serve(MOST_CONNECTIONS=1, SILENT_SECONDS=0.5)
    with connect(port) as deaf:
        deaf.sendall(b"GET /endless HTTP/1.0\r\n\r\n")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                assert reads(port) == b"hello"
                break
            except OSError:
                time.sleep(0.05)
        else:
            pytest.fail("the client that never reads has the only place")


@pytest.mark.parametrize(
    "lines",
    [[b"X: " + b"a" * 100_000], [b"X-%d: 1" % n for n in range(500)], [b"Content-Length: 99999999999"]],
)
def test_huge_headers_and_bodies_are_refused_or_not_read(serve, lines):
    port = serve()
    with connect(port) as client:
        client.sendall(b"\r\n".join([b"POST / HTTP/1.0", *lines, b"", b""]))
        with client.makefile("rb") as answer:
            assert answer.readline().split()[1] in (b"431", b"501")
    assert reads(port) == b"hello"


def test_what_breaks_a_page_is_told_in_one_line(serve, capfd):
    port = serve()
    with connect(port) as client:
        client.sendall(b"GET /broken HTTP/1.0\r\n\r\n")
        assert ended(client)
    deadline = time.monotonic() + 60
    output = ""
    while not output and time.monotonic() < deadline:
        output += capfd.readouterr().err
        time.sleep(0.05)
    assert output == "note: a page could not be shown: \\x1b[2J is broken\n"
