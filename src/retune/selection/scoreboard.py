"""The comparison tables of scored models, laid out as in Tribes et al. 2024 (Tables 1, 4a and 4b)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, Field

from retune.records import BenchRecord, Record, Role, TrialRecord
from retune.selection import rule as rules
from retune.selection.association import Association, associate
from retune.selection.choice import select
from retune.selection.ranking import candidates
from retune.selection.record import Selection
from retune.study import Constraint, Objective, Select

PLACE = "rank"
"""The metric of models whose place by the loss is known, but not the loss."""
MEAN_SCORE = "mean_score"
"""The metric of models without any known loss: the mean of their scores."""


@dataclass(frozen=True)
class Method:
    """The models of one method (an algorithm, a study); those of a method without a name appear in every table."""

    name: str
    trials: list[TrialRecord]
    benches: list[BenchRecord]


class Line(BaseModel):
    """One model of a table; `best` names the columns in which no other line is better, `place` is by the objective."""

    model: str
    role: Role
    place: int | None
    objective: float | None
    scores: dict[str, float]
    best: list[str] = Field(default_factory=list)
    pareto: bool = False
    chosen: bool = False


class Table(BaseModel):
    """The best and the worst models of one method, with default and base.

    Attributes:
        lines: best objective first, the untuned base last.
        left_out: scored models between the best and the worst that are not shown.

    """

    method: str
    lines: list[Line]
    left_out: int = 0


class Statistic(BaseModel):
    """One score over some models of a method; `sd` is the sample standard deviation, None of a single model."""

    method: str
    models: str
    task: str
    n: int
    min: float
    max: float
    mean: float
    sd: float | None = None


class Correlation(Association):
    """Rank correlation of the objective with a task's score over some models of a method."""

    method: str
    models: str
    task: str


class Scoreboard(Record):
    """All tables of a comparison, and the choice.

    Attributes:
        metric, goal: the objective that ranks; ``rank`` and ``mean_score`` stand in where no loss is known.
        selection: the choice over all methods together.

    """

    name: str
    metric: str
    goal: str
    tasks: list[str]
    tables: list[Table]
    statistics: list[Statistic]
    correlations: list[Correlation]
    selection: Selection
    notes: list[str] = Field(default_factory=list)


def scoreboard(
    name: str,
    methods: Sequence[Method],
    objective: Objective,
    rule: Select,
    tasks: Sequence[str],
    constraints: Sequence[Constraint] = (),
    further: Sequence[Objective] = (),
    best: int = 10,
    worst: int = 10,
) -> Scoreboard:
    """Make the tables of each method and choose among the models of all.

    Args:
        name: of the study or of what was compared.
        methods: with models whose names are unique over all methods.
        objective, rule, tasks, constraints, further: as in `select`.
        best, worst: how many models a table shows from either end, by the objective.

    Raises:
        InputError: if weights are unusable, or scores of one task were made from different questions.

    """
    trials = [trial for method in methods for trial in method.trials]
    benches = [bench for method in methods for bench in method.benches]
    selection = select(trials, benches, objective, rule, tasks, constraints, further)
    if objective.metric == MEAN_SCORE:  # each score is part of that mean, so their correlation says nothing
        selection.associations, selection.correlation = {}, {}
    board = Scoreboard(
        name=name,
        metric=objective.metric,
        goal=objective.goal,
        tasks=list(tasks),
        tables=[],
        statistics=[],
        correlations=[],
        selection=selection,
    )
    scores: dict[str, dict[str, BenchRecord]] = {trial.trial: {} for trial in trials}
    for bench in benches:
        scores.setdefault(bench.model, {})[bench.task] = bench
    shared = [trial for method in methods if not method.name for trial in method.trials]
    named = [method for method in methods if method.name] or [Method("", shared, [])]
    for method in named:
        own = method.trials + (shared if method.name else [])
        ranking = candidates(own, objective, constraints)
        scored = [t for t in ranking if all(task in scores[t.trial] for task in tasks)]
        complete = [t for t in scored if all(t.objective(goal.metric) is not None for goal in further)]
        front = rules.front(complete, scores, rules.goals(objective, further, rule, tasks), tasks)
        board.tables.append(_table(method.name, own, ranking, scored, front, scores, board, (best, worst)))
        board.statistics += _statistics(method.name, own, scored, scores, tasks, (best, worst))
        if objective.metric != MEAN_SCORE:
            board.correlations += _correlations(method.name, scored, scores, objective, tasks, best)
    return board


