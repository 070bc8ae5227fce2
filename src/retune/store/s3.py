"""Objects on S3 and on servers that speak its protocol, by boto3."""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import hashlib
import io
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from retune.errors import FULL, DiskFull, RetuneError
from retune.store import gathered, names
from retune.store.local import LocalPlace

log = logging.getLogger("retune.store")

MULTIPART_BYTES = 8 << 20  # larger files are sent in parts of this size, several in parallel
READ_SECONDS = 60  # a request that gets no byte for so long is repeated
_SMALL_BYTES = 1 << 20  # objects up to this size are fetched by one request
_RETRIES_DAMAGED = 2  # of an object whose content does not match its checksum
_RETRIES_REPLACED = 20  # of an object that is replaced while it is read
_RETRIES_CONFLICT = 20  # of a conditional write while other writes to the object are under way
_MAX_PAGES = 2000  # of a listing: two million objects on S3. A broken server may repeat a page for ever
# An answer to HEAD has no text: to keys that have expired and to another region's it is 400
_REFUSALS = {
    "400", "401", "403", "AccessDenied", "AuthorizationHeaderMalformed", "BadRequest", "ExpiredToken", "Forbidden",
    "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed", "SignatureDoesNotMatch",
}  # fmt: skip
_DELETE_BATCH = 1000  # keys that S3's DeleteObjects takes


