"""Progress of a running study: a small JSON file that the steps write and that `retune run` and `retune watch` read."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from pydantic import BaseModel, Field

from retune.events import Event
from retune.records import TrialRecord, now
from retune.study import Objective
from retune.workspace.pace import Pace

WRITE_EVERY_SECONDS = 0.5
DONE = "done"  # the step that a study is in after its last one
_FOUND = {"failed", "best", "best_trial", "base", "search_seconds"}


class Progress(BaseModel):
    """The progress of a study. Times are in seconds; `left`, the estimated rest, is None until the first trial is done."""

    step: str = ""
    done: int = 0
    total: int = 0
    failed: int = 0
    stopped: int = Field(
        0, description="trials that were stopped early; they count as done unless they go on"
    )
    best: float | None = None
    best_trial: str | None = None
    base: float | None = None
    running: dict[str, float] = Field(default_factory=dict, description="trial or benchmark -> share done")
    settings: int = Field(
        0, description="of a search: settings to try; the base and repeats come on top of them"
    )
    settings_done: int = 0
    epochs: dict[str, float] = Field(default_factory=dict, description="running trial -> epochs done")
    losses: dict[str, float] = Field(
        default_factory=dict, description="running trial -> loss of its last step"
    )
    left: float | None = None
    search_seconds: float = 0.0
    updated: str = ""


def read(path: Path) -> Progress | None:
    """Return the progress in a file, or None if there is none yet."""
    try:
        return Progress.model_validate_json(path.read_text())
    except (OSError, ValueError):
        return None


def write(path: Path, progress: Progress) -> None:
    """Write the file atomically. Errors are ignored: without a progress file only the display is missing."""
    progress.updated = now()
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(progress.model_dump(), allow_nan=True))
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)


def begin(path: Path, step: str) -> Progress:
    """Write that a step began, and return it. What the search found so far stays in the file."""
    before = read(path) or Progress()
    progress = Progress(step=step, **before.model_dump(include=_FOUND))
    write(path, progress)
    return progress


class SearchProgress:
    """Turns the engine's events into a progress file.

    Args:
        path: the file.
        objective: by which the best trial is shown.
        total: number of all trials, base and repeats included.
        parallel: how many run at a time.
        done: records finished by earlier runs.
        seconds_before: search seconds spent by earlier runs.
        settings: how many of `total` are settings of the search.
        proxy: whether these train on a part of the data, so that the best of them are trained again.

    """

    def __init__(
        self,
        path: Path,
        objective: Objective,
        total: int,
        parallel: int,
        done: list[TrialRecord],
        seconds_before: float,
        settings: int = 0,
        proxy: bool = False,
    ) -> None:
        self._settings = ("proxy",) if proxy else ("default", "search")
        self.path, self.objective, self.parallel = path, objective, parallel
        self.progress = Progress(step="search", total=total, settings=settings, search_seconds=seconds_before)
        self._before = seconds_before
        self._started = self._written = time.monotonic()
        self._pace = Pace()
        self._stopped: set[str] = set()
        self._on_all_data = False
        for record in done:
            self._count(record)
        write(path, self.progress)

    @property
    def seconds(self) -> float:
        """Search seconds of this run and earlier ones."""
        return self._before + time.monotonic() - self._started

    def __call__(self, event: Event) -> None:
        """Handle an event of the engine."""
        if event.kind == "issued":
            self._resume(event.trial, event.role in self._settings)
            self.progress.running[event.trial] = 0.0
            self._pace.begin(event.trial)
        elif event.kind == "progress" and event.steps:
            self.progress.running[event.trial] = event.step / event.steps
            self.progress.epochs[event.trial] = round(event.epoch, 2)
            self.progress.losses[event.trial] = event.loss
            self._pace.reach(event.trial, event.step / event.steps)
        elif event.kind == "finished":
            for kept in (self.progress.running, self.progress.epochs, self.progress.losses):
                kept.pop(event.trial, None)
            self._pace.end(event.record)
            self._count(event.record)
        if event.kind == "finished" or time.monotonic() - self._written > WRITE_EVERY_SECONDS:
            self._written = time.monotonic()
            self.progress.search_seconds = self.seconds
            self.progress.left = self._left()
            write(self.path, self.progress)

    def _resume(self, trial: str, is_setting: bool) -> None:
        """Uncount a trial that was stopped early and now continues."""
        if trial in self._stopped:
            self._stopped.remove(trial)
            self.progress.done -= 1
            self.progress.settings_done -= is_setting
            self.progress.stopped = len(self._stopped)

    def _count(self, record: TrialRecord) -> None:
        progress = self.progress
        progress.done += 1
        progress.failed += record.status == "failed"
        progress.settings_done += record.role in self._settings
        if record.status == "early_stopped":
            self._stopped.add(record.trial)
            progress.stopped = len(self._stopped)
        value = record.objective(self.objective.metric)
        if value is None:
            return
        if record.role == "base":
            progress.base = value
        elif record.role != "repeat":
            # Losses after training on a part of the data do not compare with those on all of it, so from the first
            # trial on all data only these count.
            if record.role != "proxy" and not self._on_all_data:
                self._on_all_data = True
                progress.best = progress.best_trial = None
            if record.role == "proxy" and self._on_all_data:
                return
            sign = 1 if self.objective.goal == "minimize" else -1
            if progress.best is None or sign * value < sign * progress.best:
                progress.best, progress.best_trial = value, record.trial

    def _left(self) -> float | None:
        progress = self.progress
        return self._pace.left(progress.total - progress.done, progress.running, self.parallel)
