"""How an adapter begins, by PEFT: at random, along the base's own weights, or from the first training records.

PiSSA (Meng et al. 2024), OLoRA (Büyükakyüz 2024) and LoRA-GA (Wang et al. 2024) subtract the new adapter from the base's
weights W, so that the model begins as the base: W' = W - s B0 A0. Such an adapter is saved as a plain one for W, of twice
the rank: s B A - s B0 A0 = s [B, -B0] [A; A0]. Whoever loads it needs neither the initialisation nor another base.
EVA (Paischer et al. 2024) takes A from the inputs of each layer, LoRA-GA both from the gradients.
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

_READ = 32  # records that an initialisation reads at most
_PEFT = {"default": True, "lora-ga": "lora_ga"}
_BEGAN = "_retune_began"


@dataclass(frozen=True)
class Records:
    """The records that a training begins with: those of its first epoch, in its order."""

    tokens: Tokens
    batch_size: int
    seed: int

    def inputs(self, device: torch.device) -> list[dict[str, Tensor]]:
        """Return inputs of transformers' forward, one record each, shape ``(1, tokens)``."""
        order = [r for batch in epoch_batches(len(self.tokens), self.batch_size, self.seed, 0) for r in batch]
        found = []
        for record in order[:_READ]:
            start, end = int(self.tokens.offsets[record]), int(self.tokens.offsets[record + 1])
            ids = torch.as_tensor(self.tokens.ids[start:end], dtype=torch.long, device=device)[None]
            counted = torch.as_tensor(self.tokens.counted[start:end], dtype=torch.bool, device=device)[None]
            labels = torch.where(counted, ids, -100)
            found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
        return found


def settings(init: str) -> dict[str, Any]:
    """Return what PEFT's LoraConfig is told of an initialisation."""
    from peft import EvaConfig
    from peft.tuners.lora.config import LoraGAConfig

    more: dict[str, Any] = {}
    if init == "eva":
        more = {"eva_config": EvaConfig(rho=1.0)}  # 1: each layer keeps its rank
    if init == "lora-ga":
        more = {"lora_ga_config": LoraGAConfig()}
    return {"init_lora_weights": _PEFT.get(init, init), **more}


def prepare(base: nn.Module, config: Any, init: str, records: Records | None) -> None:
    """Do what comes before PEFT puts the adapter on: LoRA-GA's gradients.

    Raises:
        InputError: if the initialisation reads records and has none, or the installed PEFT has it not.
    """
    if init in FROM_DATA and records is None:
        raise InputError(f"`init: {init}` reads training records, but has none here", "training")
    if init != "lora-ga" or records is None:
        return
    from peft.tuners.lora.loraga import preprocess_loraga

    device = next(base.parameters()).device

    def step() -> None:
        for one in records.inputs(device):
            if bool((one["labels"][:, 1:] != -100).any()):
                base(**one).loss.backward()

    preprocess_loraga(base, config, step)


def finish(model: Any, init: str, records: Records | None) -> None:
    """Do what comes after PEFT put the adapter on: EVA's vectors; and note where an adapter that edited the base began."""
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
            began = {
                part: getattr(layer, part)["default"].weight.detach().clone() for part in ("lora_A", "lora_B")
            }
            setattr(layer, _BEGAN, began)


def edited(model: Any) -> list[Tensor]:
    """Return the weights of the base that an initialisation has edited."""
    return [layer.get_base_layer().weight for layer in _layers(model)]


def _layers(model: Any) -> Iterator[Any]:
    return (module for module in model.modules() if hasattr(module, "lora_A") and len(module.lora_A))


def plain(
    model: Any, tensors: dict[str, Tensor], content: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an adapter's tensors and settings as those of a plain one for the base as it was before.

    Args:
        model: with the adapter on. tensors: under PEFT's names. content: of adapter_config.json.
    """
    content = dict(content)
    if content.get("init_lora_weights") == "eva":  # done; read again it would ask for data
        content |= {"init_lora_weights": True, "eva_config": None}
    began = {name: getattr(m, _BEGAN) for name, m in model.named_modules() if hasattr(m, _BEGAN)}
    if not began:
        return tensors, content
    rank, found = content["r"], dict(tensors)
    for name, parts in began.items():
        for part, along, sign in (("lora_A", 0, 1.0), ("lora_B", 1, -1.0)):
            key = f"{name}.{part}.weight"
            pair = [_padded(tensors[key], rank, along), _padded(sign * parts[part].cpu(), rank, along)]
            found[key] = torch.cat(pair, dim=along).to(tensors[key].dtype).contiguous()
    factor = math.sqrt(2) if content["use_rslora"] else 2.0
    content |= {"r": 2 * rank, "lora_alpha": factor * content["lora_alpha"], "init_lora_weights": True}
    return found, content | {"lora_ga_config": None}


def _padded(tensor: Tensor, rank: int, along: int) -> Tensor:
    """Return a factor with zeros up to `rank`: a layer smaller than that has fewer directions."""
    lacking = list(tensor.shape)
    lacking[along] = rank - tensor.shape[along]
    return torch.cat([tensor, tensor.new_zeros(lacking)], dim=along) if lacking[along] else tensor
