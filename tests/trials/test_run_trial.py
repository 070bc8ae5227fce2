"""Whole trials in this process: what comes out, and what happens when something goes wrong."""

import errno
import gc
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from retune import store
from retune import study as studies
from retune.adapter import digest, read
from retune.errors import DiskFull, InputError, RetuneError
from retune.events import Measured, Progress
from retune.records import TrialRecord
from retune.training import loop as loops
from retune.training.resident import ResidentBase
from retune.trials import trial_record
from retune.trials.run_trial import run_trial
from retune.trials.task import TrialTask
from tests.training.conftest import ON_GPU, alike, make_study
from tests.training.test_lora import assert_same, snapshot


def saved(task):
    return TrialRecord.model_validate_json(Path(task.folder, "trial.json").read_bytes())


def test_a_trial_learns_and_says_so(study, data, base, task):
    events = []
    untuned = base.evaluate(None, data, study)
    record = run_trial(study, data, task, base, events.append)
    assert (record.status, record.reason, record.failure) == ("completed", None, None)
    assert record.values["validation_loss"] < untuned - 0.5
    assert record.values["best_validation_loss"] <= record.values["validation_loss"]
    assert record.steps == 12
    assert record.tokens == 2 * int(base.tokens(data, "train", study.data).lengths.sum())
    assert [(m.step, m.epoch) for m in record.curves["validation_loss"]] == [(6, 1.0), (12, 2.0)]
    assert record.curves["validation_loss"][-1].value == record.values["validation_loss"]
    assert [m.step for m in record.curves["train_loss"]] == list(range(1, 13))
    assert record.trainable_parameters == 4 * (32 + 32 + 32 + 16) * 2
    for name in ("train_loss", "adapter_mib", "tokens_per_second", "seconds", "peak_memory_gib"):
        assert record.values[name] > 0
    assert set(record.values) == set(trial_record.METRICS) - (
        {"peak_gpu_gib"} if record.device == "cpu" else set()
    )
    assert record.data_digest
    assert record.settings_digest == study.settings_digest(record.data_digest, base.load().digest)
    assert saved(task) == record
    measured = [(e.name, e.value) for e in events if isinstance(e, Measured)]
    assert [v for n, v in measured if n == "validation_loss"] == [
        m.value for m in record.curves["validation_loss"]
    ]
    assert any(isinstance(e, Progress) and e.step == e.steps == 12 for e in events)


def test_the_adapter_loads_in_peft_and_gives_the_recorded_loss(study, data, base, task, base_folder):
    record = run_trial(study, data, task, base)
    adapter = Path(record.adapter_uri)
    assert sorted(p.name for p in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert record.adapter_digest == digest(read(adapter))
    assert base.evaluate(record.adapter_uri, data, study) == pytest.approx(
        record.values["validation_loss"], rel=1e-6
    )

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), adapter).eval()
    tokens = base.tokens(data, "validation", study.data)
    total = 0.0
    with torch.no_grad():
        for r in range(len(tokens)):
            span = slice(int(tokens.offsets[r]), int(tokens.offsets[r + 1]))
            ids, counted = tokens.ids[span].long(), tokens.counted[span]
            logp = model(input_ids=ids[None]).logits[0].float().log_softmax(-1)
            total -= float(logp[:-1].gather(1, ids[1:, None])[counted[1:]].double().sum())
    assert total / int(tokens.counted.sum()) == pytest.approx(
        record.values["validation_loss"], rel=1e-4 if ON_GPU else 1e-5
    )


def test_the_untuned_base(study, data, base, tmp_path):
    task = TrialTask(trial="trial-000", number=0, role="base", folder=str(tmp_path))
    record = run_trial(study, data, task, base)
    assert record.status == "completed"
    assert record.values["validation_loss"] == base.evaluate(None, data, study)
    assert (record.adapter_uri, record.steps, record.assignment) == (None, 0, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["trial.json"]


def test_same_seed_same_bytes_other_seed_others(study, data, base, task, tmp_path):
    found = []
    for place, seed in enumerate((3, 3, 4)):
        record = run_trial(
            study, data, task.model_copy(update={"folder": str(tmp_path / str(place)), "seed": seed}), base
        )
        found.append((record.adapter_digest, record.values["validation_loss"], record.values["train_loss"]))
    assert found[0] == found[1] or (ON_GPU and found[0][1:] == alike(found[1][1:]))
    assert found[0][0] != found[2][0]
    assert found[0][1] != found[2][1]


@pytest.mark.slow
def test_hyper_parameters_reach_the_training(study, data, base, task, tmp_path):
    """Each one alone changes the result; weight decay and dropout are easily lost on the way."""
    digests = {}
    for number, (name, value) in enumerate(
        [("rank", 8), ("alpha", 8), ("dropout", 0.4), ("learning_rate", 1e-3), ("weight_decay", 0.5)]
    ):
        changed = task.model_copy(update={"assignment": {name: value}, "folder": str(tmp_path / str(number))})
        digests[name] = run_trial(study, data, changed, base).adapter_digest
    digests["none"] = run_trial(study, data, task, base).adapter_digest
    assert len(set(digests.values())) == 6


def test_a_trial_that_is_done_is_not_run_again(study, data, base, task):
    first = run_trial(study, data, task, base)
    before = Path(task.folder, "trial.json").stat()
    events = []
    assert run_trial(study, data, task, base, events.append) == first
    assert events == []
    after = Path(task.folder, "trial.json").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["seed", "assignment", "study", "role"])
