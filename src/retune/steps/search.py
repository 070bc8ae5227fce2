"""Step `search`: run the trials of a study and say what came out."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retune import engines, models, store
from retune.data import mixing
from retune.engines import SearchJob
from retune.events import Event
from retune.records import Record, digest, now, versions
from retune.study import Study
from retune.tracking import Tracker
from retune.workspace import folders, locks, progress
from retune.workspace.ledger import Ledger
from retune.workspace.stamps import Stamps

STOP_FILE = "stop"
"""While this file is in the work folder, a running search saves its trials and ends."""


class SearchRecord(Record):
    """What a search gave (`search.json`).

    Attributes:
        stopped_by: ``trials``, ``failures`` or ``hours``.
        best: name of the best trial, None if no trial completed. digest: over all settings and results.

    """

    study: str
    algorithm: str
    stopped_by: str
    trials: int
    completed: int
    failed: int
    best: str | None
    digest: str
    data_digest: str
    hours: float
    finished: str = ""


def inputs(study: Study, folder: str) -> dict[str, Any]:
    """Return what decides the outcome of this step."""
    budget = study.search.model_dump(mode="json", include={"trials", "repeats", "max_failed", "max_hours"})
    return {
        "folder": folder.rsplit("/", 1)[-1],
        **budget,
        "keep": study.artifacts.keep,
        "bottom": study.benchmark.bottom,
    }


def search(study: Study, data_uri: str) -> tuple[str, SearchRecord]:
    """Run what is missing of the search and return its folder and record.

    Raises:
        Interrupted: on SIGTERM, SIGINT or the stop file, after running trials saved a checkpoint.

    """
    mix = mixing.read_mix_record(data_uri)
    folder = folders.search_folder(study, mix.digest)
    stamps = Stamps(folder)
    if stamps.outputs("search", inputs(study, folder)) is not None:
        return folder, SearchRecord.model_validate_json(store.read(store.join(folder, "search.json")))
    work = folders.work_folder(study)
    with (
        locks.only_writer(work / "search.lock", wait_seconds=15),
        stamps.step("search", inputs(study, folder)) as outputs,
    ):
        store.write(store.join(folder, "study.json"), (study.model_dump_json(indent=2) + "\n").encode())
        record = _run(study, data_uri, folder, work, mix.digest)
        store.write(store.join(folder, "search.json"), record.to_json())
        outputs["digest"] = record.digest
    return folder, record


def _run(study: Study, data_uri: str, folder: str, work: Path, data_digest: str) -> SearchRecord:
    ledger = Ledger(folder)
    spent = work / "logs" / f"{folder.rsplit('/', 1)[-1]}.seconds"
    spent.parent.mkdir(parents=True, exist_ok=True)
    before = float(spent.read_text()) if spent.exists() else 0.0
    total = 1 + study.search.trials + 2 * study.search.repeats
    shown = progress.SearchProgress(
        work / "progress.json",
        study.search.objective,
        total,
        study.search.parallel,
        list(ledger.records.values()),
        before,
    )
    tracker = open_tracker(study, folder, data_digest)
    tracker.start_study(params=_params(study))
    for record in ledger.records.values():  # a killed run may have died between a record and its tracking
        tracker.start_trial(record.trial, record.number, record.role, record.assignment, record.seed)
        tracker.finish_trial(record)

    def observe(event: Event) -> None:
        shown(event)
        if event.kind == "finished":
            spent.write_text(f"{shown.seconds:.1f}\n")
        track(tracker, event)

    try:
        job = SearchJob(study, data_uri, folder, work, observe, _stop_asked(work), before / 3600)
        outcome = engines.start(job).run()
        spent.write_text(f"{shown.seconds:.1f}\n")
    finally:
        tracker.close()
    return _record(study, Ledger(folder), outcome.stopped_by, data_digest, shown.seconds / 3600)


def _record(study: Study, ledger: Ledger, stopped_by: str, data_digest: str, hours: float) -> SearchRecord:
    objective = study.search.objective
    ranked = ledger.ranking(study.search)
    searched = [record for record in ledger.records.values() if record.role in ("default", "search")]
    content = [
        (r.trial, r.assignment, r.status, r.objective(objective.metric), r.adapter_digest)
        for _, r in sorted(ledger.records.items())
    ]
    return SearchRecord(
        study=study.name,
        algorithm=study.search.algorithm,
        stopped_by=stopped_by,
        trials=len(searched),
        completed=len(ranked),
        failed=sum(record.status == "failed" for record in searched),
        best=ranked[0].trial if ranked else None,
        digest=digest(content),
        data_digest=data_digest,
        hours=hours,
        finished=now(),
    )


def track(tracker: Tracker, event: Event) -> None:
    """Pass an engine's event on to MLflow."""
    if event.kind == "issued":
        tracker.start_trial(event.trial, event.number, event.role, event.assignment, event.seed)
    elif event.kind == "metric":
        tracker.metric(event.trial, event.name, event.value, event.step)
    elif event.kind == "finished":
        tracker.finish_trial(event.record)  # without its adapter: only a registered one is copied to MLflow


def open_tracker(study: Study, folder: str, data_digest: str) -> Tracker:
    """Return the tracker of a search; every step of the search writes to the same outbox and parent run."""
    name = folder.rsplit("/", 1)[-1]
    tags = {**_tags(study, data_digest), "search_digest": name}
    return Tracker(study.tracking.uri, study.name, folders.work_folder(study) / "tracking" / name, tags)


def _tags(study: Study, data_digest: str) -> dict[str, str]:
    """Return the tags of the study's parent run (DESIGN §3.6)."""
    found = {
        "algorithm": study.search.algorithm,
        "seed": str(study.seed),
        "data_digest": data_digest,
        "base": study.model.base,
        "base_revision": study.model.revision or models.base_digest(models.locate(study.model)),
        **{
            f"version.{name}": version
            for name, version in versions("torch", "peft", "transformers", "PyNomadBBO").items()
        },
    }
    commit = study.code or _commit()
    return found | ({"git_commit": commit} if commit else {})


def _commit() -> str:
    """Return the commit of the folder we stand in; empty where there is none, or no git, as in the images."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _params(study: Study) -> dict[str, str]:
    return {
        "algorithm": study.search.algorithm,
        "trials": str(study.search.trials),
        "parallel": str(study.search.parallel),
        **{f"search.{name}": str(value) for name, value in study.search.settings.items()},
        **{
            f"space.{p.name}": json.dumps(p.model_dump(exclude_none=True, exclude={"name"}))
            for p in study.search.space.parameters
        },
    }


def _stop_asked(work: Path) -> Callable[[], bool]:
    """Return a function that says whether a signal or the stop file asks to stop."""
    asked = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: asked.set())
        signal.signal(signal.SIGINT, lambda *_: asked.set())
    file = work / STOP_FILE
    return lambda: asked.is_set() or file.exists()
