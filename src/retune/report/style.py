"""How figures look, and how they become SVG for the page and files for MLflow.

Colours are near Okabe and Ito's palette, which people with colour-blindness can tell apart, and every series
differs by marker, dash or label too. Figures are small with large type: scaled down to the width of a phone
they can still be read. In the page, text and axes take the colour of its text, so that they show on light and
dark.
"""

from __future__ import annotations

import functools
import io
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2328"  # becomes the page's own text colour in SVG
BLUE, ORANGE, GREEN, RED, PURPLE = "#3b8fd1", "#e08a00", "#1a9e77", "#d55e3a", "#b86fa5"
_WIDTH, _HEIGHT = 4.8, 3.5  # inches; at 72 points to the inch about the width of a phone held upright
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def new_figure(height: float = _HEIGHT) -> tuple[Figure, Axes]:
    """Return an empty figure of the common width and style, and its axes; `height` in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    return figure, axes


def legend(figure: Figure, axes: Axes) -> None:
    """Put the legend below the axes, where it covers no data."""
    import matplotlib

    handles, _ = axes.get_legend_handles_labels()
    if handles:
        with matplotlib.rc_context(_STYLE):
            figure.legend(
                loc="outside lower center", ncols=min(3, len(handles)), handlelength=1.8, columnspacing=1.2
            )


def rank_colours() -> Any:
    """Return a colour map from the best (orange) to the worst (grey), all of it visible on light and dark."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("rank", ["#d9480f", "#c2678f", BLUE, "#9db2c4", "#a9b1ba"])


def words(name: str, gap: str = " ") -> str:
    """Return a metric's or parameter's name without underscores."""
    return name.replace("_", gap)


def to_svg(figure: Figure, name: str, title: str = "") -> str:
    """Return a figure as an SVG element that fills the width it is given.

    Args:
        figure: what to draw.
        name: makes the ids inside unique on a page of several figures.
        title: read out by screen readers.

    """
    text = _svg_file(figure, name)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height|xmlns:xlink)="[^"]*"', "", head)
    label = escape(title or name, quote=True)
    rest = re.sub(r"font: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font: \1system-ui, sans-serif", rest)
    rest = rest.replace("xlink:href", "href")
    return f'{head} role="img" aria-label="{label}">{rest}'.replace(INK, "currentColor")


@functools.lru_cache(maxsize=8)
def _svg_file(figure: Figure, name: str) -> str:
    """Return a figure as an SVG file; drawn once in a process for the page and for MLflow."""
    import matplotlib

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    # The layout is final now; computing it again for the PNG would take half the time of a drawing
    figure.set_layout_engine("none")
    return buffer.getvalue()


def write_files(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """Write every figure as PNG and SVG on white, for the parent run in MLflow; return the files."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, figure in figures.items():
        head, root, rest = re.split(r"(<svg[^>]*>)", _svg_file(figure, name), maxsplit=1)
        paper = '<rect width="100%" height="100%" fill="white"/>'
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        svg.write_text(f"{head}{root}{paper}{rest}", encoding="utf-8")
        with matplotlib.rc_context(_STYLE):
            figure.savefig(png, dpi=200, facecolor="white")
        files += [png, svg]
    return files
