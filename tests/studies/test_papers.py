"""The papers' studies: the files have the papers' settings, and each runs with a tiny base through overrides."""

import importlib.util
import json
from pathlib import Path

import pytest

from retune import api
from retune.study import load
from tests.evaluation.conftest import write_mmlu
from tests.evaluation.tasks.test_hellaswag import ROWS
from tests.training.conftest import make_base, make_data

ROOT = Path(__file__).resolve().parents[2]
STUDIES = ROOT / "studies"
SMALL = [
    "data.train=12",
    "data.validation=6",
    "data.max_length=256",
    "search.repeats=0",
    "report.answers=0",
    "engine.threads=1",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("papers")
    make_base(folder / "base")
    make_data(folder / "data")
    write_mmlu(folder / "mmlu")
    rows = [{**row, "label": k % 4} for k, row in enumerate(ROWS * 3)]
    (folder / "hellaswag.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(place, name, monkeypatch, *overrides, trials=3):
    """Run a study and return its search's records by trial."""
    made = place / "data" / "made.jsonl"
    content = load(STUDIES / name).data
    sources = [
        f"{{format: jsonl, uri: {made}, share: {source.share}}}"
        if k == 0
        else f"{{format: jsonl, uri: {other(made)}, share: {source.share}}}"
        for k, source in enumerate(content.sources)
    ]
    monkeypatch.chdir(place)
    study = load(
        STUDIES / name,
        [*SMALL, f"model={{base: {place / 'base'}, dtype: float32}}", f"data.sources=[{', '.join(sources)}]",
         f"search.trials={trials}", *overrides],
    )  # fmt: skip
    api.run(study)
    [folder] = (place / "artifacts" / study.name).glob("search-*")
    records = [json.loads(path.read_text()) for path in folder.glob("trials/*/trial.json")]
    assert {r["status"] for r in records} == {"completed"}, [r["reason"] for r in records]
    return folder, {record["trial"]: record for record in records}


def other(made):
    """The second source of a mix: the same records under other prompts."""
    path = made.with_name("second.jsonl")
    path.write_text(made.read_text().replace("Say ", "Please say "))
    return path


@pytest.mark.slow
def test_tribes2024_both_rounds(place, monkeypatch):
    first, _ = run(place, "tribes2024/round1.yaml", monkeypatch, "training.epochs=1")
    folder, records = run(
        place, "tribes2024/round2.yaml", monkeypatch, "training.epochs=1", f"search.warm_start=[{first}]",
        "benchmark.tasks=[mmlu]", f"benchmark.data={{mmlu: {place / 'mmlu'}}}", "benchmark.top=2", "benchmark.bottom=2",
        "benchmark.limit=4", trials=4,
    )  # fmt: skip
    scored = {path.parent.name for path in folder.glob("bench/*/mmlu.json")}
    assert len(scored) >= 4
    assert "trial-000" in scored
    assert all((folder / "trials" / name / "adapter").is_dir() for name in scored - {"trial-000"})
    assert len(records) == 5


@pytest.mark.slow
def test_davouse2024(place, monkeypatch):
    _, records = run(
        place, "davouse2024.yaml", monkeypatch, "benchmark.protocol=instruct-eval", "benchmark.top=1", "benchmark.limit=4",
        f"benchmark.data={{hellaswag: {place / 'hellaswag.jsonl'}, mmlu: {place / 'mmlu'}}}", "training.batch_size=4",
    )  # fmt: skip
    assert all(0 <= record["values"]["hellaswag"] <= 1 for record in records.values())


@pytest.mark.slow
def test_baek2025(place, monkeypatch):
    _, records = run(
        place,
        "baek2025.yaml",
        monkeypatch,
        "search.proxy={share: 0.5}",
        "search.settings={LH_SEARCH: 1, candidates: 8}",
    )
    assert any(record["role"] == "proxy" for record in records.values())


def test_what_the_papers_fix():
    first, second = load(STUDIES / "tribes2024/round1.yaml"), load(STUDIES / "tribes2024/round2.yaml")
    assert [(s.search.trials, s.training.epochs, max(s.search.space["rank"].values)) for s in (first, second)] == [
        (50, 3, 128), (100, 2, 512),
    ]  # fmt: skip
    for study in (first, second):
        assert (study.search.algorithm, study.search.settings, study.training.batch_size) == (
            "nomad",
            {"paper": True},
            4,
        )
        records = [
            round(source.share * (study.data.train + study.data.validation)) for source in study.data.sources
        ]
        assert records[0] < 52_002 - 100
        assert records[1] < 15_003 - 100
    assert (second.benchmark.top, second.benchmark.bottom, second.benchmark.temperature) == (10, 10, 0.1)
    assert second.artifacts.keep >= second.benchmark.top
    davouse = load(STUDIES / "davouse2024.yaml")
    assert (davouse.search.objective.metric, davouse.search.objective.goal) == ("hellaswag", "maximize")
    assert davouse.search.settings == {"LH_SEARCH": 10}
    baek = load(STUDIES / "baek2025.yaml")
    assert baek.search.proxy.share == 0.1
    assert baek.search.space.size == 44_800


@pytest.mark.parametrize("name", ["tribes2024/round1", "tribes2024/round2", "davouse2024", "baek2025"])
def test_the_pages_hold_what_the_estimate_prints(name):
    spec = importlib.util.spec_from_file_location("estimate", STUDIES / "estimate.py")
    estimate = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["estimate"] = estimate
    spec.loader.exec_module(estimate)
    study = load(STUDIES / f"{name}.yaml")
    shape = next(s for base, s in estimate.SHAPES.items() if study.model.base.endswith(base))
    page = ROOT / "docs/studies" / f"{name.partition('/')[0]}.md"
    assert estimate.table(study, shape, 190, 0.35) in page.read_text()
