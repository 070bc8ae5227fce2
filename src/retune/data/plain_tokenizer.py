"""A base's tokenizer without transformers, to save half a second of import; enough for counting tokens.

Used only if transformers would pass every text to `tokenizer.json` unchanged: a Llama with no tokenizer class of its own,
whose settings contain nothing but special tokens that are special in `tokenizer.json` too. For any other base `load` returns
None; use `retune.models.load_tokenizer`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
_IGNORED_SETTINGS = {
    "backend",
    "tokenizer_class",
    "model_max_length",
    "is_local",
    "local_files_only",
    *_SPECIAL_TOKENS,
}
_OTHER_FILES = (
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates",
)


class PlainTokenizer:
    """The part of transformers' tokenizer interface that `retune.data.tokens.join` and `retune.models.tokenizer_problems` use.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        eos_token: the text of its end-of-text token, None if it has none.
    """

    chat_template: None = None  # a tokenizer with one is not plain

    def __init__(self, tokenizer: Any, eos_token: str | None) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.eos_token_id: int | None = None if eos_token is None else tokenizer.token_to_id(eos_token)

    def __call__(self, texts: Sequence[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        """Return the ids of each text, under ``input_ids``."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return {"input_ids": [each.ids for each in encoded]}

    def get_vocab(self) -> dict[str, int]:
        """Return the number of every token, added ones among them."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary


def load(folder: Path) -> PlainTokenizer | None:
    """Return the tokenizer of the base in a folder; None if only transformers is known to load it correctly."""
    try:
        config = json.loads((folder / "config.json").read_text())
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        content = json.loads((folder / "tokenizer.json").read_text())
        special = {token["content"] for token in content["added_tokens"] if token["special"]}
        special_tokens = {key: settings[key] for key in _SPECIAL_TOKENS if settings.get(key) is not None}
        plain = (
            config["model_type"] == "llama"
            and settings["tokenizer_class"] in _CLASSES
            and set(settings) <= _IGNORED_SETTINGS
            and all(isinstance(token, str) and token in special for token in special_tokens.values())
            and not any((folder / name).exists() for name in _OTHER_FILES)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # transformers will report what is wrong with it
    if not plain:
        return None
    from tokenizers import Tokenizer

    try:
        return PlainTokenizer(
            Tokenizer.from_file(str(folder / "tokenizer.json")), special_tokens.get("eos_token")
        )
    except Exception:  # tokenizers raises plain `Exception` for every fault of the file
        return None
