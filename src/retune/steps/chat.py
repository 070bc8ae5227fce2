"""The same question to the untuned base and to a tuned adapter."""

from __future__ import annotations

from pathlib import Path

from retune import models
from retune.data.chat import ChatTemplate
from retune.data.prompts import Prompt, ask
from retune.errors import InputError
from retune.evaluation.decoding import adapters
from retune.evaluation.decoding.generate import Decoder
from retune.steps import export


class Pair:
    """A base that stays loaded, and an adapter that is put on for its turn."""

    def __init__(self, base: models.LoadedBase, adapter: Path, prompt: Prompt) -> None:
        self.base, self.adapter, self.prompt = base, adapter, prompt
        self.context = models.context(base.model.config) or models.USUAL_CONTEXT

    def answers(self, question: str, new_tokens: int) -> dict[str, str]:
        """Return the answers of both, greedily.

        Raises:
            InputError: if the question leaves no room for an answer.
        """
        turns = [("user", question)]
        if self.prompt.kind == "chat":
            text = ChatTemplate(self.base.tokenizer, self.prompt.text).ask(turns)
            ids = self.base.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = self.base.tokenizer(ask(turns, self.prompt))["input_ids"]
            if ids and ids[-1] == self.base.tokenizer.eos_token_id:
                ids = ids[:-1]
        if len(ids) >= self.context:
            raise InputError(
                f"a question leaves room in the context of {self.context} tokens, but this one has {len(ids)}"
            )
        found = {}
        for name, folder in (("base", None), ("tuned", self.adapter)):
            with adapters.attached(self.base.model, folder) as model:
                decoder = Decoder(model, self.base.tokenizer, self.base.device, self.context, 1)
                (found[name],) = decoder.complete([ids], new_tokens)
        return {name: text.strip() for name, text in found.items()}


def open_pair(folder: str, trial: str | None = None) -> Pair:
    """Load the base of a study and name the adapter of its chosen trial, or of another one.

    Raises:
        InputError: as `export.from_run`.
    """
    what = export.from_run(folder, trial)
    return Pair(models.load_base(what.model), what.adapter, what.prompt)
