"""Many small objects in one: the records of a bucket's folder, each with its ETag at that time.

The first reader of a folder of 200 records then needs two requests instead of 200: the listing, and this one object. It
takes from it what the listing still shows with the same ETag, and fetches the rest, so this object may be out of date.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping

from retune.store.packed import gunzip

NAME = ".gathered.json.gz"
Content = tuple[str, bytes]  # the ETag and the bytes


def pack(objects: Mapping[str, Content]) -> bytes:
    """Return the UTF-8 objects as one, others left out; equal objects give equal bytes (no time stamp in the gzip header)."""
    texts = {}
    for name, (etag, content) in sorted(objects.items()):
        try:
            texts[name] = [etag, content.decode()]
        except UnicodeDecodeError:
            continue
    return gzip.compress(json.dumps(texts, ensure_ascii=False).encode(), compresslevel=6, mtime=0)


def unpack(data: bytes) -> dict[str, Content]:
    """Return the objects; none if the content is damaged, since each can be fetched by itself."""
    content, problem = gunzip(data)
    if problem:
        return {}
    try:
        return {name: (str(etag), text.encode()) for name, (etag, text) in json.loads(content).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}
