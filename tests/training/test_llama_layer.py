"""Fused layers, as they compute in other types than float32 on a CPU, and on GPUs, against transformers' own layers."""

import copy
import dataclasses
import logging
import shutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from retune.data.batches import flatten
from retune.study import Training
from retune.training import layer_steps as steps
from retune.training import llama_layer, lora, lora_linear, self_check
from retune.training.generated_records import generated_tokens
from retune.training.layer_steps import PLAIN, Steps
from retune.training.loss import loss_sum
from retune.training.model_attention import by_segments

CHOSEN = Training(
    rank=4, alpha=8.0, dropout=0.0, target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
)


@pytest.fixture(scope="module")
def core(base):
    return base.load().model


@pytest.fixture
def one_kernel(monkeypatch):
    """Attention as on a GPU: not in blocks, and the last layer whole."""
    monkeypatch.setattr(llama_layer, "_in_blocks", lambda x: False)


class _Counting(TorchDispatchMode):
    """Counts operations on tensors; most are a kernel on a GPU, views are not, and a step of `AS_ONE` is one."""

    inside = False

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and not _Counting.inside
        return func(*args, **(kwargs or {}))


def _as_one(step):
    def run(*arguments):
        _Counting.inside = True
        found = step(*arguments)
        _Counting.inside = False
        torch.zeros(())  # counted
        return found

    return run


NAMES = ("norm", "norm_backward", "rotate", "gate", "gate_backward")
AS_ONE = Steps("as one", *(_as_one(getattr(steps, f"_{name}")) for name in NAMES))
"""What is given to the compiler, not compiled."""


def trained(core, dtype, how):
    """Return the mean loss, the adapter's gradients in float32, and how many operations a pass took."""
    model = copy.deepcopy(core).to(dtype)
    tokens = generated_tokens(model, None, 60)
    with lora.adapted(model, CHOSEN, "base", 0) as adapted:
        lora.add_noise(adapted)
        llama_layer.set_steps(model, how)
        if how is None:
            for layer in model.model.layers:  # a kind that is not known
                layer.__class__ = type("Other", (type(layer),), {})
        with by_segments(model):
            lora_linear.install(adapted)
            batch = flatten(tokens, range(len(tokens))).to(model.device)
            with _Counting() as counting:
                loss = loss_sum(adapted, batch) / len(batch.rows)
                loss.backward()
        gradients = [p.grad.float().flatten() for p in adapted.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(gradients), counting.count


def apart(found, right):
    return float((found - right).norm() / right.norm())


@pytest.mark.parametrize("how", [PLAIN, AS_ONE], ids=lambda how: how.name)
def test_layers_as_on_a_gpu_give_the_same(core, one_kernel, how):
    loss, gradients, _ = trained(core, torch.float32, how)
    right, right_gradients, _ = trained(core, torch.float32, None)
    assert loss == pytest.approx(right, abs=1e-5)
    assert apart(gradients, right_gradients) < 1e-5


# Attention is more operations on a CPU in torch's older versions, here as in transformers: there our share is 0.84.
SHARE = 0.75 if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10) else 0.9


@pytest.mark.parametrize(("how", "share"), [(PLAIN, 1.0), (AS_ONE, SHARE)], ids=["plain", "as one"])
def test_bfloat16_is_as_exact_as_transformers_own_layers_in_fewer_operations(core, one_kernel, how, share):
    right, right_gradients, _ = trained(core, torch.float32, None)
    plain, plain_gradients, plain_count = trained(core, torch.bfloat16, None)
    loss, gradients, count = trained(core, torch.bfloat16, how)
    assert abs(loss - right) <= abs(plain - right) + 0.02
    assert apart(gradients, right_gradients) <= 1.25 * apart(plain_gradients, right_gradients)
    assert count < share * plain_count


def test_the_check_lets_right_layers_compute(core):
    model = copy.deepcopy(core).to(torch.bfloat16)
    with lora.adapted(model, CHOSEN, "base", 0) as adapted:
        lora.add_noise(adapted)
        found = self_check.check(adapted, None, 60, train=True)
    assert (found.way, found.layers) == ("flattened", "")
    assert not llama_layer.disabled(model)


