"""However a step is split into passes, it has the same losses and gradients; only what does not fit alone fails."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retune import free_memory
from retune.errors import is_out_of_memory
from retune.events import Note
from retune.training import dropout, memory, recompute
from retune.training import passes as passes_module
from retune.training.memory_budget import MemoryBudget
from retune.training.passes import Pass, Unit
from retune.trials.run_trial import run_trial
from tests.training.conftest import make_study

ROOT = Path(__file__).parents[2]
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def learnt(base, data, task, **training):
    events = []
    record = run_trial(make_study(base.model.base, epochs=1, **training), data, task, base, events.append)
    assert record.status == "completed", record.reason
    return record, [event.text for event in events if isinstance(event, Note)]


def assert_same(record, other):
    for curve in ("train_loss", "validation_loss"):
        ours, theirs = ([point.value for point in r.curves[curve]] for r in (record, other))
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [4, 11])
def test_a_pass_that_runs_out_of_memory_is_halved_and_nothing_else_changes(
    base, data, task, tmp_path, limited, batch_size
):
    """With dropout, in every linear layer, so that also what the trimmed last layer draws is the same."""
    settings = {"dropout": 0.3, "target_modules": ALL_LINEAR, "batch_size": batch_size}
    whole, events = learnt(base, data, task, **settings)
    assert events == []
    limited(300)
    halved, events = learnt(
        base, data, task.model_copy(update={"folder": str(tmp_path / "halved")}), **settings
    )
    assert "ran out of memory: its records are computed in two halves" in events[0]
    assert_same(halved, whole)


def test_a_small_room_from_the_start_changes_nothing_either(base, data, task, tmp_path, monkeypatch):
    settings = {"dropout": 0.3, "batch_size": 11}
    whole, _ = learnt(base, data, task, **settings)
    monkeypatch.setattr(MemoryBudget, "tokens", lambda self: 200)
    split, events = learnt(
        base, data, task.model_copy(update={"folder": str(tmp_path / "split")}), **settings
    )
    assert events == []
    assert_same(split, whole)


@pytest.mark.slow
def test_layers_compute_again_before_a_record_is_given_up(base, data, task, tmp_path, limited):
    settings = {"dropout": 0.3, "target_modules": ALL_LINEAR}
    whole, _ = learnt(base, data, task, **settings)
    limited(100, again=500)
    again, events = learnt(
        base, data, task.model_copy(update={"folder": str(tmp_path / "again")}), **settings
    )
    assert any("its layers are recomputed in the backward pass" in text for text in events)
    assert_same(again, whole)
    assert not any("forward" in vars(layer) for layer in recompute.layers(base.load().model))


@pytest.mark.slow
def test_a_setting_fails_only_when_one_record_alone_does_not_fit(base, data, task, limited):
    limited(50)
    record = run_trial(make_study(base.model.base, epochs=1), data, task, base)
    assert (record.status, record.failure) == ("failed", "out_of_memory")


def test_what_stays_in_a_layer_that_computes_again_is_its_input(base):
    """Counted: the tensors that the graph keeps alive, with and without."""
    core = base.load().model.train()
    ids = torch.arange(60, device=core.device)[None]
    kept = {}
    for again in (False, True):
        hidden = core.model.embed_tokens(ids).requires_grad_()
        places = torch.arange(60, device=core.device)[None]
        with recompute.recomputing(core) if again else memory.contextlib.nullcontext():
            sizes = {}

            def keep(tensor, sizes=sizes):
                sizes[tensor.data_ptr()] = tensor.numel()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                core.model.layers[0](
                    hidden, position_embeddings=core.model.rotary_emb(hidden, places), attention_mask=None
                )
        kept[again] = sum(sizes.values())
    core.eval()
    assert kept[True] == hidden.numel()
    assert kept[False] > 5 * kept[True]


def test_a_layer_of_several_tensors_computes_again_what_it_gave():
    """Two inputs with gradients, one of them by name, and three outputs, one of them of whole numbers."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    class Layer(GradientCheckpointingLayer):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, hidden, count, beside=None):
            out = self.linear(hidden) * beside["of"]
            return out, {"sum": out.sum(-1), "count": count + 1}

    torch.manual_seed(0)
    model = torch.nn.ModuleList([Layer()])
    x, y = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    found = {}
    for again in (False, True):
        with recompute.recomputing(model) if again else memory.contextlib.nullcontext():
            out, more = model[0](x * 2, torch.tensor(1), beside={"of": y * 3})
            assert int(more["count"]) == 2
            loss = (out**2).sum() + (more["sum"] ** 3).sum()
            found[again] = torch.autograd.grad(loss, [x, y, *model.parameters()])
    torch.testing.assert_close(found[True], found[False])


