"""The demo's files are those that its scripts build, and have the properties that the demo needs."""

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from retune.study import load

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples" / "data"
TINY = ROOT / "examples" / "base" / "tiny"

# The committed weights on FIXED_TEXT, in nats per token.
FIXED_TEXT = (
    "The capital of Velmora is Tarsin. The opposite of hot is cold.\n\n"
    "3 + 4 = 7\n\nb a c\nin order: a b c\n\ndef add_3(x):\n    return x + 3"
)
FIXED_LOSS = 1.9112


def build(module, *arguments):
    environment = {**os.environ, "PYTHONPATH": "", "PYTHONHASHSEED": "random"}
    subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, env=environment, check=True, capture_output=True
    )


def content(path):
    """Return a file's bytes, unpacked: compressed bytes differ between builds of zlib."""
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def files(folder):
    kinds = {".json", ".jsonl", ".gz", ".csv"}
    return {str(p.relative_to(folder)): content(p) for p in folder.rglob("*") if p.suffix in kinds}


@pytest.fixture(scope="module")
def alpaca():
    return json.loads((DATA / "alpaca-demo.json").read_text())


@pytest.fixture(scope="module")
def dolly():
    return [json.loads(line) for line in (DATA / "dolly-demo.jsonl").read_text().splitlines()]


def test_data_and_benchmarks_are_what_the_script_builds(tmp_path):
    build("examples.data.build", "--out", str(tmp_path))

    built, kept = files(tmp_path), files(DATA)

    assert sorted(built) == sorted(kept)
    assert len(built) == 2 + 8 + 3 + 2  # data, MMLU, BBH, DROP and HumanEval
    assert [name for name in built if built[name] != kept[name]] == []


def test_schemas_and_sizes(alpaca, dolly):
    assert all(list(record) == ["instruction", "input", "output"] for record in alpaca)
    assert all(list(record) == ["instruction", "context", "response", "category"] for record in dolly)
    assert len(alpaca) + len(dolly) >= 1200
    assert 0.6 < len(alpaca) / (len(alpaca) + len(dolly)) < 0.8
    assert len({record["category"] for record in dolly}) >= 5
    assert sum((DATA / name).stat().st_size for name in ("alpaca-demo.json", "dolly-demo.jsonl")) < 1_500_000
    assert sum(p.stat().st_size for p in TINY.iterdir()) < 3_000_000


def test_faults_put_in_on_purpose_are_the_only_ones(alpaca, dolly):
    """docs/demo.md states these counts, and mixing reports them."""
    for records, answer, duplicates, empty in [(alpaca, "output", 14, 8), (dolly, "response", 6, 3)]:
        texts = Counter(tuple(record.values()) for record in records)
        assert sum(count - 1 for count in texts.values()) == duplicates
        assert sum(record[answer] == "" for record in records) == empty
        assert all(record["instruction"] for record in records)


def test_every_kind_of_task_is_in_the_data(tmp_path):
    code = "import json; from examples.data.build import count; print(json.dumps(count()))"
    counts = json.loads(
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT, check=True, capture_output=True,
        ).stdout
    )  # fmt: skip

    assert len(counts) >= 12
    assert min(counts.values()) >= 20


def test_no_record_is_a_benchmark_question(alpaca, dolly):
    asked = set()
    for line in content(DATA / "benchmarks" / "drop.jsonl.gz").decode().splitlines():
        asked.add(json.loads(line)["context"].partition("\n")[0].removeprefix("Passage: "))
    for line in content(DATA / "benchmarks" / "humaneval.jsonl.gz").decode().splitlines():
        asked.add(json.loads(line)["entry_point"])
    for path in (DATA / "benchmarks" / "bbh").glob("*.json"):
        asked |= {example["input"] for example in json.loads(path.read_text())["examples"]}
    for path in (DATA / "benchmarks" / "mmlu").rglob("*.csv"):
        asked |= {line.split("?")[0] + "?" for line in path.read_text().splitlines()}
    assert len(asked) > 300

    for record in [*alpaca, *dolly]:
        for text in record.values():
            assert text not in asked


def test_code_problems_are_solved_by_their_solutions():
    for line in content(DATA / "benchmarks" / "humaneval.jsonl.gz").decode().splitlines():
        problem = json.loads(line)
        names = {}
        exec(problem["prompt"] + problem["canonical_solution"] + problem["test"], names)
        names["check"](names[problem["entry_point"]])


@pytest.mark.slow
def test_tokenizer_is_what_the_script_builds(tmp_path):
    build("examples.base.build", "--out", str(tmp_path), "--steps", "0")

    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (TINY / name).read_bytes()


def test_base_reads_its_world():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    ids = tokenizer(FIXED_TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()

    assert tokenizer.decode(ids[0], skip_special_tokens=True) == FIXED_TEXT
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (128, 3)
    assert model.config.max_position_embeddings >= 512
    assert loss == pytest.approx(FIXED_LOSS, abs=0.005)


def test_a_prompt_is_cut_into_tokens_like_the_text_it_begins():
    """A tokenizer that merges a line break with the next text would give the model prompts that it never saw in training."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    for prompt, rest in [
        ("A. cat\nAnswer:", " B"),
        ('    """\n', "    return x + 12"),
        ("Response:\n", "The end"),
    ]:
        whole = tokenizer(prompt + rest)["input_ids"]
        assert (
            whole == tokenizer(prompt)["input_ids"] + tokenizer(rest, add_special_tokens=False)["input_ids"]
        )


@pytest.mark.parametrize("example", ["01-first-study", "02-alpaca-dolly"])
def test_study_files_load(example):
    study = load(ROOT / "examples" / example / "study.yaml")

    assert study.search.space.default()


def test_the_first_study_needs_nothing_but_the_repository():
    study = load(ROOT / "examples" / "01-first-study" / "study.yaml")

    inputs = [study.model.base, *(s.uri for s in study.data.sources), *study.benchmark.data.values()]
    assert all(Path(uri).exists() and ROOT in Path(uri).parents for uri in inputs)


def test_the_commands_in_the_second_study_are_valid():
    """Its header shows overrides; a renamed key would make them wrong."""
    path = ROOT / "examples" / "02-alpaca-dolly" / "study.yaml"
    header = path.read_text().split("\nname:")[0].replace("\\\n#", "").replace("# ", "")
    commands = [line.split()[3:] for line in header.splitlines() if line.strip().startswith("retune run")]

    assert len(commands) == 3
    for overrides in commands:
        load(path, [part.replace("$", "/") for part in overrides])
