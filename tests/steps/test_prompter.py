"""Everything that prompts a tuned model uses its study's prompt: chat, judge, model cards, registered versions."""

import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from retune import models, store
from retune.cli import cli
from retune.data.encode import Encoder
from retune.data.example import Example
from retune.data.prompts import Prompt
from retune.errors import InputError
from retune.evaluation.prompter import Prompter
from retune.registry import promotion
from retune.registry.versions import register
from retune.steps import contestants, export, tuned
from retune.steps.chat import open_pair
from tests.conftest import ROOT
from tests.steps.conftest import CHAT

TINY = ROOT / "examples/base/tiny"


def run(*words):
    shown = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    return shown.output


STRICT = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}{{ raise_exception('no role ' + m.role) }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize(
    "template", [Prompt(), Prompt(kind="chat", text=CHAT), Prompt(kind="chat", text=STRICT)]
)
def test_a_conversation_is_continued_as_it_was_learned(template):
    """With turns of tools, whether the template has a role for them or not, and with earlier answers."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    said = [("user", "weather?"), ("assistant", "get"), ("tool", "18 C"), ("assistant", "mild"), ("user", "sure?"), ("assistant", "yes")]  # fmt: skip
    example = Example("weather?", "", "get", "x", 1, messages=tuple(said))
    ((ids, counted),) = Encoder(tokenizer, template).encode([example])
    answer = next(k for k in range(len(ids), 0, -1) if not counted[k - 1] and any(counted[k:]))
    prompter = Prompter(tokenizer, template)
    assert prompter.ids(prompter.prompt_for(example)) == ids[:answer]


def test_turns_that_the_template_rejects_are_told():
    prompter = Prompter(AutoTokenizer.from_pretrained(TINY), Prompt(kind="chat", text=STRICT))
    with pytest.raises(
        InputError, match=r"the chat template cannot ask this: the template rejects .*no role system"
    ):
        prompter.prompt_for(Example("a", "", "b", "x", 1, system="Be kind."))


def test_an_answer_ends_where_the_template_closes_a_turn(searched_chat):
    study, _, _ = searched_chat
    tokenizer = models.load_tokenizer(study.model)
    prompter = Prompter(tokenizer, Prompt(kind="chat"))
    assert prompter.prompt("hi") == "<|user|>hi<|end|><|assistant|>"
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert prompter.ends == {end} != {tokenizer.eos_token_id}
    base = models.load_base(study.model)
    with torch.no_grad():  # a base that says <|end|> after whatever
        base.model.lm_head.weight.zero_()
        head = torch.nn.Linear(base.model.config.hidden_size, len(tokenizer))
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        head.bias[end] = 1
        base.model.lm_head = head
    from retune.evaluation.decoding.generate import Decoder

    ids = [prompter.ids(prompter.prompt("hi"))]
    assert Decoder(base.model, tokenizer, base.device, 64, 1).tokens(ids, 5) == [[end] * 5]
    assert Decoder(base.model, tokenizer, base.device, 64, 1, ends=prompter.ends).tokens(ids, 5) == [[]]


def test_chat_and_judge_ask_by_the_chat_template_of_the_study(searched_chat):
    study, _, tmp_path = searched_chat
    found = open_pair(tuned.from_run(study.root)).answers("the little test", 6)
    tokenizer = models.load_tokenizer(study.model)
    text = "<|user|>the little test<|end|><|assistant|>"
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(study.model.base, dtype=torch.float32)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>")]
    expected = base.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=ends)[0, ids.shape[1] :]
    assert found["base"] == tokenizer.decode(expected, skip_special_tokens=True).strip()
    questions = tmp_path / "questions.txt"
    questions.write_text("the little test\nanother one\n")
    run("judge", "prepare", "--a", study.root, "--b", "base", "--questions", str(questions), "-n", "2", "--new-tokens", "6",
        "--dtype", "float32", "--out", str(tmp_path / "judge"))  # fmt: skip
    record = json.loads((tmp_path / "judge" / "generated.json").read_text())
    assert record["inputs"]["template"] == "chat"
    answers = {q["question"]: q["answers"] for q in record["questions"]}
    assert answers["the little test"] == {"a": found["tuned"], "b": found["base"]}


def test_the_prompt_is_known_wherever_the_adapter_is_named(searched_chat):
    study, folder, tmp_path = searched_chat
    chat = Prompt(kind="chat")
    kept = store.join(folder.uri, "trials", "trial-002", "adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        store.write(store.join(kept, name), store.read(f"{folder.trials['trial-002'].adapter_uri}/{name}"))
    assert tuned.prompt_of(kept) == chat
    export.write(tuned.from_run(study.root), tmp_path / "out")
    assert tuned.prompt_of(str(tmp_path / "out")) == chat
    assert "chat template of its tokenizer" in (tmp_path / "out" / "README.md").read_text()
    alone = contestants.find(folder.trials["trial-001"].adapter_uri)
    assert alone.prompt is None
    base = contestants.find("base")
    prompts, note = contestants.prompts(alone, base)
    assert (prompts, "name another with --prompt" in note) == ({"a": Prompt(), "b": Prompt()}, True)
    prompts, note = contestants.prompts(contestants.find(f"x={kept}"), base)
    assert (prompts, note) == ({"a": chat, "b": chat}, "")
    prompts, note = contestants.prompts(alone, base, "none")
    assert (prompts["a"].kind, note) == ("none", "")


def test_a_registered_version_keeps_its_prompt_and_is_exported_by_alias_and_number(searched_chat):
    study, folder, tmp_path = searched_chat
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    trial = folder.trials["trial-002"]
    own = Prompt(kind="chat", text="{% for m in messages %}[{{ m.content }}]{% endfor %}")
    adapter = store.download(trial.adapter_uri)
    version = register(uri, "bot", trial, adapter, study=study.name, prompt=own)
    promotion.promote(uri, "bot", version, None)
    for name in ("champion", version):
        found = tuned.find(f"bot@{name}", tracking=uri)
        assert (found.prompt, found.model.base) == (own, study.model.base)
    (tmp_path / "base").rename(tmp_path / "elsewhere")  # as on another machine
    with pytest.raises(InputError, match=r"config\.json"):
        run("export", "bot@champion", "--tracking", uri, "--out", str(tmp_path / "out"))
    here = ("--tracking", uri, "--base", str(tmp_path / "elsewhere"))
    run("export", "bot@champion", *here, "--out", str(tmp_path / "out"))
    assert f"| Base | {study.model.base} |" in (tmp_path / "out" / "README.md").read_text()
    assert "base\n" in run("chat", "bot@champion", *here, "--ask", "hi", "--new-tokens", "2")
    assert tuned.prompt_of(str(tmp_path / "out")) == own
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == own.text
    old = register(uri, "old", trial, adapter, study=study.name)  # as before prompts were kept
    found = tuned.find(f"old@{old}", tracking=uri)
    assert (found.prompt, found.template) == (None, Prompt())
    assert "not recorded" in export.card(found, None)
    for wrong in ("bot@champoin", "bot@7"):
        shown = CliRunner().invoke(cli, ["export", wrong, "--tracking", uri])
        assert "version" in str(shown.exception)


@pytest.mark.parametrize("module", ["retune.training.lora"])
def test_importing_peft_says_nothing(module):
    code = f"import {module}; import peft"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
