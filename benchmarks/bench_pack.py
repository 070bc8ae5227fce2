"""A search's trials on one base: side by side, one after another here, and one process of transformers' Trainer for each.

All three train the same adapters (rank 8, alpha 32, dropout 0, each with a learning rate and seed of its own) on the demo's base
and data, and validate each. The peers' processes start Python, import, load base and data and train, one after the other, as a
user's script for each trial would; ours load once. The losses of all steps must agree. CPU seconds of all processes are compared,
so that what else the machine does matters little; give it to this program alone for wall times. Only `--alone` and `--peers` of
the trials are run in the two other ways, and their seconds are counted for all: trials differ in rate and seed, not in work.

    python benchmarks/bench_pack.py --trials 16 --records 800 --threads 1
    python benchmarks/bench_pack.py --shape 1.1B --trials 16 --records 80      # on a GPU; 7B likewise

`--shape` takes a Llama of that shape with random weights, in bfloat16 on a GPU, and prints real tokens a second, there with their
share of the 4N FLOP/token limit; `benchmarks/bench_gpu.py` runs it. `--shape tiny` runs the same code on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measuring

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "examples/01-first-study/study.yaml"
SHAPES = {
    "tiny": (64, 128, 2, 4), "1.1B": (2048, 5632, 22, 32), "7B": (4096, 11008, 32, 32),
}  # fmt: skip
"""Hidden size, inner size, layers and heads."""
PEER = """
import sys, json
import torch
torch.set_num_threads(int(sys.argv[3]))
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments, AutoTokenizer
from peft import LoraConfig, get_peft_model
job = json.load(open(sys.argv[1]))
rate, seed = job["trials"][int(sys.argv[2])]
on_gpu = torch.cuda.is_available()
dtype = torch.bfloat16 if on_gpu else torch.float32
model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=dtype)
torch.manual_seed(seed)
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=32, lora_dropout=0.0, target_modules=["q_proj", "v_proj"],
    task_type="CAUSAL_LM"))
arguments = TrainingArguments(job["out"], per_device_train_batch_size=4, num_train_epochs=1, learning_rate=rate, seed=seed,
    lr_scheduler_type="linear", train_sampling_strategy="sequential", logging_steps=1, report_to="none", save_strategy="no",
    disable_tqdm=True, use_cpu=not on_gpu, bf16=on_gpu)
trainer = Trainer(model, arguments, train_dataset=job["rows"][str(seed)],
    data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(job["base"]), padding=True))
