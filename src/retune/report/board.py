"""All studies of an artifacts folder: a page that lists them, the live page of each, and Prometheus metrics.

Everything is read from the folder, so one server beside MLflow shows the studies of any number of pods and laptops.
"""

from __future__ import annotations

import html
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from retune import store
from retune.errors import RetuneError
from retune.records import GateRecord, TrialRecord, parse
from retune.report.folder import newest_search, study_in
from retune.report.watch import Watched, events
from retune.web import HTML, Page, Server

if TYPE_CHECKING:
    from prometheus_client.core import Metric

LOOK_SECONDS = 15.0
PAGE_SECONDS = 3.0
_STUDY = re.compile(r"^([a-z0-9][-a-z0-9]*)/(search-[0-9a-f]+)/study\.json$")
_RECORDS = re.compile(r"^((gate|search)\.json|trials/[^/]+/(assignment|trial)\.json)$")
STATES = ("completed", "failed", "early_stopped", "interrupted", "running")
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b1f24;background:#fff}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .8rem .35rem 0;border-bottom:1px solid #8884}"
    "td.n,th.n{text-align:right}.wide{overflow-x:auto}"
    "@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#16181c}a{color:#8ab4f8}}"
)


@dataclass
class StudyStatus:
    """The status of a study's newest search.

    Attributes:
        study, metric: their names. trials: how many are in each of `STATES`; one without a result counts as running.
        queued: settings, base and repeats that have not started; 0 when the search has ended.
        best, base: values of the metric. seconds: of all finished trials. gpu_bytes: the largest peak of a trial.
        decision: the gate's.
    """

    study: str
    metric: str = ""
    trials: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    queued: int = 0
    best: float | None = None
    base: float | None = None
    seconds: float = 0.0
    gpu_bytes: float | None = None
    decision: str | None = None


class Board:
    """The studies in an artifacts folder, read again at most every `every` seconds.

    Args:
        root: path or URI of the folder, `artifacts.uri` of the studies.
    """

    def __init__(self, root: str, every: float = LOOK_SECONDS) -> None:
        self.root, self.every = root.rstrip("/"), every
        self._lock = threading.Lock()
        self._looked = -every
        self._statuses: list[StudyStatus] = []
        self._watched: dict[str, Watched] = {}
        self.problem: str | None = None

    def statuses(self) -> list[StudyStatus]:
        """Return all studies by name; if the folder cannot be read now, the last known ones, with the reason in `problem`."""
        with self._lock:
            if time.monotonic() - self._looked >= self.every:
                try:
                    self._statuses = self._look()
                    self.problem = None
                except (RetuneError, OSError) as error:
                    self.problem = str(error)
                self._looked = time.monotonic()
            return self._statuses

    def watched(self, name: str) -> Watched | None:
        """Return the state of a study for its page; None if there is no such study."""
        if name not in {status.study for status in self.statuses()}:
            return None
        with self._lock:
            return self._watched.setdefault(name, Watched(store.join(self.root, name)))

    def _look(self) -> list[StudyStatus]:
        names = {found[1] for name in store.listing(self.root) if (found := _STUDY.match(name))}
        return [_status(name, store.join(self.root, name)) for name in sorted(names)]


def _status(name: str, folder: str) -> StudyStatus:
    found = StudyStatus(name)
    # It has just begun, or a record is damaged, which its own page reports
    with suppress(RetuneError, OSError):
        _fill(found, newest_search(folder))
    return found


def _fill(found: StudyStatus, search: str) -> None:
    study = study_in(search)
    files = store.contents(search, lambda path: bool(_RECORDS.match(path)))
    found.metric = study.search.objective.metric
    better = min if study.search.objective.goal == "minimize" else max
    issued = {path.split("/")[1] for path in files if path.endswith("/assignment.json")}
    done = set()
    # Separately of trials on all data and of proxy trials: their losses are not comparable
    best: dict[bool, float] = {}
    for path, content in files.items():
        if not path.endswith("/trial.json"):
            continue
        record = parse(TrialRecord, content, store.join(search, path))
        done.add(record.trial)
        found.trials[record.status] += 1
        found.seconds += record.seconds
        if (peak := record.values.get("peak_gpu_gib")) is not None:
            found.gpu_bytes = max(found.gpu_bytes or 0.0, peak * 2**30)
        value = record.objective(found.metric)
        if record.role == "base":
            found.base = value
        elif value is not None and record.role != "repeat":
            whole = record.role != "proxy"
            best[whole] = better(best.get(whole, value), value)
    found.best = best.get(True, best.get(False))
    if "search.json" not in files:
        found.trials["running"] = len(issued - done)
        found.queued = max(0, study.search.planned_trials - len(issued | done))
    if "gate.json" in files:
        found.decision = parse(GateRecord, files["gate.json"], store.join(search, "gate.json")).decision


