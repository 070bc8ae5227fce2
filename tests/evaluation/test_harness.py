"""The protocol lm-eval: the same numbers as lm-evaluation-harness with its own model class, from local files alone."""

import json
import os
import subprocess
import sys

import pytest

from retune.errors import InputError
from retune.evaluation import bench, harness
from retune.evaluation.bench import Candidate
from retune.models import load_base
from retune.study import Benchmark, Model

from .conftest import make_base

pytest.importorskip("lm_eval")

DROP = {
    "p1": {
        "passage": "The city has 40 towers and 2 gates. Anna and Ben built them in May 1900.",
        "qa_pairs": [
            {"query_id": "a", "question": "How many towers?", "answer": {"number": "40", "spans": [], "date": {}},
             "validated_answers": [{"number": "41", "spans": [], "date": {}}]},
            {"query_id": "b", "question": "Who built them?", "answer": {"number": "", "spans": ["Anna", "Ben"], "date": {}}},
            {"query_id": "c", "question": "When?",
             "answer": {"number": "", "spans": [], "date": {"day": "", "month": "May", "year": "1900"}}},
        ],
    },
    **{f"p{k}": {"passage": f"Rain fell for {k} days.", "qa_pairs": [
        {"query_id": f"r{k}", "question": "What fell?", "answer": {"number": "", "spans": ["Rain"], "date": {}}}
    ]} for k in range(2, 7)},
}  # fmt: skip
HELLASWAG = [
    {"activity_label": "Baking", "ctx_a": "A man stirs.", "ctx_b": "he then", "label": k % 4, "split_type": "indomain",
     "endings": ["eats the bowl.", "adds flour [substeps] slowly.", f"sleeps {k} days.", "sings to the town."]}
    for k in range(6)
]  # fmt: skip


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A base whose context holds the longest answers that the harness asks for."""
    return make_base(tmp_path_factory.mktemp("wide"), context=4096)


@pytest.fixture
def bbh(tmp_path):
    """One task of few questions: the harness lets an answer be 1,024 tokens long."""
    folder = tmp_path / "bbh"
    folder.mkdir()
    examples = [{"input": f"True and {k > 1} is", "target": str(k > 1)} for k in range(4)]
    (folder / "boolean_expressions.json").write_text(json.dumps({"examples": examples}))
    return folder


@pytest.fixture
def drop(tmp_path):
    path = tmp_path / "drop.json"
    path.write_text(json.dumps(DROP))
    return path


@pytest.fixture
def hellaswag(tmp_path):
    path = tmp_path / "hellaswag.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in HELLASWAG))
    return path


def asks(folder, *tasks, **changes):
    data = {task: str(path) for task, path in tasks}
    return Benchmark(tasks=list(data), data=data, protocol="lm-eval", batch_size=3, **changes)


def by_the_harness(loaded, name, path):
    """Every question's metrics from the harness' own loop, with its own model class, on the same documents."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=2, device=str(loaded.device))
    prepared = harness.prepare(name, path, "", None, 0)
    tasks = [harness._task(name, part) for part in prepared.parts]
    found = simple_evaluate(
        model=model, tasks=tasks, bootstrap_iters=1, task_manager=TaskManager(include_defaults=False)
    )
    return [sample for part in prepared.parts for sample in found["samples"][part.task]], found["results"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "metric", "right"), [("mmlu", "acc", "acc"), ("bbh", "exact_match", "exact_match"), ("drop", "f1", "em"), ("hellaswag", "acc_norm", "acc_norm")],
)  # fmt: skip
def test_the_same_as_the_harness_alone(wide, name, metric, right, request, tmp_path):
    path = request.getfixturevalue(name)
    model = Model(base=str(wide), dtype="float32")
    (record,) = bench.run(model, [Candidate("base")], asks(tmp_path, (name, path)), 0, str(tmp_path / "out"))
    samples, results = by_the_harness(load_base(model), name, path)
    assert record.protocol == "lm-eval"
    assert record.n == len(record.answers) == len(samples)
    assert [bool(sample[right] == 1) for sample in samples] == [answer["right"] for answer in record.answers]
    assert record.score == pytest.approx(sum(sample[metric] for sample in samples) / len(samples))
    if "likelihoods" in record.answers[0]:
        theirs = [[float(value) for value, _ in sample["filtered_resps"]] for sample in samples]
        ours = [answer["likelihoods"] for answer in record.answers]
        assert [value for row in ours for value in row] == pytest.approx(
            [value for row in theirs for value in row], abs=1e-4
        )
    else:
        assert [answer["prediction"] for answer in record.answers] == [
            sample["filtered_resps"][0] for sample in samples
        ]
    if len(results) == 1:
        (result,) = results.values()
        (error,) = [value for key, value in result.items() if key.startswith(f"{metric}_stderr")]
        assert error == "N/A" or record.stderr == pytest.approx(error)


