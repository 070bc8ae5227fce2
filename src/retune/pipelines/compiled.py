"""Compiling the pipelines, and running a compiled one on this machine."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

PIPELINES = ("search", "tune")


def compile_pipeline(name: str, path: Path) -> None:
    """Compile the pipeline `name` to a YAML file."""
    from kfp import compiler

    module = importlib.import_module(f"retune.pipelines.{name}")
    compiler.Compiler().compile(getattr(module, f"{name}_pipeline"), str(path))


def run_here(name: str, arguments: dict[str, Any], root: Path) -> None:
    """Run a compiled pipeline with `kfp.local`, every component in a process of its own.

    Args:
        name: the pipeline. arguments: its parameters. root: folder for KFP's own artifacts.

    Raises:
        RuntimeError: if a component failed.

    """
    from kfp import components, local

    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root), raise_on_error=True)
    pipeline = components.load_component_from_file(str(Path(__file__).with_name(f"{name}.yaml")))
    pipeline(**arguments)
