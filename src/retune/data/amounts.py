"""The number of records of each source in each split: counts, shares of the available records, or all."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from retune.data import sources
from retune.data.draw import Drawn, Group, counts, draw, grouped, largest
from retune.data.sift import Stock
from retune.errors import InputError
from retune.study import Data, File


def drawn(data: Data, seed: int, stocks: Sequence[Stock]) -> Drawn:
    """Draw both splits from the sources; where validation is a file of its own, only train.

    Raises:
        InputError: if a source has too few records; with what was asked, what there is and what would work.
    """
    groups = grouped([[text.keys for text in stock.texts] for stock in stocks], seed)
    shares = [stock.share for stock in stocks]
    available = [len(stock.texts) for stock in stocks]
    natural = any(share is None for share in shares)
    parts: list[float] = [float(n) for n in available] if natural else [share or 0.0 for share in shares]
    if not sum(parts):
        raise InputError([_short(data, stock, 0, 0, 0) for stock in stocks], "data")
    there = sum(available) if natural else _most(parts, available)
    held_out = 0 if isinstance(data.validation, File) else _number(data.validation, there)
    validation = counts(held_out, parts)
    if data.train == "all":
        if natural:  # all that is left, whatever prompts the validation set has used up
            found = draw(groups, available, validation)
            took = [sum(source == k for source, _ in found.validation) for k in range(len(stocks))]
            missing = [asked - got for asked, got in zip(validation, took, strict=True)]
            found = Drawn(found.train, found.validation, missing)
        else:
            found = _all_in_proportion(groups, parts, validation, there - held_out)
        asked = there - held_out
    else:
        asked = _number(data.train, there)
        found = draw(groups, counts(asked, parts), validation)
    if not any(found.missing) and found.train:
        return found
    train = counts(asked, parts)
    problems = [
        _short(data, stock, first, second, missing)
        for stock, missing, first, second in zip(stocks, found.missing, train, validation, strict=True)
        if missing
    ]
    most = largest(groups, parts, asked, held_out) if held_out else None
    if most:
        problems.append(f"the most that these shares allow is data.train={most[0]} data.validation={most[1]}")
    if not problems:
        problems.append(
            f"`train` must hold at least one record, but {there:,} in all leave none after `validation`"
        )
    raise InputError(problems, "data")


def _number(asked: int | float | str, there: int) -> int:
    """Return a count as it is, and a share of what there is as a count, at least one."""
    return asked if isinstance(asked, int) else max(1, round(Fraction(str(asked)) * there))


def _most(shares: Sequence[float], available: Sequence[int]) -> int:
    """Return the largest number of records that can be shared out like that."""
    exact = [Fraction(str(share)) / sum(Fraction(str(s)) for s in shares) for share in shares]
    total = min(int((n + 1) / share) for n, share in zip(available, exact, strict=True))
    while total and any(n > there for n, there in zip(counts(total, shares), available, strict=True)):
        total -= 1
    return total


def _all_in_proportion(
    groups: Sequence[Group], shares: Sequence[float], validation: Sequence[int], most: int
) -> Drawn:
    """Draw the largest train set in these shares that the validation set leaves."""
    found = draw(groups, counts(max(1, most), shares), validation)
    if not any(found.missing):
        return found
    low, high = 0, max(1, most)
    while high - low > 1:
        middle = (low + high) // 2
        fits = not any(draw(groups, counts(middle, shares), validation).missing)
        low, high = (middle, high) if fits else (low, middle)
    return draw(groups, counts(low, shares), validation) if low else found


def _short(data: Data, stock: Stock, train: int, validation: int, missing: int) -> str:
    """Return what a source was asked for, what it has, and where the rest went."""
    gone = {
        "empty": stock.empty,
        "duplicate": stock.duplicate,
        "shared with another source": stock.shared,
        "in the validation file": stock.held_out,
        "too long": stock.too_long,
    }
    hint = ""
    if stock.too_long:
        hint = (
            f"; `max_length` is {data.max_length} tokens, and the longest prompt alone has {stock.longest:,}: a larger "
            "one keeps them"
        )
    share = "" if stock.share is None else f" (share {stock.share:g})"
    must = (
        f"must give {train:,} + {validation:,} = {train + validation:,} records, but gives {train + validation - missing:,}"
        if train + validation
        else "has no record left"
    )
    told = [(word, number) for word, number in gone.items() if number or word != "in the validation file"]
    where = ", ".join(
        f"{number:,} {'are ' if not place else ''}{word}" for place, (word, number) in enumerate(told)
    )
    return (
        f"{sources.name(stock.source)}{share} {must}: of {stock.read:,} read, {where}, and a prompt may be in only one "
        f"split{hint}"
    )
