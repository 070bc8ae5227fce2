"""Serving pages to browsers: nothing from elsewhere on them, and no client takes more than its share.

Many slow clients could otherwise take all threads and memory of the process, one connection each.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from retune.errors import RetuneError, first_line

HTML = "text/html; charset=utf-8"
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'"
)
SILENT_SECONDS = 60.0  # a client that reads nothing for so long is disconnected
REQUEST_SECONDS = 20.0  # within which a request must have come whole
MOST_CONNECTIONS = 100  # at a time; a further one is closed, and browsers try again


class Server(ThreadingHTTPServer):
    """A thread for each of at most `MOST_CONNECTIONS` connections.

    The host `::` stands for all addresses: those of IPv6 and IPv4, or of IPv4 alone on a machine without IPv6.
    """

    daemon_threads = True
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, address: tuple[str, int], handler: type[Page]) -> None:
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        host, port = address
        if host == "::" and not socket.has_dualstack_ipv6():
            host = "0.0.0.0"
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        """Bind; to `::` with the addresses of IPv4 too, whatever the system's default."""
        if self.server_address[0] == "::":
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in its own thread; close it if there are too many."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no further thread can be started
            self._places.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection, then make room for the next."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what broke an answer in one line that steers no terminal."""
        print(
            f"note: a page could not be shown: {RetuneError(first_line(sys.exc_info()[1]))}", file=sys.stderr
        )


class Page(BaseHTTPRequestHandler):
    """Answers with pages that load nothing from elsewhere, and writes no log.

    Where only this machine is served, it answers only to this machine's names: a page on the web can have its own name
    lead to 127.0.0.1 and then read what is served there.
    """

    timeout = SILENT_SECONDS
    server: Server

    def setup(self) -> None:
        """Begin the time in which a request must have come whole: each of its letters could come after a minute."""
        super().setup()
        self._late = threading.Timer(REQUEST_SECONDS, self._give_up)
        self._late.daemon = True
        self._late.start()

    def finish(self) -> None:
        """End the connection."""
        self._late.cancel()
        with suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
            super().finish()

    def _give_up(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def parse_request(self) -> bool:
        """Read a request; refuse one that is meant for another name."""
        if not super().parse_request():
            return False
        self._late.cancel()
        bound = ipaddress.ip_address(self.server.socket.getsockname()[0])
        if not bound.is_loopback or _is_local(self.headers.get("Host", "")):
            return True
        self.send_error(403, "this page is served to this machine alone, under its name localhost")
        return False

    def send(self, kind: str, content: bytes | Iterable[bytes]) -> None:
        """Send a whole response, or one part after the other; it ends when the browser disconnects.

        Args:
            kind: the content type. content: the body.
        """
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        with suppress(BrokenPipeError, ConnectionResetError):
            self.end_headers()
            for part in [content] if isinstance(content, bytes) else content:
                self.wfile.write(part)
                self.wfile.flush()

    def log_message(self, *words: Any) -> None:
        """Write nothing."""


def _is_local(host: str) -> bool:
    """Return whether a Host header names this machine. Without one it is no browser's."""
    try:
        name = urlsplit(f"//{host}").hostname or "" if host else "localhost"
        return name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:  # no name at all, or another one
        return False
