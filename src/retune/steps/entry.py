"""The entry of every component: read the study, silence libraries, and end together with the run it belongs to."""

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
    """Yield the study that a component got as JSON or from `packed`.

    Raises:
        InputError: with every problem found in it.
    """
    die_with_run()
    models.quiet()
    outages.wait_long()
    yield parse(unpacked(study))


def packed(study: Study) -> str:
    """Return a study compressed to about a third of its JSON's length, for arguments of limited length."""
    data = zlib.compress(study.model_dump_json().encode(), level=9)
    return json.dumps({_PACKED: base64.b64encode(data).decode()})


def unpacked(text: str) -> dict[str, object]:
    """Return the content of a study from its JSON or from the result of `packed`."""
    content: dict[str, object] = json.loads(text)
    if isinstance(content, dict) and set(content) == {_PACKED}:
        content = json.loads(zlib.decompress(base64.b64decode(str(content[_PACKED]))))
    return content
