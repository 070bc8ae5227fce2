"""The manifests created on the cluster, compared with golden ones, and what is refused before any is created.

After an intended change: RETUNE_GOLDEN=write pytest tests/engines/katib/test_manifest.py
"""

import os
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from retune.cli import cli
from retune.engines.katib import algorithms, manifest
from retune.engines.katib.manifest import Place
from retune.errors import InputError
from retune.search import Observation, suggest
from retune.study import load
from retune.suggestion.experiment import WARM
from retune.trials.task import TrialTask
from tests.katib_simulator.objects import Refused

pytest_plugins = ["tests.katib_simulator.runs"]
HERE = Path(__file__).parent
PLACE = Place("s3://retune/artifacts/alpaca-dolly-7b/search-0123456789abcdef", "s3://retune/artifacts/data-1")


def study(*overrides):
    return load(HERE / "study.yaml", overrides)


def render(*words):
    words = ["render", words[0], str(HERE / "study.yaml"), *words[1:]]
    if words[1] == "experiment":
        words += ["--folder", PLACE.folder, "--data", PLACE.data]
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("experiment-job", ["experiment"]),
        (
            "experiment-trainjob",
            ["experiment", "cluster.katib.trial=TrainJob", "search.algorithm=tpe", "search.constraints=[]"],
        ),
        ("runtime", ["runtime", "cluster.katib.trial=TrainJob"]),
    ],
)
def test_golden(name, words):
    text, file = render(*words), HERE / "golden" / f"{name}.yaml"
    if os.environ.get("RETUNE_GOLDEN") == "write":
        file.write_text(text)
    assert text == file.read_text()


def test_median_stopping_is_katibs_own_rule_at_the_first_rung():
    none = ["cluster.katib.early_stopping=null", "cluster.katib.early_stopping_settings={}"]
    found = manifest.experiment(study("search.stopping=median", *none), PLACE, 5)["spec"]["earlyStopping"]
    assert found["algorithmName"] == "medianstop"
    given = {setting["name"]: setting["value"] for setting in found["algorithmSettings"]}
    assert given == {"min_trials_required": "5", "start_step": "1"}
    assert not manifest.experiment(study(*none), PLACE, 5)["spec"].get("earlyStopping")


def test_one_word_changes_the_algorithm():
    without = "search.constraints=[]"  # Katib's own know none
    ours = yaml.safe_load(render("experiment", without))
    katibs = yaml.safe_load(render("experiment", without, "search.algorithm=multivariate-tpe"))
    assert katibs["spec"]["algorithm"] == {
        "algorithmName": "multivariate-tpe",
        "algorithmSettings": [{"name": "random_state", "value": "3"}],
    }
    for manifest_ in (ours, katibs):
        del manifest_["spec"]["algorithm"]
    assert ours == katibs


@pytest.mark.parametrize("algorithm", sorted(set(algorithms.OURS)))
def test_our_algorithms_begin_with_the_default_where_we_say_so(algorithm):
    wanted = study(f"search.algorithm={algorithm}", "search.constraints=[]")
    space = wanted.search.space
    from retune.search import Objective

    first = suggest(algorithm, space, Objective(), {}, [], 1, seed=3)[0]
    assert (first == space.default()) == algorithms.begins_with_default(wanted)


def test_a_default_between_two_levels_or_tried_before_is_a_job_of_its_own():
    between = study("search.parameters=[{name: alpha, kind: integer, low: 1, high: 64, step: 2, default: 8}]")
    assert not algorithms.begins_with_default(between)
    tried = [Observation(study().search.space.default(), "completed", {"validation_loss": 1.0}, warm=True)]
    assert algorithms.begins_with_default(study())
    assert not algorithms.begins_with_default(study(), tried)


def test_katibs_own_get_levels_where_a_step_is_given_and_a_scale_where_not():
    space = (
        "[{name: learning_rate, kind: real, low: 1.0e-6, high: 1.0e-3, scale: log, default: 1.0e-5},"
        " {name: alpha, kind: integer, low: 3, high: 10, step: 4, default: 3}]"
    )
    rate, alpha = algorithms.parameters(study("search.algorithm=tpe", f"search.parameters={space}"))
    assert rate.feasible_space.to_dict() == {"min": "1e-06", "max": "0.001", "distribution": "logUniform"}
    assert (alpha.parameter_type, alpha.feasible_space.list) == ("discrete", ["3", "7"])


