"""`retune report`: write the report of a study again from its records."""

from __future__ import annotations

import click

from retune.cli._say import say, say_data


@click.command("report")
@click.argument("folder", metavar="STUDY_FOLDER")
@click.option("--out", metavar="FILE", help="Where to write the page; default: beside the records.")
@click.option("--open", "show", type=click.Choice(["yes", "no"]), default="no", show_default=True,
              help="Open the page in a browser.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the page's place as JSON.")
def command(folder: str, out: str | None, show: str, as_json: bool) -> None:
    """Write the report of a study again from the records in STUDY_FOLDER.

    STUDY_FOLDER is the folder of a study, or of one of its searches; with several searches, the newest is used.

    \b
    Examples:
      retune report artifacts/alpaca-dolly --open yes
      retune report s3://bucket/retune/alpaca-dolly/search-0123456789abcdef --out report.html
    """
    from retune.report import folder as records

    page = records.rewrite(folder, out)
    if show == "yes":
        click.launch(page)
    if as_json:
        import json

        say_data(json.dumps({"report": page}))
    else:
        say(page)
