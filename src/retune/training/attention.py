"""Attention that never crosses from one record of a flattened batch into the next.

transformers looks an attention implementation up by name (``config._attn_implementation``). The one registered here
reads the records' borders from the keyword argument ``segments`` that the model passes down to every layer:

* GPU: `torch.nn.attention.varlen.varlen_attn` (FlashAttention with record borders, in torch since 2.10);
* else, as on a CPU, in float32, with an older torch or a card before Ampere: one causal `scaled_dot_product_attention`
  a record, so that no mask of tokens x tokens is ever built.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from retune.errors import InputError

NAME = "retune_segments"


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


def attend(
    query: Tensor, key: Tensor, value: Tensor, records: Segments, scale: float | None = None
) -> Tensor:
    """Causal attention inside each record.

    Args:
        query: shape ``(1, heads, tokens, head_dim)``.
        key, value: shape ``(1, key_heads, tokens, head_dim)``; `heads` is a multiple of `key_heads`.
        records: the borders.
        scale: factor on the scores; default ``head_dim ** -0.5``.

    Returns:
        shape ``(1, tokens, heads, head_dim)``.
    """
    flash = _varlen()
    if flash is not None and _flash_takes(query):
        return _attend_by_flash(flash, query, key, value, records, scale)
    return _attend_by_record(query, key, value, records, scale)


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


def _attend_by_record(
    query: Tensor, key: Tensor, value: Tensor, records: Segments, scale: float | None
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.device.type == "cuda":  # the kernels that keep no scores know no grouped keys
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
        grouped = False
    lengths = list(records.lengths)
    parts = zip(
        torch.split(query, lengths, 2),
        torch.split(key, lengths, 2),
        torch.split(value, lengths, 2),
        strict=True,
    )
    done = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped).transpose(1, 2)
        for q, k, v in parts
    ]
    return torch.cat(done, 1)


@lru_cache(maxsize=1)
def _varlen() -> Callable[..., Any] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch < 2.10
        return None
    return varlen_attn


def _transformers_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    segments: Segments | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The signature that transformers calls; shapes as in `attend`.

    Raises:
        InputError: if the model asks for a kind of attention that this one is not; a wrong sum would go unseen.
    """
    if segments is None:
        raise RuntimeError(
            f"the attention {NAME!r} needs `segments`; call the model through retune.training.loss"
        )
    window = options.get("sliding_window")
    foreign = [name for name in ("softcap", "s_aux") if options.get(name) is not None]
    foreign += [f"sliding_window={window}"] if window is not None and window < segments.longest else []
    foreign += [f"dropout={options['dropout']}"] if options.get("dropout") else []
    if foreign:
        raise InputError(f"attention with {', '.join(foreign)} cannot be trained yet", "model.base")
    return attend(query, key, value, segments, scaling), None


@contextmanager
def by_segments(model: Any) -> Iterator[None]:
    """Let a transformers model attend by segments inside the block; its own attention is back afterwards."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from retune.training.llama_layer import installed

    ALL_ATTENTION_FUNCTIONS[NAME] = _transformers_attention
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        with installed(model):
            yield
    finally:
        config._attn_implementation = before
