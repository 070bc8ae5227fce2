"""Pushes an exported folder to a repository of a Hugging Face hub; a new one is private unless requested otherwise."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retune.errors import InputError, RetuneError, first_line

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Target:
    """Where to push: the repository `owner/name`, and whether everyone may see it."""

    repo: str
    public: bool = False

    @property
    def url(self) -> str:
        """The page of the repository."""
        return f"{_api().endpoint}/{self.repo}"


def target(repo: str, public: bool = False) -> Target:
    """Return the repository that a person names, after a check of the name.

    Raises:
        InputError: if no hub accepts such a name.
    """
    if not _NAME.fullmatch(repo) or ".." in repo or "--" in repo:
        raise InputError(f"a repository of a hub must be `owner/name`, but got {repo!r}", "--push")
    return Target(repo, public)


def check(where: Target) -> None:
    """Refuse, before anything is exported, what the hub would refuse; nothing is changed there.

    Raises:
        InputError: without a token, or if the repository is public and `where` is not.
        RetuneError: if the hub does not answer or does not take the token.
    """
    from huggingface_hub import constants, errors, get_token

    if constants.HF_HUB_OFFLINE:
        raise InputError("a push needs the hub, but HF_HUB_OFFLINE is set: unset it", "--push")
    if not get_token():
        raise InputError(
            "a push needs a token that may write: set HF_TOKEN, or log in by `hf auth login`", "--push"
        )
    with _hub_errors(where):
        try:
            repository = _api().repo_info(where.repo, timeout=30)
        except errors.RepositoryNotFoundError:
            return  # `push` creates it
    if not repository.private and not where.public:
        raise InputError(
            f"{where.url} exists and is public: give --public to push to it, or name another one", "--push"
        )


def push(folder: Path, where: Target, message: str) -> str:
    """Create the repository if there is none, upload the folder as one commit, and return the commit's URL.

    Raises:
        RetuneError: if the hub refuses, or cannot be reached; the folder is still there.
    """
    from huggingface_hub.utils import disable_progress_bars

    with _hub_errors(
        where, f"; what was exported is in {folder}, to push later by `hf upload {where.repo} {folder}`"
    ):
        disable_progress_bars()
        api = _api()
        api.create_repo(where.repo, private=not where.public, exist_ok=True)
        done = api.upload_folder(repo_id=where.repo, folder_path=folder, commit_message=message)
        return str(done.commit_url)


def files(folder: Path) -> dict[str, int]:
    """Return what a push would upload: names and sizes in bytes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


@contextmanager
def _hub_errors(where: Target, more: str = "") -> Iterator[None]:
    """Raise errors of the hub and of the network as RetuneError, with the remedy; `more` is appended to the message."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        why = {
            401: "the hub does not take the token: set HF_TOKEN to one that may write",
            403: f"the token may not write to {where.repo}",
            404: f"the token may not see {where.repo}, or its owner does not exist",
        }.get(code, f"the hub answered {code}: {first_line(error)}")
        raise RetuneError(f"{where.url}: {why}{more}") from error
    except (InputError, RetuneError):
        raise
    except Exception as error:  # the hub's client lets through errors of several network libraries
        raise RetuneError(
            f"{where.url}: the hub cannot be reached ({type(error).__name__}: {error}); set HF_ENDPOINT to one that can{more}"
        ) from error


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
