"""Whole trials with every key that a search can tune: each is taken, changes the training, and the adapter loads in PEFT."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from retune.errors import InputError
from retune.study import TUNABLE, Training
from retune.training import lora
from retune.training.inits import FirstRecords
from retune.training.targets import target_names
from retune.trials.run_trial import run_trial
from retune.trials.task import TrialTask
from tests.training.conftest import alike, make_study
from tests.training.test_lora import assert_same, snapshot

PLAIN = {"rank": 4, "learning_rate": 1e-2}
OTHER = {
    "rank": 6, "alpha": 16, "alpha_ratio": 2.0, "dropout": 0.4, "learning_rate": 2e-2, "weight_decay": 0.5, "lora_plus_ratio": 8.0,
    "beta1": 0.5, "beta2": 0.9, "max_grad_norm": 0.05, "epochs": 1, "batch_size": 8, "gradient_accumulation_steps": 2,
    "schedule": "cosine", "warmup_share": 0.5, "target_modules": "attention", "first_layer": 1, "last_layer": 0,
    "variant": "dora", "init": "pissa",
}  # fmt: skip


@pytest.fixture(scope="module")
def study(base_folder):
    return make_study(base_folder, epochs=2)


@pytest.fixture(scope="module")
def trial(study, data, base, tmp_path_factory):
    def run(**assignment):
        folder = str(tmp_path_factory.mktemp("trial"))
        task = TrialTask(trial="t", number=2, role="search", assignment=assignment, seed=3, folder=folder)
        record = run_trial(study, data, task, base)
        assert record.status == "completed", record.reason
        return record

    return run


@pytest.fixture(scope="module")
def usual(trial):
    return trial(**PLAIN)


def test_every_tunable_key_is_tried():
    assert set(OTHER) == set(TUNABLE)


@pytest.mark.slow
@pytest.mark.parametrize("name", TUNABLE)
def test_a_tunable_key_changes_what_is_trained(trial, usual, name):
    record = trial(**(PLAIN | {name: str(OTHER[name])}))  # as Katib passes it
    assert record.values["train_loss"] != usual.values["train_loss"]
    if name in ("epochs", "batch_size", "gradient_accumulation_steps"):
        assert record.steps == {"epochs": 6, "batch_size": 6, "gradient_accumulation_steps": 6}[name]
        assert usual.steps == 12


def test_accumulated_batches_are_one_larger_batch(trial):
    small = trial(**PLAIN, batch_size=2, gradient_accumulation_steps=4)
    assert small.values["validation_loss"] == trial(**PLAIN, batch_size=8).values["validation_loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen",
    [
        {"variant": "rslora"},
        {"variant": "dora"},
        {"init": "gaussian"},
        {"init": "orthogonal"},
        {"init": "eva"},
        {"init": "pissa"},
        {"init": "pissa", "variant": "rslora", "rank": 40},  # larger than some layers are
        {"init": "olora"},
        {"init": "lora-ga"},
        {"init": "eva", "variant": "dora"},
        {"target_modules": "mlp", "first_layer": -1},
        {"target_modules": "q_proj,down_proj", "last_layer": -2},
    ],
    ids=str,
)
def test_an_adapter_of_each_kind_gives_the_recorded_loss_in_peft(
    study, data, base, base_folder, trial, chosen
):
    """It stands on the base as it is: what an initialisation did to it while training is in the adapter."""
    model = base.load().model
    before = snapshot(model)
    record = trial(**(PLAIN | {"learning_rate": 1e-3} | chosen))
    assert_same(model, before)
    assert record.values["validation_loss"] < base.evaluate(None, data, study)
    settings = json.loads(Path(record.adapter_uri, "adapter_config.json").read_text())
    assert settings["init_lora_weights"] in (True, "gaussian", "orthogonal")
    loss = base.evaluate(record.adapter_uri, data, study)
    assert loss == pytest.approx(record.values["validation_loss"], rel=1e-4)
    ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), record.adapter_uri)
    assert sum(p.numel() for n, p in ours.named_parameters() if "lora_" in n) > 0


@pytest.mark.parametrize("init", ["pissa", "olora", "lora-ga", "eva"])
def test_an_initialisation_begins_at_the_base_and_not_at_nothing(study, data, base, init):
    chosen = study.training.model_copy(update={"init": init, "rank": 4, "dropout": 0.0})
    records = FirstRecords(base.tokens(data, "train", study.data), 4, 0)
    model = base.load().model
    ids = torch.tensor([[3, 4, 5, 6]], device=base.load().device)
    with torch.no_grad():
        alone = model(input_ids=ids).logits
        with lora.adapted(model, chosen, "x", 0, records=records) as adapted:
            assert adapted(input_ids=ids).logits.cpu() == pytest.approx(alone.cpu(), abs=2e-3)
            state = lora.weights(adapted)
        with lora.adapted(model, chosen.model_copy(update={"init": "default"}), "x", 0) as adapted:
            usual = lora.weights(adapted)
    assert any(not torch.equal(state[name], value) for name, value in usual.items())
    if init in ("eva", "lora-ga"):
        with pytest.raises(InputError, match="needs training records"), lora.adapted(model, chosen, "x", 0):
            pass


def test_the_same_seed_begins_alike(study, data, base):
    train = base.tokens(data, "train", study.data)
    for init in ("eva", "lora-ga"):
        chosen = study.training.model_copy(update={"init": init})
        found = []
        for _ in range(2):
            with base.adapter(chosen, 256, 1, train) as model:
                found.append(lora.weights(model))
        assert all(v.flatten().tolist() == alike(found[1][k].flatten().tolist()) for k, v in found[0].items())


def test_groups_of_target_modules(base):
    model = base.load().model
    attention = target_names(model, Training(target_modules="attention"))
    mlp = target_names(model, Training(target_modules="mlp"))
    assert {name.split(".")[-2] for name in attention} == {"self_attn"}
    assert {name.split(".")[-2] for name in mlp} == {"mlp"}
    assert sorted([*attention, *mlp]) == sorted(target_names(model, Training(target_modules="all-linear")))
    one = target_names(model, Training(target_modules="all-linear", first_layer=1))
    assert one == [
        name for name in target_names(model, Training(target_modules="all-linear")) if ".1." in name
    ]
    with pytest.raises(InputError, match="must be a range of the model's 2 blocks, but got 0 and 2"):
        target_names(model, Training(last_layer=2))
    with pytest.raises(InputError, match="`attention` must not be in a list"):
        target_names(model, Training(target_modules=["attention", "q_proj"]))


def test_what_does_not_go_together_is_refused():
    for given, words in [
        ({"variant": "dora", "init": "pissa"}, "leaves the base's weights alone, but got 'pissa'"),
        ({"init": "orthogonal", "rank": 5}, "needs an even `rank`, but got 5"),
        ({"first_layer": 3, "last_layer": 1}, "`first_layer <= last_layer` must hold, but got 3 and 1"),
    ]:
        with pytest.raises(ValidationError, match=words):
            Training(**given)
        with pytest.raises(InputError, match=words):
            lora.setting(Training(), given)


def test_alpha_of_a_trial_goes_before_the_studys_ratio_and_the_other_way_round():
    assert lora.setting(Training(alpha_ratio=2.0), {"rank": 4}).scaled_alpha == 8
    assert lora.setting(Training(alpha_ratio=2.0), {"rank": 4, "alpha": 5}).scaled_alpha == 5
    assert lora.setting(Training(), {"rank": 4, "alpha_ratio": 3}).scaled_alpha == 12


def test_keys_of_later_releases_leave_the_digests_of_older_studies_alone():
    assert set(Training().decides()) == {
        "epochs", "batch_size", "target_modules", "schedule", "warmup_share", "max_grad_norm", "rank", "alpha", "dropout",
        "learning_rate", "weight_decay",
    }  # fmt: skip
    assert Training(beta1=0.8).decides()["beta1"] == 0.8
