"""The check that our way gives the plain way's losses: it sees what is broken, says so, and the plain way is taken."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, LlamaConfig
from transformers.models.llama import modeling_llama

from retune.data.batches import flatten
from retune.errors import InputError
from retune.study import Model, Training
from retune.training import (
    attention,
    blocked_attention,
    config_limits,
    head,
    llama_layer,
    lora,
    lora_linear,
    plain_forward,
    randomness_check,
    self_check,
)
from retune.training.loss import loss_sum
from retune.training.resident import ResidentBase
from retune.trials.run_trial import run_trial

from . import zoo
from .conftest import make_study
from .test_loss import padded_loss, random_tokens

SETTING = Training(rank=4, alpha=8, dropout=0.0, learning_rate=1e-3)


ROUNDING = 1e-4 if torch.cuda.is_available() else 1e-6  # between a GPU and the CPU, or on one CPU


def check(model, targets=("q_proj", "v_proj", "down_proj"), longest=64):
    with lora.adapted(model, SETTING.model_copy(update={"target_modules": list(targets)}), "x", 0) as tuned:
        lora.add_noise(tuned)
        return self_check.check(tuned, None, longest, train=True)


def said_in(caplog):
    return [record.message for record in caplog.records if record.name.startswith("retune")]


def test_the_fast_path_is_taken_where_it_is_right(caplog):
    found = check(zoo.build("llama"))
    assert (found.way, found.reason, found.note) == ("flattened", "", "")
    assert found.difference < 1e-5
    assert found.gradients < 1e-5
    assert found.seconds > 0
    assert not said_in(caplog)


def drops_a_gradient(real):
    def backward(*given, **more):
        of_x, of_a, of_b = real(*given, **more)
        return of_x, of_a, None if of_b is None else of_b * 1.01

    return backward


def sees_all(*given, **more):
    """Attention that crosses the borders of records."""
    query, key, value = given[:3]
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
    ).transpose(1, 2)


def wrong_in_later_blocks(real):
    def forward(query, key, value, scale, out):
        kept = real(query, key, value, scale, out)
        out[:, blocked_attention.BLOCK :] *= 1.001
        return kept

    return forward


def forgets_later_blocks(real):
    def backward(gradient, query, key, value, scale, kept, of_query, of_key, of_value):
        real(gradient, query, key, value, scale, kept, of_query, of_key, of_value)
        of_key[:, blocked_attention.BLOCK :] = 0

    return backward


BROKEN = {
    "gradient of lora_B": (lora_linear, "backward", drops_a_gradient, "gradients differ", "llama"),
    "scale of lora": (
        lora_linear, "_add", lambda real: lambda out, x, layer: real(out, x * 1.001, layer), "a token's loss", "llama",
    ),
    "rotary": (
        llama_layer, "PLAIN", lambda real: replace(real, rotate=lambda x, cos, sin: real.rotate(x, cos, sin * 1.001)),
        "a token's loss", "llama",
    ),
    "norm": (
        llama_layer, "PLAIN", lambda real: replace(real, norm=lambda x, w, e: real.norm(x, w, e + 1e-3)), "a token's loss",
        "llama",
    ),
    "softmax": (
        blocked_attention, "forward", lambda real: lambda q, k, v, s, o: real(q, k, v, s * 1.01, o), "a token's loss",
        "llama",
    ),
    "the second block of queries": (
        blocked_attention, "forward", lambda real: wrong_in_later_blocks(real), "a token's loss", "llama",
    ),
    "gradients of the second block": (
        blocked_attention, "backward", lambda real: forgets_later_blocks(real), "gradients differ", "llama",
    ),
    "later parts of the head": (head, "_loss", lambda real: lambda x, y: real(x, y) * (1 + (len(y) < 30) * 1e-2), "a token's loss", "llama"),
    "an exception": (blocked_attention, "forward", lambda real: None, "do not pass through it: TypeError", "llama"),
    "borders": (attention, "attend", lambda real: sees_all, "a token's loss", "qwen3"),
    "the window": (attention.Pattern, "narrows", lambda real: lambda *a: False, "a token's loss", "gemma3_text"),
    "the softcap": (
        attention, "_attend_with_scores", lambda real: lambda q, k, v, m, f: real(q, k, v, m, attention.AttentionOptions(f.scale, softcap=0.5)),
        "a token's loss", "gemma2",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", list(BROKEN))
def test_a_broken_fast_path_is_left_with_one_line_in_the_log(what, monkeypatch, caplog):
    owner, name, breaks, said, kind = BROKEN[what]
    monkeypatch.setattr(owner, name, breaks(getattr(owner, name)))
    found = check(zoo.build(kind), longest=120)
    assert found.way == "padded"
    assert said in found.reason
    [line] = said_in(caplog)
    assert line == found.note
    assert "padded by transformers' own forward, which also computes the padding" in line


@pytest.mark.parametrize(
    ("kind", "settings", "longest"),
    [("mistral", {"sliding_window": 200}, 400), ("gemma3_text", {"sliding_window": 260}, 300)],
)
def test_what_shows_only_behind_a_wide_window_is_seen(kind, settings, longest, monkeypatch):
    """Of records that are never longer than the window nothing is asked."""
    monkeypatch.setitem(zoo.FORMS, kind, settings | {"max_position_embeddings": 512})
    model = zoo.build(kind)
    right = check(model, longest=longest)
    assert (right.way, right.compared) == ("flattened", min(longest, settings["sliding_window"] + 24))
    assert check(model, longest=190).compared == config_limits.MIN_LENGTH
    monkeypatch.setattr(attention.Pattern, "narrows", lambda *given: False)
    wrong = check(model, longest=longest)
    assert wrong.way == "padded"
    assert "a token's loss in a flattened batch differs" in wrong.reason


def test_records_for_which_eager_attention_has_not_the_memory_are_left_out_with_a_line(monkeypatch, caplog):
    monkeypatch.setitem(zoo.FORMS, "mistral", {"sliding_window": 200, "max_position_embeddings": 512})
    monkeypatch.setattr(self_check.memory, "free", lambda device: 1 << 20)
    assert check(zoo.build("mistral"), longest=400).compared == config_limits.MIN_LENGTH
    assert "records of more than 150 tokens are not compared" in said_in(caplog)[0]


def test_noise_on_routers_is_drawn_by_record_or_not_shared(caplog):
    """Phi-3.5-MoE multiplies its routers' input by noise: in a pass of several records each would draw by what shares it."""
    found = check(zoo.build("phimoe"), ["q_proj"])
    assert (found.way, found.reason) == ("one by one", randomness_check.REASON)
    assert check(zoo.build("mixtral"), ["q_proj"]).way == "flattened"


