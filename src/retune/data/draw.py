"""Assignment of records to splits: exact counts, no prompt in both splits, determined by the seed and the texts alone."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

Keys = tuple[bytes, bytes]  # a record's prompt and its whole text, hashed
Group = list[tuple[int, list[int]]]  # one prompt: for each source that has it, the places of its records


@dataclass(frozen=True)
class Drawn:
    """The drawn records.

    Attributes:
        train: for each record its source and its index there, in the (shuffled) order of the draw.
        validation: the same.
        missing: for each source, by how many records the two splits fall short.
    """

    train: list[tuple[int, int]]
    validation: list[tuple[int, int]]
    missing: list[int]


def counts(total: int, shares: Sequence[float]) -> list[int]:
    """Return whole counts that add up to `total`, each less than one away from its share of it.

    The largest remainder method (Hamilton's); of equal remainders the first wins. The shares need not add up to exactly one.
    They are taken as the decimal fractions that were written, not as floats: 0.7 of 54,000 is 37,800.
    """
    parts = [Fraction(str(share)) for share in shares]
    quotas = [total * part / sum(parts) for part in parts]
    whole = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda k: whole[k] - quotas[k])
    for k in by_remainder[: total - sum(whole)]:
        whole[k] += 1
    return whole


def grouped(pools: Sequence[Sequence[Keys]], seed: int) -> list[Group]:
    """Return the records with equal prompts together, the groups in the order of a hash of seed and prompt.

    Args:
        pools: for each source its records, all different.
        seed: decides the order.
    """
    rows: dict[bytes, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for source, pool in enumerate(pools):
        in_order = sorted((text, prompt, row) for row, (prompt, text) in enumerate(pool))
        for _, prompt, row in in_order:
            rows[prompt][source].append(row)
    salt = seed.to_bytes(8, "big")
    ranked = sorted(rows, key=lambda prompt: hashlib.blake2b(prompt, key=salt, digest_size=16).digest())
    return [list(rows[prompt].items()) for prompt in ranked]


def draw(groups: Sequence[Group], train: Sequence[int], validation: Sequence[int]) -> Drawn:
    """Draw without replacement the requested number of records from each source.

    A group is never used by both splits. The validation set takes every group that it can use completely; if it
    still needs records, it takes parts of groups, first of those that waste the fewest. The train set takes from
    the remaining groups in order. So the validation set does not depend on `train`, and a larger train set
    contains every smaller one.

    Args:
        groups: the records of all sources, from `grouped`.
        train: the number of records of each source.
        validation: the same.
    """
    missing = list(validation)
    taken: list[tuple[int, int]] = []
    left = []
    for group in groups:
        if all(len(places) <= missing[source] for source, places in group):
            taken += _take(group, missing)
        else:
            left.append(group)
    if any(missing):
        losses = [sum(max(0, len(places) - missing[source]) for source, places in group) for group in left]
        used = set()
        for k in sorted(range(len(left)), key=losses.__getitem__):  # a stable sort: equal ones stay in order
            part = _take(left[k], missing)
            taken += part
            if part:
                used.add(k)
        left = [group for k, group in enumerate(left) if k not in used]
    missing_train = list(train)
    trained = [row for group in left for row in _take(group, missing_train)]
    return Drawn(trained, taken, [a + b for a, b in zip(missing, missing_train, strict=True)])


def _take(group: Group, missing: list[int]) -> list[tuple[int, int]]:
    """Take the missing records from a group, and lower the counts."""
    taken = []
    for source, places in group:
        part = places[: missing[source]]
        missing[source] -= len(part)
        taken += [(source, row) for row in part]
    return taken


def largest_feasible(
    groups: Sequence[Group], shares: Sequence[float], train: int, validation: int
) -> tuple[int, int] | None:
    """Return the largest feasible train and validation counts in this proportion; None if there are none."""
    size = max(train, validation)

    def scaled(part: int) -> tuple[int, int]:
        return max(1, train * part // size), max(1, validation * part // size)

    def fits(part: int) -> bool:
        first, second = scaled(part)
        return not any(draw(groups, counts(first, shares), counts(second, shares)).missing)

    low, high = 0, size
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return scaled(low) if low else None
