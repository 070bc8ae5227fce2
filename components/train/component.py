"""Component `train`: put one setting through training."""

from kfp import dsl

from retune.images import TRAIN_IMAGE


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
    from retune.steps.entry import entry
    from retune.steps.tune import train as step

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
