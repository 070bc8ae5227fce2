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
    from retune.steps.entry import entry
    from retune.steps.search import search as step
    from retune.workspace.ledger import BASE, DEFAULT, Ledger

    with entry(study) as resolved:
        folder, record = step(resolved, data_uri)
        metric = resolved.search.objective.metric
        ledger = Ledger(folder)
        for name, trial in (("base", BASE), ("default", DEFAULT), ("best", record.best)):
            value = ledger.records[trial].objective(metric) if trial in ledger.records else None
            if value is not None:
                metrics.log_metric(f"{name}_{metric}", value)
        metrics.log_metric("trials", record.trials)
        metrics.log_metric("failed", record.failed)
        return (folder, record.digest)  # type: ignore[return-value]
