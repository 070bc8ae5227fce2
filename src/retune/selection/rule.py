"""The rule that picks one of the Pareto-optimal candidates, and the sentence that says why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from retune.errors import InputError
from retune.records import BenchRecord, TrialRecord
from retune.selection.comparison import MEAN
from retune.selection.ranking import pareto
from retune.study import Objective, Select

Scores = Mapping[str, Mapping[str, BenchRecord]]  # by model and task


def task_weights(rule: Select, tasks: Sequence[str]) -> dict[str, float]:
    """Return the weight of each task: equal ones by default; if any is given, 0 for the tasks without one.

    Raises:
        InputError: if a weight is negative or infinite, or none is above 0.

    """
    if not rule.weights:
        return dict.fromkeys(tasks, 1.0)
    stated: dict[str, float] = {str(task): weight for task, weight in rule.weights.items()}
    weights = {task: float(stated.get(task, 0.0)) for task in tasks}
    problems = [
        f"`weight >= 0` must hold for {task!r}, but got {weight:g}"
        for task, weight in stated.items()
        if not weight >= 0 or math.isinf(weight)
    ]
    if tasks and sum(weights.values()) == 0:
        problems.append(f"at least one weight must be above 0, but got {stated}")
    if problems:
        raise InputError(problems, "select.weights")
    return weights


def mean(scores: Mapping[str, BenchRecord], weights: Mapping[str, float]) -> float:
    """Return the weighted mean score."""
    return sum(weights[task] * scores[task].score for task in weights) / sum(weights.values())


def oriented(
    trial: TrialRecord, objective: Objective, expected: Mapping[str, float] = MappingProxyType({})
) -> float:
    """Return the objective of a trial, its `expected` value if there is one, negated if needed so that higher is better."""
    value = expected.get(trial.trial, trial.objective(objective.metric))
    assert value is not None  # only ranked trials come here
    return -value if objective.goal == "minimize" else value


def goals(
    objective: Objective, further: Sequence[Objective], rule: Select, tasks: Sequence[str]
) -> list[Objective]:
    """Return the objectives that count for the Pareto set in addition to the scores.

    By default none, as in Tribes et al. 2024: the loss made the short list already, and would keep the trial with the
    best loss on the front whatever its scores. Objectives that the study names as goals do count: several objectives
    of a search, and `objective` in a lexicographic order. Without benchmarks only the objective counts.
    """
    if further or not tasks or (rule.rule == "lexicographic" and "objective" in rule.order):
        return [objective, *further]
    return []


def front(
    scored: Sequence[TrialRecord],
    scores: Scores,
    objectives: Sequence[Objective],
    tasks: Sequence[str],
    expected: Mapping[str, float] = MappingProxyType({}),
) -> list[TrialRecord]:
    """Return the candidates that no other one dominates in objectives and scores, in their order.

    Args:
        scored: the candidates with all scores.
        scores: records by model and task.
        objectives: those that count beside the scores, see `goals`.
        tasks: the benchmark tasks.
        expected: expected values of a single objective by trial, which replace the measured ones.

    """
    values = expected if len(objectives) == 1 else {}
    points = [
        (*(oriented(t, o, values) for o in objectives), *(scores[t.trial][task].score for task in tasks))
        for t in scored
    ]
    return [trial for trial, optimal in zip(scored, pareto(points), strict=True) if optimal]


@dataclass(frozen=True)
class Chooser:
    """The rule of a study, applied to its candidates.

    Attributes:
        rule: the study's section `select`.
        weights: of the tasks, see `task_weights`; empty without benchmarks.
        objective: breaks ties; without benchmarks it decides alone.
        scores: records by model and task.
        expected: expected objectives by trial, which replace the measured ones; empty if there are none.

    """

    rule: Select
    weights: Mapping[str, float]
    objective: Objective
    scores: Scores
    expected: Mapping[str, float]

    def choose(self, front: Sequence[TrialRecord]) -> TrialRecord | None:
        """Return the best trial of a front by the rule, None if the front is empty; the last tie goes to the lower number."""
        return max(front, key=self._merit, default=None)

    def _merit(self, trial: TrialRecord) -> tuple[float, ...]:
        own = oriented(trial, self.objective, self.expected)
        if not self.weights:
            return (own, -trial.number)
        scores = self.scores[trial.trial]
        if self.rule.rule == "weighted":
            # Rounded, so that means equal but for the order of summation are a tie
            return (round(mean(scores, self.weights), 12), own, -trial.number)
        order = [own if name == "objective" else scores[name].score for name in self.rule.order]
        return (*order, own, -trial.number)

    @property
    def decisive(self) -> str | None:
        """The task that the rule compares first, ``mean`` for their weighted mean, None for the objective."""
        if not self.weights:
            return None
        if self.rule.rule == "weighted":
            return MEAN if len(self.weights) > 1 else next(iter(self.weights))
        return next((str(name) for name in self.rule.order[:1] if name != "objective"), None)

    @property
    def _best(self) -> str:
        return "lowest" if self.objective.goal == "minimize" else "highest"

    @property
    def _metric(self) -> str:
        return f"expected {self.objective.metric}" if self.expected else self.objective.metric

    def statement(self) -> str:
        """Return a sentence that states the rule."""
        best, metric = self._best, self._metric
        if not self.weights:
            return f"the {best} {metric}; no benchmark tasks were asked for"
        ties = f"ties go to the {best} {metric}"
        if self.rule.rule == "weighted":
            return f"of the Pareto-optimal candidates the highest {mean_in_words(self.weights)}; {ties}"
        order = ", then ".join(metric if name == "objective" else name for name in self.rule.order)
        return f"of the Pareto-optimal candidates the best by {order}; {ties}"

    def why(
        self, chosen: TrialRecord, runner_up: TrialRecord | None, best: TrialRecord, scored: int, optimal: int
    ) -> str:
        """Return why a trial was chosen, and not the runner-up or the one with the best objective.

        Args:
            chosen, runner_up: the first and the second by the rule.
            best: the trial with the best objective.
            scored: how many candidates have all scores.
            optimal: how many of these are Pareto optimal.

        """
        if not self.weights:
            text = (
                f"{chosen.trial} has the {self._best} {self._in_words(chosen)}: no benchmark was asked for, so the "
                "objective alone chose."
            )
            return text + (
                f" Next is {runner_up.trial} with {self._in_words(runner_up)}." if runner_up else ""
            )
        lead = (
            f"has the highest {mean_in_words(self.weights)}"
            if self.rule.rule == "weighted"
            else "is the best by this order"
        )
        of = (
            "It is the only Pareto-optimal one"
            if optimal == 1
            else f"It {lead} of the {optimal} that are Pareto optimal"
        )
        text = f"{chosen.trial} was chosen from {scored} candidates with all scores. {of}: {self._in_words(chosen)}."
        if runner_up is not None:
            text += f" Next by the rule is {runner_up.trial} with {self._in_words(runner_up)}."
        if best.trial == chosen.trial:
            return f"{text} It also has the {self._best} {self._metric}."
        if all(task in self.scores.get(best.trial, {}) for task in self.weights):
            return f"{text} {best.trial} has the {self._best} {self._metric}, with {self._in_words(best)}."
        return f"{text} {best.trial} has the {self._best} {self._metric}, and was not scored on all tasks."

    def _in_words(self, trial: TrialRecord) -> str:
        """Return the values of a trial by which the rule compares it."""
        if not self.weights:
            return self._objective_in_words(trial)
        scores = self.scores[trial.trial]
        if self.rule.rule == "weighted":
            return f"{100 * mean(scores, self.weights):.2f} %"
        return ", ".join(
            self._objective_in_words(trial)
            if name == "objective"
            else f"{name} {100 * scores[name].score:.2f} %"
            for name in self.rule.order
        )

    def _objective_in_words(self, trial: TrialRecord) -> str:
        metric, measured = self.objective.metric, f"{trial.objective(self.objective.metric):.6g}"
        if trial.trial in self.expected:
            return f"expected {metric} {self.expected[trial.trial]:.6g} (measured {measured})"
        return f"{metric} {measured}"


def mean_in_words(weights: Mapping[str, float]) -> str:
    """Return e.g. ``equally weighted mean of mmlu, bbh``."""
    if len(set(weights.values())) == 1:
        return (
            f"equally weighted mean of {', '.join(weights)}" if len(weights) > 1 else f"{next(iter(weights))}"
        )
    return f"weighted mean ({', '.join(f'{task} {weight:g}' for task, weight in weights.items())})"
