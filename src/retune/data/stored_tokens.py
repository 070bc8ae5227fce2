"""The token ids of mixed data, stored beside it, so that a trial opens them instead of tokenising again.

`mix` tokenises every record once. In a cluster each trial is a pod of its own: for 49,000 records that would take 20 seconds
and more than a gigabyte in each of them. The stored arrays are opened memory-mapped::

    data-<digest>/tokens-<key>/tokens.json, train-ids.npy, train-counted.npy, train-offsets.npy, validation-…

The key is the digest of everything that determines the tokens. `tokens.json` is written last, with the checksum of each array.
Folders of older releases have no stored tokens; their trials tokenise.
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
RULES = 2  # part of the key; raise it when the code gives other tokens, so that stored ones are not used
MARKER = "tokens.json"
_ARRAYS = ("ids", "counted", "offsets")


def folder_uri(
    uri: str, data_digest: str, prompt: Prompt, tokenizer: Any, max_length: int, loss_on: str
) -> str:
    """Return the URI of the folder for the tokens of the mixed data at `uri`.

    Args:
        uri, data_digest: the data.
        prompt: the template of the records.
        tokenizer: a transformers tokenizer, or the folder of one.
        max_length, loss_on: see `retune.data.tokens.flat`.
    """
    parts = [RULES, data_digest, prompt.model_dump(mode="json"), tokenizer_digest(tokenizer)]
    key = digest([*parts, chat_template_digest(tokenizer), max_length, loss_on])
    return store.join(uri, f"tokens-{key}")


def save(folder: str, splits: Mapping[Split, Flat]) -> None:
    """Write the tokens of both splits."""
    import numpy as np

    stored: dict[str, Any] = {}
    for split, flat in splits.items():
        checksums = {}
        for name in _ARRAYS:
            content = io.BytesIO()
            np.save(content, getattr(flat, name), allow_pickle=False)
            checksums[name] = hashlib.sha256(content.getbuffer()).hexdigest()
            store.write(_file(folder, split, name), content.getvalue())
        stored[split] = {"cut": flat.cut, "dropped": flat.dropped, "sha256": checksums}
    store.write(store.join(folder, MARKER), (json.dumps(seal({"splits": stored}), indent=2) + "\n").encode())


def load(folder: str, split: Split) -> Flat | None:
    """Return the tokens of a split, mapped into memory; None if there are none.

    Raises:
        InputError: if they are damaged.
    """
    import numpy as np

    marker = store.join(folder, MARKER)
    try:
        stored = loads(store.read(marker), marker)["splits"][split]
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
            checksum = hashlib.file_digest(content, "sha256").hexdigest()
        if checksum != stored["sha256"][name]:
            raise InputError(
                f"the file must have the SHA-256 {stored['sha256'][name]} of {MARKER}, but has {checksum}; delete its folder and "
                "run `retune mix` again",
                file,
            )
        # "c" is copy-on-write: torch warns of arrays that are read-only, and nothing is written to the file.
        arrays[name] = np.load(path, mmap_mode="c", allow_pickle=False)
    return Flat(**arrays, cut=stored["cut"], dropped=stored["dropped"])


def _file(folder: str, split: str, name: str) -> str:
    return store.join(folder, f"{split}-{name}.npy")
