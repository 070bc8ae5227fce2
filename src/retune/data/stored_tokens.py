"""The token ids of mixed data as files beside it, so that a trial opens them instead of making them again.

`mix` tokenises every record once. In a cluster each trial is a pod of its own: for 49,000 records that would be 20 seconds
and more than a gigabyte in each of them. What is stored is opened as memory-mapped arrays::

    data-<digest>/tokens-<key>/tokens.json, train-ids.npy, train-counted.npy, train-offsets.npy, validation-…

The key is the digest of all that decides the tokens. `tokens.json` is written last, with the checksum of each array. Folders of
older releases have none of this; their trials tokenise.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any, Literal

from retune import store
from retune.data.prompts import Prompt
from retune.data.tokenizer_digest import chat_template_digest, tokenizer_digest
from retune.data.tokens import Flat
from retune.errors import InputError
from retune.records import digest, loads, seal

Split = Literal["train", "validation"]
RULES = 1  # raised when records become other tokens: then what is stored is not used
MARKER = "tokens.json"
_ARRAYS = ("ids", "counted", "offsets")


def place(uri: str, data_digest: str, prompt: Prompt, tokenizer: Any, max_length: int, loss_on: str) -> str:
    """Return the URI of the folder for the tokens of the mixed data at `uri`.

    Args:
        uri, data_digest: the data.
        prompt: how a model is asked.
        tokenizer: a transformers tokenizer, or the folder of one.
        max_length, loss_on: see `retune.data.tokens.flat`.
    """
    decides = [RULES, data_digest, prompt.model_dump(mode="json"), tokenizer_digest(tokenizer)]
    key = digest([*decides, chat_template_digest(tokenizer), max_length, loss_on])
    return store.join(uri, f"tokens-{key}")


def save(folder: str, splits: Mapping[Split, Flat]) -> None:
    """Write the tokens of both splits."""
    import numpy as np

    told: dict[str, Any] = {}
    for split, flat in splits.items():
        sums = {}
        for name in _ARRAYS:
            content = io.BytesIO()
            np.save(content, getattr(flat, name), allow_pickle=False)
            sums[name] = hashlib.sha256(content.getbuffer()).hexdigest()
            store.write(_file(folder, split, name), content.getvalue())
        told[split] = {"cut": flat.cut, "dropped": flat.dropped, "sha256": sums}
    store.write(store.join(folder, MARKER), (json.dumps(seal({"splits": told}), indent=2) + "\n").encode())


def load(folder: str, split: Split) -> Flat | None:
    """Return the tokens of a split, mapped into memory; None if there are none.

    Raises:
        InputError: if they are damaged.
    """
    import numpy as np

    marker = store.join(folder, MARKER)
    try:
        told = loads(store.read(marker), marker)["splits"][split]
    except FileNotFoundError:
        return None
    arrays = {}
    for name in _ARRAYS:
        file = _file(folder, split, name)
        try:
            path = store.download(file)
        except FileNotFoundError as error:
            raise InputError(
                "the file is missing; delete its folder and run `retune mix` again", file
            ) from error
        with path.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != told["sha256"][name]:
            raise InputError(
                f"{MARKER} says SHA-256 {told['sha256'][name]}, but it is {found}; delete its folder and run `retune mix` again",
                file,
            )
        # "c": torch takes only arrays that may be written to; nothing ever reaches the file.
        arrays[name] = np.load(path, mmap_mode="c", allow_pickle=False)
    return Flat(**arrays, cut=told["cut"], dropped=told["dropped"])


def _file(folder: str, split: str, name: str) -> str:
    return store.join(folder, f"{split}-{name}.npy")
