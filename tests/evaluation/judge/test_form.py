"""What the form for people contains, and what it must not contain."""

import json
import re

from tests.evaluation.judge.studies import DIGESTS, NAMES, make


def study(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="study">(.*?)</script>', page, flags=re.S)
    return json.loads(found.group(1))


def test_the_page_names_no_model(tmp_path):
    key, page = make(tmp_path, [(f"from one {k}", f"from other {k}") for k in range(12)])
    for hint in (
        *NAMES.values(),
        *DIGESTS.values(),
        "s3://",
        "models/llama",
        "adapter",
        "lora",
        "q0",
        "q11",
        key.generated,
    ):
        assert hint.lower() not in page.lower(), hint
    known = {"id", "text", "answers"}
    content = study(page)
    assert set(content) == {"form", "questions"}
    for question in content["questions"]:
        assert set(question) == known
        assert [set(answer) for answer in question["answers"]] == [{"id", "text"}, {"id", "text"}]


def test_names_and_places_of_answers_do_not_follow_the_models(tmp_path):
    """Of 400 answers about half stand first: neither their place nor their random name tells whose they are."""
    key, page = make(tmp_path, [(f"a{k}", f"b{k}") for k in range(400)])
    content = study(page)
    first = sum(question["answers"][0]["text"].startswith("a") for question in content["questions"])
    assert 140 < first < 260  # six standard deviations
    assert [q["text"] for q in content["questions"]] != [f"Question {k}?" for k in range(400)]
    names = [answer["id"] for question in content["questions"] for answer in question["answers"]]
    assert len(set(names)) == 800
    assert {token for q in key.questions for token in q.answers.values()} == set(names)


def test_the_same_answers_get_other_names_in_another_study(tmp_path):
    answers = [("one", "two"), ("three", "four")]
    (first, _), (second, _) = make(tmp_path / "1", answers), make(tmp_path / "2", answers)
    names = [
        {token for q in key.questions for token in (q.token, *q.answers.values())} for key in (first, second)
    ]
    assert not names[0] & names[1]
    assert first.form != second.form


def test_a_key_is_made_once(tmp_path):
    answers = [("one", "two")]
    assert make(tmp_path, answers) == make(tmp_path, answers)


def test_equal_answers_are_not_shown(tmp_path):
    _, page = make(tmp_path, [("same", "same"), ("", ""), ("one", "two")])
    assert [question["text"] for question in study(page)["questions"]] == ["Question 2?"]


def test_answers_are_text_and_never_markup(tmp_path):
    nasty = "</script><script>alert(1)</script><!-- {{ script }} {{ study }} \u2028 \U0001f600"
    _, page = make(tmp_path, [(nasty, "plain")])
    assert {answer["text"] for answer in study(page)["questions"][0]["answers"]} == {nasty, "plain"}
    assert page.count("<script") == 2
    assert "alert(1)</script>" not in page


def test_the_page_asks_for_nothing(tmp_path):
    _, page = make(tmp_path, [("one", "two")])
    assert "default-src 'none'" in page
    assert not re.search(
        r"""(src|href)=["'](?!data:)|https?://|@import|url\(|fetch\(|XMLHttpRequest|sendBeacon""", page
    )
