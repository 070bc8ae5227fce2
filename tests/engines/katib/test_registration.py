"""`retune katib register` edits Katib's configuration without losing anything, and the edit can be undone."""

import time

import pytest
import yaml
from click.testing import CliRunner

from retune.cli import cli
from retune.engines.katib import OURS, registration, removal
from retune.errors import InputError, RetuneError
from retune.search import Observation
from retune.study import load
from retune.suggestion.client import SuggestionClient
from tests.conftest import DEMO, wait_for
from tests.katib_simulator import services
from tests.katib_simulator.admission import suggestion_config

pytest_plugins = ["tests.katib_simulator.runs"]
CONFIG = """\
# kept by the platform team
apiVersion: config.kubeflow.org/v1beta1
kind: KatibConfig
init:
  controller:
    trialResources: [Job.v1.batch]   # one line
runtime:
  suggestions:
    - algorithmName: random
      image: "ghcr.io/kubeflow/katib/suggestion-hyperopt:v0.19.0"   # pinned
    # ours at team b
    - algorithmName: house-search
      image: registry.example/house:1
      unknownKey: {kept: [1, 2]}
      resources:
        limits:
          memory: 400Mi

  # what ends trials
  earlyStoppings:
    - algorithmName: medianstop
      image: ghcr.io/kubeflow/katib/earlystopping-medianstop:v0.19.0
"""

WANTED = registration.entries("registry.example/retune-suggestion:1.0")


def test_only_lines_are_added_and_undo_gives_the_text_back():
    text = registration.registered(CONFIG, WANTED)
    assert registration.unregistered(text) == CONFIG
    left = [line for line in text.splitlines() if line in CONFIG.splitlines()]
    assert [line for line in CONFIG.splitlines() if line not in left] == []
    content = yaml.safe_load(text)
    assert content["runtime"]["suggestions"][2:] == WANTED
    assert content["runtime"]["earlyStoppings"] == yaml.safe_load(CONFIG)["runtime"]["earlyStoppings"]
    assert text.index("# what ends trials") > text.index("retune-random")


def test_again_changes_nothing_and_another_image_replaces():
    once = registration.registered(CONFIG, WANTED)
    assert registration.registered(once, WANTED) is once
    newer = registration.registered(once, registration.entries("registry.example/retune-suggestion:1.1"))
    assert newer == once.replace("retune-suggestion:1.0", "retune-suggestion:1.1")


def test_entries_that_others_put_behind_ours_stay():
    once = registration.registered(CONFIG, WANTED)
    later = once.replace("\n  # what ends", "    - algorithmName: late\n      image: x:1\n\n  # what ends")
    newer = registration.registered(later, registration.entries("y:2"))
    assert [e["algorithmName"] for e in yaml.safe_load(newer)["runtime"]["suggestions"]] == [
        "random", "house-search", "late", *OURS,
    ]  # fmt: skip
    assert "late" in registration.unregistered(newer)


def test_somebody_elses_algorithm_of_the_same_name_is_neither_shadowed_nor_taken_out():
    theirs = CONFIG.replace("house-search", "nomad")
    with pytest.raises(
        InputError,
        match=r"'nomad' exists already, with the image 'registry.example/house:1'.*--except nomad",
    ):
        registration.registered(theirs, WANTED)
    without = [entry for entry in WANTED if entry["algorithmName"] != "nomad"]
    text = registration.registered(theirs, without)
    names = [entry["algorithmName"] for entry in yaml.safe_load(text)["runtime"]["suggestions"]]
    assert names == ["random", "nomad", *[entry["algorithmName"] for entry in without]]
    assert registration.registered(text, without) is text
    assert registration.unregistered(text) == theirs


def test_the_cluster_may_choose_the_user():
    (first, *_) = registration.entries("x:1", user=None)
    assert first["securityContext"]["runAsNonRoot"] is True
    assert "runAsUser" not in first["securityContext"]
    assert WANTED[0]["securityContext"]["runAsUser"] == 10001


@pytest.mark.parametrize(
    "text",
    [
        "runtime:\n  suggestions: []\n",
        "runtime: {suggestions: [{algorithmName: random, image: x}]}",
        "runtime:\n  metricsCollectors: []\n",
        "runtime:\n- not\n".replace("- not", "  suggestions:\n  - algorithmName: random\n    image: x"),
        "runtime:\n  suggestions:\n    -\n      algorithmName: random\n      image: >-\n        x\n    - image: y\n      algorithmName: z",
    ],
    ids=["empty", "one-line", "none", "not-indented", "odd"],
)
def test_other_ways_to_write_it(text):
    there = yaml.safe_load(text)["runtime"].get("suggestions") or []
    new = registration.registered(text, WANTED)
    assert yaml.safe_load(new)["runtime"]["suggestions"] == there + WANTED
    assert (yaml.safe_load(registration.unregistered(new))["runtime"].get("suggestions") or []) == there


