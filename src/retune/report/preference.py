"""The outcome of a preference study as a figure and as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from retune import store
from retune.evaluation.judge.score import Count, Preference
from retune.markdown import plain, row
from retune.report.style import BLUE, INK, ORANGE, legend, new_figure, write_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GREY = "#b4bcc4"
_BARS = 40  # more questions than this are not drawn one by one
_LABEL = 28  # characters of a name in the legend


def write(preference: Preference, folder: Path) -> list[Path]:
    """Write `preference.json`, `preference.md` and the figure as PNG and SVG; return the files."""
    files = write_files({"preference": figure(preference)}, folder)
    for name, data in (
        ("preference.md", markdown(preference).encode()),
        ("preference.json", preference.to_json()),
    ):
        store.write(folder / name, data)
        files.append(folder / name)
    return files


def figure(preference: Preference) -> Figure:
    """Draw wins, ties and losses as stacked bars, overall and per question (Tribes et al. 2024, Figure 3).

    Questions are sorted by their score. Each bar is the share of that question's judgements.
    """
    rows: list[tuple[str, Count]] = [("all", preference.overall)]
    each = sorted((q for q in preference.questions if q.n), key=lambda q: (-(q.score() or 0.0), -q.win))
    if len(each) <= _BARS:
        rows += [(_short(q.id, 12), q) for q in each]
    drawn, axes = new_figure(1.9 + 0.16 * len(rows))
    places = [0.0, *(2.2 + k for k in range(len(rows) - 1))]
    heights = [1.9, *(0.78 for _ in rows[1:])]
    kinds = (
        (f"{_short(preference.a)} better", BLUE, [row.win for _, row in rows]),
        ("about the same", _GREY, [row.tie for _, row in rows]),
        (f"{_short(preference.b)} better", ORANGE, [row.lose for _, row in rows]),
    )
    left = [0.0] * len(rows)
    for label, colour, counts in kinds:
        shares = [100 * count / row.n for count, (_, row) in zip(counts, rows, strict=True)]
        axes.barh(places, shares, heights, left, color=colour, label=label, edgecolor="white", linewidth=0.6)
        if shares[0] >= 7:
            _inside(axes, left[0] + shares[0] / 2, f"{shares[0]:.0f} %")
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.set_yticks(places, [name for name, _ in rows])
    axes.tick_params(axis="y", length=0, labelsize=7.5)
    axes.get_yticklabels()[0].set_fontsize(10)
    axes.set_ylim(places[-1] + 1.1, -1.2)
    axes.set_xlim(0, 100)
    axes.set_xlabel("judgements (%)")
    axes.set_title(_headline(preference), fontsize=9.5, color=INK, loc="left")
    axes.spines["left"].set_visible(False)
    legend(drawn, axes)
    return drawn


def markdown(preference: Preference) -> str:
    """Return the outcome as a page of Markdown."""
    lines = [*_overall(preference), *_people(preference), *_questions(preference)]
    if preference.left_out:
        lines += ["", "Left out:", ""]
        lines += [
            f"- {plain(Path(out.file).name)} ({out.kind}): {plain(out.reason)}" for out in preference.left_out
        ]
    return "\n".join([*lines, ""])


def _overall(p: Preference) -> list[str]:
    asked = sum(not q.equal for q in p.questions)
    shares = (_part(count, p.overall) for count in (p.overall.win, p.overall.tie, p.overall.lose))
    lines = [
        f"# {plain(p.a)} against {plain(p.b)}",
        "",
        f"**{_headline(p)}**: {_verdict(p)}",
        "",
        f"The score is the share of judgements for {plain(p.a)} minus the share for {plain(p.b)}; the interval "
        f"({p.level:.0%}) is a bootstrap over questions and people, {p.resamples:,} draws, seed {p.seed}.",
        "",
        f"| | {plain(p.a)} better | about the same | {plain(p.b)} better | judgements |",
        "|---|---:|---:|---:|---:|",
        _row("all", *shares, p.overall.n),
        "",
        f"- {len(p.annotators)} {'person' if len(p.annotators) == 1 else 'people'}, "
        f"{asked} {'question' if asked == 1 else 'questions'} in the form.",
        f"- Agreement between people: Krippendorff's alpha {_alpha(p.alpha_nominal)} (nominal), {_alpha(p.alpha_ordinal)} "
        "(ordinal: worse < same < better). 1 is full agreement, 0 that of chance.",
    ]
    if len(p.annotators) == 1:
        lines.append("- With one person the interval tells nothing of how others would judge.")
    equal = len(p.questions) - asked
    if equal:
        lines.append(
            f"- {equal} of {len(p.questions)} drawn questions got equal answers from both models: not shown, counted as a "
            "tie of each person."
        )
    if p.first is not None:
        lines.append(f"- Of the answers called better, {p.first:.0%} stood first (left, or above).")
    return lines


def _people(p: Preference) -> list[str]:
    lines = [
        "",
        f"Better and worse below are told from {plain(p.a)}'s side.",
        "",
        "| person | better | same | worse | open | first | file |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for one in p.annotators:
        first = "" if one.first is None else f"{one.first:.0%}"
        lines.append(_row(one.annotator, one.win, one.tie, one.lose, one.missing, first, Path(one.file).name))
    return lines


def _questions(p: Preference) -> list[str]:
    lines = ["", "| question | | better | same | worse | score |", "|---|---|---:|---:|---:|---:|"]
    for q in p.questions:
        value = q.score()
        difference = "equal answers" if q.equal else "" if value is None else f"{100 * value:+.0f}"
        lines.append(_row(q.id, _short(q.question, 60), q.win, q.tie, q.lose, difference))
    return lines


def _headline(p: Preference) -> str:
    low, high = p.interval
    return f"preference score {100 * p.score:+.1f} %, interval {100 * low:+.1f} to {100 * high:+.1f}"


def _verdict(p: Preference) -> str:
    low, high = p.interval
    if low > 0:
        return f"{plain(p.a)} is preferred."
    if high < 0:
        return f"{plain(p.b)} is preferred."
    return "the interval holds 0, so these judgements do not tell the two apart."


def _row(*cells: object) -> str:
    return row(cells)


def _part(count: int, of: Count) -> str:
    return f"{count} ({100 * count / of.n:.1f} %)"


def _alpha(value: float | None) -> str:
    return "not defined" if value is None else f"{round(value, 3) + 0.0:.3f}"  # never -0.000


def _short(text: str, length: int = _LABEL) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _inside(axes: Axes, x: float, text: str) -> None:
    axes.text(x, 0.0, text, ha="center", va="center", fontsize=10, color="#1f2328")
