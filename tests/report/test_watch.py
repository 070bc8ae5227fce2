"""The live page: what it is sent, and how a browser shows it, on a desk and on a phone."""

import json
import re
import shutil
import subprocess
import threading
import urllib.request
from html import unescape

import pytest

from retune import store
from retune.report import watch
from tests.report.synthetic import study, trials

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
RUNNING = {
    "step": "search", "done": 4, "total": 12, "settings": 8, "settings_done": 3, "failed": 0, "best": 1.9, "base": 2.9, "left": 30.0,
    "running": {"trial-090": 0.5}, "epochs": {"trial-090": 1.0}, "losses": {"trial-090": 2.5},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "alpaca-dolly"
    search = made / "search-0123456789abcdef"
    store.write(search / "study.json", study().model_dump_json().encode())
    for record in trials():
        store.write(search / "trials" / record.trial / "trial.json", record.to_json())
    (made / "progress.json").write_text(json.dumps(RUNNING))
    return made


@pytest.fixture
def server(folder):
    found = watch.serve(str(folder), "127.0.0.1", 0, every=0.05)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    found.server_close()


def test_a_change_is_sent_at_once_and_nothing_twice(folder, server):
    with urllib.request.urlopen(f"{server}/events", timeout=20) as stream:
        first = json.loads(stream.readline().removeprefix(b"data: "))
        assert first["study"] == "alpaca-dolly"
        assert first["progress"] == RUNNING
        assert len(first["trials"]) == len(trials())
        stream.readline()
        (folder / "progress.json").write_text(json.dumps(RUNNING | {"done": 5}))
        second = json.loads(stream.readline().removeprefix(b"data: "))
        assert second["progress"]["done"] == 5


def test_a_study_that_has_not_begun_is_no_error(tmp_path):
    assert watch.Watched(str(tmp_path / "soon")).state() == {"study": "soon", "progress": {}, "trials": []}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it(folder, server, tmp_path, width):
    page = urllib.request.urlopen(server, timeout=20).read().decode()
    state = urllib.request.urlopen(f"{server}/state", timeout=20).read().decode()
    # A stream that never ends would hold the headless browser up: it is shown the state once.
    script = (
        f"show({state}); show({state}); document.title = JSON.stringify({{scroll: document.documentElement.scrollWidth, "
        "width: document.documentElement.clientWidth, where: at('where').textContent, rows: at('rows').children.length, "
        "dots: document.querySelectorAll('#history circle').length, runs: document.querySelectorAll('.run').length, "
        "lines: document.querySelectorAll('#settings polyline').length}); //"
    )
    page = page.replace('const source = new EventSource("/events");', script, 1)
    page = page.replace("source.onmessage", "//").replace("source.onerror", "//")
    (tmp_path / "page.html").write_text(page)
    frame = f'<!doctype html><iframe src="page.html" width="{width}" height="900" style="border: 0"></iframe><script>onload = () => {{ document.body.textContent = document.querySelector("iframe").contentWindow.document.title; }};</script>'
    (tmp_path / "frame.html").write_text(frame)
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--virtual-time-budget=4000",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path}/frame.html"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r"<body>(\{.*\})</body>", done.stdout, flags=re.S)
    assert found, done.stdout[-600:] + done.stderr[-600:]
    seen = json.loads(unescape(found.group(1)))
    assert seen["scroll"] <= seen["width"]
    assert "3 of 8 settings (4 of 12 trials)" in seen["where"]
    assert seen["rows"] == len(trials())
    assert (seen["dots"] > 10, seen["lines"] > 10, seen["runs"]) == (True, True, 1)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_a_browser_follows_the_stream(server, tmp_path, monkeypatch):
    every = watch.events
    monkeypatch.setattr(watch, "events", lambda watched, seconds: iter([next(every(watched, seconds))]))
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"{server}/"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert '<h1 id="study">alpaca-dolly</h1>' in done.stdout
    assert "trial-090 · 50 % · epoch 1 · loss 2.5" in done.stdout
