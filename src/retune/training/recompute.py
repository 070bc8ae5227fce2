"""Activation checkpointing: layers keep only their input and recompute the rest in the backward pass.

torch's own ``checkpoint`` frees only what `save_for_backward` saved; our layers keep more on their node of the graph. Here the
forward pass runs without gradients, so nothing else is kept, and the trained parameters are inputs of the node, so that the
first layer, whose input has no gradient, is recomputed too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from retune.training import lora_linear


class Call:
    """One call of a layer as a function of those of its arguments that need a gradient. Outputs may be tensors at any depth.

    Attributes:
        leaves: the flattened arguments. inputs: those of them that need a gradient.
        out: the flattened output of the last call. floats: the places of its floating-point tensors, which are None in `out`.
        tree: how `out` unflattens.
    """

    def __init__(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.forward = forward
        self.leaves, self._arguments = tree_flatten((args, kwargs))
        self._places = [
            index for index, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor) and leaf.requires_grad
        ]
        self.inputs: list[Tensor] = [self.leaves[index] for index in self._places]

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the layer's floating-point outputs for other values of `inputs`."""
        leaves = list(self.leaves)
        for index, value in zip(self._places, inputs, strict=True):
            leaves[index] = value
        args, kwargs = tree_unflatten(leaves, self._arguments)
        self.out, self.tree = tree_flatten(self.forward(*args, **kwargs))
        self.floats = [
            index
            for index, leaf in enumerate(self.out)
            if isinstance(leaf, Tensor) and leaf.is_floating_point()
        ]
        tensors = tuple(self.out[index] for index in self.floats)
        # The graph keeps them; kept here too, they would outlive it
        for index in self.floats:
            self.out[index] = None
        return tensors

    def output(self, tensors: Sequence[Tensor]) -> Any:
        """Return the layer's output with these tensors in it, in the order in which a call returns them."""
        out = list(self.out)
        for index, tensor in zip(self.floats, tensors, strict=True):
            out[index] = tensor
        return tree_unflatten(out, self.tree)


def gradients(
    outputs: Sequence[Tensor], wanted: Sequence[Tensor], grad_outputs: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Return the gradients of `wanted`, None where there is none; `grad_outputs` is None for outputs that nothing uses."""
    used = [(o, g) for o, g in zip(outputs, grad_outputs, strict=True) if g is not None and o.requires_grad]
    if not used:
        return [None] * len(wanted)
    return list(torch.autograd.grad([o for o, _ in used], wanted, [g for _, g in used], allow_unused=True))


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
    modules = layers(model)
    for layer in modules:
        layer.forward = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in modules:
            del layer.forward


def _forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
    own = partial(type(layer).forward, layer)
    call, trained = Call(own, args, kwargs), trained_in(layer)
    if not torch.is_grad_enabled() or not (call.inputs or trained):
        return own(*args, **kwargs)
    return call.output(_Recomputed.apply(call, *call.inputs, *trained))  # type: ignore[no-untyped-call]


class _Recomputed(torch.autograd.Function):
    """A layer as one node of the graph, which keeps its input."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return what `call` returns; `tensors`: its inputs, then the parameters in the layer that need a gradient."""
        ctx.set_materialize_grads(False)
        count = len(call.inputs)
        ctx.call, ctx.trained, ctx.state = call, tensors[count:], rng_states(tensors[0].device)
        ctx.save_for_backward(*tensors[:count])
        return call(tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of the inputs and of the trained parameters."""
        parts = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        wanted = [*parts, *ctx.trained]
        device = wanted[0].device
        # Dropout must draw the same again, and what comes after must not notice.
        now = rng_states(device)
        set_rng_states(ctx.state, device)
        with torch.enable_grad():
            outputs = ctx.call(parts)
        set_rng_states(now, device)
        return None, *gradients(outputs, wanted, grad_outputs)


_tracked: Sequence[torch.Generator] = ()  # see `tracking_generators`


@contextmanager
def tracking_generators(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Inside the block, also reset these generators, not only the default ones, when a layer is recomputed."""
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
    # On a GPU one more follows: its default one's
    for generator, state in zip(_tracked, states[1:], strict=False):
        generator.set_state(state)
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[-1], device)
