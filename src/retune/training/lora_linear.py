"""LoRA's linear layer with a backward pass of its own: PEFT's arithmetic, fewer and better-shaped steps.

LoRA is Hu et al. 2021 (arXiv:2106.09685). PEFT computes ``y = x W' + scale * dropout(x) A' B'`` with separate modules (``'`` is
the transpose). Here the rank-r product is added inside one matrix product (`addmm_`), the scale is applied to the small
``(tokens, rank)`` factor, nothing is cast to float32 and back, and the thin products of the backward pass have operands in the
memory order for which BLAS is fast.
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
from retune.training.dropout import DropoutSource, drop


@dataclass(frozen=True)
class Weights:
    """A frozen linear layer, with or without an adapter: ``linear(x, weight, bias) + scale * dropout(x) @ a.T @ b.T``.

    Attributes:
        weight: shape ``(out, in)``. bias: shape ``(out,)`` or None.
        a: shape ``(rank, in)`` or None. b: shape ``(out, rank)`` or None. They may have another dtype.
        scale: factor on the adapter. dropout: probability, 0 in evaluation.
        source: where dropout draws its mask from, see `retune.training.dropout.drop`.
    """

    weight: Tensor
    bias: Tensor | None
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 1.0
    dropout: float = 0.0
    source: DropoutSource | None = None

    @property
    def adapters(self) -> tuple[Tensor | None, ...]:
        """The trained tensors, in the order in which they are passed to autograd: a and b."""
        return (self.a, self.b)


@dataclass(frozen=True)
class SharedWeights:
    """A frozen linear layer with the adapters of several trials, each for its own rows of the input.

    A row goes through `weight` and through its own adapter only, so nothing that one trial computes, NaN included, reaches
    the rows or the gradients of another.

    Attributes:
        weight, bias: as in `Weights`.
        parts: the trials' adapters on this layer, in the order of their rows.
        tokens: rows of each part if all tokens are computed. tails: the same if only the tails are, see
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
            RetuneError: if `x` has neither the rows of all tokens nor those of all tails: then its rows have no known trial.
        """
        for sizes in (self.tokens, self.tails):
            if sum(sizes) == len(x):
                return torch.split(x, list(sizes))
        raise RetuneError(
            f"a layer shared by trials must get all {sum(self.tokens)} tokens of a batch or its {sum(self.tails)} tail tokens, "
            f"but got {len(x)} rows"
        )


class Saved(NamedTuple):
    """What an adapter saves for its backward pass.

    Attributes:
        dropped: the input after dropout. mask: of dropout; None without. low: ``scale * dropped @ a.T``.
    """

    dropped: Tensor
    mask: Tensor | None
    low: Tensor


Layer = Weights | SharedWeights
_ATTACHED = "_retune_weights"  # an attribute of a linear layer, set by `attach`


def attach(module: Any, layer: Layer | None) -> None:
    """Let a frozen linear layer compute with the adapters in `layer`, without PEFT's layer around it; None detaches them."""
    if layer is None:
        module.__dict__.pop(_ATTACHED, None)
        module.__dict__.pop("forward", None)
    else:
        module.__dict__[_ATTACHED] = layer
        module.forward = MethodType(_forward, module)


def attached_parameters(module: torch.nn.Module) -> list[Tensor]:
    """Return the matrices of the adapters that are attached to the layers in a module."""
    layers = [part.__dict__[_ATTACHED] for part in module.modules() if _ATTACHED in part.__dict__]
    return [tensor for layer in layers for tensor in layer.adapters if tensor is not None]


def weights_of(module: Any) -> Layer | None:
    """Return the weights of a frozen linear layer, or of PEFT's plain LoRA layer around one; None for any other module.

    Everything beyond A and B (a bias of B, DoRA and PEFT's other variants, merged, disabled or several adapters, hooks) is
    left to PEFT's own forward.
    """
    from peft.tuners.lora.layer import Linear

    if (attached := module.__dict__.get(_ATTACHED)) is not None:
        return attached  # type: ignore[no-any-return]
    if type(module) is torch.nn.Linear:
        return Weights(module.weight, module.bias) if _frozen(module) else None
    if type(module) is not Linear or hooked(module) or module.active_adapters != ["default"]:
        return None
    if module.merged or module.disable_adapters or module.lora_variant or module.fan_in_fan_out:
        return None
    base = module.base_layer
    if type(base) is not torch.nn.Linear or not _frozen(base) or "default" not in module.lora_A:
        return None
    a, b, dropout_module = (part["default"] for part in (module.lora_A, module.lora_B, module.lora_dropout))
    if any(type(part) is not torch.nn.Linear or part.bias is not None or hooked(part) for part in (a, b)):
        return None
    if type(dropout_module) not in (torch.nn.Dropout, torch.nn.Identity):
        return None
    dropout = (
        dropout_module.p if dropout_module.training and isinstance(dropout_module, torch.nn.Dropout) else 0.0
    )
    return Weights(base.weight, base.bias, a.weight, b.weight, module.scaling["default"], dropout)


