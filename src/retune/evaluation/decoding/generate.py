"""Decoding of many prompts: shared prefixes are computed once, batches have similar lengths, finished rows are removed.

The checkpoint's own ``generation_config`` is ignored: scores would depend on it.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from retune.errors import TrialFailed, is_out_of_memory
from retune.evaluation.decoding.prefix import (
    CALL_TOKENS,
    Prefix,
    can_be_split,
    common_prefix,
    separation_cost,
    split_by_prefix,
    worth_sharing,
)

if TYPE_CHECKING:
    import torch

    from retune.evaluation.decoding.packed import Layers

_T = TypeVar("_T")
Way = Literal["shared", "padded", "one by one", "without cache"]
"""How prompts are read.

* ``shared``: common prefixes are computed once, and on a CPU there is no padding; for models that cache all keys.
* ``padded``: in batches, padded on the left, through transformers' own forward and cache.
* ``one by one``: each alone, through transformers' own forward and cache.
* ``without cache``: each alone, and computed again for every token, for models whose state cannot be cached.
"""

_STATES = ("past_key_values", "cache_params", "state")  # names that architectures give to their cache


@dataclass(frozen=True)
class Sampling:
    """Samples tokens at a temperature above 0 instead of choosing the likeliest.

    Each prompt has a unique name and its own random generator, used once per token: its samples depend on seed, name and model
    alone, not on the batch it is in.
    """

    temperature: float
    seed: int
    names: Sequence[str] = ()

    def named(self, names: Sequence[str]) -> Sampling:
        """Return the same for prompts of these names."""
        return replace(self, names=names)

    def rng(self, prompt: int) -> random.Random:
        """Return the random generator of the prompt at this place."""
        return random.Random(f"{self.seed}/{self.names[prompt]}")


@dataclass(frozen=True)
class Decoder:
    """A model with its tokenizer and limits.

    Attributes:
        model: a transformers causal language model, with or without a PEFT adapter.
        context: the longest sequence in tokens, prompt and answer together.
        batch_size: rows computed at once, at most; halved as long as the device's memory is too small for it.
        way: how prompts are computed; `retune.evaluation.decoding.self_check` selects it.
        rotary_limit: tokens up to which rotary frequencies do not change with the length; longer prompts are computed one by one.
        ends: tokens that end an answer besides the end of text.
        call_tokens: the overhead of one call of the model, in tokens; None for the device's default.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    context: int
    batch_size: int
    way: Way = "shared"
    rotary_limit: float = math.inf
    ends: frozenset[int] = frozenset()
    call_tokens: float | None = None

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        stop: Callable[[str], bool] | None = None,
        done: Callable[[int], None] = lambda count: None,
        sampling: Sampling | None = None,
    ) -> list[str]:
        """Return the continuation of each prompt as text, without special tokens.

        Args:
            prompts: token ids. Their common prefixes are computed once.
            new_tokens: the most tokens to generate for each; fewer if `context` ends before.
            stop: whether, given a row's text so far, it may end.
            done: called after every batch with the number of prompts answered in it.
            sampling: None for greedy decoding.

        Raises:
            TrialFailed: if the model's output is not finite, or one row alone does not fit into memory.
        """
        return [self._text(tokens) for tokens in self.tokens(prompts, new_tokens, stop, done, sampling)]

    def tokens(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        stop: Callable[[str], bool] | None = None,
        done: Callable[[int], None] = lambda count: None,
        sampling: Sampling | None = None,
    ) -> list[list[int]]:
        """Return the continuations of `complete` as token ids."""
        if parts := self._parts([len(prompt) + new_tokens for prompt in prompts]):
            answers: dict[int, list[int]] = {}
            for decoder, part in parts:
                drawn = sampling.named([sampling.names[k] for k in part]) if sampling else None
                part_answers = decoder.tokens([prompts[k] for k in part], new_tokens, stop, done, drawn)
                answers.update(zip(part, part_answers, strict=True))
            return [answers[k] for k in range(len(prompts))]

        def answer(rows: list[int], shared: Prefix | None) -> list[list[int]]:
            max_tokens = [min(new_tokens, self.context - len(prompts[k])) for k in rows]
            requested = [
                _Row(count, sampling.rng(k) if sampling else None, prompt=k)
                for k, count in zip(rows, max_tokens, strict=True)
            ]
            return self._batch([prompts[k] for k in rows], requested, shared, stop, sampling)

        return self._in_batches(prompts, new_tokens, new_tokens, answer, done)

    def likelihoods(
        self,
        contexts: Sequence[Sequence[int]],
        endings: Sequence[Sequence[int]],
        done: Callable[[int], None] = lambda count: None,
    ) -> list[float]:
        """Return the log-likelihood, in nats, of each ending after its context.

        Args:
            contexts: token ids, at least one each.
            endings: token ids, at least one each. Together with its context an ending, less its last token, fits
                into `context`.
            done: called after every batch with the number of pairs in it.

        Raises:
            TrialFailed: as `complete` does.
        """
        if parts := self._parts([len(one) + len(two) for one, two in zip(contexts, endings, strict=True)]):
            sums: dict[int, float] = {}
            for decoder, part in parts:
                values = decoder.likelihoods([contexts[k] for k in part], [endings[k] for k in part], done)
                sums.update(zip(part, values, strict=True))
            return [sums[k] for k in range(len(contexts))]

        def measure(rows: list[int], shared: Prefix | None) -> list[float]:
            whole = [[*contexts[k], *endings[k]] for k in rows]
            return self._measure(whole, [len(endings[k]) for k in rows], shared)

        return self._in_batches(contexts, max(map(len, endings)), 1, measure, done)

    def _parts(self, lengths: Sequence[int]) -> list[tuple[Decoder, list[int]]]:
        """Return a decoder for each part of the prompts if some are too long for `rotary_limit`, else nothing."""
        long = [index for index, length in enumerate(lengths) if length > self.rotary_limit]
        if not long or self._one_by_one:
            return []
        short = [index for index, length in enumerate(lengths) if length <= self.rotary_limit]
        alone = replace(self, way="one by one", rotary_limit=math.inf)
        return [(replace(self, rotary_limit=math.inf), short)] * bool(short) + [(alone, long)]

    def _in_batches(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        steps: int,
        work: Callable[[list[int], Prefix | None], list[_T]],
        done: Callable[[int], None],
    ) -> list[_T]:
        """Return the results of `work` on every prompt, in batches that share a prefix and have similar lengths.

        Args:
            new_tokens: as in `tokens`. steps: calls of the model per batch.
            work: from the indices of a batch and its prefix to the results. done: as in `tokens`.
        """
        import torch

        results: dict[int, _T] = {}
        crowded: list[int] = []
        with torch.inference_mode():
            order = sorted(range(len(prompts)), key=lambda k: list(prompts[k]))
            for places, shared in self._prefix_tree(prompts, order, new_tokens, steps):
                places.sort(key=lambda k: -len(prompts[k]))
                size = 1 if self._one_by_one else self.batch_size
                # A finished row stays in its batch while others continue, and must not run past the end of the position table
                alone = [k for k in places if len(prompts[k]) + steps > self._positions]
                rest = [k for k in places if len(prompts[k]) + steps <= self._positions]
                batches = [[k] for k in alone] + [rest[k : k + size] for k in range(0, len(rest), size)]
                waiting = batches[::-1]
                while waiting:
                    rows = waiting.pop()
                    if self._one_by_one:
                        from retune.training.plain_forward import reset_rotary

                        reset_rotary(self._core)
                    outcome = self._try(lambda rows=rows, shared=shared: work(rows, shared))  # type: ignore[misc]
                    if not isinstance(outcome, str):
                        results.update(zip(rows, outcome, strict=True))
                        done(len(rows))
                    elif len(rows) > 1:
                        half = len(rows) // 2
                        waiting += [rows[half:], rows[:half]]
                    elif shared is not None:
                        crowded += rows
                    else:
                        raise _no_room(prompts[rows[0]], outcome)
            shared = None
            for k in crowded:  # by now the shared prefix is freed
                outcome = self._try(lambda k=k: work([k], None))  # type: ignore[misc]
                if isinstance(outcome, str):
                    raise _no_room(prompts[k], outcome)
                results[k] = outcome[0]
                done(1)
        return [results[k] for k in range(len(prompts))]

    def _try(self, work: Callable[[], _T]) -> _T | str:
        """Return the result of `work`; if memory ran out, the allocator's message, after freeing what it left."""
        from retune.training import memory

        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            message = str(error) or type(error).__name__
        memory.release_cached(self.device)
        return message

    def _prefix_tree(
        self, prompts: Sequence[Sequence[int]], places: list[int], new_tokens: int, steps: int
    ) -> Iterator[tuple[list[int], Prefix | None]]:
        """Traverse the tree of common prefixes; yield the prompts that belong to each node with the node's cached prefix.

        Args:
            places: all prompts, in lexicographic order, so that those with a common prefix are neighbours.
            new_tokens: the most tokens that follow a prompt. steps: calls of the model that a batch takes.
        """
        call = (
            CALL_TOKENS.get(self.device.type, CALL_TOKENS["cuda"])
            if self.call_tokens is None
            else self.call_tokens
        )

        def below(
            places: list[int], above: Prefix | None, cost: float
        ) -> Iterator[tuple[list[int], Prefix | None]]:
            node, start = above, above.length if above else 0
            if worth_sharing([prompts[k] for k in places], start, cost):
                extended = self._try(lambda: self._extend([prompts[k] for k in places], above, new_tokens))
                # No memory for the longer prefix: each prompt computes it itself
                if isinstance(extended, str):
                    yield places, above
                    return
                node, start = extended, extended.length
            alone: list[int] = []
            for run in split_by_prefix(prompts, places, start):
                cost = separation_cost(self.device.type, call, len(run), self.batch_size, steps)
                if len(run) < len(places) and worth_sharing([prompts[k] for k in run], start, cost):
                    yield from below(run, node, cost)
                else:
                    alone += run
            if alone:
                yield alone, node

        if self.way != "shared" or not can_be_split(self.model):
            yield places, None
        else:
            yield from below(places, None, call)

    def _extend(self, prompts: Sequence[Sequence[int]], above: Prefix | None, new_tokens: int) -> Prefix:
        """Return the cached common prefix of all prompts, which continues the one `above`."""
        start = above.length if above else 0
        length, room = common_prefix(prompts), max(map(len, prompts)) + new_tokens
        states = self._states(prompts[0][start:length], above)
        if above is None:
            return Prefix(length, room, states)
        import torch

        layers = [
            (torch.cat([keys, more_keys], 1), torch.cat([values, more_values], 1))
            for (keys, values), (more_keys, more_values) in zip(above.layers, states, strict=True)
        ]
        return Prefix(length, room, layers)

    def _states(self, ids: Sequence[int], above: Prefix | None) -> Layers:
        """Return keys and values of tokens that continue the prefix `above`."""
        import torch

        before, start = (above.layers, above.length) if above else ([], 0)
        if self._packs:
            from retune.evaluation.decoding import packed

            return packed.first_pass(self.model, [ids], [0], before, start)[1]
        from transformers import DynamicCache

        cache = DynamicCache([(keys[None], values[None]) for keys, values in before]) if before else None
        out = self.model(
            input_ids=torch.tensor([list(ids)], device=self.device),
            past_key_values=cache,
            use_cache=True,
            **self._logits_kept(1),
        )
        return [
            (layer.keys[0, :, start:], layer.values[0, :, start:]) for layer in out.past_key_values.layers
        ]

    @cached_property
    def _packs(self) -> bool:
        """Whether the first pass is our own, without padding."""
        from retune.evaluation.decoding import packed

        return self.way == "shared" and packed.fits(self.model) and can_be_split(self.model)

    @cached_property
    def _positions(self) -> float:
        """The positions that the model knows."""
        from retune import models

        return models.context(self._core.config) or math.inf

    @property
    def _one_by_one(self) -> bool:
        return self.way in ("one by one", "without cache")

    @cached_property
    def _core(self) -> Any:
        """The transformers model under an adapter."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @cached_property
    def _accepts(self) -> Callable[[str], bool]:
        """Return a function that says whether the model's forward accepts an argument."""
        from torch import nn

        if not isinstance(self._core, nn.Module):
            return lambda name: True
        names = inspect.signature(self._core.forward).parameters
        return lambda name: name in names

    def _logits_kept(self, count: int) -> dict[str, int]:
        """Return the argument by which the model computes only the last `count` logits, if it has one."""
        return {"logits_to_keep": count} if self._accepts("logits_to_keep") else {}

    def _batch(
        self,
        prompts: Sequence[Sequence[int]],
        requested: list[_Row],
        shared: Prefix | None,
        stop: Callable[[str], bool] | None,
        sampling: Sampling | None,
    ) -> list[list[int]]:
        """Return the answers of one batch; `requested` has a row for each prompt."""
        import torch

        rows = requested
        if self._one_by_one:
            return [
                self._single(prompt, row, stop, sampling) for prompt, row in zip(prompts, rows, strict=True)
            ]
        ids, mask, places, cache = self._inputs(prompts, shared)
        if self._packs:
            logits, cache = self._packed(prompts, shared, max(row.max_tokens for row in rows))
        else:
            logits, cache = self._step(ids, mask, places, cache)
        while True:
            chosen = self._choose(logits, rows, sampling)
            for row, token in zip(rows, chosen.tolist(), strict=True):
                if not row.ended:
                    self._add(row, token, stop)
            going = [index for index, row in enumerate(rows) if not row.ended]
            if not going:
                return [row.made for row in requested]
            # Removing finished rows copies the cache, so it is done when half of them are finished
            if len(going) <= len(rows) // 2 and _supports_removal(cache):
                kept = torch.tensor(going, device=self.device)
                cache.batch_select_indices(kept)
                chosen, mask, places, rows = (
                    chosen[kept],
                    mask[kept],
                    places[kept],
                    [rows[index] for index in going],
                )
            ids, places = chosen[:, None], places[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            logits, cache = self._step(ids, mask, places, cache)

    def _single(
        self, prompt: Sequence[int], row: _Row, stop: Callable[[str], bool] | None, sampling: Sampling | None
    ) -> list[int]:
        """Return the answer of one prompt, computed without padding, mask and explicit positions."""
        import torch

        cached = self.way == "one by one"
        state = next((name for name in _STATES if self._accepts(name)), _STATES[0])
        ids, cache = torch.tensor([list(prompt)], device=self.device), None
        places: dict[str, Any] = {}
        while True:
            out = self.model(
                input_ids=ids,
                **places,
                **({state: cache} if cached else {}),
                **({"use_cache": cached} if self._accepts("use_cache") else {}),
                **self._logits_kept(1),
            )
            chosen = self._choose(out.logits[:, -1].float(), [row], sampling)
            self._add(row, int(chosen), stop)
            if row.ended:
                return row.made
            if cached:
                ids, cache = chosen[:, None], out[state]
                if self._accepts("position_ids"):  # without it some models count from 0 again
                    places = {"position_ids": torch.full_like(ids, len(prompt) + len(row.made) - 1)}
            else:
                ids = torch.cat([ids, chosen[:, None]], dim=1)

    def _step(self, ids: Any, mask: Any, places: Any, cache: Any) -> tuple[Any, Any]:
        """Return the logits behind each row, shape (rows, vocabulary), and the cache with the rows in it."""
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            **({"position_ids": places} if self._accepts("position_ids") else {}),
            past_key_values=cache,
            use_cache=True,
            **self._logits_kept(1),
        )
        return out.logits[:, -1].float(), out.past_key_values

    def _packed(
        self, prompts: Sequence[Sequence[int]], shared: Prefix | None, new_tokens: int
    ) -> tuple[Any, Any]:
        """Do what `_step` does, on whole prompts and without padding."""
        from retune.evaluation.decoding import packed

        before, start = (shared.layers, shared.length) if shared else ([], 0)
        tails = [prompt[start:] for prompt in prompts]
        logits, states = packed.first_pass(self.model, tails, [1] * len(tails), before, start)
        lengths = [len(tail) for tail in tails]
        prefix = shared or Prefix(0, max(lengths) + new_tokens, [(k[:, :0], v[:, :0]) for k, v in states])
        return logits, prefix.filled(lengths, states)

    def _inputs(self, prompts: Sequence[Sequence[int]], shared: Prefix | None) -> tuple[Any, Any, Any, Any]:
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
        self, prompts: Sequence[Sequence[int]], counts: Sequence[int], shared: Prefix | None
    ) -> list[float]:
        """Return the log-likelihood of the last `counts` tokens of each prompt."""
        import torch

        ends = [
            torch.tensor(prompt[-count:], device=self.device)
            for prompt, count in zip(prompts, counts, strict=True)
        ]
        fed = [prompt[:-1] for prompt in prompts]  # the logits of a position predict the next token
        if self._packs:
            from retune.evaluation.decoding import packed

            before, start = (shared.layers, shared.length) if shared else ([], 0)
            logits, _ = packed.first_pass(self.model, [row[start:] for row in fed], counts, before, start)
            parts = torch.split(logits, list(counts))
        elif self._one_by_one:
            [row], [count] = fed, counts
            out = self.model(
                input_ids=torch.tensor([list(row)], device=self.device),
                **({"use_cache": False} if self._accepts("use_cache") else {}),
                **self._logits_kept(count),
            )
            parts = (out.logits[0, -count:].float(),)
        else:
            ids, mask, places, cache = self._inputs(fed, shared)
            out = self.model(
                input_ids=ids,
                attention_mask=mask,
                **({"position_ids": places} if self._accepts("position_ids") else {}),
                past_key_values=cache,
                use_cache=True,
                **self._logits_kept(max(counts)),
            )
            parts = tuple(row[-count:].float() for row, count in zip(out.logits, counts, strict=True))
        sums = [
            float(torch.log_softmax(part, -1).gather(1, end[:, None]).sum())
            for part, end in zip(parts, ends, strict=True)
        ]
        if not all(map(math.isfinite, sums)):
            raise TrialFailed("the model's output is not finite: it gives no likelihood to score", "nan")
        return sums

    def _choose(self, logits: torch.Tensor, rows: Sequence[_Row], sampling: Sampling | None) -> torch.Tensor:
        """Return one token for each row; refuse logits that are not finite."""
        import torch

        if not torch.isfinite(logits).all():
            raise TrialFailed("the model's output is not finite: it gives no answer to score", "nan")
        return _sample(logits, rows, sampling) if sampling else logits.argmax(-1)

    def _add(self, row: _Row, token: int, stop: Callable[[str], bool] | None) -> None:
        """Add `token` to a row; end the row at the end of text, at its limit, or if `stop` says so."""
        if token == self.tokenizer.eos_token_id or token in self.ends:
            row.ended = True
            return
        row.made.append(token)
        row.ended = len(row.made) >= row.max_tokens or (stop is not None and stop(self._text(row.made)))

    def _text(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text


@dataclass
class _Row:
    """One prompt of a batch: the most tokens to generate, its random generator, the tokens so far, its index among all."""

    max_tokens: int
    rng: random.Random | None = None
    made: list[int] = field(default_factory=list)
    ended: bool = False
    prompt: int = 0


def _supports_removal(cache: Any) -> bool:
    """Return whether rows can be removed from a cache; the caches of some recurrent layers do not support it."""
    return all(hasattr(layer, "batch_select_indices") for layer in getattr(cache, "layers", [None]))


def _sample(logits: torch.Tensor, rows: Sequence[_Row], sampling: Sampling) -> torch.Tensor:
    """Return one token for each row, sampled with its own generator at the temperature, by inversion of the distribution."""
    import torch

    sums = torch.softmax(logits.double() / sampling.temperature, -1).cumsum(-1)
    drawn = [row.rng.random() if row.rng else 0.0 for row in rows]
    marks = torch.tensor(drawn, dtype=sums.dtype, device=sums.device)[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, marks, right=True)[:, 0].clamp(max=sums.shape[-1] - 1)


def _no_room(prompt: Sequence[int], message: str) -> TrialFailed:
    return TrialFailed(
        f"one prompt of {len(prompt)} tokens does not fit into memory: {message}", "out_of_memory"
    )


def _pad_left(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and mask (1 = real), both of shape (rows, longest)."""
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
