"""How a model is asked after its training: by the prompt that it was tuned with, and where its answer is over."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from retune.data.chat import ChatTemplate, TurnsNotFound
from retune.data.example import Example, Turn
from retune.data.prompts import Prompt, ask, pieces
from retune.errors import InputError

# Where a model starts a further turn of Alpaca's template, its answer is over.
NEXT_TURN = re.compile(r"\n\s*### (Instruction|Input|Response):")


class Asker:
    """Turns questions into the tokens of a prompt.

    Args:
        tokenizer: of the base. how: the prompt of the study, as its `mix.json` has it.

    Attributes:
        ends: tokens that end an answer besides the end of text: what closes a turn of the chat template.

    Raises:
        InputError: if `how` asks for a chat template, and the tokenizer has none.
    """

    def __init__(self, tokenizer: Any, how: Prompt) -> None:
        self.tokenizer, self.how = tokenizer, how
        self._chat = ChatTemplate(tokenizer, how.text) if how.kind == "chat" else None
        self.ends = self._closing()

    def text(self, question: str) -> str:
        """Return the text that asks a single question."""
        turns: list[Turn] = [("user", question)]
        return self._chat.ask(turns) if self._chat else ask(turns, self.how)

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a text that asks, as `retune.data.encode` makes them for training."""
        if self._chat:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        found = list(self.tokenizer(text)["input_ids"])
        return found[:-1] if found and found[-1] == self.tokenizer.eos_token_id else found

    def of(self, example: Example) -> str:
        """Return the text that asks for the last answer of a record, which is no plain text."""
        if self._chat:
            return self._chat.ask(example.turns[:-1])
        *before, (asked, _) = pieces(example, self.how)
        return "".join(asked + said for asked, said in before) + asked

    def stop(self, text: str) -> bool:
        """Tell from an answer so far that it is over."""
        return self.how.kind == "alpaca" and NEXT_TURN.search("\n" + text) is not None

    def tidy(self, text: str) -> str:
        """Return the part of a model's text that is its answer, without the white space around it."""
        if self.how.kind == "alpaca":
            text = NEXT_TURN.split("\n" + text, maxsplit=1)[0]
        return text.strip()

    def _closing(self) -> frozenset[int]:
        """Return the special token behind an answer, read off the template: `<|im_end|>` need not be the end of text."""
        if self._chat is None:
            return frozenset()
        try:
            ids, counted = self._chat.encode([("user", "a"), ("assistant", "b")])
        except TurnsNotFound:  # a template that wants other turns; the end of text is left
            return frozenset()
        said = [token for token, is_said in zip(ids, counted, strict=True) if is_said][-1:]
        return frozenset(said) & {*self.tokenizer.all_special_ids, *self._added()}

    def _added(self) -> list[int]:
        return [number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special]


def fits(ids: Sequence[int], context: int) -> None:
    """Refuse a question that leaves no room for an answer.

    Raises:
        InputError: with both numbers of tokens.
    """
    if len(ids) >= context:
        raise InputError(
            f"a question leaves room in the context of {context} tokens, but this one has {len(ids)}"
        )
