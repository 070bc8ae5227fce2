"""What every component does first: read the study, keep libraries quiet, and end with the run it belongs to."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from retune import models, outages
from retune.processes import die_with_run
from retune.study import Study, parse

_PACKED = "zlib"


@contextmanager
def entry(study: str) -> Iterator[Study]:
    """Yield the study that a component got as JSON, or as `packed` made of it.

    Raises:
        InputError: with every problem found in it.

    """
    die_with_run()
    models.quiet()
    outages.wait_long()
    yield parse(unpacked(study))


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
