"""The digest that identifies a tokenizer: of its files, or of its content if it was made in memory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from retune.errors import InputError
from retune.records import digest

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip


def chat_template_digest(tokenizer: Any) -> str | None:
    """Return the digest of a chat template in a separate file; others are in `tokenizer_config.json`."""
    if not isinstance(tokenizer, str | Path):
        return digest(tokenizer.chat_template) if tokenizer.chat_template else None
    files = [
        Path(tokenizer) / "chat_template.jinja",
        *sorted(Path(tokenizer).glob("additional_chat_templates/*")),
    ]
    return digest([file.read_text() for file in files if file.is_file()]) if files[0].is_file() else None


def tokenizer_digest(tokenizer: Any) -> str | None:
    """Return the digest of a tokenizer's files; of a tokenizer without files, that of its JSON."""
    if tokenizer is None:
        return None
    folder = tokenizer if isinstance(tokenizer, str | Path) else tokenizer.name_or_path
    files = {name: Path(folder) / name for name in _TOKENIZER_FILES} if folder else {}
    found = {
        name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items() if file.is_file()
    }
    if found:
        return digest(found)
    if isinstance(tokenizer, str | Path):
        raise InputError(
            f"the folder must have a tokenizer, but {tokenizer} has none of {list(_TOKENIZER_FILES)}",
            "model.base",
        )
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # Calls with `truncation` or `padding` change these two, and they do not change the tokens of a text
    return digest({key: part for key, part in state.items() if key not in ("truncation", "padding")})
