"""The figures of a study's report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from retune.records import TrialRecord
from retune.report.importance import importances, settings
from retune.report.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    RED,
    legend,
    new_figure,
    rank_colours,
    words,
)
from retune.selection.ranking import gain, rank
from retune.selection.record import Row, Selection
from retune.space import Parameter, Space
from retune.study import Objective

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS, DASHES = (0, (1, 1.5)), (0, (5, 2))


def draw(
    trials: Sequence[TrialRecord], space: Space, objective: Objective, selection: Selection
) -> dict[str, Figure]:
    """Return the figures for which there is enough data, by name, in the order of the report.

    Args:
        trials: all trials of the study.
        space: the search space.
        objective: of the search.
        selection: with the chosen trial.

    """
    found = {
        "history": history(trials, objective),
        "parallel-coordinates": parallel_coordinates(trials, space, objective),
        "importance": importance(trials, space, objective),
        "loss-curves": loss_curves(trials, objective, selection),
        "scores": scores(selection, objective),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def history(trials: Sequence[TrialRecord], objective: Objective) -> Figure:
    """Draw the objective over the trials: each, the best so far, base and default, and failed ones."""
    figure, axes = new_figure()
    metric = objective.metric
    searched = sorted((t for t in trials if t.role in ("default", "search")), key=lambda t: t.number)
    proxies = [t for t in trials if t.role == "proxy"]
    points = [(t.number, value) for t in searched if (value := t.objective(metric)) is not None]
    base = [v for t in trials if t.role == "base" and (v := t.objective(metric)) is not None]
    default = [v for t in searched if t.role == "default" and (v := t.objective(metric)) is not None]
    for values, label, colour, dash in (
        (base, "untuned base", RED, DOTS),
        (default, "default setting", ORANGE, DASHES),
    ):
        for value in values[:1]:
            axes.axhline(value, color=colour, linestyle=dash, linewidth=1.6, label=label)
    if points:
        numbers, shown = [n for n, _ in points], [v for _, v in points]
        best = _best_so_far(shown, objective)
        axes.plot(numbers, shown, "o", color=BLUE, markersize=4.5, alpha=0.75, label="trial")
        axes.step(numbers, best, where="post", color=GREEN, linewidth=2, label="best so far")
        _focus(axes, shown, base + default)
    parts = [(t.number, v) for t in proxies if (v := t.objective(metric)) is not None]
    if parts:
        axes.plot(
            *zip(*parts, strict=True),
            "o",
            color=PURPLE,
            markersize=3.5,
            alpha=0.6,
            label="on a part of the data",
        )
    partial = [t for t in [*searched, *proxies] if t.status == "early_stopped" and metric in t.values]
    if partial:
        points = [(t.number, t.values[metric]) for t in partial]
        axes.plot(*zip(*points, strict=True), "|", color=INK, markersize=7, label="where it was stopped")
    failed = [t.number for t in [*searched, *proxies] if t.status == "failed"]
    if failed:
        at = axes.get_xaxis_transform()  # the lower edge, whatever the values
        axes.plot(
            failed, [0.02] * len(failed), "x", color=RED, markeredgewidth=2, transform=at, label="failed"
        )
    axes.set_xlabel("trial")
    axes.set_ylabel(words(metric))
    axes.locator_params(axis="x", integer=True)
    legend(figure, axes)
    return figure


def _best_so_far(values: Sequence[float], objective: Objective) -> list[float]:
    best: list[float] = []
    for value in values:
        best.append(value if not best or gain(value, best[-1], objective) > 0 else best[-1])
    return best


def _focus(axes: Axes, values: list[float], references: list[float]) -> None:
    """Limit the axis so that a few diverged trials do not flatten the others; a note counts those outside."""
    if len(values) < 8:
        return
    ordered = sorted(values)
    cut = len(ordered) // 8
    low, high = ordered[cut], ordered[-1 - cut]
    reach = 4 * (high - low)
    inside = [v for v in values if low - reach <= v <= high + reach] + references
    outside = sum(not min(inside) <= v <= max(inside) for v in values)
    margin = 0.06 * (max(inside) - min(inside)) or 0.1
    axes.set_ylim(min(inside) - 1.5 * margin, max(inside) + margin)
    if outside:
        note = "1 trial lies" if outside == 1 else f"{outside} trials lie"
        axes.set_title(f"{note} outside this range", fontsize=9, color=INK, loc="left")


def parallel_coordinates(trials: Sequence[TrialRecord], space: Space, objective: Objective) -> Figure | None:
    """Draw each completed setting as a line over its hyper-parameters, coloured by its rank; None below 2.

    Every axis has the scale of its parameter: logarithmic for the learning rate. The best are drawn last.
    """
    done = settings(trials, space, objective)
    if len(done) < 2:
        return None
    from matplotlib.collections import LineCollection

    figure, axes = new_figure(3.8)
    shades = rank_colours()
    points = range(len(space.names))
    heights = [space.to_unit(space.encode(trial.assignment)) for trial in done]
    # By rank, not by value: one diverged trial would use up most of the colour scale
    colours = [shades(place / (len(done) - 1)) for place in range(len(done))]
    lines = [list(zip(points, height, strict=True)) for height in heights]
    # All but the best three, worst first; one collection, since thousands of artists are slow
    thin = slice(None, 2, -1)
    axes.add_collection(LineCollection(lines[thin], colors=colours[thin], linewidths=1.1, alpha=0.65))
    for place in reversed(range(min(3, len(done)))):
        dots = "o" if place == 0 else None
        axes.plot(points, heights[place], color=colours[place], linewidth=2.2, marker=dots, markersize=5)
    _axes_of_space(axes, space)
    values = [t.objective(objective.metric) for t in (done[0], done[-1])]
    _rank_bar(figure, axes, shades, f"best {values[0]:.4g}", f"worst {values[1]:.4g}", objective.metric)
    return figure


def _axes_of_space(axes: Axes, space: Space) -> None:
    for index, parameter in enumerate(space.parameters):
        axes.axvline(index, color=INK, linewidth=0.8)
        for unit, label in _ticks(parameter):
            _beside(axes, (index, unit), label, 8)
    axes.set_xticks(range(len(space.names)), [words(name, "\n") for name in space.names])
    axes.set_xlim(-0.1, len(space.names) - 1 + 0.32)
    axes.set_ylim(-0.04, 1.04)
    axes.yaxis.set_visible(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _beside(axes: Axes, place: tuple[float, float], text: str, size: int) -> None:
    """Write `text` to the right of a point."""
    style: dict[str, Any] = {"fontsize": size, "va": "center", "color": INK}
    axes.annotate(text, place, xytext=(4, 0), textcoords="offset points", **style)


def _rank_bar(figure: Figure, axes: Axes, shades: Any, best: str, worst: str, metric: str) -> None:
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(
        ScalarMappable(cmap=shades), ax=axes, orientation="horizontal", fraction=0.05, pad=0.03, aspect=40
    )
    bar.set_ticks([0, 1], labels=[best, worst])
    left, right = bar.ax.get_xticklabels()
    left.set_horizontalalignment("left")
    right.set_horizontalalignment("right")
    bar.ax.set_xlabel(f"{words(metric)}, by rank", labelpad=-10, color=INK)
    bar.ax.tick_params(length=0, colors=INK)
    for spine in bar.ax.spines.values():
        spine.set_visible(False)


def _ticks(parameter: Parameter) -> list[tuple[float, str]]:
    """Return a few positions on a parameter's axis with their labels."""
    count = parameter.levels
    if not parameter.ordered or (parameter.values is not None and count <= 8):
        levels = set(range(count))
    elif parameter.scale == "log" and parameter.low and parameter.high:
        first = math.ceil(math.log10(parameter.low) - 1e-9)
        last = math.floor(math.log10(parameter.high) + 1e-9)
        levels = {parameter.level(10.0**ten) for ten in range(first, last + 1)} or {0, count - 1}
    else:
        levels = {round(k * (count - 1) / 4) for k in range(5)}
    return [(parameter.unit(level), _short(parameter.value(level))) for level in sorted(levels)]


