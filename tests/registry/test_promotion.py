"""The registry on a real database: nothing is registered twice, there is always a champion, and races have one winner."""

import json
import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from retune.cli.promote import command
from retune.errors import InputError, RetuneError
from retune.records import GateRecord
from retune.registry import promotion
from retune.registry.aliases import Aliases, aliases
from retune.registry.lock import Lock, Locked
from retune.registry.promotion import ChampionChanged, promote, rollback
from retune.registry.versions import champion_facts, describe, download_adapter, prompt, register
from retune.tracking import Tracker
from retune.tracking.runs import connect
from tests.selection.test_choice import bench, trial

pytest_plugins = ["tests.mlflow_server"]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def adapter(tmp_path):
    """Return a function that makes an adapter's folder; other content is another adapter."""

    def make(content: str) -> Path:
        folder = tmp_path / f"adapter-{content}"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "content": content}))
        (folder / "adapter_model.safetensors").write_bytes(content.encode() * 100)
        return folder

    return make


@pytest.fixture
def versions(database, adapter):
    """Return a function that registers that many versions of a model, without a champion."""

    def make(count: int, model: str = "m") -> None:
        for n in range(1, count + 1):
            register(database, model, trial(n, 2 - n / 10, "search"), adapter(f"{model}{n}"), study="demo")

    return make


def test_registering_takes_the_adapter_only_and_says_what_it_stands_on(database, adapter, tmp_path):
    record = trial(7, 1.5, adapter_digest="0123", base="llama", base_revision="rev-1", data_digest="dd")
    tracker = Tracker(database, "demo", tmp_path / "spool", {"search_digest": "s"})
    tracker.start_study({})
    tracker.start_trial(record.trial, 7, "search", record.assignment, 0)
    tracker.finish_trial(record)
    assert tracker.close(120) == 0
    more = {
        "study": "demo",
        "scores": [bench(7, "mmlu", 0.4)],
        "tags": {"git_commit": "c0ffee"},
        "search_digest": "s",
    }
    version = register(database, "m", record, adapter("a"), **more)

    assert version == "1"
    client = connect(database)
    made = client.get_model_version("m", "1")
    run = client.get_run(made.run_id)
    assert run.data.tags["trial.name"] == "trial-007"
    assert run.info.status == "FINISHED"
    assert made.source == f"{run.info.artifact_uri}/adapter"
    expected = {
        "base": "llama",
        "base_revision": "rev-1",
        "data_digest": "dd",
        "study": "demo",
        "trial": "trial-007",
        "adapter_digest": "0123",
        "objective_value": "1.5",
        "bench.mmlu": "0.4",
        "git_commit": "c0ffee",
    }
    assert expected.items() <= made.tags.items()
    assert aliases(database, "m") == Aliases(None, None, "1")
    fetched = download_adapter(database, "m", "1", tmp_path / "fetched")
    names = {path.name: path.read_bytes() for path in fetched.iterdir()}
    assert names == {path.name: path.read_bytes() for path in adapter("a").iterdir()}

    assert register(database, "m", record, adapter("a"), **more) == "1"
    assert len(client.search_model_versions("name = 'm'")) == 1


def test_a_trial_that_was_never_tracked_can_be_registered(database, adapter):
    assert register(database, "m", trial(1, 1.5), adapter("a"), study="demo") == "1"
    assert register(database, "m", trial(2, 1.4), adapter("b"), study="demo") == "2"
    assert aliases(database, "m").challenger == "2"


def test_what_is_no_adapter_is_not_registered(database, tmp_path):
    with pytest.raises(InputError, match=r"adapter_model\.safetensors"):
        register(database, "m", trial(1, 1.5), tmp_path, study="demo")
    with pytest.raises(InputError, match="no registered model"):
        aliases(database, "m")


