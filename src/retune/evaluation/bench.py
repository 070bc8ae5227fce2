"""Benchmarks: one loaded base, every candidate on it in turn, every task; one record per candidate and task.

A record is written when its task is done; a run on the same inputs keeps it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from retune import adapter, models, store
from retune.errors import InputError, RetuneError
from retune.evaluation import harness, instruct, tasks
from retune.evaluation.decoding import adapters, self_check
from retune.evaluation.decoding.generate import Decoder
from retune.evaluation.sandbox import runner as sandbox
from retune.evaluation.tasks.question import Question, Task, file_digest
from retune.events import Answering, Event, Scored
from retune.records import BenchRecord, digest, now, parse, versions
from retune.study import Benchmark, Model, TaskName

Report = Callable[[Event], None]
_REPORT_SECONDS = 1.0


@dataclass(frozen=True)
class Candidate:
    """A model to score: the base with the adapter at `adapter_uri` on it, or the bare base.

    `adapter_digest` names the adapter's weights; where it is None, it is computed from the adapter's files.
    """

    name: str
    adapter_uri: str | None = None
    adapter_digest: str | None = None


@dataclass(frozen=True)
class SharedBase:
    """A loaded base that belongs to the caller: `load` returns it; `forget` is called if scoring left it changed."""

    load: Callable[[], models.LoadedBase]
    forget: Callable[[], None]


class Prepared(Protocol):
    """A task with its prompts, ready to be answered; one class per protocol."""

    @property
    def name(self) -> str:
        """The task's name."""

    @property
    def protocol(self) -> str:
        """The source of the prompts and of the grading rule."""

    @property
    def shots(self) -> int:
        """The number of solved examples before a question, where all fit."""

    @property
    def n(self) -> int:
        """The number of questions."""

    @property
    def data_digest(self) -> str:
        """The digest of the files read."""

    @property
    def prompt_digest(self) -> str:
        """The digest of all prompts in order."""

    @property
    def settings(self) -> dict[str, Any]:
        """How answers are generated; part of the inputs digest."""

    def answer(self, decoder: Decoder, done: Callable[[float], None]) -> dict[str, Any]:
        """Answer and grade all questions; return score, stderr, groups and answers of the record."""


def check(benchmark: Benchmark) -> list[str]:
    """Return every problem with the files of the tasks; no model is needed."""
    problems: list[str] = []
    for name in benchmark.tasks:
        try:
            _read_task(benchmark, tasks.find(name))
            if benchmark.protocol == "lm-eval":
                problems += [f"{name}: {problem}" for problem in harness.problems(name, benchmark.data[name])]
        except InputError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
        if name == "humaneval":
            problems += _may_run_code(benchmark)
    return problems


def data_digests(benchmark: Benchmark | None) -> dict[str, str]:
    """Return the digest of each task's files, by its name; none without a benchmark. Nothing is parsed.

    Raises:
        InputError: if a file is missing or cannot be fetched.
    """
    if benchmark is None:
        return {}
    found = [tasks.find(name) for name in benchmark.tasks]
    return {task.name: file_digest(task.files(_locate(benchmark, task))) for task in found}


def check_candidates(model: Model, candidates: Sequence[Candidate]) -> list[str]:
    """Return every problem with the base and the adapters: none at that URI, or made for another base."""
    names = [candidate.name for candidate in candidates]
    problems = [
        f"{name}: candidates need different names"
        for name in sorted({n for n in names if names.count(n) > 1})
    ]
    try:
        base = models.locate(model)
        models.config_of(base)
    except InputError as error:
        return problems + error.problems
    for candidate in candidates:
        if candidate.adapter_uri is None:
            continue
        try:
            folder = store.download(candidate.adapter_uri)
        except FileNotFoundError:
            problems += [f"{candidate.name}: {reason}" for reason in adapter.damage(candidate.adapter_uri)]
            continue
        except RetuneError as error:
            problems.append(
                f"{candidate.name}: the adapter at {candidate.adapter_uri} cannot be fetched: {error}"
            )
            continue
        reasons = adapters.problems(candidate.name, folder, base)
        if not any("lacks" in problem for problem in reasons) or adapter.was_written(candidate.adapter_uri):
            damage = adapter.damage(candidate.adapter_uri, candidate.adapter_digest)
            reasons = [f"{candidate.name}: {reason}" for reason in damage] or reasons
        problems += reasons
    return problems


