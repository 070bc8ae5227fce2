"""The chosen model compared with base, default, runner-up and best objective, by tests that tell differences from noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retune.errors import InputError
from retune.records import BenchRecord
from retune.selection.statistics import Difference, compare, compare_means, holm, mismatches

ALPHA = 0.05
MEAN = "mean"
ByTask = Mapping[str, BenchRecord]


class Comparison(Difference):
    """The chosen model minus another one on a task, or on the rule's weighted mean (`task` is then ``mean``).

    Attributes:
        against: name of the other model.
        who: what that is, e.g. ``default setting``.
        first, second: scores of the chosen and the other model.
        p_holm: `p` adjusted for all comparisons of the choice (Holm).
        verdict: ``better`` or ``worse`` (significant at `ALPHA`), ``noise``, ``equal`` answers, or ``untested``.

    """

    against: str
    who: str
    task: str
    first: float
    second: float
    p_holm: float | None = None
    verdict: str = "untested"

    def sentence(self) -> str:
        """Return the comparison in words, differences in percentage points."""
        other = f"{self.against} ({self.who})"
        numbers = f"{points(self.difference)} points"
        if self.low is not None and self.high is not None:
            numbers += f", {self.level:.0%} interval {points(self.low)} to {points(self.high)}"
        if self.p_holm is not None:
            numbers += f", p {p_value(self.p_holm)}"
        if self.verdict == "untested":
            return f"{self.task}: {numbers} against {other}; neither answers nor their number are known, so it may be noise"
        if self.verdict == "equal":
            return f"{self.task}: right on the same questions as {other}"
        word = {"better": "better than", "worse": "worse than"}.get(self.verdict)
        head = f"{word} {other} beyond noise" if word else f"no difference beyond noise from {other}"
        return f"{self.task}: {head} ({numbers})"


def summary(comparisons: Sequence[Comparison]) -> str:
    """Return one line on the comparisons with one other model: significant differences in points, other tasks by name."""
    parts = []
    for verdict in ("better", "worse"):
        significant = [f"{c.task} {points(c.difference)} points" for c in comparisons if c.verdict == verdict]
        parts += [f"{verdict} on {', '.join(significant)}"] if significant else []
    rest = [c.task for c in comparisons if c.verdict not in ("better", "worse")]
    parts += [f"no difference beyond noise on {', '.join(rest)}"] if rest else []
    return f"against {comparisons[0].against} ({comparisons[0].who}): {'; '.join(parts)}"


def points(share: float) -> str:
    """Return a difference of shares in percentage points, with a sign."""
    return f"{100 * share:+.2f}".replace("-", "−")


def p_value(p: float) -> str:
    """Return a p-value with the digits that matter: two decimals, four below 0.01."""
    return "below 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def check_same_questions(benches: Sequence[BenchRecord]) -> None:
    """Refuse scores of one task that were not made from the same questions and prompts.

    Raises:
        InputError: with how many questions or prompts differ and which, for every such record.

    """
    first: dict[str, BenchRecord] = {}
    problems: list[str] = []
    for bench in sorted(benches, key=lambda bench: (bench.task, bench.model)):
        problems += mismatches(first.setdefault(bench.task, bench), bench)
    if problems:
        raise InputError(list(dict.fromkeys(problems)), "scores of different questions cannot be compared")


def compare_choice(
    chosen: str,
    others: Sequence[tuple[str | None, str]],
    scores: Mapping[str, ByTask],
    weights: Mapping[str, float],
    with_mean: bool = True,
) -> list[Comparison]:
    """Compare the chosen model with each other one on every task that both were scored on, and on the mean.

    Args:
        chosen: name of the chosen model.
        others: name of each other model, and what it is (``untuned base``); None and the chosen model are left out, and a
            model that is several of these is compared once.
        scores: records by model and task.
        weights: of the rule's mean over tasks.
        with_mean: whether to compare that mean too, because the rule chose by it.

    """
    roles: dict[str, list[str]] = {}
    for name, who in others:
        if name is not None and name != chosen and name in scores:
            roles.setdefault(name, []).append(who)
    comparisons = [
        comparison
        for name, who in roles.items()
        for comparison in _against(chosen, name, ", ".join(who), scores, weights, with_mean)
    ]
    for comparison, adjusted in zip(comparisons, holm([one.p for one in comparisons]), strict=True):
        comparison.p_holm = adjusted
        comparison.verdict = _verdict(comparison)
    return comparisons


def _against(
    chosen: str,
    other: str,
    who: str,
    scores: Mapping[str, ByTask],
    weights: Mapping[str, float],
    with_mean: bool,
) -> list[Comparison]:
    own, theirs = scores[chosen], scores[other]
    tasks = [task for task in weights if task in own and task in theirs]

    def comparison(task: str, difference: Difference, first: float, second: float) -> Comparison:
        return Comparison(
            **difference.model_dump(), against=other, who=who, task=task, first=first, second=second
        )

    comparisons = [
        comparison(task, compare(own[task], theirs[task]), own[task].score, theirs[task].score)
        for task in tasks
    ]
    weighed = [task for task in tasks if weights[task] > 0]
    if with_mean and len(tasks) == len(weights) > 1 and weighed:
        total = sum(weights[task] for task in weighed)
        means = [sum(weights[t] * side[t].score for t in weighed) / total for side in (own, theirs)]
        pairs = [(weights[task], own[task], theirs[task]) for task in weighed]
        comparisons.append(comparison(MEAN, compare_means(pairs), *means))
    return comparisons


def _verdict(comparison: Comparison) -> str:
    if comparison.paired and not comparison.first_only and not comparison.second_only:
        return "equal"
    if comparison.p_holm is None:
        return "untested"
    if comparison.p_holm >= ALPHA:
        return "noise"
    return "better" if comparison.difference > 0 else "worse"
