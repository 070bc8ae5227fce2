"""The four tasks: prompts word for word, items, averages, and files that are wrong."""

import gzip
import json
import random

import pytest

from retune.errors import InputError
from retune.evaluation.tasks import TASKS, drop, humaneval
from retune.evaluation.tasks import bbh as bbh_task
from retune.evaluation.tasks import mmlu as mmlu_task


def problems(task, path):
    with pytest.raises(InputError) as caught:
        task.read(path)
    return caught.value.problems


@pytest.mark.parametrize(
    ("name", "shots", "input_limit", "new_tokens"),
    [("mmlu", 5, 2048, 2), ("bbh", 3, 2048, 32), ("drop", 3, 2048, 8), ("humaneval", 0, 1360, 512)],
)
def test_limits_of_the_protocol(name, shots, input_limit, new_tokens):
    task = TASKS[name]
    assert (task.shots, task.input_limit, task.new_tokens) == (shots, input_limit, new_tokens)


# --- MMLU ---


def test_mmlu_prompt_word_for_word(mmlu):
    question = mmlu_task.read(mmlu)[0]
    assert question.prompt(1) == (
        "The following are multiple choice questions (with answers) about  anatomy.\n\n"
        "What is 0 plus ana ?\nA. one\nB. t,wo\nC. three\nD. 0\nAnswer: A\n\n"
        "What is 0 plus ana ?\nA. one\nB. t,wo\nC. three\nD. 0\nAnswer:"
    )
    assert len(question.shots) == 5
    assert "about  formal logic.\n" in mmlu_task.read(mmlu)[-1].header


def test_mmlu_prints_missing_values_as_pandas_does():
    assert (
        mmlu_task.body(["Q", "None", "N/A", "none", "0", "A"]) == "Q\nA. nan\nB. nan\nC. none\nD. 0\nAnswer:"
    )


def test_mmlu_averages():
    def asked(subject, count):
        return [mmlu_task.Question(f"{subject}/{k}", subject, "", (), "", "A") for k in range(count)]

    every = asked("anatomy", 1) + asked("virology", 3) + asked("astronomy", 2) + asked("own_subject", 2)
    right = [True, False, False, False, True, False, True, True]
    score = mmlu_task.average(every, right)
    assert score.value == 0.5
    assert score.groups["subject:anatomy"] == 1.0
    assert score.groups["subcategory:health"] == 0.25
    assert score.groups["category:other"] == 0.25
    assert score.groups["category:STEM"] == 0.5
    assert score.groups["subject:own_subject"] == 1.0


def test_mmlu_knows_57_subjects_once_each():
    named = [
        s for parts in mmlu_task.CATEGORIES.values() for subjects in parts.values() for s in subjects.split()
    ]
    assert len(named) == len(set(named)) == 57


def test_mmlu_names_every_problem_at_once(mmlu):
    (mmlu / "dev" / "anatomy_dev.csv").unlink()
    (mmlu / "test" / "anatomy_test.csv").write_text("question,A,B,C,D\nQ,1,2,3,4,E\n")
    (mmlu / "dev" / "formal_logic_dev.csv").write_text("Q,1,2,3,4,A\n")
    text = "\n".join(problems(mmlu_task, mmlu))
    assert "anatomy_dev.csv: there is no such file" in text
    assert "anatomy_test.csv:1: a row has 6 columns" in text
    assert "got 5" in text
    assert "one of A, B, C, D, but got 'E'" in text
    assert "5 examples are needed for the shots, but got 1" in text


def test_mmlu_folder_without_tests(tmp_path):
    assert "has no test file" in problems(mmlu_task, tmp_path)[0]


def test_mmlu_bytes_that_are_no_text(mmlu):
    (mmlu / "test" / "anatomy_test.csv").write_bytes(b"\xff\xfe,1,2,3,4,A\n")
    assert "cannot be read as CSV in UTF-8" in problems(mmlu_task, mmlu)[0]


@pytest.mark.data
def test_mmlu_real(real_data):
    questions = mmlu_task.read(real_data / "mmlu" / "data")
    assert len(questions) == 14042
    assert {q.group for q in questions} == set(mmlu_task.PLACES)
    assert sum("\nA. nan" in q.body or "\nD. nan" in q.body for q in questions) == 10


# --- BBH ---


