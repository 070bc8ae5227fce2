"""The engine on a simulated cluster: whatever happens, one Experiment, a record of every trial, and an end."""

import json
import math
from datetime import timedelta

import pytest

from retune import store
from retune.engines.katib import OURS, manifest
from retune.errors import InputError, Interrupted, RetuneError
from retune.study.names import KATIB_ONLY
from tests.conftest import ROOT, wait_for
from tests.katib_simulator.cluster import NAMESPACE
from tests.katib_simulator.controller import over
from tests.katib_simulator.runs import Run, experiments, in_background, wrong

pytest_plugins = ["tests.katib_simulator.runs"]
SEARCH = "search-0123456789abcdef"


def settings(run):
    return [json.dumps(run.searched[number].assignment, sort_keys=True) for number in sorted(run.searched)]


@pytest.mark.slow
def test_a_study_gives_what_the_local_engine_gives(cluster, run_on, tmp_path):
    run = run_on()
    assert [(r.trial, r.role, r.status) for r in run.outcome.records] == [
        ("trial-000", "base", "completed"),
        ("trial-001", "default", "completed"),
        *((f"trial-{k:03d}", "search", "completed") for k in range(2, 7)),
    ]
    assert run.outcome.stopped_by == "trials"
    assert run.records["trial-001"].assignment == run.study.search.space.default()
    assert len(set(settings(run))) == 6
    for record in run.searched.values():
        assert record.objective("validation_loss") is not None
        assert (
            json.loads(store.read(f"{tmp_path}/{SEARCH}/trials/{record.trial}/trial.json"))["number"]
            == record.number
        )
    assert sorted(run.issued) == sorted(run.finished) == sorted(run.records)
    (made,) = experiments(cluster)
    assert made["metadata"]["name"].startswith("first-study-")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["nomad", "tpe", "random"])
def test_the_demo_study_ends_through_restarts_and_lost_replies(cluster, run_on, algorithm):
    cluster.lose, cluster.kill_before = {2, 3, 7}, {4, 6}
    run = run_on(f"search.algorithm={algorithm}", "search.trials=16", "search.repeats=2")
    assert (len(run.searched), run.outcome.stopped_by) == (16, "trials")
    assert all(r.status == "completed" for r in run.outcome.records)
    assert len(set(settings(run))) == 16
    assert len(experiments(cluster)) == 1
    assert cluster.restarts == 2
    repeated = {r.trial.rpartition("-seed-")[0] for r in run.outcome.records if r.role == "repeat"}
    ranked = run.engine.ledger.ranking(run.engine.study.search)
    assert "trial-001" in repeated
    assert 3 <= len(repeated) <= 4, [r.trial for r in ranked[:4]]


@pytest.mark.slow
def test_one_after_the_other_nothing_that_happens_changes_what_is_tried(
    make_cluster, run_on, on_katib, tmp_path
):
    """Lost replies, restarts, shuffled trials and those of another namespace: the settings are the same."""
    wanted = ("search.algorithm=nomad", "search.parallel=1", "search.trials=11")
    quiet = make_cluster()
    run_on(*wanted, name="search-quiet")
    rough = make_cluster(seed=0)
    rough.lose, rough.kill_before = {1, 2, 5, 9}, {3, 11}
    place = manifest.Place(str(tmp_path / "search-rough"), "")
    name = manifest.name(on_katib(*wanted), place, NAMESPACE, 0)
    for number in range(8):
        foreign(rough, name, number)
    run_on(*wanted, name="search-rough")
    assert [e["metadata"]["name"] for e in experiments(rough)] == [name]  # else the foreign ones are not
    assert suggested(rough) == suggested(quiet)


def suggested(cluster):
    """The service's replies, in order."""
    (found,) = cluster.objects.list("suggestions", NAMESPACE)
    return [entry["parameterAssignments"] for entry in found["status"]["suggestions"]]