@pytest.mark.parametrize(
    "text", ["a: [", "suggestion: '{}'", "- a", ""], ids=["broken", "old", "list", "empty"]
)
def test_what_is_no_configuration_is_refused(text):
    with pytest.raises(InputError, match=r"not valid YAML|must have a section `runtime`"):
        registration.registered(text, WANTED)


@pytest.mark.slow
@pytest.mark.fresh
def test_the_memory_that_the_service_needs_is_asked_for():
    """Katib's own limit, 100Mi, would kill it (trap 1)."""
    service = services.Ours(WANTED[0])
    try:
        assert service.alive
        # What a search needs is imported when its models are asked first
        with SuggestionClient(service.address) as client:
            study = load(DEMO, ["search.algorithm=mads-global"])
            points = client.suggest(study, [], count=12)
            history = [
                Observation(point, "completed", {"validation_loss": loss}, number=loss)
                for loss, point in enumerate(points)
            ]
            client.suggest(study, history, count=1)
        assert (
            services.DEFAULT_LIMIT
            < service.memory()
            < services._bytes(WANTED[0]["resources"]["requests"]["memory"])
        )
        service.limit = services._bytes(None)
        assert not service.alive
    finally:
        service.kill()


def test_names_fit_katibs_objects():
    assert all(len(name) <= 22 for name in OURS)
    assert not set(OURS) & set(services.KATIBS)


# On a cluster


@pytest.fixture
def bare(make_cluster):
    """A cluster whose Katib has none of our algorithms registered."""
    cluster = make_cluster()
    config = cluster.objects.get("configmaps", "kubeflow", "katib-config")
    config["data"] = {"katib-config.yaml": CONFIG, "other": "kept"}
    cluster.objects.replace("configmaps", config)
    return cluster


