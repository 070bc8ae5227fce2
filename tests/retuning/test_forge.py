"""Requests to GitHub and GitLab, and messages to a webhook: what is sent, and what is reported when that fails."""

import subprocess

import pytest

from retune.errors import InputError, RetuneError
from retune.retuning import forge
from retune.retuning.notify import masked, notifier

pytest_plugins = ["tests.retuning.servers"]


def github(server):
    env = {
        "GITHUB_REPOSITORY": "team/bot",
        "GITHUB_API_URL": server.url,
        "GITHUB_TOKEN": "t0ken",
        "GITHUB_REF_NAME": "trunk",
    }
    return forge.Forge.from_environment(env)


def test_a_request_on_github_is_opened_once_and_then_updated(server):
    server.answers["GET", "/repos/team/bot/pulls"] = (200, [])
    server.answers["POST", "/repos/team/bot/pulls"] = (201, {"html_url": "https://git.example/pull/7"})
    assert github(server).open("retune/m", "T", "B") == "https://git.example/pull/7"
    method, _, body, headers = server.requests[-1]
    assert (method, body) == ("POST", {"title": "T", "body": "B", "head": "retune/m", "base": "trunk"})
    assert headers["Authorization"] == "Bearer t0ken"
    assert "head=team%3Aretune%2Fm" in server.requests[0][1]

    server.answers["GET", "/repos/team/bot/pulls"] = (200, [{"number": 7}])
    server.answers["PATCH", "/repos/team/bot/pulls/7"] = (200, {"html_url": "https://git.example/pull/7"})
    assert github(server).open("retune/m", "T2", "B2") == "https://git.example/pull/7"
    assert server.requests[-1][:3] == ("PATCH", "/repos/team/bot/pulls/7", {"title": "T2", "body": "B2"})


def test_a_job_on_a_tag_proposes_to_the_default_branch_and_one_on_a_pull_request_to_none(tmp_path):
    """GitHub has no request whose base is a tag, or `7/merge`, and would say so only when the GPU hours are spent."""
    (tmp_path / "event.json").write_text('{"repository": {"default_branch": "trunk"}}')
    env = {
        "GITHUB_REPOSITORY": "team/bot",
        "GITHUB_TOKEN": "t0ken",
        "GITHUB_REF_NAME": "v1.0",
        "GITHUB_REF_TYPE": "tag",
    }
    event = {"GITHUB_EVENT_PATH": str(tmp_path / "event.json")}
    assert forge.Forge.from_environment({**env, **event}).base == "trunk"
    with pytest.raises(InputError, match=r"runs on the tag v1\.0: run it on a branch"):
        forge.Forge.from_environment(env)
    env |= {"GITHUB_REF_NAME": "7/merge", "GITHUB_REF_TYPE": "branch", "GITHUB_BASE_REF": "trunk", **event}
    with pytest.raises(InputError, match=r"on a pull request \(7/merge\)"):
        forge.Forge.from_environment(env)


def test_a_request_on_gitlab(server):
    found = forge.Forge.from_environment(
        {"CI_PROJECT_ID": "12", "CI_API_V4_URL": server.url, "GITLAB_TOKEN": "t0ken"}
    )
    place = "/projects/12/merge_requests"
    server.answers["GET", place] = (200, [])
    server.answers["POST", place] = (201, {"web_url": "https://git.example/mr/1"})
    assert found.open("retune/m", "T", "B") == "https://git.example/mr/1"
    assert server.requests[-1][2] == {
        "title": "T",
        "description": "B",
        "source_branch": "retune/m",
        "target_branch": "main",
    }
    assert server.requests[-1][3]["Private-Token"] == "t0ken"
    server.answers["GET", place] = (200, [{"iid": 1}])
    server.answers["PUT", f"{place}/1"] = (200, {"web_url": "https://git.example/mr/1"})
    assert found.open("retune/m", "T", "B") == "https://git.example/mr/1"


