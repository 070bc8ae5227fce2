"""HellaSwag: context and cleaning word for word, likelihoods against a plain forward pass, and the harness itself."""

import json

import pytest
import torch

from retune.errors import InputError
from retune.evaluation import bench
from retune.evaluation.decoding.generate import Decoder
from retune.evaluation.prompts import pairs
from retune.evaluation.tasks import hellaswag
from retune.models import load_base
from retune.study import Benchmark, Model

ROWS = [
    {"activity_label": "Baking", "ctx_a": "A man stirs. ", "ctx_b": "he then", "label": 1, "split_type": "indomain",
     "endings": ["eats the bowl.", "adds é flour [substeps] slowly.", "sleeps.", "sings to the whole town about it."]},
    {"activity_label": "Garden", "ctx_a": "[header] How to dig [title] Take a spade. [step] Go out.", "ctx_b": "", "label": "0",
     "endings": ["[substeps] Dig.", "Swim.", "Fly to the moon and back.", "Stop."]},
]  # fmt: skip


def asked(path):
    return [(question.prompt(), choice) for question in hellaswag.read(path) for choice in question.choices]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "hellaswag.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def test_context_and_endings_word_for_word(path):
    one, two = hellaswag.read(path)
    assert one.prompt() == "Baking: A man stirs. He then"
    assert one.choices == (
        " eats the bowl.",
        " adds é flour slowly.",
        " sleeps.",
        " sings to the whole town about it.",
    )
    assert two.prompt() == "Garden: How to dig. Take a spade. Go out."
    assert two.choices[0] == "  Dig."  # as in the harness: its blank, and the one behind the mark
    assert (one.label, two.label) == ("1", "0")


def test_the_same_as_the_harness_cleans():
    utils = pytest.importorskip("lm_eval.tasks.hellaswag.utils", exc_type=ImportError)
    for text in (*ROWS[0]["endings"], *ROWS[1]["endings"], ROWS[1]["ctx_a"], " a  b   c [x] d "):
        assert hellaswag.clean(text) == utils.preprocess(text)


def test_lengths_in_characters_and_in_bytes():
    question = hellaswag.Question("1", "", "", (), "", "0", choices=(" ab", " éé"))
    assert hellaswag.by_characters(question, [-4.0, -3.9]) == "1"
    assert hellaswag.by_bytes(question, [-4.0, -6.0]) == "1"
    assert hellaswag.by_characters(question, [-4.0, -6.0]) == "0"


def test_likelihoods_are_those_of_a_plain_forward_pass(base, path):
    loaded = load_base(Model(base=str(base), dtype="float32"))
    contexts, endings = pairs(loaded.tokenizer, asked(path), 512)
    expected = []
    for context, ending in zip(contexts, endings, strict=True):
        with torch.inference_mode():
            logits = (
                loaded.model(torch.tensor([context + ending], device=loaded.device)).logits[0].log_softmax(-1)
            )
        expected.append(sum(float(logits[len(context) + k - 1, token]) for k, token in enumerate(ending)))
    for batch_size in (1, 3, 8):
        found = Decoder(loaded.model, loaded.tokenizer, loaded.device, 512, batch_size).likelihoods(
            contexts, endings
        )
        assert found == pytest.approx(expected, abs=1e-4)


def test_a_long_context_loses_its_beginning(base, path):
    tokenizer = load_base(Model(base=str(base), dtype="float32")).tokenizer
    whole, ends = pairs(tokenizer, asked(path), 512)
    cut, same = pairs(tokenizer, asked(path), 20)
    assert same == ends
    assert all(len(a) + len(b) <= 21 or len(a) == 1 for a, b in zip(cut, ends, strict=True))
    assert all(a == b[-len(a) :] for a, b in zip(cut, whole, strict=True))


def test_whole_benchmark(base, path, tmp_path):
    ask = Benchmark(tasks=["hellaswag"], data={"hellaswag": str(path)}, batch_size=3)
    events = []
    (record,) = bench.run(
        Model(base=str(base), dtype="float32"),
        [bench.Candidate("base")],
        ask,
        0,
        str(tmp_path / "o"),
        events.append,
    )
    assert (record.protocol, record.shots, record.n) == ("lm-eval", 0, 2)
    assert {"acc", "acc_bytes"} <= set(record.groups)
    assert all(answer["prediction"] in "0123" for answer in record.answers)
    assert [event.done for event in events if event.kind == "answering"][-1] == 2


def test_wrong_lines(tmp_path):
    path = tmp_path / "h.jsonl"
    path.write_text("{\n" + json.dumps({**ROWS[0], "label": 4}) + "\n" + json.dumps({"ctx_a": "x"}) + "\n")
    with pytest.raises(InputError) as caught:
        hellaswag.read(path)
    assert "`0 <= label < 4` must hold, but got 4" in caught.value.problems[1]
    assert len(caught.value.problems) == 3


@pytest.mark.data
def test_real(real_data):
    questions = hellaswag.read(real_data / "hellaswag" / "hellaswag_val_1000.jsonl")
    assert len(questions) == 1000
    assert all(len(question.choices) == 4 for question in questions)
    assert not any("[" in choice for question in questions for choice in question.choices)
