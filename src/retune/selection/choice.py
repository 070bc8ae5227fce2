"""Choosing the trial to register: ranking, Pareto set, the study's rule, and tests of how sure the choice is.

The model with the lowest validation loss does not give the best benchmark scores (Tribes et al. 2024, appendix "Second
round detailed results"), so the loss alone must not choose. The study's rule picks one of the Pareto-optimal
candidates: those that no other candidate beats in everything.
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
        objective: of the search; it ranks the candidates.
        rule: chooses one of the Pareto-optimal candidates.
        tasks: the study's benchmark tasks; without any, the objective alone chooses.
        constraints: of the study; a trial that violates one is never chosen.
        further: other objectives of the search, which count for the Pareto set.
        space: of the search; if given, trials are ranked by their expected objective, see `retune.selection.expected`.

    Raises:
        InputError: if the rule's weights are unusable, or scores of one task were made from different questions.

    """
    all_trials, proxies = trials, [trial for trial in trials if trial.role == "proxy"]
    # Losses after training on a part of the data compare with each other only
    trials = [trial for trial in trials if trial.role != "proxy"]
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
    chooser = rules.Chooser(rule, weights, objective, scores, expectations)
    chosen = chooser.choose(front)
    rest = [t for t in scored if t is not chosen]
    next_front = rules.front(rest, scores, goals, tasks, expectations)
    runner_up = chooser.choose(next_front)
    selection = Selection(
        metric=objective.metric,
        goal=objective.goal,
        chosen=chosen.trial if chosen else None,
        rule=chooser.statement(),
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
        proxy_pairs=_proxy_pairs(proxies, trials, objective),
    )
    pairs = selection.proxy_pairs.values()
    selection.proxy = associate([part for part, _ in pairs], [whole for _, whole in pairs])
    selection.correlation = {
        task: association.spearman for task, association in selection.associations.items()
    }
    if chosen is not None:
        selection.why = chooser.why(chosen, runner_up, ranking[0], len(scored), len(front))
        selection.comparisons = compare_choice(
            chosen.trial, _others(selection, objective), scores, weights, rule.rule == "weighted"
        )
    selection.rows = _rows(selection, trials, scores, objective, weights, constraints)
    selection.findings = findings(selection, objective, all_trials, chooser.decisive)
    return selection


def _proxy_pairs(
    proxies: Sequence[TrialRecord], trials: Sequence[TrialRecord], objective: Objective
) -> dict[str, tuple[float, float]]:
    """Return the objective on a part of the data and on all of it, for the settings that were trained on both."""
    parts = {
        trial.number: value for trial in proxies if (value := trial.objective(objective.metric)) is not None
    }
    return {
        trial.trial: (parts[trial.number], _value(trial, objective))
        for trial in rank(trials, objective)
        if trial.role in ("default", "search") and trial.number in parts
    }


def _first(trials: Sequence[TrialRecord], role: Role, objective: Objective) -> TrialRecord | None:
    return next((t for t in rank(trials, objective) if t.role == role), None)


def _others(selection: Selection, objective: Objective) -> list[tuple[str | None, str]]:
    """Return the trials to compare the chosen one with, and what each is."""
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
    places = {trial: position for position, trial in enumerate(selection.ranking, 1)}
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
    """Return the spread over seeds of each setting that was repeated, by the trial that was repeated."""
    groups: dict[str, list[TrialRecord]] = defaultdict(list)
    for trial in sorted(rank(trials, objective), key=lambda t: t.number):
        if trial.role != "base":
            groups[canonical(trial.assignment)].append(trial)
    spreads = {}
    for group in groups.values():
        if len(group) < 2 or all(t.role != "repeat" for t in group):
            continue
        name = next((t.trial for t in group if t.role != "repeat"), group[0].trial)
        values = [_value(t, objective) for t in group]
        mean, sd = statistics.fmean(values), statistics.stdev(values)
        spreads[name] = Spread(trial=name, mean=mean, sd=sd, n=len(values), values=values)
    return spreads


def _associations(
    ranking: Sequence[TrialRecord],
    scores: Mapping[str, ByTask],
    objective: Objective,
    tasks: Sequence[str],
) -> dict[str, Association]:
    """Correlate objective and scores over the candidates.

    Without the untuned base, which is no candidate: one point that is worse in both would make any objective look
    predictive.
    """
    associations = {}
    for task in tasks:
        both = [t for t in ranking if task in scores[t.trial]]
        association = associate(
            [_value(t, objective) for t in both], [scores[t.trial][task].score for t in both]
        )
        if association is not None:
            associations[task] = association
    return associations
