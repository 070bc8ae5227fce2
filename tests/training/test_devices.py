"""Two processes on this CPU (gloo, started by torchrun) learn what one process learns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retune.records import TrialRecord
from retune.training.run_trial import run_trial
from tests.training.conftest import make_study

ROOT = Path(__file__).parents[2]

_PROGRAM = """
import json, sys
import torch
torch.set_num_threads(1)
from retune.errors import Interrupted
from retune.training.resident import ResidentBase
from retune.training.run_trial import TrialTask, run_trial
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
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


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
