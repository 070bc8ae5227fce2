"""A branch with the proposed champion, and its pull request on GitHub or merge request on GitLab.

The commit is built from git objects, so neither the working tree nor the current branch of the job's clone changes.
Each model has one branch, ``retune/<model>``, and so at most one open request: a newer proposal replaces the older one.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from retune.errors import InputError, RetuneError
from retune.uris import mask

TIMEOUT_SECONDS = 30.0
TOKENS = ("RETUNE_TOKEN", "GITHUB_TOKEN", "GITLAB_TOKEN")
_IDENTITY = {
    "GIT_AUTHOR_NAME": "retune", "GIT_AUTHOR_EMAIL": "retune@localhost",
    "GIT_COMMITTER_NAME": "retune", "GIT_COMMITTER_EMAIL": "retune@localhost",
}  # fmt: skip


@dataclass(frozen=True)
class Forge:
    """GitHub or GitLab, found through the variables that their CI sets; `kind` is None elsewhere.

    Attributes:
        kind: ``github`` or ``gitlab``.
        api: base address of the API for this repository.
        token: must be allowed to open requests.
        base: the branch that requests target.
    """

    kind: str | None
    api: str = ""
    token: str = ""
    base: str = "main"

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Forge:
        """Return the forge of this CI job.

        Raises:
            InputError: if the job runs on a forge but has no token for it, or no branch to propose to.
        """
        if name := env.get("GITHUB_REPOSITORY"):
            api = f"{env.get('GITHUB_API_URL', 'https://api.github.com')}/repos/{name}"
            return cls("github", api, _token(env, "GITHUB_TOKEN"), _branch(env))
        if number := env.get("CI_PROJECT_ID"):
            server = env.get("CI_API_V4_URL", "https://gitlab.com/api/v4")
            project = f"{server}/projects/" + quote(number, safe="")
            return cls("gitlab", project, _token(env, "GITLAB_TOKEN"), env.get("CI_DEFAULT_BRANCH", "main"))
        return cls(None)

    def open(self, branch: str, title: str, body: str) -> str:
        """Open a request, or update the open request of this branch; return its address.

        Raises:
            RetuneError: if the API refuses or cannot be reached.
        """
        if self.kind == "github":
            owner = self.api.rsplit("/", 2)[1]
            query = urlencode({"head": f"{owner}:{branch}", "base": self.base, "state": "open"})
            existing = self._call("GET", f"pulls?{query}")
            content = {"title": title, "body": body}
            if existing:
                return str(self._call("PATCH", f"pulls/{existing[0]['number']}", content)["html_url"])
            return str(
                self._call("POST", "pulls", {**content, "head": branch, "base": self.base})["html_url"]
            )
        query = urlencode({"source_branch": branch, "target_branch": self.base, "state": "opened"})
        existing = self._call("GET", f"merge_requests?{query}")
        content = {"title": title, "description": body}
        if existing:
            return str(self._call("PUT", f"merge_requests/{existing[0]['iid']}", content)["web_url"])
        branches = {"source_branch": branch, "target_branch": self.base}
        return str(self._call("POST", "merge_requests", {**content, **branches})["web_url"])

    def _call(self, method: str, path: str, content: Any = None) -> Any:
        key = (
            {"Authorization": f"Bearer {self.token}"}
            if self.kind == "github"
            else {"PRIVATE-TOKEN": self.token}
        )
        headers = {
            **key,
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": "retune",
        }
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"{self.api}/{path}", body, headers, method=method)
        what = f"{method} {mask(self.api)}/{path.partition('?')[0]}"
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            reply = error.read(2000).decode(errors="replace").replace(self.token, "***")
            raise RetuneError(
                f"{what} answered {error.code}: {reply.strip()[:300] or error.reason}"
            ) from error
        except (OSError, ValueError) as error:
            raise RetuneError(f"{what} failed: {getattr(error, 'reason', error)}") from error


def _token(env: Mapping[str, str], name: str) -> str:
    if token := env.get("RETUNE_TOKEN") or env.get(name):
        return token
    raise InputError(
        f"--pull-request needs a token that is allowed to open pull requests: set {name} or RETUNE_TOKEN in the environment"
    )


def _branch(env: Mapping[str, str]) -> str:
    """Return the branch of a GitHub job; the repository's default where the job runs on a tag."""
    name = env.get("GITHUB_REF_NAME", "main")
    if env.get("GITHUB_BASE_REF"):
        raise InputError(
            f"--pull-request proposes a change of a branch, but this job runs on a pull request ({name}), whose own changes "
            "would be proposed too: run it on push, schedule or workflow_dispatch"
        )
    if env.get("GITHUB_REF_TYPE") != "tag":
        return name
    try:
        event = json.loads(Path(env["GITHUB_EVENT_PATH"]).read_text())
        return str(event["repository"]["default_branch"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--pull-request proposes a change of a branch, but this job runs on the tag {name}: run it on a branch"
        ) from error


def require_repository() -> None:
    """Require that a branch can be pushed from the current folder.

    Raises:
        InputError: if this is not a git repository, or it has no remote `origin`.
    """
    try:
        _git("rev-parse", "--verify", "HEAD")
        _git("remote", "get-url", "origin")
    except RetuneError as error:
        raise InputError(
            f"--pull-request needs a clone of a git repository with a remote `origin`: {error}"
        ) from error


def push(branch: str, files: Mapping[str, bytes], message: str) -> str:
    """Push one commit with `files` on top of HEAD to a branch of `origin`, replacing the branch; return the commit.

    Args:
        branch: without ``refs/heads/``.
        files: content by path in the repository.
        message: of the commit.

    Raises:
        RetuneError: if git refuses.
    """
    # In a temporary index, so that the clone's own keeps what is staged
    with tempfile.TemporaryDirectory() as folder:
        env = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        _git("read-tree", "HEAD", env=env)
        for path, content in files.items():
            blob = _git("hash-object", "-w", "--stdin", content=content)
            _git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", env=env)
        tree = _git("write-tree", env=env)
    identity = {key: os.environ.get(key, value) for key, value in _IDENTITY.items()}
    commit = _git("commit-tree", tree, "-p", "HEAD", "-m", message, env=identity)
    _git("push", "--quiet", "--force", "origin", f"{commit}:refs/heads/{branch}")
    return commit


def repository_root() -> Path:
    """Return the folder of the clone."""
    return Path(_git("rev-parse", "--show-toplevel"))


def changed_since(commit: str, files: Sequence[Path]) -> list[Path]:
    """Return those of `files` that differ from their version in a commit, or are not in it.

    Raises:
        InputError: if the commit is unknown here.
    """
    try:
        _git("cat-file", "-e", f"{commit}^{{commit}}")
    except RetuneError as error:
        raise InputError(
            f"--before names a commit of this clone, but got {commit!r}; a shallow clone lacks older commits (fetch-depth: 0)"
        ) from error
    root = repository_root()
    changed = []
    for file in files:
        path = file.resolve().relative_to(root.resolve()).as_posix()
        known = _git("ls-tree", commit, "--", f":(top){path}").split()
        if not known or known[2] != _git("hash-object", "--", str(file)):
            changed.append(file)
    return changed


def _git(*words: str, content: bytes | None = None, env: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            ["git", *words],
            input=content,
            capture_output=True,
            check=False,
            env={**os.environ, **(env or {})},
        )
    except FileNotFoundError as error:
        raise RetuneError("git is not installed here") from error
    if done.returncode:
        raise RetuneError(f"git {words[0]} failed: {done.stderr.decode(errors='replace').strip()[-500:]}")
    return done.stdout.decode().strip()
