"""Limits on data from others, and gzip unpacked within them: a few kilobytes can expand to gigabytes."""

from __future__ import annotations

import zlib

from retune import free_memory

MAX_RATIO = 200  # unpacked to packed size; text and tables reach 5 to 50, a file of zeros 1000
ALWAYS_ALLOWED_BYTES = 64 << 20  # at any ratio: small files of few different lines compress well
MAX_RECORD = 16 << 20  # characters of one record: several times the longest context of any model
RECORD_TOO_LONG = f"a record must have at most {MAX_RECORD >> 20} MiB, but this one is longer"
UNPACKS_TOO_LARGE = (
    f"it unpacks to more than {MAX_RATIO} times its size, as no data does; unpack it yourself if it is right"
)
_CHUNK_BYTES = 1 << 20
_ROUND = 64 << 20  # bytes between two looks at the memory that is left
_SO_FAR = "it unpacks to more than"


def max_unpacked(packed: int) -> int:
    """Return the most bytes that a compressed file of `packed` bytes may unpack to."""
    return max(ALWAYS_ALLOWED_BYTES, MAX_RATIO * packed)


def gunzip(data: bytes) -> tuple[bytes, str | None]:
    """Unpack a gzip file of one or more members.

    Returns:
        what could be unpacked, and what is wrong with the rest (truncated, damaged or too large), None if nothing is.

    """
    limit = max_unpacked(len(data))
    parts: list[bytes] = []
    size = 0
    try:
        while data:
            unpacker = zlib.decompressobj(wbits=31)  # a window of 2^15 bytes, and a gzip header (+16)
            while data and not unpacker.eof:
                parts.append(unpacker.decompress(data, _CHUNK_BYTES))
                size += len(parts[-1])
                data = unpacker.unconsumed_tail
                if size > limit:
                    return b"".join(parts), UNPACKS_TOO_LARGE
                if size % _ROUND < len(parts[-1]) and (problem := free_memory.too_large(size, _SO_FAR)):
                    return b"", problem
            if not unpacker.eof:
                return b"".join(parts), "the file is truncated: its gzip stream has no end"
            # Zeros that pad the file to a tape block, ignored as by gzip(1)
            data = unpacker.unused_data.lstrip(b"\0")
    except zlib.error as error:
        return b"".join(parts), f"the file is damaged: {error}"
    return b"".join(parts), None
