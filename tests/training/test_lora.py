import json
import weakref

import pytest
import torch
from peft import PeftModel

from retune.errors import InputError
from retune.study import Training
from retune.training import lora
from retune.training.targets import target_names
from tests.training import zoo
from tests.training.test_loss import padded_loss, random_tokens

CHOSEN = Training(rank=4, alpha=8, dropout=0.1, learning_rate=1e-3, target_modules=["q_proj", "v_proj"])


def snapshot(model):
    return (
        {name: (id(module), type(module)) for name, module in model.named_modules()},
        {name: (id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()},
        model.training,
        set(vars(model)),
        model.config._attn_implementation,
    )


def assert_same(model, before):
    after = snapshot(model)
    assert after[0] == before[0]
    assert after[1].keys() == before[1].keys()
    for name, (identity, trainable, value) in before[1].items():
        assert after[1][name][:2] == (identity, trainable)
        assert torch.equal(after[1][name][2], value), name
    assert after[2:] == before[2:]


def test_setting_takes_the_studys_values_where_the_assignment_is_silent():
    chosen = lora.setting(Training(), {"rank": 16, "learning_rate": 2e-4})
    assert chosen == Training(rank=16, learning_rate=2e-4)
    assert lora.setting(Training(), {"rank": "16"}).rank == 16  # Katib passes text


def test_setting_names_every_problem_at_once():
    given = {
        "rank": 2.5,
        "alpha": 0,
        "dropout": 1.0,
        "learning_rate": float("nan"),
        "weight_decay": "much",
        "gamma": 1,
    }
    with pytest.raises(InputError) as caught:
        lora.setting(Training(), given)
    text = str(caught.value)
    assert len(caught.value.problems) == 6
    for part in (
        "'gamma'",
        "rank: must be a whole number, but got 2.5",
        "alpha: must be above 0, but got 0",
        "dropout: must be below 1, but got 1",
        "learning_rate: must be a finite number",
        "'much'",
    ):
        assert part in text


def test_unknown_target_is_refused_with_the_names_there_are(base):
    with pytest.raises(InputError, match=r"\['down_proj', .*'v_proj'\], but got \['query'\]"):
        target_names(base.load().model, Training(target_modules=["q_proj", "query"]))


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "v_proj"],
        "all-linear",
        r".*\.0\.(self_attn\.[kq]_proj|mlp\.up_proj)",
        "lm_head",
        ["down_proj"],
    ],
)
def test_targets_are_those_that_peft_chooses(base, targets):
    import copy

    from peft import LoraConfig, get_peft_model

    model = base.load().model
    ours = target_names(model, Training(target_modules=targets))
    theirs = get_peft_model(
        copy.deepcopy(model), LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")
    )
    names = {n.partition("base_model.model.")[2] for n, m in theirs.named_modules() if hasattr(m, "lora_A")}
    assert set(ours) == names
    with lora.adapted(model, CHOSEN.model_copy(update={"target_modules": targets}), "x", 0) as adapted:
        files = lora.files(adapted)
    assert json.loads(files["adapter_config.json"])["target_modules"]


def test_an_expression_that_matches_nothing_is_refused(base):
    model = base.load().model
    for wrong, words in [
        ("all_linear", "did you mean all-linear?"),
        ("q_proj", r"did you mean \['q_proj'\]\?"),  # an expression is for whole names
        (["all-linear"], "must not be in a list"),
        (["q_porj"], "did you mean 'q_proj' for 'q_porj'"),
    ]:
        with pytest.raises(InputError, match=words):
            target_names(model, Training(target_modules=wrong))


def test_the_base_is_untouched_afterwards(base):
    model = base.load().model
    before = snapshot(model)
    tokens = random_tokens([20, 30])
    with torch.no_grad():
        output = padded_loss(model, tokens, [0, 1])
    with lora.adapted(model, CHOSEN, "x", 0) as adapted:
        adapted.train()
        padded_loss(adapted, tokens, [0, 1]).backward()
        torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0).step()
    assert_same(model, before)
    with torch.no_grad():
        assert torch.equal(padded_loss(model, tokens, [0, 1]), output)


