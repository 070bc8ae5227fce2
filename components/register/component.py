"""Component `register`: put the chosen adapter into the MLflow model registry."""

from kfp import dsl

from retune.images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def register(study: str, search_uri: str, chosen: str, adapter: dsl.Output[dsl.Model]) -> str:
    """Register the chosen adapter as challenger and return its version.

    Args:
        study: the study as JSON. search_uri: the finished search. chosen: trial from `select`. adapter: PEFT's files.

    """
    from retune.steps.entry import entry
    from retune.steps.register import register as step
    from retune.workspace.search_folder import SearchFolder

    with entry(study) as resolved:
        folder = SearchFolder(search_uri)
        version = step(resolved, folder)
        adapter.uri = folder.trials[chosen].adapter_uri or ""
        adapter.metadata.update(
            {"model": resolved.promote.model, "version": version, "base": resolved.model.base}
        )
        return version
