"""The third example: the workflow's jobs with the action's own steps, from a push to the merge that promotes."""

import json
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch

import pytest
import yaml
from tests.conftest import ROOT
from tests.examples.actions import Actions, evaluate

from retune import study
from retune.cli import cli
from retune.registry.aliases import aliases

EXAMPLE = ROOT / "examples/03-retune-in-ci"
WORKFLOW = yaml.safe_load((EXAMPLE / "workflow.yaml").read_text())
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
GITLAB = list(yaml.safe_load_all((ROOT / "templates/retune.yml").read_text()))
SMALL = "data.train=40 data.validation=20 search.trials=2 search.repeats=0 engine.threads=1"


def git(*words, cwd):
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def test_a_push_of_anything_that_the_study_reads_starts_the_workflow():
    """Its data and its base are in the paths, and so are the files of a merged proposal."""
    loaded = study.load(EXAMPLE / "study.yaml")
    read = [
        loaded.model.base + "/config.json",
        *(source.uri for source in loaded.data.sources),
        f"{EXAMPLE}/study.yaml",
    ]
    for path in [*(os.path.relpath(path, ROOT) for path in read), f"retune/{loaded.promote.model}.json"]:
        assert any(fnmatch(path, pattern) for pattern in WORKFLOW[True]["push"]["paths"]), path


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("vendor.github-workflows", "examples/03-retune-in-ci/workflow.yaml"),
        ("vendor.github-actions", "action.yml"),
    ],
)
def test_github_takes_the_workflow_and_the_action(schema, path):
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(ROOT / path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_gitlab_takes_the_template(tmp_path):
    """All of its inputs are declared and used, and GitLab's schema accepts the resulting job."""
    declared = GITLAB[0]["spec"]["inputs"]
    text = (ROOT / "templates/retune.yml").read_text().split("\n---\n")[1]
    assert set(re.findall(r"\$\[\[ inputs\.([\w-]+) \]\]", text)) == set(declared)
    values = {name: given.get("default", "image:1") for name, given in declared.items()}
    filled = re.sub(r"\$\[\[ inputs\.([\w-]+) \]\]", lambda found: str(values[found[1]]), text)
    (tmp_path / "job.yml").write_text(filled)
    words = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.gitlab-ci",
        str(tmp_path / "job.yml"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    for line in yaml.safe_load(filled)["retune"]["script"]:
        subprocess.run(["bash", "-n", "-c", line], check=True)


def test_the_templates_use_options_that_there_are():
    commands = cli.get_command(None, "ci").commands
    known = {
        name: {option for p in command.params for option in p.opts} for name, command in commands.items()
    }
    scripts = "\n".join(step["run"] for step in ACTION["runs"]["steps"])
    assert set(re.findall(r"(--[a-z-]+)=", scripts)) <= known["run"] | known["promote"] | {"--constraint"}
    template = "\n".join(GITLAB[1]["retune"]["script"])
    assert set(re.findall(r"(?<=\s)(--[a-z-]+)", template)) <= known["run"] | known["promote"]
    used = {name for step in ACTION["runs"]["steps"] for name in re.findall(r"inputs\.([\w-]+)", str(step))}
    assert used == set(ACTION["inputs"])


def test_expressions_are_evaluated_as_github_does():
    values = {"vars.A": "", "inputs.gpu-hours": "40", "runner.temp": "/t"}
    assert evaluate("${{ vars.A || './x' }}", values) == "./x"
    assert evaluate("a ${{ inputs.gpu-hours }} b", values) == "a 40 b"
    assert evaluate("${{ inputs.python || format('{0}/bin', runner.temp) }}", values) == "/t/bin"


@pytest.fixture
def push(tmp_path):
    """A function that pushes to a real remote and runs the workflow in the job's clone, as a push event does."""
    bare, clone = tmp_path / "origin.git", tmp_path / "clone"
    git("clone", "-q", "--depth", "1", f"file://{ROOT}", str(clone), cwd=tmp_path)
    for name in ("action.yml", "constraints.txt", "pyproject.toml", "src", "examples/data", "examples/base", "examples/03-retune-in-ci"):  # fmt: skip
        source = ROOT / name  # as they are here, committed or not
        (shutil.copytree if source.is_dir() else shutil.copy)(source, clone / name, **({"dirs_exist_ok": True} if source.is_dir() else {}))  # fmt: skip
    git("init", "-q", "--bare", "-b", "main", str(bare), cwd=tmp_path)
    git("checkout", "-qB", "main", cwd=clone)
    git("fetch", "-q", "--unshallow", cwd=clone) if (clone / ".git/shallow").exists() else None
    git("remote", "set-url", "origin", str(bare), cwd=clone)
    # What the step installs comes from the packages of this environment, but for retune itself.
    packages = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    env = {
        "PYTHONPATH": packages,
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_NO_INDEX": "1",
        "OMP_NUM_THREADS": "1",
    }
    (clone / ".gitignore").write_text(
        "artifacts\nmlflow.db\nmlartifacts\nretune/bin\n/retune/lib*\n/retune/pyvenv.cfg\n/retune/include\n"
    )
    heads = ["0" * 40]

    def run(path, text):
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        (clone / path).write_text(text)
        git("add", "-A", cwd=clone)
        git("commit", "-qm", path, cwd=clone)
        return event()

    def event():
        git("push", "-q", "origin", "main", cwd=clone)
        values = {
            "github.event_name": "push", "github.event.before": heads[-1], "github.token": "", "vars.RETUNE_OVERRIDES": SMALL,
            "runner.temp": str(tmp_path / "temp"),
        }  # fmt: skip
        heads.append(git("rev-parse", "HEAD", cwd=clone))
        (tmp_path / "temp").mkdir(exist_ok=True)
        actions = Actions(WORKFLOW, clone, values, env)
        actions.job("promote")
        return actions.job("retune"), actions.said

    run.event, run.clone = event, clone
    return run


@pytest.mark.slow
def test_what_changed_is_tuned_again_and_a_merge_makes_it_the_champion(push):
    clone = push.clone
    tracking = f"sqlite:///{clone}/mlflow.db"
    outputs, said = push("src/train.py", "one")
    assert any("nothing was ever proposed" in text for text in said)
    first = json.loads(outputs["result"])
    assert (outputs["decision"], first["promoted"]) == ("promote", False)
    assert outputs["pull-request"] == "branch retune/nightly-adapter"  # no GITHUB_REPOSITORY: a plain runner

    git("fetch", "-q", "origin", "retune/nightly-adapter", cwd=clone)
    git("merge", "-q", "--no-ff", "-m", "merged", "FETCH_HEAD", cwd=clone)
    outputs, said = push.event()
    assert any("nightly-adapter version 1 is the champion now" in text for text in said)
    assert json.loads(outputs["result"])["retuning"] is None  # what was merged starts no search
    assert aliases(tracking, "nightly-adapter").champion == "1"

    data = clone / "examples/data/alpaca-demo.json"
    outputs, said = push("examples/data/alpaca-demo.json", json.dumps(json.loads(data.read_text())[:400]))
    assert any("unchanged" in text for text in said)
    third = json.loads(outputs["result"])
    assert [reason.partition(":")[0] for reason in third["reasons"]] == ["data alpaca-demo.json"]
    (gate,) = [json.loads(path.read_text()) for path in clone.glob("artifacts/nightly/search-*/gate.json")
               if json.loads(path.read_text())["champion"]]  # fmt: skip
    (champion,) = [rule for rule in gate["rules"] if rule["rule"] == "better than champion"]
    assert champion["reference"] is not None  # measured on the new study's data
    assert champion["least"] == 0.01

    from mlflow import MlflowClient

    client = MlflowClient(tracking, tracking)
    runs = client.search_runs(
        [client.get_experiment_by_name("nightly").experiment_id], "tags.git_commit LIKE '%'"
    )
    assert {run.data.tags["git_commit"] for run in runs} == {
        git("log", "-1", "--format=%H", "--", "src", cwd=clone)
    }
