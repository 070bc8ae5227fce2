"""The tokenizer of a base by the package tokenizers alone, for those who only count: transformers takes half a second to import.

Only where transformers itself would hand every text to `tokenizer.json` as it is: a Llama whose tokenizer is of no class of
its own, whose settings name special tokens and nothing else, all of them special in `tokenizer.json` already. For any other
base there is none, and `retune.models.load_tokenizer` is to be asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
_HARMLESS = {"backend", "tokenizer_class", "model_max_length", "is_local", "local_files_only", *_NAMED}
_MORE = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "additional_chat_templates")


class PlainTokenizer:
    """What `retune.data.tokens.join` and `retune.models.tokenizer_problems` ask of a transformers tokenizer.

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
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return {"input_ids": [each.ids for each in found]}

    def get_vocab(self) -> dict[str, int]:
        """Return the number of every token, added ones among them."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary


def of(folder: Path) -> PlainTokenizer | None:
    """Return the tokenizer of a base in a folder, None if only transformers is sure to read it right."""
    try:
        config = json.loads((folder / "config.json").read_text())
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        written = json.loads((folder / "tokenizer.json").read_text())
        special = {token["content"] for token in written["added_tokens"] if token["special"]}
        named = {key: settings[key] for key in _NAMED if settings.get(key) is not None}
        plain = (
            config["model_type"] == "llama"
            and settings["tokenizer_class"] in _CLASSES
            and set(settings) <= _HARMLESS
            and all(isinstance(token, str) and token in special for token in named.values())
            and not any((folder / name).exists() for name in _MORE)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # whoever reads every tokenizer tells what is wrong with it
    if not plain:
        return None
    from tokenizers import Tokenizer

    try:
        return PlainTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), named.get("eos_token"))
    except Exception:  # the package raises plain `Exception`, whatever is wrong with the file
        return None
