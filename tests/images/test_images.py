"""Each image, built as users build it, in a container that may do no more than a restricted namespace allows."""

import json
import os
import shutil
import socket
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import retune
from retune import search
from retune.search import Observation
from retune.study import load
from retune.suggestion.client import SuggestionClient
from tests.conftest import DEMO, ROOT, SMALL
from tests.images.containers import REVISION, TAG

NAMES = ("suggestion", "train", "eval")
CONTEXT = (
    "Makefile",
    ".dockerignore",
    "pyproject.toml",
    "constraints.txt",
    "README.md",
    "LICENSE",
    "images",
    "src",
    "pipelines",
)
SITE = "/opt/venv/lib/python3*/site-packages"
STARTS_WITHIN = 10  # seconds; Katib's first probe comes then

# A first build brings everything
pytestmark = [pytest.mark.images, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(params=NAMES)
def name(request, built):
    built(request.param)
    return request.param


@pytest.fixture
def shared(tmp_path):
    """A folder that the images' user may write, as a volume with `fsGroup`."""
    folder = tmp_path / "shared"
    folder.mkdir()
    os.chown(folder, 10001, 10001)
    return folder


def mounts(folder):
    return ["--volume", f"{ROOT}/examples:/examples:ro", "--volume", f"{folder}:/shared"]


def test_make_images_prints_the_size(built):
    printed = built("suggestion").splitlines()
    (line,) = [line for line in printed if line.startswith(f"localhost/retune-suggestion:{TAG} ")]
    assert line.split()[2] in ("MB", "GB")


def test_labels_user_and_entry(name, containers):
    found = containers.inspect(name)
    labels, config = found["Labels"], found["Config"]
    assert labels["org.opencontainers.image.title"] == f"retune-{name}"
    assert labels["org.opencontainers.image.version"] == retune.__version__
    assert labels["org.opencontainers.image.revision"] == REVISION
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == (["retune", "serve"] if name == "suggestion" else ["retune"])
    assert config.get("ExposedPorts") == ({"6789/tcp": {}} if name == "suggestion" else None)


def test_no_compiler_no_pip_and_no_cache_is_left(name, containers):
    tools = "cc gcc g++ c++ clang ld as make pip pip3"
    assert containers.shell(name, f"for tool in {tools}; do command -v $tool; done; true") == ""
    assert containers.run(name, "-m", "pip", options=["--entrypoint", "python"]).returncode == 1
    there = containers.shell(name, "ls -A /opt /tmp /var/tmp; ls -d /root/.cache || true")
    assert not {"pip", ".cache"} & set(there.split("/tmp:")[0].split()), there
    assert there.split("/tmp:", 1)[1].split() == ["/var/tmp:"]
    left = f"find {SITE} -name '*.a' -o -name '*.pyx' -o -type d -name tests -o -type d -name include"
    assert containers.shell(name, left) == ""


def test_byte_code_is_there_as_nobody_can_write_it_later(name, containers):
    script = f"cd {SITE}/retune && find . -name '*.py' | wc -l && find . -name '*.pyc' | wc -l"
    sources, compiled = map(int, containers.shell(name, script).split())
    assert sources == compiled > 100


def test_all_commands_that_the_image_has_answer(name, containers):
    done = containers.run(name, "--version", options=["--entrypoint", "retune"])
    assert (done.returncode, done.stdout.split()[-1]) == (0, retune.__version__), done.stderr


def test_changed_code_and_settings_of_tools_make_only_the_last_layer_anew(name, containers, built, tmp_path):
    before = containers.inspect(name)["RootFS"]["Layers"]
    for part in (*CONTEXT, f"Dockerfile.{name}"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    (tmp_path / "src/retune/changed.py").write_text('"""New."""\n')
    with (tmp_path / "pyproject.toml").open("a") as project:
        project.write("[tool.another]\nsetting = true\n")
    containers.make(name, tmp_path)
    try:
        after = containers.inspect(name)["RootFS"]["Layers"]
        assert after[:-1] == before[:-1]
        assert after[-1] != before[-1]
        containers.shell(name, f"ls {SITE}/retune/changed.py")
        sizes = [step["size"] for step in containers.history(name) if step["size"]]
        assert sizes[0] < 10e6
    finally:
        containers.make(name)


def test_training_and_benchmarks_share_all_layers_but_their_own(containers, built):
    for name in ("train", "eval"):
        built(name)
    train, evaluation = (containers.inspect(name)["RootFS"]["Layers"] for name in ("train", "eval"))
    assert evaluation[:-1] == train[: len(evaluation) - 1]


def test_the_suggestion_image_is_small_and_without_torch(containers, built):
    built("suggestion")
    there = containers.shell("suggestion", f"ls {SITE}").split()
    assert "scipy" in there
    assert not {"torch", "transformers", "mlflow", "kfp", "pandas"} & set(there)
    assert containers.inspect("suggestion")["Size"] < 350e6


def test_the_suggestion_service_is_healthy_in_time_and_every_algorithm_answers(containers, built):
    built("suggestion")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    begun = time.monotonic()
    with containers.started(
        "suggestion", "--host", "127.0.0.1", "--port", address.split(":")[1]
    ) as container:
        _until_healthy(address)
        seconds = time.monotonic() - begun
        busy = max(1.0, os.getloadavg()[0] / os.cpu_count())  # a slow machine is no failure
        assert seconds < STARTS_WITHIN * busy, (
            f"{seconds:.1f} s on a machine {busy:.1f} times as busy as it can be"
        )
        with SuggestionClient(address) as client:
            for algorithm in (*search.ALGORITHMS, *search.ALIASES):
                _ask_for_twelve(client, algorithm)
        logged = [
            json.loads(line) for line in containers.logs(container).splitlines() if line.startswith("{")
        ]
    answers = [line for line in logged if line["message"] == "suggested"]
    assert len(answers) == 3 * (len(search.ALGORITHMS) + len(search.ALIASES))
    assert len(answers) == len(logged)  # nothing refused, no random points instead of an algorithm's own
    assert not [line for line in answers for origin in line["origins"] if origin.startswith("fallback")]


def _until_healthy(address):
    """Probe as the kubelet does: by Katib's service name, with a timeout of one second."""
    until = time.monotonic() + 120
    while True:
        with grpc.insecure_channel(address) as channel:
            try:
                request = health_pb2.HealthCheckRequest(service="manager.v1beta1.Suggestion")
                reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=1)
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.RpcError:
                assert time.monotonic() < until, "never healthy"
        time.sleep(0.1)


def _ask_for_twelve(client, algorithm):
    """Three calls of four points each, the later ones with results, so that an algorithm both starts and continues."""
    study = load(DEMO, [f"search.algorithm={algorithm}"])
    history = []
    for _ in range(3):
        for given in client.suggest(study, history, count=4):
            values = {"validation_loss": 1.0 + abs(given["alpha"] - 20) / 64 + given["dropout"]}
            history.append(Observation(given, "completed", values, number=len(history)))
    assert len({tuple(entry.assignment.values()) for entry in history}) == 12


def test_the_train_image_runs_a_trial_as_katib_starts_it(containers, built, shared):
    built("train")
    options = mounts(shared)
    study = f"/examples/{DEMO.relative_to(ROOT / 'examples')}"
    mixed = containers.run("train", "mix", study, *SMALL, "--out", "/shared/data", options=options)
    assert mixed.returncode == 0, mixed.stderr
    # Katib joins the words and gives them to a shell; what it chose comes as environment.
    trial = (
        f"retune trial {study} {' '.join(SMALL)} --data /shared/data --out /shared/trial && echo completed"
    )
    chosen = ["--env", "RETUNE_HP_RANK=4", "--env", "RETUNE_HP_LEARNING_RATE=0.01", "--entrypoint", "sh"]
    done = containers.run("train", "-c", trial, options=[*options, *chosen])
    assert done.returncode == 0, done.stderr
    record = json.loads((shared / "trial/trial.json").read_text())
    assert record["status"] == "completed"
    assert record["assignment"] == {"rank": 4, "learning_rate": 0.01}
    lines = done.stdout.splitlines()
    assert lines[-1] == "completed"
    last = [line.split("=")[1] for line in lines if " validation_loss=" in line][-1]
    assert float(last) == record["values"]["validation_loss"] < 10
    assert (shared / "trial/adapter/adapter_model.safetensors").stat().st_uid == 10001


def test_the_train_image_runs_every_step_of_a_study_but_benchmarks(containers, built, shared):
    """All steps of a pipeline in one container: no import is missing, and no step writes where it may not."""
    built("train")
    place = ["artifacts.uri=/shared/artifacts", "tracking.uri=sqlite:////shared/mlflow.db", "search.trials=2"]
    words = ["run", f"/examples/{DEMO.relative_to(ROOT / 'examples')}", *SMALL, *place, "--json"]
    done = containers.run("train", *words, options=mounts(shared), timeout=1200)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["trials"] >= 2
    assert outcome["gate"]["challenger"] == "1"
    assert (shared / outcome["report"].removeprefix("/shared/")).exists()


def test_the_eval_image_runs_benchmarks_and_the_code_that_a_model_writes(containers, built, shared):
    built("eval")
    words = [
        "bench",
        "--model",
        "/examples/base/tiny",
        "--tasks",
        "mmlu,humaneval",
        "--limit",
        "8",
        "--out",
        "/shared/bench",
    ]
    data = [
        "--data=mmlu=/examples/data/benchmarks/mmlu",
        "--data=humaneval=/examples/data/benchmarks/humaneval.jsonl.gz",
    ]
    done = containers.run("eval", *words, *data, "--allow-code-execution", "--json", options=mounts(shared))
    assert done.returncode == 0, done.stderr
    records = {record["task"]: record for record in map(json.loads, done.stdout.splitlines())}
    assert {task: record["n"] for task, record in records.items()} == {"mmlu": 8, "humaneval": 8}
    script = "from retune.evaluation.sandbox import runner as sandbox; print(sandbox.run('assert sum(range(10)) == 45').passed, sandbox.run('assert 0').passed)"
    tried = containers.run("eval", "-c", script, options=["--entrypoint", "python"])
    assert tried.stdout.split() == ["True", "False"], tried.stderr
