"""A fused layer of Llama, Mistral or Qwen2: one node of the graph, with an explicit backward pass.

It computes the same sums as transformers' layer, with three differences that save a third of the time on a small model: steps
work in place where autograd would keep copies, nothing is computed for the frozen weights, and on a CPU the last layer is
computed only where its output is used. The loss counts predictions of completions only, so after the last layer the prompts'
positions are never used: there all positions need keys and values, but only the tails need queries and the feed-forward.

In float32 on a CPU this is always used. Elsewhere `retune.training.self_check` compares it with transformers' layer first, on a
GPU for speed too: there the number of kernels matters, since the host needs longer to launch those of a small batch than the
GPU to compute them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retune.training import blocked_attention, lora_linear, products
from retune.training.attention import AttentionOptions, Pattern, Segments, attend
from retune.training.layer_steps import PLAIN, Steps
from retune.training.lora_linear import Layer

# Layers of exactly this form: norm, attention with rotary embedding, norm, gated feed-forward.
_SUPPORTED = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}
_STEPS = "_retune_steps"
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


def trusted(model: Any) -> bool:
    """Return whether fused layers are used without a check: in float32 on a CPU, where our own tests compare them."""
    return bool(model.device.type == "cpu" and model.dtype == torch.float32)


def supported(model: Any) -> bool:
    """Return whether a transformers model has layers that can be fused."""
    layers = getattr(getattr(model, "model", None), "layers", None) or ()
    return any(type(layer).__name__ in _SUPPORTED for layer in layers)


def set_steps(model: Any, steps: Steps | None) -> None:
    """Set the steps by which a model's fused layers compute from now on, unless it is `trusted`; None turns them off."""
    vars(model)[_STEPS] = steps


def disabled(model: Any) -> bool:
    """Return whether `set_steps` has turned fused layers off."""
    return vars(model).get(_STEPS, PLAIN) is None


