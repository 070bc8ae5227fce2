"""An engine: every trial in this very process, one after another, as a debugger likes it."""

from __future__ import annotations

from retune import search
from retune.engines import SearchJob
from retune.errors import Interrupted
from retune.events import Finished, Issued
from retune.training.resident import ResidentBase
from retune.trials.run_trial import run_trial
from retune.trials.task import TrialTask
from retune.workspace.ledger import Ledger, Outcome, trial_name


class InlineEngine:
    """Runs one search; see `retune.engines.Engine` for what that promises.

    Args:
        job: study, folders, whom to tell, and when to stop.
    """

    def __init__(self, job: SearchJob) -> None:
        self.job, self.study = job, job.study
        self.ledger = Ledger(job.folder)
        self.base = ResidentBase(job.study.model)

    def run(self) -> Outcome:
        """Run what is missing and return every record of the search."""
        wanted, seed = self.study.search, self.study.seed
        self._train(self.ledger.issue(0, "base", {}, seed))
        self._train(self.ledger.issue(1, "default", wanted.space.default() or {}, seed))
        for number in range(2, wanted.trials + 1):
            task = self.ledger.tasks.get(trial_name(number)) or self.ledger.issue(
                number, "search", self._next(), seed
            )
            self._train(task)
        for task in self.ledger.issue_repeats(self.study):
            self._train(task)
        return self.ledger.outcome(self.study, "trials")

    def _next(self) -> dict:
        wanted = self.study.search
        history = self.ledger.observations()
        objective = search.Objective.of(wanted)
        return search.suggest(
            wanted.algorithm, wanted.space, objective, wanted.settings, history, 1, self.study.seed
        )[0]

    def _train(self, task: TrialTask) -> None:
        if task.trial in self.ledger.records:
            return
        if self.job.should_stop():
            raise Interrupted(f"stopped before {task.trial}; run again to carry on")
        self.job.observe(Issued(task.trial, task.number, task.role, task.assignment, task.seed))
        record = run_trial(
            self.study, self.job.data_uri, task, self.base, self.job.observe, self.job.should_stop
        )
        self.ledger.finish(record)
        self.job.observe(Finished(record.trial, record))