@pytest.mark.parametrize("dropout_p", [0.1, 0.3])
def test_a_window_draws_what_the_whole_unit_draws(dropout_p):
    """Also on a CPU, where it does so without the unit's floats."""
    x = torch.randn(30, 64)
    torch.manual_seed(3)
    whole, _ = dropout.drop(x, dropout_p)
    after = torch.rand(1)
    for start, stop in ((0, 1), (1, 3)):
        window = dropout.Window.of([10, 5, 15], [4, 3, 2], start, stop)
        part = slice(window.before, window.before + window.mine)
        torch.manual_seed(3)
        with dropout.dropout_window(window):
            found, mask = dropout.drop(x[part], dropout_p)
        torch.testing.assert_close(found, whole[part])
        assert torch.equal(mask, whole[part] != 0)
        assert torch.rand(1) == after


def test_halves_have_about_as_many_tokens():
    unit = Unit([0, 1, 2, 3], [10, 10, 10, 100])
    first, second = Pass(unit, 0, 4).halves()
    assert (first.records, second.records) == ([0, 1, 2], [3])
    assert [half.records for half in Pass(unit, 1, 3).halves()] == [[1], [2]]


_PROGRAM = """
import json, resource, sys
import torch
torch.set_num_threads(1)
from retune.events import Note
from retune import free_memory
from retune.training import memory
from retune.training.loop import Loop
from retune.training.resident import ResidentBase
from retune.trials.run_trial import run_trial
from retune.trials.task import TrialTask
from tests.training.conftest import make_study

base_folder, data, folder, limit, blind = sys.argv[1:]
study = make_study(base_folder, epochs=1, batch_size=22, target_modules=["q_proj", "down_proj"])
base = ResidentBase(study.model)
notes = []
tokens = []
def report(event):
    if isinstance(event, Note):
        notes.append(event.text)
warm = TrialTask(trial="t", number=2, role="search", seed=3, folder=folder + "/warm")
run_trial(make_study(base_folder, epochs=1, batch_size=1, target_modules=["q_proj", "down_proj"]), data, warm, base)
if blind == "blind":  # as where nothing says how much there is
    memory.free = lambda device: None
if int(limit):
    used = free_memory.fields(__import__("pathlib").Path("/proc/self/status"))["VmData"]
    resource.setrlimit(resource.RLIMIT_DATA, (used + int(limit), used + int(limit)))
task = TrialTask(trial="t", number=2, role="search", seed=3, folder=folder + "/t")
record = run_trial(study, data, task, base, report)
print(json.dumps([record.status, record.reason, [p.value for p in record.curves.get("train_loss", [])], notes]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_DATA") or sys.platform != "linux", reason="Linux's limits")
def test_a_process_that_may_take_less_memory_learns_the_same(tmp_path_factory, tmp_path, data):
    """A real limit of the kernel's: what torch asks for beyond it is refused, and the pass is halved; where the limit is read
    beforehand, nothing is refused."""
    from tests.training.conftest import make_base

    folder = make_base(tmp_path_factory.mktemp("wide"), hidden=512)
    found = {}
    for name, limit, sight in (
        ("all", 0, "sees"),
        ("halved", 230 << 20, "blind"),
        ("fits", 230 << 20, "sees"),
    ):
        (tmp_path / name).mkdir()
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(folder), data, str(tmp_path / name), str(limit), sight],
            capture_output=True, text=True, cwd=ROOT, timeout=300,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        found[name] = json.loads(done.stdout.splitlines()[-1])
    for status, reason, losses, _ in found.values():
        assert status == "completed", reason
        assert losses == pytest.approx(found["all"][2], rel=1e-5)
    assert any("ran out of memory" in text for text in found["halved"][3])
    assert [found["all"][3], found["fits"][3]] == [[], []]


def test_what_a_container_may_still_use_is_read(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 200\n")
    assert list(free_memory.container(tmp_path)) == [500]
    (tmp_path / "memory.max").write_text("max\n")
    assert list(free_memory.container(tmp_path)) == []


@pytest.mark.parametrize(
    ("error", "ran_out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 bytes"
            ),
            True,
        ),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, ran_out):
    assert is_out_of_memory(error) is ran_out


def test_units_are_what_they_were(base, data):
    """Resuming and repeating studies of earlier releases rests on it."""
    assert passes_module.UNIT_TOKENS == 16384


def test_float16_trains_with_scaled_gradients(base_folder, data, task):
    from retune.study import Model
    from retune.training.resident import ResidentBase

    study = make_study(base_folder, epochs=1)
    base = ResidentBase(Model(base=str(base_folder), dtype="float16"))
    record = run_trial(study, data, task, base)
    assert record.status == "completed", record.reason
    assert record.dtype == "float16"
    single = ResidentBase(study.model)
    other = run_trial(study, data, task.model_copy(update={"folder": task.folder + "-single"}), single)
    assert record.values["validation_loss"] == pytest.approx(other.values["validation_loss"], rel=0.02)
