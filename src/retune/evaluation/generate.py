"""Greedy decoding of many prompts: shared prefix computed once, batches of like lengths, rows leave when done.

The checkpoint's own ``generation_config`` is not read: published scores were found to move with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from retune.errors import RetuneError

if TYPE_CHECKING:
    import torch

_T = TypeVar("_T")

# A prefix is computed by a call of its own, which pays from about so many tokens on.
_SHORTEST_SHARED = 16
_LEAST_SAVED = 128


@dataclass(frozen=True)
class Decoder:
    """A model with its tokenizer and limits.

    Attributes:
        model: a transformers causal language model, with or without a PEFT adapter.
        context: the longest sequence in tokens, prompt and answer together.
        batch_size: rows computed at once, at most; halved as long as the device's memory is too small for it.

    """

    model: Any
    tokenizer: Any
    device: torch.device
    context: int
    batch_size: int

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        stop: Callable[[str], bool] | None = None,
        done: Callable[[int], None] = lambda count: None,
    ) -> list[str]:
        """Return the greedy continuation of each prompt as text, without special tokens.

        Args:
            prompts: token ids. What all of them begin with is computed once.
            new_tokens: the most tokens to add to each; fewer where `context` ends.
            stop: tells from a row's text so far that it may end.
            done: called after every batch with the number of prompts answered in it.

        Raises:
            RetuneError: if the model's output is not finite, or one row alone does not fit into memory.

        """

        def answer(rows: list[int], shared: _Prefix | None) -> list[str]:
            return self._batch([prompts[k] for k in rows], shared, new_tokens, stop)

        return self._each(prompts, new_tokens, answer, done)

    def likelihoods(
        self,
        contexts: Sequence[Sequence[int]],
        endings: Sequence[Sequence[int]],
        done: Callable[[int], None] = lambda count: None,
    ) -> list[float]:
        """Return the log-likelihood, in nats, of each ending after its context.

        Args:
            contexts: token ids, at least one each.
            endings: token ids, at least one each. Together with its context an ending fits into `context`.
            done: called after every batch with the number of pairs in it.

        Raises:
            RetuneError: as `complete` does.
        """

        def measure(rows: list[int], shared: _Prefix | None) -> list[float]:
            whole = [[*contexts[k], *endings[k]] for k in rows]
            return self._measure(whole, [len(endings[k]) for k in rows], shared)

        return self._each(contexts, max(map(len, endings)), measure, done)

    def _each(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        work: Callable[[list[int], _Prefix | None], list[_T]],
        done: Callable[[int], None],
    ) -> list[_T]:
        """Do `work` on every prompt, in batches that share a prefix and are of like lengths."""
        import torch

        results: dict[int, _T] = {}
        with torch.inference_mode():
            order = sorted(range(len(prompts)), key=lambda k: list(prompts[k]))
            for places, shared in self._leaves(prompts, order, None, new_tokens):
                places.sort(key=lambda k: -len(prompts[k]))
                waiting = [places[k : k + self.batch_size] for k in range(0, len(places), self.batch_size)][
                    ::-1
                ]
                while waiting:
                    rows = waiting.pop()
                    try:
                        made = work(rows, shared)
                    except torch.OutOfMemoryError as error:
                        waiting += _halves(rows, len(prompts[rows[0]]), error)
                        continue
                    results.update(zip(rows, made, strict=True))
                    done(len(rows))
        return [results[k] for k in range(len(prompts))]

    def _leaves(
        self, prompts: Sequence[Sequence[int]], places: list[int], above: _Prefix | None, new_tokens: int
    ) -> Iterator[tuple[list[int], _Prefix | None]]:
        """Walk the tree of common prefixes; give the prompts that end at each node with the node's cached prefix.

        Args:
            places: which prompts, in lexicographic order, so that those with a common prefix are neighbours.
            above: the cached prefix that all of them begin with.
        """
        node = self._extended([prompts[k] for k in places], above, new_tokens)
        start = node.length if node else 0
        alone: list[int] = []
        for run in _runs(prompts, places, start):
            if worth_sharing([prompts[k] for k in run], start):
                yield from self._leaves(prompts, run, node, new_tokens)
            else:
                alone += run
        if alone:
            yield alone, node

    def _extended(
        self, prompts: Sequence[Sequence[int]], above: _Prefix | None, new_tokens: int
    ) -> _Prefix | None:
        """Return the cached common prefix of all prompts, which goes on from the one `above`."""
        start = above.length if above else 0
        if not worth_sharing(prompts, start) or not _plain_cache(self.model):
            return above
        import torch
        from transformers import DynamicCache

        length = common_prefix(prompts)
        ids = torch.tensor([list(prompts[0][start:length])], device=self.device)
        cache = DynamicCache(above.layers) if above else None
        out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        room = max(map(len, prompts)) + new_tokens
        return _Prefix(length, room, [(layer.keys, layer.values) for layer in out.past_key_values.layers])

    def _batch(
        self,
        prompts: Sequence[Sequence[int]],
        shared: _Prefix | None,
        new_tokens: int,
        stop: Callable[[str], bool] | None,
    ) -> list[str]:
        import torch

        ids, mask, places, cache = self._inputs(prompts, shared)
        rows = [
            _Row(number, min(new_tokens, self.context - len(prompt))) for number, prompt in enumerate(prompts)
        ]
        asked = list(rows)
        while True:
            out = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = out.logits[:, -1].float()
            if not torch.isfinite(logits).all():
                raise RetuneError("the model's output is not finite: it gives no answer to score")
            chosen, cache = logits.argmax(-1), out.past_key_values
            for row, token in zip(rows, chosen.tolist(), strict=True):
                if not row.ended:
                    self._add(row, token, stop)
            going = [place for place, row in enumerate(rows) if not row.ended]
            if not going:
                return [self._text(row.made) for row in asked]
            if len(going) <= len(rows) // 2:  # leaving costs a copy of the cache
                kept = torch.tensor(going, device=self.device)
                cache.batch_select_indices(kept)
                chosen, mask, places, rows = (
                    chosen[kept],
                    mask[kept],
                    places[kept],
                    [rows[place] for place in going],
                )
            ids, places = chosen[:, None], places[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)

    def _inputs(self, prompts: Sequence[Sequence[int]], shared: _Prefix | None) -> tuple[Any, Any, Any, Any]:
        """Return ids, mask, positions and cache of a batch: what follows the prefix, padded on the left."""
        import torch

        start = shared.length if shared else 0
        ids, mask = _pad_left(
            [prompt[start:] for prompt in prompts], self.tokenizer.pad_token_id, self.device
        )
        places = start + (mask.cumsum(1) - 1).clamp(min=0)
        mask = torch.cat([mask.new_ones(len(prompts), start), mask], dim=1)
        return ids, mask, places, shared.cache(len(prompts)) if shared else None

    def _measure(
        self, prompts: Sequence[Sequence[int]], counts: Sequence[int], shared: _Prefix | None
    ) -> list[float]:
        """Return the log-likelihood of the last tokens of each prompt, as many as `counts` says."""
        import torch

        ids, mask, places, cache = self._inputs(prompts, shared)
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=max(counts) + 1,  # the logits before a token tell its likelihood
        )
        scores = torch.log_softmax(out.logits.float(), -1)[:, :-1]
        each = scores.gather(-1, ids[:, -scores.shape[1] :, None])[..., 0]
        sums = [float(row[-count:].sum()) for row, count in zip(each, counts, strict=True)]
        if not all(map(math.isfinite, sums)):
            raise RetuneError("the model's output is not finite: it gives no likelihood to score")
        return sums

    def _add(self, row: _Row, token: int, stop: Callable[[str], bool] | None) -> None:
        """Add `token` to a row, and end the row at the end of text, of its room, or where `stop` says so."""
        if token == self.tokenizer.eos_token_id:
            row.ended = True
            return
        row.made.append(token)
        row.ended = len(row.made) >= row.room or (stop is not None and stop(self._text(row.made)))

    def _text(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text


@dataclass
class _Row:
    """One prompt of a batch: how many tokens it may still make, and those it has made."""

    number: int
    room: int
    made: list[int] = field(default_factory=list)
    ended: bool = False


class _Prefix:
    """Keys and values of a prefix, and the memory in which batches continue it.

    Args:
        length: tokens of the prefix. room: tokens of the longest prompt and its answer.
        layers: keys and values per layer, each of shape (1, heads, length, head size).
    """

    def __init__(self, length: int, room: int, layers: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.length, self.layers = length, layers
        self._room = room
        self._blocks: list[tuple[torch.Tensor, torch.Tensor]] = []

    def cache(self, rows: int) -> Any:
        """Return a cache for a batch that begins behind the prefix. It is void once the next one is asked for."""
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

    def _block(self, prefix: torch.Tensor, rows: int) -> torch.Tensor:
        block = prefix.new_empty(rows, prefix.shape[1], self._room, prefix.shape[3])
        block[:, :, : self.length] = prefix
        return block


def _block_layer(keys: torch.Tensor, values: torch.Tensor, length: int) -> Any:
    """Return a layer of a cache that writes into memory it is given, instead of copying all it has for every token."""
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


def worth_sharing(prompts: Sequence[Sequence[int]], start: int) -> bool:
    """Return whether computing the common prefix behind `start` once saves more than the extra call costs."""
    gain = common_prefix(prompts) - start
    return len(prompts) > 1 and gain >= _SHORTEST_SHARED and gain * (len(prompts) - 1) >= _LEAST_SAVED


def _agree(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two prompts begin with in common."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))


def _runs(prompts: Sequence[Sequence[int]], places: list[int], start: int) -> list[list[int]]:
    """Cut sorted prompts wherever two neighbours have little in common behind `start`."""
    runs = [[places[0]]]
    for before, place in pairwise(places):
        if _agree(prompts[before], prompts[place]) - start >= _SHORTEST_SHARED:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _halves(rows: list[int], longest: int, error: Exception) -> list[list[int]]:
    """Return the two halves of a batch that was too large; raise where it was a single prompt."""
    import torch

    if len(rows) == 1:
        raise RetuneError(f"one prompt of {longest} tokens does not fit into memory: {error}") from error
    torch.cuda.empty_cache()
    half = len(rows) // 2
    return [rows[half:], rows[:half]]


def _plain_cache(model: Any) -> bool:
    """Return whether every layer keeps all keys and values: a sliding window cannot be split at a prefix."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def _pad_left(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and mask (1 = real), both of shape (rows, longest)."""
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