def run(
    model: Model,
    candidates: Sequence[Candidate],
    benchmark: Benchmark,
    seed: int,
    out_uri: str,
    report: Report | None = None,
    resident: SharedBase | None = None,
) -> list[BenchRecord]:
    """Score every candidate on every task of `benchmark`; return the records, candidate by candidate.

    Each record is written to ``<out_uri>/<candidate>/<task>.json``. Existing records of the same inputs are kept; if
    all are, the model is not loaded.

    Args:
        seed: decides which questions a `limit` draws.
        report: called with `Answering` about once a second, and with `Scored` after each task.
        resident: the base to use; by default one is loaded.

    Raises:
        InputError: with every problem of data and adapters, before a model is loaded.
        RetuneError: if a model's output is not finite, or the model does not fit into memory.

    """
    problems = check(benchmark) + check_candidates(model, candidates)
    if problems:
        raise InputError(problems, "benchmark")
    report = report or (lambda event: None)
    prepared = [_prepare(model, benchmark, name, seed) for name in benchmark.tasks]
    base_digest = models.base_digest(models.locate(model))
    base: models.LoadedBase | None = None
    records: list[BenchRecord] = []
    for candidate in candidates:
        folder = store.download(candidate.adapter_uri) if candidate.adapter_uri else None
        weights = candidate.adapter_digest or (adapter.digest(adapter.read(folder)) if folder else None)
        unscored_records = [
            _unscored(model, base_digest, candidate.name, weights, benchmark, seed, item) for item in prepared
        ]
        uris = [store.join(out_uri, candidate.name, f"{unscored.task}.json") for unscored in unscored_records]
        existing = {
            uri: record
            for uri, unscored in zip(uris, unscored_records, strict=True)
            if (record := _existing(uri, unscored))
        }
        if len(existing) < len(uris):
            base = base or (resident.load() if resident else models.load_base(model))
            jobs = [
                job for job in zip(uris, prepared, unscored_records, strict=True) if job[0] not in existing
            ]
            if not _score_all(base, folder, jobs, report):
                base = None
                if resident:
                    resident.forget()
        for uri in uris:
            record = existing.get(uri) or parse(BenchRecord, store.read(uri), uri)
            records.append(record)
            report(
                Scored(record.model, record.task, record.score, record.stderr, record.n, kept=uri in existing)
            )
    return records


def _score_all(
    base: models.LoadedBase,
    folder: Path | None,
    jobs: Sequence[tuple[str, Prepared, BenchRecord]],
    report: Report,
) -> bool:
    """Score one candidate on the tasks that have no record yet; write each record as soon as it is complete.

    Returns:
        whether the base is unchanged afterwards; if not, it must be loaded again.
    """
    from retune.training.base_state import reload_if_changed

    changed: list[bool] = []
    with ExitStack() as stack:
        stack.enter_context(reload_if_changed(lambda: changed.append(True)))
        tuned = stack.enter_context(adapters.attached(base.model, folder))
        unscored = jobs[0][2]
        try:
            decoder, checked = stack.enter_context(
                self_check.decoding(
                    tuned, base.tokenizer, base.device, _context(base.model.config), unscored.batch_size
                )
            )
        except RetuneError as error:
            raise RetuneError(f"{unscored.model}: {error}") from error
        results = {"dtype": str(base.dtype).removeprefix("torch."), "self_check": checked.record()}
        for uri, item, unscored in jobs:
            record = _score(decoder, item, unscored.model_copy(update=results), report)
            store.write(uri, record.to_json())
    return not changed


def _locate(benchmark: Benchmark, task: Task) -> Path:
    """Return the local file or folder of a task."""
    uri = benchmark.data[task.name]  # type: ignore[index]
    try:
        return store.download(uri)
    except FileNotFoundError as error:
        raise InputError(f"there is no file or folder {uri}") from error
    except RetuneError as error:
        raise InputError(str(error)) from error