def test_adapters_limits_and_carrying_on(base, adapter, mmlu, hellaswag, tmp_path, monkeypatch):
    model = Model(base=str(base), dtype="float32")
    candidates = [Candidate("base"), Candidate("tuned", str(adapter))]
    ask = asks(tmp_path, ("mmlu", mmlu), ("hellaswag", hellaswag), limit=4)
    events = []
    records = bench.run(model, candidates, ask, 0, str(tmp_path / "out"), events.append)
    assert [(r.model, r.task, r.n) for r in records] == [
        ("base", "mmlu", 4), ("base", "hellaswag", 4), ("tuned", "mmlu", 4), ("tuned", "hellaswag", 4)
    ]  # fmt: skip
    first, tuned = records[0], records[2]
    assert {answer["id"].split("/")[0] for answer in first.answers} == {"anatomy", "formal_logic"}
    assert first.prompt_digest == tuned.prompt_digest
    assert [a["likelihoods"] for a in first.answers] != [a["likelihoods"] for a in tuned.answers]
    assert {"subject:anatomy", "subject:formal_logic"} <= set(first.groups)
    assert first.versions["lm_eval"]
    assert [e.done for e in events if e.kind == "answering" and e.task == "mmlu"][-1] == 4
    monkeypatch.setattr(bench.models, "load_base", lambda *a, **k: pytest.fail("a model was loaded"))
    assert bench.run(model, candidates, ask, 0, str(tmp_path / "out")) == records


def test_another_protocol_is_another_record(base, mmlu, tmp_path):
    model, out = Model(base=str(base), dtype="float32"), str(tmp_path / "out")
    ask = asks(tmp_path, ("mmlu", mmlu))
    (harnessed,) = bench.run(model, [Candidate("base")], ask, 0, out)
    (ours,) = bench.run(
        model, [Candidate("base")], ask.model_copy(update={"protocol": "instruct-eval"}), 0, out
    )
    assert (harnessed.protocol, ours.protocol) == ("lm-eval", "instruct-eval")
    assert harnessed.inputs_digest != ours.inputs_digest


def test_hellaswag_by_our_own_code_is_the_harness_own(base, hellaswag, tmp_path):
    model = Model(base=str(base), dtype="float32")
    ask = asks(tmp_path, ("hellaswag", hellaswag))
    (harnessed,) = bench.run(model, [Candidate("base")], ask, 0, str(tmp_path / "a"))
    ours = ask.model_copy(update={"protocol": "instruct-eval"})
    (own,) = bench.run(model, [Candidate("base")], ours, 0, str(tmp_path / "b"))
    assert [a["right"] for a in harnessed.answers] == [a["right"] for a in own.answers]
    assert (harnessed.score, harnessed.groups["acc"]) == (own.score, own.groups["acc"])


def test_simple_evals_form_of_drop_is_read_too(tmp_path):
    path = tmp_path / "drop.jsonl"
    context = "Passage: Rain fell.\nQuestion: What fell?\nAnswer: "
    path.write_text(json.dumps({"context": context, "ref_text": "rain|the rain"}) + "\n")
    (part,) = harness.prepare("drop", path, "", None, 0).parts
    (document,) = part.documents
    assert (document["passage"], document["question"]) == ("Rain fell.", "What fell?")
    assert document["answer"]["spans"] == ["rain"]
    assert document["validated_answers"]["spans"] == [["the rain"]]


