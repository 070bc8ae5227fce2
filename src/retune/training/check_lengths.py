"""How long the generated records of a check must be to show how a base treats long ones.

Short records do not show what a model does only to longer ones. Whatever depends on the length has a number in the base's config:
a window, a chunk, the tokens that attention selects, a block that is compressed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MIN_LENGTH = 150
"""The longest record has at least this many tokens: more than a block of our own kernels (64 and 96), and a GPU's tile (128)."""
_BEYOND = 24  # tokens that a record is longer than such a number
_WORDS = ("window", "chunk", "block", "topk", "top_k", "local", "compress", "stride", "kernel", "segment")


def needed(config: Any, longest: int) -> int:
    """Return how many tokens the longest generated record needs, at most `longest`.

    Args:
        config: the part of a transformers config that is about text.
        longest: tokens of the longest record that will be read.
    """
    changes = [number for number in _numbers(config.to_dict()) if number < longest]
    return min(longest, max([MIN_LENGTH, *(number + _BEYOND for number in changes)]))


def _numbers(settings: Any, named: bool = False) -> Iterator[int]:
    """Yield the integers at any depth whose name, or that of a section around them, has one of `_WORDS`."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            yield from _numbers(value, named or any(word in str(name) for word in _WORDS))
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _numbers(value, named)
    elif named and isinstance(settings, int) and not isinstance(settings, bool):
        yield settings
