"""Texts of others stay plain text within Markdown: checked by a renderer with HTML, tables and links enabled."""

import html
import re
from types import SimpleNamespace

import pytest

from retune.markdown import block, plain, row

HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[press](javascript:alert(1))", "![pixel](https://evil.example/p.png)",
    "**bold** _slant_ ~~gone~~ `code`", "a | b | c", "&lt;b&gt; &#64;all", "https://evil.example/login", "www.evil.example", "<https://evil.example>",
    "[a]: https://evil.example", "\\[a](b)", "# a head", "- a point", "> a quote", "1) one", "a\n\n# b\n/close", "```\nx", "--- ", "===",
]  # fmt: skip


def shown(text):
    markdown_it = pytest.importorskip("markdown_it")
    made = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return made.render(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_markup_comes_of_a_text(text):
    page = shown(
        f"It is {plain(text)}.\n\n- {plain(text)}\n\n{row(['a', text])}\n|---|---|\n{row([text, 'b'])}\n"
    )
    tags = set(re.findall(r"</?([a-z0-9]+)", page))
    assert tags <= {"p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    assert page.count("<td>") == page.count("<th>") == 2
    assert not re.search(r"(?<!\\)://|www\.", plain(text))


@pytest.mark.parametrize(
    "text", ["@everyone", "a @alice b", "fixes #12", "owner/name#3", "!7", "me@example.org"]
)
def test_nobody_is_called_and_nothing_is_closed(text):
    assert not re.search(r"[@#!]\w", html.unescape(plain(text)))


@pytest.mark.parametrize(
    "text",
    ["validation_loss", "support-bot", "0.5 %", "trial-007", "3.2e-05", "q_proj, v_proj", "data/train.jsonl"],
)
def test_usual_names_are_left_alone(text):
    assert plain(text) == text


def test_nothing_unseen_is_kept():
    assert plain("a\x1b[2Jb\u202ec\u200bd\x00") == "a\\[2Jbcd"


def test_a_block_ends_where_it_should():
    page = shown(block("a\n```\n<b>\n````\n"))
    assert page.count("<pre>") == page.count("</pre>") == 1
    assert "<b>" not in page


def test_a_model_card_holds_what_it_is_given_as_text():
    import yaml

    from retune.steps import export

    base = "owner/name\nlicense: mit\n---\n<script>"
    what = SimpleNamespace(
        name="<b>@all</b>", model=SimpleNamespace(base=base), facts={"Study": "a\nb | c <img src=x>", "Base": "@alice"},
        template=SimpleNamespace(kind="fields", text="{prompt}\n```\n<script>\n"),
    )  # fmt: skip
    text = export.card(what, "apache-2.0\ntags: [x]")
    _, head, body = text.split("---\n", 2)
    front = yaml.safe_load(head)
    assert front["base_model"] == "owner/name license: mit --- <script>"
    assert front["license"] == "apache-2.0 tags: [x]"
    assert front["tags"] == ["lora", "retune"]
    page = shown(body)
    assert not set(re.findall(r"<([a-z]+)", page)) & {"script", "img", "b"}
    assert "@all" not in page
