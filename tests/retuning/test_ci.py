"""`retune ci` in a real git repository: a change of data becomes a pull request, and the merge the champion."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import yaml

from retune.registry import promotion
from retune.registry.aliases import aliases
from retune.retuning.lease import Retunings
from tests.conftest import ROOT, wait_for
from tests.registry.versions import register_version

pytest_plugins = ["tests.retuning.servers", "tests.mlflow_server"]
SMALL = [
    "data.train=24", "data.validation=16", "search.trials=2", "search.parallel=1", "search.repeats=0", "engine.threads=1",
    "promote.gate.min_gain_over_base=0",
]  # fmt: skip
MODEL = "nightly-adapter"


class Job:
    """A CI job's clone, and what a runner script does there."""

    def __init__(self, folder, server):
        self.folder, self.server = folder, server
        self.bare = folder / "origin.git"
        self.clone = folder / "clone"
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", self.bare], check=True)
        subprocess.run(["git", "clone", "-q", self.bare, self.clone], check=True, capture_output=True)
        for name in ("data", "base/tiny", "03-retune-in-ci"):
            shutil.copytree(ROOT / "examples" / name, self.clone / name)
        study = yaml.safe_load((self.clone / "03-retune-in-ci/study.yaml").read_text())
        (self.clone / "study.yaml").write_text(
            yaml.safe_dump(study).replace("../data", "./data").replace("../base", "./base")
        )
        shutil.rmtree(self.clone / "03-retune-in-ci")
        self.commit("a study")
        self.tracking = f"sqlite:///{folder}/mlflow.db"
        server.answers["GET", "/repos/team/bot/pulls"] = (200, [])
        server.answers["POST", "/repos/team/bot/pulls"] = (
            201,
            {"html_url": "https://git.example/team/bot/pull/1"},
        )
        self.env = {
            **os.environ, "OMP_NUM_THREADS": "1", "GITHUB_REPOSITORY": "team/bot", "GITHUB_API_URL": server.url,
            "GITHUB_REF_NAME": "main", "RETUNE_TOKEN": "t0ken", "RETUNE_WEBHOOK": f"{server.url}/hook/secret",
        }  # fmt: skip

    def git(self, *words, cwd=None):
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", *who, *words]
        return subprocess.run(
            command, cwd=cwd or self.clone, check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit(self, message):
        self.git("add", "-A")
        self.git("commit", "-qm", message)
        self.git("push", "-q", "origin", "HEAD:main")

    def words(self, *more):
        places = [f"artifacts.uri={self.folder}/artifacts", f"tracking.uri={self.tracking}"]
        mine = ["--pull-request", "retune", "--beat-seconds", "0.5"]
        return [sys.executable, "-m", "retune", "ci", "run", "study.yaml", *SMALL, *places, *mine, *more]

    def start(self, *more):
        return subprocess.Popen(
            self.words(*more), cwd=self.clone, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )  # fmt: skip

    def run(self, *more):
        process = self.start(*more)
        out, err = process.communicate(timeout=900)
        return process.returncode, out, err

    def dry(self):
        code, out, err = self.run("--dry-run", "--json", "--gpu-hours", "5")
        assert code == 0, err
        return json.loads(out)

    @property
    def retunings(self):
        return Retunings(f"{self.folder}/artifacts/nightly")


@pytest.mark.slow
def test_from_changed_data_by_a_pull_request_to_the_champion(tmp_path, server):
    job = Job(tmp_path, server)
    planned = job.dry()
    assert (planned["starts"], planned["reasons"]) == (True, ["never retuned before"])
    assert not (tmp_path / "artifacts").exists()

    # Two at once: the second is refused while the first lives, and takes over when it was killed.
    first = job.start()
    work = tmp_path / "artifacts/nightly"
    wait_for(lambda: list(work.glob("search-*/trials/trial-000/assignment.json")), 300)
    code, _, err = job.run()
    assert code == 75, err
    assert f"process {first.pid})" in err
    assert job.dry()["holder"].startswith("retuning 1 since")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    code, out, err = job.run("--json", "--gpu-hours", "5")
    assert code == 0, err
    result = json.loads(out)
    assert (result["retuning"], result["decision"], result["promoted"]) == (2, "promote", False)
    assert result["pull_request"] == "https://git.example/team/bot/pull/1"
    assert [entry.state for entry in job.retunings.entries()] == ["running", "done"]
    assert job.retunings.spent(30) > result["gpu_hours"]  # what the killed one spent counts
    assert aliases(job.tracking, MODEL).champion is None  # nobody merged it yet

    # The pull request: the version, the comparison and the report, and nothing of them in the job's clone.
    (request,) = [
        body
        for method, path, body, _ in server.requests
        if (method, path) == ("POST", "/repos/team/bot/pulls")
    ]
    assert request["title"] == f"Promote {MODEL} version 1"
    assert "| better than base | passed |" in request["body"]
    branch = f"retune/{MODEL}"
    assert request["head"] == branch
    files = job.git("ls-tree", "-r", "--name-only", branch, "retune/", cwd=job.bare).split()
    assert files == [f"retune/{MODEL}.{kind}" for kind in ("html", "json", "md")]
    assert "<html" in job.git("show", f"{branch}:retune/{MODEL}.html", cwd=job.bare)[:500].lower()
    assert job.git("status", "--porcelain") == ""
    texts = server.texts()
    assert texts[0] == "nightly: retuning 1 starts: never retuned before"
    assert texts[-1].startswith(
        f"nightly: {MODEL} version 1 passed its gate and waits for approval: https://git.example/team/bot/pull/1"
    )
    assert "secret" not in err

    # Nothing changed: nothing starts, and no second request is opened.
    assert job.dry()["steps"] == []
    code, out, _ = job.run()
    assert (code, out) == (0, "nightly: nothing changed, nothing started\n")
    assert len(server.texts()) == len(texts)

    # The merge makes it the champion, as often as the job runs.
    before = job.git("rev-parse", "HEAD")
    job.git("fetch", "-q")
    job.git("merge", "-q", "--no-ff", "-m", "merged", f"origin/{branch}")
    job.git("push", "-q", "origin", "HEAD:main")
    promote = [
        sys.executable,
        "-m",
        "retune",
        "ci",
        "promote",
        f"retune/{MODEL}.json",
        "--tracking",
        job.tracking,
    ]
    for said in (
        f"{MODEL} version 1 is the champion now; it was none",
        f"{MODEL} version 1 is the champion already",
    ):
        done = subprocess.run(
            [*promote, "--before", before], cwd=job.clone, env=job.env, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout.strip()) == (0, said), done.stderr
    assert aliases(job.tracking, MODEL).champion == "1"
    assert server.texts()[-1] == f"{MODEL} version 1 is the champion now; it was none"
    assert not job.dry()["steps"]

    # Changed data are named, and a budget that is used up stops the run before more is spent.
    data = job.clone / "data/alpaca-demo.json"
    records = json.loads(data.read_text())
    data.write_text(json.dumps(records[: len(records) // 2]))
    job.commit("other data")
    (reason,) = job.dry()["reasons"]
    assert reason.startswith("data alpaca-demo.json: ")
    # A third of what the same study took before, on this machine.
    budget = job.retunings.spent(30) + result["gpu_hours"] / 3
    code, _, err = job.run("--gpu-hours", str(budget))
    assert code == 75, err
    assert "is used up" in err
    assert job.retunings.entries()[-1].state == "stopped"
    # test_lease.py holds when it is stopped; here a busy machine may need a while to end the processes.
    assert job.retunings.spent(30) <= budget + 30 / 3600
    count = len(job.retunings.entries())
    code, _, err = job.run("--gpu-hours", str(job.retunings.spent(30)))
    assert (code, len(job.retunings.entries())) == (75, count)  # not even started
    assert server.texts()[-1].startswith("nightly: not started: the budget of")
    assert any(line.startswith("retuning 3 stopped: the budget of") for line in job.dry()["reasons"])


@pytest.mark.slow
def test_reverting_a_merge_brings_the_champion_back_and_an_old_proposal_is_refused(tmp_path, database):
    from retune.retuning.proposal import Pin
    from retune.retuning.run import apply_pin

    one, two, three = (register_version(database, tmp_path, name) for name in ("one", "two", "three"))
    apply_pin(database, Pin(model="m", version=one))
    assert "it was 1" in apply_pin(database, Pin(model="m", version=two, champion=one))
    # The pin of a champion that was replaced by other means must not come back by itself.
    with pytest.raises(promotion.ChampionChanged):
        apply_pin(database, Pin(model="m", version=one))
    assert "back at version 1" in apply_pin(database, Pin(model="m", version=one), revert=True)
    assert aliases(database, "m").champion == one
    with pytest.raises(promotion.ChampionChanged):
        apply_pin(database, Pin(model="m", version=three, champion=two), revert=True)
    assert aliases(database, "m").champion == one
