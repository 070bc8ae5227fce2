"""Causal attention in blocks of queries, forward and backward written out. For CPUs.

A block of queries meets only the keys up to its own end, so nearly half of the square is never computed, and what is
computed are matrix products of a size that BLAS likes: on records of instruction data it is faster than torch's own
fused kernel. The price is memory: the probabilities are kept for the backward pass, ``heads * length**2 / 2`` floats a
record and layer.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

BLOCK = 64


@lru_cache(maxsize=1)
def _later(size: int) -> Tensor:
    """Return what hides the keys behind each query of a block, shape ``(size, size)``."""
    return torch.full((size, size), -torch.inf).triu(1)


def forward(query: Tensor, key: Tensor, value: Tensor, scale: float, out: Tensor) -> list[Tensor]:
    """Compute attention of the last queries of a record to all keys before them.

    Args:
        query: shape ``(heads, queries, size)``, for the last ``queries`` places of the record.
        key, value: shape ``(heads, length, size)``.
        scale: factor on the scores.
        out: written; shape of `query`.

    Returns:
        the probabilities of each block, for `backward`.
    """
    queries, before = query.shape[1], key.shape[1] - query.shape[1]
    kept = []
    for start in range(0, queries, BLOCK):
        end = min(queries, start + BLOCK)
        seen = before + end
        scores = torch.bmm(query[:, start:end], key[:, :seen].transpose(1, 2)).mul_(scale)
        size = end - start
        scores[:, :, before + start :].add_(_later(BLOCK)[:size, :size])
        probabilities = scores.softmax(-1)
        out[:, start:end] = torch.bmm(probabilities, value[:, :seen])
        kept.append(probabilities)
    return kept


def backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float, kept: list[Tensor],
    of_query: Tensor, of_key: Tensor, of_value: Tensor,
) -> None:  # fmt: skip
    """Compute the gradients of `forward`'s inputs from that of its output.

    Args:
        gradient: shape of `query`.
        query, key, value, scale: as in `forward`. kept: what it returned.
        of_query: written; shape of `query`.
        of_key, of_value: added to; shape of `key`.
    """
    queries, before = query.shape[1], key.shape[1] - query.shape[1]
    for number, start in enumerate(range(0, queries, BLOCK)):
        end = min(queries, start + BLOCK)
        seen = before + end
        probabilities, of_out = kept[number], gradient[:, start:end]
        of_probabilities = torch.bmm(of_out, value[:, :seen].transpose(1, 2))
        of_scores = torch.ops.aten._softmax_backward_data(
            of_probabilities, probabilities, -1, query.dtype
        ).mul_(scale)
        of_query[:, start:end] = torch.bmm(of_scores, key[:, :seen])
        of_key[:, :seen] += torch.bmm(of_scores.transpose(1, 2), query[:, start:end])
        of_value[:, :seen] += torch.bmm(probabilities.transpose(1, 2), of_out)
