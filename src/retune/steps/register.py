"""Step `register`: register the chosen adapter in the model registry, as challenger."""

from __future__ import annotations

from typing import Any

from retune import adapter
from retune.errors import RetuneError
from retune.registry import versions
from retune.registry.client import wait_for_server
from retune.steps.search import open_tracker
from retune.study import Study
from retune.workspace.search_folder import SearchFolder

FLUSH_SECONDS = 60.0


def inputs(study: Study, folder: SearchFolder) -> dict[str, Any]:
    """Return what determines the result of this step; the step is repeated when it changes."""
    chosen = folder.trials[_chosen(folder)]
    return {"adapter": chosen.adapter_digest, "model": study.promote.model, "tracking": study.tracking.uri}


def register(study: Study, folder: SearchFolder) -> str:
    """Register the chosen adapter and return its version; the same adapter keeps its version.

    Raises:
        RetuneError: if the registry cannot be reached, or there is nothing to register.
    """
    step_inputs = inputs(study, folder)
    done = folder.done("register", step_inputs)
    if done is not None:
        return str(done["version"])
    with folder.stamps.step("register", step_inputs) as outputs:
        tracker = open_tracker(study, folder)
        wait_for_server(study.tracking.uri)
        tracker.flush(FLUSH_SECONDS)  # the version refers to its trial's run, which must exist first
        tracker.close(0)
        trial = folder.trials[_chosen(folder)]
        if trial.adapter_uri is None:
            raise RetuneError(
                f"the adapter of {trial.trial} must still exist, but it was deleted: raise `artifacts.keep` "
                f"({study.artifacts.keep}), or choose another trial"
            )
        mix = folder.mix(folder.search.data_digest)
        outputs["version"] = versions.register(
            study.tracking.uri,
            study.promote.model,
            trial,
            adapter.fetch(trial.adapter_uri, trial.adapter_digest),
            study=study.name,
            objective=study.search.objective.metric,
            scores=[record for record in folder.benches(study) if record.model == trial.trial],
            search_digest=folder.name,
            prompt=mix.prompt if mix else None,
        )
    return str(outputs["version"])


def _chosen(folder: SearchFolder) -> str:
    chosen = folder.selection.chosen
    if chosen is None:
        raise RetuneError(
            "no trial completed, so there is nothing to register; see the failed trials in the report"
        )
    return chosen
