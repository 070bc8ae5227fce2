"""Scores from several sources joined: CSV and JSON tables, folders that `retune bench` wrote, and searches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retune import store, study
from retune.errors import InputError, RetuneError, first_line
from retune.records import BenchRecord, TrialRecord, by_number, loads, parse
from retune.selection import rule as rules
from retune.selection.score_tables import Scored, read_table
from retune.selection.scoreboard import MEAN_SCORE, PLACE, Method, Scoreboard, scoreboard
from retune.study import Objective, Select


@dataclass
class ScoreFiles:
    """The joined sources: models by method, their tasks, the objective that ranks them and the rule that chooses."""

    methods: list[Method]
    tasks: list[str]
    objective: Objective
    rule: Select


def compare_scores(
    sources: Sequence[str],
    weights: str | None = None,
    order: str | None = None,
    tasks: str | None = None,
    best: int = 10,
    worst: int = 10,
) -> Scoreboard:
    """Do the same as `compare`, with the texts of the command line.

    Args:
        sources: ``[METHOD=]PATH`` each.
        weights: ``task=weight,…``.
        order, tasks: ``task,…``.
        best, worst: how many models a table shows from either end.

    Raises:
        InputError: with every problem of the sources or of the rule.

    """
    return compare(sources, _weights(weights or ""), _list(order or ""), _list(tasks or ""), best, worst)


def compare(
    sources: Sequence[str],
    weights: Mapping[str, float] | None = None,
    order: Sequence[str] = (),
    tasks: Sequence[str] = (),
    best: int = 10,
    worst: int = 10,
) -> Scoreboard:
    """Return the tables of scores from several sources and the choice among them; see `read_scores`.

    Args:
        sources: ``[METHOD=]PATH`` each.
        weights, order, tasks: of the rule, as in `read_scores`.
        best, worst: how many models a table shows from either end.

    Raises:
        InputError: with every problem of the sources or of the rule.

    """
    read = read_scores(sources, weights, order, tasks)
    name = ", ".join(source.rstrip("/").rpartition("/")[2] for source in sources)
    return scoreboard(name, read.methods, read.objective, read.rule, read.tasks, best=best, worst=worst)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _weights(text: str) -> dict[str, float]:
    weights, problems = {}, []
    for part in _list(text):
        task, _, weight = part.partition("=")
        try:
            weights[task.strip()] = float(weight)
        except ValueError:
            problems.append(f"weights have the form task=number,…, but got {part!r}")
    if problems:
        raise InputError(problems, "the rule")
    return weights


def _rule(weights: Mapping[str, float], order: Sequence[str], tasks: Sequence[str]) -> Select:
    """Return the rule for scores of any tasks, while a study's rule takes only those that retune can run."""
    problems = []
    if weights and order:
        problems.append("give weights or an order, not both: they are two rules")
    outside = [name for name in [*weights, *order] if name not in [*tasks, "objective"]]
    if outside:
        problems.append(
            f"the rule may name only {list(tasks)} (and `objective` in an order), but names {outside}"
        )
    if problems:
        raise InputError(problems, "the rule")
    rule = "lexicographic" if order else "weighted"
    fields: dict[str, Any] = {"rule": rule, "weights": dict(weights), "order": list(order)}
    return Select.model_construct(**fields)  # not validated: that would refuse other tasks than retune's own


def read_scores(
    sources: Sequence[str],
    weights: Mapping[str, float] | None = None,
    order: Sequence[str] = (),
    tasks: Sequence[str] = (),
) -> ScoreFiles:
    """Read and join all sources; a model that several of them name is one model.

    Args:
        sources: ``[METHOD=]PATH`` each. A CSV or JSON file has one row per model: ``model``; ``method``, ``role``
            (search, default, base), ``loss`` or ``rank`` if known; every other column is a task, with
            ``<task>_n`` and ``<task>_stderr`` beside it if known. Lines that begin with # are skipped. A
            column with a value above 1 is in percent. A folder holds records of `retune bench`, or a search.
        weights, order: of the rule: lexicographic if there is an order, else weighted, equally by default.
        tasks: those to compare; default: all in the sources.

    Raises:
        InputError: with every problem of every source; if the rule names what is no task, or is two rules.

    """
    problems: list[str] = []
    models: dict[tuple[str, str], Scored] = {}
    objectives: list[Objective] = []
    for source in sources:
        method, path = _split(source)
        try:
            scored, objective = _read(method, path)
        except InputError as error:
            problems += [f"{error.subject or path}: {problem}" for problem in error.problems]
            continue
        objectives += [objective] if objective and objective not in objectives else []
        for model in scored:
            problems += _join(models, model, path)
    if len(objectives) > 1:
        problems.append(
            f"all searches must have one objective, but these have {[o.metric for o in objectives]}"
        )
    if not models and not problems:
        problems.append("there is no model in any of the sources")
    if problems:
        raise InputError(problems, "scores")
    known = list(dict.fromkeys(task for model in models.values() for task in model.benches))
    unknown = [task for task in tasks if task not in known]
    if unknown:
        raise InputError(f"the tasks must be among those with scores, {known}, but got {unknown}", "scores")
    kept = list(tasks) or known
    rule = _rule(weights or {}, order, kept)
    objective = objectives[0] if objectives else Objective()
    return _finish(list(models.values()), objective, rule, kept)


