"""Which records of the sources can be drawn: not empty, not twice, not too long."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from retune.data import prompts, sources
from retune.data.sources import Example
from retune.errors import InputError
from retune.study import Source

_BATCH = 1000  # records tokenised at once
_SPECIAL = 8  # more tokens than any tokenizer adds to a text


@dataclass
class Text:
    """A record that can be drawn.

    Attributes:
        example: the record. prompt: its rendered prompt.
        keys: hashes of the normalised prompt, and of the normalised prompt and completion together.
        prompt_tokens: length of the prompt, with the tokenizer's opening tokens.
        completion_tokens: length of the completion, with the end-of-text token.
    """

    example: Example
    prompt: str
    keys: tuple[bytes, bytes]
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class Stock:
    """A source with the records that can be drawn, and the numbers of those that cannot."""

    source: Source
    data: bytes
    sha256: str
    texts: list[Text] = field(default_factory=list)
    read: int = 0
    empty: int = 0
    duplicate: int = 0
    shared: int = 0
    too_long: int = 0


def stocks(given: Sequence[Source]) -> list[Stock]:
    """Return the sources with the bytes of their files, in an order that does not depend on the given one.

    Raises:
        InputError: if files are missing.
    """
    found, problems = [], []
    for source in given:
        try:
            content = sources.content(source)
        except InputError as error:
            problems += [f"{error.subject}: {problem}" for problem in error.problems]
        else:
            found.append(Stock(source, content, hashlib.sha256(content).hexdigest()))
    if problems:
        raise InputError(problems, "data.sources")
    return sorted(found, key=lambda stock: (stock.sha256, stock.source.format, -stock.source.share))


def parse(given: Sequence[Stock]) -> None:
    """Read the records of every source; leave out those with an empty instruction or output.

    Raises:
        InputError: if files are damaged or of another schema, with the problems of all of them.
    """
    problems = []
    for stock in given:
        try:
            examples = sources.parse(stock.data, stock.source)
        except InputError as error:
            problems += [f"{error.subject}: {problem}" for problem in error.problems]
            continue
        for example in examples:
            if example.instruction.strip() and example.output.strip():
                prompt, completion = prompts.render(example)
                stock.texts.append(Text(example, prompt, _keys(prompt, completion)))
        stock.read = len(examples)
        stock.empty = stock.read - len(stock.texts)
    if problems:
        raise InputError(problems, "data.sources")


def drop_doubles(given: Sequence[Stock]) -> None:
    """Keep the first of equal texts; the others are `duplicate`, or `shared` if another source has it."""
    owner: dict[bytes, Stock] = {}
    for stock in given:
        kept = []
        for text in stock.texts:
            first = owner.get(text.keys[1])
            if first is None:
                owner[text.keys[1]] = stock
                kept.append(text)
            elif first is stock:
                stock.duplicate += 1
            else:
                stock.shared += 1
        stock.texts = kept


def drop_too_long(given: Sequence[Stock], tokenizer: Any, max_length: int) -> None:
    """Leave out the records whose prompt leaves no room for a completion.

    A token covers at least one character of ASCII text, so most prompts are let in without tokenising them.
    """
    for stock in given:
        doubtful = [
            t for t in stock.texts if len(t.prompt) + _SPECIAL >= max_length or not t.prompt.isascii()
        ]
        _count_prompts(doubtful, tokenizer)
        kept = [text for text in stock.texts if text.prompt_tokens < max_length]
        stock.too_long = len(stock.texts) - len(kept)
        stock.texts = kept


def count_tokens(texts: Sequence[Text], tokenizer: Any) -> None:
    """Count the tokens of every prompt and completion."""
    _count_prompts([text for text in texts if not text.prompt_tokens], tokenizer)
    found = _tokens(tokenizer, [text.example.output for text in texts], add_special_tokens=False)
    for text, ids in zip(texts, found, strict=True):
        text.completion_tokens = len(ids) + 1


def _count_prompts(texts: Sequence[Text], tokenizer: Any) -> None:
    """Count as `retune.data.tokens` does: a token that closes the prompt is left out."""
    for text, ids in zip(texts, _tokens(tokenizer, [text.prompt for text in texts]), strict=True):
        text.prompt_tokens = len(ids) - (bool(ids) and ids[-1] == tokenizer.eos_token_id)


def _keys(prompt: str, completion: str) -> tuple[bytes, bytes]:
    asked, answer = (
        unicodedata.normalize("NFC", " ".join(text.split())).encode() for text in (prompt, completion)
    )
    return (
        hashlib.blake2b(asked, digest_size=16).digest(),
        hashlib.blake2b(asked + b"\0" + answer, digest_size=16).digest(),
    )


def _tokens(tokenizer: Any, texts: Sequence[str], **options: Any) -> Iterator[list[int]]:
    for start in range(0, len(texts), _BATCH):
        yield from tokenizer(list(texts[start : start + _BATCH]), **options)["input_ids"]
