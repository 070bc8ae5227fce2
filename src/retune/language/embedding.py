"""Embeddings of texts by a frozen causal language model, with a learnable token at the end of each text.

The token comes last, so in a causal model it does not affect the text before it: keys and values of each text are computed
once and kept, and a training step runs the model on a single position.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retune import models
from retune.errors import InputError
from retune.study import Model

if TYPE_CHECKING:
    import torch

# The suggestion service answers calls in several threads, and they share an embedder
_LOCK = threading.Lock()


class Embedder:
    """A frozen model that embeds settings: texts that all begin with the same opening.

    Args:
        folder: the folder of the model and its tokenizer.

    """

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        models.quiet()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._model = model.eval().requires_grad_(False)
        self._openings: dict[str, tuple[Any, int]] = {}

    def read(self, opening: str, texts: Sequence[str]) -> Reading:
        """Return the model's reading of texts that follow `opening`, which is computed once per process."""
        import torch

        with _LOCK, torch.no_grad():
            if opening not in self._openings:
                self._openings.clear()
                ids = torch.tensor([self._tokenizer(opening)["input_ids"]])
                self._openings[opening] = self._model(ids, use_cache=True).past_key_values, ids.shape[1]
            begun, before = self._openings[opening]
            past = copy.deepcopy(begun)
            past.batch_repeat_interleave(len(texts))
            rows = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
            longest = max(map(len, rows))
            ids = torch.zeros(len(rows), longest, dtype=torch.long)
            mask = torch.ones(len(rows), before + longest, dtype=torch.long)
            # Padded on the left, so that the learnable token is adjacent to each text
            for index, row in enumerate(rows):
                ids[index, longest - len(row) :] = torch.tensor(row)
                mask[index, before : before + longest - len(row)] = 0
            output = self._model(
                ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(dim=1) - 1)[:, before:].clamp(min=0),
                past_key_values=past,
                use_cache=True,
                output_hidden_states=True,
            )
            weights = mask[:, before:, None].double()
            means = (output.hidden_states[-1].double() * weights).sum(dim=1) / weights.sum(dim=1)
        return Reading(self._model, output.past_key_values, mask, means)

    def start(self) -> torch.Tensor:
        """Return the initial value of the learnable token, shape (width,): the mean of the model's token embeddings."""
        mean: torch.Tensor = self._model.get_input_embeddings().weight.detach().mean(dim=0)
        return mean.clone()


class Reading:
    """Texts as the model has read them, with their keys and values.

    Attributes:
        means: of the last layer over each text, shape (n, width).

    """

    def __init__(self, model: Any, past: Any, mask: torch.Tensor, means: torch.Tensor) -> None:
        self._model, self._past, self._mask, self.means = model, past, mask, means

    def behind(self, token: torch.Tensor) -> torch.Tensor:
        """Return the last layer's output at `token` (width,) appended to each text: shape (n, width), differentiable in it."""
        import torch

        count = len(self._mask)
        output = self._model(
            inputs_embeds=token.expand(count, 1, -1),
            attention_mask=torch.cat([self._mask, self._mask.new_ones(count, 1)], dim=1),
            position_ids=self._mask.sum(dim=1, keepdim=True),
            past_key_values=copy.deepcopy(self._past),  # the model appends to its cache in place
            use_cache=True,
            output_hidden_states=True,
        )
        states: torch.Tensor = output.hidden_states[-1][:, -1].double()
        return states


@lru_cache(maxsize=2)
def embedder(base: str, revision: str | None = None) -> Embedder:
    """Return the embedder of a model, loaded once per process.

    Raises:
        InputError: if there is no such model.

    """
    try:
        return Embedder(models.locate(Model(base=base, revision=revision)))
    except InputError as error:
        raise InputError(error.problems, "search.settings.model") from error
