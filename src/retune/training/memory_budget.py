"""How many tokens a pass may have, given the available memory."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from retune.training import memory, recompute

_SHARE_OF_GPU = 0.9  # the rest is for fragmentation and for the libraries' own buffers
_SHARE_OF_CPU = 0.5  # other trials and programs on the machine need memory too
_MARGIN = 1.5  # on the estimate from the model's shape; a measured value needs none
# Free memory is looked up at most this often: a look-up takes a noticeable part of a small step
_FREE_SECONDS = 0.5
_MEASURABLE_TOKENS = 256  # smaller passes are dominated by fixed costs and say nothing about larger ones


class MemoryBudget:
    """The memory for passes of one model with its adapter.

    The bytes per token are estimated from the shape of the model, and on a GPU measured in every pass. If the longest record
    would not fit, layers keep only their input and are recomputed in the backward pass (`retune.training.recompute`). After a
    pass ran out of memory all the same, no pass of its size is tried again.

    Attributes:
        recomputes: whether layers are recomputed in the backward pass.
    """

    def __init__(self, core: Any, device: torch.device, longest: int) -> None:
        self.device = device
        self.recomputes = False
        self._ceiling: int | None = None
        self._free: tuple[float, int | None] = (-math.inf, None)
        self._measured: dict[bool, float] = {}
        self._estimated = {again: _bytes_per_token(core, device, longest, again) for again in (False, True)}
        self._can_recompute = bool(recompute.layers(core))
        if (limit := self.tokens()) is not None and limit < longest and self._can_recompute:
            self.recomputes = True

    def tokens(self, less: int = 0) -> int | None:
        """Return the most tokens that a pass may have; None if there is no known limit.

        Args:
            less: bytes to leave free besides.
        """
        now = time.monotonic()
        if less or now - self._free[0] > _FREE_SECONDS:
            self._free = now, memory.free(self.device)
        free = self._free[1]
        limits = [] if self._ceiling is None else [self._ceiling]
        if free is not None:
            share = _SHARE_OF_GPU if self.device.type == "cuda" else _SHARE_OF_CPU
            per_token = self._measured.get(self.recomputes) or self._estimated[self.recomputes] * _MARGIN
            limits.append(int(max(0, free - less) * share / per_token))
        return max(1, min(limits)) if limits else None

    def begin(self) -> int:
        """Start to measure a pass; return the bytes in use, for `end`."""
        return memory.allocated(self.device) if self.device.type == "cuda" else 0

    def end(self, before: int, tokens: int) -> None:
        """Update the measured bytes per token after a pass that succeeded.

        Args:
            before: from `begin`. tokens: of the pass.
        """
        if self.device.type != "cuda" or tokens < _MEASURABLE_TOKENS:
            return
        per_token = (torch.cuda.max_memory_allocated(self.device) - before) / tokens
        self._measured[self.recomputes] = max(per_token, self._measured.get(self.recomputes, 0.0))

    def shrink(self, tokens: int, records: int) -> str | None:
        """Allow less after a pass ran out of memory; return what changes, for a note, or None if nothing is left to try.

        Args:
            tokens, records: how many the pass had.
        """
        self._free = (-math.inf, None)
        if records > 1:
            self._ceiling = max(1, tokens // 2)
            return "its records are computed in two halves"
        if self._can_recompute and not self.recomputes:
            self.recomputes = True
            return "its layers are recomputed in the backward pass"
        return None


def _bytes_per_token(core: Any, device: torch.device, longest: int, recompute: bool) -> float:
    """Return an estimate of the bytes that a forward pass keeps per token for the backward pass.

    Counted in a layer of transformers' Llama: 20 times the hidden size (norms in float32, queries, keys, values, inputs of
    adapters, residuals) and 4 times the intermediate size; on a CPU also the attention probabilities in float32.
    With `recompute`, every layer keeps only its input, and one layer at a time the rest.
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
    return float(count * hidden * size + layer if recompute else count * layer)
