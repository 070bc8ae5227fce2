"""lm-evaluation-harness' own tasks (``--protocol lm-eval``): its prompts, filters and metrics, our files and decoding.

The task definitions are those of the installed harness (0.4.13). Only where a task's data set comes from is replaced:
local files instead of a download. One is written here: the harness' `humaneval` loads a metric from a hub when it is
imported; prompt, stop words and limit are its own, the tests run in our sandbox.

What a tokenizer cuts and where an answer stops is done as the harness' `HFLM` does; a test compares the two.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from retune import store
from retune.evaluation.decoding.generate import Decoder
from retune.evaluation.prompts import pairs
from retune.evaluation.tasks import drop, humaneval, lines, mmlu
from retune.evaluation.tasks.question import Question, draw, mean
from retune.records import digest
from retune.study import TaskName

# task -> folder of its definitions in the harness, prefix of their names, metric of the score, metric that is 1 if it is right
_TASKS = {
    "mmlu": ("mmlu/default", "mmlu_", "acc", "acc"),
    "bbh": ("bbh/cot_fewshot", "bbh_cot_fewshot_", "exact_match", "exact_match"),
    "drop": ("drop", "drop", "f1", "em"),
    "hellaswag": ("hellaswag", "hellaswag", "acc_norm", "acc_norm"),
    "humaneval": ("", "humaneval", "pass@1", "pass@1"),
}
_HUMANEVAL = {
    "task": "humaneval",
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{test}}\ncheck({{entry_point}})",
    "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
    "generation_kwargs": {
        "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
        "max_gen_toks": 1024,
        "do_sample": False,
    },
    "num_fewshot": 0,
}
_MAX_NEW = 256  # the harness' own default


@dataclass(frozen=True)
class Part:
    """One task of the harness and the documents to ask: an MMLU subject, a BBH task, or the whole benchmark."""

    task: str
    group: str
    documents: list[dict[str, Any]]
    examples: list[dict[str, Any]]
    ids: list[str]


@dataclass(frozen=True)
class HarnessBenchmark:
    """A benchmark made ready; see `retune.evaluation.bench.Prepared`."""

    name: TaskName
    parts: list[Part]
    data_digest: str
    protocol: str = "lm-eval"

    @property
    def n(self) -> int:
        """The number of questions."""
        return sum(len(part.documents) for part in self.parts)

    @property
    def shots(self) -> int:
        """Solved examples before a question."""
        return max(int(task.config.num_fewshot or 0) for task in self._tasks)

    @cached_property
    def prompt_digest(self) -> str:
        """The digest of all requests in order, endings and stop words among them."""
        return digest(
            [[str(word) for word in request.args] for task in self._tasks for request in task.instances]
        )

    @property
    def settings(self) -> dict[str, Any]:
        """How answers are made."""
        return {"decoding": "greedy", "harness": metadata.version("lm_eval")}

    def answer(self, decoder: Decoder, done: Callable[[float], None]) -> dict[str, Any]:
        """Answer all requests and let the harness judge; see `retune.evaluation.bench.Prepared`."""
        requests = [request for task in self._tasks for request in task.instances]
        for request in requests:
            request.resps = []
        share = self.n / len(requests)
        respond = _likelihoods if requests[0].request_type == "loglikelihood" else _texts
        answers = respond(decoder, [request.args for request in requests], lambda count: done(count * share))
        for request, response in zip(requests, answers, strict=True):
            request.resps.append(response)
        judged = [
            entry for task, part in zip(self._tasks, self.parts, strict=True) for entry in _judge(task, part)
        ]
        return self._record(judged)

    def _record(self, judged: Sequence[tuple[Part, dict[str, Any], dict[str, float]]]) -> dict[str, Any]:
        """Return the fields of the record: the score is the mean over questions, as the harness weighs its groups."""
        *_, metric, right = _TASKS[self.name]
        values = [metrics[metric] for *_, metrics in judged]
        score = mean(values)
        groups = {
            name: statistics.fmean(metrics[name] for *_, metrics in judged)
            for name in judged[0][2]
            if name != metric
        }
        for group in dict.fromkeys(part.group for part, *_ in judged if part.group):
            own = [metrics[metric] for part, _, metrics in judged if part.group == group]
            groups[f"{'subject' if self.name == 'mmlu' else 'task'}:{group}"] = statistics.fmean(own)
        answers = [
            {
                **entry,
                "right": bool(metrics[right] == 1),
                **({"score": metrics[metric]} if metric != right else {}),
            }
            for _, entry, metrics in judged
        ]
        return {"score": score.value, "stderr": score.stderr, "groups": groups, "answers": answers}

    @cached_property
    def _tasks(self) -> list[Any]:
        """The harness' task of each part, with its requests built."""
        built = [_task(self.name, part) for part in self.parts]
        with _quiet():
            for task in built:
                task.build_all_requests()
        return built


def problems(name: TaskName, uri: str) -> list[str]:
    """Return why a task cannot be asked by the harness; its files have been read and found right."""
    if find_spec("lm_eval") is None:
        return [
            "the protocol `lm-eval` needs lm-evaluation-harness, which is not installed: pip install 'retune[bench]'"
        ]
    folder, prefix, *_ = _TASKS[name]
    if not folder or prefix == name:
        return []
    known = {path.stem for path in (_definitions() / folder).glob("*.yaml")}
    groups = [part.group for part in _parts(name, store.download(uri))]
    unknown = [group for group in groups if group not in known and f"{prefix}{group}" not in known]
    return [
        f"the harness has no task {prefix}{group}: leave the file out or use the protocol `instruct-eval`"
        for group in unknown
    ]


