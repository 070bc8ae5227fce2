"""The digest of an adapter's files, and that a changed file is noticed and named."""

import hashlib
import json

import pytest

from retune import adapter

FILES = {adapter.CONFIG: b'{"lora_alpha": 8}', adapter.WEIGHTS: b"weights"}


@pytest.fixture
def trial(tmp_path):
    """The folder of a trial, as `retune trial` leaves it."""
    (tmp_path / "adapter").mkdir()
    for name, content in FILES.items():
        (tmp_path / "adapter" / name).write_bytes(content)
    record = {"adapter_digest": adapter.digest(FILES), "adapter_files": adapter.sums(FILES)}
    (tmp_path / "trial.json").write_text(json.dumps(record))
    return tmp_path


def flip(file):
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


def test_the_settings_are_part_of_the_digest():
    assert adapter.digest(FILES) != adapter.digest({**FILES, adapter.CONFIG: b'{"lora_alpha": 9}'})


@pytest.mark.parametrize("name", adapter.FILES)
@pytest.mark.parametrize("known", [True, False])
def test_a_flipped_bit_is_noticed_and_its_file_named(trial, name, known):
    uri = str(trial / "adapter")
    expected = adapter.digest(FILES) if known else None
    assert adapter.damage(uri, expected) == []
    flip(trial / "adapter" / name)
    (messages,) = adapter.damage(uri, expected)
    assert messages.startswith(f"{uri}/{name} is not what the trial wrote")


def test_digests_of_older_releases_are_taken(trial):
    """They are over the weights alone."""
    old = hashlib.sha256(FILES[adapter.WEIGHTS]).hexdigest()[:16]
    (trial / "trial.json").write_text(json.dumps({"adapter_digest": old}))
    assert adapter.damage(str(trial / "adapter")) == []
    flip(trial / "adapter" / adapter.WEIGHTS)
    assert "adapter_config.json or " in adapter.damage(str(trial / "adapter"))[0]


def test_an_adapter_from_elsewhere_is_taken_as_it_is(trial):
    (trial / "trial.json").unlink()
    assert adapter.damage(str(trial / "adapter")) == []
    (trial / "trial.json").write_text("[]")
    assert adapter.damage(str(trial / "adapter")) == []
