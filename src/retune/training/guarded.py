"""Passes over a sharded base (FSDP) that run out of memory in one process, and end well in all.

FSDP gathers a layer's weights from all processes when it comes to the layer, forward and backward. A process that left a pass
with an error would let the others wait for it for ever. Inside `guarding` a layer that runs out of memory gives a stand-in
instead, and the process takes part in what is left of the pass without computing. Then the processes tell each other
whether the pass counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from retune.errors import is_out_of_memory
from retune.training import recompute
from retune.training.devices import Devices

_GUARD = "_retune_guard"


class RanOut(torch.OutOfMemoryError):
    """A pass ran out of memory, and all processes know it. `here`: whether in this process."""

    def __init__(self, text: str | None) -> None:
        super().__init__(text or "another process of this trial ran out of memory")
        self.here = text is not None


class Guard:
    """What is known of the current pass.

    Attributes:
        error: the message of the allocator, if this process ran out of memory.
        layers: those that are guarded; none unless the base is sharded. passed: how many of them were called in the forward.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        self.error: str | None = None
        self.layers, self.passed = layers, 0

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Keep an error of memory from leaving the block."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.error = str(error) or type(error).__name__

    def agree(self, devices: Devices) -> None:
        """Wait for the other processes of a sharded base.

        Raises:
            RanOut: if any of them ran out of memory.
        """
        if devices.most(int(self.error is not None)):
            raise RanOut(self.error)


@contextmanager
def guarding(core: Any) -> Iterator[Guard]:
    """Guard the layers of a transformers model inside the block if it is sharded; inside of `recompute.recomputing`."""
    guard = Guard(recompute.layers(core) if is_sharded(core) else [])
    before = [vars(layer).get("forward") for layer in guard.layers]
    plain: set[type] = set()
    for layer in guard.layers:
        layer.forward = partial(_forward, guard, plain, layer, layer.forward)
    vars(core)[_GUARD] = guard
    try:
        yield guard
    finally:
        del vars(core)[_GUARD]
        for layer, own in zip(guard.layers, before, strict=True):
            del layer.forward
            if own is not None:
                layer.forward = own


def is_sharded(core: Any) -> bool:
    """Return whether a model's weights are spread over processes."""
    return hasattr(core, "unshard")


def within(core: Any, compute: Callable[[], Tensor]) -> Tensor:
    """Return the number that `compute` gives; of a sharded model inside of its forward, where its own weights are whole.

    If memory runs out there inside `guarding`, the guard knows it and the number is zero, without gradient.
    """
    if not is_sharded(core):
        return compute()
    guard: Guard | None = vars(core).get(_GUARD)

    def forward() -> Tensor:
        if guard is None:
            return compute()
        guard.passed = 0
        with guard.catching():
            found = compute()
            if guard.error is None:
                return found
        device = next(iter(core.parameters())).device
        for layer in guard.layers[guard.passed :]:  # the others wait for this process at each of them
            layer(torch.zeros(1, 1, 1, device=device))
        return torch.zeros((), device=device)

    core.forward = forward
    try:
        made: Tensor = core()
        return made
    finally:
        del core.forward


def _forward(
    guard: Guard,
    plain: set[type],
    layer: Any,
    own: Callable[..., Any],
    hidden: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Stand in for a layer's forward, which is `own`."""
    guard.passed += 1
    if guard.error is not None:
        return hidden
    if type(layer) in plain:
        return own(hidden, *args, **kwargs)
    trained = recompute.trained_in(layer)

    def run(x: Tensor) -> Any:
        return own(x, *args, **kwargs)

    if not torch.is_grad_enabled() or not (hidden.requires_grad or trained):
        with guard.catching():
            return run(hidden)
        return hidden
    try:
        return _Guarded.apply(hidden, run, guard, *trained)  # type: ignore[no-untyped-call]
    except recompute.NoTensor as error:
        # Such a layer is left as it is: what could stand in for its output is not known
        plain.add(type(layer))
        recompute.set_generators(error.state, hidden.device)
        return run(hidden)


class _Guarded(torch.autograd.Function):
    """A layer as one node of the graph; its own graph is kept inside, so that errors in it can be caught."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, run: Any, guard: Guard, *trained: Tensor) -> Tensor:
        """Return ``run(hidden)``, or zeros of that shape; `trained` are the parameters in it that need a gradient."""
        ctx.guard, ctx.trained, ctx.made = guard, trained, None
        state = recompute.generators(hidden.device)
        part = hidden.detach().requires_grad_(hidden.requires_grad)
        ctx.wanted = [part, *trained] if hidden.requires_grad else list(trained)
        with guard.catching(), torch.enable_grad():
            ctx.made = run(part)
        if ctx.made is None:
            return hidden.new_zeros(1).expand(hidden.shape)
        if not isinstance(ctx.made, Tensor):
            raise recompute.NoTensor(state)
        return ctx.made.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of the input and of the trained parameters; zeros and none if memory ran out."""
        with_input = len(ctx.wanted) > len(ctx.trained)
        found: list[Tensor | None] = [None] * len(ctx.wanted)
        if ctx.guard.error is None:
            with ctx.guard.catching():
                found = list(torch.autograd.grad(ctx.made, ctx.wanted, gradient, allow_unused=True))
        ctx.made = None
        if with_input and found[0] is None:
            found[0] = gradient.new_zeros(1).expand(gradient.shape)
        return found.pop(0) if with_input else None, None, None, *found
