"""A trial's record: whether there is a finished one, its first fields, its results, and writing it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from retune import adapter, records, store
from retune.events import Event, Measured
from retune.records import Metric, Rung, TrialRecord
from retune.study import Study
from retune.training.failures import describe
from retune.trials.task import TrialTask

if TYPE_CHECKING:
    from retune.training.loop import Loop, State
    from retune.training.resident import ResidentBase

FILE = "trial.json"
CURVE_POINTS = 200
METRICS = (
    "validation_loss", "best_validation_loss", "train_loss", "adapter_mib", "tokens_per_second", "seconds",
    "peak_memory_gib", "peak_gpu_gib",
)  # fmt: skip
"""What a trial measures: metrics that a search can optimise or limit, besides scores; the last one on GPUs only."""


def finished(task: TrialTask, settings_digest: str) -> TrialRecord | None:
    """Return the record in the task's folder if it is a finished one of this same trial, else None."""
    uri = store.join(task.folder, FILE)
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
    from retune.evaluation import bench
    from retune.training import resident

    data = resident.data_digest(data_uri)
    if task.role == "proxy":
        data = f"{data}-{base.proxy_subset(data_uri, study)[1].digest}"
    return study.settings_digest(data, base.load().digest, bench.data_digests(study.scored))


def new(
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


def measured_rungs(loop: Loop) -> list[Rung]:
    """Return the rungs that a training has reached, with their losses, for its record."""
    return [Rung(share=rung, step=step, loss=loss) for rung, step, loss in loop.state.rungs]


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


def write(record: TrialRecord, task: TrialTask, base: ResidentBase) -> TrialRecord:
    """Write the record of a trial that ended, remove its checkpoint, and return the record."""
    from retune.training import checkpoint, memory

    peaks = memory.peak(base.load().device)
    record.peak_memory_gib = round(peaks["peak_memory_gib"], 4)
    if record.status != "failed":
        record.values |= {name: round(value, 4) for name, value in peaks.items()}
    record.finished = records.now()
    with base.devices.together():
        if base.devices.first:
            store.write(store.join(task.folder, FILE), record.to_json())
            if record.status != "early_stopped":
                checkpoint.remove(task.folder)
    base.devices.barrier()
    return record
