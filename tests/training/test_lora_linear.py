import pytest
import torch

from retune.study import Training
from retune.training import lora, lora_linear
from retune.training.lora_linear import LoraLinear, Weights


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_the_derivatives(dropout, bias):
    torch.manual_seed(0)
    x, a, b = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 5), (2, 5), (4, 2))
    )
    weight, shift = (
        torch.randn(4, 5, dtype=torch.float64),
        torch.randn(4, dtype=torch.float64) if bias else None,
    )

    def layer(x, a, b):
        torch.manual_seed(1)  # the same elements are dropped each time
        return LoraLinear.apply(x, Weights(weight, shift, a, b, 0.7, dropout), a, b)

    assert torch.autograd.gradcheck(layer, (x, a, b))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_equals_pefts_own_layer_drawn_from_the_same_seed(base, dropout):
    found = {}
    with lora.adapted(
        base.load().model,
        Training(rank=4, alpha=8, dropout=dropout, learning_rate=1e-3, target_modules=["q_proj"]),
        "x",
        0,
    ) as model:
        model.train()
        layer = model.base_model.model.model.layers[0].self_attn.q_proj
        torch.nn.init.normal_(layer.lora_B["default"].weight)
        for how in ("pefts", "ours"):
            if how == "ours":
                lora_linear.install(model)
                assert "forward" in vars(layer)
            torch.manual_seed(5)
            x = torch.linspace(-1, 1, 7 * 32, device=base.load().device).view(1, 7, 32).requires_grad_()
            model.zero_grad()
            out = layer(x)
            out.square().sum().backward()
            grads = [
                x.grad,
                layer.lora_A["default"].weight.grad.clone(),
                layer.lora_B["default"].weight.grad.clone(),
            ]
            found[how] = [out.detach(), *grads]
        layer.eval()
        assert torch.equal(layer(x), layer(x))
    for ours, theirs in zip(found["ours"], found["pefts"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_bfloat16_activations_with_float32_weights():
    x = torch.randn(3, 5).bfloat16().requires_grad_()
    weight, a, b = (
        torch.randn(4, 5).bfloat16(),
        torch.randn(2, 5, requires_grad=True),
        torch.randn(4, 2, requires_grad=True),
    )
    out = LoraLinear.apply(x, Weights(weight, None, a, b, 1.0, 0.1), a, b)
    out.sum().backward()
    assert (out.dtype, x.grad.dtype, a.grad.dtype, b.grad.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
