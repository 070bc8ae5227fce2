"""Component `mix`: mix the data sets into train and validation."""

from typing import NamedTuple

from kfp import dsl

from retune.images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def mix(recipe: str, mixed: dsl.Output[dsl.Dataset]) -> NamedTuple(
    "Outputs", [("data_uri", str), ("data_digest", str)]
):  # type: ignore[valid-type]
    """Mix the data of a study; the same recipe gives the same files.

    Args:
        recipe: sources, shares, counts, seed and tokenizer as JSON, from `validate`.
        mixed: the folder with train.jsonl, validation.jsonl and mix.json.

    """
    from retune.processes import die_with_run
    from retune.steps.mix import Recipe
    from retune.steps.mix import mix as step

    die_with_run()
    parsed = Recipe.model_validate_json(recipe)
    record = step(parsed)
    mixed.uri = parsed.folder
    mixed.metadata["digest"] = record.digest
    return (parsed.folder, record.digest)  # type: ignore[return-value]
