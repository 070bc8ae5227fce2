"""Component `report`: the page a person reads; runs whether or not the steps before succeeded."""

from kfp import dsl

from retune.images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def report(study: str, page: dsl.Output[dsl.HTML]) -> None:
    """Write the report from whatever records there are.

    Args:
        study: the study as JSON. page: the HTML page.

    """
    import shutil

    from retune import store
    from retune.steps.entry import entry
    from retune.steps.report import report as step

    with entry(study) as resolved:
        written = step(resolved)
        if written:
            shutil.copyfile(store.download(written), page.path)
