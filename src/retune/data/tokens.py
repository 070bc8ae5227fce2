"""From examples to token ids, with a mask of the tokens that the loss counts."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from retune.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

LossOn = Literal["completion", "all"]


@dataclass(frozen=True)
class Tokens:
    """A tokenised split, all records concatenated.

    Attributes:
        ids: token ids, int32, shape ``(tokens,)``.
        counted: whether the loss counts the prediction *of* this token, bool, shape ``(tokens,)``. Never true for the
            first token of a record: nothing predicts it.
        offsets: where each record starts, and the end; int64, shape ``(records + 1,)``.
        cut: how many records were truncated to ``max_length``.
        dropped: how many records were dropped because no counted token was left after that.
    """

    ids: Tensor
    counted: Tensor
    offsets: Tensor
    cut: int = 0
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """Tokens per record, shape ``(records,)``."""
        return self.offsets.diff()

    @property
    def counts(self) -> Tensor:
        """Counted tokens per record, shape ``(records,)``."""
        import numpy as np
        import torch

        # Not by a cumulative sum, which needs 8 bytes per token. `reduceat` is right since no record is empty.
        starts = self.offsets[:-1].numpy()
        return torch.from_numpy(np.add.reduceat(self.counted.numpy(), starts, dtype=np.int64))

    @cached_property
    def all_prompted(self) -> bool:
        """Whether every record has a prompt: then none counts its second token."""
        seconds = (self.offsets[:-1] + 1).clamp(max=len(self.counted) - 1)
        return not bool(self.counted[seconds].any())


class Flat(NamedTuple):
    """The same as `Tokens` in numpy arrays (int32, bool and int64), for code that does not import torch."""

    ids: np.ndarray[Any, Any]
    counted: np.ndarray[Any, Any]
    offsets: np.ndarray[Any, Any]
    cut: int
    dropped: int

    def tokens(self) -> Tokens:
        """Return them as tensors, which share the arrays' memory."""
        import torch

        ids, counted, offsets = (torch.from_numpy(each) for each in (self.ids, self.counted, self.offsets))
        return Tokens(ids, counted, offsets, self.cut, self.dropped)


def flat(
    records: Iterable[tuple[Sequence[int], Sequence[bool] | bytes]],
    max_length: int | None = None,
    loss_on: LossOn = "completion",
) -> Flat:
    """Concatenate records of ``(ids, counted)``; drop those without a counted token after truncation.

    Args:
        records: ids and counted tokens, before truncation.
        max_length: tokens per record at most; longer ones lose their end.
        loss_on: count the completion's tokens, as the records say, or all.

    Raises:
        InputError: if no record is left.
    """
    import numpy as np

    ids, counted, lengths = array("i"), bytearray(), [0]
    cut = dropped = 0
    for tokens, flags in records:
        cut += max_length is not None and len(tokens) > max_length
        kept = [True] * len(tokens) if loss_on == "all" else flags
        tokens, kept = tokens[:max_length], kept[:max_length]
        if not any(kept[1:]):
            dropped += 1
            continue
        ids.extend(tokens)
        counted += bytes([False, *kept[1:]])
        lengths.append(len(tokens))
    if len(lengths) == 1:
        raise InputError(
            f"at least one record must have a token to learn from within `max_length` ({max_length} tokens), but none has; "
            "raise it",
            "data",
        )
    return Flat(
        np.frombuffer(ids, dtype=np.int32),
        np.frombuffer(counted, dtype=np.bool_),
        np.cumsum(lengths, dtype=np.int64),
        cut,
        dropped,
    )


def pack(
    records: Iterable[tuple[Sequence[int], Sequence[bool] | bytes]],
    max_length: int | None = None,
    loss_on: LossOn = "completion",
) -> Tokens:
    """Return the same as `flat`, as tensors."""
    return flat(records, max_length, loss_on).tokens()


def tokenize(
    pairs: Sequence[tuple[str, str]], tokenizer: Any, max_length: int, loss_on: LossOn = "completion"
) -> Tokens:
    """Tokenise prompts and completions and truncate each record to `max_length` tokens.

    The prompt is tokenised separately, with the tokenizer's leading special tokens, exactly as at inference. The completion
    follows, closed by the end-of-text token, which is counted: the model must learn to stop.

    Args:
        pairs: prompt and completion of each record (`retune.data.prompts.render`).
        tokenizer: a transformers tokenizer.
        max_length: tokens per record at most; longer ones lose their end.
        loss_on: count the completion's tokens, or all.

    Raises:
        InputError: if no record has a counted token left, or the tokenizer has no end-of-text token.
    """
    if not pairs:
        raise InputError("a split needs at least one record, but got none", "data")
    return pack(join([[pair] for pair in pairs], tokenizer), max_length, loss_on)


def join(
    records: Sequence[Sequence[tuple[str, str]]], tokenizer: Any
) -> Iterator[tuple[list[int], list[bool]]]:
    """Yield ids and counted tokens of records, each a sequence of (prompt, completion) pairs.

    The first prompt is tokenised with the tokenizer's leading special tokens, all that follows without.
    Each completion is closed by the end-of-text token, which is counted too.

    Raises:
        InputError: if the tokenizer has no such token.
    """
    if not records:
        return
    end = tokenizer.eos_token_id
    if end is None:
        raise InputError(
            "the tokenizer must have an end-of-text token, from which a model learns to stop, but its `eos_token` is not set; "
            "set it in tokenizer_config.json",
            "model.base",
        )
    prompts = tokenizer([record[0][0] for record in records])["input_ids"]
    rest = [[text for pair in record for text in pair][1:] for record in records]
    rest_ids = iter(
        tokenizer([text for texts in rest for text in texts], add_special_tokens=False)["input_ids"]
    )
    # Some tokenizers append it to every text, but here the text continues. Others (OPT) begin every text with it.
    appends = tokenizer(["a"])["input_ids"][0][-1:] == [end]
    for prompt, texts in zip(prompts, rest, strict=True):
        if appends and prompt[-1:] == [end]:
            prompt = prompt[:-1]
        ids, counted = list(prompt), [False] * len(prompt)
        for index in range(len(texts)):
            part = [*next(rest_ids), *([] if index % 2 else [end])]  # completions are at even indices
            ids += part
            counted += [index % 2 == 0] * len(part)
        yield ids, counted
