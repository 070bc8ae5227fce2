"""Dropout with one generator for each record, in layers that are not ours: PEFT's, and a base's own, attention included.

Each record's generator is seeded by the trial, the step and the record's number, and draws as many numbers as the record has
tokens. So the masks do not depend on which records share a pass, on padding, or on the number of processes. PEFT's and
transformers' layers call ``torch.nn.functional.dropout`` and ``scaled_dot_product_attention``; both are replaced
inside `per_record_dropout`. Plain LoRA layers on flattened batches use `retune.training.dropout` instead.
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

from retune.training.dropout import as_default_generator


@dataclass(frozen=True)
class RecordGenerators:
    """The generators of the records in a pass, and how the records are laid out.

    Attributes:
        lengths: tokens of each record. padded: whether records are padded to the longest; else they form one sequence.
        generators: one per record, on the model's device.
    """

    lengths: Sequence[int]
    padded: bool
    generators: list[torch.Generator] = field(default_factory=list)

    def split(self, x: Tensor) -> list[Tensor] | None:
        """Return each record's part of `x` without padding, as views; None if `x` has none of the shapes below.

        Padded: ``(records, longest, …)``, or attention weights ``(records, heads, longest, longest)``; in both the first two
        dimensions may be merged. Flattened: ``(1, tokens, …)`` or ``(tokens, …)``.
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


def record_generators(
    lengths: Sequence[int], padded: bool, records: Sequence[int], seed: str, device: torch.device
) -> RecordGenerators:
    """Return the generators of these records for one step.

    Args:
        lengths, padded: as in `RecordGenerators`. records: their numbers.
        seed: of the step. device: of the model.
    """
    generators = []
    for record in records:
        number = hashlib.blake2b(f"{seed} {record}".encode(), digest_size=4).digest()
        generators.append(torch.Generator(device).manual_seed(int.from_bytes(number, "big")))
    return RecordGenerators(lengths, padded, generators)


# A module variable, not a ContextVar: autograd's threads, which recompute layers (`recompute`), would not see it.
_active: RecordGenerators | None = None
_dropout = functional.dropout
_attention = functional.scaled_dot_product_attention


@contextmanager
def per_record_dropout(generators: RecordGenerators | None) -> Iterator[None]:
    """Let all dropout but that of our own layers use the records' generators inside the block; None changes nothing."""
    global _active
    before = _active, functional.dropout, functional.scaled_dot_product_attention
    _active = generators
    if generators is not None:
        functional.dropout = _drop  # type: ignore[assignment]
        functional.scaled_dot_product_attention = _attend  # type: ignore[assignment]
    try:
        yield
    finally:
        _active, functional.dropout, functional.scaled_dot_product_attention = before  # type: ignore[assignment]


def record_generator(index: int) -> AbstractContextManager[None]:
    """Return a context in which the generator of the pass's record `index` is torch's default generator."""
    return nullcontext() if _active is None else as_default_generator(_active.generators[index])


def _drop(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Stand in for ``torch.nn.functional.dropout``."""
    mask = torch.ones_like(input, dtype=torch.bool) if training and 0 < p < 1 else None
    parts = _active.split(mask) if _active is not None and mask is not None else None
    if mask is None or parts is None or _active is None:
        return _dropout(input, p, training, inplace)
    for part, generator in zip(parts, _active.generators, strict=True):
        # Drawn into contiguous memory and copied: `bernoulli_` may fill a strided view in another order.
        own = torch.empty_like(part, memory_format=torch.contiguous_format)
        part.copy_(own.bernoulli_(1 - p, generator=generator))
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
    by_record = (
        query.dim() == 4 and len(query) == len(lengths) and (attn_mask is None or attn_mask.dim() == 4)
    )
    if not dropout_p or not by_record or {query.shape[2], key.shape[2]} != {max(lengths)}:
        return _attention(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, **options)
    outputs = []
    for index, length in enumerate(lengths):
        q, k, v = (x[index : index + 1, :, :length] for x in (query, key, value))
        mask = attn_mask
        if mask is not None:
            mask = mask[index if len(mask) > 1 else 0][None, :, :length, :length]
        with record_generator(index):
            out = _attention(q, k, v, attn_mask=mask, dropout_p=dropout_p, **options)
        outputs.append(functional.pad(out, (0, 0, 0, max(lengths) - length)))
    return torch.cat(outputs)
