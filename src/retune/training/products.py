"""Matrix products with frozen weights, by the faster of the two libraries that torch has for them on a CPU.

In float32 torch calls MKL. On AMD processors MKL uses half of the AVX-512 vector width; oneDNN, which torch includes for
other types and for compiled models, uses all of it and takes about half the time for large products (on Zen 5, by
`benchmarks/bench_products.py`; both sum in float32). oneDNN generates a kernel for each number of rows that it meets, which
costs as much as a small product, and here every step has another number of tokens. So the rows are padded to one of a few
numbers, and the padding is cut off the result.

The choice does not depend on timing: the same machine and software always use the same library, so results are reproducible.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import pad

_MIN_ROWS = 64  # with fewer, the overhead of the call outweighs the faster product
_ROW_STEP = 16  # rows are padded to a multiple of at least this


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias`` without a graph, for `x` of shape ``(rows, in)`` and `weight` of shape ``(out, in)``."""
    product = _by_onednn(x, weight, bias) if _use_onednn(x, weight) else None
    return torch_linear(x, weight, bias) if product is None else product


def matmul(x: Tensor, weight: Tensor, add_to: Tensor | None = None) -> Tensor:
    """Return ``x @ weight`` without a graph, or `add_to` with that added in place.

    Args:
        x: shape ``(rows, out)``. weight: shape ``(out, in)``. add_to: shape ``(rows, in)``.
    """
    product = _by_onednn(x, weight.t(), None) if _use_onednn(x, weight) else None
    if product is None:
        return x @ weight if add_to is None else add_to.addmm_(x, weight)
    return product if add_to is None else add_to.add_(product)


def empty(rows: int, columns: int, like: Tensor) -> Tensor:
    """Return an uninitialised matrix; if it becomes the input of `linear` or `matmul`, those need not copy it."""
    padded_rows = rounded_up(rows) if like.device.type == "cpu" and by_onednn() else rows
    return like.new_empty(padded_rows, columns)[:rows]


def empty_like(x: Tensor) -> Tensor:
    """Return what `empty` does for a matrix of the shape, type and device of `x`."""
    return empty(x.shape[0], x.shape[1], x)


def rounded_up(rows: int) -> int:
    """Return the number of rows after padding: one of 16 numbers per power of two, so beyond 256 at most 1/16 is added."""
    step = max(_ROW_STEP, 1 << max(0, rows.bit_length() - 5))
    return -(-rows // step) * step


def _use_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == torch.float32
        and weight.dtype == torch.float32
        and x.device.type == "cpu"
        and len(x) >= _MIN_ROWS
        and by_onednn()
    )


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """Return ``x @ weight.T + bias``; None if oneDNN fails, e.g. for lack of memory: it reports that as a plain RuntimeError."""
    rows, padded_rows = len(x), rounded_up(len(x))
    try:
        with torch.no_grad():
            product: Tensor = torch.ops.mkldnn._linear_pointwise(
                _with_rows(x, padded_rows), weight, bias, "none", [], ""
            )
    except (AttributeError, RuntimeError, TypeError):
        return None
    # The same memory as a tensor of its own, not a view: callers change it in place, which autograd refuses on views.
    own: Tensor = product.new_empty(0)
    return own.set_(product.untyped_storage(), 0, (rows, product.shape[1]), product.stride())


def _with_rows(x: Tensor, padded_rows: int) -> Tensor:
    """Return `x` with `padded_rows` rows; the added ones are whatever follows `x` in its storage (see `empty`), else zeros."""
    x = x.contiguous()
    if (x.storage_offset() + padded_rows * x.shape[1]) * x.element_size() <= x.untyped_storage().nbytes():
        return x.as_strided((padded_rows, x.shape[1]), (x.shape[1], 1))
    return pad(x, (0, 0, 0, padded_rows - len(x)))


@lru_cache(maxsize=1)
def by_onednn() -> bool:
    """Return whether float32 products on this CPU go to oneDNN: on AMD with AVX-512, if torch has both libraries.

    The operator is private: torch's compiler calls it, and releases may change it. So it is tried once before it is used.
    """
    libraries: tuple[Any, ...] = (torch.backends.mkl, torch.backends.mkldnn)
    if not all(library.is_available() for library in libraries):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not _is_amd():
        return False
    draws = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 32, generator=draws), torch.randn(48, 32, generator=draws)
    bias = torch.randn(48, generator=draws)
    # Both memory orders of the weight: `linear` passes it as it is, `matmul` transposed.
    by_rows, by_columns = _by_onednn(x, weight, bias), _by_onednn(x, weight.t().contiguous().t(), None)
    if by_rows is None or by_columns is None:
        return False
    return torch.allclose(by_rows, torch_linear(x, weight, bias), atol=1e-4) and torch.allclose(
        by_columns, x @ weight.t(), atol=1e-4
    )


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
