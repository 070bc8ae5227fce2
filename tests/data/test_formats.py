"""Every data format, by name and as detected by `format: auto`, and the errors where it cannot be detected."""

import csv
import gzip
import io
import json

import datasets
import pytest

from retune.data import mixing
from retune.data.example import Example
from retune.data.sources import parse, parsed, read_source
from retune.errors import InputError
from retune.study import Data, File, Source
from tests.data.test_tokens import tokenizer

ASKED = [("Add 1 and 2.", "3"), ("Greet.", 'Hello,\n"you"'), ("Name a sea.", "Ægean")]


def lines(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def table(records, separator=","):
    out = io.StringIO()
    writer = csv.DictWriter(out, records[0].keys(), delimiter=separator)
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue().encode()


def parquet(records):
    import pyarrow as pa
    from pyarrow import parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), out)
    return out.getvalue()


def pairs(asked, answered):
    return [{asked: a, answered: b, "id": str(n)} for n, (a, b) in enumerate(ASKED)]


TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "See you"}]  # fmt: skip
SHARED = [
    {"from": {"user": "human", "assistant": "gpt"}.get(t["role"], t["role"]), "value": t["content"]}
    for t in TALK
]
TURNS = tuple((t["role"], t["content"]) for t in TALK)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("data", "name", "taken"),
    [
        (lines(pairs("prompt", "completion")), "a.jsonl", "prompt-completion"),
        (lines(pairs("question", "answer")), "a.jsonl", "question-answer"),
        (lines(pairs("instruction", "output")), "a.jsonl", "jsonl"),
        (lines(pairs("Prompt", "Response")), "a", "Prompt/Response"),
        (json.dumps(pairs("prompt", "completion")).encode(), "a.json", "prompt-completion"),
        (table(pairs("prompt", "completion")), "a.csv", "prompt-completion"),
        (table(pairs("question", "answer"), ";"), "a.csv", "question-answer"),
        (table(pairs("instruction", "response"), "\t"), "a.tsv", "instruction/response"),
        (parquet(pairs("question", "answer")), "a.parquet", "question-answer"),
        (parquet(pairs("prompt", "completion")), "no-ending", "prompt-completion"),
    ],
)
def test_pairs_of_question_and_answer(data, name, taken, pack):
    found, read = parsed(pack(data), File(uri=f"x/{name}{'.gz' if pack is not bytes else ''}"))
    assert found.name == taken
    assert [(e.instruction, e.output) for e in read] == ASKED


def test_context_goes_into_the_input():
    record = {"question": "Who?", "context": "Ann did it.", "answer": "Ann"}
    assert parsed(lines([record]), File(uri="x"))[1] == [Example("Who?", "Ann did it.", "Ann", "x", 1)]
    record = {"instruction": "Who?", "output": "Ann", "system": "Be brief."}
    assert parsed(lines([record]), File(uri="x"))[1][0].system == "Be brief."


@pytest.mark.parametrize(
    ("record", "taken"),
    [
        ({"messages": TALK}, "messages"),
        ({"conversations": SHARED}, "sharegpt"),
        ({"conversations": SHARED[1:], "system": "Be kind."}, "sharegpt"),
        ({"messages": TALK[1:], "system": "Be kind."}, "messages"),
        (
            {
                "messages": [
                    {"role": t["role"], "content": [{"type": "text", "text": t["content"]}]} for t in TALK
                ]
            },
            "messages",
        ),
        ({"messages": json.dumps(TALK)}, "messages"),
    ],
)
def test_conversations(record, taken):
    for data in (lines([record]), parquet([record])):
        found, (example,) = parsed(data, File(uri="x"))
        assert (found.name, example.messages) == (taken, TURNS)
        assert (example.instruction, example.output, example.system) == ("Hi", "Hello", "Be kind.")


def test_what_is_no_exchange_is_left_out_of_a_conversation():
    turns = [{"from": "gpt", "value": "I am a bot"}, *SHARED[1:], {"from": "human", "value": "and?"}]
    assert parsed(lines([{"conversations": turns}]), File(uri="x"))[1][0].messages == TURNS[1:]
    only = parsed(lines([{"messages": TALK}, {"messages": TALK[:2]}]), File(uri="x"))[1][1]
    assert only.messages == ()  # and rule 1 drops it


