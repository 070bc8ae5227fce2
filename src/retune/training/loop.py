"""The training loop of one adapter, from the first step or a checkpoint to the last validation.

A step takes `batch_size` times `gradient_accumulation_steps` records, over all processes, as one sequence without padding.
Its loss is the mean over the counted tokens of the step, so neither the number of processes nor the split into passes
changes what is learnt.
The order is that of transformers' Trainer: backward, clip, AdamW, schedule; validation after each epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from retune.data.batches import epoch_batches, share
from retune.data.tokens import Tokens
from retune.errors import Interrupted, RetuneError, TrialFailed, is_out_of_memory
from retune.events import Event, Measured, Note, Progress
from retune.study import Training
from retune.training import checkpoint, schedule
from retune.training.devices import Devices
from retune.training.loss import layout, loss_sum
from retune.training.passes import Passes
from retune.training.plain_forward import transformers_model
from retune.training.validate import validation_loss

# On a GPU, reading a number waits for all queued kernels, so losses are read every 16 steps
_DRAIN_STEPS = 16
_REPORT_SECONDS = 0.2  # between two progress events, at least


@dataclass
class State:
    """The progress of a training; saved in its checkpoint.

    Attributes:
        step: optimiser steps done. tokens: trained on so far, prompts included.
        seconds: charged to the trial. train_seconds: the same without validation.
        losses, counted: mean loss and counted tokens of each step.
        validation: the loss after each epoch. rungs: share, step and loss of each rung reached.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    train_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    counted: list[int] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    rungs: list[tuple[float, int, float]] = field(default_factory=list)


