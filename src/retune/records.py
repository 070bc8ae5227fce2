"""The records of a study: JSON files by which steps pass results on, and which are kept for ever.

A record is written once, atomically and last: while it is missing, the work is not done. Old records must stay readable,
so fields are only ever added, with a default.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from retune.errors import RetuneError
from retune.space import Assignment

Status = Literal["completed", "failed", "interrupted", "early_stopped"]
CHECKSUM = "checksum"
M = TypeVar("M", bound=BaseModel)
# `base`: the untuned model. `default`: the study's default setting. `search`: a setting that the algorithm chose.
# `repeat`: one of these with another seed. `proxy`: trained on a part of the data.
Role = Literal["base", "default", "search", "repeat", "proxy"]


def now() -> str:
    """Return the time in UTC as RFC 3339 with milliseconds, e.g. ``2026-11-22T13:30:00.123Z``."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def canonical(content: Any) -> str:
    """Return `content` as JSON with sorted keys and no spaces: equal content gives equal text."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(content: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of `content` (bytes as they are, else its canonical JSON)."""
    data = content if isinstance(content, bytes) else canonical(content).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python, retune and the named packages that are installed."""
    by_package = {"python": platform.python_version()}
    for package in ("retune", *packages):
        try:
            by_package[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return by_package


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """Return `content` with its own digest under ``checksum``, by which `unseal` finds damage on a disk."""
    return {**content, CHECKSUM: digest(content)}


def unseal(content: Any) -> Any:
    """Return `content` without its checksum, which files of older releases do not have.

    Raises:
        ValueError: if the checksum is not that of the content.

    """
    if not isinstance(content, dict) or CHECKSUM not in content:
        return content
    rest = {key: value for key, value in content.items() if key != CHECKSUM}
    if digest(rest) != content[CHECKSUM]:
        raise ValueError(
            "its checksum is not that of its content: it was damaged, or edited by hand (then delete the line `checksum`)"
        )
    return rest


def loads(data: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in a file that retune wrote, its checksum verified.

    Args:
        data: the file's bytes.
        where: its URI, for the error.

    Raises:
        RetuneError: if it is damaged.

    """
    try:
        content = unseal(json.loads(data))
        if not isinstance(content, dict):
            raise ValueError(f"it holds no object, but {str(content)[:40]!r}")
    except (ValueError, RecursionError) as error:
        raise _damaged(where, error) from error
    return content


def parse(kind: type[M], data: bytes, where: str) -> M:
    """Return the record in a file that retune wrote, its checksum verified.

    Args:
        kind: its class.
        data: the file's bytes.
        where: its URI, for the error.

    Raises:
        RetuneError: if it is damaged, or not of that kind.

    """
    content = loads(data, where)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise _damaged(where, f"{path}: {first['msg']}" if path else str(first["msg"])) from error


def _damaged(where: str, why: object) -> RetuneError:
    return RetuneError(
        f"{where} cannot be read: {why}; restore it from a copy, or delete it to have that work done again"
    )