def test_a_record_of_something_else_is_not_taken_for_ours(study, data, base, task, change):
    first = run_trial(study, data, task, base)
    if change == "seed":
        task = task.model_copy(update={"seed": 9})
    elif change == "assignment":
        task = task.model_copy(update={"assignment": {"alpha": 1}})
    elif change == "study":
        study = study.model_copy(update={"training": study.training.model_copy(update={"batch_size": 5})})
    else:
        task = task.model_copy(update={"role": "base", "number": 0})
    events = []
    again = run_trial(study, data, task, base, events.append)
    assert events
    assert (again.started != first.started) or again != first
    assert saved(task) == again


def test_a_damaged_record_is_named_and_not_written_over(study, data, base, task):
    file = Path(task.folder, "trial.json")
    file.parent.mkdir(parents=True)
    file.write_bytes(b'{"trial": ')
    with pytest.raises(RetuneError, match=r"trial\.json cannot be read"):
        run_trial(study, data, task, base)
    assert file.read_bytes() == b'{"trial": '


def test_nan_is_a_failure_with_its_step_and_never_a_number(study, data, base, task):
    before = snapshot(base.load().model)
    task = task.model_copy(update={"assignment": {"learning_rate": 1e30}})
    record = run_trial(study, data, task, base)
    assert (record.status, record.failure) == ("failed", "nan")
    said = "must be finite, but it is {} in step 2 of 12 (learning rate 1e+30"
    assert any(said.format(value) in record.reason for value in (["nan", "inf"] if ON_GPU else ["nan"]))
    assert (record.values, record.curves, record.adapter_uri) == ({}, {}, None)
    assert saved(task) == record
    assert sorted(p.name for p in Path(task.folder).iterdir()) == ["trial.json"]
    assert_same(base.load().model, before)


def test_an_infinite_gradient_is_a_failure_though_the_loss_is_finite(study, data, base, task, monkeypatch):
    monkeypatch.setattr(loops, "clip_grad_norm_", lambda parameters, norm: torch.tensor(math.inf))
    record = run_trial(study, data, task, base)
    assert (record.status, record.failure) == ("failed", "nan")
    assert "the gradient's norm must be finite, but it is inf in step 1 of 12" in record.reason


def test_an_infinite_validation_loss_is_a_failure(study, data, base, task, tmp_path, monkeypatch):
    monkeypatch.setattr(loops, "validation_loss", lambda *args, **kwargs: math.inf)
    record = run_trial(study, data, task, base)
    assert (record.status, record.failure) == ("failed", "nan")
    assert "the validation loss must be finite, but it is inf in step 6" in record.reason


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 bytes"
        ),
        MemoryError("2.00 GiB"),
    ],
)
def test_out_of_memory_is_said_with_its_numbers_and_the_next_trial_runs(
    study, data, base, task, monkeypatch, error
):
    def full(*args, **kwargs):
        raise error

    before = snapshot(base.load().model)
    with monkeypatch.context() as patch:
        patch.setattr(loops, "loss_sum", full)
        record = run_trial(study, data, task, base)
    assert (record.status, record.failure) == ("failed", "out_of_memory")
    assert record.reason.startswith("out of memory: ")
    assert "2" in record.reason
    assert_same(base.load().model, before)
    assert (
        run_trial(study, data, task.model_copy(update={"folder": task.folder + "b"}), base).status
        == "completed"
    )


def test_really_no_memory(study, data, base, task):
    """A rank for which no machine has the memory: the allocator itself refuses."""
    task = task.model_copy(update={"assignment": {"rank": 2**44}})
    record = run_trial(study, data, task, base)
    assert (record.status, record.failure) == ("failed", "out_of_memory")
    assert run_trial(study, data, task.model_copy(update={"assignment": {}}), base).status == "completed"


def test_any_other_error_is_recorded_with_type_and_message(study, data, base, task, monkeypatch):
    monkeypatch.setattr(loops, "loss_sum", lambda *args: {}["gone"])
    record = run_trial(study, data, task, base)
    assert (record.status, record.failure, record.reason) == ("failed", "error", "KeyError: 'gone'")


def test_bad_input_is_refused_and_nothing_is_written(study, data, base, task, tmp_path):
    with pytest.raises(InputError, match="rank: must be above 0"):
        run_trial(study, data, task.model_copy(update={"assignment": {"rank": -1}}), base)
    with pytest.raises(InputError, match="retune mix"):
        run_trial(study, str(tmp_path / "nowhere"), task, base)
    wrong = make_study(base.model.base, target_modules=["query"])
    with pytest.raises(InputError, match="target_modules"):
        run_trial(wrong, data, task, base)
    assert not Path(task.folder).exists()


