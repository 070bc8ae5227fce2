"""Counting what people answered, and telling bad files from good ones."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retune.errors import InputError
from retune.evaluation.judge.collect import collect
from retune.evaluation.judge.score import interval, score
from tests.evaluation.judge.studies import exported, make, save

VOTES = {"q0": "a", "q1": "b", "q2": "tie", "q3": "a"}


@pytest.fixture
def key(tmp_path):
    return make(tmp_path, [(f"a{k}", f"b{k}") for k in range(4)])[0]


def test_counts_by_question_by_person_and_overall(tmp_path, key):
    files = [
        save(tmp_path, "1.json", exported(key, "Ada", VOTES)),
        save(tmp_path, "2.json", exported(key, "Bob", {**VOTES, "q1": "a", "q3": "tie"})),
    ]
    found = score(files, key)
    assert (found.overall.win, found.overall.tie, found.overall.lose) == (4, 3, 1)
    assert found.score == pytest.approx((4 - 1) / 8)
    assert [(q.id, q.win, q.tie, q.lose, q.score()) for q in found.questions] == [
        ("q0", 2, 0, 0, 1.0), ("q1", 1, 0, 1, 0.0), ("q2", 0, 2, 0, 0.0), ("q3", 1, 1, 0, 0.5),
    ]  # fmt: skip
    assert [(p.annotator, p.win, p.tie, p.lose, p.missing) for p in found.annotators] == [
        ("Ada", 2, 1, 1, 0),
        ("Bob", 2, 2, 0, 0),
    ]
    assert found.first == pytest.approx(4 / 5)  # a stood first each time
    assert found.interval[0] <= found.score <= found.interval[1]
    assert found.left_out == []
    assert json.loads(found.to_json())["overall"] == {"win": 4, "tie": 3, "lose": 1}


def test_equal_answers_are_ties_of_each_person_and_no_agreement(tmp_path):
    key, _ = make(tmp_path, [("same", "same"), ("x", "y"), ("v", "w")])
    people = {"Ada": {"q1": "a", "q2": "b"}, "Bob": {"q1": "a", "q2": "b"}}
    files = [save(tmp_path, f"{name}.json", exported(key, name, votes)) for name, votes in people.items()]
    found = score(files, key)
    assert (found.overall.win, found.overall.tie, found.overall.lose) == (2, 2, 2)
    assert [q.equal for q in found.questions] == [True, False, False]
    assert found.alpha_nominal == 1.0


def test_an_unfinished_file_counts_for_what_it_answers(tmp_path, key):
    found = score([save(tmp_path, "1.json", exported(key, "Ada", {"q0": "a", "q2": "b"}))], key)
    assert found.overall.n == 2
    assert found.annotators[0].missing == 2
    assert [q.score() for q in found.questions] == [1.0, None, -1.0, None]
    assert found.alpha_nominal is None


def test_bad_files_are_named_and_left_out(tmp_path, key):
    good = exported(key, "Ada", VOTES)
    answer = good["answers"][0]
    bad = {
        "empty.json": b"  \n",
        "nothing.json": exported(key, "Eve", {}),
        "cut.json": json.dumps(good).encode()[:-40],
        "binary.json": b"\x89PNG\xff\x00",
        "deep.json": b"[" * 100_000,
        "list.json": [1, 2],
        "key.json": json.loads(key.to_json()),
        "other.json": exported(key, "Eve", VOTES, form="0" * 16),
        "type.json": exported(key, "Eve", VOTES, answers=[{**answer, "choice": 1}]),
        "unknown.json": exported(key, "Eve", VOTES, answers=[{**answer, "question": "x"}]),
        "choice.json": exported(
            key, "Eve", VOTES, answers=[{**answer, "choice": good["answers"][1]["choice"]}]
        ),
        "twice.json": exported(key, "Eve", VOTES, answers=[answer, answer]),
        "nameless.json": exported(key, "", VOTES),
    }
    files = [save(tmp_path / "in", name, content) for name, content in bad.items()]
    missing, folder = str(tmp_path / "in/none.json"), str(tmp_path / "in")
    found = score([*files, missing, folder, save(tmp_path / "in", "good.json", good)], key)
    assert [one.annotator for one in found.annotators] == ["Ada"]
    kinds = {one.file.rsplit("/", 1)[1]: one.kind for one in found.left_out}
    assert kinds == {
        "empty.json": "empty", "nothing.json": "empty", "cut.json": "damaged", "binary.json": "damaged", "deep.json": "damaged",
        "list.json": "foreign", "key.json": "foreign", "other.json": "foreign", "type.json": "damaged", "unknown.json": "damaged",
        "choice.json": "damaged", "twice.json": "damaged", "nameless.json": "damaged", "none.json": "unreadable", "in": "unreadable",
    }  # fmt: skip
    assert all(one.reason for one in found.left_out)
    with pytest.raises(InputError) as error:
        score(files, key)
    assert len(error.value.problems) == len(bad)


def test_of_one_person_the_file_exported_last_counts(tmp_path, key):
    early = save(
        tmp_path, "early.json", exported(key, "Ada", {"q0": "b"}, exported="2026-01-01T00:30:00.000Z")
    )
    late = save(tmp_path, "late.json", exported(key, "Ada", VOTES))
    other_case = save(
        tmp_path,
        "case.json",
        exported(key, " aDa ", VOTES, session="other", exported="2025-01-01T00:00:00.000Z"),
    )
    renamed = save(
        tmp_path,
        "renamed.json",
        exported(key, "Zoe", VOTES, session="s-Ada", exported="2025-02-01T00:00:00.000Z"),
    )
    for files in ([early, late, other_case, renamed], [renamed, other_case, late, early, late]):
        ballots, left_out = collect(files, key)
        assert [one.file for one in ballots] == [late]
        assert {one.file for one in left_out} == {early, other_case, renamed}
        assert {one.kind for one in left_out} == {"double"}
        assert all("late.json" in one.reason for one in left_out)


def test_told_from_the_other_side_everything_is_reversed(tmp_path, key):
    swap = {"a": "b", "b": "a", "tie": "tie"}
    rng = random.Random(1)
    people = {f"p{n}": {f"q{k}": rng.choice(["a", "a", "b", "tie"]) for k in range(4)} for n in range(5)}
    one = score([save(tmp_path, f"{n}.json", exported(key, n, v)) for n, v in people.items()], key)
    turned = {n: {q: swap[v] for q, v in votes.items()} for n, votes in people.items()}
    other = score([save(tmp_path, f"{n}-t.json", exported(key, n, v)) for n, v in turned.items()], key)
    assert other.score == -one.score
    assert (other.overall.win, other.overall.lose) == (one.overall.lose, one.overall.win)
    assert other.alpha_nominal == pytest.approx(one.alpha_nominal)
    assert other.interval == pytest.approx((-one.interval[1], -one.interval[0]), abs=1e-9)


def test_the_interval_of_one_person_is_that_of_the_questions():
    """100 questions, 60 won and 40 lost: a standard error of sqrt(1 - 0.2^2) / 10 = 0.098."""
    names = [str(k) for k in range(100)]
    low, high = interval([{name: "a" if k < 60 else "b" for k, name in enumerate(names)}], names, 0)
    assert (low, high) == (
        pytest.approx(0.2 - 1.96 * 0.098, abs=0.03),
        pytest.approx(0.2 + 1.96 * 0.098, abs=0.03),
    )


def test_the_interval_knows_that_people_differ():
    """Ten people who each always give the same vote: more questions add no certainty, 1 / sqrt(10) = 0.32."""
    names = [str(k) for k in range(200)]
    votes = [dict.fromkeys(names, "a" if person % 2 else "b") for person in range(10)]
    low, high = interval(votes, names, 0)
    assert low == pytest.approx(-0.62, abs=0.05)
    assert high == pytest.approx(0.62, abs=0.05)


def test_the_interval_is_seeded_and_narrow_where_all_agree():
    votes = [{"x": "a", "y": "a"}, {"x": "a"}]
    assert interval(votes, ["x", "y"], 5) == interval(votes, ["x", "y"], 5) == (1.0, 1.0)


@settings(max_examples=40)
@given(data=st.data())
def test_no_damage_to_a_file_stops_the_count(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    key, _ = make(folder, [("x", "y"), ("v", "w")])
    raw = bytearray(json.dumps(exported(key, "Ada", {"q0": "a", "q1": "tie"})).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        if data.draw(st.booleans()):
            raw[at] = data.draw(st.integers(0, 255))
        else:
            del raw[at:]
            raw += data.draw(st.binary(max_size=20)) or b" "
    ballots, left_out = collect([save(folder, "x.json", bytes(raw))], key)
    assert len(ballots) + len(left_out) == 1


def test_a_huge_file_among_the_answers_is_not_read(tmp_path, key):
    """People send files of any kind; this one takes no room on the disk, and would take 4 GiB of memory."""
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(4 << 30)
    ballots, [left_out] = collect([save(tmp_path, "1.json", exported(key, "Ada", VOTES)), str(huge)], key)
    assert [ballot.annotator for ballot in ballots] == ["Ada"]
    assert (left_out.kind, "16 MiB" in left_out.reason) == ("foreign", True)