def test_bbh_prompt_word_for_word(bbh):
    questions = bbh_task.read(bbh)
    assert [q.id for q in questions] == [
        "navigate/3",
        "navigate/4",
        "snarks/3",
        "snarks/4",
        "snarks/5",
        "snarks/6",
    ]
    assert questions[0].prompt(2) == (
        "navigate question 0\nAnswer: No\n\nnavigate question 1\nAnswer: Yes\n\nnavigate question 3\nAnswer:"
    )
    assert questions[0].label == "Yes"


def test_bbh_is_macro_averaged(bbh):
    questions = bbh_task.read(bbh)
    score = bbh_task.average(questions, [True, True, False, False, False, True])
    assert score.value == (1.0 + 0.25) / 2
    assert score.groups == {"task:navigate": 1.0, "task:snarks": 0.25}


def test_bbh_names_every_problem_at_once(bbh):
    (bbh / "a.json").write_text("{")
    (bbh / "b.json").write_text('{"examples": [{"input": "x"}]}')
    (bbh / "c.json").write_text('{"examples": [{"input": "x", "target": "y"}]}')
    (bbh / "d.json").write_text("[]")
    text = "\n".join(problems(bbh_task, bbh))
    assert "a.json: not valid JSON" in text
    assert "b.json: example 0 needs text under 'input' and 'target', but ['target']" in text
    assert "c.json: more than 3 examples are needed" in text
    assert "d.json: a BBH file holds a list under 'examples'" in text


def test_bbh_empty_folder(tmp_path):
    assert "has none" in problems(bbh_task, tmp_path)[0]


@pytest.mark.data
def test_bbh_real(real_data):
    questions = bbh_task.read(real_data / "bbh")
    assert len({q.group for q in questions}) == 27
    assert len(questions) == 6511 - 3 * 27


# --- DROP ---


def lines(rows):
    return "".join(
        json.dumps({"context": f"Passage: {p}\nQuestion: {q}\nAnswer:", "completion": f" {a}", "ref_text": a})
        + "\n"
        for p, q, a in rows
    )


ROWS = [(f" Passage {k // 2}.  ", f"Question {k}?", str(k)) for k in range(20)] + [
    ("Two", "Which?", "x|y"),
    ("Same", "Which?", "x|x"),
]


def test_drop_items_shots_and_prompt(tmp_path):
    path = tmp_path / "drop.jsonl.gz"
    path.write_bytes(gzip.compress(lines(ROWS).encode()))
    questions = drop.read(path)
    kept = [row for row in ROWS if row[1:] != ("Which?", "x|y")]  # two different answers: not asked
    shots = random.Random(0).sample(kept, 3)
    assert questions[0].shots == tuple(f"{p.strip()} {q}\nAnswer: {a.split('|')[0]}\n\n" for p, q, a in shots)
    passages = {p for p, _, _ in shots}
    assert [q.body for q in questions] == [
        f"{p.strip()} {q}\nAnswer:" for p, q, _ in kept if p not in passages
    ]
    assert all(q.prompt().count("Answer:") == 4 for q in questions)


def test_drop_own_schema(tmp_path):
    def answer(number="", spans=(), date=None):
        return {"number": number, "spans": list(spans), "date": date or {"day": "", "month": "", "year": ""}}

    pairs = [
        {"question": "How many?", "query_id": "n", "answer": answer("3"), "validated_answers": [answer("3")]},
        {"question": "Who?", "query_id": "two", "answer": answer(spans=["Ann", "Bob"])},
        {
            "question": "When?",
            "query_id": "d",
            "answer": answer(date={"day": "3", "month": "May", "year": "1900"}),
        },
        {
            "question": "Others said?",
            "query_id": "o",
            "answer": answer("3"),
            "validated_answers": [answer("4")],
        },
        {"question": "Nothing?", "query_id": "e", "answer": answer()},
    ]
    content = {
        f"p{k}": {
            "passage": f"Text {k}",
            "qa_pairs": [dict(pair, query_id=f"{pair['query_id']}{k}") for pair in pairs],
        }
        for k in range(6)
    }
    path = tmp_path / "drop.json"
    path.write_text(json.dumps(content))
    questions = drop.read(path)
    assert {q.id[0] for q in questions} == {"n", "d"}
    assert {q.label for q in questions} == {"3", "3 May 1900"}
    assert 6 <= len(questions) <= 8  # three shots from two or three passages, whose items are left out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{\n", "a line is JSON"),
        ('{"context": "x"}\n', "'ref_text'"),
        ('{"context": "x", "ref_text": "1"}\n', "reads 'Passage: …"),
        ('{"p": {"qa_pairs": [{"question": "?"}]}}', "needs 'passage' and 'qa_pairs'"),
        (lines(ROWS[:2]), "more than 3 items"),
        ("", "more than 3 items"),
    ],
)
def test_drop_wrong_files(tmp_path, text, says):
    path = tmp_path / "drop.jsonl"
    path.write_text(text)
    assert says in problems(drop, path)[0]


