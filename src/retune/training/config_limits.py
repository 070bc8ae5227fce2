"""What a base's config says about records longer than those of a check.

A few short records do not show what a model does only to longer ones: a window, a chunk, rotary frequencies that change with the
length, tokens that attention selects, a block that is compressed. Whatever depends on the length has a number in the config.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

MIN_LENGTH = 150
"""The longest record has at least this many tokens: more than a block of our own kernels (64 and 96), and a GPU's tile (128)."""
_BEYOND = 24  # tokens that a record is longer than such a number
_WORDS = ("window", "chunk", "block", "topk", "top_k", "local", "compress", "stride", "kernel", "segment")
_LAYER_TYPES = {"full_attention", "attention", "sliding_attention", "chunked_attention"}


def text_config(core: Any) -> Any:
    """Return the part of a transformers model's config that is about text."""
    return core.config.get_text_config()


def rotary_limit(config: Any) -> float:
    """Return the tokens up to which a base's rotary frequencies do not depend on the length; infinity if they never do."""
    parameters: Any = getattr(config, "rope_parameters", None) or {}
    forms = [parameters, *(form for form in parameters.values() if isinstance(form, dict))]
    limits: list[float] = [math.inf]
    for form in forms:
        if form.get("rope_type") in ("dynamic", "longrope", "su"):
            lengths = [form.get("original_max_position_embeddings"), getattr(config, "original_max_position_embeddings", None),
                     getattr(config, "max_position_embeddings", None)]  # fmt: skip
            limits += [int(limit) for limit in lengths if limit]
    return min(limits)


def unsupported_reason(core: nn.Module, longest: int) -> str:
    """Return why a base's config excludes flattened batches, even if short records agree; empty if it does not.

    Args:
        core: the transformers model.
        longest: the longest record in training, in tokens.
    """
    config = text_config(core)
    limit = rotary_limit(config)
    if longest > limit:
        return f"its rotary frequencies change with the length from {limit} tokens on, and records may have {longest}"
    other = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES)
    if other:
        return f"it has layers of the kind {', '.join(other)}, which keep records apart in no flattened batch"
    if any(isinstance(part, nn.Conv1d) for part in core.modules()):
        return "it has convolutions along the sequence, which run over the records' borders"
    for name in ("index_topk", "index_top_k"):
        top = getattr(config, name, None)
        if top is not None and longest > top:
            return f"its attention chooses {top} of a record's tokens, and records may have {longest}"
    return ""


def length_needed(config: Any, longest: int) -> int:
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
