"""Exporting a finished study, and chatting with base and tuned model side by side."""

import hashlib
import json
import os
import pty
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from retune import models
from retune.adapter import WEIGHTS, digest, read
from retune.cli import cli
from retune.cli.chat import converse
from retune.data.prompts import prompt
from retune.errors import InputError, RetuneError
from retune.steps import export, tuned
from retune.steps.chat import open_pair
from retune.steps.oci import to_oci
from retune.study import Model
from tests.conftest import ROOT
from tests.evaluation.conftest import make_adapter, make_base


def run(*words):
    shown = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    return shown.output


def logits(model, tokenizer):
    with torch.no_grad():
        return model(**tokenizer("the little test", return_tensors="pt")).logits


def test_the_adapter_with_its_card(searched):
    study, folder, tmp_path = searched
    run("export", study.root, "--out", str(tmp_path / "out"), "--licence", "apache-2.0")
    out = tmp_path / "out"
    base = AutoModelForCausalLM.from_pretrained(study.model.base)
    assert PeftModel.from_pretrained(base, out)
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\nlicense: apache-2.0\n")
    for words in (
        "trial-002",
        study.model.base,
        "rank 4",
        folder.search.data_digest,
        "Validation loss | 1",
        "SHA-256",
    ):
        assert words in card
    with pytest.raises(InputError, match="must be empty or new"):
        export.write(tuned.from_run(study.root), out)
    with pytest.raises(InputError, match=r"must be one of \['trial-001', 'trial-002'\], but got 'trial-009'"):
        tuned.from_run(study.root, "trial-009")


