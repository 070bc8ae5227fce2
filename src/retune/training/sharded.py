"""Loads a base sharded over processes (FSDP2).

The model is built without memory for its weights (torch's device `meta`), its layers are sharded, and each process then reads
its own rows of every weight from the safetensors files. If the names in the files differ from the model's (transformers then
converts the weights while loading), the base is read on the CPU and moved layer by layer. In both cases a GPU holds its shards
and one layer, never the whole base.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from retune import models
from retune.training import recompute

_INDEX = "model.safetensors.index.json"


def load(folder: Path, dtype: torch.dtype, attention: str | None, mesh: DeviceMesh) -> Any:
    """Return the transformers model in a folder, frozen and sharded.

    Args:
        folder: of the base. dtype: of the weights. attention: transformers' implementation; None for its default.
        mesh: the processes, in one dimension.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):  # buffers are not in the files but computed
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
    model.tie_weights()
    files = _files(folder)
    names = _names(model)
    if not set(names.values()) <= set(files) or any(True for _ in _kept_buffers(model)):
        return _shard(models.read_model(folder, dtype, attention).requires_grad_(False), mesh)
    _shard(model.requires_grad_(False), mesh)
    model.load_state_dict(_shards(model, names, files, mesh), strict=True, assign=True)
    return model


def _shard(model: Any, mesh: DeviceMesh) -> Any:
    from torch.distributed.fsdp import fully_shard

    for layer in recompute.layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _names(model: nn.Module) -> dict[str, str]:
    """Return for each parameter the name of its weight in the files; tied parameters share the name of the first."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(parameter), name)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def _kept_buffers(model: nn.Module) -> Any:
    """Yield the names of buffers that belong to the checkpoint."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return (name for name in model.state_dict() if name not in names)


def _files(folder: Path) -> dict[str, Path]:
    """Return which file holds each weight."""
    from safetensors import safe_open

    if (folder / _INDEX).is_file():
        where = json.loads((folder / _INDEX).read_text())["weight_map"]
        return {name: folder / file for name, file in where.items()}
    single = folder / "model.safetensors"
    if not single.is_file():
        return {}
    with safe_open(single, framework="pt") as file:
        return dict.fromkeys(file.keys(), single)


def _shards(
    model: nn.Module, names: dict[str, str], files: dict[str, Path], mesh: DeviceMesh
) -> dict[str, nn.Parameter]:
    """Return this process's rows of each weight, as the model wants them."""
    from safetensors import safe_open
    from torch.distributed.tensor import DTensor, Shard

    opened = {path: safe_open(path, framework="pt") for path in set(files.values())}
    shards: dict[str, nn.Parameter] = {}
    for name, wanted in model.state_dict().items():
        source = names[name]
        if source not in shards:
            part = opened[files[source]].get_slice(source)  # type: ignore[no-untyped-call]
            if tuple(part.get_shape()) != tuple(wanted.shape):
                raise ValueError(
                    f"{source} in {files[source]} must have the shape {tuple(wanted.shape)}, but has {part.get_shape()}"
                )
            # Rounded up, as `torch.chunk`, and with it FSDP, splits
            rows = -(-wanted.shape[0] // mesh.size())
            start = min(mesh.get_local_rank() * rows, wanted.shape[0])
            mine: Tensor = part[start : min(start + rows, wanted.shape[0])]
            mine = mine.to(device=mesh.device_type, dtype=wanted.dtype).contiguous()
            spread = DTensor.from_local(
                mine, mesh, [Shard(0)], run_check=False, shape=wanted.shape, stride=wanted.stride()
            )
            shards[source] = nn.Parameter(spread, requires_grad=False)
        shards[name] = shards[source]
    return {name: shards[name] for name in names}