def test_promotion_keeps_the_old_champion_and_rollback_brings_it_back(database, versions):
    versions(3)
    assert promote(database, "m", "1", None) == Aliases("1", None, "3")
    assert promote(database, "m", "2", "1") == Aliases("2", "1", "3")
    assert promote(database, "m", "2", "1") == Aliases("2", "1", "3")  # done already
    assert rollback(database, "m") == Aliases("1", "2", "3")
    assert rollback(database, "m") == Aliases("2", "1", "3")
    assert connect(database).search_registered_models("name LIKE 'm.lock%'") == []


def test_what_cannot_be_promoted(database, versions):
    versions(3)
    with pytest.raises(InputError, match="no version '9'; the newest are"):
        promote(database, "m", "9", None)
    with pytest.raises(InputError, match="no version 'two'"):
        promote(database, "m", "two", None)
    with pytest.raises(InputError, match="no registered model"):
        promote(database, "other", "1", None)
    with pytest.raises(InputError, match="a rollback needs"):
        rollback(database, "m")
    promote(database, "m", "1", None)
    with pytest.raises(InputError, match="a rollback needs"):
        rollback(database, "m")
    with pytest.raises(ChampionChanged, match="version 2 of m was decided on against champion none"):
        promote(database, "m", "2", None)
    assert aliases(database, "m") == Aliases("1", None, "3")


@pytest.mark.slow
@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_crash_at_any_step_leaves_a_champion_and_can_be_repeated(database, versions, monkeypatch, fails_at):
    versions(3)
    promote(database, "m", "1", None)
    promote(database, "m", "2", "1")
    steps = []

    def crash(method):
        def step(*arguments):
            steps.append(arguments)
            if len(steps) == fails_at:
                raise KeyboardInterrupt
            return method(*arguments)

        return step

    from mlflow import MlflowClient

    with monkeypatch.context() as patched:
        for name in ("set_registered_model_alias", "set_model_version_tag"):
            patched.setattr(MlflowClient, name, staticmethod(crash(getattr(connect(database), name))))
        with pytest.raises(KeyboardInterrupt):
            promote(database, "m", "3", "2")
    assert aliases(database, "m").champion == ("2" if fails_at < 3 else "3")
    assert promote(database, "m", "3", "2") == Aliases("3", "2", "3")


def _race(uri: str, version: str, models: list[str], barrier, results) -> None:
    connect(uri).search_registered_models()  # so that both are awake
    for model in models:
        seen = aliases(uri, model).champion
        barrier.wait(120)
        try:
            promote(uri, model, version, seen)
            results.put((model, version, "won"))
        except ChampionChanged:
            results.put((model, version, "overtaken"))


def _expect_one_winner(uri: str, models: list[str]) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    racers = [context.Process(target=_race, args=(uri, v, models, barrier, results)) for v in ("2", "3")]
    for racer in racers:
        racer.start()
    outcomes = [results.get(timeout=240) for _ in range(2 * len(models))]
    for racer in racers:
        racer.join(60)
    for model in models:
        outcome = {version: how for name, version, how in outcomes if name == model}
        assert sorted(outcome.values()) == ["overtaken", "won"]
        winner = next(version for version, how in outcome.items() if how == "won")
        assert aliases(uri, model) == Aliases(winner, "1", "3")


@pytest.mark.slow
def test_of_two_promotions_in_two_processes_exactly_one_wins(database, versions):
    models = [f"m{k}" for k in range(4)]
    for model in models:
        versions(3, model)
        promote(database, model, "1", None)
    _expect_one_winner(database, models)


@pytest.mark.slow
def test_of_two_promotions_on_a_server_exactly_one_wins(mlflow_server, adapter):
    models = [f"raced{k}" for k in range(2)]
    for model in models:
        for n in (1, 2, 3):
            register(mlflow_server.uri, model, trial(n, 2 - n / 10), adapter(f"{model}{n}"), study="race")
        promote(mlflow_server.uri, model, "1", None)
    _expect_one_winner(mlflow_server.uri, models)


def _register(uri: str, folder: str, barrier, results) -> None:
    connect(uri).search_registered_models()
    barrier.wait(120)
    results.put(register(uri, "m", trial(1, 1.5), Path(folder), study="demo"))


