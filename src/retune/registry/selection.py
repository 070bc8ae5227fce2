"""Which of the trials to register: ranking, Pareto front, and a stated rule.

Tribes et al. 2024 (appendix "Second round detailed results"): the model with the lowest validation loss does
not give the best benchmark scores, so the loss alone must not choose. Candidates that no other candidate
beats in everything (Pareto optimal) are marked, and the rule of the study picks one of them.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence

from pydantic import BaseModel, Field

from retune.errors import InputError
from retune.records import BenchRecord, Record, Role, TrialRecord, canonical
from retune.registry.ranking import candidates, gain, is_feasible, pareto, rank
from retune.space import Assignment
from retune.study import Constraint, Objective, Select

EQUAL = 1e-12


class Row(BaseModel):
    """One completed trial in the table of a study.

    Attributes:
        rank: place by the objective among the candidates, 1 is best; None for the base and repeats.
        objective: its value. gain_over_base, gain_over_default: positive is better, whatever the goal.
        scores, stderrs, score_gains: by task; the gain is over the untuned base.
        mean_score: the rule's weighted mean, None unless all tasks were scored.
        feasible: whether it keeps the constraints of the study.

    """

    trial: str
    number: int
    role: Role
    seed: int
    assignment: Assignment
    rank: int | None = None
    objective: float
    gain_over_base: float | None = None
    gain_over_default: float | None = None
    scores: dict[str, float] = Field(default_factory=dict)
    stderrs: dict[str, float] = Field(default_factory=dict)
    score_gains: dict[str, float] = Field(default_factory=dict)
    mean_score: float | None = None
    pareto: bool = False
    chosen: bool = False
    feasible: bool = True
    seconds: float = 0.0


class Spread(BaseModel):
    """The objective of one setting over several seeds; `sd` is the sample standard deviation."""

    trial: str
    mean: float
    sd: float
    n: int
    values: list[float]


class Selection(Record):
    """Which trial was chosen, and everything that a person needs to judge it (`selection.json`).

    Attributes:
        metric, goal: the objective.
        chosen: name of the trial, None if there is nothing to choose; never the untuned base.
        rule: how it was chosen, in words.
        ranking: candidates (trained settings that completed), best objective first.
        pareto: candidates scored on all tasks that no other such candidate beats, in the order of `ranking`.
        base, default: names of those trials, if they completed.
        rows: all completed trials, best objective first.
        spread: over seeds, by the trial whose setting was repeated.
        correlation: Spearman's rank correlation of objective and score, by task, over at least 3 models.
        findings: what a person must know before believing the result.

    """

    metric: str
    goal: str
    chosen: str | None
    rule: str
    tasks: list[str] = Field(default_factory=list)
    ranking: list[str] = Field(default_factory=list)
    pareto: list[str] = Field(default_factory=list)
    base: str | None = None
    default: str | None = None
    rows: list[Row] = Field(default_factory=list)
    spread: dict[str, Spread] = Field(default_factory=dict)
    correlation: dict[str, float] = Field(default_factory=dict)
    findings: list[str] = Field(default_factory=list)

    def row(self, trial: str | None) -> Row | None:
        """Return the row of a trial, None if it did not complete."""
        return next((row for row in self.rows if row.trial == trial), None)

    def spread_for(self, trial: str | None) -> Spread | None:
        """Return the spread over seeds of a trial's setting; the widest that was measured if its own was not."""
        widest = max(self.spread.values(), key=lambda spread: spread.sd, default=None)
        return self.spread.get(trial or "", widest)


def select(
    trials: Sequence[TrialRecord],
    benches: Sequence[BenchRecord],
    objective: Objective,
    rule: Select,
    tasks: Sequence[str],
    constraints: Sequence[Constraint] = (),
) -> Selection:
    """Choose the trial to register.

    Args:
        trials: all trials of the study, failed ones too.
        benches: scores of any of them.
        objective: what the search improved.
        rule: how one of the Pareto-optimal candidates is chosen.
        tasks: the study's benchmark tasks; without any, the objective alone chooses.
        constraints: of the study; a trial that breaks one is never chosen.

    Raises:
        InputError: if the rule's weights are unusable.

    """
    weights = _weights(rule, tasks)
    scores: dict[str, dict[str, BenchRecord]] = defaultdict(dict)
    for bench in benches:
        scores[bench.model][bench.task] = bench
    ranking = candidates(trials, objective, constraints)
    base, default = _first(trials, "base", objective), _first(trials, "default", objective)
    scored = [t for t in ranking if all(task in scores[t.trial] for task in tasks)]
    front = _front(scored, scores, objective, tasks)
    chosen = _choose(front, scores, objective, rule, weights)
    selection = Selection(
        metric=objective.metric,
        goal=objective.goal,
        chosen=chosen.trial if chosen else None,
        rule=_in_words(rule, weights, objective),
        tasks=list(tasks),
        ranking=[t.trial for t in ranking],
        pareto=[t.trial for t in front],
        base=base.trial if base else None,
        default=default.trial if default else None,
        spread=_spread(trials, objective),
        correlation=_correlation(rank(trials, objective), scores, objective, tasks),
    )
    places = {t.trial: place for place, t in enumerate(ranking, 1)}
    for trial in rank(trials, objective):
        row = _row(trial, scores, objective, base, default, weights)
        row.rank = places.get(trial.trial)
        row.pareto = trial.trial in selection.pareto
        row.chosen = trial.trial == selection.chosen
        row.feasible = is_feasible(trial, constraints)
        selection.rows.append(row)
    selection.findings = _findings(selection, objective, trials)
    return selection


