"""A webhook and the parts of GitHub's and GitLab's APIs that are called, as one server on this machine."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Recorder:
    """A server that keeps what it is sent; `answers` maps (method, path without query) to (status, content)."""

    def __init__(self):
        self.requests, self.answers = [], {}
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                recorder.requests.append((self.command, self.path, body, dict(self.headers)))
                status, content = recorder.answers.get((self.command, self.path.partition("?")[0]), (404, {}))
                text = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PATCH = do_PUT = _answer

            def log_message(self, *words):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def texts(self):
        """What the webhook was told."""
        return [body["text"] for _, path, body, _ in self.requests if path == "/hook/secret"]

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server():
    recorder = Recorder()
    recorder.answers["POST", "/hook/secret"] = (200, "ok")
    yield recorder
    recorder.close()
