"""The loss behind the last layer, without a matrix of tokens x vocabulary.

Logits are made for some tokens at a time, together with the gradient of the hidden states that they come from, and
forgotten at once: what stays is of the size of the hidden states. The logits are the model's own, made by its own forward
with what its decoder gave, so that what it does behind its head (a cap as in Gemma 2, a factor as in Granite and Cohere) is in
them.
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

LOGITS = 1 << 26
"""Logits that are there at once, at most: 256 MiB in float32, and a few times that in what is computed of them."""


def decoder(core: Any) -> nn.Module | None:
    """Return what lies before the head of a transformers model; None if the two cannot be called apart."""
    body = getattr(core, "base_model", None)
    if not isinstance(body, nn.Module) or body is core:
        return None
    inner = getattr(body, "decoder", None)  # OPT and Bart call it themselves
    return inner if isinstance(inner, nn.Module) and inner is core.get_decoder() else body


def loss_sum(core: Any, body: nn.Module, output: Any, rows: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of -log p of `targets`, a float32 scalar with gradient.

    Args:
        core: the transformers model. body: its `decoder`. output: what that gave for ``(records, tokens)``.
        rows: the places in those, flat, whose prediction is counted, shape ``(counted,)``.
        targets: the token that each should predict, shape ``(counted,)``.
    """
    hidden = output.last_hidden_state.flatten(0, 1)[rows]
    logits_of = _logits(core, body, output, targets)
    size = max(1, LOGITS // _vocabulary(core))
    if not torch.is_grad_enabled():
        parts = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
        return torch.stack([_loss(logits_of(part), wanted) for part, wanted in parts]).sum()
    total: Tensor = _InParts.apply(hidden, targets, logits_of, size, *_trained(core, body))  # type: ignore[no-untyped-call]
    return total


def losses(core: Any, body: nn.Module, output: Any, rows: Tensor, targets: Tensor) -> Tensor:
    """Return -log p of each of `targets`, float32, shape ``(counted,)``, with gradient; the head's own weights get none.

    Args:
        core, body, output, rows, targets: as in `loss_sum`.
    """
    hidden = output.last_hidden_state[0][rows]
    size = max(1, LOGITS // _vocabulary(core))
    each: Tensor = _Each.apply(hidden, targets, _logits(core, body, output, targets), size)  # type: ignore[no-untyped-call]
    return each


@contextmanager
def in_parts_of(core: Any, tokens: int) -> Iterator[None]:
    """Let logits be made for so many tokens at a time inside the block: a check sees several parts, as long records have them."""
    global LOGITS
    before, LOGITS = LOGITS, tokens * _vocabulary(core)
    try:
        yield
    finally:
        LOGITS = before


def _logits(core: Any, body: nn.Module, output: Any, targets: Tensor) -> Callable[[Tensor], Tensor]:
    takes_cache = "use_cache" in inspect.signature(core.forward).parameters
    options: dict[str, Any] = {"use_cache": False} if takes_cache else {}
    # Of a sharded model this runs inside of its forward (`guarded.within`), which must not be entered once more.
    call = partial(type(core).forward, core) if is_sharded(core) else core

    def logits_of(part: Tensor) -> Tensor:
        with _giving(body, type(output)(**{**output, "last_hidden_state": part.unsqueeze(0)})):
            made: Tensor = call(input_ids=targets[: len(part)].unsqueeze(0), **options).logits
        return made[0]

    return logits_of


def _trained(core: Any, body: nn.Module) -> list[nn.Parameter]:
    """Return the trained parameters that logits are made by, though they may be embeddings of the body too."""
    inside = {id(parameter) for parameter in body.parameters()}
    outside = [parameter for parameter in core.parameters() if id(parameter) not in inside]
    last = core.get_output_embeddings()
    found = {
        id(p): p for p in [*outside, *(last.parameters() if last is not None else [])] if p.requires_grad
    }
    return list(found.values())


class _InParts(torch.autograd.Function):
    """The sum of -log p; its gradients are computed on the way forward, while each part's logits are there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        logits_of: Callable[[Tensor], Tensor],
        size: int,
        *own: Tensor,
    ) -> Tensor:
        """Return the sum over `targets` for `hidden`, shape ``(counted, size of a hidden state)``.

        Args:
            ctx: autograd's.
            hidden, targets: of the counted predictions.
            logits_of: from hidden states to logits, shape ``(tokens, vocabulary)``.
            size: tokens at once.
            own: the head's parameters that are trained.
        """
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        of_hidden = torch.empty_like(hidden)
        of_own = [torch.zeros_like(parameter) for parameter in own]
        for start in range(0, len(hidden), size):
            part = hidden[start : start + size].detach().requires_grad_()
            with torch.enable_grad():
                loss = _loss(logits_of(part), targets[start : start + size])
            of_part, *more = torch.autograd.grad(loss, (part, *own), allow_unused=True)
            of_hidden[start : start + size] = of_part
            _add(of_own, more)
            total += loss.detach()
        ctx.save_for_backward(of_hidden, *of_own)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of `hidden` and of the head's own parameters."""
        of_hidden, *of_own = ctx.saved_tensors
        return of_hidden * gradient, None, None, None, *(of_parameter * gradient for of_parameter in of_own)


class _Each(torch.autograd.Function):
    """-log p of each target: the same as `_InParts`, but for a gradient of its own for each."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, logits_of: Callable[[Tensor], Tensor], size: int
    ) -> Tensor:
        """Return -log p, shape ``(counted,)``; the arguments are those of `_InParts`."""
        found, of_hidden = [], torch.empty_like(hidden)
        for start in range(0, len(hidden), size):
            part = hidden[start : start + size].detach().requires_grad_()
            with torch.enable_grad():
                each = cross_entropy(logits_of(part).float(), targets[start : start + size], reduction="none")
            (of_hidden[start : start + size],) = torch.autograd.grad(each, part, torch.ones_like(each))
            found.append(each.detach())
        ctx.save_for_backward(of_hidden)
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradient of `hidden`."""
        (of_hidden,) = ctx.saved_tensors
        return of_hidden * gradient.unsqueeze(1).to(of_hidden.dtype), None, None, None


def _add(sums: Sequence[Tensor], more: Sequence[Tensor | None]) -> None:
    for total, tensor in zip(sums, more, strict=True):
        if tensor is not None:
            total += tensor


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits.float(), targets, reduction="sum")


def _vocabulary(core: Any) -> int:
    return int(core.get_input_embeddings().weight.shape[0])


@contextmanager
def _giving(module: nn.Module, output: Any) -> Iterator[None]:
    """Let a module give this output inside the block, whatever it is called with."""
    own = module.__dict__.get("forward")
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
