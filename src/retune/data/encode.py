"""From records to token ids under a prompt template, with a mask of the tokens that the loss counts."""

from __future__ import annotations

import itertools
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
        prompt: one of `PROMPTS`, or the path of a template file.
        conversations: whether any record is a conversation.
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
            f"`prompt` must be one of {list(PROMPTS)} or a file with a template, but {prompt} cannot be read{hint}",
            "data.prompt",
        ) from error
    return read_template(text, f"data.prompt: {prompt}")


class Encoder:
    """Turns records into token ids.

    Args:
        tokenizer: a transformers tokenizer.
        template: the prompt template.

    Raises:
        InputError: if the prompt is the tokenizer's chat template and it has none.
    """

    def __init__(self, tokenizer: Any, template: Prompt) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.chat = ChatTemplate(tokenizer, template.text) if template.kind == "chat" else None

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
            template = self.template if self.chat is None else Prompt()
            plain = join(
                [pieces(e, template) for e, talk in zip(batch, talks, strict=True) if not talk],
                self.tokenizer,
            )
            for example, talk in zip(batch, talks, strict=True):
                try:
                    if talk:
                        assert self.chat is not None
                        encoded = self.chat.encode(example.turns)
                    else:
                        encoded = next(plain)
                    if example.unlearned:
                        encoded = _without_unlearned(encoded, example)
                except TurnsNotFound as error:
                    refused.append(f"{example.source}, record {example.row}: {error}")
                    encoded = ([], [])
                yield encoded
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


def _without_unlearned(encoded: Ids, example: Example) -> Ids:
    """Return a conversation's tokens, counting only those of answers that are not in `example.unlearned`.

    Raises:
        TurnsNotFound: if the counted tokens are not one run per answer.
    """
    ids, counted = encoded
    answers = [index for index, (role, _) in enumerate(example.messages) if role == "assistant"]
    runs = [list(run) for _, run in itertools.groupby(counted)]
    if sum(run[0] for run in runs) != len(answers):
        raise TurnsNotFound(
            "the template does not separate the answers, so those of weight 0 cannot be excluded from the loss"
        )
    indices = iter(answers)
    learned = [[run[0] and next(indices) not in example.unlearned] * len(run) for run in runs]
    return ids, [flag for run in learned for flag in run]


def tokenize_examples(
    examples: Sequence[Example],
    tokenizer: Any,
    template: Prompt,
    max_length: int,
    loss_on: LossOn = "completion",
) -> Tokens:
    """Tokenise records and truncate each to `max_length` tokens.

    Raises:
        InputError: if no record has a counted token left.
    """
    if not examples:
        raise InputError("a split needs at least one record, but got none", "data")
    return pack(Encoder(tokenizer, template).encode(examples), max_length, loss_on)
