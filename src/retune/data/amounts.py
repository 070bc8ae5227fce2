"""The number of records of each source in each split: counts, shares of the available records, or all."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from retune.data import sources
from retune.data.draw import Drawn, Group, counts, draw, grouped, largest_feasible
from retune.data.filters import Pool
from retune.errors import InputError
from retune.study import Data, File


def draw_splits(data: Data, seed: int, pools: Sequence[Pool]) -> Drawn:
    """Draw both splits from the sources; only train if validation is a separate file.

    Args:
        data: the study's section, with the sizes of both splits. seed: of the draw.
        pools: the sources, filtered.

    Raises:
        InputError: if a source has too few records; with the numbers requested, available and feasible.
    """
    groups = grouped([[text.keys for text in pool.texts] for pool in pools], seed)
    shares = [pool.share for pool in pools]
    available = [len(pool.texts) for pool in pools]
    natural = any(share is None for share in shares)
    parts: list[float] = [float(n) for n in available] if natural else [share or 0.0 for share in shares]
    if not sum(parts):
        raise InputError([_short(data, pool, 0, 0, 0) for pool in pools], "data")
    total_available = sum(available) if natural else _largest_total(parts, available)
    held_out = 0 if isinstance(data.validation, File) else _number(data.validation, total_available)
    validation = counts(held_out, parts)
    if data.train == "all":
        if natural:  # everything that the validation set leaves
            splits = draw(groups, available, validation)
            taken = [sum(source == k for source, _ in splits.validation) for k in range(len(pools))]
            missing = [asked - got for asked, got in zip(validation, taken, strict=True)]
            splits = Drawn(splits.train, splits.validation, missing)
        else:
            splits = _all_in_proportion(groups, parts, validation, total_available - held_out)
        asked = total_available - held_out
    else:
        asked = _number(data.train, total_available)
        splits = draw(groups, counts(asked, parts), validation)
    if not any(splits.missing) and splits.train:
        return splits
    train = counts(asked, parts)
    problems = [
        _short(data, pool, first, second, missing)
        for pool, missing, first, second in zip(pools, splits.missing, train, validation, strict=True)
        if missing
    ]
    most = largest_feasible(groups, parts, asked, held_out) if held_out else None
    if most:
        problems.append(f"the most that these shares allow is data.train={most[0]} data.validation={most[1]}")
    if not problems:
        problems.append(
            f"`train` must hold at least one record, but {total_available:,} in all leave none after `validation`"
        )
    raise InputError(problems, "data")


def _number(asked: int | float | str, total_available: int) -> int:
    """Return a count unchanged, and a share as a count of the available records, at least one."""
    return asked if isinstance(asked, int) else max(1, round(Fraction(str(asked)) * total_available))


def _largest_total(shares: Sequence[float], available: Sequence[int]) -> int:
    """Return the largest total that these shares allow."""
    exact = [Fraction(str(share)) / sum(Fraction(str(s)) for s in shares) for share in shares]
    total = min(int((n + 1) / share) for n, share in zip(available, exact, strict=True))
    while total and any(n > there for n, there in zip(counts(total, shares), available, strict=True)):
        total -= 1
    return total


def _all_in_proportion(
    groups: Sequence[Group], shares: Sequence[float], validation: Sequence[int], most: int
) -> Drawn:
    """Draw the largest train set with these shares from what the validation set leaves."""
    splits = draw(groups, counts(max(1, most), shares), validation)
    if not any(splits.missing):
        return splits
    low, high = 0, max(1, most)
    while high - low > 1:
        middle = (low + high) // 2
        fits = not any(draw(groups, counts(middle, shares), validation).missing)
        low, high = (middle, high) if fits else (low, middle)
    return draw(groups, counts(low, shares), validation) if low else splits


def _short(data: Data, pool: Pool, train: int, validation: int, missing: int) -> str:
    """Return one sentence: how many records a source should give, how many it has, and what was removed."""
    removed = {
        "empty": pool.empty,
        "duplicate": pool.duplicate,
        "shared with another source": pool.shared,
        "in the validation file": pool.held_out,
        "too long": pool.too_long,
    }
    hint = ""
    if pool.too_long:
        hint = (
            f"; `max_length` is {data.max_length} tokens, and the longest prompt alone has {pool.longest:,}: a larger "
            "one keeps them"
        )
    share = "" if pool.share is None else f" (share {pool.share:g})"
    must = (
        f"must give {train:,} + {validation:,} = {train + validation:,} records, but gives {train + validation - missing:,}"
        if train + validation
        else "has no record left"
    )
    reasons = [
        (word, number) for word, number in removed.items() if number or word != "in the validation file"
    ]
    where = ", ".join(
        f"{number:,} {'are ' if not index else ''}{word}" for index, (word, number) in enumerate(reasons)
    )
    return (
        f"{sources.name(pool.source)}{share} {must}: of {pool.read:,} read, {where}, and a prompt may be in only one "
        f"split{hint}"
    )
