"""Creates MLflow's SQLite database atomically."""

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
    """Create MLflow's SQLite database at `uri` if it does not exist yet; do nothing for other URIs.

    MLflow creates its tables by dozens of migrations, each in a transaction of its own. A process killed among them leaves a
    database that MLflow never opens again ("table _alembic_tmp_experiments already exists"). So the database is created under
    a temporary name and then renamed. If two processes do so at once, the first one's database stays.
    """
    path = path_of(uri)
    if path is None or path.exists() or not path.parent.is_dir():
        return
    from mlflow import MlflowClient

    host = socket.gethostname()
    prefix = f".{path.name}.{host}."
    # Left by killed processes of this machine; processes of other hosts cannot be looked up
    for leftover in path.parent.glob(f"{glob.escape(prefix)}*.new*"):
        if (owner := re.match(r"\d+", leftover.name.removeprefix(prefix))) and not alive(int(owner[0])):
            leftover.unlink(missing_ok=True)
    temporary = path.with_name(f"{prefix}{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    try:
        temporary_uri = f"{SQLITE}{temporary}"
        MlflowClient(tracking_uri=temporary_uri, registry_uri=temporary_uri).search_experiments(max_results=1)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass  # another process was faster
        except OSError:  # a file system without hard links
            temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
