"""The check of how prompts are read: ways that are wrong for a model are not used, and answers equal those of one prompt at a time."""

import pytest
import torch

from retune.errors import InputError
from retune.evaluation import bench
from retune.evaluation.bench import Candidate
from retune.evaluation.decoding import packed, self_check
from retune.evaluation.decoding.generate import Decoder
from retune.evaluation.decoding.prefix import can_be_split
from retune.study import Model
from tests.training import zoo
from tests.training.test_architectures import Numbers

from ..conftest import make_adapter
from ..test_bench import asks

CPU = torch.device("cpu")


def check(model, context=128):
    return self_check.check(Decoder(model, Numbers(), CPU, context, 8))


def said_in(caplog):
    return [record.message for record in caplog.records if record.name.startswith("retune")]


def test_sharing_is_kept_where_it_is_right():
    found = check(zoo.build("llama"))
    assert (found.way, found.eager, found.note) == ("shared", False, "")
    assert found.difference < 1e-4


BROKEN = {
    "keys of the prefix": ("_rotate", lambda real: lambda x, cos, sin: real(x, cos, sin * 1.01)),
    "attention of the rows": ("_attend", lambda real: lambda q, k, v, p, c, n: real(q, k, v * 1.01, p, c, n)),
    "an exception": ("_attend", lambda real: None),
}


@pytest.mark.parametrize("what", list(BROKEN))
def test_a_broken_fast_path_is_left_with_one_line_in_the_log(what, monkeypatch, caplog):
    name, breaks = BROKEN[what]
    model = zoo.build("llama")
    monkeypatch.setattr(packed, name, breaks(getattr(packed, name)))
    with self_check.decoding(model, Numbers(), CPU, 128, 8) as (decoder, found):
        assert decoder.way == found.way == "padded"
    [line] = said_in(caplog)
    assert line == found.note
    assert "prompts are read padded" in line
    assert "shared: " in line


def test_a_step_that_goes_wrong_behind_a_right_first_pass_is_noticed(monkeypatch):
    """Only tokens after the first are wrong, because the prompt's cache is read at wrong positions."""
    real = Decoder._step

    def shifted(self, ids, mask, places, cache):
        return real(self, ids, mask, places + (3 if ids.shape[1] == 1 else 0), cache)

    monkeypatch.setattr(Decoder, "_step", shifted)
    found = check(zoo.build("qwen3"))
    assert found.way == "one by one"
    assert "padded: a token's log-likelihood differs" in found.reason


def test_rows_that_leave_are_checked_too(monkeypatch):
    from retune.evaluation.decoding import prefix

    real = prefix._block_layer

    def keeps_the_first(keys, values, length):
        layer = real(keys, values, length)
        layer.batch_select_indices = lambda indices: type(layer).batch_select_indices(
            layer, torch.arange(len(indices))
        )
        return layer

    monkeypatch.setattr(prefix, "_block_layer", keeps_the_first)
    assert check(zoo.build("llama")).way == "padded"


def test_a_model_that_no_way_answers_as_its_plain_forward_is_refused_by_name():
    with pytest.raises(InputError, match=r"of type xlnet\) must answer prompts as its plain forward does"):
        check(zoo.build("xlnet"))


@pytest.fixture(scope="module")
def bases(base, tmp_path_factory):
    """Bases of other architectures with the tokenizer of `base`, each with a plain adapter and its targets."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo._SIZES, "vocab_size", len(tokenizer))
        patch.setitem(zoo._SIZES, "max_position_embeddings", 512)
        for name in ("mistral", "gemma2", "jamba", "gpt2", "phi3 (longrope)"):
            folder = tmp_path_factory.mktemp("other")
            zoo.build(name).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[name] = folder
    return made


WAYS = {
    "mistral": "padded", "gemma2": "padded", "jamba": "padded", "gpt2": "shared", "phi3 (longrope)": "padded",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", list(WAYS))
def test_a_benchmark_on_any_base_is_that_of_one_prompt_at_a_time(name, bases, mmlu, bbh, tmp_path):
    """A window, soft-capping, a hybrid, Conv1D and a rope that changes with the length, with and without adapters."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = bases[name]
    targets = {"gpt2": ["c_attn", "c_proj"], "phi3 (longrope)": ["qkv_proj"]}.get(name, ["q_proj", "v_proj"])
    plain = make_adapter(base, tmp_path / "plain", target_modules=targets)
    saved = make_adapter(
        base, tmp_path / "saved", 2, 0.3, target_modules=targets, use_dora=name != "gpt2",
        modules_to_save=["lm_head"],
    )  # fmt: skip
    model = Model(base=str(base), dtype="float32")
    candidates = [Candidate("saved", str(saved)), Candidate("plain", str(plain)), Candidate("base")]
    asked = asks(mmlu, bbh, tasks=["mmlu"], limit=6)
    records = bench.run(model, candidates, asked, 0, str(tmp_path / "out"))
    assert {record.self_check["way"] for record in records} == {WAYS[name]}
    tokenizer = AutoTokenizer.from_pretrained(base)
    from peft import PeftModel

    from retune.evaluation import instruct
    from retune.evaluation.bench import _context, _read_task
    from retune.evaluation.tasks import find

    read = _read_task(asked, find("mmlu"))
    core = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
    prepared = instruct.prepare(model, _context(core.config), asked, find("mmlu"), read, 0)
    for record, folder in zip(records, (saved, plain, None), strict=True):
        core = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
        tuned = PeftModel.from_pretrained(core, folder).eval() if folder else core
        alone = Decoder(tuned, tokenizer, CPU, _context(core.config), 1, way="one by one")
        assert prepared.answer(alone, lambda share: None)["answers"] == record.answers


def test_what_cannot_be_split_is_answered_unshared():
    """A window longer than any prompt: nothing can be shared, and the recursion must end."""
    model = zoo.build("mistral")
    model.config.sliding_window = 4096
    assert not can_be_split(model)
    prompts = [[*range(4, 60), k] for k in range(60, 75)]
    decoder = Decoder(model, Numbers(), CPU, 128, 4)
    alone = Decoder(model, Numbers(), CPU, 128, 1, way="one by one")
    assert decoder.tokens(prompts, 3) == alone.tokens(prompts, 3)
    assert decoder.likelihoods(prompts, [[5, 6]] * 15) == pytest.approx(
        alone.likelihoods(prompts, [[5, 6]] * 15), abs=1e-4
    )