@contextmanager
def installed(model: Any, longest: int | None = None) -> Iterator[None]:
    """Use `LlamaLayer` for the layers of a supported model inside the block, if it is `trusted` or `set_steps` allowed it.

    A layer with a sliding window does so only if no record of the training is longer than the window (`longest`, in tokens).
    In the last layer the two forwards draw dropout for different tokens, so the choice must not depend on the records of a
    pass.

    The forward of the layers' class is replaced, not that of each layer: an adapter may copy layers (`layer_replication`), and
    a copy must compute with its own weights.
    """
    decoder = getattr(model, "model", None)
    layers = getattr(decoder, "layers", None)
    steps: Steps | None = PLAIN if layers is not None and trusted(model) else vars(model).get(_STEPS)
    kinds = {type(layer) for layer in layers or () if steps and type(layer).__name__ in _SUPPORTED}
    own = {kind: kind.forward for kind in kinds}

    def forward(layer: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        original, mask = own[type(layer)], kwargs.get("attention_mask")
        segments = kwargs.get("segments")
        attends_whole = mask is None or (
            segments is not None
            and isinstance(mask, Pattern)
            and mask.reach >= (longest or 0)
            and not mask.narrows(segments)
        )
        if args or segments is None or not attends_whole:
            plain: Tensor = original(layer, hidden_states, *args, **kwargs)
            return plain
        assert decoder is not None
        assert steps is not None
        return _forward(layer, hidden_states, original, layer is decoder.layers[-1], steps, **kwargs)

    for kind in kinds:
        kind.forward = forward
    try:
        yield
    finally:
        for kind, before in own.items():
            kind.forward = before


def _parts(layer: Any) -> Parts | None:
    """Return the weights of a layer, or None if `LlamaLayer` does not compute what this layer does."""
    attention, mlp, norms = (
        layer.self_attn,
        layer.mlp,
        (layer.input_layernorm, layer.post_attention_layernorm),
    )
    family = type(layer).__name__.removesuffix("DecoderLayer")
    forms = [(attention, "Attention"), (mlp, "MLP"), *((norm, "RMSNorm") for norm in norms)]
    if any(type(part).__name__ != family + options or lora_linear.hooked(part) for part, options in forms):
        return None
    if attention.config.hidden_act != "silu" or (layer.training and attention.attention_dropout):
        return None
    if any(norm.weight.requires_grad for norm in norms):
        return None
    modules = [getattr(attention, name) for name in _NAMES[:4]] + [getattr(mlp, name) for name in _NAMES[4:]]
    parts: dict[str, Any] = {}
    for name, module in zip(("q", "k", "v", "o", "gate", "up", "down"), modules, strict=True):
        parts[name] = lora_linear.weights_of(module)
    if None in parts.values():
        return None
    return Parts(
        **parts,
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
    original: Callable[..., Tensor],
    last: bool,
    steps: Steps,
    position_embeddings: tuple[Tensor, Tensor],
    segments: Segments,
    **kwargs: Any,
) -> Tensor:
    """Replace the layer's `original` forward; in the last layer the output is zero where it is not used."""
    parts = _parts(layer)
    if parts is None:
        return original(
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
            rows: indices of the tokens whose output is used, or None for all.
            parts: the weights. steps: between the matrix products.
            adapters: a and b of each linear layer; arguments so that autograd asks for their gradients.

        Returns:
            shape ``(tokens, hidden)``; zero outside `rows`.
        """
        n, r = steps.norm(x, parts.norm, parts.norm_epsilon)
        selected = (n, cos, sin) if rows is None else (n[rows], cos[rows], sin[rows])
        query, saved_q = lora_linear.forward(selected[0], parts.q)
        key, saved_k = lora_linear.forward(n, parts.k)
        value, saved_v = lora_linear.forward(n, parts.v)
        q = steps.rotate(_heads(query, parts.head), selected[1], selected[2])
        k = steps.rotate(_heads(key, parts.head), cos, sin)
        v = _heads(value, parts.head)
        attended, saved = _attend(q, k, v, records, parts.scale, trimmed=rows is not None)
        flat = attended.flatten(1)
        out, saved_o = lora_linear.forward(flat, parts.o)
        x_2 = out.add_(x if rows is None else x[rows])
        n_2, r_2 = steps.norm(x_2, parts.norm_2, parts.norm_2_epsilon)
        gate, saved_gate = lora_linear.forward(n_2, parts.gate)
        up, saved_up = lora_linear.forward(n_2, parts.up)
        inner, activated = steps.gate(gate, up)
        y, saved_down = lora_linear.forward(inner, parts.down)
        y.add_(x_2)
        ctx.saved = (saved_q, saved_k, saved_v, saved_o, saved_gate, saved_up, saved_down)
        ctx.steps, ctx.parts, ctx.rows, ctx.records, ctx.attention = (
            steps,
            parts,
            rows,
            records,
            (q, k, v, saved),
        )
        ctx.tensors = (x, r, cos, sin, selected[1], selected[2], x_2, r_2, gate, up, activated)
        return y if rows is None else torch.zeros_like(x).index_copy_(0, rows, y)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of x and of the adapters."""
        steps, parts, rows = ctx.steps, ctx.parts, ctx.rows
        saved_q, saved_k, saved_v, saved_o, saved_gate, saved_up, saved_down = ctx.saved
        x, r, cos, sin, selected_cos, selected_sin, x_2, r_2, gate, up, activated = ctx.tensors
        grad_y = grad_output if rows is None else grad_output[rows]
        grad_inner, *down_ab = lora_linear.backward(grad_y, parts.down, saved_down)
        assert grad_inner is not None
        grad_gate, grad_up = steps.gate_backward(grad_inner, gate, up, activated)
        grad_n, *gate_ab = lora_linear.backward(grad_gate, parts.gate, saved_gate)
        grad_n, *up_ab = lora_linear.backward(grad_up, parts.up, saved_up, grad_n)
        assert grad_n is not None
        grad_x_2 = steps.norm_backward(grad_n, x_2, r_2, parts.norm_2).add_(grad_y)
        grad_attended, *o_ab = lora_linear.backward(grad_x_2, parts.o, saved_o)
        assert grad_attended is not None
        query, key, value, probabilities = ctx.attention
        grad_heads = _attend_backward(
            _heads(grad_attended, parts.head),
            query,
            key,
            value,
            probabilities,
            ctx.records,
            parts.scale,
            rows is not None,
        )
        grad_q = steps.rotate(grad_heads[0], selected_cos, -selected_sin).flatten(1)
        need_x = ctx.needs_input_grad[0]
        grad_n, *v_ab = lora_linear.backward(grad_heads[2].flatten(1), parts.v, saved_v, need_x=need_x)
        k_ab: list[Tensor | None] = [None] * len(parts.k.adapters)
        if need_x or saved_k is not None:
            grad_n, *k_ab = lora_linear.backward(
                steps.rotate(grad_heads[1], cos, -sin).flatten(1), parts.k, saved_k, grad_n, need_x
            )
        grad_selected, *q_ab = lora_linear.backward(
            grad_q, parts.q, saved_q, grad_n if rows is None else None, need_x
        )
        grad_x = None
        if need_x and grad_selected is not None:
            assert grad_n is not None
            grad_n = grad_selected if rows is None else grad_n.index_add_(0, rows, grad_selected)
            grad_x = steps.norm_backward(grad_n, x, r, parts.norm)
            grad_x = grad_x.add_(grad_x_2) if rows is None else grad_x.index_add_(0, rows, grad_x_2)
        adapters = (*q_ab, *k_ab, *v_ab, *o_ab, *gate_ab, *up_ab, *down_ab)
        return grad_x, None, None, None, None, None, None, *adapters


def _attend(
    query: Tensor, key: Tensor, value: Tensor, records: Segments, scale: float, trimmed: bool
) -> tuple[Tensor, Any]:
    """Return attention inside each record, shape of `query`, ``(tokens, heads, size)``, and what `_attend_backward` needs."""
    if not _in_blocks(query):
        return _attend_by_kernel(query, key, value, records, scale)
    repeats = query.shape[1] // key.shape[1]
    out = products.empty(len(query), query.shape[1] * query.shape[2], query).view_as(query)
    saved = []
    for q, k, v, o in _by_record(records, trimmed, query, key, value, out):
        k, v = (x.repeat_interleave(repeats, 0) if repeats > 1 else x for x in (k, v))
        saved.append(blocked_attention.forward(q, k, v, scale, o))
    return out, saved


def _in_blocks(x: Tensor) -> bool:
    """Return whether `blocked_attention` is used, the only one that supports fewer queries than keys."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def _attend_by_kernel(
    query: Tensor, key: Tensor, value: Tensor, records: Segments, scale: float
) -> tuple[Tensor, Any]:
    """Do the same by `retune.training.attention`, whose part of the autograd graph is saved for the backward pass."""
    inputs = [x.detach().requires_grad_() for x in (query, key, value)]
    with torch.enable_grad():
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in inputs)
        out = attend(q, k, v, records, AttentionOptions(scale))[0]
    return out.detach(), (out, inputs)


def _attend_backward(
    grad_output: Tensor, query: Tensor, key: Tensor, value: Tensor, saved: Any, records: Segments,
    scale: float, trimmed: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of query, key and value."""
    if not _in_blocks(query):
        out, inputs = saved
        grad_q, grad_k, grad_v = torch.autograd.grad(out, inputs, grad_output)
        return grad_q, grad_k, grad_v
    repeats = query.shape[1] // key.shape[1]
    grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    spans = zip(
        _by_record(records, trimmed, query, key, value, grad_output),
        _by_record(records, trimmed, grad_query, grad_key, grad_value, grad_query),
        saved,
        strict=True,
    )
    for (q, k, v, g), (grad_q, grad_k, grad_v, _), probabilities in spans:
        if repeats == 1:
            blocked_attention.backward(g, q, k, v, scale, probabilities, grad_q, grad_k, grad_v)
            continue
        k, v = k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
        expanded_grad_k, expanded_grad_v = torch.zeros_like(k), torch.zeros_like(v)
        blocked_attention.backward(g, q, k, v, scale, probabilities, grad_q, expanded_grad_k, expanded_grad_v)
        grad_k.copy_(expanded_grad_k.unflatten(0, (-1, repeats)).sum(1))  # type: ignore[no-untyped-call]
        grad_v.copy_(expanded_grad_v.unflatten(0, (-1, repeats)).sum(1))  # type: ignore[no-untyped-call]
    return grad_query, grad_key, grad_value


def _by_record(
    records: Segments, trimmed: bool, query: Tensor, key: Tensor, value: Tensor, out: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """Yield each record's views, shape ``(heads, tokens, size)``; if `trimmed`, only its tail has queries."""
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
