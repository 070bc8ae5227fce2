"""Which of the trials to register: ranking, Pareto set, a stated rule, and how sure one can be.

Tribes et al. 2024 (appendix "Second round detailed results"): the model with the lowest validation loss does
not give the best benchmark scores, so the loss alone must not choose. Candidates that no other candidate
beats in everything (Pareto optimal) are marked, and the rule of the study picks one of them.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from retune.records import BenchRecord, Role, TrialRecord, canonical
from retune.selection import rule as rules
from retune.selection.association import Association, associate
from retune.selection.comparison import ByTask, check_same_questions, compare_choice
from retune.selection.expected import by_expectation, expected
from retune.selection.findings import findings
from retune.selection.ranking import candidates, gain, is_feasible, rank
from retune.selection.record import Row, Selection, Spread
from retune.space import Space
from retune.study import Constraint, Objective, Select


def select(
    trials: Sequence[TrialRecord],
    benches: Sequence[BenchRecord],
    objective: Objective,
    rule: Select,
    tasks: Sequence[str],
    constraints: Sequence[Constraint] = (),
    further: Sequence[Objective] = (),
    space: Space | None = None,
) -> Selection:
    """Choose the trial to register.

    Args:
        trials: all trials of the study, failed ones too.
        benches: scores of any of them.
        objective: what the search improved; it ranks the candidates.
        rule: how one of the Pareto-optimal candidates is chosen.
        tasks: the study's benchmark tasks; without any, the objective alone chooses.
        constraints: of the study; a trial that breaks one is never chosen.
        further: other objectives of the search, which count for the Pareto set.
        space: what was searched; with it trials are ranked by their expected objective, see `expected`.

    Raises:
        InputError: if the rule's weights are unusable, or scores of one task were made from different questions.

    """
    everything, on_part = trials, [trial for trial in trials if trial.role == "proxy"]
    trials = [trial for trial in trials if trial.role != "proxy"]  # those compare with each other alone
    check_same_questions([bench for bench in benches if bench.task in tasks])
    weights = rules.task_weights(rule, tasks)
    scores: dict[str, dict[str, BenchRecord]] = defaultdict(dict)
    for bench in benches:
        scores[bench.model][bench.task] = bench
    expectations = expected(trials, objective, space) if space is not None else {}
    ranking = by_expectation(candidates(trials, objective, constraints), expectations, objective)
    base, default = _first(trials, "base", objective), _first(trials, "default", objective)
    goals = rules.goals(objective, further, rule, tasks)
    has_adapters = any(t.adapter_uri is not None for t in ranking)
    scored = [
        t
        for t in ranking
        if all(task in scores[t.trial] for task in tasks)
        and (t.adapter_uri is not None or not has_adapters)
        and all(t.objective(goal.metric) is not None for goal in further)
    ]
    front = rules.front(scored, scores, goals, tasks, expectations)
    chosen = rules.choose(front, scores, objective, rule, weights, expectations)
    rest = [t for t in scored if t is not chosen]
    next_front = rules.front(rest, scores, goals, tasks, expectations)
    runner_up = rules.choose(next_front, scores, objective, rule, weights, expectations)
    selection = Selection(
        metric=objective.metric,
        goal=objective.goal,
        chosen=chosen.trial if chosen else None,
        rule=rules.in_words(rule, weights, objective, bool(expectations)),
        runner_up=runner_up.trial if runner_up else None,
        tasks=list(tasks),
        ranking=[t.trial for t in ranking],
        pareto=[t.trial for t in front],
        base=base.trial if base else None,
        default=default.trial if default else None,
        untuned=base.trial if base else next((t.trial for t in trials if t.role == "base"), None),
        spread=_spread(trials, objective),
        associations=_associations(ranking, scores, objective, tasks),
        expected=expectations,
        proxy_pairs=_pairs(on_part, trials, objective),
    )
    pairs = selection.proxy_pairs.values()
    selection.proxy = associate([part for part, _ in pairs], [whole for _, whole in pairs])
    selection.correlation = {task: found.spearman for task, found in selection.associations.items()}
    if chosen is not None:
        counts = len(scored), len(front)
        selection.why = rules.why(
            chosen, runner_up, ranking[0], counts, scores, objective, rule, weights, expectations
        )
        selection.comparisons = compare_choice(
            chosen.trial, _others(selection, objective), scores, weights, rule.rule == "weighted"
        )
    selection.rows = _rows(selection, trials, scores, objective, weights, constraints)
    selection.findings = findings(selection, objective, everything, rules.decisive(rule, weights))
    return selection


def _pairs(
    on_part: Sequence[TrialRecord], trials: Sequence[TrialRecord], objective: Objective
) -> dict[str, tuple[float, float]]:
    """Return the objective on a part of the data and on all of it, of the settings that were trained on both."""
    parts = {
        trial.number: value for trial in on_part if (value := trial.objective(objective.metric)) is not None
    }
    return {
        trial.trial: (parts[trial.number], _value(trial, objective))
        for trial in rank(trials, objective)
        if trial.role in ("default", "search") and trial.number in parts
    }


def _first(trials: Sequence[TrialRecord], role: Role, objective: Objective) -> TrialRecord | None:
    return next((t for t in rank(trials, objective) if t.role == role), None)


def _others(selection: Selection, objective: Objective) -> list[tuple[str | None, str]]:
    """Return whom a person would compare the chosen trial with."""
    kind = "expected " if selection.expected else ""
    best = f"{'lowest' if objective.goal == 'minimize' else 'highest'} {kind}{objective.metric.replace('_', ' ')}"
    return [
        (selection.untuned, "untuned base"),
        (selection.default, "default setting"),
        (selection.runner_up, "runner-up"),
        (selection.ranking[0], best),
    ]


def _rows(
    selection: Selection,
    trials: Sequence[TrialRecord],
    scores: Mapping[str, ByTask],
    objective: Objective,
    weights: Mapping[str, float],
    constraints: Sequence[Constraint],
) -> list[Row]:
    places = {trial: place for place, trial in enumerate(selection.ranking, 1)}
    base, default = _first(trials, "base", objective), _first(trials, "default", objective)
    rows = []
    for trial in rank(trials, objective):
        row = _row(trial, scores, objective, base, default, weights)
        row.rank = places.get(trial.trial)
        row.pareto = trial.trial in selection.pareto
        row.chosen = trial.trial == selection.chosen
        row.feasible = is_feasible(trial, constraints)
        rows.append(row)
    return rows


def _row(
    trial: TrialRecord,
    scores: Mapping[str, ByTask],
    objective: Objective,
    base: TrialRecord | None,
    default: TrialRecord | None,
    weights: Mapping[str, float],
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
        mean_score=rules.mean(own, weights) if weights and weights.keys() <= own.keys() else None,
        seconds=trial.seconds,
    )


def _value(trial: TrialRecord, objective: Objective) -> float:
    value = trial.objective(objective.metric)
    assert value is not None  # only ranked trials come here
    return value


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


def _associations(
    ranking: Sequence[TrialRecord],
    scores: Mapping[str, ByTask],
    objective: Objective,
    tasks: Sequence[str],
) -> dict[str, Association]:
    """Correlate objective and scores over the candidates: the untuned base is none, and would make any rule look good."""
    found = {}
    for task in tasks:
        both = [t for t in ranking if task in scores[t.trial]]
        association = associate(
            [_value(t, objective) for t in both], [scores[t.trial][task].score for t in both]
        )
        if association is not None:
            found[task] = association
    return found
