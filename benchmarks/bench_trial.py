"""Training speed: our trial against transformers.Trainer, side by side in one run on one machine.

Both train the same LoRA adapter (rank 8, alpha 32, dropout 0 so that the curves can be compared) on the same base, the
same records in the same order, batch size, steps, AdamW and linear schedule. Trainer gets its usual padding collator
(`DataCollatorForSeq2Seq`). Repetitions alternate, ours first; the first steps of each are not timed.

    python benchmarks/bench_trial.py --model examples/base/tiny \
        --source alpaca:examples/data/alpaca-demo.json:0.7 --source dolly:examples/data/dolly-demo.jsonl:0.3
    python benchmarks/bench_trial.py --model <base> --data <folder of `retune mix`> --steps 100 --json out.json
    python benchmarks/bench_trial.py --gpu --model <tokenizer> --source alpaca:<file>:0.7 --source dolly:<file>:0.3

`--gpu` trains a Llama-2-7B-shaped base with random bfloat16 weights on random tokens of the real records' lengths, and
prints real tokens per second, their share of the 4N FLOP/token limit (a frozen base costs 2N forward and 2N for the
gradients of activations) and the peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import measuring
from retune.data import mixing, prompts
from retune.data.batches import epoch_order
from retune.data.tokens import Tokens, pack, tokenize
from retune.models import LoadedBase, load_base, load_tokenizer, quiet
from retune.records import versions
from retune.study import Data, Model, Training
from retune.training import lora, lora_linear
from retune.training.devices import Devices
from retune.training.loop import Loop
from retune.training.model_attention import by_segments

WARM_STEPS = 3
SEED = 0
TARGETS = ["q_proj", "v_proj"]
LLAMA_2_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
              "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096}  # fmt: skip


@dataclass
class Run:
    """One training: wall and CPU seconds of the timed steps, the loss of each step, peak GPU memory."""

    seconds: float
    cpu_seconds: float
    losses: list[float]
    peak_gib: float


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the comparison, print it and return what `--json` writes."""
    options = _options(argv)
    quiet()
    if options.threads:
        torch.set_num_threads(options.threads)
    tokens, base = _prepare(options)
    result = _compare(options, base, tokens)
    _print(result)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n")
    return result


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, help="base model folder; with --gpu only its tokenizer is used"
    )
    parser.add_argument("--data", help="folder of mixed data (retune mix)")
    parser.add_argument(
        "--source", action="append", default=[], metavar="FORMAT:FILE:SHARE", help="mix these instead"
    )
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--gpu", action="store_true", help="Llama-2-7B shape, random weights, real lengths")
    parser.add_argument("--layers", type=int, default=32, help="with --gpu: fewer layers for a smaller GPU")
    parser.add_argument(
        "--peak-tflops", type=float, help="dense bfloat16 peak of the GPU, if it is not a known one"
    )
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(argv)
    if bool(options.data) == bool(options.source):
        parser.error("give either --data or --source")
    if options.steps <= WARM_STEPS:
        parser.error(f"--steps must be above {WARM_STEPS}, the steps that are not timed")
    return options


def _prepare(options: argparse.Namespace) -> tuple[Tokens, LoadedBase]:
    """Return exactly the records of the run, in the order of the run, and the base."""
    model = Model(base=options.model)
    records = options.steps * options.batch_size
    with tempfile.TemporaryDirectory() as folder:
        uri = options.data or folder
        if options.source:
            sources = [measuring.source(text) for text in options.source]
            # A tenth more, since records that are too long are not counted
            train = records * 11 // 10 + 8
            data = Data.model_validate({"sources": sources, "train": train, "validation": len(sources)})
            mixing.mix(data, SEED, None, uri)
        pairs = [prompts.render(example) for example in mixing.load_split(uri, "train")]
    tokens = tokenize(pairs, load_tokenizer(model), options.max_length)
    if len(tokens) < records:
        sys.exit(
            f"{options.steps} steps of {options.batch_size} records need {records}, but there are {len(tokens)}"
        )
    tokens = _pick(tokens, epoch_order(len(tokens), SEED, 0)[:records])
    if not options.gpu:
        return tokens, load_base(model)
    base = _llama_2_7b(options.layers)
    torch.manual_seed(SEED)
    ids = torch.randint(base.model.config.vocab_size, tokens.ids.shape)
    return Tokens(ids, tokens.counted, tokens.offsets), base


def _pick(tokens: Tokens, order: list[int]) -> Tokens:
    spans = [slice(int(tokens.offsets[r]), int(tokens.offsets[r + 1])) for r in order]
    return pack([(tokens.ids[s].tolist(), tokens.counted[s].tolist()) for s in spans])


