"""A check that what a training pass draws at random depends on its records alone, not on what shares the pass.

Dropout is drawn by unit or by record (`retune.training.dropout`, `retune.training.record_dropout`). What cannot be told apart by
record is not: dropout on tokens that were routed to experts, noise on routers, layers that are left out at random. It is tried,
not looked up: a pass over all records and one for each must give the same losses and gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retune.data.tokens import Tokens
from retune.errors import is_out_of_memory
from retune.training.devices import Devices
from retune.training.dropout import Watch, watching
from retune.training.loss import layout, loss_sum
from retune.training.one_by_one import transformers_model
from retune.training.passes import Pass, Passes, Unit
from retune.training.recompute import generators

REASON = "what a training pass draws at random (dropout, noise) depends on what shares it"


def differs(model: Any, tokens: Tokens, trained: Sequence[nn.Parameter], allowed: float, share: float) -> str:
    """Return how a pass over some records differs from one over each; empty if it does not, beyond rounding.

    Args:
        model: with its adapter, ready for `loss_sum` and in training mode. tokens: made-up records.
        trained: the adapter's parameters.
        allowed: what rounding may change a token's loss by, in nats. share: and the gradients, of their norm.
    """
    core = transformers_model(model)
    device = next(core.parameters()).device
    made = Passes(
        model, core, tokens, trained, Devices(), loss_sum, lambda loss: loss, lambda note: None, layout(model)
    )
    records, counted = list(range(len(tokens))), int(tokens.counts.sum())
    lengths, padded = tokens.lengths.tolist(), made.layout == "padded"
    unit = Unit(records, lengths)
    singles = [_whole([r], lengths, True) if padded else Pass(unit, r, r + 1) for r in records]
    try:
        if made.layout == "alone":  # as training itself reads them: it is seen that they pass
            _read(made, [_whole([record], lengths, False) for record in records], counted)
            return ""
        with watching(device) as watch:
            before = generators(device)
            loss, gradients = _read(made, [_whole(records, lengths, padded)], counted, watch)
            single_losses, single_gradients = _read(made, singles, counted, watch)
            drawn = any(
                not torch.equal(one, two) for one, two in zip(before, generators(device), strict=True)
            )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return ""  # a few short records do not fit: training halves such passes, and may need this way for it
    if drawn or watch.strays:
        return REASON
    apart = abs(loss - single_losses) / counted
    if not apart <= allowed:
        return f"{REASON}: a token's loss differs by {apart:.2g}, rounding allows {allowed:.2g}"
    norm, difference = float(single_gradients.norm()), float((gradients - single_gradients).norm())
    if difference > share * norm:
        return f"{REASON}: the adapter's gradients differ by {difference / norm:.2g} of their size"
    return ""


def _whole(records: list[int], lengths: Sequence[int], padded: bool) -> Pass:
    return Pass(Unit(records, [lengths[record] for record in records], padded), 0, len(records))


def _read(
    made: Passes, runs: Sequence[Pass], counted: int, watch: Watch | None = None
) -> tuple[float, Tensor]:
    """Return the sum of the losses of some passes, and their gradients one behind the other, and forget them."""
    loss = 0.0
    for run in runs:
        if watch is not None:
            watch.generator.manual_seed(0)  # each pass draws from where its unit begins
        loss += float(made.gradients(run, counted, "0"))
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in made.parameters]
    for parameter in made.parameters:
        parameter.grad = None
    return loss, torch.cat([gradient.float().flatten() for gradient in found])
