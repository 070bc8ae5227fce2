"""The README's animation: a real terminal's output as frames of an SVG."""

import importlib.util
import re
import sys
from xml.etree import ElementTree

import pytest

from tests.conftest import ROOT

spec = importlib.util.spec_from_file_location("docs_record", ROOT / "docs" / "record.py")
record = sys.modules["docs_record"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(record)


def test_a_command_is_recorded_as_its_terminal_shows_it(tmp_path):
    script = r"printf 'a \033[32mgreen\033[0m bar\r\n'; sleep 0.3; printf 'half'; sleep 0.3; printf '\rwhole\033[K\r\n'; pwd"
    found, took = record.record(["bash", "-c", script], tmp_path)
    assert took >= 0.6
    texts = [["".join(text for _, text, _, _ in row) for row in frame.rows] for frame in found]
    assert texts[0][0].startswith("$ bash -c")
    assert [frame.start for frame in found] == sorted(frame.start for frame in found)
    below = next(k for k, text in enumerate(texts[-1]) if text.startswith("agreen")) + 1
    assert "half" in [text[below] for text in texts]
    assert texts[-1][below : below + 2] == ["whole", str(tmp_path)]
    assert (2, "green", "green", False) in found[-1].rows[below - 1]
    with pytest.raises(SystemExit, match="ended with 3"):
        record.record(["bash", "-c", "exit 3"], tmp_path)


def test_the_film_is_an_svg_that_ends_on_the_last_frame():
    output = [(k / 10, f"line {k} <&>\r\n".encode()) for k in range(60)]
    assert len(record.frames(output, "$ x")) == 61
    assert [frame.start for frame in record.frames(output, "$ x", every=2.5)] == [0.0, 2.5, 5.0, 5.9]
    found = record.thinned(record.frames(output, "$ x"), 20)
    assert len(found) <= 20
    assert found[-1].start == 5.9
    text = record.svg(found, "x & y", seconds=3.0, hold=1.0)
    root = ElementTree.fromstring(text)
    strips = root.findall(".//*[@id='film']/*")
    assert len(strips) == len(found)
    keys = re.search(r"@keyframes film\{(.*?)\}\}", text)[1]
    assert "75.000%{" in keys  # the last frame after 3 of 4 seconds
    assert text.index("prefers-reduced-motion") > 0
    # A row is written once, however often it is shown
    assert "".join(root.itertext()).count("line 59 <&>") == 1
