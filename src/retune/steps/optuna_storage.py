"""Exports a study into an Optuna storage, for optuna-dashboard and Optuna's analyses and plots."""

from __future__ import annotations

import importlib.util
import warnings
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from retune.errors import InputError, RetuneError, first_line
from retune.records import BenchRecord, TrialRecord
from retune.report.folder import newest_search, study_in
from retune.selection.ranking import measured
from retune.space import Parameter, Space, Value
from retune.study import Constraint, Study
from retune.workspace.search_folder import SEARCH, SearchFolder

SEARCH_ATTR = "retune.search"
_ENDINGS = (".db", ".sqlite", ".sqlite3")


def export(folder: str, storage: str) -> tuple[str, int, int]:
    """Add the finished trials of a study to an Optuna storage; existing ones are not changed.

    The default and the search's trials become trials of Optuna, with states, values, constraints, distributions, times and
    validation curves. The untuned base has no setting, and a repeat has that of another trial, so both become
    attributes of the study, where they do not distort `best_trial` and importances.

    Args:
        folder: of a study or one of its searches.
        storage: SQLAlchemy URL of a database, or the path of an SQLite file by one of its usual endings.

    Returns:
        the study's name there, the number of added trials, and that of all its trials.

    Raises:
        InputError: if `storage` is neither, Optuna is not installed, or the storage has a study of that name from another search.
        RetuneError: if the storage cannot be opened.
    """
    url = _url(storage)
    if importlib.util.find_spec("optuna") is None:
        raise InputError("--optuna needs the package optuna: pip install optuna")
    import optuna

    search = SearchFolder(newest_search(folder))
    study = study_in(search.uri)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        optuna_study = optuna.create_study(
            study_name=study.name,
            storage=url,
            directions=[objective.goal for objective in study.search.objectives],
            load_if_exists=True,
        )
    except Exception as error:  # each database driver has its own exceptions
        why = error.__cause__ or error
        raise RetuneError(f"the storage {storage} cannot be opened: {first_line(why)}") from error
    search_name = optuna_study.user_attrs.get(SEARCH_ATTR)
    if search_name not in (None, search.name) or (search_name is None and optuna_study.trials):
        raise InputError(
            f"{storage} has a study {study.name!r} already, of {search_name or 'another program'}, but this is {search.name}: "
            "name another storage, or delete that study with `optuna delete-study`"
        )
    optuna_study.set_user_attr(SEARCH_ATTR, search.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns that `set_metric_names` is experimental
        optuna_study.set_metric_names([objective.metric for objective in study.search.objectives])
    records = sorted(search.trials.values(), key=lambda record: (record.number, record.trial))
    _describe(optuna_study, study, search.uri, records)
    benches = search.benches(study) if search.has(SEARCH) else []
    existing = {trial.user_attrs.get("trial") for trial in optuna_study.trials}
    new = [r for r in records if r.role in ("default", "search") and r.trial not in existing]
    for record in new:
        optuna_study.add_trial(_trial(record, study, [b for b in benches if b.model == record.trial]))
    return study.name, len(new), len(existing) + len(new)


def _url(storage: str) -> str:
    """Return the URL of a storage. A bare word may be meant as a study's name or a folder, so it makes no file."""
    if "://" in storage:
        return storage
    if not storage.endswith(_ENDINGS):
        raise InputError(
            f"--optuna is the URL of a database, or a file that ends in {', '.join(_ENDINGS)}, but got {storage!r}; write "
            f"sqlite:///{storage.rstrip('/') or 'study'}.db"
        )
    return f"sqlite:///{storage}"


def distribution(parameter: Parameter) -> Any:
    """Return a parameter's Optuna distribution; ordered lists become categories, since their steps may differ."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.values is not None:
        return CategoricalDistribution(parameter.values)
    low, high, log = parameter.low, parameter.high, parameter.scale == "log"
    assert low is not None
    assert high is not None
    if parameter.kind == "real":  # no step: a default may lie between two levels
        return FloatDistribution(low, high, log=log)
    step = int(parameter.step) if parameter.step and not log else 1
    default = parameter.default if isinstance(parameter.default, int | float) else low
    on_grid = (high - low) % step == 0 and (default - low) % step == 0
    return IntDistribution(int(low), int(high), log=log, step=step if on_grid else 1)


def _describe(optuna_study: Any, study: Study, uri: str, records: Sequence[TrialRecord]) -> None:
    metric = study.search.objective.metric
    repeats: dict[str, list[float]] = defaultdict(list)
    for record in records:
        value = record.objective(metric)
        if value is not None and record.role == "repeat":
            repeats[record.trial.rpartition("-seed-")[0]].append(value)
        elif value is not None and record.role == "base":
            optuna_study.set_user_attr("untuned_base", value)
    facts: dict[str, Any] = {
        "folder": uri if "://" in uri else str(Path(uri).resolve()),
        "base": study.model.base,
        "algorithm": study.search.algorithm,
        "repeats": dict(repeats),
    }
    for name, fact in facts.items():
        optuna_study.set_user_attr(name, fact)


def _trial(record: TrialRecord, study: Study, benches: Sequence[BenchRecord]) -> Any:
    import optuna
    from optuna.trial import TrialState

    objectives = study.search.objectives
    values = [record.objective(objective.metric) for objective in objectives]
    complete = all(value is not None for value in values)
    state = TrialState.COMPLETE if complete else TrialState.FAIL
    curve = {point.step: point.value for point in record.curves.get(objectives[0].metric, [])}
    if record.status == "early_stopped" and len(objectives) == 1:
        state = TrialState.PRUNED
    params, distributions = _params(record.assignment, study.search.space)
    facts = {
        "trial": record.trial, "role": record.role, "seed": record.seed, "seconds": record.seconds, "tokens": record.tokens,
        "reason": record.reason, "failure": record.failure, "adapter": record.adapter_uri, **record.values,
        **{f"bench.{bench.task}": bench.score for bench in benches},
    }  # fmt: skip
    limits = [_violation(record, constraint) for constraint in study.search.constraints]
    trial = optuna.trial.create_trial(
        state=state,
        values=values if complete else None,
        params=params,
        distributions=distributions,
        user_attrs={name: value for name, value in facts.items() if value is not None},
        system_attrs={"constraints": limits} if limits else {},  # the form that Optuna 4 and 5 both read
        intermediate_values=curve if len(objectives) == 1 else None,
    )
    started, ended = _time(record.started), _time(record.finished)
    trial.datetime_start = started or trial.datetime_start
    trial.datetime_complete = ended or trial.datetime_complete
    return trial


def _params(assignment: dict[str, Value], space: Space) -> tuple[dict[str, Any], dict[str, Any]]:
    params: dict[str, Any] = {}
    distributions: dict[str, Any] = {}
    known = {name: value for name, value in assignment.items() if name in space.names}
    active = space.active(space.encode(known)) if space.contains(known) else [True] * len(space.names)
    for parameter, is_active in zip(space.parameters, active, strict=True):
        value = assignment.get(parameter.name)
        if value is None or not is_active or not parameter.contains(value):
            continue
        if parameter.values is not None:
            value = next(known for known in parameter.values if known == value or str(known) == str(value))
        params[parameter.name] = int(value) if parameter.kind == "integer" else value
        distributions[parameter.name] = distribution(parameter)
    return params, distributions


def _violation(record: TrialRecord, constraint: Constraint) -> float:
    """Return by how much a trial violates a constraint, in units of its metric: above 0 is violated; 1 if not measured."""
    value = measured(record, constraint.metric)
    if value is None:
        return 1.0
    return value - constraint.max if constraint.max is not None else (constraint.min or 0.0) - value


def _time(rfc3339: str) -> datetime | None:
    """Return a record's time as Optuna stores times: local, without time zone."""
    try:
        return datetime.fromisoformat(rfc3339).astimezone().replace(tzinfo=None)
    except ValueError:
        return None
