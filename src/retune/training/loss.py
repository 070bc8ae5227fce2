"""The loss of a batch: the sum of -log p over its counted tokens, in float32."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from retune.data.batches import Batch
from retune.training import head, plain_forward
from retune.training.attention import segments
from retune.training.guarded import within
from retune.training.model_attention import is_flattened
from retune.training.passes import Layout
from retune.training.plain_forward import transformers_model


def layout(model: Any) -> Layout:
    """Return how `loss_sum` computes the records of a batch: concatenated, padded, or one by one."""
    if is_flattened(model):
        return "flattened"
    return "padded" if plain_forward.reading_of(model).padded else "alone"


def loss_sum(model: Any, batch: Batch) -> Tensor:
    """Return the sum of -log p over the counted tokens of `batch`, a float32 scalar with gradient.

    Logits are computed only where a prediction is counted: in instruction data more than half of the positions belong
    to prompts, and in a small model the output layer is most of the work. They are computed in chunks, see
    `retune.training.head`.

    Args:
        model: a causal language model, bare or wrapped for adapters or several devices. Inside
            `retune.training.model_attention.by_segments` the batch is one sequence; else transformers' own forward
            computes its records, see `retune.training.plain_forward`.
        batch: on the model's device.
    """
    if not is_flattened(model):
        return plain_forward.loss_sum(model, batch)
    core = transformers_model(model)
    body, inputs = head.decoder(core), _inputs(batch)
    if body is not None:
        return within(core, lambda: head.loss_sum(core, body, body(**inputs), batch.rows, batch.targets))
    logits = model(**inputs, logits_to_keep=batch.rows).logits
    return cross_entropy(logits[0].float(), batch.targets, reduction="sum")


def losses(core: Any, batch: Batch) -> Tensor:
    """Return -log p of each counted token, float32, shape ``(counted,)``, with gradient.

    Args:
        core: a transformers model inside `retune.training.model_attention.by_segments`. batch: on its device.
    """
    body, inputs = head.decoder(core), _inputs(batch)
    if body is not None:
        return head.losses(core, body, body(**inputs), batch.rows, batch.targets)
    logits = core(**inputs, logits_to_keep=batch.rows).logits
    return cross_entropy(logits[0].float(), batch.targets, reduction="none")


def _inputs(batch: Batch) -> dict[str, Any]:
    return {
        "input_ids": batch.ids,
        "position_ids": batch.positions,
        "use_cache": False,
        "segments": segments(batch.lengths, batch.tails, batch.ids.device),
    }
