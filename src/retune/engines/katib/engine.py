"""The engine `katib`: creates the Experiment of a search, follows it, and gathers its trials' records.

Katib runs the search's trials. The untuned base, the repeats, and the default setting where the algorithm does not
begin with it, run as Jobs of the engine's own, in the same pods. A trial writes its record to the store; the engine
gives it its number, in the order of creation. So the store alone holds what is known, and an engine that is killed
finds its Experiment again by the label with the search's digest and goes on. While it is away the cluster goes on too.

Unlike under the engine `local`, which setting is tried next depends on which trials have ended, so two runs of a study
do not try the same ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from retune import store
from retune.engines.katib import algorithms, manifest, pods
from retune.engines.katib.api import Api, Object, ended, said
from retune.engines.katib.history import Experiments
from retune.errors import InputError, Interrupted, RetuneError
from retune.events import Event, Finished, Issued, Polled
from retune.records import Status, TrialRecord, by_number, now, parse, versions
from retune.search import SAME
from retune.space import Assignment, Parameter, Value
from retune.study import Study
from retune.training.run_trial import TrialTask
from retune.workspace.ledger import Ledger, Outcome, observation, trial_name, warm_start

RESTARTABLE = "ExperimentMaxTrialsReached"


def steady_clock() -> Callable[[], datetime]:
    """Return a clock that shows the present time now, and from then on runs evenly, whatever becomes of the machine's clock."""
    begin, mark = datetime.now(UTC), time.monotonic()
    return lambda: begin + timedelta(seconds=time.monotonic() - mark)


