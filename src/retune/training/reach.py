"""How long made-up records must be to show what a base does to long ones.

Short records say nothing of what a model does to longer ones. What changes with the length has a number in the base's config: a
window, a chunk, the tokens that attention selects, a block that is compressed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

NEAR = 150
"""Tokens that always reach beyond the blocks of our own code on a CPU (64 and 96), and beyond one full tile of a GPU's."""
_BEHIND = 24  # tokens behind such a number
_WORDS = ("window", "chunk", "block", "topk", "top_k", "local", "compress", "stride", "kernel", "segment")


def of(config: Any, longest: int) -> int:
    """Return how many tokens the longest made-up record needs, at most `longest`.

    Args:
        config: the part of a transformers config that is about text.
        longest: tokens of the longest record that will be read.
    """
    changes = [number for number in _numbers(config.to_dict()) if number < longest]
    return min(longest, max([NEAR, *(number + _BEHIND for number in changes)]))


def _numbers(settings: Any, named: bool = False) -> Iterator[int]:
    """Yield the whole numbers under names that tell of a length, at any depth."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            yield from _numbers(value, named or any(word in str(name) for word in _WORDS))
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _numbers(value, named)
    elif named and isinstance(settings, int) and not isinstance(settings, bool):
        yield settings
