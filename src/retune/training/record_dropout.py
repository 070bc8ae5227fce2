"""Dropout drawn for each record by itself, in layers that are not ours: PEFT's, and a base's own, inside its attention too.

A record draws from a generator of its own, seeded by the trial, the step and the record's number, as many numbers as it has
tokens. So the draws do not depend on which records share a pass, on padding, or on the number of processes. PEFT's and
transformers' layers call ``torch.nn.functional.dropout`` and ``scaled_dot_product_attention``; both are replaced
inside `drawn_by_record`. Plain LoRA layers on flattened batches have `retune.training.dropout` instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from retune.training.dropout import drawn_by


@dataclass(frozen=True)
class RecordDraws:
    """Where the records of a pass draw from.

    Attributes:
        lengths: tokens of each record. padded: whether they are padded to the longest; else they form one sequence.
        generators: one for each record, on the model's device.
    """

    lengths: Sequence[int]
    padded: bool
    generators: list[torch.Generator] = field(default_factory=list)

    def own(self, x: Tensor) -> list[Tensor] | None:
        """Return each record's part of `x` without padding, as views; None if the records do not lie in it as expected.

        `x` has the shape ``(records, longest, …)`` or ``(records, heads, longest, longest)``, whose first two may be one, or of
        flattened records ``(1, tokens, …)`` or ``(tokens, …)``.
        """
        lengths = list(self.lengths)
        if not self.padded:
            flat = x[0] if x.dim() > 2 and len(x) == 1 else x
            return list(torch.split(flat, lengths)) if len(flat) == sum(lengths) else None
        count, longest = len(lengths), max(lengths)
        if x.dim() == 3 and x.shape[1:] == (longest, longest) and len(x) > count and len(x) % count == 0:
            x = x.view(count, -1, longest, longest)
        if x.dim() == 4 and len(x) == count and x.shape[2:] == (longest, longest):
            return [one[:, :length, :length] for one, length in zip(x, lengths, strict=True)]
        if x.dim() > 1 and len(x) == count * longest:
            x = x.view(count, longest, *x.shape[1:])
        if x.dim() > 2 and x.shape[:2] == (count, longest):
            return [one[:length] for one, length in zip(x, lengths, strict=True)]
        return None


def draws(
    lengths: Sequence[int], padded: bool, records: Sequence[int], seed: str, device: torch.device
) -> RecordDraws:
    """Return where these records draw from in one step.

    Args:
        lengths, padded: as of `RecordDraws`. records: their numbers.
        seed: of the step. device: where the model is.
    """
    generators = []
    for record in records:
        number = hashlib.blake2b(f"{seed} {record}".encode(), digest_size=4).digest()
        generators.append(torch.Generator(device).manual_seed(int.from_bytes(number, "big")))
    return RecordDraws(lengths, padded, generators)


_active: RecordDraws | None = (
    None  # not a ContextVar: autograd's threads compute layers again, see `recompute`
)
_dropout = functional.dropout
_attention = functional.scaled_dot_product_attention


@contextmanager
def drawn_by_record(wanted: RecordDraws | None) -> Iterator[None]:
    """Let all dropout but that of our own layers draw by record inside the block; None changes nothing."""
    global _active
    before = _active, functional.dropout, functional.scaled_dot_product_attention
    _active = wanted
    if wanted is not None:
        functional.dropout = _drop  # type: ignore[assignment]
        functional.scaled_dot_product_attention = _attend  # type: ignore[assignment]
    try:
        yield
    finally:
        _active, functional.dropout, functional.scaled_dot_product_attention = before  # type: ignore[assignment]


def of_record(place: int) -> AbstractContextManager[None]:
    """Return a context in which torch's default generator draws as the record at this place of the pass."""
    return nullcontext() if _active is None else drawn_by(_active.generators[place])


def _drop(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Stand in for ``torch.nn.functional.dropout``."""
    mask = torch.ones_like(input, dtype=torch.bool) if training and 0 < p < 1 else None
    parts = _active.own(mask) if _active is not None and mask is not None else None
    if mask is None or parts is None or _active is None:
        return _dropout(input, p, training, inplace)
    for part, generator in zip(parts, _active.generators, strict=True):
        part.copy_(
            torch.empty_like(part, memory_format=torch.contiguous_format).bernoulli_(
                1 - p, generator=generator
            )
        )
    return input.mul_(mask).mul_(1 / (1 - p)) if inplace else (input * mask).mul_(1 / (1 - p))


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    **options: Any,
) -> Tensor:
    """Stand in for ``torch.nn.functional.scaled_dot_product_attention``."""
    lengths = [] if _active is None else list(_active.lengths)
    known = query.dim() == 4 and len(query) == len(lengths) and (attn_mask is None or attn_mask.dim() == 4)
    if not dropout_p or not known or {query.shape[2], key.shape[2]} != {max(lengths)}:
        return _attention(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, **options)
    done = []
    for place, length in enumerate(lengths):
        q, k, v = (x[place : place + 1, :, :length] for x in (query, key, value))
        mask = attn_mask
        if mask is not None:
            mask = mask[place if len(mask) > 1 else 0][None, :, :length, :length]
        with of_record(place):
            out = _attention(q, k, v, attn_mask=mask, dropout_p=dropout_p, **options)
        done.append(functional.pad(out, (0, 0, 0, max(lengths) - length)))
    return torch.cat(done)
