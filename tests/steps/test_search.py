"""What a search reports to MLflow."""

from retune.steps import search


def test_the_commit_is_the_given_code_else_gits_else_none(small, tmp_path, monkeypatch):
    assert search._tags(small("code=abc"), "d")["git_commit"] == "abc"
    assert "git_commit" not in search._tags(small(), "d")  # no repository here
    monkeypatch.setenv("PATH", str(tmp_path))  # no git here, as in the images
    assert "git_commit" not in search._tags(small(), "d")


def test_time_that_an_older_release_could_not_write_ends_no_search(tmp_path):
    file = tmp_path / "search-1.seconds"
    assert search._seconds_before(file) == 0
    file.write_text("")  # as a full disk left it
    assert search._seconds_before(file) == 0
    file.write_text("12.5\n")
    assert search._seconds_before(file) == 12.5
