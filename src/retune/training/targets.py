"""Selects the layers that get an adapter, by PEFT's rules."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from retune.errors import InputError

ALL_LINEAR = "all-linear"


def target_names(base: Any, target_modules: Sequence[str] | str) -> list[str]:
    """Return the full names of the modules that get an adapter.

    Args:
        base: a causal language model.
        target_modules: last parts of names; or `all-linear`, every linear layer but the output layer; or a regular
            expression that must match a whole name.

    Raises:
        InputError: if a name, or the expression, matches no layer that can have an adapter, with the names there are.
    """
    if target_modules != ALL_LINEAR:
        return named(layer_names(base), target_modules)
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

    kinds = (nn.Linear, Conv1D, nn.Embedding)  # what PEFT has a LoRA for, of what language models are made of
    return {name: module for name, module in base.named_modules() if isinstance(module, kinds)}


def named(layers: Sequence[str], target_modules: Sequence[str] | str) -> list[str]:
    """Return those of the layers' full names that `target_modules`, other than `all-linear`, names.

    Raises:
        InputError: as `target_names`.
    """
    if isinstance(target_modules, str):
        found = [name for name in layers if re.fullmatch(target_modules, name)]
        if not found:
            raise InputError(_no_match(target_modules, layers), "training")
        return found
    if ALL_LINEAR in target_modules:
        raise InputError(
            f"`{ALL_LINEAR}` stands alone, not in a list: `target_modules: {ALL_LINEAR}`", "training"
        )
    found = [name for name in layers if any(name == t or name.endswith(f".{t}") for t in target_modules)]
    lacking = [t for t in target_modules if not any(name == t or name.endswith(f".{t}") for name in found)]
    if lacking:
        known = _known(layers)
        near = {t: difflib.get_close_matches(t, known, n=1) for t in lacking}
        hint = "".join(f"; did you mean {close[0]!r} for {t!r}?" for t, close in near.items() if close)
        raise InputError(
            f"`target_modules` must name linear or embedding layers of the model {known}, but got {lacking}{hint}",
            "training",
        )
    return found


def _known(layers: Sequence[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in layers})


def _no_match(expression: str, layers: Sequence[str]) -> str:
    known = _known(layers)
    near = difflib.get_close_matches(expression, [ALL_LINEAR, *known], n=1)
    hint = f"; did you mean {near[0] if near[0] == ALL_LINEAR else near}?" if near else ""
    return (
        f"`target_modules` as text is `{ALL_LINEAR}` or a regular expression for whole names, as {layers[:1]}, but "
        f"{expression!r} matches none of the layers {known}{hint}"
    )
