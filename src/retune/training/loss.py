"""The loss of a flattened batch: the sum of -log p over its counted tokens, in float32."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from retune.data.batches import Batch
from retune.training import head
from retune.training.attention import segments


def loss_sum(model: Any, batch: Batch) -> Tensor:
    """Return the sum of -log p over the counted tokens of `batch`, a float32 scalar with gradient.

    Logits are computed only where a prediction is counted: on instruction data more than half of the positions belong
    to prompts, and for a small model the vocabulary is most of the work. They are never all there at once, see
    `retune.training.head`.

    Args:
        model: a causal language model inside `retune.training.attention.by_segments`, bare or wrapped for adapters
            or several devices.
        batch: on the model's device.
    """
    core = transformers_model(model)
    inputs = {
        "input_ids": batch.ids,
        "position_ids": batch.positions,
        "use_cache": False,
        "segments": segments(batch.lengths, batch.tails, batch.ids.device),
    }
    body = head.decoder(core)
    if body is not None:
        return head.loss_sum(core, body, body(**inputs), batch.rows, batch.targets)
    logits = model(**inputs, logits_to_keep=batch.rows).logits
    return cross_entropy(logits[0].float(), batch.targets, reduction="sum")


def transformers_model(model: Any) -> Any:
    """Return the transformers model under an adapter; the adapter's layers stand in it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
