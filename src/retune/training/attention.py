"""Attention that never crosses from one record of a flattened batch into the next.

* On a GPU: `torch.nn.attention.varlen.varlen_attn` (FlashAttention with record borders, in torch since 2.10);
* Else, as on a CPU, in float32, with an older torch or a card before Ampere: one causal `scaled_dot_product_attention`
  a record, so that no mask of tokens x tokens is ever built.
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

from retune.training.record_dropout import of_record


@dataclass(frozen=True)
class Segments:
    """The records in a flattened sequence.

    Attributes:
        lengths: tokens of each record.
        borders: where each record starts, and the end; int32 on the device, shape ``(records + 1,)``.
        longest: the longest record, in tokens.
        tails: tokens of each record from its first counted prediction to its end.
        rows: the places of all tails in the sequence; None if they are the whole sequence, or not made use of.
    """

    lengths: tuple[int, ...]
    borders: Tensor
    longest: int
    tails: tuple[int, ...]
    rows: Tensor | None


def segments(lengths: Sequence[int], tails: Sequence[int], device: torch.device) -> Segments:
    """Return the borders of records with these lengths, whose loss is counted in these tails."""
    ends = list(accumulate(lengths))
    borders = torch.tensor([0, *ends], dtype=torch.int32)
    rows = None
    if device.type == "cpu" and list(tails) != list(lengths):
        rows = torch.cat([torch.arange(end - tail, end) for end, tail in zip(ends, tails, strict=True)])
    return Segments(tuple(lengths), borders.to(device, non_blocking=True), max(lengths), tuple(tails), rows)


@dataclass
class Pattern:
    """Which earlier tokens a layer attends to, where it is not all of them: a sliding window, or chunks.

    Attributes:
        function: transformers' mask function: from places of batch, head, query and key in the flattened sequence, whether
            the query sees the key.
        reach: tokens up to which a record is attended to whole.
    """

    function: Callable[..., Any]
    reach: int

    def narrows(self, records: Segments) -> bool:
        """Return whether some record is too long to be attended to whole."""
        return records.longest > self.reach

    def masks(self, records: Segments) -> list[Tensor | None]:
        """Return for each record what its queries see, shape ``(length, length)``; None for all that is not later."""
        made: list[Tensor | None] = []
        start = 0
        for length in records.lengths:
            mask = None
            if length > self.reach:
                places = torch.arange(start, start + length, device=records.borders.device)
                first = torch.zeros((), dtype=torch.int64, device=places.device)
                mask = self.function(first, first, places[:, None], places[None, :])
            made.append(mask)
            start += length
        return made


@dataclass(frozen=True)
class Form:
    """How a layer's attention differs from the plain one.

    Attributes:
        scale: factor on the scores; None for ``head_dim ** -0.5``.
        masks: from `Pattern.masks`; None if every record is attended to whole.
        softcap: scores are bent into this range, as in Gemma 2.
        sinks: logits that take a share of each head's attention and give nothing, shape ``(heads,)``, as in gpt-oss.
        dropout: share of the attention that is dropped.
    """

    scale: float | None = None
    masks: list[Tensor | None] | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether it is causal attention with a factor, as FlashAttention has it."""
        return self.masks is None and self.softcap is None and self.sinks is None and not self.dropout


def attend(query: Tensor, key: Tensor, value: Tensor, records: Segments, form: Form = Form()) -> Tensor:
    """Causal attention inside each record.

    Args:
        query: shape ``(1, heads, tokens, head_dim)``.
        key, value: shape ``(1, key_heads, tokens, head_dim)``; `heads` is a multiple of `key_heads`.
        records: the borders.
        form: how it differs from the plain one.

    Returns:
        shape ``(1, tokens, heads, head_dim)``.
    """
    flash = _varlen()
    if flash is not None and form.plain and _flash_takes(query) and value.shape == key.shape:
        return _attend_by_flash(flash, query, key, value, records, form.scale)
    return _attend_by_record(query, key, value, records, form)


def _flash_takes(query: Tensor) -> bool:
    """Return whether FlashAttention computes with this type, size of head and card."""
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
    """Call torch's `varlen_attn` by what it takes.

    Causality is the flag ``is_causal`` in torch 2.10 and a window since 2.11, which also brought ``scale``; grouped keys
    came with 2.12.
    """
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    takes = inspect.signature(flash).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in takes else {"is_causal": True}
    usual = q.shape[-1] ** -0.5
    if scale is not None and "scale" in takes:
        options["scale"] = scale
    elif scale is not None and scale != usual:
        q = q * (scale / usual)
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in takes:
            options["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    out: Tensor = flash(
        q, k, v, records.borders, records.borders, records.longest, records.longest, **options
    )
    return out.unsqueeze(0)


def _attend_by_record(query: Tensor, key: Tensor, value: Tensor, records: Segments, form: Form) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    special = form.softcap is not None or form.sinks is not None
    if grouped and (special or query.device.type == "cuda"):
        # The kernels that keep no scores know no grouped keys.
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
        grouped = False
    lengths = list(records.lengths)
    parts = zip(
        torch.split(query, lengths, 2),
        torch.split(key, lengths, 2),
        torch.split(value, lengths, 2),
        form.masks or [None] * len(lengths),
        strict=True,
    )
    done = []
    for place, (q, k, v, mask) in enumerate(parts):
        with of_record(place) if form.dropout else nullcontext():
            out = (
                _attend_with_scores(q, k, v, mask, form)
                if special
                else scaled_dot_product_attention(
                    q,
                    k,
                    v,
                    attn_mask=mask,
                    is_causal=mask is None,
                    dropout_p=form.dropout,
                    scale=form.scale,
                    enable_gqa=grouped,
                )
            )
        done.append(out)
    return torch.cat([x.transpose(1, 2) for x in done], 1)


def _attend_with_scores(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, form: Form) -> Tensor:
    """Return attention of one record with explicit scores, where no kernel exists; as transformers' eager attention."""
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if form.scale is None else form.scale)
    if form.softcap is not None:
        scores = torch.tanh(scores / form.softcap) * form.softcap
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if form.sinks is None:
        shares = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    else:
        sinks = form.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        shares = torch.cat([scores, sinks], -1).softmax(-1, dtype=torch.float32)[..., :-1].to(query.dtype)
    return dropout(shares, form.dropout, training=form.dropout > 0) @ value


@lru_cache(maxsize=1)
def _varlen() -> Callable[..., Any] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch < 2.10
        return None
    return varlen_attn
