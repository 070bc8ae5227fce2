"""The form in a real browser, filled in by the keyboard alone, from a file and without a network."""

import json

import pytest

from retune.evaluation.judge.score import score
from tests.conftest import wait_for
from tests.evaluation.judge.studies import make
from tests.evaluation.judge.webdriver import CHROMEDRIVER, CHROMIUM, Browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or CHROMEDRIVER is None,
        reason="needs Chromium: apt-get install chromium chromium-driver",
    ),
]
COUNT = 12
SHOWN = """
const seen = (id) => document.getElementById(id);
return {
  section: ["start", "judge", "end"].filter((id) => !seen(id).hidden).join(),
  title: seen("judge-title").textContent, question: seen("question").textContent,
  answers: [seen("text-1").textContent, seen("text-2").textContent],
  chosen: ["choose-1", "choose-tie", "choose-2"].map((id) => seen(id).getAttribute("aria-pressed") === "true"),
  progress: seen("progress-text").textContent, who: seen("who-name").textContent,
  end: seen("end-title").textContent, downloaded: seen("downloaded").textContent, error: seen("name-error").textContent,
}"""
OUTSIDE = """
const width = document.documentElement.clientWidth;
return [document.documentElement.scrollWidth > width, ...[...document.querySelectorAll("body *")]
  .filter((e) => e.offsetParent && e.getBoundingClientRect().right > width + 0.5).map((e) => e.outerHTML.slice(0, 80))];"""