def _first(trials: Sequence[TrialRecord], role: Role, objective: Objective) -> TrialRecord | None:
    return next((t for t in rank(trials, objective) if t.role == role), None)


def _weights(rule: Select, tasks: Sequence[str]) -> dict[str, float]:
    """Return the weight of each task; if any is given, those not named weigh nothing."""
    if not rule.weights:
        return dict.fromkeys(tasks, 1.0)
    weights = {task: float(dict(rule.weights).get(task, 0.0)) for task in tasks}  # type: ignore[call-overload]
    problems = [
        f"`weight >= 0` must hold for {task!r}, but got {weight:g}"
        for task, weight in rule.weights.items()
        if not weight >= 0 or math.isinf(weight)
    ]
    if tasks and sum(weights.values()) == 0:
        problems.append(f"at least one weight must be above 0, but got {dict(rule.weights)}")
    if problems:
        raise InputError(problems, "select.weights")
    return weights


def _sign(objective: Objective) -> int:
    return -1 if objective.goal == "minimize" else 1


def _value(trial: TrialRecord, objective: Objective) -> float:
    value = trial.objective(objective.metric)
    assert value is not None  # only ranked trials come here
    return value


def _front(
    scored: list[TrialRecord],
    scores: dict[str, dict[str, BenchRecord]],
    objective: Objective,
    tasks: Sequence[str],
) -> list[TrialRecord]:
    points = [
        (_sign(objective) * _value(t, objective), *(scores[t.trial][task].score for task in tasks))
        for t in scored
    ]
    return [trial for trial, optimal in zip(scored, pareto(points), strict=True) if optimal]


def _mean(scores: dict[str, BenchRecord], weights: dict[str, float]) -> float:
    return sum(weights[task] * scores[task].score for task in weights) / sum(weights.values())


def _choose(
    front: list[TrialRecord],
    scores: dict[str, dict[str, BenchRecord]],
    objective: Objective,
    rule: Select,
    weights: dict[str, float],
) -> TrialRecord | None:
    """Return the best of the front by the rule; the objective, then the trial's number, break ties."""

    def merit(trial: TrialRecord) -> tuple[float, ...]:
        own = _sign(objective) * _value(trial, objective)
        if not weights:
            return (own, -trial.number)
        if rule.rule == "weighted":
            return (round(_mean(scores[trial.trial], weights), 12), own, -trial.number)
        order = [own if name == "objective" else scores[trial.trial][name].score for name in rule.order]
        return (*order, own, -trial.number)

    return max(front, key=merit, default=None)


def _in_words(rule: Select, weights: dict[str, float], objective: Objective) -> str:
    best = "lowest" if objective.goal == "minimize" else "highest"
    if not weights:
        return f"the {best} {objective.metric}; no benchmark tasks were asked for"
    if rule.rule == "weighted":
        equal = len(set(weights.values())) == 1
        terms = ", ".join(f"{task} {weight:g}" for task, weight in weights.items())
        mean = f"equally weighted mean of {', '.join(weights)}" if equal else f"weighted mean ({terms})"
        return (
            f"of the Pareto-optimal candidates the highest {mean}; ties go to the {best} {objective.metric}"
        )
    order = ", then ".join(objective.metric if name == "objective" else name for name in rule.order)
    return f"of the Pareto-optimal candidates the best by {order}; ties go to the {best} {objective.metric}"


def _row(
    trial: TrialRecord,
    scores: dict[str, dict[str, BenchRecord]],
    objective: Objective,
    base: TrialRecord | None,
    default: TrialRecord | None,
    weights: dict[str, float],
) -> Row:
    own = dict(sorted(scores.get(trial.trial, {}).items()))
    reference = scores.get(base.trial, {}) if base else {}
    value = _value(trial, objective)
    return Row(
        trial=trial.trial,
        number=trial.number,
        role=trial.role,
        seed=trial.seed,
        assignment=trial.assignment,
        objective=value,
        gain_over_base=gain(value, _value(base, objective), objective) if base else None,
        gain_over_default=gain(value, _value(default, objective), objective) if default else None,
        scores={task: bench.score for task, bench in own.items()},
        stderrs={task: bench.stderr for task, bench in own.items()},
        score_gains={task: own[task].score - reference[task].score for task in own if task in reference},
        mean_score=_mean(own, weights) if weights and weights.keys() <= own.keys() else None,
        seconds=trial.seconds,
    )


