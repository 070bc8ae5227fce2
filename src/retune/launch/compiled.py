"""The compiled pipelines, and running one of them on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PIPELINES = ("search", "tune")


def compiled(name: str) -> Path:
    """Return the YAML file of the pipeline `name`.

    A wheel carries it beside this file; a checkout has it in its folder `pipelines`, where `make pipelines` writes it.
    """
    in_wheel = Path(__file__).with_name(f"{name}.yaml")
    return in_wheel if in_wheel.is_file() else Path(__file__).parents[3] / "pipelines" / f"{name}.yaml"


def run_here(name: str, arguments: dict[str, Any], root: Path) -> None:
    """Run a compiled pipeline with `kfp.local`, every component in a process of its own.

    Args:
        name: the pipeline. arguments: its parameters. root: folder for KFP's own artifacts.

    Raises:
        RuntimeError: if a component failed.

    """
    from kfp import components, local

    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root), raise_on_error=True)
    components.load_component_from_file(str(compiled(name)))(**arguments)
