"""The tracker: what the steps of a study call. It never raises and never waits for the server."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, cast

from retune import outages
from retune.records import BenchRecord, TrialRecord, digest
from retune.space import Assignment
from retune.tracking.applied import StudyOnServer
from retune.tracking.outbox import Outbox
from retune.tracking.runs import tracking_uri
from retune.tracking.sender import Sender

log = logging.getLogger("retune.tracking")
P = ParamSpec("P")


def _never_raises(method: Callable[Concatenate[Tracker, P], None]) -> Callable[Concatenate[Tracker, P], None]:
    """Turn every error of a tracking call into a warning: a lost metric is cheaper than a lost training."""

    @wraps(method)
    def call(self: Tracker, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            log.warning("tracking could not note %s: %s", method.__name__, error)

    return cast("Callable[Concatenate[Tracker, P], None]", call)


class Tracker:
    """Logs one study to MLflow: an experiment with a parent run, and a child run for each trial.

    Every call appends one operation to a file in `spool` and returns; a thread sends them in order. Operations that are
    unsent when the process ends, is killed or finds no server are sent by the next tracker on the same
    spool. Sending is idempotent: no run, param or metric is doubled.

    The environment of a pipeline is respected: ``MLFLOW_TRACKING_URI`` takes precedence over `uri`, ``MLFLOW_RUN_ID``
    is adopted as the parent run, ``MLFLOW_EXPERIMENT_ID`` is used instead of an experiment named after the
    study.

    Args:
        uri: MLflow tracking URI, e.g. ``sqlite:////home/me/mlflow.db`` or ``https://mlflow.example``.
        study: name of the study; that of the experiment too.
        spool: folder of the outbox, one for each study. If it cannot be written, a temporary one is used.
        tags: of the parent run: ``algorithm``, ``seed``, ``git_commit``, ``data_digest``, ``base_revision``.
            ``search_digest`` also identifies the parent run, so that the study continues in it even if the spool was lost.

    """

    def __init__(self, uri: str, study: str, spool: Path, tags: dict[str, str]) -> None:
        try:
            self._outbox = Outbox(Path(spool))
        except OSError as error:
            log.warning("the spool %s cannot be written (%s): tracking uses a temporary one", spool, error)
            self._outbox = Outbox(Path(tempfile.mkdtemp(prefix="retune-spool-")))
        self._tags = tags
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._state: dict[str, str] = {}  # status by trial
        self._finishes: dict[str, str] = {}  # key of the last finish operation by trial
        for operation in self._outbox.all():
            self._remember(operation)
        key = tags.get("search_digest") or self._own_key()
        adopt = os.environ.get("MLFLOW_RUN_ID") or None
        self._sender = Sender(self._outbox, StudyOnServer(self._outbox, tracking_uri(uri), study, key, adopt))
        self._sender.start()

    def _own_key(self) -> str:
        path = self._outbox.folder / "key"
        try:
            with path.open("x") as file:
                file.write(uuid.uuid4().hex)
        except OSError:
            pass  # it is there already
        try:
            return path.read_text().strip()
        except OSError:
            return uuid.uuid4().hex

    @_never_raises
    def start_study(self, params: dict[str, Any], tags: dict[str, str] | None = None) -> None:
        """Start or resume the study: its parent run is RUNNING.

        Args:
            params: the study's main settings.
            tags: in addition to those of the tracker.

        """
        self._add({"op": "study", "params": params, "tags": {**self._tags, **(tags or {})}})

    @_never_raises
    def start_trial(self, trial: str, number: int, role: str, assignment: Assignment, seed: int) -> None:
        """Start a trial, or resume one that was interrupted or stopped early; do nothing for one that has ended."""
        if self._state.get(trial, "interrupted") not in ("interrupted", "early_stopped"):
            return
        start = {"trial": trial, "number": number, "role": role, "assignment": assignment, "seed": seed}
        self._add({"op": "start", **start})

    @_never_raises
    def metric(self, trial: str, name: str, value: float, step: int) -> None:
        """Log one measurement; the same one (trial, name, step and value) is logged once."""
        self._add({"op": "metric", "trial": trial, "name": name, "value": float(value), "step": int(step)})

    @_never_raises
    def finish_trial(self, record: TrialRecord, adapter: Path | None = None) -> None:
        """End a trial with its status, reason, final values and all measurements that `metric` was not called with.

        Args:
            record: of the trial; logged as the artifact ``trial.json``.
            adapter: folder to log as the artifact ``adapter``; it must still exist when it is sent.

        """
        points = [point for point in _points(record) if _key(point) not in self._seen]
        content = record.model_dump(mode="json", exclude={"curves"})
        where = str(Path(adapter).resolve()) if adapter else None
        self._add(
            {"op": "finish", "trial": record.trial, "record": content, "points": points, "adapter": where}
        )

    @_never_raises
    def benchmark(self, record: BenchRecord) -> None:
        """Log a score and its standard error as ``bench/<task>`` in the run of its trial."""
        protocol = {"n", "shots", "limit", "protocol", "prompt_digest", "data_digest", "batch_size", "dtype"}
        self._add(
            {
                "op": "bench",
                "trial": record.model,
                "task": record.task,
                "score": record.score,
                "stderr": record.stderr,
                "protocol": record.model_dump(mode="json", include=protocol),
            },
            at=record.finished,
        )

    @_never_raises
    def artifact(self, path: Path, name: str | None = None) -> None:
        """Log a file or folder to the parent run as `name`, e.g. ``figures/history.png``.

        A file is copied into the spool first, so that it may be changed or deleted after this call. A folder
        is read when it is sent.
        """
        path = Path(path).resolve()
        name = name or path.name
        if path.is_dir():
            self._add({"op": "artifact", "path": str(path), "name": name})
            return
        data = path.read_bytes()
        kept = self._outbox.keep(data)
        self._add({"op": "artifact", "path": str(kept), "name": name, "content": digest(data)})

    @_never_raises
    def finish_study(self, status: str = "FINISHED") -> None:
        """End the parent run: ``FINISHED``, ``FAILED`` or ``KILLED``; `start_study` opens it again."""
        self._add({"op": "finish_study", "status": status})

    def flush(self, timeout: float) -> int:
        """Wait at most `timeout` seconds until everything is sent; return how many operations are left."""
        end = time.monotonic() + timeout
        while (left := self.left) and time.monotonic() < end:
            self._sender.wake.set()
            time.sleep(min(0.1, max(0.0, end - time.monotonic())))
        return left

    def close(self, timeout: float | None = None) -> int:
        """Try to send what is left, then stop; return how many operations remain for the next tracker.

        Args:
            timeout: seconds to try for; by default that of `retune.outages.farewell`: longer in a pod, whose outbox is lost.

        """
        left = self.flush(outages.flush_seconds() if timeout is None else timeout)
        self._sender.stop(timeout=1.0)
        try:
            self._outbox.sync()
        except OSError as error:
            log.warning("the outbox could not be forced to disk: %s", error)
        return left

    @property
    def left(self) -> int:
        """How many operations have not been sent yet."""
        try:
            return self._outbox.left()
        except OSError:
            return 0

    @property
    def refused(self) -> list[dict[str, Any]]:
        """The operations that the server would never accept: `reason` and `operation` of each."""
        return self._outbox.refused()

    def _add(self, operation: dict[str, Any], at: str = "") -> None:
        key = _key(operation)
        with self._lock:
            if key in self._seen:
                return
            operation["at"] = milliseconds(at)
            self._outbox.append(operation)
            self._remember(operation)
        self._sender.wake.set()

    def _remember(self, operation: dict[str, Any]) -> None:
        """Store what is needed to recognise a repeated call: a study that is run again repeats most of its calls."""
        kind = operation.get("op")
        if kind == "start":
            self._state[operation["trial"]] = "running"
            self._seen.discard(self._finishes.pop(operation["trial"], ""))
        elif kind == "finish":
            self._state[operation["trial"]] = operation["record"]["status"]
            self._finishes[operation["trial"]] = _key(operation)
            self._seen.update(_key(point) for point in operation["points"])
        if kind in ("metric", "bench", "finish", "artifact"):
            self._seen.add(_key(operation))


def _key(operation: dict[str, Any]) -> str:
    kind = operation["op"]
    if kind == "metric":
        return f"metric {operation['trial']} {operation['name']} {operation['step']} {operation['value']!r}"
    rest = {name: value for name, value in operation.items() if name not in ("at", "points")}
    return f"{kind} {operation.get('trial', '')} {digest(rest)}"


def _points(record: TrialRecord) -> list[dict[str, Any]]:
    """Return all measurements of a record: its curves, then the final values and costs that are in no curve."""
    points = []
    ended = milliseconds(record.finished)
    for name, curve in record.curves.items():
        for metric in curve:
            points.append(
                (name, metric.value, metric.step, milliseconds(metric.time) if metric.time else ended)
            )
    held = {(name, value) for name, value, *_ in points}
    costs = {"seconds": record.seconds, "tokens": record.tokens, "steps": record.steps}
    costs["trainable_parameters"] = record.trainable_parameters
    if record.peak_memory_gib is not None:
        costs["peak_memory_gib"] = record.peak_memory_gib
    points += [(n, float(v), record.steps, ended) for n, v in record.values.items() if (n, v) not in held]
    points += [(name, float(value), 0, ended) for name, value in costs.items() if name not in record.values]
    return [
        {"op": "metric", "trial": record.trial, "name": name, "value": float(value), "step": step, "at": at}
        for name, value, step, at in points
        if math.isfinite(value)
    ]


def milliseconds(rfc3339: str = "") -> int:
    """Return a record's time in ms since 1970; the current time, if it is empty or invalid."""
    try:
        return int(datetime.fromisoformat(rfc3339).timestamp() * 1000)
    except ValueError:
        return int(time.time() * 1000)
