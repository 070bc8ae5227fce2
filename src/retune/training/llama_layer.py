"""A layer of Llama, Mistral or Qwen2 as one node of the graph, with its backward pass written out.

The same sums as transformers' layer, with three differences that cost nothing but save a third of the time on a small
model: steps are done in place where autograd would keep copies, nothing is computed for the frozen weights, and on a CPU the
last layer is computed only where its output is used. The loss counts predictions of completions; behind the last layer
the prompts' positions are never looked at, so there only keys and values are needed at all positions.

In float32 on a CPU this is always used. Elsewhere `retune.training.self_check` compares it with transformers' layer first, on a
GPU for speed too: there the number of kernels counts, since the host takes longer to launch those of a small batch than the GPU
to compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retune.training import blocked_attention, lora_linear, products
from retune.training.attention import Form, Pattern, Segments, attend
from retune.training.layer_steps import PLAIN, Steps
from retune.training.lora_linear import Layer

# Layers of exactly this form: norm, attention with rotary positions, norm, gated feed-forward.
_KNOWN = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}
_HOW = "_retune_steps"
_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Parts:
    """The weights of one layer, frozen but for the adapters, and the size of a head."""

    q: Layer
    k: Layer
    v: Layer
    o: Layer
    gate: Layer
    up: Layer
    down: Layer
    norm: Tensor
    norm_epsilon: float
    norm_2: Tensor
    norm_2_epsilon: float
    head: int
    scale: float

    @property
    def linear(self) -> tuple[Layer, ...]:
        """The linear layers, in the order of their adapters."""
        return (self.q, self.k, self.v, self.o, self.gate, self.up, self.down)


def certain(model: Any) -> bool:
    """Return whether layers are written out without a check: in float32 on a CPU."""
    return bool(model.device.type == "cpu" and model.dtype == torch.float32)


def known(model: Any) -> bool:
    """Return whether a transformers model has layers that can be written out."""
    layers = getattr(getattr(model, "model", None), "layers", None) or ()
    return any(type(layer).__name__ in _KNOWN for layer in layers)


def allow(model: Any, how: Steps | None) -> None:
    """Say by which steps a model's layers are written out from here on where that is not `certain`; None for not at all."""
    vars(model)[_HOW] = how


def refused(model: Any) -> bool:
    """Return whether `allow` has said that they are not."""
    return vars(model).get(_HOW, PLAIN) is None


