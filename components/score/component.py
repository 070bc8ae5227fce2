"""Component `score`: benchmark one adapter beside its base."""

from kfp import dsl

from retune.images import EVAL_IMAGE


@dsl.component(base_image=EVAL_IMAGE, install_kfp_package=False)
def score(study: str, adapter_uri: str, validation_loss: float, metrics: dsl.Output[dsl.Metrics]) -> None:
    """Run the study's benchmark tasks on the base and on the adapter.

    Args:
        study: the study as JSON. adapter_uri: from `train`. validation_loss: from `validate_adapter`, so that a broken
            adapter is not benchmarked. metrics: every score.

    """
    from retune.steps.entry import entry
    from retune.steps.tune import benchmark as step

    with entry(study) as resolved:
        for record in step(resolved, adapter_uri):
            metrics.log_metric(f"{record.model}/{record.task}", record.score)
