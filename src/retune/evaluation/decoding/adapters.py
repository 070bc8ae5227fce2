"""Attaches adapters to a loaded base and removes them, after checking that they were trained on it."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retune import models
from retune.adapter import WEIGHTS

_LONGEST_HEADER = 100 << 20  # bytes, as safetensors' own reader takes
# Bytes of an element, by safetensors' names of data types; sizes of other types are not checked
_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1,
    "BOOL": 1,
}  # fmt: skip
_FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])(\.default)?\.weight")


_NESTED = tuple(
    f"{above}adapter_config.json"
    for above in ("adapter/", "*/adapter/", "trials/*/adapter/", "search-*/trials/*/adapter/")
)


def problems(name: str, folder: Path, base: Path) -> list[str]:
    """Return why the adapter in `folder` does not fit the base in `base`; no weights are read.

    The shapes of the adapter's factors are compared with those of the base's modules: names of bases differ between
    machines, shapes do not.
    """
    lacking = [file for file in ("adapter_config.json", WEIGHTS) if not (folder / file).is_file()]
    if lacking:
        old = (folder / "adapter_model.bin").is_file()
        hint = (
            "; load its adapter_model.bin with PEFT and save it again with `save_pretrained`" if old else ""
        )
        inside = next((path for depth in _NESTED for path in sorted(folder.glob(depth))), None)
        if inside:
            hint = f"; it holds others: name one, as {inside.parent}"
        return [
            f"{name}: an adapter folder must have adapter_config.json and {WEIGHTS}, but {folder} lacks {lacking}{hint}"
        ]
    try:
        settings = json.loads((folder / "adapter_config.json").read_bytes())
        shapes = tensor_shapes(folder / WEIGHTS)
    except (OSError, ValueError, RecursionError) as error:
        return [f"{name}: the adapter in {folder} cannot be read: {error}"]
    if not isinstance(settings, dict):
        return [f"{name}: {folder}/adapter_config.json holds settings by name, but it does not"]
    from retune.training import lora

    if refused := lora.unsupported(settings):
        return [f"{name}: {reason} ({folder})" for reason in refused]
    modules = _shapes(base)
    # The factors of QALoRA and BD-LoRA have other shapes
    blocks = settings.get("use_qalora") or settings.get("use_bdlora")
    replication = settings.get("layer_replication") or []
    layers = [layer for start, end in replication for layer in range(start, end)]
    wrong = []
    for key, shape in shapes.items():
        key = _in_base(key, layers)
        match = _FACTOR.fullmatch(key)
        if match is None:
            saved = key.removeprefix("base_model.model.").removesuffix(".weight").removesuffix(".base_layer")
            if len(shape) == 2 and len(modules.get(saved, ())) == 2 and tuple(shape) != modules[saved]:
                wrong.append(
                    f"it saved a {saved} of {shape[0]} x {shape[1]}, but the base's is {' x '.join(map(str, modules[saved]))}; "
                    "if tokens were added, name the base that was saved after `resize_token_embeddings`"
                )
            continue
        module = modules.get(match["module"].replace(".base_layer", ""))
        if module is None:
            wrong.append(f"the base has no module {match['module']!r}")
            continue
        if len(module) != 2 or blocks:
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


def _in_base(key: str, layers: Sequence[int]) -> str:
    """Return a tensor's name with the number of the base's layer that its own is a copy of (`layer_replication`).

    Args:
        layers: the base's layer of each of the adapter's; none if no layers are replicated.
    """

    def own(match: re.Match[str]) -> str:
        number = int(match[1])
        return f".{layers[number]}." if number < len(layers) else match[0]

    return re.sub(r"\.(\d+)\.", own, key, count=1)


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Return the shapes in a safetensors file, from its header alone.

    Raises:
        ValueError: if the file is truncated, not a safetensors file, or its header contradicts its content.

    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = file.read(min(length, _LONGEST_HEADER))
        if len(header) != length:
            raise ValueError(f"{path} is truncated in its header")
        tensors = {key: entry for key, entry in json.loads(header).items() if key != "__metadata__"}
        shapes = {key: list(entry["shape"]) for key, entry in tensors.items()}
        if any(type(size) is not int for shape in shapes.values() for size in shape):
            raise TypeError("a size must be a whole number")
        if any(len(entry["data_offsets"]) != 2 for entry in tensors.values()):
            raise TypeError("a tensor must have two offsets")
        unlike = [key for key, entry in tensors.items() if not _as_long_as_its_shape(entry)]
        spans = sorted((int(start), int(end)) for start, end in (e["data_offsets"] for e in tensors.values()))
    except (
        struct.error, json.JSONDecodeError, UnicodeDecodeError, RecursionError, AttributeError, KeyError, TypeError,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} does not begin with the header of a safetensors file") from error
    # Each tensor must begin where another ends: then the header covers the whole file, and nothing twice
    ends = [0, *(end for _, end in spans)]
    if [start for start, _ in spans] != ends[:-1] or any(
        size < 0 for sizes in shapes.values() for size in sizes
    ):
        raise ValueError(f"the tensors that the header of {path} tells of overlap or leave gaps")
    if unlike:
        raise ValueError(
            f"the header of {path} gives {unlike[0]!r} another number of bytes than its shape has"
        )
    expected = 8 + length + ends[-1]
    if path.stat().st_size != expected:
        raise ValueError(f"{path} holds {path.stat().st_size} bytes, but its header tells of {expected}")
    return shapes


def _as_long_as_its_shape(entry: dict[str, Any]) -> bool:
    start, end = entry["data_offsets"]
    size = _BYTES.get(entry["dtype"])
    return size is None or math.prod(entry["shape"]) * size == end - start


@contextmanager
def attached(model: Any, folder: Path | None) -> Iterator[Any]:
    """Yield the model with the adapter in `folder` attached (the bare base for None); detach it at the end."""
    if folder is None:
        yield model
        return
    from retune.training import lora

    with lora.loaded(model, folder) as tuned:
        yield tuned


def _shapes(base: Path) -> dict[str, tuple[int, ...]]:
    """Return (outputs, inputs) of every linear module of the base, () of all others, built without memory for weights."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    config = models.config_of(base)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        shape = tuple(weight.shape) if isinstance(weight, torch.Tensor) and weight.dim() == 2 else ()
        shapes[name] = shape[::-1] if isinstance(module, Conv1D) else shape
    return shapes
