"""Our benchmark loop against one prompt at a time, on the same model, questions and machine; predictions must be equal.

Both go from the questions' text to the predictions. The baseline does what Instruct-Eval does, question by question:
count the prompt's tokens, drop shots until it fits, then transformers' `generate` on the whole prompt. Ours reads
each text once, computes what prompts have in common once, and answers in batches. Both take turns, subject by
subject, so that a busy machine slows both. Subjects are asked whole, as a real run asks them.

Beside the times stand the tokens: of all prompts, which one at a time computes, and of the tree of their common
prefixes, each once, which is the least that a method without loss can compute. Their ratio bounds what sharing alone
can win; computing the last layer only where it is used wins beyond it.

    python benchmarks/bench_eval.py [--model MODEL --mmlu FOLDER] [--every 10] [--out result.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch

from retune import models
from retune.evaluation.decoding.generate import Decoder
from retune.evaluation.prompts import fit
from retune.evaluation.tasks import mmlu
from retune.evaluation.tasks.question import Question
from retune.records import now, versions
from retune.study import Model

T = TypeVar("T")
EXAMPLES = Path(__file__).parents[1] / "examples"


def one_at_a_time(base: models.LoadedBase, questions: list[Question], context: int) -> list[str]:
    """Return the answers, each from a call of its own."""
    task = mmlu.TASK
    limit = min(task.input_limit, context - task.new_tokens)
    texts = []
    for question in questions:
        shots = len(question.shots)
        while shots > 0 and len(base.tokenizer(question.prompt(shots))["input_ids"]) > limit:
            shots -= 1
        ids = base.tokenizer(question.prompt(shots), return_tensors="pt")["input_ids"][:, -limit:].to(
            base.device
        )
        with torch.inference_mode():
            out = base.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=task.new_tokens, do_sample=False,
                temperature=None, top_p=None, pad_token_id=base.tokenizer.pad_token_id,
            )  # fmt: skip
        texts.append(base.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


@dataclass(frozen=True)
class Counted(Decoder):
    """A decoder that counts its calls of the model, which are what a GPU waits for where they are small."""

    calls: list[str] = field(default_factory=list)

    def _states(self, *given: Any) -> Any:
        self.calls.append("prefix")
        return super()._states(*given)

    def _packed(self, *given: Any) -> Any:
        self.calls.append("prompts")
        return super()._packed(*given)

    def _step(self, *given: Any) -> Any:
        self.calls.append("step")
        return super()._step(*given)


def ours(
    base: models.LoadedBase,
    questions: list[Question],
    context: int,
    batch_size: int,
    call_tokens: float | None,
) -> tuple[list[str], int]:
    """Return the answers as `retune bench` computes them, and how many calls of the model they took."""
    prompts, _ = fit(base.tokenizer, questions, mmlu.TASK, context)
    decoder = Counted(base.model, base.tokenizer, base.device, context, batch_size, call_tokens=call_tokens)
    return decoder.complete(prompts, mmlu.TASK.new_tokens), len(decoder.calls)


def tokens(base: models.LoadedBase, questions: list[Question], context: int) -> tuple[int, int]:
    """Return the tokens of all prompts, and those of the tree of their common prefixes."""
    prompts, _ = fit(base.tokenizer, questions, mmlu.TASK, context)
    prompts.sort()
    shared = 0
    for before, prompt in pairwise(prompts):
        shared += next(
            (k for k, (a, b) in enumerate(zip(before, prompt, strict=False)) if a != b), len(before)
        )
    total = sum(map(len, prompts))
    return total, total - shared


def timed(work: Callable[..., T], *given: Any) -> tuple[T, float, float]:
    """Return the result, the wall seconds and the CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work(*given)
    return result, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(EXAMPLES / "base" / "tiny"))
    parser.add_argument("--mmlu", type=Path, default=EXAMPLES / "data" / "benchmarks" / "mmlu")
    parser.add_argument("--every", type=int, default=10, help="every how-manyth subject of the alphabet")
    parser.add_argument(
        "--subjects", nargs="+", help="these subjects, e.g. high_school_us_history: the longest prompts"
    )
    parser.add_argument(
        "--call-tokens", type=float,
        help="what a call of the model costs, in tokens; default: what the device is taken to need (on a GPU 2048)",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=int, help="questions per subject; default: all of them, as a real run asks"
    )
    parser.add_argument(
        "--sample", type=int, default=1,
        help="one at a time answers only every so-manyth question of a subject; its time is scaled to all of them",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--context", type=int, help="default: the model's own; 2048 + 2 gives the protocol's own prompts"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    base = models.load_base(Model(base=words.model, dtype=words.dtype))
    context = words.context or base.model.config.max_position_embeddings
    every = mmlu.read(words.mmlu)
    names = words.subjects or sorted({question.group for question in every})[:: words.every]
    rows: list[dict[str, Any]] = []
    for name in names:
        questions: list[Question] = [question for question in every if question.group == name][: words.limit]
        ours(base, questions[:4], context, words.batch_size, words.call_tokens)
        one_at_a_time(base, questions[:2], context)
        (fast, calls), wall, cpu = timed(ours, base, questions, context, words.batch_size, words.call_tokens)
        asked = questions[:: words.sample]
        slow, slow_wall, slow_cpu = timed(one_at_a_time, base, asked, context)
        slow_wall, slow_cpu = (seconds * len(questions) / len(asked) for seconds in (slow_wall, slow_cpu))
        equal = fast[:: words.sample] == slow
        whole, tree = tokens(base, questions, context)
        rows.append({"subject": name, "questions": len(questions), "tokens": whole, "tree_tokens": tree, "ours_s": wall,
                     "ours_cpu_s": cpu, "one_s": slow_wall, "one_cpu_s": slow_cpu,
                     "compared": len(asked), "equal": equal, "calls": calls})  # fmt: skip
        print(f"{name:<40} {len(questions):5} questions  {wall:8.2f} s  {slow_wall:8.2f} s one at a time"
              f"  {slow_wall / wall:6.1f}×  (tokens {whole / tree:4.1f}×)"
              f"  (CPU {slow_cpu / cpu:4.1f}×)  {calls} calls for {2 * len(questions)}"
              f"  {'equal' if equal else 'DIFFERENT'}", flush=True)  # fmt: skip
    total = {
        key: sum(row[key] for row in rows)
        for key in (
            "questions",
            "compared",
            "tokens",
            "tree_tokens",
            "calls",
            "ours_s",
            "ours_cpu_s",
            "one_s",
            "one_cpu_s",
        )
    }
    result = {
        "benchmark": "bench_eval", "model": Path(words.model).name, "dtype": words.dtype, "batch_size": words.batch_size,
        "context": context,
        "threads": words.threads, "sample": words.sample, "subjects": rows, **total, "speedup": total["one_s"] / total["ours_s"],
        "speedup_cpu": total["one_cpu_s"] / total["ours_cpu_s"], "token_ratio": total["tokens"] / total["tree_tokens"],
        "equal": all(row["equal"] for row in rows),
        "device": str(base.device), "machine": platform.machine(), "cores": os.cpu_count(), "finished": now(),
        "versions": versions("torch", "transformers"),
    }  # fmt: skip
    print(f"all: {total['questions']} questions, {total['questions'] / total['ours_s']:.1f} per second against "
          f"{total['questions'] / total['one_s']:.1f}: {result['speedup']:.1f}× (CPU time {result['speedup_cpu']:.1f}×), "
          f"tokens {result['token_ratio']:.1f}×, "
          f"{total['compared']} predictions {'equal' if result['equal'] else 'DIFFERENT'}")  # fmt: skip
    if words.out:
        words.out.write_text(json.dumps(result, indent=2) + "\n")
    if not result["equal"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
