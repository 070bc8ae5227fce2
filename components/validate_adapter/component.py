"""Component `validate_adapter`: load a saved adapter again and validate it."""

from kfp import dsl

from retune.images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def validate_adapter(study: str, data_uri: str, adapter_uri: str, metrics: dsl.Output[dsl.Metrics]) -> float:
    """Load the saved adapter again and return its validation loss.

    Args:
        study: the study as JSON. data_uri: the mixed data. adapter_uri: from `train`. metrics: the loss.

    """
    from retune.steps.entry import entry
    from retune.steps.tune import validate as step

    with entry(study) as resolved:
        loss = step(resolved, data_uri, adapter_uri)
        metrics.log_metric("validation_loss", loss)
        return loss
