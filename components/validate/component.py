"""Component `validate`: refuse a bad study before anything is spent."""

from typing import NamedTuple

from kfp import dsl

from retune.images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def validate(study: str) -> NamedTuple("Outputs", [("study", str), ("recipe", str)]):  # type: ignore[valid-type]
    """Check the study and all it points to; return it resolved, and the recipe of its data.

    Args:
        study: the study as JSON.

    """
    from retune.steps.check import check
    from retune.steps.entry import entry
    from retune.steps.mix import recipe

    with entry(study) as resolved:
        check(resolved)
        return (resolved.model_dump_json(), recipe(resolved).model_dump_json())  # type: ignore[return-value]
