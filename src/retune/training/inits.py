"""Initialisations of an adapter, by PEFT: random, from the base's own weights, or from the first training records.

PiSSA (Meng et al. 2024), OLoRA (Büyükakyüz 2024) and LoRA-GA (Wang et al. 2024) subtract the new adapter from the base's
weights W, so that the model starts as the base: W' = W - s B0 A0. Such an adapter is saved as a plain one for W, of twice
the rank: s B A - s B0 A0 = s [B, -B0] [A; A0]. To load it, neither the initialisation nor another base is needed.
EVA (Paischer et al. 2024) takes A from the inputs of each layer; LoRA-GA takes A and B from the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retune.data.batches import epoch_batches
from retune.data.tokens import Tokens
from retune.errors import InputError
from retune.study.training import EDITING, FROM_DATA

_MAX_RECORDS = 32  # that an initialisation reads
_PEFT = {"default": True, "lora-ga": "lora_ga"}
_INITIAL = "_retune_began"


@dataclass(frozen=True)
class FirstRecords:
    """The records that a training begins with, in the order of its first epoch.

    Attributes:
        tokens: the training data. batch_size: records per step. seed: of the trial, which decides the order.
    """

    tokens: Tokens
    batch_size: int
    seed: int

    def inputs(self, device: torch.device) -> list[dict[str, Tensor]]:
        """Return inputs of transformers' forward, one record each, shape ``(1, tokens)``."""
        order = [r for batch in epoch_batches(len(self.tokens), self.batch_size, self.seed, 0) for r in batch]
        inputs = []
        for record in order[:_MAX_RECORDS]:
            start, end = int(self.tokens.offsets[record]), int(self.tokens.offsets[record + 1])
            ids = torch.as_tensor(self.tokens.ids[start:end], dtype=torch.long, device=device)[None]
            counted = torch.as_tensor(self.tokens.counted[start:end], dtype=torch.bool, device=device)[None]
            labels = torch.where(counted, ids, -100)
            inputs.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
        return inputs


def peft_options(init: str) -> dict[str, Any]:
    """Return the arguments of PEFT's `LoraConfig` for an initialisation."""
    from peft import EvaConfig
    from peft.tuners.lora.config import LoraGAConfig

    more: dict[str, Any] = {}
    if init == "eva":
        more = {"eva_config": EvaConfig(rho=1.0)}  # 1 turns off EVA's redistribution of ranks over layers
    if init == "lora-ga":
        more = {"lora_ga_config": LoraGAConfig()}
    return {"init_lora_weights": _PEFT.get(init, init), **more}


def prepare(base: nn.Module, config: Any, init: str, records: FirstRecords | None) -> None:
    """Do what an initialisation needs before PEFT adds the adapter: compute LoRA-GA's gradients.

    Raises:
        InputError: if the initialisation reads records and there are none.
    """
    if init in FROM_DATA and records is None:
        raise InputError(f"`init: {init}` needs training records, but none are given here", "training")
    if init != "lora-ga" or records is None:
        return
    from peft.tuners.lora.loraga import preprocess_loraga

    device = next(base.parameters()).device

    def step() -> None:
        for one in records.inputs(device):
            # Without a counted token the mean loss would be 0 / 0, and NaN would spoil the sum of the gradients
            if bool((one["labels"][:, 1:] != -100).any()):
                base(**one).loss.backward()

    preprocess_loraga(base, config, step)


def finish(model: Any, init: str, records: FirstRecords | None) -> None:
    """Do what an initialisation needs after PEFT added the adapter: set EVA's A, or keep A0 and B0 for `to_plain_adapter`."""
    if init == "eva" and records is not None:
        from peft import initialize_lora_eva_weights

        inputs = records.inputs(next(model.parameters()).device)
        training = model.training
        initialize_lora_eva_weights(
            model,
            [{k: v for k, v in one.items() if k != "labels"} for one in inputs],
            gather_distributed_inputs=False,
            show_progress_bar=False,
        )
        model.train(training)
    if init in EDITING:
        for layer in _layers(model):
            initial = {
                part: getattr(layer, part)["default"].weight.detach().clone() for part in ("lora_A", "lora_B")
            }
            setattr(layer, _INITIAL, initial)


def edited(model: Any) -> list[Tensor]:
    """Return the weights of the base that an initialisation has edited."""
    return [layer.get_base_layer().weight for layer in _layers(model)]


def _layers(model: Any) -> Iterator[Any]:
    return (module for module in model.modules() if hasattr(module, "lora_A") and len(module.lora_A))


def to_plain_adapter(
    model: Any, tensors: dict[str, Tensor], content: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an adapter's tensors and settings as those of a plain one for the unedited base (see the top of this file).

    Args:
        model: with the adapter. tensors: of the adapter, under PEFT's names. content: of adapter_config.json.
    """
    content = dict(content)
    # It is done; PEFT would ask for data again when it loads the adapter
    if content.get("init_lora_weights") == "eva":
        content |= {"init_lora_weights": True, "eva_config": None}
    initial = {name: getattr(m, _INITIAL) for name, m in model.named_modules() if hasattr(m, _INITIAL)}
    if not initial:
        return tensors, content
    rank, plain = content["r"], dict(tensors)
    for name, parts in initial.items():
        for part, along, sign in (("lora_A", 0, 1.0), ("lora_B", 1, -1.0)):
            key = f"{name}.{part}.weight"
            pair = [_padded(tensors[key], rank, along), _padded(sign * parts[part].cpu(), rank, along)]
            plain[key] = torch.cat(pair, dim=along).to(tensors[key].dtype).contiguous()
    # The scale is alpha / r, or alpha / sqrt(r) with rsLoRA. It must stay the same with twice the rank.
    factor = math.sqrt(2) if content["use_rslora"] else 2.0
    content |= {"r": 2 * rank, "lora_alpha": factor * content["lora_alpha"], "init_lora_weights": True}
    return plain, content | {"lora_ga_config": None}


def _padded(tensor: Tensor, rank: int, along: int) -> Tensor:
    """Return A or B padded with zeros to `rank`: a layer with fewer features than that has a smaller factor."""
    lacking = list(tensor.shape)
    lacking[along] = rank - tensor.shape[along]
    return torch.cat([tensor, tensor.new_zeros(lacking)], dim=along) if lacking[along] else tensor
