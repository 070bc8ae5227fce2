"""Hypothesis strategies for spaces of every kind."""

import math
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
        step = _fitting(step, low, high, scale)
        return Parameter(name=name, kind=kind, low=low, high=high, scale=scale, step=step, default=low)
    low = draw(st.sampled_from([1e-6, 0.1, 1.0]))
    high = low * draw(st.sampled_from([1.0, 1.5, 1e3, 1e6]))
    step = draw(st.sampled_from([None, 0.3 if scale == "log" or high == low else (high - low) / 7.5]))
    step = _fitting(step, low, high, scale)
    return Parameter(name=name, kind=kind, low=low, high=high, scale=scale, step=step)


def _fitting(step: float | None, low: float, high: float, scale: str) -> float | None:
    """Return the step, unless it is larger than the range, which is refused."""
    span = math.log10(high / low) if scale == "log" else high - low
    return None if step is not None and 0 < span < step else step


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Draw a space of one to five parameters."""
    size = draw(st.integers(1, 5))
    return Space(parameters=tuple(draw(parameters(f"p{i}")) for i in range(size)))


_ODD: dict[str, dict[str, Any]] = {
    "one value": {"kind": "discrete", "values": (0.5,)},
    "one number": {"kind": "integer", "low": 5, "high": 5},
    "one name": {"kind": "categorical", "values": ("a",)},
    "huge": {"kind": "real", "low": -1e300, "high": 1e300},
    "huge by logarithm": {"kind": "real", "low": 1e-300, "high": 1e300, "scale": "log"},
    "tiny": {"kind": "real", "low": 1e-300, "high": 1e-290, "scale": "log"},
    "narrow": {"kind": "real", "low": 1.0, "high": 1.01},
    "many whole numbers": {"kind": "integer", "low": 1, "high": 2**53},
    "many by logarithm": {"kind": "integer", "low": 1, "high": 2**40, "scale": "log"},
    "names": {"kind": "categorical", "values": ("a", "b", "c")},
    "two numbers": {"kind": "discrete", "values": (-1e308, 1e308)},
    "a few": {"kind": "integer", "low": 0, "high": 3},
}


@st.composite
def odd_spaces(draw: st.DrawFn, conditions: bool = True) -> Space:
    """Draw a space of one to five parameters with extreme or single values, of categories alone, or with `conditions`."""
    kinds = sorted(_ODD) if draw(st.booleans()) else ["names", "one name"]
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=5))
    parameters: list[Parameter] = []
    for index, kind in enumerate(chosen):
        parameter = Parameter(name=f"p{index}", **_ODD[kind])
        parents = [p for p in parameters if p.values is not None]
        if conditions and parents and draw(st.booleans()):
            parent = draw(st.sampled_from(parents))
            when = {parent.name: draw(st.sampled_from(parent.values or ()))}
            default = parameter.value(draw(st.sampled_from([0, parameter.levels - 1])))
            parameter = Parameter(name=f"p{index}", **_ODD[kind], default=default, when=when)
        parameters.append(parameter)
    return Space(parameters=tuple(parameters))
