import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retune import store
from retune.data.sources import Example, name, parse, read_source
from retune.errors import InputError
from retune.study import Source

pytest_plugins = ["tests.s3_server"]

ALPACA = [
    {"instruction": "Add.", "input": "1, 2", "output": "3"},
    {"instruction": "Greet.", "input": "", "output": "Hello"},
    {"instruction": "Name a sea.", "input": "", "output": "Ægean"},
]
DOLLY = [
    {"instruction": "Add.", "context": "1, 2", "response": "3", "category": "closed_qa"},
    {"instruction": "Greet.", "context": "", "response": "Hello", "category": "open_qa"},
]


def jsonl(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def problems(form, data, uri="folder/data.json"):
    with pytest.raises(InputError) as caught:
        parse(data, Source(format=form, uri=uri, share=1))
    assert caught.value.subject == uri
    return caught.value.problems


@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])]
)
def test_alpaca_dolly_jsonl_packed_or_not(tmp_path, pack):
    cases = {
        "alpaca": json.dumps(ALPACA[:2], indent=1, ensure_ascii=False).encode(),
        "dolly": jsonl(DOLLY),
        "jsonl": jsonl([ALPACA[0], {"instruction": "Greet.", "output": "Hello", "more": [1]}]),
    }
    for form, data in cases.items():
        path = tmp_path / form
        path.write_bytes(pack(data))
        assert read_source(Source(format=form, uri=str(path), share=1)) == [
            Example("Add.", "1, 2", "3", form, 1),
            Example("Greet.", "", "Hello", form, 2),
        ]


texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.tuples(texts, texts, texts), min_size=1), st.booleans())
def test_every_text_survives(records, ascii_only):
    """Line separators such as U+2028 and U+0085 inside a JSON text do not end a line."""
    for form, keys in [
        ("alpaca", ("instruction", "input", "output")),
        ("dolly", ("instruction", "context", "response")),
    ]:
        rows = [json.dumps(dict(zip(keys, record)), ensure_ascii=ascii_only) for record in records]
        data = "[" + ",".join(rows) + "]" if form == "alpaca" else "\r\n\n".join(rows)
        assert [e[:3] for e in parse(data.encode(), Source(format=form, uri="x", share=1))] == records


def test_rows_are_places_in_the_file():
    data = b"\n\n" + jsonl(DOLLY)
    assert [e.row for e in parse(data, Source(format="dolly", uri="x", share=1))] == [3, 4]


def test_byte_order_mark_is_skipped():
    data = b"\xef\xbb\xbf" + json.dumps(ALPACA).encode()
    assert len(parse(data, Source(format="alpaca", uri="x", share=1))) == 3


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"gone\.json: the file must exist, but there is none"):
        read_source(Source(format="alpaca", uri=str(tmp_path / "gone.json"), share=1))
    with pytest.raises(InputError, match="a folder must hold a data set that `save_to_disk` wrote"):
        read_source(Source(format="alpaca", uri=str(tmp_path), share=1))


@pytest.mark.parametrize("form", ["alpaca", "dolly", "jsonl"])
@pytest.mark.parametrize(
    "data", [b"", b"\n \n", gzip.compress(b"", mtime=0)], ids=["nothing", "blank lines", "an empty gzip"]
)
def test_empty_file(form, data):
    assert len(problems(form, data)) == 1


def test_empty_list():
    assert problems("alpaca", b"[]") == ["a data set must have at least one record, but this file has none"]


@given(st.data())
def test_truncated_alpaca_names_the_record(data):
    """Wherever a list is cut, it is refused, and the number of whole records before the cut is right."""
    whole = json.dumps(ALPACA, indent=2, ensure_ascii=False)
    cut = whole[: data.draw(st.integers(1, len(whole) - 1))]
    found = problems("alpaca", cut.encode())
    before = cut.count("}")
    assert any("truncated" in p and f"after {before} whole records" in p for p in found), found
    assert (
        any(p.startswith(f"record {before + 1} (line {cut.rstrip().count(chr(10)) + 1})") for p in found)
        or cut[-1] in "\n "
    )


