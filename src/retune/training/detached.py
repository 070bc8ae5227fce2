"""A LoRA adapter away from its base, so that those of several trials can compute on one base at once.

It begins as PEFT makes it (same draws, same names) and is saved as PEFT saves it. In between its matrices are lent to the base's
layers for a pass (`retune.training.lora_linear.lend`).
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
from retune.training.dropout import Draws
from retune.training.inits import Records
from retune.training.lora_linear import Weights


class CannotShare(Exception):
    """The base, or the kind of adapter, allows only one trial at a time; the message says why."""


@dataclass(frozen=True)
class Adapter:
    """The adapter of one trial.

    Attributes:
        config: PEFT's settings.
        named: what is trained, under PEFT's names and in PEFT's order.
        saved: the name in the adapter's file of each of them.
        layers: by the name of the base's layer: the names of A and B, and the scale.
        dropout: of its input, in training.
    """

    config: Any
    named: dict[str, nn.Parameter]
    saved: dict[str, str]
    layers: dict[str, tuple[str, str, float]]
    dropout: float

    def on(self, layer: str, module: nn.Linear, draws: Draws | None) -> Weights:
        """Return the named layer of the base with this adapter; bare, if it has nothing there.

        Args:
            layer, module: of the base.
            draws: where dropout draws from; None for evaluation, without dropout.
        """
        if layer not in self.layers:
            return Weights(module.weight, module.bias)
        a, b, scale = self.layers[layer]
        dropout = self.dropout if draws else 0.0
        return Weights(module.weight, module.bias, self.named[a], self.named[b], scale, dropout, draws)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what is trained, as a module does."""
        yield from self.named.items()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what is trained, as a module does."""
        yield from self.named.values()

    def train(self) -> None:
        """Do nothing: whether dropout is on is said for each pass."""

    def files(self) -> dict[str, bytes]:
        """Return the two files of the adapter, as `retune.training.lora.files` does."""
        weights: dict[str, Tensor] = {
            self.saved[name]: parameter.detach().cpu().contiguous() for name, parameter in self.named.items()
        }
        return lora.packed(self.config, dict(sorted(weights.items())), nn.Module())


def new(
    base: nn.Module,
    chosen: Training,
    base_name: str,
    seed: int,
    revision: str | None = None,
    records: Records | None = None,
) -> Adapter:
    """Return a new adapter; the arguments are those of `retune.training.lora.adapted`. The base is untouched.

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
                read = lora_linear.read(module)
                if not isinstance(read, Weights) or read.a is None or read.b is None:
                    raise CannotShare(f"the adapter on {layer} is of the kind {type(module).__name__}")
                layers[layer] = names[id(read.a)], names[id(read.b)], read.scale
        if extra := sorted(set(named) - {name for a, b, _ in layers.values() for name in (a, b)}):
            raise CannotShare(f"more is trained than the adapter's A and B: {extra[0]}")
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        places = {tensor.data_ptr(): name for name, tensor in state.items()}
        saved = {name: places[parameter.data_ptr()] for name, parameter in named.items()}
        if len(saved) != len(state):
            raise CannotShare("the adapter's file holds more than what is trained")
        config = model.peft_config["default"]
    return Adapter(config, named, saved, layers, chosen.dropout)


def reason_alone(core: Any) -> str:
    """Return why no two trials can share a pass over a transformers model; empty if nothing is known against it."""
    if core.dtype == torch.float16:
        return "the base is in float16, whose gradients are scaled by trial"
    if getattr(core, "quantization_method", None) is not None or getattr(core, "is_quantized", False):
        return "the base is quantised"
    for name, value in core.config.get_text_config().to_dict().items():
        if isinstance(value, float | int) and value > 0 and ("drop" in name or "jitter" in name):
            return f"the base itself draws at random (`{name}` of its config is {value:g})"
    return ""
