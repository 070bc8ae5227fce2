"""Component `promote`: the gate, and the alias `champion` if it opens."""

from kfp import dsl

from retune.images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def promote(study: str, search_uri: str, version: str, data_uri: str) -> str:
    """Compare the challenger with the champion, move the alias if the gate says so, and return the decision.

    Args:
        study: the study as JSON. search_uri: the finished search. version: the challenger's. data_uri: the mixed data.

    """
    from retune.steps.entry import entry
    from retune.steps.promote import promote as step
    from retune.workspace.search_folder import SearchFolder

    with entry(study) as resolved:
        return str(step(resolved, SearchFolder(search_uri), data_uri).decision)
