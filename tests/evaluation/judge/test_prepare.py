"""From two models to a form: real generation on a tiny base, killed and resumed."""

import json
import os
import signal

import pytest
from click.testing import CliRunner

from retune.cli import cli
from retune.data.prompts import Prompt
from retune.errors import InputError, Interrupted, RetuneError
from retune.evaluation import prompter
from retune.evaluation.bench import Candidate
from retune.evaluation.judge import answers, prepare, record
from tests.conftest import wait_for
from tests.evaluation.conftest import make_adapter, make_base

COUNT = 6


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    rows = [
        {"question_id": k, "text": f"Which bone is number {k * 7}?", "category": "generic"} for k in range(9)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture
def make(base, adapter, questions, tmp_path):
    """Return a function that prepares a small study in `out`, the adapter against the untuned base."""

    def run(out="judge", count=COUNT, seed=0, a=None, b=None, **options):
        candidates = (a or Candidate("tuned", str(adapter)), b or Candidate("base"))
        where = str(tmp_path / out)
        return prepare.prepare(
            str(base), *candidates, options.pop("questions", questions), count, seed, where,
            **{"new_tokens": 12, "batch_size": 2, "dtype": "float32", **options},
        )  # fmt: skip

    return run


def generated(folder) -> record.Generated:
    return record.Generated.model_validate_json((folder / "generated.json").read_bytes())


def test_both_models_answer_the_same_drawn_questions_with_the_prompt_they_were_tuned_with(
    make, tmp_path, base
):
    made = make()
    found = generated(tmp_path / "judge")
    assert made.comparisons + len(made.equal) == len(found.questions) == COUNT
    assert found.models["a"].name == "tuned"
    assert found.models["a"].adapter_digest
    assert found.models["b"].adapter_uri is None
    assert all(set(question.answers) == {"a", "b"} for question in found.questions)
    assert any(question.answers["a"] != question.answers["b"] for question in found.questions)
    assert {"torch", "transformers", "peft", "retune"} <= set(found.versions)
    assert found.finished
    assert found.inputs["new_tokens"] == 12
    assert found.inputs["base_digest"]
    # The base's own answer, generated here by transformers from the Alpaca prompt.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    question = found.questions[0]
    text = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{question.question}\n\n### Response:"
    )
    ids = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**ids, max_new_tokens=12, do_sample=False)
    expected = tokenizer.decode(out[0][ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert question.answers["b"] == expected.strip()


@pytest.mark.slow
def test_a_run_that_is_stopped_carries_on_and_gives_the_same(make, tmp_path):
    events = []

    def stop(event):
        events.append(event)
        if len(events) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make("stopped", report=stop)
    assert events[-1].done == 8
    assert not (tmp_path / "stopped/form.html").exists()
    before = [dict(question.answers) for question in generated(tmp_path / "stopped").questions]
    rest = []
    make("stopped", report=rest.append)
    assert [event.done for event in rest] == [10, 12]  # what was answered is not answered again
    assert all(event.seconds_left >= 0 for event in events + rest)
    make("whole")
    stopped, whole = generated(tmp_path / "stopped"), generated(tmp_path / "whole")
    assert [question.answers for question in stopped.questions] == [
        question.answers for question in whole.questions
    ]
    assert all(old.items() <= new.answers.items() for old, new in zip(before, stopped.questions, strict=True))


def test_run_again_it_writes_the_same_and_loads_no_model(make, tmp_path, monkeypatch):
    make()
    folder = tmp_path / "judge"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(answers.models, "load_base", lambda *_: pytest.fail("a model was loaded"))
    make()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "form.html").unlink()
    make()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"count": 5}, {"new_tokens": 9}], ids=["seed", "count", "new tokens"]
)
def test_a_folder_of_another_study_is_left_alone(make, tmp_path, change):
    make()
    before = (tmp_path / "judge/generated.json").read_bytes()
    with pytest.raises(InputError, match="belongs to another study"):
        make(**change)
    assert (tmp_path / "judge/generated.json").read_bytes() == before


def test_another_batch_size_carries_on(make, tmp_path):
    make()
    before = generated(tmp_path / "judge").questions
    make(batch_size=5)
    assert generated(tmp_path / "judge").questions == before


