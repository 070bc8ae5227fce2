"""The record of a choice (`selection.json`): the table of trials, the chosen one and why, comparisons and findings."""

from __future__ import annotations

from pydantic import BaseModel, Field

from retune.records import Record, Role
from retune.selection.association import Association
from retune.selection.comparison import Comparison
from retune.space import Assignment


class Row(BaseModel):
    """One completed trial in the table of a study.

    Attributes:
        rank: place by the objective among the candidates, 1 is best; None for the base and repeats.
        objective: value of the objective.
        gain_over_base, gain_over_default: in units of the objective; positive is better, whatever the goal.
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
    """Which trial was chosen, and everything that a person needs to judge the choice (`selection.json`).

    Attributes:
        metric, goal: the objective.
        chosen: name of the trial, None if there is no candidate; never the untuned base.
        rule: a sentence that states the rule.
        why: what decided, with numbers.
        runner_up: the trial that the rule would choose without the chosen one.
        ranking: candidates (trained settings that completed), best objective first.
        pareto: candidates scored on all tasks that no other such candidate dominates, in the order of `ranking`.
        base, default: names of those trials, if they completed with an objective.
        untuned: name of the base, also if it has only scores.
        rows: all completed trials, best objective first.
        spread: over seeds, by the trial whose setting was repeated.
        correlation: Spearman's rank correlation of objective and score, by task, over at least 3 candidates.
        associations: the same with Kendall's, intervals and p-values.
        comparisons: the chosen trial against base, default, runner-up and the one with the best objective, by task.
        findings: warnings to read before believing the result.
        proxy: rank correlation of the objective after training on a part of the data (`search.proxy`) and on all of it, over
            the settings that were trained on both; None below three.
        proxy_pairs: the two values, by the trial on all data.
        expected: the expected objective by trial, from all trials; empty where they were ranked by their own value.

    """

    metric: str
    goal: str
    chosen: str | None
    rule: str
    why: str = ""
    runner_up: str | None = None
    tasks: list[str] = Field(default_factory=list)
    ranking: list[str] = Field(default_factory=list)
    pareto: list[str] = Field(default_factory=list)
    base: str | None = None
    default: str | None = None
    untuned: str | None = None
    rows: list[Row] = Field(default_factory=list)
    spread: dict[str, Spread] = Field(default_factory=dict)
    correlation: dict[str, float] = Field(default_factory=dict)
    associations: dict[str, Association] = Field(default_factory=dict)
    comparisons: list[Comparison] = Field(default_factory=list)
    findings: list[str] = Field(default_factory=list)
    expected: dict[str, float] = Field(default_factory=dict)
    proxy: Association | None = Field(None, exclude_if=lambda found: found is None)
    proxy_pairs: dict[str, tuple[float, float]] = Field(
        default_factory=dict, exclude_if=lambda pairs: not pairs
    )

    def row(self, trial: str | None) -> Row | None:
        """Return the row of a trial, None if it did not complete."""
        return next((row for row in self.rows if row.trial == trial), None)

    def spread_for(self, trial: str | None) -> Spread | None:
        """Return the spread over seeds of a trial's setting; the widest that was measured if its own was not."""
        widest = max(self.spread.values(), key=lambda spread: spread.sd, default=None)
        return self.spread.get(trial or "", widest)
