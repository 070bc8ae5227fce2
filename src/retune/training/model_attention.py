"""Lets a transformers model attend by `retune.training.attention`.

transformers looks an attention implementation up by name (``config._attn_implementation``). The one registered here
reads the records' borders from the keyword argument ``segments`` that the model passes down to every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from retune.errors import RetuneError
from retune.training import attention
from retune.training.attention import Form, Pattern, Segments
from retune.training.llama_layer import installed

NAME = "retune_segments"


class ForeignAttention(RetuneError):
    """The model's attention is not one that can keep the records of a flattened batch apart."""


def _transformers_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    segments: Segments | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The signature that transformers calls; shapes as in `attend`. Which tokens are seen is said by the mask alone.

    Raises:
        ForeignAttention: if the model asks for a kind of attention that this one is not; a wrong sum would go unseen.
    """
    if segments is None:
        raise ForeignAttention(
            f"the borders of the records do not reach the attention of {type(module).__name__}"
        )
    foreign = [name for name in ("position_bias", "indices", "block_mask") if options.get(name) is not None]
    if attention_mask is not None and not isinstance(attention_mask, Pattern):
        foreign.append("a mask of its own")
    if options.get("is_causal") is False or not getattr(module, "is_causal", True):
        foreign.append("a view of later tokens")
    if foreign or query.shape[2] != key.shape[2]:
        raise ForeignAttention(
            f"{type(module).__name__} attends with {', '.join(foreign) or 'keys of other places'}"
        )
    masks, chance = None, dropout if module.training else 0.0
    if attention_mask is not None and attention_mask.narrows(segments):
        masks = attention_mask.masks(segments)
    return attention.attend(query, key, value, segments, Form(scaling, masks, softcap, s_aux, chance)), None


def _transformers_mask(
    mask_function: Callable[..., Any], local_size: int | None = None, use_vmap: bool = False, **options: Any
) -> Pattern | None:
    """Stand in for transformers' making of a mask of tokens x tokens.

    Raises:
        ForeignAttention: if the mask is one of the model's own.
    """
    if use_vmap:
        raise ForeignAttention("the model attends by a mask of its own")
    return None if local_size is None else Pattern(mask_function, local_size)


def flattens(model: Any) -> bool:
    """Return whether the model is inside `by_segments`."""
    return bool(model.config._attn_implementation == NAME)


@contextmanager
def by_segments(model: Any, longest: int | None = None) -> Iterator[None]:
    """Let a transformers model attend by segments inside the block; its own attention is back afterwards.

    Args:
        model: the transformers model.
        longest: tokens of the longest record of all that are read inside the block; None if it does not matter what is
            computed alike for all of them, as without dropout.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS[NAME] = _transformers_attention
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _transformers_mask)
    with attending(model, NAME), installed(model, longest):
        yield


@contextmanager
def attending(model: Any, implementation: str) -> Iterator[None]:
    """Let a transformers model, with all its parts, attend by the named implementation inside the block."""
    configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    before = {key: getattr(config, "_attn_implementation", None) for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = implementation
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]  # of this one alone, not of those in it
