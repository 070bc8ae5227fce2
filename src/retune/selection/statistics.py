"""Is one model better than another, or is it noise? Confidence intervals of scores, and paired tests on the same questions.

Two models that answer the same questions are compared question by question: questions that both get right or both get
wrong do not tell which is better. Leaving these out gives the test far more power than comparing two scores by their
standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from retune.errors import InputError
from retune.records import BenchRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 10_000
Test = Literal["McNemar exact", "sign flips", "unpaired normal", "none"]

# Scores that average over groups, not over questions: (protocol, task). The group is the id before its last slash.
MACRO = frozenset({("instruct-eval", "bbh")})
_MAX_NAMED = 3  # questions named in an error


class Difference(BaseModel):
    """Score of the first model minus score of the second, between -1 and 1.

    Attributes:
        low, high: confidence interval at `level`; by paired bootstrap if `paired`, else from the standard errors; None
            if unknown.
        p: two-sided p-value of the hypothesis that the models are equally good; None if it cannot be tested.
        test: the test that gave `p`.
        n: questions that both answered; the larger number of the two if not paired; 0 if unknown.
        first_only, second_only: questions that only this model got right, or, where answers are graded between right
            and wrong, got a higher grade for; None if not paired.

    """

    difference: float
    low: float | None = None
    high: float | None = None
    level: float = LEVEL
    p: float | None = None
    test: Test = "none"
    n: int = 0
    paired: bool = False
    first_only: int | None = None
    second_only: int | None = None


def wilson(right: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's score interval of a share of `right` out of `n`.

    Source: Wilson 1927, JASA 22; recommended for all n by Brown, Cai and DasGupta 2001, Statistical Science 16(2).

    Raises:
        ValueError: unless 0 <= right <= n and n > 0.

    """
    if not 0 <= right <= n or n < 1:
        raise ValueError(f"`0 <= right <= n` and `n >= 1` must hold, but got right={right}, n={n}")
    z = _z(level)
    share, add = right / n, z * z / n
    middle = (share + add / 2) / (1 + add)
    half = z / (1 + add) * math.sqrt(share * (1 - share) / n + add / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(first_only: int, second_only: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    Under the null hypothesis each question that only one of the two models gets right is a fair coin toss: p is twice
    the smaller tail of the binomial distribution with probability one half, at most 1.

    Source: McNemar 1947, Psychometrika 12(2); the exact form is in Agresti, Categorical Data Analysis, section 11.1.
    """
    n, fewer = first_only + second_only, min(first_only, second_only)
    tail = term = 1  # in whole numbers: 2^n overflows a float from n = 1024 on
    for k in range(1, fewer + 1):
        term = term * (n - k + 1) // k
        tail += term
    return min(1.0, float(Fraction(2 * tail, 2**n)))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for their number (Holm 1979, Scandinavian Journal of Statistics 6); None stays None."""
    tested = sorted((p, index) for index, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0  # so far: adjusted values are in the order of the p-values
    for smaller, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - smaller)))
        adjusted[index] = largest
    return adjusted


def interval(record: BenchRecord, level: float = LEVEL, seed: int = 0) -> tuple[float, float] | None:
    """Return the confidence interval of one score, None if neither answers nor their number are known.

    It is Wilson's for a share of right answers; a bootstrap where answers are graded, or the score averages over groups
    (then resampled within them); without answers the normal one from the standard error.
    """
    if has_answers(record):
        strata = _strata(record, _values(record))
        if _is_plain(strata):
            return wilson(float(strata[0].values.sum()), len(record.answers), level)
        return _percentiles(_resample(strata, seed), level)
    if record.n < 1:
        return None
    half = _z(level) * record.stderr
    return max(0.0, record.score - half), min(1.0, record.score + half)


def has_answers(record: BenchRecord) -> bool:
    """Return whether the record holds its answers, and their values average to the score."""
    if not record.answers or not all("right" in answer and "id" in answer for answer in record.answers):
        return False
    strata = _strata(record, _values(record))
    average = sum(stratum.weight * float(stratum.values.mean()) for stratum in strata)
    return abs(average - record.score) < 1e-6


