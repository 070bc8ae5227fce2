"""Losses by transformers' own forward and PEFT's own layers, for bases that do not support flattened batches.

With one record at a time nothing is shared between records, so whatever a base does inside (recurrent states, convolutions,
position tables, rotary frequencies that depend on the length) is right. It is slow: short records do not fill a GPU. If
`retune.training.self_check` finds that it changes nothing, the records of a pass are computed together, padded on the right: in
a causal model a token does not depend on later ones, padding included.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from retune.data.batches import Batch
from retune.training import head
from retune.training.guarded import within
from retune.training.model_attention import using_attention

_READING = "_retune_reading"


@dataclass(frozen=True)
class Reading:
    """How the plain forward computes losses.

    Attributes:
        padded: the records of a pass together; else one by one.
        in_parts: logits in chunks (`retune.training.head`); else those of all counted tokens of a pass at once.
    """

    padded: bool = False
    in_parts: bool = False


@contextmanager
def by_plain_forward(model: Any, eager: bool = False, reading: Reading | None = None) -> Iterator[None]:
    """Set how `loss_sum` computes inside the block.

    Args:
        model: the transformers model.
        eager: use eager attention instead of the implementation that the base was loaded with.
        reading: by default one record at a time, all logits at once.
    """
    before = vars(model).get(_READING)
    vars(model)[_READING] = reading or Reading()
    try:
        with using_attention(model, "eager") if eager else nullcontext():
            yield
    finally:
        if before is None:
            del vars(model)[_READING]
        else:
            vars(model)[_READING] = before


def reading_of(model: Any) -> Reading:
    """Return the `Reading` that `by_plain_forward` set; outside of it, the default one."""
    reading: Reading = vars(transformers_model(model)).get(_READING) or Reading()
    return reading


def loss_sum(model: Any, batch: Batch) -> Tensor:
    """Return the sum of -log p over the counted tokens of `batch`, as `retune.training.loss.loss_sum` does."""
    reading = reading_of(model)
    if len(batch.lengths) == 1:
        return _loss_sum(model, batch.ids, batch.rows, batch.targets, reading)
    if reading.padded:
        return _loss_sum(model, *pad(batch), batch.targets, reading)
    parts = []
    start = 0
    for length in batch.lengths:
        mine = (batch.rows >= start) & (batch.rows < start + length)
        ids, rows = batch.ids[:, start : start + length], batch.rows[mine] - start
        parts.append(_loss_sum(model, ids, rows, batch.targets[mine], reading))
        start += length
    return torch.stack(parts).sum()


def pad(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return a batch's records padded on the right, shape ``(records, longest)``, and its `rows` as indices into that, flattened.

    Each is padded with its own last token, an ordinary one: some models treat their `pad` token in a special way.
    """
    longest = max(batch.lengths)
    records = torch.split(batch.ids[0], batch.lengths)
    ids = torch.stack([torch.cat([ids, ids[-1:].expand(longest - len(ids))]) for ids in records])
    ends = torch.tensor(batch.lengths, device=ids.device).cumsum(0)
    record = torch.bucketize(batch.rows, ends, right=True)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return ids, batch.rows - starts[record] + record * longest


def _loss_sum(model: Any, ids: Tensor, rows: Tensor, targets: Tensor, reading: Reading) -> Tensor:
    core = transformers_model(model)
    body = head.decoder(core) if reading.in_parts else None
    if body is None:
        return cross_entropy(logits(model, ids, rows), targets, reduction="sum")
    reset_rotary(core)
    options = _options(body, ids, model.training)
    return within(core, lambda: head.loss_sum(core, body, body(input_ids=ids, **options), rows, targets))


def logits(model: Any, ids: Tensor, rows: Tensor) -> Tensor:
    """Return the float32 logits at `rows`, shape ``(rows, vocabulary)``.

    Args:
        ids: shape ``(records, tokens)``. rows: indices into the flattened ids.
    """
    core = transformers_model(model)
    reset_rotary(core)
    options = _options(core, ids, model.training)
    kept = len(ids) == 1 and "logits_to_keep" in inspect.signature(core.forward).parameters
    if kept:
        options["logits_to_keep"] = rows
    out: Tensor = model(input_ids=ids, **options).logits.flatten(0, 1)
    return (out if kept else out[rows]).float()


def _options(module: nn.Module, ids: Tensor, training: bool) -> dict[str, Any]:
    """Return the arguments that a model's forward needs besides the tokens."""
    takes = inspect.signature(module.forward).parameters
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in takes and training:  # multimodal models need them in training; 0 is text
            options[name] = torch.zeros_like(ids)
    return options


def transformers_model(model: Any) -> Any:
    """Return the transformers model inside a PEFT model, with the adapter's layers in it; any other model as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def reset_rotary(model: nn.Module) -> None:
    """Reset rotary frequencies that depend on the longest sequence so far (dynamic NTK): records must not affect later ones."""
    part: Any
    for part in model.modules():
        attributes = vars(part)
        for name in [name for name in attributes if name.endswith("max_seq_len_cached")]:
            prefix = name.removesuffix("max_seq_len_cached")
            original = getattr(part, f"{prefix}original_inv_freq", None)
            if original is not None and int(attributes[name]) > part.original_max_seq_len:
                used = getattr(part, f"{prefix}inv_freq")
                part.register_buffer(f"{prefix}inv_freq", original.to(used.device).clone(), persistent=False)
                setattr(part, name, part.original_max_seq_len)
