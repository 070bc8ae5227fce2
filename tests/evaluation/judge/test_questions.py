import json

import pytest

from retune.errors import InputError
from retune.evaluation.judge import questions


def write(folder, *lines) -> str:
    path = folder / "questions"
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8"
    )
    return str(path)


def test_reads_vicuna_fastchat_and_plain_lines(tmp_path):
    uri = write(
        tmp_path,
        {"question_id": 7, "text": " How? ", "category": "generic"},
        {"question_id": 8, "turns": ["Why?", "And then?"], "category": "math"},
        "",
        {"instruction": "Say\u2028so."},
    )
    assert questions.read(uri) == [
        questions.Question("7", "How?", "generic"),
        questions.Question("8", "Why?", "math"),
        questions.Question("4", "Say\u2028so."),
    ]


def test_reads_text_one_question_a_line(tmp_path):
    found = questions.read(write(tmp_path, "\ufeffWhat is it?", "", "  Who?  "))
    assert [(q.id, q.text) for q in found] == [("1", "What is it?"), ("3", "Who?")]


def test_names_every_problem_of_a_file(tmp_path):
    uri = write(
        tmp_path,
        {"text": "a", "id": 1},
        "no json",
        {"text": ""},
        {"text": "a", "id": 1},
        {"text": "b", "input": "c"},
    )
    with pytest.raises(InputError) as error:
        questions.read(uri)
    text = str(error.value)
    assert "line 2: each line is one JSON object" in text
    assert "line 3: a question is a text under one of" in text
    assert "stands alone" in text
    assert "2 more" in text


@pytest.mark.parametrize(
    "content",
    [b"", b"\n \n", b"\xff\xfe", b'{"text": "\\ud83d"}'],
    ids=["empty", "blank", "not UTF-8", "half a pair"],
)
def test_a_file_without_questions_is_refused(tmp_path, content):
    path = tmp_path / "q"
    path.write_bytes(content)
    with pytest.raises(InputError):
        questions.read(str(path))


def test_a_draw_is_seeded_without_replacement_and_begins_with_the_smaller_one():
    pool = [questions.Question(str(k), str(k)) for k in range(80)]
    small, large = questions.draw(pool, 30, 3), questions.draw(pool, 60, 3)
    assert large[:30] == small
    assert len(set(large)) == 60
    assert questions.draw(pool, 30, 4) != small
