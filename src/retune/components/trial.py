"""Components `train`, `validate_adapter` and `score`: one setting, without a search."""

from kfp import dsl

from retune.components import EVAL_IMAGE, TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def train(
    study: str,
    data_uri: str,
    data_digest: str,
    assignment: dict,
    adapter: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Train one setting and return the URI of its adapter.

    Args:
        study: the study as JSON. data_uri, data_digest: the mixed data. assignment: hyper-parameters by name;
            what is missing comes from the study's `training` section. adapter: PEFT's files. metrics: final values.

    """
    from retune.components.entry import entry
    from retune.steps.trial import train as step

    with entry(study) as resolved:
        # KFP hands whole numbers of a dict over as floats.
        whole = {
            k: int(v) if isinstance(v, float) and v.is_integer() and k == "rank" else v
            for k, v in assignment.items()
        }
        record = step(resolved, data_uri, whole)
        for name, value in record.values.items():
            metrics.log_metric(name, value)
        adapter.uri = record.adapter_uri or ""
        adapter.metadata.update({"digest": record.adapter_digest or "", "base": record.base})
        return record.adapter_uri or ""


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def validate_adapter(study: str, data_uri: str, adapter_uri: str, metrics: dsl.Output[dsl.Metrics]) -> float:
    """Load the saved adapter again and return its validation loss.

    Args:
        study: the study as JSON. data_uri: the mixed data. adapter_uri: from `train`. metrics: the loss.

    """
    from retune.components.entry import entry
    from retune.steps.trial import validate as step

    with entry(study) as resolved:
        loss = step(resolved, data_uri, adapter_uri)
        metrics.log_metric("validation_loss", loss)
        return loss


@dsl.component(base_image=EVAL_IMAGE, install_kfp_package=False)
def score(study: str, adapter_uri: str, validation_loss: float, metrics: dsl.Output[dsl.Metrics]) -> None:
    """Run the study's benchmark tasks on the base and on the adapter.

    Args:
        study: the study as JSON. adapter_uri: from `train`. validation_loss: from `validate_adapter`, so that a broken
            adapter is not benchmarked. metrics: every score.

    """
    from retune.components.entry import entry
    from retune.steps.trial import benchmark as step

    with entry(study) as resolved:
        for record in step(resolved, adapter_uri):
            metrics.log_metric(f"{record.model}/{record.task}", record.score)