def test_a_subject_that_the_harness_lacks_is_refused(mmlu, tmp_path):
    (mmlu / "test" / "anatomy_test.csv").rename(mmlu / "test" / "alchemy_test.csv")
    (mmlu / "dev" / "anatomy_dev.csv").rename(mmlu / "dev" / "alchemy_dev.csv")
    assert bench.check(asks(tmp_path, ("mmlu", mmlu))) == [
        "mmlu: the harness has no task mmlu_alchemy: leave the file out or use the protocol `instruct-eval`"
    ]


def test_without_the_harness_the_protocol_is_refused(mmlu, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    (problem,) = bench.check(asks(tmp_path, ("mmlu", mmlu)))
    assert "pip install 'retune[bench]'" in problem


@pytest.mark.slow
def test_humaneval_runs_in_our_sandbox(base, tmp_path):
    path = tmp_path / "h.jsonl"
    problem = {"task_id": "T/0", "prompt": "def f():\n", "test": "def check(f):\n    assert f() == 1\n", "entry_point": "f",
               "canonical_solution": "    return 1\n"}  # fmt: skip
    path.write_text(json.dumps(problem) + "\n")
    with pytest.raises(ValueError, match="allow_code_execution"):
        asks(tmp_path, ("humaneval", path))
    ask = asks(tmp_path, ("humaneval", path), allow_code_execution=True)
    (record,) = bench.run(
        Model(base=str(base), dtype="float32"), [Candidate("base")], ask, 0, str(tmp_path / "out")
    )
    assert (record.score, record.n, record.shots) == (0.0, 1, 0)
    assert harness._run_tests(problem, ["    return 1\n"]) == {"pass@1": 1.0}
    assert harness._run_tests(problem, ["    return 2\n"]) == {"pass@1": 0.0}


@pytest.mark.slow
def test_nothing_is_fetched(base, mmlu, drop, hellaswag, bbh, tmp_path):
    """The whole run works without a network: neither importing nor running contacts a server."""
    guard = tmp_path / "guard" / "sitecustomize.py"
    guard.parent.mkdir()
    guard.write_text(
        "import socket, pathlib\n"
        "def refuse(*words, **settings):\n"
        f"    pathlib.Path({str(tmp_path / 'asked')!r}).write_text(repr(words))\n"
        "    raise OSError('no network in this test')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
    )
    words = [
        f"--data={name}={path}" for name, path in (("mmlu", mmlu), ("drop", drop), ("hellaswag", hellaswag))
    ]
    call = [sys.executable, "-m", "retune", "bench", "--model", str(base), "--tasks", "mmlu,drop,hellaswag", *words,
            "--protocol", "lm-eval", "--limit", "3", "--out", str(tmp_path / "out"), "--json"]  # fmt: skip
    env = {
        **os.environ,
        "PYTHONPATH": str(guard.parent),
        "HF_HOME": str(tmp_path / "hf"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(call, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert not (tmp_path / "asked").exists()


def test_bad_data_is_told_under_this_protocol_too(mmlu, tmp_path):
    (mmlu / "test" / "anatomy_test.csv").write_text("Q,1,2,3,4,F\n")
    assert any("one of A, B, C, D" in problem for problem in bench.check(asks(tmp_path, ("mmlu", mmlu))))
    with pytest.raises(InputError):
        bench.run(
            Model(base=str(tmp_path)),
            [Candidate("base")],
            asks(tmp_path, ("mmlu", mmlu)),
            0,
            str(tmp_path / "o"),
        )


def test_another_seed_draws_other_questions(mmlu):
    one, other = (harness.prepare("mmlu", mmlu, "", 5, seed) for seed in (0, 1))
    assert one.n == other.n == 5
    assert one.prompt_digest != other.prompt_digest
    assert one.prompt_digest == harness.prepare("mmlu", mmlu, "", 5, 0).prompt_digest
