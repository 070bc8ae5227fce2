"""Hypothesis strategies for spaces of every kind."""

from typing import Any

from hypothesis import strategies as st

from retune.space import Parameter, Space


@st.composite
def parameters(draw: st.DrawFn, name: str) -> Parameter:
    """Draw a parameter of any kind."""
    low: Any
    high: Any
    values: list[Any]
    kind = draw(st.sampled_from(["real", "integer", "discrete", "categorical"]))
    scale = draw(st.sampled_from(["linear", "log"]))
    if kind == "categorical":
        values = draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5, unique=True))
        return Parameter(
            name=name, kind=kind, values=tuple(values), default=draw(st.sampled_from([None, values[0]]))
        )
    if kind == "discrete":
        values = draw(st.lists(st.floats(-1e3, 1e3, width=16), min_size=1, max_size=6, unique_by=str))
        values = sorted({v + 0.0 for v in values})
        return Parameter(name=name, kind=kind, values=tuple(values))
    if kind == "integer":
        low = draw(st.integers(2, 50))
        high = low + draw(st.sampled_from([0, 1, 2, 7, 500]))
        step = (
            draw(st.sampled_from([None, 1, 3])) if scale == "linear" else draw(st.sampled_from([None, 0.2]))
        )
        return Parameter(name=name, kind=kind, low=low, high=high, scale=scale, step=step, default=low)
    low = draw(st.sampled_from([1e-6, 0.1, 1.0]))
    high = low * draw(st.sampled_from([1.0, 1.5, 1e3, 1e6]))
    step = draw(st.sampled_from([None, 0.3 if scale == "log" or high == low else (high - low) / 7.5]))
    return Parameter(name=name, kind=kind, low=low, high=high, scale=scale, step=step)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Draw a space of one to five parameters."""
    size = draw(st.integers(1, 5))
    return Space(parameters=tuple(draw(parameters(f"p{i}")) for i in range(size)))
