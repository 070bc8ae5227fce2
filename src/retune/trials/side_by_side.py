"""Several trials at once on one resident base: each as `retune.trials.run_trial` runs it alone, but with shared passes.

Each trial has its own adapter, optimiser, schedule, order of records, dropout, checkpoint and record; only the passes through the
base are shared. So a trial may join, end, fail or be interrupted between two steps without affecting the others, and its result
is that of the trial alone, up to the rounding of sums.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from retune.events import Event, Note
from retune.records import TrialRecord
from retune.study import Study, Training
from retune.study.training import EDITING
from retune.training import lora, memory, shared_check, shared_passes
from retune.training.detached import Adapter, CannotShare, new_adapter, unshareable_reason
from retune.training.failures import describe, is_fault_of_setting
from retune.training.generated_records import generated_tokens
from retune.training.inits import FirstRecords
from retune.training.loop import Loop
from retune.training.model_attention import by_segments
from retune.training.resident import CHECK_OVERRIDES, ResidentBase
from retune.training.shared_passes import SharedPasses, Step
from retune.training.validate import validation_loss
from retune.trials import run_trial, trial_record
from retune.trials.task import TrialTask

_BYTES_PER_PARAMETER = 16  # in float32: the weight, its gradient, and AdamW's two moments


@dataclass
class _Loop(Loop):
    """A training whose gradients come from shared passes; `model` is its `Adapter`.

    Its clock advances only by the time charged to it, since several trials share the time of a pass.

    Attributes:
        core: the transformers model. generator: of the trial's dropout.
    """

    core: Any = None
    generator: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.spent = 0.0  # seconds
        self._since: float | None = None

    @contextmanager
    def charged(self) -> Iterator[None]:
        """Charge the time of the block to this trial; `_now` advances inside it."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self.spent, self._since = self._now(), None

    def _now(self) -> float:
        return self.spent + (0.0 if self._since is None else time.monotonic() - self._since)

    def _validation_loss(self) -> float:
        with shared_passes.only_adapter(self.core, self.model):
            return validation_loss(self.core, self.validation, self.devices, poll=self._poll)

    def _seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def _rng_states(self) -> dict[str, Tensor]:
        state = {self.generator.device.type: self.generator.get_state()}
        return {"cpu": torch.get_rng_state()} | state

    def _set_rng_states(self, states: dict[str, Tensor]) -> None:
        self.generator.set_state(states[self.generator.device.type])


@dataclass
class _Running:
    """A trial in training."""

    task: TrialTask
    record: TrialRecord
    loop: _Loop
    report: Callable[[Event], None]


_Ended = tuple[_Running, Exception | None]


