"""A live page of a running study: its progress and its trials, sent to browsers as server-sent events.

Everything is read from the study's folder; the process that runs the study is not involved.
"""

from __future__ import annotations

import json
import math
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from retune import gpus, store
from retune.errors import InputError, RetuneError
from retune.records import TrialRecord, by_number, loads
from retune.report.folder import newest_search, study_in
from retune.report.importance import MIN_TRIALS, importances
from retune.study import Study
from retune.web import HTML, Page, Server

EVERY_SECONDS = 1.0
_GPU_SECONDS = 2.0
_MAX_POINTS = 500  # of one curve; of a longer one every other point is dropped


class Watched:
    """The state of a study's folder, shared by all connections. Records of finished trials are read once."""

    def __init__(self, folder: str) -> None:
        self.folder = folder.rstrip("/")
        self._lock = threading.Lock()
        self._records: dict[str, TrialRecord] = {}
        self._issued: dict[str, dict[str, Any]] = {}
        self._curves: dict[str, list[tuple[float, float]]] = {}
        self._importance: tuple[int, dict[str, float] | None] = (-1, None)
        self._gpus: list[dict[str, Any]] = []
        self._next_look = 0.0

    def state(self) -> dict[str, Any]:
        """Return the data of the page, as far as it exists yet.

        Keys: `study`, `metric`, `goal`, `progress`, `trials`, `curves` (of running trials: epoch and loss), `importance`
        (share by hyper-parameter, None below `few` settings), `queue` and `gpus` (of the machine that serves the page).
        """
        with self._lock:
            return self._state()

    def _state(self) -> dict[str, Any]:
        progress = self._progress()
        found: dict[str, Any] = {
            "study": self.folder.rpartition("/")[2],
            "progress": progress,
            "trials": [],
            "curves": self._running_curves(progress),
            "gpus": self._gpus_now(),
        }
        try:
            search = newest_search(self.folder)
            study = study_in(search)
        except (InputError, RetuneError, FileNotFoundError):
            return found  # the search has not begun
        objective = study.search.objective
        trials = store.join(search, "trials")
        names = store.listing(trials)
        for name in names:
            if name.endswith("/trial.json") and self._may_change(name):
                self._records[name] = TrialRecord.model_validate_json(store.read(store.join(trials, name)))
        records = sorted(self._records.values(), key=lambda record: (record.number, record.trial))
        found["trials"] = [_row(record, objective.metric) for record in records]
        return found | {
            "study": study.name,
            "metric": objective.metric,
            "goal": objective.goal,
            "importance": self._shares(records, study),
            "few": MIN_TRIALS,
            "queue": self._queue(trials, names, progress),
        }

    def _may_change(self, name: str) -> bool:
        """Return whether a record was not read yet, or is of a trial that was stopped early, which may be continued."""
        record = self._records.get(name)
        return record is None or record.status == "early_stopped"

    def _queue(self, trials: str, names: list[str], progress: dict[str, Any]) -> dict[str, Any]:
        """Return the trials with a setting but no result, which of them are running, and how many have no setting yet."""
        done = {name.rpartition("/")[0] for name in names if name.endswith("/trial.json")}
        for name in names:
            trial, _, file = name.rpartition("/")
            if file == "assignment.json" and trial not in self._issued:
                self._issued[trial] = loads(store.read(store.join(trials, name)), name)
        running = progress.get("running") or {}
        waiting = [
            {**{key: task.get(key) for key in ("trial", "role", "assignment")}, "running": name in running}
            for name, task in sorted(self._issued.items(), key=lambda entry: by_number(entry[0]))
            if name not in done
        ]
        known = len(done) + len(waiting)
        searching = progress.get("step") == "search"
        return {
            "trials": waiting,
            "to_come": max(0, (progress.get("total") or 0) - known) if searching else None,
        }

    def _shares(self, records: list[TrialRecord], study: Study) -> dict[str, float] | None:
        """Return the importances, computed again whenever a trial is done."""
        if self._importance[0] != len(records):
            self._importance = (
                len(records),
                importances(records, study.search.space, study.search.objective),
            )
        return self._importance[1]

    def _running_curves(self, progress: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
        """Return the losses of the running trials seen so far, so that a page that is loaded later shows them too."""
        running, epochs = progress.get("running") or {}, progress.get("epochs") or {}
        for name in [name for name in self._curves if name not in running]:
            del self._curves[name]
        for name, loss in (progress.get("losses") or {}).items():
            curve = self._curves.setdefault(name, [])
            point = (epochs.get(name) or 0.0, loss)
            if not curve or curve[-1] != point:
                curve.append(point)
            if len(curve) > _MAX_POINTS:
                del curve[1::2]
        return self._curves

    def _gpus_now(self) -> list[dict[str, Any]]:
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _GPU_SECONDS
            try:
                self._gpus = [asdict(use) for use in gpus.usage()]
            except (OSError, subprocess.SubprocessError):
                self._gpus, self._next_look = [], math.inf  # the driver may hang, so it is not asked again
        return self._gpus

    def _progress(self) -> dict[str, Any]:
        if "://" in self.folder:
            return {}  # of a study in a bucket, progress.json is on the machine that runs it
        try:
            found = json.loads(Path(self.folder, "progress.json").read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _row(record: TrialRecord, metric: str) -> dict[str, Any]:
    return {
        "trial": record.trial, "number": record.number, "role": record.role, "status": record.status, "reason": record.reason,
        "value": record.objective(metric), "assignment": record.assignment, "seconds": record.seconds,
        "curve": [(point.epoch, point.value) for point in record.curves.get(metric, [])],
    }  # fmt: skip


def events(watched: Watched, every: float = EVERY_SECONDS) -> Iterator[bytes]:
    """Yield the state as a server-sent event whenever it changes, and a comment every 15 s to keep the connection open."""
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


def why_nothing_to_show(folder: str, every: bool) -> str | None:
    """Return why a folder has nothing to show yet, None if it has; a study may still begin there.

    Args:
        folder: of a study; with `every`, of many studies.

    Raises:
        InputError: if it is a file.
    """
    if "://" not in folder and Path(folder).is_file():
        raise InputError(
            "a study's folder is needed, but this is a file; name the folder below `artifacts` that has the study's name",
            folder,
        )
    try:
        if every:
            return None if store.exists(folder) else f"{folder}: there is no such folder"
        newest_search(folder)
    except RetuneError as error:
        return str(error)
    return None


def serve(folder: str, host: str, port: int, every: float = EVERY_SECONDS) -> Server:
    """Return a server of the page, not yet running; port 0 takes a free one."""
    page = resources.files("retune.report").joinpath("watch.html").read_bytes()
    watched = Watched(folder)

    class Handler(Page):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/":
                self.send(HTML, page)
            elif path == "/state":
                self.send("application/json", json.dumps(watched.state()).encode())
            elif path == "/events":
                self.send("text/event-stream", events(watched, every))
            else:
                self.send_error(404)

    return Server((host, port), Handler)