def test_the_base_is_untouched_after_an_error_inside_and_while_putting_the_adapter_in(base, monkeypatch):
    import peft

    model = base.load().model
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError), lora.adapted(model, CHOSEN, "x", 0):
        1 / 0
    assert_same(model, before)

    real = peft.tuners.lora.layer.LoraLayer.update_layer
    calls = []

    def breaks_in_the_third_layer(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        return real(self, *args, **kwargs)

    monkeypatch.setattr(peft.tuners.lora.layer.LoraLayer, "update_layer", breaks_in_the_third_layer)
    with pytest.raises(MemoryError), lora.adapted(model, CHOSEN, "x", 0):
        pass
    assert len(calls) == 3
    assert_same(model, before)


def test_the_adapters_memory_is_free_afterwards(base):
    with lora.adapted(base.load().model, CHOSEN, "x", 0) as adapted:
        held = [weakref.ref(p) for p in adapted.parameters() if p.requires_grad]
    del adapted  # and no collector is needed: a trial leaves no cycles
    assert len(held) == 8
    assert [ref() for ref in held] == [None] * 8


def test_same_seed_same_start_and_other_seed_another(base):
    starts = []
    for seed in (0, 0, 1):
        with lora.adapted(base.load().model, CHOSEN, "x", seed) as adapted:
            starts.append(lora.weights(adapted))
    name = next(n for n in starts[0] if "lora_A" in n)
    assert torch.equal(starts[0][name], starts[1][name])
    assert not torch.equal(starts[0][name], starts[2][name])


def test_files_are_pefts_own_and_the_same_every_time(base, tmp_path):
    model = base.load().model
    tokens = random_tokens([20, 30])
    with lora.adapted(model, CHOSEN, "some/base", 0) as adapted, torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        adapted.eval()
        expected = padded_loss(adapted, tokens, [0, 1])
        files = lora.files(adapted)
        assert files == lora.files(adapted)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("some/base", 4, 8)
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["inference_mode"] is True
    before = snapshot(model)
    with lora.loaded(model, tmp_path) as ours, torch.no_grad():
        assert torch.equal(padded_loss(ours, tokens, [0, 1]), expected)
    assert_same(model, before)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(model, tmp_path)
        assert torch.equal(padded_loss(theirs, tokens, [0, 1]), expected)
        theirs.unload()


def test_a_folder_without_adapter_or_with_a_foreign_one_is_refused(base, tmp_path):
    model = base.load().model
    before = snapshot(model)
    with pytest.raises(InputError, match="adapter folder must have a readable"), lora.loaded(model, tmp_path):
        pass
    with lora.adapted(model, CHOSEN, "x", 0) as adapted:
        files = lora.files(adapted)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    with pytest.raises(InputError, match="does not fit the base model"), lora.loaded(model, tmp_path):
        pass
    assert_same(model, before)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], r".*q_proj"])
def test_of_a_multimodal_base_the_language_model_alone_gets_an_adapter(targets, tmp_path):
    model, chosen = (
        zoo.build("gemma3 (for images too)"),
        CHOSEN.model_copy(update={"target_modules": targets}),
    )
    assert any("vision_tower" in name and "q_proj" in name for name, _ in model.named_modules())
    assert not any("vision" in name for name in target_names(model, chosen))
    with lora.adapted(model, chosen, "x", 0) as tuned:
        adapted = [name for name, p in tuned.named_parameters() if p.requires_grad]
        for name, content in lora.files(tuned).items():
            (tmp_path / name).write_bytes(content)
    assert adapted
    assert all("language_model" in name for name in adapted)
    with lora.loaded(model, tmp_path):
        pass
    with pytest.raises(
        InputError, match=r"must name linear or embedding layers of the model .* but got \['fc1'\]"
    ):
        target_names(model, CHOSEN.model_copy(update={"target_modules": ["fc1"]}))


def test_a_router_that_gives_more_than_a_tensor_gets_no_adapter():
    model = zoo.build("llama4 (for images too)")
    assert any(name.endswith(".router") for name, _ in model.named_modules())
    with (
        lora.adapted(model, CHOSEN.model_copy(update={"target_modules": "all-linear"}), "x", 0) as tuned,
        torch.no_grad(),
    ):
        assert not any("router" in name for name, p in tuned.named_parameters() if p.requires_grad)
        assert tuned(input_ids=torch.tensor([[3, 4, 5]])).logits.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        *((kind, targets) for kind in ("deepseek_v3", "qwen3_moe") for targets in ("all-linear", "attention", r".*layers\.1\..*")),
        ("mamba", "all-linear"),
        ("llama", r".*"),
        ("llama", r"model\.layers\.0.*"),
        ("gpt2", ["c_fc", "wte"]),
    ],
)  # fmt: skip
def test_the_layers_that_were_named_get_an_adapter_and_no_others(kind, targets):
    """PEFT reads some names as something else: experts joined into one tensor, blocks that an expression matches too."""
    model = zoo.build(kind)
    chosen = CHOSEN.model_copy(update={"target_modules": targets})
    wanted = target_names(model, chosen)
    with lora.adapted(model, chosen, "x", 0) as tuned:
        core = tuned.get_base_model()
        got = [name for name, part in core.named_modules() if hasattr(part, "lora_A")]
        config = tuned.peft_config["default"]
    assert sorted(got) == sorted(wanted)
    assert not config.target_parameters


@pytest.mark.parametrize(("kind", "name"), [("deepseek_v3", "down_proj"), ("mamba", "out_proj")])
def test_names_that_peft_takes_for_something_else_are_refused(kind, name):
    with pytest.raises(InputError, match=rf"that PEFT takes .* but got \['{name}'\]"):
        target_names(zoo.build(kind), CHOSEN.model_copy(update={"target_modules": [name]}))