@pytest.mark.slow
def test_the_same_adapter_registered_twice_at_once_is_one_version(database, adapter):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    given = (database, str(adapter("a")), barrier, results)
    both = [context.Process(target=_register, args=given) for _ in range(2)]
    for process in both:
        process.start()
    assert [results.get(timeout=240) for _ in both] == ["1", "1"]
    for process in both:
        process.join(60)
    assert len(connect(database).search_model_versions("name = 'm'")) == 1


OWNER = """
import sys, time
from retune.registry.lock import Lock
from retune.tracking.runs import connect
with Lock(connect(sys.argv[1]), "m"):
    print("taken", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_the_lock_of_a_killed_process_is_taken_over(database):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, database], cwd=ROOT, stdout=subprocess.PIPE)
    assert owner.stdout.readline() == b"taken\n"
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    client = connect(database)
    began = time.monotonic()
    with Lock(client, "m", expiry=1.5) as lock:
        assert time.monotonic() - began >= 1.5
        lock.check()
    assert [m.name for m in client.search_registered_models()] != []  # the broken one, kept for a day
    with Lock(client, "m", expiry=1.5):
        pass


def test_a_lock_that_was_taken_away_writes_nothing_more(database):
    client = connect(database)
    slow = Lock(client, "m", expiry=0.4)
    with slow:
        with Lock(client, "m", expiry=0.4) as next_owner:  # waits until the first looks dead
            with pytest.raises(Locked, match=r"m\.lock must be held for at most"):
                slow.check()
            slow.__exit__(None, None, None)  # must not delete the lock of the next owner
            assert client.get_registered_model("m.lock").tags["owner"] == next_owner._owner
        slow._taken = time.monotonic() - 60


def test_a_lock_that_never_comes_free_gives_up(database, monkeypatch):
    client = connect(database)
    with Lock(client, "m", expiry=60):
        waiting = Lock(client, "m", expiry=0.1)
        monkeypatch.setattr(waiting, "_break", lambda owner: None)
        with pytest.raises(Locked, match=r"m\.lock has been held by others"):
            waiting.__enter__()


def gate(decision: str, champion: str | None, version: str = "3") -> GateRecord:
    rule = {"rule": "better than base", "outcome": "failed", "passed": False, "text": "gain -0.1"}
    return GateRecord(model="m", challenger=version, champion=champion, decision=decision, rules=[rule])


def test_what_the_registry_knows_of_the_champion(database, adapter):
    assert champion_facts(database, "m") is None
    record = trial(1, 1.5, data_digest="dd", base="llama", base_revision="rev")
    register(
        database,
        "m",
        record,
        adapter("a"),
        study="demo",
        scores=[bench(1, "mmlu", 0.4), bench(1, "bbh", 0.3)],
    )
    assert champion_facts(database, "m") is None
    promote(database, "m", "1", None)
    facts = champion_facts(database, "m", ["mmlu"])
    assert (facts.version, facts.objective, facts.scores) == ("1", 1.5, {"mmlu": 0.4})
    assert (facts.data_digest, facts.base, facts.base_revision, facts.study) == ("dd", "llama", "rev", "demo")


def run(database: str, *words: str):
    result = CliRunner().invoke(command, ["m", "--tracking", database, *words])
    return result.exit_code, result.output, result.exception


def test_the_command_obeys_the_gate(database, versions):
    versions(3)
    promote(database, "m", "1", None)
    code, _, error = run(database)
    assert code != 0
    assert isinstance(error, RetuneError)
    assert "no gate has decided on it" in str(error)
    promotion.note_gate(database, gate("keep", "1"))
    _, _, error = run(database)
    assert "better than base: failed: gain -0.1" in str(error)
    assert aliases(database, "m").champion == "1"
    promotion.note_gate(database, gate("promote", "2"))
    _, _, error = run(database)
    assert isinstance(error, ChampionChanged)
    promotion.note_gate(database, gate("promote", "1"))
    code, output, _ = run(database)
    assert code == 0
    assert "champion   version 3, trial trial-003, of demo, validation_loss 1.7, gate: promote" in output
    assert run(database)[0] == 0  # once more changes nothing
    assert aliases(database, "m") == Aliases("3", "1", "3")


def test_the_command_shows_moves_and_rolls_back(database, versions):
    versions(2)
    assert "champion   none" in run(database, "--show")[1]
    assert run(database, "--to", "2")[0] == 0
    assert run(database, "--to", "1")[0] == 0
    code, output, _ = run(database, "--rollback", "--json")
    assert code == 0
    shown = json.loads(output)
    assert (shown["champion"]["version"], shown["previous"]["version"]) == ("2", "1")
    assert run(database, "--to", "1", "--rollback")[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize("version", ["03", "0003", "3"])
def test_a_version_is_a_number_however_it_is_written(database, versions, version):
    versions(3)
    promote(database, "m", "2", None)
    promote(database, "m", version, "2")
    assert promote(database, "m", version, "2") == Aliases("3", "2", "3")  # not its own predecessor
    assert rollback(database, "m").champion == "2"


@pytest.mark.parametrize("version", ["", " 3", "3.0", "+3", "-1", "３", "1e0", "3 or 1", "9" * 40, "latest"])
def test_what_is_no_version(database, versions, version):
    versions(3)
    with pytest.raises(InputError, match="there is no version"):
        promote(database, "m", version, None)


@pytest.mark.parametrize(
    "model", ["chat.lock", "chat.lock.broken.x", "m' OR name LIKE '%", "", "a/b", "a\nb"]
)
def test_names_that_would_be_taken_for_something_else(database, model):
    for call in (
        aliases,
        rollback,
        promotion.promote_challenger,
        describe,
        champion_facts,
    ):
        with pytest.raises(InputError, match="name"):
            call(database, model)


def test_a_model_with_the_name_of_a_lock_is_left_alone(database, versions):
    """Somebody's model `m.lock`, made without retune, is no lock that has expired."""
    versions(2)
    client = connect(database)
    client.create_registered_model("m.lock")
    lock = Lock(client, "m", expiry=0.1)
    with pytest.raises(Locked, match=r"the name m\.lock must be free for the lock"):
        lock.__enter__()
    assert client.get_registered_model("m.lock").name == "m.lock"


