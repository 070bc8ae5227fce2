"""What a study came to, gathered from its records: what `retune run` prints at its end."""

from __future__ import annotations

from pydantic import BaseModel, Field

from retune import store
from retune.errors import RetuneError
from retune.records import GateRecord
from retune.selection.choice import Selection
from retune.selection.pareto import ParetoTrial, pareto_set
from retune.steps import benchmark, plan
from retune.steps.promote import read_gate
from retune.steps.report import PAGE
from retune.steps.select import read_selection
from retune.study import Study
from retune.workspace.ledger import Ledger


class Outcome(BaseModel):
    """The end of a study.

    Attributes:
        folder: where its records are. report: the page to open. version: of the registered model.
        left: tracking operations that MLflow has not got yet.
        pareto: of a study with several objectives, the trials that none beats in all of them.

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
    selection: Selection
    gate: GateRecord
    pareto: list[ParetoTrial] = Field(default_factory=list)


def read(study: Study) -> Outcome:
    """Return the outcome of a finished study.

    Raises:
        RetuneError: if it is not finished.

    """
    folder = plan.search_of(study)
    if folder is None or not store.exists(store.join(folder, "gate.json")):
        raise RetuneError(f"study {study.name!r} is not finished; run it to the end first")
    search = benchmark.read_search(folder)
    return Outcome(
        study=study.name,
        folder=folder,
        report=store.join(folder, PAGE),
        model=study.promote.model,
        tracking=study.tracking.uri,
        stopped_by=search.stopped_by,
        trials=search.trials,
        failed=search.failed,
        hours=search.hours,
        selection=read_selection(folder),
        gate=read_gate(folder),
        pareto=pareto_set(list(Ledger(folder).records.values()), study.search),
    )
