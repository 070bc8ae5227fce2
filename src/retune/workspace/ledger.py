"""The trials of one search on disk: issued assignments and their results.

Layout below the search's folder, one folder per trial::

    trials/trial-007/assignment.json   written before the trial starts, so that a restart uses the same setting
    trials/trial-007/trial.json        the TrialRecord, written last: while it is missing, the trial is not finished
    trials/trial-007/adapter/          PEFT's own files
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from retune import store
from retune.records import Role, TrialRecord, by_number, parse, seal
from retune.search import Observation
from retune.selection.expected import by_expectation, expected
from retune.selection.ranking import candidates
from retune.space import Assignment
from retune.study import Search, Study
from retune.trials.task import TrialTask

BASE = "trial-000"
DEFAULT = "trial-001"
ISSUED, DONE = "/assignment.json", "/trial.json"
_MARGIN = 5
"""Adapters kept during a search beyond `artifacts.keep`: the final ranking, by expected objective, may differ."""


@dataclass(frozen=True)
class Outcome:
    """The result of an engine: all records, and why the search ended (``trials``, ``failures`` or ``hours``)."""

    records: list[TrialRecord]
    stopped_by: str


def trial_name(number: int, repeat: int = 0, proxy: bool = False) -> str:
    """Return the name of a trial.

    Args:
        number: of the setting in its search.
        repeat: number of a further seed of the setting, from 1; 0 for its first training.
        proxy: whether it is trained on a part of the data.

    """
    return f"trial-{number:03d}" + (f"-seed-{repeat}" if repeat else "") + ("-proxy" if proxy else "")


def _is_task_or_record(name: str) -> bool:
    """Return whether a name relative to `trials/` is that of a task or record."""
    return name.count("/") == 1 and name.endswith((ISSUED, DONE))


class Ledger:
    """The issued tasks and finished records of one search, in memory and on disk.

    Args:
        folder: URI of the search's folder.
        files: contents of the files below `trials/`, by names relative to it; read from the store by default.

    """

    def __init__(self, folder: str, files: Mapping[str, bytes] | None = None) -> None:
        self.folder = folder
        self.tasks: dict[str, TrialTask] = {}
        self.records: dict[str, TrialRecord] = {}
        self._unpruned: dict[str, TrialRecord] = {}
        if files is None:
            # Read from the search's folder, not from `trials/`, since that is where a bucket has its gathered objects
            below = store.contents(
                folder,
                lambda name: name.startswith("trials/") and _is_task_or_record(name.removeprefix("trials/")),
            )
            files = {name.removeprefix("trials/"): content for name, content in below.items()}
        issued = [name for name in files if _is_task_or_record(name) and name.endswith(ISSUED)]
        for name in sorted((each.removesuffix(ISSUED) for each in issued), key=by_number):
            task = parse(TrialTask, files[name + ISSUED], self._issued(name))
            self.tasks[name] = self._here(task)
            if (done := name + DONE) in files:
                record = parse(TrialRecord, files[done], store.join(folder, "trials", done))
                if record.adapter_uri == store.join(task.folder, "adapter"):
                    record.adapter_uri = store.join(self.tasks[name].folder, "adapter")
                self.finish(record)

    def _here(self, task: TrialTask) -> TrialTask:
        """Return a task with its folder in this search's: the search may have been moved or copied since it was issued."""
        # trials/trial-007, under Katib katib/<its name there>
        inner = task.folder.rstrip("/").rsplit("/", 2)[1:]
        return task.model_copy(update={"folder": store.join(self.folder, *inner)})

    def _task(self, name: str) -> TrialTask:
        return self._here(parse(TrialTask, store.read(self._issued(name)), self._issued(name)))

    def _issued(self, name: str) -> str:
        return store.join(self._trial_folder(name), "assignment.json")

    def _trial_folder(self, name: str) -> str:
        return store.join(self.folder, "trials", name)

    def issue(
        self,
        number: int,
        role: Role,
        assignment: Assignment,
        seed: int,
        repeat: int = 0,
    ) -> TrialTask:
        """Write the assignment of a new trial and return its task; the task of an issued trial is returned unchanged.

        Args:
            number: of the setting in the search.
            role: of the trial, see `TrialRecord`.
            assignment: hyper-parameters by name.
            seed: of the trial.
            repeat: number of a further seed of the setting, from 1; 0 for its first training.

        Raises:
            RetuneError: if the assignment cannot be written.

        """
        name = trial_name(number, repeat, role == "proxy")
        if name not in self.tasks:
            task = TrialTask(
                trial=name,
                number=number,
                role=role,
                assignment=assignment,
                seed=seed,
                folder=self._trial_folder(name),
            )
            store.write(self._issued(name), _content(task))
            self.tasks[name] = task
        return self.tasks[name]

    def claim(self, assignment: Assignment, seed: int, folder: str, default: bool) -> TrialTask:
        """Return the task of a trial that Katib runs in `folder`; a new trial gets the next free number.

        Number 1 is reserved for the `default` setting. Two engines may number the same trial at once (one on a lost node,
        and its replacement): only one of them can create the file, and the other reads the number from it.
        """
        for number in itertools.chain([1] if default else [], itertools.count(2)):
            name = trial_name(number)
            if name not in self.tasks:
                role: Role = "default" if number == 1 else "search"
                task = TrialTask(
                    trial=name, number=number, role=role, assignment=assignment, seed=seed, folder=folder
                )
                if not store.create(self._issued(name), _content(task)):
                    task = self._task(name)
                self.tasks[name] = task
            if self.tasks[name].folder == folder:
                return self.tasks[name]
        raise AssertionError("unreachable")

    def done(self, task: TrialTask) -> bool:
        """Return whether a trial is finished, failed, or trained as far as its task demands."""
        record = self.records.get(task.trial)
        return record is not None and record.share >= task.until

    def finish(self, record: TrialRecord, write: bool = False) -> None:
        """Add a finished trial; with `write` also store its record, which the trial's own process did not."""
        if write:
            store.write(store.join(self._trial_folder(record.trial), "trial.json"), record.to_json())
        self.records[record.trial] = record
        self._unpruned.pop(record.trial, None)
        if record.adapter_uri is not None:
            self._unpruned[record.trial] = record

    def observations(self) -> list[Observation]:
        """Return the default and search trials as observations; those without a record count as running.

        Interrupted trials are left out, so their settings may be tried again.
        """
        observations = []
        searched = _searched(self.tasks.values())
        for task in self.tasks.values():
            record = self.records.get(task.trial)
            if task.role not in searched:
                continue
            if record is None:
                observations.append(Observation(task.assignment, "running", {}, task.trial, task.number))
            elif record.status in ("completed", "early_stopped"):
                observations.append(
                    Observation(
                        task.assignment,
                        record.status,
                        record.values,
                        task.trial,
                        task.number,
                        rungs=tuple((rung.share, rung.loss) for rung in record.rungs),
                    )
                )
            elif record.status == "failed":
                observations.append(Observation(task.assignment, "failed", {}, task.trial, task.number))
        return observations

    def searched(self) -> list[TrialRecord]:
        """Return the finished records that the search is based on; with `search.proxy`, those on part of the data."""
        roles = _searched(self.tasks.values())
        return [record for record in self.records.values() if record.role in roles]

    def issue_whole(self, study: Study) -> list[TrialTask]:
        """Issue the trials on all data, of the default and the best settings, after a search on part of the data."""
        search = study.search
        assert search.proxy is not None
        parts = [record.model_copy(update={"role": "search"}) for record in self.searched()]
        ranked = by_expectation(
            candidates(parts, search.objective, search.constraints),
            expected(parts, search.objective, search.space),
            search.objective,
        )
        best = [(record.number, record.assignment) for record in ranked if record.number != 1]
        default = search.space.default() or {}
        return [
            self.issue(number, "default" if number == 1 else "search", assignment, study.seed)
            for number, assignment in [(1, default), *best[: search.proxy.full]]
        ]

    def ranking(self, search: Search) -> list[TrialRecord]:
        """Return the completed default and search trials that satisfy the constraints, best expected objective first."""
        trials = [record for record in self.records.values() if record.role != "proxy"]
        return by_expectation(
            self._measured(search), expected(trials, search.objective, search.space), search.objective
        )

    def _measured(self, search: Search) -> list[TrialRecord]:
        """Return the same trials by their measured objective, best first; ties by number."""
        return candidates(list(self.records.values()), search.objective, search.constraints)

    def issue_repeats(self, study: Study) -> list[TrialTask]:
        """Issue repeats with other seeds, of the finalists and of the default setting.

        The choice ignores the results of repeats, so that a resumed run chooses the same trials.
        """
        search = study.search
        once = [record for record in self.records.values() if record.role not in ("repeat", "proxy")]
        ranked = by_expectation(
            self._measured(search), expected(once, search.objective, search.space), search.objective
        )
        ranked = [record for record in ranked if record.adapter_uri] or ranked
        finalists = ranked[: search.finalists] + [r for r in ranked if r.trial == DEFAULT]
        chosen = {record.trial: record for record in finalists}
        return [
            self.issue(record.number, "repeat", record.assignment, study.seed + k, repeat=k)
            for record in chosen.values()
            for k in range(1, study.search.repeats + 1)
        ]

    def outcome(self, study: Study, stopped_by: str) -> Outcome:
        """Delete the adapters that are no longer needed and return all records in the order of their numbers."""
        ranked = [record for record in self.ranking(study.search) if record.adapter_uri]
        best, worst = ranked[: study.artifacts.keep], ranked[len(ranked) - study.benchmark.bottom :]
        self.prune({record.trial for record in best + worst} | {DEFAULT})
        return Outcome([self.records[name] for name in sorted(self.records, key=by_number)], stopped_by)

    def kept(self, study: Study) -> set[str]:
        """Return the trials whose adapters are kept during the search: the best and worst by their measured values.

        These are `_MARGIN` more than in the end, when the expected objective decides. A trial whose adapter was deleted
        is not considered again: it was not among the best or worst, and further trials cannot change that.
        """
        search, bottom = study.search, study.benchmark.bottom
        ranked = candidates(list(self._unpruned.values()), search.objective, search.constraints)
        best, worst = ranked[: study.artifacts.keep + _MARGIN], ranked[-bottom - _MARGIN :] if bottom else []
        return {record.trial for record in best + worst} | {DEFAULT}

    def prune(self, keep: set[str]) -> None:
        """Delete the adapters of all finished search trials except `keep`; their records stay, without an adapter."""
        for record in list(self._unpruned.values()):
            if record.trial in keep or record.adapter_uri is None:
                continue
            pruned = record.model_copy(update={"adapter_uri": None})
            # Before the files are deleted: a record must never point to missing files
            self.finish(pruned, write=True)
            store.remove(record.adapter_uri)