def foreign(cluster, experiment, number):
    """A succeeded trial of an equally named Experiment in another namespace, with a loss that no trial here can have."""
    setting = {"rank": "4", "dropout": "0.0", "alpha": str(number + 1), "learning_rate": "1e-05"}
    metric = {"name": "validation_loss", "min": "0.001", "max": "0.001", "latest": "0.001"}
    content = {
        "metadata": {"name": f"{experiment}-foreign{number}", "labels": {"katib.kubeflow.org/experiment": experiment}},
        "spec": {
            "objective": {"type": "minimize", "objectiveMetricName": "validation_loss",
                          "metricStrategies": [{"name": "validation_loss", "value": "latest"}]},
            "parameterAssignments": [{"name": key, "value": value} for key, value in setting.items()],
            "runSpec": {"kind": "Job"},
        },
        "status": {"conditions": [{"type": "Succeeded", "status": "True"}], "observation": {"metrics": [metric]}},
    }  # fmt: skip
    cluster.objects.create("trials", "team-b", content)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [*OURS, *KATIB_ONLY])
def test_every_algorithm_runs_to_its_end(cluster, run_on, algorithm):
    several = ", {metric: peak_gpu_gib}" if algorithm in ("nomad", "lhs") else ""
    run = run_on(
        f"search.algorithm={algorithm}", "search.trials=12", "search.parallel=4",
        f"search.objective=[{{metric: validation_loss}}{several}]",
    )  # fmt: skip
    assert [r.status for r in run.searched.values()] == ["completed"] * 12
    assert len(set(settings(run))) == 12
    assert cluster.controller.errors == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "file",
    sorted(file for file in ROOT.glob("examples/*/study.yaml") if "plugin" not in str(file)),
    ids=lambda file: file.parent.name,
)
def test_every_study_of_the_examples_runs_to_its_end(cluster, on_katib, tmp_path, file):
    """With twelve trials: one of them has a hundred, one after the other."""
    cluster.lose, cluster.kill_before, cluster.kill_under = {2, 5}, {6}, {9}
    study = on_katib("search.trials=12", file=file)
    run = Run(study, tmp_path / SEARCH).go()
    assert len(run.searched) == study.search.trials
    repeats = [r for r in run.outcome.records if r.role == "repeat"]
    settings = {r.number for r in repeats}
    assert 1 in settings
    assert study.search.finalists <= len(settings) <= study.search.finalists + 1
    assert len(repeats) == len(settings) * study.search.repeats
    assert {r.status for r in run.outcome.records} == {"completed"}


@pytest.mark.slow
def test_trainjob_trials_run_in_the_rendered_runtime(cluster, on_katib, run_on):
    wanted = ("cluster.katib.trial=TrainJob", "search.trials=4")
    cluster.objects.create("trainingruntimes", NAMESPACE, manifest.runtime(on_katib(*wanted)))
    run = run_on(*wanted)
    assert [r.status for r in run.searched.values()] == ["completed"] * 4
    assert len(cluster.objects.list("trainjobs", NAMESPACE)) == 4


def test_what_keeps_a_trials_pod_from_running_is_seen_here(cluster, on_katib, run_on):
    """A second job in the runtime, such as a model initializer, has no container `node`: Katib 0.19 denies its pod."""
    wanted = ("cluster.katib.trial=TrainJob", "search.trials=2")
    runtime = manifest.runtime(on_katib(*wanted))
    jobs = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    jobs.append({**jobs[0], "name": "model-initializer"})
    cluster.objects.create("trainingruntimes", NAMESPACE, runtime)
    with pytest.raises(Interrupted):
        run_on(*wanted, stop=lambda run: len(cluster.pods.denied) == 2)
    assert "Unable to find primary container node" in str(cluster.pods.denied)


def test_an_exhausted_space_still_ends(cluster, run_on):
    space = "[{name: rank, kind: discrete, values: [4, 8, 16], default: 8}]"
    run = run_on(f"search.parameters={space}", "search.trials=7")
    assert len(run.searched) == 7
    assert {r.assignment["rank"] for r in run.searched.values()} == {4, 8, 16}


def test_katibs_values_come_through_unharmed(cluster, run_on):
    run = run_on("search.trials=10", "search.parameters={preset: davouse2024}", "search.algorithm=gp")
    space = run.study.search.space
    for record in run.searched.values():
        assert space.decode(space.encode(record.assignment)) == record.assignment
        assert isinstance(record.assignment["rank"], int)


def test_katibs_own_algorithms_try_the_default_in_a_job_of_its_own(cluster, run_on):
    run = run_on("search.algorithm=multivariate-tpe", "search.trials=5")
    assert len(cluster.trials()) == 4
    assert len(run.searched) == 5
    assert run.records["trial-001"].assignment == run.study.search.space.default()
    assert run.records["trial-001"].role == "default"