class KatibEngine:
    """One search on a cluster.

    Args:
        study: the resolved study; its JSON is in the search's folder as `study.json`.
        data_uri: folder of the mixed data. folder: URI of the search's folder.
        observe: takes `Issued`, `Finished` and `Polled`.
        should_stop: asked before each look at the cluster; True ends with `Interrupted`, the Experiment goes on.
        poll_seconds: between two looks at the cluster.
        patience: seconds for which the Kubernetes API may be away.
        clock: the time, for `search.max_hours`; by default one that ignores jumps of the machine's clock.

    Raises:
        InputError: if the study cannot run on a cluster, or there is none.

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
        self._shown: set[str] = set(self.ledger.records)
        self._own_default = False
        self._stale: tuple[Any, Any] | None = None
        """State of an ended Experiment that was allowed more trials: it counts as ended until Katib has seen that."""

    def run(self) -> Outcome:
        """Run what is missing and return every record of the search.

        Raises:
            Interrupted: if `should_stop` said so; the cluster goes on, and running again follows it.
            InputError: if Katib refuses the Experiment.
            RetuneError: if the base cannot be validated, the Experiment was deleted, or the API stays away.

        """
        stopped_by = self._search()
        if stopped_by != "hours":
            self._run_jobs(self.ledger.issue_repeats(self.study))
        if not self.study.cluster.katib.keep:
            self._remove()
        return self.ledger.outcome(self.study, stopped_by)

    def _search(self) -> str:
        """Run base, default and the Experiment; return why the search ended."""
        default = self.study.search.space.default()
        assert default is not None  # the study model demands a default of every parameter
        jobs = [self.ledger.issue(0, "base", {}, self.study.seed)]
        if not algorithms.begins_with_default(self.study, self._warm):
            self.ledger.issue(1, "default", default, self.study.seed)
        own = self.ledger.tasks.get(trial_name(1))
        there = self._experiments()
        if own is not None and not any(own.trial in self._of(found) for found in there):
            self._own_default = True  # no Experiment runs it, or no longer
            jobs.append(own)
        experiment = self._experiment()
        reason = self._follow(experiment, jobs) if experiment else self._reason()
        self._run_jobs(jobs)
        if trial_name(1) not in self.ledger.records:  # the algorithm did not begin with the default after all
            self._run_jobs([self.ledger.issue(1, "default", default, self.study.seed)])
        return reason

    def _experiment(self) -> Object | None:
        """Return the Experiment to follow: the one that is there, else a new one; None if nothing is left to do."""
        there = self._experiments()
        for found in there:
            self._history.note(found)
            self._gather(found)
            if ended(found):
                self._history.end(found["metadata"]["name"], said(found), found)
        for name in self._history.going() - {found["metadata"]["name"] for found in there}:
            why = f"experiment {name} was deleted while nobody followed it"
            self._lost({"metadata": {"name": name}}, "interrupted", why)
            self._history.end(name, why)
        going = [found["metadata"]["name"] for found in there if not ended(found)]
        if len(going) > 1:
            raise InputError(
                f"one Experiment at a time may run a search, but {going} in namespace {self._api.namespace} do; "
                "delete all but one",
                self.study.name,
            )
        left = self._left()
        reason, last = self._reason(left), there[-1] if there else None
        if last and not ended(last):
            if reason != "hours":
                return self._allow(last, left)
            self._end(last)
        if reason:
            return None
        return self._allow(last, left) if last and self._restartable(last) else self._create(left)

    def _experiments(self) -> list[Object]:
        """Return this search's Experiments; one of an equal search that lies in another folder is not ours."""
        found = self._api.objects("experiments", self._selector)
        return [one for one in found if manifest.folder_of(one) in (None, self.place.folder)]

    def _create(self, left: int) -> Object:
        """Create an Experiment for the trials that are left; it is told of those that came before."""
        earlier = [observation(r, f"warm-{r.trial}", SAME) for r in self._tried()]
        ours = algorithms.is_ours(self.study.search.algorithm)
        if self._katib_tried() and not ours:
            raise InputError(
                f"Katib's {self.study.search.algorithm!r} cannot carry on a search that has ended: set "
                "`cluster.katib.resume: LongRunning` before the first run, or use one of ours",
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
        made = self._api.create_experiment(wanted)
        self._history.note(made)
        return made

    def _restartable(self, experiment: Object) -> bool:
        """Return whether Katib carries an ended Experiment on when it is allowed more trials."""
        reasons = [c.get("reason") for c in experiment["status"]["conditions"] if c["type"] == "Succeeded"]
        return experiment["spec"].get("resumePolicy") != "Never" and reasons == [RESTARTABLE]

    def _allow(self, experiment: Object, left: int) -> Object | None:
        """Raise the number of trials, and of those at once, of an Experiment to what the study now says.

        They are only raised: Katib would delete running trials to come down to fewer at once.
        """
        spec = experiment["spec"]
        wanted = left + sum(record.trial in self._of(experiment) for record in self._tried())
        wanted = max(wanted, spec["maxTrialCount"])
        parallel = max(min(self.study.search.at_once, wanted), spec["parallelTrialCount"])
        if (wanted, parallel) == (spec["maxTrialCount"], spec["parallelTrialCount"]):
            return experiment
        allowed = manifest.failures(self.study)
        change: Object = {"maxTrialCount": wanted, "parallelTrialCount": parallel}
        if allowed is not None:
            change["maxFailedTrialCount"] = min(allowed, wanted)
        name = experiment["metadata"]["name"]
        self._history.note(experiment, again=True)
        if ended(experiment):
            self._stale = _progress(experiment)
        try:
            return self._api.patch_experiment(name, {"spec": change})
        except InputError:
            found = self._api.get("experiments", name)
            if found is None or (ended(found) and not ended(experiment)):
                return self._experiment()  # it came to its end, or was deleted, a moment before
            raise

    def _follow(self, experiment: Object, jobs: list[TrialTask]) -> str:
        """Watch an Experiment to its end; return why it ended."""
        name = experiment["metadata"]["name"]
        while True:
            self._look(name)
            self._take_jobs(jobs)
            found = self._api.get("experiments", name)
            if found is None:
                self._lost(experiment, "interrupted", f"experiment {name} was deleted from the cluster")
                self._history.end(name, "deleted")
                raise RetuneError(
                    f"experiment {name} in namespace {self._api.namespace} was deleted while it ran; run again to carry on"
                )
            if "deletionTimestamp" not in found["metadata"]:  # else its trials go first, by somebody's wish
                going = self._gather(found)
                if ended(found) and not going and _progress(found) != self._stale:
                    return self._closed(found)
                if self._time_is_up():
                    self._end(found)
                    return "hours"
            self._pause()

    def _of(self, experiment: Object) -> set[str]:
        """Return the names, in the ledger, of an Experiment's trials."""
        prefix = store.join(self.place.trials, f"{experiment['metadata']['name']}-")
        return {task.trial for task in self.ledger.tasks.values() if task.folder.startswith(prefix)}

    def _closed(self, experiment: Object) -> str:
        """Note the end of an Experiment and return its reason.

        Raises:
            InputError: if Katib gave up for another reason than failing trials.

        """
        name, why = experiment["metadata"]["name"], said(experiment)
        self._history.end(name, why, experiment)
        if ended(experiment) == "Failed" and "max failed" not in why:
            suggestion = self._api.get("suggestions", name)
            detail = said(suggestion) if suggestion else ""
            raise InputError(f"Katib ended experiment {name}: {why}. {detail}", self.study.name)
        return "failures" if ended(experiment) == "Failed" else self._reason() or "trials"

    def _end(self, experiment: Object) -> None:
        """End an Experiment and its running trials: Katib has no other way than to delete it."""
        name = experiment["metadata"]["name"]
        self._api.delete_experiment(name)
        self._lost(experiment, "interrupted", "ended with its experiment after `search.max_hours`")
        self._history.end(name, "search.max_hours", experiment)

    def _gather(self, experiment: Object) -> bool:
        """Take in the trials of an Experiment; return whether one is still going on."""
        trials = self._trials(experiment)
        seen = {entry["metadata"]["name"] for entry in trials}
        for entry in trials:
            task = self._task(entry)
            self._show(task)
            if task.trial in self.ledger.records or not ended(entry):
                continue
            # The metrics of one that was stopped early come a little later.
            if ended(entry) != "EarlyStopped" or _latest(entry) or ended(experiment):
                self._finish(self._record(task, entry))
        self._lost(experiment, "failed", "its trial was deleted from the cluster", but=seen)
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
        given = {pair["name"]: pair["value"] for pair in trial["spec"]["parameterAssignments"]}
        return {name: _value(space[name], given[name]) for name in space.names}

    def _record(self, task: TrialTask, trial: Object) -> TrialRecord:
        """Return what a trial wrote down, else what Katib knows of it."""
        how, name = ended(trial), trial["metadata"]["name"]
        written = self._written(task)
        if written is not None:
            return written
        if how == "EarlyStopped":
            return self._generated_record(task, "early_stopped", "Katib stopped it early", _latest(trial))
        words = f"{how}: {said(trial) or 'no message'}"
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
            f"exit code {pods.KILLED} is how a container ends that needs more memory than `cluster.memory`, "
            f"{self.study.cluster.memory} here: raise it, or make trials smaller (`training.batch_size`, `data.max_length`); "
        )

    def _written(self, task: TrialTask) -> TrialRecord | None:
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

    def _lost(self, experiment: Object, status: Status, reason: str, but: Iterable[str] = ()) -> None:
        """Settle the trials of an Experiment that are no longer there; what they had written down counts."""
        present = set(but)
        for trial in sorted(self._of(experiment) - set(self.ledger.records), key=by_number):
            task = self.ledger.tasks[trial]
            if task.role == "default" and status == "interrupted":
                continue  # what all others are compared with is trained to the end, as a Job
            if task.folder.rsplit("/", 1)[-1] not in present:
                self._finish(self._written(task) or self._generated_record(task, status, reason))

    def _finish(self, record: TrialRecord) -> None:
        self.ledger.finish(record, write=True)
        self.observe(Finished(record.trial, record))
        if record.role == "base" and record.status == "failed":  # nothing could be compared with it
            for found in self._experiments():
                if not ended(found):
                    self._end(found)
            raise RetuneError(f"the untuned base could not be validated: {record.reason}")
        self.ledger.prune(self.ledger.kept(self.study))

    def _show(self, task: TrialTask) -> None:
        if task.trial not in self._shown:
            self._shown.add(task.trial)
            self.observe(Issued(task.trial, task.number, task.role, task.assignment, task.seed))

    def _run_jobs(self, tasks: list[TrialTask]) -> None:
        """Run tasks of the engine's own, `search.parallel` at a time."""
        while waiting := [task for task in tasks if task.trial not in self.ledger.records]:
            self._look("")
            self._take_jobs(waiting[: self.study.search.at_once])
            if any(task.trial not in self.ledger.records for task in tasks):
                self._pause()

    def _take_jobs(self, tasks: list[TrialTask]) -> None:
        """Create the Jobs that are missing and take in those that have ended."""
        waiting = [task for task in tasks if task.trial not in self.ledger.records]
        if not waiting:
            return
        there = self._api.jobs(f"{self._selector},{manifest.TRIAL_LABEL}")
        for task in waiting:
            wanted = manifest.job(self.study, self.place, task)
            name = wanted["metadata"]["name"]
            self._show(task)
            if name not in there:
                written = self._written(task)  # its Job may have been cleaned up since
                if written is None:
                    self._api.create_job(wanted)
                else:
                    self._finish(written)
            elif how := _job_ended(there[name]):
                reason = (
                    f"its pod ended without a record ({how}); {self._why_killed(how)}"
                    f"see job {name} in namespace {self._api.namespace}"
                )
                self._finish(self._written(task) or self._generated_record(task, "failed", reason))

    def _remove(self) -> None:
        """Delete what the search created on the cluster."""
        for found in self._experiments():
            self._api.delete_experiment(found["metadata"]["name"])
        for name in self._api.jobs(f"{self._selector},{manifest.TRIAL_LABEL}"):
            self._api.delete_job(name)

    def _tried(self) -> list[TrialRecord]:
        """Return the records that count as tried settings; what was ended with its Experiment does not."""
        return [
            record
            for record in self.ledger.records.values()
            if record.role in ("default", "search") and record.status != "interrupted"
        ]

    def _katib_tried(self) -> bool:
        return any(task.folder.startswith(self.place.trials) for task in self.ledger.tasks.values())

    def _failed(self) -> int:
        return sum(record.status == "failed" for record in self._tried())

    def _left(self) -> int:
        """Return how many trials Katib is still to run."""
        by_job = self._own_default and trial_name(1) not in self.ledger.records
        return self.study.search.trials - len(self._tried()) - by_job

    def _reason(self, left: int | None = None) -> str:
        """Return why no further trial is wanted, empty if one is."""
        if self._time_is_up():
            return "hours"
        limit = self.study.search.max_failed
        if limit is not None and self._failed() > limit:
            return "failures"
        return "trials" if (self._left() if left is None else left) <= 0 else ""

    def _time_is_up(self) -> bool:
        limit = self.study.search.max_hours
        return limit is not None and self._history.hours(self._clock()) > limit

    def _look(self, experiment: str) -> None:
        self.observe(Polled())
        if self.should_stop():
            going = f"experiment {experiment} goes on" if experiment else "its jobs go on"
            raise Interrupted(f"stopped following the search; {going} on the cluster, run again to follow it")

    def _pause(self) -> None:
        """Wait until the next look, or until a stop is asked for."""
        end = time.monotonic() + self._poll_seconds
        while (left := end - time.monotonic()) > 0 and not self.should_stop():
            time.sleep(min(left, 0.5))


def _progress(experiment: Object) -> tuple[Any, Any]:
    status = experiment.get("status") or {}
    return status.get("completionTime"), status.get("trials")


def _value(parameter: Parameter, text: str) -> Value:
    """Return the value that Katib's text stands for: the entry of a list, else a number."""
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
    found = {}
    for metric in ((trial.get("status") or {}).get("observation") or {}).get("metrics") or []:
        try:
            value = float(metric.get("latest", ""))  # Katib leaves the key out where a loss was NaN
        except ValueError:
            continue
        if math.isfinite(value):
            found[metric["name"]] = value
    return found


def _job_ended(job: Object) -> str | None:
    """Return how a Job ended, None while it runs."""
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return (
                f"{condition['type']}: {condition.get('message') or condition.get('reason') or 'no message'}"
            )
    return None
