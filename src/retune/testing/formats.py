"""The contract of a data format, as tests: subclass `FormatContract`, give its name and a file."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from retune.data import sources
from retune.data.example import Example
from retune.errors import InputError
from retune.study import Source


class FormatContract:
    """What retune relies on in a data format.

    Attributes:
        name: of the format, as a study file has it.
        data: a file or folder with at least one record. records: how many it holds.

    """

    name: ClassVar[str]
    data: ClassVar[Path]
    records: ClassVar[int]

    def source(self, path: Path) -> Source:
        """Return the source as a study names it."""
        return Source(uri=str(path), format=self.name)

    @pytest.fixture
    def examples(self) -> list[Example]:
        """The records of the file, read as a study reads them."""
        return sources.read_source(self.source(self.data))

    def test_every_record_is_read_in_order(self, examples: list[Example]) -> None:
        assert len(examples) == self.records > 0
        rows = [example.row for example in examples]
        assert rows == sorted(set(rows))
        assert min(rows) >= 1

    def test_records_say_something_to_learn(self, examples: list[Example]) -> None:
        # Mixing leaves out those without an answer
        assert any(example.output.strip() for example in examples)
        for example in examples:
            assert example.source == self.data.name
            assert example.turns[-1][0] == "assistant" or example.is_text

    def test_reading_again_gives_the_same(self, examples: list[Example]) -> None:
        assert sources.read_source(self.source(self.data)) == examples

    def test_records_survive_being_kept(self, examples: list[Example]) -> None:
        assert [Example.from_dict(example.to_dict()) for example in examples] == examples

    @pytest.mark.parametrize(
        "content", [b"", b"\xff\xfe\x00 not this", b"{"], ids=["empty", "binary", "cut off"]
    )
    def test_what_is_not_the_format_is_refused_by_name(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / self.data.name
        path.write_bytes(content)
        with pytest.raises(InputError, match=self.data.name):
            sources.read_source(self.source(path))
