"""The page and the figure of the search comparison.

python benchmarks/search_page.py    writes docs/results/search.md and search-half.md from the JSON in results/ again
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import search_goals
from retune.report.style import to_svg

HERE = Path(__file__).parent
SHOWN = ("25", "30", "50", "100")
DRAWN = ("alpaca-dolly", "davouse-64", "valley", "two_basins")
LINES = {
    "mads-global": ("#d55e3a", "-"),
    "nomad": ("#3b8fd1", "-"),
    "optuna-multivariate": ("#1a9e77", "--"),
    "hyperopt": ("#e08a00", "--"),
    "nomad-optimize": ("#3b8fd1", ":"),
    "random": ("#888888", ":"),
}


def compact(content: Mapping[str, Any]) -> str:
    """Return the JSON with one line a row."""
    head = json.dumps({k: v for k, v in content.items() if k != "rows"}, indent=1)[:-2]
    body = ",\n".join("  " + json.dumps(row) for row in content["rows"])
    return f'{head},\n "rows": [\n{body}\n ]\n}}\n'


def write(content: Mapping[str, Any], path: Path) -> None:
    """Write the page, and the figure beside it."""
    path.with_suffix(".svg").write_text(figure(content["rows"], path.stem))
    path.write_text(page(content, path.stem))


def page(content: Mapping[str, Any], stem: str) -> str:
    """Return the page."""
    packages = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    first, last = content["seeds"]
    parts = [
        "# Search: retune's algorithms beside Optuna, hyperopt and NOMAD"
        if stem == "search"
        else "# Search: 25 trials of the default against 50 of others",
        f"Written by `python benchmarks/bench_search.py{'' if stem == 'search' else ' --half'}` from "
        f"[{stem}.json](../../benchmarks/results/{stem}.json), measured "
        f"{content['measured'][:10]}: {content['trials']} trials, seeds {first} to {last}. "
        f"Machine: {content['machine']}. {packages}.",
        *([content["note"]] if "note" in content else []),
        "Regret: the true value of the trial that measured best so far, less the surface's lowest value. Runs begin with the "
        "default setting (`random`: by chance); measurements are noisy; failed trials count as trials. The surfaces are in "
        "`benchmarks/functions.py` and `benchmarks/fitted.py`; how goals are judged is in `benchmarks/search_goals.py`.",
        "## The goals",
        *(
            [
                f"The rule of judgement was chosen on {search_goals.CHOSEN} with runs of these seeds in view: "
                "its verdicts are exploratory."
            ]
            if content["seeds"] == search_goals.CHOSEN_ON
            else []
        ),
        *_goals(search_goals.judge(content["rows"])),
        *_by_medians(content["rows"]),
        f"![median regret by trials]({stem}.svg)",
        "## Every comparison",
        _comparisons(search_goals.judge(content["rows"])),
        "## Every result",
        "Regret: median (quartiles) over the seeds, in thousandths. Best so far: the median, in the surface's own unit.",
    ]
    for name, lowest in content["lowest"].items():
        parts += [f"### {name}", f"Lowest value {lowest:g}.", _table(content["rows"], name)]
        if name in content["fits"]:
            parts[-2] += f" The fit, cross-validated by settings: {content['fits'][name]}."
    return "\n\n".join(parts) + "\n"


def _goals(goals: Sequence[search_goals.Goal]) -> list[str]:
    lines = [
        f"| {goal.name} | {'holds' if goal.holds else '**does not hold**'} | {goal.summary} |"
        for goal in goals
    ]
    return ["\n".join(["| goal | | |", "|---|---|---|", *lines])]


def _by_medians(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"| `{rival}` | {batch} | {len(reached)} of {len(reached) + len(short)} | {', '.join(short)} |"
        for rival, batch, reached, short in search_goals.by_medians(rows)
    ]
    if not lines:
        return []
    told = (
        "The same by medians alone, without a test: on how many surfaces the median regret of `mads-global` after 25 trials is "
        "no higher than the rival's after 50."
    )
    return [told, "\n".join(["| rival | batch | reached | not on |", "|---|---|---|---|", *lines])]


def _comparisons(goals: Sequence[search_goals.Goal]) -> str:
    lines = [
        "Medians in thousandths; the interval is the bootstrap's for the difference of the medians (95 %); p is one-sided for "
        "being behind, as it is and corrected by Holm for the goal's comparisons. Only what is not level:",
        "",
        "| goal | surface | batch | trials | median | rival's | difference | p | corrected | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for number, goal in enumerate(goals, 1):
        for c in goal.comparisons:
            if c.verdict == "level" and c.chance >= search_goals.LEVEL:
                continue
            medians = [
                "" if value != value else f"{1000 * value:.1f}"
                for value in (c.median, c.other, c.low, c.high)
            ]
            difference = f"{medians[2]} … {medians[3]}" if medians[2] else ""
            lines.append(
                f"| {number} | {c.where} | {c.batch} | {c.trials} | {medians[0]} | {medians[1]} | {difference} | "
                f"{c.chance:.3f} | {c.behind:.3f} | {c.verdict} |"
            )
    return "\n".join(lines)


def _table(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    mine = [row for row in rows if row["surface"] == name]
    marks = [mark for mark in SHOWN if any(mark in row["regret"] for row in mine)]
    heads = [*(f"regret after {mark}" for mark in marks), f"best so far after {', '.join(marks)}", "failed"]
    lines = [
        f"| algorithm | batch | {' | '.join(heads)} |",
        f"|---|---|{'---|' * len(heads)}",
    ]
    for row in sorted(mine, key=lambda row: (row["batch"], list(row["regret_quartiles"].values())[-1][1])):
        cells = []
        for mark in marks:
            if mark not in row["regret"]:
                cells.append("")
                continue
            low, middle, high = (1000 * value for value in row["regret_quartiles"][mark])
            cells.append(f"{middle:.1f} ({low:.1f}–{high:.1f})")
        best = ", ".join(
            f"{row['best_so_far_quartiles'][mark][1]:.4f}" for mark in marks if mark in row["regret"]
        )
        failed = sum(row["failed"]) / len(row["failed"])
        lines.append(f"| {row['algorithm']} | {row['batch']} | {' | '.join(cells)} | {best} | {failed:.1f} |")
    return "\n".join(lines)


def figure(rows: Sequence[Mapping[str, Any]], stem: str) -> str:
    """Return the medians by trials in batches of 8 (NOMAD's own run: one by one) as SVG, a panel a surface."""
    import matplotlib
    from matplotlib.figure import Figure

    names = [name for name in DRAWN if any(row["surface"] == name for row in rows)] or [rows[0]["surface"]]
    with matplotlib.rc_context(
        {"font.size": 9, "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}
    ):
        drawn = Figure(figsize=(9, 3.2 * ((len(names) + 1) // 2)), layout="constrained")
        grid = drawn.subplots((len(names) + 1) // 2, min(len(names), 2), squeeze=False)
        for axes, name in zip(grid.flat, names, strict=False):
            for algorithm, (colour, dash) in LINES.items():
                batch = 1 if algorithm == "nomad-optimize" else 8
                for row in rows:
                    if (row["surface"], row["algorithm"], row["batch"]) != (name, algorithm, batch):
                        continue
                    marks = [int(mark) for mark in row["regret_quartiles"]]
                    low, middle, high = zip(*row["regret_quartiles"].values(), strict=True)
                    axes.plot(
                        marks, middle, color=colour, linestyle=dash, label=f"{algorithm}, batch {batch}"
                    )
                    if algorithm in ("mads-global", "optuna-multivariate"):
                        axes.fill_between(marks, low, high, color=colour, alpha=0.12, linewidth=0)
            axes.set(title=name, xlabel="trials", ylabel="regret", ylim=(0, None))
        handles, labels = grid.flat[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    drawn.patch.set_alpha(0)
    return to_svg(drawn, stem, "Median regret by trials")


if __name__ == "__main__":
    for known in ("search", "search-half"):
        write(
            json.loads((HERE / "results" / f"{known}.json").read_text()),
            HERE.parent / "docs" / "results" / f"{known}.md",
        )
