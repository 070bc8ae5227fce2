"""The demo study to its end with real trials: the wrapped command in `sh`, `retune trial`, the collector, the records.

Few trials, so that four studies take little; that torch is imported once for all trials (tests/forked.py) is the most of it. The same
studies with more trials, of milliseconds each, are in tests/engines/katib/test_engine.py.
"""

import pytest

from retune import store
from retune.steps import mix
from tests.katib_simulator.cluster import NAMESPACE
from tests.katib_simulator.runs import Run, experiments

pytest_plugins = ["tests.katib_simulator.runs"]
pytestmark = pytest.mark.slow
# `tpe` and `random` are Katib's own services. NOMAD itself proposes from the third trial on.
STUDIES = {
    "nomad": ["search.trials=5", "search.settings={LH_SEARCH: 1}"],
    "tpe": ["search.trials=3"],
    "random": ["search.trials=3"],
    "retune-tpe": ["search.trials=3"],
}


@pytest.mark.parametrize("algorithm", STUDIES)
def test_the_demo_study_ends_with_real_trials_through_restarts_and_lost_replies(
    make_cluster, on_katib, tmp_path, algorithm
):
    study = on_katib(f"search.algorithm={algorithm}", "search.max_failed=0", *STUDIES[algorithm])
    recipe = mix.recipe(study)
    mix.mix(recipe)
    folder = tmp_path / "search-0123456789abcdef"
    store.write(f"{folder}/study.json", study.model_dump_json().encode())
    cluster = make_cluster(real=True)
    cluster.pods.env["OMP_NUM_THREADS"] = "1"
    cluster.lose, cluster.kill_before, cluster.kill_under = {1, 2}, {3}, {4}
    drained = [] if algorithm == "nomad" else ["once is enough"]

    def drain_a_node(run):
        """Drain the node of the first running trial; its Job starts another pod."""
        training = [name for name in cluster.trials() if "step " in printed(cluster, name)]
        if training and not drained:
            drained.append(training[0])
            cluster.pods.evict(training[0])
        return False

    run = Run(study, folder, recipe.folder, drain_a_node, poll=0.5).go()

    trials = study.search.trials
    assert [r.status for r in run.outcome.records] == ["completed"] * (1 + trials)
    assert sorted(run.searched) == list(range(1, trials + 1))
    assert run.records["trial-001"].assignment == study.search.space.default()
    assert len({str(r.assignment) for r in run.searched.values()}) == trials
    assert len(drained) == 1
    assert cluster.lose == cluster.kill_before == cluster.kill_under == set(), "all of it happened"
    (made,) = experiments(cluster)
    assert made["status"]["trialsSucceeded"] == len(cluster.trials())
    reported = {
        trial["metadata"]["name"]: float(trial["status"]["observation"]["metrics"][0]["latest"])
        for trial in cluster.objects.list("trials", NAMESPACE)
    }
    for record in run.searched.values():
        assert store.exists(f"{record.adapter_uri}/adapter_model.safetensors")
        trial = record.adapter_uri.split("/")[-2]
        if trial in reported:  # else the default, a Job of the engine's own
            assert reported[trial] == record.values["validation_loss"], "Katib read what the record holds"


def printed(cluster, name):
    """What a running pod has printed so far."""
    log = cluster.pods.logs[name] / "metrics.log" if name in cluster.pods.running else None
    return log.read_text() if log and log.exists() else ""
