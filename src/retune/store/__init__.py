"""One interface to files on disk, in S3 and on a hub. A URI is

* a local path, or ``file:///absolute/path``,
* ``s3://bucket/key`` on S3 or anything that speaks it; server, credentials and region come from boto3's own
  settings (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_PROFILE``, …),
* ``hf://datasets/<owner>/<name>[@revision]/<path>``, or ``hf://<owner>/<name>…`` for a model, on a Hugging
  Face hub (``HF_ENDPOINT``, ``HF_TOKEN``); the revision may also stand at the end. Read only.

Two promises hold everywhere. A file is written whole or not at all: whoever reads sees the old content or the
new, even if the writer is killed or the disk is full. And of many writers that `create` the same file exactly
one wins.

Names that a server lists are checked before anything is written (`retune.store.names`): none leads out of the folder
they are brought to. Only plain files are read and sent, no devices, pipes or links out of the folder.

Errors: what is not there is a `FileNotFoundError` that carries the URI; a server that is away, a refused
password or a full disk is a `retune.errors.RetuneError` that says what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from retune.errors import InputError
from retune.store import local, names
from retune.store.local import LocalPlace

__all__ = [
    "contents",
    "create",
    "download",
    "exists",
    "gather",
    "join",
    "listing",
    "read",
    "remove",
    "require_writable",
    "upload",
    "write",
]


class _Place(Protocol):
    """A file or folder in one kind of store; the methods are the functions of the same names below."""

    def read(self) -> bytes: ...
    def write(self, data: bytes) -> None: ...
    def create(self, data: bytes) -> bool: ...
    def take(self, content: BufferedReader) -> None: ...
    def exists(self) -> bool: ...
    def listing(self) -> list[str]: ...
    def contents(self, wanted: Callable[[str], bool]) -> dict[str, bytes]: ...
    def gather(self, wanted: Callable[[str], bool]) -> None: ...
    def download(self) -> Path: ...
    def remove(self) -> None: ...


def read(uri: str | Path) -> bytes:
    """Return the content of the file at `uri`.

    Raises:
        FileNotFoundError: with the URI.
        RetuneError: if it cannot be read.
    """
    return _place(uri).read()


def write(uri: str | Path, data: bytes) -> None:
    """Write the file at `uri`, atomically; folders above it are made as needed.

    Raises:
        RetuneError: if it cannot be written; then the old file is still there.
    """
    _place(uri).write(data)


def create(uri: str | Path, data: bytes) -> bool:
    """Write the file at `uri` if there is none, and return whether this call wrote it.

    Of several callers at the same time exactly one gets True. Needs hard links on a local disk, and
    conditional writes (``If-None-Match``) on S3.

    Raises:
        RetuneError: if it cannot be written.
    """
    return _place(uri).create(data)


def require_writable(folder: str | Path, subject: str) -> None:
    """Refuse a local folder that cannot be written to, before the work whose result goes there.

    Buckets are not tried: that would leave an object.

    Raises:
        InputError: with the reason; `subject` says who named the folder.
    """
    target = _place(folder)
    if isinstance(target, LocalPlace) and (problem := local.unwritable(target.path)):
        raise InputError(problem, subject)


def exists(uri: str | Path) -> bool:
    """Return whether `uri` is a file, or a folder (on S3 and the hub: with something in it)."""
    return _place(uri).exists()


def listing(uri: str | Path) -> list[str]:
    """Return the names of all files in the folder `uri` and below, sorted and relative to it, as ``a/b.txt``.

    A folder that does not exist has no files. What a killed writer left half done is not listed.
    """
    return _place(uri).listing()


def contents(uri: str | Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Return the content of those files below the folder `uri` whose relative names are wanted.

    On S3 this is one listing, and only files that are new or changed since they were last read here are downloaded.
    """
    return _place(uri).contents(wanted)


