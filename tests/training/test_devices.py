"""Two processes on this CPU (gloo, started by torchrun) learn what one process learns.

The programs wait before they destroy the process group: torch joins gloo's threads while it holds the interpreter's lock, and one that
still has to free the tensor of the last exchange needs the lock, so that both wait for ever (seen with torch 2.6 on a busy machine).
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import OPTConfig, OPTForCausalLM

from retune.records import TrialRecord
from retune.training.resident import ResidentBase
from retune.trials.run_trial import run_trial
from tests.training.conftest import make_study

ROOT = Path(__file__).parents[2]

_PROGRAM = """
import json, sys, time
import torch
torch.set_num_threads(1)
from retune.errors import Interrupted
from retune.training.resident import ResidentBase
from retune.trials.run_trial import run_trial
from retune.trials.task import TrialTask
from tests.training.conftest import make_study

base_folder, data, out, settings = sys.argv[1:5]
if sys.argv[5] == "true":  # no process may ever hold the whole base
    import transformers
    transformers.AutoModelForCausalLM.from_pretrained = None
study = make_study(base_folder, **json.loads(settings))
base = ResidentBase(study.model)

def task(name):
    return TrialTask(trial=name, number=2, role="search", seed=3, folder=f"{out}/{name}")

questions = []
def stop():
    "Only one of the two is asked, in the middle of the second epoch."
    questions.append(1)
    return base.devices.rank == 1 and len(questions) > 13

assert base.devices.world == 2
layer = base.load().model.model.layers[0]
assert (type(layer.mlp.up_proj.weight).__name__ == "DTensor") == base.devices.sharded
assert base.devices.sharded == (sys.argv[5] == "true")
run_trial(study, data, task("whole"), base)
try:
    run_trial(study, data, task("stopped"), base, should_stop=stop)
except Interrupted:
    pass
else:
    raise SystemExit("it was not stopped")
