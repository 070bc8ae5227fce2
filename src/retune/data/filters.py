"""Filters the records of the sources: drops empty, duplicate and too long ones."""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from retune.data import sources
from retune.data.encode import Encoder
from retune.data.example import Example
from retune.data.prompts import Prompt, pieces, prompt
from retune.errors import InputError
from retune.study import File

_SPECIAL_TOKENS = 8  # more special tokens than any tokenizer adds to a text


@dataclass
class Text:
    """A record that can be drawn.

    Attributes:
        example: the record.
        keys: hashes of the normalised prompt, and of the normalised prompt and completion together.
        prompt_tokens: tokens before the first counted one, with the tokenizer's leading special tokens.
        completion_tokens: tokens from there on, with the end-of-text token.
        encoded: all token ids, and which of them are counted; set only for drawn records.
    """

    example: Example
    keys: tuple[bytes, bytes]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    encoded: tuple[Sequence[int], Sequence[bool] | bytes] = ((), ())


@dataclass
class Pool:
    """A source: the records that can be drawn, and how many were removed, by reason.

    Attributes:
        source: as in the study. data: the bytes of its file, or its folder. sha256: of its content.
        detected: the name of the format detected. held_out: records with a prompt of the validation file.
        longest: the longest prompt that was too long, in tokens.
    """

    source: File
    data: bytes | Path
    sha256: str
    detected: str = ""
    texts: list[Text] = field(default_factory=list)
    read: int = 0
    empty: int = 0
    duplicate: int = 0
    shared: int = 0
    too_long: int = 0
    held_out: int = 0
    longest: int = 0

    @property
    def share(self) -> float | None:
        """The share that the study requests."""
        return getattr(self.source, "share", None)


def pools(files: Sequence[File]) -> list[Pool]:
    """Return the sources with the bytes of their files, in an order that does not depend on the study's.

    Raises:
        InputError: if files are missing.
    """
    read, problems = [], []
    for source in files:
        try:
            content = sources.content(source)
        except InputError as error:
            problems += [f"{error.subject}: {problem}" for problem in error.problems]
        else:
            read.append(Pool(source, content, sources.content_digest(content)))
    if problems:
        raise InputError(problems, "data.sources")
    return sorted(read, key=lambda pool: (pool.sha256, pool.source.format, -(pool.share or 0)))


def parse(pools: Sequence[Pool]) -> None:
    """Read the records of every source; remove those with an empty instruction or output.

    Raises:
        InputError: if files are damaged or of another schema, with the problems of all of them.
    """
    problems = []
    for pool in pools:
        try:
            schema, examples = sources.parsed(pool.data, pool.source)
        except InputError as error:
            problems += [f"{error.subject}: {problem}" for problem in error.problems]
            continue
        pool.detected = schema.name
        plain = "text" in schema.fields  # not by the format's name: `columns` or a package may say so too
        for example in examples:
            if example.output.strip() and (plain or example.instruction.strip()):
                pool.texts.append(Text(example, _keys(example)))
        pool.read = len(examples)
        pool.empty = pool.read - len(pool.texts)
    if problems:
        raise InputError(problems, "data.sources")


def drop_duplicates(pools: Sequence[Pool]) -> None:
    """Keep the first of equal texts; the others are `duplicate`, or `shared` if another source has it."""
    owner: dict[bytes, Pool] = {}
    for pool in pools:
        kept = []
        for text in pool.texts:
            first = owner.get(text.keys[1])
            if first is None:
                owner[text.keys[1]] = pool
                kept.append(text)
            elif first is pool:
                pool.duplicate += 1
            else:
                pool.shared += 1
        pool.texts = kept


def drop_held_out(pools: Sequence[Pool], held_out: Pool) -> None:
    """Remove records whose prompt is in the validation file."""
    prompts = {text.keys[0] for text in held_out.texts}
    for pool in pools:
        kept = [text for text in pool.texts if text.keys[0] not in prompts]
        pool.held_out = len(pool.texts) - len(kept)
        pool.texts = kept


def drop_too_long(pools: Sequence[Pool], encoder: Encoder, max_length: int) -> None:
    """Remove records whose prompt leaves no room for a completion.

    Most prompts need not be tokenised: a token of ASCII text has at least one character, so a text has no more tokens than
    characters.
    """
    for pool in pools:
        doubtful = [text for text in pool.texts if _may_be_longer(text.example, encoder, max_length)]
        _count(doubtful, encoder)
        kept = [text for text in pool.texts if text.prompt_tokens < max_length]
        pool.too_long = len(pool.texts) - len(kept)
        pool.longest = max((text.prompt_tokens for text in pool.texts), default=0)
        pool.texts = kept


def count_tokens(texts: Sequence[Text], encoder: Encoder) -> None:
    """Count the tokens of every prompt and completion, and keep them."""
    _count(texts, encoder, keep=True)


def count_longer(texts: Sequence[Text], encoder: Encoder, max_length: int) -> None:
    """Count the tokens of every text that may exceed `max_length` and was not counted; the others stay at 0."""
    _count(
        [
            text
            for text in texts
            if not text.prompt_tokens + text.completion_tokens
            and _may_be_longer(text.example, encoder, max_length, whole=True)
        ],
        encoder,
    )


def _may_be_longer(example: Example, encoder: Encoder, max_length: int, whole: bool = False) -> bool:
    """Return whether the first prompt, or the whole record, may have `max_length` tokens."""
    if (encoder.chat is not None and not example.is_text) or example.unlearned:
        return True
    texts = pieces(example, encoder.template if encoder.chat is None else Prompt())
    text = "".join(asked + said for asked, said in texts) if whole else texts[0][0]
    return len(text) + _SPECIAL_TOKENS * len(texts) >= max_length or not text.isascii()


def _count(texts: Sequence[Text], encoder: Encoder, keep: bool = False) -> None:
    """Count tokens exactly as a trial will."""
    for text, (ids, counted) in zip(texts, encoder.encode([text.example for text in texts]), strict=True):
        text.prompt_tokens = counted.index(True) if True in counted else len(ids)
        text.completion_tokens = len(ids) - text.prompt_tokens
        if keep:
            text.encoded = array("i", ids), bytes(counted)  # 5 bytes per token, instead of 16 in lists


def _keys(example: Example) -> tuple[bytes, bytes]:
    """Return hashes of the prompt and of the whole text, always in the Alpaca template.

    So `data.prompt` affects neither which records are duplicates nor which are drawn.
    """
    if example.is_text:
        texts = [example.output]
    elif example.messages:
        first = next(k for k, (role, _) in enumerate(example.messages) if role == "assistant")
        asked = "\n\n".join(text for role, text in example.messages[:first] if role != "system")
        texts = [prompt(asked, "", example.system), *(text for _, text in example.messages[first:])]
    else:
        texts = [prompt(example.instruction, example.input, example.system), example.output]
    normal = [unicodedata.normalize("NFC", " ".join(text.split())).encode() for text in texts]
    return (
        hashlib.blake2b(normal[0], digest_size=16).digest(),
        hashlib.blake2b(b"\0".join(normal), digest_size=16).digest(),
    )
