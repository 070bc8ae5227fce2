"""Matrix products with frozen weights, by the faster of the two libraries that torch has for them on a CPU.

In float32 torch calls MKL. On AMD's processors MKL computes with half of a vector of AVX-512; oneDNN, which torch carries for
other types and for compiled models, uses all of it and takes about half the time for large products (on Zen 5, by
`benchmarks/bench_products.py`; both sum in float32). oneDNN makes a kernel for each number of rows that it meets, which costs as
much as a small product, and here every step has another number of tokens. So rows are rounded up to one of a few numbers, and
what is too much is cut off.

Nothing is chosen by timing: the same machine and software always take the same library, so results can be repeated.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import pad

_LEAST = 64  # rows; with fewer, the start of the call counts for more than the product
_FINEST = 16


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias`` without a graph, for `x` of shape ``(rows, in)`` and `weight` of shape ``(out, in)``."""
    found = _by_onednn(x, weight, bias) if _takes(x, weight) else None
    return torch_linear(x, weight, bias) if found is None else found


def times(x: Tensor, weight: Tensor, add_to: Tensor | None = None) -> Tensor:
    """Return ``x @ weight`` without a graph, or `add_to` with that added in place.

    Args:
        x: shape ``(rows, out)``. weight: shape ``(out, in)``. add_to: shape ``(rows, in)``.
    """
    found = _by_onednn(x, weight.t(), None) if _takes(x, weight) else None
    if found is None:
        return x @ weight if add_to is None else add_to.addmm_(x, weight)
    return found if add_to is None else add_to.add_(found)


def empty(rows: int, columns: int, like: Tensor) -> Tensor:
    """Return an uninitialised matrix; if it becomes the input of `linear` or `times`, those need not copy it."""
    room = rounded(rows) if like.device.type == "cpu" and by_onednn() else rows
    return like.new_empty(room, columns)[:rows]


def empty_like(x: Tensor) -> Tensor:
    """Return what `empty` does for a matrix of the shape, type and device of `x`."""
    return empty(x.shape[0], x.shape[1], x)


def rounded(rows: int) -> int:
    """Return at least so many rows, one of 16 numbers in each octave: beyond 256 at most a sixteenth more."""
    step = max(_FINEST, 1 << max(0, rows.bit_length() - 5))
    return -(-rows // step) * step


def _takes(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == torch.float32
        and weight.dtype == torch.float32
        and x.device.type == "cpu"
        and len(x) >= _LEAST
        and by_onednn()
    )


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """Return ``x @ weight.T + bias``; None if oneDNN fails, as it does without memory for its buffers, in words of its own."""
    rows, room = len(x), rounded(len(x))
    try:
        with torch.no_grad():
            found: Tensor = torch.ops.mkldnn._linear_pointwise(
                _widened(x, room), weight, bias, "none", [], ""
            )
    except (AttributeError, RuntimeError, TypeError):
        return None
    # The same memory as a tensor of its own, not a view: whoever gets it may go on in place.
    own: Tensor = found.new_empty(0)
    return own.set_(found.untyped_storage(), 0, (rows, found.shape[1]), found.stride())


def _widened(x: Tensor, room: int) -> Tensor:
    """Return `x` with rows behind its own whose content does not matter: those in its memory, if there are any, else zeros."""
    x = x.contiguous()
    if (x.storage_offset() + room * x.shape[1]) * x.element_size() <= x.untyped_storage().nbytes():
        return x.as_strided((room, x.shape[1]), (x.shape[1], 1))
    return pad(x, (0, 0, 0, room - len(x)))


@lru_cache(maxsize=1)
def by_onednn() -> bool:
    """Return whether float32 products on this CPU go to oneDNN: on AMD's with AVX-512, if torch has both libraries.

    The operator is one that torch's compiler calls, not of its public interface: it is tried before it is used.
    """
    libraries: tuple[Any, ...] = (torch.backends.mkl, torch.backends.mkldnn)
    if not all(library.is_available() for library in libraries):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not _is_amd():
        return False
    draws = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 32, generator=draws), torch.randn(48, 32, generator=draws)
    bias = torch.randn(48, generator=draws)
    there, back = _by_onednn(x, weight, bias), _by_onednn(x, weight.t().contiguous().t(), None)
    if there is None or back is None:
        return False
    return torch.allclose(there, torch_linear(x, weight, bias), atol=1e-4) and torch.allclose(
        back, x @ weight.t(), atol=1e-4
    )


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
