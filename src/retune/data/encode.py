"""From records to token ids under a prompt template, with a mask of the tokens that the loss counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from retune import store
from retune.data.chat import ChatTemplate, Ids, TurnsNotFound
from retune.data.example import Example
from retune.data.prompts import Prompt, pieces, read_template
from retune.data.tokens import LossOn, Tokens, join, pack
from retune.errors import InputError, nearest
from retune.study import PROMPTS

_BATCH = 1000  # records tokenised at once
_SHOWN = 3  # records named in one error


def resolve(prompt: str, conversations: bool = False, has_template: bool = True) -> Prompt:
    """Return the prompt that a study's `data.prompt` names.

    Args:
        prompt: a word or the path of a template.
        conversations: whether the records include any.
        has_template: whether the base has a chat template; many bases that were never tuned have none.

    Raises:
        InputError: if the file does not exist or holds no template.
    """
    if prompt == "auto":
        return Prompt(kind="chat" if conversations and has_template else "alpaca")
    if prompt in PROMPTS:
        return Prompt.model_validate({"kind": prompt})
    try:
        text = store.read(prompt).decode()
    except (OSError, UnicodeDecodeError) as error:
        near = nearest(Path(prompt).name, PROMPTS)
        hint = f"; did you mean {near!r}?" if near else ""
        raise InputError(
            f"`prompt` is one of {list(PROMPTS)} or a file with a template, but {prompt} cannot be read{hint}",
            "data.prompt",
        ) from error
    return read_template(text, f"data.prompt: {prompt}")


class Encoder:
    """Turns records into token ids.

    Args:
        tokenizer: a transformers tokenizer.
        how: the prompt.

    Raises:
        InputError: if the prompt is the tokenizer's chat template and it has none.
    """

    def __init__(self, tokenizer: Any, how: Prompt) -> None:
        self.tokenizer = tokenizer
        self.how = how
        self.chat = ChatTemplate(tokenizer, how.text) if how.kind == "chat" else None

    def encode(self, examples: Sequence[Example]) -> Iterator[Ids]:
        """Yield for each record all its token ids and which of them the loss counts.

        Without a chat template, each prompt is tokenised separately, the first with the tokenizer's leading special
        tokens, exactly as at inference. Each completion follows, closed by the end-of-text token. That token counts
        too, since the model must learn to stop.

        Raises:
            InputError: naming records whose assistant tokens cannot be located under the chat template.
        """
        refused: list[str] = []
        for start in range(0, len(examples), _BATCH):
            batch = examples[start : start + _BATCH]
            talks = [self.chat is not None and not example.is_text for example in batch]
            # Plain texts among conversations have no prompt
            how = self.how if self.chat is None else Prompt()
            plain = join(
                [pieces(e, how) for e, talk in zip(batch, talks, strict=True) if not talk], self.tokenizer
            )
            for example, talk in zip(batch, talks, strict=True):
                if not talk:
                    yield next(plain)
                    continue
                assert self.chat is not None
                try:
                    found = self.chat.encode(example.turns)
                except TurnsNotFound as error:
                    refused.append(f"{example.source}, record {example.row}: {error}")
                    found = ([], [])
                yield found
        if refused:
            more = [f"and {len(refused) - _SHOWN:,} more records"] if len(refused) > _SHOWN else []
            raise InputError(
                [
                    *refused[:_SHOWN],
                    *more,
                    "the assistant's tokens cannot be located in these records; remove them, or write `prompt: alpaca`, "
                    "or `prompt: <file>` with a chat template that marks the answers with {% generation %}",
                ],
                "data.prompt",
            )


def tokenize_examples(
    examples: Sequence[Example], tokenizer: Any, how: Prompt, max_length: int, loss_on: LossOn = "completion"
) -> Tokens:
    """Tokenise records and cut each to `max_length` tokens; the rest is cut off at the end.

    Raises:
        InputError: if no record has a counted token left.
    """
    if not examples:
        raise InputError("a split needs at least one record, but got none", "data")
    return pack(Encoder(tokenizer, how).encode(examples), max_length, loss_on)
