"""What every component does first and last: read the study, keep libraries quiet, end with its run, leave a last word."""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retune import models
from retune.errors import RetuneError
from retune.processes import die_with_run
from retune.study import Study, parse

LAST_WORDS = "RETUNE_LAST_WORDS"
"""Environment variable naming the file that gets the error a step ends with."""
_PACKED = "zlib"


@contextmanager
def entry(study: str) -> Iterator[Study]:
    """Yield the study that a component got as JSON, or as `packed` made of it.

    Raises:
        InputError: with every problem found in it.

    """
    with last_words():
        die_with_run()
        models.quiet()
        yield parse(unpacked(study))


@contextmanager
def last_words() -> Iterator[None]:
    """Leave what the step ends with in the file of ``RETUNE_LAST_WORDS``, for `retune run` to show."""
    try:
        yield
    except Exception as error:
        if path := os.environ.get(LAST_WORDS):
            said = str(error) if isinstance(error, RetuneError) else f"{type(error).__name__}: {error}"
            Path(path).write_text(said.strip(), encoding="utf-8")
        raise


def packed(study: Study) -> str:
    """Return a study as JSON of fewer characters, about a third, for where an argument's length is limited."""
    data = zlib.compress(study.model_dump_json().encode(), level=9)
    return json.dumps({_PACKED: base64.b64encode(data).decode()})


def unpacked(text: str) -> dict[str, object]:
    """Return the content of a study from its JSON, or from what `packed` made."""
    content: dict[str, object] = json.loads(text)
    if isinstance(content, dict) and set(content) == {_PACKED}:
        content = json.loads(zlib.decompress(base64.b64decode(str(content[_PACKED]))))
    return content