def _llama_2_7b(layers: int) -> LoadedBase:
    from transformers import LlamaConfig, LlamaForCausalLM

    device = torch.device("cuda", 0)
    config = LlamaConfig(**(LLAMA_2_7B | {"num_hidden_layers": layers}), attn_implementation="sdpa")
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.eval().requires_grad_(False)
    return LoadedBase(model, None, device, torch.bfloat16, "random", None)


def _compare(options: argparse.Namespace, base: LoadedBase, tokens: Tokens) -> dict[str, Any]:
    runs: dict[str, list[Run]] = {"ours": [], "trainer": []}
    for repeat in range(options.repeats):
        for name, train in (("ours", _ours), ("trainer", _trainer)):
            if name == "trainer" and options.ours_only:
                continue
            run = train(options, base, tokens)
            runs[name].append(run)
            print(f"repeat {repeat + 1} {name}: {run.seconds:.2f} s", file=sys.stderr)
    warm = WARM_STEPS * options.batch_size
    timed = len(tokens) - warm
    real = int(tokens.offsets[-1] - tokens.offsets[warm])
    result = {"machine": _machine(base), "versions": versions("torch", "transformers", "peft", "accelerate"),
              "settings": {k: getattr(options, k) for k in ("batch_size", "steps", "repeats", "max_length", "gpu")},
              "data": _statistics(tokens, options.batch_size)}  # fmt: skip
    for name, found in runs.items():
        if found:
            seconds = statistics.median(run.seconds for run in found)
            result[name] = {"samples_per_second": timed / seconds, "tokens_per_second": real / seconds,
                            "seconds": [run.seconds for run in found],
                "cpu_seconds": [run.cpu_seconds for run in found], "losses": found[0].losses}  # fmt: skip
            if options.gpu:
                result[name] |= _gpu_numbers(options, base, real / seconds, found)
    if runs["trainer"]:
        pairs = zip(result["ours"]["losses"], result["trainer"]["losses"], strict=True)
        result["max_loss_difference"] = max(abs(a - b) for a, b in pairs)
        result["ratio"] = result["ours"]["samples_per_second"] / result["trainer"]["samples_per_second"]
        cpu = {name: statistics.median(run.cpu_seconds for run in found) for name, found in runs.items()}
        result["cpu_ratio"] = cpu["trainer"] / cpu["ours"]
    return result


def _gpu_numbers(
    options: argparse.Namespace, base: LoadedBase, speed: float, runs: list[Run]
) -> dict[str, float]:
    numbers = {"peak_gib": max(run.peak_gib for run in runs)}
    weights = sum(p.numel() for p in base.model.parameters())
    share = measuring.share_of_limit(speed, weights, options.peak_tflops)
    return numbers if share is None else numbers | {"share_of_4n_limit": share}


def _ours(options: argparse.Namespace, base: LoadedBase, tokens: Tokens) -> Run:
    """Train with the loop that `retune trial` runs. Records are in order already, so the epoch's order is undone."""
    stamps: list[tuple[float, float]] = []

    def stamp() -> bool:
        _finish(base)
        stamps.append(_now())
        return False

    _reset(base)
    training = _chosen().model_copy(update={"epochs": 1, "batch_size": options.batch_size})
    place = {record: k for k, record in enumerate(epoch_order(len(tokens), SEED, 0))}
    shuffled = _pick(tokens, [place[record] for record in range(len(tokens))])
    validation = _pick(tokens, [0])
    with by_segments(base.model), lora.adapted(base.model, _chosen(), "base", SEED) as model:
        lora_linear.install(model)
        folder = os.path.join(tempfile.gettempdir(), "no-checkpoint-here")
        loop = Loop(model, shuffled, validation, training, SEED, Devices(), folder, "bench",
                    lambda event: None, stamp)  # fmt: skip
        losses = loop.run().losses
    # asked before each step, then inside the validation
    return _run(stamps, options.steps, losses, base)