class Collector:
    """The board's numbers for `prometheus_client`."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, with a sample for each study."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        statuses = self._board.statuses()
        up = GaugeMetricFamily("retune_up", "Whether the artifacts folder could be read")
        up.add_metric([], float(self._board.problem is None))
        yield up
        trials = GaugeMetricFamily(
            "retune_trials", "Trials by state; running: begun, without a result", labels=["study", "state"]
        )
        for status in statuses:
            for state, count in status.trials.items():
                trials.add_metric([status.study, state], count)
        yield trials
        gauges: list[tuple[str, str, str]] = [
            ("retune_trials_queued", "Trials of a search that were not begun", "queued"),
            ("retune_best_value", "Best value of the objective", "best"),
            ("retune_base_value", "Value of the objective of the untuned base", "base"),
            ("retune_peak_gpu_memory_bytes", "Largest GPU memory peak of a trial", "gpu_bytes"),
        ]
        for name, text, attribute in gauges:
            metric = GaugeMetricFamily(name, text, labels=["study", "metric"])
            for status in statuses:
                value = getattr(status, attribute)
                if value is not None:
                    metric.add_metric([status.study, status.metric], value)
            yield metric
        seconds = CounterMetricFamily(
            "retune_trial_seconds", "Seconds of all finished trials", labels=["study"]
        )
        for status in statuses:
            seconds.add_metric([status.study], status.seconds)
        yield seconds
        gate = GaugeMetricFamily(
            "retune_gate", "1 for the gate's decision on a study", labels=["study", "decision"]
        )
        for status in statuses:
            if status.decision:
                gate.add_metric([status.study, status.decision], 1)
        yield gate


def serve(root: str, host: str, port: int, every: float = LOOK_SECONDS) -> Server:
    """Return a server of all studies in an artifacts folder, not yet running; port 0 takes a free one.

    Paths: ``/`` the list, ``/study/<name>/`` the live page, ``/metrics`` for Prometheus, ``/healthz``.
    """
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    board = Board(root, every)
    registry = CollectorRegistry()
    registry.register(Collector(board))
    page = resources.files("retune.report").joinpath("watch.html").read_bytes()

    class Handler(Page):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/":
                self.send(HTML, _page(board.statuses(), board.problem).encode())
            elif path == "/healthz":  # does not check the storage: restarting this pod would not repair it
                self.send("text/plain", b"ok")
            elif path == "/metrics":
                self.send(CONTENT_TYPE_LATEST, generate_latest(registry))
            else:
                self._study(*path.split("/")[1:])

        def _study(self, kind: str = "", name: str = "", part: str | None = None, *more: str) -> None:
            watched = board.watched(unquote(name)) if kind == "study" and not more else None
            if watched is None or part not in (None, "", "state", "events"):
                self.send_error(404)
            elif part is None:  # the page's own addresses are relative to the folder
                self.send_response(308)
                self.send_header("Location", f"/study/{name}/")
                self.end_headers()
            elif part == "":
                self.send(HTML, page)
            elif part == "state":
                self.send("application/json", json.dumps(watched.state()).encode())
            else:
                self.send("text/event-stream", events(watched, PAGE_SECONDS))

    return Server((host, port), Handler)


def _page(statuses: list[StudyStatus], problem: str | None) -> str:
    heads = ("study", "objective", "base", "best", "done", "failed", "running", "to come", "gate")
    rows = []
    for one in statuses:
        cells = [
            one.metric.replace("_", " "), _number(one.base), _number(one.best), str(one.trials["completed"]),
            str(one.trials["failed"]), str(one.trials["running"]), str(one.queued), one.decision or "",
        ]  # fmt: skip
        link = f'<a href="study/{quote(one.study)}/">{html.escape(one.study)}</a>'
        rows.append(
            f"<tr><td>{link}</td>"
            + "".join(f"<td class=n>{html.escape(cell)}</td>" for cell in cells)
            + "</tr>"
        )
    warning = f"<p>The artifacts cannot be read now: {html.escape(problem)}</p>" if problem else ""
    none = "" if statuses or problem else "<p>There is no study here yet.</p>"
    head = "<th>" + heads[0] + "</th>" + "".join(f"<th class=n>{name}</th>" for name in heads[1:])
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        '<meta http-equiv="refresh" content="30"><title>retune: studies</title>'
        f"<style>{_STYLE}</style><h1>Studies</h1>{warning}{none}<div class=wide><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></html>"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
