"""Whole benchmarks on a small random base: records, resuming, and refusing bad input before a model is loaded."""

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import textwrap
import time

import pytest
from click.testing import CliRunner

from retune import models
from retune.adapter import WEIGHTS, digest, read
from retune.errors import InputError, RetuneError
from retune.evaluation import bench, tasks
from retune.evaluation.bench import Candidate
from retune.evaluation.decoding import adapters
from retune.evaluation.prompts import fit
from retune.evaluation.tasks.question import Question
from retune.records import BenchRecord
from retune.study import Benchmark, Model
from tests.conftest import ROOT

from .conftest import make_adapter, make_base, write_mmlu


@pytest.fixture
def model(base):
    return Model(base=str(base), dtype="float32")


def asks(mmlu, bbh, **changes):
    return Benchmark(
        **{"tasks": ["mmlu", "bbh"], "data": {"mmlu": str(mmlu), "bbh": str(bbh)}, "batch_size": 4, **changes}
    )


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model fails the test."""
    monkeypatch.setattr(models, "load_base", lambda *a, **k: pytest.fail("a model was loaded"))


def test_records_of_base_and_adapter(model, adapter, mmlu, bbh, tmp_path):
    events = []
    records = bench.run(
        model,
        [Candidate("base"), Candidate("tuned", str(adapter))],
        asks(mmlu, bbh),
        0,
        str(tmp_path / "out"),
        events.append,
    )
    assert [(r.model, r.task) for r in records] == [
        ("base", "mmlu"),
        ("base", "bbh"),
        ("tuned", "mmlu"),
        ("tuned", "bbh"),
    ]
    for record in records:
        path = tmp_path / "out" / record.model / f"{record.task}.json"
        assert BenchRecord.model_validate_json(path.read_bytes()) == record
        assert record.n == len(record.answers) == {"mmlu": 14, "bbh": 6}[record.task]
        assert record.protocol == "instruct-eval"
        assert record.dtype == "float32"
        assert all({"id", "prompt", "prediction", "right"} <= set(answer) for answer in record.answers)
    base, tuned = records[0], records[2]
    assert base.prompt_digest == tuned.prompt_digest
    assert base.adapter_digest is None
    assert tuned.adapter_digest == digest(read(adapter))
    assert [a["prediction"] for a in base.answers] != [a["prediction"] for a in tuned.answers]
    assert base.score == sum(a["right"] for a in base.answers) / 14
    last = [e for e in events if e.kind == "answering" and e.model == "tuned" and e.task == "mmlu"][-1]
    assert (last.done, last.total, last.seconds_left) == (14, 14, 0)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 64])
def test_predictions_do_not_depend_on_the_batch_size(model, adapter, mmlu, bbh, tmp_path, batch_size):
    def predictions(size):
        candidates = [Candidate("base"), Candidate("tuned", str(adapter))]
        records = bench.run(model, candidates, asks(mmlu, bbh, batch_size=size), 0, str(tmp_path / str(size)))
        return [[answer["prediction"] for answer in record.answers] for record in records]

    assert predictions(batch_size) == predictions(5)


def test_the_base_is_the_same_after_an_adapter(model, adapter, mmlu, bbh, tmp_path):
    candidates = [Candidate("tuned", str(adapter)), Candidate("base")]
    after = bench.run(model, candidates, asks(mmlu, bbh), 0, str(tmp_path / "a"))[2]
    alone = bench.run(model, [Candidate("base")], asks(mmlu, bbh), 0, str(tmp_path / "b"))[0]
    assert after.answers == alone.answers


EDITS = {
    "saved": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "pissa": {"init_lora_weights": "pissa", "target_modules": "all-linear"},
    "olora": {"init_lora_weights": "olora"},
    "norms": {"modules_to_save": ["norm"], "use_dora": True},
}


@pytest.mark.slow
def test_no_adapter_changes_what_is_scored_after_it(model, base, adapter, mmlu, bbh, tmp_path):
    """Whatever the adapters do to the base, each candidate answers as it does alone."""
    candidates = [Candidate("base"), Candidate("plain", str(adapter))]
    for seed, (name, settings) in enumerate(EDITS.items()):
        candidates.append(
            Candidate(name, str(make_adapter(base, tmp_path / name, seed, trained=0.3, **settings)))
        )
    asked = asks(mmlu, bbh, tasks=["mmlu"])
    alone = {}
    for candidate in candidates:
        [record] = bench.run(model, [candidate], asked, 0, str(tmp_path / "alone"))
        alone[candidate.name] = record.answers
    assert len({json.dumps(answers) for answers in alone.values()}) > 3
    for order, turn in enumerate((candidates[::-1], candidates[2:] + candidates[:2])):
        for record in bench.run(model, turn, asked, 0, str(tmp_path / str(order))):
            assert record.answers == alone[record.model], (record.model, order)


@pytest.mark.slow
def test_a_base_that_an_adapter_spoilt_is_loaded_again(
    model, adapter, mmlu, bbh, tmp_path, monkeypatch, caplog
):
    real, loads = adapters.attached, []

    @contextlib.contextmanager
    def spoils(base, folder):
        from retune.training.base_state import preserved

        with preserved(base), real(base, folder) as tuned:
            yield tuned
            if folder is not None:
                base.model.embed_tokens.weight.data[:] = 0

    load = models.load_base
    candidates = [Candidate("tuned", str(adapter)), Candidate("base")]
    right = bench.run(model, candidates, asks(mmlu, bbh), 0, str(tmp_path / "right"))
    monkeypatch.setattr(adapters, "attached", spoils)
    monkeypatch.setattr(models, "load_base", lambda *a, **k: loads.append(1) or load(*a, **k))
    found = bench.run(model, candidates, asks(mmlu, bbh), 0, str(tmp_path / "found"))
    assert [record.answers for record in found] == [record.answers for record in right]
    assert len(loads) == 2
    assert "it changed model.embed_tokens.weight" in caplog.text


def test_a_second_run_keeps_the_records_and_loads_nothing(model, adapter, mmlu, bbh, tmp_path, monkeypatch):
    candidates = [Candidate("base"), Candidate("tuned", str(adapter))]
    out = str(tmp_path / "out")
    first = bench.run(model, candidates, asks(mmlu, bbh), 0, out)
    monkeypatch.setattr(models, "load_base", lambda *a, **k: pytest.fail("a model was loaded"))
    events = []
    assert bench.run(model, candidates, asks(mmlu, bbh, batch_size=2), 0, out, events.append) == first
    assert all(event.kept for event in events)


@pytest.mark.slow
def test_what_decides_the_answers_makes_a_new_record(model, base, adapter, mmlu, bbh, tmp_path):
    out = str(tmp_path / "out")

    def kept(benchmark, candidate=Candidate("x"), seed=0):
        events = []
        bench.run(
            model,
            [candidate],
            benchmark,
            seed,
            out,
            lambda e: events.append(e) if e.kind == "scored" else None,
        )
        return [event.kept for event in events]

    assert kept(asks(mmlu, bbh)) == [False, False]
    assert kept(asks(mmlu, bbh)) == [True, True]
    assert kept(asks(mmlu, bbh, limit=4)) == [False, False]
    assert kept(asks(mmlu, bbh, limit=4), seed=1) == [False, False]
    assert kept(asks(mmlu, bbh, limit=4), Candidate("x", str(adapter)), 1) == [False, False]
    assert kept(asks(mmlu, bbh, limit=4), Candidate("x", str(adapter), "another"), 1) == [False, False]
    write_mmlu(mmlu, tests=8)
    assert kept(asks(mmlu, bbh, limit=4), Candidate("x", str(adapter), "another"), 1) == [False, True]


def test_a_record_cut_off_is_made_again(model, mmlu, bbh, tmp_path):
    out = tmp_path / "out"
    (first, _) = bench.run(model, [Candidate("base")], asks(mmlu, bbh), 0, str(out))
    path = out / "base" / "mmlu.json"
    path.write_bytes(path.read_bytes()[:100])
    (again, _) = bench.run(model, [Candidate("base")], asks(mmlu, bbh), 0, str(out))
    assert again.answers == first.answers


@pytest.mark.slow
def test_killed_between_tasks_it_carries_on(base, mmlu, bbh, tmp_path):
    program = textwrap.dedent(f"""
        import torch; torch.set_num_threads(1)
        from retune.evaluation import bench
        from retune.study import Benchmark, Model
        ask = Benchmark(tasks=["mmlu", "bbh"], data={{"mmlu": {str(mmlu)!r}, "bbh": {str(bbh)!r}}})
        def report(event):
            if event.task == "bbh":
                print("second task", flush=True)
                import time; time.sleep(60)
        bench.run(Model(base={str(base)!r}, dtype="float32"), [bench.Candidate("base")], ask, 0, {str(tmp_path / "out")!r}, report)
    """)
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "second task\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert os.listdir(tmp_path / "out" / "base") == ["mmlu.json"]
    events = []
    records = bench.run(
        Model(base=str(base), dtype="float32"),
        [Candidate("base")],
        asks(mmlu, bbh),
        0,
        str(tmp_path / "out"),
        events.append,
    )
    assert {e.task: e.kept for e in events if e.kind == "scored"} == {"mmlu": True, "bbh": False}
    assert [r.n for r in records] == [14, 6]


def test_every_problem_is_told_before_a_model_is_loaded(model, base, bbh, mmlu, tmp_path, no_model):
    other = make_base(tmp_path / "other", hidden=64)
    foreign = make_adapter(other, tmp_path / "foreign")
    (tmp_path / "half").mkdir()
    cut = tmp_path / "cut"
    shutil.copytree(make_adapter(base, tmp_path / "good"), cut)
    (cut / WEIGHTS).write_bytes((cut / WEIGHTS).read_bytes()[:-10])
    (mmlu / "test" / "anatomy_test.csv").write_text("Q,1,2,3,4,F\n")
    candidates = [
        Candidate("base"),
        Candidate("gone", str(tmp_path / "gone")),
        Candidate("half", str(tmp_path / "half")),
        Candidate("cut", str(cut)),
        Candidate("foreign", str(foreign)),
        Candidate("base"),
    ]
    with pytest.raises(InputError) as caught:
        bench.run(model, candidates, asks(mmlu, tmp_path / "nowhere"), 0, str(tmp_path / "out"))
    text = str(caught.value)
    assert "one of A, B, C, D, but got 'F'" in text
    assert f"bbh: there is no file or folder {tmp_path / 'nowhere'}" in text
    assert (
        f"gone: an adapter's folder holds adapter_config.json and adapter_model.safetensors, but {tmp_path / 'gone'}"
        in text
    )
    assert "half: an adapter folder must have adapter_config.json" in text
    assert "cut: the adapter in" in text
    assert "foreign: the adapter in" in text
    assert "made for another base" in text
    assert "lora_A fits 64 features, but the base has 32" in text
    assert "base: candidates need different names" in text
    assert not (tmp_path / "out").exists()


def test_humaneval_needs_permission_and_a_sandbox(model, tmp_path, monkeypatch):
    ask = Benchmark(
        tasks=["humaneval"], data={"humaneval": str(tmp_path / "none.jsonl")}, allow_code_execution=True
    )
    monkeypatch.setattr(bench.sandbox, "missing", lambda: "no sandbox here")
    found = bench.check(ask)
    assert any("there is no file" in problem for problem in found)
    assert "humaneval: no sandbox here" in found
    forbidden = ask.model_copy(update={"allow_code_execution": False})
    assert any("`allow_code_execution: true`" in problem for problem in bench.check(forbidden))


def test_good_input_has_no_problems(model, adapter, mmlu, bbh):
    assert bench.check(asks(mmlu, bbh)) == []
    assert bench.check_candidates(model, [Candidate("base"), Candidate("tuned", str(adapter))]) == []


def test_an_adapter_that_gives_nan_is_named_and_writes_no_record(model, base, mmlu, bbh, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = make_adapter(base, tmp_path / "broken")
    weights = load_file(broken / WEIGHTS)
    save_file({name: tensor * float("nan") for name, tensor in weights.items()}, broken / WEIGHTS)
    with pytest.raises(RetuneError, match="broken: the model's output is not finite"):
        bench.run(
            model,
            [Candidate("base"), Candidate("broken", str(broken))],
            asks(mmlu, bbh),
            0,
            str(tmp_path / "out"),
        )
    assert sorted(os.listdir(tmp_path / "out")) == ["base"]


def test_shots_are_dropped_from_the_end_until_the_prompt_fits(base):
    tokenizer = models.load_tokenizer(Model(base=str(base)))
    shots = tuple(f"shot {k} " + "word " * 40 + "\n" for k in range(3))
    short, long = (
        Question(n, "", "H\n", shots, body, "A") for n, body in (("s", "short?"), ("l", "word " * 20))
    )
    task = tasks.bbh.TASK
    sizes = [len(tokenizer(short.prompt(k))["input_ids"]) for k in range(4)]
    from dataclasses import replace

    tokens, kept = fit(tokenizer, [short, long], replace(task, input_limit=sizes[2]), 10_000)
    assert kept == [2, 1]
    assert tokens[0] == tokenizer(short.prompt(2))["input_ids"]
    assert len(tokens[1]) <= sizes[2]
    tokens, kept = fit(
        tokenizer, [short, long], replace(task, input_limit=sizes[2]), sizes[1] + task.new_tokens
    )
    assert kept == [1, 0]  # the model's own context is smaller than the protocol's limit
    tokens, kept = fit(tokenizer, [long], replace(task, input_limit=5), 10_000)
    assert kept == [0]
    assert tokens[0] == tokenizer(long.prompt(0))["input_ids"]  # asked whole, as the original does


def test_humaneval_whole(model, tmp_path):
    path = tmp_path / "h.jsonl"
    rows = [
        {"task_id": f"T/{k}", "prompt": "def f():\n", "test": "def check(f):\n    assert f() == 1\n", "entry_point": "f", "canonical_solution": "    return 1\n"}
        for k in range(3)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ask = Benchmark(tasks=["humaneval"], data={"humaneval": str(path)}, allow_code_execution=True)
    (record,) = bench.run(model, [Candidate("base")], ask, 0, str(tmp_path / "out"))
    assert (record.score, record.n, record.shots) == (0.0, 3, 0)
    assert all(answer["reason"] for answer in record.answers)
    assert all("\n\n" not in answer["prediction"] for answer in record.answers)


@pytest.mark.slow
def test_humaneval_sampled(model, tmp_path):
    path = tmp_path / "h.jsonl"
    # What a random model writes behind a comment's mark runs as long as it stays on the line.
    rows = [
        {"task_id": f"T/{k}", "prompt": f"x = {k}\n# ", "test": "def check(f): pass", "entry_point": "x", "canonical_solution": ""}
        for k in range(4)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ask = Benchmark(
        tasks=["humaneval"], data={"humaneval": str(path)}, allow_code_execution=True, temperature=0.7, samples=3,
    )  # fmt: skip
    (record,) = bench.run(model, [Candidate("base")], ask, 0, str(tmp_path / "out"))
    assert record.settings["decoding"] == "sampled"
    assert (record.settings["temperature"], record.settings["samples"]) == (0.7, 3)
    assert record.n == len(record.answers) == 4
    shares = [answer["passed"] / 3 for answer in record.answers]
    assert 0 < record.score < 1
    assert record.score == pytest.approx(statistics.mean(shares))
    assert record.stderr == pytest.approx(statistics.stdev(shares) / 2)
    assert len({text for answer in record.answers for text in answer["predictions"]}) > 4
    again = bench.run(
        model, [Candidate("base")], ask.model_copy(update={"batch_size": 1}), 0, str(tmp_path / "b")
    )
    assert again[0].answers == record.answers
    other = bench.run(model, [Candidate("base")], ask, 1, str(tmp_path / "c"))
    assert other[0].answers != record.answers


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"samples": 2}, "needs `benchmark.temperature > 0`"),
        ({"protocol": "lm-eval", "temperature": 0.1}, "greedy"),
    ],
)
def test_sampling_that_makes_no_sense_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        Benchmark(**changes)


def test_command_line(base, adapter, mmlu, tmp_path):
    from retune.cli.bench import command

    words = [
        "--model",
        str(base),
        "--adapter",
        f"tuned={adapter}",
        "--tasks",
        "mmlu",
        "--data",
        f"mmlu={mmlu}",
        "--limit",
        "4",
        "--out",
        str(tmp_path / "o"),
    ]
    result = CliRunner().invoke(command, [*words, "--json"], catch_exceptions=False)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["model"], row["n"]) for row in rows] == [("base", 4), ("tuned", 4)]
    assert "answers" not in rows[0]
    shown = CliRunner().invoke(command, words, catch_exceptions=False)
    assert "tuned" in shown.stdout
    assert "±" in shown.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tasks", "mmlu"], "every task needs its file"),
        (["--tasks", "chess", "--data", "chess=x"], "chess"),
        (["--tasks", "mmlu", "--data", "mmlu"], "TASK=PATH"),
        (["--tasks", "humaneval", "--data", "humaneval=x"], "allow"),
    ],
)
def test_command_line_refuses(base, words, says, no_model):
    from retune.cli.bench import command

    result = CliRunner().invoke(command, ["--model", str(base), *words])
    assert isinstance(result.exception, InputError)
    assert says in str(result.exception)


def test_command_line_names_the_problems_of_base_and_benchmark_together(no_model):
    from retune.cli.bench import command

    result = CliRunner().invoke(command, ["--model", "https://hub/o/llama", "--tasks", "mmlu"])
    assert isinstance(result.exception, InputError)
    assert "write o/llama" in str(result.exception)
    assert "every task needs its file" in str(result.exception)


def test_names_of_adapters_on_the_command_line():
    from retune.cli.bench import candidates

    assert [c.name for c in candidates(("runs/trial-007/adapter", "x=runs/y", "s3://b/trial-009/"))] == [
        "base",
        "trial-007",
        "x",
        "trial-009",
    ]


def test_records_go_to_a_file_uri(model, mmlu, bbh, tmp_path):
    out = f"file://{tmp_path}/out"
    bench.run(model, [Candidate("base")], asks(mmlu, bbh, tasks=["bbh"]), 0, out)
    assert (tmp_path / "out" / "base" / "bbh.json").is_file()


def test_progress_is_reported_about_once_a_second(monkeypatch):
    moments = iter([0.0, 0.4, 1.1, 1.2, 2.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(moments))
    events = []
    progress = bench._Progress("m", "t", 10, events.append)
    for count in (2, 3, 1, 4):
        progress.add(count)
    assert [(e.done, e.seconds_left) for e in events] == [(5, 1.1), (10, 0.0)]


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "place"), [("mmlu", "mmlu/data"), ("bbh", "bbh"), ("drop", "drop/drop_v0_dev.jsonl.gz")]
)
def test_prompts_read_in_pieces_are_the_prompts_read_whole(real_data, name, place):
    import random

    from retune.models import load_tokenizer

    folder = real_data.parent / "models" / "tiny-llama"
    if not folder.is_dir():
        pytest.skip(f"no model at {folder}")
    tokenizer = load_tokenizer(Model(base=str(folder)))
    task = tasks.TASKS[name]
    questions = random.Random(0).sample(task.read(real_data / place), 300)
    tokens, shots = fit(tokenizer, questions, task, 1024)
    whole = tokenizer([question.prompt(k) for question, k in zip(questions, shots, strict=True)])["input_ids"]
    assert tokens == [ids[-(1024 - task.new_tokens) :] for ids in whole]


def test_a_benchmark_that_was_moved_is_the_same_and_one_that_was_changed_is_another(tmp_path):
    """Its digest held the name of its folder: moved data was scored again, and a search on its scores began anew."""
    asked = ["mmlu", "bbh", "drop", "humaneval"]

    def digests(folder, drop="drop.jsonl.gz"):
        names = ["mmlu", "bbh", drop, "humaneval.jsonl.gz"]
        data = {task: str(folder / name) for task, name in zip(asked, names, strict=True)}
        return bench.data_digests(Benchmark(tasks=asked, data=data, allow_code_execution=True))

    examples = ROOT / "examples" / "data" / "benchmarks"
    moved = shutil.copytree(examples, tmp_path / "moved")
    (moved / "drop.jsonl.gz").rename(moved / "other.jsonl.gz")
    (moved / "bbh").rename(tmp_path / "elsewhere")
    (moved / "bbh").symlink_to(tmp_path / "elsewhere")
    before = digests(examples)
    assert digests(moved, "other.jsonl.gz") == before
    first, second, *_ = sorted((tmp_path / "elsewhere").iterdir())  # two subjects change places
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1]), second.write_bytes(contents[0])
    changed = digests(moved, "other.jsonl.gz")
    assert [task for task in asked if changed[task] != before[task]] == ["bbh"]
