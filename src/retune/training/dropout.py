"""Dropout whose draws do not depend on how the records of a batch are split into passes.

A batch of records is one unit of drawing: whatever part of it a pass computes, each layer draws for all of the unit's
tokens, from the same state of the generator, and takes its own. So a pass that was too large for the memory can be repeated
in halves, and a machine with less memory learns the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """The records that a pass computes, of all in a unit.

    Attributes:
        before, mine, all: tokens of the records before them, of theirs, and of the unit.
        before_tails, mine_tails, all_tails: the same counted in tails, see `retune.training.attention.Segments`.
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
class Draws:
    """Where the draws of one of several trials in a pass come from: its own generator, and its own unit of records.

    Attributes:
        generator: on the device of what is dropped.
        window: the trial's records in this pass, of all in its unit; None if they are the whole unit.
    """

    generator: torch.Generator
    window: Window | None = None


_window: Window | None = (
    None  # not a ContextVar: on a GPU the backward pass runs in a thread of autograd's own
)


@contextmanager
def drawing(window: Window | None) -> Iterator[None]:
    """Draw as the whole unit would inside the block; None draws for what is computed."""
    global _window
    before, _window = _window, window
    try:
        yield
    finally:
        _window = before


@dataclass
class Watch:
    """What a check sees of the draws in a block.

    Attributes:
        generator: draws for `drop` in place of the default one, which then nothing should draw from.
        strays: whether something was dropped whose records are not known, as tokens that were routed to an expert.
    """

    generator: torch.Generator
    strays: bool = False


_watch: Watch | None = None


@contextmanager
def watching(device: torch.device) -> Iterator[Watch]:
    """Let a check see the draws of `drop` inside the block."""
    global _watch
    before, _watch = _watch, Watch(torch.Generator(device).manual_seed(0))
    try:
        yield _watch
    finally:
        _watch = before


def drop(x: Tensor, chance: float, draws: Draws | None = None) -> tuple[Tensor, Tensor]:
    """Return `x`, shape ``(tokens, size)``, after dropout, and the mask, true where an element was kept.

    Args:
        x, chance: what is dropped, and each element's probability of it.
        draws: where from; the device's default generator and `drawing` if None. Equal states give equal masks either way.
    """
    if _watch is None or draws is not None:
        return _drop(x, chance, draws)
    _watch.strays |= _window is not None and len(x) not in (_window.mine, _window.mine_tails)
    with drawn_by(_watch.generator):
        return _drop(x, chance, None)


def _drop(x: Tensor, chance: float, draws: Draws | None) -> tuple[Tensor, Tensor]:
    window = draws.window if draws else _window
    if window is None or window.mine == window.all or len(x) not in (window.mine, window.mine_tails):
        with _default(draws):
            dropped, mask = (
                _masked(x, chance, draws.generator)
                if draws and x.device.type == "cpu"
                else torch.native_dropout(x, chance, True)
            )
        return dropped, mask
    if len(x) == window.mine:
        rows, start = window.all, window.before
    else:
        rows, start = window.all_tails, window.before_tails
    if x.device.type == "cpu":  # the same draws as below, without a matrix of floats for all of the unit
        mask = _kept(rows, x.shape[1], chance, draws.generator if draws else None)
    else:
        with _default(draws):
            mask = torch.native_dropout(x.new_zeros(rows, x.shape[1]), chance, True)[1]
    mask = mask[start : start + len(x)].clone()
    return (x * mask).mul_(1 / (1 - chance)), mask


def _masked(x: Tensor, chance: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return what ``native_dropout``, which takes no generator, would on a CPU."""
    mask = _kept(len(x), x.shape[1], chance, generator)
    return (x * mask).mul_(1 / (1 - chance)), mask


def _kept(rows: int, columns: int, chance: float, generator: torch.Generator | None) -> Tensor:
    return torch.empty(rows, columns, dtype=torch.bool).bernoulli_(1 - chance, generator=generator)


@contextmanager
def drawn_by(generator: torch.Generator) -> Iterator[None]:
    """Let the default generator of a generator's device draw in its place inside the block."""
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


def _default(draws: Draws | None) -> AbstractContextManager[None]:
    return drawn_by(draws.generator) if draws and draws.generator.device.type == "cuda" else nullcontext()
