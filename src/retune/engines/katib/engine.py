"""The engine `katib`: creates the Experiment of a search, follows it, and collects its trials' records.

Katib runs the search's trials. The untuned base, the repeats, and the default setting if the algorithm does not start
with it, run as Jobs that the engine creates, with the same pod template. A trial writes its record to the store; the
engine numbers trials in the order of their creation. All state is in the store and on the cluster: while no engine runs,
the cluster continues, and the next engine finds the Experiment by its label with the search's digest.

Unlike with the engine `local`, the next setting depends on which trials have ended, so two runs of a study try
different settings.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from retune import store
from retune.engines.katib import OURS, algorithms, manifest, pods
from retune.engines.katib.api import Api, Object, end_message, ended
from retune.engines.katib.history import Experiments
from retune.errors import InputError, Interrupted, RetuneError
from retune.events import Event, Finished, Issued, Polled
from retune.records import Status, TrialRecord, by_number, now, parse, versions
from retune.search import SAME
from retune.space import Assignment, Parameter, Value
from retune.study import Study
from retune.trials.task import TrialTask
from retune.workspace.ledger import Ledger, Outcome, observation, trial_name, warm_start

RESTARTABLE = "ExperimentMaxTrialsReached"


def steady_clock() -> Callable[[], datetime]:
    """Return a clock that starts at the present time and ignores later jumps of the machine's clock."""
    begin, mark = datetime.now(UTC), time.monotonic()
    return lambda: begin + timedelta(seconds=time.monotonic() - mark)


