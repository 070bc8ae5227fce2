"""Loading a base: without output, with a digest of all that determines its answers, in a data type that the machine supports."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from retune import models
from retune.errors import InputError
from retune.study import Model, Training
from tests.conftest import ROOT


@pytest.mark.slow
def test_loading_a_base_is_silent_even_after_the_hub_was_imported():
    code = (
        "import huggingface_hub; from retune import models; from retune.study import Model; "
        f"models.load_base(Model(base={str(ROOT / 'examples/base/tiny')!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def made(folder, **options):
    """A tiny random Llama with a byte tokenizer."""
    from tests.training.conftest import make_base

    return make_base(folder, **options)


def as_bin(folder):
    """Keep the weights as older releases of transformers wrote them."""
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return weights


def test_weights_of_pytorch_model_bin_are_in_the_digest_and_load(tmp_path):
    folder = made(tmp_path)
    weights = as_bin(folder)
    before = models.base_digest(folder)
    loaded = models.load_base(Model(base=str(folder)))
    assert loaded.digest == before
    assert torch.equal(loaded.model.lm_head.weight.cpu(), weights["lm_head.weight"])
    weights["lm_head.weight"] += 1
    torch.save(weights, folder / "pytorch_model.bin")
    assert models.base_digest(folder) != before


def test_digests_of_safetensors_bases_stay_what_they_were(tmp_path):
    """Folders of studies are named by them; computed by the rule of the first release."""
    for name, content in {
        "a.json": b"{}",
        "t.model": b"m",
        "model.safetensors": b"x" * 10,
        "merges.txt": b"a b",
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read where there are safetensors")
    sha = hashlib.sha256(b"a.json{}tokenizer.json{}t.modelm" + b"model.safetensors:10" + b"x" * 30)
    assert models.base_digest(tmp_path) == sha.hexdigest()[:16]


def test_a_vocabulary_outside_tokenizer_json_is_in_the_digest(tmp_path):
    (tmp_path / "merges.txt").write_text("a b")
    before = models.base_digest(tmp_path)
    (tmp_path / "merges.txt").write_text("a c")
    assert models.base_digest(tmp_path) != before


def test_tokenizers_that_do_not_fit_are_told_of(tmp_path):
    tokenizer = models.load_tokenizer(Model(base=str(made(tmp_path))))
    assert models.tokenizer_problems(tokenizer, 258) == []
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.eos_token = None
    messages = models.tokenizer_problems(tokenizer, 258)
    assert "must have an end-of-text token" in messages[0]
    assert "among the base's 258 embeddings, but '<one>', '<two>' have numbers up to 259" in messages[1]


@pytest.mark.parametrize(
    ("card", "chosen"),
    [
        ((9, 0), torch.bfloat16),
        ((8, 0), torch.bfloat16),
        ((7, 5), torch.float16),
        ((7, 0), torch.float16),
        ((6, 1), torch.float32),
    ],
)
def test_each_card_gets_the_type_that_it_has(monkeypatch, card, chosen):
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or card >= (8, 0),
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    device = torch.device("cuda", 0)
    assert models.pick_dtype(Model(base="x"), device) == chosen
    assert models.pick_dtype(Model(base="x", dtype="float32"), device) == torch.float32
    if card < (8, 0):
        with pytest.raises(InputError, match=f"card has {card[0]}.{card[1]}; use auto, float16 or float32"):
            models.pick_dtype(Model(base="x", dtype="bfloat16"), device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_bitsandbytes_is_spared_where_no_base_can_need_it(monkeypatch, tmp_path):
    monkeypatch.setattr("retune.gpus.visible", lambda: ["0"])
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    models.skip_bitsandbytes(Model(base="x"))
    assert "bitsandbytes" not in sys.modules
    monkeypatch.setattr("retune.gpus.visible", list)
    models.skip_bitsandbytes(Model(base="x", quantization="nf4"))
    assert "bitsandbytes" not in sys.modules
    (tmp_path / "quantised").mkdir()
    (tmp_path / "quantised/config.json").write_text(
        '{"quantization_config": {"quant_method": "bitsandbytes"}}'
    )
    for base in (tmp_path / "quantised", "owner/name"):
        models.skip_bitsandbytes(Model(base=str(base)))
        assert "bitsandbytes" not in sys.modules
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from retune import models; from retune.study import Model\n"
         "import gc; models.import_libraries(Model(base=sys.argv[1]))\n"
         "print(sys.modules['bitsandbytes'], 'transformers.models.llama.modeling_llama' in sys.modules, gc.isenabled())",
         str(made(tmp_path))],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["None", "True", "True"]


def test_four_bits_need_a_gpu(tmp_path):
    with pytest.raises(InputError, match="quantization: nf4` needs a CUDA GPU"):
        models.load_base(Model(base=str(made(tmp_path)), quantization="nf4"))


def test_four_bits_are_qlora_as_peft_does_it(tmp_path):
    """bitsandbytes computes on CPUs too, slowly: the same loading, adapters and files as on a GPU."""
    pytest.importorskip("bitsandbytes")
    import peft

    from retune.training import lora

    folder = made(tmp_path / "base", hidden=64)
    model = models._in_four_bits(folder, torch.float32, "sdpa", models.pick_device())
    model.train().requires_grad_(False)  # in evaluation some CPUs pack the weights anew and round otherwise
    layer = model.model.layers[0].self_attn.q_proj
    assert type(layer).__name__ == "Linear4bit"
    assert (layer.weight.quant_type, layer.weight.quant_state.nested) == ("nf4", True)
    assert model.lm_head.weight.dtype == torch.float32
    ids = torch.arange(20, device=model.device)[None]
    setting = Training(rank=4, alpha=8, dropout=0.0, learning_rate=1e-3)
    with lora.adapted(
        model, setting.model_copy(update={"target_modules": ["q_proj", "v_proj"]}), "x", 0
    ) as adapted:
        assert (
            type(adapted.base_model.model.model.layers[0].self_attn.q_proj).__module__
            == "peft.tuners.lora.bnb"
        )
        adapted(input_ids=ids, labels=ids).loss.backward()
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter -= parameter.grad
        expected = adapted(input_ids=ids).logits
        for name, content in lora.files(adapted).items():
            (tmp_path / name).write_bytes(content)
    assert model.model.layers[0].self_attn.q_proj is layer
    # Trainable, since without gradients a CPU computes in another order and rounds otherwise
    loaded = peft.PeftModel.from_pretrained(model, tmp_path, is_trainable=True)
    assert torch.equal(loaded(input_ids=ids).logits, expected)


def test_code_of_a_base_is_never_run_nor_asked_about(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "own",
                "auto_map": {
                    "AutoConfig": "own.C",
                    "AutoModelForCausalLM": "own.M",
                    "AutoTokenizer": ["own.T", None],
                },
            }
        )
    )
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["own.T", None]}})
    )
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    model = Model(base=str(tmp_path), dtype="float32")
    for ask in (lambda: models.load_tokenizer(model), lambda: models.load_base(model, "sdpa")):
        with pytest.raises(InputError):
            ask()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("t5", "but t5 is an encoder-decoder$"),
        (
            "llava",
            r"but llava is more than a language model; save the language model in it \(llama\) by itself",
        ),
        ("qwen2_vl", r"more than a language model; save the language model in it \(qwen2_vl_text\)"),
        ("clip", "but clip is "),
        ("vit", "but vit is none"),
    ],
)
def test_what_is_no_causal_language_model_is_refused_by_name_wherever_it_is_read(kind, said, tmp_path):
    from transformers import CONFIG_MAPPING

    from retune.evaluation.bench import Candidate, check_candidates
    from retune.steps import base_facts

    CONFIG_MAPPING[kind]().save_pretrained(tmp_path)
    base = Model(base=str(tmp_path))
    for read in (lambda: models.load_base(base), lambda: base_facts.read(tmp_path)):
        with pytest.raises(InputError, match=said) as caught:
            read()
        assert len(str(caught.value)) < 300
    [problem] = check_candidates(base, [Candidate("base")])
    assert "must be a causal language model" in problem


def spoilt(folder, what):
    """Spoil the weights of a base as an interrupted copy or a wrong config does."""
    from safetensors.torch import save_file

    file = folder / "model.safetensors"
    if what == "cut off":
        content = file.read_bytes()
        return file.write_bytes(content[: len(content) // 2])
    if what == "shapes":
        config = json.loads((folder / "config.json").read_text())
        return (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 80}))
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    return save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", r"must have every weight, but lack model\.layers\.1\.mlp\.up_proj\.weight$"),
        ("cut off", "cannot be loaded: "),
        ("shapes", "shapes of its weights are not those that config.json asks for"),
    ],
)
def test_a_base_with_spoilt_weights_is_refused(what, said, tmp_path):
    """transformers itself silently fills in missing weights at random."""
    folder = made(tmp_path)
    models.load_base(Model(base=str(folder)))
    spoilt(folder, what)
    with pytest.raises(InputError, match=said) as caught:
        models.load_base(Model(base=str(folder)))
    assert "\n" not in caught.value.problems[0]


def test_a_folder_with_an_adapter_in_it_is_no_base(tmp_path):
    """transformers silently applies such an adapter to the base."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    folder = made(tmp_path)
    adapter = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(LlamaForCausalLM.from_pretrained(folder), adapter).save_pretrained(str(folder))
    for base in (str(folder), f"file://{folder}"):
        for read in (models.load_base, models.load_tokenizer):
            with pytest.raises(InputError, match=r"must not hold an adapter, but .*merge_and_unload"):
                read(Model(base=base))


def test_a_folder_without_a_tokenizer_is_told_of_in_a_whole_sentence(tmp_path):
    folder = made(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer can be read in .*one of: .*tokenizers"):
        models.load_tokenizer(Model(base=str(folder)))
