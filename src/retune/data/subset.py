"""A fixed random subset of a split, stratified by source: the training data of proxy trials (`search.proxy`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel

from retune.data.draw import counts
from retune.data.example import Example
from retune.records import digest


class Subset(BaseModel):
    """The description of a subset (`proxy` of a trial's record).

    Attributes:
        share, seed: as requested. of: records of the whole split. records: records of the subset.
        sources: records of the subset by source. digest: of the records themselves, in order.
    """

    share: float
    seed: int
    of: int
    records: int
    sources: dict[str, int]
    digest: str


def choose(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], Subset]:
    """Return the subset, in the order of the split, and its description.

    It has ``share`` of all records, rounded, but at least one; each source has its part by largest remainder. Records are drawn
    without replacement. The same records, share and seed give the same subset in every process.
    """
    by_source: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        by_source.setdefault(example.source, []).append(index)
    names = sorted(by_source)
    counts_by_source = counts(
        max(1, round(share * len(examples))), [float(len(by_source[name])) for name in names]
    )
    rng = np.random.default_rng(seed)
    indices: list[int] = []
    kept: dict[str, int] = {}
    for name, count in zip(names, counts_by_source, strict=True):
        drawn = rng.permutation(len(by_source[name]))[:count]
        indices += [by_source[name][k] for k in drawn]
        kept[name] = count
    chosen = [examples[index] for index in sorted(indices)]
    content = digest([example.to_dict() for example in chosen])
    return chosen, Subset(
        share=share, seed=seed, of=len(examples), records=len(chosen), sources=kept, digest=content
    )
