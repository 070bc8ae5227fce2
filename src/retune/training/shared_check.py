"""A check, before the first trials share passes over a base, that each computes there what it computes alone.

What can mix the records of a pass (experts that see some of the tokens, layers that draw at random) differs from model to model
and from release to release of transformers: it is tried, not looked up in a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retune.data.tokens import Tokens
from retune.errors import is_out_of_memory
from retune.training import lora, self_check
from retune.training.detached import Adapter
from retune.training.passes import Pass, Unit
from retune.training.shared_passes import Run, SharedPasses, Step


def difference(core: Any, tokens: Tokens, adapters: Sequence[Adapter], allowed: float) -> str:
    """Return how two adapters in one pass are not what each is alone; empty if they are, up to rounding.

    Args:
        core: the transformers model, inside `retune.training.model_attention.by_segments`.
        tokens: at least four made-up records. adapters: two new ones, which are changed.
        allowed: what rounding may change a token's loss by, in nats.
    """
    device = next(core.parameters()).device
    made = SharedPasses(core, tokens, device, lambda note: None)
    lengths, counts = tokens.lengths.tolist(), tokens.counts.tolist()
    halves = [range(len(tokens) // 2), range(len(tokens) // 2, len(tokens))]

    def step(place: int) -> tuple[Step, Pass]:
        lora.disturb(adapters[place])
        records = list(halves[place])
        generator = torch.Generator(device).manual_seed(place)
        unit = Unit(records, [lengths[record] for record in records])
        counted = sum(counts[record] for record in records)
        return Step(adapters[place], generator, records, counted), Pass(unit, 0, len(records))

    run = [step(0), step(1)]
    training = core.training
    core.train()
    try:
        alone = [_tried(made, [each]) for each in run]
        together = _tried(made, run)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"a pass of two trials does not go through this base: {type(error).__name__}: {error}"
    finally:
        core.train(training)
    counted = torch.tensor([each.counted for each, _ in run], device=device)
    losses_apart = float(((together[0] - torch.cat([own for own, _ in alone])) / counted).abs().max())
    if not losses_apart <= allowed:
        return (
            f"in a pass of two trials the losses differ by {losses_apart:.2g}, rounding allows {allowed:.2g}"
        )
    right = torch.cat([gradients for _, gradients in alone])
    share = float((together[1] - right).norm() / right.norm())
    if not share <= self_check.gradients_allowed(core.dtype):
        return f"in a pass of two trials the gradients differ by {share:.2g} of their size"
    return ""


def _tried(made: SharedPasses, run: Run) -> tuple[Tensor, Tensor]:
    """Return the losses and the gradients of one pass, the latter one behind the other, and forget them."""
    parameters = [parameter for step, _ in run for parameter in step.adapter.parameters()]
    found = made.gradients(run)
    gradients = torch.cat(
        [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
    )
    for parameter in parameters:
        parameter.grad = None
    return found, gradients