def mismatches(first: BenchRecord, second: BenchRecord) -> list[str]:
    """Return why the scores of two records cannot be compared: how many questions or prompts differ, and which; empty if none."""
    names = f"{first.model} and {second.model} on {first.task}"
    if (first.task, first.protocol) != (second.task, second.protocol):
        return [
            f"{first.model} and {second.model}: task and protocol must be the same, but got {first.task} "
            f"({first.protocol}) and {second.task} ({second.protocol})"
        ]
    if not first.answers or not second.answers:
        differ = (
            bool(first.prompt_digest and second.prompt_digest) and first.prompt_digest != second.prompt_digest
        )
        return [f"{names}: the prompts must be the same, but their digests differ"] if differ else []
    prompts = [{str(a["id"]): a.get("prompt") for a in record.answers} for record in (first, second)]
    problems = [
        f"{record.model} on {record.task}: every question is answered once, but {len(record.answers) - len(own)} duplicate ids"
        for record, own in zip((first, second), prompts, strict=True)
        if len(own) < len(record.answers)
    ]
    apart = sorted(prompts[0].keys() ^ prompts[1].keys())
    if apart:
        problems.append(
            f"{names}: the questions must be the same, but {len(apart)} were answered by only one of them: {_few(apart)}"
        )
    changed = sorted(
        key for key in prompts[0].keys() & prompts[1].keys() if prompts[0][key] != prompts[1][key]
    )
    if changed:
        problems.append(f"{names}: the prompts must be the same, but {len(changed)} differ: {_few(changed)}")
    return problems


def compare(first: BenchRecord, second: BenchRecord, seed: int = 0, level: float = LEVEL) -> Difference:
    """Compare two models on one task; see `compare_means`."""
    return compare_means([(1.0, first, second)], seed, level)


def compare_means(
    pairs: Sequence[tuple[float, BenchRecord, BenchRecord]], seed: int = 0, level: float = LEVEL
) -> Difference:
    """Compare the weighted mean scores of two models over several tasks.

    If both records hold their answers, the interval is a percentile bootstrap, in which questions are resampled in pairs
    within each task (and within each group if the score averages over groups). The test is McNemar's for a share of right
    answers; for grades and weighted averages a permutation test that flips the sign of each difference at random.
    Without answers, interval and test are the normal ones of independent scores, which is conservative for models that
    mostly get the same questions right.

    Args:
        pairs: weight (any scale), and the records of the first and the second model on one task.
        seed: of the bootstrap and the flips; the same seed gives the same numbers.
        level: of the interval.

    Raises:
        InputError: if questions or prompts differ, with how many and which.

    """
    problems = [problem for _, first, second in pairs for problem in mismatches(first, second)]
    if problems:
        raise InputError(problems, "paired comparison")
    total = sum(weight for weight, _, _ in pairs)
    lead = sum(weight * (first.score - second.score) for weight, first, second in pairs) / total
    if not all(has_answers(record) for _, *both in pairs for record in both):
        return _unpaired(pairs, lead, total, level)
    strata = [s for weight, first, second in pairs for s in _paired(weight / total, first, second)]
    low, high = _percentiles(_resample(strata, seed), level)
    wins = sum(int((stratum.values > 0).sum()) for stratum in strata)
    losses = sum(int((stratum.values < 0).sum()) for stratum in strata)
    plain = _is_plain(strata)
    return Difference(
        difference=lead,
        low=low,
        high=high,
        level=level,
        p=mcnemar(wins, losses) if plain else _sign_flip_p(strata, lead, seed),
        test="McNemar exact" if plain else "sign flips",
        n=sum(len(stratum.values) for stratum in strata),
        paired=True,
        first_only=wins,
        second_only=losses,
    )


