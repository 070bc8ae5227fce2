"""Registers `retune.training.attention` as an attention implementation of transformers.

transformers looks an attention implementation up by name (``config._attn_implementation``). The one registered here
reads the records' borders from the keyword argument ``segments``, which the model passes on to every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from retune.errors import RetuneError
from retune.training import attention
from retune.training.attention import AttentionOptions, Pattern, Segments
from retune.training.llama_layer import installed

NAME = "retune_segments"


class ForeignAttention(RetuneError):
    """The model's attention cannot keep the records of a flattened batch apart."""


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
    """Compute attention as transformers calls it; shapes as in `attend`.

    A sliding window or chunks come with `attention_mask` alone, see `_transformers_mask`.

    Raises:
        ForeignAttention: if the model needs a kind of attention that is not implemented here, rather than compute another one.
    """
    if segments is None:
        raise ForeignAttention(
            f"{type(module).__name__} must get the argument `segments`, but its model does not pass it on"
        )
    foreign = [name for name in ("position_bias", "indices", "block_mask") if options.get(name) is not None]
    if attention_mask is not None and not isinstance(attention_mask, Pattern):
        foreign.append("a mask of its own")
    if options.get("is_causal") is False or not getattr(module, "is_causal", True):
        foreign.append("later tokens")
    if foreign or query.shape[2] != key.shape[2]:
        raise ForeignAttention(
            f"{type(module).__name__} must attend to earlier tokens of its own record alone, but it uses "
            f"{', '.join(foreign) or 'another number of keys than of queries'}"
        )
    masks, dropout_p = None, dropout if module.training else 0.0
    if attention_mask is not None and attention_mask.narrows(segments):
        masks = attention_mask.masks(segments)
    return attention.attend(
        query, key, value, segments, AttentionOptions(scaling, masks, softcap, s_aux, dropout_p)
    ), None


def _transformers_mask(
    mask_function: Callable[..., Any], local_size: int | None = None, use_vmap: bool = False, **options: Any
) -> Pattern | None:
    """Return the pattern of a layer in place of transformers' mask of tokens x tokens; None for plain causal attention.

    Raises:
        ForeignAttention: if the mask function is the model's own.
    """
    if use_vmap:  # transformers sets it for mask functions that are not its own
        raise ForeignAttention("the model must use one of transformers' masks, but it has a mask of its own")
    return None if local_size is None else Pattern(mask_function, local_size)


def is_flattened(model: Any) -> bool:
    """Return whether the model is inside `by_segments`."""
    return bool(model.config._attn_implementation == NAME)


@contextmanager
def by_segments(model: Any, longest: int | None = None) -> Iterator[None]:
    """Use attention by segments in a transformers model inside the block; restore its own attention afterwards.

    Args:
        model: the transformers model.
        longest: tokens of the longest record inside the block; see `retune.training.llama_layer.installed`. None without
            dropout, where it does not matter.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS[NAME] = _transformers_attention
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _transformers_mask)
    with using_attention(model, NAME), installed(model, longest):
        yield


@contextmanager
def using_attention(model: Any, implementation: str) -> Iterator[None]:
    """Use the named attention implementation in all parts of a transformers model inside the block."""
    configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    before = {key: getattr(config, "_attn_implementation", None) for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = implementation
        yield
    finally:
        for key, config in configs.items():
            # The private attribute: setting `_attn_implementation` would also set that of the configs inside this one.
            config._attn_implementation_internal = before[key]