def _short(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")


def importance(trials: Sequence[TrialRecord], space: Space, objective: Objective) -> Figure | None:
    """Draw the importance of each hyper-parameter as bars; None if there are too few trials."""
    found = importances(trials, space, objective)
    if found is None:
        return None
    figure, axes = new_figure(1.0 + 0.42 * len(found))
    names = list(found)[::-1]
    axes.barh([words(name) for name in names], [found[name] for name in names], color=BLUE, height=0.62)
    for row, name in enumerate(names):
        _beside(axes, (found[name], row), f"{found[name]:.0%}", 10)
    axes.set_xlim(0, max(found.values()) * 1.18)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    return figure


def loss_curves(trials: Sequence[TrialRecord], objective: Objective, selection: Selection) -> Figure | None:
    """Draw the objective over epochs of the best, default and chosen trials; None without curves."""
    metric = objective.metric
    ranked = [t for t in rank(trials, objective) if t.role in ("default", "search")]
    named = (selection.chosen, selection.default)
    shown = ranked[:4] + [t for t in ranked[4:] if t.trial in named]
    shown = [t for t in shown if len(t.curves.get(metric, [])) > 1]
    if not shown:
        return None
    figure, axes = new_figure()
    colours, markers = iter((BLUE, GREEN, PURPLE, INK, BLUE, GREEN)), iter("osv^Dp")
    by_epoch = all(point.epoch > 0 or point.step == 0 for t in shown for point in t.curves[metric])
    for trial in shown:
        curve = trial.curves[metric]
        default, chosen = trial.trial == selection.default, trial.trial == selection.chosen
        axes.plot(
            [point.epoch if by_epoch else point.step for point in curve],
            [point.value for point in curve],
            marker=next(markers),
            markersize=4.5,
            label=f"{trial.trial}{' (chosen)' if chosen else ' (default)' if default else ''}",
            color=ORANGE if default else next(colours),
            linestyle=DASHES if default else "-",
            linewidth=2.4 if chosen else 1.4,
        )
    base = selection.row(selection.base)
    if base is not None:
        axes.axhline(base.objective, color=RED, linestyle=DOTS, linewidth=1.6, label="untuned base")
    axes.set_xlabel("epoch" if by_epoch else "step")
    axes.set_ylabel(words(metric))
    legend(figure, axes)
    return figure


def scores(selection: Selection, objective: Objective) -> Figure | None:
    """Draw the mean benchmark score over the objective, which shows whether a better objective means better answers."""
    rows = [row for row in selection.rows if row.mean_score is not None]
    if len(rows) < 2:
        return None
    figure, axes = new_figure()
    styles = {
        "candidate": ("o", BLUE),
        "Pareto optimal": ("D", GREEN),
        "default setting": ("s", ORANGE),
        "untuned base": ("X", RED),
    }
    for label, (marker, colour) in styles.items():
        points = [_point(row) for row in rows if _kind(row) == label]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=7, label=label)
    for row in rows:
        if row.chosen:
            axes.plot(*_point(row), "o", markersize=14, fillstyle="none", color=INK, label="chosen")
    axes.set_xlabel(words(objective.metric))
    axes.set_ylabel("mean score (%)")
    axes.margins(0.08, 0.12)
    legend(figure, axes)
    return figure


def _point(row: Row) -> tuple[float, float]:
    return row.objective, 100 * (row.mean_score or 0.0)


def _kind(row: Row) -> str:
    if row.role == "base":
        return "untuned base"
    if row.role == "default":
        return "default setting"
    return "Pareto optimal" if row.pareto else "candidate"