def test_a_default_between_two_levels_is_tried_exactly(cluster, run_on):
    space = "[{name: learning_rate, kind: real, low: 1.0e-6, high: 1.0e-3, scale: log, default: 1.111e-5}]"
    run = run_on(f"search.parameters={space}", "search.trials=3")
    assert run.records["trial-001"].assignment == {"learning_rate": 1.111e-5}
    assert len(run.searched) == 3


# Failures


@pytest.mark.slow
def test_failed_silent_and_nan_trials_are_recorded_and_the_search_goes_on(cluster, run_on):
    wrong(cluster, fail=[1, 20], silent=[21, 34], nan=[35, 47])
    run = run_on("search.trials=14", "search.max_failed=null")
    how = cluster.trials().values()
    assert {"Failed", "MetricsUnavailable", "Succeeded"} == set(how)
    assert len(run.searched) >= 14  # Katib makes up for trials without metrics
    for record in run.searched.values():
        failed = record.assignment["alpha"] <= 20
        assert record.status == ("failed" if failed else "completed")
        assert (record.reason == "the loss became NaN in step 3") == failed
    sent = [t for t in cluster.objects.list("trials", NAMESPACE) if t["status"].get("observation")]
    latest = {
        m.get("latest", "")
        for t in sent
        for m in t["status"]["observation"]["metrics"]
        if m["name"] == "validation_loss"
    }
    assert "" in latest  # what the collector's filter makes of "nan", and our service must bear


def test_a_pod_that_dies_without_a_record_is_a_failed_trial_with_a_reason(cluster, run_on):
    wrong(cluster, crash=[33, 64])
    run = run_on("search.trials=8", "search.max_failed=null")
    crashed = [r for r in run.searched.values() if r.assignment["alpha"] > 32]
    assert crashed
    for record in crashed:
        assert (record.status, record.failure) == ("failed", "killed")
        assert "ended without a record (Failed: Trial has failed" in record.reason
        assert f"in namespace {NAMESPACE}" in record.reason
        assert record.values == {}
    dead = [name for name, how in cluster.trials().items() if how == "Failed"]
    assert all(len(list(cluster.pods.folder.rglob(f"{name}-*"))) == 1 for name in dead), "tried once"


def test_more_failures_than_allowed_end_the_search(cluster, run_on):
    wrong(cluster, fail=[33, 64])
    run = run_on("search.trials=40", "search.max_failed=2", "search.parallel=1")
    assert run.outcome.stopped_by == "failures"
    assert sum(r.status == "failed" for r in run.outcome.records) == 3
    again = run_on("search.trials=40", "search.max_failed=2", "search.parallel=1")
    assert (again.outcome.stopped_by, again.issued) == ("failures", [])
    assert len(experiments(cluster)) == 1


def test_a_base_that_cannot_be_validated_ends_all(cluster, run_on):
    wrong(cluster, seconds=600, quick=[])
    with pytest.raises(
        RetuneError, match=r"untuned base could not be validated: its pod ended without a record \(Failed"
    ):
        run_on(stop=lambda run: kill_base(cluster))
    assert experiments(cluster) == []
    assert cluster.trials() == {}


def kill_base(cluster):
    base = next((name for name in list(cluster.pods.running) if name.endswith("trial-000")), None)
    if base and len(cluster.pods.running) > 2:
        cluster.pods.kill(base)
    return False


def test_an_evicted_pod_is_started_again_and_a_deleted_one_is_a_failure(cluster, run_on):
    wrong(cluster, seconds=0.6)
    done = []

    def disturb(run):
        running = [name for name in list(cluster.pods.running) if name in cluster.trials()]
        if running and not done:
            done.append(running[0])
            cluster.pods.evict(running[0])
        elif len(done) == 1 and any(name not in done for name in running):
            done.append(next(name for name in running if name not in done))
            cluster.pods.kill(done[1])
        return False

    run = run_on("search.trials=4", stop=disturb)
    by_name = {r.adapter_uri.split("/")[-2]: r for r in run.searched.values() if r.adapter_uri}
    assert by_name[done[0]].status == "completed"
    assert [r.status for r in run.searched.values()].count("failed") == 1
    assert cluster.trials()[done[1]] == "Failed"