def test_merged_is_what_base_and_adapter_say_together(searched):
    study, _, tmp_path = searched
    run("export", study.root, "--out", str(tmp_path / "out"), "--merge")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(study.model.base, dtype=torch.float32)
    before = logits(base, tokenizer)
    together = PeftModel.from_pretrained(base, tuned.from_run(study.root).adapter).eval()
    torch.testing.assert_close(logits(merged, tokenizer), logits(together, tokenizer), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(merged, tokenizer), before)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_merging_leaves_alone_what_shares_its_weights_with_an_adapted_layer(tmp_path, target):
    base = make_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(base)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=[target])
    what = tuned.Tuned("tied", adapter, Model(base=str(base)))
    export.write(what, tmp_path / "out", merge=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    together = PeftModel.from_pretrained(loaded, adapter).eval()
    torch.testing.assert_close(logits(merged, tokenizer), logits(together, tokenizer), rtol=1e-4, atol=1e-5)


QUANTISED = """
import sys
from pathlib import Path
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from retune.steps import export, tuned
from retune.study import Model
from tests.conftest import ROOT
from tests.evaluation.conftest import make_adapter, make_base
place = Path(sys.argv[1])
base = make_base(place / "base", hidden=64)
four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
AutoModelForCausalLM.from_pretrained(base, quantization_config=four_bits, device_map={"": "cpu"}).save_pretrained(base)
adapter = make_adapter(base, place / "adapter")
export.write(tuned.Tuned("quantised", adapter, Model(base=str(base))), place / "out", merge=True)
merged = AutoModelForCausalLM.from_pretrained(place / "out", dtype=torch.float32)
loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
ids = torch.arange(30)[None]
untuned = loaded(ids).logits.detach()
together = PeftModel.from_pretrained(loaded, adapter).eval()(ids).logits
print((merged(ids).logits - together).abs().max().item(), (untuned - together).abs().max().item())
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="loads the base on the CPU")
def test_merging_into_a_quantised_base_rounds_nothing_again(tmp_path):
    """In a process of its own: others have told PEFT that there is no bitsandbytes."""
    pytest.importorskip("bitsandbytes")
    done = subprocess.run(
        [sys.executable, "-c", QUANTISED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    off, moved = map(float, done.stdout.split()[-2:])
    assert off < 1e-4 < 0.1 < moved
    assert "quantization_config" not in (tmp_path / "out/config.json").read_text()


def test_an_oci_layout_is_whole_and_the_same_every_time(searched):
    study, _, tmp_path = searched
    export.write(tuned.from_run(study.root), tmp_path / "out")
    first, second = (to_oci(tmp_path / "out", tmp_path / name, "s") for name in ("a", "b"))
    assert first == second
    blobs = tmp_path / "a" / "blobs" / "sha256"
    for path in blobs.iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    (entry,) = json.loads((tmp_path / "a" / "index.json").read_text())["manifests"]
    manifest = json.loads((blobs / entry["digest"].partition(":")[2]).read_text())
    (layer,) = manifest["layers"]
    with tarfile.open(blobs / layer["digest"].partition(":")[2]) as tar:
        assert {"models/adapter_model.safetensors", "models/README.md"} <= set(tar.getnames())


def test_gguf_is_made_by_the_converter_that_is_installed(tmp_path, monkeypatch):
    (tmp_path / "merged").mkdir()
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    with pytest.raises(InputError, match=r"--gguf needs llama\.cpp's convert_hf_to_gguf\.py"):
        export.to_gguf(tmp_path / "merged", "f16")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    converter = tmp_path / "convert_hf_to_gguf.py"  # takes the arguments that llama.cpp's takes
    converter.write_text(
        "import sys; a = sys.argv; assert a[2] == '--outfile' and a[4:] == ['--outtype', 'f16']; open(a[3], 'w').write('GGUF')"
    )
    assert export.to_gguf(tmp_path / "merged", "f16").read_text() == "GGUF"
    converter.write_text("raise SystemExit('unknown architecture')")
    (tmp_path / "merged" / "merged-f16.gguf").unlink()
    with pytest.raises(RetuneError, match="unknown architecture"):
        export.to_gguf(tmp_path / "merged", "f16")


def test_both_models_are_asked_as_they_were_tuned(searched):
    study, _, _ = searched
    pair = open_pair(tuned.from_run(study.root))
    found = pair.answers("the little test", 6)
    assert list(found) == ["base", "tuned"]
    tokenizer = models.load_tokenizer(study.model)
    ids = tokenizer(prompt("the little test"), return_tensors="pt")["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(study.model.base, dtype=torch.float32)
    expected = base.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    assert found["base"] == tokenizer.decode(expected, skip_special_tokens=True).strip()
    shown = run("chat", study.root, "--ask", "the little test", "--new-tokens", "3")
    assert "> the little test" in shown
    assert shown.index("base") < shown.index("tuned")


def test_what_ends_an_answer_does_not_end_the_chat(capsys):
    """A question that cannot be asked, or Ctrl-C while it is answered."""
    asked = []

    def answer(question):
        asked.append(question)
        if question == "long":
            raise InputError("it has 900 tokens, and the base reads 512")
        if question == "slow":
            raise KeyboardInterrupt

    with CliRunner().isolation(input="long\nslow\nlast\n\nnever\n") as (out, err, _):
        converse(answer)
        said = out.getvalue().decode() + err.getvalue().decode()
    assert asked == ["long", "slow", "last"]
    assert "error: it has 900 tokens, and the base reads 512" in said
    assert "(stopped)" in said


@pytest.mark.slow
def test_a_chat_in_a_terminal(searched):
    study, _, _ = searched
    pid, terminal = pty.fork()
    if pid == 0:
        words = [sys.executable, "-m", "retune", "chat", study.root, "--new-tokens", "3"]
        os.execv(sys.executable, words)
    said = ""

    def prompted(behind):
        """Read until a prompt follows these words: input typed earlier would not reach the line editor."""
        nonlocal said
        said = ""
        while behind not in said or not said.endswith("> "):
            said += os.read(terminal, 65536).decode(errors="replace")  # fails when the process ends

    prompted("an empty line or Ctrl-D ends")
    os.write(terminal, b"the little test\n")
    prompted("tuned")
    os.write(terminal, b"the little test " * 240 + b"\n")
    prompted("error: a question must leave room")
    os.write(terminal, b"\x1b[A\x1b[A\n")  # the question before the last, by the keys of history
    prompted("tuned")
    os.write(terminal, b"\x04")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0, said


@pytest.mark.parametrize("harm", ["folder", "weights", "bytes"])
def test_an_adapter_that_was_deleted_or_changed_is_told_with_what_to_do(searched, harm):
    """By every command that reads it; exporting copied what was left of it, without a word."""
    study, folder, tmp_path = searched
    trial = folder.path("trials/trial-002")
    shutil.move(tmp_path / "adapter-2", f"{trial}/adapter")
    record = folder.trials["trial-002"]
    record.adapter_uri, record.adapter_digest = f"{trial}/adapter", digest(read(Path(trial, "adapter")))
    folder.ledger.finish(record, write=True)
    tuned.from_run(study.root)
    weights = Path(trial, "adapter", WEIGHTS)
    if harm == "folder":
        shutil.rmtree(weights.parent)
    elif harm == "weights":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    questions = tmp_path / "questions.txt"
    questions.write_text("the little test\n")
    told = "is not what the trial wrote" if harm == "bytes" else "which trial-002 wrote"
    asked = ("judge", "prepare", "--b", "base", "--questions", str(questions), "-n", "1")
    for words in [
        ("export", study.root, "--out", str(tmp_path / "plain")),
        ("export", study.root, "--out", str(tmp_path / "merged"), "--merge"),
        ("chat", study.root, "--ask", "the little test"),
        (*asked, "--a", study.root, "--out", str(tmp_path / "j")),
        (*asked, "--a", str(weights.parent), "--out", str(tmp_path / "j"), "--base", study.model.base),
        ("bench", "--model", study.model.base, "--adapter", str(weights.parent), "--tasks", "mmlu",
         "--data", f"mmlu={study.benchmark.data['mmlu']}", "--out", str(tmp_path / "b")),
    ]:  # fmt: skip
        error = CliRunner().invoke(cli, words).exception
        assert isinstance(error, InputError), (words, error)
        assert told in str(error)
        assert "remove the trial's folder" in str(error)
    assert not (tmp_path / "plain").exists()
