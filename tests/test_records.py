"""Records: no NaN, no field lost, and the same digest for the same content."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retune.records import (
    BenchRecord,
    GateRecord,
    Metric,
    Record,
    TrialRecord,
    canonical,
    digest,
    now,
    versions,
)

TRIAL = {"trial": "trial-007", "number": 7, "role": "search", "assignment": {"rank": 8, "alpha": 32.5, "kind": "a"},
         "seed": 0, "status": "completed", "values": {"validation_loss": 1.25}}  # fmt: skip
plain = st.text(st.characters(exclude_categories=["Cs"]))
content = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "place",
    [
        lambda number: {"values": {"validation_loss": number}},
        lambda number: {"curves": {"validation_loss": [Metric(step=1, value=number)]}},
        lambda number: {"assignment": {"rank": number}},
        lambda number: {"seconds": number},
        lambda number: {"added_later": number},
        lambda number: {"added_later": {"deep": [number]}},
    ],
)
def test_a_number_that_is_none_is_never_written(number, place):
    with pytest.raises(ValueError):
        TrialRecord(**{**TRIAL, **place(number)}).to_json()


def test_nor_is_it_inside_a_gate_rule():
    rules = [{"name": "gain", "gain": math.nan}]
    with pytest.raises(ValueError):
        GateRecord(model="m", challenger="1", champion=None, decision="promote", rules=rules).to_json()


@pytest.mark.parametrize("number", [math.nan, math.inf, None])
def test_objective_of_a_trial_without_a_finite_number_is_none(number):
    values = {} if number is None else {"validation_loss": number}
    assert TrialRecord(**{**TRIAL, "values": values}).objective("validation_loss") is None


@pytest.mark.parametrize("status", ["failed", "interrupted", "early_stopped"])
def test_objective_is_that_of_a_completed_trial_only(status):
    assert TrialRecord(**TRIAL).objective("validation_loss") == 1.25
    assert TrialRecord(**{**TRIAL, "status": status}).objective("validation_loss") is None
    assert TrialRecord(**TRIAL).objective("accuracy") is None


@given(st.dictionaries(st.from_regex(r"extra_[a-z]{1,8}", fullmatch=True), content, max_size=3))
def test_fields_of_a_newer_writer_survive(extra):
    text = TrialRecord.model_validate({**TRIAL, **extra, "schema_version": 2}).to_json()
    found = json.loads(text)
    assert {key: found[key] for key in extra} == extra
    assert found["schema_version"] == 2
    assert TrialRecord.model_validate_json(text).to_json() == text


def test_records_of_an_older_writer_are_read():
    """The least that the first version wrote of each record; fields are only ever added, with a default."""
    assert TrialRecord.model_validate({k: v for k, v in TRIAL.items() if k != "values"}).schema_version == 1
    BenchRecord(
        model="trial-000", task="mmlu", score=0.25, stderr=0.01, n=40, shots=5, protocol="instruct-eval"
    )
    GateRecord(model="m", challenger="1", champion=None, decision="promote")


@pytest.mark.parametrize(
    "change",
    [
        {"status": "done"},
        {"role": "best"},
        {"number": "seven"},
        {"seed": None},
        {"curves": {"x": [{"value": 1}]}},
    ],
)
def test_wrong_records_are_refused(change):
    with pytest.raises(ValueError):
        TrialRecord(**{**TRIAL, **change})


@given(content)
def test_json_comes_back(value):
    text = Record.model_validate({"value": value}).to_json()
    assert json.loads(text)["value"] == value
    assert text.endswith(b"\n")


def test_kinds_of_numbers_and_texts_survive():
    """An integer rank must not come back as 8.0, nor a category as a number."""
    found = TrialRecord.model_validate_json(
        TrialRecord(**{**TRIAL, "assignment": {"a": 8, "b": 8.0, "c": "8", "d": 1e-05}}).to_json()
    )
    assert [repr(value) for value in found.assignment.values()] == ["8", "8.0", "'8'", "1e-05"]


@given(st.dictionaries(plain, content, max_size=4))
def test_order_of_keys_does_not_matter_to_the_digest(value):
    assert digest(dict(reversed(value.items()))) == digest(value)
    assert json.loads(canonical(value)) == value


@given(content, content)
def test_digest_differs_with_the_content(first, second):
    assert (digest(first) == digest(second)) == (canonical(first) == canonical(second))


def test_digests_stay_what_they_are():
    """They name folders that are kept for ever."""
    assert digest(b"") == "e3b0c44298fc1c14"  # the SHA-256 of nothing
    assert digest({"a": 1, "b": ["ä", None, 0.1]}) == "f00c06abcb51e9c7"


def test_now_is_rfc3339_in_utc():
    from datetime import UTC, datetime

    found = datetime.fromisoformat(now())
    assert found.tzinfo is not None
    assert abs((datetime.now(UTC) - found).total_seconds()) < 60
    assert now().endswith("Z")
    assert len(now()) == len("2026-11-22T13:30:00.123Z")


def test_versions():
    found = versions("pydantic", "no-such-package")
    assert set(found) == {"python", "retune", "pydantic"}
