"""Many small objects in one: what a bucket's folder held when it was gathered, each with its ETag.

Whoever reads a folder of 200 records for the first time then asks for its listing and this one object, and takes from it what
the listing still shows with the same ETag. What is older is asked for by itself, so that it never matters how old this is.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping

from retune.store.packed import gunzip

NAME = ".gathered.json.gz"
Content = tuple[str, bytes]  # the ETag and the bytes


def pack(objects: Mapping[str, Content]) -> bytes:
    """Return the objects, which are UTF-8, as one; the same ones give the same bytes. Others are left out."""
    texts = {}
    for name, (etag, content) in sorted(objects.items()):
        try:
            texts[name] = [etag, content.decode()]
        except UnicodeDecodeError:
            continue
    return gzip.compress(json.dumps(texts, ensure_ascii=False).encode(), compresslevel=6, mtime=0)


def unpack(data: bytes) -> dict[str, Content]:
    """Return what was packed; nothing if it is damaged, since all of it lies elsewhere too."""
    content, wrong = gunzip(data)
    if wrong:
        return {}
    try:
        return {name: (str(etag), text.encode()) for name, (etag, text) in json.loads(content).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}
