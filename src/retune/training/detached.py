"""A LoRA adapter that is kept apart from its base, so that the adapters of several trials can share one base.

PEFT creates it (with the same random numbers and names as usual), and it is saved as PEFT saves it. In between its matrices are
attached to the base's layers for each pass (`retune.training.lora_linear.attach`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retune.study import Training
from retune.study.training import EDITING
from retune.training import lora, lora_linear
from retune.training.dropout import DropoutSource
from retune.training.inits import FirstRecords
from retune.training.lora_linear import Weights


class CannotShare(Exception):
    """The base, or the kind of adapter, allows only one trial at a time; the message says why."""


@dataclass(frozen=True)
class Adapter:
    """The adapter of one trial.

    Attributes:
        config: PEFT's settings.
        named: the trained parameters, under PEFT's names and in PEFT's order.
        saved: their names in the adapter's file.
        layers: by the name of the base's layer: the names of A and B, and the scale.
        dropout: probability on its input, in training.
    """

    config: Any
    named: dict[str, nn.Parameter]
    saved: dict[str, str]
    layers: dict[str, tuple[str, str, float]]
    dropout: float

    def on(self, layer: str, module: nn.Linear, source: DropoutSource | None) -> Weights:
        """Return a layer of the base with this adapter, or without one if the adapter has nothing on this layer.

        Args:
            layer: the name of the base's layer. module: the layer.
            draws: where dropout draws from; None for evaluation, without dropout.
        """
        if layer not in self.layers:
            return Weights(module.weight, module.bias)
        a, b, scale = self.layers[layer]
        dropout = self.dropout if source else 0.0
        return Weights(module.weight, module.bias, self.named[a], self.named[b], scale, dropout, source)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what is trained, as a module does."""
        yield from self.named.items()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what is trained, as a module does."""
        yield from self.named.values()

    def train(self) -> None:
        """Do nothing: each pass decides on dropout (`on`)."""

    def files(self) -> dict[str, bytes]:
        """Return the two files of the adapter, as `retune.training.lora.files` does."""
        weights: dict[str, Tensor] = {
            self.saved[name]: parameter.detach().cpu().contiguous() for name, parameter in self.named.items()
        }
        return lora.to_files(self.config, dict(sorted(weights.items())), nn.Module())


def new_adapter(
    base: nn.Module,
    chosen: Training,
    base_name: str,
    seed: int,
    revision: str | None = None,
    records: FirstRecords | None = None,
) -> Adapter:
    """Return a new adapter, leaving the base unchanged; the arguments are those of `retune.training.lora.adapted`.

    Raises:
        CannotShare: if the adapter is more than A and B beside plain linear layers.
        InputError: as `adapted`.
    """
    from peft import get_peft_model_state_dict
    from peft.tuners.lora.layer import LoraLayer

    if chosen.init in EDITING:
        raise CannotShare(f"`init: {chosen.init}` edits the base's weights")
    if chosen.variant == "dora":
        raise CannotShare("`variant: dora` scales each row of the base's matrices")
    with lora.adapted(base, chosen, base_name, seed, revision, records) as model:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        names = {id(parameter): name for name, parameter in named.items()}
        layers: dict[str, tuple[str, str, float]] = {}
        for layer, module in model.get_base_model().named_modules():
            if isinstance(module, LoraLayer):
                weights = lora_linear.weights_of(module)
                if not isinstance(weights, Weights) or weights.a is None or weights.b is None:
                    raise CannotShare(f"the adapter on {layer} is of the kind {type(module).__name__}")
                layers[layer] = names[id(weights.a)], names[id(weights.b)], weights.scale
        if extra := sorted(set(named) - {name for a, b, _ in layers.values() for name in (a, b)}):
            raise CannotShare(f"more is trained than the adapter's A and B: {extra[0]}")
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        # PEFT's names in the file are matched by the memory of the tensors: their spelling differs between releases.
        file_names = {tensor.data_ptr(): name for name, tensor in state.items()}
        saved = {name: file_names[parameter.data_ptr()] for name, parameter in named.items()}
        if len(saved) != len(state):
            raise CannotShare("the adapter's file holds more than what is trained")
        config = model.peft_config["default"]
    return Adapter(config, named, saved, layers, chosen.dropout)


def unshareable_reason(core: Any) -> str:
    """Return why trials cannot share passes over a transformers model; empty if its config shows no reason."""
    if core.dtype == torch.float16:
        return "the base is in float16, whose gradients are scaled by trial"
    if getattr(core, "quantization_method", None) is not None or getattr(core, "is_quantized", False):
        return "the base is quantised"
    for name, value in core.config.get_text_config().to_dict().items():
        if isinstance(value, float | int) and value > 0 and ("drop" in name or "jitter" in name):
            return f"the base itself draws at random (`{name}` of its config is {value:g})"
    return ""
