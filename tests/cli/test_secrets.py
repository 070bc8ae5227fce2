"""Secrets from the environment and the tracking address never appear in what a study writes, prints or starts."""

import contextlib
import gzip
import threading
from pathlib import Path

import pytest

from tests.conftest import DEMO, SMALL

pytestmark = pytest.mark.slow
pytest_plugins = ["tests.s3_server", "tests.mlflow_server"]
SECRETS = {
    name: f"canary-{number}-of-{name.lower()}"
    for number, name in enumerate(
        (
            "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD",
            "RETUNE_WEBHOOK", "GITHUB_TOKEN", "OPENAI_API_KEY", "GITLAB_TOKEN", "SLACK_BOT_TOKEN", "MLFLOW_TRACKING_TOKEN",
        )
    )
}  # fmt: skip
ADDRESSED = "canary-of-an-address"
MARK = "canary-"


class Commands:
    """The arguments of every process while it is open, as any user of the machine can read them."""

    def __enter__(self):
        self.seen = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _look(self):
        while not self._over.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    self.seen.add(path.read_bytes())


def holding(contents):
    """Return the names of files whose content, unpacked too, contains one of the secrets."""
    found = []
    for name, content in contents:
        unpacked = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else b""
        if MARK.encode() in content + unpacked or MARK in str(name):
            found.append(str(name))
    return found


def files(folder):
    return [(path, path.read_bytes()) for path in Path(folder).rglob("*") if path.is_file()]


def test_a_run_leaves_no_secret_anywhere(retune, s3, mlflow_server, tmp_path):
    from retune import store

    tracking = mlflow_server.uri.replace("://", f"://me:{ADDRESSED}@")
    words = [f"tracking.uri={tracking}", f"artifacts.uri={s3}/artifacts", "search.trials=2"]
    env = {**SECRETS, "MLFLOW_TRACKING_USERNAME": "me", "HTTPS_PROXY": f"http://me:{MARK}proxy@127.0.0.1:9"}
    with Commands() as commands:
        # The address stands in this command's own arguments; that is the caller's to avoid, and what follows is not.
        run = retune(
            "run", str(DEMO), *SMALL, *words, "--json", XDG_CACHE_HOME=str(tmp_path / "cache"), **env
        )
        out, err = run.communicate(timeout=500)
    assert run.returncode == 0, err
    theirs = {line for line in commands.seen if b"tracking.uri=" not in line}
    assert holding([("out", out.encode()), ("err", err.encode())]) == []
    assert holding([(line, line) for line in theirs]) == []
    names = store.listing(s3)
    assert len(names) > 20
    assert holding((name, store.read(f"{s3}/{name}")) for name in names) == []
    assert holding(files(tmp_path)) == []
    assert holding(files(mlflow_server.folder)) == []

    # Errors name the address without its password, and the secrets of the environment not at all.
    mlflow_server.kill()
    for command in (["validate"], ["run"]):
        more = [] if command == ["validate"] else ["training.max_length=300"]
        wrong = retune(
            *command, str(DEMO), *SMALL, *words, *more, "data.train=no", RETUNE_PATIENCE_SECONDS="1", **env
        )
        out, err = wrong.communicate(timeout=200)
        assert wrong.returncode != 0
        assert holding([("out", out.encode()), ("err", err.encode())]) == []
