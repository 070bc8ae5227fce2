"""A check, before the first trials share passes over a base, that each computes in them what it computes alone.

What can mix the records of a pass (experts with a capacity, random layers) differs from model to model and from release to
release of transformers. So no list is kept: two adapters are run, each alone and both in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retune.data.tokens import Tokens
from retune.errors import is_out_of_memory
from retune.training import lora, rounding
from retune.training.detached import Adapter
from retune.training.passes import Pass, Unit
from retune.training.shared_passes import SharedPass, SharedPasses, Step


def difference(core: Any, tokens: Tokens, adapters: Sequence[Adapter], tolerance: float) -> str:
    """Return how two adapters in one pass differ from each alone; empty if they do not, up to rounding.

    Args:
        core: the transformers model, inside `retune.training.model_attention.by_segments`.
        tokens: at least four generated records. adapters: two new ones; noise is added to them.
        tolerance: what rounding may change a token's loss by, in nats.
    """
    device = next(core.parameters()).device
    passes = SharedPasses(core, tokens, device, lambda note: None)
    lengths, counts = tokens.lengths.tolist(), tokens.counts.tolist()
    halves = [range(len(tokens) // 2), range(len(tokens) // 2, len(tokens))]

    def step(index: int) -> tuple[Step, Pass]:
        lora.add_noise(adapters[index])
        records = list(halves[index])
        generator = torch.Generator(device).manual_seed(index)
        unit = Unit(records, [lengths[record] for record in records])
        counted = sum(counts[record] for record in records)
        return Step(adapters[index], generator, records, counted), Pass(unit, 0, len(records))

    run = [step(0), step(1)]
    training = core.training
    core.train()
    try:
        alone = [_losses_and_gradients(passes, [each]) for each in run]
        together = _losses_and_gradients(passes, run)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"a pass of two trials does not go through this base: {type(error).__name__}: {error}"
    finally:
        core.train(training)
    counted = torch.tensor([each.counted for each, _ in run], device=device)
    loss_difference = float(((together[0] - torch.cat([own for own, _ in alone])) / counted).abs().max())
    if not loss_difference <= tolerance:
        return f"in a pass of two trials the losses differ by {loss_difference:.2g}, rounding allows {tolerance:.2g}"
    reference = torch.cat([gradients for _, gradients in alone])
    gradient_difference = float((together[1] - reference).norm() / reference.norm())
    if not gradient_difference <= rounding.gradient_tolerance(core.dtype):
        return f"in a pass of two trials the gradients differ by {gradient_difference:.2g} of their size"
    return ""


def _losses_and_gradients(passes: SharedPasses, run: SharedPass) -> tuple[Tensor, Tensor]:
    """Return the losses and the concatenated gradients of one pass; leave no gradients behind."""
    parameters = [parameter for step, _ in run for parameter in step.adapter.parameters()]
    losses = passes.gradients(run)
    gradients = torch.cat(
        [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
    )
    for parameter in parameters:
        parameter.grad = None
    return losses, gradients
