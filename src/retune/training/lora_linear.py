"""LoRA's linear layer with a backward pass of its own: PEFT's arithmetic, fewer and better-shaped steps.

PEFT computes ``y = x W' + scale * dropout(x) A' B'`` out of separate modules (``'`` is the transpose). Here the rank-r
product is added inside one matrix product, the scale is applied to the small ``(tokens, rank)`` factor, nothing is cast
to float32 and back on the way, and the thin products of the backward pass are formed the way BLAS likes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from retune.training.dropout import drop


@dataclass(frozen=True)
class Weights:
    """A frozen linear layer, with or without an adapter: ``linear(x, weight, bias) + scale * dropout(x) @ a.T @ b.T``.

    Attributes:
        weight: shape ``(out, in)``. bias: shape ``(out,)`` or None.
        a: shape ``(rank, in)`` or None. b: shape ``(out, rank)`` or None. They may have another dtype.
        scale: factor on the adapter. dropout: probability, 0 in evaluation.
    """

    weight: Tensor
    bias: Tensor | None
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 1.0
    dropout: float = 0.0


class Kept(NamedTuple):
    """What the backward pass of an adapter needs: its input after dropout, the mask, and the scaled rank-r factor."""

    dropped: Tensor
    mask: Tensor | None
    low: Tensor


def read(module: Any) -> Weights | None:
    """Return the weights of a frozen linear layer or of PEFT's plain LoRA layer on one; None if it is anything else.

    Whatever is more than A and B (a bias of B, DoRA and PEFT's other variants, a merged or disabled adapter, several of
    them, hooks) is left to PEFT's own forward.
    """
    from peft.tuners.lora.layer import Linear

    if type(module) is torch.nn.Linear:
        return Weights(module.weight, module.bias) if _frozen(module) else None
    if type(module) is not Linear or hooked(module) or module.active_adapters != ["default"]:
        return None
    if module.merged or module.disable_adapters or module.lora_variant or module.fan_in_fan_out:
        return None
    base = module.base_layer
    if type(base) is not torch.nn.Linear or not _frozen(base) or "default" not in module.lora_A:
        return None
    a, b, chance = (part["default"] for part in (module.lora_A, module.lora_B, module.lora_dropout))
    if any(type(part) is not torch.nn.Linear or part.bias is not None or hooked(part) for part in (a, b)):
        return None
    if type(chance) not in (torch.nn.Dropout, torch.nn.Identity):
        return None
    dropout = chance.p if chance.training and isinstance(chance, torch.nn.Dropout) else 0.0
    return Weights(base.weight, base.bias, a.weight, b.weight, module.scaling["default"], dropout)


def hooked(module: Any) -> bool:
    """Return whether hooks run before or after a module, or another forward than its class's stands in for it."""
    own = module.__dict__.get("forward")
    replaced = own is not None and getattr(own, "__func__", None) is not _forward
    return replaced or bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _frozen(module: torch.nn.Linear) -> bool:
    tensors = [module.weight] if module.bias is None else [module.weight, module.bias]
    return not hooked(module) and not any(tensor.requires_grad for tensor in tensors)


def forward(x: Tensor, layer: Weights) -> tuple[Tensor, Kept | None]:
    """Return the output, shape ``(tokens, out)`` in the dtype of `x`, shape ``(tokens, in)``, and what to keep."""
    out = linear(x, layer.weight, layer.bias)
    return out, _add(out, x, layer)


def _add(out: Tensor, x: Tensor, layer: Weights) -> Kept | None:
    """Add the adapter's part to `out` in place, both of them flat; return what to keep."""
    if layer.a is None or layer.b is None:
        return None
    dropped, mask = (x, None) if layer.dropout == 0 else drop(x, layer.dropout)
    low = torch.mm(dropped, layer.a.to(x.dtype).t()).mul_(layer.scale)
    out.addmm_(low, layer.b.to(x.dtype).t())
    return Kept(dropped, mask, low)


def backward(
    gradient: Tensor, layer: Weights, kept: Kept | None, of_x: Tensor | None = None, need_x: bool = True
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of x, a and b.

    Args:
        gradient: of the output, shape ``(tokens, out)``.
        layer: as in `forward`. kept: from `forward`.
        of_x: add the gradient of x to this, in place.
        need_x: whether the gradient of x is wanted.
    """
    if need_x:
        of_x = gradient @ layer.weight if of_x is None else of_x.addmm_(gradient, layer.weight)
    if kept is None or layer.a is None or layer.b is None:
        return of_x, None, None
    a, b = layer.a.to(gradient.dtype), layer.b.to(gradient.dtype)
    of_low = torch.mm(gradient, b.t().contiguous().t()).mul_(layer.scale)
    of_b = torch.mm(kept.low.t(), gradient).t().to(layer.b.dtype)
    of_a = torch.mm(of_low.t(), kept.dropped).to(layer.a.dtype)
    if need_x and of_x is not None:
        if kept.mask is None:
            of_x.addmm_(of_low, a)
        else:
            of_x.addcmul_(of_low @ a, kept.mask.to(of_x.dtype), value=1 / (1 - layer.dropout))
    return of_x, of_a, of_b


class LoraLinear(torch.autograd.Function):
    """The layer as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, layer: Weights) -> Tensor:
        """Return the output, shape ``(…, out)``, for `x`, shape ``(…, in)``; `a` and `b` are those of `layer`."""
        out = linear(x, layer.weight, layer.bias)
        ctx.layer, ctx.kept = layer, _add(out.view(-1, out.shape[-1]), x.flatten(0, -2), layer)
        return out  # not a view: some models go on in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of x, a and b."""
        need_x = ctx.needs_input_grad[0]
        of_x, of_a, of_b = backward(gradient.flatten(0, -2), ctx.layer, ctx.kept, need_x=need_x)
        return None if of_x is None else of_x.view(*gradient.shape[:-1], -1), of_a, of_b, None


def install(model: Any) -> None:
    """Let the LoRA layers of a PEFT model compute by `LoraLinear`, as far as they are plain linear layers."""
    for module in model.modules():
        if type(module) is not torch.nn.Linear and read(module) is not None:
            module.forward = MethodType(_forward, module)


@contextmanager
def installed(model: Any) -> Iterator[None]:
    """Do what `install` does inside the block."""
    install(model)
    try:
        yield
    finally:
        for module in model.modules():
            if getattr(module.__dict__.get("forward"), "__func__", None) is _forward:
                del module.forward


def _forward(module: Any, x: Tensor) -> Tensor:
    layer = read(module)
    assert layer is not None
    out: Tensor = LoraLinear.apply(x, layer.a, layer.b, layer)  # type: ignore[no-untyped-call]
    return out
