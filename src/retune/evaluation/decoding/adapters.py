"""Adapters put on a loaded base and taken off again, and the check that they were made for it."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WEIGHTS = "adapter_model.safetensors"
_FACTOR = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])(\.default)?\.weight$")


def digest(folder: Path) -> str:
    """Return the digest of an adapter's weights and settings."""
    sha = hashlib.sha256()
    for name in ("adapter_config.json", WEIGHTS):
        sha.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return sha.hexdigest()[:16]


def problems(name: str, folder: Path, base: Path) -> list[str]:
    """Return why the adapter in `folder` cannot be put on the base in `base`; nothing large is read.

    The shapes of the adapter's factors are compared with those of the base's modules: names of bases differ between
    machines, shapes do not.
    """
    lacking = [file for file in ("adapter_config.json", WEIGHTS) if not (folder / file).is_file()]
    if lacking:
        return [
            f"{name}: an adapter folder holds adapter_config.json and {WEIGHTS}, but {folder} lacks {lacking}"
        ]
    try:
        settings = json.loads((folder / "adapter_config.json").read_bytes())
        shapes = tensor_shapes(folder / WEIGHTS)
    except (OSError, ValueError, struct.error) as error:
        return [f"{name}: the adapter in {folder} cannot be read: {error}"]
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        return [f"{name}: a LoRA adapter has peft_type 'LORA', but {folder}/adapter_config.json does not"]
    modules = _linear_shapes(base)
    wrong = []
    for key, shape in shapes.items():
        match = _FACTOR.match(key)
        if match is None:
            continue
        module = modules.get(match["module"])
        if module is None:
            wrong.append(f"the base has no module {match['module']!r}")
            continue
        size, side = (shape[1], module[1]) if match["factor"] == "A" else (shape[0], module[0])
        if size != side:
            wrong.append(
                f"{match['module']}: lora_{match['factor']} fits {size} features, but the base has {side}"
            )
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return [f"{name}: the adapter in {folder} was made for another base than {base}: {wrong[0]}{more}"]
    return []


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Return the shapes in a safetensors file, from its header alone.

    Raises:
        ValueError, struct.error: if the file is cut off or no safetensors file.

    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = file.read(min(length, 100 << 20))
        if len(header) != length:
            raise ValueError(f"{path} is cut off in its header")
        tensors = {key: entry for key, entry in json.loads(header).items() if key != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if path.stat().st_size != 8 + length + end:
        raise ValueError(
            f"{path} holds {path.stat().st_size} bytes, but its header tells of {8 + length + end}"
        )
    return {key: entry["shape"] for key, entry in tensors.items()}


@contextmanager
def attached(model: Any, folder: Path | None) -> Iterator[Any]:
    """Give the model with the adapter in `folder` on it (the bare base for None); it is taken off at the end."""
    if folder is None:
        yield model
        return
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(model, str(folder)).eval()
    try:
        yield tuned
    finally:
        tuned.unload()


def _linear_shapes(base: Path) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of every linear module of the base, built without memory for its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    return {
        name: (module.weight.shape[0], module.weight.shape[1])
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None and module.weight.dim() == 2
    }
