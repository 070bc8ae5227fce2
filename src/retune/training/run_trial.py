"""Runs one trial: trains and validates a setting, then writes its record, atomically and last."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retune import adapter, gpus, records, store
from retune.errors import InputError, TrialFailed
from retune.events import Event, Measured
from retune.records import Metric, Rung, TrialRecord
from retune.space import Assignment
from retune.study import Study
from retune.training.failures import describe, is_fault_of_setting

if TYPE_CHECKING:
    from retune.data.tokens import Tokens
    from retune.training.loop import Loop, State
    from retune.training.resident import ResidentBase

RECORD = "trial.json"
CURVE_POINTS = 200
METRICS = (
    "validation_loss", "best_validation_loss", "train_loss", "adapter_mib", "tokens_per_second", "seconds",
    "peak_memory_gib", "peak_gpu_gib",
)  # fmt: skip
"""What a trial measures: metrics that a search can optimise or limit, besides scores; the last one on GPUs only."""


class TrialTask(BaseModel):
    """A trial to run. `folder` is the URI below which the trial writes everything."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trial: str
    number: int = Field(ge=0)
    role: records.Role
    assignment: Assignment = Field(default_factory=dict)
    seed: int = 0
    folder: str
    rungs: tuple[float, ...] = ()
    """Shares of the whole training after which the validation loss is measured for the search."""
    until: float = 1.0
    """The share to train to; the trial stops there and keeps its checkpoint, so that it can be continued later."""


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
    settings_digest = digest(study, data_uri, task, base)
    if (done := base.devices.of_first(finished(task, settings_digest))) is not None:
        return done
    check_scoring(study)
    memory.reset_peak(base.load().device)
    record = new_record(study, data_uri, task, base, settings_digest)
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
        mark_failed(record, error, task)
        record.seconds = round(time.monotonic() - start, 3)
    finally:
        base.release(failed=record.status == "failed")
    return write_record(record, task, base)


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
    from retune.evaluation import scoring

    base.devices.barrier()  # the first process writes the adapter that all of them read now
    scores_uri = store.join(task.folder, "scores")
    with base.devices.together():
        scores = scoring.scores(study, base, task.trial, record.adapter_uri, scores_uri)
    record.values |= scores
    for name, value in scores.items():
        report(Measured(name, value, record.steps, 0.0))


def finished(task: TrialTask, settings_digest: str) -> TrialRecord | None:
    """Return the record in the task's folder if it is a finished one of this same trial, else None."""
    uri = store.join(task.folder, RECORD)
    if not store.exists(uri):
        return None
    try:
        record = records.parse(TrialRecord, store.read(uri), uri)
    except ValidationError:
        return None
    same = (record.assignment, record.seed, record.settings_digest, record.role == "base") == (
        task.assignment, task.seed, settings_digest, task.role == "base"
    )  # fmt: skip
    if record.status == "early_stopped":
        same = same and record.share >= task.until
    return record if same and record.status in ("completed", "failed", "early_stopped") else None


def digest(study: Study, data_uri: str, task: TrialTask, base: ResidentBase) -> str:
    """Return the digest of everything, besides assignment and seed, that determines the trial's result."""
    from retune.training import resident

    data = resident.data_digest(data_uri)
    if task.role == "proxy":
        data = f"{data}-{base.proxy_subset(data_uri, study)[1].digest}"
    return study.settings_digest(data, base.load().digest)


def new_record(
    study: Study, data_uri: str, task: TrialTask, base: ResidentBase, settings_digest: str
) -> TrialRecord:
    """Return the record of a trial that starts, with status ``failed`` until it ends well. `settings_digest`: from `digest`."""
    from retune.training import lora, resident

    loaded = base.load()
    chosen = lora.setting(study.training, task.assignment)
    return TrialRecord(
        trial=task.trial,
        number=task.number,
        role=task.role,
        assignment=task.assignment,
        seed=task.seed,
        status="failed",
        data_digest=resident.data_digest(data_uri),
        settings_digest=settings_digest,
        base=study.model.base,
        base_revision=loaded.revision,
        device=_device_name(loaded.device),
        dtype=" ".join([str(loaded.dtype).removeprefix("torch."), study.model.quantization or ""]).strip(),
        versions=_versions(),
        proxy=base.proxy_subset(data_uri, study)[1].model_dump(mode="json") if task.role == "proxy" else {},
        self_check=base.checked(chosen, study.data.max_length).record(),
        started=records.now(),
    )


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    return records.versions("torch", "transformers", "peft", "accelerate")


def _device_name(device: Any) -> str:
    import torch

    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else str(device)


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
            record.rungs = measured_rungs(loop)
        complete(record, loop, lora.files(model), task, base, report)


def training_tokens(study: Study, data_uri: str, task: TrialTask, base: ResidentBase) -> Tokens:
    """Return the records that a trial trains on: all, or the subset of a proxy trial."""
    if task.role == "proxy":
        return base.proxy_subset(data_uri, study)[0]
    return base.tokens(data_uri, "train", study.data)


