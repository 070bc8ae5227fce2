"""How far rounding alone may move a model's losses and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Minimum tolerances in nats: of a token's loss, and of its change with the other records of the batch.
_MIN_TOLERANCES: dict[torch.dtype | None, tuple[float, float]] = {
    torch.float64: (1e-9, 1e-9),
    torch.float32: (1e-5, 3e-6),
    torch.float16: (4e-3, 2e-3),
    torch.bfloat16: (2e-2, 1e-2),
    None: (2e-2, 1e-2),
}
# Tolerance over the effect of one rounding at the input: a model rounds at every step of every layer
_ROUNDINGS = 30
_GRADIENT_TOLERANCES = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
_TYPICAL_LOSS = 10.0  # nats: that of a uniform guess among 22,000 tokens


def min_tolerances(core: Any) -> tuple[float, float]:
    """Return the minimum tolerances in nats: of a token's loss, and of its change with the other records of a batch."""
    return _MIN_TOLERANCES.get(next(core.parameters()).dtype, _MIN_TOLERANCES[None])


def gradient_tolerance(dtype: torch.dtype) -> float:
    """Return how much rounding may change an adapter's gradients, as a share of their norm."""
    return _GRADIENT_TOLERANCES.get(dtype, _GRADIENT_TOLERANCES[torch.bfloat16])


def rounding_tolerance(core: Any, reference: Tensor, compute: Callable[[], Tensor]) -> float:
    """Return how much rounding may change a model's log-probabilities, in nats, from the effect of one perturbation.

    Args:
        core: the transformers model. reference: from `compute`, without perturbation.
        compute: returns log-probabilities of the model.
    """
    with perturbed(core):
        return max(min_tolerances(core)[0], _ROUNDINGS * max_difference(reference, compute()))


@contextmanager
def perturbed(core: Any) -> Iterator[None]:
    """Perturb the embeddings' output by about one rounding error of its data type inside the block."""
    generator = torch.Generator().manual_seed(0)

    def perturb(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        noise = torch.randn(output.shape, generator=generator).to(output.device, output.dtype)
        return output + output * noise * torch.finfo(output.dtype).eps

    handle = core.get_input_embeddings().register_forward_hook(perturb)
    try:
        yield
    finally:
        handle.remove()


def max_difference(reference: Tensor, other: Tensor) -> float:
    """Return the largest difference between log-probabilities, in nats; NaN if one of them is.

    Rounding errors grow with the numbers, so if the largest is beyond `_TYPICAL_LOSS` nats, the result is scaled down by it.
    """
    scale = max(1.0, float(reference.detach().abs().max()) / _TYPICAL_LOSS)
    return float((reference.detach().double() - other.detach().double()).abs().max()) / scale
