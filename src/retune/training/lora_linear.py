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

from retune.errors import RetuneError
from retune.training import products
from retune.training.dropout import Draws, drop


@dataclass(frozen=True)
class Weights:
    """A frozen linear layer, with or without an adapter: ``linear(x, weight, bias) + scale * dropout(x) @ a.T @ b.T``.

    Attributes:
        weight: shape ``(out, in)``. bias: shape ``(out,)`` or None.
        a: shape ``(rank, in)`` or None. b: shape ``(out, rank)`` or None. They may have another dtype.
        scale: factor on the adapter. dropout: probability, 0 in evaluation.
        draws: where dropout draws from, see `retune.training.dropout.drop`.
    """

    weight: Tensor
    bias: Tensor | None
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 1.0
    dropout: float = 0.0
    draws: Draws | None = None

    @property
    def adapters(self) -> tuple[Tensor | None, ...]:
        """What is trained, as autograd is to see it: a and b."""
        return (self.a, self.b)


@dataclass(frozen=True)
class Shared:
    """A frozen linear layer under the adapters of several trials, each for its own rows of the input.

    A row goes through `weight` and through its own adapter only, so nothing that one trial computes, NaN included, reaches
    the rows or the gradients of another.

    Attributes:
        weight, bias: as in `Weights`.
        parts: the trials' adapters on this layer, in the order of their rows.
        tokens: rows of each part where all tokens are computed. tails: the same where only tails are, see
            `retune.training.attention.Segments`.
    """

    weight: Tensor
    bias: Tensor | None
    parts: tuple[Weights, ...]
    tokens: tuple[int, ...]
    tails: tuple[int, ...]

    @property
    def adapters(self) -> tuple[Tensor | None, ...]:
        """Return a and b of each part, one after the other."""
        return tuple(tensor for part in self.parts for tensor in part.adapters)

    def rows(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return each part's rows of `x`, as views.

        Raises:
            RetuneError: if `x` has the rows of neither all tokens nor all tails: whose they are is not known.
        """
        for sizes in (self.tokens, self.tails):
            if sum(sizes) == len(x):
                return torch.split(x, list(sizes))
        raise RetuneError(f"a layer got {len(x)} rows of a batch of {sum(self.tokens)} tokens")


class Kept(NamedTuple):
    """What the backward pass of an adapter needs: its input after dropout, the mask, and the scaled rank-r factor."""

    dropped: Tensor
    mask: Tensor | None
    low: Tensor


Layer = Weights | Shared
_LENT = "retune_lent"  # an attribute of a linear layer: the adapters that compute on it, see `lend`


def lend(module: Any, layer: Layer | None) -> None:
    """Let a frozen linear layer compute as `layer` says, without PEFT's layer around it; None for as it was."""
    if layer is None:
        module.__dict__.pop(_LENT, None)
        module.__dict__.pop("forward", None)
    else:
        module.__dict__[_LENT] = layer
        module.forward = MethodType(_forward, module)


def lent_to(module: torch.nn.Module) -> list[Tensor]:
    """Return the matrices of the adapters that are lent to the layers in a module."""
    found = [part.__dict__[_LENT] for part in module.modules() if _LENT in part.__dict__]
    return [tensor for layer in found for tensor in layer.adapters if tensor is not None]


def read(module: Any) -> Layer | None:
    """Return the weights of a frozen linear layer or of PEFT's plain LoRA layer on one; None if it is anything else.

    Whatever is more than A and B (a bias of B, DoRA and PEFT's other variants, a merged or disabled adapter, several of
    them, hooks) is left to PEFT's own forward.
    """
    from peft.tuners.lora.layer import Linear

    if (lent := module.__dict__.get(_LENT)) is not None:
        return lent  # type: ignore[no-any-return]
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


def forward(x: Tensor, layer: Layer) -> tuple[Tensor, Kept | list[Kept | None] | None]:
    """Return the output, shape ``(tokens, out)`` in the dtype of `x`, shape ``(tokens, in)``, and what to keep."""
    out = products.linear(x, layer.weight, layer.bias)
    return out, _add(out, x, layer)


def _add(out: Tensor, x: Tensor, layer: Layer) -> Kept | list[Kept | None] | None:
    """Add the adapters' part to `out` in place, both of them flat; return what to keep."""
    if isinstance(layer, Weights):
        return _add_one(out, x, layer)
    parts = zip(layer.rows(out), layer.rows(x), layer.parts, strict=True)
    return [_add_one(own_out, own_x, part) for own_out, own_x, part in parts]


def _add_one(out: Tensor, x: Tensor, layer: Weights) -> Kept | None:
    if layer.a is None or layer.b is None:
        return None
    dropped, mask = (x, None) if layer.dropout == 0 else drop(x, layer.dropout, layer.draws)
    low = torch.mm(dropped, layer.a.to(x.dtype).t()).mul_(layer.scale)
    out.addmm_(low, layer.b.to(x.dtype).t())
    return Kept(dropped, mask, low)


def backward(
    gradient: Tensor, layer: Layer, kept: Any, of_x: Tensor | None = None, need_x: bool = True
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x and of the layer's `adapters`.

    Args:
        gradient: of the output, shape ``(tokens, out)``.
        layer: as in `forward`. kept: from `forward`.
        of_x: add the gradient of x to this, in place.
        need_x: whether the gradient of x is wanted.
    """
    if need_x:
        of_x = products.times(gradient, layer.weight, of_x)
    if isinstance(layer, Weights):
        return of_x, *_backward_one(gradient, layer, kept, of_x if need_x else None)
    parts = zip(
        layer.rows(gradient),
        layer.parts,
        kept,
        layer.rows(of_x) if need_x and of_x is not None else [None] * len(layer.parts),
        strict=True,
    )
    found: list[Tensor | None] = [of_x]
    for own_gradient, part, own_kept, own_x in parts:
        found += _backward_one(own_gradient, part, own_kept, own_x)
    return tuple(found)


def _backward_one(
    gradient: Tensor, layer: Weights, kept: Kept | None, of_x: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Add an adapter's part to the gradient of x, if given, and return the gradients of a and b."""
    if kept is None or layer.a is None or layer.b is None:
        return None, None
    a, b = layer.a.to(gradient.dtype), layer.b.to(gradient.dtype)
    of_low = torch.mm(gradient, b.t().contiguous().t()).mul_(layer.scale)
    of_b = torch.mm(kept.low.t(), gradient).t().to(layer.b.dtype)
    of_a = torch.mm(of_low.t(), kept.dropped).to(layer.a.dtype)
    if of_x is not None:
        if kept.mask is None:
            of_x.addmm_(of_low, a)
        else:
            of_x.addcmul_(of_low @ a, kept.mask.to(of_x.dtype), value=1 / (1 - layer.dropout))
    return of_a, of_b


class LoraLinear(torch.autograd.Function):
    """The layer as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Layer, *adapters: Tensor) -> Tensor:
        """Return the output, shape ``(…, out)``, for `x`, shape ``(…, in)``; `adapters` are those of `layer`."""
        flat = x.flatten(0, -2)
        out = products.linear(flat, layer.weight, layer.bias)
        ctx.layer, ctx.kept = layer, _add(out, flat, layer)
        return out.resize_(*x.shape[:-1], out.shape[-1])  # not a view: some models go on in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of x and of the adapters."""
        need_x = ctx.needs_input_grad[0]
        of_x, *of_adapters = backward(gradient.flatten(0, -2), ctx.layer, ctx.kept, need_x=need_x)
        return None if of_x is None else of_x.view(*gradient.shape[:-1], -1), None, *of_adapters


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
    out: Tensor = LoraLinear.apply(x, layer, *layer.adapters)  # type: ignore[no-untyped-call]
    return out
