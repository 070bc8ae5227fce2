"""The live page: the data it receives, and how a browser shows it on a desktop and on a phone."""

import http.client
import json
import os
import re
import threading
import urllib.request
from pathlib import Path

import pytest

from retune import store
from retune.records import seal
from retune.report import watch
from tests.conftest import wait_for
from tests.evaluation.judge.webdriver import CHROMEDRIVER, CHROMIUM, Browser
from tests.report.synthetic import study, trials

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
    nothing = {"study": "soon", "progress": {}, "trials": [], "curves": {}, "gpus": []}
    assert watch.Watched(str(tmp_path / "soon")).state() == nothing


def test_the_queue_the_importances_and_the_running_curves_are_in_the_state(folder, monkeypatch):
    state = watch.Watched(str(folder)).state()
    assert set(state["importance"]) == {"rank", "dropout", "alpha", "learning_rate"}
    assert sum(state["importance"].values()) == pytest.approx(1)
    assert (state["queue"], state["gpus"]) == ({"trials": [], "to_come": 0}, [])
    for number in (90, 91):
        setting = {"rank": 64, "alpha": 25, "dropout": 0.01, "learning_rate": 0.000407}
        name = f"trial-{number:03d}"
        task = {
            "trial": name,
            "number": number,
            "role": "search",
            "assignment": setting,
            "seed": 0,
            "folder": "x",
        }
        store.write(
            folder / "search-0123456789abcdef/trials" / name / "assignment.json",
            json.dumps(seal(task)).encode(),
        )
    watched = watch.Watched(str(folder))
    watched.state()
    later = RUNNING | {"total": 60, "epochs": {"trial-090": 1.5}, "losses": {"trial-090": 2.0}}
    (folder / "progress.json").write_text(json.dumps(later))
    state = watched.state()
    assert state["curves"] == {"trial-090": [(1.0, 2.5), (1.5, 2.0)]}
    assert [(one["trial"], one["running"]) for one in state["queue"]["trials"]] == [
        ("trial-090", True),
        ("trial-091", False),
    ]
    assert state["queue"]["to_come"] == 60 - len(trials()) - 2
    few = watch.Watched(str(folder))
    monkeypatch.setattr(watch, "importances", lambda *_: None)
    assert (few.state()["importance"], few.state()["few"]) == (None, 10)


def test_gpus_are_asked_for_by_nvidia_smi(folder, tmp_path, monkeypatch):
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    program.write_text(f"#!/bin/sh\necho '{GPU}'\necho '1, NVIDIA A30, [N/A], 10, 24576'\n")
    program.chmod(0o755)
    (first, second) = watch.Watched(str(folder)).state()["gpus"]
    assert first == {
        "index": "0",
        "name": "NVIDIA H100 80GB HBM3",
        "busy": 87,
        "memory_used": 41234,
        "memory_total": 81559,
    }
    assert second["busy"] is None
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed, no driver, a, b, c'\nexit 9\n")
    assert watch.Watched(str(folder)).state()["gpus"] == []


