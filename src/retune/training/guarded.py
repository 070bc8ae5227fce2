"""Lets a pass over a sharded base (FSDP) run out of memory in one process without a deadlock of the others.

FSDP gathers a layer's weights from all processes when it comes to the layer, forward and backward. If one process left a pass
with an error, the others would wait for it for ever. Inside `guarding`, a layer that runs out of memory returns a placeholder
instead, and the process takes part in the rest of the pass without computing. Then the processes agree on whether the pass
counts.
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


class OutOfMemory(torch.OutOfMemoryError):
    """A pass ran out of memory in some process, and all processes raise this. `local`: whether it was this process."""

    def __init__(self, text: str | None) -> None:
        super().__init__(text or "another process of this trial ran out of memory")
        self.local = text is not None


class Guard:
    """The state of the current pass.

    Attributes:
        error: the allocator's message, if this process ran out of memory.
        layers: the guarded layers; none unless the base is sharded. passed: how many of them this forward has called.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        self.error: str | None = None
        self.layers, self.passed = layers, 0

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Catch out-of-memory errors of the block and note them; raise all others."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.error = str(error) or type(error).__name__

    def agree(self, devices: Devices) -> None:
        """Wait for the other processes of a sharded base.

        Raises:
            OutOfMemory: if any process, this one included, ran out of memory.
        """
        if devices.max_count(int(self.error is not None)):
            raise OutOfMemory(self.error)


@contextmanager
def guarding(core: Any) -> Iterator[Guard]:
    """Guard the layers of a transformers model inside the block if it is sharded; inside of `recompute.recomputing`."""
    guard = Guard(recompute.layers(core) if is_sharded(core) else [])
    before = [vars(layer).get("forward") for layer in guard.layers]
    unsupported: set[type] = set()
    for layer in guard.layers:
        layer.forward = partial(_forward, guard, unsupported, layer, layer.forward)
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
    """Return `compute()`; for a sharded model, run it inside the model's forward, where FSDP has gathered its own weights.

    If memory runs out there inside `guarding`, the guard notes it and zero without a gradient is returned.
    """
    if not is_sharded(core):
        return compute()
    guard: Guard | None = vars(core).get(_GUARD)

    def forward() -> Tensor:
        if guard is None:
            return compute()
        guard.passed = 0
        with guard.catching():
            result = compute()
            if guard.error is None:
                return result
        device = next(iter(core.parameters())).device
        for layer in guard.layers[
            guard.passed :
        ]:  # the other processes wait at each of them for this one's shard
            layer(torch.zeros(1, 1, 1, device=device))
        return torch.zeros((), device=device)

    core.forward = forward
    try:
        result: Tensor = core()
        return result
    finally:
        del core.forward


def _forward(
    guard: Guard,
    unsupported: set[type],
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
    if type(layer) in unsupported:
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
        # No placeholder is known for such an output, so these layers stay unguarded
        unsupported.add(type(layer))
        recompute.set_rng_states(error.state, hidden.device)
        return run(hidden)


class _Guarded(torch.autograd.Function):
    """A layer as one node of the graph. Its own graph is a separate one, so that errors of its backward can be caught here."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, run: Any, guard: Guard, *trained: Tensor) -> Tensor:
        """Return ``run(hidden)``, or zeros of that shape; `trained` are the parameters in it that need a gradient."""
        ctx.guard, ctx.trained, ctx.out = guard, trained, None
        state = recompute.rng_states(hidden.device)
        part = hidden.detach().requires_grad_(hidden.requires_grad)
        ctx.wanted = [part, *trained] if hidden.requires_grad else list(trained)
        with guard.catching(), torch.enable_grad():
            ctx.out = run(part)
        if ctx.out is None:
            return hidden.new_zeros(1).expand(hidden.shape)  # takes no memory
        if not isinstance(ctx.out, Tensor):
            raise recompute.NoTensor(state)
        return ctx.out.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of the input and of the trained parameters; if memory ran out, zeros and None."""
        with_input = len(ctx.wanted) > len(ctx.trained)
        grads: list[Tensor | None] = [None] * len(ctx.wanted)
        if ctx.guard.error is None:
            with ctx.guard.catching():
                grads = list(torch.autograd.grad(ctx.out, ctx.wanted, gradient, allow_unused=True))
        ctx.out = None
        if with_input and grads[0] is None:  # the earlier layers' nodes must run too: they communicate
            grads[0] = gradient.new_zeros(1).expand(gradient.shape)
        return grads.pop(0) if with_input else None, None, None, *grads
