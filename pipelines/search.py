"""Pipeline `search`: a whole study, from raw data to a promoted adapter and a report."""

from kfp import dsl

from components.benchmark.component import benchmark
from components.mix.component import mix
from components.promote.component import promote
from components.register.component import register
from components.report.component import report
from components.search.component import search
from components.select.component import select
from components.validate.component import validate


@dsl.pipeline(
    name="retune-search", description="Mix, search, benchmark, select, register, gate, promote, report"
)
def search_pipeline(study: str) -> None:
    """Run a study.

    Args:
        study: the resolved study as JSON (`retune validate STUDY --json`).

    """
    page = report(study=study).set_caching_options(False)
    with dsl.ExitHandler(page, name="study"):
        checked = validate(study=study).set_caching_options(False)
        mixed = mix(recipe=checked.outputs["recipe"])
        searched = search(
            study=checked.outputs["study"],
            data_uri=mixed.outputs["data_uri"],
            data_digest=mixed.outputs["data_digest"],
        ).set_caching_options(False)
        folder = searched.outputs["search_uri"]
        scored = benchmark(
            study=checked.outputs["study"], search_uri=folder, search_digest=searched.outputs["search_digest"]
        )
        chosen = select(
            study=checked.outputs["study"], search_uri=folder, bench_digest=scored.outputs["Output"]
        )
        chosen.set_caching_options(False)
        version = register(study=checked.outputs["study"], search_uri=folder, chosen=chosen.output)
        version.set_caching_options(False)
        promote(
            study=checked.outputs["study"],
            search_uri=folder,
            version=version.outputs["Output"],
            data_uri=mixed.outputs["data_uri"],
        ).set_caching_options(False)
