"""`retune run`: a study from raw data to a promoted adapter."""

from __future__ import annotations

import click

from retune.cli import _options
from retune.cli._say import say_data


@click.command("run", cls=_options.StudyCommand)
@click.argument("study_file", metavar="STUDY")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON, and nothing else.")
def command(study_file: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Run a study: mix, search, benchmark, select, register, gate, promote, report.

    Run it again to resume after a stop, a kill or a crash; finished work is not repeated. Ctrl-C saves the
    running trials. Exit codes: 0 done, 2 bad input, 75 stopped, 1 failed.

    \b
    Examples:
      retune run study.yaml
      retune run study.yaml search.trials=20 search.parallel=2
      retune run study.yaml search.algorithm=tpe name=my-study-tpe
    """
    from retune import outages, study
    from retune.cli._show import Display, show_outcome
    from retune.launch import local
    from retune.processes import stop_signals
    from retune.steps import outcome
    from retune.steps.plan import checked

    # A drained node may have taken the storage server down with the pod that ran before this one
    if outages.in_pod():
        outages.wait_long()
    loaded = study.load(study_file, overrides)
    states = checked(loaded)
    with outages.long_waits():
        with Display(states, quiet=as_json) as display, stop_signals() as stops:
            if not all(states.values()):
                local.run(loaded, display.update, stops)
        result = outcome.read(loaded)
    if as_json:
        say_data(result.model_dump_json(indent=2))
    else:
        show_outcome(result, study_file, overrides)
