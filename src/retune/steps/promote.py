"""Step `promote`: decide by the gate whether the challenger becomes champion, and move the alias if so."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from retune import models
from retune.data import mixing
from retune.records import GateRecord, digest
from retune.registry import gate, promotion, versions
from retune.registry.aliases import aliases
from retune.registry.gate import ChampionFacts
from retune.study import Study
from retune.study.scored import MEAN_SCORE
from retune.workspace.ledger import BASE, DEFAULT
from retune.workspace.search_folder import GATE, SELECTION, SearchFolder


def inputs(study: Study, folder: SearchFolder) -> dict[str, Any]:
    """Return what determines the result of this step; the step is repeated when it changes."""
    selection = digest(folder.read(SELECTION))
    version = (folder.stamps.last("register") or {}).get("version")
    asked = study.promote.model_dump(mode="json")
    # The default, and the only way in older releases, whose stamps must stay valid
    if asked["automatic"] == "passed":
        del asked["automatic"]
    return {"selection": selection, "version": version, "promote": asked}


def promote(study: Study, folder: SearchFolder, data_uri: str) -> GateRecord:
    """Decide on the challenger, write `gate.json`, and make it champion if all rules pass.

    Raises:
        RetuneError: if the registry cannot be reached, or the champion changed in the meantime.
    """
    step_inputs = inputs(study, folder)
    if folder.done("promote", step_inputs) is not None:
        return folder.gate
    with folder.stamps.step("promote", step_inputs) as outputs:
        uri, model = study.tracking.uri, study.promote.model
        carried_out = _carried_out(study, folder, str(step_inputs["version"]))
        if carried_out:
            promotion.note_gate(uri, carried_out)
            outputs["decision"] = carried_out.decision
            return carried_out
        trials, benches, selection = folder.trials, folder.benches(study), folder.selection
        assert selection.chosen is not None  # `register` refuses a study without a winner
        challenger = trials[selection.chosen]
        champion = versions.champion_facts(uri, model, study.benchmark.tasks)
        record = gate.decide(
            study.promote.gate,
            study.search.objective,
            model,
            str(step_inputs["version"]),
            challenger,
            [bench for bench in benches if bench.model == challenger.trial],
            trials.get(BASE),
            [bench for bench in benches if bench.model == BASE],
            trials.get(DEFAULT),
            champion and _on_this_data(study, champion, data_uri),
            selection.spread_for(challenger.trial),
            study.name,
        )
        record.waits = record.decision == "promote" and not _automatic(study, record)
        folder.write(GATE, record)
        _carry_out(uri, record)
        outputs["decision"] = record.decision
    return record


def _carried_out(study: Study, folder: SearchFolder, version: str) -> GateRecord | None:
    """Return the decision that made this version the champion, if this step was killed between the promotion and its stamp.

    Any other decision without a stamp is made again: champion or rules may have changed since.
    """
    if folder.stamps.last("promote") is not None or not folder.has(GATE):
        return None
    record = folder.gate
    if (record.challenger, record.model, record.decision) != (version, study.promote.model, "promote"):
        return None
    if record.waits:
        return None
    return record if aliases(study.tracking.uri, record.model).champion == version else None


def _carry_out(uri: str, record: GateRecord) -> None:
    # First: `promote` raises if the champion has changed, and then the outdated decision must not be noted
    if record.decision == "promote" and not record.waits:
        promotion.promote(uri, record.model, record.challenger, record.champion)
    promotion.note_gate(uri, record)


def _automatic(study: Study, record: GateRecord) -> bool:
    """Return whether the promotion needs no confirmation by a person."""
    wanted = study.promote.automatic
    return wanted == "passed" or (wanted == "beyond-noise" and gate.beyond_noise(record))


def _on_this_data(study: Study, champion: ChampionFacts, data_uri: str) -> ChampionFacts:
    """Return the champion with its objective on this study's validation data, measured again if it was on other data.

    A champion of another base cannot be loaded on this one; it then has no objective, which fails the rule.
    """
    if champion.data_digest == mixing.read_mix_record(data_uri).digest:
        return champion
    metric = study.search.objective.metric
    scored = study.scored is not None and metric in (*study.scored.tasks, MEAN_SCORE)
    if (metric != "validation_loss" and not scored) or not _same_base(study, champion):
        return replace(champion, objective=None)
    from retune.training.resident import ResidentBase  # imports torch, which a run without work does not need

    with tempfile.TemporaryDirectory() as folder:
        adapter = versions.download_adapter(
            study.tracking.uri, study.promote.model, champion.version, Path(folder)
        )
        base = ResidentBase(study.model)
        if scored:
            from retune.trials.scores import benchmark_scores

            scores = benchmark_scores(study, base, "champion", str(adapter), folder)
            return replace(champion, objective=scores[metric])
        return replace(champion, objective=base.evaluate(str(adapter), data_uri, study))


def _same_base(study: Study, champion: ChampionFacts) -> bool:
    here = models.base_digest(models.locate(study.model))
    return champion.base == study.model.base and champion.base_revision in (None, study.model.revision, here)
