"""The plain way to a loss: each record by itself, through transformers' own forward and PEFT's own layers.

Nothing is shared between records, so whatever a base does inside (recurrent states, convolutions, position tables, rotary
frequencies that depend on the length) it does as it was made to. It costs speed: small records do not fill a GPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from retune.data.batches import Batch
from retune.training.attention import attending


@contextmanager
def by_record(model: Any, eager: bool = False) -> Iterator[None]:
    """Let `loss_sum` be what counts inside the block, with the attention that the base was loaded with, or eager."""
    if not eager:
        yield
        return
    with attending(model, "eager"):
        yield


def loss_sum(model: Any, batch: Batch) -> Tensor:
    """Return the sum of -log p over the counted tokens of `batch`, as `retune.training.loss.loss_sum` does."""
    if len(batch.lengths) == 1:
        return cross_entropy(logits(model, batch.ids, batch.rows), batch.targets, reduction="sum")
    parts = []
    start = 0
    for length in batch.lengths:
        mine = (batch.rows >= start) & (batch.rows < start + length)
        made = logits(model, batch.ids[:, start : start + length], batch.rows[mine] - start)
        parts.append(cross_entropy(made, batch.targets[mine], reduction="sum"))
        start += length
    return torch.stack(parts).sum()


def logits(model: Any, ids: Tensor, rows: Tensor) -> Tensor:
    """Return the float32 logits of one record at `rows`, shape ``(rows, vocabulary)``; `ids` has shape ``(1, tokens)``."""
    core = transformers_model(model)
    reset_rotary(core)
    takes = inspect.signature(core.forward).parameters
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
    if "logits_to_keep" in takes:
        options["logits_to_keep"] = rows
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in takes and model.training:  # models for images too ask for them in training: 0 is text
            options[name] = torch.zeros_like(ids)
    out: Tensor = model(input_ids=ids, **options).logits[0]
    return (out if "logits_to_keep" in takes else out[rows]).float()


def transformers_model(model: Any) -> Any:
    """Return the transformers model under an adapter; the adapter's layers stand in it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def reset_rotary(model: nn.Module) -> None:
    """Let rotary frequencies that follow the longest sequence seen so far (dynamic NTK) forget what they saw."""
    part: Any
    for part in model.modules():
        known = vars(part)
        for name in [name for name in known if name.endswith("max_seq_len_cached")]:
            prefix = name.removesuffix("max_seq_len_cached")
            original = getattr(part, f"{prefix}original_inv_freq", None)
            if original is not None and int(known[name]) > part.original_max_seq_len:
                used = getattr(part, f"{prefix}inv_freq")
                part.register_buffer(f"{prefix}inv_freq", original.to(used.device).clone(), persistent=False)
                setattr(part, name, part.original_max_seq_len)
