"""An HTTP proxy that loses or delays chosen requests."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Endpoints = tuple[str, ...]


class Proxy:
    """Passes requests on to a server on this machine.

    Args:
        port: of the server.
        lose_first: endpoints (ends of paths) whose first answer is lost: the server acts, nobody is told.
        delay_first: endpoints whose first request is passed on only once a second one has been answered.
        own_port: where it listens; by default a free port.
    """

    def __init__(
        self, port: int, lose_first: Endpoints = (), delay_first: Endpoints = (), own_port: int = 0
    ) -> None:
        self.calls: Counter[str] = Counter()
        self._again: dict[str, threading.Event] = {name: threading.Event() for name in delay_first}
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                endpoint = next((e for e in (*lose_first, *delay_first) if self.path.endswith(e)), None)
                with proxy._lock:
                    proxy.calls[endpoint or ""] += 1
                    first = proxy.calls[endpoint or ""] == 1
                if endpoint in delay_first and first:
                    proxy._again[endpoint].wait(60)
                status, headers, data = proxy._pass_on(port, self, body)
                if endpoint in lose_first and first:
                    self.close_connection = True
                    return
                if endpoint in delay_first and not first:
                    proxy._again[endpoint].set()
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", own_port), Handler)
        self._server.handle_error = lambda *_: None  # clients that gave up are the point
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @staticmethod
    def _pass_on(port: int, asked: BaseHTTPRequestHandler, body: bytes):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {**asked.headers, "Connection": "close"}
        connection.request(asked.command, asked.path, body or None, headers)
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
