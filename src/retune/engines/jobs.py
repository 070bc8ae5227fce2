"""The jobs of a search in the order of their decisions, and the results that each decision is based on.

A job trains one trial up to a rung or to its end. Without `search.stopping`, job i is trial i, trained to its end. Job i is
decided once jobs 1 … i - parallel are done, from their results alone, even if more are known. So a search that is killed
and restarted makes the same decisions, and finds the finished jobs in the ledger. If no job can be decided in this way,
all jobs are awaited, and the next one is decided from all results.
"""

from __future__ import annotations

from typing import Literal

from retune.records import Role, TrialRecord
from retune.search import Observation
from retune.search.stopping import DEFAULT, WHOLE, Job, Result, next_job, rungs_of
from retune.study import Search
from retune.workspace.ledger import Ledger, trial_name


class Jobs:
    """The jobs of one search.

    Args:
        search: its rules. ledger: its trials.

    """

    def __init__(self, search: Search, ledger: Ledger) -> None:
        self._search, self._ledger = search, ledger
        self._needed = search.finalists if search.proxy is None else 1 + search.proxy.full  # complete trials
        self._jobs: list[Job] = []
        self._awaited = 0  # jobs that were all awaited, because none could be decided otherwise

    def next(self) -> Job | None:
        """Decide and return the next job; None if it depends on an unfinished one, or if there is none."""
        if not self._is_decidable():
            return None
        known, search, jobs = self._known(), self._search, self._jobs
        job = next_job(search.stopping, self.results(jobs[:known]), jobs[known:], search.trials, self._needed)
        if job is None and known < len(jobs) and all(self._is_done(other) for other in jobs):
            self._awaited = len(jobs)
            return self.next()
        if job is not None:
            jobs.append(job)
        return job

    def _known(self) -> int:
        """Return the number of jobs whose results decide the next one."""
        return max(self._awaited, len(self._jobs) + 1 - self._search.at_once)

    def _record(self, trial: int) -> TrialRecord | None:
        return self._ledger.records.get(self.name(trial))

    def name(self, trial: int) -> str:
        """Return the name of search trial number `trial`."""
        return trial_name(trial, proxy=self._search.proxy is not None)

    def role(self, trial: int) -> Role:
        """Return the role of search trial number `trial`."""
        if self._search.proxy is not None:
            return "proxy"
        return "default" if trial == DEFAULT else "search"

    def _is_done(self, job: Job) -> bool:
        record = self._record(job.trial)
        return record is not None and record.share >= job.share

    def results(self, jobs: list[Job]) -> list[Result]:
        """Return the results of finished jobs in order, without those of later jobs of the same trials.

        A trial has one record, which later jobs extend. So of each job only the rungs count that lie above the share
        that the trial's previous job has reached.
        """
        results: list[Result] = []
        reached: dict[int, float] = {}
        for job in jobs:
            record, before = self._record(job.trial), reached.get(job.trial, 0.0)
            assert record is not None  # the jobs are finished
            reached[job.trial] = job.share
            rungs = [rung for rung in record.rungs if before < rung.share <= job.share]
            results += [Result(job.trial, rung.share, rung.loss) for rung in rungs]
            if job.share == WHOLE or job.share not in [rung.share for rung in rungs]:
                loss = record.objective(self._search.objective.metric)
                results.append(Result(job.trial, job.share, loss))
        return results

    def failures(self) -> int:
        """Return the number of failed trials among those that decide the next job.

        Failures of later jobs do not count, so that a search stops at the same job whatever the timing.
        """
        known = self.results(self._jobs[: self._known()]) if self._is_decidable() else []
        return len({result.trial for result in known if result.loss is None})

    def _is_decidable(self) -> bool:
        return all(self._is_done(job) for job in self._jobs[: self._known()])

    def history(self, job: Job) -> list[Observation]:
        """Return the observations for the suggestion of a new trial's setting; `job` is the newest job."""
        # As `_known` before `job` was added
        known = max(self._awaited, len(self._jobs) - self._search.at_once)
        by_trial: dict[int, list[Result]] = {}
        for result in self.results(self._jobs[:known]):
            by_trial.setdefault(result.trial, []).append(result)
        return [self._observation(trial, by_trial.get(trial, [])) for trial in range(1, job.trial)]

    def _observation(self, trial: int, results: list[Result]) -> Observation:
        name = self.name(trial)
        assignment = self._ledger.tasks[name].assignment
        record = self._record(trial)
        if not results or record is None:
            return Observation(assignment, "running", {}, name, trial)
        rungs = tuple((r.share, r.loss) for r in results if r.share < WHOLE and r.loss is not None)
        last = results[-1]
        if last.loss is None or last.share == WHOLE:
            status: Literal["completed", "failed"] = "completed" if record.status == "completed" else "failed"
            return Observation(assignment, status, dict(record.values), name, trial, rungs=rungs)
        values = dict(record.values) | {"validation_loss": last.loss}
        return Observation(assignment, "early_stopped", values, name, trial, rungs=rungs)

    def rungs(self, job: Job) -> tuple[float, ...]:
        """Return the rungs at which the trial of a job is measured."""
        return rungs_of(self._search.stopping, job.trial)