GPU = "0, NVIDIA H100 80GB HBM3, 87, 41234, 81559"
LOOK = """
const page = document.documentElement, outside = [...document.querySelectorAll("body *")].filter(e =>
  !e.closest("svg *") && !e.parentElement.closest(".scroll") && e.getBoundingClientRect().right > page.clientWidth + 0.5);
const overlapping = query => { const all = [...document.querySelectorAll(query)].map(e => [e.textContent, e.getBoundingClientRect()]);
  return all.flatMap(([a, one], k) => all.slice(k + 1).filter(([b, other]) => one.left < other.right && other.left < one.right &&
    one.top < other.bottom && other.top < one.bottom).map(([b]) => [a, b])); };
const shown = id => !document.getElementById(id).hidden && document.getElementById(id).getBoundingClientRect().height > 0;
return {scroll: page.scrollWidth, width: page.clientWidth, outside: outside.map(e => e.outerHTML.slice(0, 80)),
  where: at("where").textContent, rows: at("rows").children.length, text: document.body.innerText,
  axes: [...document.querySelectorAll("#settings text")].map(e => e.textContent), over: overlapping("#settings text"), covered: overlapping("#history text, #history circle").filter(pair => pair.some(text => text)),
  count: Object.fromEntries(["#history circle", "#losses polyline", "#curves polyline", "#settings polyline",
    "#importance .track", "#gpus .track", ".run", ".tag"].map(q => [q, document.querySelectorAll(q).length])),
  shown: ["machine", "queue", "history", "losses", "curves", "settings", "importance"].filter(shown),
  back: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
  small: Math.min(...[...document.querySelectorAll("svg text")].map(e => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a)),
};"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None or CHROMEDRIVER is None, reason="needs chromium and chromium-driver")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_a_browser_shows_and_follows_it(folder, server, browser, tmp_path, monkeypatch, width, scheme):
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '{GPU}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    for number in (90, 91):
        task = {
            "trial": f"trial-0{number}",
            "role": "search",
            "assignment": {"rank": 64, "learning_rate": 0.000407},
        }
        place = folder / "search-0123456789abcdef/trials" / task["trial"] / "assignment.json"
        store.write(place, json.dumps(seal(task)).encode())
    browser.resize(width, 900, width < 500)
    browser.devtools(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )
    browser.open(f"{server}/")
    wait_for(lambda: browser.run('return at("rows").children.length') == len(trials()), 60)
    later = RUNNING | {"total": 60, "epochs": {"trial-090": 1.5}, "losses": {"trial-090": 2.25}}
    (folder / "later").write_text(json.dumps(later))
    # As a run writes it: the page never reads half of it
    (folder / "later").replace(folder / "progress.json")
    wait_for(lambda: "loss 2.2500" in browser.run("return document.body.innerText"), 60)
    seen = browser.run(LOOK)
    if kept := os.environ.get("RETUNE_SCREENSHOTS"):  # to look at them
        browser.resize(
            width, min(6000, browser.run("return document.documentElement.scrollHeight")), width < 500
        )
        browser.screenshot(Path(kept) / f"watch-{width}-{scheme}.png")
    assert seen["scroll"] <= seen["width"] <= width
    assert seen["outside"] == []
    assert "3 of 8 settings (4 of 60 trials)" in seen["where"]
    assert "trial-090 · 50 % · epoch 1.5 · loss 2.2500" in seen["text"]
    assert "1 running · 1 waiting with a setting" in seen["text"]
    assert ("87 %" in seen["text"], "40.3 of 80 GiB" in seen["text"]) == (True, True)
    count = seen["count"]
    assert (count["#losses polyline"], count["#importance .track"], count["#gpus .track"]) == (1, 4, 2)
    assert (count[".run"], count[".tag"]) == (1, 1)
    assert min(count["#history circle"], count["#curves polyline"], count["#settings polyline"]) > 10
    assert len(seen["shown"]) == 7
    assert seen["over"] + seen["covered"] == []
    assert seen["axes"][-6:] == ["0.000977", "1.17e-6", "learning rate", "512", "4", "rank"]
    assert "best 1.9000 (base 2.9000)" in seen["where"]
    assert "\t1.8975\t36\t0.001\t0.000316\t128\t82.5" in seen["text"]
    assert (max(map(int, re.findall(r"\d+", seen["back"])[:3])) < 60) == (scheme == "dark")
    assert seen["small"] >= 9  # pixels
    assert browser.complaints() == []


@pytest.mark.parametrize(
    ("name", "status"),
    [("localhost", 200), ("127.0.0.1:80", 200), ("[::1]:8080", 200), ("study.localhost", 200), ("evil.example", 403), ("127.0.0.1.evil.example:80", 403),
     ("localhost.evil.example", 403), ("169.254.169.254", 403), ("[::1", 403), ("a@b:c", 403), ("", 200)],
)  # fmt: skip
def test_another_name_for_this_machine_sees_nothing(server, name, status):
    """A page on the web may have its own name lead to 127.0.0.1, and would then read what is served there (DNS rebinding)."""
    for path in ("/", "/state"):
        connection = http.client.HTTPConnection(server.removeprefix("http://"), timeout=10)
        connection.putrequest("GET", path, skip_host=True)
        connection.putheader("Host", name)
        connection.endheaders()
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        assert (answer.status, b"trial" in content) == (status, status == 200)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None or CHROMEDRIVER is None, reason="needs chromium and chromium-driver")
@pytest.mark.parametrize("width", [390, 1400])
def test_the_names_of_many_settings_stay_apart(folder, server, browser, width):
    names = ["rank", "alpha", "dropout", "learning_rate", "weight_decay", "warmup", "batch_size", "epochs", "label_smoothing",
             "max_gradient_norm", "lora_plus_ratio", "neftune_noise_alpha"]  # fmt: skip
    for path in folder.glob("search-*/trials/*/trial.json"):
        record = json.loads(path.read_text())
        if record["assignment"]:
            record["assignment"] = dict.fromkeys(names, 0.5 + record["number"] * 10000.0)
            path.write_text(json.dumps(seal(record)))
    browser.resize(width, 900, width < 500)
    browser.open(f"{server}/")
    wait_for(lambda: browser.run('return at("rows").children.length') == len(trials()), 60)
    seen = browser.run(LOOK)
    assert {name.replace("_", " ") for name in names} == set(seen["axes"])
    assert seen["over"] == []
    assert seen["scroll"] <= seen["width"] <= width
