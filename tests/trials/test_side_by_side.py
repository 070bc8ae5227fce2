"""Trials side by side: each gives what it gives alone, whatever shares its passes, and none is harmed by another."""

import time
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load

from retune import store
from retune.errors import DiskFull, Interrupted
from retune.events import Measured, Note
from retune.training import loop as loop_module
from retune.training import memory, recompute
from retune.training.resident import ResidentBase
from retune.training.shared_passes import SharedPasses
from retune.trials import side_by_side
from retune.trials.run_trial import run_trial
from retune.trials.side_by_side import SideBySide
from retune.trials.task import TrialTask
from tests.training.conftest import make_study

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SETTINGS = [
    {"rank": 4, "learning_rate": 1e-2, "dropout": 0.1},
    {"rank": 2, "learning_rate": 3e-3, "dropout": 0.0, "alpha": 4},
    {"rank": 8, "learning_rate": 2e-2, "dropout": 0.4, "weight_decay": 0.1},
]
NAN = {"rank": 4, "learning_rate": 1e30}


def task(folder, number, assignment, seed=None):
    name = f"trial-{number:03d}"
    return TrialTask(
        trial=name, number=number, role="search", assignment=assignment,
        seed=number if seed is None else seed, folder=str(folder / name),
    )  # fmt: skip


def tasks(folder, settings=SETTINGS):
    return [task(folder, number, assignment) for number, assignment in enumerate(settings, 2)]


def drive(pack, waiting=(), at=None):
    """Run all to their end; `at` maps a number of steps to what is done before the next."""
    records = [record for each in waiting if (record := pack.start(each))]
    aside = pack.set_aside()
    step = 0
    while pack.running or (at and max(at) >= step):
        for act in (at or {}).get(step, ()):
            act()
        records += pack.step()
        step += 1
        aside += pack.set_aside()
        assert not any(pack.fits(each) for each in aside if pack.running)
    records += [pack.start(each) for each in aside]
    return {record.trial: record for record in records}


def assert_same(record, alone, rel=2e-4):
    """Losses by their value; weights by their distance in units of how far they moved, which rounding decides."""
    assert record.status == alone.status == "completed", (record.reason, alone.reason)
    for curve in ("train_loss", "validation_loss"):
        ours, theirs = ({point.step: point.value for point in r.curves[curve]} for r in (record, alone))
        assert {step: ours[step] for step in theirs} == pytest.approx(theirs, rel=rel)
    ours, theirs = (
        load(store.read(store.join(r.adapter_uri, "adapter_model.safetensors"))) for r in (record, alone)
    )
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert (ours[name] - weight).norm() <= 5e-3 * weight.norm() + 1e-6, name
    settings = [store.read(store.join(r.adapter_uri, "adapter_config.json")) for r in (record, alone)]
    assert settings[0] == settings[1]


@pytest.fixture(scope="module")
def alone(base, data, tmp_path_factory):
    """The three trials, each run alone."""
    study = make_study(base.model.base)
    return {
        each.trial: run_trial(study, data, each, base) for each in tasks(tmp_path_factory.mktemp("alone"))
    }


@pytest.fixture
def pack(study, data, base):
    events = []
    made = SideBySide(study, data, base, events.append)
    made.events = events
    return made


@pytest.mark.slow
def test_three_trials_of_different_settings_give_what_each_gives_alone(pack, alone, tmp_path):
    found = drive(pack, tasks(tmp_path))
    assert found.keys() == alone.keys()
    for name, record in found.items():
        assert_same(record, alone[name])
        assert (record.side_by_side, alone[name].side_by_side) == (3, 1)
        assert record.values.keys() == alone[name].values.keys()
        notes = [e for e in pack.events if isinstance(e, Measured) and e.trial == name]
        assert [e.name for e in notes].count("validation_loss") == 2
    assert sum(r.values["seconds"] for r in found.values()) > 0


@pytest.mark.slow
def test_settings_may_differ_in_all_that_a_search_tunes(pack, study, data, base, tmp_path):
    """Other layers, scale, batches, epochs, schedule and optimiser; DoRA does not share, and trains in between."""
    settings = [
        {"variant": "rslora", "target_modules": "q_proj,o_proj,up_proj", "batch_size": 6, "epochs": 1,
         "schedule": "cosine", "lora_plus_ratio": 4.0, "learning_rate": 1e-2},
        {"target_modules": "mlp", "gradient_accumulation_steps": 2, "beta2": 0.9, "warmup_share": 0.2, "init": "orthogonal"},
        {"variant": "dora", "epochs": 1},
        {"init": "pissa", "epochs": 1},
    ]  # fmt: skip
    right = {t.trial: run_trial(study, data, t, base) for t in tasks(tmp_path / "alone", settings)}
    found = drive(pack, tasks(tmp_path, settings))
    for name, record in found.items():
        assert_same(record, right[name])
    assert [found[name].side_by_side for name in sorted(found)] == [2, 2, 1, 1]
    notes = [event.text for event in pack.events if isinstance(event, Note)]
    assert [("dora" in text, "pissa" in text) for text in notes] == [(True, False), (False, True)]


