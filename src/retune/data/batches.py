"""Padding-free batches (arXiv:2407.09105): the records of one optimiser step are concatenated into a single sequence.

Unlike with packing, the records of a step stay those of ordinary padded batches, and so do the meaning of batch size, learning
rate and number of steps. Each record's positions start at 0, and `lengths` tells the attention where the next record begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from retune.data.tokens import Tokens


PADDING = 0.2
"""The share of a padded pass that may be padding."""


@dataclass(frozen=True)
class Batch:
    """Some records in one sequence.

    Attributes:
        ids: int64, shape ``(1, tokens)``.
        positions: of each token in its own record, int64, shape ``(1, tokens)``.
        lengths: tokens of each record.
        tails: tokens of each record from its first counted prediction to its end; equal to `lengths` if any record of the
            split has no prompt.
        rows: indices in the sequence whose prediction is counted, int64, shape ``(counted,)``.
        targets: the token each of them should predict, int64, shape ``(counted,)``.
    """

    ids: Tensor
    positions: Tensor
    lengths: list[int]
    tails: list[int]
    rows: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`; from the CPU the copy does not wait for the device."""
        if device.type == "cpu":
            return self
        tensors = (self.ids, self.positions, self.rows, self.targets)
        ids, positions, rows, targets = (t.pin_memory().to(device, non_blocking=True) for t in tensors)
        return Batch(ids, positions, self.lengths, self.tails, rows, targets)


def flatten(tokens: Tokens, records: Sequence[int]) -> Batch:
    """Return the given records, in the given order, as one `Batch`."""
    import torch

    starts = tokens.offsets[list(records)].tolist()
    ends = tokens.offsets[[record + 1 for record in records]].tolist()
    lengths = [end - start for start, end in zip(starts, ends, strict=True)]
    ids = torch.cat([tokens.ids[start:end] for start, end in zip(starts, ends, strict=True)]).long()
    flags = [tokens.counted[start:end] for start, end in zip(starts, ends, strict=True)]
    # Dropout sees from the number of tokens alone whether a layer computes all or the tails (`retune.training.dropout`). So
    # the two numbers must differ: either every record's tail is shorter than the record, or tails are not used.
    tails = (
        [length - int(flag.int().argmax()) + 1 for length, flag in zip(lengths, flags, strict=True)]
        if tokens.all_prompted
        else lengths
    )
    positions = torch.cat([torch.arange(length) for length in lengths])
    places = torch.cat(flags).nonzero().squeeze(1)
    return Batch(ids.unsqueeze(0), positions.unsqueeze(0), lengths, tails, places - 1, ids[places])


def epoch_order(records: int, seed: int, epoch: int) -> list[int]:
    """Return the order in which an epoch visits the records: a permutation that depends on seed and epoch only."""
    import torch

    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order: list[int] = torch.randperm(records, generator=generator).tolist()
    return order


def epoch_batches(records: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the records of each optimiser step of an epoch; the last step takes what is left."""
    order = epoch_order(records, seed, epoch)
    return [order[start : start + batch_size] for start in range(0, records, batch_size)]


def share(records: Sequence[int], rank: int, world: int) -> list[int]:
    """Return the records of one optimiser step that process `rank` of `world` takes (none, if there are too few)."""
    return list(records[rank::world])


def passes(lengths: Sequence[int], max_tokens: int, padded: bool = False) -> Iterator[list[int]]:
    """Group consecutive records into passes of at most `max_tokens` tokens, but at least one record.

    Args:
        lengths: tokens of each record.
        max_tokens: of a pass, with its padding.
        padded: whether the records of a pass are padded to its longest. Padding is computed like any other token, so a pass
            ends before more than `PADDING` of it would be padding; records sorted by length need the fewest passes.

    Yields:
        indices into `lengths`, in order.
    """
    run: list[int] = []
    tokens = longest = 0
    for index, length in enumerate(lengths):
        size, longest = tokens + length, max(longest, length)
        padded_size = longest * (len(run) + 1) if padded else size
        if run and (padded_size > max_tokens or size < padded_size * (1 - PADDING)):
            yield run
            run, size, longest = [], length, length
        run.append(index)
        tokens = size
    if run:
        yield run