class KatibEngine:
    """One search on a cluster.

    Args:
        study: the resolved study; its JSON is in the search's folder as `study.json`.
        data_uri: folder of the mixed data.
        folder: URI of the search's folder.
        observe: called with `Issued`, `Finished` and `Polled`.
        should_stop: called before each poll; True ends with `Interrupted`, while the Experiment continues.
        poll_seconds: time between two polls of the cluster.
        patience: seconds for which the Kubernetes API may be unreachable.
        clock: the time, for `search.max_hours`; by default one that ignores jumps of the machine's clock.

    Raises:
        InputError: if the study cannot run on a cluster, or no cluster is configured.

    """

    def __init__(
        self,
        study: Study,
        data_uri: str,
        folder: str,
        observe: Callable[[Event], None],
        should_stop: Callable[[], bool],
        poll_seconds: float = 10.0,
        patience: float = 900.0,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._clock = clock or steady_clock()
        self.study, self.observe, self.should_stop = study, observe, should_stop
        self.place = manifest.Place(folder, data_uri)
        manifest.check(study, self.place)
        self.ledger = Ledger(folder)
        self._poll_seconds = poll_seconds
        self._api = Api(study.cluster.namespace, patience, should_stop)
        self._history = Experiments(self.place.trials)
        self._warm = warm_start(study)
        self._selector = manifest.selector(study, self.place)
        self._announced: set[str] = set(self.ledger.records)
        self._own_default = False
        self._stale: tuple[Any, Any] | None = None
        """State of an ended Experiment whose limits were raised: it still counts as ended until Katib has noticed."""

    def run(self) -> Outcome:
        """Run what is missing and return every record of the search.

        Raises:
            Interrupted: if `should_stop` returned True; the cluster continues, and the next run follows it.
            InputError: if Katib refuses the Experiment.
            RetuneError: if the base cannot be validated, the Experiment was deleted, or the API stays unreachable.

        """
        stopped_by = self._search()
        if stopped_by != "hours":
            self._run_jobs(self.ledger.issue_repeats(self.study))
        if not self.study.cluster.katib.keep:
            self._remove()
        return self.ledger.outcome(self.study, stopped_by)

    def _search(self) -> str:
        """Run the base, the default and the Experiment; return why the search ended."""
        default = self.study.search.space.default()
        assert default is not None  # the study model requires a default of every parameter
        jobs = [self.ledger.issue(0, "base", {}, self.study.seed)]
        if not algorithms.begins_with_default(self.study, self._warm):
            self.ledger.issue(1, "default", default, self.study.seed)
        own = self.ledger.tasks.get(trial_name(1))
        existing = self._experiments()
        if own is not None and not any(own.trial in self._trial_names(each) for each in existing):
            self._own_default = True  # no Experiment runs it, or its Experiment was deleted
            jobs.append(own)
        experiment = self._experiment()
        reason = self._follow(experiment, jobs) if experiment else self._reason()
        self._run_jobs(jobs)
        if trial_name(1) not in self.ledger.records:  # the algorithm did not start with the default after all
            self._run_jobs([self.ledger.issue(1, "default", default, self.study.seed)])
        return reason

    def _experiment(self) -> Object | None:
        """Return the Experiment to follow, the existing one or a new one; None if nothing is left to do."""
        existing = self._experiments()
        for experiment in existing:
            self._history.record_start(experiment)
            self._collect(experiment)
            if ended(experiment):
                self._history.end(experiment["metadata"]["name"], end_message(experiment), experiment)
        for name in self._history.unfinished() - {experiment["metadata"]["name"] for experiment in existing}:
            why = f"experiment {name} was deleted while nobody followed it"
            self._settle_missing({"metadata": {"name": name}}, "interrupted", why)
            self._history.end(name, why)
        unfinished = [experiment["metadata"]["name"] for experiment in existing if not ended(experiment)]
        if len(unfinished) > 1:
            raise InputError(
                f"one Experiment at a time may run a search, but {unfinished} in namespace {self._api.namespace} do; "
                "delete all but one",
                self.study.name,
            )
        left = self._remaining()
        reason, last = self._reason(left), existing[-1] if existing else None
        if last and not ended(last):
            if reason != "hours":
                return self._raise_limits(last, left)
            self._delete_experiment(last)
        if reason:
            return None
        return self._raise_limits(last, left) if last and self._restartable(last) else self._create(left)

    def _experiments(self) -> list[Object]:
        """Return this search's Experiments, without those of an equal search in another folder."""
        experiments = self._api.objects("experiments", self._selector)
        return [one for one in experiments if manifest.folder_of(one) in (None, self.place.folder)]

    def _create(self, left: int) -> Object:
        """Create an Experiment for the remaining trials, with the results of earlier ones for its algorithm."""
        earlier = [observation(r, f"warm-{r.trial}", SAME) for r in self._tried_records()]
        ours = algorithms.is_ours(self.study.search.algorithm)
        if self._katib_ran_trials() and not ours:
            raise InputError(
                f"Katib's {self.study.search.algorithm!r} cannot continue a search that has ended: set "
                f"`cluster.katib.resume: LongRunning` before the first run, or use one of {list(OURS)}",
                self.study.name,
            )
        warm = [*self._warm, *earlier] if ours else []
        allowed = manifest.failures(self.study)
        allowed = None if allowed is None else max(1, allowed - self._failed())
        wanted = manifest.experiment(self.study, self.place, left, allowed, warm)
        del wanted["metadata"]["generateName"]
        wanted["metadata"]["name"] = manifest.name(
            self.study, self.place, self._api.namespace, len(self._history)
        )
        created = self._api.create_experiment(wanted)
        self._history.record_start(created)
        return created

    def _restartable(self, experiment: Object) -> bool:
        """Return whether Katib resumes an ended Experiment when its number of trials is raised."""
        reasons = [c.get("reason") for c in experiment["status"]["conditions"] if c["type"] == "Succeeded"]
        return experiment["spec"].get("resumePolicy") != "Never" and reasons == [RESTARTABLE]

    def _raise_limits(self, experiment: Object, left: int) -> Object | None:
        """Raise an Experiment's total and parallel trials to the numbers of the study.

        They are never lowered: Katib would delete running trials to get down to fewer parallel ones.
        """
        spec = experiment["spec"]
        wanted = left + sum(record.trial in self._trial_names(experiment) for record in self._tried_records())
        wanted = max(wanted, spec["maxTrialCount"])
        parallel = max(min(self.study.search.at_once, wanted), spec["parallelTrialCount"])
        if (wanted, parallel) == (spec["maxTrialCount"], spec["parallelTrialCount"]):
            return experiment
        allowed = manifest.failures(self.study)
        change: Object = {"maxTrialCount": wanted, "parallelTrialCount": parallel}
        if allowed is not None:
            change["maxFailedTrialCount"] = min(allowed, wanted)
        name = experiment["metadata"]["name"]
        self._history.record_start(experiment, again=True)
        if ended(experiment):
            self._stale = _progress(experiment)
        try:
            return self._api.patch_experiment(name, {"spec": change})
        except InputError:
            current = self._api.get("experiments", name)
            if current is None or (ended(current) and not ended(experiment)):
                return self._experiment()  # it ended, or was deleted, a moment before
            raise

    def _follow(self, experiment: Object, jobs: list[TrialTask]) -> str:
        """Watch an Experiment to its end; return why it ended."""
        name = experiment["metadata"]["name"]
        while True:
            self._poll(name)
            self._collect_jobs(jobs)
            current = self._api.get("experiments", name)
            if current is None:
                self._settle_missing(
                    experiment, "interrupted", f"experiment {name} was deleted from the cluster"
                )
                self._history.end(name, "deleted")
                raise RetuneError(
                    f"experiment {name} in namespace {self._api.namespace} was deleted while it ran; run again to carry on"
                )
            # During a foreground deletion its trials disappear first: they have not failed
            if "deletionTimestamp" not in current["metadata"]:
                unfinished = self._collect(current)
                if ended(current) and not unfinished and _progress(current) != self._stale:
                    return self._conclude(current)
                if self._time_is_up():
                    self._delete_experiment(current)
                    return "hours"
            self._pause()

    def _trial_names(self, experiment: Object) -> set[str]:
        """Return the names of an Experiment's trials in the ledger."""
        prefix = store.join(self.place.trials, f"{experiment['metadata']['name']}-")
        return {task.trial for task in self.ledger.tasks.values() if task.folder.startswith(prefix)}

    def _conclude(self, experiment: Object) -> str:
        """Record the end of an Experiment and return the reason.

        Raises:
            InputError: if Katib gave up for another reason than failed trials.

        """
        name, why = experiment["metadata"]["name"], end_message(experiment)
        self._history.end(name, why, experiment)
        if ended(experiment) == "Failed" and "max failed" not in why:
            suggestion = self._api.get("suggestions", name)
            detail = end_message(suggestion) if suggestion else ""
            raise InputError(f"Katib ended experiment {name}: {why}. {detail}", self.study.name)
        return "failures" if ended(experiment) == "Failed" else self._reason() or "trials"

    def _delete_experiment(self, experiment: Object) -> None:
        """Stop an Experiment and its running trials. Katib has no other way than deleting it."""
        name = experiment["metadata"]["name"]
        self._api.delete_experiment(name)
        self._settle_missing(experiment, "interrupted", "ended with its experiment after `search.max_hours`")
        self._history.end(name, "search.max_hours", experiment)

    def _collect(self, experiment: Object) -> bool:
        """Record the ended trials of an Experiment; return whether one is still running."""
        trials = self._trials(experiment)
        seen = {entry["metadata"]["name"] for entry in trials}
        for entry in trials:
            task = self._task(entry)
            self._announce(task)
            if task.trial in self.ledger.records or not ended(entry):
                continue
            # Katib sets the metrics of an early-stopped trial a little later than its condition
            if ended(entry) != "EarlyStopped" or _latest(entry) or ended(experiment):
                self._finish(self._record(task, entry))
        self._settle_missing(experiment, "failed", "its trial was deleted from the cluster", but=seen)
        return any(not ended(entry) for entry in trials)

    def _trials(self, experiment: Object) -> list[Object]:
        return self._api.objects("trials", f"katib.kubeflow.org/experiment={experiment['metadata']['name']}")

    def _task(self, trial: Object) -> TrialTask:
        """Return the task of one of Katib's trials; a new one gets the next number, the first default number 1."""
        folder, assignment = store.join(self.place.trials, trial["metadata"]["name"]), self._assignment(trial)
        default = assignment == self.study.search.space.default()
        return self.ledger.claim(assignment, self.study.seed, folder, default)

    def _assignment(self, trial: Object) -> Assignment:
        space = self.study.search.space
        values = {pair["name"]: pair["value"] for pair in trial["spec"]["parameterAssignments"]}
        return {name: _value(space[name], values[name]) for name in space.names}

    def _record(self, task: TrialTask, trial: Object) -> TrialRecord:
        """Return the record that a trial wrote, or else one made from what Katib knows."""
        how, name = ended(trial), trial["metadata"]["name"]
        written = self._stored_record(task)
        if written is not None:
            return written
        if how == "EarlyStopped":
            return self._generated_record(task, "early_stopped", "Katib stopped it early", _latest(trial))
        words = f"{how}: {end_message(trial) or 'no message'}"
        reason = (
            f"its pod ended without a record ({words}); {self._why_killed(words)}"
            f"see the events and logs of job {name} in namespace {self._api.namespace}"
        )
        return self._generated_record(task, "failed", reason)

    def _why_killed(self, words: str) -> str:
        """Return what the exit code of a killed container means, if a Job's message names it."""
        if f"exit code {pods.KILLED}" not in words:
            return ""
        return (
            f"exit code {pods.KILLED} means that the container needed more memory than `cluster.memory`, "
            f"which is {self.study.cluster.memory}: raise it, or make trials smaller (`training.batch_size`, `data.max_length`); "
        )

    def _stored_record(self, task: TrialTask) -> TrialRecord | None:
        """Return the record in a task's folder under the task's own name and number."""
        uri = store.join(task.folder, "trial.json")
        if not store.exists(uri):
            return None
        try:
            record = parse(TrialRecord, store.read(uri), uri)
        except ValidationError:
            return None
        return record.model_copy(update={"trial": task.trial, "number": task.number, "role": task.role})

    def _generated_record(
        self, task: TrialTask, status: Status, reason: str, values: dict[str, float] | None = None
    ) -> TrialRecord:
        return TrialRecord(
            trial=task.trial, number=task.number, role=task.role, assignment=task.assignment, seed=task.seed,
            status=status, failure="killed" if status == "failed" else None, reason=reason, values=values or {},
            base=self.study.model.base, versions=versions(), finished=now(),
        )  # fmt: skip

    def _settle_missing(
        self, experiment: Object, status: Status, reason: str, but: Iterable[str] = ()
    ) -> None:
        """Record the trials of an Experiment that no longer exist, by the record that they wrote, else as `status`."""
        present = set(but)
        for trial in sorted(self._trial_names(experiment) - set(self.ledger.records), key=by_number):
            task = self.ledger.tasks[trial]
            # All trials are compared with the default, so the engine trains it to the end, in a Job
            if task.role == "default" and status == "interrupted":
                continue
            if task.folder.rsplit("/", 1)[-1] not in present:
                self._finish(self._stored_record(task) or self._generated_record(task, status, reason))

    def _finish(self, record: TrialRecord) -> None:
        self.ledger.finish(record, write=True)
        self.observe(Finished(record.trial, record))
        if record.role == "base" and record.status == "failed":  # without it there is nothing to compare with
            for experiment in self._experiments():
                if not ended(experiment):
                    self._delete_experiment(experiment)
            raise RetuneError(f"the untuned base could not be validated: {record.reason}")
        self.ledger.prune(self.ledger.kept(self.study))

    def _announce(self, task: TrialTask) -> None:
        if task.trial not in self._announced:
            self._announced.add(task.trial)
            self.observe(Issued(task.trial, task.number, task.role, task.assignment, task.seed))

    def _run_jobs(self, tasks: list[TrialTask]) -> None:
        """Run tasks as Jobs of the engine, `search.parallel` at a time."""
        while waiting := [task for task in tasks if task.trial not in self.ledger.records]:
            self._poll("")
            self._collect_jobs(waiting[: self.study.search.at_once])
            if any(task.trial not in self.ledger.records for task in tasks):
                self._pause()

    def _collect_jobs(self, tasks: list[TrialTask]) -> None:
        """Create missing Jobs and record those that have ended."""
        waiting = [task for task in tasks if task.trial not in self.ledger.records]
        if not waiting:
            return
        existing = self._api.jobs(f"{self._selector},{manifest.TRIAL_LABEL}")
        for task in waiting:
            name = manifest.job_name(self.study, self.place, task)
            self._announce(task)
            if name not in existing:
                written = self._stored_record(task)  # the Job may have been deleted after it ended
                if written is None:
                    self._api.create_job(manifest.job(self.study, self.place, task))
                else:
                    self._finish(written)
            elif how := _job_ended(existing[name]):
                reason = (
                    f"its pod ended without a record ({how}); {self._why_killed(how)}"
                    f"see job {name} in namespace {self._api.namespace}"
                )
                self._finish(self._stored_record(task) or self._generated_record(task, "failed", reason))

    def _remove(self) -> None:
        """Delete what the search created on the cluster."""
        for experiment in self._experiments():
            self._api.delete_experiment(experiment["metadata"]["name"])
        for name in self._api.jobs(f"{self._selector},{manifest.TRIAL_LABEL}"):
            self._api.delete_job(name)

    def _tried_records(self) -> list[TrialRecord]:
        """Return the records that count as tried settings; trials deleted with their Experiment do not."""
        return [
            record
            for record in self.ledger.records.values()
            if record.role in ("default", "search") and record.status != "interrupted"
        ]

    def _katib_ran_trials(self) -> bool:
        return any(task.folder.startswith(self.place.trials) for task in self.ledger.tasks.values())

    def _failed(self) -> int:
        return sum(record.status == "failed" for record in self._tried_records())

    def _remaining(self) -> int:
        """Return how many trials are left for Katib to run."""
        by_job = self._own_default and trial_name(1) not in self.ledger.records
        return self.study.search.trials - len(self._tried_records()) - by_job

    def _reason(self, left: int | None = None) -> str:
        """Return why no further trial is run; empty if the search continues."""
        if self._time_is_up():
            return "hours"
        limit = self.study.search.max_failed
        if limit is not None and self._failed() > limit:
            return "failures"
        return "trials" if (self._remaining() if left is None else left) <= 0 else ""

    def _time_is_up(self) -> bool:
        limit = self.study.search.max_hours
        return limit is not None and self._history.hours(self._clock()) > limit

    def _poll(self, experiment: str) -> None:
        self.observe(Polled())
        if self.should_stop():
            unfinished = f"experiment {experiment} continues" if experiment else "its jobs continue"
            raise Interrupted(
                f"stopped following the search; {unfinished} on the cluster, run again to follow it"
            )

    def _pause(self) -> None:
        """Wait until the next poll or a stop request."""
        end = time.monotonic() + self._poll_seconds
        while (left := end - time.monotonic()) > 0 and not self.should_stop():
            time.sleep(min(left, 0.5))


def _progress(experiment: Object) -> tuple[Any, Any]:
    status = experiment.get("status") or {}
    return status.get("completionTime"), status.get("trials")


def _value(parameter: Parameter, text: str) -> Value:
    """Return the value of Katib's text: an entry of the list of values, or a number."""
    if parameter.values is not None:
        return next((value for value in parameter.values if _same(value, text)), text)
    return int(float(text)) if parameter.kind == "integer" else float(text)


def _same(value: Value, text: str) -> bool:
    try:
        return float(value) == float(text)
    except ValueError:
        return str(value) == text


def _latest(trial: Object) -> dict[str, float]:
    """Return the last value of each metric that is a number."""
    newest = {}
    for metric in ((trial.get("status") or {}).get("observation") or {}).get("metrics") or []:
        try:
            value = float(metric.get("latest", ""))  # Katib omits the key if a loss was NaN
        except ValueError:
            continue
        if math.isfinite(value):
            newest[metric["name"]] = value
    return newest


def _job_ended(job: Object) -> str | None:
    """Return how a Job ended, None while it runs."""
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return (
                f"{condition['type']}: {condition.get('message') or condition.get('reason') or 'no message'}"
            )
    return None
