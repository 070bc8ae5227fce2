"""The outcome of a study, gathered from its records: what `retune run` prints at its end."""

from __future__ import annotations

from pydantic import BaseModel, Field

from retune.errors import RetuneError
from retune.records import GateRecord, TrialRecord
from retune.selection.pareto import ParetoTrial, pareto_set
from retune.selection.record import Selection
from retune.study import Study
from retune.workspace.search_folder import GATE, PAGE, SearchFolder


class Outcome(BaseModel):
    """The end of a study.

    Attributes:
        folder: URI of the search with its records. report: URI of the HTML report.
        model: the registered model. tracking: MLflow's URI. stopped_by: ``trials``, ``failures`` or ``hours``.
        trials, failed: trials of the search, and how many of them failed. hours: spent on the search.
        adapter: URI of the chosen adapter, PEFT's own files; None if no trial completed.
        selection: the chosen trial and why. gate: whether it became champion and why.
        pareto: the Pareto set of a study with several objectives.
    """

    study: str
    folder: str
    report: str
    model: str
    tracking: str
    stopped_by: str
    trials: int
    failed: int
    hours: float
    adapter: str | None = None
    selection: Selection
    gate: GateRecord
    pareto: list[ParetoTrial] = Field(default_factory=list)

    def records(self) -> list[TrialRecord]:
        """Return the records of all trials, base, default and repeats among them, in the order of their numbers."""
        trials = SearchFolder(self.folder).trials.values()
        return sorted(trials, key=lambda record: (record.number, record.trial))


def read(study: Study) -> Outcome:
    """Return the outcome of a finished study.

    Raises:
        RetuneError: if it is not finished.
    """
    folder = SearchFolder.of(study, at_once=True)
    if folder is None or not folder.has(GATE):
        raise RetuneError(f"study {study.name!r} is not finished; run it to the end first")
    search = folder.search
    return Outcome(
        study=study.name,
        folder=folder.uri,
        report=folder.path(PAGE),
        model=study.promote.model,
        tracking=study.tracking.uri,
        stopped_by=search.stopped_by,
        trials=search.trials,
        failed=search.failed,
        hours=search.hours,
        adapter=folder.trials[chosen].adapter_uri if (chosen := folder.selection.chosen) else None,
        selection=folder.selection,
        gate=folder.gate,
        pareto=pareto_set(list(folder.trials.values()), study.search),
    )