@dataclass(frozen=True)
class _Stratum:
    """Questions that are resampled among themselves; their mean counts `weight` in the score."""

    weight: float
    values: NDArray[np.float64]


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _strata(record: BenchRecord, values: Sequence[float], weight: float = 1.0) -> list[_Stratum]:
    """Group one value per answer as the score averages them."""
    import numpy as np

    groups: dict[str, list[float]] = {}
    macro = (record.protocol, record.task) in MACRO
    for answer, value in zip(record.answers, values, strict=True):
        groups.setdefault(str(answer["id"]).rpartition("/")[0] if macro else "", []).append(value)
    return [_Stratum(weight / len(groups), np.array(group)) for group in groups.values()]


def _paired(weight: float, first: BenchRecord, second: BenchRecord) -> list[_Stratum]:
    ids, theirs = [str(answer["id"]) for answer in second.answers], _values(second)
    other = dict(zip(ids, theirs, strict=True))
    values = [own - other[str(a["id"])] for own, a in zip(_values(first), first.answers, strict=True)]
    return _strata(first, values, weight)


def _values(record: BenchRecord) -> list[float]:
    """Return the value of each answer, 0 to 1: its grade (F1), its share of right samples, or 1 if it is right."""

    def value(answer: dict[str, Any]) -> float:
        if "score" in answer:
            return float(answer["score"])
        if "passed" in answer and answer.get("predictions"):
            return float(answer["passed"]) / len(answer["predictions"])
        return float(bool(answer["right"]))

    return [value(answer) for answer in record.answers]


def _is_plain(strata: Sequence[_Stratum]) -> bool:
    """Return whether all values are whole: those of a share of right answers, or of the difference of two such shares."""
    return len(strata) == 1 and bool((strata[0].values == strata[0].values.round()).all())


def _resample(strata: Sequence[_Stratum], seed: int) -> NDArray[np.float64]:
    """Return the weighted mean of each of RESAMPLES bootstrap samples.

    To draw n values with replacement is to draw how often each distinct value occurs, which is one multinomial draw.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    means = np.zeros(RESAMPLES)
    for stratum in strata:
        n = len(stratum.values)
        distinct, counts = np.unique(stratum.values, return_counts=True)
        means += stratum.weight / n * (rng.multinomial(n, counts / n, RESAMPLES) @ distinct)
    return means


def _percentiles(means: NDArray[np.float64], level: float) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _sign_flip_p(strata: Sequence[_Stratum], lead: float, seed: int) -> float:
    """Return the share of random sign flips, and the observed signs among them, whose lead is at least as large."""
    import numpy as np

    rng = np.random.default_rng(seed)
    leads = np.zeros(RESAMPLES)
    for stratum in strata:
        sizes, counts = np.unique(np.abs(stratum.values[stratum.values != 0]), return_counts=True)
        for size, count in zip(sizes, counts, strict=True):
            # How many of the differences of this size stay positive
            ups = rng.binomial(count, 0.5, RESAMPLES)
            leads += stratum.weight / len(stratum.values) * size * (2 * ups - count)
    return float((1 + (np.abs(leads) >= abs(lead) - 1e-12).sum()) / (1 + RESAMPLES))


def _unpaired(
    pairs: Sequence[tuple[float, BenchRecord, BenchRecord]], lead: float, total: float, level: float
) -> Difference:
    records = [record for _, *both in pairs for record in both]
    if any(record.n < 1 for record in records):
        return Difference(difference=lead, level=level)
    spread = math.sqrt(sum((w / total) ** 2 * (_error(a) ** 2 + _error(b) ** 2) for w, a, b in pairs))
    half = _z(level) * spread
    p = 2 * NormalDist().cdf(-abs(lead) / spread)
    n = sum(max(a.n, b.n) for _, a, b in pairs)
    return Difference(
        difference=lead, low=lead - half, high=lead + half, level=level, p=p, test="unpaired normal", n=n
    )


def _error(record: BenchRecord) -> float:
    """Return the standard error; if all answers were right or all wrong, that with one success and one failure added."""
    share = (record.score * record.n + 1) / (record.n + 2)
    return record.stderr or math.sqrt(share * (1 - share) / (record.n + 2))