def test_a_base_that_is_not_there(study, data, task, tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        run_trial(study, data, task, ResidentBase(studies.Model(base=str(tmp_path))))


def test_the_record_comes_last(study, data, base, task, monkeypatch):
    """Whoever sees trial.json finds the whole adapter beside it."""
    written = []
    real = store.write
    monkeypatch.setattr(store, "write", lambda uri, content: (written.append(uri), real(uri, content)))
    run_trial(study, data, task, base)
    assert len(written) == 3
    assert written[-1].endswith("trial.json")


@pytest.mark.parametrize("file", ["adapter_config", "trial.json"])
def test_a_full_disk_interrupts_and_records_nothing(study, data, base, task, monkeypatch, file):
    """No setting's fault: recorded as a failure, the search would learn from it for ever."""
    real = Path.open

    def full(path, *args, **kwargs):
        if path.name.endswith(".tmp") and file in writing[-1]:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, *args, **kwargs)

    writing, write = [], store.write
    monkeypatch.setattr(store, "write", lambda uri, content: (writing.append(uri), write(uri, content)))
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DiskFull, match="No space left on device; free some space there and run again"):
        run_trial(study, data, task, base)
    monkeypatch.undo()
    assert not Path(task.folder, "trial.json").exists()
    assert run_trial(study, data, task, base).status == "completed"


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error", "x"), RetuneError("the storage is away")]
)
def test_a_storage_that_cannot_be_used_is_no_settings_fault(study, data, base, task, monkeypatch, error):
    monkeypatch.setattr(store, "write", lambda uri, content: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        run_trial(study, data, task, base)
    monkeypatch.undo()
    assert not Path(task.folder, "trial.json").exists()


def test_the_adapter_says_which_revision_of_the_base_it_is_for(study, data, task):
    pinned = study.model.model_copy(update={"revision": "abc123"})
    run_trial(study.model_copy(update={"model": pinned}), data, task, ResidentBase(pinned))
    assert json.loads(Path(task.folder, "adapter/adapter_config.json").read_text())["revision"] == "abc123"


def test_a_tokenizer_without_an_end_of_text_token_is_refused(study, data, task, base_folder, tmp_path):
    shutil.copytree(base_folder, tmp_path / "base")
    settings = json.loads((tmp_path / "base/tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (tmp_path / "base/tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="must have an end-of-text token"):
        run_trial(study, data, task, ResidentBase(studies.Model(base=str(tmp_path / "base"))))
    assert not Path(task.folder).exists()


@pytest.mark.parametrize("name", ["train.jsonl", "validation.jsonl", "mix.json"])
def test_a_flipped_bit_in_the_data_is_refused_by_name(study, data, task, base_folder, tmp_path, name):
    shutil.copytree(data, tmp_path / "data")
    file = tmp_path / "data" / name
    content = bytearray(file.read_bytes())
    place = content.index(b'"recipe": "') + 11 if name == "mix.json" else len(content) // 2
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=name):
        run_trial(study, str(tmp_path / "data"), task, ResidentBase(study.model))
    assert not Path(task.folder).exists()


@pytest.mark.slow
def test_many_trials_leave_no_memory_behind(study, data, base, task, tmp_path):
    def tensors():
        gc.collect()
        return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

    counts = []
    study = make_study(base.model.base, epochs=1, batch_size=11)
    for number in range(4):
        run_trial(study, data, task.model_copy(update={"folder": str(tmp_path / str(number))}), base)
        counts.append(tensors())
    assert counts[-1] == counts[1]


def test_splits_are_tokenised_once_and_again_when_the_data_changes(study, base, tmp_path, monkeypatch):
    from tests.training.conftest import make_data

    folder = make_data(tmp_path / "d", seed=1)
    first = base.tokens(str(folder), "train", study.data)
    assert base.tokens(str(folder), "train", study.data) is first
    make_data(folder, seed=2)
    assert not torch.equal(base.tokens(str(folder), "train", study.data).ids, first.ids)


def test_thin_keeps_at_most_200_points_and_the_mean():
    losses = [float(k % 7) for k in range(1001)]
    points = trial_record.downsample(losses, per_epoch=100)
    assert len(points) <= 200
    assert points[-1].step == 1001
    steps = [0, *(p.step for p in points)]
    total = sum(p.value * (b - a) for p, a, b in zip(points, steps, steps[1:], strict=False))
    assert total == pytest.approx(sum(losses))
    assert [p.step for p in trial_record.downsample([1.0, 2.0], 1)] == [1, 2]
    assert trial_record.downsample([], 1) == []


def test_a_record_never_holds_a_number_that_is_none(study, data, base, task):
    record = run_trial(study, data, task, base)
    record.values["validation_loss"] = math.nan
    with pytest.raises(ValueError, match="JSON"):
        json.loads(record.to_json())
