"""Step `search`: run the trials of a study and record the result."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retune import engines, models, store
from retune.data import mixing
from retune.engines import SearchJob, spread
from retune.events import Event
from retune.records import digest, now, versions
from retune.study import Study
from retune.tracking import Boards, Tracker, open_boards
from retune.workspace import folders, locks, progress
from retune.workspace.ledger import Ledger
from retune.workspace.search_folder import SEARCH, SearchFolder, SearchRecord

STOP_FILE = "stop"
"""A running search saves its trials and stops while a file of this name is in the work folder."""


def inputs(study: Study, folder: SearchFolder) -> dict[str, Any]:
    """Return what determines the result of this step; the step is repeated when it changes."""
    budget = study.search.model_dump(
        mode="json", include={"trials", "repeats", "finalists", "max_failed", "max_hours"}
    )
    return {
        "folder": folder.name,
        **budget,
        "keep": study.artifacts.keep,
        "bottom": study.benchmark.bottom,
    }


def search(study: Study, data_uri: str, should_stop: Callable[[], bool] = lambda: False) -> SearchFolder:
    """Run the missing trials of the search and return its folder.

    Args:
        study: the resolved study. data_uri: its mixed data.
        should_stop: called several times a second; the stop file is looked for as often.

    Raises:
        Interrupted: after `should_stop` or the stop file, when the running trials have saved a checkpoint.
    """
    mix = mixing.read_mix_record(data_uri)
    folder = SearchFolder(folders.search_folder(study, mix.digest))
    study = spread.settled(study, _parallel_before(folder))
    if folder.done("search", inputs(study, folder)) is not None:
        return folder
    folder = SearchFolder(folder.uri)  # without the records that were read to see whether all are there
    work = folders.work_folder(study)
    with (
        locks.only_writer(work / "search.lock", wait_seconds=15),
        folder.stamps.step("search", inputs(study, folder)) as outputs,
    ):
        store.write(folder.path("study.json"), (study.model_dump_json(indent=2) + "\n").encode())
        record = _run(study, data_uri, folder, work, mix.digest, should_stop)
        folder.write(SEARCH, record)
        outputs["digest"] = record.digest
        outputs["records"] = len(folder.trials)
    return folder


def _parallel_before(folder: SearchFolder) -> int | None:
    """Return the number of parallel trials that the search was started with; None if it is new."""
    uri = folder.path("study.json")
    before = json.loads(store.read(uri))["search"]["parallel"] if store.exists(uri) else None
    return before if isinstance(before, int) else None


def _run(
    study: Study,
    data_uri: str,
    folder: SearchFolder,
    work: Path,
    data_digest: str,
    should_stop: Callable[[], bool],
) -> SearchRecord:
    seconds_file = work / "logs" / f"{folder.name}.seconds"
    before = _seconds_before(seconds_file)
    finished = list(Ledger(folder.uri).records.values())
    display = progress.SearchProgress(
        work / "progress.json",
        study.search.objective,
        study.search.planned_trials,
        study.search.at_once,
        finished,
        before,
        study.search.trials,
        study.search.proxy is not None,
    )
    tracker = open_tracker(study, folder, data_digest)
    boards = open_boards(study.tracking, study.name, folder.name, work)
    tracker.start_study(params=_params(study))
    for record in finished:  # an earlier run may have been killed between writing a record and tracking it
        for observer in (tracker, boards):
            if record.status != "early_stopped":  # such a trial is started again only if it is continued
                observer.start_trial(record.trial, record.number, record.role, record.assignment, record.seed)
            observer.finish_trial(record)

    def observe(event: Event) -> None:
        display(event)
        if event.kind == "finished":
            store.write(seconds_file, f"{display.seconds:.1f}\n".encode())
        track(tracker, event)
        track(boards, event)

    def stop() -> bool:
        return should_stop() or (work / STOP_FILE).exists()

    try:
        job = SearchJob(study, data_uri, folder.uri, work, observe, stop, before / 3600)
        outcome = engines.start(job).run()
        store.write(seconds_file, f"{display.seconds:.1f}\n".encode())
    finally:
        tracker.close()
        boards.close()
    return _record(study, folder.ledger, outcome.stopped_by, data_digest, display.seconds / 3600)


def _seconds_before(file: Path) -> float:
    """Return the seconds that earlier runs of a search took; 0 if that is not known."""
    try:
        return float(file.read_text())
    except (FileNotFoundError, ValueError):  # an older release left it empty where the disk was full
        return 0.0


def _record(study: Study, ledger: Ledger, stopped_by: str, data_digest: str, hours: float) -> SearchRecord:
    objective = study.search.objective
    ranked = ledger.ranking(study.search)
    searched = ledger.searched()
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
        stopped=sum(record.status == "early_stopped" for record in searched),
        best=ranked[0].trial if ranked else None,
        digest=digest(content),
        data_digest=data_digest,
        hours=hours,
        finished=now(),
    )


def track(tracker: Tracker | Boards, event: Event) -> None:
    """Pass an engine's event on to MLflow, or to another board."""
    if event.kind == "issued":
        tracker.start_trial(event.trial, event.number, event.role, event.assignment, event.seed)
    elif event.kind == "metric":
        tracker.metric(event.trial, event.name, event.value, event.step)
    elif event.kind == "finished":
        tracker.finish_trial(event.record)  # without the adapter: only a registered one is copied to MLflow


def open_tracker(study: Study, folder: SearchFolder, data_digest: str | None = None) -> Tracker:
    """Return the tracker of a search; every step of the search writes to the same outbox and parent run.

    Args:
        study, folder: the search. data_digest: of its data; by default that of the finished search.
    """
    tags = {**_tags(study, data_digest or folder.search.data_digest), "search_digest": folder.name}
    return Tracker(
        study.tracking.uri, study.name, folders.work_folder(study) / "tracking" / folder.name, tags
    )


def _tags(study: Study, data_digest: str) -> dict[str, str]:
    """Return the tags of the study's parent run."""
    tags = {
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
    return tags | ({"git_commit": commit} if commit else {})


def _commit() -> str:
    """Return the git commit of the current folder; empty without a repository, or without git, as in the images."""
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def _params(study: Study) -> dict[str, str]:
    return {
        "algorithm": study.search.algorithm,
        "trials": str(study.search.trials),
        "parallel": str(study.search.at_once),
        **{f"search.{name}": str(value) for name, value in study.search.settings.items()},
        **{
            f"space.{p.name}": json.dumps(p.model_dump(exclude_none=True, exclude={"name"}))
            for p in study.search.space.parameters
        },
    }
