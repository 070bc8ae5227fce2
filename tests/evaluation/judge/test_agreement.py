"""Alpha against the values printed in the literature."""

import pytest

from retune.evaluation.judge.agreement import krippendorff_alpha, nominal, ordinal

# Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011, sections C and D: four observers, twelve units.
OBSERVERS = [
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
]
# The same, section A: two observers, ten units, two values.
TWO = ["0 1 0 0 0 0 0 0 1 0", "1 1 1 0 0 1 0 0 0 0"]
# Wikipedia, "Krippendorff's alpha", a computational example: three coders, fifteen units.
CODERS = ["* * * * * 3 4 1 2 1 1 3 3 * 3", "1 * 2 1 3 3 4 3 * * * * * * *", "* * 2 1 3 4 4 * 2 1 1 3 3 * 4"]


def counts(rows: list[str]) -> list[list[int]]:
    columns = list(zip(*(row.split() for row in rows), strict=True))
    values = sorted({value for column in columns for value in column} - {".", "*"})
    return [[column.count(value) for value in values] for column in columns]


@pytest.mark.parametrize(
    ("rows", "distance", "printed"),
    [
        (OBSERVERS, nominal, 0.743),
        (OBSERVERS, ordinal, 0.815),
        (TWO, nominal, 0.095),
        (CODERS, nominal, 0.691),
    ],
    ids=["nominal", "ordinal", "binary", "wikipedia"],
)
def test_alpha_is_what_the_literature_prints(rows, distance, printed):
    assert krippendorff_alpha(counts(rows), distance) == pytest.approx(printed, abs=0.0005)


def test_full_agreement_is_one_and_opposite_votes_are_below_zero():
    assert krippendorff_alpha([[3, 0, 0], [0, 0, 3]]) == 1.0
    assert krippendorff_alpha([[1, 0, 1], [1, 0, 1], [1, 0, 1]]) < 0


@pytest.mark.parametrize(
    "table", [[], [[1, 0, 0], [0, 0, 1]], [[3, 0, 0], [2, 0, 0]]], ids=["none", "one person", "one value"]
)
def test_alpha_is_not_defined_where_there_is_nothing_to_compare(table):
    assert krippendorff_alpha(table) is None


def test_an_ordinal_alpha_forgives_neighbours():
    near = [[0, 1, 1], [2, 0, 0], [0, 0, 2]]
    assert krippendorff_alpha(near, ordinal) > krippendorff_alpha(near, nominal)