def _spread(trials: Sequence[TrialRecord], objective: Objective) -> dict[str, Spread]:
    """Group repeats with the trial whose setting they repeat."""
    groups: dict[str, list[TrialRecord]] = defaultdict(list)
    for trial in sorted(rank(trials, objective), key=lambda t: t.number):
        if trial.role != "base":
            groups[canonical(trial.assignment)].append(trial)
    found = {}
    for group in groups.values():
        if len(group) < 2 or all(t.role != "repeat" for t in group):
            continue
        name = next((t.trial for t in group if t.role != "repeat"), group[0].trial)
        values = [_value(t, objective) for t in group]
        mean, sd = statistics.fmean(values), statistics.stdev(values)
        found[name] = Spread(trial=name, mean=mean, sd=sd, n=len(values), values=values)
    return found


def _correlation(
    ranked: list[TrialRecord],
    scores: dict[str, dict[str, BenchRecord]],
    objective: Objective,
    tasks: Sequence[str],
) -> dict[str, float]:
    found = {}
    for task in tasks:
        pairs = [
            (_value(t, objective), scores[t.trial][task].score) for t in ranked if task in scores[t.trial]
        ]
        if len(pairs) < 3 or len({a for a, _ in pairs}) < 2 or len({b for _, b in pairs}) < 2:
            continue
        from scipy.stats import spearmanr

        found[task] = float(spearmanr([a for a, _ in pairs], [b for _, b in pairs]).statistic)
    return found


def _findings(selection: Selection, objective: Objective, trials: Sequence[TrialRecord]) -> list[str]:
    found = []
    metric = selection.metric
    best = selection.row(selection.ranking[0]) if selection.ranking else None
    base, default = selection.row(selection.base), selection.row(selection.default)
    chosen = selection.row(selection.chosen)
    if best is None:
        found.append(
            f"no trained setting completed with a {metric} inside the constraints: nothing can be chosen"
        )
    elif chosen is None:
        found.append(f"nothing can be chosen: no candidate was scored on all of {', '.join(selection.tasks)}")
    if base is None:
        found.append("the untuned base has no result, so no gain can be stated")
    elif best is not None and gain(best.objective, base.objective, objective) <= EQUAL:
        found.append(
            f"best is no better than the untuned base: {metric} {best.objective:.6g} ({best.trial}) "
            f"against {base.objective:.6g}"
        )
    if best is not None and default is not None and best.trial != default.trial:
        found += _seed_finding(selection, best, default)
    elif best is not None and default is not None:
        found.append(
            f"the search found nothing better than the default setting ({metric} {best.objective:.6g})"
        )
    won = chosen.gain_over_base if chosen is not None and chosen is not best else None
    if chosen is not None and won is not None and won <= EQUAL:
        found.append(f"the chosen {chosen.trial} has no better {metric} than the untuned base")
    if chosen is not None and best is not None and chosen is not best:
        found += _noise_finding(selection, chosen, best)
    worse = [t for t, g in chosen.score_gains.items() if g < 0] if chosen else []
    if chosen is not None and worse:
        losses = ", ".join(f"{task} {chosen.score_gains[task]:+.4f}" for task in worse)
        found.append(f"the chosen {chosen.trial} scores below the untuned base on {losses}")
    failed = [t for t in trials if t.status == "failed"]
    if failed and len(failed) * 4 >= len(trials):
        found.append(f"{len(failed)} of {len(trials)} trials failed")
    return found


def _seed_finding(selection: Selection, best: Row, default: Row) -> list[str]:
    """Say so when the gain over the default setting could be the luck of a seed."""
    spreads = [s.sd for s in (selection.spread.get(best.trial), selection.spread.get(default.trial)) if s]
    difference = abs(best.objective - default.objective)
    if not spreads or difference > max(spreads):
        return []
    return [
        f"the gain over the default setting, {difference:.6g}, is within the spread over seeds "
        f"(standard deviation {max(spreads):.6g})"
    ]


def _noise_finding(selection: Selection, chosen: Row, best: Row) -> list[str]:
    """Say so when scores that hardly differ decided against the trial with the best objective."""
    tasks = [task for task in selection.tasks if task in chosen.scores and task in best.scores]
    if not tasks:
        return []
    lead = statistics.fmean(chosen.scores[task] - best.scores[task] for task in tasks)
    error = math.sqrt(sum(chosen.stderrs[t] ** 2 + best.stderrs[t] ** 2 for t in tasks)) / len(tasks)
    if lead > 2 * error:
        return []
    return [
        f"{chosen.trial} was chosen before {best.trial}, which has the best {selection.metric}, for a mean score "
        f"that differs by {lead:+.4f}: within twice its standard error ({error:.4f}), so it may be luck"
    ]