def by_number(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return the sort key by which names of trials are in the order of their numbers: trial-999, trial-1000-seed-1."""
    return [_number(digits) for digits in re.findall(r"[0-9]+", name)], name


def by_parts(name: str) -> list[tuple[int, str]]:
    """Return the sort key for natural order, words and numbers compared in turn: a-9, a-10, b-1."""
    parts = re.split(r"([0-9]+)", name)
    return [_number(part) if index % 2 else (-1, part) for index, part in enumerate(parts)]


def _number(digits: str) -> tuple[int, str]:
    """Return the sort key of a whole number; not an int, since Python refuses to convert more than 4300 digits."""
    digits = digits.lstrip("0")
    return len(digits), digits


class Record(BaseModel):
    """The base of all records; unknown fields, as a newer release writes them, are kept."""

    # "constants": pydantic's default writes NaN as null in fields of type Any, where `to_json` could not refuse it.
    model_config = ConfigDict(extra="allow", ser_json_inf_nan="constants")

    schema_version: int = 1

    def to_json(self) -> bytes:
        """Return the record as indented UTF-8 JSON with its checksum, ready for a file.

        Raises:
            ValueError: if a number is NaN or infinite, so that a record never holds an invalid result.

        """
        content = json.dumps(self.model_dump(mode="json"), ensure_ascii=False, allow_nan=False)
        text = json.dumps(seal(json.loads(content)), indent=2, ensure_ascii=False, allow_nan=False)
        return (text + "\n").encode()

    @model_validator(mode="before")
    @classmethod
    def _without_checksum(cls, content: Any) -> Any:
        """Drop the checksum, which `loads` has verified: it is that of the file, not of a record in memory."""
        return {k: v for k, v in content.items() if k != CHECKSUM} if isinstance(content, dict) else content


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured value of a metric.

    Not a `BaseModel`, which takes seven times the memory: a search of 5,000 trials has a million of them.

    Attributes:
        step: optimiser steps before the measurement.
        value: in the unit of the metric, e.g. nats per counted token.
        epoch: passes over the training data before it.
        time: when it was measured, in UTC.

    """

    step: int
    value: float
    epoch: float = 0.0
    time: str = ""


class Rung(BaseModel):
    """The validation loss, in nats per counted token, after a share of a trial's full training (`search.stopping`)."""

    share: float
    step: int
    loss: float


class TrialRecord(Record):
    """The setting, course and result of one trial (`trial.json`).

    Attributes:
        trial: name, unique in the study, e.g. ``trial-007``.
        number: of the setting in the study; 0 is the untuned base, 1 the default setting.
        role: why it was run. ``repeat`` trials train a setting again with another seed, to measure the spread; ``proxy``
            trials train on a part of the data, keep no adapter and are never chosen.
        assignment: hyper-parameters by name; empty for the untuned base.
        status: only ``completed`` trials have an objective value. An ``early_stopped`` trial may resume; then its record is
            written again.
        reason: one line on why it did not complete.
        failure: a stable word for programs: ``nan``, ``out_of_memory``, ``killed``, ``error``.
        values: the final value of each metric, e.g. ``validation_loss`` in nats per counted token.
        curves: every measurement of each metric.
        tokens: real (non-padding) tokens trained on.
        seconds: wall time of training and validation; of a trial that shared passes with others, its share by tokens.
        side_by_side: the largest number of trials that trained together with this one, itself included.
        peak_memory_gib: of the process, so of all trials side by side.
        adapter_uri: the folder with PEFT's own files; None for the base, or once the adapter was deleted.
        dtype: of the base's weights, e.g. ``bfloat16``; followed by ``nf4`` if they are quantised to 4 bits.
        adapter_digest: over the adapter's settings and weights; in older releases over the weights alone.
        adapter_files: SHA-256 of each of its files.
        self_check: how losses were computed, and how far they are from transformers' plain forward; see
            `retune.training.self_check.Checked`.
        rungs: validation losses at the rungs that the trial has reached, also if it failed later.
        proxy: the part of the data that a ``proxy`` trial was trained on; see `retune.data.subset.Subset`.

    """

    trial: str
    number: int
    role: Role
    assignment: Assignment
    seed: int
    status: Status
    reason: str | None = None
    failure: str | None = None
    values: dict[str, float] = Field(default_factory=dict)
    curves: dict[str, list[Metric]] = Field(default_factory=dict)
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    peak_memory_gib: float | None = None
    trainable_parameters: int = 0
    side_by_side: int = 1
    data_digest: str = ""
    settings_digest: str = ""
    base: str = ""
    base_revision: str | None = None
    adapter_uri: str | None = None
    adapter_digest: str | None = None
    adapter_files: dict[str, str] = Field(default_factory=dict)
    device: str = "cpu"
    dtype: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    self_check: dict[str, Any] = Field(default_factory=dict)
    rungs: list[Rung] = Field(default_factory=list, exclude_if=lambda rungs: not rungs)
    proxy: dict[str, Any] = Field(default_factory=dict, exclude_if=lambda proxy: not proxy)
    started: str = ""
    finished: str = ""

    @property
    def share(self) -> float:
        """The share of its full training after which a trial was stopped early; 1 for all others."""
        return self.rungs[-1].share if self.status == "early_stopped" and self.rungs else 1.0

    def objective(self, metric: str) -> float | None:
        """Return the final value of `metric`, or None if the trial did not complete with a finite one."""
        value = self.values.get(metric)
        if self.status != "completed" or value is None or not math.isfinite(value):
            return None
        return value


class BenchRecord(Record):
    """The score of one model on one benchmark task.

    Attributes:
        model: the trial's name, e.g. ``trial-007`` or ``trial-000`` for the untuned base.
        score: share of right answers (pass@1 for HumanEval), 0 to 1.
        stderr: standard error of the score.
        n: number of questions answered.
        shots: examples in the prompt.
        limit: the most questions to answer, None for all.
        protocol: whose prompts and scoring rule, e.g. ``instruct-eval``.
        prompt_digest: over all prompts in order.
        data_digest: over the benchmark's files.
        seconds: wall time.
        groups: the score of each subject or subtask.
        answers: one entry per question: id, prompt digest, prediction, right or wrong.
        self_check: how prompts were processed, and how far the results are from transformers' plain forward; see
            `retune.evaluation.decoding.self_check.Answered`.
        settings: decoding, limits in tokens, seed, base model.
        inputs_digest: over everything that affects the answers.

    """

    model: str
    task: str
    score: float
    stderr: float
    n: int
    shots: int
    protocol: str
    limit: int | None = None
    prompt_digest: str = ""
    data_digest: str = ""
    adapter_digest: str | None = None
    batch_size: int = 1
    dtype: str = "float32"
    seconds: float = 0.0
    groups: dict[str, float] = Field(default_factory=dict)
    answers: list[dict[str, Any]] = Field(default_factory=list)
    self_check: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    inputs_digest: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    finished: str = ""


class Answered(BaseModel):
    """A held-out record, and each model's answer to it.

    Attributes:
        question: the last question.
        earlier: the turns before it, as role and text.
        reference: the record's own answer.
        source, row: its origin.
        answers: by the name of the trial; ``trial-000`` is the untuned base.

    """

    question: str
    earlier: list[tuple[str, str]] = Field(default_factory=list)
    reference: str
    source: str = ""
    row: int = 0
    answers: dict[str, str] = Field(default_factory=dict)


class AnswersRecord(Record):
    """The answers of base, default and winner to a few held-out prompts (`answers.json`), for people to read.

    Attributes:
        trials: the trials that answered, the untuned base first.
        chosen: the winner, one of them.
        prompt: the kind of prompt.
        new_tokens: the most tokens of an answer; decoding is greedy.

    """

    trials: list[str]
    chosen: str | None = None
    prompt: str = ""
    new_tokens: int = 0
    data_digest: str = ""
    questions: list[Answered] = Field(default_factory=list)
    seconds: float = 0.0
    versions: dict[str, str] = Field(default_factory=dict)
    finished: str = ""


class GateRecord(Record):
    """Why a challenger was or was not promoted.

    Attributes:
        model: name in the registry.
        challenger, champion: versions; champion is None before the first promotion.
        decision: ``promote``, ``keep`` (the champion stays) or ``same`` (the challenger is the champion).
        rules: each rule with its inputs, numbers and outcome; the decision is ``promote`` if all passed.
        waits: the gate passed, but a person has to move the champion (`promote.automatic` of the study).

    """

    model: str
    challenger: str
    champion: str | None
    decision: Literal["promote", "keep", "same"]
    rules: list[dict[str, Any]] = Field(default_factory=list)
    trial: str = ""
    study: str = ""
    data_digest: str = ""
    decided: str = ""
    waits: bool = False
