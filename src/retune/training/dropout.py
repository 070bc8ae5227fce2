"""Dropout whose masks do not depend on how the records of a batch are split into passes.

The records of a batch form a unit. Whatever part of the unit a pass computes, each layer draws masks for all of the unit's
tokens, from the same generator state, and uses its own rows of them. So a pass that was too large for the memory can be
repeated in halves, and a machine with less memory learns the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """The records that a pass computes, among all records of its unit.

    Attributes:
        before, mine, all: tokens of the records before them, of their own, and of the whole unit.
        before_tails, mine_tails, all_tails: the same for tails only, see `retune.training.attention.Segments`.
    """

    before: int
    mine: int
    all: int
    before_tails: int
    mine_tails: int
    all_tails: int

    @classmethod
    def of(cls, lengths: Sequence[int], tails: Sequence[int], start: int, stop: int) -> Window:
        """Return the window of records ``start`` to ``stop`` among records of these lengths and tails."""
        counts = [(sum(x[:start]), sum(x[start:stop]), sum(x)) for x in (lengths, tails)]
        return cls(*counts[0], *counts[1])


@dataclass(frozen=True)
class DropoutSource:
    """Where one of several trials in a pass draws its masks from: its own generator, and its own unit of records.

    Attributes:
        generator: on the device of the input.
        window: the trial's records in this pass, among all of its unit; None if they are the whole unit.
    """

    generator: torch.Generator
    window: Window | None = None


# A module variable, not a ContextVar: on a GPU the backward pass runs in a thread of autograd's own, which would not see it.
_window: Window | None = None


@contextmanager
def dropout_window(window: Window | None) -> Iterator[None]:
    """Draw masks for the whole unit inside the block; with None, for the tokens that are computed."""
    global _window
    before, _window = _window, window
    try:
        yield
    finally:
        _window = before


@dataclass
class Observer:
    """What a check observes of the calls of `drop` in a block.

    Attributes:
        generator: used by `drop` in place of the default one, so that any use of the default one shows.
        unassigned: whether `drop` got tokens whose records are not known, as those routed to one expert.
    """

    generator: torch.Generator
    unassigned: bool = False


_observer: Observer | None = None


@contextmanager
def observing(device: torch.device) -> Iterator[Observer]:
    """Observe the calls of `drop` inside the block."""
    global _observer
    before, _observer = _observer, Observer(torch.Generator(device).manual_seed(0))
    try:
        yield _observer
    finally:
        _observer = before


def drop(x: Tensor, p: float, source: DropoutSource | None = None) -> tuple[Tensor, Tensor]:
    """Return `x`, shape ``(tokens, size)``, after dropout, and the mask, true where an element was kept.

    Args:
        x: the input. p: probability of zeroing an element.
        source: generator and window; if None, the device's default generator and the window of `dropout_window`. Equal
            generator states give equal masks either way.
    """
    if _observer is None or source is not None:
        return _drop(x, p, source)
    _observer.unassigned |= _window is not None and len(x) not in (_window.mine, _window.mine_tails)
    with as_default_generator(_observer.generator):
        return _drop(x, p, None)


def _drop(x: Tensor, p: float, source: DropoutSource | None) -> tuple[Tensor, Tensor]:
    window = source.window if source else _window
    on_cpu = x.device.type == "cpu"
    if window is None or window.mine == window.all or len(x) not in (window.mine, window.mine_tails):
        if source and on_cpu:
            # What `native_dropout`, which takes no generator, computes on a CPU
            return _masked(x, _keep_mask(len(x), x.shape[1], p, source.generator), p)
        with _source_as_default(source):
            dropped, mask = torch.native_dropout(x, p, True)
        return dropped, mask
    if len(x) == window.mine:
        rows, start = window.all, window.before
    else:
        rows, start = window.all_tails, window.before_tails
    if on_cpu:  # the same random numbers as below, without a matrix of floats for the whole unit
        mask = _keep_mask(rows, x.shape[1], p, source.generator if source else None)
    else:
        with _source_as_default(source):
            mask = torch.native_dropout(x.new_zeros(rows, x.shape[1]), p, True)[1]
    # A copy: the unit's mask need not stay in memory
    return _masked(x, mask[start : start + len(x)].clone(), p)


def _masked(x: Tensor, mask: Tensor, p: float) -> tuple[Tensor, Tensor]:
    return (x * mask).mul_(1 / (1 - p)), mask


def _keep_mask(rows: int, columns: int, p: float, generator: torch.Generator | None) -> Tensor:
    return torch.empty(rows, columns, dtype=torch.bool).bernoulli_(1 - p, generator=generator)


@contextmanager
def as_default_generator(generator: torch.Generator) -> Iterator[None]:
    """Use `generator` as the default generator of its device inside the block; it advances, the default one does not."""
    device = generator.device
    default = (
        torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
    )
    before = default.get_state()
    default.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(default.get_state())
        default.set_state(before)


def _source_as_default(source: DropoutSource | None) -> AbstractContextManager[None]:
    on_gpu = source is not None and source.generator.device.type == "cuda"
    return as_default_generator(source.generator) if source and on_gpu else nullcontext()
