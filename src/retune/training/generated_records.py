"""The records that a check generates: random ordinary tokens, always the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from retune.data.tokens import Tokens, pack
from retune.training.config_limits import MIN_LENGTH, rotary_limit, text_config

LENGTHS = (11, MIN_LENGTH, 3, 22)
"""Tokens of the generated records."""


def generated_tokens(core: Any, tokenizer: Any, longest: int) -> Tokens:
    """Return random records of ordinary tokens, always the same ones, none longer than `longest` or than the base supports."""
    limit = length_limit(core, longest)
    return generate(core, tokenizer, [max(2, min(length, limit)) for length in LENGTHS])


def length_limit(core: Any, longest: int) -> int:
    """Return the tokens that a generated record may have: `longest`, or less if the base supports less."""
    config = text_config(core)
    table = getattr(config, "max_position_embeddings", None) or 0
    return int(min(longest, rotary_limit(config), table if table > 0 else longest))


def generate(core: Any, tokenizer: Any, lengths: Sequence[int]) -> Tokens:
    """Return random records of the given lengths."""
    drawn = ordinary_tokens(core, tokenizer, sum(lengths))
    records, start = [], 0
    for length in lengths:
        prompt = max(min(2, length - 1), length // 3)  # about a third of a record; the rest is counted
        records.append((drawn[start : start + length], [index >= prompt for index in range(length)]))
        start += length
    return pack(records)


def ordinary_tokens(core: Any, tokenizer: Any, count: int) -> list[int]:
    """Return random tokens that are not special tokens; always the same ones.

    Args:
        core: the transformers model. tokenizer: its own; None if there is none.
        count: how many tokens.
    """
    size = int(core.get_input_embeddings().weight.shape[0])
    if hasattr(tokenizer, "__len__"):
        size = min(size, len(tokenizer))
    # Without a tokenizer, where they usually are
    special = set(getattr(tokenizer, "all_special_ids", range(4)))
    ordinary = [token for token in range(size) if token not in special][: 1 << 16]
    draws = torch.randint(len(ordinary), (count,), generator=torch.Generator().manual_seed(0))
    return [ordinary[draw] for draw in draws.tolist()]