def test_truncated_jsonl_names_the_line():
    whole = jsonl(DOLLY)
    assert problems("dolly", whole[:-20]) == ["line 2: the file is truncated: it ends within a record"]


@given(st.data())
def test_truncated_gzip_is_always_refused(data):
    packed = gzip.compress(jsonl(DOLLY * 50))
    found = problems("dolly", packed[: data.draw(st.integers(2, len(packed) - 1))])
    assert found[0] == "the file is truncated: its gzip stream has no end"


def test_damaged_gzip():
    packed = bytearray(gzip.compress(jsonl(DOLLY * 50)))
    packed[-8] ^= 1  # its checksum
    assert problems("dolly", bytes(packed))[0].startswith("the file is damaged")


def test_broken_json_names_its_place():
    lines = jsonl(DOLLY).replace(b'"context": ""', b'"context": oops')
    assert problems("dolly", lines + jsonl(DOLLY))[0].startswith("line 2: not valid JSON")
    whole = json.dumps(ALPACA, indent=1).replace('"Greet."', "oops")
    assert problems("alpaca", whole.encode())[0].startswith("record 2 (line 8): not valid JSON")
    missing_comma = json.dumps(ALPACA).replace("}, {", "} {", 1)
    assert problems("alpaca", missing_comma.encode())[0].startswith(
        "record 2 (line 1): not valid JSON: expected ','"
    )
    assert "more follows" in problems("alpaca", json.dumps(ALPACA).encode() + b"[1]")[0]


def test_deep_nesting_is_no_crash():
    assert problems("alpaca", b"[" * 100_000)
    assert problems("jsonl", b'{"a":' + b"[" * 100_000 + b"\n")


def test_wrong_fields_name_record_and_field():
    records = [
        ALPACA[0],
        {"instruction": "x", "input": ""},
        {"instruction": 7, "input": None, "output": ["y"]},
        "text",
        {"instruction": "x", "input": "", "output": "\ud800"},
    ]
    assert problems("alpaca", json.dumps(records).encode()) == [
        "record 2: field 'output' is missing",
        "record 3: field 'instruction' must be text, but is a number; put it in quotes, if it is the text itself",
        "record 3: field 'input' must be text, but is null",
        "record 3: field 'output' must be text, but is a list; keep one of its items, or join them",
        "record 4: a record must be an object with named fields, but is text",
        "record 5: field 'output' must be Unicode text, but holds half a character (a lone surrogate)",
    ]


def test_only_jsonl_may_leave_the_input_out():
    record = {"instruction": "x", "input": None, "output": "y"}
    assert parse(jsonl([record]), Source(format="jsonl", uri="x", share=1))[0].input == ""
    assert problems("alpaca", json.dumps([record]).encode())


def test_one_kind_of_problem_is_told_once_with_the_fields_there_are_and_the_line_that_maps_them():
    assert problems("dolly", jsonl([{"id": 1, "q": "x", "a": "y"}] * 1250)) == [
        "line 1: field 'instruction' is missing (and in 1,249 more lines): the format 'dolly' needs it, but the records have "
        "the fields ['id', 'q', 'a']; if other fields hold it, write `columns: {prompt: q, completion: a}`",
        *(f"line 1: field {name!r} is missing (and in 1,249 more lines)" for name in ("context", "response")),
    ]
    assert problems("auto", jsonl([{"id": 1, "q": "x", "a": "y"}] * 1250)) == [
        "the records have the fields ['id', 'q', 'a'], whose meaning is unclear; name them, as in "
        "`columns: {prompt: q, completion: a}` (or `messages`, or `text`)"
    ]


