"""The largest pass, in tokens, that fits into the available memory."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from retune.training import memory, recompute

_SHARE_OF_GPU = 0.9  # the rest is for what fragments, and for the libraries' own buffers
_SHARE_OF_CPU = 0.5  # of which other trials on the machine may take their part
_MARGIN = 1.5  # on what the shape says; what was measured needs none
_FRESH = (
    0.5  # seconds for which what is free is not asked again: asking takes as long as part of a small step
)
_MEASURABLE = 256  # tokens in a pass from which on its memory says something about larger ones


class Room:
    """The memory for passes of one model with its adapter.

    What a token takes is computed from the shape of the model, and on a GPU measured in every pass. If the longest record
    does not fit so, layers keep their input alone and compute the rest again (`retune.training.recompute`). What ran out
    of memory all the same is not tried again.

    Attributes:
        recomputes: whether layers compute again in the backward pass.
    """

    def __init__(self, core: Any, device: torch.device, longest: int) -> None:
        self.device = device
        self.recomputes = False
        self._ceiling: int | None = None
        self._free: tuple[float, int | None] = (-math.inf, None)
        self._measured: dict[bool, float] = {}
        self._shape = {again: _bytes_per_token(core, device, longest, again) for again in (False, True)}
        self._can_recompute = bool(recompute.layers(core))
        if (limit := self.tokens()) is not None and limit < longest and self._can_recompute:
            self.recomputes = True

    def tokens(self, less: int = 0) -> int | None:
        """Return the most tokens that a pass may have if `less` bytes were taken; None if nothing says."""
        now = time.monotonic()
        if less or now - self._free[0] > _FRESH:
            self._free = now, memory.free(self.device)
        free = self._free[1]
        limits = [] if self._ceiling is None else [self._ceiling]
        if free is not None:
            share = _SHARE_OF_GPU if self.device.type == "cuda" else _SHARE_OF_CPU
            each = self._measured.get(self.recomputes) or self._shape[self.recomputes] * _MARGIN
            limits.append(int(max(0, free - less) * share / each))
        return max(1, min(limits)) if limits else None

    def begin(self) -> int:
        """Start to measure a pass; returns what `end` wants."""
        return memory.allocated(self.device) if self.device.type == "cuda" else 0

    def end(self, before: int, tokens: int) -> None:
        """Learn from a pass of so many tokens that went well."""
        if self.device.type != "cuda" or tokens < _MEASURABLE:
            return
        each = (torch.cuda.max_memory_allocated(self.device) - before) / tokens
        self._measured[self.recomputes] = max(each, self._measured.get(self.recomputes, 0.0))

    def shrink(self, tokens: int, records: int) -> str | None:
        """Return what to do after a pass ran out of memory, in words; None if nothing is left to do.

        Args:
            tokens, records: how many the pass had.
        """
        self._free = (-math.inf, None)
        if records > 1:
            self._ceiling = max(1, tokens // 2)
            return "its records are computed in two halves"
        if self._can_recompute and not self.recomputes:
            self.recomputes = True
            return "its layers are computed again in the backward pass"
        return None


def _bytes_per_token(core: Any, device: torch.device, longest: int, again: bool) -> float:
    """Return about what a forward pass keeps of a token for the backward pass.

    Counted in a layer of transformers' Llama: 20 times the hidden size (norms in float32, queries, keys, values, what goes into
    adapters and residuals) and 4 times the inner size; on a CPU the shares of attention in float32 besides.
    """
    config = core.config.get_text_config()
    hidden = int(getattr(config, "hidden_size", None) or core.get_input_embeddings().weight.shape[-1])
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    count = int(getattr(config, "num_hidden_layers", None) or 1)
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    size = torch.finfo(core.dtype).bits // 8
    layer = (20 * hidden + 4 * inner) * size
    if device.type == "cpu":
        layer += heads * longest * 4
    return float(count * hidden * size + layer if again else count * layer)
