"""MLflow's SQLite database is created completely or not at all."""

import os
import sqlite3
import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient

from retune.tracking import database
from retune.tracking.runs import connect


@pytest.mark.slow
def test_a_kill_while_the_tables_are_made_leaves_nothing_in_the_way(tmp_path):
    """MLflow's own way leaves a database without a version, or with tables of a migration that was going on."""
    path = tmp_path / "mlflow.db"
    script = f"from retune.tracking.runs import connect\nconnect('sqlite:///{path}')"
    begun = subprocess.Popen([sys.executable, "-c", script])
    while begun.poll() is None and not any(made.stat().st_size for made in tmp_path.glob(".mlflow.db.*.new")):
        time.sleep(0.01)
    begun.kill()
    begun.wait()
    assert not path.exists()
    assert list(tmp_path.glob(".mlflow.db.*"))
    assert connect(f"sqlite:///{path}").search_experiments()
    assert not list(tmp_path.glob(".mlflow.db.*")), (
        "the next one that makes the database takes away what was left"
    )
    with sqlite3.connect(path) as made:
        assert made.execute("select count(*) from alembic_version").fetchone() == (1,)


@pytest.mark.slow
def test_a_database_that_is_there_stays(tmp_path):
    path = tmp_path / "mlflow.db"
    uri = f"sqlite:///{path}"
    connect(uri).create_experiment("mine")
    before = path.stat().st_ino
    database.create_if_missing(uri)
    assert path.stat().st_ino == before
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]
    assert MlflowClient(uri).get_experiment_by_name("mine")


def test_of_two_that_make_it_at_once_the_first_ones_stays(tmp_path, monkeypatch):
    path = tmp_path / "mlflow.db"
    link = os.link

    def late(made, name):
        path.write_bytes(b"of another process")
        link(made, name)

    monkeypatch.setattr(os, "link", late)
    database.create_if_missing(f"sqlite:///{path}")
    assert path.read_bytes() == b"of another process"
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:///:memory:", "postgresql://h/db"])
def test_other_uris_are_left_alone(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    database.create_if_missing(uri)
    assert list(tmp_path.iterdir()) == []
