"""Files as people have them: read correctly, or refused once with a line that says how to fix them."""

import json

import pytest

from retune.data.sources import parse, read_source
from retune.errors import InputError
from retune.study import File

RECORDS = [{"instruction": f"What is {n}?", "input": "", "output": f"It is {n}."} for n in range(20)]
OTHERS = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(20)]
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def lines(rows, end="\n"):
    return "".join(json.dumps(row) + end for row in rows)


REFUSED = [
    ("x.jsonl", lines(RECORDS, ",\n"),
     ["line 1: a comma follows the record, but JSONL has none between its lines; remove it (and in 19 more lines)"]),
    ("x.json", "".join(json.dumps(row, indent=1) + "\n" for row in RECORDS),
     ["line 1: the record goes over several lines, but JSONL has one record a line; rewrite the file, for example by `jq -c .`"]),
    ("x.jsonl", '{"instruction": "a", "instruction": "b", "output": "c"}\n' * 3,
     ["line 1: not valid JSON: the name 'instruction' stands twice in an object (and in 2 more lines)"]),
    ("x.json", '[{"instruction": "a", "output": "b", "output": "c"}]',
     ["record 1 (line 1): not valid JSON: the name 'output' stands twice in an object"]),
    ("x.jsonl", lines(RECORDS[:10] + OTHERS[:10]),
     ["the records must have the same fields, but record 1 has ['instruction', 'input', 'output'] and record 11 has ['question', "
      "'answer']; keep each kind in a file of its own"]),
    ("x.jsonl", lines([{"id": 1, "data": {"messages": TALK}}] * 2),
     ["the records have the fields ['id', 'data'], and what counts is within 'data': ['messages']; move these up, with `jq -c .data`"]),
    ("x.json", json.dumps({"version": 1, "train": OTHERS, "test": OTHERS}),
     ["the file is one JSON object whose fields ['train', 'test'] hold the records; save one of these lists alone, as a JSON list "
      "or as JSONL"]),
    ("x.json", json.dumps([TALK, TALK]),
     ['record 1: a record must be an object, but is a list of turns; write {"messages": […]} around each (and in 1 more records)']),
    ("x.jsonl", lines([TALK, TALK]),
     ['line 1: a record must be an object, but is a list of turns; write {"messages": […]} around each (and in 1 more lines)']),
    ("x.csv", "question,answer,note\n" + "q,a\n" * 3 + "q,a,n,m\n",
     ["row 1: 2 cells, but the header has 3 (and 3 more rows have other numbers than it); put texts that hold ',' in quotes"]),
    ("x.csv", '"question, in words";answer\n"a, b";c\n',
     ["the records have the fields ['question, in words', 'answer'], whose meaning is unclear; name them, as in "
      '`columns: {prompt: "question, in words", completion: answer}` (or `messages`, or `text`)']),
    ("x.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:abc\n",
     ["the file is a pointer of Git LFS, not the data: fetch it by `git lfs pull`"]),
    ("x.jsonl", "<!DOCTYPE html><html>Log in</html>",
     ["the file is a web page: download the file that it is about, not the page"]),
    ("x.jsonl", lines([{"question": "1+1?", "answer": 2}]),
     ["line 1: field 'answer' must be text, but is a number; put it in quotes, if it is the text itself"]),
    ("x.jsonl", lines([{"question": "q", "answer": ["a", "b"]}]),
     ["line 1: field 'answer' must be text, but is a list; keep one of its items, or join them"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "answer"), REFUSED)
def test_refused_once_with_what_helps(name, content, answer):
    with pytest.raises(InputError) as caught:
        parse(content.encode(), File(uri=name))
    assert caught.value.problems == answer


def test_bytes_in_parquet_are_no_number(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist([{"question": "q", "answer": b"a"}]), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="field 'answer' must be text, but is bytes"):
        read_source(File(uri=str(tmp_path / "x.parquet")))


def test_a_separator_within_quotes_of_the_header_is_none():
    found = parse(b'"question";"answer";"a, b, c"\nq;a;n\n', File(uri="x.csv"))
    assert [(one.instruction, one.output) for one in found] == [("q", "a")]


def test_what_a_tool_answers_may_be_an_object():
    turns = [TALK[0], {"role": "tool", "content": {"degrees": 20}}, TALK[1]]
    (found,) = parse(lines([{"messages": turns}]).encode(), File(uri="x.jsonl"))
    assert found.messages[1] == ("tool", '{"degrees": 20}')


def test_a_folder_of_several_kinds_loses_none_of_them(tmp_path):
    """`datasets` alone reads the most frequent kind of file and silently drops the others."""
    (tmp_path / "a.jsonl").write_text(lines(OTHERS))
    (tmp_path / "README.md").write_text("# Mine\n")
    (tmp_path / "LICENSE.txt").write_text("MIT\n")
    assert len(read_source(File(uri=str(tmp_path)))) == 20
    (tmp_path / "b.csv").write_text("question,answer\nq,a\n")
    with pytest.raises(
        InputError, match=r"must hold files of one kind, but this one holds \['a.jsonl', 'b.csv'\]"
    ):
        read_source(File(uri=str(tmp_path)))
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: a.jsonl\n---\n")
    assert len(read_source(File(uri=str(tmp_path)))) == 20


def test_files_of_a_folder_that_differ_are_told(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(OTHERS))
    (tmp_path / "b.jsonl").write_text(lines(RECORDS))
    with pytest.raises(InputError, match="its files have different fields; name each as a source of its own"):
        read_source(File(uri=str(tmp_path)))
