"""Runs one trial: trains and validates a setting, then writes its record, atomically and last."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from retune import gpus, records, store
from retune.errors import InputError, TrialFailed
from retune.events import Event, Measured
from retune.records import Metric, TrialRecord
from retune.study import Study
from retune.training.failures import is_fault_of_setting
from retune.trials import trial_record
from retune.trials.task import TrialTask

if TYPE_CHECKING:
    from retune.data.tokens import Tokens
    from retune.training.resident import ResidentBase


def run_trial(
    study: Study,
    data_uri: str,
    task: TrialTask,
    base: ResidentBase,
    report: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrialRecord:
    """Run a trial and return its record; resume from its checkpoint, or return an existing record, if there is one.

    Role ``base`` validates the base without an adapter. A trial that fails gets a record too, with status ``failed``; one
    that stopped at the task's `until` gets the status ``early_stopped`` and keeps its checkpoint.

    Args:
        study: the whole study.
        data_uri: folder of mixed data.
        task: the setting, and where to write.
        base: the resident base; unchanged when this returns.
        report: called with each `Event`.
        should_stop: asked after every step; if true, a checkpoint is saved.

    Raises:
        Interrupted: after a checkpoint; run again to resume.
        DiskFull, RetuneError: if a file cannot be written; run again to resume. Nothing is recorded.
        InputError: if study, data, model or assignment can never work, or a GPU is required and there is none. Nothing is
            written.
    """
    from retune.training import memory

    if study.engine.kind == "katib" or gpus.in_pipeline_step():
        gpus.require(study.cluster.gpus)
    settings_digest = trial_record.digest(study, data_uri, task, base)
    if (done := base.devices.of_first(trial_record.finished(task, settings_digest))) is not None:
        return done
    check_scoring(study)
    memory.reset_peak(base.load().device)
    record = trial_record.new(study, data_uri, task, base, settings_digest)
    start = time.monotonic()
    try:
        if task.role == "base":
            _validate_base(study, data_uri, base, record, report)
        else:
            _train(study, data_uri, task, base, record, report, should_stop)
        score(study, task, base, record, report)
    except Exception as error:
        if not is_fault_of_setting(error):
            raise
        trial_record.mark_failed(record, error, task)
        record.seconds = round(time.monotonic() - start, 3)
    finally:
        base.release(failed=record.status == "failed")
    return trial_record.write(record, task, base)


def check_scoring(study: Study) -> None:
    """Check, before a trial trains, that the benchmarks it will be scored on can run.

    Raises:
        InputError: with every problem of the benchmarks.
    """
    if study.scored is not None:
        from retune.evaluation import bench

        if problems := bench.check(study.scored):
            raise InputError(problems, "benchmark")


def score(
    study: Study, task: TrialTask, base: ResidentBase, record: TrialRecord, report: Callable[[Event], None]
) -> None:
    """Add the scores that the search asks for to the record's values, if the trial completed."""
    # Not after early stopping: `search.stopping` compares trials by their losses.
    if study.scored is None or record.status != "completed":
        return
    from retune.trials.scores import benchmark_scores

    base.devices.barrier()  # the first process writes the adapter that all of them read now
    scores_uri = store.join(task.folder, "scores")
    with base.devices.together():
        scores = benchmark_scores(study, base, task.trial, record.adapter_uri, scores_uri)
    record.values |= scores
    for name, value in scores.items():
        report(Measured(name, value, record.steps, 0.0))


def _validate_base(
    study: Study, data_uri: str, base: ResidentBase, record: TrialRecord, report: Callable[[Event], None]
) -> None:
    start = time.monotonic()
    loss = base.evaluate(None, data_uri, study)
    if loss != loss or loss in (float("inf"), float("-inf")):
        raise TrialFailed(f"the validation loss of the base must be finite, but it is {loss}", "nan")
    report(Measured("validation_loss", loss, 0, 0.0))
    record.status = "completed"
    record.seconds = round(time.monotonic() - start, 3)
    record.values = {"validation_loss": loss, "best_validation_loss": loss, "seconds": record.seconds}
    record.curves = {"validation_loss": [Metric(step=0, value=loss, time=records.now())]}


def _train(
    study: Study,
    data_uri: str,
    task: TrialTask,
    base: ResidentBase,
    record: TrialRecord,
    report: Callable[[Event], None],
    should_stop: Callable[[], bool],
) -> None:
    from retune.training import lora
    from retune.training.loop import Loop

    chosen = lora.setting(study.training, task.assignment)
    train = training_tokens(study, data_uri, task, base)
    validation = base.tokens(data_uri, "validation", study.data)
    with base.adapter(chosen, study.data.max_length, task.seed, train) as model:
        loop = Loop(
            model, train, validation, chosen, task.seed, base.devices, task.folder,
            identity(task, record, base), report, should_stop, due_rungs(task), task.until,
        )  # fmt: skip
        try:
            loop.run()
        finally:
            record.rungs = trial_record.measured_rungs(loop)
        trial_record.complete(record, loop, lora.files(model), task, base, report)


def training_tokens(study: Study, data_uri: str, task: TrialTask, base: ResidentBase) -> Tokens:
    """Return the records that a trial trains on: all, or the subset of a proxy trial."""
    if task.role == "proxy":
        return base.proxy_subset(data_uri, study)[0]
    return base.tokens(data_uri, "train", study.data)


def due_rungs(task: TrialTask) -> list[float]:
    """Return the shares of the training after which the validation loss is measured, including the one to stop at."""
    return sorted({*task.rungs, *([task.until] if task.until < 1 else [])})


def identity(task: TrialTask, record: TrialRecord, base: ResidentBase) -> str:
    """Return the digest of what a training must share with a checkpoint to resume from it."""
    from retune.training import checkpoint

    return checkpoint.identity(
        assignment=task.assignment,
        seed=task.seed,
        settings=record.settings_digest,
        world=base.devices.world,
    )
