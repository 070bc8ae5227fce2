"""The steps of a decoder layer between its matrix products: RMS norm, rotary embedding, gated activation, forward and backward.

There are two versions. The plain one works in place, which is best on a CPU. In the compiled one each step is one kernel, made by
torch.compile for any number of tokens: on a GPU a layer of a small batch takes as long as launching its kernels, and the plain
steps are most of them. torch caches what it compiled on disk (TORCHINDUCTOR_CACHE_DIR).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from retune.errors import is_out_of_memory
from retune.training import products

COMPILE_SECONDS = 60.0
"""After this many seconds of compiling in this process no further step is compiled; the remaining ones stay plain."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Steps:
    """The functions of one version; the docstrings of the plain ones say what each computes.

    Attributes:
        name: for the log.
    """

    name: str
    norm: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
    norm_backward: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor]
    gate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    gate_backward: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return RMS norm of `x`, shape ``(tokens, hidden)``, and the factor of each token, float32, shape ``(tokens, 1)``."""
    wide = x.float()
    r = wide.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
    if x.dtype == torch.float32:
        return torch.mul(x, r, out=products.empty_like(x)).mul_(weight), r
    return (wide * r).to(x.dtype).mul_(weight), r  # rounded where transformers rounds


def norm_backward(gradient: Tensor, x: Tensor, r: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of x: ``r g w - x r^3 mean(g w x)``. May overwrite `gradient`.

    Where the squares of `x` overflow, `r` is 0 and the output a harmless-looking 0; ``r / r`` makes the gradient NaN
    there, as autograd does, so that the training is seen to have failed.
    """
    wide = x.float()
    scaled = gradient.mul_(weight).float()
    shared = (scaled * wide).mean(-1, keepdim=True).mul_(r).mul_(r).mul_(r / r)
    return scaled.addcmul_(wide, shared, value=-1).mul_(r).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to `x`, shape ``(tokens, heads, size)``; with ``-sin`` undo it.

    RoPE (Su et al. 2021, arXiv:2104.09864) in the layout of Llama: the first half of a head is paired with the second.
    """
    first, second = x.chunk(2, -1)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    out_1, out_2 = out.chunk(2, -1)
    torch.mul(first, cos, out=out_1).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out_2).addcmul_(first, sin)
    return out


def gate(x: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``silu(x) * up`` and what this version's `gate_backward` needs: here ``silu(x)``, in the compiled one `x`."""
    activated = silu(x)
    return torch.mul(activated, up, out=products.empty_like(up)), activated


def gate_backward(gradient: Tensor, x: Tensor, up: Tensor, activated: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `x` and `up`. May overwrite `gradient`."""
    grad_up = torch.mul(gradient, activated, out=products.empty_like(gradient))
    return torch.ops.aten.silu_backward(gradient.mul_(up), x), grad_up


PLAIN = Steps("plain", norm, norm_backward, rotate, gate, gate_backward)


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    wide = x.float()
    r = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * r).to(x.dtype) * weight, r


def _norm_backward(gradient: Tensor, x: Tensor, r: Tensor, weight: Tensor) -> Tensor:
    wide, scaled = x.float(), (gradient * weight).float()
    shared = (scaled * wide).mean(-1, keepdim=True) * r * r * (r / r)
    return ((scaled - wide * shared) * r).to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _gate(x: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return silu(x) * up, x


def _gate_backward(gradient: Tensor, x: Tensor, up: Tensor, activated: Tensor) -> tuple[Tensor, Tensor]:
    share = torch.sigmoid(x.float())
    grad_x = gradient * up * share * (1 + x * (1 - share))
    return grad_x.to(x.dtype), (gradient * x * share).to(x.dtype)


class _Compiled:
    """A step that is compiled at its first call; the plain one replaces it if that fails or the time is used up."""

    spent = 0.0

    def __init__(self, pure: Callable[..., Any], plain: Callable[..., Any]) -> None:
        self.function = torch.compile(pure, dynamic=True, fullgraph=True)
        self.plain, self.name = plain, plain.__name__
        self.called = self.failed = False

    def __call__(self, *arguments: Any) -> Any:
        if not self.called and _Compiled.spent > COMPILE_SECONDS:
            self._give_up(
                f"compiling may take {COMPILE_SECONDS:.0f} s in all and has taken {_Compiled.spent:.0f} s"
            )
        if self.failed:
            return self.plain(*arguments)
        begin = time.monotonic()
        try:
            output = self.function(*arguments)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self._give_up(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            return self.plain(*arguments)
        if not self.called:
            self.called = True
            _Compiled.spent += time.monotonic() - begin
        return output

    def _give_up(self, reason: str) -> None:
        self.failed = True
        _LOG.warning("the step `%s` of the decoder layers is not compiled: %s", self.name, reason)


@lru_cache(maxsize=1)
def compiled() -> Steps:
    """Return the compiled version; each step is compiled when it is first called."""
    return Steps(
        "compiled",
        _Compiled(_norm, norm),
        _Compiled(_norm_backward, norm_backward),
        _Compiled(_rotate, rotate),
        _Compiled(_gate, _plain_gate),
        _Compiled(_gate_backward, _plain_gate_backward),
    )


def _plain_gate(x: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    # Not silu(x): the backward step may be compiled, and then needs what `_gate` returns
    return gate(x, up)[0], x


def _plain_gate_backward(gradient: Tensor, x: Tensor, up: Tensor, activated: Tensor) -> tuple[Tensor, Tensor]:
    return gate_backward(gradient, x, up, silu(x))
