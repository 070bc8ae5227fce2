"""The chosen model against those a person would ask about, with tests: so that noise is called noise."""

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
        against: the other's name; who: what it is, e.g. ``default setting``.
        first, second: the scores of the chosen and the other.
        p_holm: `p` adjusted for all comparisons of the choice.
        verdict: ``better`` or ``worse`` beyond noise, ``noise``, ``equal`` answers, or ``untested``.

    """

    against: str
    who: str
    task: str
    first: float
    second: float
    p_holm: float | None = None
    verdict: str = "untested"

    def sentence(self) -> str:
        """Return the comparison in words; scores in percent, differences in points of a percent."""
        other = f"{self.against} ({self.who})"
        numbers = f"{points(self.difference)} points"
        if self.low is not None and self.high is not None:
            numbers += f", {self.level:.0%} interval {points(self.low)} to {points(self.high)}"
        if self.p_holm is not None:
            numbers += f", p {p_value(self.p_holm)}"
        if self.verdict == "untested":
            return f"{self.task}: {numbers} against {other}; neither answers nor their number are known, so it may be noise"
        if self.verdict == "equal":
            return f"{self.task}: the same questions right as {other}"
        word = {"better": "better than", "worse": "worse than"}.get(self.verdict)
        head = f"{word} {other} beyond noise" if word else f"no difference beyond noise from {other}"
        return f"{self.task}: {head} ({numbers})"


def summary(comparisons: Sequence[Comparison]) -> str:
    """Return in one line how the chosen model compares with one other: what is beyond noise, and the rest by name."""
    words = []
    for verdict, lead in (("better", "better on"), ("worse", "worse on")):
        clear = [f"{c.task} {points(c.difference)} points" for c in comparisons if c.verdict == verdict]
        words += [f"{lead} {', '.join(clear)}"] if clear else []
    unclear = [c.task for c in comparisons if c.verdict not in ("better", "worse")]
    words += [f"no difference beyond noise on {', '.join(unclear)}"] if unclear else []
    return f"against {comparisons[0].against} ({comparisons[0].who}): {'; '.join(words)}"


def points(share: float) -> str:
    """Return a difference of shares in points of a percent, with a sign."""
    return f"{100 * share:+.2f}".replace("-", "−")


def p_value(p: float) -> str:
    """Return a p-value as people print it."""
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
        others: name and what it is (``untuned base``); None and the chosen itself are left out, and one that is two
            things is compared once.
        scores: records by model and task.
        weights: of the rule's mean over tasks.
        with_mean: whether that mean is what chose.

    """
    roles: dict[str, list[str]] = {}
    for name, who in others:
        if name is not None and name != chosen and name in scores:
            roles.setdefault(name, []).append(who)
    found = [
        comparison
        for name, who in roles.items()
        for comparison in _against(chosen, name, ", ".join(who), scores, weights, with_mean)
    ]
    for comparison, adjusted in zip(found, holm([one.p for one in found]), strict=True):
        comparison.p_holm = adjusted
        comparison.verdict = _verdict(comparison)
    return found


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

    def made(task: str, difference: Difference, first: float, second: float) -> Comparison:
        return Comparison(
            **difference.model_dump(), against=other, who=who, task=task, first=first, second=second
        )

    found = [
        made(task, compare(own[task], theirs[task]), own[task].score, theirs[task].score) for task in tasks
    ]
    weighed = [task for task in tasks if weights[task] > 0]
    if with_mean and len(tasks) == len(weights) > 1 and weighed:
        total = sum(weights[task] for task in weighed)
        means = [sum(weights[t] * side[t].score for t in weighed) / total for side in (own, theirs)]
        pairs = [(weights[task], own[task], theirs[task]) for task in weighed]
        found.append(made(MEAN, compare_means(pairs), *means))
    return found


def _verdict(comparison: Comparison) -> str:
    if comparison.paired and not comparison.first_only and not comparison.second_only:
        return "equal"
    if comparison.p_holm is None:
        return "untested"
    if comparison.p_holm >= ALPHA:
        return "noise"
    return "better" if comparison.difference > 0 else "worse"