@pytest.mark.slow
def test_an_early_stopped_trial_has_its_last_value_and_no_objective(cluster, run_on):
    wrong(cluster, seconds=0.8, epochs=4)
    stop = "cluster.katib.early_stopping=medianstop"
    run = run_on(stop, "cluster.katib.early_stopping_settings={start_step: 2, min_trials_required: 2}", "search.trials=12",
                 "search.algorithm=lhs", "search.parallel=4")  # fmt: skip
    stopped = [r for r in run.searched.values() if r.status == "early_stopped"]
    assert stopped
    for record in stopped:
        assert math.isfinite(record.values["validation_loss"])
        assert record.objective("validation_loss") is None
    assert list(cluster.trials().values()).count("EarlyStopped") == len(stopped)
    assert len(run.searched) == 12


# Time, stop, restart


@pytest.mark.slow
def test_the_hours_end_the_experiment_and_its_running_trials(cluster, run_on, tmp_path):
    wrong(cluster, seconds=600)
    hours = "search.max_hours=48"

    def let_the_default_finish(run):
        if len(run.issued) >= 3:  # the base and two of Katib's
            run.later = timedelta(hours=49)
        if ("DELETE", "experiments") in cluster.api.requests:
            wrong(cluster)
        return False

    cluster.api.faults = [("DELETE", "experiments", 500), ("DELETE", "experiments", "lost")]
    run = run_on("search.trials=50", hours, "search.repeats=1", stop=let_the_default_finish)
    assert cluster.api.faults == []
    assert run.outcome.stopped_by == "hours"
    assert experiments(cluster) == []
    assert cluster.trials() == {}
    assert {run.records[name].status for name in ("trial-000", "trial-001")} == {"completed"}
    cut = [r for r in run.searched.values() if r.status == "interrupted"]
    assert cut, [(r.trial, r.status, r.reason) for r in run.outcome.records] + [run.issued]
    assert all("search.max_hours" in r.reason for r in cut)
    assert not [r for r in run.outcome.records if r.role == "repeat"]
    spent = f"search.max_hours={1 / 3600 / 1000}"
    again = run_on("search.trials=50", spent, "search.repeats=1")
    assert (again.outcome.stopped_by, again.issued) == ("hours", [])
    more = run_on("search.trials=8", hours)  # what was cut off does not count as tried
    assert sum(r.status == "completed" for r in more.searched.values()) == 8


def test_stopped_it_leaves_the_experiment_going_and_finds_it_again(cluster, run_on):
    wrong(cluster, seconds=0.2)
    with pytest.raises(Interrupted, match=r"experiment first-study-\w{5} continues on the cluster"):
        run_on(stop=lambda run: {"trial-000", "trial-001"} <= set(run.finished))
    run = run_on()
    assert len(experiments(cluster)) == 1
    assert len(run.searched) == 6
    assert not {"trial-000", "trial-001"} & set(run.issued)


@pytest.mark.slow
@pytest.mark.parametrize("after", range(1, 16, 2))
def test_killed_after_any_event_it_ends_alike(cluster, on_katib, tmp_path, after):
    """The engine's process dies after its n-th event: no setting is tried twice, and there is one Experiment."""
    run = Run(on_katib("search.repeats=1", "search.trials=5"), tmp_path / SEARCH)
    run.engine.observe = Dies(after)
    with pytest.raises(Killed):
        run.engine.run()
    again = Run(on_katib("search.repeats=1", "search.trials=5"), tmp_path / SEARCH).go()
    assert [r.status for r in again.outcome.records] == ["completed"] * 10
    assert sorted(again.searched) == [1, 2, 3, 4, 5]
    assert len(experiments(cluster)) == 1
    assert len(cluster.trials()) == 5


class Killed(BaseException):
    pass


class Dies:
    def __init__(self, after):
        self.left = after

    def __call__(self, event):
        self.left -= event.kind != "polled"
        if self.left == 0:
            raise Killed


# The Kubernetes API


