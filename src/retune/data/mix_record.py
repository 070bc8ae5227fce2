"""The content of `mix.json`: sources, counts and token lengths of a mix."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, Field

from retune.data.prompts import Prompt
from retune.records import Record


class Lengths(BaseModel):
    """Token counts per record; percentiles by nearest rank."""

    min: int
    mean: float
    p50: int
    p95: int
    max: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths:
        """Return the statistics of at least one length."""
        ordered = sorted(lengths)
        at = {share: ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95)}
        mean = round(sum(ordered) / len(ordered), 2)
        return cls(min=ordered[0], mean=mean, p50=at[0.5], p95=at[0.95], max=ordered[-1])


class SplitRecord(BaseModel):
    """Statistics of a split, or of one source's part of it.

    Attributes:
        records: how many.
        tokens: of an epoch, after truncation to `max_length`; None without a tokenizer.
        truncated: records that lose their end by truncation.
        lengths: of `prompt`, `completion` (with its end-of-text token) and `total`, before the cut.
        sha256: of the split's file; None for one source's part.
    """

    records: int
    tokens: int | None = None
    truncated: int | None = None
    lengths: dict[str, Lengths] = Field(default_factory=dict)
    sha256: str | None = None

    @classmethod
    def of(cls, lengths: Sequence[tuple[int, int]] | None, records: int, max_length: int) -> SplitRecord:
        """Return the statistics of records with these prompt and completion lengths, if they are known."""
        if lengths is None or not records:
            return cls(records=records)
        totals = [prompt + completion for prompt, completion in lengths]
        return cls(
            records=records,
            tokens=sum(min(total, max_length) for total in totals),
            truncated=sum(total > max_length for total in totals),
            lengths={
                "prompt": Lengths.of([prompt for prompt, _ in lengths]),
                "completion": Lengths.of([completion for _, completion in lengths]),
                "total": Lengths.of(totals),
            },
        )


class SourceRecord(BaseModel):
    """The counts of a source's records: ``read = empty + duplicate + shared + held_out + too_long + available``.

    Attributes:
        name: of the file, without folder. format: as in the study. taken: the format detected, e.g. ``dolly``.
        share: as in the study; without shares, the part of all records that it has. sha256: of the file's bytes.
        held_out: with a prompt that is also in the study's separate validation file.
        duplicate: equal to an earlier record of the source. shared: equal to a record of another source.
        available: left to draw from. splits: the drawn ones, by split.
    """

    name: str
    format: str
    share: float
    sha256: str
    read: int
    empty: int
    duplicate: int
    shared: int
    too_long: int
    held_out: int = 0
    available: int
    taken: str = ""
    splits: dict[str, SplitRecord] = Field(default_factory=dict)


class MixRecord(Record):
    """The record of mixed data (`mix.json`): sources, rules and result. The same inputs give the same bytes.

    Attributes:
        digest: of the mixed data: of the recipe and the content of both splits.
        recipe: the digest of all inputs, see `retune.data.mixing.recipe_digest`.
        rules: the version of the mixing rules.
        max_length: tokens per record at most. tokenizer: its digest. Both are None without a tokenizer.
        prompt: the prompt template.
        sources: the one with the largest share first; a separate validation file last, with the share 0.
        splits: `train` and `validation`.
    """

    digest: str
    recipe: str
    rules: int
    seed: int
    max_length: int | None
    tokenizer: str | None
    prompt: Prompt = Field(default_factory=Prompt)
    sources: list[SourceRecord]
    splits: dict[str, SplitRecord]
    versions: dict[str, str] = Field(default_factory=dict)
