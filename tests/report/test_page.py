"""The page: its content, that it needs nothing from outside, and that no text can break it."""

import json
import re
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner

from retune.cli.report import command
from retune.errors import InputError
from retune.records import BenchRecord
from retune.report import folder as study_folder
from retune.report.data_tables import decimals, number
from retune.report.page import render, write_report
from retune.space import tribes2024
from tests.report.synthetic import mix, outcome, study, trial


class Text(HTMLParser):
    """Collects the text of a page, and the tags it is made of."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def whole() -> str:
    asked, records, scores, selection, gate = outcome()
    return render(asked, mix(), records, scores, selection, gate)


def test_it_says_what_a_person_wants_to_know(whole):
    _, records, _, selection, gate = outcome()
    text = Text(whole).text
    chosen = selection.row(selection.chosen)
    assert f"{chosen.trial} was chosen from 39 settings that mads-global tried" in text
    assert f"{chosen.gain_over_base:+.4g}" in text
    assert "Gate: version 4 becomes champion" in text
    for rule in gate.rules:
        assert rule["text"] in text
    for record in records:
        assert record.trial in text
    assert "the training loss was not finite at step 140" in text
    for needed in ("0123456789abcdef", "3,780", "501,222", "torch 2.13.0", "retune run study.yaml"):
        assert needed in text, needed
    assert "Rank correlation of validation loss with mmlu" in text
    assert selection.why in text
    for comparison in selection.comparisons:
        assert f"{comparison.against} ({comparison.who})" in text
    assert {c.verdict for c in selection.comparisons} <= {"noise", "better", "worse"}
    assert "no difference beyond noise" in text


def test_best_default_and_base_are_marked(whole):
    rows = re.findall(r"<tr class=\"(\w*)\"><th class=\"l\">(trial-\d+)(.*?)</th>", whole, flags=re.S)
    tags = {(trial, kind): re.findall(r">([\w ]+)</span>", rest) for kind, trial, rest in rows}
    assert ["untuned base"] in tags.values()
    assert any("default" in found for found in tags.values())
    assert sum("chosen" in found for (_, kind), found in tags.items() if kind == "chosen") == 1
    assert whole.count('<td class="best">') == 1 + 3  # the best objective, and the best of each task


def test_it_needs_nothing_from_outside(whole):
    for tag, attributes in Text(whole).tags:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "data", "action", "srcset"):
            value = attributes.get(name, "")
            assert not value or value.startswith(("#", "data:")), (tag, value)
    assert "@import" not in whole
    assert re.findall(r"url\((?!#)", whole) == []


def test_hostile_texts_stay_texts():
    evil = '<script>alert(1)</script><img src=x onerror="alert(2)">&amp;\'"'
    asked, records, scores, selection, gate = outcome()
    records[0] = records[0].model_copy(update={"base": evil, "device": evil})
    records.append(trial(99, "search", {"rank": evil}, None).model_copy(update={"reason": evil}))
    scores.append(BenchRecord(model="trial-000", task="x", score=0, stderr=0, n=1, shots=0, protocol=evil))
    gate.rules.append({"rule": evil, "outcome": "failed", "passed": False, "text": evil})
    selection.findings.append(evil)
    data = mix()
    data["sources"][0]["name"] = evil
    page = render(asked, data, records, scores, selection, gate)
    text = Text(page)
    assert not [tag for tag, _ in text.tags if tag in ("script", "img")]
    assert text.text.count("<script>alert(1)</script>") >= 6


@pytest.mark.parametrize(
    "records",
    [
        [],
        [trial(0, "base", {}, 2.9)],
        [trial(0, "base", {}, None), trial(1, "default", tribes2024().default(), None)],
        [trial(0, "base", {}, 1.5), trial(1, "default", tribes2024().default(), 2.0)],
    ],
)
def test_unfinished_studies_have_a_page(records):
    page = render(study(), None, records, [], None, None)
    text = Text(page).text
    assert "The record of the mixed data was not found" in text
    if not any(t.values for t in records if t.role != "base"):
        assert "No adapter was chosen" in text
    if any(t.values and t.role == "base" for t in records) and len(records) > 1:
        assert "best is no better than the untuned base" in text
    assert "Too few trials to tell" in text


@pytest.fixture
def kept(tmp_path):
    """The folder of a study, as the steps leave it."""
    asked, records, scores, selection, gate = outcome()
    search = tmp_path / "alpaca-dolly/search-aaaa"
    for name, content in (("study.json", asked), ("selection.json", selection), ("gate.json", gate)):
        search.mkdir(parents=True, exist_ok=True)
        (search / name).write_text(content.model_dump_json())
    for record in records:
        (search / "trials" / record.trial).mkdir(parents=True)
        (search / "trials" / record.trial / "trial.json").write_bytes(record.to_json())
        (search / "trials" / record.trial / "adapter").mkdir()
        (search / "trials" / record.trial / "adapter/adapter_config.json").write_text("{}")
    for score in scores:
        (search / "bench" / score.model).mkdir(parents=True, exist_ok=True)
        (search / "bench" / score.model / f"{score.task}.json").write_bytes(score.to_json())
    for name, digest in (("data-1", "other"), ("data-2", "0123456789abcdef")):
        (tmp_path / "alpaca-dolly" / name).mkdir()
        (tmp_path / "alpaca-dolly" / name / "mix.json").write_text(json.dumps({**mix(), "digest": digest}))
    return tmp_path / "alpaca-dolly"


@pytest.mark.slow
def test_the_page_can_be_written_again_from_the_records_alone(kept, whole):
    asked, records, scores, selection, gate = outcome()
    write_report(asked, mix(), records, scores, selection, gate, kept / "first.html")
    result = CliRunner().invoke(command, [str(kept)])
    assert result.exit_code == 0, result.output
    page = kept / "search-aaaa/report.html"
    assert result.output.strip() == str(page)

    def without_time(text: str) -> str:
        return re.sub(r"decided [-\d: ]+UTC", "", text)

    assert without_time(page.read_text()) == without_time((kept / "first.html").read_text())
    other = CliRunner().invoke(command, [str(kept / "search-aaaa"), "--out", str(kept / "o.html"), "--json"])
    assert json.loads(other.output) == {"report": str(kept / "o.html")}


def test_broken_records_are_all_named_and_nothing_is_written(kept):
    (kept / "search-aaaa/trials/trial-003/trial.json").write_text("{")
    (kept / "search-aaaa/trials/trial-004/trial.json").write_text('{"trial": 1}')
    (kept / "search-aaaa/gate.json").write_text("[]")
    with pytest.raises(InputError) as caught:
        study_folder.rewrite(str(kept))
    assert len(caught.value.problems) == 3
    assert not (kept / "search-aaaa/report.html").exists()


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"search-<digest>/study\.json"):
        study_folder.rewrite(str(tmp_path))


def test_stopped_trials_and_trials_on_a_part_of_the_data_are_told_apart():
    base, default, *_ = outcome()[1]
    setting = default.assignment
    on_part = [
        trial(number, "proxy", setting, loss).model_copy(
            update={"trial": f"trial-{number:03d}-proxy", "proxy": {"records": 540, "of": 5400}}
        )
        for number, loss in ((1, 1.9), (2, 1.7), (3, 1.8))
    ]
    stopped = trial(4, "proxy", setting, 2.5).model_copy(
        update={"trial": "trial-004-proxy", "status": "early_stopped"}
    )
    on_all = [default, *(trial(number, "search", setting, loss) for number, loss in ((2, 1.3), (3, 1.35)))]
    asked = study(search={"proxy": {"share": 0.1}, "stopping": "asha"}, benchmark={})
    found = Text(render(asked, mix(), [base, *on_part, stopped, *on_all], [], None, None))
    assert "was chosen from 4 settings" in found.text
    assert "4 settings, 3 of them on all data, the base; 0 failed, 1 stopped early" in found.text
    assert "540 of 5,400 records; over the 3 settings that were trained on both" in found.text
    assert "on a part of the data" in found.text
    assert "where it was stopped" in found.text
    assert "trial-004-proxy" not in found.text, "a stopped trial is not listed as failed"


@pytest.mark.parametrize(
    ("values", "places"),
    [([1.9361, 5.7], 4), ([0.42, 0.3], 5), ([812.5, 3.0], 2), ([20000.5], 0), ([3e7, 1.0], None), ([1e-9], None),
     ([2.5, float("nan")], 4), ([], None)],
)  # fmt: skip
def test_the_values_of_a_column_have_as_many_decimals(values, places):
    assert decimals(values) == places
    assert number(1.915, 4) == "1.9150"
