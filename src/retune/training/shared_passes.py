"""One optimiser step of several trials on one base, in as few passes as the memory allows.

The base's matrices multiply the tokens of all trials at once; each record's LoRA products use its own trial's A and B. A trial
learns what it learns alone (`retune.training.passes`), up to the rounding of sums: its records keep their dropout units and
generator, its loss is divided by its own counted tokens, and no sum runs over records of two trials.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retune.data.batches import flatten, passes
from retune.data.tokens import Tokens
from retune.errors import is_out_of_memory
from retune.events import Note
from retune.training import lora_linear, memory, recompute
from retune.training.detached import Adapter
from retune.training.dropout import DropoutSource
from retune.training.lora_linear import Layer, SharedWeights
from retune.training.loss import losses
from retune.training.memory_budget import MemoryBudget
from retune.training.passes import UNIT_TOKENS, Pass, plan


@dataclass(frozen=True)
class Step:
    """The next step of one trial.

    Attributes:
        adapter: what is trained. generator: of its dropout.
        records: of the step. counted: their counted tokens.
    """

    adapter: Adapter
    generator: torch.Generator
    records: Sequence[int]
    counted: int


SharedPass = list[tuple[Step, Pass]]
"""A pass over records of several trials: each trial's step, and its part of the pass."""


class SharedPasses:
    """Computes the gradients of several trials on one base, pass by pass.

    Args:
        core: the transformers model, inside `retune.training.model_attention.by_segments`.
        tokens: the records. device: of the model.
        report: called with a note when a pass ran out of memory.
    """

    def __init__(
        self, core: Any, tokens: Tokens, device: torch.device, report: Callable[[Note], None]
    ) -> None:
        self.core, self.tokens, self.device, self.report = core, tokens, device, report
        self._lengths = tokens.lengths.tolist()
        self._counts = tokens.counts.tolist()
        self.longest = max(self._lengths)
        self.budget = MemoryBudget(core, device, self.longest)

    def add_gradients(self, steps: Sequence[Step]) -> list[Tensor | Exception]:
        """Add each trial's gradients; return for each its sum of -log p, or the error by which it alone failed.

        A pass that runs out of memory is repeated in halves. So is one that fails otherwise, until the trial at fault is the
        only one in its pass.
        """
        limit = self.budget.tokens()
        plans = [plan(step.records, self._lengths, limit) for step in steps]
        waiting: deque[SharedPass] = deque()
        for turn in range(max(len(parts) for parts in plans)):
            row = [(step, parts[turn]) for step, parts in zip(steps, plans, strict=True) if turn < len(parts)]
            max_tokens = UNIT_TOKENS if limit is None else min(limit, UNIT_TOKENS)
            for indices in passes([part.tokens for _, part in row], max_tokens):
                waiting.append([row[index] for index in indices])
        sums = {id(step): torch.zeros((), device=self.device) for step in steps}
        failed: dict[int, Exception] = {}
        while waiting:
            run = [(step, part) for step, part in waiting.popleft() if id(step) not in failed]
            if not run:
                continue
            result = self._attempt(run)
            if isinstance(result, Tensor):
                for (step, _), loss in zip(run, result, strict=True):
                    sums[id(step)] += loss
            elif isinstance(result, Exception):
                failed[id(run[0][0])] = result
            else:
                memory.release_cached(self.device)
                waiting.extendleft(reversed(_halves(run)))
        return [failed.get(id(step), sums[id(step)]) for step in steps]

    def _attempt(self, run: SharedPass) -> Tensor | Exception | None:
        """Add the gradients of a pass and return each trial's loss; if it fails, add nothing.

        Returns:
            an error if the pass is to be given up, None if it is to be repeated in halves.
        """
        parameters = [parameter for step, _ in run for parameter in step.adapter.parameters()]
        before = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        try:
            losses_by_trial = self.gradients(run)
        except Exception as error:
            for parameter, grad in zip(parameters, before, strict=True):
                parameter.grad = grad
            if not is_out_of_memory(error):
                return error if len(run) == 1 else None
            tokens = sum(part.tokens for _, part in run)
            remedy = self.budget.shrink(tokens, sum(part.stop - part.start for _, part in run))
            if remedy is None:
                return error
            self.report(Note(f"a pass of {tokens} tokens of {len(run)} trials ran out of memory: {remedy}"))
            return None
        for parameter, grad in zip(parameters, before, strict=True):
            if grad is not None:
                parameter.grad = grad if parameter.grad is None else grad.add_(parameter.grad)
        return losses_by_trial

    def gradients(self, run: SharedPass) -> Tensor:
        """Compute the gradients of one pass and return each trial's sum of -log p, shape ``(trials,)``."""
        batch = flatten(self.tokens, [record for _, part in run for record in part.records]).to(self.device)
        counts = [sum(self._counts[record] for record in part.records) for _, part in run]
        sources = [
            DropoutSource(_generator_at_unit(step, part), part.window(self.tokens)) for step, part in run
        ]
        before = self.budget.begin()
        recomputing = recompute.recomputing(self.core) if self.budget.recomputes else nullcontext()
        with (
            recomputing,
            recompute.tracking_generators([step.generator for step, _ in run]),
            _adapters_attached(self.core, run, sources, batch.tails),
        ):
            token_losses = losses(self.core, batch)
            sums = torch.stack([own.sum() for own in torch.split(token_losses, counts)])
            # One backward with a weight per trial, not a sum of losses: one that is not finite would spoil the sum for all.
            weights = torch.tensor([1 / step.counted for step, _ in run], device=self.device)
            sums.backward(weights)  # type: ignore[no-untyped-call]
        self.budget.end(before, sum(batch.lengths))
        return sums.detach()