def test_kinds_of_problems_have_a_limit():
    found = problems(
        "jsonl", jsonl([{"instruction": "x", "output": "y"}, *({"instruction": n} for n in [1, []] * 40)])
    )
    assert found == [
        "line 2: field 'instruction' must be text, but is a number; put it in quotes, if it is the text itself (and in 39 more lines)",
        "line 2: field 'output' is missing (and in 79 more lines)",
        "line 3: field 'instruction' must be text, but is a list; keep one of its items, or join them (and in 39 more lines)",
    ]
    good = b'{"instruction": "x", "output": "y"}\n'
    assert problems("jsonl", good + b"oops\n" * 50 + good) == [
        "line 2: not valid JSON: Expecting value: line 1 column 1 (char 0) (and in 49 more lines)"
    ]
    each_in_its_own_way = "".join(f'"{n * "a"}" x\n' for n in range(50)).encode()
    assert problems("jsonl", good + each_in_its_own_way + good)[-1] == "and 30 more problems"


def test_other_format_is_recognised():
    alpaca, dolly = json.dumps(ALPACA).encode(), jsonl(DOLLY)
    assert problems("dolly", alpaca)[0].endswith(
        "this looks like the format 'alpaca': omit `format`, or write `format: alpaca`"
    )
    assert "this looks like the format 'dolly'" in problems("alpaca", dolly)[0]
    assert (
        "'question-answer'" in problems("dolly", jsonl([{"question": "x", "context": "", "answer": "y"}]))[0]
    )


def test_the_kind_of_file_is_seen_whatever_the_format():
    """A data set in Alpaca's fields is one as JSONL too."""
    assert len(parse(jsonl(ALPACA), Source(format="alpaca", uri="x", share=1))) == 3
    assert len(parse(json.dumps(DOLLY).encode(), Source(format="dolly", uri="x", share=1))) == 2


def test_not_utf8_names_line_and_byte():
    data = jsonl(DOLLY).replace(b"Greet", b"Gr\xe9et")
    place = data.index(b"\xe9")
    assert (
        problems("dolly", data)[0]
        == f"line 2: the text must be UTF-8, but byte {place} is 0xe9; save it as UTF-8"
    )


@pytest.mark.parametrize(
    ("uri", "short"),
    [
        ("/data/a.json", "a.json"),
        ("s3://bucket/key/a.jsonl.gz", "a.jsonl.gz"),
        ("hf://datasets/me/set@main/a.json", "a.json"),
        ("hf://datasets/me/set/a.json@v2", "a.json"),
        ("/data/a@b.json", "a@b.json"),
    ],
)
def test_name(uri, short):
    assert name(Source(format="alpaca", uri=uri, share=1)) == short


def test_from_s3(s3):
    store.write(f"{s3}/data/dolly.jsonl.gz", gzip.compress(jsonl(DOLLY)))
    source = Source(format="dolly", uri=f"{s3}/data/dolly.jsonl.gz", share=1)
    assert [e.output for e in read_source(source)] == ["3", "Hello"]
    gone = Source(format="dolly", uri=f"{s3}/data/gone.jsonl", share=1)
    with pytest.raises(InputError, match=r"s3://.*/data/gone\.jsonl: the file must exist"):
        read_source(gone)


DATA = Path(os.environ.get("RETUNE_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no real data: set RETUNE_DATA")
def test_real_files():
    """The counts that the data's own list of sources names."""
    alpaca = read_source(Source(format="alpaca", uri=str(DATA / "alpaca/alpagasus_random_9k.json"), share=1))
    dolly = read_source(
        Source(format="dolly", uri=str(DATA / "dolly/databricks-dolly-15k.rebuilt.jsonl.gz"), share=1)
    )
    assert (len(alpaca), len(dolly)) == (9_229, 15_011)
    assert sum(not example.output.strip() for example in alpaca) == 4
    assert len({(e.instruction, e.input, e.output) for e in dolly}) == 14_996  # 15,003 with the category
