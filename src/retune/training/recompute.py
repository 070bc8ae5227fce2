"""Activation checkpointing: layers keep only their input and recompute the rest in the backward pass.

torch's own ``checkpoint`` frees what is saved by `save_for_backward`; our layers keep more on their node of the graph. Here the
forward pass runs without gradients, so nothing is kept at all, and trained parameters are named, so that the first layer, whose
input has no gradient, is computed again too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from retune.training import lora_linear


class NoTensor(Exception):
    """The layer gives something else than one tensor; `state`: of the generators before it drew."""

    def __init__(self, state: list[Tensor]) -> None:
        super().__init__()
        self.state = state


def layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that transformers itself would checkpoint."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def trained_in(layer: nn.Module) -> list[Tensor]:
    """Return what needs a gradient in a layer: its own parameters, and those of adapters that are lent to it."""
    own: list[Tensor] = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    return own + lora_linear.lent_to(layer)


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Let the layers of a transformers model compute again in the backward pass inside the block."""
    found = layers(model)
    plain: set[type] = set()
    for layer in found:
        layer.forward = partial(_forward, layer, plain)
    try:
        yield
    finally:
        for layer in found:
            del layer.forward


def _forward(layer: Any, plain: set[type], hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    trained = trained_in(layer)
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or trained)
    if not wanted or type(layer) in plain:
        return type(layer).forward(layer, hidden, *args, **kwargs)

    def run(x: Tensor) -> Any:
        return type(layer).forward(layer, x, *args, **kwargs)

    try:
        return _Recomputed.apply(hidden, run, *trained)  # type: ignore[no-untyped-call]
    except NoTensor as error:
        plain.add(type(layer))
        set_generators(error.state, hidden.device)  # as if it had not been tried
        return run(hidden)


class _Recomputed(torch.autograd.Function):
    """A layer as one node of the graph, which keeps its input."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, run: Any, *trained: Tensor) -> Tensor:
        """Return ``run(hidden)``; `trained` are the parameters in it that need a gradient."""
        ctx.run, ctx.trained, ctx.state = run, trained, generators(hidden.device)
        ctx.save_for_backward(hidden)
        out = run(hidden)
        if not isinstance(out, Tensor):
            raise NoTensor(ctx.state)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of the input and of the trained parameters."""
        (hidden,) = ctx.saved_tensors
        part = hidden.detach().requires_grad_(ctx.needs_input_grad[0])
        wanted = [part, *ctx.trained] if part.requires_grad else list(ctx.trained)
        now = generators(hidden.device)
        set_generators(ctx.state, hidden.device)
        with torch.enable_grad():
            out = ctx.run(part)
        set_generators(now, hidden.device)
        found = list(torch.autograd.grad(out, wanted, gradient, allow_unused=True))
        return found.pop(0) if part.requires_grad else None, None, *found


_further: Sequence[torch.Generator] = ()  # see `drawing_from`


@contextmanager
def drawing_from(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Let a layer that is computed again draw from these generators, too, what it drew before, inside the block."""
    global _further
    before, _further = _further, generators
    try:
        yield
    finally:
        _further = before


def generators(device: torch.device) -> list[Tensor]:
    """Return the states of the generators that dropout on this device may draw from."""
    states = [torch.get_rng_state(), *(generator.get_state() for generator in _further)]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_generators(states: list[Tensor], device: torch.device) -> None:
    """Set the states that `generators` returned."""
    torch.set_rng_state(states[0])
    for generator, state in zip(_further, states[1:], strict=False):
        generator.set_state(state)
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[-1], device)
