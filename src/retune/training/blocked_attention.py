"""Causal attention in blocks of queries, with an explicit forward and backward pass. For CPUs.

A block of queries is multiplied only with the keys up to its own end, so nearly half of the scores are never computed, and the
matrix products have sizes for which BLAS is efficient: on records of instruction data this is faster than torch's own fused
kernel. The cost is memory: the probabilities are saved for the backward pass, ``heads * length**2 / 2`` floats per record and
layer.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

BLOCK = 64  # queries


@lru_cache(maxsize=1)
def _later(size: int) -> Tensor:
    """Return the mask that is added to the scores of a block's own keys, ``-inf`` for later ones, shape ``(size, size)``."""
    return torch.full((size, size), -torch.inf).triu(1)


def forward(query: Tensor, key: Tensor, value: Tensor, scale: float, out: Tensor) -> list[Tensor]:
    """Compute attention of the last queries of a record to all keys before them.

    Args:
        query: shape ``(heads, queries, size)``, of the last ``queries`` tokens of the record.
        key, value: shape ``(heads, length, size)``.
        scale: factor on the scores.
        out: written; shape of `query`.

    Returns:
        the probabilities of each block, for `backward`.
    """
    queries, before = query.shape[1], key.shape[1] - query.shape[1]
    saved = []
    for start in range(0, queries, BLOCK):
        end = min(queries, start + BLOCK)
        seen = before + end
        scores = torch.bmm(query[:, start:end], key[:, :seen].transpose(1, 2)).mul_(scale)
        size = end - start
        scores[:, :, before + start :].add_(_later(BLOCK)[:size, :size])
        probabilities = scores.softmax(-1)
        out[:, start:end] = torch.bmm(probabilities, value[:, :seen])
        saved.append(probabilities)
    return saved


def backward(
    grad_output: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float, saved: list[Tensor],
    grad_query: Tensor, grad_key: Tensor, grad_value: Tensor,
) -> None:  # fmt: skip
    """Compute the gradients of `forward`'s inputs from that of its output.

    Args:
        gradient: shape of `query`.
        query, key, value, scale: as in `forward`. saved: what it returned.
        grad_query: written; shape of `query`.
        grad_key, grad_value: added to; shape of `key`.
    """
    queries, before = query.shape[1], key.shape[1] - query.shape[1]
    for number, start in enumerate(range(0, queries, BLOCK)):
        end = min(queries, start + BLOCK)
        seen = before + end
        probabilities, grad_out = saved[number], grad_output[:, start:end]
        grad_probabilities = torch.bmm(grad_out, value[:, :seen].transpose(1, 2))
        grad_scores = torch.ops.aten._softmax_backward_data(
            grad_probabilities, probabilities, -1, query.dtype
        ).mul_(scale)
        grad_query[:, start:end] = torch.bmm(grad_scores, key[:, :seen])
        grad_key[:, :seen] += torch.bmm(grad_scores.transpose(1, 2), query[:, start:end])
        grad_value[:, :seen] += torch.bmm(probabilities.transpose(1, 2), grad_out)
