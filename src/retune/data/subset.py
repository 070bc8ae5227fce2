"""A fixed random part of a split, of each source alike: what the trials of a search train on under `search.proxy`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel

from retune.data.draw import counts
from retune.data.example import Example
from retune.records import digest


class Subset(BaseModel):
    """Which part of the training data it is (`proxy` of a trial's record).

    Attributes:
        share, seed: as asked for. of: records of the whole split. records: records of the part.
        sources: records of the part by source. digest: over the records themselves, in order.

    """

    share: float
    seed: int
    of: int
    records: int
    sources: dict[str, int]
    digest: str


def choose(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], Subset]:
    """Return the part, in the order of the split, and what it is.

    It holds ``share`` of all records, rounded, and at least one; of the sources by largest remainder, drawn without replacement.
    The same records, share and seed give the same part in every process.
    """
    by_source: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        by_source.setdefault(example.source, []).append(place)
    names = sorted(by_source)
    wanted = counts(max(1, round(share * len(examples))), [float(len(by_source[name])) for name in names])
    rng = np.random.default_rng(seed)
    places: list[int] = []
    taken: dict[str, int] = {}
    for name, count in zip(names, wanted, strict=True):
        drawn = rng.permutation(len(by_source[name]))[:count]
        places += [by_source[name][k] for k in drawn]
        taken[name] = count
    chosen = [examples[place] for place in sorted(places)]
    content = digest([example.to_dict() for example in chosen])
    return chosen, Subset(
        share=share, seed=seed, of=len(examples), records=len(chosen), sources=taken, digest=content
    )