def _split(source: str) -> tuple[str, str]:
    """Return method and path of ``[METHOD=]PATH``; a path may hold an equals sign."""
    name, equals, path = source.partition("=")
    return (name, path) if equals and "/" not in name else ("", source)


def _read(method: str, path: str) -> tuple[list[Scored], Objective | None]:
    if path.endswith((".csv", ".json")):
        return read_table(method, path), None
    names = store.listing(path)
    if "study.json" in names:
        return _from_search(method, path, names)
    return _from_benches(method, path, names), None


def _from_benches(method: str, path: str, names: Iterable[str]) -> list[Scored]:
    records = _records(BenchRecord, path, [name for name in names if name.endswith(".json")])
    if not records:
        raise InputError(
            "scores are a .csv or .json file, a folder that `retune bench` wrote or a search, but this is none",
            path,
        )
    models: dict[str, Scored] = {}
    for record in records:
        model = models.setdefault(record.model, Scored(method, record.model))
        model.role = "search" if record.adapter_digest else "base"
        model.benches[record.task] = record
    return list(models.values())


def _from_search(method: str, path: str, names: Iterable[str]) -> tuple[list[Scored], Objective]:
    names = list(names)
    searched = study.parse(
        loads(store.read(store.join(path, "study.json")), store.join(path, "study.json")), path
    )
    trials = _records(
        TrialRecord, path, [n for n in names if n.startswith("trials/") and n.endswith("/trial.json")]
    )
    benches = _records(
        BenchRecord, path, [n for n in names if n.startswith("bench/") and n.endswith(".json")]
    )
    method = method or searched.search.algorithm
    models = {t.trial: Scored(method, t.trial, t.role, trial=t) for t in trials}
    for record in benches:
        if record.model in models:
            models[record.model].benches[record.task] = record
    return list(models.values()), searched.search.objective


def _records(kind: Any, path: str, names: Iterable[str]) -> list[Any]:
    records, problems = [], []
    for name in sorted(names, key=by_number):
        try:
            records.append(parse(kind, store.read(store.join(path, name)), name))
        except RetuneError as error:
            problems.append(first_line(error))
    if problems:
        raise InputError(problems, path)
    return records


def _join(models: dict[tuple[str, str], Scored], new: Scored, path: str) -> list[str]:
    """Add a model to those of earlier sources; return the contradictions between them."""
    known = models.setdefault((new.method, new.name), Scored(new.method, new.name))
    problems = []
    for name in ("loss", "rank", "trial"):
        value = getattr(new, name)
        if value is None:
            continue
        if getattr(known, name) not in (None, value):
            problems.append(f"{path}: {new.name} has another {name} in another source")
        setattr(known, name, value)
    known.role = new.role if known.role in (None, "search") else known.role
    twice = sorted(known.benches.keys() & new.benches.keys())
    if twice:
        problems.append(f"{path}: {new.name} has scores on {twice} already, from another row or source")
    known.benches.update(new.benches)
    return problems


def _finish(models: list[Scored], objective: Objective, rule: Select, tasks: list[str]) -> ScoreFiles:
    """Choose the objective that ranks the models, and convert them to trial records."""
    tuned = [m for m in models if m.role != "base" and m.trial is None]
    by_loss = any(m.loss is not None for m in tuned) or any(m.trial is not None for m in models)
    by_rank = not by_loss and any(m.rank is not None for m in tuned)
    column = "loss" if by_loss else "rank"
    lacking = [m.name for m in tuned if getattr(m, column) is None]
    if (by_loss or by_rank) and lacking:
        raise InputError(
            f"`{column}` must be known of every tuned model or of none, but {lacking} lack it", "scores"
        )
    if by_rank:
        objective = Objective(metric=PLACE, goal="minimize")
    elif not by_loss:
        objective = Objective(metric=MEAN_SCORE, goal="maximize")
    several = len({m.method for m in models if m.method}) > 1
    methods: dict[str, Method] = {}
    for number, model in enumerate(models):
        name = f"{model.method} {model.name}" if several and model.method else model.name
        trial = model.trial or TrialRecord(
            trial=name, number=number, role=model.role or "search", assignment={}, seed=0, status="completed",
            values=_values(model, objective.metric, rule, tasks),
        )  # fmt: skip
        method = methods.setdefault(model.method, Method(model.method, [], []))
        method.trials.append(trial.model_copy(update={"trial": name}))
        method.benches.extend(b.model_copy(update={"model": name}) for b in model.benches.values())
    return ScoreFiles(list(methods.values()), tasks, objective, rule)


def _values(model: Scored, metric: str, rule: Select, tasks: Sequence[str]) -> dict[str, float]:
    if metric == MEAN_SCORE:
        weights = rules.task_weights(rule, tasks)
        return {metric: rules.mean(model.benches, weights)} if weights.keys() <= model.benches.keys() else {}
    value = model.rank if metric == PLACE else model.loss
    return {} if value is None else {metric: value}
