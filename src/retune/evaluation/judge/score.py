"""Counting judgements: per question, per person and overall, with an interval and the agreement between people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, Field

from retune.errors import InputError
from retune.evaluation.judge.agreement import krippendorff_alpha, nominal, ordinal
from retune.evaluation.judge.collect import Ballot, Excluded, Vote, collect
from retune.evaluation.judge.key import Key
from retune.evaluation.judge.record import Side
from retune.records import Record, now, versions

LEVEL = 0.95
RESAMPLES = 10_000
_VALUE: dict[Vote, int] = {"a": 1, "tie": 0, "b": -1}


class Count(BaseModel):
    """Judgements: `win` for model a, `tie`, `lose` (model b was better)."""

    win: int = 0
    tie: int = 0
    lose: int = 0

    @property
    def n(self) -> int:
        """All judgements."""
        return self.win + self.tie + self.lose

    def score(self) -> float | None:
        """Return the preference score, share of wins minus share of losses, from -1 to 1; None without judgements."""
        return (self.win - self.lose) / self.n if self.n else None


class QuestionCount(Count):
    """The judgements of one question; `equal` where both answers were the same, so that it was not in the form."""

    id: str
    category: str = ""
    question: str
    equal: bool = False


class AnnotatorCount(Count):
    """The judgements of one person. `missing`: questions of the form left open. `first`: the share of the answers
    called better that stood first (left, or above); None if all were ties.
    """

    annotator: str
    file: str
    missing: int = 0
    first: float | None = None


class Preference(Record):
    """The outcome of a preference study.

    Attributes:
        a, b: names of the models; wins and losses are those of a.
        overall: all judgements. score: the overall preference score, share of wins minus share of losses.
        interval: of the score, at `level`, by bootstrap over questions and people.
        alpha_nominal, alpha_ordinal: Krippendorff's alpha over the questions of the form, with lose < tie < win
            for the second; None where it is not defined.
        first: as in `AnnotatorCount`, over all people; far from 0.5 the place of an answer decided.

    """

    a: str
    b: str
    form: str
    overall: Count
    score: float
    interval: tuple[float, float]
    level: float = LEVEL
    resamples: int = RESAMPLES
    seed: int
    alpha_nominal: float | None
    alpha_ordinal: float | None
    first: float | None
    questions: list[QuestionCount]
    annotators: list[AnnotatorCount]
    left_out: list[Excluded]
    versions: dict[str, str] = Field(default_factory=dict)
    finished: str = ""


def score(files: Sequence[str], key: Key, seed: int = 0) -> Preference:
    """Count the judgements in `files`.

    A file in which questions are open counts for the others. A question whose answers are equal is a tie of every
    person, and is left out of the agreement. Tribes et al. 2024 report an "overall preference score" of 5 % without
    its formula; it is read as the share of judgements for a minus the share for b.

    Raises:
        InputError: if no file can be counted; with the reason for each.
    """
    ballots, left_out = collect(files, key)
    if not ballots:
        raise InputError(
            [f"{out.file}: {out.reason}" for out in left_out] or ["at least one file of answers is needed"],
            "no answers to count",
        )
    votes = [_with_ties(ballot, key) for ballot in ballots]
    overall = _count([vote for one in votes for vote in one.values()])
    questions = [
        QuestionCount(
            id=q.id, category=q.category, question=q.question, equal=q.token is None,
            **_count([one[q.id] for one in votes if q.id in one]).model_dump(),
        )
        for q in key.questions
    ]  # fmt: skip
    table = [[q.lose, q.tie, q.win] for q in questions if not q.equal]
    total = overall.score()
    assert total is not None  # a ballot holds at least one vote
    return Preference(
        a=key.models["a"].name,
        b=key.models["b"].name,
        form=key.form,
        overall=overall,
        score=total,
        interval=interval(votes, [q.id for q in key.questions], seed),
        seed=seed,
        alpha_nominal=krippendorff_alpha(table, nominal),
        alpha_ordinal=krippendorff_alpha(table, ordinal),
        first=_first(ballots),
        questions=questions,
        annotators=[
            AnnotatorCount(
                annotator=ballot.annotator, file=ballot.file, missing=len(key.comparisons()) - len(ballot.votes),
                first=_first([ballot]), **_count(list(one.values())).model_dump(),
            )
            for ballot, one in zip(ballots, votes, strict=True)
        ],
        left_out=left_out,
        versions=versions("numpy"),
        finished=now(),
    )  # fmt: skip


def interval(
    votes: Sequence[dict[str, Vote]], questions: Sequence[str], seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Return the percentile interval of the preference score.

    Questions and people are both drawn anew with replacement (the pigeonhole bootstrap: A. B. Owen, Annals of Applied
    Statistics 1(2), 2007), because both are samples: it errs to the wide side. With one person it speaks of the
    questions alone.

    Args:
        votes: each person's votes by question id.
        questions: all ids.
        seed: decides the draws.
    """
    import numpy as np

    values = np.array([[_VALUE[one[q]] if q in one else 0 for q in questions] for one in votes], dtype=float)
    votes_cast = np.array([[q in one for q in questions] for one in votes], dtype=float)
    rng = np.random.default_rng(seed)
    people, size = values.shape
    by_person = rng.multinomial(people, np.full(people, 1 / people), resamples)
    by_question = rng.multinomial(size, np.full(size, 1 / size), resamples)
    sums = ((by_person @ values) * by_question).sum(1)
    counts = ((by_person @ votes_cast) * by_question).sum(1)
    drawn = sums[counts > 0] / counts[counts > 0]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _with_ties(ballot: Ballot, key: Key) -> dict[str, Vote]:
    """Return a person's votes with a tie for each question whose answers are equal."""
    ties: dict[str, Vote] = {question.id: "tie" for question in key.questions if question.token is None}
    return {**ballot.votes, **ties}


def _count(votes: Sequence[Vote]) -> Count:
    counts = Counter(votes)
    return Count(win=counts["a"], tie=counts["tie"], lose=counts["b"])


def _first(ballots: Sequence[Ballot]) -> float | None:
    """Return the share of the answers called better that stood first."""
    decided: list[tuple[Vote, Side]] = [
        (vote, one.first[question])
        for one in ballots
        for question, vote in one.votes.items()
        if vote != "tie"
    ]
    return sum(vote == first for vote, first in decided) / len(decided) if decided else None