@pytest.mark.parametrize("what", ["rows", "a leak", "an exception"])
def test_a_broken_padded_batch_is_left_too(what, monkeypatch, caplog):
    real = plain_forward.pad

    def broken(batch):
        ids, rows = real(batch)
        if what == "an exception":
            raise ValueError(what)
        if what == "rows":
            return ids, rows - (rows == rows[-1]).long()
        ids[-1, 0] = (ids[0].sum() + 5) % 90 + 4  # far from rounding
        return ids, rows

    monkeypatch.setattr(plain_forward, "pad", broken)
    found = check(zoo.build("lfm2"), ["q_proj", "w1"])
    assert (found.way, found.in_parts) == ("one by one", True)
    [line] = said_in(caplog)
    assert "one by one by transformers' own forward" in line
    assert "times as long" in line or "slower" in line


def test_a_head_that_cannot_be_called_alone_makes_all_logits_at_once(monkeypatch, caplog):
    monkeypatch.setattr(head, "decoder", lambda core: core.model.layers[0])
    found = check(zoo.build("lfm2"), ["q_proj", "w1"])
    assert (found.way, found.in_parts) == ("padded", False)
    assert "with all logits of a pass in memory" in said_in(caplog)[0]


def test_neighbours_that_are_seen_a_little_are_noticed(monkeypatch):
    """A leak far below bfloat16's rounding: exactly nothing of the neighbours may be seen."""
    real = attention.attend

    def leaks(query, key, value, records, options):
        return real(query, key, value, records, options) + 0.02 * value[:, :1].mean((1, 2), keepdim=True)

    model = zoo.build("qwen3").to(torch.bfloat16)
    assert check(model).way == "flattened"
    monkeypatch.setattr(attention, "attend", leaks)
    assert "change by" in check(model).reason


@pytest.mark.parametrize("longest", [20, 60])
@pytest.mark.parametrize(
    "settings",
    [
        {"rope_type": "dynamic", "factor": 4.0},
        {
            "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 32,
        },
    ],
    ids=["dynamic", "longrope"],
)  # fmt: skip
def test_rotary_frequencies_that_follow_the_length_do_not_make_a_loss_depend_on_its_neighbours(
    settings, longest
):
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, rope_parameters={"rope_theta": 10000.0, **settings},
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    zoo.louder(model)
    found = check(model, longest=longest)
    assert found.way == ("flattened" if longest <= 32 else "one by one")
    tokens = random_tokens([longest, 12, longest - 5, 7], 96)
    with self_check.reading(model, found), torch.no_grad():
        alone = [float(loss_sum(model, flatten(tokens, [k]))) for k in (1, 3, 2, 0)]
        again = [float(loss_sum(model, flatten(tokens, [k]))) for k in (0, 2, 1, 3)]
        together = float(loss_sum(model, flatten(tokens, [0, 1, 2, 3])))
    assert alone == [again[2], again[3], again[1], again[0]]
    assert together == pytest.approx(sum(alone), rel=1e-6)