def test_an_api_that_fails_in_passing_changes_nothing(cluster, run_on):
    cluster.api.faults = [
        ("GET", "experiments", 503), ("GET", "trials", "reset"), ("POST", "jobs", 500), ("GET", "jobs", 429),
        ("GET", "experiments", "lost"), ("GET", "trials", 504), ("POST", "experiments", 500),
    ]  # fmt: skip
    run = run_on()
    assert cluster.api.faults == []
    assert len(run.searched) == 6
    assert len(experiments(cluster)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("faults", [["lost"], ["reset", "lost"], [503, "lost"]], ids=str)
def test_a_lost_reply_to_the_creation_does_not_make_two(cluster, run_on, faults):
    cluster.api.faults = [("POST", "experiments", how) for how in faults] + [("POST", "jobs", "lost")]
    run = run_on("search.trials=3")
    assert cluster.api.faults == []
    assert len(experiments(cluster)) == 1
    assert len(run.searched) == 3
    assert len(cluster.objects.list("jobs", NAMESPACE, manifest.TRIAL_LABEL)) == 1


def test_an_api_that_stays_away_ends_the_wait_with_its_name(cluster, on_katib, tmp_path):
    run = Run(on_katib(), tmp_path / SEARCH)
    run.engine._api._patience = 0.3
    cluster.api.faults = [("GET", "experiments", 503)] * 100
    with pytest.raises(RetuneError, match=r"injected \(tried for 0 s\)"):
        run.go()


def test_no_cluster_at_all_is_said_at_once(on_katib, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(InputError, match="a Kubernetes cluster is needed"):
        Run(on_katib(), tmp_path / SEARCH)


def test_what_the_webhook_refuses_is_an_input_error_with_its_words(cluster, run_on):
    config = cluster.objects.get("configmaps", "kubeflow", "katib-config")
    config["data"]["katib-config.yaml"] = "runtime: {suggestions: []}"
    cluster.objects.replace("configmaps", config)
    with pytest.raises(InputError, match="unable to get Suggestion config data for algorithm lhs"):
        run_on()


def test_settings_that_the_service_refuses_end_with_its_words(cluster, run_on):
    with pytest.raises(InputError, match=r"gamma should be in the range of \(0, 1\)"):
        run_on("search.algorithm=tpe", "search.settings={gamma: 5}")


def test_what_our_service_refuses_ends_the_experiment_with_every_reason(cluster, on_katib, tmp_path):
    """A handwritten Experiment that `retune` would never create: Katib treats only INVALID_ARGUMENT as a refusal."""
    made = manifest.experiment(
        on_katib("search.algorithm=nomad"), manifest.Place(str(tmp_path / SEARCH), "d"), 2
    )
    made["spec"]["algorithm"]["algorithmSettings"] += [
        {"name": "LH_SAERCH", "value": "3"}, {"name": "constraints", "value": "memory < 3"},
    ]  # fmt: skip
    made["spec"]["parameters"][2]["feasibleSpace"] |= {"min": "70"}
    name = cluster.objects.create("experiments", NAMESPACE, made)["metadata"]["name"]
    found = wait_for(
        lambda: [c for c in conditions_of(cluster, "suggestions", name) if c["type"] == "Failed"]
    )
    assert all(word in found[0]["message"] for word in ("LH_SAERCH", "memory < 3", "low=70"))
    wait_for(lambda: [c for c in conditions_of(cluster, "experiments", name) if c["type"] == "Failed"])
    assert cluster.trials() == {}


def conditions_of(cluster, plural, name):
    return (cluster.objects.find(plural, NAMESPACE, name) or {}).get("status", {}).get("conditions", [])


@pytest.mark.slow
def test_an_experiment_deleted_by_hand_is_an_error_and_the_next_run_makes_up_for_it(cluster, run_on):
    wrong(cluster, seconds=0.2)

    def delete(run):
        if len(run.finished) >= 3 and experiments(cluster):
            cluster.objects.delete("experiments", NAMESPACE, experiments(cluster)[0]["metadata"]["name"])
        return False

    with pytest.raises(RetuneError, match="was deleted while it ran; run again to carry on"):
        run_on(stop=delete)
    run = run_on()
    assert sum(r.status == "completed" for r in run.searched.values()) == 6


def test_an_experiment_deleted_while_nobody_looked_costs_what_was_not_written_down(cluster, run_on):
    wrong(cluster, seconds=0.3)
    with pytest.raises(Interrupted):
        run_on(stop=lambda run: len(run.issued) >= 4)
    (made,) = experiments(cluster)
    wait_for(lambda: cluster.trials() and "Succeeded" in cluster.trials().values())
    cluster.objects.delete("experiments", NAMESPACE, made["metadata"]["name"])
    run = run_on("search.max_hours=48")
    assert sum(r.status == "completed" for r in run.searched.values()) == 6
    assert run.engine._history.unfinished() == set(), "its hours are not counted for ever"
    assert [e["metadata"]["name"] for e in experiments(cluster)] != [made["metadata"]["name"]]


def test_a_budget_that_comes_a_moment_too_late_makes_a_second_experiment(cluster, run_on):
    """The Experiment ends after it was read and before it is changed; Katib then refuses the change."""
    wrong(cluster, seconds=0.3)
    with pytest.raises(Interrupted):
        run_on("search.trials=3", stop=lambda run: len(run.finished) >= 1)
    real = cluster.objects.patch

    def patch(plural, namespace, name, change, dry=False):
        wait_for(lambda: over(cluster.objects.get("experiments", NAMESPACE, name)))
        cluster.objects.patch = real
        return real(plural, namespace, name, change, dry)

    cluster.objects.patch = patch
    run = run_on("search.trials=5")
    assert len(experiments(cluster)) == 2
    assert [r.status for r in run.searched.values()] == ["completed"] * 5


# Carrying on


def test_more_trials_carry_on_in_a_second_experiment_that_knows_of_the_first(cluster, run_on):
    first = run_on("search.trials=4")
    second = run_on("search.trials=8")
    assert len(experiments(cluster)) == 2
    assert len(second.searched) == 8
    assert len(set(settings(second))) == 8  # none of the first four is tried again
    assert settings(second)[:4] == settings(first)
    assert "trial-001" not in second.issued


def test_more_trials_carry_on_in_the_same_experiment_if_it_may_be_resumed(cluster, run_on):
    run_on("search.trials=4", "search.algorithm=tpe", "cluster.katib.resume=LongRunning")
    second = run_on("search.trials=8", "search.algorithm=tpe", "cluster.katib.resume=LongRunning")
    assert len(experiments(cluster)) == 1
    assert len(second.searched) == 8


def test_katibs_own_cannot_carry_on_what_never_resumes(cluster, run_on):
    run_on("search.trials=3", "search.algorithm=tpe")
    with pytest.raises(InputError, match="resume: LongRunning"):
        run_on("search.trials=6", "search.algorithm=tpe")


@pytest.mark.slow
def test_a_larger_budget_reaches_a_running_experiment(cluster, run_on):
    wrong(cluster, seconds=6)  # it must not end while the changes fail
    with pytest.raises(Interrupted):
        run_on("search.trials=4", stop=lambda run: len(run.issued) >= 3)
    wrong(cluster)
    cluster.api.faults = [("PATCH", "experiments", 409), ("PATCH", "experiments", "lost")]
    run = run_on("search.trials=9")
    assert cluster.api.faults == []
    assert len(experiments(cluster)) == 1
    assert len(run.searched) == 9


@pytest.mark.slow
def test_more_trials_at_once_reach_a_running_experiment_and_fewer_end_none(cluster, run_on):
    """Katib would delete the newest trials to come down to fewer at once."""
    wrong(cluster, seconds=0.4)
    with pytest.raises(Interrupted):
        run_on("search.trials=8", stop=lambda run: len(run.finished) >= 1)
    with pytest.raises(Interrupted):
        run_on("search.trials=8", "search.parallel=4", stop=lambda run: len(run.finished) >= 1)
    assert experiments(cluster)[0]["spec"]["parallelTrialCount"] == 4
    run = run_on("search.trials=9", "search.parallel=1")
    assert experiments(cluster)[0]["spec"]["parallelTrialCount"] == 4
    assert [r.status for r in run.searched.values()] == ["completed"] * 9


@pytest.mark.slow
def test_an_earlier_study_is_known_to_ours(cluster, run_on, tmp_path):
    first = run_on("search.trials=5", name="search-first")
    second = run_on("search.trials=5", f"search.warm_start=[{tmp_path}/search-first]", name="search-second")
    assert not set(settings(first)[1:]) & set(settings(second))
    # The default was tried before, so the algorithm does not start with it: a Job of its own trains it
    assert second.records["trial-001"].assignment == first.records["trial-001"].assignment


# What is left


@pytest.mark.slow
def test_nothing_is_left_on_the_cluster_if_so_wished(cluster, run_on):
    run = run_on("cluster.katib.keep=false", "search.repeats=1")
    assert experiments(cluster) == []
    assert cluster.objects.list("jobs", NAMESPACE) == []
    assert len(run.searched) == 6
    again = run_on("cluster.katib.keep=false", "search.repeats=1")
    assert again.issued == []


def test_only_the_best_adapters_stay(cluster, run_on, tmp_path):
    run = run_on("artifacts.keep=2", "benchmark.top=1")
    best = sorted(run.searched.values(), key=lambda r: r.values["validation_loss"])[:2]
    kept = {record.trial for record in run.searched.values() if record.adapter_uri}
    assert kept == {*(record.trial for record in best), "trial-001"}
    on_disk = {str(path.parent) for path in (tmp_path / SEARCH).rglob("adapter_model.safetensors")}
    assert on_disk == {run.records[name].adapter_uri for name in kept}


@pytest.mark.slow
def test_two_engines_at_once_follow_one_experiment(cluster, run_on, on_katib, tmp_path):
    wrong(cluster, seconds=0.2)
    join = in_background(lambda: run_on("search.trials=6", "search.repeats=1"))
    here = Run(on_katib("search.trials=6", "search.repeats=1"), tmp_path / SEARCH).go()
    there = join()
    assert len(experiments(cluster)) == 1
    assert len(cluster.trials()) == 6
    assert here.outcome == there.outcome


@pytest.mark.slow
def test_an_engine_that_was_given_up_numbers_the_trials_as_the_one_in_its_place(cluster, on_katib, tmp_path):
    """It read the ledger before there were trials, and later sees all of them at once instead of one by one."""
    wanted = ("search.trials=9", "search.parallel=1")
    late = Run(on_katib(*wanted), tmp_path / SEARCH)
    first = Run(on_katib(*wanted), tmp_path / SEARCH).go()
    late.go()
    assert {n: r.assignment for n, r in late.searched.items()} == {
        n: r.assignment for n, r in first.searched.items()
    }
    assert len(experiments(cluster)) == 1


def test_two_experiments_of_one_search_are_refused_by_name(cluster, on_katib, run_on, tmp_path):
    study, place = on_katib(), manifest.Place(str(tmp_path / SEARCH), str(tmp_path / "data"))
    wrong(cluster, seconds=600)
    names = [
        cluster.objects.create("experiments", NAMESPACE, manifest.experiment(study, place, 2))["metadata"][
            "name"
        ]
        for _ in range(2)
    ]
    with pytest.raises(InputError, match=f"one Experiment at a time.*{min(names)}.*delete all but one"):
        run_on()


@pytest.mark.slow
def test_constraints_reach_the_service_and_hold_in_the_ranking(cluster, run_on):
    run = run_on(
        "search.constraints=[{metric: peak_gpu_gib, max: 15}]", "search.trials=12", "search.algorithm=gp"
    )
    ranked = run.engine.ledger.ranking(run.study.search)
    assert ranked
    assert all(record.values["peak_gpu_gib"] <= 15 for record in ranked)
    assert len(run.searched) == 12


@pytest.mark.slow
def test_equal_searches_of_two_studies_or_in_two_folders_have_nothing_to_do_with_each_other(
    cluster, on_katib, tmp_path
):
    """Found on a real cluster: the digest by which the engine finds its Experiment covers neither name nor folder."""
    runs = []
    for name, folder in (("first", "a"), ("second", "a"), ("second", "b")):
        (tmp_path / folder / name).mkdir(parents=True)
        runs.append(Run(on_katib(f"name={name}", "search.trials=3"), tmp_path / folder / name / SEARCH).go())
    for run in runs:
        assert [r.status for r in run.outcome.records] == ["completed"] * 4
    assert len(experiments(cluster)) == 3
    assert len(cluster.objects.list("jobs", NAMESPACE)) == 3 * 4, "the base and three trials each"


def test_hours_are_counted_by_a_clock_that_does_not_jump(monkeypatch):
    from retune.engines.katib import engine

    clock = engine.steady_clock()
    begin = clock()

    class Jumped(engine.datetime):
        @classmethod
        def now(cls, tz=None):
            return engine.datetime(2050, 1, 1, tzinfo=tz)

    monkeypatch.setattr(engine, "datetime", Jumped)
    assert timedelta(0) <= clock() - begin < timedelta(minutes=5)
