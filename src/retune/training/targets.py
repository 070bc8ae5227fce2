"""Selects the layers that get an adapter, by PEFT's rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from retune.errors import InputError, nearest
from retune.study import Training
from retune.study.training import GROUPS

ALL_LINEAR = "all-linear"


def target_names(base: Any, training: Training) -> list[str]:
    """Return the full names of the modules that get an adapter: `target_modules` of the blocks in the layer range.

    Args:
        base: a causal language model.
        training: its `target_modules` are last parts of names; or a group of `retune.study.training.GROUPS`; or a
            regular expression that must match a whole name. `excluded_modules` are never included.

    Raises:
        InputError: if a name, or the expression, matches no layer that can have an adapter, with the available names;
            or if no block is in the range.
    """
    targets = training.target_modules
    names = named(_linear(base) if targets in GROUPS else layer_names(base), targets)
    return in_range(names, layer_names(base), training.first_layer, training.last_layer)


def peft_targets(base: Any, training: Training) -> list[str] | str:
    """Return `target_modules` for PEFT's config: as given, if PEFT selects the same layers by it, else their full names.

    PEFT looks at all modules, not at layers alone: the same name may be that of a layer and of a block elsewhere.
    """
    names, targets = target_names(base, training), training.target_modules
    if targets in GROUPS[1:] or set(_matched(base, targets)) != set(names):
        return names
    if isinstance(targets, str):
        return names if _rewritten_by_peft(base, targets) else targets
    return list(targets)


def _matched(base: Any, targets: Sequence[str] | str) -> list[str]:
    """Return the names of all modules that PEFT would select for `all-linear`, a list of names or an expression."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    excluded = excluded_modules(base)
    names = [name for name, _ in base.named_modules() if not (excluded and re.fullmatch(excluded, name))]
    if targets == ALL_LINEAR:
        head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
        modules = dict(base.named_modules())
        return [n for n in names if isinstance(modules[n], nn.Linear | Conv1D) and modules[n] is not head]
    if isinstance(targets, str):
        return [name for name in names if re.fullmatch(targets, name)]
    return [name for name in names if any(name == t or name.endswith(f".{t}") for t in targets)]


def in_range(names: Sequence[str], layers: Sequence[str], first: int, last: int) -> list[str]:
    """Return those of `names` in the blocks `first` to `last`, counted from 0, or from the end where below 0.

    Args:
        names: full names of layers. layers: those of all layers of the model.

    Raises:
        InputError: if the range is not one of the model's blocks, or none of `names` is in it.
    """
    if (first, last) == (0, -1):
        return list(names)
    count = blocks(layers)
    low, high = (index + count if index < 0 else index for index in (first, last))
    if not 0 <= low <= high < count:
        raise InputError(
            f"`first_layer` and `last_layer` must be a range of the model's {count} blocks, but got {first} and {last}",
            "training",
        )
    chosen = [name for name in names if (block := _block(name)) is not None and low <= block <= high]
    if not chosen:
        raise InputError(
            f"`first_layer` and `last_layer` must include a target module, but none of {list(names)[:3]} … is in the blocks "
            f"{low} to {high}",
            "training",
        )
    return chosen


def blocks(layers: Sequence[str]) -> int:
    """Return how many numbered blocks the layers' names show."""
    return max((block for name in layers if (block := _block(name)) is not None), default=-1) + 1


def _block(name: str) -> int | None:
    """Return the number of the block that a layer is in; None outside of all."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _linear(base: Any) -> list[str]:
    """Return the names of all linear layers but the output layer."""
    from torch import nn

    output = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    layers = _layers(base).items()
    return [name for name, m in layers if m is not output and not isinstance(m, nn.Embedding)]


def layer_names(base: Any) -> list[str]:
    """Return the full names of the layers of a model that can have an adapter, in the model's order."""
    return list(_layers(base))


def _layers(base: Any) -> dict[str, Any]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, Conv1D, nn.Embedding)  # the layers of language models for which PEFT has a LoRA
    excluded = excluded_modules(base)
    layers = {
        name: module
        for name, module in base.named_modules()
        if isinstance(module, kinds) and not (excluded and re.fullmatch(excluded, name))
    }
    refused = _refused_by_peft(base, {_last(name) for name in layers})
    return {name: module for name, module in layers.items() if _last(name) not in refused}


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _refused_by_peft(base: Any, names: set[str]) -> set[str]:
    """Return those last parts of layers' names that PEFT does not apply to these layers.

    In mixtures of experts transformers joins the experts' layers (`down_proj`) into one tensor, and to PEFT their old names mean
    that tensor, even if a shared expert or a dense block has a layer of this name: the layer would get no adapter, or one
    whose files could not be loaded. In Mamba the kernels bypass an adapter on `out_proj`.
    """
    from peft import LoraConfig
    from peft.tuners import tuners_utils

    def taken(name: str) -> bool:
        try:
            if hasattr(tuners_utils, "_check_lora_target_modules_mamba"):
                tuners_utils._check_lora_target_modules_mamba(LoraConfig(), base, name)
            return not _rewritten_by_peft(base, [name])
        except ValueError:
            return False

    return {name for name in names if not taken(name)}


