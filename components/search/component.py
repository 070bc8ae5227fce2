"""Component `search`: run the trials of a study."""

from typing import NamedTuple

from kfp import dsl

from retune.images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def search(study: str, data_uri: str, data_digest: str, metrics: dsl.Output[dsl.Metrics]) -> NamedTuple(
    "Outputs", [("search_uri", str), ("search_digest", str)]
):  # type: ignore[valid-type]
    """Run the untuned base, the default setting and the search trials, or what is missing of them.

    Args:
        study: the study as JSON. data_uri, data_digest: the mixed data. metrics: the best, default and base objective.

    """
    from retune.processes import stop_signals
    from retune.steps.entry import entry
    from retune.steps.search import search as step
    from retune.workspace.ledger import BASE, DEFAULT

    with entry(study) as resolved, stop_signals() as signals:
        folder = step(resolved, data_uri, lambda: signals() > 0)
        record = folder.search
        metric = resolved.search.objective.metric
        for name, trial in (("base", BASE), ("default", DEFAULT), ("best", record.best)):
            value = folder.trials[trial].objective(metric) if trial in folder.trials else None
            if value is not None:
                metrics.log_metric(f"{name}_{metric}", value)
        metrics.log_metric("trials", record.trials)
        metrics.log_metric("failed", record.failed)
        return (folder.uri, record.digest)  # type: ignore[return-value]
