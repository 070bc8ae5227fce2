"""`retune promote`: show, move and roll back the champion of a registered model."""

from __future__ import annotations

import click

from retune.cli import _options
from retune.cli._say import say, say_data


@click.command("promote")
@click.argument("model")
@_options.tracking()
@click.option("--to", "version", metavar="VERSION", help="Promote this version, whatever the gate decided.")
@click.option("--rollback", is_flag=True, help="Restore the previous champion.")
@click.option("--show", is_flag=True, help="Only show the versions behind the aliases.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str, uri: str, version: str | None, rollback: bool, show: bool, as_json: bool) -> None:
    """Make the challenger of MODEL its champion, if it passed its gate.

    The old champion becomes `previous`, and --rollback restores it. Of two simultaneous promotions one succeeds;
    the other changes nothing and exits with 1. Exit codes: 0 done, 1 refused by the gate or another promotion, 2
    bad input.

    \b
    Examples:
      retune promote alpaca-dolly --show
      retune promote alpaca-dolly
      retune promote alpaca-dolly --tracking https://mlflow.example --to 7
      retune promote alpaca-dolly --rollback
    """
    from retune import api
    from retune.registry.versions import describe

    if sum([version is not None, rollback, show]) > 1:
        raise click.UsageError("give one of --to, --rollback and --show")
    shown = describe(uri, model) if show else api.promote(model, uri, version, rollback)
    if as_json:
        import json

        say_data(json.dumps(shown, indent=2))
        return
    for alias in ("champion", "previous", "challenger"):
        say(f"{alias:<11}{_line(shown[alias])}")


def _line(facts: dict[str, str] | None) -> str:
    if facts is None:
        return "none"
    words = [f"version {facts['version']}"]
    words += [f"{name} {facts[key]}" for key, name in (("trial", "trial"), ("study", "of")) if facts.get(key)]
    if facts.get("objective_value"):
        words.append(f"{facts.get('objective')} {facts['objective_value']}")
    if facts.get("gate"):
        words.append(f"gate: {facts['gate']}")
    return ", ".join(words)
