"""Answers of the untuned base and of a tuned adapter to the same question."""

from __future__ import annotations

from pathlib import Path

from retune import models
from retune.data.prompts import Prompt
from retune.evaluation.decoding import adapters
from retune.evaluation.decoding.generate import Decoder
from retune.evaluation.prompter import Prompter, fits
from retune.steps.tuned import Tuned, require_fit


class Pair:
    """A base that stays loaded, and an adapter that is attached for its turn; both are prompted with the same template."""

    def __init__(self, base: models.LoadedBase, adapter: Path, prompt: Prompt) -> None:
        self.base, self.adapter = base, adapter
        self.context = models.context(base.model.config) or models.DEFAULT_CONTEXT
        self.prompter = Prompter(base.tokenizer, prompt)

    def answers(self, question: str, new_tokens: int) -> dict[str, str]:
        """Return the answers of both, greedily.

        Raises:
            InputError: if the question leaves no room for an answer.
        """
        prompter = self.prompter
        ids = prompter.ids(prompter.prompt(question))
        fits(ids, self.context)
        answers = {}
        for name, folder in (("base", None), ("tuned", self.adapter)):
            with adapters.attached(self.base.model, folder) as model:
                decoder = Decoder(
                    model, self.base.tokenizer, self.base.device, self.context, 1, ends=prompter.ends
                )
                (answers[name],) = decoder.complete([ids], new_tokens, prompter.is_complete)
        return {name: prompter.response(text) for name, text in answers.items()}


def open_pair(what: Tuned) -> Pair:
    """Load the base of an adapter and return both as a `Pair`.

    Raises:
        InputError: if the adapter does not fit its base.
    """
    models.skip_bitsandbytes(what.model)
    require_fit(what)
    return Pair(models.load_base(what.model), what.adapter, what.template)
