"""Lets a pass over a sharded base (FSDP) run out of memory in one process without a deadlock of the others.

FSDP gathers a layer's weights from all processes when it comes to the layer, forward and backward. If one process left a pass
with an error, the others would wait for it for ever. Inside `guarding`, a layer that runs out of memory returns a placeholder
instead, and so does what is computed before, between and after the layers (embeddings, head, loss). The process takes part in
the rest of the pass without computing. Then the processes agree on whether the pass counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from retune.errors import is_out_of_memory
from retune.training import recompute
from retune.training.devices import Devices

_GUARD, _FORM = "_retune_guard", "_retune_form"


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
        outputs: the layers' outputs, by their nodes of the graph.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        self.error: str | None = None
        self.layers, self.passed = layers, 0
        self.outputs: dict[Any, Tensor] = {}

    def outside(self, out: Any) -> Any:
        """Return a tensor with all that was computed for it outside of layers as one node, whose backward catches errors."""
        if not isinstance(out, Tensor) or out.grad_fn is None or out.grad_fn in self.outputs:
            return out
        return _Outside.apply(self, [out], *self._sources(out))  # type: ignore[no-untyped-call]

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Mark a layer's outputs as where the graph outside of layers begins; a forward hook, after FSDP's own."""

        def marked(out: Any) -> Any:
            if not isinstance(out, Tensor) or not out.requires_grad:
                return out
            mark: Tensor = _Mark.apply(out)  # type: ignore[no-untyped-call]
            self.outputs[mark.grad_fn] = mark
            return mark

        return tree_map(marked, output)

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Let each input of a layer come from one node; a forward pre-hook, before FSDP's own."""
        return tree_map(self.outside, (args, kwargs))

    def _sources(self, out: Tensor) -> list[Tensor]:
        """Return what a tensor was computed from outside of layers: outputs of layers, and trained parameters."""
        sources: dict[Any, Tensor] = {}
        seen, waiting = set(), [out.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            source = self.outputs.get(node, getattr(node, "variable", None))
            if source is not None:
                sources[node] = source
            else:
                waiting += [before for before, _ in node.next_functions]
        return list(sources.values())

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
    hooks: list[Any] = []
    for layer in guard.layers:
        layer.forward = partial(_forward, guard, layer, layer.forward)
        hooks.append(layer.register_forward_pre_hook(guard.enter, prepend=True, with_kwargs=True))
        hooks.append(layer.register_forward_hook(guard.leave))
    vars(core)[_GUARD] = guard
    try:
        yield guard
    finally:
        del vars(core)[_GUARD]
        guard.outputs.clear()
        for hook in hooks:
            hook.remove()
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
                return cast(Tensor, guard.outside(result))
        device = next(iter(core.parameters())).device
        # The other processes wait at each of these for this one's shard
        for layer in guard.layers[guard.passed :]:
            layer(torch.zeros(1, 1, 1, device=device))
        return torch.zeros((), device=device)

    core.forward = forward
    try:
        result: Tensor = core()
        return result
    finally:
        del core.forward


def _forward(guard: Guard, layer: Any, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Stand in for a layer's forward, which is `own`."""
    guard.passed += 1
    call, trained = recompute.Call(own, args, kwargs), recompute.trained_in(layer)
    if guard.error is None and torch.is_grad_enabled() and (call.inputs or trained):
        return call.output(_Guarded.apply(call, guard, layer, *call.inputs, *trained))  # type: ignore[no-untyped-call]
    if guard.error is None:
        with guard.catching():
            tensors = call(call.inputs)
            _remember(layer, call, tensors)
            return call.output(tensors)
    return call.output(_zeros(layer, call))


def _remember(layer: nn.Module, call: recompute.Call, tensors: Sequence[Tensor]) -> None:
    """Keep the structure of a layer's output without its values, for `_zeros`; None means the shape of the input."""
    like = _hidden(call).shape
    shapes = [None if tensor.shape == like else (tensor.shape, tensor.dtype) for tensor in tensors]
    vars(layer)[_FORM] = call.tree, list(call.out), call.floats, shapes


def _zeros(layer: nn.Module, call: recompute.Call) -> tuple[Tensor, ...]:
    """Return placeholders for a layer's output; for a layer that was never computed, one tensor of its input's shape."""
    hidden = _hidden(call)
    unknown = tree_flatten(hidden)[1], [None], [0], [None]
    call.tree, out, call.floats, shapes = vars(layer).get(_FORM, unknown)
    call.out = list(out)
    # Expanded from one number, they take no memory
    return tuple(
        hidden.new_zeros(1).expand(hidden.shape)
        if shape is None
        else hidden.new_zeros(1, dtype=shape[1]).expand(shape[0])
        for shape in shapes
    )


def _hidden(call: recompute.Call) -> Tensor:
    return next(leaf for leaf in call.leaves if isinstance(leaf, Tensor))


class _Guarded(torch.autograd.Function):
    """A layer as one node of the graph. Its own graph is a separate one, so that errors of its backward can be caught here."""

    @staticmethod
    def forward(
        ctx: Any, call: recompute.Call, guard: Guard, layer: nn.Module, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Return what `call` returns, or zeros; `tensors`: its inputs, then the parameters in it that need a gradient."""
        ctx.set_materialize_grads(False)
        count = len(call.inputs)
        parts = [tensor.detach().requires_grad_() for tensor in tensors[:count]]
        ctx.guard, ctx.count, ctx.wanted, ctx.out = guard, count, [*parts, *tensors[count:]], None
        with guard.catching(), torch.enable_grad():
            ctx.out = call(parts)
            _remember(layer, call, ctx.out)
        if guard.error is not None:
            return _zeros(layer, call)
        return tuple(out.detach() for out in ctx.out)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of the inputs and of the trained parameters; if memory ran out, zeros and None."""
        grads: list[Tensor | None] = [None] * len(ctx.wanted)
        if ctx.guard.error is None:
            with ctx.guard.catching():
                grads = recompute.gradients(ctx.out, ctx.wanted, grad_outputs)
        ctx.out = None
        return None, None, None, *_filled(grads, ctx.wanted[: ctx.count]), *grads[ctx.count :]


class _Outside(torch.autograd.Function):
    """What is computed outside of layers as one node of the graph, so that errors of its backward can be caught here."""

    @staticmethod
    def forward(ctx: Any, guard: Guard, out: list[Tensor], *sources: Tensor) -> Tensor:
        """Return the tensor in `out`, which was computed from `sources`; a list keeps its own graph separate from this one."""
        ctx.guard, ctx.out, ctx.sources = guard, out, sources
        return out[0].detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of `sources`; if memory ran out, zeros and None."""
        grads: list[Tensor | None] = [None] * len(ctx.sources)
        if ctx.guard.error is None:
            with ctx.guard.catching():
                # Several layers may read what is computed here, and each of them has a node like this, so the graph is kept
                grads = list(
                    torch.autograd.grad(
                        ctx.out, ctx.sources, [gradient], retain_graph=True, allow_unused=True
                    )
                )
        sources, ctx.out, ctx.sources = ctx.sources, None, None
        of_layers = [None if tensor.is_leaf else tensor for tensor in sources]
        return None, None, *_filled(grads, of_layers)


class _Mark(torch.autograd.Function):
    """The identity, which gives a layer's output a node of the graph that is known."""

    @staticmethod
    def forward(ctx: Any, out: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


def _filled(grads: Sequence[Tensor | None], wanted: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return gradients with zeros for those that are missing but wanted: the earlier layers' nodes must run, they communicate."""
    return [
        tensor.new_zeros(1).expand(tensor.shape) if gradient is None and tensor is not None else gradient
        for gradient, tensor in zip(grads, wanted, strict=False)
    ]
