"""`retune render`: what a study would create on a cluster, as YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from retune.cli import _options
from retune.cli._mistakes import Group
from retune.cli._say import say, say_data

if TYPE_CHECKING:
    from retune.engines.katib.manifest import Place
    from retune.study import Study


@click.group("render", cls=Group)
def command() -> None:
    """Print what a study would create on a Kubernetes cluster, as YAML.

    \b
    Examples:
      retune render experiment study.yaml | kubectl create -f -
      retune render runtime study.yaml | kubectl apply -f -
    """


@command.command(cls=_options.StudyCommand)
@click.argument("study_file", metavar="STUDY")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--data", metavar="URI", help="Folder of the mixed data.  [default: where `retune mix` puts it]"
)
@click.option("--folder", metavar="URI", help="The search's folder.  [default: as `retune run` names it]")
def experiment(study_file: str, overrides: tuple[str, ...], data: str | None, folder: str | None) -> None:
    """Print the Katib Experiment of a study's search.

    The trials' pods read the study from the search's folder, so this command writes it there; with `--folder` it must
    already be there. `retune run` with `engine.kind: katib` creates the same Experiment and collects the results.

    \b
    Examples:
      retune render experiment study.yaml search.trials=20 | kubectl create -f -
      retune render experiment study.yaml --data s3://b/mixed --folder s3://b/search-1
    """
    from retune.engines.katib import manifest
    from retune.workspace.ledger import warm_start

    loaded = _load(study_file, overrides)
    place, trials = _place(loaded, data, folder), loaded.search.trials
    _print(manifest.experiment(loaded, place, trials, manifest.failures(loaded), warm_start(loaded)))
    if folder is None:
        from retune import store

        store.write(place.study, (loaded.model_dump_json(indent=2) + "\n").encode())
        say(f"the study is in {place.study}", err=True)


@command.command(cls=_options.StudyCommand)
@click.argument("study_file", metavar="STUDY")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def runtime(study_file: str, overrides: tuple[str, ...]) -> None:
    """Print the TrainingRuntime of TrainJob trials, which has the study's volumes, secrets and node selectors.

    \b
    Example:
      retune render runtime study.yaml cluster.katib.trial=TrainJob | kubectl apply -f -
    """
    from retune.engines.katib import manifest

    _print(manifest.runtime(_load(study_file, overrides)))


def _load(study_file: str, overrides: tuple[str, ...]) -> Study:
    from retune import study

    return study.load(study_file, [*overrides, "engine.kind=katib"])


def _place(study: Study, data: str | None, folder: str | None) -> Place:
    from retune import store
    from retune.data import mixing
    from retune.engines.katib.manifest import Place, check
    from retune.errors import InputError
    from retune.workspace import folders

    if data and folder:
        return Place(folder, data)
    check(study)
    data = data or folders.data_folder(study)
    if not store.exists(store.join(data, "mix.json")):
        raise InputError(
            f"the data must be mixed before its trials can be named, but there is none in {data}: "
            "run `retune mix`, or give --data and --folder",
            study.name,
        )
    return Place(folder or folders.search_folder(study, mixing.read_mix_record(data).digest), data)


def _print(content: dict[str, Any]) -> None:
    from retune.engines.yaml_text import as_yaml

    say_data(as_yaml([content]), nl=False)