@dataclass(frozen=True)
class S3Place:
    """An object, or all objects below ``key/``. The methods are described in `retune.store`."""

    bucket: str
    key: str

    @property
    def uri(self) -> str:
        """The URI."""
        return f"s3://{self.bucket}/{self.key}"

    def read(self) -> bytes:
        """Return the object's bytes. boto3's download resumes a transfer that breaks off; a plain GET would not."""
        content = io.BytesIO()
        with _translated_errors(self.uri):
            self._receive(content)
        return content.getvalue()

    def write(self, data: bytes) -> None:
        """Write the object. S3 shows it once all of it has arrived."""
        self._send(io.BytesIO(data), hashlib.sha256(data).hexdigest())

    def create(self, data: bytes) -> bool:
        """Write the object if there is none.

        If the reply to a successful write is lost, boto3 repeats the request, which S3 then refuses. So each call
        marks its object in the metadata, and a refusal is checked against that mark.
        """
        from botocore.exceptions import ClientError

        writer = uuid4().hex
        with _translated_errors(self.uri):
            if not _supports_conditional_writes(_client().meta.endpoint_url, self.bucket, self.key):
                return self._create_unguarded(data, writer)
            for _ in range(_RETRIES_CONFLICT):
                try:
                    metadata = {"writer": writer, "sha256": hashlib.sha256(data).hexdigest()}
                    _client().put_object(
                        Bucket=self.bucket, Key=self.key, Body=data, IfNoneMatch="*", Metadata=metadata
                    )
                except ClientError as error:
                    code = error.response["Error"]["Code"]
                    if code in ("PreconditionFailed", "412"):
                        head = self._head()
                        return head is not None and head["Metadata"].get("writer") == writer
                    # 409: S3 asks to try again, since another conditional write to this key is under way
                    if code != "ConditionalRequestConflict":
                        raise
                else:
                    return True
        raise RetuneError(
            f"{self.uri} cannot be created: other writers were in the way {_RETRIES_CONFLICT} times; run again"
        )

    def _create_unguarded(self, data: bytes, writer: str) -> bool:
        """Write the object if there is none, on a server that has no conditional writes.

        Two writers at the same moment may both write. The later one wins, and only that call returns True.
        """
        if self._head() is not None:
            return False
        metadata = {"writer": writer, "sha256": hashlib.sha256(data).hexdigest()}
        _client().put_object(Bucket=self.bucket, Key=self.key, Body=data, Metadata=metadata)
        head = self._head()
        return head is not None and head["Metadata"].get("writer") == writer

    def take(self, content: BufferedReader) -> None:
        """Send an open local file, a large one in parts."""
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        content.seek(0)
        self._send(content, sha256)

    def exists(self) -> bool:
        """Return whether there is such an object, or any below it."""
        with _translated_errors(self.uri):
            return (bool(self.key) and self._head() is not None) or any(True for _ in self._objects())

    def listing(self) -> list[str]:
        """Return the names of all objects below."""
        with _translated_errors(self.uri):
            return sorted(name for name, _, _ in self._objects())

    def contents(self, wanted: Callable[[str], bool]) -> dict[str, bytes]:
        """Return the contents of the wanted objects below, from the cache where it has the listing's ETag."""
        return {name: content for name, (_, content) in self._contents(wanted).items()}

    def gather(self, wanted: Callable[[str], bool]) -> None:
        """Write the contents of the wanted objects below into one more object, see `retune.store.gathered`."""
        contents = {name: each for name, each in self._contents(wanted).items() if each[0]}
        S3Place(self.bucket, f"{self._prefix}{gathered.NAME}").write(gathered.pack(contents))

    def _contents(self, wanted: Callable[[str], bool]) -> dict[str, gathered.Content]:
        """Return ETag and content of the wanted objects below; the ETag is empty if the object was replaced meanwhile."""
        contents: dict[str, gathered.Content] = {}
        with _translated_errors(self.uri):
            listed = list(self._objects(hidden=True))
            objects = [each for each in listed if each[0] != gathered.NAME and wanted(each[0])]
            names.check((name for name, _, _ in objects), self.uri)
            together = self._gathered(listed) if sum(not self._cached(each) for each in objects) > 1 else {}
            for name, etag, size in objects:
                if name in together and together[name][0] == etag:
                    contents[name] = together[name]
                    continue
                source = S3Place(self.bucket, f"{self._prefix}{name}")
                with contextlib.suppress(FileNotFoundError):  # gone since
                    path = source._fetch_small(etag, size)
                    same = path.parent == _cache(self.bucket, source.key, etag)
                    contents[name] = (etag if same else "", path.read_bytes())
        return contents

    def _gathered(self, listed: list[tuple[str, str, int]]) -> dict[str, gathered.Content]:
        """Return the gathered objects of this folder, which may be out of date; {} if there are none."""
        for name, etag, size in listed:
            if name == gathered.NAME:
                with contextlib.suppress(FileNotFoundError):
                    path = S3Place(self.bucket, f"{self._prefix}{name}")._fetch_small(etag, size)
                    return gathered.unpack(path.read_bytes())
        return {}

    def _cached(self, listed: tuple[str, str, int]) -> bool:
        """Return whether an object below is in the cache."""
        name, etag, size = listed
        path = _cache(self.bucket, f"{self._prefix}{name}", etag) / name.rpartition("/")[2]
        return path.is_file() and path.stat().st_size == size

    def download(self) -> Path:
        """Return the path of the object, or of a folder with all objects below, in the cache."""
        with _translated_errors(self.uri):
            head = self._head() if self.key else None
            if head is not None:
                return self._fetch(head["ETag"], head["ContentLength"])
            for _ in range(_RETRIES_REPLACED):
                objects = sorted(self._objects())
                if not objects:
                    raise FileNotFoundError(errno.ENOENT, "No such object or folder", self.uri)
                names.check((name for name, _, _ in objects), self.uri)
                name = self.key.rpartition("/")[2] or self.bucket
                folder = _cache(self.bucket, self.key, repr(objects)) / name
                if folder.is_dir() or self._fetch_folder(objects, folder):
                    return folder
        raise RetuneError(f"{self.uri} was written to {_RETRIES_REPLACED} times while it was read; run again")

    def remove(self) -> None:
        """Delete the object and all below it."""
        with _translated_errors(self.uri):
            keys = [f"{self._prefix}{name}" for name, _, _ in self._objects(hidden=True)]
            if self.key:
                _client().delete_object(Bucket=self.bucket, Key=self.key)
            for start in range(0, len(keys), _DELETE_BATCH):
                batch = [{"Key": key} for key in keys[start : start + _DELETE_BATCH]]
                answer = _client().delete_objects(
                    Bucket=self.bucket, Delete={"Objects": batch, "Quiet": True}
                )
                if failed := answer.get("Errors"):
                    raise RetuneError(
                        f"{len(failed)} objects below {self.uri} cannot be deleted: {failed[0]['Message']}"
                    )

    @property
    def _prefix(self) -> str:
        return f"{self.key}/" if self.key else ""

    def _objects(self, hidden: bool = False) -> Iterator[tuple[str, str, int]]:
        """Yield the name relative to this folder, ETag and size in bytes of each object below.

        Args:
            hidden: also yield the objects that `gather` wrote.
        """
        pages = _client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._prefix)
        for number, page in enumerate(pages, 1):
            if number > _MAX_PAGES:
                raise RetuneError(
                    f"{self.uri} is listed without an end: {_MAX_PAGES:,} pages have come, more than any study has"
                )
            for item in page.get("Contents", ()):
                if not item["Key"].startswith(self._prefix):
                    raise RetuneError(
                        f"{self.uri}: the server lists {item['Key']!r}, which does not lie below"
                    )
                name = item["Key"].removeprefix(self._prefix)
                if not hidden and name.rpartition("/")[2] == gathered.NAME:
                    continue
                if name and not name.endswith("/"):  # S3 consoles create empty objects as folders
                    yield name, item["ETag"], item["Size"]

    def _head(self) -> Any:
        from botocore.exceptions import ClientError

        try:
            return _client().head_object(Bucket=self.bucket, Key=self.key)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
                return None
            raise

    def _is_current(self, head: Any) -> bool:
        """Return whether this is still the version that `head` describes."""
        now = self._head()
        return now is not None and now["ETag"] == head["ETag"]

    def _send(self, content: Any, sha256: str) -> None:
        extra = {"Metadata": {"sha256": sha256}}
        with _translated_errors(self.uri):
            _client().upload_fileobj(content, self.bucket, self.key, ExtraArgs=extra, Config=_transfer())

    def _receive(self, file: BinaryIO) -> str:
        """Download the object into `file`, verify size and checksums, and return its ETag.

        An object that is replaced during the download, or damaged on the way, is read again: the file holds one
        version, never parts of two.
        """
        from s3transfer.exceptions import S3DownloadFailedError  # type: ignore[import-untyped]

        for attempt in range(_RETRIES_REPLACED):
            head = self._head()
            if head is None:
                raise FileNotFoundError(errno.ENOENT, "No such object", self.uri)
            file.seek(0)
            file.truncate()
            try:
                _client().download_fileobj(self.bucket, self.key, file, Config=_transfer())
            except S3DownloadFailedError:
                if attempt >= _RETRIES_DAMAGED and self._is_current(head):
                    raise
                continue  # replaced between two parts
            expected, actual = _checksums(head, file)
            if expected == actual:
                return str(head["ETag"])
            if attempt >= _RETRIES_DAMAGED and self._is_current(head):
                raise RetuneError(
                    f"{self.uri} arrived damaged: the server holds {expected}, but here is {actual}; run again"
                )
        raise RetuneError(f"{self.uri} was replaced {_RETRIES_REPLACED} times while it was read; run again")

    def _fetch(self, etag: str, size: int) -> Path:
        """Return this object's file in the cache, downloaded if it is not there or incomplete."""
        name = self.key.rpartition("/")[2]
        path = _cache(self.bucket, self.key, etag) / name
        if not path.is_file() or path.stat().st_size != size:
            temporary = _temporary(path)
            try:
                with temporary.open("x+b") as file:
                    received = self._receive(file)
                    file.flush()
                    os.fsync(file.fileno())
                # It may have been replaced since the listing
                path = _cache(self.bucket, self.key, received) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        return path

    def _fetch_small(self, etag: str, size: int) -> Path:
        """Return the same as `_fetch`, by one request instead of three if the object is small and arrives intact."""
        from botocore.exceptions import BotoCoreError, ClientError

        path = _cache(self.bucket, self.key, etag) / self.key.rpartition("/")[2]
        if size <= _SMALL_BYTES and not path.is_file():
            with contextlib.suppress(BotoCoreError, ClientError):
                answer = _client().get_object(Bucket=self.bucket, Key=self.key)
                content = answer["Body"].read()
                expected, actual = _checksums(answer, io.BytesIO(content))
                if expected == actual and answer["ETag"] == etag:
                    LocalPlace(path).write(content)
        return self._fetch(etag, size)

    def _fetch_folder(self, objects: list[tuple[str, str, int]], folder: Path) -> bool:
        """Fetch every object into the cache, then link them into one folder: a killed download resumes.

        Return whether the folder is as listed; False if an object was replaced or deleted since.
        """
        temporary = _temporary(folder)
        try:
            for name, etag, size in objects:
                key = f"{self._prefix}{name}"
                try:
                    file = S3Place(self.bucket, key)._fetch(etag, size)
                except FileNotFoundError:
                    return False
                if file.parent != _cache(self.bucket, key, etag):
                    return False
                link = temporary / name
                link.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, link)
            try:
                os.replace(temporary, folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster, and its folder is the same
                    raise
        finally:
            LocalPlace(temporary).remove()
        return True


_conditional: dict[tuple[str, str], bool] = {}


def _supports_conditional_writes(endpoint: str, bucket: str, key: str) -> bool:
    """Return whether a server honours ``If-None-Match: *``; probed next to `key`, once per bucket and process."""
    if (endpoint, bucket) not in _conditional:
        _conditional[endpoint, bucket] = _probe(endpoint, bucket, key)
    return _conditional[endpoint, bucket]


def _probe(endpoint: str, bucket: str, key: str) -> bool:
    """Create one object twice: a server without conditional writes overwrites it (SeaweedFS before 3.9x) or answers 501."""
    from botocore.exceptions import ClientError

    probe = {"Bucket": bucket, "Key": f"{key}.probe-{uuid4().hex}"}
    try:
        for _ in range(2):
            _client().put_object(**probe, Body=b"", IfNoneMatch="*")
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in ("PreconditionFailed", "412"):
            return True
        if code not in ("NotImplemented", "501"):
            raise
    finally:
        with contextlib.suppress(ClientError):
            _client().delete_object(**probe)
    log.warning(
        "the S3 server %s has no conditional writes (If-None-Match): run one engine and one promotion of a study at a time, "
        "since of two that write at the same moment both may succeed there",
        endpoint,
    )
    return False


def _checksums(head: Any, file: BinaryIO) -> tuple[dict[str, str], dict[str, str]]:
    """Return size and checksums of an object as the server states them, and those of the file that arrived."""
    etag = head["ETag"].strip('"')
    expected = {"size": str(head["ContentLength"])}
    actual = {"size": str(file.seek(0, os.SEEK_END))}
    encrypted = head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in head
    checksums = {"sha256": head["Metadata"].get("sha256")}
    # The ETag is the content's MD5, unless the object was uploaded in parts, is encrypted with KMS or a customer's key, or the
    # server is a gateway that has ETags of another form
    if re.fullmatch("[0-9a-f]{32}", etag) and not encrypted:
        checksums["md5"] = etag
    for name, checksum in sorted(checksums.items()):
        if checksum is not None:
            file.seek(0)
            expected[name] = checksum
            actual[name] = hashlib.file_digest(file, name).hexdigest()  # type: ignore[arg-type]
    return expected, actual


def _temporary(path: Path) -> Path:
    """Return a temporary name in the folder of `path`, which is created if missing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RetuneError(
            f"the cache folder {path.parent} cannot be made: {error.strerror}; name another in RETUNE_CACHE"
        ) from error
    return path.parent / f".{uuid4().hex}.tmp"


def _cache(*parts: str) -> Path:
    """Return the cache folder for `parts` (bucket, key and ETag) on the configured server."""
    named = os.environ.get("RETUNE_CACHE")
    root = (
        Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retune"
    )
    sha = hashlib.sha256("\0".join((_client().meta.endpoint_url, *parts)).encode())
    return root / "s3" / sha.hexdigest()[:24]


def _transfer() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=MULTIPART_BYTES, multipart_chunksize=MULTIPART_BYTES)


def _client() -> Any:
    """Return this process's S3 client; a new one after a fork, since connections must not be shared, or a changed setting.

    A study may outlast the keys in a file, which a login or a sidecar then renews.
    """
    settings = sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
    return _client_for(os.getpid(), (*settings, *_profiles()))


def _profiles() -> Iterator[tuple[str, str]]:
    """Yield path and time of change of each file in which boto3 looks for keys and settings."""
    for variable, usual in (
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        ("AWS_CONFIG_FILE", "~/.aws/config"),
    ):
        path = os.path.expanduser(os.environ.get(variable) or usual)
        with contextlib.suppress(OSError):
            yield path, str(os.stat(path).st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _client_for(pid: int, settings: tuple[tuple[str, str], ...]) -> Any:
    """Return a new client; process id and settings are the key of the cache alone, boto3 reads the settings itself."""
    import boto3
    from botocore.config import Config

    # Throttling, 5xx answers and broken connections are tried again, with growing pauses; `retune.outages` allows more.
    retries = {"mode": "standard", "total_max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS") or 5)}
    config = Config(retries=retries, connect_timeout=10, read_timeout=READ_SECONDS)
    client = boto3.session.Session().client("s3", config=config)
    client.meta.events.register("before-call.s3.DeleteObjects", _add_md5)
    return client


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """Add Content-MD5, which older Ceph and some appliances require; botocore sends a CRC instead since 1.36."""
    body = params["body"]
    digest = hashlib.md5(body.encode() if isinstance(body, str) else body, usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


@contextmanager
def _translated_errors(uri: str) -> Iterator[None]:
    """Convert the errors of boto3 and of the network."""
    import s3transfer.exceptions as transfer  # type: ignore[import-untyped]
    from boto3.exceptions import Boto3Error
    from botocore import exceptions as aws

    try:
        yield
    except aws.ClientError as error:
        raise _refusal(uri, error.response["Error"]) from error
    except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.ProfileNotFound) as error:
        raise RetuneError(
            f"{uri}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from error
    except (aws.ConnectionError, aws.HTTPClientError, transfer.RetriesExceededError) as error:
        server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        place = (
            f"the server {server} of AWS_ENDPOINT_URL"
            if server
            else "the S3 server (AWS_ENDPOINT_URL is not set)"
        )
        raise RetuneError(f"{uri}: {place} cannot be reached or broke off: {error}") from error
    except (aws.BotoCoreError, Boto3Error, transfer.S3DownloadFailedError) as error:
        raise RetuneError(f"{uri}: {error}") from error
    except OSError as error:
        if isinstance(error, FileNotFoundError | FileExistsError):
            raise
        raise (DiskFull if error.errno in FULL else RetuneError)(
            f"{uri}: {error.strerror} ({error.filename}); free some space or set RETUNE_CACHE"
        ) from error


def _refusal(uri: str, error: Any) -> Exception:
    """Return the error for an answer of the server that is not a success."""
    code, message = str(error.get("Code")), error.get("Message", "")
    if code == "NoSuchBucket":
        return FileNotFoundError(errno.ENOENT, "No such bucket", uri)
    if code in ("404", "NoSuchKey", "NotFound"):
        return FileNotFoundError(errno.ENOENT, "No such object", uri)
    if code in _REFUSALS:
        return RetuneError(
            f"{uri}: the server refused ({code}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or"
            " AWS_PROFILE, to ones that may list the bucket, read it and write to it, and that have not expired (and see that "
            "AWS_REGION is the bucket's and this machine's clock is right)"
        )
    if code in (
        "507",
        "InsufficientStorage",
        "QuotaExceeded",
        "XMinioStorageFull",
        "XMinioAdminBucketQuotaExceeded",
    ):
        return DiskFull(f"{uri}: the server has no space left ({code}); free some there and run again")
    return RetuneError(f"{uri}: {message or 'the server refused'} ({code})")
