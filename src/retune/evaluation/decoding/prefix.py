"""Common prefixes of prompts: how long they are, when sharing them pays, and their cached keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from retune.evaluation.decoding.packed import Layers

_SHORTEST_SHARED = 16  # tokens
# The overhead of a call of the model, in tokens. On a CPU that is little. A GPU computes about this many tokens in the time it
# takes to launch the kernels of a call; its value is an estimate.
CALL_TOKENS = {"cpu": 128, "cuda": 2048}


class Prefix:
    """Keys and values of a prefix, and the memory in which batches continue it.

    Args:
        length: tokens of the prefix. room: tokens of the longest prompt and its answer.
        layers: keys and values per layer, each of shape (key heads, length, head size).
    """

    def __init__(self, length: int, room: int, layers: Layers) -> None:
        self.length, self.layers = length, layers
        self._room = room
        self._blocks: list[tuple[torch.Tensor, torch.Tensor]] = []

    def cache(self, rows: int) -> Any:
        """Return a cache for a batch after the prefix. The next call reuses its memory, so it is invalid from then on."""
        from transformers import DynamicCache

        if not self._blocks or len(self._blocks[0][0]) < rows:
            self._blocks = []  # freed before the larger ones are made
            self._blocks = [
                (self._block(keys, rows), self._block(values, rows)) for keys, values in self.layers
            ]
        cache = DynamicCache()
        cache.layers = [
            _block_layer(keys[:rows], values[:rows], self.length) for keys, values in self._blocks
        ]
        return cache

    def filled(self, lengths: Sequence[int], layers: Layers) -> Any:
        """Return a cache for rows of these lengths behind the prefix, whose keys and values are computed already.

        Args:
            lengths: of the rows, without the prefix.
            layers: their keys and values, per layer, of shape (key heads, sum of the lengths, head size); in the cache the
                rows end together.
        """
        import torch

        cache, longest = self.cache(len(lengths)), max(lengths)
        for layer, states in zip(cache.layers, layers, strict=True):
            for block, state in zip(layer.blocks, states, strict=True):
                for row, own in zip(block, torch.split(state, list(lengths), 1), strict=True):
                    gap = self.length + longest - own.shape[1]
                    row[:, gap : gap + own.shape[1]] = own
            layer.length += longest
        return cache

    def _block(self, prefix: torch.Tensor, rows: int) -> torch.Tensor:
        # Zeros, not uninitialised memory: masked positions of padded rows must still be numbers.
        block = prefix.new_zeros(rows, prefix.shape[0], self._room, prefix.shape[2])
        block[:, :, : self.length] = prefix
        return block


def _block_layer(keys: torch.Tensor, values: torch.Tensor, length: int) -> Any:
    """Return a cache layer that writes into preallocated memory, where `DynamicLayer` copies everything for every token."""
    from transformers.cache_utils import DynamicLayer

    class Block(DynamicLayer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.blocks = (keys, values)
            self.length = length
            self.is_initialized = True

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
        ) -> Any:
            end = self.length + key_states.shape[-2]
            for block, states in zip(self.blocks, (key_states, value_states), strict=True):
                block[:, :, self.length : end] = states
            self.length = end
            self.keys, self.values = (block[:, :, :end] for block in self.blocks)
            return self.keys, self.values

        def get_seq_length(self) -> int:
            return self.length

        def batch_select_indices(self, indices: torch.Tensor) -> None:
            self.blocks = (self.blocks[0][indices], self.blocks[1][indices])

    return Block()


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all prompts begin with, leaving at least one token to each."""
    first, last = min(map(list, prompts)), max(map(list, prompts))  # the two that differ earliest
    return min(_agree(first, last), min(map(len, prompts)) - 1)


def worth_sharing(prompts: Sequence[Sequence[int]], start: int, cost: float) -> bool:
    """Return whether computing the common prefix after `start` once saves more tokens than it costs (`separation_cost`)."""
    gain = common_prefix(prompts) - start
    return len(prompts) > 1 and gain >= _SHORTEST_SHARED and gain * (len(prompts) - 1) >= cost


def separation_cost(device: str, call_tokens: float, rows: int, batch_size: int, steps: int) -> float:
    """Return the cost, in tokens, of computing some of a batch's rows after a longer prefix of their own.

    There is one call for the prefix. The rows also fill batches of their own, the last one only in part, so each of its calls is
    not shared with other rows. On a CPU a call takes time in proportion to its rows, so this part costs nothing.

    Args:
        device: type of the device. call_tokens: what a call costs.
        rows: how many are separated. batch_size: rows at once. steps: calls of a batch.
    """
    lost = 0.0 if device == "cpu" else -(-rows // batch_size) - rows / batch_size
    return call_tokens * (1 + steps * lost)


def split_by_prefix(prompts: Sequence[Sequence[int]], indices: list[int], start: int) -> list[list[int]]:
    """Split sorted prompts wherever two neighbours have little in common after `start`.

    Args:
        indices: which prompts, in lexicographic order.
    """
    runs = [[indices[0]]]
    for before, index in pairwise(indices):
        if _agree(prompts[before], prompts[index]) - start >= _SHORTEST_SHARED:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def can_be_split(model: Any) -> bool:
    """Return whether every layer caches all keys and values; the cache of a sliding window cannot be split at a prefix."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    try:
        layers = DynamicCache(config=model.config).layers
    except (AttributeError, KeyError, TypeError, ValueError):  # configs without information about the cache
        return False
    return all(type(layer) is DynamicLayer for layer in layers)


def _agree(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two prompts begin with in common."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))