def _trainer(options: argparse.Namespace, base: LoadedBase, tokens: Tokens) -> Run:
    """Train with transformers.Trainer, PEFT and the padding collator."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.stamps: list[tuple[float, float]] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            _finish(base)
            self.stamps.append(_now())

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            _finish(base)
            self.stamps.append(_now())

    _reset(base)
    clock = Clock()
    chosen = _chosen()
    with (
        tempfile.TemporaryDirectory() as folder,
        lora.adapted(base.model, chosen, "base", SEED) as model,
    ):
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=options.batch_size, num_train_epochs=1, seed=SEED,
            learning_rate=chosen.learning_rate, weight_decay=chosen.weight_decay, lr_scheduler_type="linear",
            train_sampling_strategy="sequential", logging_steps=1, report_to="none", save_strategy="no",
            disable_tqdm=True, use_cpu=base.device.type == "cpu", bf16=base.dtype == torch.bfloat16,
        )  # fmt: skip
        trainer = Trainer(
            model, arguments, train_dataset=_rows(tokens), callbacks=[clock],
            data_collator=DataCollatorForSeq2Seq(_tokenizer(options), padding=True),
        )  # fmt: skip
        from transformers.trainer_callback import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return _run(clock.stamps, options.steps, losses, base)


def _now() -> tuple[float, float]:
    """Return wall and CPU time. The latter counts all threads of this process, and little of what others do."""
    return time.perf_counter(), time.process_time()


def _run(stamps: list[tuple[float, float]], steps: int, losses: list[float], base: LoadedBase) -> Run:
    wall, cpu = (end - start for start, end in zip(stamps[WARM_STEPS], stamps[steps], strict=True))
    return Run(wall, cpu, losses, _peak(base))


def _chosen() -> Training:
    return Training(rank=8, alpha=32, dropout=0.0, learning_rate=1e-4, target_modules=TARGETS)


def _tokenizer(options: argparse.Namespace) -> Any:
    return load_tokenizer(Model(base=options.model))


def _rows(tokens: Tokens) -> list[dict[str, list[int]]]:
    rows = []
    for start, end in zip(tokens.offsets.tolist(), tokens.offsets[1:].tolist(), strict=False):
        ids, counted = tokens.ids[start:end], tokens.counted[start:end]
        labels = torch.where(counted, ids, -100)
        rows.append(
            {"input_ids": ids.tolist(), "attention_mask": [1] * (end - start), "labels": labels.tolist()}
        )
    return rows


def _reset(base: LoadedBase) -> None:
    torch.manual_seed(SEED)
    if base.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _finish(base: LoadedBase) -> None:
    """Wait until the device has finished its queue, so that times are those of the work."""
    if base.device.type == "cuda":
        torch.cuda.synchronize()


def _peak(base: LoadedBase) -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if base.device.type == "cuda" else 0.0


def _statistics(tokens: Tokens, batch_size: int) -> dict[str, float]:
    lengths = tokens.lengths.tolist()
    batches = [lengths[k : k + batch_size] for k in range(0, len(lengths), batch_size)]
    padded = sum(max(batch) * len(batch) for batch in batches)
    return {"records": len(lengths), "tokens": sum(lengths), "counted_share": float(tokens.counted.float().mean()),
            "padded_per_real": padded / sum(lengths)}  # fmt: skip


def _machine(base: LoadedBase) -> dict[str, Any]:
    found = {
        "cpu": measuring.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }
    if base.device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(base.device)
    return found


def _print(result: dict[str, Any]) -> None:
    print("machine   " + ", ".join(f"{k} {v}" for k, v in result["machine"].items()))
    print("versions  " + ", ".join(f"{k} {v}" for k, v in result["versions"].items()))
    print("settings  " + ", ".join(f"{k} {v}" for k, v in result["settings"].items()))
    print("data      " + ", ".join(f"{k} {v:.4g}" for k, v in result["data"].items()))
    both = [name for name in ("ours", "trainer") if name in result]
    if len(both) == 2:
        print("\nstep      ours   trainer")
        curves = list(zip(result["ours"]["losses"], result["trainer"]["losses"], strict=True))
        for step in sorted({*range(0, len(curves), max(1, len(curves) // 10)), len(curves) - 1}):
            print(f"{step + 1:4d} {curves[step][0]:9.4f} {curves[step][1]:9.4f}")
        print(f"largest difference over all steps: {result['max_loss_difference']:.2g}")
    print("\n           samples/s  real tokens/s")
    for name in both:
        row = result[name]
        print(f"{name:8s} {row['samples_per_second']:11.2f} {row['tokens_per_second']:14.0f}", end="")
        print("  seconds " + " ".join(f"{wall:.1f}" for wall in row["seconds"]), end="")
        print("".join(f"  {k} {row[k]:.3g}" for k in ("share_of_4n_limit", "peak_gib") if k in row))
    if "ratio" in result:
        print(f"ratio    {result['ratio']:11.2f}   (by CPU time {result['cpu_ratio']:.2f})")


if __name__ == "__main__":
    main()