def test_what_the_forge_refuses_is_told_without_the_token(server):
    server.answers["GET", "/repos/team/bot/pulls"] = (403, {"message": "t0ken lacks pull_requests: write"})
    with pytest.raises(RetuneError, match=r"answered 403: .*lacks pull_requests: write") as refused:
        github(server).open("retune/m", "T", "B")
    assert "t0ken" not in str(refused.value)
    server.close()
    with pytest.raises(RetuneError, match="refused"):
        github(server).open("retune/m", "T", "B")


def test_a_missing_token_is_told_before_anything_is_spent():
    with pytest.raises(InputError, match="GITHUB_TOKEN or RETUNE_TOKEN"):
        forge.Forge.from_environment({"GITHUB_REPOSITORY": "team/bot"})
    with pytest.raises(InputError, match="GITLAB_TOKEN or RETUNE_TOKEN"):
        forge.Forge.from_environment({"CI_PROJECT_ID": "12", "GITHUB_TOKEN": "x"})
    assert forge.Forge.from_environment({}).kind is None


def test_pushing_a_proposal_changes_nothing_else(tmp_path, monkeypatch):
    for words in (["init", "-q", "--bare", "-b", "main", "origin"], ["clone", "-q", "origin", "work"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)
    work = tmp_path / "work"
    monkeypatch.chdir(work)

    def git(*words, cwd=work):
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(
            ["git", *who, *words], cwd=cwd, check=True, capture_output=True, text=True
        ).stdout.strip()

    with pytest.raises(InputError, match="needs a clone of a git repository"):
        forge.require_repository()  # no commit yet
    (work / "a").write_text("a")
    git("add", "a")
    git("commit", "-qm", "one")
    git("push", "-q", "origin", "HEAD:main")
    (work / "a").write_text("half done")
    (work / "b").write_text("staged")
    git("add", "b")
    before = git("status", "--porcelain"), git("rev-parse", "HEAD")
    for text in (b"1", b"2"):  # the second takes the place of the first
        forge.push("retune/m", {"retune/m.json": text, "a": b"new"}, "Promote m version 1")
    assert (git("status", "--porcelain"), git("rev-parse", "HEAD")) == before
    bare = tmp_path / "origin"
    assert git("show", "retune/m:retune/m.json", cwd=bare) == "2"
    assert git("ls-tree", "-r", "--name-only", "retune/m", cwd=bare).split() == ["a", "retune/m.json"]
    assert git("rev-list", "--count", "retune/m", cwd=bare) == "2"

    assert forge.changed_since("HEAD", [work / "a"]) == [work / "a"]
    git("checkout", "a")
    assert forge.changed_since("HEAD", [work / "a", work / "b"]) == [work / "b"]
    with pytest.raises(InputError, match="shallow clone"):
        forge.changed_since("0" * 40, [work / "a"])


@pytest.mark.parametrize("status", [200, 404, 500])
def test_a_message_is_sent_and_a_failure_is_only_told(server, status):
    server.answers["POST", "/hook/secret"] = (status, "x")
    warnings = []
    notifier(f"{server.url}/hook/secret", warnings.append)("support-bot: done")
    assert server.texts() == ["support-bot: done"]
    assert len(warnings) == (status != 200)
    assert not any("secret" in line for line in warnings)
    assert status == 200 or f"{server.url}/***" in warnings[0]


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9/hook/secret", "hook/secret", "ftp://x/secret", "http://[secret", "http://h:port/secret", "http://h /secret", "https://x.invalid/secret"],
)  # fmt: skip
def test_an_address_that_leads_nowhere_stops_nothing_and_stays_secret(url):
    warnings = []
    notifier(url, warnings.append)("x")
    assert len(warnings) == 1
    assert "secret" not in warnings[0]


def test_without_an_address_nothing_is_sent():
    warnings = []
    notifier(None, warnings.append)("x")
    notifier("", warnings.append)("x")
    assert warnings == []
    assert masked("https://hooks.example/services/T0/B0/key?x=1") == "https://hooks.example/***"