def test_trials_that_stop_early_go_on_later(study, data, base, alone, tmp_path):
    """One is stopped at a rung, the others are not; told to go on, it ends as if it had never stopped."""
    first, second, third = tasks(tmp_path)
    stopped = first.model_copy(update={"rungs": (0.25, 0.5), "until": 0.5})
    found = drive(SideBySide(study, data, base), [stopped, second, third])
    assert (found[first.trial].status, found[first.trial].steps) == ("early_stopped", 6)
    assert [rung.step for rung in found[first.trial].rungs] == [3, 6]
    found |= drive(SideBySide(study, data, base), [first])
    for name, record in found.items():
        assert_same(record, alone[name])


def test_the_time_of_all_is_shared_out_among_them(pack, tmp_path):
    """Seconds are a share: their sum is no more than what passed on the clock, and speed is that of the share."""
    before = time.monotonic()
    found = drive(pack, tasks(tmp_path))
    passed = time.monotonic() - before
    assert sum(record.seconds for record in found.values()) <= passed + 0.01
    for record in found.values():
        assert record.values["tokens_per_second"] == pytest.approx(record.tokens / record.seconds, rel=0.9)


def test_the_adapter_loads_in_peft(pack, tmp_path, base_folder):
    from transformers import AutoModelForCausalLM

    (record,) = drive(pack, [task(tmp_path, 2, SETTINGS[0])]).values()
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(model, record.adapter_uri)
    assert sum(p.numel() for n, p in tuned.named_parameters() if "lora_" in n) == record.trainable_parameters


@pytest.mark.slow
@pytest.mark.parametrize("join_at", [1, 7])
def test_a_late_comer_changes_nothing_and_is_not_changed(pack, alone, tmp_path, join_at):
    first, second, third = tasks(tmp_path)
    found = drive(pack, [first, second], {join_at: [lambda: pack.start(third)]})
    for name, record in found.items():
        assert_same(record, alone[name])


@pytest.mark.slow
def test_a_trial_that_diverges_fails_and_the_others_do_not_notice(pack, alone, tmp_path):
    found = drive(pack, [*tasks(tmp_path), task(tmp_path, 9, NAN)])
    bad = found.pop("trial-009")
    assert (bad.status, bad.failure) == ("failed", "nan")
    assert "in step" in bad.reason
    assert bad.values == {}
    for name, record in found.items():
        assert_same(record, alone[name])


def test_not_a_number_reaches_no_gradient_of_another_trial(pack, tmp_path):
    """In the very step in which it appears, not only behind it."""
    for each in tasks(tmp_path):
        pack.start(each)
    with torch.no_grad():
        pack.running[1].loop.parameters[0].fill_(torch.nan)
    seen = {}
    real = loop_module.Loop.step

    def look(loop, loss):
        seen[loop.seed] = (torch.isfinite(loss), all(torch.isfinite(p.grad).all() for p in loop.parameters))
        real(loop, loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module.Loop, "step", look)
        (failed,) = pack.step()
    assert failed.trial == "trial-003"
    assert seen == {2: (True, True), 3: (False, False), 4: (True, True)}


@pytest.mark.slow
def test_any_error_of_one_trial_is_its_own(pack, alone, tmp_path, monkeypatch):
    """Here it divides by zero in the pass that all share, which is then computed in halves until it is alone."""
    real = side_by_side._next_step
    monkeypatch.setattr(
        side_by_side,
        "_next_step",
        lambda loop: replace(real(loop), counted=0) if loop.seed == 3 else real(loop),
    )
    found = drive(pack, tasks(tmp_path))
    bad = found.pop("trial-003")
    assert (bad.failure, bad.reason) == ("error", "ZeroDivisionError: division by zero")
    for name, record in found.items():
        assert_same(record, alone[name])


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "again", "told"), [(700, None, "two halves"), (200, 500, "recomputed")])
def test_no_memory_halves_the_pass_and_fails_no_trial(base, data, tmp_path, limited, tokens, again, told):
    """With dropout in every linear layer, so that what the parts of a unit and layers computed again draw is compared too."""
    study = make_study(base.model.base, target_modules=ALL_LINEAR, epochs=1)
    right = {t.trial: run_trial(study, data, t, base) for t in tasks(tmp_path / "alone")}
    limited(tokens, again)
    events = []
    found = drive(SideBySide(study, data, base, events.append), tasks(tmp_path))
    assert any(told in event.text for event in events if isinstance(event, Note))
    for name, record in found.items():
        assert_same(record, right[name])
    assert not any("forward" in vars(layer) for layer in recompute.layers(base.load().model))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["joining", "training", "validation"])
