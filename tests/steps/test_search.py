"""What a search reports to MLflow."""

from retune.steps import search


def test_the_commit_is_the_given_code_else_gits_else_none(small, tmp_path, monkeypatch):
    assert search._tags(small("code=abc"), "d")["git_commit"] == "abc"
    assert "git_commit" not in search._tags(small(), "d")  # no repository here
    monkeypatch.setenv("PATH", str(tmp_path))  # no git here, as in the images
    assert "git_commit" not in search._tags(small(), "d")