def _generator_at_unit(step: Step, part: Pass) -> torch.Generator:
    """Set a trial's generator to its state before the part's unit, and return it."""
    if part.unit.rng_states is None:
        part.unit.rng_states = [step.generator.get_state()]
    else:
        step.generator.set_state(part.unit.rng_states[0])
    return step.generator


def _halves(run: SharedPass) -> list[SharedPass]:
    """Return two passes of about as many tokens each; a pass of a single record is returned as it is."""
    if len(run) == 1:
        ((step, part),) = run
        return [[(step, half)] for half in part.halves()] if part.stop - part.start > 1 else [run]
    total, before, middle = sum(part.tokens for _, part in run), run[0][1].tokens, 1
    while middle < len(run) - 1 and before + run[middle][1].tokens <= total / 2:
        before += run[middle][1].tokens
        middle += 1
    return [run[:middle], run[middle:]]


@contextmanager
def _adapters_attached(
    core: Any, run: SharedPass, sources: Sequence[DropoutSource], tails: Sequence[int]
) -> Iterator[None]:
    """Attach the adapters of the trials in a pass to the base's layers inside the block."""
    tokens = tuple(part.tokens for _, part in run)
    ends = iter(tails)
    own_tails = tuple(sum(next(ends) for _ in part.records) for _, part in run)

    def layer(name: str, module: Any) -> Layer:
        parts = tuple(step.adapter.on(name, module, own) for (step, _), own in zip(run, sources, strict=True))
        return (
            parts[0]
            if len(parts) == 1
            else SharedWeights(module.weight, module.bias, parts, tokens, own_tails)
        )

    names = list(dict.fromkeys(name for step, _ in run for name in step.adapter.layers))
    with _attached(core, names, layer):
        yield


@contextmanager
def only_adapter(core: Any, adapter: Adapter) -> Iterator[None]:
    """Attach one adapter to the base, without dropout, inside the block."""
    with _attached(core, list(adapter.layers), lambda name, module: adapter.on(name, module, None)):
        yield


@contextmanager
def _attached(core: Any, names: Sequence[str], layer: Callable[[str, Any], Layer]) -> Iterator[None]:
    modules = [(name, core.get_submodule(name)) for name in names]
    try:
        for name, module in modules:
            lora_linear.attach(module, layer(name, module))
        yield
    finally:
        for _, module in modules:
            lora_linear.attach(module, None)
