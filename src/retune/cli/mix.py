"""`retune mix`: mix the data sets of a study into train and validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from retune.cli import _options
from retune.cli._say import say_data

if TYPE_CHECKING:
    from rich.table import Table

    from retune.data.mix_record import MixRecord


@click.command("mix", cls=_options.StudyCommand)
@click.argument("study_file", metavar="STUDY")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--out", metavar="URI", help="The folder to write to.  [default: <artifacts>/<study>/data-<digest>]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the record (mix.json) and the folder as JSON.")
def command(study_file: str, overrides: tuple[str, ...], out: str | None, as_json: bool) -> None:
    """Mix the data sets of a study into train and validation.

    Writes train.jsonl, validation.jsonl and, last, mix.json. The counts are exact, every source has its share
    in both splits, and no prompt is in both. Does nothing if the folder already contains the same mix.

    \b
    Examples:
      retune mix study.yaml
      retune mix study.yaml data.train=1000 data.validation=200 --out ./mixed
      retune mix study.yaml --json | jq .digest
    """
    import json

    from rich.text import Text

    from retune import models, store, study
    from retune.cli._console import Console
    from retune.data import mixing
    from retune.workspace import folders

    loaded = study.load(study_file, overrides)
    if out:
        store.require_writable(out, "--out")
    uri = out or folders.data_folder(loaded)
    with Console(stderr=True).status("reading") as status:
        record = mixing.mix(
            loaded.data, loaded.seed, models.locate(loaded.model), uri, lambda text: status.update(Text(text))
        )
    if as_json:
        say_data(json.dumps({"uri": uri, **record.model_dump(mode="json")}))
        return
    console = Console()
    console.print(_table(record))
    console.print(f"digest {record.digest}\nfolder {uri}", soft_wrap=True)


def _table(record: MixRecord) -> Table:
    """Return the counts of each source's records, by what the filters did to them, and the lengths of those drawn."""
    from rich.table import Table

    table = Table("", *(source.name for source in record.sources), "together")
    for column in table.columns[1:]:
        column.justify, column.overflow = "right", "fold"
    parts = {
        split: [*(s.splits[split] for s in record.sources), whole] for split, whole in record.splits.items()
    }
    table.add_row("read as", *(source.taken or source.format for source in record.sources), "")
    table.add_row("share", *(f"{source.share:.1%}" for source in record.sources), "")
    for name in ("read", "empty", "duplicate", "shared", "held_out", "too_long"):
        numbers = [getattr(source, name) for source in record.sources]
        if name == "held_out" and not any(numbers):
            continue
        table.add_row(name.replace("_", " "), *_counts([*numbers, sum(numbers)]))
    table.add_section()
    for split, counts in parts.items():
        table.add_row(f"{split} records", *_counts([part.records for part in counts]), style="bold")
    for split, counts in parts.items() if record.tokenizer else ():
        table.add_section()
        table.add_row(f"{split} tokens", *_counts([part.tokens or 0 for part in counts]))
        table.add_row("records cut", *_counts([part.truncated or 0 for part in counts]))
        for name in ("prompt", "completion"):
            lengths = [part.lengths.get(name) for part in counts]
            shown = [f"{length.mean:.1f}, {length.p95}" if length else "" for length in lengths]
            table.add_row(f"{name}: mean, p95", *shown)
    return table


def _counts(numbers: list[int]) -> list[str]:
    return [f"{number:,}" for number in numbers]
