"""The page in a real browser: nothing overflows on a phone, and nothing is fetched."""

import json
import random
import re
import shutil
import subprocess
import threading
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from retune.records import Answered, AnswersRecord
from retune.report.page import render
from retune.space import tribes2024
from tests.report.synthetic import mix, outcome, study, trial

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=4000",
    "--dump-dom",
]
LOOK = """<!doctype html><iframe src="/report.html" width="%d" height="900" style="border: 0"></iframe><script>
onload = () => {
  const view = document.querySelector("iframe").contentWindow, page = view.document;
  const width = page.documentElement.clientWidth;
  const outside = [...page.querySelectorAll("body *")].filter(e =>
    !e.closest("svg *") && !e.parentElement.closest(".scroll, pre") && e.getBoundingClientRect().right > width + 0.5);
  const figures = [...page.querySelectorAll("figure svg")].map(e => e.getBoundingClientRect());
  document.body.textContent = JSON.stringify({
    width, scroll: page.documentElement.scrollWidth, outside: outside.map(e => e.outerHTML.slice(0, 80)),
    fetched: view.performance.getEntriesByType("resource").map(e => e.name),
    narrow: figures.filter(f => f.width < 0.8 * Math.min(width, 400)).length,
    flat: figures.filter(f => f.height < 80).length,
    cut: [...page.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.getAttribute("aria-label")),
    table: page.querySelector("[aria-label=Trials]").clientHeight, window: view.innerHeight,
    type: parseFloat(view.getComputedStyle(page.body).fontSize),
  });
};</script>"""


@pytest.fixture
def look(tmp_path):
    """Return a function that shows a page in a frame of some width and says what the browser made of it."""
    asked: list[str] = []
    pages: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            page = pages.get(self.path)
            self.send_response(200 if page else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write((page or "").encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def show(page: str, width: int) -> dict:
        pages.update({"/report.html": page, "/": LOOK % width})
        asked.clear()
        done = subprocess.run(
            [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"http://127.0.0.1:{server.server_port}/"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        found = re.search(r"<body>(\{.*\})</body>", done.stdout, flags=re.S)
        assert found, done.stdout[-500:] + done.stderr[-500:]
        assert set(asked) <= {"/", "/report.html", "/favicon.ico"}
        return json.loads(unescape(found.group(1)))

    yield show
    server.shutdown()


def said(chosen: str) -> AnswersRecord:
    """Answers with long lines, long words and none."""
    texts = {"trial-000": "x" * 900, "trial-001": "", chosen: "one\ntwo " * 40}
    asked = Answered(
        question="why " * 80, earlier=[("system", "y" * 300)], reference="because", answers=texts
    )
    return AnswersRecord(
        trials=list(texts), chosen=chosen, prompt="chat", new_tokens=128, questions=[asked] * 10
    )


@pytest.mark.parametrize("width", [375, 390, 1280, 1400])
def test_nothing_sticks_out_and_nothing_is_fetched(look, width):
    asked, records, scores, selection, gate = outcome()
    selection.findings.append("a finding with/a/very/long/path" * 8)
    records.append(trial(99, "search", {"rank": 8}, None).model_copy(update={"reason": "x" * 400}))
    seen = look(render(asked, mix(), records, scores, selection, gate, said(selection.chosen)), width)
    assert seen["scroll"] <= seen["width"] <= width
    assert seen["outside"] == []
    assert seen["fetched"] == []
    assert (seen["narrow"], seen["flat"]) == (0, 0)
    assert seen["type"] >= 16
    if width >= 1280:
        assert seen["cut"] == []  # on a desk no column needs scrolling


def test_an_empty_study_fits_too(look):
    seen = look(render(study(), None, [], [], None, None), 375)
    assert seen["scroll"] <= seen["width"]
    assert seen["outside"] == []


@pytest.mark.parametrize("width", [390, 1400])
def test_what_follows_a_thousand_trials_is_in_reach(look, width):
    names = tribes2024()
    chance = random.Random(0)
    records = [
        trial(k, "search", names.decode([chance.randrange(p.levels) for p in names.parameters]), 2 + 1 / k)
        for k in range(2, 1002)
    ]
    page = render(study(), mix(), records, [], None, None)
    seen = look(page, width)
    assert 300 < seen["table"] < seen["window"]
    assert seen["scroll"] <= seen["width"]
    assert seen["outside"] == []
    assert len(page) < 2_000_000