@dataclass
class Loop:
    """One training. `model` is the base with its new adapter, inside `retune.training.self_check.reading`.

    Attributes:
        training: the study's section with the trial's own values (`lora.setting`).
        folder: URI of the trial; the checkpoint lies below it. identity: of the checkpoint (`checkpoint.identity`).
        rungs: shares of all steps after which the validation loss is measured, besides the ends of epochs.
        until: the share of all steps after which to stop, with a checkpoint.
    """

    model: Any
    train: Tokens
    validation: Tokens
    training: Training
    seed: int
    devices: Devices
    folder: str
    identity: str
    report: Callable[[Event], None]
    should_stop: Callable[[], bool]
    rungs: Sequence[float] = ()
    until: float = 1.0

    def __post_init__(self) -> None:
        self.state = State()
        self.per_epoch = math.ceil(len(self.train) / self.training.step_records)
        self.steps = self.per_epoch * self.training.epochs
        self.end = self._step_of(self.until)
        self.warmup = schedule.warmup_steps(self.steps, self.training.warmup_share)
        self.named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.parameters = list(self.named.values())
        self.devices.broadcast(self.parameters)
        self.optimiser = torch.optim.AdamW(
            self._groups(), lr=self.training.learning_rate, weight_decay=self.training.weight_decay,
            betas=(self.training.beta1, self.training.beta2), fused=True,
        )  # fmt: skip
        # Below 6e-8 float16 is zero. So gradients are scaled up, and a step whose gradients become infinite by it is skipped.
        half = any(parameter.dtype == torch.float16 for parameter in self.model.parameters())
        self._scaler = torch.amp.GradScaler(self.devices.device.type, init_scale=2.0**12, enabled=half)
        self._lengths = self.train.lengths.tolist()
        self._counts = self.train.counts.tolist()
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._batches: tuple[int, list[list[int]]] = (-1, [])
        self._reported = -math.inf

    def _groups(self) -> list[dict[str, Any]]:
        """Return AdamW's parameter groups; `ratio` multiplies the learning rate: of B, with LoRA+ (Hayou et al. 2024)."""
        ratio = self.training.lora_plus_ratio
        if ratio == 1:
            return [{"params": self.parameters, "ratio": 1.0}]
        b_names = {name for name in self.named if "lora_B" in name or "lora_embedding_B" in name}
        return [
            {"params": [p for name, p in self.named.items() if name not in b_names], "ratio": 1.0},
            {"params": [p for name, p in self.named.items() if name in b_names], "ratio": ratio},
        ]

    def run(self) -> State:
        """Train to the end and return the final state.

        Raises:
            Interrupted: after `should_stop` and a checkpoint.
            TrialFailed: if a loss or gradient is not finite.
        """
        passes = Passes(
            self.model, transformers_model(self.model), self.train, self.parameters, self.devices,
            lambda model, batch: loss_sum(model, batch), self._scaler.scale, self.report, layout(self.model),
        )  # fmt: skip
        self.begin()
        while not self.at_end():
            records = self.records()
            mine = share(records, self.devices.rank, self.devices.world)
            seed = f"{self.seed} {self.state.step}"
            with self.devices.together():
                loss = passes.add_gradients(mine, self.counted(records), records[0], seed)
            self.step(loss)
        return self.state

    def begin(self) -> None:
        """Start or resume; then call `at_end`, `records` and `step` in turn."""
        with self.devices.together():
            self._allocate()
        # A seed per process: processes must not drop the same elements of their different records. 1009, a prime, keeps the
        # seeds of neighbouring trials apart.
        self._seed(self.seed * 1009 + self.devices.rank)
        self._resume()
        self.model.train()
        self._saved = time.monotonic()
        self._mark = self._now()

    def _allocate(self) -> None:
        """Make AdamW's state, which it would make in its first step: then its memory is taken before passes are sized."""
        state = {
            index: {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
            for index, p in enumerate(p for group in self.optimiser.param_groups for p in group["params"])
        }
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})

    def at_end(self) -> bool:
        """Stop, save or validate if it is due between two steps; return whether the training is over.

        Raises:
            Interrupted, TrialFailed: as `run`.
        """
        self._stop_or_save()
        done, rest = divmod(self.state.step, self.per_epoch)
        if rest == 0 and len(self.state.validation) < done:
            self._validate()
        self._measure_rungs(at_epoch=rest == 0)
        if self.state.step < self.end:
            return False
        self._clock()
        if self.end < self.steps:
            self._save()
        return True

    def _step_of(self, share: float) -> int:
        """Return the step after which this share of all steps is done; 1e-9 absorbs the rounding of the product."""
        return min(self.steps, max(1, math.ceil(share * self.steps - 1e-9)))

    def _measure_rungs(self, at_epoch: bool) -> None:
        """Store the validation loss for the rungs that were just reached."""
        done = {share for share, *_ in self.state.rungs}
        due = [rung for rung in self.rungs if rung not in done and self._step_of(rung) == self.state.step]
        if not due:
            return
        if not at_epoch:
            loss = self._measured_loss()
            self.report(Measured("validation_loss", loss, self.state.step, self._epoch))
        else:
            loss = self.state.validation[-1]
        self.state.rungs += [(rung, self.state.step, loss) for rung in due]

    def records(self) -> list[int]:
        """Return the records of the next step."""
        epoch, index = divmod(self.state.step, self.per_epoch)
        if self._batches[0] != epoch:
            self._batches = (
                epoch,
                epoch_batches(len(self.train), self.training.step_records, self.seed, epoch),
            )
        return self._batches[1][index]

    def counted(self, records: Sequence[int]) -> int:
        """Return how many tokens of these records the loss counts."""
        return sum(self._counts[record] for record in records)

    def tokens(self, records: Sequence[int]) -> int:
        """Return how many tokens these records have."""
        return sum(self._lengths[record] for record in records)

    def step(self, loss: Tensor) -> None:
        """Take an optimiser step with the accumulated gradients; `loss` is the sum of -log p over this process's records.

        Raises:
            TrialFailed: if a loss or gradient is not finite.
        """
        records = self.records()
        self.devices.sum_gradients(self.parameters)
        norm = self._update()
        self.state.step += 1
        self.state.tokens += self.tokens(records)
        self.state.counted.append(self.counted(records))
        # If it is infinite, the scaler has skipped the step and lowers its scale
        if self._scaler.is_enabled():
            norm = norm.nan_to_num(0.0, 0.0)
        self._pending.append((loss, norm))
        if self.devices.device.type == "cpu" or len(self._pending) >= _DRAIN_STEPS:
            self._drain()

    def _update(self) -> Tensor:
        """Take an optimiser step by the gradients, clear them, and return their norm before it was clipped."""
        if all(parameter.grad is None for parameter in self.parameters):
            # The base skipped all adapted layers: AdamW would do nothing, and a `GradScaler` raises
            return torch.zeros((), device=self.devices.device)
        self._scaler.unscale_(self.optimiser)
        norm = clip_grad_norm_(self.parameters, self.training.max_grad_norm)
        factor = schedule.factor(self.training.schedule, self.state.step, self.steps, self.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = self.training.learning_rate * group["ratio"] * factor
        self._scaler.step(self.optimiser)
        self._scaler.update()
        self.optimiser.zero_grad()
        return norm.detach()

    def _drain(self) -> None:
        """Read the losses and gradient norms of the pending steps; fail if one is not finite."""
        if not self._pending:
            return
        losses = self.devices.sum(torch.stack([loss for loss, _ in self._pending])).tolist()
        norms = torch.stack([norm for _, norm in self._pending]).tolist()
        first = self.state.step - len(self._pending)
        self._pending.clear()
        for step, loss, norm in zip(range(first, self.state.step), losses, norms, strict=True):
            self._require_finite("loss", loss, step + 1)
            self._require_finite("gradient's norm", norm, step + 1)
            self.state.losses.append(loss / self.state.counted[step])
        # No overflow of the scaling if even gradients that were scaled down are infinite
        if self._scaler.is_enabled() and self._scaler.get_scale() < 1:
            self._require_finite("gradient's norm", math.inf, self.state.step)
        self._clock(training=True)
        if time.monotonic() - self._reported >= _REPORT_SECONDS or self.state.step == self.steps:
            self._reported = time.monotonic()
            speed = self.state.tokens / max(self.state.train_seconds, 1e-9)
            self.report(Progress(self.state.step, self.steps, self._epoch, self.state.losses[-1], speed))

    def _require_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            reason = (
                f"the {what} must be finite, but it is {value} in step {step} of {self.steps} "
                f"(learning rate {self.training.learning_rate:g}, rank {self.training.rank}, "
                f"alpha {self.training.scaled_alpha:g})"
            )
            raise TrialFailed(reason, "nan")

    @property
    def _epoch(self) -> float:
        return self.state.step / self.per_epoch

    def _clock(self, training: bool = False) -> None:
        now = self._now()
        self.state.seconds += now - self._mark
        if training:
            self.state.train_seconds += now - self._mark
        self._mark = now

    def _validate(self) -> None:
        loss = self._measured_loss()
        self.state.validation.append(loss)
        self.report(Measured("train_loss", self.train_loss(), self.state.step, self._epoch))
        self.report(Measured("validation_loss", loss, self.state.step, self._epoch))

    def _measured_loss(self) -> float:
        """Return the validation loss, charging the time it takes; fail if it is not finite."""
        self._drain()
        loss = self._validation_loss()
        self._clock()
        self._require_finite("validation loss", loss, self.state.step)
        return loss

    def _validation_loss(self) -> float:
        return validation_loss(self.model, self.validation, self.devices, poll=self._poll)

    def _now(self) -> float:
        """Return the clock that time is charged by, in seconds from an arbitrary start."""
        return time.monotonic()

    def train_loss(self) -> float:
        """Return the mean training loss over the counted tokens of the current epoch, the last one if it just ended."""
        first = (self.state.step - 1) // self.per_epoch * self.per_epoch
        counted = self.state.counted[first:]
        return sum(loss * n for loss, n in zip(self.state.losses[first:], counted, strict=True)) / sum(
            counted
        )

    def _stop_or_save(self) -> None:
        """Stop if any process was asked to, or save if it is time; all processes decide the same."""
        due = self.state.step > 0 and time.monotonic() - self._saved > self.training.checkpoint_minutes * 60
        asked = self.should_stop()
        if self.devices.world > 1:
            # Agreeing waits for all queued kernels, so on GPUs it is done as rarely as reading the losses.
            if self.devices.device.type != "cpu" and self.state.step % _DRAIN_STEPS:
                return
            flags = torch.tensor([asked, due], dtype=torch.float32, device=self.devices.device)
            asked, due = (bool(flag) for flag in self.devices.sum(flags).tolist())
        if asked:
            self._interrupt()
        if due:
            self._drain()
            self._save()

    def _poll(self) -> None:
        """Stop during a validation, with one process only: several have different numbers of passes and could not agree."""
        if self.devices.world == 1 and self.should_stop():
            self._interrupt()

    def _interrupt(self) -> NoReturn:
        saved = self.save()
        where = "a checkpoint was saved" if saved else "nothing new was saved"
        raise Interrupted(
            f"stopped after step {self.state.step} of {self.steps}; {where}, run again to carry on"
        )

    def save(self) -> bool:
        """Save a checkpoint between two steps; return False if there was no step yet or it could not be written."""
        self._drain()
        self._clock()
        return self._save() if self.state.step else False

    def _save(self) -> bool:
        """Write a checkpoint; if the disk or the memory does not suffice, report it and let the training continue."""
        self._saved = time.monotonic()
        rngs = self.devices.gather_object(self._rng_states())
        if not self.devices.first:
            return True
        try:
            content = {
                "adapter": {name: p.detach().cpu() for name, p in self.named.items()},
                "optimiser": self.optimiser.state_dict(),
                "scaler": self._scaler.state_dict(),
                "rng": rngs,
                "state": vars(self.state),
            }
            checkpoint.save(self.folder, self.identity, content)
        except Exception as error:
            if not isinstance(error, OSError | RetuneError) and not is_out_of_memory(error):
                raise
            self.report(
                Note(f"no checkpoint was saved after step {self.state.step}; the training continues: {error}")
            )
            return False
        return True

    def _resume(self) -> None:
        content = None
        with self.devices.together():
            if self.devices.first:  # which wrote it: others may not see its folder
                try:
                    content = checkpoint.load(self.folder, self.identity, torch.device("cpu"))
                except checkpoint.UnusableCheckpoint as error:
                    self.report(Note(f"the checkpoint is not used, the training starts from step 0: {error}"))
        content = self.devices.of_first(content)
        if content is None:
            return
        with torch.no_grad():
            for name, value in content["adapter"].items():
                self.named[name].copy_(value)
        self.optimiser.load_state_dict(content["optimiser"])
        self._scaler.load_state_dict(content["scaler"])
        self._set_rng_states(content["rng"][self.devices.rank])
        self.state = State(**content["state"])
        self.report(Note(f"carrying on after step {self.state.step} of {self.steps}"))

    def _seed(self, seed: int) -> None:
        """Seed the generator of dropout."""
        torch.manual_seed(seed)

    def _rng_states(self) -> dict[str, Tensor]:
        """Return the states of the generators that dropout uses, by device type."""
        states = {"cpu": torch.get_rng_state()}
        if self.devices.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.devices.device)
        return states

    def _set_rng_states(self, states: dict[str, Tensor]) -> None:
        torch.set_rng_state(states["cpu"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self.devices.device)