@dataclass
class SideBySide:
    """The trials of one study that train side by side in this process.

    Args:
        study, data_uri, base: as for `run_trial.run_trial`; no other trial runs on `base` in the meantime.
        report: called with each event, whose `trial` names the trial.
        should_stop: asked after every step; if true, checkpoints are saved.
    """

    study: Study
    data_uri: str
    base: ResidentBase
    report: Callable[[Event], None] = lambda event: None
    should_stop: Callable[[], bool] = lambda: False
    running: list[_Running] = field(default_factory=list, init=False)
    _aside: list[TrialTask] = field(default_factory=list, init=False)
    _crowded: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self._passes: SharedPasses | None = None
        self._reasons: dict[tuple[str, ...], str] = {}
        self._mode: ExitStack | None = None

    def start(self, task: TrialTask) -> TrialRecord | None:
        """Let a trial join; return its record if it is over already: it was finished before, or cannot share and ran alone.

        None also where there was no memory for it beside the others: `set_aside` gives it back.

        Raises:
            InputError, RetuneError: as `run_trial.run_trial`.
        """
        self._restore()
        digest = trial_record.digest(self.study, self.data_uri, task, self.base)
        if (done := trial_record.finished(task, digest)) is not None:
            return done
        if (
            task.role == "base"
            or task.trial in self._crowded
            or self.unshareable_reason(lora.setting(self.study.training, task.assignment))
        ):
            report = with_trial(self.report, task.trial)
            return run_trial.run_trial(self.study, self.data_uri, task, self.base, report, self.should_stop)
        run_trial.check_scoring(self.study)
        if not self.running:
            memory.reset_peak(self.base.load().device)
        return self._join(task, trial_record.new(self.study, self.data_uri, task, self.base, digest))

    def fits(self, task: TrialTask) -> bool:
        """Return whether another trial can join the running ones: it trains on the same data, and there is memory for it."""
        if not self.running or self._passes is None:
            return True
        if task.trial in self._crowded:
            return False
        if (task.role == "proxy") != (self.running[0].task.role == "proxy"):
            return False
        rank = lora.setting(self.study.training, task.assignment).rank
        loops = [trial.loop for trial in self.running]
        size = max(sum(p.numel() for p in loop.parameters) / loop.training.rank for loop in loops)
        room = self._passes.budget.tokens(less=int(size * rank * _BYTES_PER_PARAMETER))
        return room is None or room >= self._passes.longest

    def set_aside(self) -> list[TrialTask]:
        """Return, once, the trials for which there was no memory beside others: they are to be started again, and run alone."""
        aside, self._aside = self._aside, []
        return aside

    def _has_no_room(self, task: TrialTask, error: Exception, beside: int) -> bool:
        """Set a trial aside that ran out of memory while `beside` others trained: alone it may fit. Return whether it was."""
        if not beside or describe(error)[0] != "out_of_memory":
            return False
        self._aside.append(task)
        self._crowded.add(task.trial)
        self.report(
            Note(f"{task.trial} does not fit into memory beside {beside} others: it runs alone, after them")
        )
        self.base.release(failed=True)
        return True

    def step(self) -> list[TrialRecord]:
        """Take one step of every running trial and return the records of those that ended.

        Raises:
            Interrupted: after checkpoints of all trials; run them again to resume.
            DiskFull, RetuneError: if a trial cannot be written; checkpoints of the others were saved.
        """
        self._prepare()
        try:
            over = self._each(lambda loop, _: loop.at_end(), [None] * len(self.running))
            if self.running and self._passes and _fatal_error(over) is None:
                start = time.monotonic()
                gradients = self._passes.add_gradients([_next_step(trial.loop) for trial in self.running])
                self._charge(time.monotonic() - start)
                over += self._each(_take_step, gradients)
        except BaseException:
            self._restore()
            raise
        if over or not self.running:
            self._restore()
        return self._settle(over)

    def _prepare(self) -> None:
        """Put the base into training mode, unless it is: kept between steps, since it takes a noticeable part of a small step."""
        if self._mode is None:
            core = self.base.load().model
            with ExitStack() as mode:
                mode.enter_context(by_segments(core, self.study.data.max_length))
                mode.callback(core.eval)
                core.train()
                self._mode = mode.pop_all()

    def _restore(self) -> None:
        """Leave the base as it was before the first step."""
        if self._mode is not None:
            mode, self._mode = self._mode, None
            mode.close()

    def _each(self, act: Callable[[_Loop, Any], bool], arguments: Sequence[Any]) -> list[_Ended]:
        """Call `act` for every trial; remove and return those that ended by it, with the error if they failed."""
        over: list[_Ended] = []
        for trial, argument in zip(self.running, arguments, strict=True):
            try:
                with trial.loop.charged():
                    if act(trial.loop, argument):
                        over.append((trial, None))
            except Exception as error:
                over.append((trial, error))
        for trial, _ in over:
            self.running.remove(trial)
        return over

    def _settle(self, over: list[_Ended]) -> list[TrialRecord]:
        """Write the results of trials that ended and return their records; raise what stops all trials."""
        stop, ended = _fatal_error(over), []
        beside = len(self.running) + len(over) - 1
        for trial, error in over:
            if error is None or is_fault_of_setting(error):
                try:
                    if (record := self._finish(trial, error, beside)) is not None:
                        ended.append(record)
                except Exception as further:  # it cannot be written
                    stop = stop or further
        if stop is not None:
            for trial in self.running:
                trial.loop.save()
            raise stop
        return ended

    def _charge(self, seconds: float) -> None:
        """Charge the time of a step to its trials, in proportion to their tokens."""
        lengths = [trial.loop.tokens(trial.loop.records()) for trial in self.running]
        for trial, length in zip(self.running, lengths, strict=True):
            trial.loop.spent += seconds * length / sum(lengths)

    def _finish(self, trial: _Running, error: Exception | None, beside: int) -> TrialRecord | None:
        """Write the result of a trial; return None if it was put back to run alone later."""
        record, loop = trial.record, trial.loop
        record.rungs = trial_record.measured_rungs(loop)
        try:
            if error is not None:
                raise error
            trial_record.complete(record, loop, loop.model.files(), trial.task, self.base, trial.report)
            run_trial.score(self.study, trial.task, self.base, record, trial.report)
        except Exception as reason:
            if not is_fault_of_setting(reason):
                raise
            if self._has_no_room(trial.task, reason, beside):
                return None
            trial_record.mark_failed(record, reason, trial.task)
            record.seconds = round(loop.spent, 3)
        if record.status == "failed" or not self.running:
            self.base.release(failed=record.status == "failed")
        return trial_record.write(record, trial.task, self.base)

    def _join(self, task: TrialTask, record: TrialRecord) -> TrialRecord | None:
        report = with_trial(self.report, task.trial)
        start = time.monotonic()
        try:
            chosen = lora.setting(self.study.training, task.assignment)
            train = run_trial.training_tokens(self.study, self.data_uri, task, self.base)
            validation = self.base.tokens(self.data_uri, "validation", self.study.data)
            core, device = self.base.load().model, self.base.load().device
            if self._passes is None or self._passes.tokens is not train:
                self._passes = SharedPasses(core, train, device, self.report)
            adapter = self._new_adapter(
                chosen, task.seed, FirstRecords(train, chosen.step_records, task.seed)
            )
            identity = run_trial.identity(task, record, self.base)
            loop = _Loop(
                adapter, train, validation, chosen, task.seed, self.base.devices, task.folder, identity,
                report, self.should_stop, run_trial.due_rungs(task), task.until, core, torch.Generator(device),
            )  # fmt: skip
            loop.begin()
        except Exception as error:
            if not is_fault_of_setting(error):
                raise
            if self._has_no_room(task, error, len(self.running)):
                return None
            trial_record.mark_failed(record, error, task)
            self.base.release(failed=True)
            return trial_record.write(record, task, self.base)
        loop.spent += time.monotonic() - start
        self.running.append(_Running(task, record, loop, report))
        for each in self.running:
            each.record.side_by_side = max(each.record.side_by_side, len(self.running))
        return None

    def _new_adapter(self, chosen: Training, seed: int, records: FirstRecords | None = None) -> Adapter:
        model = self.study.model
        return new_adapter(self.base.load().model, chosen, model.base, seed, model.revision, records)

    def unshareable_reason(self, chosen: Training) -> str:
        """Return why a trial cannot share passes with others over this base; empty if it can.

        What the base's config does not show is checked on generated records (`shared_check`). A new reason is reported once.
        """
        targets = str(chosen.target_modules), str(chosen.first_layer), str(chosen.last_layer)
        key = (*targets, chosen.variant, chosen.init if chosen.init in EDITING else "")
        if key not in self._reasons:
            reason = self._unshareable_reason(chosen)
            if reason and reason not in self._reasons.values():
                self.report(Note(f"trials run one after another in this process where {reason}"))
            self._reasons[key] = reason
        return self._reasons[key]

    def _unshareable_reason(self, chosen: Training) -> str:
        longest = self.study.data.max_length
        checked, core = self.base.checked(chosen, longest), self.base.load().model
        if self.base.devices.world > 1:
            return "several processes train each of them"
        if self.study.model.quantization:
            return f"the base is kept in {self.study.model.quantization}"
        if checked.way != "flattened":
            return f"batches are computed {checked.way}"
        if reason := unshareable_reason(core):
            return reason
        try:
            init = chosen.init if chosen.init in EDITING else "default"
            setting = chosen.model_copy(update=CHECK_OVERRIDES | {"dropout": 0.1, "init": init})
            adapters = [self._new_adapter(setting, seed) for seed in (0, 1)]
        except CannotShare as error:
            return str(error)
        tokens = generated_tokens(core, self.base.load().tokenizer, longest)
        with by_segments(core, longest):
            return shared_check.difference(core, tokens, adapters, checked.allowed)


def with_trial(report: Callable[[Event], None], trial: str) -> Callable[[Event], None]:
    """Return a callback that passes events on with the trial's name in them."""
    return lambda event: report(replace(event, trial=trial))  # type: ignore[call-arg, arg-type]


def _fatal_error(over: Sequence[_Ended]) -> Exception | None:
    """Return the first error that must stop all trials, None if there is none."""
    errors = [error for _, error in over if error is not None]
    return next((error for error in errors if not is_fault_of_setting(error)), None)


def _next_step(loop: _Loop) -> Step:
    records = loop.records()
    return Step(loop.model, loop.generator, records, loop.counted(records))


def _take_step(loop: _Loop, gradients: Tensor | Exception) -> bool:
    if isinstance(gradients, Exception):
        raise gradients
    loop.step(gradients)
    return False
