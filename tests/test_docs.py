"""Everything that the pages tell people to type or open exists: commands, options, chart values, make targets, files."""

import re
import shlex

import click
import pytest
import yaml

from retune.cli import cli
from tests.conftest import ROOT

PAGES = sorted(
    page
    for page in [
        ROOT / "README.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("charts/**/*.md"),
        *ROOT.glob("k8s/**/*.md"),
    ]
    if page.name != "cli.md"  # written by the program itself
)
MANIFESTS = ("charts/", "k8s/", "docs/", "examples/")


def commands(text, program):
    """The calls of a program in indented or fenced lines and in backticks, each as a list of words."""
    blocks = re.findall(r"^```(?:bash|sh)?\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"^ {4,}(\S.*)$", text.replace("\\\n", " "), re.M)
    lines += re.findall(rf"`({program} [^`]+)`", text)
    for line in lines:
        for part in re.split(r"[|;]|&&", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # prose that is indented
                continue
            if words[:1] == [program]:
                yield words


def unknown(words):
    """Return the words of a call of `retune` that the program does not accept."""
    command, rest = cli, words[1:]
    context = click.Context(cli)
    while isinstance(command, click.Group):
        verb = next((word for word in rest if not word.startswith("-")), None)
        if verb is None:
            return []
        found = command.get_command(context, verb)
        if found is None:
            return [verb]
        rest = rest[rest.index(verb) + 1 :]
        command = found
    options = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
    return [word for word in rest if word.startswith("--") and word.split("=")[0] not in options]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name != "decisions.md"],  # which speaks of commands that there are not
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_commands_of_retune_exist(page):
    wrong = [(words, unknown(words)) for words in commands(page.read_text(), "retune")]
    assert [entry for entry in wrong if entry[1]] == []


def test_a_wrong_command_is_found():
    text = "    retune submitt study.yaml\n\n`retune katib register --imag x`\n```bash\nretune run study.yaml --jsn\n```\n"
    assert [unknown(words) for words in commands(text, "retune")] == [["--jsn"], ["submitt"], ["--imag"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_files_and_targets_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert "://" in target or (page.parent / target).exists(), target
    for name in re.findall(rf"(?<![\w./@-])((?:{'|'.join(MANIFESTS)})[\w./-]*\w)", text):
        assert (ROOT / name).exists() or (page.parent / name).exists(), name
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    used = {words[1] for words in commands(text, "make") if len(words) > 1 and "=" not in words[1]}
    assert used <= targets


def test_values_of_the_chart_on_the_installation_page_exist():
    text = (ROOT / "docs/install.md").read_text()
    values = yaml.safe_load((ROOT / "charts/retune/values.yaml").read_text())
    sections = "|".join(values)
    set_at_install = [
        word.split("=")[0]
        for words in commands(text, "helm")
        for word in words
        if re.match(rf"({sections})\.", word)
    ]
    in_text = re.findall(rf"`((?:{sections})\.[\w.]+)(?:[=:][^`]*)?`", text)
    assert len(in_text) > 10
    assert len(set_at_install) >= 3
    assert [key for key in (*set_at_install, *in_text) if not _there(values, key.split("."))] == []


def _there(values, keys):
    for key in keys:
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True
