"""MLflow's SQLite database, made whole or not at all."""

from __future__ import annotations

import glob
import os
import re
import socket
from pathlib import Path

from retune.processes import alive

SQLITE = "sqlite:///"


def path_of(uri: str) -> Path | None:
    """Return the file of an SQLite URI; None for any other URI, and for a database in memory."""
    name = uri.removeprefix(SQLITE).partition("?")[0]
    return Path(name) if uri.startswith(SQLITE) and name not in ("", ":memory:") else None


def create_if_missing(uri: str) -> None:
    """Make MLflow's tables in the SQLite database at `uri` if it is not there yet; other URIs are left alone.

    MLflow makes them by dozens of migrations, each in a transaction of its own. A process killed among them leaves a database
    that MLflow never opens again ("table _alembic_tmp_experiments already exists"). So they are made beside it, and the
    whole file then gets its name. If two processes do so at once, the first one's database stays.
    """
    path = path_of(uri)
    if path is None or path.exists() or not path.parent.is_dir():
        return
    from mlflow import MlflowClient

    host = socket.gethostname()
    begun = f".{path.name}.{host}."
    # Of processes of this machine that were killed
    for left in path.parent.glob(f"{glob.escape(begun)}*.new*"):
        if (owner := re.match(r"\d+", left.name.removeprefix(begun))) and not alive(int(owner[0])):
            left.unlink(missing_ok=True)
    made = path.with_name(f"{begun}{os.getpid()}.new")
    made.unlink(missing_ok=True)
    try:
        whole = f"{SQLITE}{made}"
        MlflowClient(tracking_uri=whole, registry_uri=whole).search_experiments(max_results=1)
        try:
            os.link(made, path)
        except FileExistsError:
            pass  # another process was faster
        except OSError:  # a file system without hard links
            made.rename(path)
    finally:
        made.unlink(missing_ok=True)
