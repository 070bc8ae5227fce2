"""What the check needs of a base: its layers, context and vocabulary size, from its files alone if possible.

Importing torch and transformers' models takes seconds. For bases of Llama's architecture and its like, which most are, the
shapes in the headers of their safetensors files and their config.json suffice. Any other base is built without weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retune import models
from retune.errors import InputError
from retune.evaluation.decoding.adapters import tensor_shapes

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_ROTARY = ("default", "llama3")
_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
_TABLES = ("model.embed_tokens", "lm_head")
_MAX_LAYERS = 10_000  # building more, even without weights, takes minutes


@dataclass(frozen=True)
class BaseFacts:
    """Properties of a base.

    Attributes:
        layers: the full names of the layers that can have an adapter, in the model's order.
        context: its longest input in tokens; None if the config has no limit. rows: of the embedding matrix.
    """

    layers: list[str]
    context: int | None
    rows: int


def read(base: Path) -> BaseFacts:
    """Return the properties of the base in a folder.

    Raises:
        InputError: if no model can be built from its config.json, or its weights are damaged.
    """
    try:
        facts = _from_files(base)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        facts = None  # another architecture, or damaged; then `_from_model` raises an error that says what is wrong
    if facts is None:
        facts = _from_model(base)
        _require_weights(base)
    return facts


def _require_weights(base: Path) -> None:
    """Raise InputError if there are no weights, or the header of a safetensors file shows that it is damaged."""
    problems = []
    for file in sorted(base.glob("*.safetensors")):
        try:
            tensor_shapes(file)
        except (OSError, ValueError) as error:
            problems.append(str(error))
    if not any(base.glob("*.safetensors")) and not any(base.glob("pytorch_model*.bin")):
        problems.append(
            f"a base model folder must have *.safetensors or pytorch_model*.bin, but {base} has neither"
        )
    if problems:
        raise InputError(problems, "model.base")


def _from_files(base: Path) -> BaseFacts | None:
    """Return the properties from the files; None unless the weights are exactly those of Llama's architecture."""
    config = json.loads((base / "config.json").read_text())
    kind = config["model_type"]
    if (
        config["architectures"] != [_ARCHITECTURES.get(kind)]
        or "auto_map" in config
        or "quantization_config" in config
    ):
        return None
    rotary = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if config["hidden_act"] != "silu" or rotary.get("rope_type", "default") not in _ROTARY:
        return None  # not known here; building the model will show it
    shapes: dict[str, list[int]] = {}
    for file in sorted(base.glob("model*.safetensors")):
        shapes |= tensor_shapes(file)
    layers = [
        f"model.layers.{number}.{part}.{name}"
        for number in range(config["num_hidden_layers"])
        for part, names in (("self_attn", _ATTENTION), ("mlp", _MLP))
        for name in names
    ]
    tables = [name for name in _TABLES if f"{name}.weight" in shapes]
    matrices = {name for name, shape in shapes.items() if len(shape) > 1}
    if matrices != {f"{name}.weight" for name in (*layers, *tables)}:
        return None
    rows = shapes["model.embed_tokens.weight"][0]
    wrong = [name for name in layers if not _fits(name, shapes[f"{name}.weight"], config)]
    if rows != config["vocab_size"] or wrong:
        name = wrong[0] if wrong else "model.embed_tokens"
        raise InputError(
            f"the shapes of the weights must be those of config.json, but {name}.weight is "
            f"{' x '.join(map(str, shapes[f'{name}.weight']))} in {base}",
            "model.base",
        )
    return BaseFacts([_TABLES[0], *layers, _TABLES[1]], config.get("max_position_embeddings"), rows)


def _fits(name: str, shape: list[int], config: dict[str, Any]) -> bool:
    """Return whether a layer's shape, (outputs, inputs), is what config.json asks for."""
    hidden, middle, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    expected = {
        "q_proj": [heads * width, hidden],
        "o_proj": [hidden, heads * width],
        "gate_proj": [middle, hidden],
        "up_proj": [middle, hidden],
        "down_proj": [hidden, middle],
    }
    shared = [(config.get("num_key_value_heads") or heads) * width, hidden]
    return shape == expected.get(name.rpartition(".")[2], shared)


def _from_model(base: Path) -> BaseFacts:
    import torch
    from transformers import AutoModelForCausalLM

    from retune.training.targets import layer_names

    config = models.config_of(base)
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > _MAX_LAYERS:
        raise InputError(
            f"`num_hidden_layers` must be at most {_MAX_LAYERS:,}, but is {layers:,}", "model.base"
        )
    try:
        with torch.device("meta"):  # shapes and names, without memory for the weights
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"the base cannot be built from its config.json: {error}", "model.base") from error
    return BaseFacts(
        layer_names(model), models.context(model.config), model.get_input_embeddings().weight.shape[0]
    )