RING = """
const e = document.activeElement, style = getComputedStyle(e);
return [e.id || e.textContent.trim(), style.outlineStyle, parseFloat(style.outlineWidth)];"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    long = "A line of an answer that is long enough to be broken on any screen. " * 8 + "x" * 200
    answers = [(f"from a {k}\n{long}", f"from b {k} <b>bold</b>") for k in range(COUNT - 1)]
    key, _ = make(folder, [*answers, ("", "from b")])
    return folder, key


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium, study):
    """Return the browser reset to its initial state: no storage, no console messages, its default size."""
    chromium.devtools("Emulation.clearDeviceMetricsOverride")
    chromium.open(f"file://{study[0] / 'form.html'}")
    chromium.run("localStorage.clear()")
    chromium.open("about:blank")
    chromium.requests()
    chromium.complaints()
    return chromium


def start(browser: Browser, folder, name: str) -> None:
    browser.open(f"file://{folder / 'form.html'}")
    browser.press(name, "Enter")


def whose(text: str) -> str:
    """Return which model an answer is from: only the test can tell, since the answers of a name it."""
    return "b" if text.startswith("from b") else "a"


def walk(browser: Browser) -> list[dict]:
    """Return what is shown from the first question to the last."""
    seen = []
    for _ in range(COUNT):
        seen.append(browser.run(SHOWN))
        browser.press("n")
    return seen


def fill(browser: Browser, votes: dict[str, str], first: int = 0, last: int = COUNT) -> None:
    """Answer questions with the keys 1, 0 and 2, so that the votes are what `votes` says by question text."""
    for _ in range(first, last):
        seen = browser.run(SHOWN)
        vote = votes[seen["question"]]
        key = "0" if vote == "tie" else "1" if whose(seen["answers"][0]) == vote else "2"
        browser.press(key)
        assert browser.run(SHOWN)["chosen"] == [key == "1", key == "0", key == "2"]
        browser.press("n")


def download(browser: Browser) -> dict:
    """Go to the download button by Tab, press it, and return the file."""
    for _ in range(10):
        browser.press("Tab")
        if browser.run("return document.activeElement.id") == "download":
            break
    before = set(browser.downloads.glob("*.json"))
    browser.press("Enter")
    (path,) = wait_for(lambda: set(browser.downloads.glob("*.json")) - before, 60, "nothing was downloaded")
    assert path.name in browser.run(SHOWN)["downloaded"]
    return {"path": str(path), **json.loads(path.read_text())}


def test_fill_reload_export_and_score(browser, study):
    folder, key = study
    browser.requests()
    votes = {
        name: {f"Question {k}?": pattern[k % len(pattern)] for k in range(COUNT)}
        for name, pattern in (("Ada", ["a", "a", "tie", "b"]), ("Bob", ["a", "b", "tie"]))
    }
    start(browser, folder, "Ada")
    fill(browser, votes["Ada"], 0, 5)
    middle = browser.run(SHOWN)
    browser.reload()
    assert browser.run(SHOWN) == middle  # the same question, answers on the same sides, the same progress
    assert middle["progress"] == f"5 of {COUNT} answered"
    fill(browser, votes["Ada"], 5)
    assert browser.run(SHOWN)["end"] == "All questions are answered"
    files = [download(browser)]

    browser.press("b")
    browser.run("document.getElementById('leave').click()")
    browser.press("Bob", "Enter")
    assert browser.run(SHOWN)["progress"] == f"0 of {COUNT} answered"
    fill(browser, votes["Bob"])
    files.append(download(browser))

    assert [file["annotator"] for file in files] == ["Ada", "Bob"]
    assert files[0]["session"] != files[1]["session"]
    for file in files:
        found = score([file["path"]], key)
        given = votes[file["annotator"]]
        assert {q.question: ("a" if q.win else "b" if q.lose else "tie") for q in found.questions} == given
        assert found.annotators[0].missing == 0
    both = score([file["path"] for file in files], key)
    assert both.overall.n == 2 * COUNT
    assert both.left_out == []
    # One page was asked for, and again after the reload; the file that was made inside is no request.
    assert {url for url in browser.requests() if not url.startswith(("data:", "blob:"))} == {
        f"file://{folder / 'form.html'}"
    }
    assert browser.complaints() == []


def test_each_person_has_an_order_of_their_own_that_stays(browser, study):
    folder, _ = study
    orders, sides = {}, {}
    for name in ("Ada", "Bob", "ada "):
        start(browser, folder, name)
        seen = walk(browser)
        orders[name] = [one["question"] for one in seen]
        sides[name] = {one["question"]: whose(one["answers"][0]) for one in seen}
        browser.run("localStorage.clear()")
    assert orders["Ada"] == orders["ada "]
    assert sides["Ada"] == sides["ada "]
    assert orders["Ada"] != orders["Bob"]
    assert sides["Ada"] != sides["Bob"]
    assert sorted(orders["Ada"]) == sorted(orders["Bob"])
    assert set(sides["Ada"].values()) == {"a", "b"}


def test_over_many_people_no_side_and_no_place_is_a_models_own(browser, study):
    folder, _ = study
    browser.open(f"file://{folder / 'form.html'}")
    names = 300
    shown = browser.run(
        f"return [...Array({names}).keys()].map((k) => arranged('p' + k).map((q) => [q.text, q.answers[0].text]))"
    )
    for k in range(COUNT):
        left = sum(
            whose(answer) == "a"
            for order in shown
            for question, answer in order
            if question == f"Question {k}?"
        )
        assert 0.3 * names < left < 0.7 * names  # seven standard deviations
        opening = sum(order[0][0] == f"Question {k}?" for order in shown)
        assert opening < 0.25 * names  # a twelfth is expected


def test_the_keyboard_alone_is_enough_and_the_focus_is_seen(browser, study):
    folder, _ = study
    browser.open(f"file://{folder / 'form.html'}")
    browser.press("Enter")
    assert browser.run(SHOWN)["error"] == "Please enter a name or a code."
    browser.press("Ada", "Enter")
    reached = []
    for _ in range(12):
        browser.press("Tab")
        name, style, width = browser.run(RING)
        reached.append(name)
        if name == "next":
            break
        assert style != "none"
        assert width >= 2
    # "back" is disabled on the first question, "leave" stands above the focus
    assert [name for name in reached if name.startswith(("choose", "next", "overview"))] == [
        "choose-1", "choose-tie", "choose-2", "overview", "next",
    ]  # fmt: skip
    browser.press("Enter")
    assert browser.run(SHOWN)["title"] == f"Question 2 of {COUNT}"
    browser.press("Left")
    assert browser.run(SHOWN)["title"] == f"Question 1 of {COUNT}"
    browser.press("Right", "2", "o")
    assert browser.run(SHOWN)["end"] == f"{COUNT - 1} of {COUNT} still open"
    browser.press("b")
    assert browser.run(SHOWN)["chosen"] == [False, False, True]
    browser.run("document.getElementById('keys').click(); document.activeElement.blur()")
    browser.press("1", "n")
    after = browser.run(SHOWN)
    assert after["title"] == f"Question 2 of {COUNT}"  # the keys are off
    assert after["chosen"] == [False, False, True]


def test_controls_have_names_and_what_happens_is_said(browser, study):
    folder, _ = study
    start(browser, folder, "Ada")
    browser.press("2")
    tree = browser.devtools("Accessibility.getFullAXTree")["nodes"]
    found = {
        (node["role"]["value"], node.get("name", {}).get("value", "").strip())
        for node in tree
        if not node.get("ignored")
    }
    for control in [
        ("button", "Answer 1 is better"), ("button", "About the same"), ("button", "Answer 2 is better"),
        ("button", "Back"), ("button", "Next"), ("group", "Which answer is better?"), ("progressbar", "Questions answered"),
        ("article", "Answer 1"), ("article", "Answer 2"), ("heading", f"Question 1 of {COUNT}"),
    ]:  # fmt: skip
        assert control in found
    assert "Chosen: answer 2 is better" in browser.run(
        "return document.getElementById('announce').textContent"
    )


@pytest.mark.parametrize(
    ("width", "height", "phone"), [(360, 740, True), (1280, 900, False)], ids=["phone", "desktop"]
)
def test_nothing_sticks_out_and_answers_are_plain_text(browser, study, width, height, phone):
    folder, _ = study
    browser.resize(width, height, phone)
    browser.open(f"file://{folder / 'form.html'}")
    assert browser.run(OUTSIDE) == [False]
    browser.press("Ada", "Enter")
    texts = set()
    for seen in walk(browser):
        texts.update(seen["answers"])
    assert browser.run(OUTSIDE) == [False]  # the overview
    browser.press("b")
    if "from b" in browser.run(SHOWN)["answers"]:  # the only short question, and the bar follows what is read
        browser.press("b")
    browser.press("1")
    assert browser.run(OUTSIDE) == [False]
    assert "from b 0 <b>bold</b>" in texts
    assert "(empty: no answer was given)" in texts
    left = browser.run(
        "return ['card-1', 'card-2'].map((id) => document.getElementById(id).getBoundingClientRect().left)"
    )
    assert (left[0] == left[1]) == phone  # one below the other, or side by side
    bar = browser.run(
        "const b = document.querySelector('.bar').getBoundingClientRect(); return [b.top, b.bottom]"
    )
    assert bar[0] >= height / 2  # most of the screen is for reading
    assert bar[1] <= height + 1  # and the choice is always in sight


def test_where_nothing_can_be_saved_the_page_says_so(browser, study):
    folder, _ = study
    full = "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }"
    script = browser.devtools("Page.addScriptToEvaluateOnNewDocument", source=full)
    try:
        start(browser, folder, "Ada")
        browser.press("1")
        assert browser.run("return document.getElementById('unsaved').hidden") is False
        assert browser.run(SHOWN)["progress"] == f"1 of {COUNT} answered"
    finally:
        browser.devtools("Page.removeScriptToEvaluateOnNewDocument", **script)
        browser.run("work = null")  # else the page asks before it is left
