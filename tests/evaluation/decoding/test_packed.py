"""The pass without padding: the same logits, keys and values as transformers' own forward."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from retune.evaluation.decoding import packed

SIZES = {
    "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
FORMS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4, "attention_bias": True}),
    "llama-grouped": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"num_key_value_heads": 2}),
}  # fmt: skip
LENGTHS = (1, 130, 7, 97)  # shorter and longer than a block of queries


def make(form):
    kind, config, extra = FORMS[form]
    torch.manual_seed(0)
    return kind(config(**SIZES, **extra)).eval()


def tokens(length, seed):
    return torch.randint(3, 90, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def states(out):
    return [(layer.keys[0], layer.values[0]) for layer in out.past_key_values.layers]


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("start", [0, 50])
@torch.inference_mode()
def test_logits_keys_and_values_are_those_of_the_whole_model(form, start):
    model, prefix = make(form), tokens(start, 9)
    assert packed.fits(model)
    before = packed.first_pass(model, [prefix], [0], [], 0)[1] if start else []
    rows = [tokens(length, seed) for seed, length in enumerate(LENGTHS)]
    wanted = [1, 5, 3, 97]
    logits, made = packed.first_pass(model, rows, wanted, before, start)
    parts = torch.split(logits, wanted)
    place = 0
    for row, part, count in zip(rows, parts, wanted, strict=True):
        whole = model(torch.tensor([prefix + row]), use_cache=True)
        assert torch.allclose(part, whole.logits[0, -count:], atol=1e-4)
        for (keys, values), (all_keys, all_values) in zip(made, states(whole), strict=True):
            assert torch.allclose(keys[:, place : place + len(row)], all_keys[:, start:], atol=1e-4)
            assert torch.allclose(values[:, place : place + len(row)], all_values[:, start:], atol=1e-4)
        place += len(row)


@torch.inference_mode()
def test_an_adapter_counts():
    from peft import LoraConfig, get_peft_model

    model, row = make("llama-grouped"), tokens(20, 1)
    bare = packed.first_pass(model, [row], [1], [], 0)[0]
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    tuned = get_peft_model(model, settings).eval()
    assert packed.fits(tuned)
    logits = packed.first_pass(tuned, [row], [1], [], 0)[0]
    assert torch.allclose(logits[0], tuned(torch.tensor([row])).logits[0, -1], atol=1e-4)
    assert not torch.allclose(logits, bare, atol=1e-2)


def test_other_forms_and_other_numbers_are_left_to_transformers():
    from transformers import GPT2Config, GPT2LMHeadModel

    assert not packed.fits(make("llama").to(torch.bfloat16))
    assert not packed.fits(GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20)))