def _rewritten_by_peft(base: Any, targets: Sequence[str] | str) -> bool:
    """Return whether PEFT reads target modules of this base as something else.

    Raises:
        ValueError: if PEFT refuses them.
    """
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # older releases of PEFT do not rewrite them
        return False
    config = LoraConfig(target_modules=targets if isinstance(targets, str) else list(targets))
    before = config.target_modules
    convert_peft_config_for_transformers(config, base, None)
    return bool(config.target_modules != before)


def excluded_modules(base: Any) -> str | None:
    """Return a regular expression for the names of modules that never get an adapter, None if there are none.

    These are the parts of a multimodal model beside its language model, which text does not pass through, and linear layers that
    return more than one tensor, as Llama 4's routers, which PEFT's layer around them does not support.
    """
    from torch import nn

    patterns = [re.escape(name) + r"(\..*)?" for name in _other_parts(base)]
    own = {
        name.rpartition(".")[2]
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and _has_own_forward(module) and not _returns_one_tensor(module)
    }
    patterns += [rf"(.*\.)?{re.escape(name)}" for name in sorted(own)]
    return "|".join(patterns) or None


def _returns_one_tensor(module: Any) -> bool:
    """Return whether a layer maps a tensor to a tensor as a linear layer does, by calling it.

    Falcon's have a forward of their own and do. DeepSeek V4's need more inputs, so an adapter cannot be added beside them.
    """
    import torch

    inputs = torch.zeros(1, module.in_features, dtype=module.weight.dtype, device=module.weight.device)
    try:
        with torch.no_grad():
            output = module(inputs)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    return isinstance(output, torch.Tensor) and output.shape == (1, module.out_features)


def _has_own_forward(module: Any) -> bool:
    """Return whether a linear layer's class is an architecture's own, with its own forward; quantised layers do not count."""
    return type(module).__module__.startswith("transformers.models.") and "forward" in vars(type(module))


def _other_parts(base: Any) -> list[str]:
    """Return the names of the outermost parts of a multimodal model that contain neither its language model nor its head."""
    text = base.config.get_text_config() if hasattr(base, "config") else None
    if text is None or text is base.config:
        return []
    kept = {id(m) for m in base.modules() if getattr(m, "config", None) is text}
    if not kept:
        return []
    head = base.get_output_embeddings()
    names: list[str] = []

    def walk(module: Any, prefix: str) -> None:
        for name, child in module.named_children():
            if id(child) in kept or child is head:
                continue
            if any(id(part) in kept or part is head for part in child.modules()):
                walk(child, f"{prefix}{name}.")
            else:
                names.append(prefix + name)

    walk(base, "")
    return names


def named(layers: Sequence[str], target_modules: Sequence[str] | str) -> list[str]:
    """Return those of the layers' full names that `target_modules` names; for a group, of those of linear layers.

    Raises:
        InputError: as `target_names`.
    """
    if target_modules == ALL_LINEAR:
        return list(layers)
    if target_modules in GROUPS:
        matches = [name for name in layers if _block(name) is not None]
        matches = [name for name in matches if _of_attention(name) == (target_modules == "attention")]
        if not matches:
            raise InputError(
                f"`target_modules: {target_modules}` must match a layer, but matches none of {list(layers)[:3]} …; name the "
                "layers instead",
                "training",
            )
        return matches
    if isinstance(target_modules, str):
        matches = [name for name in layers if re.fullmatch(target_modules, name)]
        if not matches:
            raise InputError(_no_match(target_modules, layers), "training")
        return matches
    if groups := [name for name in GROUPS if name in target_modules]:
        raise InputError(
            f"`{groups[0]}` must not be in a list: write `target_modules: {groups[0]}`", "training"
        )
    matches = [name for name in layers if any(name == t or name.endswith(f".{t}") for t in target_modules)]
    lacking = [t for t in target_modules if not any(name == t or name.endswith(f".{t}") for name in matches)]
    if lacking:
        known = _known(layers)
        near = {t: nearest(t, known) for t in lacking}
        hint = "".join(f"; did you mean {close!r} for {t!r}?" for t, close in near.items() if close)
        raise InputError(
            f"`target_modules` must name linear or embedding layers of the model that PEFT takes {known}, but got "
            f"{lacking}{hint}",
            "training",
        )
    return matches


def _of_attention(name: str) -> bool:
    """Return whether a layer belongs to the attention of its block, by the names of the modules around it."""
    return any("attn" in part or "attention" in part for part in name.lower().split(".")[:-1])


def _known(layers: Sequence[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in layers})


def _no_match(expression: str, layers: Sequence[str]) -> str:
    known = _known(layers)
    near = nearest(expression, [*GROUPS, *known])
    hint = f"; did you mean {near if near in GROUPS else [near]}?" if near else ""
    return (
        f"`target_modules` as text must be one of {list(GROUPS)} or a regular expression that matches a whole name, such as "
        f"{layers[:1]}, but {expression!r} matches none of the layers {known}{hint}"
    )
