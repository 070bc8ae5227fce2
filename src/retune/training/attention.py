"""Attention within each record of a flattened batch, never across records.

* On a GPU: `torch.nn.attention.varlen.varlen_attn` (FlashAttention with record borders, in torch since 2.10).
* Else (on a CPU, in float32, with an older torch, or on a GPU before Ampere): one causal `scaled_dot_product_attention`
  per record, so that no mask of tokens x tokens is built.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout, scaled_dot_product_attention

from retune.training.record_dropout import record_generator


@dataclass(frozen=True)
class Segments:
    """The records in a flattened sequence.

    Attributes:
        lengths: tokens of each record.
        borders: the start of each record, and the end of the last; int32 on the device, shape ``(records + 1,)``.
        longest: the longest record, in tokens.
        tails: of each record, the tokens from its first counted prediction to its end.
        rows: indices of all tails in the sequence; None if they are the whole sequence, or on a GPU, where they are not used.
    """

    lengths: tuple[int, ...]
    borders: Tensor
    longest: int
    tails: tuple[int, ...]
    rows: Tensor | None


def segments(lengths: Sequence[int], tails: Sequence[int], device: torch.device) -> Segments:
    """Return the segments of records with these lengths and tails, both in tokens."""
    ends = list(accumulate(lengths))
    borders = torch.tensor([0, *ends], dtype=torch.int32)
    rows = None
    if device.type == "cpu" and list(tails) != list(lengths):
        rows = torch.cat([torch.arange(end - tail, end) for end, tail in zip(ends, tails, strict=True)])
    return Segments(tuple(lengths), borders.to(device, non_blocking=True), max(lengths), tuple(tails), rows)


@dataclass
class Pattern:
    """Which earlier tokens a layer attends to, if not all of them: a sliding window, or chunks.

    Attributes:
        function: transformers' mask function: of the indices of batch, head, query and key in the flattened sequence; true
            where the query attends to the key.
        reach: the longest record, in tokens, in which every token is within the window or chunk.
    """

    function: Callable[..., Any]
    reach: int

    def narrows(self, records: Segments) -> bool:
        """Return whether some record is longer than `reach`, so that masks are needed."""
        return records.longest > self.reach

    def masks(self, records: Segments) -> list[Tensor | None]:
        """Return each record's mask, true where a query attends to a key, shape ``(length, length)``; None for plain causal."""
        masks: list[Tensor | None] = []
        start = 0
        for length in records.lengths:
            mask = None
            if length > self.reach:
                indices = torch.arange(start, start + length, device=records.borders.device)
                first = torch.zeros((), dtype=torch.int64, device=indices.device)
                mask = self.function(first, first, indices[:, None], indices[None, :])
            masks.append(mask)
            start += length
        return masks


@dataclass(frozen=True)
class AttentionOptions:
    """How a layer's attention differs from the plain one.

    Attributes:
        scale: factor on the scores; None for ``head_dim ** -0.5``.
        masks: from `Pattern.masks`; None if all records have plain causal attention.
        softcap: scores become ``softcap * tanh(scores / softcap)``, as in Gemma 2.
        sinks: attention sinks, shape ``(heads,)``: logits in each softmax that belong to no value, as in gpt-oss.
        dropout: probability of dropping an attention weight.
    """

    scale: float | None = None
    masks: list[Tensor | None] | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether it is causal attention with a scale and nothing else, as FlashAttention computes it."""
        return self.masks is None and self.softcap is None and self.sinks is None and not self.dropout


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    records: Segments,
    options: AttentionOptions = AttentionOptions(),
) -> Tensor:
    """Causal attention inside each record.

    Args:
        query: shape ``(1, heads, tokens, head_dim)``.
        key, value: shape ``(1, key_heads, tokens, head_dim)``; `heads` is a multiple of `key_heads`.
        records: the borders.
        options: how it differs from plain attention.

    Returns:
        shape ``(1, tokens, heads, head_dim)``.
    """
    flash = _varlen()
    if flash is not None and options.plain and _flash_takes(query) and value.shape == key.shape:
        return _attend_by_flash(flash, query, key, value, records, options.scale)
    return _attend_by_record(query, key, value, records, options)


def _flash_takes(query: Tensor) -> bool:
    """Return whether FlashAttention supports this data type, head size and GPU."""
    if query.device.type != "cuda" or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    head = query.shape[-1]
    return head % 8 == 0 and head <= 256 and torch.cuda.get_device_capability(query.device) >= (8, 0)


def _attend_by_flash(
    flash: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    records: Segments,
    scale: float | None,
) -> Tensor:
    """Call torch's `varlen_attn` with the arguments of the installed release.

    Causality is the flag ``is_causal`` in torch 2.10 and a window since 2.11, which also added ``scale``; grouped keys
    were added in 2.12.
    """
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    takes = inspect.signature(flash).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in takes else {"is_causal": True}
    default_scale = q.shape[-1] ** -0.5
    if scale is not None and "scale" in takes:
        options["scale"] = scale
    elif scale is not None and scale != default_scale:
        q = q * (scale / default_scale)
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in takes:
            options["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    out: Tensor = flash(
        q, k, v, records.borders, records.borders, records.longest, records.longest, **options
    )
    return out.unsqueeze(0)


def _attend_by_record(
    query: Tensor, key: Tensor, value: Tensor, records: Segments, options: AttentionOptions
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    special = options.softcap is not None or options.sinks is not None
    if grouped and (special or query.device.type == "cuda"):
        # On a GPU the memory-efficient kernels do not support grouped keys; torch would fall back to one that stores all scores.
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
        grouped = False
    lengths = list(records.lengths)
    parts = zip(
        torch.split(query, lengths, 2),
        torch.split(key, lengths, 2),
        torch.split(value, lengths, 2),
        options.masks or [None] * len(lengths),
        strict=True,
    )
    outputs = []
    for index, (q, k, v, mask) in enumerate(parts):
        with record_generator(index) if options.dropout else nullcontext():
            if special:
                out = _attend_with_scores(q, k, v, mask, options)
            else:
                out = scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=options.dropout, scale=options.scale,
                    enable_gqa=grouped,
                )  # fmt: skip
        outputs.append(out)
    return torch.cat([x.transpose(1, 2) for x in outputs], 1)


def _attend_with_scores(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: AttentionOptions
) -> Tensor:
    """Return attention of one record with explicit scores, for what no kernel supports; equals transformers' eager attention."""
    scores = (
        query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if options.scale is None else options.scale)
    )
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if options.sinks is None:
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    else:
        sinks = options.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, sinks], -1).softmax(-1, dtype=torch.float32)[..., :-1].to(query.dtype)
    return dropout(weights, options.dropout, training=options.dropout > 0) @ value


@lru_cache(maxsize=1)
def _varlen() -> Callable[..., Any] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch < 2.10
        return None
    return varlen_attn