def prepare(name: TaskName, path: Path, data_digest: str, limit: int | None, seed: int) -> HarnessBenchmark:
    """Return a benchmark with the documents that a limit draws, evenly over its subjects or tasks."""
    parts = _parts(name, path)
    every = [
        Question(str(index), part.group, "", (), "", "", {"part": str(number)})
        for number, part in enumerate(parts)
        for index in range(len(part.documents))
    ]
    kept: dict[str, list[int]] = {}
    for question in draw(every, limit, seed):
        kept.setdefault(question.extra["part"], []).append(int(question.id))
    return HarnessBenchmark(
        name,
        [
            Part(
                part.task,
                part.group,
                [part.documents[k] for k in places],
                part.examples,
                [part.ids[k] for k in places],
            )
            for number, part in enumerate(parts)
            if (places := kept.get(str(number)))
        ],
        data_digest,
    )


def _parts(name: TaskName, path: Path) -> list[Part]:
    """Return the documents in the schema that the harness' task reads."""
    prefix = _TASKS[name][1]
    if name == "mmlu":
        tests = sorted(path.glob("test/*_test.csv"))
        subjects = [test.name.removesuffix("_test.csv") for test in tests]
        return [
            _part(
                prefix + subject,
                subject,
                _mmlu(test, subject),
                _mmlu(path / "dev" / f"{subject}_dev.csv", subject),
            )
            for subject, test in zip(subjects, tests, strict=True)
        ]
    if name == "bbh":
        files = sorted(path.glob("*.json"))
        return [
            _part(prefix + file.stem, file.stem, json.loads(file.read_bytes())["examples"], [])
            for file in files
        ]
    if name == "drop":
        documents = drop.documents(path)
        return [Part(prefix, "", documents, [], [document["query_id"] for document in documents])]
    documents = lines.parse(path, lines.read_text(path), "a line is a JSON object", lambda number, row: row)
    ids = [str(document.get("task_id", number)) for number, document in enumerate(documents, 1)]
    return [Part(prefix, "", documents, [], ids)]


def _part(task: str, group: str, documents: list[dict[str, Any]], examples: list[dict[str, Any]]) -> Part:
    return Part(task, group, documents, examples, [f"{group}/{number}" for number in range(len(documents))])


def _mmlu(path: Path, subject: str) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {
                "question": row[0],
                "subject": subject,
                "choices": row[1:5],
                "answer": mmlu.LETTERS.index(row[5]),
            }
            for row in csv.reader(file)
        ]


def _task(name: TaskName, part: Part) -> Any:
    """Return the harness' task, reading our documents instead of a download."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    def local(**settings: Any) -> dict[str, Any]:
        splits = {"test": part.documents, "validation": part.documents, "dev": part.examples}
        return {split: datasets.Dataset.from_list(rows) for split, rows in splits.items() if rows}

    with _quiet():
        if name == "humaneval":
            return ConfigurableTask(
                config={**_HUMANEVAL, "custom_dataset": local, "process_results": _run_tests}
            )
        changes = {"task": part.task, "custom_dataset": local, "training_split": None}
        # In a group: the harness would read a single task as a new definition, without its own.
        return _index(_TASKS[name][0]).load([{"group": "local", "task": [changes]}])["tasks"][part.task]


@cache
def _index(folder: str) -> Any:
    """Return the harness' index of the definitions in one of its folders."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=False, include_path=str(_definitions() / folder))


def _definitions() -> Path:
    import lm_eval

    return Path(lm_eval.__file__).parent / "tasks"


def _run_tests(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return pass@1 of one completion."""
    outcome = humaneval.run_tests(document["prompt"], results[0], document["test"], document["entry_point"])
    return {"pass@1": float(outcome.passed)}


def _judge(task: Any, part: Part) -> Iterator[tuple[Part, dict[str, Any], dict[str, float]]]:
    """Give each question's part, entry and metrics."""
    task.apply_filters()
    requests: dict[int, list[Any]] = {}
    for request in task.instances:
        requests.setdefault(request.doc_id, []).append(request)
    for index, own in sorted(requests.items()):
        own.sort(key=lambda request: request.idx)
        (key,) = own[0].filtered_resps
        responses = [request.filtered_resps[key] for request in own]
        entry: dict[str, Any] = {"id": part.ids[index], "prompt": digest(str(own[0].args[0]))}
        if task.OUTPUT_TYPE == "multiple_choice":
            entry["likelihoods"] = [round(value, 6) for value, _ in responses]
        else:
            entry["prediction"] = responses[0]
        yield part, entry, task.process_results(own[0].doc, responses)


def _likelihoods(
    decoder: Decoder, asked: Sequence[tuple[str, str]], done: Callable[[float], None]
) -> list[tuple[float, bool]]:
    """Return the log-likelihood of each continuation; whether it is the greedy one is not asked by these tasks."""
    contexts, endings = pairs(decoder.tokenizer, asked, decoder.context)
    return [(value, False) for value in decoder.likelihoods(contexts, endings, done)]


def _texts(
    decoder: Decoder, asked: Sequence[tuple[str, dict[str, Any]]], done: Callable[[float], None]
) -> list[str]:
    """Return the greedy answers, each up to its stop words; all requests of a benchmark have the same ones."""
    settings = asked[0][1]
    stops = [str(word) for word in settings["until"]]
    # If the model's context is too short for so long an answer, at most half of it is left for the answer.
    new = min(int(settings.get("max_gen_toks", _MAX_NEW)), decoder.context // 2)
    read: list[list[int]] = decoder.tokenizer([text for text, _ in asked])["input_ids"]
    prompts = [ids[-(decoder.context - new) :] for ids in read]
    texts = decoder.complete(prompts, new, lambda text: any(stop in text for stop in stops), done)
    for word in stops:
        texts = [text.split(word)[0] for text in texts]
    return texts


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress progress bars and messages of the harness."""
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()):
        yield
