"""An algorithm whose package is not installed is refused, never replaced silently by another."""

from retune import search
from retune.space import tribes2024


def test_nomad_without_its_package_is_refused_where_it_would_run(monkeypatch):
    space = tribes2024()
    assert search.validate("nomad", space, {}) == []
    monkeypatch.setattr(search, "find_spec", lambda name: None)
    (messages,) = search.validate("nomad", space, {})
    assert "PyNomadBBO" in messages
    assert "mads-global" in messages
    assert search.validate("nomad", space, {}, here=False) == []  # Katib runs it in another image
    assert search.validate("mads-global", space, {}) == []
