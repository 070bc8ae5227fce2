"""Dropout whose draws do not depend on how the records of a batch are split into passes.

A batch of records is one unit of drawing: whatever part of it a pass computes, each layer draws for all of the unit's
tokens, from the same state of the generator, and takes its own. So a pass that was too large for the memory can be repeated
in halves, and a machine with less memory learns the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


def drop(x: Tensor, chance: float) -> tuple[Tensor, Tensor]:
    """Return `x`, shape ``(tokens, size)``, after dropout, and the mask, true where an element was kept."""
    window = _window
    if window is None or window.mine == window.all or len(x) not in (window.mine, window.mine_tails):
        dropped, mask = torch.native_dropout(x, chance, True)
        return dropped, mask
    if len(x) == window.mine:
        rows, start = window.all, window.before
    else:
        rows, start = window.all_tails, window.before_tails
    if x.device.type == "cpu":  # the same draws as below, without a matrix of floats for all of the unit
        mask = torch.empty(rows, x.shape[1], dtype=torch.bool).bernoulli_(1 - chance)
    else:
        mask = torch.native_dropout(x.new_zeros(rows, x.shape[1]), chance, True)[1]
    mask = mask[start : start + len(x)].clone()
    return (x * mask).mul_(1 / (1 - chance)), mask
