"""One task asked as Instruct-Eval asks it: questions drawn, prompts as tokens, answers graded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from retune import models
from retune.evaluation.decoding.generate import Decoder, Sampling
from retune.evaluation.prompts import fit, pairs
from retune.evaluation.tasks.question import Question, Task, draw, mean
from retune.records import digest
from retune.study import Benchmark, Model


@dataclass(frozen=True)
class InstructBenchmark:
    """A task with the questions that are asked and the prompts as tokens; see `retune.evaluation.bench.Prepared`."""

    task: Task
    questions: list[Question]
    data_digest: str
    tokens: list[list[int]]
    kept_shots: list[int]
    sampling: Sampling | None = None
    samples: int = 1

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    @property
    def protocol(self) -> str:
        """Whose prompts and rule these are."""
        return self.task.protocol

    @property
    def shots(self) -> int:
        """Solved examples before a question, where they all fit."""
        return self.task.shots

    @property
    def n(self) -> int:
        """The number of questions."""
        return len(self.questions)

    @property
    def prompt_digest(self) -> str:
        """The digest of all prompts in order."""
        pairs = zip(self.questions, self.kept_shots, strict=True)
        return digest([question.prompt(shots) for question, shots in pairs])

    @property
    def settings(self) -> dict[str, Any]:
        """How answers are made."""
        limits = {"input_limit": self.task.input_limit, "new_tokens": self.task.new_tokens}
        if self.sampling is None:
            return {"decoding": "greedy", **limits}
        return {
            "decoding": "sampled",
            "temperature": self.sampling.temperature,
            "samples": self.samples,
            **limits,
        }

    def answer(self, decoder: Decoder, done: Callable[[float], None]) -> dict[str, Any]:
        """Answer and grade all questions; return score, stderr, groups and answers of the record.

        Args:
            decoder: the model.
            done: called with the number of questions answered since the last call.
        """
        if self.sampling is not None:
            return self._sampled(decoder, self.sampling, done)
        predictions, others = self._predict(decoder, done)
        verdicts = self.task.grade(self.questions, predictions)
        score = self.task.average(self.questions, [verdict.right for verdict in verdicts])
        answers = [
            {**entry, "prediction": prediction, "right": verdict.right,
             **({"reason": verdict.reason} if verdict.reason else {})}
            for entry, prediction, verdict in zip(self._entries(), predictions, verdicts, strict=True)
        ]  # fmt: skip
        return {
            "score": score.value,
            "stderr": score.stderr,
            "groups": {**score.groups, **others},
            "answers": answers,
        }

    def _entries(self) -> list[dict[str, Any]]:
        return [
            {"id": question.id, "prompt": digest(question.prompt(shots)), "shots": shots}
            for question, shots in zip(self.questions, self.kept_shots, strict=True)
        ]

    def _predict(self, decoder: Decoder, done: Callable[[float], None]) -> tuple[list[str], dict[str, float]]:
        """Return the predictions, and further scores by name where choices are compared."""
        task = self.task
        if task.choose is None:
            texts = decoder.complete(self.tokens, task.new_tokens, task.stop, done)
            return [task.postprocess(text) for text in texts], {}
        asked = [(question.prompt(), choice) for question in self.questions for choice in question.choices]
        contexts, endings = pairs(decoder.tokenizer, asked, decoder.context)
        share = len(self.questions) / len(contexts)
        likelihoods = iter(decoder.likelihoods(contexts, endings, lambda count: done(count * share)))
        by_question = [[next(likelihoods) for _ in question.choices] for question in self.questions]
        predictions = [
            task.choose(question, each) for question, each in zip(self.questions, by_question, strict=True)
        ]
        return predictions, task.others(self.questions, by_question) if task.others else {}

    def _sampled(self, decoder: Decoder, sampling: Sampling, done: Callable[[float], None]) -> dict[str, Any]:
        """Answer each question `samples` times; the score is the mean share of right answers (pass@1)."""
        questions = [question for question in self.questions for _ in range(self.samples)]
        names = [f"{question.id}/{k}" for question in self.questions for k in range(self.samples)]
        tokens = [ids for ids in self.tokens for _ in range(self.samples)]
        texts = decoder.complete(
            tokens,
            self.task.new_tokens,
            self.task.stop,
            lambda count: done(count / self.samples),
            sampling.named(names),
        )
        predictions = [self.task.postprocess(text) for text in texts]
        verdicts = self.task.grade(questions, predictions)
        answers = []
        for index, entry in enumerate(self._entries()):
            own = slice(index * self.samples, (index + 1) * self.samples)
            right = [verdict.right for verdict in verdicts[own]]
            answers.append(
                {**entry, "predictions": predictions[own], "passed": sum(right), "right": 2 * sum(right) > len(right),
                 "reasons": [verdict.reason for verdict in verdicts[own]]}
            )  # fmt: skip
        score = mean([answer["passed"] / self.samples for answer in answers])
        return {"score": score.value, "stderr": score.stderr, "groups": score.groups, "answers": answers}


def prepare(
    model: Model, context: int, benchmark: Benchmark, task: Task, read: tuple[list[Question], str], seed: int
) -> InstructBenchmark:
    """Return the task with the questions that a limit draws and their prompts as tokens.

    Args:
        context: the longest sequence that the model takes, in tokens.
        read: the task's questions and the digest of its files.
        seed: decides the draw and what is sampled.
    """
    questions = draw(read[0], benchmark.limit, seed)
    tokens, shots = fit(models.load_tokenizer(model), questions, task, context)
    if task.name != "humaneval" or not benchmark.temperature:
        return InstructBenchmark(task, questions, read[1], tokens, shots)
    return InstructBenchmark(
        task, questions, read[1], tokens, shots, Sampling(benchmark.temperature, seed), benchmark.samples
    )
