"""LoRA adapters on a base model that stays loaded: put in, take out, save, load.

Weights and files are PEFT's own, so that ``PeftModel.from_pretrained`` loads what a trial saved. Taking an adapter out
puts the very modules back that were there before, so the next trial starts from the untouched base.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retune.errors import InputError
from retune.records import digest
from retune.space import Value
from retune.study import TUNABLE, Training

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Setting:
    """The hyper-parameters of one trial."""

    rank: int
    alpha: float
    dropout: float
    learning_rate: float
    weight_decay: float


def setting(training: Training, assignment: Mapping[str, Value]) -> Setting:
    """Return the assignment's values, and the study's own for what it leaves out.

    Raises:
        InputError: naming every value that cannot be trained with.
    """
    problems = [
        f"a trial can tune {list(TUNABLE)}, but got {name!r}" for name in assignment if name not in TUNABLE
    ]
    values: dict[str, float] = {}
    for name in TUNABLE:
        given = assignment.get(name, getattr(training, name))
        try:
            values[name] = float(given)
        except ValueError:
            problems.append(f"`{name}` must be a number, but got {given!r}")
            continue
        if not math.isfinite(values[name]):
            problems.append(f"`{name}` must be finite, but got {given!r}")
    rules: dict[str, tuple[str, Callable[[float], bool]]] = {
        "rank": ("a whole number above 0", lambda v: v == int(v) and v > 0),
        "alpha": ("above 0", lambda v: v > 0),
        "dropout": ("at least 0 and below 1", lambda v: 0 <= v < 1),
        "learning_rate": ("above 0", lambda v: v > 0),
        "weight_decay": ("at least 0", lambda v: v >= 0),
    }
    for name, (rule, holds) in rules.items():
        if name in values and math.isfinite(values[name]) and not holds(values[name]):
            problems.append(f"`{name}` must be {rule}, but got {values[name]:g}")
    if problems:
        raise InputError(problems, "assignment")
    return Setting(int(values.pop("rank")), **values)


def target_names(base: nn.Module, target_modules: list[str]) -> list[str]:
    """Return the full names of the modules that get an adapter.

    Raises:
        InputError: if a name matches no linear layer, with the names there are.
    """
    linear = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    found = [name for name in linear if any(name == t or name.endswith(f".{t}") for t in target_modules)]
    lacking = [t for t in target_modules if not any(name == t or name.endswith(f".{t}") for name in found)]
    if lacking:
        known = sorted({name.rpartition(".")[2] for name in linear})
        raise InputError(
            f"`target_modules` must name linear layers of the model {known}, but got {lacking}", "training"
        )
    return found


@contextmanager
def _restored(base: nn.Module, names: list[str]) -> Iterator[None]:
    """Put the named modules back at the end, however the block ends, and the flags PEFT sets."""
    originals = {name: base.get_submodule(name) for name in names}
    training = base.training
    known = set(vars(base))
    try:
        yield
    finally:
        for name, module in originals.items():
            parent, _, leaf = name.rpartition(".")
            setattr(base.get_submodule(parent), leaf, module)
        for extra in set(vars(base)) - known:
            delattr(base, extra)
        base.requires_grad_(False)
        base.train(training)


@contextmanager
def adapted(
    base: nn.Module, chosen: Setting, target_modules: list[str], base_name: str, seed: int
) -> Iterator[Any]:
    """Yield the base with a new LoRA adapter (A random by `seed`, B zero, float32), trainable; takes it out at the end.

    Raises:
        InputError: if `target_modules` does not fit the model.
    """
    from peft import LoraConfig, get_peft_model

    names = target_names(base, target_modules)
    config = LoraConfig(
        r=chosen.rank,
        lora_alpha=chosen.alpha,
        lora_dropout=chosen.dropout,
        target_modules=list(target_modules),
        task_type="CAUSAL_LM",
    )
    with _restored(base, names):
        torch.manual_seed(seed)
        model = get_peft_model(base, config, autocast_adapter_dtype=True)
        config.base_model_name_or_path = base_name  # PEFT put the local folder there
        yield model


@contextmanager
def loaded(base: nn.Module, folder: Path) -> Iterator[Any]:
    """Yield the base with the adapter saved in `folder`, for inference; takes it out at the end.

    Raises:
        InputError: if the folder holds no adapter, or one of another base model.
    """
    from peft import PeftModel

    try:
        content = json.loads((folder / CONFIG).read_text())
        names = target_names(base, list(content["target_modules"]))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"an adapter folder holds {CONFIG} and {WEIGHTS}, but {folder} does not: {error}"
        ) from error
    with _restored(base, names):
        try:
            model = PeftModel.from_pretrained(base, folder)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"the adapter in {folder} does not fit the base model: {error}") from error
        yield model


def weights(model: Any) -> dict[str, Tensor]:
    """Return the adapter's weights under PEFT's names, on the CPU, sorted by name."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: state[name].detach().cpu().contiguous() for name in sorted(state)}


def files(model: Any) -> dict[str, bytes]:
    """Return the two files of the adapter; the same weights and setting give the same bytes."""
    from safetensors.torch import save

    config = model.peft_config["default"]
    before, config.inference_mode = config.inference_mode, True
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        content = json.loads(Path(folder, CONFIG).read_text())
    config.inference_mode = before
    content["target_modules"] = sorted(
        content["target_modules"]
    )  # PEFT keeps a set: its order differs by process
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    return {WEIGHTS: save(weights(model), metadata={"format": "pt"}), CONFIG: text.encode()}


def weights_digest(data: bytes) -> str:
    """Return the digest of an adapter's weights file."""
    return digest(data)