def _content(task: TrialTask) -> bytes:
    # Without what changes during a search with `search.stopping`: the file is written once
    content = task.model_dump(mode="json", exclude={"rungs", "until"})
    return (json.dumps(seal(content), indent=2) + "\n").encode()


def _searched(trials: Iterable[TrialTask | TrialRecord]) -> tuple[Role, ...]:
    """Return the roles of the trials that a search is based on: proxy trials, if there are any."""
    return ("proxy",) if any(trial.role == "proxy" for trial in trials) else ("default", "search")


def warm_start(study: Study) -> list[Observation]:
    """Return the finished search trials of earlier studies whose settings are in this study's space."""
    observations: list[Observation] = []
    for uri in study.search.warm_start:
        records = Ledger(uri).records.values()
        searched = _searched(records)
        for record in records:
            if record.status == "early_stopped":  # its final loss is unknown
                continue
            if record.role in searched and study.search.space.contains(record.assignment):
                observations.append(observation(record, f"warm-{len(observations)}", uri))
    return observations


def observation(record: TrialRecord, name: str, source: str) -> Observation:
    """Return a finished trial as an observation from the earlier study `source`."""
    status: Literal["completed", "failed"] = "completed" if record.status == "completed" else "failed"
    return Observation(record.assignment, status, dict(record.values), name, warm=True, source=source)
