"""Activation checkpointing: layers keep only their input and recompute the rest in the backward pass.

torch's own ``checkpoint`` frees only what `save_for_backward` saved; our layers keep more on their node of the graph. Here the
forward pass runs without gradients, so nothing else is kept, and the trained parameters are inputs of the node, so that the
first layer, whose input has no gradient, is recomputed too.
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
    """The layer returns something else than one tensor; `state`: of the generators before its forward."""

    def __init__(self, state: list[Tensor]) -> None:
        super().__init__()
        self.state = state


def layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that transformers itself would checkpoint."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def trained_in(layer: nn.Module) -> list[Tensor]:
    """Return what needs a gradient in a layer: its own parameters, and those of the adapters attached to it."""
    own: list[Tensor] = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    return own + lora_linear.attached_parameters(layer)


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Recompute the layers of a transformers model in the backward pass inside the block."""
    found = layers(model)
    unsupported: set[type] = set()
    for layer in found:
        layer.forward = partial(_forward, layer, unsupported)
    try:
        yield
    finally:
        for layer in found:
            del layer.forward


def _forward(layer: Any, unsupported: set[type], hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    trained = trained_in(layer)
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or trained)
    if not wanted or type(layer) in unsupported:
        return type(layer).forward(layer, hidden, *args, **kwargs)

    def run(x: Tensor) -> Any:
        return type(layer).forward(layer, x, *args, **kwargs)

    try:
        return _Recomputed.apply(hidden, run, *trained)  # type: ignore[no-untyped-call]
    except NoTensor as error:
        unsupported.add(type(layer))
        set_rng_states(error.state, hidden.device)  # the second forward must draw what the first one drew
        return run(hidden)


class _Recomputed(torch.autograd.Function):
    """A layer as one node of the graph, which keeps its input."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, run: Any, *trained: Tensor) -> Tensor:
        """Return ``run(hidden)``; `trained` are the parameters in it that need a gradient."""
        ctx.run, ctx.trained, ctx.state = run, trained, rng_states(hidden.device)
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
        # Dropout must draw the same again, and what comes after must not notice.
        now = rng_states(hidden.device)
        set_rng_states(ctx.state, hidden.device)
        with torch.enable_grad():
            out = ctx.run(part)
        set_rng_states(now, hidden.device)
        found = list(torch.autograd.grad(out, wanted, gradient, allow_unused=True))
        return found.pop(0) if part.requires_grad else None, None, *found


_tracked: Sequence[torch.Generator] = ()  # see `tracking_generators`


@contextmanager
def tracking_generators(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Inside the block, reset these generators too, beside the default ones, when a layer is recomputed."""
    global _tracked
    before, _tracked = _tracked, generators
    try:
        yield
    finally:
        _tracked = before


def rng_states(device: torch.device) -> list[Tensor]:
    """Return the states of the generators that dropout on this device may use: the default ones and the tracked."""
    states = [torch.get_rng_state(), *(generator.get_state() for generator in _tracked)]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_rng_states(states: list[Tensor], device: torch.device) -> None:
    """Set the states that `rng_states` returned."""
    torch.set_rng_state(states[0])
    for generator, state in zip(
        _tracked, states[1:], strict=False
    ):  # on a GPU one more follows: its default one's
        generator.set_state(state)
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[-1], device)
