"""TensorBoard and Weights & Biases, filled by their own libraries and read back by them."""

import json
from pathlib import Path

import pytest

from retune.records import BenchRecord, Metric, TrialRecord
from retune.study import Tracking
from retune.tracking import boards

SETTING = {"rank": 8, "learning_rate": 1e-4}


def record(status="completed", reason=None):
    curve = [Metric(step=step, value=2.0 - step / 10) for step in (2, 4, 6)]
    return TrialRecord(
        trial="trial-002", number=2, role="search", assignment=SETTING, seed=0, status=status, reason=reason, steps=6,
        values={"validation_loss": 1.4}, curves={"validation_loss": curve}, seconds=3.0,
    )  # fmt: skip


def bench():
    return BenchRecord(
        model="trial-002", task="mmlu", score=0.5, stderr=0.1, n=4, shots=0, protocol="instruct-eval"
    )


def show(opened, whole=True):
    opened.start_trial("trial-002", 2, "search", SETTING, 0)
    opened.metric("trial-002", "validation_loss", 1.8, 2)
    if whole:
        opened.finish_trial(record())
        opened.benchmark(bench())
    opened.close()


def scalars(folder: Path) -> dict:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(point.step, round(point.value, 4)) for point in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    } | {"hparams": "_hparams_/session_start_info" in read.summary_metadata}


def test_tensorboard_reads_every_measurement_once_and_the_setting(tmp_path):
    asked = Tracking(tensorboard=str(tmp_path / "tb"))
    trial = tmp_path / "tb" / "bot" / "search-0" / "trial-002"
    # A run that is killed here
    show(boards.open_boards(asked, "bot", "search-0", tmp_path / "work"), whole=False)
    assert scalars(trial)["validation_loss"] == [(2, 1.8)]
    expected = {
        "validation_loss": [(2, 1.8), (4, 1.6), (6, 1.4)], "final/validation_loss": [(6, 1.4)], "bench/mmlu": [(0, 0.5)],
        "hparams": True,
    }  # fmt: skip
    for _ in range(2):  # shown whole, it is not shown again
        show(boards.open_boards(asked, "bot", "search-0", tmp_path / "work"))
        assert scalars(trial) == expected


def written(data: bytes):
    """The records in a file of an offline run: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # what is left of a block is too short for a header
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    asked = Tracking(wandb="team/bots")
    assert list(boards.problems(asked)) == []
    show(boards.open_boards(asked, "bot", "search-0", tmp_path / "work"))
    from wandb.proto import wandb_internal_pb2

    history, summary, config, runs = [], {}, {}, []
    for file in sorted((tmp_path / "work").rglob("*.wandb")):
        for data in written(file.read_bytes()):
            one = wandb_internal_pb2.Record.FromString(data)
            if one.HasField("run"):
                runs.append(
                    (one.run.entity, one.run.project, one.run.run_group, one.run.display_name, one.run.run_id)
                )
            if one.HasField("history"):
                history.append(
                    {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in one.history.item}
                )
            for item in one.summary.update if one.HasField("summary") else ():
                summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
            for item in one.config.update if one.HasField("config") else ():
                config[item.key or item.nested_key[0]] = json.loads(item.value_json)
    assert ("team", "bots", "bot-search-0", "trial-002", "search-0-trial-002") in runs
    points = [(h["optimiser_step"], h["validation_loss"]) for h in history if "validation_loss" in h]
    assert points == [(2, 1.8), (4, 1.6), (6, pytest.approx(1.4))]
    assert {"rank": 8, "learning_rate": 1e-4, "role": "search"}.items() <= config.items()
    assert (summary["status"], summary["bench/mmlu"]) == ("completed", 0.5)


def test_a_board_that_fails_is_given_up_and_nothing_else(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    asked = Tracking(tensorboard=str(tmp_path / "file"))
    show(boards.open_boards(asked, "bot", "search-0", tmp_path / "work"))
    assert "tensorboard is not used any more in this run" in caplog.text
    show(boards.open_boards(Tracking(), "bot", "search-0", tmp_path / "work"))  # nothing asked for


def test_what_is_missing_is_said_before_a_run(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (messages,) = boards.problems(Tracking(wandb="bots"))
    assert "set WANDB_API_KEY, or WANDB_MODE=offline" in messages
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    assert list(boards.problems(Tracking(wandb="bots"))) == []
    monkeypatch.setattr(boards.importlib.util, "find_spec", lambda name: None)
    messages = list(boards.problems(Tracking(wandb="bots", tensorboard="tb")))
    assert [
        "pip install 'retune[tensorboard]'" in messages[0],
        "pip install 'retune[wandb]'" in messages[1],
    ] == [
        True,
        True,
    ]
    with pytest.raises(ValueError, match="must be a local folder"):
        Tracking(tensorboard="s3://bucket/tb")
