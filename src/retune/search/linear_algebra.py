"""NumPy's and SciPy's linear algebra in one thread, whatever the machine has."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager

from threadpoolctl import ThreadpoolController


@functools.cache
def _libraries() -> ThreadpoolController:
    import numpy  # noqa: F401  the controller knows only the libraries that are loaded
    import scipy.linalg  # noqa: F401

    return ThreadpoolController()


def one_thread() -> AbstractContextManager[object]:
    """Return a context in which matrices are computed in one thread.

    Several threads sum in another order, and a rounding error can decide between two points: with them the answer to a history
    would depend on the number of cores. They are slower, too, on small matrices, most of all beside running trials.
    """
    limit: AbstractContextManager[object] = _libraries().limit(limits=1, user_api="blas")
    return limit
