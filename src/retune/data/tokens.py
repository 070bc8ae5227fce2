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
    """A tokenised split, all records one behind the other.

    Attributes:
        ids: token ids, int32, shape ``(tokens,)``.
        counted: whether the loss counts the prediction *of* this token, bool, shape ``(tokens,)``. Never true for the
            first token of a record: nothing predicts it.
        offsets: where each record starts, and the end; int64, shape ``(records + 1,)``.
        cut: how many records were longer than ``max_length`` and lost their end.
        dropped: how many records were left out because no counted token was left after the cut.
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

        # Not by a running sum over all tokens, which would be 8 bytes for each of them; no record is empty.
        starts = self.offsets[:-1].numpy()
        return torch.from_numpy(np.add.reduceat(self.counted.numpy(), starts, dtype=np.int64))

    @cached_property
    def all_prompted(self) -> bool:
        """Whether no record counts its second token, as a record without a prompt does."""
        seconds = (self.offsets[:-1] + 1).clamp(max=len(self.counted) - 1)
        return not bool(self.counted[seconds].any())


class Flat(NamedTuple):
    """The same as `Tokens` in numpy's arrays, for those who do without torch: int32, bool and int64."""

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
    """Put records of ``(ids, counted)`` one behind the other; those without a counted token after the cut are left out.

    Args:
        records: ids and counted tokens, whole.
        max_length: tokens per record at most; the rest is cut off at the end.
        loss_on: count what the records say, or all.

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
            "at least one record must have a token to learn from after the cut, but none has", "data"
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
    """Tokenise prompts and completions and cut each record to `max_length` tokens.

    The prompt is tokenised by itself, with the special tokens that the tokenizer puts in front, as it will be when the
    model is asked; the completion follows, closed by the end-of-text token, which is counted: the model must learn to
    stop.

    Args:
        pairs: prompt and completion of each record (`retune.data.prompts.render`).
        tokenizer: a transformers tokenizer.
        max_length: tokens per record at most; the rest is cut off at the end.
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
    """Yield ids and counted tokens of records that are prompts and completions in turn.

    The first prompt is tokenised with the special tokens that the tokenizer puts in front, all that follows without.
    Each completion is closed by the end-of-text token, which is counted too.

    Raises:
        InputError: if the tokenizer has no such token.
    """
    if not records:
        return
    end = tokenizer.eos_token_id
    if end is None:
        raise InputError(
            "the tokenizer must have an end-of-text token, by which a model learns to stop, but its `eos_token` is not set",
            "model.base",
        )
    heads = tokenizer([record[0][0] for record in records])["input_ids"]
    rest = [[text for pair in record for text in pair][1:] for record in records]
    tails = iter(tokenizer([text for texts in rest for text in texts], add_special_tokens=False)["input_ids"])
    for head, texts in zip(heads, rest, strict=True):
        if head and head[-1] == end:  # some tokenizers close every text; here it goes on
            head = head[:-1]
        ids, counted = list(head), [False] * len(head)
        for place in range(len(texts)):
            part = [*next(tails), *([] if place % 2 else [end])]
            ids += part
            counted += [place % 2 == 0] * len(part)
        yield ids, counted