def test_an_adapter_with_names_that_lead_away_is_not_fetched(database, versions, monkeypatch, tmp_path):
    from mlflow import MlflowClient
    from mlflow.entities import FileInfo

    versions(1)
    listed = [FileInfo("adapter/../../x", False, 1), FileInfo("adapter/adapter_config.json", False, 1)]
    monkeypatch.setattr(MlflowClient, "list_artifacts", lambda *_: listed)
    with pytest.raises(InputError, match=r"\.\./\.\./x"):
        download_adapter(database, "m", "1", tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_a_version_that_was_deleted_meanwhile_is_named(database, versions, tmp_path):
    versions(2)
    connect(database).delete_model_version("m", "1")
    for ask in (
        lambda: download_adapter(database, "m", "1", tmp_path / "x"),
        lambda: prompt(database, "m", "1"),
    ):
        with pytest.raises(InputError, match="there is no version '1'"):
            ask()
    assert not (tmp_path / "x").exists()


def test_an_adapter_that_mlflow_removed_for_good_is_named_and_registered_anew(
    database, versions, adapter, tmp_path
):
    """`mlflow gc` removes a deleted run with its artifacts; the version stays."""
    versions(1)
    client = connect(database)
    run = client.get_model_version("m", "1").run_id
    client.delete_run(run)
    words = ["gc", "--backend-store-uri", database, "--tracking-uri", database, "--run-ids", run]
    subprocess.run([sys.executable, "-m", "mlflow", *words], check=True, capture_output=True, timeout=120)
    with pytest.raises(InputError, match=f"m version 1: its adapter is gone from MLflow: run {run}"):
        download_adapter(database, "m", "1", tmp_path / "x")
    versions(1)
    assert aliases(database, "m").challenger == "2"
    assert (download_adapter(database, "m", "2", tmp_path / "x") / "adapter_config.json").is_file()
