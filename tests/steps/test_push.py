"""An exported adapter on a hub: the real client against a small server that takes uploads as the hub does."""

import pytest
from click.testing import CliRunner
from huggingface_hub import constants

from retune.cli import cli
from retune.errors import InputError, RetuneError
from retune.steps import push
from tests.hub_server import Hub


@pytest.fixture
def hub(monkeypatch):
    found = Hub("secret")
    monkeypatch.setenv("HF_ENDPOINT", found.url)
    monkeypatch.setenv("HF_TOKEN", "secret")
    # The small hub speaks LFS, as self-hosted ones do
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield found
    found.close()


def run(*words):
    return CliRunner().invoke(cli, words)


def test_an_export_is_pushed_whole_and_private(searched, hub):
    study, _, tmp_path = searched
    out = tmp_path / "out"
    shown = run("export", study.root, "--out", str(out), "--push", "me/bot", "--licence", "apache-2.0")
    assert shown.exit_code == 0, shown.output
    assert f"pushed {hub.url}/me/bot/commit/" in shown.output
    repo = hub.repos["me/bot"]
    assert repo["private"] is True
    assert repo["message"] == "first-study, tuned by retune"
    assert repo["files"] == {path.name: path.read_bytes() for path in out.iterdir()}
    assert {"adapter_model.safetensors", "README.md", "prompt.json"} <= set(repo["files"])
    again = run("export", study.root, "--out", str(tmp_path / "again"), "--push", "me/bot")
    assert again.exit_code == 0, again.output


def test_a_dry_run_says_what_it_would_do_and_asks_nobody(searched, hub):
    study, _, tmp_path = searched
    shown = run("export", study.root, "--out", str(tmp_path / "out"), "--push", "me/bot", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "adapter_model.safetensors" in shown.output
    assert f"to {hub.url}/me/bot (private)" in shown.output
    assert (hub.asked, hub.repos) == ([], {})


def test_what_the_hub_refuses_is_said_before_anything_is_exported(searched, hub, monkeypatch):
    study, _, tmp_path = searched

    def refused(*more):
        shown = run("export", study.root, "--out", str(tmp_path / "out"), *more)
        assert not (tmp_path / "out").exists()
        return str(shown.exception or shown.output)

    hub.repos["me/open"] = {"private": False, "files": {}}
    assert "me/open exists and is public: give --public" in refused("--push", "me/open")
    assert "must be `owner/name`, but got 'bot'" in refused("--push", "bot")
    shown = run("export", study.root, "--dry-run")
    assert (shown.exit_code, "belong to --push" in shown.output) == (2, True)
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "does not take the token" in refused("--push", "me/open")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert "set HF_TOKEN" in refused("--push", "me/bot")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused("--push", "me/bot")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "the hub cannot be reached" in refused("--push", "me/bot")


def test_what_is_exported_stays_when_the_push_fails(hub, tmp_path):
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(RetuneError, match=f"may not write to them/bot; what was exported is in {tmp_path}"):
        push.push(tmp_path, push.target("them/bot"), "x")
    with pytest.raises(InputError, match="owner/name"):
        push.target("a/b/c")
    public = push.target("me/open", public=True)
    push.check(public)
    push.push(tmp_path, public, "x")
    assert hub.repos["me/open"] == {"private": False, "message": "x", "files": {"README.md": b"x"}}