def _read_task(benchmark: Benchmark, task: Task) -> tuple[list[Question], str]:
    path = _locate(benchmark, task)
    return task.read(path), file_digest(task.files(path))


def _may_run_code(benchmark: Benchmark) -> list[str]:
    if not benchmark.allow_code_execution:
        return ["humaneval: runs code written by a model; set `allow_code_execution: true` to allow it"]
    missing = sandbox.missing()
    return [f"humaneval: {missing}"] if missing else []


def _prepare(model: Model, benchmark: Benchmark, name: TaskName, seed: int) -> Prepared:
    task = tasks.find(name)
    read = _read_task(benchmark, task)
    if benchmark.protocol == "lm-eval":
        return harness.prepare(name, store.download(benchmark.data[name]), read[1], benchmark.limit, seed)
    return instruct.prepare(model, _context(_config(model)), benchmark, task, read, seed)


def _config(model: Model) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(models.locate(model), trust_remote_code=False)


def _context(config: Any) -> int:
    return models.context(config) or models.DEFAULT_CONTEXT


def _unscored(
    model: Model,
    base_digest: str,
    name: str,
    weights: str | None,
    benchmark: Benchmark,
    seed: int,
    item: Prepared,
) -> BenchRecord:
    """Return the record of a task before scoring, with the digest of everything that determines the answers."""
    dtype = models.precision(model)
    settings = {**item.settings, "seed": seed, "base": model.base, "base_digest": base_digest}
    inputs = {**settings, "base": None, "task": item.name, "protocol": item.protocol, "prompts": item.prompt_digest,
               "dtype": dtype, "data": item.data_digest, "limit": benchmark.limit, "adapter": weights}  # fmt: skip
    return BenchRecord(
        model=name,
        task=item.name,
        score=0.0,
        stderr=0.0,
        n=item.n,
        shots=item.shots,
        protocol=item.protocol,
        limit=benchmark.limit,
        prompt_digest=item.prompt_digest,
        data_digest=item.data_digest,
        adapter_digest=weights,
        batch_size=benchmark.batch_size,
        inputs_digest=digest(inputs),
        settings=settings,
    )


def _existing(uri: str, unscored: BenchRecord) -> BenchRecord | None:
    """Return the record at `uri` if it was made from the same inputs."""
    if not store.exists(uri):
        return None
    try:
        record = parse(BenchRecord, store.read(uri), uri)
    except RetuneError:  # damaged: score it again
        return None
    return record if record.inputs_digest == unscored.inputs_digest else None


def _score(decoder: Decoder, item: Prepared, unscored: BenchRecord, report: Report) -> BenchRecord:
    """Answer and grade all questions of a task."""
    begin = time.monotonic()
    progress = _Progress(unscored.model, unscored.task, item.n, report)
    try:
        results = item.answer(decoder, progress.add)
    except RetuneError as error:
        raise RetuneError(f"{unscored.model} on {unscored.task}: {error}") from error
    packages = ["torch", "transformers", "peft", "tokenizers"]
    packages += ["lm_eval"] if "harness" in item.settings else []
    return unscored.model_copy(
        update={
            **results,
            "seconds": round(time.monotonic() - begin, 3),
            "versions": versions(*packages),
            "finished": now(),
        }
    )


class _Progress:
    """Counts answered questions and reports the remaining time about once a second."""

    def __init__(self, model: str, task: str, total: int, report: Report) -> None:
        self._model, self._task, self._total, self._report = model, task, total, report
        self._done = 0.0
        self._begin = self._last = time.monotonic()

    def add(self, count: float) -> None:
        self._done += count
        moment = time.monotonic()
        if moment - self._last < _REPORT_SECONDS and self._done < self._total - 0.5:
            return
        self._last = moment
        left = (moment - self._begin) / self._done * (self._total - self._done)
        self._report(Answering(self._model, self._task, round(self._done), self._total, round(left, 1)))
