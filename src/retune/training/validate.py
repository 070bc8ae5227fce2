"""Validation loss: the mean of -log p over the counted tokens of a whole split.

Sums over passes are in float64, so the value does not depend on how the records are grouped into passes, beyond the
rounding of the float32 loss itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from retune.data.batches import flatten, passes, share
from retune.data.tokens import Tokens
from retune.training import memory
from retune.training.devices import Devices
from retune.training.guarded import OutOfMemory, guarding
from retune.training.loss import layout, loss_sum
from retune.training.plain_forward import transformers_model

PASS_TOKENS = 4096


def validation_loss(
    model: Any,
    tokens: Tokens,
    devices: Devices,
    pass_tokens: int = PASS_TOKENS,
    poll: Callable[[], None] | None = None,
) -> float:
    """Return the mean of -log p in nats per counted token, over all records.

    Args:
        model: inside `retune.training.self_check.reading`.
        tokens: the split; each process takes its share of the records.
        devices: the processes that validate together.
        pass_tokens: tokens in one forward pass at most; changes speed and memory only.
        poll: called between passes; may raise to stop.
    """
    mine = share(range(len(tokens)), devices.rank, devices.world)
    mine.sort(key=lambda record: int(tokens.offsets[record + 1] - tokens.offsets[record]))
    lengths = tokens.lengths[mine].tolist()
    total = torch.zeros((), dtype=torch.float64, device=devices.device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            how = layout(model)
            runs = passes(lengths, 1 if how == "alone" else pass_tokens, how == "padded")
            waiting = [[mine[index] for index in indices] for indices in runs]
            waiting.reverse()
            with devices.together():
                while devices.max_count(len(waiting)):
                    if poll is not None:
                        poll()
                    # A process without records left takes part in the communication (FSDP), with record 0, and adds nothing
                    records = waiting.pop() if waiting else []
                    result = _sum(model, tokens, records or [0], devices)
                    if not isinstance(result, torch.Tensor):
                        memory.release_cached(devices.device)
                        waiting += reversed(result if records else [])
                    elif records:
                        total += result
    finally:
        model.train(training)
    return float(devices.sum(total)) / int(tokens.counts.sum())


def _sum(model: Any, tokens: Tokens, records: list[int], devices: Devices) -> torch.Tensor | list[list[int]]:
    """Return the sum of -log p over some records in one pass; if memory ran out, the records of the passes to try instead.

    Raises:
        OutOfMemory: if memory ran out on a single record, in any process.
    """
    with guarding(transformers_model(model)) as guard, guard.catching():
        loss = loss_sum(model, flatten(tokens, records).to(devices.device)).double()
    hopeless = guard.error is not None and len(records) == 1
    if devices.max_count(int(hopeless)):
        raise OutOfMemory(guard.error)
    if not devices.max_count(int(guard.error is not None)):
        return loss
    middle = len(records) // 2
    return [records] if guard.error is None else [records[:middle], records[middle:]]
