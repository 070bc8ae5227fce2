"""Applies the operations of the outbox to MLflow.

Operations are idempotent. So it is safe to send one again after a crash between sending it and saving the position.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from retune.tracking import runs
from retune.tracking.outbox import Operation, Outbox, Position

Point = tuple[str, float, int, int]  # metric, value, time in ms, step
_STATUS = {
    "completed": "FINISHED",
    "early_stopped": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
_RECORD_TAGS = (
    "reason",
    "failure",
    "seed",
    "data_digest",
    "settings_digest",
    "base",
    "base_revision",
    "adapter_uri",
    "adapter_digest",
    "device",
)


class StudyOnServer:
    """One study in MLflow.

    Args:
        outbox: where the ids of the runs are kept.
        uri: MLflow tracking URI.
        study: name of the experiment.
        key: identifies the parent run.
        adopt: id of an existing run to use as the parent.

    """

    def __init__(self, outbox: Outbox, uri: str, study: str, key: str, adopt: str | None) -> None:
        self.outbox = outbox
        self.uri = uri
        self.study = study
        self.key = key
        self.adopt = adopt
        self.position = Position()
        self._connected: Any = None
        self._known: dict[str, dict[str, set[tuple[int, float]]]] = {}
        self._maybe_duplicated: set[str] = set()

    @property
    def client(self) -> Any:
        """The MLflow client, made on first use."""
        if self._connected is None:
            self._connected = runs.connect(self.uri)
        return self._connected

    def ping(self) -> None:
        """Make a read-only request to see whether the server works.

        Raises:
            Exception: if it does not.

        """
        self.client.search_experiments(max_results=1)

    def is_deleted(self) -> bool:
        """Return whether the parent run was deleted on the server."""
        parent = self.position.parent
        return parent is not None and not runs.is_active(self.client, parent)

    def reset(self) -> None:
        """Forget the position and all run ids, so that every operation is applied again."""
        self.position = Position()
        self._known = {}
        self.outbox.save(self.position)

    def apply(self, operations: list[Operation]) -> None:
        """Apply metrics of any trials, or one operation of another kind.

        Raises:
            FileNotFoundError: if an artifact is gone, or the operation is none that this retune knows.

        """
        first = operations[0]
        kind = first.get("op")
        if kind == "metric":
            self._metrics(operations)
        elif kind == "study":
            self._study(first)
        elif kind == "start":
            self._start(first)
        elif kind == "finish":
            self._finish(first)
        elif kind == "bench":
            self._bench(first)
        elif kind == "artifact":
            self._upload(self._parent(first["at"]), Path(first["path"]), first["name"])
        elif kind == "finish_study":
            self._finish_study(first)
        else:
            raise FileNotFoundError(f"no such operation: {kind}")

    def _experiment(self) -> str:
        if self.position.experiment is None:
            if self._adopted():
                experiment = self.client.get_run(self.adopt).info.experiment_id
            else:
                experiment = runs.ensure_experiment(self.client, self.uri, self.study)
            self.position.experiment = str(experiment)
        return self.position.experiment

    def _adopted(self) -> bool:
        return self.adopt is not None and runs.is_active(self.client, self.adopt)

    def _parent(self, at: int) -> str:
        if self.position.parent is None:
            experiment = self._experiment()
            if self.adopt is not None and self._adopted():
                parent = self.adopt
                self.client.set_tag(parent, runs.KEY, self.key)
            else:
                parent, _ = runs.ensure_run(self.client, experiment, {"key": self.key}, self.study, {}, at)
            self.position.parent = parent
            self.outbox.save(self.position)
        return self.position.parent

    def _trial(self, trial: str, at: int) -> str:
        run_id = self.position.runs.get(trial)
        if run_id is None:
            match = {"trial": trial, "parent": self._parent(at)}
            tags = {"trial.name": trial}
            try:
                run_id, existing = runs.ensure_run(self.client, self._experiment(), match, trial, tags, at)
            except Exception:
                self._maybe_duplicated.add(trial)  # the server may still create the run after our time-out
                raise
            if existing:
                self._known[run_id] = {}
            self.position.runs[trial] = run_id
            self.outbox.save(self.position)
        return run_id

    def _study(self, operation: Operation) -> None:
        parent = self._parent(operation["at"])
        self.client.update_run(parent, status="RUNNING")
        runs.log(self.client, parent, params=operation["params"], tags=operation["tags"])

    def _finish_study(self, operation: Operation) -> None:
        parent = self._parent(operation["at"])
        runs.delete_duplicates(self.client, self._experiment(), parent, self.position.runs)
        self.client.set_terminated(parent, status=operation["status"], end_time=operation["at"])

    def _start(self, operation: Operation) -> None:
        run_id = self._trial(operation["trial"], operation["at"])
        tags = {"role": operation["role"], "trial.number": operation["number"], "seed": operation["seed"]}
        runs.log(self.client, run_id, params=operation["assignment"], tags=tags)
        self.client.update_run(run_id, status="RUNNING")

    def _metrics(self, operations: list[Operation]) -> None:
        by_trial: dict[str, list[Point]] = defaultdict(list)
        for op in operations:
            by_trial[op["trial"]].append(_point(op))
        for trial, points in by_trial.items():
            run_id = self._trial(trial, points[0][2])
            runs.log(self.client, run_id, metrics=self._new_points(run_id, points))

    def _new_points(self, run_id: str, points: list[Point]) -> list[Point]:
        """Return the points that a run found on the server does not have yet.

        MLflow identifies points by their time as well. After the loss of a spool the times differ, and points would be doubled.
        """
        known = self._known.get(run_id)
        if known is None:
            return points
        for name in {name for name, *_ in points} - known.keys():
            history = self.client.get_metric_history(run_id, name)
            known[name] = {(point.step, point.value) for point in history}
        return [point for point in points if (point[3], point[1]) not in known[point[0]]]

    def _finish(self, operation: Operation) -> None:
        record, at = operation["record"], operation["at"]
        run_id = self._trial(record["trial"], at)
        tags = {name: record[name] for name in _RECORD_TAGS if record.get(name) not in (None, "")}
        tags |= {"retune.status": record["status"], "trial.number": record["number"], "role": record["role"]}
        points = self._new_points(run_id, [_point(point) for point in operation["points"]])
        runs.log(self.client, run_id, points, record["assignment"], tags)
        self.client.log_dict(run_id, record, "trial.json")
        self._delete_duplicates(record["trial"], at)
        self.client.set_terminated(run_id, status=_STATUS[record["status"]], end_time=at)
        if operation["adapter"]:  # last: if the folder is missing, the rest is complete
            self._upload(run_id, Path(operation["adapter"]), "adapter")

    def _delete_duplicates(self, trial: str, at: int) -> None:
        if trial in self._maybe_duplicated:
            known = self.position.runs
            runs.delete_duplicates(self.client, self._experiment(), self._parent(at), known, trial)

    def _bench(self, operation: Operation) -> None:
        at, name = operation["at"], f"bench/{operation['task']}"
        run_id = self._trial(operation["trial"], at)
        points = [(name, operation["score"], at, 0), (f"{name}_stderr", operation["stderr"], at, 0)]
        tags = {f"bench.{operation['task']}": json.dumps(operation["protocol"])}
        runs.log(self.client, run_id, self._new_points(run_id, points), tags=tags)

    def _upload(self, run_id: str, path: Path, name: str) -> None:
        if not path.exists():
            raise FileNotFoundError(f"{path} was gone before it could be sent")
        folder, _, last = name.rpartition("/")
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), name)
        elif last == path.name:
            self.client.log_artifact(run_id, str(path), folder or None)
        else:
            with tempfile.TemporaryDirectory() as temporary:  # MLflow names an artifact as the local file
                renamed = os.path.join(temporary, last)
                os.symlink(path.resolve(), renamed)
                self.client.log_artifact(run_id, renamed, folder or None)


def _point(operation: Operation) -> Point:
    return operation["name"], float(operation["value"]), int(operation["at"]), int(operation["step"])