def due_rungs(task: TrialTask) -> list[float]:
    """Return the shares of the training after which the validation loss is measured, including the one to stop at."""
    return sorted({*task.rungs, *([task.until] if task.until < 1 else [])})


def measured_rungs(loop: Loop) -> list[Rung]:
    """Return the rungs that a training has reached, with their losses, for its record."""
    return [Rung(share=rung, step=step, loss=loss) for rung, step, loss in loop.state.rungs]


def identity(task: TrialTask, record: TrialRecord, base: ResidentBase) -> str:
    """Return the digest of what a training must share with a checkpoint to resume from it."""
    from retune.training import checkpoint

    return checkpoint.identity(
        assignment=task.assignment,
        seed=task.seed,
        settings=record.settings_digest,
        world=base.devices.world,
    )


def complete(
    record: TrialRecord,
    loop: Loop,
    files: dict[str, bytes],
    task: TrialTask,
    base: ResidentBase,
    report: Callable[[Event], None],
) -> None:
    """Fill in the record of a training that reached its end, and write the adapter.

    Args:
        record: to fill in. loop: the training. files: the adapter's, by name.
        task, base, report: as in `run_trial`.

    Raises:
        DiskFull, RetuneError: if the adapter cannot be written.
    """
    state = loop.state
    record.trainable_parameters = sum(p.numel() for p in loop.parameters)
    _fill_measurements(record, loop, state, len(files[adapter.WEIGHTS]))
    if loop.end < loop.steps:
        record.status = "early_stopped"
        record.reason = (
            f"stopped after step {loop.end} of {loop.steps} by `search.stopping`; it can be continued"
        )
        return
    record.status = "completed"
    if task.role == "proxy":  # only its loss is used, so its adapter is not written
        return
    record.adapter_digest, record.adapter_files = adapter.digest(files), adapter.sums(files)
    record.adapter_uri = store.join(task.folder, "adapter")
    for name in ("adapter_mib", "tokens_per_second"):
        report(Measured(name, record.values[name], state.step, loop.training.epochs))
    with base.devices.together():
        if base.devices.first:
            for name, content in files.items():
                store.write(store.join(record.adapter_uri, name), content)


def _fill_measurements(record: TrialRecord, loop: Loop, state: State, adapter_bytes: int) -> None:
    now = records.now()
    record.steps = state.step
    record.tokens = state.tokens
    record.seconds = round(state.seconds, 3)
    per_epoch = loop.per_epoch
    losses = {epoch * per_epoch: loss for epoch, loss in enumerate(state.validation, 1)}
    losses |= {step: loss for _, step, loss in state.rungs}
    record.values = {
        "validation_loss": losses[max(losses)],
        "best_validation_loss": min(losses.values()),
        "train_loss": loop.train_loss(),
        "adapter_mib": adapter_bytes / 2**20,
        "tokens_per_second": state.tokens / max(state.train_seconds, 1e-9),
        "seconds": record.seconds,
    }
    record.curves = {
        "validation_loss": [
            Metric(step=step, value=loss, epoch=step / per_epoch, time=now)
            for step, loss in sorted(losses.items())
        ],
        "train_loss": downsample(state.losses, per_epoch),
    }


def downsample(losses: list[float], per_epoch: int) -> list[Metric]:
    """Return at most `CURVE_POINTS` points: means over equally long runs of steps, each at its last step."""
    stride = -(-len(losses) // CURVE_POINTS) or 1
    points = []
    for start in range(0, len(losses), stride):
        run = losses[start : start + stride]
        step = start + len(run)
        points.append(Metric(step=step, value=sum(run) / len(run), epoch=step / per_epoch))
    return points


def mark_failed(record: TrialRecord, error: Exception, task: TrialTask) -> None:
    """Set the record's status, failure and reason from an exception, and remove an adapter that was already written."""
    record.status = "failed"
    record.values, record.curves, record.adapter_uri, record.adapter_digest = {}, {}, None, None
    record.adapter_files = {}
    record.failure, record.reason = describe(error)
    store.remove(store.join(task.folder, "adapter"))


def write_record(record: TrialRecord, task: TrialTask, base: ResidentBase) -> TrialRecord:
    """Write the record of a trial that ended, remove its checkpoint, and return the record."""
    from retune.training import checkpoint, memory

    peaks = memory.peak(base.load().device)
    record.peak_memory_gib = round(peaks["peak_memory_gib"], 4)
    if record.status != "failed":
        record.values |= {name: round(value, 4) for name, value in peaks.items()}
    record.finished = records.now()
    with base.devices.together():
        if base.devices.first:
            store.write(store.join(task.folder, RECORD), record.to_json())
            if record.status != "early_stopped":
                checkpoint.remove(task.folder)
    base.devices.barrier()
    return record