def test_all_that_is_wrong_is_said_before_a_model_is_loaded(make, base, tmp_path, monkeypatch):
    monkeypatch.setattr(answers.models, "load_base", lambda *_: pytest.fail("a model was loaded"))
    other = make_adapter(make_base(tmp_path / "other", hidden=64), tmp_path / "wide")
    with pytest.raises(InputError) as error:
        make(count=10, a=Candidate("wide", str(other)), b=Candidate("none", str(tmp_path / "nowhere")))
    text = str(error.value)
    assert "-n is at most the number of questions, but got 10" in text
    assert "made for another base" in text
    assert "nowhere lacks adapter_config.json and adapter_model.safetensors" in text
    assert not (tmp_path / "judge").exists()


def test_a_model_is_not_compared_with_itself(make, adapter):
    same = Candidate("again", str(adapter))
    with pytest.raises(InputError, match="same weights"):
        make(b=same)
    with pytest.raises(InputError, match="same weights"):
        make(a=Candidate("one"), b=Candidate("two"))


def test_models_that_answer_alike_leave_nothing_to_judge(make, base, tmp_path):
    """An adapter whose second factor is zero changes nothing."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(str(tmp_path / "idle"))
    with pytest.raises(RetuneError, match="all 6 questions alike"):
        make(a=Candidate("idle", str(tmp_path / "idle")))


def test_a_question_longer_than_the_context_is_refused(make, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("Which bone? " * 400)
    with pytest.raises(InputError, match="context of 512 tokens"):
        make(count=1, questions=str(path))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Yes.\n", "Yes."),
        ("Yes.\n\n### Instruction:\nAnd now?", "Yes."),
        ("\n### Response:\nYes.", ""),
        ("### Input:\nx", ""),
        ("# Title\n### Part\nno ### Instruction: here", "# Title\n### Part\nno ### Instruction: here"),
    ],
    ids=["white space", "next turn", "at once", "no line before", "headings stay"],
)
def test_an_answer_ends_where_the_template_begins_anew(text, answer):
    assert prompter.Prompter(None, Prompt()).response(text) == answer


def test_the_base_is_what_the_adapters_name(adapter, base, tmp_path, questions):
    tuned, untuned = Candidate("tuned", str(adapter)), Candidate("base")
    assert prepare.common_base(tuned, untuned) == str(base)
    nothing = Candidate("none", str(tmp_path))
    for wrong, words in (
        ((untuned, untuned), "without --base"),
        ((nothing, tuned), "none: an adapter's folder"),
    ):
        with pytest.raises(InputError, match=words):
            prepare.common_base(*wrong)
    with pytest.raises(InputError) as error:
        prepare.prepare(
            None, Candidate("none", str(tmp_path)), untuned, "nowhere", 1, 0, str(tmp_path / "out")
        )
    assert "there is no file nowhere" in str(error.value)
    assert "none: an adapter's folder holds adapter_config.json" in str(error.value)


@pytest.fixture
def words(base, adapter, questions, tmp_path):
    return ["judge", "prepare", "--a", f"tuned={adapter}", "--b", "base", "--base", str(base), "--questions", questions,
            "-n", "5", "--new-tokens", "300", "--batch-size", "1", "--out", str(tmp_path / "judge")]  # fmt: skip


@pytest.mark.slow
def test_a_killed_program_carries_on(retune, words, tmp_path):
    path = tmp_path / "judge/generated.json"
    process = retune(*words)
    wait_for(lambda: path.exists() or process.poll() is not None, 120, "no answer was written")
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {q.id: dict(q.answers) for q in generated(tmp_path / "judge").questions if q.answers}
    assert kept
    again = CliRunner().invoke(cli, [*words, "--json"])
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["asked"] > 0
    found = {q.id: q.answers for q in generated(tmp_path / "judge").questions}
    assert all(len(one) == 2 for one in found.values())
    assert all(answers.items() <= found[id].items() for id, answers in kept.items())
    assert (tmp_path / "judge/form.html").exists()


def test_the_keys_to_stop_a_program_say_how_to_go_on(words, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(answers.models, "load_base", stop)
    result = CliRunner().invoke(cli, words)
    assert isinstance(result.exception, Interrupted)
    assert "Run the same command to resume" in str(result.exception)
