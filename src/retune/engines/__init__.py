"""Engines run the trials of a search: in local worker processes, by Katib on a cluster, or by an installed package."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from retune import cores, extensions
from retune.events import Event
from retune.study import Study
from retune.workspace.ledger import Outcome


@dataclass(frozen=True)
class SearchJob:
    """A search for an engine to run.

    Attributes:
        study: the resolved study; its JSON is in the search's folder as `study.json`.
        data_uri: folder of the mixed data.
        folder: URI of the search's folder, which holds the trials.
        work: local folder for logs.
        observe: called with `Issued` and `Finished` of every trial, the events of running trials, and `Polled`.
        should_stop: called several times a second; once it returns True, the engine ends with
            `retune.errors.Interrupted`.
        hours_used: hours spent by earlier runs of this search.

    """

    study: Study
    data_uri: str
    folder: str
    work: Path
    observe: Callable[[Event], None]
    should_stop: Callable[[], bool]
    hours_used: float = 0.0


class Engine(Protocol):
    """Runs the trials of one search and keeps them in a `retune.workspace.ledger.Ledger` of the search's folder.

    Trials in the ledger are not run again, so an engine that was killed at any moment resumes when it is started again.
    `retune.testing.EngineContract` has the full contract as tests.
    """

    def run(self) -> Outcome:
        """Run what is missing and return every record of the search.

        Raises:
            Interrupted: if the job's `should_stop` returned True.
            RetuneError: if the search cannot continue; finished trials are kept.
        """


def start(job: SearchJob) -> Engine:
    """Return the engine that the study names, ready to `run`.

    Raises:
        InputError: if the study cannot run on it, or its package cannot be imported.
    """
    kind, study = job.study.engine.kind, job.study
    if kind == "local":
        from retune.engines.local import LocalEngine
        from retune.engines.spread import spread

        threads = study.engine.threads or _default_threads(spread(study).workers)
        return LocalEngine(
            study,
            job.data_uri,
            job.folder,
            job.work / "logs",
            threads,
            job.observe,
            job.should_stop,
            job.hours_used,
        )
    if kind == "katib":  # without the hours used, which it knows from its Experiments
        from retune.engines.katib.engine import KatibEngine

        return KatibEngine(study, job.data_uri, job.folder, job.observe, job.should_stop)
    engine: Engine = extensions.load("engines", kind)(job)
    return engine


def _default_threads(workers: int) -> int:
    """Return the CPU threads of each worker: OMP_NUM_THREADS if it is a number, as for any program with torch, else its share."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(asked) if asked.isdecimal() else cores.available() // workers)
