"""From examples to token ids, with a mask of the tokens that the loss counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from retune.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

LossOn = Literal["completion", "all"]


@dataclass(frozen=True)
class Tokens:
    """A tokenised split, all records one behind the other.

    Attributes:
        ids: token ids, int64, shape ``(tokens,)``.
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
        import torch

        total = torch.zeros(len(self.ids) + 1, dtype=torch.int64)
        torch.cumsum(self.counted, 0, out=total[1:])
        return total[self.offsets].diff()


def pack(records: Sequence[tuple[Sequence[int], Sequence[bool]]], cut: int = 0) -> Tokens:
    """Put records of ``(ids, counted)`` into one `Tokens`; records without a counted token are left out.

    Raises:
        InputError: if no record is left.
    """
    import torch

    kept = [(ids, counted) for ids, counted in records if any(counted[1:])]
    if not kept:
        raise InputError(
            "at least one record must have a token to learn from after the cut, but none has", "data"
        )
    offsets = torch.tensor([0, *(len(ids) for ids, _ in kept)]).cumsum(0)
    ids = torch.tensor([token for ids, _ in kept for token in ids])
    counted = torch.tensor([flag for _, flags in kept for flag in flags])
    counted[offsets[:-1]] = False
    return Tokens(ids, counted, offsets, cut, len(records) - len(kept))


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
    records = []
    cut = 0
    for ids, counted in join([[pair] for pair in pairs], tokenizer):
        cut += len(ids) > max_length
        flags = [True] * len(ids) if loss_on == "all" else counted
        records.append((ids[:max_length], flags[:max_length]))
    return pack(records, cut)


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
