"""Component `select`: choose one adapter by the study's rule."""

from kfp import dsl

from retune.images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def select(study: str, search_uri: str, bench_digest: str) -> str:
    """Choose among the Pareto-optimal candidates and return the name of the chosen trial.

    Args:
        study: the study as JSON. search_uri: the finished search. bench_digest: from `benchmark`, so that it comes first.

    """
    from retune.steps.entry import entry
    from retune.steps.select import select as step
    from retune.workspace.search_folder import SearchFolder

    with entry(study) as resolved:
        return str(step(resolved, SearchFolder(search_uri)).chosen)