def test_layers_that_are_wrong_are_left_to_transformers_and_one_line_says_so(core, monkeypatch, caplog):
    wrong = dataclasses.replace(PLAIN, rotate=lambda x, cos, sin: x)
    monkeypatch.setattr(self_check, "PLAIN", wrong)
    monkeypatch.setattr(self_check, "compiled", lambda: wrong)  # tried on a GPU too
    model = copy.deepcopy(core).to(torch.bfloat16)
    with (
        caplog.at_level(logging.WARNING),
        lora.adapted(model, CHOSEN, "base", 0) as adapted,
    ):
        lora.add_noise(adapted)
        found = self_check.check(adapted, None, 60, train=True)
        again = self_check.check(adapted, None, 60, train=True)
    assert found.way == again.way == "flattened"
    assert "differ" in found.layers
    assert again.layers
    assert sum("transformers' own code" in record.message for record in caplog.records) == 1


@pytest.fixture(scope="module")
def arguments():
    """For each step, what it may be called with."""
    draws = torch.Generator().manual_seed(0)

    def matrix(*shape):
        return torch.randn(*shape, generator=draws).bfloat16()

    x, weight = matrix(37, 32), matrix(32)
    r = x.float().square().mean(-1, keepdim=True).rsqrt()
    cos, sin = matrix(37, 1, 4), matrix(37, 1, 4)
    gate, up = matrix(37, 48), matrix(37, 48)
    return {
        "norm": (x, weight, 1e-6),
        "norm_backward": (matrix(37, 32), x, r, weight),
        "rotate": (matrix(37, 4, 8), cos, sin),
        "gate": (gate, up),
        "gate_backward": (matrix(37, 48), gate, up, gate),
    }


def same(found, right):
    pairs = zip(found, right, strict=True) if isinstance(found, tuple) else [(found, right)]
    for each, other in pairs:
        assert apart(each.float(), other.float()) < 1e-2
        assert each.dtype == other.dtype


@pytest.mark.parametrize("name", NAMES)
def test_what_is_compiled_computes_what_plain_steps_do(arguments, name):
    given = [x.clone() if isinstance(x, torch.Tensor) else x for x in arguments[name]]
    pure = getattr(steps, f"_{name}")(*given)
    if name == "gate_backward":
        given[3] = torch.nn.functional.silu(given[1])
    right = getattr(steps, name)(*given)
    same(*((pure[0], right[0]) if name == "gate" else (pure, right)))


def test_steps_compile_for_any_number_of_tokens(arguments, monkeypatch):
    """By the compiler for CPUs; that for GPUs is the same down to the code that it writes."""
    if not shutil.which("g++"):
        pytest.skip("torch.compile needs a compiler on a CPU")
    monkeypatch.setattr(steps._Compiled, "spent", 0.0)
    made = steps._Compiled(steps._norm, steps.norm)
    x, weight, epsilon = arguments["norm"]
    for rows in (37, 20, 5):
        same(made(x[:rows], weight, epsilon), steps.norm(x[:rows], weight, epsilon))
    assert made.called
    assert not made.failed


def test_where_nothing_compiles_steps_stay_plain_and_one_line_says_so(arguments, monkeypatch, caplog):
    def no_compiler(*args):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(steps._Compiled, "spent", 0.0)
    made = steps._Compiled(steps._norm, steps.norm)
    made.function = no_compiler
    for _ in range(2):
        same(made(*arguments["norm"]), steps.norm(*arguments["norm"]))
    assert [record.message for record in caplog.records] == [
        "the step `norm` of the decoder layers is not compiled: RuntimeError: no compiler"
    ]
    late = steps._Compiled(steps._gate, steps._plain_gate)
    monkeypatch.setattr(steps._Compiled, "spent", steps.COMPILE_SECONDS + 1)
    same(late(*arguments["gate"]), steps._gate(*arguments["gate"]))
    assert late.failed
