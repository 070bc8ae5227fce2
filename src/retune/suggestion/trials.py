"""Converts between Katib's trials and our observations.

Katib sends trials in any order, also those of experiments with the same name in other namespaces; running and failed
ones have no metrics, and a metric is a text that may be empty, ``unavailable`` or ``NaN``. Katib does not send trials
whose metrics were never collected: a point that was issued (`experiment.ISSUED`) but is not among the trials counts as
failed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

from retune.records import by_parts
from retune.search import Observation
from retune.space import Assignment
from retune.suggestion import messages as katib
from retune.suggestion.experiment import Search, strings

# Labels of a trial that the local engine sets and Katib does not
_NUMBER, _WARM, _SOURCE = "retune.number", "retune.warm-start", "retune.source"
_RUNGS = "retune.rungs"
_WHOLE = "[0-9]{1,18}"  # fits into 64 bits
_STATUS: dict[int, Literal["completed", "failed", "running", "early_stopped"]] = {
    katib.CREATED: "running",
    katib.RUNNING: "running",
    katib.SUCCEEDED: "completed",
    katib.EARLY_STOPPED: "early_stopped",
}
_CONDITION = {
    "running": katib.RUNNING,
    "completed": katib.SUCCEEDED,
    "early_stopped": katib.EARLY_STOPPED,
    "failed": katib.FAILED,
}


def trial_of(search: Search, entry: Observation) -> Any:
    """Return the Trial message of an observation; what Katib has no field for is passed as labels, which it leaves empty."""
    trial = katib.Trial(name=entry.name)
    for name, text in strings(search, dict(entry.assignment)).items():
        trial.spec.parameter_assignments.assignments.add(name=name, value=text)
    if entry.number is not None:
        trial.spec.labels.add(key=_NUMBER, value=str(entry.number))
    if entry.warm:
        trial.spec.labels.add(key=_WARM, value="true")
        trial.spec.labels.add(key=_SOURCE, value=entry.source)
    if entry.rungs:
        rungs = ";".join(f"{share!r}={value!r}" for share, value in entry.rungs)
        trial.spec.labels.add(key=_RUNGS, value=rungs)
    trial.status.condition = _CONDITION[entry.status]
    for metric, value in entry.values.items():
        trial.status.observation.metrics.add(name=metric, value=repr(float(value)))
    return trial


def history_of(search: Search, trials: Iterable[Any], first: bool = False) -> list[Observation]:
    """Return the observations of this search, without trials of other experiments and with the trials not sent.

    At the `first` call an experiment has no trials yet, so all that are sent are those of others.
    """
    own = [
        entry for trial in sorted(trials, key=_order) if (entry := _observation(search, trial)) is not None
    ]
    own = [entry for entry in own if entry.warm] if first else own
    history = list(search.warm) + [
        replace(e, number=number if e.number is None else e.number) for number, e in enumerate(own)
    ]
    issued = decode_issued(search)
    if not issued:
        return history
    ours = {levels for levels, _ in issued}
    history = [e for e in history if e.warm or search.space.encode(e.assignment) in ours]
    visible = {search.space.encode(e.assignment) for e in history}
    return history + [
        Observation(
            search.space.decode(levels),
            "running" if number >= len(issued) - search.parallel else "failed",
            name=f"hidden-{number}",
            number=len(own) + number,
        )
        for levels, number in issued
        if levels not in visible
    ]


def encode_issued(search: Search, history: Sequence[Observation], replied: Sequence[Assignment]) -> str:
    """Return the text of the setting `ISSUED`: the levels of every point issued so far, as ``3.0.17;4.1.200``."""
    before = search.issued or ";".join(_levels(search, e.assignment) for e in history if not e.warm)
    return ";".join(filter(None, [before, *(_levels(search, assignment) for assignment in replied)]))


def decode_issued(search: Search) -> list[tuple[tuple[int, ...], int]]:
    """Return the levels and the place of each point issued so far; points that are not in the space are left out."""
    points = []
    for number, text in enumerate(filter(None, search.issued.split(";"))):
        if not re.fullmatch(rf"{_WHOLE}(\.{_WHOLE})*", text):
            continue
        levels = tuple(map(int, text.split(".")))
        tops = [parameter.levels for parameter in search.space.parameters]
        if len(levels) == len(tops) and all(level < top for level, top in zip(levels, tops, strict=True)):
            points.append((levels, number))
    return points


def _levels(search: Search, assignment: Any) -> str:
    return ".".join(map(str, search.space.encode(assignment)))


def _order(trial: Any) -> tuple[Any, ...]:
    """Order by completion, unfinished ones last and by start; then by name, digits by their value."""
    done, begun = trial.status.completion_time, trial.status.start_time
    return done == "", done, begun, by_parts(trial.name)


def _observation(search: Search, trial: Any) -> Observation | None:
    assigned = {entry.name: entry.value for entry in trial.spec.parameter_assignments.assignments}
    metric = trial.spec.objective.objective_metric_name
    if set(assigned) != set(search.space.names) or metric not in ("", search.objective.metric):
        return None
    try:
        assignment = {name: search.value(name, assigned[name]) for name in search.space.names}
    except ValueError:
        return None
    if not search.space.contains(assignment):
        return None
    values: dict[str, float] = {}
    for entry in trial.status.observation.metrics:
        values.setdefault(entry.name, _float(entry.value))
    labels = {entry.key: entry.value for entry in trial.spec.labels}
    number = int(labels[_NUMBER]) if re.fullmatch(_WHOLE, labels.get(_NUMBER, "")) else None
    status = _STATUS.get(trial.status.condition, "failed")
    warm, source = labels.get(_WARM) == "true", labels.get(_SOURCE, "")
    rungs = _rungs(labels.get(_RUNGS, ""))
    return Observation(assignment, status, values, trial.name, number, warm, source, rungs)


def _rungs(text: str) -> tuple[tuple[float, float], ...]:
    """Return the shares and values in the label of rungs; invalid ones are left out."""
    pairs = [
        (_float(share), _float(value)) for share, _, value in (p.partition("=") for p in text.split(";"))
    ]
    return tuple((share, value) for share, value in pairs if 0 < share < 1 and math.isfinite(value))


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
