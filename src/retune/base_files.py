"""The small files of a base model, looked at before anything is built or allocated from them.

A base may come from anybody. A few letters in its config.json can ask for more memory than any machine has, an index can name
files elsewhere, and a tokenizer.json can hold a pattern that takes years for a line of text.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retune import free_memory
from retune.store import names

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_MOST_BYTES = {"config.json": 4 << 20, "tokenizer.json": 512 << 20, **dict.fromkeys(INDEXES, 64 << 20)}
_WEIGHTS_PER_BYTE = 8  # of a file: one bit each, fewer than any format has
_WIDTH = ("hidden_size", "n_embd", "d_model", "dim")
# Each with the width is the size of a weight, or of a part of one
_BESIDE = (
    "vocab_size", "num_hidden_layers", "n_layer", "n_layers", "num_layers", "intermediate_size", "moe_intermediate_size",
    "n_inner", "ffn_dim", "num_attention_heads", "n_head", "n_heads", "head_dim", "num_experts", "num_local_experts",
    "n_routed_experts", "n_positions",
)  # fmt: skip
_SQUARED = "n_positions"  # of GPT-2 and its like, which keep a table of each position by each
_MOST_LETTERS = 1000  # of a text or a list in a tokenizer's rules: each place in a text could become so many
_CHARACTERS = "precompiled_charsmap"  # SentencePiece's table, which is not a rule


def problems(folder: Path) -> list[str]:
    """Return what is wrong with the files of a base, in sentences that name file, value and limit.

    What is missing or no JSON is left to transformers, which says so.
    """
    reasons: list[str] = []
    for name, most in _MOST_BYTES.items():
        path = folder / name
        if path.is_file() and path.stat().st_size > most:
            reasons.append(f"{path} must have at most {most >> 20} MiB, but has {path.stat().st_size >> 20}")
    if reasons:
        return reasons
    reasons += _of_shapes(folder)
    for name in INDEXES:
        reasons += _of_an_index(folder, name)
    path = folder / "tokenizer.json"
    if path.is_file():
        reasons += _of_a_tokenizer(path, path.stat().st_mtime_ns, path.stat().st_size)
    return reasons


def is_quantized(folder: Path) -> bool:
    """Return whether the files of a base are quantised, as its config.json says; False if there is none to read."""
    config = _json(folder / "config.json")
    return isinstance(config, dict) and bool(config.get("quantization_config"))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _of_shapes(folder: Path) -> Iterator[str]:
    """Yield the sizes in config.json that exceed what the weights next to it can contain."""
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    held = sum(path.stat().st_size for path in weights) * _WEIGHTS_PER_BYTE
    for section in _sections(_json(folder / "config.json")):
        sizes = {
            key: value
            for key, value in section.items()
            if isinstance(value, int) and not isinstance(value, bool)
        }
        width = next((key for key in _WIDTH if key in sizes), None)
        for key in _BESIDE:
            if held and width and key in sizes and sizes[width] * sizes[key] > held:
                yield (
                    f"the sizes in {folder / 'config.json'} must be those of the weights beside it, but "
                    f"{width} x {key} = {sizes[width]:,} x {sizes[key]:,} is more than the {held:,} weights that files of "
                    "their size can hold; restore the config.json that the weights were saved with"
                )
        if problem := free_memory.too_large(
            sizes.get(_SQUARED, 0) ** 2, f"`{_SQUARED}` of config.json asks for a table of"
        ):
            yield problem


def _sections(config: Any) -> Iterator[dict[str, Any]]:
    """Yield a config, and that of the language model in it; others in it may have no weights here."""
    if isinstance(config, dict):
        yield config
        yield from (part for key, part in config.items() if "text" in key and isinstance(part, dict))


def _of_an_index(folder: Path, name: str) -> Iterator[str]:
    """Yield the files of an index that are outside the folder."""
    index = _json(folder / name)
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict):
        return
    for file in sorted({str(file) for file in where.values()}):
        if why := names.problem(file):
            yield f"{folder / name} must name files of its folder, but {file!r} is refused: {why}"


@functools.lru_cache(maxsize=16)
def _of_a_tokenizer(path: Path, changed: int, size: int) -> tuple[str, ...]:
    """Return the rules of a tokenizer that could inflate a text or take unbounded time."""
    content = _json(path)
    if not isinstance(content, dict):
        return ()
    texts = []
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        for key, value in _values(content.get(part)):
            if isinstance(value, str) and key == "Regex" and _nested(value):
                texts.append(
                    f"a pattern of {path} must not repeat what repeats, as (a+)+ does, since some texts would take for ever, "
                    f"but `{part}` has {value[:200]!r}"
                )
            elif isinstance(value, str | list) and len(value) > _MOST_LETTERS and key != _CHARACTERS:
                texts.append(
                    f"a text or list in the rules of {path} must have at most {_MOST_LETTERS:,} letters or values, but "
                    f"`{key}` of `{part}` has {len(value):,}"
                )
    return tuple(texts)


def _values(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value in JSON with its key."""
    waiting = [(key, content)]
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list) and len(value) <= _MOST_LETTERS:
            waiting += [(key, each) for each in value]


_PIECE = re.compile(r"\\.|\[(?:\\.|\[:\w+:\]|[^\]\\])*\]|[()]|[*+]|\{\d*,\d*\}|.", re.DOTALL)


def _nested(pattern: str) -> bool:
    """Return whether a group that holds an unbounded repetition is itself repeated without a bound."""
    inside = [False]  # for each open group: whether there is a repetition in it
    closed = False  # whether the piece just read is such a group
    for piece in _PIECE.findall(pattern):
        endless = piece in ("*", "+") or re.fullmatch(r"\{\d*,\}", piece)
        if endless:
            if closed:
                return True
            inside[-1] = True
        if piece == "(":
            inside.append(False)
        closed = piece == ")" and len(inside) > 1 and inside.pop()
        inside[-1] = inside[-1] or closed
    return False