def test_a_model_that_sees_later_tokens_is_refused_by_name():
    model = AutoModelForCausalLM.from_config(
        BertConfig(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    ).eval()  # fmt: skip
    with pytest.raises(
        InputError, match=r"of type bert\) must give losses that depend on earlier tokens alone"
    ):
        check(model.requires_grad_(False), ["query"])


def test_a_base_without_finite_losses_is_refused():
    model = zoo.build("llama")
    model.model.norm.weight.data[3] = torch.nan
    with pytest.raises(InputError, match="finite losses"):
        check(model)


def test_a_model_whose_answers_are_drawn_at_random_is_refused(monkeypatch):
    real = modeling_llama.LlamaMLP.forward
    monkeypatch.setattr(
        modeling_llama.LlamaMLP, "forward", lambda self, x: real(self, x) + torch.rand_like(x)
    )
    with pytest.raises(InputError, match="two readings differ"):
        check(zoo.build("llama"))


def test_the_model_and_the_dice_are_as_before():
    model = zoo.build("mistral")
    state = torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with lora.adapted(model, SETTING.model_copy(update={"target_modules": ["q_proj"]}), "x", 0) as tuned:
        tuned.train()
        state = torch.get_rng_state()
        self_check.check(tuned, None, 64, train=True)
        assert tuned.training
        assert torch.equal(torch.get_rng_state(), state)
        assert all(parameter.grad is None for parameter in tuned.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_trials_on_a_window_and_on_a_hybrid_are_right_and_record_how(
    base_folder, data, task, tmp_path, monkeypatch
):
    """The loss of `--role base` is the plain forward's mean, and a trained adapter's is that of PEFT on the plain base."""
    from transformers import AutoTokenizer

    loads, real = [], self_check.check
    monkeypatch.setattr(self_check, "check", lambda *a, **k: loads.append(1) or real(*a, **k))
    for number, name in enumerate(("mistral", "lfm2")):
        folder = tmp_path / name
        monkeypatch.setitem(zoo._SIZES, "vocab_size", 258)
        model = zoo.build(name)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(base_folder).save_pretrained(folder)
        study = make_study(folder, target_modules=["q_proj", "v_proj"], epochs=1)
        resident = ResidentBase(Model(base=str(folder)))
        loads.clear()
        bare = run_trial(
            study,
            data,
            task.model_copy(update={"role": "base", "folder": str(tmp_path / f"b{number}")}),
            resident,
        )
        tuned = run_trial(
            study, data, task.model_copy(update={"folder": str(tmp_path / f"t{number}")}), resident
        )
        way = {"mistral": "flattened", "lfm2": "padded"}[name]
        assert (bare.self_check["way"], tuned.self_check["way"]) == (way, way)
        assert tuned.self_check["difference"] <= tuned.self_check["allowed"]
        assert len(loads) == 1  # once a base, not once a trial
        tokens = resident.tokens(data, "validation", study.data)
        plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        with torch.no_grad():
            whole = sum(float(padded_loss(plain, tokens, [k])) for k in range(len(tokens)))
        assert bare.values["validation_loss"] == pytest.approx(
            whole / int(tokens.counted.sum()), rel=ROUNDING
        )
        with lora.loaded(plain, tmp_path / f"t{number}" / "adapter") as adapted, torch.no_grad():
            whole = sum(float(padded_loss(adapted, tokens, [k])) for k in range(len(tokens)))
        assert tuned.values["validation_loss"] == pytest.approx(
            whole / int(tokens.counted.sum()), rel=ROUNDING
        )
        assert tuned.values["validation_loss"] != pytest.approx(bare.values["validation_loss"], rel=1e-4)
        scored = resident.evaluate(str(tmp_path / f"t{number}" / "adapter"), data, study)
        assert scored == pytest.approx(tuned.values["validation_loss"], rel=ROUNDING)
        assert len(loads) == 2  # a foreign adapter is checked by itself


def test_dropout_of_attention_is_not_forgotten():
    """Llama's own layer on a CPU has none; where a config asks for it, the training's losses are drawn."""
    model = zoo.build("llama (attention dropout)")
    found = check(model)
    tokens = random_tokens([20, 30], 96)
    with self_check.reading(model, found), torch.no_grad():
        model.train()
        torch.manual_seed(0)
        losses = {round(float(loss_sum(model, flatten(tokens, [0, 1]))), 4) for _ in range(3)}
    assert len(losses) == 3
    model.eval()


def test_the_config_about_text_is_found_in_that_of_a_base_with_images():
    from types import SimpleNamespace

    from transformers import Gemma3Config, LlamaConfig

    several = Gemma3Config()
    assert config_limits.text_config(SimpleNamespace(config=several)) is several.text_config
    assert several.text_config is not several
    plain = LlamaConfig()
    assert config_limits.text_config(SimpleNamespace(config=plain)) is plain