def test_drop_truncated_archive(tmp_path):
    path = tmp_path / "drop.jsonl.gz"
    path.write_bytes(gzip.compress(lines(ROWS).encode())[:-20])
    assert "must be readable" in problems(drop, path)[0]


@pytest.mark.data
def test_drop_real(real_data):
    questions = drop.read(real_data / "drop" / "drop_v0_dev.jsonl.gz")
    assert len(questions) > 5800
    shots = {shot.split("\nAnswer:")[0] for shot in questions[0].shots}
    assert not any(q.body.removesuffix("\nAnswer:") in shots for q in questions)
    own = drop.read(real_data / "drop" / "allennlp_fixture_drop.json")
    assert all(q.label for q in own)


# --- HumanEval ---


def problem(number=0, **changes):
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": 'def add(a, b):\n    """ Add. """\n',
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
        "entry_point": "add",
        "canonical_solution": "    return a + b\n",
        **changes,
    }


def test_humaneval_prompt_and_tests(tmp_path):
    path = tmp_path / "h.jsonl"
    path.write_text(json.dumps(problem()) + "\n\n")
    (question,) = humaneval.read(path)
    assert question.prompt() == (
        "Please complete the following Python code without providing any additional tasks such as testing or"
        ' explanations\ndef add(a, b):\n    """ Add. """\n'
    )
    assert question.extra["test"] == "def check(candidate):\n    assert candidate(1, 2) == 3\n"


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("\n\n   return 1\n\nprint()", "    return 1"),
        ("  x = 1\n     return x\n", "  x = 1\n      return x\n"),
        ("a\n \nb\n\nc", "a\n  \nb"),
        ("", ""),
        ("\n\n", ""),
    ],
)
def test_humaneval_post_processing(text, counts):
    assert humaneval.completion(text) == counts


@pytest.mark.parametrize(
    "text", ["\n\n    return 1\n\nprint()", "   a\n\n\n", "x\n \n\n y", "  a\n\n b\n\nc"]
)
def test_humaneval_stops_only_where_nothing_more_counts(text):
    cut = next(k for k in range(len(text) + 1) if humaneval.finished(text[:k]))
    assert humaneval.completion(text[:cut]) == humaneval.completion(text)
    assert not humaneval.finished("\n\n\n")


def test_humaneval_wrong_lines(tmp_path):
    path = tmp_path / "h.jsonl"
    path.write_text("{\n" + json.dumps(problem(test=None)) + "\n[]\n")
    found = problems(humaneval, path)
    assert len(found) == 3
    assert "['test'] is missing or no text" in found[1]


def test_humaneval_missing_file(tmp_path):
    assert "must be readable" in problems(humaneval, tmp_path / "none.jsonl")[0]


def test_humaneval_grades_by_running(tmp_path):
    path = tmp_path / "h.jsonl"
    path.write_text("".join(json.dumps(problem(k)) + "\n" for k in range(3)))
    questions = humaneval.read(path)
    verdicts = humaneval.grade(questions, ["    return a + b", "    return a", "    return a +"])
    assert [v.right for v in verdicts] == [True, False, False]
    assert verdicts[1].reason == "AssertionError"
    assert "SyntaxError" in verdicts[2].reason


@pytest.mark.data
@pytest.mark.slow
def test_humaneval_real_solutions_pass_and_wrong_ones_fail(real_data):
    questions = humaneval.read(real_data / "humaneval" / "HumanEval.jsonl.gz")
    assert len(questions) == 164
    good = humaneval.grade(questions, [question.label for question in questions])
    assert [q.id for q, v in zip(questions, good, strict=True) if not v.right] == []
    bad = humaneval.grade(questions, ["    return 'no task asks for this text'\n"] * 164)
    assert [q.id for q, v in zip(questions, bad, strict=True) if v.right] == []
