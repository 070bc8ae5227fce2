"""The engine `local`: runs the trials of a study in worker processes on this machine.

The setting of trial i does not depend on timing. It is requested once trials 1 … i - parallel have finished, and the
request reports exactly those as finished and the later ones as running, even if some of these have finished too. So a
run that is killed and restarted, or whose trials finish in another order, tries the same settings as an uninterrupted
one. The price is that a worker may wait for a slow trial that started `parallel` trials earlier. With `search.stopping`,
where trials pause and resume, the same holds for the jobs in which they train (`retune.engines.jobs`).
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from retune.engines import spares
from retune.engines.jobs import Jobs
from retune.engines.service import SuggestionProcess
from retune.engines.spread import spread
from retune.engines.workers import Message, Worker
from retune.errors import DiskFull, InputError, Interrupted, RetuneError
from retune.events import Event, Finished, Issued, Measured, Polled, Progress
from retune.records import TrialRecord, by_number, now, versions
from retune.search.stopping import DEFAULT, Job
from retune.space import Assignment
from retune.study import Study
from retune.suggestion.client import SuggestionClient
from retune.trials.task import TrialTask
from retune.workspace.ledger import Ledger, Outcome, warm_start

ATTEMPTS = 2
"""How often a trial is started whose worker process dies (out-of-memory killer, segmentation fault)."""


class LocalEngine:
    """One search on this machine.

    Args:
        study: the resolved study.
        data_uri: folder of the mixed data.
        folder: URI of the search's folder, which holds the trials.
        work: local folder for logs.
        threads: CPU threads per worker.
        observe: called with every event.
        should_stop: called several times a second; True saves checkpoints and ends with `Interrupted`.
        hours_used: hours that earlier runs of this search have spent.

    """

    def __init__(
        self,
        study: Study,
        data_uri: str,
        folder: str,
        work: Path,
        threads: int,
        observe: Callable[[Event], None],
        should_stop: Callable[[], bool],
        hours_used: float = 0.0,
    ) -> None:
        self.study, self.data_uri, self.folder, self.work = study, data_uri, folder, work
        self.threads, self.observe, self.should_stop = threads, observe, should_stop
        self.spread = spread(study)
        self.ledger = Ledger(folder)
        self._deadline = None
        if study.search.max_hours is not None:
            self._deadline = time.monotonic() + (study.search.max_hours - hours_used) * 3600
        self._events: queue.Queue[Message] = queue.Queue()
        self._workers: list[Worker] = []
        self._service = SuggestionProcess(work / "suggestion.log")
        self._warm = warm_start(study)
        self._attempts: dict[str, int] = {}

    def run(self) -> Outcome:
        """Run what is missing and return every record of the search.

        Raises:
            Interrupted: if `should_stop` returned True; checkpoints are saved.
            RetuneError: if workers cannot start, or the service cannot be reached.

        """
        try:
            stopped_by = self._search()
            # Even after `max_hours`: without trials on all data, nothing can be selected
            if self.study.search.proxy is not None:
                self._run_all(self.ledger.issue_whole(self.study))
            if stopped_by != "hours":
                self._run_all(self.ledger.issue_repeats(self.study))
        finally:
            self._close()
        return self.ledger.outcome(self.study, stopped_by)

    def _search(self) -> str:
        """Run the base, the default and the search trials."""
        jobs = Jobs(self.study.search, self.ledger)
        first = jobs.next()
        assert first is not None  # the job of the default setting
        waiting = [self.ledger.issue(0, "base", {}, self.study.seed), self._task(jobs, first)]
        while True:
            waiting = [task for task in waiting if not self._is_done(task)]
            reason = self._stop_reason(jobs)
            while reason is None and len(waiting) < self.study.search.at_once:
                job = jobs.next()
                if job is None:
                    break
                waiting.append(self._task(jobs, job))
                waiting = [task for task in waiting if not self._is_done(task)]
                reason = self._stop_reason(jobs)
            if not waiting:
                return reason or "trials"
            self._dispatch(waiting)

    def _task(self, jobs: Jobs, job: Job) -> TrialTask:
        """Return the task of a job; the setting of a new trial is recorded now."""
        issued = self.ledger.tasks.get(jobs.name(job.trial))
        assignment = issued.assignment if issued else self._setting(jobs, job)
        task = self.ledger.issue(job.trial, jobs.role(job.trial), assignment, self.study.seed)
        return task.model_copy(update={"until": job.share, "rungs": jobs.rungs(job)})

    def _run_all(self, waiting: list[TrialTask]) -> None:
        """Run what is missing of `waiting`, `search.parallel` at a time."""
        while waiting := [task for task in waiting if not self._is_done(task)]:
            self._dispatch(waiting)

    def _is_done(self, task: TrialTask) -> bool:
        return self.ledger.done(task)

    def _stop_reason(self, jobs: Jobs) -> str | None:
        """Return why no further job is started, None if one may be."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            return "hours"
        limit = self.study.search.max_failed
        if limit is not None and jobs.failures() > limit:
            return "failures"
        return None

    def _setting(self, jobs: Jobs, job: Job) -> Assignment:
        """Return the setting of a new trial: the default one, then what the service suggests."""
        if job.trial == DEFAULT:
            default = self.study.search.space.default()
            assert default is not None  # the study model requires a default of every parameter
            return default
        history = [*self._warm, *jobs.history(job)]
        for attempt in range(3):
            try:
                with SuggestionClient(self._service.address()) as client:
                    return client.suggest(self.study, history, count=1)[0]
            except ConnectionError as error:  # it died during the call; the next attempt starts it again
                if attempt == 2:
                    raise RetuneError(
                        f"the suggestion service failed three times: {error}; see {self.work}"
                    ) from error
                self._service.close()
        raise AssertionError("unreachable")

    def _dispatch(self, waiting: Sequence[TrialTask]) -> None:
        """Give the waiting tasks to free workers and handle one event."""
        busy = {name for worker in self._workers for name in worker.tasks}
        for task in waiting:
            if task.trial in busy or len(busy) >= self.study.search.at_once:
                continue
            worker = self._worker_for(task)
            if worker is None:
                continue
            worker.run(task)
            busy.add(task.trial)
            self.observe(Issued(task.trial, task.number, task.role, task.assignment, task.seed))
        if self.should_stop():
            self._interrupt()
        try:
            self._handle(self._events.get(timeout=0.2))
        except queue.Empty:
            self.observe(Polled())

    def _worker_for(self, task: TrialTask) -> Worker | None:
        """Return the worker for a trial: an idle one, a new one, or the one with the fewest trials; None if all are full.

        A trial whose worker has died once runs alone, so that it cannot kill other trials again.
        """
        idle = next((worker for worker in self._workers if not worker.tasks), None)
        if idle is not None or len(self._workers) < self.spread.workers:
            return idle or self._start_worker()
        if task.trial in self._attempts:
            return None
        free = [
            worker
            for worker in self._workers
            if len(worker.tasks) < self.spread.pack and not self._attempts.keys() & worker.tasks.keys()
        ]
        return min(free, key=lambda worker: len(worker.tasks), default=None)

    def _start_worker(self) -> Worker:
        number = min(set(range(self.spread.workers)) - {worker.number for worker in self._workers})
        log = self.work / f"worker-{number}.log"
        worker = Worker(number, self.study, self.data_uri, self.threads, self.spread.pack, log, self._events)
        self._workers.append(worker)
        return worker

    def _handle(self, event: Message) -> None:
        if event.kind == "done":
            record = TrialRecord.model_validate(event.content["record"])
            event.worker.tasks.pop(record.trial, None)
            self._finish(record)
        elif event.kind == "refused":
            raise InputError(event.content["reason"])
        elif event.kind == "stopped":
            saved = self._save_running(but=event.worker)
            kind = DiskFull if event.content["full"] else RetuneError
            raise kind(f"{event.content['reason']} (nothing was recorded of this trial; {saved})")
        elif event.kind == "exit":
            self._worker_ended(event.worker, event.content["code"])
        elif event.kind == "progress":
            self.observe(Progress(**event.content))
        elif event.kind == "metric":
            self.observe(Measured(**event.content))

    def _finish(self, record: TrialRecord, write: bool = False) -> None:
        self.ledger.finish(record, write)
        self.observe(Finished(record.trial, record))
        if record.role == "base" and record.status == "failed":  # without it there is nothing to compare with
            raise RetuneError(f"the untuned base could not be validated: {record.reason}")
        self.ledger.prune(self.ledger.kept(self.study))

    def _worker_ended(self, worker: Worker, code: int) -> None:
        """Start the trial of a dead worker again, or record it as failed after `ATTEMPTS` starts."""
        if worker in self._workers:
            self._workers.remove(worker)
        for task in worker.tasks.values():
            if not self._is_done(task):
                self._attempts[task.trial] = self._attempts.get(task.trial, 0) + 1
                # With attempts left it stays in the list of waiting tasks, and is dispatched again
                if self._attempts[task.trial] >= ATTEMPTS:
                    self._record_killed(task, worker, code)

    def _record_killed(self, task: TrialTask, worker: Worker, code: int) -> None:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        record = TrialRecord(
            trial=task.trial, number=task.number, role=task.role, assignment=task.assignment, seed=task.seed,
            status="failed", failure="killed", base=self.study.model.base, versions=versions("torch", "peft"), finished=now(),
            reason=f"its worker process ended with {how} in {ATTEMPTS} attempts; see {self.work}/worker-{worker.number}.log",
        )  # fmt: skip
        # Other trials were stopped by comparison with its losses at these rungs: a restarted search must see the same
        if task.trial in self.ledger.records:
            record.rungs = self.ledger.records[task.trial].rungs
        self._finish(record, write=True)

    def _interrupt(self) -> None:
        """Let running trials save a checkpoint, then end."""
        raise Interrupted(f"stopped on request; {self._save_running()}")

    def _save_running(self, but: Worker | None = None) -> str:
        """Let running trials save a checkpoint and return a sentence that names them; worker `but` has already ended."""
        for worker in self._workers:
            worker.interrupt()
        for worker in self._workers:
            worker.close(seconds=60)
        left = [name for worker in self._workers if worker is not but for name in worker.tasks]
        running = sorted(left, key=by_number)
        return f"{len(running)} running trials saved ({', '.join(running) or 'none'})"

    def _close(self) -> None:
        for worker in self._workers:
            worker.close()
        self._workers.clear()
        spares.end()
        self._service.close()
