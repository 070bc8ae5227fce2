"""A check that the randomness of a training pass depends on each record alone, not on the other records of the pass.

Dropout masks belong to a unit or to a record (`retune.training.dropout`, `retune.training.record_dropout`). Other randomness
cannot be split by record: dropout on tokens routed to experts, noise on routers, layers skipped at random (LayerDrop). No list
of architectures is kept. Instead, one pass over all records and one pass per record must give the same losses and gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retune.data.tokens import Tokens
from retune.errors import is_out_of_memory
from retune.training.devices import Devices
from retune.training.dropout import Observer, observing
from retune.training.loss import layout, loss_sum
from retune.training.passes import Pass, Passes, Unit, whole_unit
from retune.training.plain_forward import transformers_model
from retune.training.recompute import rng_states

REASON = "what a training pass draws at random (dropout, noise) depends on what shares it"


def difference(
    model: Any, tokens: Tokens, trained: Sequence[nn.Parameter], tolerance: float, gradient_tolerance: float
) -> str:
    """Return how one pass over all records differs from one pass per record; empty if it does not, up to rounding.

    Args:
        model: with its adapter, ready for `loss_sum` and in training mode. tokens: generated records.
        trained: the adapter's parameters.
        tolerance: what rounding may change a token's loss by, in nats.
        gradient_tolerance: what rounding may change the gradients by, as a share of their norm.
    """
    core = transformers_model(model)
    device = next(core.parameters()).device
    devices = Devices()
    devices.device = device  # the model may be on the CPU of a machine with a GPU
    passes = Passes(
        model, core, tokens, trained, devices, loss_sum, lambda loss: loss, lambda note: None, layout(model)
    )
    records, counted = list(range(len(tokens))), int(tokens.counts.sum())
    lengths, padded = tokens.lengths.tolist(), passes.layout == "padded"
    unit = Unit(records, lengths)
    singles = [
        whole_unit([r], [lengths[r]], padded=True) if padded else Pass(unit, r, r + 1) for r in records
    ]
    try:
        if passes.layout == "alone":  # records share no pass; it is only seen whether training works at all
            _compute(passes, [whole_unit([r], [lengths[r]]) for r in records], counted)
            return ""
        with observing(device) as observer:
            before = rng_states(device)
            loss, gradients = _compute(passes, [whole_unit(records, lengths, padded)], counted, observer)
            single_losses, single_gradients = _compute(passes, singles, counted, observer)
            default_used = any(
                not torch.equal(one, two) for one, two in zip(before, rng_states(device), strict=True)
            )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return ""  # not refused for it: training itself halves passes that are too large, as this one may be
    if default_used or observer.unassigned:
        return REASON
    loss_difference = abs(loss - single_losses) / counted
    if not loss_difference <= tolerance:
        return f"{REASON}: a token's loss differs by {loss_difference:.2g}, rounding allows {tolerance:.2g}"
    norm, distance = float(single_gradients.norm()), float((gradients - single_gradients).norm())
    if distance > gradient_tolerance * norm:
        return f"{REASON}: the adapter's gradients differ by {distance / norm:.2g} of their size"
    return ""


def _compute(
    passes: Passes, runs: Sequence[Pass], counted: int, observer: Observer | None = None
) -> tuple[float, Tensor]:
    """Return the sum of the losses of some passes and their concatenated gradients; leave no gradients behind."""
    loss = 0.0
    for run in runs:
        if observer is not None:
            observer.generator.manual_seed(0)  # as `Passes` resets the generators for each pass of a unit
        loss += float(passes.gradients(run, counted, "0"))
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in passes.parameters]
    for parameter in passes.parameters:
        parameter.grad = None
    return loss, torch.cat([gradient.float().flatten() for gradient in gradients])
