"""Every kind of LoRA adapter that PEFT can save: scored as PEFT does, on both ways in, and the base as before afterwards."""

import contextlib
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from retune.data.batches import flatten
from retune.errors import InputError
from retune.evaluation.decoding import adapters
from retune.training import base_state, lora
from retune.training.loss import loss_sum
from retune.training.model_attention import by_segments

from .test_loss import padded_loss, random_tokens

SIZES = {
    "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2, "attention_bias": True,
}  # fmt: skip
KINDS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora-all": {"use_dora": True, "target_modules": "all-linear"},
    "lora-bias": {"lora_bias": True},
    "bias-all": {"bias": "all"},
    "bias-lora-only": {"bias": "lora_only"},
    "saved-head": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "saved-norm": {"modules_to_save": ["norm", "input_layernorm"]},
    "saved-mlp": {"modules_to_save": ["mlp"]},
    "saved-attention": {"modules_to_save": ["self_attn"], "target_modules": ["down_proj"]},
    "saved-projection": {"modules_to_save": ["down_proj"]},
    "on-embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "on-head": {"target_modules": ["lm_head", "v_proj"]},
    "dora-embedding": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    "all-linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*\.layers\.1\..*(up|down)_proj"},
    "one-layer": {"layers_to_transform": [1]},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "mica": {"init_lora_weights": "mica"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "tokens": {"trainable_token_indices": [3, 7, 11]},
    "tokens-dora": {"trainable_token_indices": {"embed_tokens": [3, 7]}, "use_dora": True},
    "replicated": {"layer_replication": [[0, 2], [1, 2]]},
    "dropout": {"lora_dropout": 0.3},
}


def make(tied=False, dtype=torch.float32):
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied)).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model.requires_grad_(False)


def save(folder, kind, tied=False, dtype=torch.float32):
    torch.manual_seed(5)
    settings = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    tuned = get_peft_model(make(tied, dtype), LoraConfig(**{**settings, **kind}))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def state(model):
    return {
        "modules": [(name, id(module), type(module)) for name, module in model.named_modules()],
        "attributes": [(name, sorted(vars(module))) for name, module in model.named_modules()],
        "flags": [(name, p.requires_grad, p.data_ptr()) for name, p in model.named_parameters()],
        "config": model.config.to_dict(),
    }


def bits(model):
    return {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


@pytest.fixture(scope="module")
def tokens():
    return random_tokens([9, 23, 4, 17], 90)


def pefts(folder, tokens, tied=False, dtype=torch.float32):
    tuned = PeftModel.from_pretrained(make(tied, dtype), folder).eval()
    with torch.no_grad():
        return sum(float(padded_loss(tuned, tokens, [k])) for k in range(4))


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_scored_as_peft_does_and_the_base_is_bit_for_bit_the_same_afterwards(kind, tied, tokens, tmp_path):
    folder = save(tmp_path, KINDS[kind], tied)
    right, base = pefts(folder, tokens, tied), make(tied)
    before, was = state(base), bits(base)
    with torch.no_grad():
        bare = float(padded_loss(base, tokens, [0, 1, 2, 3]))
    assert abs(bare - right) > 1e-2
    with by_segments(base), lora.loaded(base, folder) as tuned, torch.no_grad():
        gate = float(loss_sum(tuned, flatten(tokens, [0, 1, 2, 3])))
    with adapters.attached(base, folder) as tuned, torch.no_grad():
        bench = sum(float(padded_loss(tuned, tokens, [k])) for k in range(4))
    assert gate == pytest.approx(right, rel=2e-6)
    assert bench == pytest.approx(right, rel=1e-6)
    assert state(base) == before
    assert all(torch.equal(tensor, was[name]) for name, tensor in bits(base).items())
    with torch.no_grad():
        assert float(padded_loss(base, tokens, [0, 1, 2, 3])) == bare


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    make().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_can_be_scored_is_not_refused_beforehand(kind, base_folder, tmp_path):
    assert adapters.problems("mine", save(tmp_path, KINDS[kind]), base_folder) == []


def test_a_replicated_layer_of_another_size_and_weights_of_old_are_refused(base_folder, tmp_path):
    torch.manual_seed(5)
    wide = LlamaForCausalLM(LlamaConfig(**SIZES | {"hidden_size": 48}))
    settings = {"target_modules": ["q_proj"], "layer_replication": [[0, 2], [1, 2]], "task_type": "CAUSAL_LM"}
    get_peft_model(wide, LoraConfig(r=4, **settings)).save_pretrained(
        str(tmp_path), save_embedding_layers=False
    )
    (problem,) = adapters.problems("mine", tmp_path, base_folder)
    assert "fits 48 features, but the base has 32" in problem
    (tmp_path / lora.WEIGHTS).rename(tmp_path / "adapter_model.bin")
    (problem,) = adapters.problems("mine", tmp_path, base_folder)
    assert "save it again with `save_pretrained`" in problem


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LORA'"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "edited at random"),
        (
            {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
            r"edited .* \(LoftQ\).* save that base",
        ),
        ({"init_lora_weights": "corda"}, "CorDA"),
        ({"init_lora_weights": "lora_ga"}, "LoRA-GA"),
        *(
            ({"peft_type": kind}, f"it has {kind!r}")
            for kind in ("VERA", "IA3", "OFT", "BOFT", "PROMPT_TUNING", None)
        ),
        ({"r": 8}, "does not fit the base model"),
        ({"target_modules": ["k_proj"]}, "does not fit the base model"),
    ],
)
def test_what_cannot_be_done_as_peft_does_is_refused_by_name_on_both_ways_in(settings, said, tmp_path):
    folder, base = save(tmp_path, {}), make()
    before, was = state(base), bits(base)
    config = json.loads((folder / lora.CONFIG).read_text())
    (folder / lora.CONFIG).write_text(json.dumps(config | settings))
    for enter in (lora.loaded, adapters.attached):
        with pytest.raises(InputError, match=said), enter(base, folder):
            pass
    assert state(base) == before
    assert all(torch.equal(tensor, was[name]) for name, tensor in bits(base).items())


def test_a_base_that_cannot_be_brought_back_is_noticed(tmp_path):
    """An edit through `.data` leaves no trace but the bits: no version, no new storage."""

    def spoil(base, wrapped=contextlib.nullcontext, error=None):
        with wrapped(), base_state.preserved(base):
            base.model.layers[1].mlp.up_proj.weight.data[3, 4] += 1e-3
            base.model.norm.weight.data[3] += 1  # a vector is brought back
            if error:
                raise error

    forgotten = []
    with pytest.raises(
        base_state.BaseChanged, match=r"it changed model\.layers\.1\.mlp\.up_proj\.weight; the"
    ):
        spoil(make())
    spoil(make(), lambda: base_state.reload_if_changed(lambda: forgotten.append(1)))
    with pytest.raises(ZeroDivisionError):
        spoil(make(), lambda: base_state.reload_if_changed(lambda: forgotten.append(2)), ZeroDivisionError())
    assert forgotten == [1, 2]
