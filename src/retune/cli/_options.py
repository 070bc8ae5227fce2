"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def tracking(help: str = "MLflow tracking URI.", **more: Any) -> Callable[[Any], Any]:
    """Return the option ``--tracking``, which a command gets as `uri`; `more` goes to `click.option`."""
    return click.option(
        "--tracking", "uri", default="sqlite:///mlflow.db", show_default=True, help=help, **more
    )