def hooked(module: Any) -> bool:
    """Return whether a module has hooks, or a forward that is neither its class's nor ours."""
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


def forward(x: Tensor, layer: Layer) -> tuple[Tensor, Saved | list[Saved | None] | None]:
    """Return the output, shape ``(tokens, out)`` in the dtype of `x`, shape ``(tokens, in)``, and what `backward` needs."""
    out = products.linear(x, layer.weight, layer.bias)
    return out, _add(out, x, layer)


def _add(out: Tensor, x: Tensor, layer: Layer) -> Saved | list[Saved | None] | None:
    """Add the adapters' products to `out` in place, shape ``(tokens, out)``; return what `backward` needs."""
    if isinstance(layer, Weights):
        return _add_one(out, x, layer)
    parts = zip(layer.rows(out), layer.rows(x), layer.parts, strict=True)
    return [_add_one(own_out, own_x, part) for own_out, own_x, part in parts]


def _add_one(out: Tensor, x: Tensor, layer: Weights) -> Saved | None:
    if layer.a is None or layer.b is None:
        return None
    dropped, mask = (x, None) if layer.dropout == 0 else drop(x, layer.dropout, layer.source)
    low = torch.mm(dropped, layer.a.to(x.dtype).t()).mul_(layer.scale)
    out.addmm_(low, layer.b.to(x.dtype).t())
    return Saved(dropped, mask, low)


def backward(
    grad_output: Tensor, layer: Layer, saved: Any, grad_x: Tensor | None = None, need_x: bool = True
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x and of the layer's `adapters`.

    Args:
        grad_output: of the output, shape ``(tokens, out)``.
        layer: as in `forward`. saved: from `forward`.
        grad_x: the gradient of x is added to this, in place.
        need_x: whether the gradient of x is needed.
    """
    if need_x:
        grad_x = products.matmul(grad_output, layer.weight, grad_x)
    if isinstance(layer, Weights):
        return grad_x, *_backward_one(grad_output, layer, saved, grad_x if need_x else None)
    parts = zip(
        layer.rows(grad_output),
        layer.parts,
        saved,
        layer.rows(grad_x) if need_x and grad_x is not None else [None] * len(layer.parts),
        strict=True,
    )
    grads: list[Tensor | None] = [grad_x]
    for own_grad_output, part, own_saved, own_x in parts:
        grads += _backward_one(own_grad_output, part, own_saved, own_x)
    return tuple(grads)


def _backward_one(
    grad_output: Tensor, layer: Weights, saved: Saved | None, grad_x: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Add an adapter's part to the gradient of x, if given, and return the gradients of a and b."""
    if saved is None or layer.a is None or layer.b is None:
        return None, None
    a, b = layer.a.to(grad_output.dtype), layer.b.to(grad_output.dtype)
    # A column-major copy of the small b: BLAS is faster with it in such a thin product.
    grad_low = torch.mm(grad_output, b.t().contiguous().t()).mul_(layer.scale)
    grad_b = torch.mm(saved.low.t(), grad_output).t().to(layer.b.dtype)
    grad_a = torch.mm(grad_low.t(), saved.dropped).to(layer.a.dtype)
    if grad_x is not None:
        if saved.mask is None:
            grad_x.addmm_(grad_low, a)
        else:
            grad_x.addcmul_(grad_low @ a, saved.mask.to(grad_x.dtype), value=1 / (1 - layer.dropout))
    return grad_a, grad_b


class LoraLinear(torch.autograd.Function):
    """The layer as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Layer, *adapters: Tensor) -> Tensor:
        """Return the output, shape ``(…, out)``, for `x`, shape ``(…, in)``; `adapters` are those of `layer`."""
        flat = x.flatten(0, -2)
        out = products.linear(flat, layer.weight, layer.bias)
        ctx.layer, ctx.saved = layer, _add(out, flat, layer)
        # Not a view: some models change it in place, which autograd refuses
        return out.resize_(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of x and of the adapters."""
        need_x = ctx.needs_input_grad[0]
        grad_x, *grad_adapters = backward(grad_output.flatten(0, -2), ctx.layer, ctx.saved, need_x=need_x)
        return None if grad_x is None else grad_x.view(*grad_output.shape[:-1], -1), None, *grad_adapters


def install(model: Any) -> None:
    """Let the LoRA layers of a PEFT model compute by `LoraLinear`, as far as they are plain linear layers."""
    for module in model.modules():
        if type(module) is not torch.nn.Linear and weights_of(module) is not None:
            module.forward = MethodType(_forward, module)


@contextmanager
def installed(model: Any) -> Iterator[None]:
    """Apply `install` inside the block."""
    install(model)
    try:
        yield
    finally:
        for module in model.modules():
            if getattr(module.__dict__.get("forward"), "__func__", None) is _forward:
                del module.forward


def _forward(module: Any, x: Tensor) -> Tensor:
    layer = weights_of(module)
    assert layer is not None
    out: Tensor = LoraLinear.apply(x, layer, *layer.adapters)  # type: ignore[no-untyped-call]
    return out