def retune(*words):
    result = CliRunner().invoke(cli, ["katib", *words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def data(cluster):
    return cluster.objects.get("configmaps", "kubeflow", "katib-config")["data"]


def test_register_shows_writes_and_can_be_undone(bare):
    shown = retune("register", "--image", "r/s:1", "--service-account", "puller", "--dry-run")
    assert "+    - algorithmName: nomad" in shown
    assert data(bare)["katib-config.yaml"] == CONFIG
    assert "changed kubeflow/katib-config" in retune(
        "register", "--image", "r/s:1", "--service-account", "puller"
    )
    assert suggestion_config(bare.objects, "gp")["serviceAccountName"] == "puller"
    assert "nothing to change" in retune("register", "--image", "r/s:1", "--service-account", "puller")
    assert "-    - algorithmName: nomad" in retune("unregister")
    assert data(bare) == {"katib-config.yaml": CONFIG, "other": "kept"}
    assert "nothing to change" in retune("unregister")


def test_a_cluster_that_is_away_is_told_within_seconds(tmp_path, monkeypatch):
    """A wrong context is a mistake of the person at the terminal, who looks at nothing while the command waits."""
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text(yaml.safe_dump({
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}], "current-context": "c",
        "users": [{"name": "u", "user": {"token": "t"}}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }))  # fmt: skip
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    began = time.monotonic()
    with pytest.raises(RetuneError, match="the Kubernetes API cannot be reached"):
        retune("register", "--image", "r/s:1")
    assert time.monotonic() - began < 60


def test_a_change_by_somebody_else_meanwhile_is_not_lost(bare):
    raced, original = [], bare.objects.get

    def get(plural, namespace, name):
        found = original(plural, namespace, name)
        if plural == "configmaps" and len(raced) < 2:
            raced.append(name)
            theirs = original(plural, namespace, name)
            theirs["data"]["other"] = f"changed {len(raced)}"
            bare.objects.replace(plural, theirs)
        return found

    bare.objects.get = get
    retune("register", "--image", "r/s:1")
    bare.objects.get = original
    assert data(bare)["other"].startswith("changed")
    assert suggestion_config(bare.objects, "nomad")["image"] == "r/s:1"


def test_passing_failures_of_the_api_are_borne(bare):
    bare.api.faults = [
        ("GET", "configmaps", 503),
        ("PUT", "configmaps", "reset"),
        ("PUT", "configmaps", "lost"),
    ]
    retune("register", "--image", "r/s:1")
    assert suggestion_config(bare.objects, "soo")["image"] == "r/s:1"


def test_a_namespace_without_katib_is_named(bare):
    with pytest.raises(RetuneError, match="not in 'nowhere'"):
        retune("register", "--image", "r/s:1", "--namespace", "nowhere")


@pytest.fixture
def experiment(cluster, on_katib, tmp_path):
    """Return a function that creates an Experiment, marks it as ended if asked to, and returns its name."""
    from retune.engines.katib import manifest
    from tests.katib_simulator.controller import mark

    cluster.lose = set(range(1, 100_000))  # no reply with settings arrives

    def make(namespace="team-a", how=None, algorithm="nomad"):
        place = manifest.Place(str(tmp_path / "search-1"), str(tmp_path / "data"))
        content = manifest.experiment(on_katib(), place, 2)
        content["spec"]["algorithm"]["algorithmName"] = algorithm
        with cluster.objects.lock:
            made = cluster.objects.create("experiments", namespace, content)
            if how:
                mark(made, how)
                cluster.objects.replace("experiments", made, status_only=True)
        name = made["metadata"]["name"]
        wait_for(lambda: cluster.objects.get("experiments", namespace, name)["metadata"].get("finalizers"))
        return name

    return make


def test_it_is_not_taken_out_while_an_experiment_uses_it_running_or_finished(cluster, experiment):
    running, done = experiment("team-a"), experiment("team-b", "Succeeded", "gp")
    for words in ([], ["--dry-run"]):
        with pytest.raises(InputError) as caught:
            retune("unregister", *words)
        said = str(caught.value)
        assert "there are 2; with --delete-finished" in said
        assert f"{running} (nomad, running): kubectl delete experiments --namespace team-a {running}" in said
        assert f"{done} (gp, succeeded): kubectl delete experiments --namespace team-b {done}" in said
        assert suggestion_config(cluster.objects, "lhs")
    with pytest.raises(InputError, match=rf"there is 1\n.*{running} \(nomad, running\)"):
        retune("unregister", "--delete-finished")
    assert cluster.objects.find("experiments", "team-b", done) is None
    assert suggestion_config(cluster.objects, "lhs")
    cluster.objects.delete("experiments", "team-a", running)
    wait_for(lambda: cluster.objects.find("experiments", "team-a", running) is None)
    retune("unregister")
    assert suggestion_config(cluster.objects, "lhs") is None


def test_finished_experiments_are_deleted_first_where_that_is_asked_for(cluster, experiment):
    for namespace in ("team-a", "team-b"):
        for how in ("Succeeded", "Failed"):
            experiment(namespace, how)
    theirs = experiment("team-b", "Succeeded", "tpe")  # Katib's own algorithm
    printed = retune("unregister", "--delete-finished")
    assert printed.count("deleted experiment team-") == 4
    assert [e["metadata"]["name"] for e in cluster.objects.list("experiments")] == [theirs]
    assert suggestion_config(cluster.objects, "nomad") is None


def test_an_experiment_whose_entry_was_taken_out_by_force_goes_once_it_is_back(cluster, experiment):
    """The situation that `--force` warns of, and its remedy."""
    name = experiment("team-a", "Succeeded")
    retune("unregister", "--force")
    cluster.objects.delete("experiments", "team-a", name)
    time.sleep(0.5)
    assert cluster.objects.get("experiments", "team-a", name)["metadata"]["deletionTimestamp"]
    retune("register", "--image", "r/s:1")
    wait_for(lambda: cluster.objects.find("experiments", "team-a", name) is None)


def test_an_experiment_that_does_not_go_is_told_and_nothing_is_taken_out(cluster, experiment, monkeypatch):
    name = experiment("team-a", "Succeeded")
    found = cluster.objects.get("experiments", "team-a", name)
    found["metadata"]["finalizers"].append("somebody.example/else")
    cluster.objects.replace("experiments", found)
    monkeypatch.setattr("retune.engines.katib.removal._PATIENCE", 1.0)
    with pytest.raises(RetuneError, match=f"{name} in team-a is not deleted"):
        retune("unregister", "--delete-finished")
    assert suggestion_config(cluster.objects, "nomad")


def test_other_names_and_others_entries_under_our_names(cluster, experiment):
    """Unregistering removes what is registered as ours, not what we would register now."""
    config = cluster.objects.get("configmaps", "kubeflow", "katib-config")
    content = yaml.safe_load(config["data"]["katib-config.yaml"])
    for entry in content["runtime"]["suggestions"]:
        if entry["algorithmName"] == "gp":
            entry["command"] = ["house-search"]
        if entry["algorithmName"] == "lhs":
            entry["algorithmName"] = "of-a-package"
    config["data"]["katib-config.yaml"] = yaml.safe_dump(content)
    cluster.objects.replace("configmaps", config)
    experiment("team-a", "Succeeded", "gp")
    name = experiment("team-a", "Succeeded", "of-a-package")
    with pytest.raises(InputError, match=rf"there is 1;.*\n.*{name} \(of-a-package, succeeded\)"):
        retune("unregister")


def test_many_are_all_told():
    made = [
        {"metadata": {"namespace": "team-a", "name": f"{'long-' * 6}{n:03}"}, "spec": {"algorithm": {"algorithmName": "nomad"}}}
        for n in range(200)
    ]  # fmt: skip
    said = str(InputError(removal._report(made), "x"))
    assert "letters …" not in said
    assert all(said.count(each["metadata"]["name"]) == 2 for each in made)


def test_who_may_not_list_experiments_everywhere_is_told_so(bare):
    retune("register", "--image", "r/s:1")
    bare.api.faults = [("GET", "experiments", 403)]
    with pytest.raises(InputError, match="refused"):
        retune("unregister")
    assert suggestion_config(bare.objects, "nomad")


def test_where_katib_is_gone_there_is_nothing_to_take_out(bare):
    assert "nothing to change: nowhere has no katib-config" in retune("unregister", "--namespace", "nowhere")