def _table(
    method: str,
    own: Sequence[TrialRecord],
    ranking: Sequence[TrialRecord],
    scored: Sequence[TrialRecord],
    front: Sequence[TrialRecord],
    scores: rules.Scores,
    board: Scoreboard,
    ends: tuple[int, int],
) -> Table:
    best, worst = ends
    places = {trial.trial: rank for rank, trial in enumerate(ranking, 1)}
    shown = [
        trial
        for k, trial in enumerate(scored)
        if k < best
        or k >= len(scored) - worst
        or trial.role == "default"
        or trial.trial == board.selection.chosen
    ]
    others = [t for t in own if t.role == "default" and t not in shown and scores[t.trial]]
    bases = [t for t in own if t.role == "base"]
    lines = []
    for trial in [*shown, *others, *bases]:
        value = trial.objective(board.metric)
        rank = places.get(trial.trial)
        lines.append(
            Line(
                model=trial.trial,
                role=trial.role,
                place=int(value) if board.metric == PLACE and value is not None else rank,
                objective=value,
                scores={
                    task: scores[trial.trial][task].score
                    for task in board.tasks
                    if task in scores[trial.trial]
                },
                pareto=trial in front,
                chosen=trial.trial == board.selection.chosen,
            )
        )
    _mark_best(lines, board)
    return Table(method=method, lines=lines, left_out=len(scored) - len(shown))


def _mark_best(lines: Sequence[Line], board: Scoreboard) -> None:
    """Note on each line the columns in which it is best; equal values are all best."""
    for task in board.tasks:
        top = max((line.scores[task] for line in lines if task in line.scores), default=None)
        for line in lines:
            if line.scores.get(task) == top and top is not None:
                line.best.append(task)
    values = [line.objective for line in lines if line.objective is not None]
    if values and board.metric not in (PLACE, MEAN_SCORE):
        first = min(values) if board.goal == "minimize" else max(values)
        for line in lines:
            if line.objective == first:
                line.best.append(board.metric)


def _statistics(
    method: str,
    own: Sequence[TrialRecord],
    scored: Sequence[TrialRecord],
    scores: rules.Scores,
    tasks: Sequence[str],
    ends: tuple[int, int],
) -> list[Statistic]:
    best, worst = ends
    parts: dict[str, Sequence[TrialRecord]] = {_best_of(best, scored): scored[:best]}
    if worst and len(scored) >= best + worst:
        parts[f"{worst} worst"] = scored[-worst:]
    parts["default setting"] = [t for t in own if t.role == "default"]
    parts["untuned base"] = [t for t in own if t.role == "base"]
    lines = []
    for models, members in parts.items():
        for task in tasks:
            values = [scores[t.trial][task].score for t in members if task in scores[t.trial]]
            if values:
                lines.append(
                    Statistic(
                        method=method, models=models, task=task, n=len(values), min=min(values), max=max(values),
                        mean=statistics.fmean(values), sd=statistics.stdev(values) if len(values) > 1 else None,
                    )
                )  # fmt: skip
    return lines


def _best_of(best: int, scored: Sequence[TrialRecord]) -> str:
    return f"{best} best" if len(scored) > best else f"all {len(scored)}"


def _correlations(
    method: str,
    scored: Sequence[TrialRecord],
    scores: rules.Scores,
    objective: Objective,
    tasks: Sequence[str],
    best: int,
) -> list[Correlation]:
    parts: Mapping[str, Sequence[TrialRecord]] = {
        f"all {len(scored)}": scored,
        _best_of(best, scored): scored[:best],
    }
    correlations = []
    for models, members in parts.items():
        values = [value for t in members if (value := t.objective(objective.metric)) is not None]
        for task in tasks:
            association = associate(values, [scores[t.trial][task].score for t in members])
            if association is not None:
                correlations.append(
                    Correlation(**association.model_dump(), method=method, models=models, task=task)
                )
    return correlations