run_trial(study, data, task("stopped"), base)
if base.devices.sharded:  # memory runs out in one process: in a forward, in a backward, and in a validation
    from retune.events import Note

    class Short(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            if gradient.shape[1] > 260:
                raise torch.OutOfMemoryError("CUDA out of memory in the backward pass.")
            return gradient

    def short(module, arguments):
        x, rank = arguments[0], base.devices.rank
        if x.shape[1] > (280 if rank else 900):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return (Short.apply(x),) if rank == 0 and x.requires_grad else None

    settings = json.loads(settings) | {"batch_size": 7}
    study = make_study(base_folder, **settings)
    run_trial(study, data, task("roomy"), base)
    base.load().model.model.layers[1].mlp.register_forward_pre_hook(short)
    notes = []
    run_trial(study, data, task("short"), base, lambda event: notes.append(event))
    with open(f"{out}/notes-{base.devices.rank}.json", "w") as file:
        json.dump([note.text for note in notes if isinstance(note, Note)], file)
run_trial(study, data, TrialTask(trial="base", number=0, role="base", folder=f"{out}/base"), base)
time.sleep(1)
torch.distributed.destroy_process_group()
"""


def torchrun(*arguments, **environment):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *arguments,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=1200)


def record(folder):
    return TrialRecord.model_validate_json(Path(folder, "trial.json").read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("sharded", ["false", "true"])
def test_two_processes_learn_what_one_learns(base, base_folder, data, task, tmp_path, sharded):
    """Batches of 3 leave a last batch of one record: the second process has nothing to do in it."""
    if sharded == "true" and not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("this torch has FSDP2 on GPUs only")
    settings = {"dropout": 0.0, "batch_size": 3}
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    done = torchrun(
        str(program),
        str(base_folder),
        data,
        str(tmp_path),
        json.dumps(settings),
        sharded,
        ACCELERATE_USE_FSDP=sharded,
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = run_trial(make_study(base_folder, **settings), data, task, base)
    together, stopped = record(tmp_path / "whole"), record(tmp_path / "stopped")
    assert together.status == "completed", together.reason
    for curve in ("train_loss", "validation_loss"):
        assert len(together.curves[curve]) == len(alone.curves[curve])
        for ours, theirs in zip(together.curves[curve], alone.curves[curve], strict=True):
            assert ours.value == pytest.approx(theirs.value, rel=1e-4)
    assert (together.tokens, together.steps) == (alone.tokens, alone.steps)
    assert (stopped.status, stopped.adapter_digest) == ("completed", together.adapter_digest)
    assert stopped.values["validation_loss"] == together.values["validation_loss"]
    if sharded == "true":
        roomy, short = record(tmp_path / "roomy"), record(tmp_path / "short")
        assert short.status == "completed", short.reason
        for curve in ("train_loss", "validation_loss"):
            ours, theirs = ([point.value for point in r.curves[curve]] for r in (short, roomy))
            assert ours == pytest.approx(theirs, rel=1e-5)
        for rank in (0, 1):
            notes = json.loads((tmp_path / f"notes-{rank}.json").read_text())
            assert any("ran out of memory: its records are computed in two halves" in note for note in notes)
    untuned = record(tmp_path / "base").values["validation_loss"]
    assert untuned == pytest.approx(base.evaluate(None, data, make_study(base_folder)), rel=1e-5)


_PARTS = """
import json, sys, time
import torch
torch.set_num_threads(1)
from retune.errors import RetuneError
from retune.training.resident import ResidentBase
from retune.trials.run_trial import run_trial
from retune.trials.task import TrialTask
from tests.training.conftest import make_study

llama, left_out, data, out, settings = sys.argv[1:]
base = ResidentBase(make_study(left_out).model)
rank, reported = base.devices.rank, {}
assert base.devices.world == 2

def run(name, base, folder, until=1.0, at=out, **settings):
    study = make_study(folder, **settings)
    task = TrialTask(trial=name, number=2, role="search", seed=3, folder=f"{at}/{name}", rungs=(0.5,), until=until)
    return run_trial(study, data, task, base)

run("left-out", base, left_out, **json.loads(settings))
run("halfway", base, left_out, until=0.5, **json.loads(settings))
# its checkpoint and, later, its record lie where the first process alone sees them
run("halfway", base, left_out, at=out if rank == 0 else f"{out}/elsewhere", **json.loads(settings))
reported["again"] = run("halfway", base, left_out, at=out if rank == 0 else f"{out}/elsewhere", **json.loads(settings)).status

base = ResidentBase(make_study(llama).model)
layer = base.load().model.model.layers[1]
def failing(name, when, what):
    def fail(module, arguments):
        if rank == 1 and when(module):
            raise what
    handle = layer.register_forward_pre_hook(fail)
    record = run(name, base, llama, epochs=1, dropout=0.0)
    handle.remove()
    reported[name] = [record.status, record.failure, record.reason]

full = torch.OutOfMemoryError("CUDA out of memory.")
failing("training", lambda module: module.training, full)
failing("validation", lambda module: not module.training and not torch.is_grad_enabled(), full)
failing("other", lambda module: module.training, ValueError("a wheel came off"))
def nan(module, arguments):
    return (arguments[0] * float("nan"),) if rank == 1 and module.training else None
handle = layer.register_forward_pre_hook(nan)
reported["nan"] = run("nan", base, llama, epochs=1).failure
handle.remove()
from retune import store
write = store.write
def away(uri, content):
    if rank == 0 and "adapter" in uri:
        raise RetuneError("the storage is away")
    write(uri, content)
store.write = away
try:
    run("away", base, llama, epochs=1)
except RetuneError as error:
    reported["away"] = str(error)
with open(f"{out}/reported-{rank}.json", "w") as file:
    json.dump(reported, file)
time.sleep(1)
torch.distributed.destroy_process_group()
"""


@pytest.fixture
def left_out(base_folder, tmp_path):
    """A base that leaves each layer out of a pass with a probability of a half, drawn by record."""
    folder = tmp_path / "left-out"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base_folder / name, folder)
    torch.manual_seed(1)
    config = OPTConfig(
        vocab_size=258, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, bos_token_id=0, eos_token_id=1, dropout=0.0, layerdrop=0.5, init_std=0.2,
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_what_one_process_lacks_or_fails_by(base_folder, left_out, data, task, tmp_path):
    """A gradient that one process lacks is zero, one that all lack is missing; an error of one process is one of both."""
    settings = {"dropout": 0.0, "batch_size": 3, "weight_decay": 0.5}
    program = tmp_path / "program.py"
    program.write_text(_PARTS)
    done = torchrun(
        str(program), str(base_folder), str(left_out), data, str(tmp_path), json.dumps(settings), CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    study = make_study(left_out, **settings)
    alone = run_trial(study, data, task, ResidentBase(study.model))
    assert alone.status == "completed", alone.reason
    ours = load_file(tmp_path / "left-out" / "adapter" / "adapter_model.safetensors")
    for name, tensor in load_file(Path(task.folder, "adapter", "adapter_model.safetensors")).items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5)
    together, halfway = record(tmp_path / "left-out"), record(tmp_path / "halfway")
    for curve in ("train_loss", "validation_loss"):
        assert [point.value for point in together.curves[curve]][: len(alone.curves[curve])] == pytest.approx(
            [point.value for point in alone.curves[curve]], rel=1e-4
        )
    assert halfway.adapter_digest == together.adapter_digest
    reported = [json.loads((tmp_path / f"reported-{rank}.json").read_text()) for rank in (0, 1)]
    for each in reported:
        assert each["again"] == "completed"
        assert each["training"][:2] == each["validation"][:2] == ["failed", "out_of_memory"]
        assert each["other"][:2] == ["failed", "error"]
        assert "ValueError: a wheel came off" in each["other"][2]
        assert each["nan"] == "nan"
    assert "process 1" in reported[0]["training"][2]
    assert reported[0]["away"] == "the storage is away"
    assert reported[1]["away"] == "process 0 of this trial stopped: RetuneError: the storage is away"
    assert record(tmp_path / "other").reason == reported[0]["other"][2]
    assert not (tmp_path / "away" / "trial.json").exists()


@pytest.mark.slow
def test_the_program_under_torchrun_speaks_once(study, data, tmp_path):
    path = tmp_path / "study.json"
    path.write_text(study.model_dump_json())
    done = torchrun(
        "-m",
        "retune",
        "trial",
        str(path),
        "--data",
        data,
        "--out",
        str(tmp_path / "t"),
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(" validation_loss=") == 2
    assert record(tmp_path / "t").status == "completed"
