"""Write a page of results from finished searches: python studies/results.py docs/results/NAME.md SEARCH_FOLDER...

A search folder is artifacts/<study>/search-<digest>. Everything on the page comes from the records in it; the figure
of best-so-far losses is written next to the page.
"""

from __future__ import annotations

import platform
import statistics
import sys
from pathlib import Path

from retune import store
from retune.records import TrialRecord
from retune.report.style import new_figure, to_svg
from retune.study import Study
from retune.workspace.ledger import BASE, DEFAULT, Ledger
from retune.workspace.search_folder import SearchRecord


class Found:
    """One finished search."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.study = Study.model_validate_json(store.read(store.join(folder, "study.json")))
        self.search = SearchRecord.model_validate_json(store.read(store.join(folder, "search.json")))
        self.ledger = Ledger(folder)
        self.ranking = self.ledger.ranking(self.study.search)
        self.trials = sorted(
            (r for r in self.ledger.records.values() if r.role in ("default", "search")),
            key=lambda r: r.number,
        )

    @property
    def metric(self) -> str:
        """Return the name of the objective."""
        return self.study.search.objective.metric

    def best_so_far(self) -> list[float | None]:
        """Return the best objective after each trial."""
        best: float | None = None
        found = []
        for record in self.trials:
            value = record.objective(self.metric)
            best = value if best is None or (value is not None and value < best) else best
            found.append(best)
        return found

    def seeds(self, trial: str) -> list[float]:
        """Return the objective of a setting over its seeds."""
        assignment = self.ledger.records[trial].assignment
        same = [r for r in self.ledger.records.values() if r.assignment == assignment and r.role != "base"]
        return [value for r in same if (value := r.objective(self.metric)) is not None]


def table(found: list[Found]) -> str:
    """Return the table of base, default and best of each search."""
    names = found[0].study.search.space.names
    lines = [f"| | {' | '.join(names)} | {found[0].metric} | over seeds: mean ± sd (n) | gain over base |",
             f"|---|{'---|' * len(names)}---|---|---|"]  # fmt: skip
    base = found[0].ledger.records[BASE].objective(found[0].metric) or 0.0

    def row(label: str, one: Found, record: TrialRecord) -> str:
        value = record.objective(one.metric) or 0.0
        seeds = one.seeds(record.trial) if record.role != "base" else []
        spread = (
            f"{statistics.mean(seeds):.4f} ± {statistics.stdev(seeds):.4f} ({len(seeds)})"
            if len(seeds) > 1
            else ""
        )
        values = [f"{record.assignment[n]:g}" if n in record.assignment else "" for n in names]
        gain = "" if record.role == "base" else f"{base - value:+.4f}"
        return f"| {label} | {' | '.join(values)} | {value:.4f} | {spread} | {gain} |"

    lines.append(row("untuned base", found[0], found[0].ledger.records[BASE]))
    lines.append(row("default setting", found[0], found[0].ledger.records[DEFAULT]))
    for one in found:
        best = one.ranking[0]
        lines.append(row(f"best of {one.study.search.algorithm} ({best.trial})", one, best))
    return "\n".join(lines)


def searches(found: list[Found]) -> str:
    """Return the table of what each search took and where it stood on the way."""
    marks = [k for k in (10, 20, 30, 40, 50, 100) if k <= max(len(one.trials) for one in found)]
    lines = [f"| search | trials | failed | {' | '.join(f'best after {k}' for k in marks)} | seconds a trial (median, max) | hours |",
             f"|---|---|---|{'---|' * len(marks)}---|---|"]  # fmt: skip
    for one in found:
        curve = one.best_so_far()
        values = [
            f"{curve[k - 1]:.4f}" if k <= len(curve) and curve[k - 1] is not None else "" for k in marks
        ]
        seconds = [record.seconds for record in one.trials]
        times = f"{statistics.median(seconds):.1f}, {max(seconds):.1f}"
        lines.append(
            f"| {one.study.search.algorithm} | {one.search.trials} | {one.search.failed} | {' | '.join(values)} | {times} | {one.search.hours:.2f} |"
        )
    return "\n".join(lines)


def all_trials(one: Found) -> str:
    """Return every trial of a search in order."""
    names = one.study.search.space.names
    lines = [
        f"| trial | {' | '.join(names)} | {one.metric} | seconds |",
        f"|---|{'---|' * len(names)}---|---|",
    ]
    for record in one.trials:
        value = record.objective(one.metric)
        shown = f"{value:.4f}" if value is not None else f"failed: {record.failure}"
        values = " | ".join(f"{record.assignment[n]:g}" for n in names)
        lines.append(f"| {record.number} | {values} | {shown} | {record.seconds:.1f} |")
    return "\n".join(lines)


def figure(found: list[Found], path: Path) -> None:
    """Draw the best loss so far of every search, with base and default as lines."""
    drawn, axes = new_figure()
    for one, colour in zip(found, ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=False):
        numbers = [record.number for record in one.trials]
        axes.plot(
            numbers,
            one.best_so_far(),
            color=colour,
            label=f"best so far, {one.study.search.algorithm}",
            drawstyle="steps-post",
        )
        losses = [record.objective(one.metric) for record in one.trials]
        axes.plot(numbers, losses, ".", color=colour, alpha=0.4)
    axes.axhline(
        found[0].ledger.records[BASE].objective(found[0].metric),
        color="#555",
        linestyle=":",
        label="untuned base",
    )
    axes.axhline(
        found[0].ledger.records[DEFAULT].objective(found[0].metric),
        color="#555",
        linestyle="--",
        label="default setting",
    )
    axes.set_xlabel("trial")
    axes.set_ylabel(found[0].metric.replace("_", " "))
    axes.legend(frameon=False, fontsize=8)
    path.write_text(to_svg(drawn, path.stem, "Best loss so far"))


def page(out: Path, found: list[Found]) -> str:
    """Return the page."""
    first = found[0].study
    record = next(iter(found[0].ledger.records.values()))
    packages = ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()))
    parts = [
        f"# Results: {first.name}",
        f"Written by `python studies/results.py`. Base {Path(first.model.base).name}, {first.data.train:,} + {first.data.validation:,} "
        f"records ({', '.join(f'{s.share:.0%} {s.format}' for s in first.data.sources)}), data digest {found[0].search.data_digest}; "
        f"{first.training.epochs} epochs, batch {first.training.batch_size}, at most {first.data.max_length} tokens; seed {first.seed}, "
        f"{first.search.parallel} trials at a time. Machine: {platform.processor() or platform.machine()}, {record.device}. {packages}. "
        "Losses are in nats per counted token of the whole validation set.",
        "## Base, default, best",
        table(found),
        "## The searches",
        searches(found),
        f"![best loss so far]({out.stem}.svg)",
    ]
    for one in found:
        parts += [f"## Every trial of {one.study.search.algorithm}", all_trials(one)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    results = [Found(folder) for folder in sys.argv[2:]]
    target.write_text(page(target, results))
    figure(results, target.with_suffix(".svg"))
