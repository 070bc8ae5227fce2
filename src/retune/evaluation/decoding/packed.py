"""The first pass over a batch of prompts on a CPU: no padding, and the last layer only where its output is used.

The same sums as transformers' forward, with three differences. The prompts are concatenated into one sequence,
so nothing is computed for padding. Keys and values of what they begin with in common are read from one copy. Behind
the last layer only the positions are looked at whose logits are wanted, so there the others need keys and values alone:
no queries, no attention, no feed-forward. On a model of few layers the last one is much of the work.

On a GPU transformers' own forward is used: its time goes into large matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

# Layers of exactly this form: norm, attention with rotary embedding, norm, feed-forward.
_KNOWN = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}
_BLOCK = 96  # queries at a time: their scores stay in the processor's cache

# Keys and values per layer, each of shape (key heads, tokens, head size)
Layers = list[tuple[Tensor, Tensor]]


def fits(model: Any) -> bool:
    """Return whether `first_pass` computes what this model's own forward does: a known form, float32, on a CPU."""
    core = _core(model)
    layers = getattr(getattr(core, "model", None), "layers", None)
    if layers is None or core.device.type != "cpu" or core.dtype != torch.float32:
        return False
    return all(type(layer).__name__ in _KNOWN for layer in layers)


def first_pass(
    model: Any, rows: Sequence[Sequence[int]], wanted: Sequence[int], before: Layers, start: int
) -> tuple[Tensor, Layers]:
    """Compute the rows that follow a common prefix.

    Args:
        model: one that `fits`, with or without a PEFT adapter.
        rows: token ids of each row behind the prefix, at least one each.
        wanted: of each row how many of its last positions need logits; 0 for none.
        before: keys and values of the prefix; empty if there is none.
        start: tokens of the prefix.

    Returns:
        logits of the wanted positions, row by row, shape ``(sum(wanted), vocabulary)``; and keys and values of the
        rows' own tokens, one row behind the other.
    """
    core = _core(model)
    ids = torch.tensor([token for row in rows for token in row])
    places = torch.cat([torch.arange(start, start + len(row)) for row in rows])
    x = core.model.embed_tokens(ids)
    cos, sin = (turn[0, :, None] for turn in core.model.rotary_emb(x[None], position_ids=places[None]))
    lengths = [len(row) for row in rows]
    ends = list(accumulate(lengths))
    tails = torch.cat([torch.arange(end - count, end) for end, count in zip(ends, wanted, strict=True)])
    layers = list(core.model.layers)
    states: Layers = []
    for number, layer in enumerate(layers):
        attention = layer.self_attn
        n = layer.input_layernorm(x)
        keys = _rotate(_heads(attention.k_proj(n), attention.head_dim), cos, sin).transpose(0, 1)
        values = _heads(attention.v_proj(n), attention.head_dim).transpose(0, 1)
        states.append((keys, values))
        counts, mine = lengths, (n, cos, sin)
        if number == len(layers) - 1:
            if not len(tails):
                break
            counts, mine, x = list(wanted), (n[tails], cos[tails], sin[tails]), x[tails]
        queries = _rotate(_heads(attention.q_proj(mine[0]), attention.head_dim), mine[1], mine[2])
        queries.mul_(attention.scaling)
        prefix = before[number] if before else (keys[:, :0], values[:, :0])
        attended = _attend(queries.transpose(0, 1), keys, values, prefix, counts, lengths)
        x = x + attention.o_proj(attended)
        x += layer.mlp(layer.post_attention_layernorm(x))
    if not len(tails):
        return x.new_empty(0, core.config.vocab_size), states
    return core.lm_head(core.model.norm(x)), states


def _core(model: Any) -> Any:
    """Return the transformers model under an adapter, with the adapter's layers in it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    prefix: tuple[Tensor, Tensor],
    counts: Sequence[int],
    lengths: Sequence[int],
) -> Tensor:
    """Return causal attention of each row's last queries to the prefix and to the row's own keys.

    Args:
        queries: scaled, shape ``(heads, sum(counts), size)``. counts: queries of each row.
        keys, values: shape ``(key heads, sum(lengths), size)``. lengths: tokens of each row.
        prefix: keys and values of what all rows begin with, shape ``(key heads, tokens, size)``.

    Returns:
        shape ``(sum(counts), heads * size)``.
    """
    heads, total, size = queries.shape
    groups = keys.shape[0]
    first_keys, first_values = prefix[0].transpose(1, 2), prefix[1]
    before = first_values.shape[1]
    out = queries.new_empty(total, groups, heads // groups, size)
    queries = queries.view(groups, heads // groups, total, size)
    later = torch.full((_BLOCK, _BLOCK), -torch.inf).triu(1)
    here = there = 0
    for count, length in zip(counts, lengths, strict=True):
        k, v = keys[:, there : there + length].transpose(1, 2), values[:, there : there + length]
        for begin in range(0, count, _BLOCK):
            end = min(count, begin + _BLOCK)
            seen, block = length - count + end, end - begin
            q = queries[:, :, here + begin : here + end].reshape(groups, -1, size)
            scores = q.new_empty(groups, q.shape[1], before + seen)
            torch.bmm(q, first_keys, out=scores[..., :before])
            torch.bmm(q, k[..., :seen], out=scores[..., before:])
            scores.view(groups, -1, block, before + seen)[..., -block:] += later[:block, :block]
            shares = torch.softmax(scores, -1)
            sums = torch.bmm(shares[..., :before], first_values)
            sums.baddbmm_(shares[..., before:], v[:, :seen])
            out[here + begin : here + end] = sums.view(groups, -1, block, size).permute(2, 0, 1, 3)
        here, there = here + count, there + length
    return out.flatten(1)


def _heads(x: Tensor, size: int) -> Tensor:
    """Return shape ``(tokens, heads, size)``."""
    return x.view(len(x), -1, size)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of a head's halves by its position's angle; all of shape ``(tokens, heads or 1, size)``."""
    half = x.shape[-1] // 2
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return turned
