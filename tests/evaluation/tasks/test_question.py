import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from retune.evaluation.tasks.question import Question, by_group, draw, first_few, share, starts_with_label


def questions(sizes):
    return [
        Question(f"{g}/{k}", str(g), "", (), "?", "A") for g, size in enumerate(sizes) for k in range(size)
    ]


sizes = st.lists(st.integers(1, 30), min_size=1, max_size=8)


@given(sizes, st.integers(1, 100), st.integers(0, 5))
def test_a_draw_is_as_long_as_asked_without_repeats_and_in_order(sizes, limit, seed):
    every = questions(sizes)
    drawn = draw(every, limit, seed)
    assert len(drawn) == min(limit, len(every))
    places = [every.index(question) for question in drawn]
    assert places == sorted(set(places))


@given(sizes, st.integers(1, 60), st.integers(0, 5))
def test_each_group_gets_its_share_within_one(sizes, limit, seed):
    every = questions(sizes)
    counts = Counter(question.group for question in draw(every, limit, seed))
    total = len(every)
    for group, size in enumerate(sizes):
        fair = size * min(limit, total) / total
        assert abs(counts[str(group)] - fair) <= len(sizes) / 2 + 1
    if limit >= total:
        assert sum(counts.values()) == total


@given(sizes, st.integers(1, 40), st.integers(0, 20))
def test_a_larger_limit_holds_the_smaller(sizes, limit, more):
    every = questions(sizes)
    small, large = draw(every, limit, 3), draw(every, limit + more, 3)
    assert {q.id for q in small} <= {q.id for q in large}


def test_equal_groups_are_drawn_from_evenly_and_seeds_differ():
    every = questions([100] * 10)
    drawn = draw(every, 50, 0)
    assert set(Counter(q.group for q in drawn).values()) == {5}
    assert drawn == draw(every, 50, 0)
    assert drawn != draw(every, 50, 1)


def test_no_limit_asks_everything():
    every = questions([3, 4])
    assert draw(every, None, 0) == every
    assert draw(every, 7, 0) == every


def test_right_is_what_starts_with_the_label():
    two = [Question("1", "", "", (), "?", "A"), Question("2", "", "", (), "?", "A")]
    assert [v.right for v in starts_with_label(two, [" \nA. femur", "The A"])] == [True, False]


def test_share_and_its_error():
    assert share([True, False, True, True]) == (0.75, math.sqrt(0.75 * 0.25 / 3))
    assert share([True]) == (1.0, 0.0)


def test_shots_are_kept_from_the_front():
    question = Question("1", "", "H|", ("one|", "two|", "three|"), "?", "A")
    assert question.prompt() == "H|one|two|three|?"
    assert question.prompt(1) == "H|one|?"
    assert question.prompt(0) == "H|?"


def test_groups_keep_their_order():
    every = questions([1, 2])
    assert by_group(every, [True, False, True]) == {"0": [True], "1": [False, True]}


def test_long_lists_of_problems_are_cut_and_counted():
    assert first_few(["a", "b", "c"]) == ["a", "b", "c"]
    assert first_few(["a", "b", "c", "d", "e"])[-1] == "… and 2 more like these in the same file"