def gather(uri: str | Path, wanted: Callable[[str], bool]) -> None:
    """Store the `contents` of a folder on S3 as one more object, so that the next reader needs two requests for all.

    Other functions do not list that object, but `remove` deletes it. It may be out of date: `contents` uses only what has
    not changed since. On a local disk this does nothing.

    Raises:
        RetuneError: if it cannot be written.
    """
    _place(uri).gather(wanted)


def download(uri: str | Path) -> Path:
    """Return a local path of the file or folder at `uri`, to be read and not changed.

    Local ones are returned as they are. Files from S3 are kept in a cache folder (``RETUNE_CACHE``, else
    ``~/.cache/retune``), named by their ETag, so that an unchanged file comes over the network once; size and
    checksum are compared first. The hub has its own cache (``HF_HOME``). A cache may be deleted at any time.

    Raises:
        FileNotFoundError: with the URI.
        RetuneError: if it cannot be fetched, or what arrived is not what the server holds.
    """
    return _place(uri).download()


def upload(source: str | Path, uri: str | Path, marker: str | None = None) -> None:
    """Copy a local file, or a folder with all below it, to `uri`. Each file is written atomically.

    The file that says "this folder is complete" goes last: JSON files at the top of the folder after all
    others, and `marker` after those.

    Args:
        source: a local file or folder.
        uri: the new name of the file or folder; other files that are there already stay.
        marker: the name of the folder's marker file, if it is not its only JSON file.

    Raises:
        FileNotFoundError: if there is no `source`.
        InputError: if the folder holds what is no plain file, a link that leads out of it, or a name that no other machine
            could read back.
        RetuneError: if it cannot be written.
    """
    source = Path(source)
    if source.is_file():
        with local.opened(source) as content:
            _place(uri).take(content)
        return
    if not source.is_dir():
        raise FileNotFoundError(2, "No such file or folder", str(source))

    def order(name: str) -> tuple[bool, bool, str]:
        return name == marker, "/" not in name and name.endswith(".json"), name

    listed = sorted(LocalPlace(source).listing(), key=order)
    inside = source.resolve()
    refused = [
        n for n in listed if not (source / n).is_file() or not (source / n).resolve().is_relative_to(inside)
    ]
    if refused:
        raise InputError(
            [f"{n!r} is no plain file, or a link out of the folder" for n in refused], str(source)
        )
    if "://" in str(uri):
        names.check(listed, str(source))  # all of them, before the first is sent
    for name in listed:
        with local.opened_below(source, name) as content:
            _place(join(uri, name)).take(content)


def remove(uri: str | Path) -> None:
    """Delete the file at `uri`, or the folder with all below it. Nothing there is no error."""
    _place(uri).remove()


def join(uri: str | Path, *parts: str) -> str:
    """Return the URI of `parts` below the folder `uri`."""
    return "/".join([str(uri).rstrip("/"), *(part.strip("/") for part in parts)])


def _place(uri: str | Path) -> _Place:
    """Return the place that `uri` names. boto3 and huggingface_hub take long to import, so only when they are used."""
    text = str(uri)
    scheme, mark, rest = text.partition("://")
    if not mark:
        return LocalPlace(Path(text))
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise InputError(f"a file URI has three slashes, as file:///folder/file, but got {text!r}")
        return LocalPlace(Path(unquote(parts.path)))
    if scheme == "s3":
        from retune.store.s3 import S3Place

        bucket, _, key = rest.partition("/")
        if not bucket or "@" in bucket or ":" in bucket:
            raise InputError(f"an S3 URI has the form s3://bucket/key, but got {text!r}")
        key = key.strip("/")
        if key and (why := names.problem(key)):
            raise InputError(f"the key of an S3 URI is refused: {why}; got {text!r}")
        return S3Place(bucket, key)
    if scheme == "hf":
        from retune.store.hub import parse

        return parse(text)
    raise InputError(f"a URI is a path or starts with file://, s3:// or hf://, but got {text!r}")
