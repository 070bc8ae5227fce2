"""Unpacking gzip without being filled by it: a few kilobytes can stand for gigabytes."""

from __future__ import annotations

import zlib

MOST_TIMES = 200  # unpacked to packed; text and numbers of people reach 5 to 50, zeros 1000
ALLOWED_BYTES = 64 << 20  # so much may come of any file
_PART = 1 << 20
MOST_OF_A_RECORD = 16 << 20  # letters of one record's text: several times the longest context of any model
TOO_LONG = f"a record must have at most {MOST_OF_A_RECORD >> 20} MiB, but this one is longer"


TOO_MUCH = (
    f"it unpacks to more than {MOST_TIMES} times its size, as no data does; unpack it yourself if it is right"
)


def most_bytes(packed: int) -> int:
    """Return how many bytes may come of a file of so many."""
    return max(ALLOWED_BYTES, MOST_TIMES * packed)


def gunzip(data: bytes) -> tuple[bytes, str | None]:
    """Unpack gzip, all members of it.

    Returns:
        What there is, and what is wrong with the rest: truncated, damaged, or more than `MOST_TIMES` its packed size.

    """
    most = most_bytes(len(data))
    parts: list[bytes] = []
    size = 0
    try:
        while data:
            unpacker = zlib.decompressobj(wbits=31)
            while data and not unpacker.eof:
                parts.append(unpacker.decompress(data, _PART))
                size += len(parts[-1])
                data = unpacker.unconsumed_tail
                if size > most:
                    return b"".join(parts), TOO_MUCH
            if not unpacker.eof:
                return b"".join(parts), "the file is truncated: its gzip stream has no end"
            data = unpacker.unused_data.lstrip(b"\0")
    except zlib.error as error:
        return b"".join(parts), f"the file is damaged: {error}"
    return b"".join(parts), None
