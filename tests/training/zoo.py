"""Tiny random models of nearly all causal architectures of the installed transformers."""

import inspect
import zlib
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from retune.training.targets import layer_names

VOCABULARY = 96
# Every name under which some config keeps a size; each config takes those that it knows.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 8, "n_embd": 32,
    "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 48, "d_model": 32, "n_layers": 2, "n_heads": 4,
    "num_layers": 2, "num_heads": 4, "ffn_dim": 48, "hidden_dim": 32, "num_experts": 4, "num_local_experts": 4,
    "num_experts_per_tok": 2, "n_routed_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "state_size": 8, "time_step_rank": 4,
    "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2, "expand": 2, "mamba_n_groups": 1,
    "n_groups": 1, "attention_hidden_size": 32, "lru_width": 32, "attention_window_size": 16, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "word_embed_proj_dim": 32, "ffn_hidden_size": 48,
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48, "encoder_ffn_dim": 48, "is_decoder": True, "sliding_window": 16,
}  # fmt: skip
_TEXT = {name: _SIZES[name] for name in (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id",
)}  # fmt: skip
_IMAGES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
_MIXED = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
_HEADS = {"head_dim": None, "num_key_value_heads": 4}
# What some architectures need besides, or forms of one that are worth a line of their own.
FORMS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16},
    "codegen": {"rotary_dim": 8},
    "deepseek_v2": _HEADS,
    "deepseek_v3": _HEADS,
    "falcon (alibi)": {"alibi": True},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "gemma3 (for images too)": {
        "text_config": {**_TEXT, "sliding_window": 16}, "vision_config": _IMAGES, "mm_tokens_per_image": 4,
        "boi_token_index": 3, "eoi_token_index": 4, "image_token_index": 5,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_dt_rank": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama (attention dropout)": {"attention_dropout": 0.2},
    "llama (dynamic rope)": {
        "max_position_embeddings": 16,
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    },
    "llama4_text (chunks)": {"attention_chunk_size": 8},
    "llama4 (for images too)": {
        "text_config": {**_TEXT, "intermediate_size_mlp": 48, "num_local_experts": 2},
        "vision_config": {**_IMAGES, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    },
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "mistral (no window)": {"sliding_window": None},
    "phi3 (longrope)": {
        "original_max_position_embeddings": 16,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 2.0, 1.0],
            "original_max_position_embeddings": 16, "partial_rotary_factor": 1.0,
        },
    },
    "qwen3_5_text": _MIXED,
    "qwen3_next": _MIXED,
    "recurrent_gemma": {"num_hidden_layers": 3, "block_types": ["recurrent", "recurrent", "attention"]},
}  # fmt: skip
# Too large however small their sizes, made of other parts (images, sound), or built like another that is here.
_LEFT_OUT = {
    "bigbird_pegasus", "blenderbot", "blenderbot-small", "camembert", "cpmant", "ctrl", "data2vec-text", "deepseek_v4",
    "ernie", "gpt-sw3", "inkling2_text", "inkling_text", "marian", "mbart", "megatron-bert", "minimax_m3_vl_text", "moshi",
    "mvp", "pegasus", "plbart", "rembert", "roberta-prelayernorm", "trocr", "whisper", "xlm-roberta", "xlm-roberta-xl",
}  # fmt: skip


def names() -> list[str]:
    """Every architecture that can be built small, and the forms of some."""
    known = [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind not in _LEFT_OUT]
    return sorted({*known, *FORMS})


def build(name: str) -> Any:
    """Return a model of random weights, or None if it cannot be built small."""
    kind = CONFIG_MAPPING[name.partition(" (")[0]]
    takes = set(inspect.signature(kind.__init__).parameters) | set(kind.attribute_map)
    takes |= set(getattr(kind, "__dataclass_fields__", {}))
    own = FORMS.get(name, {})
    settings = (
        own
        if "text_config" in own
        else {**{key: value for key, value in _SIZES.items() if key in takes}, **own}
    )
    try:
        config = kind(**settings)
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > 800_000:
            return None
        torch.manual_seed(zlib.crc32(name.encode()))
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        if hasattr(config, "rescale_every"):
            config.rescale_every = 0  # as `retune.models.load_base` does
        louder(model)
        with torch.no_grad():
            model(input_ids=torch.arange(4, 12)[None])
    except Exception:
        return None
    return model


def louder(model: nn.Module) -> None:
    """Make what a position does to others large enough to be seen: fresh weights do nearly nothing."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5)


def targets(model: nn.Module) -> list[str]:
    """Return the names of some linear layers to adapt, without the head."""
    head = model.get_output_embeddings()
    kinds, known = (nn.Linear, Conv1D), set(layer_names(model))
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if name in known and isinstance(module, kinds) and module is not head
    }
    return sorted(found - {"out_proj", "gate", "router", "lm_head"}) or sorted(found)
