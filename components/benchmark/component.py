"""Component `benchmark`: score the best adapters beside base and default."""

from kfp import dsl

from retune.images import EVAL_IMAGE


@dsl.component(base_image=EVAL_IMAGE, install_kfp_package=False)
def benchmark(study: str, search_uri: str, search_digest: str, metrics: dsl.Output[dsl.Metrics]) -> str:
    """Run the study's benchmark tasks on the candidates and return the digest of all scores.

    Args:
        study: the study as JSON. search_uri, search_digest: the finished search. metrics: every score.

    """
    from retune.records import digest
    from retune.steps.benchmark import benchmark as step
    from retune.steps.entry import entry
    from retune.workspace.search_folder import SearchFolder

    with entry(study) as resolved:
        records = step(resolved, SearchFolder(search_uri))
        for record in records:
            metrics.log_metric(f"{record.model}/{record.task}", record.score)
        return digest([(record.model, record.task, record.score) for record in records])
