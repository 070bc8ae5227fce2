"""What `retune init` writes can be run as it is."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from retune import study
from retune.cli import cli
from retune.errors import InputError
from retune.steps.check import check

BASE = Path(__file__).parents[2] / "examples" / "base" / "tiny"


def init(*words):
    shown = CliRunner().invoke(cli, ["init", *words])
    if shown.exception and not isinstance(shown.exception, SystemExit):
        raise shown.exception
    return shown.output


def test_it_is_valid_as_it_is_and_asks_for_a_gain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = init("--base", str(BASE))
    assert "retune validate study.yaml && retune run study.yaml" in said
    assert "minute" in said
    loaded = study.load("study.yaml")
    assert check(loaded)[0] == "sample.jsonl: 200 records, read as prompt-completion"
    assert loaded.promote.gate.min_gain_over_base > 0
    with pytest.raises(
        InputError, match=r"study.yaml and sample.jsonl exist already; choose another name or pass --force"
    ):
        init()
    init("--force", "--base", str(BASE))


def test_ones_own_data_is_named_as_seen_from_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("question,answer\n" + "".join(f"q{n},a{n}\n" for n in range(30)))
    init("studies/a.yaml", "--data", "mine.csv", "--base", str(BASE), "--name", "a")
    assert not (tmp_path / "studies" / "sample.jsonl").exists()
    assert "uri: ../mine.csv" in (tmp_path / "studies" / "a.yaml").read_text()
    assert check(study.load("studies/a.yaml"))[:2] == [
        "mine.csv: 30 records, read as question-answer",
        "27 + 3 records; prompt: Alpaca's template",
    ]
    said = init("studies/b.yaml", "--data", "hf://datasets/owner/name")
    assert "uri: hf://datasets/owner/name" in (tmp_path / "studies" / "b.yaml").read_text()
    assert "left to `retune validate`: HuggingFaceTB/SmolLM2-135M-Instruct, hf://datasets/owner/name" in said


ROWS = [{"instruction": f"q{n}", "input": "", "output": f"a{n}"} for n in range(20)]
TURNS = [[{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}] for n in range(20)]
GIVEN = [("human", "gpt")[k % 2] for k in range(2)]
FORMATS = {
    "alpaca.json": json.dumps(ROWS),
    "dolly.jsonl": "".join(
        json.dumps({"instruction": r["instruction"], "context": "", "response": r["output"]}) + "\n"
        for r in ROWS
    ),
    "pairs.jsonl": "".join(
        json.dumps({"prompt": r["instruction"], "completion": r["output"]}) + "\n" for r in ROWS
    ),
    "qa.csv": "question,answer\n" + "".join(f"{r['instruction']},{r['output']}\n" for r in ROWS),
    "messages.jsonl": "".join(json.dumps({"messages": turns}) + "\n" for turns in TURNS),
    "sharegpt.json": json.dumps(
        [
            {
                "conversations": [
                    {"from": who, "value": t["content"]} for who, t in zip(GIVEN, turns, strict=True)
                ]
            }
            for turns in TURNS
        ]
    ),
    "plain.txt": "".join(f"Line {n} of a text.\n" for n in range(20)),
    "text.jsonl": "".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(20)),
    "a name: with # signs.csv": "question,answer\n" + "".join(f"q{n},a{n}\n" for n in range(20)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_of_the_docs_gives_a_study_that_runs(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(FORMATS[name])
    init("--data", name, "--base", str(BASE))
    assert "18 + 2 records" in " ".join(check(study.load("study.yaml")))


def test_folders_and_parquet_too(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    rows = datasets.Dataset.from_list(ROWS)
    rows.to_parquet("rows.parquet")
    datasets.DatasetDict({"learn": rows, "test": rows.select(range(3))}).save_to_disk("saved")
    init("a.yaml", "--data", "rows.parquet", "--base", str(BASE))
    with pytest.raises(InputError, match=r"a split must be one of \['learn', 'test'\]"):
        init("b.yaml", "--data", "saved", "--base", str(BASE))
    assert not Path("b.yaml").exists()
    init("b.yaml", "--data", "saved", "--split", "learn", "--base", str(BASE))
    for file in ("a.yaml", "b.yaml"):
        assert "18 + 2 records" in " ".join(check(study.load(file)))


def test_what_cannot_run_is_refused_by_name_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("odd.csv").write_text("frage,antwort\n" + "".join(f"q{n},a{n}\n" for n in range(20)))
    with pytest.raises(InputError) as caught:
        init("--data", "odd.csv", "--base", str(BASE.with_name("tyny")))
    assert len(caught.value.problems) == 2
    assert f"did you mean the folder {str(BASE)!r}?" in caught.value.problems[0]
    assert caught.value.problems[1].endswith("; for init: --columns prompt=frage,completion=antwort")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd.csv"]
    init("--data", "odd.csv", "--base", str(BASE), "--columns", "prompt=frage,completion=antwort")
    assert "18 + 2 records" in " ".join(check(study.load("study.yaml")))
    for words, said in [
        (("--data", "odd.csv", "--columns", "frage"), "--columns has the form prompt=FIELD"),
        (("--data", "gone.csv"), "gone.csv: the file must exist"),
        (("--columns", "prompt=frage"), "describe the file of --data"),
        (("--name", "My Bot"), "`name` must be lower-case letters"),
        (("--base", "a/b/c"), "neither a folder here nor a name such as owner/model"),
    ]:
        with pytest.raises(InputError, match=said):
            init("other.yaml", "--force", "--base", str(BASE), *words)
        assert not Path("other.yaml").exists()


def test_a_short_context_is_kept_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BASE, "short")
    config = json.loads(Path("short/config.json").read_text())
    Path("short/config.json").write_text(json.dumps({**config, "max_position_embeddings": 96}))
    init("--base", "short")
    assert study.load("study.yaml").data.max_length == 96


def test_a_base_that_is_large_for_this_machine_gets_a_smaller_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    Path("many.jsonl").write_text(
        "".join(json.dumps({"prompt": f"q{n}", "completion": "word " * 200}) + "\n" for n in range(2000))
    )
    said = init("--data", "many.jsonl", "--base", "owner/large-7B")
    loaded = study.load("study.yaml")
    assert (loaded.data.train, loaded.training.epochs, loaded.search.trials, loaded.search.repeats) == (
        200,
        1,
        10,
        1,
    )
    assert "made smaller for this machine: 20 settings on all 1,800 records need" in said
