"""Chunked cross-entropy: the loss from the last hidden states, without a matrix of tokens x vocabulary.

Logits are computed for a chunk of tokens at a time, together with the gradient of its hidden states, and dropped at once: what
stays is of the size of the hidden states. The logits come from the model's own forward, called with its decoder's output, so
that what the model does after its output layer (a cap as in Gemma 2, a factor as in Granite and Cohere) is included.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from retune.training.guarded import is_sharded

MAX_LOGITS = 1 << 26
"""The most logits in a chunk: 256 MiB in float32, and a few times that in what is computed from them."""


def decoder(core: Any) -> nn.Module | None:
    """Return the part of a transformers model before its output layer; None if it cannot be called separately."""
    body = getattr(core, "base_model", None)
    if not isinstance(body, nn.Module) or body is core:
        return None
    # The causal models of OPT and Bart call this one, not `base_model`
    inner = getattr(body, "decoder", None)
    return inner if isinstance(inner, nn.Module) and inner is core.get_decoder() else body


def loss_sum(core: Any, body: nn.Module, output: Any, rows: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of -log p of `targets`, a float32 scalar with gradient.

    Args:
        core: the transformers model. body: its `decoder`. output: of `body`, for ids of shape ``(records, tokens)``.
        rows: indices into the flattened ids whose prediction is counted, shape ``(counted,)``.
        targets: the token that each should predict, shape ``(counted,)``.
    """
    hidden = output.last_hidden_state.flatten(0, 1)[rows]
    logits_of = _logits(core, body, output, targets)
    size = max(1, MAX_LOGITS // _vocabulary(core))
    if not torch.is_grad_enabled():
        parts = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
        return torch.stack([_loss(logits_of(part), wanted) for part, wanted in parts]).sum()
    total: Tensor = _ChunkedLossSum.apply(hidden, targets, logits_of, size, *_trained(core, body))  # type: ignore[no-untyped-call]
    return total


def losses(core: Any, body: nn.Module, output: Any, rows: Tensor, targets: Tensor) -> Tensor:
    """Return -log p of each of `targets`, float32, shape ``(counted,)``, with gradient; the head's own weights get none.

    Args:
        core, body, output, rows, targets: as in `loss_sum`.
    """
    hidden = output.last_hidden_state[0][rows]
    size = max(1, MAX_LOGITS // _vocabulary(core))
    each: Tensor = _ChunkedLosses.apply(hidden, targets, _logits(core, body, output, targets), size)  # type: ignore[no-untyped-call]
    return each


@contextmanager
def chunks_of(core: Any, tokens: int) -> Iterator[None]:
    """Use chunks of at most this many tokens inside the block: short records of a check then need several, as long ones do."""
    global MAX_LOGITS
    before, MAX_LOGITS = MAX_LOGITS, tokens * _vocabulary(core)
    try:
        yield
    finally:
        MAX_LOGITS = before


def _logits(core: Any, body: nn.Module, output: Any, targets: Tensor) -> Callable[[Tensor], Tensor]:
    takes_cache = "use_cache" in inspect.signature(core.forward).parameters
    options: dict[str, Any] = {"use_cache": False} if takes_cache else {}
    # With FSDP this already runs inside the model's forward (`guarded.within`), which must not be entered a second time.
    call = partial(type(core).forward, core) if is_sharded(core) else core

    def logits_of(part: Tensor) -> Tensor:
        with _returning(body, type(output)(**{**output, "last_hidden_state": part.unsqueeze(0)})):
            logits: Tensor = call(input_ids=targets[: len(part)].unsqueeze(0), **options).logits
        return logits[0]

    return logits_of


def _trained(core: Any, body: nn.Module) -> list[nn.Parameter]:
    """Return the trained parameters of the output layer; tied ones are embeddings of the body as well."""
    inside = {id(parameter) for parameter in body.parameters()}
    outside = [parameter for parameter in core.parameters() if id(parameter) not in inside]
    last = core.get_output_embeddings()
    trained = {
        id(p): p for p in [*outside, *(last.parameters() if last is not None else [])] if p.requires_grad
    }
    return list(trained.values())


class _ChunkedLossSum(torch.autograd.Function):
    """The sum of -log p; gradients are computed in the forward pass, while each chunk's logits are in memory."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        logits_of: Callable[[Tensor], Tensor],
        size: int,
        *parameters: Tensor,
    ) -> Tensor:
        """Return the sum over `targets` for `hidden`, shape ``(counted, size of a hidden state)``.

        Args:
            ctx: autograd's.
            hidden, targets: of the counted predictions.
            logits_of: from hidden states to logits, shape ``(tokens, vocabulary)``.
            size: tokens in a chunk.
            parameters: the output layer's trained ones.
        """
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_parameters = [torch.zeros_like(parameter) for parameter in parameters]
        for start in range(0, len(hidden), size):
            part = hidden[start : start + size].detach().requires_grad_()
            with torch.enable_grad():
                loss = _loss(logits_of(part), targets[start : start + size])
            grad_part, *more = torch.autograd.grad(loss, (part, *parameters), allow_unused=True)
            grad_hidden[start : start + size] = grad_part
            _add(grad_parameters, more)
            total += loss.detach()
        ctx.save_for_backward(grad_hidden, *grad_parameters)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of `hidden` and of the output layer's parameters: the stored ones, scaled (the chain rule)."""
        grad_hidden, *grad_parameters = ctx.saved_tensors
        return (
            grad_hidden * gradient,
            None,
            None,
            None,
            *(grad_parameter * gradient for grad_parameter in grad_parameters),
        )


class _ChunkedLosses(torch.autograd.Function):
    """-log p of each target: as `_ChunkedLossSum`, but the backward pass takes one gradient per target."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, logits_of: Callable[[Tensor], Tensor], size: int
    ) -> Tensor:
        """Return -log p, shape ``(counted,)``; the arguments are those of `_InParts`."""
        parts, grad_hidden = [], torch.empty_like(hidden)
        for start in range(0, len(hidden), size):
            part = hidden[start : start + size].detach().requires_grad_()
            with torch.enable_grad():
                each = cross_entropy(logits_of(part).float(), targets[start : start + size], reduction="none")
            (grad_hidden[start : start + size],) = torch.autograd.grad(each, part, torch.ones_like(each))
            parts.append(each.detach())
        ctx.save_for_backward(grad_hidden)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradient of `hidden`."""
        (grad_hidden,) = ctx.saved_tensors
        return grad_hidden * gradient.unsqueeze(1).to(grad_hidden.dtype), None, None, None


def _add(sums: Sequence[Tensor], more: Sequence[Tensor | None]) -> None:
    for total, tensor in zip(sums, more, strict=True):
        if tensor is not None:
            total += tensor


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits.float(), targets, reduction="sum")


def _vocabulary(core: Any) -> int:
    return int(core.get_input_embeddings().weight.shape[0])


@contextmanager
def _returning(module: nn.Module, output: Any) -> Iterator[None]:
    """Make a module return this output inside the block, for any inputs."""
    own = module.__dict__.get("forward")
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