def test_earlier_results_travel_as_a_setting():
    space = study().search.space
    warm = [Observation(space.default(), "completed", {"validation_loss": 1.25}, warm=True)]
    made = manifest.experiment(study(), PLACE, 10, warm=warm)
    settings = {entry["name"]: entry["value"] for entry in made["spec"]["algorithm"]["algorithmSettings"]}
    assert settings[WARM] == ".".join(map(str, space.encode(space.default()))) + " validation_loss=1.25"


def test_a_rendered_experiment_knows_the_earlier_study(tmp_path):
    from retune.records import TrialRecord
    from retune.workspace.ledger import Ledger

    ledger, default = Ledger(str(tmp_path / "search-1")), study().search.space.default()
    task = ledger.issue(1, "default", default, 0)
    values = {"validation_loss": 1.25, "peak_gpu_gib": 10.0}
    ledger.finish(
        TrialRecord(**task.model_dump(exclude={"folder"}), status="completed", values=values), write=True
    )
    text = render("experiment", f"search.warm_start=[{tmp_path}/search-1]")
    settings = {e["name"]: e["value"] for e in yaml.safe_load(text)["spec"]["algorithm"]["algorithmSettings"]}
    assert settings[WARM].endswith(" validation_loss=1.25 peak_gpu_gib=10.0")


def test_a_job_of_the_engine_names_its_trial_and_has_its_setting_as_env():
    task = TrialTask(trial="trial-001-seed-1", number=1, role="repeat", assignment={"rank": 8, "learning_rate": 1e-05},
                     seed=4, folder=f"{PLACE.folder}/trials/trial-001-seed-1")  # fmt: skip
    job = manifest.job(study("cluster.gpus=1"), PLACE, task)
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert job["metadata"]["name"] == "alpaca-dolly-7b-7973e6f7-trial-001-seed-1"
    assert container["command"][-6:] == ["--number", "1", "--role", "repeat", "--seed", "4"]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert (env["RETUNE_HP_RANK"], env["RETUNE_HP_LEARNING_RATE"]) == ("8", "1e-05")


@pytest.mark.parametrize("name", ["a", "7b-model", "a" * 40, "alpaca-dolly-llama-70b-x-long"])
@pytest.mark.parametrize("algorithm", ["bayesianoptimization", "retune-random"])
def test_names_stay_within_the_limits(name, algorithm):
    wanted = study(f"name={name}", f"search.algorithm={algorithm}", "search.constraints=[]")
    rendered = manifest.experiment(wanted, PLACE, 10)["metadata"]["generateName"] + "x" * 5
    experiment = manifest.name(wanted, PLACE, "team-a", 0)
    assert len(rendered) == len(experiment)
    assert experiment[0].isalpha()
    assert len(experiment) <= 30
    assert len(f"{experiment}-{algorithm}") <= 63
    assert len(f"{experiment}-abcdefgh-node-0-0-abcde") <= 63  # JobSet's limit for TrainJobs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["artifacts.uri=/home/me/artifacts"], "pods must reach `artifacts.uri`"),
        (["model.base=/home/me/base"], "pods must reach `model.base`"),
        (["search.algorithm=tpe", "search.settings={gama: 1}"], "did you mean 'gamma'"),
        (["search.algorithm=random", "search.warm_start=[s3://b/s]"], "cannot use earlier studies"),
        (["search.algorithm=bayesianoptimization", "search.parameters={preset: davouse2024}"], "'dropout'"),
        (["search.algorithm=cmaes", "search.parameters=[{name: alpha, kind: real, low: 1, high: 2, default: 1}]"], "two or more"),
        (["search.constraints=[{metric: validation_loss, max: 2}]"], "on the objective itself"),
        (["cluster.katib.early_stopping_settings={start_stp: 2}"], r"may hold.*got \['start_stp'\]"),
        (["search.constraints=[{metric: eval/loss, max: 2}]"], "metric names of letters"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0].partition("=")[0],
)  # fmt: skip
def test_what_cannot_run_is_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        manifest.check(study(*overrides))


def test_words_that_a_shell_would_split_are_refused():
    with pytest.raises(InputError, match=r"words must need no quoting.*my data"):
        manifest.check(study(), Place(PLACE.folder, "s3://bucket/my data"))


def test_katibs_own_need_katib():
    with pytest.raises(InputError, match="cmaes` is Katib's own"):
        study("engine.kind=local", "search.algorithm=cmaes")


