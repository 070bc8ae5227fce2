"""The parts of a benchmark task: questions with shots, a grading rule, an average, a seeded draw."""

from __future__ import annotations

import hashlib
import math
import os
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROTOCOL = "instruct-eval"
_PROBLEMS_SHOWN = 3


@dataclass(frozen=True)
class Question:
    """One question and the parts of its prompt.

    Attributes:
        id: unique in its task, e.g. ``astronomy/17``.
        group: the subject or sub-task; limits are stratified by it, and macro-averages average over it.
        header: text before the shots. shots: solved examples, whole, in order. body: the question, without its answer.
        label: what the answer must start with.
        extra: what the task itself needs to grade the answer.
        choices: texts whose likelihoods are compared; empty if the model generates the answer.

    """

    id: str
    group: str
    header: str
    shots: tuple[str, ...]
    body: str
    label: str
    extra: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()

    def prompt(self, shots: int | None = None) -> str:
        """Return the prompt with the first `shots` shots (default: all)."""
        return "".join(self.pieces(shots))

    def pieces(self, shots: int | None = None) -> tuple[str, str]:
        """Return the prompt as what it may share with other questions, and the body."""
        kept = self.shots if shots is None else self.shots[:shots]
        return self.header + "".join(kept), self.body


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and for code the reason why not."""

    right: bool
    reason: str = ""


@dataclass(frozen=True)
class Score:
    """A score between 0 and 1 with its standard error, and the same for parts of the task by name."""

    value: float
    stderr: float
    groups: dict[str, float] = field(default_factory=dict)


Grade = Callable[[Sequence[Question], Sequence[str]], list[Verdict]]
Average = Callable[[Sequence[Question], Sequence[bool]], Score]


@dataclass(frozen=True)
class Task:
    """A benchmark as the Instruct-Eval protocol defines it.

    Attributes:
        shots: solved examples before a question. input_limit, new_tokens: in tokens.
        files: the files under a path that belong to the task. read: the questions in them; raises InputError with
            every problem.
        grade: from questions and predictions to verdicts. average: from verdicts to the score.
        stop: whether, given the text so far, nothing after it counts.
        postprocess: returns the part of a prediction that counts and is kept.
        protocol: the source of prompts and grading rule.
        choose: from the log-likelihoods of a question's choices to the prediction; with it nothing is generated.
        others: further scores from the log-likelihoods, by name.

    """

    name: str
    shots: int
    input_limit: int
    new_tokens: int
    files: Callable[[Path], list[Path]]
    read: Callable[[Path], list[Question]]
    grade: Grade
    average: Average
    stop: Callable[[str], bool] | None = None
    postprocess: Callable[[str], str] = str
    protocol: str = PROTOCOL
    choose: Callable[[Question, Sequence[float]], str] | None = None
    others: Callable[[Sequence[Question], Sequence[Sequence[float]]], dict[str, float]] | None = None


def starts_with_label(questions: Sequence[Question], predictions: Sequence[str]) -> list[Verdict]:
    """Return the Instruct-Eval rule: right when the stripped prediction starts with the label."""
    pairs = zip(questions, predictions, strict=True)
    return [Verdict(prediction.strip().startswith(question.label)) for question, prediction in pairs]


def share(right: Sequence[bool]) -> tuple[float, float]:
    """Return the share of right answers and its standard error, sqrt(p (1 - p) / (n - 1)); 0 for a single answer."""
    n = len(right)
    p = sum(right) / n
    return p, math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else 0.0


def by_group(questions: Sequence[Question], right: Sequence[bool]) -> dict[str, list[bool]]:
    """Return the verdicts of each group, groups in order of first appearance."""
    groups: dict[str, list[bool]] = {}
    for question, one in zip(questions, right, strict=True):
        groups.setdefault(question.group, []).append(one)
    return groups


def micro_average(questions: Sequence[Question], right: Sequence[bool]) -> Score:
    """Return the share over all questions, whatever their group."""
    return Score(*share(right))


def mean(values: Sequence[float]) -> Score:
    """Return the mean of one value a question, with its standard error."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return Score(statistics.fmean(values), spread / math.sqrt(len(values)))


def draw(questions: Sequence[Question], limit: int | None, seed: int) -> list[Question]:
    """Return at most `limit` questions, stratified by group, in their original order.

    Systematic sampling: every group is shuffled, its k-th question gets the rank (k + u) / size with one random u per group, and
    the lowest ranks are drawn. A larger draw contains every smaller one of the same seed.
    """
    if limit is None or limit >= len(questions):
        return list(questions)
    places: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        places.setdefault(question.group, []).append(index)
    ranked: list[tuple[float, int]] = []
    for group, members in places.items():
        rng = random.Random(f"{seed}/{group}")
        offset = rng.random()
        rng.shuffle(members)
        ranked += [((k + offset) / len(members), index) for k, index in enumerate(members)]
    return [questions[index] for _, index in sorted(sorted(ranked)[:limit], key=lambda pair: pair[1])]


def file_digest(files: Sequence[Path]) -> str:
    """Return the digest of the files' contents and of their names below the folder that holds them all.

    The same files in another folder, or in a bucket, are the same benchmark; so is a single file of another name.
    """
    folder = os.path.commonpath(files) if files else ""
    sha = hashlib.sha256()
    for path in sorted(files):
        name = os.path.relpath(path, folder)
        sha.update(f"{name}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return sha.hexdigest()[:16]


def first_few(problems: Sequence[str]) -> list[str]:
    """Return the first problems of one file and the number of the others: a file of a wrong format is wrong on every line."""
    shown = list(problems[:_PROBLEMS_SHOWN])
    more = len(problems) - len(shown)
    return [*shown, f"… and {more} more like these in the same file"] if more > 0 else shown
