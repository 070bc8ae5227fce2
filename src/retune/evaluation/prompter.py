"""Prompts for a tuned model, as in its training, and the end of its answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from retune.data.chat import ChatTemplate, TurnsNotFound
from retune.data.example import Example, Turn
from retune.data.prompts import Prompt, ask, pieces
from retune.errors import InputError

# A model tuned on Alpaca's template may continue with the next turn's header; its answer ends before that.
NEXT_TURN = re.compile(r"\n\s*### (Instruction|Input|Response):")


class Prompter:
    """Renders questions as prompts, and truncates generated text to the answer.

    Args:
        tokenizer: of the base. template: the study's prompt, as recorded in its `mix.json`.

    Attributes:
        ends: tokens besides the end of text that end an answer: those that close a turn of the chat template.

    Raises:
        InputError: if `template` is the tokenizer's chat template and it has none.
    """

    def __init__(self, tokenizer: Any, template: Prompt) -> None:
        self.tokenizer, self.template = tokenizer, template
        self._chat = ChatTemplate(tokenizer, template.text) if template.kind == "chat" else None
        self.ends = self._closing()

    def prompt(self, question: str) -> str:
        """Return the prompt for a single question."""
        turns: list[Turn] = [("user", question)]
        return self._chat.ask(turns) if self._chat else ask(turns, self.template)

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a prompt, exactly as `retune.data.encode` does for training."""
        if self._chat:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        ids = list(self.tokenizer(text)["input_ids"])
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids

    def prompt_for(self, example: Example) -> str:
        """Return the prompt for the last answer of a record. Not for plain texts, which have no prompt."""
        if self._chat:
            return self._chat.ask(example.turns[:-1])
        *before, (asked, _) = pieces(example, self.template)
        end = self.tokenizer.eos_token or ""  # in training it closes every answer
        return "".join(asked + said + end for asked, said in before) + asked

    def is_complete(self, text: str) -> bool:
        """Return whether the text so far holds the whole answer."""
        return self.template.kind == "alpaca" and NEXT_TURN.search("\n" + text) is not None

    def response(self, text: str) -> str:
        """Return the answer in a generated text, without the white space around it."""
        if self.template.kind == "alpaca":
            text = NEXT_TURN.split("\n" + text, maxsplit=1)[0]
        return text.strip()

    def _closing(self) -> frozenset[int]:
        """Return the special token after an answer, read from the template: it need not be the end of text (`<|im_end|>`)."""
        if self._chat is None:
            return frozenset()
        try:
            ids, counted = self._chat.encode([("user", "a"), ("assistant", "b")])
        except TurnsNotFound:  # the template rejects these turns; the end of text remains
            return frozenset()
        said = [token for token, is_said in zip(ids, counted, strict=True) if is_said][-1:]
        return frozenset(said) & {*self.tokenizer.all_special_ids, *self._added()}

    def _added(self) -> list[int]:
        return [number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special]


def fits(ids: Sequence[int], context: int) -> None:
    """Check that a question leaves room for an answer.

    Raises:
        InputError: with both numbers of tokens.
    """
    if len(ids) >= context:
        raise InputError(
            f"a question must leave room for an answer in the context of {context} tokens, but this one has {len(ids)}; "
            "shorten it"
        )