CONDITIONAL = [
    {"name": "variant", "kind": "categorical", "values": ["lora", "dora"], "default": "lora"},
    {"name": "init", "kind": "categorical", "values": ["default", "pissa"], "default": "default", "when": {"variant": "lora"}},
    {"name": "target_modules", "kind": "categorical", "values": ["attention", ["q_proj", "v_proj"]], "default": "attention"},
    {"name": "batch_size", "kind": "discrete", "values": [4, 8, 16], "default": 4},
    {"name": "learning_rate", "kind": "real", "low": 1e-6, "high": 1e-3, "scale": "log", "default": 1e-5},
    {"name": "beta2", "kind": "real", "low": 0.9, "high": 0.999, "default": 0.999},
]  # fmt: skip


def test_every_kind_of_parameter_reaches_the_pod_and_our_service():
    searched = study(f"search.parameters={yaml.safe_dump(CONDITIONAL, default_flow_style=True).strip()}")
    spec = manifest.experiment(searched, PLACE, 10)["spec"]
    [targets] = [p for p in spec["parameters"] if p["name"] == "target_modules"]
    assert targets["feasibleSpace"]["list"] == ["attention", "q_proj,v_proj"]
    settings = {entry["name"]: entry["value"] for entry in spec["algorithm"]["algorithmSettings"]}
    assert settings["when.init"] == '{"variant": ["lora"]}'
    [container] = spec["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]["containers"]
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert env["RETUNE_HP_TARGET_MODULES"] == "${trialParameters.target_modules}"
    assert env["RETUNE_HP_BETA2"] == "${trialParameters.beta2}"
    found = algorithms.problems(study("search.algorithm=multivariate-tpe", *[
        f"search.parameters={yaml.safe_dump(CONDITIONAL, default_flow_style=True).strip()}", "search.settings={}",
    ]))  # fmt: skip
    assert any("has no conditional parameters, but got `when` of ['init']" in problem for problem in found)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("8Gi", "8Gi"), ("1.5Gi", "1536Mi"), ("1024Mi", "1Gi"), ("500000", "500k"), ("1G", "1G"), ("0.5Gi", "512Mi"), ("1000000", "1M"),
        ("1024", "1024"), ("1T", "1T"), ("0.3Ki", "308"), ("2.5M", "2500k"), ("1025", "1025"), ("0.5", "1"), ("1e9", "1G"), ("1E", "1000P"),
    ],
)  # fmt: skip
def test_the_size_of_shared_memory_is_written_as_kubernetes_writes_it(cluster, given, written):
    """Real Katib 0.19 refuses `1.5Gi`, which becomes another text when read into a Job and back. So does the simulator."""
    made = manifest.experiment(study(f"cluster.shared_memory={given}"), PLACE, 2)
    pod = made["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]
    assert [v["emptyDir"]["sizeLimit"] for v in pod["volumes"] if v["name"] == "shm"] == [written]
    cluster.objects.create("experiments", "team-a", made, dry=True)
    (shm,) = [v for v in pod["volumes"] if v["name"] == "shm"]
    if given in ("1.5Gi", "1024Mi", "500000"):
        shm["emptyDir"]["sizeLimit"] = given
        with pytest.raises(Refused, match="sizeLimit"):
            cluster.objects.create("experiments", "team-a", made, dry=True)


def test_a_trial_has_a_cpu_limit_only_where_the_study_sets_one(cluster):
    for words, expected in (([], None), (["cluster.cpu_limit=6"], "6")):
        made = manifest.experiment(study(*words), PLACE, 2)
        (container,) = made["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]["containers"]
        assert container["resources"]["limits"].get("cpu") == expected
        cluster.objects.create("experiments", "team-a", made, dry=True)


def test_what_is_empty_is_left_out_as_kubernetes_does(cluster):
    """Real Katib 0.19 refuses a toleration with `value: ""`, and an env entry likewise: Kubernetes writes neither."""
    made = manifest.experiment(
        study("cluster.tolerations=[{key: a, value: ''}]", "cluster.env={A: ''}"), PLACE, 2
    )
    pod = made["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]
    assert pod["tolerations"] == [{"key": "a", "operator": "Equal"}]
    assert {"name": "A"} in pod["containers"][0]["env"]
    cluster.objects.create("experiments", "team-a", made, dry=True)
