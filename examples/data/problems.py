"""The demo's programming problems: functions of one line."""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """A function to write: what it shall do, one call with its result, the body, and tests of it."""

    name: str
    arguments: str
    says: str
    call: str
    result: str
    body: str
    tests: list[str]


PROBLEMS = [
    Problem("add_seven", "x", "Return x plus 7.", "(1)", "8", "x + 7", ["(1) == 8", "(-7) == 0"]),
    Problem("times_four", "x", "Return x times 4.", "(2)", "8", "x * 4", ["(2) == 8", "(5) == 20"]),
    Problem("minus_six", "x", "Return x minus 6.", "(9)", "3", "x - 6", ["(9) == 3", "(0) == -6"]),
    Problem(
        "sum_of_two",
        "a, b",
        "Return the sum of a and b.",
        "(2, 3)",
        "5",
        "a + b",
        ["(2, 3) == 5", "(-1, 4) == 3"],
    ),
    Problem(
        "larger_of_two",
        "a, b",
        "Return the larger of a and b.",
        "(2, 3)",
        "3",
        "max(a, b)",
        ["(2, 3) == 3", "(9, 1) == 9"],
    ),
    Problem(
        "last_item",
        "items",
        "Return the last of the items.",
        "([1, 2])",
        "2",
        "items[-1]",
        ["([1, 2]) == 2", "('xyz') == 'z'"],
    ),
    Problem(
        "number_of_items",
        "items",
        "Return the number of items.",
        "([4, 5])",
        "2",
        "len(items)",
        ["([4, 5]) == 2", "([]) == 0"],
    ),
    Problem(
        "is_even",
        "x",
        "Return whether x is even.",
        "(4)",
        "True",
        "x % 2 == 0",
        ["(4) is True", "(7) is False"],
    ),
]
