"""A live page of a running study: its progress and its trials, sent to browsers as they come (server-sent events).

Everything is read from the study's folder; the process that runs the study knows nothing of those who watch it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any

from retune import store
from retune.errors import InputError, RetuneError
from retune.records import TrialRecord
from retune.report.folder import newest_search, study_in

EVERY_SECONDS = 1.0
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


class Watched:
    """The state of a study's folder. Records of finished trials are read once."""

    def __init__(self, folder: str) -> None:
        self.folder = folder.rstrip("/")
        self._records: dict[str, dict[str, Any]] = {}

    def state(self) -> dict[str, Any]:
        """Return what the page shows: `study`, `metric`, `goal`, `progress` and `trials`; as far as there is any yet."""
        found: dict[str, Any] = {
            "study": self.folder.rpartition("/")[2],
            "progress": self._progress(),
            "trials": [],
        }
        try:
            search = newest_search(self.folder)
            study = study_in(search)
        except (InputError, RetuneError, FileNotFoundError):
            return found  # the search has not begun
        objective = study.search.objective
        found |= {"study": study.name, "metric": objective.metric, "goal": objective.goal}
        for name in store.listing(store.join(search, "trials")):
            if name.endswith("/trial.json") and name not in self._records:
                record = TrialRecord.model_validate_json(store.read(store.join(search, "trials", name)))
                self._records[name] = {
                    "trial": record.trial, "number": record.number, "role": record.role, "status": record.status,
                    "reason": record.reason, "value": record.objective(objective.metric), "assignment": record.assignment,
                    "seconds": record.seconds, "curve": [m.value for m in record.curves.get("train_loss", [])],
                }  # fmt: skip
        found["trials"] = sorted(self._records.values(), key=lambda trial: trial["number"])
        return found

    def _progress(self) -> dict[str, Any]:
        if "://" in self.folder:
            return {}  # a study in a bucket keeps its progress on the machine that runs it
        try:
            found = json.loads(Path(self.folder, "progress.json").read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def events(watched: Watched, every: float = EVERY_SECONDS) -> Iterator[bytes]:
    """Yield the state as server-sent events, whenever it changed, and a comment where it did not for a while."""
    last, quiet = "", 0.0
    while True:
        now = json.dumps(watched.state(), sort_keys=True)
        if now != last:
            yield f"data: {now}\n\n".encode()
            last, quiet = now, 0.0
        elif quiet >= 15:
            yield b": still here\n\n"
            quiet = 0.0
        time.sleep(every)
        quiet += every


def serve(folder: str, host: str, port: int, every: float = EVERY_SECONDS) -> ThreadingHTTPServer:
    """Return a server of the page, not yet running; port 0 takes a free one."""
    page = resources.files("retune.report").joinpath("watch.html").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kinds = {
                "/": "text/html; charset=utf-8",
                "/state": "application/json",
                "/events": "text/event-stream",
            }
            path = self.path.partition("?")[0]
            if path not in kinds:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", kinds[path])
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            try:
                if path == "/":
                    self.wfile.write(page)
                elif path == "/state":
                    self.wfile.write(json.dumps(Watched(folder).state()).encode())
                else:
                    for event in events(Watched(folder), every):
                        self.wfile.write(event)
                        self.wfile.flush()
            except (BrokenPipeError, ConnectionResetError):
                return  # the browser went away

        def log_message(self, *words: Any) -> None:
            return

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    return server
