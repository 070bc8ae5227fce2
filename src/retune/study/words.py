"""Converts one pydantic error of a study key to a message with rule, value and remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from retune import extensions
from retune.errors import nearest
from retune.study.names import ALGORITHMS, KATIB_ONLY

ALIASES = {
    "lr": "learning_rate", "lora_r": "rank", "r": "rank", "lora_rank": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout",
    "num_train_epochs": "epochs", "num_epochs": "epochs", "per_device_train_batch_size": "batch_size", "batch": "batch_size",
    "lr_scheduler_type": "schedule", "scheduler": "schedule", "warmup_ratio": "warmup_share", "max_seq_length": "max_length",
    "max_seq_len": "max_length", "cutoff_len": "max_length", "path": "uri", "url": "uri", "file": "uri", "weight": "share",
    "n_trials": "trials", "max_trials": "trials", "algo": "algorithm", "sampler": "algorithm", "timeout": "max_hours",
    "name_or_path": "base", "model_name": "base", "type": "kind", "direction": "goal",
}  # fmt: skip
"""Names of our keys in other tools."""
_VALUE_ALIASES = {
    "fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "min": "minimize", "max": "maximize",
    "bayesian": "gp", "bo": "gp", "optuna": "tpe", "mads": "nomad", "grid": "lhs",
}  # fmt: skip
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "string": "text",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "a section of keys and values",
    "model": "a section of keys and values",
}
_PATTERNS = {
    r"^[A-Za-z0-9._-]+$": "hold only letters, digits, dots, dashes and underscores",
    r"^/": "begin with /",
}


def sentence(error: Any, keys: Sequence[str]) -> str:
    """Return the rule and the value of an error of a single key.

    Args:
        error: an entry of pydantic's `errors()`.
        keys: if a section is expected, its keys, the most important first.
    """
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    got = f"but got {_short(value)}"
    if kind == "truth_value":
        return str(context["text"])
    if kind == "one_of":
        return f"must be {' or '.join(dict.fromkeys(map(_expected_kind, context['errors'])))}, {got}"
    if kind in _BOUNDS:
        word, name = _BOUNDS[kind]
        limit = context[name]
        hint = ""
        if kind.startswith("less") and limit == 1 and isinstance(value, int | float) and 1 < value <= 100:
            hint = f"; {value:g} percent is {value / 100:g}"
        return f"must be {word} {limit:g}, {got}{hint}"
    if kind == "literal_error":
        names = re.findall(r"'([^']*)'", context["expected"])
        return unknown_name(value, names)
    if kind == "finite_number":
        return f"must be a finite number, {got}"
    if kind == "string_pattern_mismatch":
        rule = _PATTERNS.get(context["pattern"], f"match the pattern {context['pattern']}")
        return f"must {rule}, {got}"
    if kind in ("too_short", "string_too_short"):
        thing = "hold at least one item" if kind == "too_short" else "not be empty"
        return f"must {thing}, {got}" if kind == "too_short" else f"must {thing}"
    if kind == "too_long":
        return f"must hold at most {context['max_length']} items, but got {context['actual_length']}"
    expected = _expected_kind(error)
    if not expected:
        message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        return f"{message[0].lower()}{message[1:]}, {got}"
    return f"must be {expected}, {got}{_how_to_write(kind, value, keys, str(error['loc'][-1]))}"


def _expected_kind(error: Any) -> str:
    """Return the kind of value that an error of a wrong kind expects; empty for other errors."""
    if error["type"] == "literal_error":
        return str(error["ctx"]["expected"])
    return next((words for name, words in _KINDS.items() if error["type"].startswith(f"{name}_")), "")


def is_kind_error(error: Any) -> bool:
    """Return whether an error is that of a value of another kind: number, text, list, one of some names."""
    return bool(_expected_kind(error)) and not error["type"].endswith(
        ("_too_short", "_too_long", "_pattern_mismatch")
    )


def unknown_name(value: Any, names: Sequence[str]) -> str:
    """Return the message that a name is none of `names`, with the nearest of them."""
    other = _VALUE_ALIASES.get(str(value).lower())
    near = other if other in names else nearest(str(value), names)
    hint = f"did you mean {near!r}?" if near else f"there are {list(names)}"
    return (
        f"unknown name {value!r}; {hint}"
        if isinstance(value, str)
        else f"must be one of {list(names)}, but got {value!r}"
    )


def unknown_algorithm(value: Any, engine: str) -> str:
    """Return the message that an algorithm is unknown, with the nearest of those that the engine has."""
    valid = [name for name in ALGORITHMS if engine == "katib" or name not in KATIB_ONLY]
    return unknown_name(value, [*valid, *extensions.names("algorithms")])


def unknown_key(key: str, valid: Sequence[str], elsewhere: Mapping[str, str]) -> str:
    """Return the message that a section has no such key, with the nearest one, or the section that has it."""
    other = ALIASES.get(key.lower())
    if other in valid:
        return f"unknown key; did you mean {other!r}?"
    if near := nearest(key, valid):
        return f"unknown key; did you mean {near!r}?"
    for name in (key, other or ""):
        if name in elsewhere:
            if not elsewhere[name]:
                return f"unknown key; {name!r} belongs to the top of the file"
            return f"unknown key; did you mean '{elsewhere[name]}.{name}'?"
    less = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    return f"unknown key; did you mean {less[0]!r}?" if less else f"unknown key; valid keys are {list(valid)}"


def _how_to_write(kind: str, value: Any, keys: Sequence[str], key: str) -> str:
    """Return the end of the message about a value of a wrong kind: how to write what was probably meant."""
    if kind.startswith(("model_", "dict_")):
        if value is None:
            return "; write keys under it, or leave it out where it is not required"
        if keys and isinstance(value, str | int | float) and not isinstance(value, bool):
            return f"; write {{{keys[0]}: {value}}}"
        return ""
    if kind.startswith(("list_", "tuple_")):
        if value is None:
            return "; write [] for none"
        if isinstance(value, dict):
            return "; put a dash before each item, or brackets around them"
        return f"; write [{value}]" if isinstance(value, str | int | float) else ""
    if kind.startswith("string_") and isinstance(value, bool):
        return "; yes, no, on, off, true and false are truth values: write the word in quotes"
    if kind.startswith("string_") and isinstance(value, int | float):
        return f'; write it in quotes: "{value}"'
    if kind.startswith(("float_", "int_")) and isinstance(value, str):
        if re.fullmatch(r"\d+,\d+", value.strip()):
            return f"; write {value.strip().replace(',', '.')}"
        unit = re.fullmatch(r"([\d.]+)\s*([a-z])[a-z]*", value.strip().lower())
        if unit and f"_{unit[2]}" in key and key.rpartition("_")[2] in ("hours", "minutes", "seconds"):
            return f"; write {unit[1]}"
    percent = str(value).strip().removesuffix("%").strip()
    if kind.startswith("float_") and str(value).strip().endswith("%") and re.fullmatch(r"[\d.]+", percent):
        return f"; write {float(percent) / 100:g}"
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return "nothing" if value is None else text if len(text) <= 80 else f"{text[:77]}…"
