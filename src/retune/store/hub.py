"""Files on a Hugging Face hub, by huggingface_hub, which keeps its own cache and verifies what is in it. Read only."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from retune.errors import InputError, RetuneError
from retune.store import names

_URI = re.compile(
    r"hf://(?P<kind>datasets/|models/)?(?P<repo>(?!datasets/|models/|spaces/)[^/@]+/[^/@]+)"
    r"(@(?P<revision>[^/@]+))?(/(?P<path>[^@]*))?(@(?P<last>[^/@]+))?"
)


def parse(uri: str) -> HubPlace:
    """Return the place that a ``hf://`` URI names.

    Raises:
        InputError: if it has another form.
    """
    match = _URI.fullmatch(uri)
    if not match or (match["revision"] and match["last"]):
        raise InputError(
            f"a hub URI has the form hf://datasets/<owner>/<name>[@revision]/<path>, but got {uri!r}"
        )
    kind = "dataset" if match["kind"] == "datasets/" else "model"
    revision = match["revision"] or match["last"]
    path = (match["path"] or "").strip("/")
    if path and (why := names.problem(path)):
        raise InputError(f"the path of a hub URI is refused: {why}; got {uri!r}")
    return HubPlace(uri, kind, match["repo"], unquote(revision) if revision else None, path)


@dataclass(frozen=True)
class HubPlace:
    """A file or folder of a repository at a revision. The methods are described in `retune.store`."""

    uri: str
    kind: str
    repo: str
    revision: str | None
    path: str

    def read(self) -> bytes:
        """Return the file's bytes."""
        return self._file().read_bytes()

    def exists(self) -> bool:
        """Return whether there is such a file or folder."""
        try:
            return bool(self._below())
        except FileNotFoundError:
            return False

    def listing(self) -> list[str]:
        """Return the names of all files below."""
        try:
            return [name for name in self._below() if name]
        except FileNotFoundError:
            return []

    def contents(self, wanted: Callable[[str], bool]) -> dict[str, bytes]:
        """Return the contents of the wanted files below; what was fetched before is in the hub's cache."""
        below = f"{self.path}/" if self.path else ""
        return {name: replace(self, path=below + name).read() for name in filter(wanted, self.listing())}

    def download(self) -> Path:
        """Return the path of the file or folder in the hub's cache."""
        if self.path:
            try:
                return self._file()
            except FileNotFoundError:
                if not self.listing():
                    raise
        names.check(self.listing(), self.uri)
        pattern = f"{self.path}/*" if self.path else None
        with self._translated_errors():
            root = _api().snapshot_download(
                self.repo, repo_type=self.kind, revision=self.revision, allow_patterns=pattern
            )
        return Path(root) / self.path

    def write(self, data: bytes) -> None:
        """Refuse."""
        raise self._read_only()

    def create(self, data: bytes) -> bool:
        """Refuse."""
        raise self._read_only()

    def take(self, content: BufferedReader) -> None:
        """Refuse."""
        raise self._read_only()

    def gather(self, wanted: Callable[[str], bool]) -> None:
        """Refuse: the hub is read only."""
        raise self._read_only()

    def remove(self) -> None:
        """Refuse."""
        raise self._read_only()

    def _read_only(self) -> InputError:
        return InputError(f"the hub is only read from; name a folder or an s3:// URI instead of {self.uri!r}")

    def _file(self) -> Path:
        with self._translated_errors():
            return Path(
                _api().hf_hub_download(self.repo, self.path, repo_type=self.kind, revision=self.revision)
            )

    def _below(self) -> list[str]:
        """Return the names below this folder; the empty name means a file at the path itself."""
        with self._translated_errors():
            names = _api().list_repo_files(self.repo, repo_type=self.kind, revision=self.revision)
        if self.path in names:
            return [""]
        prefix = f"{self.path}/" if self.path else ""
        return sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Convert the errors of huggingface_hub."""
        from huggingface_hub import errors

        try:
            yield
        except errors.GatedRepoError as error:
            raise RetuneError(
                f"{self.uri}: its owner must let you in first: ask on its page, then set HF_TOKEN"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise FileNotFoundError(
                errno.ENOENT, "No such repository, or a private one that needs HF_TOKEN", self.uri
            ) from error
        except errors.RevisionNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "No such revision", self.uri) from error
        except errors.RemoteEntryNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "No such file", self.uri) from error
        except errors.HFValidationError as error:
            raise InputError(f"{self.uri}: {error}") from error
        except Exception as error:  # huggingface_hub lets through the errors of requests, httpx and urllib3
            raise RetuneError(
                f"{self.uri}: the hub {_api().endpoint} cannot be reached and the file is not in its cache"
                f" ({type(error).__name__}: {error}); set HF_ENDPOINT to a hub that can, or name a local file"
            ) from error


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