trainer.train()
trainer.evaluate(job["validation"])
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print("LOSSES", json.dumps(losses))
"""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the comparison, print it and return what `--json` writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--records", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", type=int, default=4, help="trials that are run one after another")
    parser.add_argument("--peers", type=int, default=2, help="trials that are run in a process of Trainer's")
    parser.add_argument(
        "--shape", choices=list(SHAPES), help="a Llama of this shape with random weights as base"
    )
    parser.add_argument(
        "--base", type=Path, help="with --shape: the folder of that base, made if it is not there"
    )
    parser.add_argument("--source", action="append", default=[], metavar="FORMAT:FILE:SHARE",
                        help="train on these records instead of the demo's")  # fmt: skip
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(argv)
    if options.json:
        options.json = str(Path(options.json).resolve())
    import torch

    from retune.models import quiet
    from retune.records import versions

    quiet()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = _compare(options, Path(folder))
    machine = {"cpu": measuring.processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    settings = {
        name: value for name, value in vars(options).items() if name not in ("base", "json", "source")
    }
    about = {"machine": machine, "versions": versions("torch", "transformers", "peft"), "settings": settings}
    result = about | result
    print(json.dumps({name: value for name, value in result.items() if name != "losses"}, indent=2))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n")
    return result


def _compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import torch

    from retune import models
    from retune.study import Model

    models.import_libraries(Model(base=str(ROOT / "examples/base/tiny")))
    from retune.data.batches import epoch_order
    from retune.steps import mix
    from retune.study import load
    from retune.training.resident import ResidentBase
    from retune.trials.run_trial import run_trial
    from retune.trials.side_by_side import SideBySide
    from retune.trials.task import TrialTask

    base_folder = ROOT / "examples/base/tiny"
    if options.shape:
        base_folder = (options.base or folder / "base").resolve()
        if not (base_folder / "config.json").exists():
            _say(f"writing a base of shape {options.shape} with random weights")
            write_random_base(base_folder, options.shape)
    overrides = [
        f"data.train={options.records}", "training.epochs=1", "training.dropout=0.0", f"model.base={base_folder}",
    ]  # fmt: skip
    if options.shape:
        overrides.append("data.validation=8")  # validation is not counted in tokens a second
    if options.source:
        sources = json.dumps([measuring.source(text) for text in options.source])
        overrides += [f"data.sources={sources}", "data.max_length=512"]
    os.chdir(folder)
    study = load(DEMO, overrides)
    recipe = mix.recipe(study)
    mix.mix(recipe)
    base = ResidentBase(study.model)
    trials = [(1e-4 * (number + 1), number) for number in range(options.trials)]

    def tasks(name: str) -> list[TrialTask]:
        return [
            TrialTask(
                trial=f"trial-{seed:03d}", number=seed, role="search", seed=seed, folder=str(folder / name / str(seed)),
                assignment={"rank": 8, "alpha": 32.0, "dropout": 0.0, "learning_rate": rate},
            )
            for rate, seed in trials
        ]  # fmt: skip

    count_alone, count = min(options.alone, options.trials), min(options.peers, options.trials)

    def alone() -> list[Any]:
        found = []
        for task in tasks("alone")[:count_alone]:
            found.append(run_trial(study, recipe.folder, task, base))
            _say(f"alone: {len(found)} of {count_alone} trials")
        return found

    def together() -> list[Any]:
        pack = SideBySide(study, recipe.folder, base)
        for task in tasks("together"):
            assert pack.start(task) is None
        found, steps, said = [], 0, time.monotonic()
        while pack.running:
            found += pack.step()
            steps += 1
            if time.monotonic() - said > 5:
                said = time.monotonic()
                _say(
                    f"side by side: {steps} of {pack.running[0].loop.steps if pack.running else steps} steps"
                )
        return sorted(found, key=lambda record: record.number)

    # Loads, checks and tokenises, and trains once for nothing: all of it is charged to us below.
    _say("loading, checking and a first trial")
    first = _timed(lambda: run_trial(study, recipe.folder, tasks("first")[0], base))[1]
    one, seconds = _timed(alone)
    alone_seconds = {name: value / count_alone * options.trials for name, value in seconds.items()}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    several, together_seconds = _timed(together)
    curves = [
        [[point.value for point in record.curves["train_loss"]] for record in records]
        for records in (one, several)
    ]
    tokens = sum(record.tokens for record in several)
    result: dict[str, Any] = {
        "alone": alone_seconds, "side_by_side": together_seconds, "tokens": tokens,
        "tokens_per_second": {"alone": tokens / alone_seconds["wall"], "side_by_side": tokens / together_seconds["wall"]},
        "ratio_to_alone": {k: alone_seconds[k] / together_seconds[k] for k in alone_seconds},
        "run_alone": count_alone, "difference_to_alone": _apart(curves[0], curves[1][:count_alone]), "losses": curves[1],
    }  # fmt: skip
    result["first_trial"] = first
    if torch.cuda.is_available():
        weights = sum(parameter.numel() for parameter in base.load().model.parameters())
        result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        result["share_of_4n_limit"] = {
            way: share
            for way, speed in result["tokens_per_second"].items()
            if (share := measuring.share_of_limit(speed, weights))
        }
    if not count:
        return result
    data = base.tokens(recipe.folder, "train", study.data)
    rows = {seed: [_row(data, record) for record in epoch_order(len(data), seed, 0)] for _, seed in trials}
    held_out = base.tokens(recipe.folder, "validation", study.data)
    job = folder / "job.json"
    content = {"base": str(base_folder), "out": str(folder / "peer"), "trials": trials, "rows": rows,
               "validation": [_row(held_out, record) for record in range(len(held_out))]}  # fmt: skip
    job.write_text(json.dumps(content))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the peers need the memory

    def train_peers() -> list[list[float]]:
        found = []
        for number in range(count):
            found.append(_peer(job, number, options.threads))
            _say(f"Trainer: {len(found)} of {count} processes")
        return found

    peers, seconds = _timed(train_peers)
    share = {name: value / count * options.trials for name, value in seconds.items()}
    imports = _timed(
        lambda: subprocess.run([sys.executable, "-c", "import retune.trials.side_by_side"], check=True)
    )[1]
    start = {name: imports[name] + first[name] for name in first}
    return result | {
        "trainer": share, "peers_run": count, "ours_start": start,
        "ratio_to_trainer": {k: share[k] / (together_seconds[k] + start[k]) for k in share},
        "difference_to_trainer": _apart(curves[1][:count], peers),
    }  # fmt: skip


def _say(text: str) -> None:
    """Print the program's progress, and the CPU seconds so far."""
    print(f"{_seconds():7.1f} CPU s  {text}", file=sys.stderr, flush=True)


def _seconds() -> float:
    """Return the CPU seconds of this process and of those that it waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _timed(act: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return what it gives, and the wall and CPU seconds of this process and of those that it waited for."""
    before = time.monotonic(), _seconds()
    found = act()
    return found, {"wall": time.monotonic() - before[0], "cpu": _seconds() - before[1]}


def _peer(job: Path, number: int, threads: int) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", PEER, str(job), str(number), str(threads)], check=True, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("LOSSES")]
    losses: list[float] = json.loads(line.removeprefix("LOSSES"))
    return losses


def _apart(ours: list[list[float]], theirs: list[list[float]]) -> float:
    """Return the largest difference of a loss in any step of any trial."""
    pairs = [pair for a, b in zip(ours, theirs, strict=True) for pair in zip(a, b, strict=True)]
    return max(abs(a - b) for a, b in pairs)


def _row(tokens: Any, record: int) -> dict[str, list[int]]:
    span = slice(int(tokens.offsets[record]), int(tokens.offsets[record + 1]))
    ids, counted = tokens.ids[span].tolist(), tokens.counted[span].tolist()
    labels = [token if flag else -100 for token, flag in zip(ids, counted, strict=True)]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def write_random_base(folder: Path, shape: str) -> None:
    """Write a Llama of this shape with random weights, made on the GPU if there is one, and the demo's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    hidden, inner, layers, heads = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads, vocab_size=32000,
        max_position_embeddings=4096,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)  # at once: 7B in float32 are 27 GB
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "examples/base/tiny").save_pretrained(folder)


if __name__ == "__main__":
    main()