@contextmanager
def installed(model: Any, longest: int | None = None) -> Iterator[None]:
    """Let the layers of a known architecture compute by `LlamaLayer` inside the block, if that is `certain` or allowed.

    A layer with a window does so only if no record of all is longer (`longest`, in tokens): the two draw dropout for other
    tokens of the last layer, and what a record draws must not follow from what shares its pass.

    The layers' class is told, not each layer: an adapter may copy layers (`layer_replication`), and a copy must compute
    with its own weights.
    """
    decoder = getattr(model, "model", None)
    layers = getattr(decoder, "layers", None)
    steps: Steps | None = PLAIN if layers is not None and certain(model) else vars(model).get(_HOW)
    kinds = {type(layer) for layer in layers or () if steps and type(layer).__name__ in _KNOWN}
    own = {kind: kind.forward for kind in kinds}

    def forward(layer: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        whole, mask = own[type(layer)], kwargs.get("attention_mask")
        segments = kwargs.get("segments")
        whole_records = mask is None or (
            segments is not None
            and isinstance(mask, Pattern)
            and mask.reach >= (longest or 0)
            and not mask.narrows(segments)
        )
        if args or segments is None or not whole_records:
            plain: Tensor = whole(layer, hidden_states, *args, **kwargs)
            return plain
        assert decoder is not None
        assert steps is not None
        return _forward(layer, hidden_states, whole, layer is decoder.layers[-1], steps, **kwargs)

    for kind in kinds:
        kind.forward = forward
    try:
        yield
    finally:
        for kind, before in own.items():
            kind.forward = before


def _parts(layer: Any) -> Parts | None:
    """Return the weights of a layer, or None if it is anything else than what `LlamaLayer` computes."""
    attention, mlp, norms = (
        layer.self_attn,
        layer.mlp,
        (layer.input_layernorm, layer.post_attention_layernorm),
    )
    family = type(layer).__name__.removesuffix("DecoderLayer")
    forms = [(attention, "Attention"), (mlp, "MLP"), *((norm, "RMSNorm") for norm in norms)]
    if any(type(part).__name__ != family + form or lora_linear.hooked(part) for part, form in forms):
        return None
    if attention.config.hidden_act != "silu" or (layer.training and attention.attention_dropout):
        return None
    if any(norm.weight.requires_grad for norm in norms):
        return None
    modules = [getattr(attention, name) for name in _NAMES[:4]] + [getattr(mlp, name) for name in _NAMES[4:]]
    found: dict[str, Any] = {}
    for name, module in zip(("q", "k", "v", "o", "gate", "up", "down"), modules, strict=True):
        found[name] = lora_linear.read(module)
    if None in found.values():
        return None
    return Parts(
        **found,
        norm=norms[0].weight,
        norm_epsilon=norms[0].variance_epsilon,
        norm_2=norms[1].weight,
        norm_2_epsilon=norms[1].variance_epsilon,
        head=attention.head_dim,
        scale=attention.scaling,
    )


def _forward(
    layer: Any,
    hidden_states: Tensor,
    whole: Callable[..., Tensor],
    last: bool,
    steps: Steps,
    position_embeddings: tuple[Tensor, Tensor],
    segments: Segments,
    **kwargs: Any,
) -> Tensor:
    """Stand in for the layer's forward, `whole`; in the last layer the output is zero wherever it is not used."""
    parts = _parts(layer)
    if parts is None:
        return whole(
            layer, hidden_states, position_embeddings=position_embeddings, segments=segments, **kwargs
        )
    rows = segments.rows if last and _in_blocks(hidden_states) else None
    adapters = [tensor for linear in parts.linear for tensor in linear.adapters]
    cos, sin = (x[0, :, : parts.head // 2].unsqueeze(1) for x in position_embeddings)
    out: Tensor = LlamaLayer.apply(  # type: ignore[no-untyped-call]
        hidden_states[0], cos, sin, segments, rows, parts, steps, *adapters
    )
    return out.unsqueeze(0)


class LlamaLayer(torch.autograd.Function):
    """``x + o(attention(norm(x)))``, then ``… + down(silu(gate(norm(…))) * up(norm(…)))``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        records: Segments,
        rows: Tensor | None,
        parts: Parts,
        steps: Steps,
        *adapters: Any,
    ) -> Tensor:
        """Return the layer's output.

        Args:
            ctx: autograd's.
            x: shape ``(tokens, hidden)``.
            cos, sin: of the first half of each head, shape ``(tokens, 1, head / 2)``.
            records: the borders of the records.
            rows: the only places where the output is wanted, or None for all.
            parts: the weights. steps: what is done between the products.
            adapters: a and b of each linear layer, for autograd to see.

        Returns:
            shape ``(tokens, hidden)``; zero outside `rows`.
        """
        n, r = steps.norm(x, parts.norm, parts.norm_epsilon)
        mine = (n, cos, sin) if rows is None else (n[rows], cos[rows], sin[rows])
        query, kept_q = lora_linear.forward(mine[0], parts.q)
        key, kept_k = lora_linear.forward(n, parts.k)
        value, kept_v = lora_linear.forward(n, parts.v)
        q = steps.rotate(_heads(query, parts.head), mine[1], mine[2])
        k = steps.rotate(_heads(key, parts.head), cos, sin)
        v = _heads(value, parts.head)
        attended, kept = _attend(q, k, v, records, parts.scale, trimmed=rows is not None)
        flat = attended.flatten(1)
        out, kept_o = lora_linear.forward(flat, parts.o)
        x_2 = out.add_(x if rows is None else x[rows])
        n_2, r_2 = steps.norm(x_2, parts.norm_2, parts.norm_2_epsilon)
        gate, kept_g = lora_linear.forward(n_2, parts.gate)
        up, kept_u = lora_linear.forward(n_2, parts.up)
        inner, opened = steps.gate(gate, up)
        y, kept_d = lora_linear.forward(inner, parts.down)
        y.add_(x_2)
        ctx.kept = (kept_q, kept_k, kept_v, kept_o, kept_g, kept_u, kept_d)
        ctx.steps, ctx.parts, ctx.rows, ctx.records, ctx.attention = (
            steps,
            parts,
            rows,
            records,
            (q, k, v, kept),
        )
        ctx.tensors = (x, r, cos, sin, mine[1], mine[2], x_2, r_2, gate, up, opened)
        return y if rows is None else torch.zeros_like(x).index_copy_(0, rows, y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of x and of the adapters."""
        steps, parts, rows = ctx.steps, ctx.parts, ctx.rows
        kept_q, kept_k, kept_v, kept_o, kept_g, kept_u, kept_d = ctx.kept
        x, r, cos, sin, my_cos, my_sin, x_2, r_2, gate, up, opened = ctx.tensors
        of_y = gradient if rows is None else gradient[rows]
        of_m, *down_ab = lora_linear.backward(of_y, parts.down, kept_d)
        assert of_m is not None
        of_gate, of_up = steps.gate_backward(of_m, gate, up, opened)
        of_n, *gate_ab = lora_linear.backward(of_gate, parts.gate, kept_g)
        of_n, *up_ab = lora_linear.backward(of_up, parts.up, kept_u, of_n)
        assert of_n is not None
        of_x2 = steps.norm_backward(of_n, x_2, r_2, parts.norm_2).add_(of_y)
        of_attended, *o_ab = lora_linear.backward(of_x2, parts.o, kept_o)
        assert of_attended is not None
        query, key, value, probabilities = ctx.attention
        of_heads = _attend_backward(
            _heads(of_attended, parts.head),
            query,
            key,
            value,
            probabilities,
            ctx.records,
            parts.scale,
            rows is not None,
        )
        of_q = steps.rotate(of_heads[0], my_cos, -my_sin).flatten(1)
        need_x = ctx.needs_input_grad[0]
        of_n, *v_ab = lora_linear.backward(of_heads[2].flatten(1), parts.v, kept_v, need_x=need_x)
        k_ab: list[Tensor | None] = [None] * len(parts.k.adapters)
        if need_x or kept_k is not None:
            of_n, *k_ab = lora_linear.backward(
                steps.rotate(of_heads[1], cos, -sin).flatten(1), parts.k, kept_k, of_n, need_x
            )
        of_mine, *q_ab = lora_linear.backward(of_q, parts.q, kept_q, of_n if rows is None else None, need_x)
        of_x = None
        if need_x and of_mine is not None:
            assert of_n is not None
            of_n = of_mine if rows is None else of_n.index_add_(0, rows, of_mine)
            of_x = steps.norm_backward(of_n, x, r, parts.norm)
            of_x = of_x.add_(of_x2) if rows is None else of_x.index_add_(0, rows, of_x2)
        adapters = (*q_ab, *k_ab, *v_ab, *o_ab, *gate_ab, *up_ab, *down_ab)
        return of_x, None, None, None, None, None, None, *adapters


def _attend(
    query: Tensor, key: Tensor, value: Tensor, records: Segments, scale: float, trimmed: bool
) -> tuple[Tensor, Any]:
    """Return attention inside each record, shape of `query`, ``(tokens, heads, size)``, and what to keep."""
    if not _in_blocks(query):
        return _attend_by_kernel(query, key, value, records, scale)
    repeats = query.shape[1] // key.shape[1]
    out = products.empty(len(query), query.shape[1] * query.shape[2], query).view_as(query)
    kept = []
    for q, k, v, o in _by_record(records, trimmed, query, key, value, out):
        k, v = (x.repeat_interleave(repeats, 0) if repeats > 1 else x for x in (k, v))
        kept.append(blocked_attention.forward(q, k, v, scale, o))
    return out, kept


def _in_blocks(x: Tensor) -> bool:
    """Return whether attention is that of `blocked_attention`, which alone may have fewer queries than keys."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def _attend_by_kernel(
    query: Tensor, key: Tensor, value: Tensor, records: Segments, scale: float
) -> tuple[Tensor, Any]:
    """Do the same by `retune.training.attention`; what is kept is its part of the graph."""
    inputs = [x.detach().requires_grad_() for x in (query, key, value)]
    with torch.enable_grad():
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in inputs)
        out = attend(q, k, v, records, Form(scale))[0]
    return out.detach(), (out, inputs)


def _attend_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, kept: Any, records: Segments,
    scale: float, trimmed: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of query, key and value."""
    if not _in_blocks(query):
        out, inputs = kept
        of_q, of_k, of_v = torch.autograd.grad(out, inputs, gradient)
        return of_q, of_k, of_v
    repeats = query.shape[1] // key.shape[1]
    of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    spans = zip(
        _by_record(records, trimmed, query, key, value, gradient),
        _by_record(records, trimmed, of_query, of_key, of_value, of_query),
        kept,
        strict=True,
    )
    for (q, k, v, g), (of_q, of_k, of_v, _), probabilities in spans:
        if repeats == 1:
            blocked_attention.backward(g, q, k, v, scale, probabilities, of_q, of_k, of_v)
            continue
        k, v = k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
        whole_k, whole_v = torch.zeros_like(k), torch.zeros_like(v)
        blocked_attention.backward(g, q, k, v, scale, probabilities, of_q, whole_k, whole_v)
        of_k.copy_(whole_k.unflatten(0, (-1, repeats)).sum(1))  # type: ignore[no-untyped-call]
        of_v.copy_(whole_v.unflatten(0, (-1, repeats)).sum(1))  # type: ignore[no-untyped-call]
    return of_query, of_key, of_value


def _by_record(
    records: Segments, trimmed: bool, query: Tensor, key: Tensor, value: Tensor, out: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """Yield each record's views, shape ``(heads, tokens, size)``; of a trimmed layer only the tails have queries."""
    lengths = list(records.lengths)
    tails = list(records.tails) if trimmed else lengths
    parts = [
        torch.split(x.transpose(0, 1), sizes, 1)
        for x, sizes in ((query, tails), (key, lengths), (value, lengths), (out, tails))
    ]
    yield from zip(*parts, strict=True)


def _heads(x: Tensor, size: int) -> Tensor:
    """Return ``(tokens, heads, size)``."""
    return x.view(len(x), -1, size)