def test_answers_of_weight_0_are_left_out_of_the_loss():
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Wrong", "weight": 0},
        {"role": "user", "content": "No"},
        {"role": "assistant", "content": "Right", "weight": 1},
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "Bye", "weight": 0},
    ]
    (example,) = parse(lines([{"messages": turns}]), File(uri="x"))
    assert (example.unlearned, example.output, example.turns[-1]) == ((1,), "Right", ("assistant", "Right"))
    assert Example.from_dict(json.loads(json.dumps(example.to_dict()))) == example
    (example,) = parse(lines([{"messages": turns[:2]}]), File(uri="x"))
    assert not example.output  # and rule 1 drops it
    with pytest.raises(InputError, match=r"messages\[0\]: the weight must be 0 or 1, but is 0.5"):
        parse(lines([{"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}]), File(uri="x"))


def test_prompt_and_completion_may_be_turns():
    """This is TRL's format; its trainer learns only the completion."""
    record = {"prompt": TALK[:4], "completion": TALK[4:]}
    for data in (lines([record]), parquet([record])):
        taken, (example,) = parsed(data, File(uri="x"))
        assert (taken.name, example.messages, example.unlearned) == ("prompt-completion", TURNS, (2,))
        assert example.output == "See you"
    (mixed,) = parse(lines([{"prompt": "Hi", "completion": TALK[2:3]}]), File(uri="x"))
    assert mixed.messages == (("user", "Hi"), ("assistant", "Hello"))
    with pytest.raises(InputError, match="'context' must be empty where the prompt is a list of turns"):
        parse(lines([{"question": TALK[:2], "context": "c", "answer": "a"}]), File(uri="x"))


def test_calls_of_tools_are_kept_as_text():
    call = {"id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"city": "Rome"}'}}
    turns = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": None, "tool_calls": [call]},
             {"role": "tool", "tool_call_id": "c1", "content": "18 C"}, {"role": "assistant", "content": "Mild."}]  # fmt: skip
    assert parsed(lines([{"messages": turns}]), File(uri="x"))[1][0].messages == (
        ("user", "Weather?"), ("assistant", '{"name": "get", "arguments": {"city": "Rome"}}'), ("tool", "18 C"), ("assistant", "Mild."),
    )  # fmt: skip


@pytest.mark.parametrize("data", [lines([{"text": "a b"}, {"text": "c"}]), b"a b\n\nc\n"])
def test_plain_text(data):
    name = "x.jsonl" if data.startswith(b"{") else "x.txt"
    found, read = parsed(data, File(uri=name))
    assert found.name == "text"
    assert [(e.instruction, e.output, e.is_text) for e in read] == [("", "a b", True), ("", "c", True)]


def test_a_folder_of_the_datasets_library(tmp_path):
    kept = datasets.Dataset.from_list(pairs("prompt", "completion"))
    kept.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=kept, test=kept.select([0])).save_to_disk(tmp_path / "two")
    (tmp_path / "hub").mkdir()
    kept.to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
    for name in ("one", "two", "hub"):
        assert [e[0] for e in read_source(File(uri=str(tmp_path / name)))] == [a for a, _ in ASKED], name
    assert len(read_source(File(uri=str(tmp_path / "two"), split="test"))) == 1
    with pytest.raises(InputError, match=r"must be one of \['train', 'test'\], but `split: validation`"):
        read_source(File(uri=str(tmp_path / "two"), split="validation"))


def test_a_folder_saved_again_is_the_same_data(tmp_path):
    for name in ("a", "b"):
        datasets.Dataset.from_list(pairs("prompt", "completion")).save_to_disk(tmp_path / name)
    from retune.data.sources import content, content_digest

    digests = {content_digest(content(File(uri=str(tmp_path / name)))) for name in ("a", "b")}
    assert len(digests) == 1


def test_columns_name_the_fields():
    data = lines([{"q": "Who?", "a": "Ann", "c": "…", "who": "Be kind."}])
    for names in (
        {"prompt": "q", "completion": "a"},
        {"question": "q", "answer": "a"},
        {"instruction": "q", "output": "a"},
    ):
        assert parse(data, File(uri="x", columns=names))[0][:3] == ("Who?", "", "Ann")
    more = {"prompt": "q", "completion": "a", "input": "c", "system": "who"}
    assert parse(data, File(uri="x", columns=more))[0] == Example("Who?", "…", "Ann", "x", 1, "Be kind.")
    talk = lines([{"chat": TALK}])
    assert parse(talk, File(uri="x", columns={"messages": "chat"}))[0].messages == TURNS
    assert parse(data, File(uri="x", columns={"text": "c"}))[0].is_text
    with pytest.raises(
        InputError,
        match=r"field 'b' is missing: `columns` names another, but the records have the fields \['q'",
    ):
        parse(data, File(uri="x", columns={"prompt": "q", "completion": "b"}))


@pytest.mark.parametrize(
    ("data", "name", "words"),
    [
        (parquet(pairs("q", "a"))[:-9], "a.parquet", "the Parquet file is damaged"),
        (b"PK\x03\x04....", "a.xlsx", "a zip archive or a spreadsheet"),
        (b"\x28\xb5\x2f\xfd..", "a.zst", "packed with zstd"),
        (b"hello world", "a.data", "but the file begins with 'hello world'"),
        ("prompt,completion\n".encode("utf-16"), "a.csv", "UTF-16"),
        (b"prompt,completion\na,b,c\n", "a.csv", "row 1: 3 cells, but the header has 2"),
        (b"prompt,prompt\na,b\n", "a.csv", "duplicates are ['prompt']"),
        (b'prompt,completion\n"a,b\n', "a.csv", "not valid CSV"),
        (b"prompt,completion\n", "a.csv", "at least one record"),
        (
            json.dumps({"data": pairs("prompt", "completion")}).encode(),
            "a.json",
            "whose field 'data' holds the records",
        ),
        (lines([{"messages": [{"role": "wizard", "content": "x"}]}]), "a", "the role must be system, user"),
        (
            lines([{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}]),
            "a",
            "holds ['image_url']",
        ),
        (
            b'{"prompt": "Hi", "completion": "l\xe0"}\n',
            "a",
            "is 0xe0; save it as UTF-8",
        ),
        (
            json.dumps({"prompt": ["a", "b"], "completion": ["c", "d"]}).encode(),
            "a.json",
            "object of columns",
        ),
        (
            json.dumps({"prompt": {"0": "a"}, "completion": {"0": "c"}}).encode(),
            "a.json",
            "object of columns",
        ),
        (lines([{"messages": "no list"}]), "a", "must be a list of turns, but is text"),
        (
            lines([{"question": "x", "context": "", "answers": {"text": ["y"]}}]),
            "a",
            "['question', 'context', 'answers']",
        ),
        (lines([{"prompt": "x", "completion": 3}]), "a", "field 'completion' must be text, but is a number"),
    ],
)
def test_what_cannot_be_read_says_what_it_is(data, name, words):
    with pytest.raises(InputError) as caught:
        parse(data, File(uri=name))
    assert words in str(caught.value)
    assert "truncated" not in str(caught.value)


# How much of it: numbers, shares, all, a file of its own.


def write(path, number, start=0, word="ask"):
    path.write_bytes(
        lines({"prompt": f"{word} {n}", "completion": f"answer {n}"} for n in range(start, start + number))
    )
    return str(path)


def mixed(tmp_path, **data):
    sources = data.pop("sources", None) or [{"uri": str(tmp_path / "a.jsonl")}]
    out = str(tmp_path / f"out-{len(list(tmp_path.iterdir()))}")
    record = mixing.mix(Data(sources=sources, **data), 0, tokenizer(), out)
    train, validation, _ = mixing.read_mix(out)
    assert not {e.instruction for e in train} & {e.instruction for e in validation}
    return record, train, validation


@pytest.mark.parametrize(
    ("train", "validation", "counts"),
    [
        ("all", 0.05, (190, 10)),
        ("all", 30, (170, 30)),
        (100, 0.1, (100, 20)),
        (0.5, 0.25, (100, 50)),
        (0.95, 0.05, (190, 10)),
        ("all", 0.001, (199, 1)),
    ],
)
def test_counts_shares_and_all_of_one_source(tmp_path, train, validation, counts):
    write(tmp_path / "a.jsonl", 200)
    _, first, second = mixed(tmp_path, train=train, validation=validation)
    assert (len(first), len(second)) == counts


def test_without_shares_every_source_gives_all_it_has_and_with_them_as_much_as_they_allow(tmp_path):
    given = [{"uri": write(tmp_path / "a.jsonl", 300)}, {"uri": write(tmp_path / "b.jsonl", 100, word="say")}]
    record, first, second = mixed(tmp_path, sources=given, train="all", validation=0.1)
    assert (len(first), len(second)) == (360, 40)
    assert [(s.name, s.share, s.splits["validation"].records) for s in record.sources] == [
        ("a.jsonl", 0.75, 30),
        ("b.jsonl", 0.25, 10),
    ]
    halves = [{**source, "share": 0.5} for source in given]
    record, first, second = mixed(tmp_path, sources=halves, train="all", validation=0.1)
    assert len(second) == 20
    # Of a rest the first takes it
    assert sorted(s.splits["train"].records for s in record.sources) in ([90, 90], [90, 91])


def test_all_with_prompts_that_stand_twice_takes_what_the_validation_set_leaves(tmp_path):
    rows = [{"prompt": f"ask {n % 50}", "completion": f"answer {n}"} for n in range(200)]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    _, first, second = mixed(tmp_path, train="all", validation=0.1)
    assert len(second) == 20
    assert len(first) == 180


def test_a_validation_file_of_its_own_is_taken_whole_and_its_prompts_are_not_trained_on(tmp_path):
    write(tmp_path / "a.jsonl", 100)
    held_out = write(tmp_path / "held-out.jsonl", 30, start=90)
    for given in (held_out, {"uri": held_out, "columns": {"prompt": "prompt", "completion": "completion"}}):
        record, first, second = mixed(tmp_path, train="all", validation=given)
        assert (len(first), len(second)) == (90, 30)
        assert (record.sources[0].held_out, record.sources[-1].name) == (10, "held-out.jsonl")
    recipe = mixing.recipe_digest(
        Data(sources=[{"uri": str(tmp_path / "a.jsonl")}], train="all", validation=held_out), 0
    )
    write(tmp_path / "held-out.jsonl", 31, start=90)
    other = mixing.recipe_digest(
        Data(sources=[{"uri": str(tmp_path / "a.jsonl")}], train="all", validation=held_out), 0
    )
    assert recipe != other


def test_too_small_a_max_length_says_so(tmp_path):
    write(tmp_path / "a.jsonl", 20)
    with pytest.raises(
        InputError,
        match=r"has no record left: .*`max_length` is 16 tokens, and the longest prompt alone has \d+",
    ):
        mixed(tmp_path, train="all", validation=0.1, max_length=16)


def test_conversations_ask_for_the_chat_template_and_other_prompts_for_themselves(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        lines(
            {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]}
            for n in range(20)
        )
    )
    with pytest.raises(InputError, match="no chat template"):
        mixed(tmp_path, train="all", validation=0.1, prompt="chat")
    for prompt in ("auto", "alpaca"):  # what was never tuned on conversations has no template to begin with
        record, _, _ = mixed(tmp_path, train="all", validation=0.1, prompt=prompt)
        assert record.prompt.kind == "alpaca"
    (tmp_path / "p.jinja").write_text("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    record, first, _ = mixed(tmp_path, train="all", validation=0.1, prompt=str(tmp_path / "p.jinja"))
    assert record.prompt.text.startswith("{% for")
    assert first[0].messages[1] == ("assistant", "a")
    (tmp_path / "p.txt").write_text("no place for a question")
    with pytest.raises(InputError, match="this one is neither"):
        mixed(tmp_path, train="all", validation=0.1, prompt=str(tmp_path / "p.txt"))


def test_the_recipes_of_old_studies_keep_their_digests(tmp_path):
    """Folders are named by them; these are of commit dc50625."""
    (tmp_path / "a.json").write_text(
        json.dumps([{"instruction": f"ask {n}", "input": "", "output": "x"} for n in range(20)])
    )
    (tmp_path / "d.jsonl").write_bytes(
        lines({"instruction": f"say {n}", "context": "c", "response": "y"} for n in range(20))
    )
    sources = [
        Source(format="alpaca", uri=str(tmp_path / "a.json"), share=0.7),
        Source(format="dolly", uri=str(tmp_path / "d.jsonl"), share=0.3),
    ]
    data = Data(sources=sources, train=10, validation=4, max_length=256)
    record = mixing.mix(data, 0, tokenizer(), str(tmp_path / "out"))
    assert (record.recipe, record.digest) == ("66a2b809095f131b", "f4454f506a7bf880")
