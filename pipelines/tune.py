"""Pipeline `tune`: one setting, from raw data to benchmark scores."""

from kfp import dsl

from components.mix.component import mix
from components.score.component import score
from components.train.component import train
from components.validate.component import validate
from components.validate_adapter.component import validate_adapter


@dsl.pipeline(name="retune-tune", description="Mix, train, validate and benchmark one setting")
def tune_pipeline(study: str, assignment: dict = {}) -> float:  # noqa: B006 - KFP only reads the default
    """Train and score one setting; return its validation loss.

    Args:
        study: the resolved study as JSON (`retune validate STUDY --json`).
        assignment: hyper-parameters by name, e.g. ``{"rank": 16, "learning_rate": 3e-4}``.

    """
    checked = validate(study=study).set_caching_options(False)
    mixed = mix(recipe=checked.outputs["recipe"])
    trained = train(
        study=checked.outputs["study"],
        data_uri=mixed.outputs["data_uri"],
        data_digest=mixed.outputs["data_digest"],
        assignment=assignment,
    )
    adapter = trained.outputs["Output"]
    validated = validate_adapter(
        study=checked.outputs["study"], data_uri=mixed.outputs["data_uri"], adapter_uri=adapter
    )
    score(study=checked.outputs["study"], adapter_uri=adapter, validation_loss=validated.outputs["Output"])
    return validated.outputs["Output"]