def test_a_trial_for_which_there_is_no_memory_beside_others_runs_alone_after_them(
    pack, alone, base, tmp_path, monkeypatch, where
):
    full = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    def crowded(loop):
        return loop.seed == 3 and any(trial.loop.seed != 3 for trial in pack.running)

    if where == "joining":
        real = loop_module.Loop._allocate

        def allocate(loop):
            if crowded(loop):
                raise full
            real(loop)

        monkeypatch.setattr(loop_module.Loop, "_allocate", allocate)
    elif where == "validation":
        real = side_by_side._Loop._validation_loss

        def measured(loop):
            if crowded(loop):
                raise full
            return real(loop)

        monkeypatch.setattr(side_by_side._Loop, "_validation_loss", measured)
    else:  # the records of one trial fit beside none of the others
        real_gradients = SharedPasses.gradients

        def gradients(passes, run):
            if len(pack.running) > 1 and any(step.adapter.config.r == 2 for step, _ in run):
                raise full
            return real_gradients(passes, run)

        monkeypatch.setattr(SharedPasses, "gradients", gradients)
    found = drive(pack, tasks(tmp_path))
    notes = [event.text for event in pack.events if isinstance(event, Note)]
    assert sum("trial-003 does not fit into memory beside 2 others" in note for note in notes) <= 1
    assert any("trial-003 does not fit into memory beside" in note for note in notes)
    assert found.keys() == alone.keys()
    for name, record in found.items():
        assert_same(record, alone[name])


def test_a_trial_joins_only_while_there_is_memory_for_it(pack, tmp_path, monkeypatch):
    first, second, _ = tasks(tmp_path)
    pack.start(first)
    assert pack.fits(second)
    monkeypatch.setattr(memory, "free", lambda device: 1 << 22)
    assert not pack.fits(second)
    pack.running.clear()
    assert pack.fits(second)


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [3, 6])
def test_stopped_and_carried_on_together_or_alone(study, data, base, alone, tmp_path, stop_after):
    """A checkpoint of either kind is carried on by either."""
    asked = []
    pack = SideBySide(study, data, base, should_stop=lambda: len(asked) > 0)
    for each in tasks(tmp_path):
        pack.start(each)
    for _ in range(stop_after):
        pack.step()
    asked.append(True)
    with pytest.raises(Interrupted, match="run again to carry on"):
        pack.step()
    first, *others = tasks(tmp_path)
    assert all(store.exists(store.join(each.folder, "checkpoint", "state.pt")) for each in (first, *others))
    events = []
    found = drive(SideBySide(study, data, base, events.append), others)
    found[first.trial] = run_trial(study, data, first, base, events.append)
    assert [e.text for e in events if isinstance(e, Note)] == [
        f"carrying on after step {stop_after} of 12"
    ] * 3
    for name, record in found.items():
        assert_same(record, alone[name])


def test_a_checkpoint_of_a_trial_alone_is_carried_on_side_by_side(study, data, base, alone, tmp_path):
    first, second, _ = tasks(tmp_path)
    asked = iter([False] * 4 + [True] * 99)
    with pytest.raises(Interrupted):
        run_trial(study, data, first, base, should_stop=lambda: next(asked))
    found = drive(SideBySide(study, data, base), [first, second])
    for name, record in found.items():
        assert_same(record, alone[name])


def test_a_full_disk_under_one_trial_saves_the_others(pack, tmp_path, monkeypatch):
    real = store.write

    def write(uri, content):
        if "trial-003/adapter" in uri:
            raise DiskFull("no space left")
        return real(uri, content)

    monkeypatch.setattr(store, "write", write)
    each = tasks(tmp_path)
    with pytest.raises(DiskFull):
        drive(pack, each[:2], {6: [lambda: pack.start(each[2])]})
    assert not store.exists(store.join(each[1].folder, "trial.json"))
    assert store.exists(store.join(each[2].folder, "checkpoint", "state.pt"))


@pytest.mark.slow
def test_the_base_is_left_as_it_was(pack, base, tmp_path):
    core = base.load().model
    before = {name: (type(m), set(vars(m))) for name, m in core.named_modules()}
    weights = [p.clone() for p in core.parameters()]
    drive(pack, [*tasks(tmp_path), task(tmp_path, 9, NAN)])
    assert {name: (type(m), set(vars(m))) for name, m in core.named_modules()} == before
    assert all(torch.equal(a, b) for a, b in zip(weights, core.parameters(), strict=True))
    assert not core.training


def test_a_trial_that_is_done_and_the_base_need_no_pass(pack, tmp_path):
    each = tasks(tmp_path)[0]
    (record,) = drive(pack, [each]).values()
    assert pack.start(each) == record
    untuned = TrialTask(trial="trial-000", number=0, role="base", folder=str(tmp_path / "base"))
    assert pack.start(untuned).values["validation_loss"] > 0
    assert pack.running == []


def test_what_cannot_share_runs_alone_and_one_line_says_so(study, data, base_folder, tmp_path):
    other = ResidentBase(study.model)
    other.load().model.config.attention_dropout = 0.1
    events = []
    pack = SideBySide(study, data, other, events.append)
    records = [pack.start(each) for each in tasks(tmp_path)[:2]]
    assert [record.status for record in records] == ["completed"] * 2
    notes = [event.text for event in events if isinstance(event, Note)]
    assert len(notes) == 1
    assert "attention_dropout" in notes[0]
