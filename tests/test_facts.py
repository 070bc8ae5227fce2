"""Facts that stand in several places are the same in all of them."""

import re
import tomllib

import yaml

from retune import __version__
from tests.conftest import ROOT


def text(name):
    return (ROOT / name).read_text()


def test_the_python_that_is_asked_for():
    least = tomllib.loads(text("pyproject.toml"))["project"]["requires-python"].removeprefix(">=")
    for name in ("README.md", "docs/install.md", "Makefile"):
        versions = re.findall(r"Python (\d\.\d+)( or newer)?", text(name))
        assert versions, name
        assert set(versions) == {(least, " or newer")}, name


def test_how_long_the_demo_takes():
    times = {
        re.search(r"(\d+ to \d+) minutes on (?:two|2) idle cores", text(name))[1]
        for name in ("README.md", "Makefile")
    }
    assert len(times) == 1


def test_examples_of_the_chart_have_its_version():
    for path in (ROOT / "charts/examples").glob("*.yaml"):
        tags = re.findall(r'^\s*tag: "?([0-9.]+)"?', path.read_text(), re.M)
        assert set(tags) <= {__version__}, path.name
    assert yaml.safe_load(text("charts/retune/Chart.yaml"))["appVersion"] == __version__


def test_help_is_shown_as_the_program_shows_it():
    assert "-h, --help" in text("docs/cli.md")
    assert not re.search(r"^  --help ", text("docs/cli.md"), re.M)
